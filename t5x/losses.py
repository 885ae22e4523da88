"""Cross-entropy with z-loss, loss normalisation, and a loss that never holds all logits at once.

Shapes: B batch, L target length, V vocabulary, E embedding; C chunks, each of l positions. Sums are
over B and L.
"""

import enum
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
from jax import lax

LogitsFn = Callable[[Any, jax.Array], jax.Array]


@jax.custom_vjp
def cross_entropy_with_logits(
    logits: jax.Array, targets: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy against target distributions, plus z_loss * log(Z)².

    Args:
      logits: (..., V).
      targets: (..., V) probabilities that sum to one.
      z_loss: weight of the term that keeps the softmax normaliser Z near one.

    Returns:
      (loss including the z term, z term), each of shape (...). Only the first carries a gradient.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    z_term = z_loss * lax.square(log_z)
    return jnp.sum(targets * (log_z[..., None] - logits), axis=-1) + z_term, z_term


def _cross_entropy_fwd(logits: jax.Array, targets: jax.Array, z_loss: float) -> Any:
    return cross_entropy_with_logits(logits, targets, z_loss), (logits, targets, z_loss)


def _cross_entropy_bwd(residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> Any:
    logits, targets, z_loss = residuals
    g = cotangents[0][..., None]
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    logits_grad = g * ((1 + 2 * z_loss * log_z) * jnp.exp(logits - log_z) - targets)
    targets_grad = g * (log_z - logits)
    return logits_grad.astype(logits.dtype), targets_grad.astype(targets.dtype), jnp.zeros(())


cross_entropy_with_logits.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


class TokenLosses(NamedTuple):
    """Per target token: loss with z term, z term, log-likelihood's argmax hit (bool)."""

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def token_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float
) -> TokenLosses:
    """What `cross_entropy_with_logits` gives for integer targets, with no one-hot array in memory.

    Args:
      logits: (..., V) float32.
      targets: (...) integers.
      label_smoothing: probability shared by the wrong tokens. The loss is shifted so that the
        smoothed targets themselves would score zero.

    Returns:
      TokenLosses of shape (...). A target that ties with the highest logit counts as correct.
    """
    return _token_losses_fwd(logits, targets, z_loss, label_smoothing)[0]


def _smoothing(label_smoothing: float, vocab_size: int) -> tuple[float, float, float]:
    """Probability of the target, of any other token, and the entropy of that distribution."""
    high = 1.0 - label_smoothing
    low = label_smoothing / max(vocab_size - 1, 1)
    if not label_smoothing:
        return high, low, 0.0
    entropy = -(high * math.log(high) + (vocab_size - 1) * low * math.log(low + 1e-20))
    return high, low, entropy


def _token_losses_fwd(
    logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float
) -> Any:
    high, low, entropy = _smoothing(label_smoothing, logits.shape[-1])
    top = jnp.max(logits, axis=-1)
    log_z = jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)) + top
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - (high - low) * at_target - entropy
    if label_smoothing:
        loss -= low * jnp.sum(logits, axis=-1)
    z_term = z_loss * lax.square(log_z)
    out = TokenLosses(loss + z_term, z_term, at_target >= top)
    return out, (logits, targets, log_z)


def _token_losses_bwd(
    z_loss: float, label_smoothing: float, residuals: Any, cotangents: TokenLosses
) -> Any:
    logits, targets, log_z = residuals
    high, low, _ = _smoothing(label_smoothing, logits.shape[-1])
    softmax = jnp.exp(logits - log_z[..., None])
    is_target = targets[..., None] == lax.broadcasted_iota(
        targets.dtype, logits.shape, logits.ndim - 1
    )
    grad = (1 + 2 * z_loss * log_z)[..., None] * softmax - jnp.where(is_target, high, low)
    return (cotangents.loss[..., None] * grad).astype(logits.dtype), None


token_losses.defvjp(_token_losses_fwd, _token_losses_bwd)


class LossSums(NamedTuple):
    """Weighted sums of loss and z term over a batch, and the number of right tokens."""

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array


def _sum_losses(losses: TokenLosses, weights: jax.Array) -> LossSums:
    return LossSums(
        jnp.sum(losses.loss * weights),
        jnp.sum(losses.z_loss * weights),
        jnp.sum((losses.correct & (weights != 0)).astype(jnp.float32)),
    )


