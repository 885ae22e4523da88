"""Where examples come from: rows of a dataset, rendered by all of its prompts at once."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import seqio

from t0x.registration.registry import task_infos
from t0x.registration.skipped import BAD_LINE
from t0x.sources.schemas import SchemaError

# Targets repeat from row to row, inputs do not: this many different ones are kept.
_TARGETS_KEPT = 65_536


class SourceError(RuntimeError):
    """Rows cannot be read: the fault of what holds them, not of what is done with them."""


@dataclass(frozen=True)
class Tokenized:
    """An example: 1-d tokens, EOS included where the feature has it, and its texts."""

    inputs: np.ndarray
    targets: np.ndarray
    texts: tuple[str, str]


class Source(Protocol):
    """Rows that several tasks share.

    Attributes:
      label: names it among the sources of a mixture.
      tasks: by name.
      sequential: whether reading a row means reading all before it, back to the last one read.
    """

    label: str
    tasks: Mapping[str, seqio.Task]
    sequential: bool

    def __len__(self) -> int: ...

    def sample(self, count: int) -> np.ndarray:
        """Row numbers, ascending, to learn from; all where there are no more."""
        ...

    def read(self, chosen: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, Tokenized | None]]:
        """Task, row and example, in the order of rows; None where the row gives none, counted.

        Args:
          chosen: row numbers by task, ascending.

        Raises:
          SourceError: a row cannot be read.
        """
        ...

    def bad_rows(self) -> dict[str, int]:
        """What in the source is no row at all, by reason."""
        ...

    def identity(self, task: str) -> Any:
        """What a task's examples come of, as JSON's values."""
        ...


class PromptedRows:
    """One split of one dataset with the prompts of a mixture; see `Source`."""

    sequential = False

    def __init__(self, label: str, tasks: Mapping[str, seqio.Task], split: str) -> None:
        self.label = label
        self.tasks = dict(sorted(tasks.items()))
        self._splits = {name: task.source.real_split(split) for name, task in self.tasks.items()}
        self._encoders = {name: Encoder(task.output_features) for name, task in self.tasks.items()}

    @cached_property
    def _rows(self) -> Sequence[Mapping[str, Any]]:
        first = next(iter(self.tasks))
        with reading(self.label):
            rows = task_infos()[first].dataset.rows(self._splits[first])
            len(rows)
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, count: int) -> np.ndarray:
        """See `Source`: spread evenly."""
        return np.unique(np.linspace(0, max(len(self) - 1, 0), min(count, len(self))).astype(int))

    def read(self, chosen: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, Tokenized | None]]:
        """See `Source`. Each row is read once for all prompts."""
        names = list(chosen)
        rows = np.concatenate([np.asarray(chosen[name], np.int64) for name in names])
        which = np.repeat(np.arange(len(names)), [len(chosen[name]) for name in names])
        order = np.argsort(rows, kind="stable")
        current = _Row(self.label, self._rows)
        for row, number in zip(rows[order].tolist(), which[order].tolist(), strict=True):
            name = names[number]
            current.read(row)
            rendered = self.tasks[name].source.render(current, row, self._splits[name])
            if rendered is None:
                yield name, row, None
            else:
                yield name, row, self._encoders[name].encode(rendered.inputs, rendered.targets)

    def bad_rows(self) -> dict[str, int]:
        """See `Source`."""
        bad = len(getattr(self._rows, "bad_places", ()))
        return {BAD_LINE: bad} if bad else {}

    def identity(self, task: str) -> Any:
        """See `Source`."""
        template = task_infos()[task].template
        return [self._splits[task], template.name, template.jinja, template.answer_choices]


class _Row(Sequence):
    """A sequence that has one row at a time, read once; what reading it raised is raised again.

    Rows that the schema does not fit are the renderer's to count.
    """

    def __init__(self, label: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._label, self._rows = label, rows
        self._number, self._row, self._error = -1, {}, None

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> None:
        """Moves to a row."""
        if number == self._number:
            return
        self._number, self._error = number, None
        with reading(self._label, f"row {number}"):
            try:
                self._row = self._rows[number]
            except SchemaError as error:
                self._error = error

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if self._error is not None:
            raise self._error
        return self._row


@contextlib.contextmanager
def reading(label: str, place: str = "") -> Iterator[None]:
    """Whatever reading rows raises becomes a SourceError: sources' errors have no common base."""
    try:
        yield
    except (MemoryError, SourceError):
        raise
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{label}, {place}: {message}" if place else message) from error


class Encoder:
    """Tokens of a task's two features, as SeqIO's steps make them."""

    def __init__(self, features: Mapping[str, seqio.Feature]) -> None:
        self._inputs, self._targets = features["inputs"], features["targets"]
        self._known: dict[str, np.ndarray] = {}

    def encode(self, inputs: str, targets: str) -> Tokenized:
        """The example of two texts."""
        tokens = self._known.get(targets)
        if tokens is None:
            if len(self._known) >= _TARGETS_KEPT:
                self._known.clear()
            tokens = self._known[targets] = _encode(self._targets, targets)
        return Tokenized(_encode(self._inputs, inputs), tokens, (inputs, targets))


def _encode(feature: seqio.Feature, text: str) -> np.ndarray:
    ids = feature.vocabulary.encode(text)
    if feature.add_eos:
        ids = [*ids, feature.vocabulary.eos_id]
    return np.array(ids, np.uint32)
