"""Fingerprints that tell whether stored scores still belong to a checkpoint and to a task."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Odd numbers far apart; positions times these rarely meet.
_STRIDES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D)


def of_parameters(params: Any) -> str:
    """Fingerprint of a pytree of arrays: names, shapes, dtypes and every bit of the values.

    Sums of integers, so it depends neither on how the arrays are sharded nor on the order of
    summation. Collective where arrays span processes: all of them must call it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.device_get(
        jax.jit(lambda arrays: [_checksum(x) for x in arrays])([leaf for _, leaf in leaves])
    )
    facts = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), int(total))
        for (path, leaf), total in zip(leaves, sums, strict=True)
    ]
    return of_parts(repr(fact).encode() for fact in sorted(facts))


def _checksum(x: jax.Array) -> jax.Array:
    """Sum modulo 2^32 of the bits of each element times an odd number of its position."""
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(_STRIDES[axis % len(_STRIDES)])
        position += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    mixed = (bits ^ (bits >> 15)) * (position ^ (position >> 13) | jnp.uint32(1))
    return jnp.sum(mixed, dtype=jnp.uint32)


def of_parts(parts: Iterable[bytes]) -> str:
    """Fingerprint of byte strings in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
