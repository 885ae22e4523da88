"""What checkpoints hold: their steps, layout and arrays, and digests of the latter."""

import dataclasses
import hashlib
import math
import os
import re
from pathlib import Path

from t5x.checkpoints import layer_names
from t5x.checkpoints.directories import all_dataset_checkpoint_steps, all_steps, get_checkpoint_dir
from t5x.checkpoints.formats.stores import Arrays, find_format, open_checkpoint

_DIGEST_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class ArrayFacts:
    """An array: its path in the state dict, shape, dtype and size, and its digest if asked for.

    The digest is SHA-256 of the elements' little-endian bytes in C order, so that it does not
    depend on the format of the checkpoint.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint.

    Attributes:
      path: its directory.
      format: 'orbax', 'legacy' or 'huggingface'.
      step: as it holds it; None if it holds none.
      layout: 'scanned' or 'unrolled' layers, 'other' if there are none.
      parameters: how many numbers it has for the model.
      has_optimizer: whether it has optimizer state.
      has_dataset: whether it has a position in the training data.
      bytes_on_disk: size of its files; None if it is not on this machine.
      arrays: what it holds.
    """

    path: str
    format: str
    step: int | None
    layout: str
    parameters: int
    has_optimizer: bool
    has_dataset: bool
    bytes_on_disk: int | None
    arrays: tuple[ArrayFacts, ...]


def list_checkpoints(model_dir: str) -> list[CheckpointFacts]:
    """Returns the facts of a run's checkpoints, in the order of steps.

    Raises:
      FileNotFoundError: it has none.
    """
    steps = all_steps(model_dir)
    if not steps:
        hint = ": it is one itself, see `t0x checkpoints inspect`" if find_format(model_dir) else ""
        raise FileNotFoundError(f"{model_dir} has no checkpoints{hint}")
    return [inspect_checkpoint(get_checkpoint_dir(model_dir, step)) for step in steps]


def inspect_checkpoint(path: str, *, with_digests: bool = False) -> CheckpointFacts:
    """Returns the facts of a checkpoint.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read.
    """
    contents = open_checkpoint(path)
    arrays = tuple(
        ArrayFacts(
            path="/".join(key),
            shape=array.shape,
            dtype=array.dtype.name,
            bytes=math.prod(array.shape) * array.dtype.itemsize,
            sha256=_digest(contents, key) if with_digests else None,
        )
        for key, array in sorted(contents.arrays.items())
    )
    names = [array.path for array in arrays]
    has_step = ("state", "step") in contents.arrays
    weights = [name for name in names if name.startswith("target/")]
    layouts = [("scanned", layer_names.SCANNED), ("unrolled", layer_names.UNROLLED)]
    directory, name = os.path.split(path.rstrip("/"))
    number = re.fullmatch(r".*_(\d+)", name)
    return CheckpointFacts(
        path=path,
        format=find_format(path) or "",
        step=int(contents.read(("state", "step"))) if has_step else None,
        layout=next((kind for kind, like in layouts if any(map(like.fullmatch, weights))), "other"),
        parameters=sum(math.prod(x.shape) for x in arrays if x.path.startswith("target/")),
        has_optimizer=any(name.startswith("state/param_states/") for name in names),
        has_dataset=bool(
            number and int(number[1]) in all_dataset_checkpoint_steps(directory or ".")
        ),
        bytes_on_disk=_size(Path(path)) if Path(path).is_dir() else None,
        arrays=arrays,
    )


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _digest(contents: Arrays, path: tuple[str, ...]) -> str:
    """SHA-256 of an array, some rows at a time where it is stored so."""
    digest = hashlib.sha256()
    shape = contents.arrays[path].shape
    chunk = contents.chunk_shape(path)
    rows = chunk[0] if shape else 1
    for first in range(0, shape[0] if shape else 1, max(1, rows)):
        index = (slice(first, min(first + rows, shape[0])),) if shape else ()
        values = contents.read(path, index)
        flat = values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1)
        for start in range(0, flat.size, _DIGEST_BYTES):
            digest.update(flat[start : start + _DIGEST_BYTES].tobytes())
    return digest.hexdigest()
