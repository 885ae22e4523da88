"""Rank classification of whole mixtures with every input encoded once.

`RankEvaluator` takes the place of `seqio.Evaluator` (same constructor, same `evaluate`) for the
`*_score_eval` tasks registered by t0x. It renders and tokenises rows itself, packs them (see
`t0x.packing`) and gives the loggers the same scores that SeqIO's evaluator would.
"""

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from t0x import packing, rank_classification
from t0x.rank_classification import Target
from t0x.registration import task_info, task_infos
from t0x.rendering import PromptedSource

# Rows of the packed dataset scored in one go: bounds the host's memory, not the result.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class _Example:
    """One row of a task, tokenised."""

    row: int
    inputs: str
    choices: Sequence[str]
    correct: Sequence[bool]
    tokens: packing.Choices


@gin.configurable(module="t0x.evaluation")
class RankEvaluator:
    """Scores every choice of every row of the tasks of a mixture; upstream's evaluator interface.

    Args:
      mixture_or_task_name: a mixture or task of `*_score_eval` tasks registered by t0x.
      feature_converter: accepted for compatibility; rows are packed here.
      eval_split: split to evaluate; tasks without it are left out.
      use_cached, seed, shuffle, use_memory_cache, target_field_name, async_compute_metrics:
        accepted for compatibility, without effect.
      sequence_length: most tokens of an input and of a choice; longer ones are cut there, as SeqIO
        does. None: no limit.
      num_examples: evaluate the first rows only; None for all.
      logger_cls: SeqIO logger classes that get the results.
      log_dir: where they write.
      inputs_per_row: tokens of an encoder row; None: the longest input, at least 256.
      targets_per_row: tokens of a decoder row; None: what fits the inputs of a row on average. An
        example whose choices need more is encoded again for the rest.

    Raises:
      ValueError: a task was not registered by t0x.
    """

    # Tells t5x.eval to hand over the log-probability of every target position.
    scores_tokens = True

    def __init__(
        self,
        mixture_or_task_name: str,
        feature_converter: Any = None,
        eval_split: str = "validation",
        use_cached: bool = False,
        seed: int | None = 42,
        sequence_length: Mapping[str, int] | None = None,
        num_examples: int | None = None,
        shuffle: bool = False,
        logger_cls: Sequence[Callable[..., seqio.Logger]] = (),
        log_dir: str | None = None,
        use_memory_cache: bool = True,
        async_compute_metrics: bool = True,
        target_field_name: str = "targets",
        inputs_per_row: int | None = None,
        targets_per_row: int | None = None,
    ) -> None:
        del feature_converter, use_cached, seed, shuffle
        del use_memory_cache, async_compute_metrics, target_field_name
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture_or_task_name))
        self.eval_tasks = [task for task in tasks if eval_split in task.splits]
        for task in self.eval_tasks:
            if task.name not in task_infos() or not task_info(task.name).score_eval:
                raise ValueError(
                    f"RankEvaluator cannot evaluate '{task.name}', which is no *_score_eval task "
                    "of t0x; bind evaluate.inference_evaluator_cls = @seqio.Evaluator"
                )
        self._split = eval_split
        self._limits = dict(sequence_length or {})
        self._examples = {
            task.name: list(self._read(task, num_examples)) for task in self.eval_tasks
        }
        self._shape = self._row_shape(inputs_per_row, targets_per_row)
        self._loggers = [cls(output_dir=log_dir) for cls in logger_cls] if log_dir else []

    @property
    def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature of a packed row."""
        features = packing.pack([], *self._shape).features
        return {name: array.shape[1:] for name, array in features.items()}

    def close(self) -> None:
        """Nothing is left open."""

    def evaluate(
        self,
        *,
        compute_metrics: bool,
        step: int | None = None,
        score_fn: Callable[..., Any],
        **_: Any,
    ) -> tuple[concurrent.futures.Future, dict[str, list[list[float]]]]:
        """Scores all tasks, several at a time, and logs each as its scores come in.

        Args:
          compute_metrics: whether this process computes and logs metrics.
          step: step of the checkpoint.
          score_fn: enumerated dataset → (row scores, intermediates with decoder/token_scores).

        Returns:
          (future of {task: {metric: value}}, {task: scores of each row's choices}).
        """
        metrics: dict[str, dict[str, float]] = {}
        outputs: dict[str, list[list[float]]] = {}
        for names in self._groups():
            examples = [example for name in names for example in self._examples[name]]
            packed = packing.pack([example.tokens for example in examples], *self._shape)
            if packed.repeated:
                logging.info("%d inputs are encoded again for more choices", packed.repeated)
            scores = packing.sum_scores(packed.slots, _token_scores(score_fn, packed.features))
            start = 0
            for name in names:
                end = start + len(self._examples[name])
                outputs[name] = scores[start:end]
                start = end
                if compute_metrics:
                    metrics[name] = self._log(name, step, outputs[name])
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(metrics)
        return future, outputs

    def _read(self, task: seqio.Task, num_examples: int | None) -> Iterator[_Example]:
        """Renders and tokenises a task's rows as its SeqIO preprocessors would."""
        source = task.source
        assert isinstance(source, PromptedSource)
        features = task.output_features
        encoded: dict[str, np.ndarray] = {}

        def encode(text: str, name: str) -> np.ndarray:
            feature = features[name]
            ids = feature.vocabulary.encode(text)
            if feature.add_eos:
                ids = [*ids, feature.vocabulary.eos_id]
            return np.asarray(ids[: self._limits.get(name)], np.int32)

        for row, rendered in source.read(self._split, num_examples):
            for choice in rendered.choices:
                if choice not in encoded:
                    encoded[choice] = encode(choice, "targets")
            right = rendered.targets.strip()
            yield _Example(
                row,
                rendered.inputs,
                rendered.choices,
                [choice == right for choice in rendered.choices],
                packing.Choices(
                    encode(rendered.inputs, "inputs"),
                    [encoded[choice] for choice in rendered.choices],
                ),
            )

    def _row_shape(self, inputs: int | None, targets: int | None) -> tuple[int, int]:
        """Tokens of an encoder row and of a decoder row."""
        tokens = [example.tokens for task in self._examples.values() for example in task]
        longest_input, longest_choices = packing.lengths(tokens)
        inputs = inputs or max(longest_input, 256)
        if targets is None:
            total_inputs = sum(len(example.inputs) for example in tokens)
            total_targets = sum(len(t) for example in tokens for t in example.targets)
            # A little more than the inputs of a full row bring along.
            share = 1.1 * inputs * total_targets / max(total_inputs, 1)
            targets = max(int(np.ceil(share)), longest_choices)
            targets = -(-targets // 8) * 8
        return inputs, targets

    def _groups(self) -> Iterator[list[str]]:
        """Tasks in order, as many at a time as fill about ROWS_AT_ONCE rows."""
        names: list[str] = []
        tokens = 0
        for name, examples in self._examples.items():
            names.append(name)
            tokens += sum(len(example.tokens.inputs) for example in examples)
            if tokens >= ROWS_AT_ONCE * self._shape[0]:
                yield names
                names, tokens = [], 0
        if names:
            yield names

    def _log(self, name: str, step: int | None, scores: list[list[float]]) -> dict[str, float]:
        """Metrics of a task; its loggers are called as SeqIO calls them."""
        examples = self._examples[name]
        targets = [
            Target((e.row, place), e.correct[place], 1.0, len(tokens), len(e.choices), choice)
            for e in examples
            for place, (choice, tokens) in enumerate(zip(e.choices, e.tokens.targets, strict=True))
        ]
        flat = [score for row in scores for score in row]
        metrics = rank_classification.metric(targets, flat)
        values = {metric: seqio.metrics.Scalar(value) for metric, value in metrics.items()}
        split = task_split(name, self._split)
        dataset = tf.data.Dataset.from_tensor_slices(
            {
                "idx": [target.idx for target in targets],
                "inputs_pretokenized": [e.inputs for e in examples for _ in e.choices],
                "targets_pretokenized": [target.choice for target in targets],
                "split": [split] * len(targets),
            }
        )
        for logger in self._loggers:
            logger(
                task_name=name,
                step=step,
                metrics=values,
                dataset=dataset,
                inferences={"score": flat},
                targets=targets,
            )
        return metrics


def task_split(name: str, split: str) -> str:
    """The dataset's own name of a split of a task: what "eval" stands for."""
    return seqio.TaskRegistry.get(name).source.real_split(split)


def _token_scores(score_fn: Callable[..., Any], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log-probability of every target position, (rows, targets_length)."""
    dataset = tf.data.Dataset.from_tensor_slices(dict(features)).enumerate()
    result = score_fn(dataset)
    if not isinstance(result, tuple):
        raise ValueError(
            "RankEvaluator needs the score of every target position: run it under this package's "
            "t5x.eval, or bind evaluate.inference_evaluator_cls = @seqio.Evaluator"
        )
    (token_scores,) = result[1]["decoder"]["token_scores"]
    return np.asarray(token_scores)
