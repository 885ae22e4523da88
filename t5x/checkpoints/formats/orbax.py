"""Writes a checkpoint in Orbax's format an array, or a part of one, at a time."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from t5x.checkpoints.formats.storage import Directory, is_url
from t5x.checkpoints.formats.stores import COMMIT_FILE, ORBAX_METADATA, STATE_ITEM, Path

# TensorStore holds a chunk twice while it writes it, and every thread keeps what it had at most.
CHUNK_BYTES = 1 << 23
# Chunks of what is written from memory: larger ones are fewer requests to an object store.
PART_CHUNK_BYTES = 1 << 25
_ONE_BY_ONE = ts.Context(
    {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
)
_KEY_IS_DICT = 2


def chunk_shape(
    shape: Sequence[int], itemsize: int, single_axis: int | None = None
) -> tuple[int, ...]:
    """Returns a shape for the chunks of an array: whole rows of the first axis as far as they go.

    Args:
      shape: the array's.
      itemsize: bytes of an element.
      single_axis: an axis that chunks have one element of.
    """
    chunk = [1 if axis == single_axis else size for axis, size in enumerate(shape)]
    for axis, size in enumerate(chunk):
        rest = math.prod(chunk[axis + 1 :]) * itemsize
        if size * rest <= CHUNK_BYTES:
            break
        chunk[axis] = max(1, CHUNK_BYTES // rest)
    return tuple(chunk)


def even_chunk_shape(
    shape: Sequence[int], part_shape: Sequence[int], itemsize: int
) -> tuple[int, ...]:
    """Returns a shape for the chunks of an array that is written in equal parts.

    No chunk belongs to two parts, so that their writers need not know of one another; and chunks
    are small enough that a reader of other parts reads little it does not want.

    Args:
      shape: the array's.
      part_shape: that of each part.
      itemsize: bytes of an element.
    """
    chunk = list(part_shape)
    for axis, size in enumerate(part_shape):
        rest = math.prod(part_shape[axis + 1 :]) * itemsize
        pieces = -(-size * rest // PART_CHUNK_BYTES) if rest <= PART_CHUNK_BYTES else size
        if pieces <= 1:
            break
        if size == shape[axis]:
            chunk[axis] = -(-size // pieces)
            continue
        # Pieces of a part are equal; a size without fitting divisors stays whole.
        fitting = (n for n in range(pieces, min(size, 16 * pieces) + 1) if size % n == 0)
        chunk[axis] = size // next(fitting, 1)
    return tuple(max(1, size) for size in chunk)


def array_spec(
    directory: Directory, path: Path, shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype
) -> dict[str, Any]:
    """Returns TensorStore's spec of an array in the database of a checkpoint."""
    return {
        "driver": "zarr",
        "dtype": np.dtype(dtype).name,
        "kvstore": {"driver": "ocdbt", "base": directory.spec(), "path": ".".join(path) + "/"},
        "metadata": {
            "shape": list(shape),
            "chunks": list(chunk),
            "compressor": {"id": "zstd", "level": 1},
        },
        # So that a chunk that is not there is known to be lost.
        "store_data_equal_to_fill_value": True,
    }


def tree_metadata(shapes: Mapping[Path, Sequence[int] | None]) -> dict[str, Any]:
    """Returns what a checkpoint says of its arrays; a shape of None is that of an empty node."""
    tree = {
        str(path): {
            "key_metadata": [{"key": key, "key_type": _KEY_IS_DICT} for key in path],
            "value_metadata": {"value_type": "Dict", "skip_deserialize": True}
            if shape is None
            else {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(shape),
            },
        }
        for path, shape in shapes.items()
    }
    return {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


class CheckpointWriter:
    """A checkpoint in the making: it gets its name when all is written.

    Args:
      path: DIRECTORY/checkpoint_N, or its URL.

    Raises:
      FileExistsError: it exists.
    """

    def __init__(self, path: str) -> None:
        self._path = path.rstrip("/") if is_url(path) else os.path.abspath(path)
        if Directory(f"{self._path}/{STATE_ITEM}").exists(ORBAX_METADATA) or os.path.exists(path):
            raise FileExistsError(f"{path} exists; remove it or choose another DST")
        self._written = self._path
        if not is_url(path):
            self._written += f".orbax-checkpoint-tmp-{time.time_ns()}"
            self._is_new = not os.path.exists(os.path.dirname(self._path))
            os.makedirs(self._written)  # says plainly where nothing can be written
        self._state = Directory(f"{self._written}/{STATE_ITEM}")
        self._arrays: dict[Path, Any] = {}  # futures of stores: what is made together is fast
        # Committing makes a disk write through; small arrays are committed together.
        self._transaction = ts.Transaction(atomic=True)
        self._pending = 0
        self._is_complete = False

    def create(
        self,
        path: Path,
        shape: Sequence[int],
        dtype: np.dtype,
        single_axis: int | None = None,
    ) -> None:
        """Adds an array to write; see `chunk_shape` for `single_axis`."""
        dtype = np.dtype(dtype)
        chunk = chunk_shape(shape, dtype.itemsize, single_axis)
        spec = array_spec(self._state, path, shape, chunk, dtype)
        self._arrays[path] = ts.open(spec, create=True, context=_ONE_BY_ONE)

    def write(self, path: Path, values: np.ndarray, index: tuple[int | slice, ...] = ()) -> None:
        """Writes values, cast a chunk at a time, to a part of an array that `index` selects."""
        part = self._arrays[path].result()[index]
        dtype = part.dtype.numpy_dtype
        if values.ndim == 0:
            part.with_transaction(self._transaction).write(values.astype(dtype)).copy.result()
            return
        part = part[ts.d[:].translate_to[0]]  # a slice counts on from where it begins
        rows = chunk_shape(part.shape, dtype.itemsize)[0]
        for first in range(0, part.shape[0], rows):
            with np.errstate(over="ignore"):  # whoever writes infinity has been asked
                block = values[first : first + rows].astype(dtype, copy=False)
            target = part[first : first + len(block)].with_transaction(self._transaction)
            target.write(block).copy.result()
            self._pending += block.nbytes
            if self._pending >= CHUNK_BYTES:
                self._commit()

    def _commit(self) -> None:
        self._transaction.commit_async().result()
        self._transaction, self._pending = ts.Transaction(atomic=True), 0

    def complete(self) -> None:
        """Writes all that is still to be written; the checkpoint has no name of its own yet."""
        self._commit()
        metadata = tree_metadata({path: x.result().shape for path, x in self._arrays.items()})
        now = time.time_ns()
        handlers = {STATE_ITEM: ocp.PyTreeCheckpointHandler.typestr()}
        whole = {
            "item_handlers": handlers,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        }
        self._arrays.clear()
        directory = Directory(self._written)
        files = {
            f"{STATE_ITEM}/{ORBAX_METADATA}": json.dumps(metadata),
            "_CHECKPOINT_METADATA": json.dumps(whole),
            f"{STATE_ITEM}/{COMMIT_FILE}": "complete\n",
            COMMIT_FILE: "complete\n",
        }
        for name, text in files.items():
            directory.write(name, text.encode())
        self._is_complete = True

    def close(self) -> None:
        """Completes the checkpoint and gives it its name."""
        if not self._is_complete:
            self.complete()
        if self._written != self._path:
            os.rename(self._written, self._path)

    def abandon(self) -> None:
        """Removes what was written."""
        if not self._is_complete:
            self._transaction.abort()
        self._arrays.clear()
        if self._written != self._path:
            shutil.rmtree(self._written, ignore_errors=True)
            if self._is_new:
                os.rmdir(os.path.dirname(self._path))
