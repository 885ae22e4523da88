"""The network of the T5 family (arXiv 1910.10683; upstream t5x.examples.t5.network).

T5 1.0, T5 v1.1, LM-adapted T5, T0, FLAN-T5, mT5, umT5, ByT5 and UL2 differ by options of T5Config.

Unrolled, parameters have upstream's names (`encoder/layers_0/attention/query/kernel`). Scanned, a
stack's layers share one subtree (`encoder/encoder/attention/query/kernel`) whose arrays carry the
layers at axis `param_scan_axis`. A stack has one relative position bias, computed once; umT5 and
upstream's scalable_t5 have one in every layer.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen import partitioning as nn_partitioning

from t5x.attention import ATTENDED, SAVED_NAMES, WEIGHTS, RelativeBias
from t5x.attention.selection import platform
from t5x.examples.t5 import layers

# Adafactor's default: shorter axes are not factored in unrolled matrices.
MIN_DIM_SIZE_TO_FACTOR = 128
# What the backward pass of a layer finds saved; the rest it computes again. A fused attention is a
# matmul in this sense: what its backward kernel reads is saved with them.
_policies = jax.checkpoint_policies


def _save(policy: Any, *names: str) -> Any:
    """The policy, saving what bears one of these names besides."""
    named = _policies.save_only_these_names(*SAVED_NAMES, *names)
    return _policies.save_from_both_policies(policy, named)


REMAT_POLICIES = {
    "fused": _policies.save_only_these_names(*SAVED_NAMES, layers.PROJECTED),
    "minimal": _save(_policies.checkpoint_dots_with_no_batch_dims),
    "outputs": _save(_policies.checkpoint_dots_with_no_batch_dims, ATTENDED),
    "weights": _save(_policies.checkpoint_dots_with_no_batch_dims, ATTENDED, WEIGHTS),
    "dots": _save(_policies.checkpoint_dots),
    "full": _policies.nothing_saveable,
}


@struct.dataclass
class T5Config:
    """Shape and computation of a T5 model; upstream's fields, `loss_chunk_tokens` and `attention`.

    Attributes:
      dtype: of activations; parameters are float32.
      mlp_activations: names of flax.linen functions, multiplied together; 'linear' is the identity.
      logits_via_embedding: project to the vocabulary with the embedding matrix.
      scale_logits: divide the activations before the logits by sqrt(emb_dim); None: where the
        embedding matrix projects them, as T5 1.0 does.
      scale_attn_logits: divide the attention scores by sqrt(head_dim), for optimizers other than
        Adafactor (upstream's t5x.contrib.gpu).
      relative_bias_per_layer: a relative position bias in every layer (umT5, scalable_t5).
      split_heads: kernels of attention have an axis for the heads (scalable_t5): (embed, heads, kv)
        and (heads, kv, embed). It is how they are stored, and how Adafactor factors them.
      float32_attention_logits: scores and softmax in float32 whatever the dtype.
      remat_policy: 'none' (all is saved), or a key of REMAT_POLICIES: 'full' saves nothing,
        'minimal' the projections, 'outputs' what attention gives too, 'weights' the attention
        weights too, 'dots' all matrix products. 'fused' goes with the fused attention: 'minimal'
        without query, key and value, which cost more to store and fetch than to compute again.
      scan_layers: one compiled layer, looped over, instead of one copy a layer. None: where that
        changes no number. Upstream's network of this name is unrolled, and Adafactor factors a
        matrix with an axis under 128 only when scanned; so narrower models are unrolled.
      param_scan_axis: where the scanned parameters carry the layers axis.
      loss_chunk_tokens: target tokens per device whose logits exist at a time during training and
        scoring; 0: all at once.
      attention: 'reference', 'halves' (the reference row by row, for scoring on a CPU), 'tpu' or
        'gpu'; 'auto': what suits the device (t5x.attention).
    """

    vocab_size: int
    dtype: Any = jnp.float32
    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: Sequence[str] = ("relu",)
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    scale_logits: bool | None = None
    float32_attention_logits: bool = False
    scale_attn_logits: bool = False
    relative_bias_per_layer: bool = False
    split_heads: bool = False
    remat_policy: str | None = "none"
    scan_layers: bool | None = None
    param_scan_axis: int = 1
    loss_chunk_tokens: int = 1024
    attention: str = "auto"

    def __post_init__(self) -> None:
        if self.scan_layers is None:
            narrowest = min(self.emb_dim, self.num_heads * self.head_dim, self.mlp_dim)
            # A frozen dataclass sets its own fields this way.
            object.__setattr__(self, "scan_layers", narrowest >= MIN_DIM_SIZE_TO_FACTOR)
        if self.scale_logits is None:
            object.__setattr__(self, "scale_logits", self.logits_via_embedding)


def _norm(config: T5Config, name: str, x_BxLxE: jax.Array) -> jax.Array:
    return constrain(layers.LayerNorm(dtype=config.dtype, name=name)(x_BxLxE))


def constrain(x_BxLxE: jax.Array) -> jax.Array:
    return layers.constrain(x_BxLxE, ("batch", "length", "embed"))


def _attention(config: T5Config, name: str) -> layers.MultiHeadAttention:
    return layers.MultiHeadAttention(
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        dropout_rate=config.dropout_rate,
        float32_logits=config.float32_attention_logits,
        scaled=config.scale_attn_logits,
        split_heads=config.split_heads,
        implementation=config.attention,
        dtype=config.dtype,
        name=name,
    )


def _relative_bias(config: T5Config, name: str | None = None) -> layers.RelativePositionBiases:
    return layers.RelativePositionBiases(
        config.num_heads, implementation=config.attention, dtype=config.dtype, name=name
    )


def _mlp(config: T5Config) -> layers.MlpBlock:
    return layers.MlpBlock(
        intermediate_dim=config.mlp_dim,
        activations=config.mlp_activations,
        dropout_rate=config.dropout_rate,
        dtype=config.dtype,
        name="mlp",
    )


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each normalised before and added to its input."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x_BxLxE: jax.Array,
        bias: RelativeBias | jax.Array | None,
        segments_BxL: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """`bias` is the stack's; None where the layer has its own."""
        cfg = self.config
        if cfg.relative_bias_per_layer:
            length = x_BxLxE.shape[-2]
            bias = _relative_bias(cfg, "relpos_bias")(length, length, bidirectional=True)
        drop = functools.partial(layers.dropout(cfg.dropout_rate), deterministic=deterministic)
        x_BxLxE = constrain(x_BxLxE)
        y_BxLxE = _norm(cfg, "pre_attention_layer_norm", x_BxLxE)
        y_BxLxE = _attention(cfg, "attention")(
            y_BxLxE,
            y_BxLxE,
            bias=bias,
            query_segments=segments_BxL,
            key_segments=segments_BxL,
            deterministic=deterministic,
        )
        x_BxLxE = constrain(drop(y_BxLxE) + x_BxLxE)
        y_BxLxE = _norm(cfg, "pre_mlp_layer_norm", x_BxLxE)
        y_BxLxE = _mlp(cfg)(y_BxLxE, deterministic=deterministic)
        return constrain(drop(y_BxLxE) + x_BxLxE), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, and MLP."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x_BxLxE: jax.Array,
        bias: RelativeBias | jax.Array | None,
        segments: Mapping[str, jax.Array | None],
        encoded_BxKxE: jax.Array,
        position: jax.Array | None,
        deterministic: bool,
        decode: bool,
        length: int,
    ) -> tuple[jax.Array, None]:
        """`bias` is the stack's over `length` positions; None where the layer has its own."""
        cfg = self.config
        if cfg.relative_bias_per_layer:
            bias = _relative_bias(cfg, "relpos_bias")(
                length, length, bidirectional=False, query_position=position
            )
        drop = functools.partial(layers.dropout(cfg.dropout_rate), deterministic=deterministic)
        x_BxLxE = constrain(x_BxLxE)
        y_BxLxE = _norm(cfg, "pre_self_attention_layer_norm", x_BxLxE)
        y_BxLxE = _attention(cfg, "self_attention")(
            y_BxLxE,
            y_BxLxE,
            bias=bias,
            query_segments=segments["decoder"],
            key_segments=segments["decoder"],
            causal=not decode,
            deterministic=deterministic,
            decode=decode,
            position=position,
        )
        x_BxLxE = constrain(drop(y_BxLxE) + x_BxLxE)
        y_BxLxE = _norm(cfg, "pre_cross_attention_layer_norm", x_BxLxE)
        y_BxLxE = _attention(cfg, "encoder_decoder_attention")(
            y_BxLxE,
            encoded_BxKxE,
            query_segments=segments["cross_query"],
            key_segments=segments["cross_key"],
            deterministic=deterministic,
        )
        x_BxLxE = constrain(drop(y_BxLxE) + x_BxLxE)
        y_BxLxE = _norm(cfg, "pre_mlp_layer_norm", x_BxLxE)
        y_BxLxE = _mlp(cfg)(y_BxLxE, deterministic=deterministic)
        return constrain(drop(y_BxLxE) + x_BxLxE), None


