"""The arrays of a train state as they are at a step, in host memory, and how they get to disk.

A snapshot holds what this process writes and nothing else, in buffers of its own: the next step may
overwrite or donate the arrays it was taken of. Every distinct part of an array is held by one
process; arrays that several devices have in full are shared out among them.
"""

import asyncio
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from flax.traverse_util import empty_node, flatten_dict

from t5x.checkpoints.formats.orbax import array_spec, even_chunk_shape, tree_metadata
from t5x.checkpoints.formats.storage import Directory
from t5x.checkpoints.formats.stores import ORBAX_METADATA, Path

# What TensorStore copies and compresses at once, and what it commits to the store together.
_BYTES_IN_FLIGHT = 1 << 28
# A process may wait this long for the slowest one to write its arrays.
_WRITE_TIMEOUT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class ArraySnapshot:
    """An array, of which this process holds parts.

    Attributes:
      shape: of the whole array.
      dtype: to be written in.
      part_shape: of one part; the parts of all processes tile the array.
      parts: (index, values) of those that this process writes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    part_shape: tuple[int, ...]
    parts: tuple[tuple[tuple[slice, ...], np.ndarray], ...]


Snapshot = dict[Path, ArraySnapshot | None]


class SnapshotTaker:
    """Copies states of one structure to host memory; the first time takes longer."""

    def __init__(self) -> None:
        self._paths: tuple[Any, dict[Path, int | None]] | None = None
        # By sharding, shape and turn: which of an array's local parts to write, and their indices.
        self._own: dict[Any, tuple[tuple[int, tuple[slice, ...]], ...]] = {}

    def flatten(self, train_state: Any) -> dict[Path, Any]:
        """Returns `train_state.state_dict()` by path, empty nodes as None."""
        leaves, structure = jax.tree.flatten(train_state)
        if self._paths is None or self._paths[0] != structure:
            numbered = structure.unflatten(range(len(leaves))).state_dict()
            self._paths = structure, flatten_state(numbered)
        return {path: None if i is None else leaves[i] for path, i in self._paths[1].items()}

    def _own_parts(self, array: jax.Array, turn: int) -> tuple[tuple[int, tuple[slice, ...]], ...]:
        sharding, shape = array.sharding, array.shape
        key = (sharding, shape, turn)
        if key not in self._own:
            size = math.prod(sharding.shard_shape(shape))
            copies = len(sharding.device_set) * size // array.size if array.size else 1
            self._own[key] = tuple(
                (i, shard.index)
                for i, shard in enumerate(array.addressable_shards)
                if shard.replica_id == turn % max(1, copies)
            )
        return self._own[key]

    def take(self, arrays: Mapping[Path, Any], dtypes: Mapping[Path, Any]) -> Snapshot:
        """Copies arrays to host memory; returns when that is done.

        All processes call it with the same arrays, each copies what it will write.

        Args:
          arrays: by path in the state dict; None for an empty node.
          dtypes: what to write arrays in, by path, where that is not their own dtype.
        """
        own = {
            path: [(index, x.addressable_data(i)) for i, index in self._own_parts(x, turn)]
            for turn, (path, x) in enumerate(arrays.items())
            if isinstance(x, jax.Array)
        }
        # On CPU the device's memory is the host's: a view would change with it.
        on_host = jax.default_backend() == "cpu"
        if not on_host:
            for parts in own.values():
                for _, data in parts:
                    data.copy_to_host_async()
        snapshot: Snapshot = {}
        for path, x in arrays.items():
            if x is None:
                snapshot[path] = None
                continue
            if path in own:
                parts = tuple((i, np.array(v) if on_host else np.asarray(v)) for i, v in own[path])
                part_shape = x.sharding.shard_shape(x.shape)
            else:
                x = np.array(x)
                parts = (((slice(None),) * x.ndim, x),) if jax.process_index() == 0 else ()
                part_shape = x.shape
            dtype = np.dtype(dtypes.get(path, x.dtype))
            snapshot[path] = ArraySnapshot(tuple(x.shape), dtype, tuple(part_shape), parts)
        return snapshot


def flatten_state(state_dict: Mapping[str, Any]) -> dict[Path, Any]:
    """Returns the leaves of a state dict by path, empty nodes as None."""
    flat = flatten_dict(state_dict, keep_empty_nodes=True)
    return {path: None if x is empty_node else x for path, x in flat.items()}


def _batches(snapshot: Snapshot) -> Iterator[dict[Path, ArraySnapshot]]:
    """Hands out arrays in batches of limited size and lets go of them."""
    while snapshot:
        batch, size = {}, 0
        while snapshot and size < _BYTES_IN_FLIGHT:
            path, array = snapshot.popitem()
            if array is not None:
                batch[path] = array
                size += sum(values.nbytes for _, values in array.parts)
        yield batch


def _write_arrays(directory: Directory, snapshot: Snapshot) -> None:
    # One context, so that arrays share the database's handle: without, each opens it anew.
    context = ts.Context()
    for batch in _batches(snapshot):
        transaction = ts.Transaction(atomic=True)
        opening = {}
        for path, array in batch.items():
            chunk = even_chunk_shape(array.shape, array.part_shape, array.dtype.itemsize)
            spec = array_spec(directory, path, array.shape, chunk, array.dtype)
            opening[path] = ts.open(spec, create=True, transaction=transaction, context=context)
        writing = [
            opening[path].result()[index].write(values.astype(array.dtype, copy=False))
            for path, array in batch.items()
            for index, values in array.parts
        ]
        for write in writing:
            write.copy.result()
        transaction.commit_async().result()


class SnapshotHandler(ocp.CheckpointHandler):
    """Lets Orbax's Checkpointer write a snapshot as its PyTreeCheckpointHandler writes arrays."""

    def __init__(self) -> None:
        # The checkpoint says who reads it: that handler, in other programs. The class itself is
        # registered with Orbax under a name of its own.
        self.typestr = ocp.PyTreeCheckpointHandler.typestr

    def save(self, directory: epath.Path, args: "SnapshotArgs") -> None:
        if jax.process_index() == 0:
            shapes = {path: x and x.shape for path, x in args.snapshot.items()}
            (directory / ORBAX_METADATA).write_text(json.dumps(tree_metadata(shapes)))
        count = jax.process_count()
        # Each process has a database of its own, which `finalize` joins to one.
        own = directory if count == 1 else directory / f"ocdbt.process_{jax.process_index()}"
        _write_arrays(Directory(own), args.snapshot)
        ocp.multihost.sync_global_processes(
            "t5x:arrays_written", timeout=_WRITE_TIMEOUT_SECONDS, processes=set(range(count))
        )

    def finalize(self, directory: epath.Path) -> None:
        if jax.process_count() > 1:
            context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
            merge = ocp.type_handlers.merge_ocdbt_per_process_files
            asyncio.run(merge(directory, context, use_zarr3=False))

    def restore(self, directory: epath.Path, args: Any) -> Any:
        raise NotImplementedError("t5x.checkpoints.reading reads checkpoints")


@ocp.args.register_with_handler(SnapshotHandler, for_save=True, for_restore=True)
class SnapshotArgs(ocp.args.CheckpointArgs):
    """The snapshot to write; writing empties it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
