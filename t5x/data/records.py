"""Records of prepared examples in ArrayRecord files, written and read.

A record is little-endian: the numbers of input and target tokens as uint32, the tokens (untrimmed,
of the manifest's `token_dtype`), and where texts are kept the byte length of each as uint32 and
then both as UTF-8.
"""

import dataclasses
import os
import tempfile
import threading
import typing
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from t5x.data.store import (
    Entry,
    Manifest,
    Shard,
    StoreError,
    hash_file,
    is_local,
    name_shard,
    place_entry,
)

# Rows are read at random, one at a time, and single rows of tokens gain nothing from compression.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: 1-d token arrays, and (inputs, targets) as text where the store keeps it."""

    inputs: np.ndarray
    targets: np.ndarray
    texts: tuple[str, str] | None = None


def encode_example(
    inputs: np.ndarray,
    targets: np.ndarray,
    token_dtype: str,
    texts: tuple[str, str] | None = None,
) -> bytes:
    """The record of one example.

    Args:
      inputs, targets: 1-d token ids.
      token_dtype: "uint16" or "uint32".
      texts: what was tokenized, in stores that keep it.

    Raises:
      StoreError: an id does not fit the dtype.
    """
    dtype = np.dtype(token_dtype).newbyteorder("<")
    parts = [np.array([len(inputs), len(targets)], "<u4").tobytes()]
    for tokens in (inputs, targets):
        tokens = np.asarray(tokens)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() <= np.iinfo(dtype).max:
            raise StoreError(f"token ids {tokens.min()} to {tokens.max()} do not fit {token_dtype}")
        parts.append(tokens.astype(dtype).tobytes())
    if texts is not None:
        encoded = [text.encode("utf-8") for text in texts]
        parts += [np.array([len(text) for text in encoded], "<u4").tobytes(), *encoded]
    return b"".join(parts)


def decode_example(record: bytes, token_dtype: str, text: bool = False) -> Example:
    """The example of a record; its token arrays are views into it.

    Raises:
      StoreError: the record is torn.
    """
    dtype = np.dtype(token_dtype).newbyteorder("<")
    if len(record) < 8:
        raise StoreError(f"a record has {len(record)} bytes, at least 8 expected")
    counts = [int(n) for n in np.frombuffer(record, "<u4", 2)]
    end = 8 + sum(counts) * dtype.itemsize
    sizes = [0, 0]
    if text and len(record) >= end + 8:
        sizes = [int(n) for n in np.frombuffer(record, "<u4", 2, end)]
    whole = end + (8 + sum(sizes) if text else 0)
    if len(record) != whole:
        raise StoreError(f"a record has {len(record)} bytes, {whole} expected")
    inputs = np.frombuffer(record, dtype, counts[0], 8)
    targets = np.frombuffer(record, dtype, counts[1], 8 + counts[0] * dtype.itemsize)
    if not text:
        return Example(inputs, targets)
    middle = end + 8 + sizes[0]
    return Example(
        inputs, targets, (record[end + 8 : middle].decode("utf-8"), record[middle:].decode("utf-8"))
    )


class ShardWriter:
    """Writes one shard; the file appears, whole, when its block is left without an error.

        with ShardWriter(DIR, task, split, 0, 1, "uint16") as writer:
            writer.write(inputs, targets)
        writer.shard, writer.lengths

    Args:
      directory: of the store.
      task, split: what the examples are of.
      number, count: which of how many shards.
      token_dtype: see `encode_example`.
      text: whether texts are kept.
    """

    shard: Shard

    def __init__(
        self,
        directory: str | os.PathLike[str],
        task: str,
        split: str,
        number: int,
        count: int,
        token_dtype: str,
        text: bool = False,
    ) -> None:
        self._path = place_entry(directory, task, split).with_name(name_shard(split, number, count))
        self._token_dtype = token_dtype
        self._text = text
        self._lengths: list[tuple[int, int]] = []

    @property
    def lengths(self) -> np.ndarray:
        """uint32 (examples, 2): tokens of inputs and targets."""
        return np.asarray(self._lengths, np.uint32).reshape(-1, 2)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The library writes local files only, and beside the shard a rename suffices.
        place = os.fspath(self._path.parent) if is_local(self._path) else None
        self._beside = tempfile.TemporaryDirectory(prefix=".partial-", dir=place)
        self._file = Path(self._beside.name) / self._path.name
        self._writer = ArrayRecordWriter(os.fspath(self._file), _WRITER_OPTIONS)
        return self

    def write(
        self, inputs: np.ndarray, targets: np.ndarray, texts: tuple[str, str] | None = None
    ) -> None:
        """Appends an example, see `encode_example`."""
        if (texts is not None) != self._text:
            raise StoreError(f"{self._path}: texts must be given exactly where they are kept")
        self._writer.write(encode_example(inputs, targets, self._token_dtype, texts))
        self._lengths.append((len(inputs), len(targets)))

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._writer.close()
        try:
            if kind is None:
                self.shard = Shard(
                    file=self._path.name,
                    examples=len(self._lengths),
                    bytes=self._file.stat().st_size,
                    sha256=hash_file(epath.Path(self._file)) or "",
                )
                if is_local(self._path):
                    os.replace(self._file, self._path)
                else:
                    epath.Path(self._file).copy(self._path, overwrite=True)
        finally:
            self._beside.cleanup()


