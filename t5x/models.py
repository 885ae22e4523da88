"""Models: a network with its loss, metrics, scores and decoding (upstream t5x.models).

A model is what trainer, evaluator and gin files handle; it holds no parameters.
"""

import abc
import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import seqio
from flax import core as flax_core
from flax import linen as nn

from t5x import decoding, losses
from t5x.metrics import MetricsMap, compute_base_metrics
from t5x.metrics import count_packed_examples as count_packed_examples
from t5x.run import former_names

Batch = Mapping[str, jax.Array]
PyTree = Any
LossNormalizingFactor = float | str | losses.SpecialLossNormalizingFactor | None


class LossSettings(NamedTuple):
    """What a loss depends on besides logits and targets; see `losses`."""

    label_smoothing: float
    z_loss: float
    loss_normalizing_factor: LossNormalizingFactor


class BaseModel(abc.ABC):
    """What the trainer and the evaluators ask of a model.

    Attributes:
      FEATURE_CONVERTER_CLS: turns a task's features into the batch that the methods take.
      optimizer_def: the optimizer that trains it.
    """

    FEATURE_CONVERTER_CLS: Callable[..., seqio.FeatureConverter]

    def __init__(self, optimizer_def: Any) -> None:
        self.optimizer_def = optimizer_def

    @abc.abstractmethod
    def loss_fn(
        self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, MetricsMap]:
        """Loss (a scalar) and metrics; dropout_rng None turns dropout off."""

    def eval_fn(self, params: PyTree, batch: Batch) -> tuple[jax.Array, MetricsMap]:
        """Loss and metrics without dropout."""
        return self.loss_fn(params=params, batch=batch, dropout_rng=None)

    def predict_batch(
        self, params: PyTree, batch: Batch, rng: jax.Array | None = None
    ) -> jax.Array:
        """Decoded tokens."""
        return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

    @abc.abstractmethod
    def predict_batch_with_aux(
        self, params: PyTree, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Decoded tokens and what else the decoder knows about them."""

    @abc.abstractmethod
    def score_batch(
        self, params: PyTree, batch: Batch, return_intermediates: bool = False
    ) -> jax.Array:
        """Log-likelihood of each sequence of targets."""

    @abc.abstractmethod
    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> flax_core.FrozenDict:
        """Freshly initialised variables: `params` and their logical axes, `params_axes`."""


class BaseTransformerModel(BaseModel):
    """A model whose loss is the cross-entropy of the logits against the target tokens.

    Subclasses give `_compute_logits`.

    Args:
      module: the network.
      decode_fn: see `decoding`.
      label_smoothing, z_loss, loss_normalizing_factor: see `losses`.
    """

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: Any,
        decode_fn: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: LossNormalizingFactor = None,
    ) -> None:
        super().__init__(optimizer_def=optimizer_def)
        self.module = module
        self._input_vocabulary = input_vocabulary
        self._output_vocabulary = output_vocabulary
        self._decode_fn = decode_fn
        self._label_smoothing = label_smoothing
        self._z_loss = z_loss
        self._loss_normalizing_factor = loss_normalizing_factor

    @property
    def input_vocabulary(self) -> seqio.Vocabulary:
        return self._input_vocabulary

    @property
    def output_vocabulary(self) -> seqio.Vocabulary:
        return self._output_vocabulary

    @property
    def decode_fn(self) -> Callable[..., tuple[jax.Array, jax.Array]] | None:
        return self._decode_fn

    @abc.abstractmethod
    def _compute_logits(
        self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """Logits (B, L, V)."""

    def loss_fn(
        self,
        params: PyTree,
        batch: Batch,
        dropout_rng: jax.Array | None,
        label_smoothing: float | None = None,
        z_loss: float | None = None,
        loss_normalizing_factor: LossNormalizingFactor = None,
    ) -> tuple[jax.Array, MetricsMap]:
        """Loss and metrics; the last three arguments are where T5X had the model's own until 2022.

        Each, where it is given, takes the place of the model's.
        """
        settings = self._loss_settings(label_smoothing, z_loss, loss_normalizing_factor)
        logits = self._compute_logits(params, batch, dropout_rng)
        targets = batch["decoder_target_tokens"]
        factor, weights = losses.get_loss_normalizing_factor_and_weights(
            settings.loss_normalizing_factor, batch
        )
        loss, z_loss, _ = losses.compute_weighted_cross_entropy(
            logits,
            targets,
            weights,
            label_smoothing=settings.label_smoothing,
            z_loss=settings.z_loss,
            loss_normalizing_factor=factor,
        )
        return loss, self._compute_metrics(
            logits=logits,
            targets=targets,
            mask=weights,
            loss=loss,
            z_loss=z_loss,
            segment_ids=_segment_ids(batch),
        )

    def _loss_settings(
        self,
        label_smoothing: float | None,
        z_loss: float | None,
        loss_normalizing_factor: LossNormalizingFactor,
    ) -> "LossSettings":
        """The model's settings of the loss, replaced where `loss_fn` was given its own."""
        own = LossSettings(self._label_smoothing, self._z_loss, self._loss_normalizing_factor)
        given = LossSettings(label_smoothing, z_loss, loss_normalizing_factor)
        for name, value in given._asdict().items():
            if value is not None and value != getattr(own, name):
                owner = type(self).__name__
                former_names.say(f"{owner}.loss_fn.{name}", f"{owner}.{name}")
                own = own._replace(**{name: value})
        return own

    def batch_for_microbatches(self, batch: Batch) -> Batch:
        """The batch with what a part of its rows must know of the whole for losses to add up.

        A special loss normalising factor counts the whole batch's tokens. Upstream counts those of
        each microbatch, so that its gradients grow with the number of microbatches.
        """
        factor, _ = losses.get_loss_normalizing_factor_and_weights(
            self._loss_normalizing_factor, batch
        )
        if factor is None or factor is self._loss_normalizing_factor:
            return batch
        rows = batch["decoder_target_tokens"].shape[0]
        factors = jnp.broadcast_to(jnp.asarray(factor, jnp.float32), (rows,))
        return {**batch, losses.WHOLE_BATCH_FACTOR: factors}

    def _compute_metrics(
        self,
        logits: jax.Array,
        targets: jax.Array,
        mask: jax.Array | None,
        loss: jax.Array,
        z_loss: jax.Array | None = None,
        segment_ids: Mapping[str, jax.Array] | None = None,
    ) -> MetricsMap:
        return compute_base_metrics(
            logits=logits,
            targets=targets,
            mask=mask,
            loss=loss,
            z_loss=z_loss,
            segment_ids=segment_ids,
        )


@dataclasses.dataclass(frozen=True)
class DecoderParams:
    """How many sequences `predict_batch` decodes for an input, and whether it returns them all."""

    return_all_decodes: bool = False
    num_decodes: int = 1


class EncoderDecoderModel(BaseTransformerModel):
    """Encoder-decoder over batches of seqio.EncDecFeatureConverter.

    Where the network says `loss_chunk_tokens` (ours does), loss, metrics and scores are computed
    that many target tokens' logits at a time: it then has `logits`, `logits_params` and the
    argument `return_hidden`. Where it has `for_scoring`, that gives the network to score with.

    Args:
      decode_fn: `decoding.beam_search` or `decoding.temperature_sample`, or one like them.
      feature_converter_cls: replaces FEATURE_CONVERTER_CLS.
    """

    FEATURE_CONVERTER_CLS = seqio.EncDecFeatureConverter

    def __init__(
        self,
        module: nn.Module,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer_def: Any,
        decode_fn: Callable[..., tuple[jax.Array, jax.Array]] = decoding.beam_search,
        feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: LossNormalizingFactor = None,
        default_decoder_params: DecoderParams | None = None,
    ) -> None:
        if feature_converter_cls is not None:
            self.FEATURE_CONVERTER_CLS = feature_converter_cls
        self._default_decoder_params = default_decoder_params or DecoderParams()
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=optimizer_def,
            decode_fn=decode_fn,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            loss_normalizing_factor=loss_normalizing_factor,
        )

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> flax_core.FrozenDict:
        types = input_types or {}

        def ones(name: str) -> jax.Array | None:
            if name not in input_shapes:
                return None
            return jnp.ones(input_shapes[name], types.get(name, jnp.int32))

        optional = [
            f"{side}_{kind}"
            for side in ("encoder", "decoder")
            for kind in ("positions", "segment_ids")
        ]
        variables = self.module.init(
            rng,
            ones("encoder_input_tokens"),
            ones("decoder_input_tokens"),
            ones("decoder_input_tokens"),
            **{name: ones(name) for name in optional},
            decode=False,
            enable_dropout=False,
        )
        return flax_core.freeze(variables)

    def _compute_logits(
        self,
        params: PyTree,
        batch: Batch,
        dropout_rng: jax.Array | None = None,
        mutable: Any = False,
        other_variables: PyTree | None = None,
        **network_arguments: Any,
    ) -> Any:
        """Logits (B, L, V); with `mutable`, also the variables of those collections."""
        optional = ("encoder_segment_ids", "decoder_segment_ids")
        optional += ("encoder_positions", "decoder_positions")
        if "decoder_cross_segment_ids" in batch:
            network_arguments["decoder_cross_segment_ids"] = batch["decoder_cross_segment_ids"]
        return self.module.apply(
            {"params": params, **(other_variables or {})},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            **{name: batch.get(name) for name in optional},
            decode=False,
            enable_dropout=dropout_rng is not None,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
            mutable=mutable,
            **network_arguments,
        )

    # Set by a subclass that computes logits or metrics of its own: it is to see all logits.
    _wants_all_logits: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not {"_compute_logits", "_compute_metrics"}.isdisjoint(vars(cls)):
            cls._wants_all_logits = True

    @property
    def _chunk_tokens(self) -> int:
        """Target tokens whose logits exist at a time; 0: all, as networks do that say nothing."""
        return 0 if self._wants_all_logits else getattr(self.module, "loss_chunk_tokens", 0)

    def _logits_from_hidden(self, params: PyTree, hidden: jax.Array) -> jax.Array:
        return self.module.apply({"params": params}, hidden, method="logits")

    def loss_fn(
        self,
        params: PyTree,
        batch: Batch,
        dropout_rng: jax.Array | None,
        label_smoothing: float | None = None,
        z_loss: float | None = None,
        loss_normalizing_factor: LossNormalizingFactor = None,
    ) -> tuple[jax.Array, MetricsMap]:
        settings = self._loss_settings(label_smoothing, z_loss, loss_normalizing_factor)
        if not self._chunk_tokens:
            return super().loss_fn(params, batch, dropout_rng, *settings)
        hidden = self._compute_logits(params, batch, dropout_rng, return_hidden=True)
        factor, weights = losses.get_loss_normalizing_factor_and_weights(
            settings.loss_normalizing_factor, batch
        )
        sums = losses.loss_sums_from_hidden(
            self._logits_from_hidden,
            self.module.logits_params(params),
            hidden,
            batch["decoder_target_tokens"],
            weights,
            label_smoothing=settings.label_smoothing,
            z_loss=settings.z_loss,
            chunk_tokens=self._chunk_tokens,
        )
        divisor = 1.0 if factor is None else factor
        loss = sums.loss / divisor
        return loss, compute_base_metrics(
            logits=None,
            targets=batch["decoder_target_tokens"],
            mask=weights,
            loss=loss,
            z_loss=sums.z_loss / divisor,
            segment_ids=_segment_ids(batch),
            correct=sums.correct,
        )

    def score_batch(self, params: PyTree, batch: Batch, return_intermediates: bool = False) -> Any:
        """Sum over each row of the targets' log-probabilities times `decoder_loss_weights`.

        Returns:
          Scores (B,). With return_intermediates also what the network sowed, to which
          decoder/{target_tokens, loss_weights, token_scores} are added as one-tuples of (B, L).
        """
        network = getattr(self.module, "for_scoring", lambda: self.module)()
        if network is not self.module:
            scorer = copy.copy(self)
            scorer.module = network
            return scorer.score_batch(params, batch, return_intermediates)
        weights = batch["decoder_loss_weights"]
        targets = batch["decoder_target_tokens"]
        mutable = ["intermediates"] if return_intermediates else False
        chunk_tokens = self._chunk_tokens
        if chunk_tokens:
            network_arguments = {"return_hidden": True}
            logits_fn = self._logits_from_hidden
            logits_params = self.module.logits_params(params)
        else:
            network_arguments, logits_params = {}, {}
            logits_fn = _identity_logits
        out = self._compute_logits(params, batch, mutable=mutable, **network_arguments)
        hidden, variables = out if return_intermediates else (out, {})
        token_scores = weights * losses.log_likelihoods_from_hidden(
            logits_fn, logits_params, hidden, targets, chunk_tokens=chunk_tokens
        )
        scores = token_scores.sum(-1)
        if not return_intermediates:
            return scores
        intermediates = flax_core.unfreeze(variables.get("intermediates", {}))
        intermediates.setdefault("decoder", {}).update(
            target_tokens=(targets,), loss_weights=(weights,), token_scores=(token_scores,)
        )
        return scores, intermediates

    def _initial_cache(self, params: PyTree, inputs: jax.Array, targets: jax.Array) -> PyTree:
        """Zeros in the shape of the network's autoregressive cache."""

        def create() -> PyTree:
            _, variables = self.module.apply(
                {"params": params},
                encoder_input_tokens=jnp.ones_like(inputs),
                decoder_input_tokens=jnp.ones_like(targets),
                decoder_target_tokens=jnp.ones_like(targets),
                enable_dropout=False,
                decode=True,
                mutable=["cache"],
            )
            return variables["cache"]

        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(create))

    def _compute_logits_from_slice(
        self,
        decoding_state: decoding.DecodingState,
        params: PyTree,
        encoded_inputs: jax.Array,
        raw_inputs: jax.Array,
        max_decode_length: int,
    ) -> tuple[jax.Array, PyTree]:
        """Logits (N, V) of the token after the current one, and the cache with the current one."""
        logits, variables = self.module.apply(
            {"params": params, "cache": decoding_state.cache},
            encoded_inputs,
            raw_inputs,
            decoding_state.cur_token,
            decoding_state.cur_token,
            enable_dropout=False,
            decode=True,
            max_decode_length=max_decode_length,
            mutable=["cache"],
            method=self.module.decode,
        )
        return jnp.squeeze(logits, axis=1), variables["cache"]

    def predict_batch_with_aux(
        self,
        params: PyTree,
        batch: Batch,
        rng: jax.Array | None = None,
        decoder_params: MutableMapping[str, Any] | None = None,
        return_all_decodes: bool | None = None,
        num_decodes: int | None = None,
        prompt_with_targets: bool = False,
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Decodes with `decode_fn`, as far as decoder_input_tokens is long.

        Args:
          rng: passed on as decode_rng.
          decoder_params: further arguments of decode_fn.
          return_all_decodes: all num_decodes sequences, best last, rather than the best.
          num_decodes: beams, or samples.
          prompt_with_targets: decoding is forced to begin with decoder_input_tokens, without EOS.

        Returns:
          Tokens (B, L) and {'scores': (B,)}; with return_all_decodes (B, N, L) and (B, N).
        """
        defaults = self._default_decoder_params
        if return_all_decodes is None:
            return_all_decodes = defaults.return_all_decodes
        num_decodes = defaults.num_decodes if num_decodes is None else num_decodes
        arguments = dict(decoder_params or {})
        if rng is not None:
            if arguments.get("decode_rng") is not None:
                raise ValueError("rng and decoder_params['decode_rng'] are both given: give one")
            arguments["decode_rng"] = rng
        arguments.setdefault("eos_id", self.output_vocabulary.eos_id or 1)

        inputs, targets = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        prompt = jnp.zeros_like(targets)
        if prompt_with_targets:
            prompt = jnp.where(targets == self.output_vocabulary.eos_id, 0, targets)
        encoded = self.module.apply(
            {"params": params}, inputs, enable_dropout=False, method=self.module.encode
        )
        tokens_to_logits = functools.partial(
            self._compute_logits_from_slice,
            params=params,
            encoded_inputs=decoding.flat_batch_beam_expand(encoded, num_decodes),
            raw_inputs=decoding.flat_batch_beam_expand(inputs, num_decodes),
            max_decode_length=targets.shape[1],
        )
        decodes, scores = self._decode_fn(
            inputs=prompt,
            cache=self._initial_cache(params, inputs, targets),
            tokens_to_logits=tokens_to_logits,
            num_decodes=num_decodes,
            cache_offset=1 if getattr(self.module, "scan_layers", False) else 0,
            **arguments,
        )
        if return_all_decodes:
            return decodes, {"scores": scores}
        return decodes[:, -1], {"scores": scores[:, -1]}


def _identity_logits(params: PyTree, logits: jax.Array) -> jax.Array:
    del params
    return logits


def _segment_ids(batch: Batch) -> dict[str, jax.Array]:
    """Segment ids by feature; without packing, 1 for a token and 0 for padding."""
    suffix = "_segment_ids"
    packed = {k.removesuffix(suffix): v for k, v in batch.items() if k.endswith(suffix)}
    names = ("encoder_input_tokens", "decoder_target_tokens")
    return packed or {name: batch[name] != 0 for name in names if name in batch}


def get_input_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
    return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
    return model.output_vocabulary
