"""Tasks in SeqIO's cache format, as P3's authors publish them: one folder a task.

DIR/TASK/info.SPLIT.json, stats.SPLIT.json      features and number of shards; examples
DIR/TASK/SPLIT.tfrecord-SSSSS-of-NNNNN          tf.train.Example: inputs, targets and their
                                                texts, inputs_pretokenized, targets_pretokenized
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import seqio
from etils import epath

from t0x.prepare.request import Request
from t0x.prepare.sources import Encoder, Source, SourceError, Tokenized, reading
from t0x.registration.skipped import skip

NO_TOKENS = "inputs or targets have no tokens"
_COMPLETED = "COMPLETED"


class CachedTask:
    """The examples of one task's split in a cache; see `t0x.prepare.sources.Source`."""

    sequential = True

    def __init__(self, task: seqio.Task, split: str, folder: epath.Path, keep_text: bool) -> None:
        self.label = task.name
        self.tasks = {task.name: task}
        self._split, self._folder, self._keep_text = split, folder, keep_text
        self._encoder = Encoder(task.output_features)
        self._stream, self._next = self._records(), 0

    @cached_property
    def _facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        with reading(str(self._folder)):
            info = json.loads((self._folder / f"info.{self._split}.json").read_text())
            stats = json.loads((self._folder / f"stats.{self._split}.json").read_text())
        missing = {"inputs", "targets"} - set(info["features"])
        if self._keep_text:
            missing |= {"inputs_pretokenized", "targets_pretokenized"} - set(info["features"])
        if missing:
            raise SourceError(f"{self._folder}: features lack {', '.join(sorted(missing))}")
        return info, stats

    @property
    def _files(self) -> list[epath.Path]:
        count = self._facts[0]["num_shards"]
        return [
            self._folder / f"{self._split}.tfrecord-{shard:05d}-of-{count:05d}"
            for shard in range(count)
        ]

    def __len__(self) -> int:
        return self._facts[1]["examples"]

    def sample(self, count: int) -> np.ndarray:
        """See `Source`: the first ones, as SeqIO's writer shuffles."""
        return np.arange(min(count, len(self)))

    def read(self, chosen: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, Tokenized | None]]:
        """See `Source`.

        Raises:
          SourceError: a file is missing or torn, has fewer examples than it should, or other
            tokens than the task's vocabulary gives (the first example tells).
        """
        ((name, rows),) = chosen.items()
        for row in np.asarray(rows).tolist():
            if row < self._next:
                self._stream, self._next = self._records(), 0
            record = next(itertools.islice(self._stream, row - self._next, None), None)
            if record is None:
                raise SourceError(f"{self._folder}: {len(self)} examples expected, not row {row}")
            self._next = row + 1
            yield name, row, self._parse(record, row)

    def _records(self) -> Iterator[bytes]:
        from tensorflow.compat.v1 import io

        def of_file(path: epath.Path) -> Iterator[bytes]:
            # TensorFlow takes a file that is not there for an empty one.
            with reading(str(path)):
                path.stat()
            records = io.tf_record_iterator(str(path))
            while True:
                with reading(str(path)):
                    record = next(records, None)
                if record is None:
                    return
                yield record

        for path in self._files:
            yield from of_file(path)

    def _parse(self, record: bytes, row: int) -> Tokenized | None:
        import tensorflow as tf

        with reading(str(self._folder), f"row {row}"):
            features = tf.train.Example.FromString(record).features.feature
            texts = tuple(
                features[f"{name}_pretokenized"].bytes_list.value[0].decode()
                if features[f"{name}_pretokenized"].bytes_list.value
                else None
                for name in ("inputs", "targets")
            )
            tokens = [
                np.array(features[name].int64_list.value, np.uint32)
                for name in ("inputs", "targets")
            ]
        if not all(map(len, tokens)):
            skip(self.label, NO_TOKENS, self._split, row)
            return None
        if row == 0 and None not in texts:
            ours = self._encoder.encode(*texts)
            if [t.tolist() for t in tokens] != [ours.inputs.tolist(), ours.targets.tolist()]:
                raise SourceError(
                    f"{self._folder}: its tokens are not those of the task's vocabulary"
                )
        return Tokenized(*tokens, texts)

    def bad_rows(self) -> dict[str, int]:
        """See `Source`."""
        return {}

    def identity(self, task: str) -> Any:
        """See `Source`: the cache's own description."""
        facts = json.dumps(self._facts, sort_keys=True)
        return ["cache", hashlib.sha256(facts.encode()).hexdigest()]


def find_cached(request: Request, tasks: Mapping[str, seqio.Task]) -> dict[str, Source]:
    """The tasks that one of a request's caches holds whole, by name; the first cache counts."""
    found: dict[str, Source] = {}
    for name, task in tasks.items():
        for cache in request.caches:
            folder = epath.Path(cache) / name
            info = folder / f"info.{request.split}.json"
            if (folder / _COMPLETED).exists() and info.exists():
                found[name] = CachedTask(task, request.split, folder, request.keep_text)
                break
    return found
