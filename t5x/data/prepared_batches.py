"""Batches of a prepared store as a Grain dataset: rows planned, their tokens read."""

import concurrent.futures
import dataclasses
from typing import Any

import grain
import numpy as np
from etils import epath

from t5x.data.prepared_features import lay_out, number_tasks
from t5x.data.prepared_rows import Position, RowPlan, Rows
from t5x.data.records import ExampleReader
from t5x.data.store import FEATURES, Entry, Manifest, is_local, read_lengths

# Requests to a bucket under way at once; a local file answers before a thread has started.
_REMOTE_THREADS = 64


@dataclasses.dataclass(frozen=True)
class Source:
    """All that batches depend on; pickled to prefetching workers.

    Attributes:
      directory, manifest: the store.
      split: which split of it.
      capacity: tokens of a row, of inputs and targets.
      seed, shuffle, pack, examples_per_block: see `RowPlan`.
      batch_size: rows of the global batch.
      first_row, last_row: which of those this process reads.
    """

    directory: str
    manifest: Manifest
    split: str
    capacity: tuple[int, int]
    seed: int
    shuffle: bool
    pack: bool
    examples_per_block: int
    batch_size: int
    first_row: int
    last_row: int

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tasks that are drawn from; a task's number in a batch is its place here plus 1."""
        return tuple(e for e in self.manifest.of_split(self.split) if e.examples and e.rate)

    def make_plan(self) -> RowPlan:
        """The plan of rows; reads every task's lengths."""
        entries = self.entries
        with concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS) as threads:
            lengths = list(threads.map(lambda e: read_lengths(self.directory, e), entries))
        return RowPlan(
            [e.task for e in entries],
            [e.rate for e in entries],
            lengths,
            self.capacity,
            seed=self.seed,
            shuffle=self.shuffle,
            pack=self.pack,
            examples_per_block=self.examples_per_block,
        )

    def describe(self) -> dict[str, Any]:
        """What the order of rows depends on, in plain values: a position fits only the same."""
        return {
            "reader": "prepared",
            "kind": self.manifest.mixture,
            "tasks": {
                e.task: {"template": e.template_hash, "examples": e.examples, "rate": e.rate}
                for e in self.entries
            },
            "vocabulary": {
                name: feature.vocabulary for name, feature in self.manifest.features.items()
            },
            "settings": {
                "BATCH_SIZE": self.batch_size,
                "TASK_FEATURE_LENGTHS": dict(zip(FEATURES, self.capacity, strict=True)),
                "DatasetConfig.split": self.split,
                "DatasetConfig.seed": self.seed,
                "DatasetConfig.shuffle": self.shuffle,
                "DatasetConfig.pack": self.pack,
                "prepared.get_dataset.examples_per_block": self.examples_per_block,
            },
        }


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch as it leaves the pipeline.

    Attributes:
      features: this process's rows, by model feature.
      task_numbers: (rows, examples of the fullest row), from 1, 0 for none.
      examples, truncated: (tasks,) examples of the global batch, and those not whole in it.
      tokens: (2,) tokens of the global batch, of inputs and targets.
      position: after the batch.
    """

    features: dict[str, np.ndarray]
    task_numbers: np.ndarray
    examples: np.ndarray
    truncated: np.ndarray
    tokens: np.ndarray
    position: Position


class Batches(grain.IterDataset):
    """Every `step`-th batch of a source from the `first` on, as Grain shares them among workers."""

    def __init__(self, source: Source, position: Position) -> None:
        super().__init__()
        self._source, self._position = source, position
        self._first, self._step = 0, 1

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Grain's protocol of datasets that workers share."""
        del sequential_slice
        self._first, self._step = sl.start or 0, sl.step or 1

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchesIterator(self._source, self._position, self._first, self._step)


class _BatchesIterator(grain.DatasetIterator):
    def __init__(self, source: Source, position: Position, first: int, step: int) -> None:
        super().__init__()
        self._source, self._first, self._step = source, first, step
        self._plan = source.make_plan()
        self._tokens = _TokenReader(source)
        self._go_to(position, 0)

    def _go_to(self, position: Position, number: int) -> None:
        self._position, self._number = position, number
        self._batches = self._plan.read(position, self._source.batch_size)

    def __next__(self) -> Batch:
        while True:
            rows, self._position = next(self._batches)
            mine = self._number % self._step == self._first
            self._number += 1
            if mine:
                return self._assemble(rows)

    def _assemble(self, rows: Rows) -> Batch:
        source = self._source
        trimmed = np.minimum(rows.lengths, source.capacity)
        tasks = len(source.entries)
        own = rows.take(source.first_row, source.last_row)
        inputs, targets = self._tokens.read(own)
        return Batch(
            features=lay_out(own, inputs, targets, source.capacity, source.pack),
            task_numbers=number_tasks(own),
            examples=np.bincount(rows.entries, minlength=tasks),
            truncated=np.bincount(
                rows.entries[(trimmed < rows.lengths).any(axis=1)], minlength=tasks
            ),
            tokens=trimmed.sum(axis=0),
            position=self._position,
        )

    def get_state(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._position), "number": self._number}

    def set_state(self, state: dict[str, Any]) -> None:
        self._go_to(Position(state["block"], state["row"]), state["number"])


class _TokenReader:
    """Tokens of rows, by one pool of open files."""

    def __init__(self, source: Source) -> None:
        self._reader = ExampleReader(source.directory, source.manifest, source.entries)
        self._capacity = source.capacity
        self._threads = None
        if not is_local(epath.Path(source.directory)):
            self._threads = concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS)

    def read(self, rows: Rows) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Inputs and targets of each example, trimmed."""
        wanted = [(int(e), np.flatnonzero(rows.entries == e)) for e in np.unique(rows.entries)]
        if self._threads:  # one request an example, all at once
            wanted = [
                (entry, which[i : i + 1]) for entry, which in wanted for i in range(len(which))
            ]
        each = self._threads.map if self._threads else map
        read = each(lambda one: self._reader.read(one[0], rows.places[one[1]].tolist()), wanted)
        inputs: list[Any] = [None] * len(rows.entries)
        targets: list[Any] = [None] * len(rows.entries)
        for (_, which), examples in zip(wanted, read, strict=True):
            for i, example in zip(which, examples, strict=True):
                inputs[i] = example.inputs[: self._capacity[0]]
                targets[i] = example.targets[: self._capacity[1]]
        return inputs, targets
