"""Log-probabilities of target tokens, as the evaluators need them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def score_tokens(score_fn: Callable[..., Any], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log-probability of every target position, (rows, targets_length)."""
    dataset = tf.data.Dataset.from_tensor_slices(dict(features)).enumerate()
    result = score_fn(dataset)
    if not isinstance(result, tuple):
        raise ValueError(
            "RankEvaluator needs the score of every target position: run it under this package's "
            "t5x.eval, or bind evaluate.inference_evaluator_cls = @seqio.Evaluator"
        )
    (token_scores_RxL,) = result[1]["decoder"]["token_scores"]
    return np.asarray(token_scores_RxL)
