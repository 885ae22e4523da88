"""The shapes of a run's batches, known before anything is read."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x.data.datasets import get_dataset

_READ_BY_NETWORK = ("encoder_input_tokens", "decoder_target_tokens")


def batch_shapes(model: Any, cfg: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a dataset makes of the model's features: (batch, length, …) each.

    Args:
      model: gives the feature converter.
      cfg: the `utils.DatasetConfig`, which gives lengths and packing.
      batch_size: rows of the global batch.
    """
    converter = model.FEATURE_CONVERTER_CLS(pack=cfg.pack)
    if any(feature.rank > 1 for feature in converter.MODEL_FEATURES.values()):
        # Only the task knows how wide its features are; nothing is read.
        spec = get_dataset(cfg, 0, 1, model.FEATURE_CONVERTER_CLS).element_spec
        return {
            name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype.as_numpy_dtype)
            for name, x in spec.items()
        }
    lengths = converter.get_model_feature_lengths(cfg.task_feature_lengths)
    dtypes = {name: f.dtype.as_numpy_dtype for name, f in converter.MODEL_FEATURES.items()}
    return {
        # Features of packing, which are not in the list, are positions and segments.
        name: jax.ShapeDtypeStruct((batch_size, length), jnp.dtype(dtypes.get(name, "int32")))
        for name, length in lengths.items()
    }


def count_tokens(batch: Mapping[str, Any]) -> int:
    """Token slots of a batch, padding included: those of the features that the network reads."""
    return sum(math.prod(batch[name].shape) for name in _READ_BY_NETWORK if name in batch)


def token_lengths(batch: Mapping[str, Any]) -> tuple[int, ...]:
    """Length of a row of each feature that the network reads."""
    return tuple(batch[name].shape[1] for name in _READ_BY_NETWORK if name in batch)
