"""Rows of JSON files: an object a line, or one array of objects; .gz and .zst too.

Rows come as `datasets` gives them: a field that other rows of the file have is None where it is
missing, and whole numbers are floats where other rows have floats in that field. Texts stay texts
(`datasets` takes a column of nothing but dates for times), and within lists and objects everything
stays as it is written.
"""

import array
import functools
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import logging

from t5x.data import json_lines

LARGEST_ARRAY = 1 << 30  # bytes of a file that is one array, which is parsed as a whole
_WHOLE, _FLOAT, _OTHER = 1, 2, 4
_SPACE = re.compile(r"\s*")


class Columns:
    """The fields of one or several files of rows, and what kinds of values they hold."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes note of a row."""
        kinds = self._kinds
        for name, value in row.items():
            kind = type(value)
            found = _WHOLE if kind is int else _FLOAT if kind is float else value is not None
            kinds[name] = kinds.get(name, 0) | (_OTHER if found is True else found)

    @functools.cached_property
    def _floats(self) -> Sequence[str]:
        return [name for name, kind in self._kinds.items() if kind == _WHOLE | _FLOAT]

    def unite(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with every field; to be called when all rows are noted."""
        if len(row) < len(self._kinds):
            row = {**dict.fromkeys(self._kinds), **row}
        for name in self._floats:
            if type(row[name]) is int:
                row[name] = float(row[name])
        return row


class JsonRows(Sequence):
    """Rows of a .json or .jsonl file, read at random by a table of places built once, on demand.

    The file is parsed once while the table is built, so a bad line is found before training starts.

    Args:
      path: the file; blank lines are no rows. An array is kept in memory.
      bad_lines: "error" raises a ValueError naming the lines that are not JSON objects; "skip"
        leaves them out, logs them, and keeps where and why in `bad_places`.
      columns: shared by the files of one split.
    """

    def __init__(
        self, path: Path, bad_lines: str = "error", columns: Columns | None = None
    ) -> None:
        if bad_lines not in ("error", "skip"):
            raise ValueError(
                f"t0x.sources.Settings.bad_lines must be 'error' or 'skip', not {bad_lines!r}"
            )
        self._path = path
        self._bad_lines = bad_lines
        self._columns = columns or Columns()
        self._lock = threading.Lock()

    @functools.cached_property
    def _table(self) -> tuple[Sequence[dict[str, Any]], Mapping[int, str]]:
        file = json_lines.open_unpacked(self._path)
        bad: dict[int, str] = {}
        if ".json" in self._path.suffixes and _is_array(file):
            with file:
                rows = _read_array(self._path, file, self._columns, bad)
        else:
            rows = _read_lines(file, self._columns, bad)
        if bad:
            message = json_lines.describe(self._path, bad)
            if self._bad_lines == "error":
                raise ValueError(
                    f"{message}; mend them or set t0x.sources.Settings.bad_lines = 'skip'"
                )
            logging.warning("%s; they are left out", message)
        return rows, bad

    def _open_table(self) -> tuple[Sequence[dict[str, Any]], Mapping[int, str]]:
        with self._lock:
            return self._table

    @property
    def bad_places(self) -> Sequence[str]:
        """Where rows were left out, and why."""
        bad = self._open_table()[1]
        return [f"{self._path.name}, line {number} ({why})" for number, why in bad.items()]

    def __len__(self) -> int:
        return len(self._open_table()[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._columns.unite(self._open_table()[0][index])


class _Lines(Sequence):
    """Objects on lines of an open file."""

    def __init__(self, file: IO[bytes], starts: array.array, lengths: array.array) -> None:
        self._file, self._starts, self._lengths = file, starts, lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # pread has no shared file position, so tf.data's threads may read at once.
        data = os.pread(self._file.fileno(), self._lengths[index], self._starts[index])
        return json_lines.parse_again(data)


def _read_lines(file: IO[bytes], columns: Columns, bad: dict[int, str]) -> _Lines:
    starts, lengths = array.array("Q"), array.array("Q")
    for line in json_lines.read(file):
        if line.is_blank:
            continue
        try:
            columns.add(line.parse())
        except json_lines.LineError as error:
            bad[line.number] = str(error)
        else:
            starts.append(line.start)
            lengths.append(line.length)
    return _Lines(file, starts, lengths)


def _is_array(file: IO[bytes]) -> bool:
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _read_array(
    path: Path, file: IO[bytes], columns: Columns, bad: dict[int, str]
) -> list[dict[str, Any]]:
    """The objects of a file that is one array; `bad` by the line on which an element starts."""
    data = file.read(LARGEST_ARRAY + 1)
    if len(data) > LARGEST_ARRAY:
        raise ValueError(
            f"{path}: an array of more than {LARGEST_ARRAY >> 30} GiB; write it as JSON lines: "
            f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
        )
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    del data
    rows: list[dict[str, Any]] = []
    scan = _ELEMENT.raw_decode
    place = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    if text[place : place + 1] == "]":
        return rows
    while True:
        line, counted = line + text.count("\n", counted, place), place
        try:
            json_lines.check_levels(text, place)
            _, end = scan(text, place)
        except (json.JSONDecodeError, json_lines.LineError) as error:
            # What follows an element without an end cannot be told.
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(f"{path}, line {line}: {why}") from error
        try:
            row = json_lines.parse_text(text[place:end])
        except json_lines.LineError as error:
            bad[line] = str(error)
        else:
            columns.add(row)
            rows.append(row)
        place = _skip_space(text, end)
        mark = text[place : place + 1]
        if mark == "]" and _skip_space(text, place + 1) == len(text):
            return rows
        if mark != ",":
            line += text.count("\n", counted, place)
            raise ValueError(f"{path}, line {line}: the array goes on with neither , nor ]")
        place = _skip_space(text, place + 1)


# Finds where an element ends; numbers stay texts, as they may be of any length.
_ELEMENT = json.JSONDecoder(parse_int=str, parse_float=str)


def _skip_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()
