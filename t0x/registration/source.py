"""Rows of a dataset rendered by one prompt, as a SeqIO data source.

Rows are rendered inside tf.data, from row numbers, by a stateless function: so the iterator's state
is a few counters that `tf.train.Checkpoint` saves, and a restored one goes on with the same rows.
Rows that give no example are left out and counted (`skipped_rows`). Who opens an iterator over them
closes it: its threads call Python, so one that is left open may keep a process from ending.
"""

import itertools
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t0x.prompts.labels import missing_label, show
from t0x.prompts.template import RenderError, Template
from t0x.rank_classification import RIGHT_ANSWERS
from t0x.registration.dataset import TaskInfo
from t0x.registration.shared_functions import filter_shared, map_shared
from t0x.registration.skipped import (
    BAD_LINE,
    EMPTY,
    NO_CHOICES,
    NO_LABEL,
    NO_TARGET,
    NO_TEXT,
    NOT_A_CHOICE,
    OTHER_FIELDS,
    TEMPLATE_ERROR,
    UNLABELED,
    describe,
    note,
    remarks,
    skip,
    skipped_in,
)
from t0x.sources.files import Rows, select
from t0x.sources.openers import underscore_fields
from t0x.sources.schemas import SchemaError

# Name of the split that stands for "the one this dataset is evaluated on", so that one mixture can
# hold datasets with a test split and datasets with none.
EVAL_SPLIT = "eval"
NO_TARGET_TEXT = "<NO LABEL>"  # what T0 trains on where the target is empty
# Filters that draw from a generator seeded with the whole row.
_DRAWS = re.compile(r"\b(choice|random)\b")


class TaskError(ValueError):
    """A task's rows cannot be read or give no example: one line naming the task and the cause."""


@dataclass(frozen=True)
class Rendered:
    """A row as the model sees it; `choices` is empty where the template has none."""

    inputs: str
    targets: str
    choices: Sequence[str]


class _Readers:
    """Functions row → rendered row, by number, so that one traced function can call any of them."""

    def __init__(self) -> None:
        self._readers: list[Callable[[int], Rendered | None]] = []
        self._lock = threading.Lock()

    def add(self, reader: Callable[[int], Rendered | None]) -> int:
        with self._lock:
            self._readers.append(reader)
            return len(self._readers) - 1

    def render(self, reader: np.ndarray, row: np.ndarray) -> tuple[Any, ...]:
        rendered = self._readers[int(reader)](int(row))
        if rendered is None:
            return "", "", np.array([], object)
        return rendered.inputs, rendered.targets, np.array(rendered.choices, object)


_readers = _Readers()


