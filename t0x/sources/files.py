"""Files of rows: JSON, Parquet, CSV, prepared TFDS shards; random access, lazy."""

import bisect
import csv
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from t0x.sources.folders import EXTENSIONS, check_numbers
from t0x.sources.json_rows import Columns, JsonRows
from t0x.sources.parquet_rows import ParquetRows
from t0x.sources.values import as_plain

Row = Mapping[str, Any]
Rows = Sequence[Row]


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
        return as_plain(self._contents[_place(index, len(self))])


def _place(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(index)
    return index % length


class JoinedRows(Sequence):
    """Rows of the files of one split, one file after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts

    @functools.cached_property
    def _ends(self) -> Sequence[int]:
        return list(itertools.accumulate(map(len, self._parts)))

    @property
    def bad_places(self) -> Sequence[str]:
        """Where rows were left out, and why."""
        return [place for part in self._parts for place in getattr(part, "bad_places", ())]

    def select(self, fields: Collection[str]) -> "JoinedRows":
        """The same rows with these fields only, as far as the files have them."""
        return JoinedRows([select(part, fields) for part in self._parts])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        index = _place(index, len(self))
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


def select(rows: Rows, fields: Collection[str]) -> Rows:
    """Rows with these fields only where that spares work; the rows as they are elsewhere."""
    return rows.select(fields) if isinstance(rows, ParquetRows | JoinedRows) else rows


def open_file(path: Path, bad_lines: str = "error") -> Rows:
    """Rows of one file, see `open_files`."""
    return open_files((path,), bad_lines)


def open_files(paths: Sequence[Path], bad_lines: str = "error") -> Rows:
    """Rows of a split's files (JSON lines, JSON, Parquet, CSV; JSON packed by gzip or Zstandard).

    What many prompts use is opened once.

    Args:
      paths: in order.
      bad_lines: see `JsonRows`.

    Raises:
      ValueError: another suffix, no file, or numbered files of which one is missing.
      FileNotFoundError: a file is not there.
    """
    check_numbers(paths)
    versions = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return _open_version(tuple(paths), bad_lines, versions)


@functools.lru_cache(maxsize=1024)
def _open_version(paths: tuple[Path, ...], bad_lines: str, _: tuple) -> Rows:
    columns = Columns()
    parts = [_open(path, bad_lines, columns) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _open(path: Path, bad_lines: str, columns: Columns) -> Rows:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ValueError(f"{path} is {kind}, not a file of rows")
    if path.name.endswith(EXTENSIONS[:-1]):
        return JsonRows(path, bad_lines, columns)
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix == ".csv":
        return CsvRows(path)
    raise ValueError(f"{path}: rows are read from {', '.join(EXTENSIONS)} and .csv files only")
