"""Reads the arrays of a checkpoint into the shardings of a train state."""

import concurrent.futures
import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from t5x.checkpoints import layouts
from t5x.checkpoints.directories import all_steps
from t5x.checkpoints.formats.failures import (
    OutOfMemoryError,
    UnreadableCheckpointError,
    first_line,
    status_code,
)
from t5x.checkpoints.formats.storage import is_url
from t5x.checkpoints.formats.stores import Arrays, open_checkpoint
from t5x.checkpoints.layouts import Source, StoredArray, TargetArray
from t5x.optimizers.base import Optimizer

_CONCURRENT_ARRAYS = 8


@contextlib.contextmanager
def name_checkpoint_in_errors(checkpoint: str) -> Iterator[None]:
    """Names the checkpoint in what goes wrong in reading it, and keeps apart what it was.

    Raises:
      UnreadableCheckpointError: its own files are damaged, which is proven.
      RemovedCheckpointError: it is there no more.
      OutOfMemoryError: it does not fit this machine.
      OSError: no permission, or out of reach.
    """
    try:
        yield
    except UnreadableCheckpointError as error:
        # What else there is to start from.
        directory = os.path.dirname(checkpoint)
        steps = [] if is_url(directory) else [str(step) for step in all_steps(directory)]
        raise UnreadableCheckpointError(
            f"checkpoint {checkpoint} cannot be read ({first_line(error)}); if its files are "
            f"damaged, remove it and restore another step of {', '.join(steps) or 'none'}"
        ) from error
    except FileNotFoundError:  # one that was removed among them
        raise
    except MemoryError as error:
        raise _too_large(checkpoint, error) from error
    except jax.errors.JaxRuntimeError as error:
        if status_code(error) != "RESOURCE_EXHAUSTED":
            raise
        raise _too_large(checkpoint, error) from error
    except PermissionError as error:
        raise PermissionError(
            f"checkpoint {checkpoint} may not be read ({first_line(error)}); it is left as it is: "
            "see to the permissions"
        ) from error
    except OSError as error:
        raise OSError(
            f"checkpoint {checkpoint} could not be read ({first_line(error)}); it is left as it "
            "is: try again"
        ) from error


def _too_large(checkpoint: str, error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"not enough memory to restore checkpoint {checkpoint} ({first_line(error)}); it is left "
        "as it is: restore it on more devices, or on larger ones"
    )


def open_arrays(checkpoint: str) -> Arrays:
    """Opens a checkpoint of any format.

    Raises:
      ValueError: it is damaged, or of another model.
      OSError: see `name_checkpoint_in_errors`.
    """
    with name_checkpoint_in_errors(checkpoint):
        return open_checkpoint(checkpoint)