def _render_place(
    place: tf.Tensor, places: tf.Tensor, split: tf.Tensor, key: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """The rendered row at a place of a shard; `places`: reader, last place, shards, shard."""
    reader, last, num_shards, shard = tf.unstack(places)
    if key is not None:
        # Each shard is permuted within itself: shards stay disjoint whatever their seeds.
        place = tf.random.experimental.index_shuffle(place, key, last)
    row = place * num_shards + shard
    inputs, targets, choices = tf.numpy_function(
        _readers.render, [reader, row], (tf.string, tf.string, tf.string), stateful=False
    )
    return {
        "inputs": tf.ensure_shape(inputs, []),
        "targets": tf.ensure_shape(targets, []),
        "answer_choices": tf.ensure_shape(choices, [None]),
        "row": row,
        "split": split,
    }


def _has_inputs(row: Mapping[str, tf.Tensor]) -> tf.Tensor:
    return tf.strings.length(row["inputs"]) > 0


class PromptedSource(seqio.DataSource):
    """Rows of a dataset rendered by one template: strings inputs, targets, answer_choices.

    Also gives `row` (int64, the row's number in its split) and `split`. Any number of shards. A
    shuffled read visits the whole shard in a pseudo-random order, given by the seed and the task's
    name, the same in every epoch.

    Args:
      info: the task's metadata.
    """

    def __init__(self, info: TaskInfo) -> None:
        self._info = info
        self._dataset = info.dataset
        alias = [EVAL_SPLIT] if self._dataset.eval_split and self._dataset.splits else []
        super().__init__(
            splits=[*self._dataset.splits, *(a for a in alias if a not in self._dataset.splits)],
            performs_internal_shuffling=True,
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def real_split(self, split: str) -> str:
        """The dataset's own name of a split: what "eval" stands for.

        Raises:
          ValueError: there is no such split; names those there are.
        """
        if split not in self.splits:
            raise ValueError(
                f"task {self._info.name} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return split if split in self._dataset.splits else self._dataset.eval_split

    def num_input_examples(self, split: str) -> int:
        return self._dataset.num_examples(self.real_split(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        """The split's rendered rows; see `seqio.DataSource.get_dataset`.

        Raises:
          FileNotFoundError: the rows are nowhere.
          TaskError: the rows cannot be read, or the template renders none of them.
        """
        split = self.real_split(split)
        rows = self._open(split)
        shard = shard_info or seqio.ShardInfo(0, 1)
        count = len(range(shard.index, len(rows), shard.num_shards))
        number = _readers.add(lambda row: self.render(rows, row, split))
        places = [number, max(count - 1, 0), shard.num_shards, shard.index]
        arguments = [np.array(places, np.int64), np.array(split)]
        if shuffle:
            arguments.append(self._shuffle_key(seed))
        dataset = tf.data.Dataset.range(count)
        dataset = map_shared(dataset, _render_place, ("render", shuffle), arguments)
        return filter_shared(dataset, _has_inputs, "has inputs")

    def remarks(self) -> list[str]:
        """What a run should say at its end of the rows read so far, those left out above all."""
        return remarks(self._info.name)

    def read(self, split: str, limit: int | None = None) -> Iterator[tuple[int, Rendered]]:
        """Row numbers and rendered rows in order, without tf.data; at most `limit` of them."""
        split = self.real_split(split)
        rows = self._open(split)
        rendered = ((row, self.render(rows, row, split)) for row in range(len(rows)))
        yield from itertools.islice((pair for pair in rendered if pair[1] is not None), limit)

    def _open(self, split: str) -> Rows:
        """A split's rows; bad lines are counted, and there is a row that can be rendered."""
        name = self._info.name
        try:
            rows = _select(self._dataset.rows(split), self._info.template)
            for number, place in enumerate(getattr(rows, "bad_places", ()), start=1):
                skip(name, BAD_LINE, split, -number, place)
            # Stops before training or evaluation starts on nothing; reads up to the first good row.
            found = any(self.render(rows, row, split) for row in range(len(rows)))
        except (ValueError, LookupError) as error:
            raise TaskError(f"task {name}: {error}") from error
        if not found:
            why = describe(name) or "there are no rows"
            nothing = f"none of the {len(rows)} rows of split {split} can be used"
            if why.startswith(f"{NO_LABEL} (") and len(skipped_in(name, split)) == 1:
                nothing = f"split {split} has no labels"
            raise TaskError(f"task {name}: {nothing}: {why}")
        return rows

    def _shuffle_key(self, seed: int | None) -> np.ndarray:
        """Key of the permutation; prompts of a dataset must not come upon the same row together."""
        name = zlib.crc32(self._info.name.encode())
        entropy = None if seed is None else [int(seed), name]
        return np.random.default_rng(entropy).integers(2**32, size=2, dtype=np.uint32)

    def render(self, rows: Sequence[Mapping[str, Any]], row: int, split: str) -> Rendered | None:
        """Renders one row; None, and a count of why, where it gives no example.

        As T0 does, a row whose target is empty gets the target "<NO LABEL>"; where the template has
        choices, it is counted. The rank classification task leaves out what has no right answer
        among its choices, or no label.
        """
        template, name = self._info.template, self._info.name
        try:
            fields = underscore_fields(rows[row])
        except SchemaError as error:
            return skip(name, OTHER_FIELDS, split, row, str(error))
        try:
            parts = template.apply(fields)
            choices = template.get_answer_choices_list(fields) or []
        except RenderError as error:
            return skip(name, TEMPLATE_ERROR, split, row, str(error))
        if len(parts) != 2:
            return skip(name, EMPTY if parts == [""] else NO_TARGET, split, row)
        inputs, targets = parts
        if not inputs:
            return skip(name, EMPTY, split, row)
        try:
            "".join([inputs, targets, *choices]).encode()
        except UnicodeEncodeError as error:
            return skip(name, NO_TEXT, split, row, str(error))
        if self._info.score_eval and not choices:
            return skip(name, NO_CHOICES, split, row)
        missing = missing_label(template, fields, targets, choices) if choices else None
        right = targets.strip().split(RIGHT_ANSWERS)
        if not self._info.score_eval:
            if missing:
                note(name, UNLABELED, split, row, missing)
            targets = right[0] if len(right) > 1 else targets
            return Rendered(inputs, targets or NO_TARGET_TEXT, choices)
        if missing:
            return skip(name, NO_LABEL, split, row, missing)
        if not set(right) <= set(choices):
            detail = f"{targets.strip()[:200]!r} of {show(choices)}"
            return skip(name, NOT_A_CHOICE, split, row, detail)
        return Rendered(inputs, targets, choices)


def _select(rows: Rows, template: Template) -> Rows:
    """The rows with the fields that a template uses, where leaving out the others spares work."""
    if _DRAWS.search(f"{template.jinja} {template.answer_choices}"):
        return rows
    return select(rows, template.fields())