class Stack(nn.Module):
    """What encoder and decoder share: embedding in, layers (scanned or unrolled), norm."""

    config: T5Config
    shared_embedding: nn.Module

    def _embed(self, tokens_BxL: jax.Array, deterministic: bool) -> jax.Array:
        x_BxLxE = self.shared_embedding(tokens_BxL)
        x_BxLxE = self.input_dropout(x_BxLxE, deterministic=deterministic)
        return x_BxLxE.astype(self.config.dtype)

    def _layers(self, layer: type[nn.Module], count: int, static: tuple[int, ...]) -> Any:
        """The layers, as one scanned module or a list; `static`: which arguments are bools."""
        cfg = self.config
        if cfg.remat_policy not in (None, "none"):
            if cfg.remat_policy not in REMAT_POLICIES:
                names = ", ".join(["none", *REMAT_POLICIES])
                raise ValueError(
                    f"T5Config.remat_policy = {cfg.remat_policy!r}: choose from {names}"
                )
            layer = nn_partitioning.remat(
                layer,
                policy=REMAT_POLICIES[cfg.remat_policy],
                prevent_cse=not cfg.scan_layers,
                static_argnums=static,
            )
        if not cfg.scan_layers:
            return [layer(cfg) for _ in range(count)]
        is_init = self.is_mutable_collection("params")
        axis = cfg.param_scan_axis
        return nn_partitioning.scan_with_axes(
            layer,
            variable_axes={"params": axis if is_init else nn_partitioning.ScanIn(axis), "cache": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=count,
            axis_name="layers",
        )(cfg)

    def _run(self, stack: Any, x_BxLxE: jax.Array, *args: Any) -> jax.Array:
        for layer in stack if isinstance(stack, Sequence) else [stack]:
            x_BxLxE, _ = layer(x_BxLxE, *args)
        return x_BxLxE


class Encoder(Stack):
    """Tokens (B, L) and segments (B, L) → encodings (B, L, E)."""

    def setup(self) -> None:
        cfg = self.config
        if not cfg.relative_bias_per_layer:
            self.relpos_bias = _relative_bias(cfg)
        stack = self._layers(EncoderLayer, cfg.num_encoder_layers, static=(3,))
        if cfg.scan_layers:
            self.encoder = stack
        else:
            self.layers = stack
        self.encoder_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.input_dropout = layers.dropout(cfg.dropout_rate)
        # Upstream's one dropout that draws a mask for every position.
        self.output_dropout = nn.Dropout(cfg.dropout_rate)

    def __call__(
        self, tokens_BxL: jax.Array, segments_BxL: jax.Array, deterministic: bool = False
    ) -> jax.Array:
        cfg = self.config
        length = tokens_BxL.shape[-1]
        bias = None
        if not cfg.relative_bias_per_layer:
            bias = self.relpos_bias(length, length, bidirectional=True)
        x_BxLxE = self._embed(tokens_BxL, deterministic)
        stack = self.encoder if cfg.scan_layers else self.layers
        x_BxLxE = self._run(stack, x_BxLxE, bias, segments_BxL, deterministic)
        return self.output_dropout(self.encoder_norm(x_BxLxE), deterministic=deterministic)


class Decoder(Stack):
    """Tokens (B, L), segments and encodings (B, K, E) → activations (B, L, E); `logits` follows."""

    def setup(self) -> None:
        cfg = self.config
        if not cfg.relative_bias_per_layer:
            self.relpos_bias = _relative_bias(cfg)
        stack = self._layers(DecoderLayer, cfg.num_decoder_layers, static=(5, 6, 7))
        if cfg.scan_layers:
            self.decoder = stack
        else:
            self.layers = stack
        self.decoder_norm = layers.LayerNorm(dtype=cfg.dtype)
        self.input_dropout = layers.dropout(cfg.dropout_rate)
        self.output_dropout = layers.dropout(cfg.dropout_rate)
        if not cfg.logits_via_embedding:
            # float32 for stability.
            self.logits_dense = layers.DenseGeneral(cfg.vocab_size, ("embed", "vocab"))

    def __call__(
        self,
        tokens_BxL: jax.Array,
        segments: Mapping[str, jax.Array | None],
        encoded_BxKxE: jax.Array,
        deterministic: bool = False,
        decode: bool = False,
        max_decode_length: int | None = None,
    ) -> jax.Array:
        cfg = self.config
        length = max_decode_length if decode and max_decode_length else tokens_BxL.shape[-1]
        position = self._next_position() if decode else None
        bias = None
        if not cfg.relative_bias_per_layer:
            bias = self.relpos_bias(length, length, bidirectional=False, query_position=position)
        x_BxLxE = self._embed(tokens_BxL, deterministic)
        stack = self.decoder if cfg.scan_layers else self.layers
        args = (bias, segments, encoded_BxKxE, position, deterministic, decode, length)
        x_BxLxE = self._run(stack, x_BxLxE, *args)
        return self.output_dropout(self.decoder_norm(x_BxLxE), deterministic=deterministic)

    def _next_position(self) -> jax.Array | None:
        """Position of the token being decoded; None on the call that creates the cache."""
        if not self.has_variable("cache", "cache_index"):
            self.put_variable("cache", "cache_index", jnp.array(0, jnp.int32))
            return None
        position = self.get_variable("cache", "cache_index")
        self.put_variable("cache", "cache_index", position + 1)
        return position

    def logits(self, x_BxLxE: jax.Array) -> jax.Array:
        cfg = self.config
        project = self.shared_embedding.attend if cfg.logits_via_embedding else self.logits_dense
        scores_BxLxV = project(x_BxLxE)
        if cfg.scale_logits:
            scores_BxLxV = scores_BxLxV / jnp.sqrt(x_BxLxE.shape[-1])
        return layers.constrain(scores_BxLxV, ("batch", "length", "vocab"))


class Transformer(nn.Module):
    """Encoder-decoder with a shared token embedding.

    All token, segment and position arrays are (batch, length) integers; token 0 is padding.
    Positions are accepted as upstream does: relative biases need none, also for packed examples,
    since a packed example's tokens are contiguous.
    """

    config: T5Config

    @property
    def scan_layers(self) -> bool:
        """Whether caches carry a leading layers axis (what upstream's models ask for)."""
        return self.config.scan_layers

    @property
    def loss_chunk_tokens(self) -> int:
        """Target tokens whose logits a loss is to ask for at a time; 0: all at once."""
        return self.config.loss_chunk_tokens

    def for_scoring(self) -> "Transformer":
        """The network with the attention that suits the device where no gradient is wanted."""
        if self.config.attention != "auto" or platform() != "cpu":
            return self
        return self.clone(config=self.config.replace(attention="halves"))

    def setup(self) -> None:
        cfg = self.config
        self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype)
        self.encoder = Encoder(cfg, self.token_embedder)
        self.decoder = Decoder(cfg, self.token_embedder)

    def encode(
        self,
        encoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        enable_dropout: bool = True,
    ) -> jax.Array:
        """Encodings (B, K, E) of the inputs."""
        segments_BxK = layers.segments(encoder_input_tokens, encoder_segment_ids)
        return self.encoder(encoder_input_tokens, segments_BxK, not enable_dropout)

    def decode(
        self,
        encoded: jax.Array,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        return_hidden: bool = False,
        decoder_cross_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, L, V) in float32; with return_hidden the activations (B, L, E) before them.

        Args:
          decoder_cross_segment_ids: encoder segment that each target position attends to, where
            that is not its own segment: several choices may share one input.
          encoder_input_tokens: tells padding from input; with `encoder_segment_ids`, packed inputs.
          decoder_target_tokens: tells padding from target; not used when `decode`.
          decode: one step of autoregressive decoding (or, without a cache yet, its creation).
          max_decode_length: length of the cache.
        """
        if decode and encoder_segment_ids is not None:
            raise ValueError("encoder_segment_ids: packed examples cannot be decoded step by step")
        cross_key_BxK = layers.segments(encoder_input_tokens, encoder_segment_ids)
        if decode:
            own_BxL = None
            cross_query_BxL = jnp.ones(decoder_target_tokens.shape, jnp.int32)
        else:
            own_BxL = layers.segments(decoder_target_tokens, decoder_segment_ids)
            if decoder_cross_segment_ids is not None:
                cross_query_BxL = layers.segments(decoder_target_tokens, decoder_cross_segment_ids)
            elif encoder_segment_ids is not None:
                cross_query_BxL = own_BxL
            else:
                cross_query_BxL = layers.segments(decoder_target_tokens, None)
        segments = {"decoder": own_BxL, "cross_query": cross_query_BxL, "cross_key": cross_key_BxK}
        hidden_BxLxE = self.decoder(
            decoder_input_tokens, segments, encoded, not enable_dropout, decode, max_decode_length
        )
        return hidden_BxLxE if return_hidden else self.decoder.logits(hidden_BxLxE)

    def logits(self, hidden_BxLxE: jax.Array) -> jax.Array:
        """Float32 logits (B, L, V) of what `return_hidden` gives."""
        return self.decoder.logits(hidden_BxLxE)

    def logits_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the parameters that `logits` reads."""
        if self.config.logits_via_embedding:
            return {"token_embedder": params["token_embedder"]}
        return {"decoder": {"logits_dense": params["decoder"]["logits_dense"]}}

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        encoder_positions: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        return_hidden: bool = False,
        decoder_cross_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes and decodes with teacher forcing; see `decode` for what comes back."""
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids=encoder_segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            enable_dropout=enable_dropout,
            decode=decode,
            return_hidden=return_hidden,
            decoder_cross_segment_ids=decoder_cross_segment_ids,
        )
