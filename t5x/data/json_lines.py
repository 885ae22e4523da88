"""JSON lines: one reader and one rule for every command that takes such a file.

A line is a JSON object in UTF-8 (RFC 8259), with what Hugging Face's `datasets` 5.2 makes of the
cases that the standard leaves open:

- a byte order mark before the object is no data, CR LF is a line end, blank lines are no rows;
- NaN, Infinity and -Infinity are numbers, as Python writes them;
- an integer beyond 64 bits is a float;
- refused are a key that occurs twice in an object, a number beyond the floats, half of a surrogate
  pair, more than MOST_LEVELS objects and lists within one another, a NUL byte, other encodings.
"""

import gzip
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from etils import epath

LONGEST_LINE = 64 << 20  # bytes; what Python makes of a line takes up to ten times as many
MOST_LEVELS = 64
# Enough to find the mistake, short enough for one line.
NAMED_BAD_LINES = 5
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# A text, closed or not, or a bracket; possessive, so that no input makes it go back.
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}]', re.DOTALL)


class LineError(ValueError):
    """A text is no row: the reason in a few words, without the place."""


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
      number: from 1.
      start: where it begins, in bytes.
      length: its bytes, line end included.
      data: them; only the beginning of a line longer than LONGEST_LINE.
    """

    number: int
    start: int
    length: int
    data: bytes

    @property
    def is_blank(self) -> bool:
        return not self.data.removeprefix(_BOM).strip()

    @property
    def text(self) -> str:
        """The line as text, for files of plain lines. Raises LineError."""
        if self.length > len(self.data):
            raise LineError(f"longer than {LONGEST_LINE >> 20} MiB")
        return _decode(self.data)

    def parse(self) -> dict[str, Any]:
        """The object on the line. Raises LineError."""
        return parse_text(self.text)


def parse(data: bytes) -> dict[str, Any]:
    """The object on one line. Raises LineError with the reason where it is none."""
    return parse_text(_decode(data))


def _decode(data: bytes) -> str:
    data = data.removeprefix(_BOM)
    if b"\0" in data:
        raise LineError("a NUL byte; is it UTF-16? Lines are UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8 at byte {error.start + 1}") from error


def parse_text(text: str) -> dict[str, Any]:
    """The object that a text is. Raises LineError with the reason where it is none."""
    if text.count("[") + text.count("{") > MOST_LEVELS:
        check_levels(text)
    try:
        row = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise LineError(f"{error.msg} at character {error.pos + 1}") from error
    if not isinstance(row, dict):
        raise LineError(f"{_KINDS[type(row)]}, not an object")
    if _SURROGATE.search(text):
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise LineError("half of a surrogate pair") from error
    return row


def parse_again(data: bytes) -> dict[str, Any]:
    """The same as `parse` for a line that has passed it; does not look for what it refuses."""
    return _FAST.decode(data.removeprefix(_BOM).decode("utf-8"))


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false",
          type(None): "null"}  # fmt: skip


def check_levels(text: str, start: int = 0) -> None:
    """Raises LineError where the value that begins at `start` has more than MOST_LEVELS levels."""
    # Python's own limit depends on how deep the caller stands.
    level = 0
    for match in _BRACKETS.finditer(text, start):
        mark = match[0]
        if mark in "[{":
            level += 1
            if level > MOST_LEVELS:
                raise LineError(f"more than {MOST_LEVELS} lists and objects within one another")
        elif mark in "]}":
            level -= 1
        if level <= 0:
            return


def _unite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    united = dict(pairs)
    if len(united) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise LineError(f"the key {twice[:60]!r} occurs twice")
    return united


def _integer(text: str) -> int | float:
    if len(text) < 19:
        return int(text)
    if len(text) < 25 and -(2**63) <= (number := int(text)) < 2**63:
        return number
    return _float(text)


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise LineError(f"the number {text[:20]}… is beyond the floats")
    return number


_FAST = json.JSONDecoder(parse_int=_integer)
_STRICT = json.JSONDecoder(object_pairs_hook=_unite, parse_int=_integer, parse_float=_float)


def read(file: IO[bytes], number: int = 1) -> Iterator[Line]:
    """Lines of an open file from where it stands, blank ones too, in bounded memory.

    Args:
      file: open for reading.
      number: of the line where it stands.
    """
    start = file.tell()
    while data := file.readline(LONGEST_LINE + 1):
        length = len(data)
        if length > LONGEST_LINE:
            data = data[:1000]
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                length += len(rest)
            length += len(rest)
        yield Line(number, start, length, data)
        start += length
        number += 1


def open_unpacked(path: epath.PathLike) -> IO[bytes]:
    """Opens a file for reading at random; .gz and .zst are unpacked into a nameless file first.

    Raises:
      ValueError: it is no file, or no whole one.
    """
    path = epath.Path(path)
    if os.path.exists(path) and not os.path.isfile(path):  # epath takes a pipe for a file
        kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}, not a file of rows")
    if path.suffix not in (".gz", ".zst"):
        return path.open("rb")
    whole = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the caller reads)
    try:
        with path.open("rb") as packed, _unpack(packed, path.suffix) as unpacked:
            shutil.copyfileobj(unpacked, whole, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        whole.close()
        # Of the file system's own errors each has a number, of the decoders' none has.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole {path.suffix} file ({what})") from error
    whole.seek(0)
    return whole


def _unpack(packed: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return gzip.open(packed)
    import pyarrow

    return pyarrow.CompressedInputStream(packed, "zstd")


def describe(path: object, problems: Mapping[int, str]) -> str:
    """One line that names a file and its bad lines: number → reason."""
    shown = list(problems.items())[:NAMED_BAD_LINES]
    named = ", ".join(f"line {number} ({reason})" for number, reason in shown)
    more = len(problems) - len(shown)
    are = "1 line is" if len(problems) == 1 else f"{len(problems)} lines are"
    return f"{path}: {are} no row: {named}{f' and {more} more' if more else ''}"
