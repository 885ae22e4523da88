"""Layers of T5 v1.1 (arXiv 1910.10683, 2002.05202): projections, attention, MLP, embedding, norm.

Shapes are written with B batch, L length, Q/K query and key length, H heads, D head size, E embed,
M inner size of the MLP, V vocabulary; I/O inputs and outputs of a projection; N tokens in a row.
Parameters are float32 and carry logical axis names; computation runs in `dtype`.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from t5x.attention import ATTENDED, RelativeBias, attention, prepare_bias

param_with_axes = nn_partitioning.param_with_axes

DType = Any
Initializer = Callable[..., jax.Array]

# Name, for remat policies, of the results of all projections but those to query, key and value.
PROJECTED = "projected"

# Attention has no 1/sqrt(D) factor: the query projection's initialiser carries it instead.
attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
relative_bias_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def constrain(
    x: jax.Array, logical_axes: Sequence[str | None], without: Sequence[str] = ()
) -> jax.Array:
    """Pins the sharding of an activation to the mesh axes of its logical axes.

    The mesh is the one entered with `jax.set_mesh`; the rules are those entered with
    `flax.linen.partitioning.axis_rules`. Without a mesh or without rules this is the identity.
    Flax's own `with_sharding_constraint` is not used: releases that look for a mesh entered by
    `with Mesh(...)` drop the constraint without a word.

    Args:
      x: any array.
      logical_axes: one name or None for each dimension of x.
      without: logical axes whose mesh axes are not to be used.
    """
    rules = nn_partitioning.get_axis_rules()
    if jax.sharding.get_abstract_mesh().empty or not rules:
        return x
    spec = nn.logical_to_mesh_axes(tuple(logical_axes), rules)
    if without:
        taken = nn.logical_to_mesh_axes(tuple(without), rules)
        excluded = {name for entry in taken for name in _names(entry)}
        kept = [[name for name in _names(entry) if name not in excluded] for entry in spec]
        spec = PartitionSpec(*(tuple(names) or None for names in kept))
    return lax.with_sharding_constraint(x, spec)


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """Mesh axes of one dimension of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_parameter(parameter: jax.Array, logical_axes: tuple[str, ...], dtype: DType) -> Any:
    """A parameter as `dtype`, whole on every device of the batch's mesh axes.

    Where parameters are sharded over those axes (FSDP), the cast comes before the gathering, which
    so moves `dtype`; the gradient is reduced and scattered in one. Mesh axes that the batch is not
    on (tensor parallelism) keep their shards. Left to itself the compiler gathers float32, or
    turns each projection into a loop over shards.
    """
    cast = constrain(parameter.astype(dtype), logical_axes)
    return constrain(cast, logical_axes, without=("batch",))


def _gather_parameter_fwd(parameter: jax.Array, logical_axes: tuple[str, ...], dtype: DType) -> Any:
    return gather_parameter(parameter, logical_axes, dtype), jnp.zeros((), parameter.dtype)


def _gather_parameter_bwd(
    logical_axes: tuple[str, ...], dtype: DType, like: jax.Array, grad: jax.Array
) -> tuple[jax.Array]:
    del dtype
    return (constrain(grad, logical_axes).astype(like.dtype),)


gather_parameter.defvjp(_gather_parameter_fwd, _gather_parameter_bwd)


