"""Examples tokenized once, kept in files: what is where, and the manifest that says so.

    DIR/manifest.json                            everything a reader needs; written last
    DIR/TASK/SPLIT.json                          the manifest's entry for one task and split
    DIR/TASK/SPLIT-SSSSS-of-NNNNN.array_record   examples, in the order of the source's rows
    DIR/TASK/SPLIT.lengths.npy                   uint32 (examples, 2): tokens of inputs and targets

DIR may be local or on a bucket. `t5x.data.records` writes and reads the examples.
"""

import dataclasses
import hashlib
import io
import json
import os
import types
import typing
from typing import Any, TypeVar

import numpy as np
from etils import epath

from t5x.run.files import write_whole

FORMAT = 1
MANIFEST = "manifest.json"
FEATURES = ("inputs", "targets")
_MOST_UINT16 = 1 << 16
_Dataclass = TypeVar("_Dataclass")


class StoreError(ValueError):
    """A prepared store is damaged, incomplete or of another format; one line says where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """How a feature was tokenized.

    Attributes:
      vocabulary: SHA-256 of the vocabulary's model file, or of its settings where it has no file.
      vocabulary_size: ids that the vocabulary has.
      add_eos: whether each sequence ends with the vocabulary's end of sequence.
    """

    vocabulary: str
    vocabulary_size: int
    add_eos: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file: its name beside the entry's, number of examples, size and SHA-256."""

    file: str
    examples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One split of one task.

    Attributes:
      task, split: names.
      examples: examples written.
      shards: the files that hold them, in order.
      lengths_sha256: SHA-256 of the file of lengths.
      template_hash: changes when the task's examples would.
      rate: the task's weight in the mixture, on the mixture's own scale.
      passes: times that the steps asked for go through these examples.
      source_rows: rows read; one not written is in `skipped`.
      skipped: rows not written, by reason.
      truncated_variables: variables cut to the longest a template takes; None if not known.
      input_lengths, target_lengths: examples by length, see `count_lengths`.
    """

    task: str
    split: str
    examples: int
    shards: tuple[Shard, ...]
    lengths_sha256: str
    template_hash: str
    rate: float
    passes: float
    source_rows: int
    skipped: dict[str, int]
    truncated_variables: int | None
    input_lengths: tuple[int, ...]
    target_lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """A split of a task of the mixture that could not be written, and why; rate as in `Entry`."""

    task: str
    split: str
    rate: float
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds.

    Attributes:
      mixture: name of the mixture or task.
      token_dtype: "uint16" or "uint32", see `choose_token_dtype`.
      text: whether records keep the texts that were tokenized.
      features: "inputs" and "targets".
      entries: what was written.
      missing: what was not.
      format: version of the format.
    """

    mixture: str
    token_dtype: str
    text: bool
    features: dict[str, Feature]
    entries: tuple[Entry, ...]
    missing: tuple[Missing, ...]
    format: int = FORMAT

    @property
    def missing_share(self) -> float:
        """The part of the mixture's rate that is missing, 0 to 1."""
        missing = sum(m.rate for m in self.missing)
        total = missing + sum(e.rate for e in self.entries)
        return missing / total if total else 0.0

    def of_split(self, split: str) -> tuple[Entry, ...]:
        """The entries of a split, sorted by task."""
        return tuple(sorted((e for e in self.entries if e.split == split), key=lambda e: e.task))


def choose_token_dtype(vocabulary_size: int) -> str:
    """Returns the narrowest dtype that holds every id of a vocabulary."""
    return "uint16" if vocabulary_size <= _MOST_UINT16 else "uint32"


def count_lengths(lengths: np.ndarray) -> tuple[int, ...]:
    """Counts lengths by their number of bits: 0, 1, 2–3, 4–7, 8–15, …

    Args:
      lengths: 1-d, whole numbers.
    """
    # frexp gives the number of bits exactly for whole numbers below 2^53.
    bits = np.frexp(np.asarray(lengths, np.float64))[1]
    return tuple(int(count) for count in np.bincount(bits))


