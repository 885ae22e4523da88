"""Whether a train state fits the devices, asked before anything is read or compiled."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax

from t5x import partitioning, utils


def bytes_per_device(
    shapes: Mapping[str, Any], axes: Mapping[str, Any], partitioner: partitioning.PjitPartitioner
) -> int:
    """Bytes of the largest share of a sharded pytree that one device holds.

    Args:
      shapes: nested dictionary of jax.ShapeDtypeStruct.
      axes: the same with PartitionSpecs (None: replicated).
      partitioner: gives the mesh.
    """
    specs = utils.flatten_dict_string_keys(axes)
    total = 0
    for name, leaf in utils.flatten_dict_string_keys(shapes).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):  # optimizers leave None and empty states too
            sharding = partitioner.shardings(specs[name])
            total += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def limit_per_device(device: jax.Device) -> int | None:
    """Bytes that a device can hold; CPU devices share the machine's memory. None if unknown."""
    if device.platform == "cpu":
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def check(initializer: Any, partitioner: partitioning.PjitPartitioner) -> None:
    """Refuses a train state that cannot fit: parameters, their gradients and optimizer state.

    Activations come on top, so passing is no promise.

    Raises:
      ValueError: it does not fit; the message has both figures.
    """
    shape, axes = initializer.global_train_state_shape, initializer.train_state_axes
    state = bytes_per_device(shape.state_dict(), axes.state_dict(), partitioner)
    gradients = bytes_per_device(shape.params, axes.params, partitioner)
    device = partitioner.mesh.local_devices[0]
    limit = limit_per_device(device)
    if limit is not None and state + gradients > limit:
        count = partitioner.mesh.size
        raise ValueError(
            f"parameters, gradients and optimizer state need {(state + gradients) / 2**30:.1f} GiB "
            f"on each of {count} device{'s' * (count > 1)} ({device.device_kind}), which has "
            f"{limit / 2**30:.1f} GiB; use more devices or a smaller model's gin file"
        )
