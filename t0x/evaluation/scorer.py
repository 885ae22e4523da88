"""Scores the choices of examples with a model's parameters, packed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t0x.evaluation import packing
from t0x.evaluation.token_scores import score_tokens
from t5x import models, partitioning, train_state
from t5x.inference import function as inference
from t5x.run.console import console

# Encoder tokens of a batch, where nobody says how many rows it has.
TOKENS_PER_BATCH = 4096


class Scorer:
    """Scores the choices of examples with a model's parameters, packed.

    Args:
      model: the model.
      partitioner: shards it.
      state: its parameters.
      axes: their PartitionSpecs.
      rows: rows of a batch; None: what makes TOKENS_PER_BATCH tokens.

    Attributes:
      shape: tokens of an encoder and of a decoder row.
      batch_rows: rows of a batch.
      compile_seconds: spent so far on compiling (and on the first batch of each shape).
      encoded_again: inputs encoded again because their choices overflowed a row.
    """

    def __init__(
        self,
        model: models.EncoderDecoderModel,
        partitioner: partitioning.PjitPartitioner,
        state: train_state.TrainState,
        axes: train_state.TrainState,
        rows: int | None = None,
    ) -> None:
        self._model, self._partitioner = model, partitioner
        self._state, self._axes, self._rows = state, axes, rows
        self.shape: tuple[int, int] | None = None
        self.batch_rows = 0
        self.compile_seconds = 0.0
        self.encoded_again = 0

    def fit(self, examples: Sequence[packing.Choices]) -> None:
        """Chooses the shape of a packed row for examples like these, and compiles for it.

        Called again, it only ever makes rows longer.
        """
        lengths = packing.Lengths.of(examples)
        shape = packing.choose_row_lengths([lengths])
        if self.shape is not None:
            if lengths.inputs.max(initial=1) <= self.shape[0] and (
                lengths.longest_target <= self.shape[1]
            ):
                return
            shape = tuple(np.maximum(shape, self.shape).tolist())
        self.prepare(shape)

    def prepare(self, shape: tuple[int, int]) -> None:
        """Compiles for packed rows of a shape."""
        started = time.monotonic()
        self.shape = shape
        shards = self._partitioner.data_mesh_size
        rows = self._rows or max(TOKENS_PER_BATCH // shape[0], 1)
        self.batch_rows = -(-rows // shards) * shards
        self._score_fn = inference.get_infer_fn(
            _with_token_scores(self._model),
            self.batch_rows,
            self._axes,
            self._partitioner,
            keep_aux_as_numpy=True,
        )
        one = packing.Choices(np.ones(1, np.int32), [np.ones(1, np.int32)])
        self.score([one])
        self.compile_seconds += time.monotonic() - started

    @property
    def tokens_per_batch(self) -> int:
        """Input tokens of a full batch."""
        return self.batch_rows * self.shape[0] if self.shape else TOKENS_PER_BATCH

    def score(self, examples: Sequence[packing.Choices]) -> list[list[float]]:
        """Sum of log-probabilities, in nats, of each choice of each example; `fit` comes first."""
        packed = packing.pack(examples, *self.shape)
        self.encoded_again += packed.repeated

        def score_fn(dataset: Any) -> Any:
            with console.quiet():
                return self._score_fn(dataset, train_state=self._state)

        return packing.sum_scores(packed.slots, score_tokens(score_fn, packed.features))


def _with_token_scores(model: models.EncoderDecoderModel) -> Callable[..., Any]:
    def score(params: Any, batch: Any) -> Any:
        return model.score_batch(params, batch, return_intermediates=True)

    return score
