"""Self-attention for scoring on a CPU: one row at a time, half by half where no segment crosses.

The scores of one row stay near the cache; those of a batch fill memory. A row whose segments each
keep to one half of it has half as many: packed rows can be made so, and so are short inputs that
are padded. The results are the reference's.

Shapes: B batch, L length, H heads, D head size.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from t5x.attention import fused, reference
from t5x.attention.bias import RelativeBias

# Shorter rows have few scores; they are left to the reference.
SHORTEST = 256


def unsuitable(query: jax.Array, key: jax.Array, causal: bool, same_segments: bool) -> str | None:
    """Why rows (B, L, H, D) cannot be computed here, or None."""
    batch, length, heads, _ = query.shape
    batch_shards, head_shards = fused.shards()
    if causal or not same_segments or key.shape != query.shape:
        return "only bidirectional self-attention in segments has halves"
    if length < SHORTEST or length % 2:
        return f"length {length} is under {SHORTEST} or odd"
    if batch % batch_shards or heads % head_shards:
        return f"batch {batch} and {heads} heads do not split over the devices"
    return None


def attend(
    query_BxLxHxD: jax.Array,
    key_BxLxHxD: jax.Array,
    value_BxLxHxD: jax.Array,
    bias: RelativeBias | jax.Array | None,
    segments_BxL: jax.Array,
    float32_logits: bool,
) -> jax.Array:
    """Attention of `t5x.attention.attention` within segments; bias also as (1, H, L, L).

    A bias is a function of the distance, so that both halves have the same one.
    """
    length = query_BxLxHxD.shape[1]
    if isinstance(bias, RelativeBias):
        bias = bias.materialise(length, length, value_BxLxHxD.dtype)
    if bias is None:
        bias = jnp.zeros((1, query_BxLxHxD.shape[2], length, length), value_BxLxHxD.dtype)

    def in_parts(parts: int, bias: jax.Array, *row: jax.Array) -> jax.Array:
        size = length // parts
        *qkv, segments = (x.reshape(parts, size, *x.shape[1:]) for x in row)
        part_bias = bias[:, :, :size, :size]
        out = reference.attend(*qkv, part_bias, segments, segments, False, float32_logits)
        return out.reshape(row[0].shape)

    def on_device(*arrays: jax.Array) -> jax.Array:
        *rows, bias = arrays

        def attend_row(row: tuple[jax.Array, ...]) -> jax.Array:
            # Not the two tokens in the middle: unpacked inputs may have a token 0, which counts
            # as padding, anywhere. Ids that do not ascend make a row whole, which is never wrong.
            before, after = row[-1][: length // 2], row[-1][length // 2 :]
            lowest = jnp.min(jnp.where(after > 0, after, jnp.iinfo(after.dtype).max))
            crosses = jnp.max(before) >= lowest
            return lax.cond(
                crosses, lambda *x: in_parts(1, bias, *x), lambda *x: in_parts(2, bias, *x), *row
            )

        return lax.map(attend_row, tuple(rows))

    arrays = (query_BxLxHxD, key_BxLxHxD, value_BxLxHxD, segments_BxL, bias)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_device(*arrays)
    batch, heads = (axes or None for axes in fused.mesh_axes())
    qkv = PartitionSpec(batch, None, heads, None)
    specs = (qkv, qkv, qkv, PartitionSpec(batch, None), PartitionSpec(None, heads, None, None))
    # A loop over rows that several devices share would send every row to all of them.
    return jax.shard_map(on_device, in_specs=specs, out_specs=qkv, check_vma=False)(*arrays)