def compute_weighted_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sum over tokens of the weighted cross-entropy.

    Args:
      logits: (B, L, V).
      targets: (B, L) integers.
      weights: (B, L), or None for ones.
      loss_normalizing_factor: what to divide the sums by, or None.

    Returns:
      (loss including the z term, z term, sum of weights).
    """
    if logits.ndim != targets.ndim + 1:
        raise ValueError(
            f"logits {logits.shape} must have one axis more than targets {targets.shape}"
        )
    weights = jnp.ones(targets.shape, jnp.float32) if weights is None else weights
    targets = targets.astype(jnp.int32)  # upstream's initial batches are floats
    sums = _sum_losses(token_losses(logits, targets, z_loss, label_smoothing), weights)
    factor = 1.0 if loss_normalizing_factor is None else loss_normalizing_factor
    return sums.loss / factor, sums.z_loss / factor, jnp.sum(weights)


# Loss and scores from the activations before the logits: chunks of the target length, so that every
# chunk holds all batch rows and keeps the batch sharding.


def loss_sums_from_hidden(
    logits_fn: LogitsFn,
    params: Any,
    hidden_BxLxE: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array | None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_tokens: int = 0,
) -> LossSums:
    """`compute_weighted_cross_entropy` of logits_fn(params, hidden), a chunk of logits at a time.

    Gradients are computed in the forward pass, chunk by chunk, while a chunk's logits exist, so the
    projection is never computed twice. They flow to params and hidden from `loss` alone.

    Args:
      logits_fn: (params, (B, l, E)) → (B, l, V) float32; acts on each position alone.
      params: pytree that logits_fn reads; keep it to that, for it gets a dense gradient.
      hidden_BxLxE: activations before the logits.
      targets_BxL: integers.
      weights_BxL: of each target token, or None for ones.
      chunk_tokens: tokens per device whose logits exist at a time; 0: all.
    """
    weights_BxL = jnp.ones(targets_BxL.shape, jnp.float32) if weights_BxL is None else weights_BxL
    targets_BxL = targets_BxL.astype(jnp.int32)  # upstream's initial batches are floats
    chunks = _chunk_count(*targets_BxL.shape, chunk_tokens)
    inputs = [_split_length(x, chunks) for x in (hidden_BxLxE, targets_BxL, weights_BxL)]
    return _chunk_sums(logits_fn, z_loss, label_smoothing, params, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunk_sums(
    logits_fn: LogitsFn, z_loss: float, label_smoothing: float, params: Any, *chunks: jax.Array
) -> LossSums:
    def add(sums: LossSums, chunk: tuple[jax.Array, ...]) -> tuple[LossSums, None]:
        hidden_BxlxE, targets_Bxl, weights_Bxl = chunk
        losses = token_losses(logits_fn(params, hidden_BxlxE), targets_Bxl, z_loss, label_smoothing)
        return jax.tree.map(jnp.add, sums, _sum_losses(losses, weights_Bxl)), None

    return lax.scan(add, LossSums(*jnp.zeros(3)), chunks)[0]


def _chunk_sums_fwd(
    logits_fn: LogitsFn, z_loss: float, label_smoothing: float, params: Any, *chunks: jax.Array
) -> Any:
    def loss(
        params: Any, hidden_BxlxE: jax.Array, targets_Bxl: jax.Array, weights_Bxl: jax.Array
    ) -> Any:
        losses = token_losses(logits_fn(params, hidden_BxlxE), targets_Bxl, z_loss, label_smoothing)
        sums = _sum_losses(losses, weights_Bxl)
        return sums.loss, sums

    def add(carry: Any, chunk: tuple[jax.Array, ...]) -> Any:
        grads, sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, *chunk)
        return jax.tree.map(jnp.add, carry, (sums, grads[0])), grads[1]

    start = LossSums(*jnp.zeros(3)), jax.tree.map(jnp.zeros_like, params)
    (sums, params_grad), hidden_grad_CxBxlxE = lax.scan(add, start, chunks)
    return sums, (params_grad, hidden_grad_CxBxlxE)


def _chunk_sums_bwd(
    logits_fn: LogitsFn, z_loss: float, label_smoothing: float, residuals: Any, cotangent: LossSums
) -> Any:
    del logits_fn, z_loss, label_smoothing
    params_grad, hidden_grad_CxBxlxE = jax.tree.map(
        lambda g: (g * cotangent.loss).astype(g.dtype), residuals
    )
    return params_grad, hidden_grad_CxBxlxE, None, None


_chunk_sums.defvjp(_chunk_sums_fwd, _chunk_sums_bwd)


def log_likelihoods_from_hidden(
    logits_fn: LogitsFn,
    params: Any,
    hidden_BxLxE: jax.Array,
    targets_BxL: jax.Array,
    *,
    chunk_tokens: int = 0,
) -> jax.Array:
    """Log-probability (B, L) of each target token; arguments as `loss_sums_from_hidden`."""
    chunks = _chunk_count(*targets_BxL.shape, chunk_tokens)

    def score(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        return -token_losses(logits_fn(params, chunk[0]), chunk[1], 0.0, 0.0).loss

    scores_CxBxl = lax.map(
        score, (_split_length(hidden_BxLxE, chunks), _split_length(targets_BxL, chunks))
    )
    return jnp.moveaxis(scores_CxBxl, 0, 1).reshape(targets_BxL.shape)


def _chunk_count(batch: int, length: int, chunk_tokens: int) -> int:
    """Smallest divisor of length that leaves each device at most chunk_tokens at a time."""
    if chunk_tokens <= 0:
        return 1
    tokens = -(-batch // _batch_shards()) * length
    enough = -(-tokens // chunk_tokens)
    return next((n for n in range(max(enough, 1), length) if length % n == 0), max(length, 1))


def _batch_shards() -> int:
    """Devices that the rules and the mesh in force spread the batch over."""
    mesh = jax.sharding.get_abstract_mesh()
    rules = nn_partitioning.get_axis_rules()
    if mesh.empty or not rules:
        return 1
    axes = nn.logical_to_mesh_axes(("batch",), rules)[0]
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _split_length(x_BxL: jax.Array, chunks: int) -> jax.Array:
    """(B, L, …) → (chunks, B, L / chunks, …)."""
    batch, length, *rest = x_BxL.shape
    return jnp.moveaxis(x_BxL.reshape(batch, chunks, length // chunks, *rest), 1, 0)


@enum.unique
class SpecialLossNormalizingFactor(enum.Enum):
    """Loss normalisers computed from the batch.

    NUM_REAL_TARGET_TOKENS divides by the sum of the loss weights, NUM_TOTAL_TARGET_TOKENS by the
    number of target positions, padding included. AVERAGE_PER_SEQUENCE averages over the tokens of
    each sequence (each packed example), then over sequences.
    """

    NUM_REAL_TARGET_TOKENS = 1
    NUM_TOTAL_TARGET_TOKENS = 2
    AVERAGE_PER_SEQUENCE = 3


def convert_special_loss_normalizing_factor_to_enum(x: str) -> SpecialLossNormalizingFactor:
    """The member of that name, in any case: gin files write it as a string."""
    try:
        return SpecialLossNormalizingFactor[x.upper()]
    except KeyError:
        names = ", ".join(SpecialLossNormalizingFactor.__members__)
        raise ValueError(
            f"LOSS_NORMALIZING_FACTOR = {x!r}: use a number, None, or one of {names}"
        ) from None


# Feature of a microbatch; see `get_loss_normalizing_factor_and_weights`.
WHOLE_BATCH_FACTOR = "loss_normalizing_factor_of_batch"


def get_loss_normalizing_factor_and_weights(
    loss_normalizing_factor: float | str | SpecialLossNormalizingFactor | None,
    batch: Mapping[str, jax.Array],
) -> tuple[Any, jax.Array | None]:
    """The number to divide the summed loss by, and the weight (B, L) of each target token.

    Args:
      loss_normalizing_factor: a number or None (returned as it is), or a special factor.
      batch: with decoder_target_tokens; decoder_loss_weights where given, else a special factor
        weighs tokens that are not padding (0) by one; for packed examples decoder_segment_ids. A
        microbatch has the special factor of its batch under WHOLE_BATCH_FACTOR (B, all equal).
    """
    weights_BxL = batch.get("decoder_loss_weights")
    factor = loss_normalizing_factor
    if isinstance(factor, str):
        factor = convert_special_loss_normalizing_factor_to_enum(factor)
    if not isinstance(factor, SpecialLossNormalizingFactor):
        return factor, weights_BxL
    whole_batch = batch.get(WHOLE_BATCH_FACTOR)
    targets_BxL = batch["decoder_target_tokens"]
    if weights_BxL is None:
        weights_BxL = jnp.asarray(targets_BxL > 0, jnp.float32)
    if factor is SpecialLossNormalizingFactor.AVERAGE_PER_SEQUENCE:
        weights_BxL = _average_weights(weights_BxL, batch.get("decoder_segment_ids"))
    if whole_batch is not None:
        return whole_batch[0], weights_BxL
    if factor is SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
        return targets_BxL.size, weights_BxL
    return jnp.sum(weights_BxL), weights_BxL


def _average_weights(weights_BxL: jax.Array, segment_ids_BxL: jax.Array | None) -> jax.Array:
    """Divides each weight by the sum of the weights of its sequence; zero where that is zero."""
    if segment_ids_BxL is None:
        total_BxL = jnp.sum(weights_BxL, axis=-1, keepdims=True)
    else:
        total_BxL = _sum_by_segment(weights_BxL, segment_ids_BxL)
    return jnp.where(total_BxL != 0, weights_BxL / jnp.where(total_BxL != 0, total_BxL, 1), 0)


def _sum_by_segment(weights_BxL: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
    """At each position (B, L) the sum of its segment's weights; zero in padding, segment 0."""
    same_BxLxL = segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None, :]
    total_BxL = jnp.sum(jnp.where(same_BxLxL, weights_BxL[:, None, :], 0), axis=-1)
    return jnp.where(segment_ids_BxL != 0, total_BxL, 0)