def name_shard(split: str, number: int, count: int) -> str:
    """The file name of one of `count` shards."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"


def place_entry(directory: str | os.PathLike[str], task: str, split: str) -> epath.Path:
    """Returns the path of an entry.

    Raises:
      StoreError: the task or the split cannot be the name of a file.
    """
    for name in (task, split):
        if not name or name.startswith(".") or set(name) & set("/\\:\0"):
            raise StoreError(f"{name!r} cannot name a file of {directory}")
    return epath.Path(directory) / task / f"{split}.json"


def place_lengths(directory: str | os.PathLike[str], task: str, split: str) -> epath.Path:
    """Returns the path of the lengths of an entry."""
    return place_entry(directory, task, split).with_name(f"{split}.lengths.npy")


# -------------------------------------------------------------------------------------------------
# Manifest and entries
# -------------------------------------------------------------------------------------------------
def write_entry(directory: str | os.PathLike[str], entry: Entry) -> None:
    """Writes DIR/TASK/SPLIT.json whole."""
    path = place_entry(directory, entry.task, entry.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _to_json(entry))


def read_entry(directory: str | os.PathLike[str], task: str, split: str) -> Entry | None:
    """Reads DIR/TASK/SPLIT.json; None where there is none.

    Raises:
      StoreError: it is damaged.
    """
    path = place_entry(directory, task, split)
    return _from_json(Entry, path) if path.exists() else None


def write_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> None:
    """Writes DIR/manifest.json whole."""
    path = epath.Path(directory) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _to_json(manifest))


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Reads DIR/manifest.json.

    Raises:
      StoreError: there is none, or it is damaged or of another format.
    """
    path = epath.Path(directory) / MANIFEST
    if not path.exists():
        raise StoreError(
            f"{path} does not exist: this is no prepared store, or not yet a whole one"
        )
    manifest = _from_json(Manifest, path)
    if set(manifest.features) != set(FEATURES):
        raise StoreError(f"{path}: features are {sorted(manifest.features)}, not {list(FEATURES)}")
    if manifest.token_dtype not in ("uint16", "uint32"):
        raise StoreError(f"{path}: token_dtype is '{manifest.token_dtype}', not uint16 or uint32")
    for entry in manifest.entries:
        written = sum(shard.examples for shard in entry.shards)
        if written != entry.examples:
            raise StoreError(
                f"{path}: {entry.task} has {entry.examples} examples, its shards {written}"
            )
    return manifest


def write_lengths(
    directory: str | os.PathLike[str], task: str, split: str, lengths: np.ndarray
) -> str:
    """Writes the token counts (examples, 2) of an entry; returns the file's SHA-256."""
    path = place_lengths(directory, task, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(lengths, np.uint32).reshape(-1, 2))
    write_whole(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_lengths(directory: str | os.PathLike[str], entry: Entry) -> np.ndarray:
    """Token counts uint32 (examples, 2), mapped into memory where the store is local.

    Raises:
      StoreError: the file is missing or has another number of examples.
    """
    path = place_lengths(directory, entry.task, entry.split)
    try:
        if is_local(path):
            lengths = np.load(path, mmap_mode="r")
        else:
            lengths = np.load(io.BytesIO(path.read_bytes()))
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is missing or torn: prepare {entry.task} again") from error
    if lengths.shape != (entry.examples, 2) or lengths.dtype != np.uint32:
        raise StoreError(
            f"{path} holds {lengths.dtype} {lengths.shape}, not uint32 ({entry.examples}, 2): "
            f"prepare {entry.task} again"
        )
    return lengths


def find_damage(directory: str | os.PathLike[str], entry: Entry) -> list[str]:
    """Returns the names of an entry's files that are missing or differ from their checksum."""
    lengths = place_lengths(directory, entry.task, entry.split)
    wanted = {shard.file: shard.sha256 for shard in entry.shards}
    wanted[lengths.name] = entry.lengths_sha256
    return [name for name, sha256 in wanted.items() if hash_file(lengths.with_name(name)) != sha256]


def hash_file(path: epath.Path) -> str | None:
    """The SHA-256 of a file; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_local(path: epath.Path) -> bool:
    """Whether a path is not on a bucket."""
    return "://" not in os.fspath(path)


def _to_json(value: Any) -> bytes:
    text = json.dumps(dataclasses.asdict(value), indent=1, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def _from_json(cls: type[_Dataclass], path: epath.Path) -> _Dataclass:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error}): prepare it again") from error
    if cls is Manifest and isinstance(data, dict) and data.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {data.get('format')!r}, this version reads {FORMAT}: prepare again"
        )
    return _parse(cls, data, f"{path}: ")


def _parse(expected: Any, value: Any, where: str) -> Any:
    """Makes a value of an annotated type from JSON's, or says in one line what does not fit."""
    if dataclasses.is_dataclass(expected):
        hints = typing.get_type_hints(expected)
        if not isinstance(value, dict) or set(value) != set(hints):
            odd = sorted(set(hints) ^ set(value)) if isinstance(value, dict) else value
            raise StoreError(f"{where}not the fields of {expected.__name__}: {odd}")
        return expected(**{k: _parse(t, value[k], f"{where}{k} ") for k, t in hints.items()})
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], v, f"{where}[{i}] ") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: _parse(arguments[1], v, f"{where}{k} ") for k, v in value.items()}
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value, where)
    if expected is float and type(value) is int:
        return float(value)
    if expected is not type(value) or (expected in (int, float) and not value >= 0):
        name = getattr(expected, "__name__", str(expected))
        kind = f"{name} of at least 0" if expected in (int, float) else name
        raise StoreError(f"{where}is {value!r}, expected {kind}")
    return value