Bounds = tuple[tuple[int, int], ...]


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    """Returns first and last+1 along each axis of what an index selects."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _volume(bounds: Bounds) -> int:
    return math.prod(stop - start for start, stop in bounds)


def _read_array(
    contents: Arrays, stored: StoredArray, sharding: NamedSharding, dtype: Any
) -> jax.Array:
    """Reads an array into a sharding, of which this process reads its own part."""
    # T5X stores some steps as plain numbers, of 64 bits.
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    indices = sharding.addressable_devices_indices_map(stored.shape).values()
    parts = {_bounds(index, stored.shape) for index in indices}
    # Parts that fill a block are read in one go, and what devices share only once.
    block = tuple(
        (min(start for start, _ in axis), max(stop for _, stop in axis))
        for axis in zip(*parts, strict=True)
    )
    blocks = {block} if _volume(block) == sum(map(_volume, parts)) else parts
    read = {
        bounds: contents.read(stored.path, tuple(slice(*axis) for axis in bounds)).astype(dtype)
        for bounds in blocks
    }

    def part_of(index: tuple[slice, ...]) -> np.ndarray:
        bounds = _bounds(index, stored.shape)
        if bounds in read:
            return read[bounds]
        inner = (
            slice(start - first, stop - first)
            for (start, stop), (first, _) in zip(bounds, block, strict=True)
        )
        return read[block][tuple(inner)]

    return jax.make_array_from_callback(stored.shape, sharding, part_of)


def _read_arrays(
    checkpoint: str, contents: Arrays, wanted: Mapping[StoredArray, tuple[NamedSharding, Any]]
) -> dict[StoredArray, jax.Array]:
    """Reads arrays into shardings and dtypes."""
    for stored, (sharding, _) in wanted.items():
        sharding.shard_shape(stored.shape)  # raises where a mesh does not divide the model
    with (
        name_checkpoint_in_errors(checkpoint),
        concurrent.futures.ThreadPoolExecutor(_CONCURRENT_ARRAYS) as pool,
    ):
        reading = {
            stored: pool.submit(_read_array, contents, stored, sharding, dtype)
            for stored, (sharding, dtype) in wanted.items()
        }
        return {stored: future.result() for stored, future in reading.items()}


def _shown(lines: Sequence[str], most: int = 3) -> str:
    rest = len(lines) - most
    return "; ".join(lines[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _check_fit(
    checkpoint: str,
    stored: Mapping[str, StoredArray],
    sources: Mapping[str, Source],
    targets: Mapping[str, TargetArray],
    fallback: Mapping[str, Any],
) -> None:
    misshapen = [
        f"{path} has shape {source.shape} there and {targets[path].shape} in the model"
        for path, source in sources.items()
        if source.shape != targets[path].shape
    ]
    network = layouts.name_network(stored, targets)
    if misshapen:
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the model{network}: {_shown(misshapen)}; bind "
            "the model that was saved, or another RestoreCheckpointConfig.path"
        )
    missing = [path for path in targets if path not in sources and path not in fallback]
    if missing:
        read = {array.path for source in sources.values() for array in source.inputs}
        unread = [path for path, array in stored.items() if array.path not in read]
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the model{network}: it "
            f"lacks {_shown(missing)}; it has "
            f"{_shown(unread) or 'nothing'} instead; name what to read in "
            "RestoreCheckpointConfig.assignment_map, or initialise what is lacking with "
            "RestoreCheckpointConfig.fallback_to_scratch = True"
        )


def read_state(
    checkpoint: str,
    contents: Arrays,
    stored: Mapping[str, StoredArray],
    targets: Mapping[str, TargetArray],
    fallback: Mapping[str, Any],
    factor_map: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Reads what a train state wants.

    Args:
      checkpoint: the directory of the checkpoint.
      contents: what it holds.
      stored: its arrays, by the path under which the train state may want them.
      targets: the arrays the train state wants, by path.
      fallback: arrays for paths that are not stored.
      factor_map: see `layouts.plan`.

    Raises:
      ValueError: arrays are missing or of another shape, or cannot be read.
    """
    shapes = {path: target.shape for path, target in targets.items()}
    sources = layouts.plan(stored, shapes, factor_map)
    _check_fit(checkpoint, stored, sources, targets, fallback)
    wanted = {}
    for path, source in sources.items():
        sharding, dtype = targets[path].sharding, targets[path].dtype
        for array in source.inputs:
            cast = dtype if jnp.issubdtype(array.dtype, jnp.floating) else None
            spec = source.input_spec(sharding.spec)
            wanted.setdefault(array, (NamedSharding(sharding.mesh, spec), cast or array.dtype))
    arrays = _read_arrays(checkpoint, contents, wanted)
    state = {}
    with name_checkpoint_in_errors(checkpoint):
        for path, target in targets.items():
            if path in sources:
                inputs = [arrays[array] for array in sources[path].inputs]
                state[path] = sources[path].build(inputs, target.sharding)
            else:
                logging.warning("%s is not in %s and is initialised", path, checkpoint)
                values = jnp.asarray(fallback[path], target.dtype)
                state[path] = jax.device_put(values, target.sharding)
    return state


def create_optimizer_state(
    optimizer: Optimizer, state: Mapping[str, jax.Array], targets: Mapping[str, TargetArray]
) -> dict[str, jax.Array]:
    """Makes the optimizer state of parameters anew, under its own shardings.

    Args:
      optimizer: of the train state; only its structure is used.
      state: the flat state dict, of which the parameters are used.
      targets: the arrays wanted, by path in the state dict.
    """

    def create(params: Any) -> dict[str, jax.Array]:
        fresh = optimizer.optimizer_def.init_state(params)
        flat = flatten_dict(optimizer.replace(state=fresh, target=params).state_dict(), sep="/")
        return {path: flat[path] for path in targets}

    shardings = {path: target.sharding for path, target in targets.items()}
    params = unflatten_dict(dict(state), sep="/")["target"]
    return jax.jit(create, out_shardings=shardings)(params)