def gathered_dot(
    x_BxLxI: jax.Array, kernel_IxO: jax.Array, kernel_axes: tuple[str, str]
) -> jax.Array:
    """x @ kernel, where the kernel is gathered from the devices that the batch is spread over.

    The product is written for one device (shard_map): each gathers the kernel's shards over mesh
    axes that hold other rows, and multiplies its own rows. The gradient of a gathering is a
    reduce-scatter, so no device adds up more of the kernel's gradient than it keeps. The compiler
    by itself all-reduces all of it, twice the bytes. Mesh axes without rows (tensor parallelism)
    keep their shards: of the outputs, or of the inputs, whose products are then summed.
    """
    rules = nn_partitioning.get_axis_rules()
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not rules:
        return jnp.dot(x_BxLxI, kernel_IxO)
    rows = _names(nn.logical_to_mesh_axes(("batch",), rules)[0])
    spec = nn.logical_to_mesh_axes(kernel_axes, rules)
    gathered = [tuple(name for name in _names(entry) if name in rows) for entry in spec]
    inputs, outputs = (tuple(n for n in _names(entry) if n not in rows) for entry in spec)
    if not any(mesh.shape[name] > 1 for names in gathered for name in names):
        return jnp.dot(x_BxLxI, kernel_IxO)
    split = [(x_BxLxI.shape[0], rows), (x_BxLxI.shape[-1], inputs)]
    split += [(size, _names(entry)) for size, entry in zip(kernel_IxO.shape, spec, strict=True)]
    if any(size % math.prod(mesh.shape[name] for name in names) for size, names in split):
        return jnp.dot(x_BxLxI, kernel_IxO)  # a product for one device needs even parts

    # Axes along which the kernel is not split but the rows are: slices of a multi-slice mesh. Said
    # here, its gradient is summed over them after the scatter; the product would say it before.
    copies = tuple(name for name in rows if not any(name in _names(entry) for entry in spec))

    def product(x_BxLxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
        kernel_IxO = lax.pcast(kernel_IxO, copies, to="varying") if copies else kernel_IxO
        kernel_IxO = gather_rows(kernel_IxO, gathered[0])
        if gathered[1]:  # TPUs scatter rows only, not columns
            y_BxLxO = jnp.einsum("...i,oi->...o", x_BxLxI, gather_rows(kernel_IxO.T, gathered[1]))
        else:
            y_BxLxO = jnp.dot(x_BxLxI, kernel_IxO)
        return lax.psum(y_BxLxO, inputs) if inputs else y_BxLxO

    between = (None,) * (x_BxLxI.ndim - 2)
    return jax.shard_map(
        product,
        in_specs=(PartitionSpec(rows, *between, inputs or None), spec),
        out_specs=PartitionSpec(rows, *between, outputs or None),
    )(x_BxLxI, kernel_IxO)


def gather_rows(shard_NxM: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    """All rows of a matrix from shards over mesh axes, the first of which is the slowest.

    One mesh axis at a time, so that all but the last step move little: over hundreds of devices at
    once the TPU compiler gives up scattering the gradient.
    """
    for axis in reversed(mesh_axes):
        shard_NxM = lax.all_gather(shard_NxM, axis, axis=0, tiled=True)
    return shard_NxM


def segments(tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None) -> jax.Array:
    """Segment of each position: its packed example's id (1 when not packed), 0 on padding."""
    present_BxL = tokens_BxL > 0
    if segment_ids_BxL is None:
        return present_BxL.astype(jnp.int32)
    return segment_ids_BxL * present_BxL


class DenseGeneral(nn.Module):
    """Linear map without bias over the last `in_dims` dimensions of the input.

    The kernel is stored as a matrix (product of inputs, product of features) where it has two
    axes, else with all of its axes.
    """

    features: int | tuple[int, ...]
    kernel_axes: tuple[str, ...]
    kernel_init: Initializer = dense_init
    in_dims: int = 1
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        inputs = x.shape[-self.in_dims :]
        matrix = (int(np.prod(inputs)), int(np.prod(features)))
        shape = matrix if len(self.kernel_axes) == 2 else (*inputs, *features)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: DType) -> jax.Array:
            # Fans are those of the matrix, however the kernel is stored.
            return self.kernel_init(key, matrix, dtype).reshape(shape)

        kernel = param_with_axes("kernel", init, shape, jnp.float32, axes=self.kernel_axes)
        # The outer axis of several decides how the matrix is sharded.
        first_output = 1 if len(shape) == 2 else self.in_dims
        matrix_axes = (self.kernel_axes[0], self.kernel_axes[first_output])
        leading = x.shape[: x.ndim - self.in_dims]
        x_BxLxI = jnp.asarray(x, self.dtype).reshape(*leading, matrix[0])
        kernel_IxO = kernel.astype(self.dtype).reshape(matrix)
        return gathered_dot(x_BxLxI, kernel_IxO, matrix_axes).reshape(*leading, *features)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with an autoregressive cache for self-attention.

    `scaled` divides the scores by sqrt(D); with `split_heads` kernels have an axis for the heads.

    The cache holds keys and values as (B, H, D, L): length innermost, as TPU memory likes it.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float = 0.0
    float32_logits: bool = False
    scaled: bool = False
    split_heads: bool = False
    implementation: str = "auto"
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BxQxE: jax.Array,
        x_BxKxE: jax.Array,
        *,
        bias: RelativeBias | jax.Array | None = None,
        query_segments: jax.Array | None = None,
        key_segments: jax.Array | None = None,
        causal: bool = False,
        deterministic: bool = False,
        decode: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x_BxQxE to x_BxKxE, as `t5x.attention.attention` describes.

        With `decode`, the first call, on inputs of full length, creates the cache; later calls take
        one token at `position` (scalar), append its key and value, and attend to all up to it.
        """

        def project(name: str, init: Initializer, x_BxLxE: jax.Array) -> jax.Array:
            y_BxLxHxD = DenseGeneral(
                (self.num_heads, self.head_dim),
                ("embed", "heads", "kv") if self.split_heads else ("embed", "joined_kv"),
                init,
                dtype=self.dtype,
                name=name,
            )(x_BxLxE)
            return constrain(y_BxLxHxD, ("batch", "length", "heads", "kv"))

        def query_init(*args: Any) -> jax.Array:
            return attention_init(*args) / jnp.sqrt(self.head_dim).astype(self.dtype)

        query_BxQxHxD = project("query", query_init, x_BxQxE)
        if self.scaled:
            query_BxQxHxD = query_BxQxHxD / jnp.sqrt(self.head_dim).astype(self.dtype)
        key_BxKxHxD = project("key", attention_init, x_BxKxE)
        value_BxKxHxD = project("value", attention_init, x_BxKxE)
        if decode:
            is_step = self.has_variable("cache", "cached_key")
            key_BxKxHxD = self._cached("cached_key", key_BxKxHxD, position)
            value_BxKxHxD = self._cached("cached_value", value_BxKxHxD, position)
            if is_step:
                past_K = jnp.arange(key_BxKxHxD.shape[1]) <= position
                key_segments = jnp.broadcast_to(past_K.astype(jnp.int32), key_BxKxHxD.shape[:2])
                query_segments = jnp.ones((key_BxKxHxD.shape[0], 1), jnp.int32)
        use_dropout = not deterministic and self.dropout_rate > 0.0
        attended_BxQxHxD = attention(
            query_BxQxHxD,
            key_BxKxHxD,
            value_BxKxHxD,
            relative_bias=bias,
            query_segments=query_segments,
            key_segments=key_segments,
            causal=causal,
            dropout_rng=self.make_rng("dropout") if use_dropout else None,
            dropout_rate=self.dropout_rate,
            float32_logits=self.float32_logits,
            implementation=self.implementation,
        )
        attended_BxQxHxD = checkpoint_name(attended_BxQxHxD, ATTENDED)
        out_BxQxE = DenseGeneral(
            x_BxQxE.shape[-1],
            ("heads", "kv", "embed") if self.split_heads else ("joined_kv", "embed"),
            attention_init,
            in_dims=2,
            dtype=self.dtype,
            name="out",
        )(attended_BxQxHxD)
        return checkpoint_name(out_BxQxE, PROJECTED)

    def _cached(self, name: str, x_BxLxHxD: jax.Array, position: jax.Array | None) -> jax.Array:
        """Creates the cache entry, or writes one position to it and returns all of it."""
        is_step = self.has_variable("cache", name)
        x_BxHxDxL = jnp.moveaxis(x_BxLxHxD, 1, -1)
        cache = self.variable("cache", name, jnp.zeros, x_BxHxDxL.shape, x_BxHxDxL.dtype)
        if not is_step:
            return x_BxLxHxD
        cache.value = lax.dynamic_update_slice_in_dim(cache.value, x_BxHxDxL, position, axis=-1)
        return jnp.moveaxis(cache.value, -1, 1)


def activation(name: str | Callable) -> Callable[[jax.Array], jax.Array]:
    """The function of that name in flax.linen; 'linear' is the identity."""
    if callable(name):
        return name
    return (lambda x: x) if name == "linear" else getattr(nn, name)


class MlpBlock(nn.Module):
    """Feed-forward block: the product of one projection per activation, projected back."""

    intermediate_dim: int
    activations: Sequence[str | Callable] = ("relu",)
    dropout_rate: float = 0.1
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxE: jax.Array, *, deterministic: bool = False) -> jax.Array:
        gates_BxLxM = []
        for i, act in enumerate(self.activations):
            name = "wi" if len(self.activations) == 1 else f"wi_{i}"
            dense = DenseGeneral(
                self.intermediate_dim, ("embed", "mlp"), dtype=self.dtype, name=name
            )
            gates_BxLxM.append(activation(act)(checkpoint_name(dense(x_BxLxE), PROJECTED)))
        y_BxLxM = functools.reduce(operator.mul, gates_BxLxM)
        y_BxLxM = dropout(self.dropout_rate)(y_BxLxM, deterministic=deterministic)
        y_BxLxM = constrain(y_BxLxM, ("batch", "length", "mlp"))
        return DenseGeneral(x_BxLxE.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="wo")(
            y_BxLxM
        )


def dropout(rate: float) -> nn.Dropout:
    """T5's dropout: one mask for all positions of a sequence."""
    return nn.Dropout(rate, broadcast_dims=(-2,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed_tokens(table_VxE: jax.Array, tokens: jax.Array, dtype: DType) -> jax.Array:
    """Rows of the table for integer tokens, as `dtype`.

    On TPU both directions are contractions with a one-hot matrix, which the partitioner splits over
    a sharded vocabulary; elsewhere a gather and a scatter-add in float32.
    """
    return lax.platform_dependent(
        table_VxE,
        tokens,
        tpu=lambda table, ids: jnp.dot(_one_hot(ids, table, dtype), table.astype(dtype)),
        default=lambda table, ids: table[ids].astype(dtype),
    )


def _one_hot(tokens: jax.Array, table_VxE: jax.Array, dtype: DType) -> jax.Array:
    return jax.nn.one_hot(tokens, table_VxE.shape[0], dtype=dtype)


def _embed_tokens_fwd(table_VxE: jax.Array, tokens: jax.Array, dtype: DType) -> Any:
    return embed_tokens(table_VxE, tokens, dtype), (table_VxE, tokens)


def _embed_tokens_bwd(dtype: DType, residuals: Any, grad: jax.Array) -> Any:
    table_VxE, tokens = residuals
    grad_NxE = grad.reshape(-1, grad.shape[-1])
    tokens_N = tokens.reshape(-1)

    def contract(ids_N: jax.Array, g_NxE: jax.Array) -> jax.Array:
        one_hot_NxV = _one_hot(ids_N, table_VxE, dtype)
        return jnp.einsum("nv,ne->ve", one_hot_NxV, g_NxE, preferred_element_type=jnp.float32)

    def scatter(ids_N: jax.Array, g_NxE: jax.Array) -> jax.Array:
        return jnp.zeros(table_VxE.shape, jnp.float32).at[ids_N].add(g_NxE.astype(jnp.float32))

    table_grad_VxE = lax.platform_dependent(tokens_N, grad_NxE, tpu=contract, default=scatter)
    return table_grad_VxE.astype(table_VxE.dtype), np.zeros(tokens.shape, jax.dtypes.float0)


embed_tokens.defvjp(_embed_tokens_fwd, _embed_tokens_bwd)


class Embed(nn.Module):
    """Token embedding, usable as the output projection too (`attend`)."""

    num_embeddings: int
    features: int
    dtype: DType = jnp.float32
    embedding_init: Initializer = nn.initializers.normal(stddev=1.0)

    def setup(self) -> None:
        self.embedding = param_with_axes(
            "embedding",
            self.embedding_init,
            (self.num_embeddings, self.features),
            jnp.float32,
            axes=("vocab", "embed"),
        )

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        x_BxLxE = embed_tokens(self.embedding, tokens_BxL.astype(jnp.int32), self.dtype)
        return constrain(x_BxLxE, ("batch", "length", "embed"))

    def attend(self, x_BxLxE: jax.Array) -> jax.Array:
        """Float32 scores of every embedding against x."""
        return jnp.dot(x_BxLxE.astype(jnp.float32), self.embedding.T)


class RelativePositionBiases(nn.Module):
    """T5's learned bias per head and bucket of the distance from query to key."""

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    implementation: str = "auto"
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        query_length: int,
        key_length: int,
        *,
        bidirectional: bool,
        query_position: jax.Array | None = None,
    ) -> RelativeBias | jax.Array:
        """Bias of all layers; with query_position (a scalar) that row's alone, as (1, H, 1, K)."""
        table_HxN = param_with_axes(
            "rel_embedding",
            relative_bias_init,
            (self.num_heads, self.num_buckets),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )
        bias = RelativeBias(table_HxN, bidirectional, self.max_distance)
        if query_position is not None:
            return bias.row(query_position, key_length, self.dtype)
        return prepare_bias(bias, query_length, key_length, self.dtype, self.implementation)


class LayerNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32, with a learned scale."""

    epsilon: float = 1e-6
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x_BxLxE: jax.Array) -> jax.Array:
        x_BxLxE = jnp.asarray(x_BxLxE, jnp.float32)
        mean_square_BxLx1 = jnp.mean(lax.square(x_BxLxE), axis=-1, keepdims=True)
        y_BxLxE = jnp.asarray(x_BxLxE * lax.rsqrt(mean_square_BxLx1 + self.epsilon), self.dtype)
        scale_E = param_with_axes(
            "scale", nn.initializers.ones, (x_BxLxE.shape[-1],), jnp.float32, axes=("embed",)
        )
        return y_BxLxE * gather_parameter(scale_E, ("embed",), self.dtype)
