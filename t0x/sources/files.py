"""Files of rows: JSON lines, Parquet, CSV, prepared TFDS shards; random access, lazy."""

import array
import csv
import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

Row = Mapping[str, Any]
Rows = Sequence[Row]
SUFFIXES = (".jsonl", ".parquet")
# Enough to find the mistake, short enough for one line.
NAMED_BAD_LINES = 5


class JsonLines(Sequence):
    """Rows of a JSON lines file, read at random by a table of line offsets built once, on demand.

    The file is parsed once while the table is built, so a bad line is found before training starts.

    Args:
        path: the file; blank lines are no rows.
        bad_lines: "error" raises a ValueError naming the lines that are not JSON objects; "skip"
            leaves them out, logs them, and keeps their numbers (from 1) in `bad_line_numbers`.
    """

    def __init__(self, path: Path, bad_lines: str = "error") -> None:
        if bad_lines not in ("error", "skip"):
            raise ValueError(f"bad_lines must be 'error' or 'skip', not {bad_lines!r}")
        self._path = path
        self._bad_lines = bad_lines
        self._lock = threading.Lock()
        self._file = None

    @functools.cached_property
    def _table(self) -> tuple[array.array, array.array, tuple[int, ...]]:
        starts, lengths, bad = array.array("Q"), array.array("Q"), {}
        position = 0
        with open(self._path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    problem = _problem_of(line)
                    if problem:
                        bad[number] = problem
                    else:
                        starts.append(position)
                        lengths.append(len(line))
                position += len(line)
        if bad:
            self._report(bad)
        self._file = open(self._path, "rb")  # noqa: SIM115 (lives as long as the rows)
        return starts, lengths, tuple(bad)

    def _report(self, bad: Mapping[int, str]) -> None:
        named = ", ".join(f"line {n} ({why})" for n, why in list(bad.items())[:NAMED_BAD_LINES])
        more = f" and {len(bad) - NAMED_BAD_LINES} more" if len(bad) > NAMED_BAD_LINES else ""
        message = f"{self._path}: {len(bad)} lines are no JSON object: {named}{more}"
        if self._bad_lines == "error":
            raise ValueError(f"{message}; mend them or set t0x.sources.Settings.bad_lines = 'skip'")
        logging.warning("%s; they are left out", message)

    def _open_table(self) -> tuple[array.array, array.array, tuple[int, ...]]:
        with self._lock:
            return self._table

    @property
    def bad_line_numbers(self) -> tuple[int, ...]:
        return self._open_table()[2]

    def __len__(self) -> int:
        return len(self._open_table()[0])

    def __getitem__(self, index: int) -> Row:
        starts, lengths, _ = self._open_table()
        # pread has no shared file position, so tf.data's threads may read at once.
        return json.loads(os.pread(self._file.fileno(), lengths[index], starts[index]))


def _problem_of(line: bytes) -> str | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return getattr(error, "msg", error.__class__.__name__)
    return None if isinstance(row, dict) else f"a {type(row).__name__}"


class ParquetRows(Sequence):
    """Rows of a Parquet file; the Arrow table is read whole on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _contents(self) -> Any:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ValueError(
                f"{self._path}: reading Parquet needs pyarrow: pip install pyarrow"
            ) from error
        return parquet.read_table(self._path)

    def __len__(self) -> int:
        return self._contents.num_rows

    def __getitem__(self, index: int) -> Row:
        return self._contents.slice(_place(index, len(self)), 1).to_pylist()[0]


class CsvRows(Sequence):
    """Rows of a CSV file with a header, all values texts; read whole on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _contents(self) -> list[Row]:
        with open(self._path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> Row:
        return self._contents[index]


class TfdsRows(Sequence):
    """Rows of a prepared TFDS split: random access where it was written as array_record.

    Other file formats allow none, so such a split is read whole into memory on first use.
    """

    def __init__(self, builder: Any, split: str) -> None:
        self._builder = builder
        self._split = split

    @functools.cached_property
    def _contents(self) -> Sequence[Any]:
        import tensorflow_datasets as tfds

        if self._builder.info.file_format is tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
            return self._builder.as_data_source(self._split)
        return list(tfds.as_numpy(self._builder.as_dataset(self._split)))

    def __len__(self) -> int:
        return self._builder.info.splits[self._split].num_examples

    def __getitem__(self, index: int) -> Row:
        return _plain(self._contents[_place(index, len(self))])


def _place(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(index)
    return index % length


def _plain(value: Any) -> Any:
    """NumPy values and byte strings of TFDS as the Python values that the hub would give."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if isinstance(value, list) else value


def folder_splits(folder: Path) -> dict[str, Path]:
    """Every `<split>.jsonl` and `<split>.parquet` of a folder, JSON lines preferred."""
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.glob(f"*{suffix}")):
            found.setdefault(path.stem, path)
    return found


def open_file(path: Path, bad_lines: str = "error") -> Rows:
    """Rows of one .jsonl, .parquet or .csv file; a file that many prompts use is opened once.

    Raises:
        ValueError: another suffix.
    """
    changed = path.stat()
    return _open_version(path, bad_lines, changed.st_mtime_ns, changed.st_size)


@functools.lru_cache(maxsize=1024)
def _open_version(path: Path, bad_lines: str, _mtime: int, _size: int) -> Rows:
    if path.suffix == ".jsonl":
        return JsonLines(path, bad_lines)
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix == ".csv":
        return CsvRows(path)
    raise ValueError(f"{path}: rows are read from .jsonl, .parquet and .csv files only")
