"""What a mixture trains on: examples, shares, epochs, lengths, truncation and packing, by task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from t0x.prepare.request import Run
from t5x.data.prepared_rows import RowPlan, pack
from t5x.data.store import Manifest, read_lengths

# Examples of a mixture, and of a task, whose packing is worked out.
_PACKED = 16_384
_PACKED_OF_TASK = 2_048


@dataclass(frozen=True)
class Lengths:
    """Tokens of one feature: mean, quantiles, most, and the share of examples that are cut."""

    mean: float
    median: float
    p95: float
    most: int
    cut: float


@dataclass(frozen=True)
class TaskStatistics:
    """One task of a mixture.

    Attributes:
      task: its name.
      examples: that a whole pass over the split has.
      rate: weight in the mixture.
      share: of the mixture's examples, 0 to 1.
      draws, epochs: expected over the run; None where its steps are not known.
      inputs, targets: lengths before they are cut.
      cut: share of examples of which either is.
      examples_per_row, encoder_density, decoder_density: of rows packed with this task alone;
        density is the share of a row that is no padding.
    """

    task: str
    examples: int
    rate: float
    share: float
    draws: float | None
    epochs: float | None
    inputs: Lengths
    targets: Lengths
    cut: float
    examples_per_row: float
    encoder_density: float
    decoder_density: float


@dataclass(frozen=True)
class MixtureStatistics:
    """A mixture as it is packed and drawn from; see `TaskStatistics` for units."""

    name: str
    run: Run
    tasks: tuple[TaskStatistics, ...]
    missing_share: float
    examples_per_row: float
    encoder_density: float
    decoder_density: float
    cut: float

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a batch that are no padding, inputs and targets."""
        filled = self.encoder_density * self.run.inputs + self.decoder_density * self.run.targets
        return filled * self.run.batch_size


def describe_mixture(
    directory: str,
    manifest: Manifest,
    split: str,
    run: Run,
    split_sizes: Mapping[str, int] | None = None,
) -> MixtureStatistics:
    """Statistics of a prepared mixture, packed as training packs it.

    Args:
      directory: the store.
      manifest: its manifest.
      split: which split of it.
      run: what reads it; its steps may be 0, not known.
      split_sizes: rows of each task's split where the store has only some of them: examples are
        scaled to them.

    Raises:
      t5x.data.store.StoreError: the lengths are missing or torn.
      ValueError: the store has nothing of the split.
    """
    entries = [entry for entry in manifest.of_split(split) if entry.examples and entry.rate]
    if not entries:
        raise ValueError(f"{directory} has no examples of split {split!r}")
    lengths = [np.asarray(read_lengths(directory, entry)) for entry in entries]
    capacity = (run.inputs, run.targets)
    plan = RowPlan(
        [e.task for e in entries], [e.rate for e in entries], lengths, capacity, seed=0,
        pack=run.pack,
    )  # fmt: skip
    drawn, rows, tokens = 0, 0, np.zeros(2)
    for block in range(1 << 10):
        planned = plan.plan(block)
        drawn, rows = drawn + len(planned.rows), rows + planned.count
        tokens += np.minimum(planned.lengths, capacity).sum(axis=0)
        if drawn >= _PACKED:
            break
    per_row = drawn / rows
    total = math.fsum(entry.rate for entry in entries)
    tasks = []
    for entry, of_task in zip(entries, lengths, strict=True):
        share = entry.rate / total
        examples = entry.examples
        if split_sizes and entry.source_rows:
            examples = round(examples * split_sizes[entry.task] / entry.source_rows)
        draws = share * run.steps * run.batch_size * per_row if run.steps else None
        tasks.append(
            TaskStatistics(
                task=entry.task,
                examples=examples,
                rate=entry.rate,
                share=share,
                draws=draws,
                epochs=None if draws is None else draws / max(1, examples),
                inputs=_measure(of_task[:, 0], run.inputs),
                targets=_measure(of_task[:, 1], run.targets),
                cut=float((of_task > capacity).any(axis=1).mean()),
                **_pack_alone(of_task, capacity, run.pack),
            )
        )
    return MixtureStatistics(
        name=manifest.mixture,
        run=run,
        tasks=tuple(sorted(tasks, key=lambda task: (-task.share, task.task))),
        missing_share=manifest.missing_share,
        examples_per_row=per_row,
        encoder_density=float(tokens[0] / (rows * capacity[0])),
        decoder_density=float(tokens[1] / (rows * capacity[1])),
        cut=math.fsum(task.cut * task.share for task in tasks),
    )


def _measure(lengths: np.ndarray, limit: int) -> Lengths:
    median, p95 = np.quantile(lengths, [0.5, 0.95])
    return Lengths(
        mean=float(lengths.mean()),
        median=float(median),
        p95=float(p95),
        most=int(lengths.max()),
        cut=float((lengths > limit).mean()),
    )


def _pack_alone(lengths: np.ndarray, capacity: tuple[int, int], packed: bool) -> dict[str, float]:
    some = lengths[np.linspace(0, len(lengths) - 1, min(len(lengths), _PACKED_OF_TASK)).astype(int)]
    some = np.minimum(some.astype(np.int64), capacity)
    rows = pack(some, np.array(capacity))[0].max() + 1 if packed else len(some)
    encoder, decoder = some.sum(axis=0) / (rows * np.array(capacity))
    return {
        "examples_per_row": float(len(some) / rows),
        "encoder_density": float(encoder),
        "decoder_density": float(decoder),
    }