def measure_shard(path: str | os.PathLike[str], token_dtype: str, text: bool = False) -> np.ndarray:
    """The token counts uint32 (examples, 2) of a shard, read from its records.

    Raises:
      StoreError: it holds no records, or torn ones.
    """
    reader = ArrayRecordReader(os.fspath(path))
    examples = [decode_example(record, token_dtype, text) for record in _read_all(reader, path)]
    return np.array([(len(e.inputs), len(e.targets)) for e in examples], np.uint32).reshape(-1, 2)


def _read_all(reader: ArrayRecordReader, path: str | os.PathLike[str]) -> list[bytes]:
    try:
        if not reader.ok():
            raise StoreError(f"{path} is missing or no ArrayRecord file")
        return reader.read_all()
    except RuntimeError as error:
        raise StoreError(f"{path} is torn: {str(error).splitlines()[0]}") from error


class ExampleReader:
    """Examples by entry and place, through one pool of open files; may be shared by threads.

    Args:
      directory: of the store.
      manifest: what it holds.
      entries: what `read` numbers.
      most_open: files kept open; the one unused longest is closed first.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        manifest: Manifest,
        entries: Sequence[Entry],
        most_open: int = 256,
    ) -> None:
        self._directory = os.fspath(directory)
        self._manifest = manifest
        self._entries = tuple(entries)
        self._ends = [np.cumsum([s.examples for s in entry.shards]) for entry in entries]
        self._most_open = most_open
        self._open: OrderedDict[tuple[int, int], ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> Mapping[str, Any]:
        """Workers open their own files."""
        return {
            "directory": self._directory,
            "manifest": self._manifest,
            "entries": self._entries,
            "most_open": self._most_open,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)

    def read(self, entry: int, places: Sequence[int]) -> list[Example]:
        """The examples of an entry at some places.

        Raises:
          IndexError: the entry has fewer examples.
          StoreError: a file is missing or torn.
        """
        ends = self._ends[entry]
        examples: list[Example | None] = [None] * len(places)
        asked = np.asarray(places, np.int64)
        if asked.size and not 0 <= asked.min() <= asked.max() < self._entries[entry].examples:
            raise IndexError(
                f"{self._entries[entry].task} has {self._entries[entry].examples} examples, asked "
                f"for {asked.min()} to {asked.max()}"
            )
        shards = np.searchsorted(ends, asked, side="right")
        for shard in np.unique(shards):
            which = np.flatnonzero(shards == shard)
            start = int(ends[shard - 1]) if shard else 0
            records = self._read_records(entry, int(shard), (asked[which] - start).tolist())
            for i, record in zip(which, records, strict=True):
                examples[i] = decode_example(
                    record, self._manifest.token_dtype, self._manifest.text
                )
        return typing.cast(list[Example], examples)

    def _read_records(self, entry: int, shard: int, places: list[int]) -> list[bytes]:
        key = (entry, shard)
        with self._lock:
            reader = self._open.pop(key, None) or self._open_file(entry, shard)
            self._open[key] = reader
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
        try:
            return reader.read(places)
        except RuntimeError as error:
            raise StoreError(
                f"{self._place(entry, shard)} is torn ({str(error).splitlines()[0]}): prepare "
                f"{self._entries[entry].task} again"
            ) from error

    def _place(self, entry: int, shard: int) -> str:
        it = self._entries[entry]
        path = place_entry(self._directory, it.task, it.split)
        return os.fspath(path.with_name(it.shards[shard].file))

    def _open_file(self, entry: int, shard: int) -> ArrayRecordReader:
        path = self._place(entry, shard)
        reader = ArrayRecordReader(path, _READER_OPTIONS)
        wanted = self._entries[entry].shards[shard].examples
        if not reader.ok() or reader.num_records() != wanted:
            raise StoreError(
                f"{path} is missing or torn, {wanted} examples expected: prepare "
                f"{self._entries[entry].task} again"
            )
        return reader
