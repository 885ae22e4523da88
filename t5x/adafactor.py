"""Adafactor (arXiv 1804.04235) with rules on which axes of a parameter are factored.

The second moment of a matrix is kept as the means of its rows and of its columns. Parameters of
higher rank need to be told which of their axes make up the rows and which the columns, and which
are mere batches of parameters (the layers of a scanned stack): over the latter nothing is averaged,
so a stacked parameter gets the updates its layers would get one by one.

`adafactor_transformation` is the update rule as an optax gradient transformation; `Adafactor` wraps
it for the trainer. Numerics, names and state layout are those of t5x.adafactor in T5X.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from t5x.optimizers.base import Optimizer, OptimizerDef, OptimizerState
from t5x.optimizers.factor_rules import (
    HEURISTIC_RULE,
    Axes,
    FactorDim,
    Factoring,
    HParamMap,
    factoring,
    path_name,
    rule_of_axes,
    standard_logical_factor_rules,
)

__all__ = [
    "Adafactor",
    "FactorDim",
    "HParamMap",
    "adafactor_transformation",
    "standard_logical_factor_rules",
]


@flax.struct.dataclass
class AdafactorHyperParams:
    """What Adafactor's constructor was given; see there."""

    learning_rate: Any
    factored: bool
    multiply_by_parameter_scale: bool | HParamMap
    beta1: float | None
    decay_rate: float
    step_offset: int
    clipping_threshold: float | None
    weight_decay_rate: float | None
    min_dim_size_to_factor: int
    epsilon1: float
    epsilon2: float
    dtype_momentum: Any = jnp.float32
    factor_map: Any = None
    logical_factor_rules: Any = None
    weight_decay_rate_lr_exponent: float | None = None
    global_norm_clip_threshold: float | None = None
    max_parameter_scale: float | None = None
    skip_nan_updates: bool = False


class AdafactorParamState(NamedTuple):
    """Moments of one parameter, float32; those not in use are zeros of shape (1,).

    Attributes:
      v_row: second moment averaged over the column axes.
      v_col: second moment averaged over the row axes.
      v: second moment of an unfactored parameter.
      m: momentum, in `dtype_momentum`; in use if beta1 is set.
    """

    v_row: Any
    v_col: Any
    v: Any
    m: Any


class AdafactorState(NamedTuple):
    """State of `adafactor_transformation`: steps taken, and AdafactorParamState by parameter."""

    count: jax.Array
    param_states: Any


def _factoring(hparams: AdafactorHyperParams, shape: Sequence[int], path: str) -> Factoring:
    rule = hparams.factor_map[path] if hparams.factor_map else HEURISTIC_RULE
    if not hparams.factored:
        rule = None
    return factoring(rule, shape, path, hparams.min_dim_size_to_factor)


def _without(values: Sequence[Any], axes: Axes) -> tuple[Any, ...]:
    return tuple(value for axis, value in enumerate(values) if axis not in axes)


def _init_param_state(hparams: AdafactorHyperParams, param: Any, path: str) -> AdafactorParamState:
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    shape = tuple(param.shape)
    v_row = v_col = v = m = zeros(1)
    factors = _factoring(hparams, shape, path).factors
    if factors is None:
        v = zeros(*shape)
    else:
        rows, columns = factors
        v_row, v_col = zeros(*_without(shape, columns)), zeros(*_without(shape, rows))
    if hparams.beta1 is not None:
        m = jnp.zeros(shape, hparams.dtype_momentum)
    return AdafactorParamState(v_row, v_col, v, m)


def _rms(x: jax.Array, axes: Axes) -> jax.Array:
    return jnp.sqrt(jnp.mean(x * x, axis=axes, keepdims=True))


def _precondition(
    grad: jax.Array,
    state: AdafactorParamState,
    factors: tuple[Axes, Axes] | None,
    decay: jax.Array,
    epsilon: float,
) -> tuple[jax.Array, AdafactorParamState]:
    """Divides the gradient by the root of its second moment; returns it and the new moments."""
    mixing = 1.0 - decay
    grad_squared = grad * grad + epsilon
    if factors is None:
        v = decay * state.v + mixing * grad_squared
        return grad * v**-0.5, state._replace(v=v)
    rows, columns = factors
    v_row = decay * state.v_row + mixing * jnp.mean(grad_squared, axis=columns)
    v_col = decay * state.v_col + mixing * jnp.mean(grad_squared, axis=rows)
    rows_in_v_row = tuple(axis - sum(column < axis for column in columns) for axis in rows)
    row_factor = (v_row / jnp.mean(v_row, axis=rows_in_v_row, keepdims=True)) ** -0.5
    col_factor = v_col**-0.5
    scaled = (
        grad * jnp.expand_dims(row_factor, axis=columns) * jnp.expand_dims(col_factor, axis=rows)
    )
    return scaled, state._replace(v_row=v_row, v_col=v_col)


def _step_size(
    hparams: AdafactorHyperParams, param: jax.Array, path: str, averaged: Axes
) -> jax.Array:
    """The learning rate, times the RMS norm of the parameter where that is asked for."""
    scaled = hparams.multiply_by_parameter_scale
    if isinstance(scaled, HParamMap):
        scaled = scaled[path]
    if not scaled:
        return hparams.learning_rate
    param_scale = jnp.maximum(_rms(param, averaged), hparams.epsilon2)
    if hparams.max_parameter_scale is not None:
        param_scale = jnp.minimum(param_scale, hparams.max_parameter_scale)
    return hparams.learning_rate * param_scale


def _weight_decay(hparams: AdafactorHyperParams) -> Any:
    """The share of a parameter that one step takes away, or None."""
    rate, exponent = hparams.weight_decay_rate, hparams.weight_decay_rate_lr_exponent
    return (rate or 1.0) * hparams.learning_rate**exponent if exponent else rate


def _update_param(
    hparams: AdafactorHyperParams,
    count: jax.Array,
    path: str,
    param: jax.Array,
    state: AdafactorParamState,
    grad: jax.Array,
) -> tuple[jax.Array, AdafactorParamState]:
    """Returns what to add to one parameter, and its new moments."""
    factoring = _factoring(hparams, param.shape, path)
    steps = jnp.asarray(count - hparams.step_offset, jnp.float32) + 1.0
    decay = 1.0 - steps**-hparams.decay_rate
    direction, new_state = _precondition(
        grad.astype(jnp.float32), state, factoring.factors, decay, hparams.epsilon1
    )
    if hparams.clipping_threshold is not None:
        norm = _rms(direction, factoring.averaged)
        direction /= jnp.maximum(1.0, norm / hparams.clipping_threshold)
    change = _step_size(hparams, param, path, factoring.averaged) * direction
    if hparams.beta1 is not None:
        change = hparams.beta1 * state.m + (1.0 - hparams.beta1) * change
        new_state = new_state._replace(m=change.astype(hparams.dtype_momentum))
    update = -change
    weight_decay = _weight_decay(hparams)
    if weight_decay is not None:
        update -= weight_decay * param
    if hparams.skip_nan_updates:
        update = jnp.where(jnp.isnan(param + update), 0.0, update)
        new_state = jax.tree.map(
            lambda old, new: jnp.where(jnp.isnan(new), old, new), state, new_state
        )
    return update, new_state


def _clip_by_global_norm(grads: Any, threshold: float) -> Any:
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(grad)) for grad in jax.tree.leaves(grads)))
    scale = threshold * jnp.minimum(1.0 / threshold, 1.0 / norm)
    return jax.tree.map(lambda grad: grad * scale, grads)


def adafactor_transformation(hparams: AdafactorHyperParams) -> optax.GradientTransformation:
    """Adafactor as an optax transformation over a nested dict of parameters.

    Its updates are whole steps, learning rate and weight decay included; add them to the
    parameters (`optax.apply_updates`). `update` needs the parameters.
    """

    def init(params: Any) -> AdafactorState:
        states = jax.tree_util.tree_map_with_path(
            lambda path, param: _init_param_state(hparams, param, path_name(path)), params
        )
        return AdafactorState(jnp.zeros([], jnp.int32), states)

    def update(grads: Any, state: AdafactorState, params: Any) -> tuple[Any, AdafactorState]:
        if hparams.learning_rate is None:
            raise ValueError(
                "Adafactor has no learning rate: bind the trainer's learning_rate_fn or "
                "Adafactor.learning_rate"
            )
        if hparams.global_norm_clip_threshold:
            grads = _clip_by_global_norm(grads, hparams.global_norm_clip_threshold)
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, *leaf: _update_param(hparams, state.count, path_name(path), *leaf),
            params,
            state.param_states,
            grads,
        )
        updates = jax.tree.map(lambda _, pair: pair[0], params, pairs)
        new_states = jax.tree.map(lambda _, pair: pair[1], params, pairs)
        return updates, AdafactorState(state.count + 1, new_states)

    return optax.GradientTransformation(init, update)


class Adafactor(OptimizerDef):
    """Adafactor for the trainer.

    Args:
      learning_rate: step size if the trainer gives none. Adafactor's scale differs from Adam's:
        with `multiply_by_parameter_scale` it is relative to the parameter.
      factored: keep factored second moments.
      multiply_by_parameter_scale: multiply the step by the parameter's RMS norm; one answer for
        all parameters, or one by path.
      beta1: decay of the momentum, in [0, 1); None keeps no momentum.
      decay_rate: at step t the second moment decays by 1 - t**-decay_rate.
      step_offset: the step at which t starts; at fine-tuning the step of the pre-trained
        checkpoint, so that its second moments are forgotten at once.
      clipping_threshold: the largest RMS norm of an update before the step size; None for any.
      weight_decay_rate: share of a parameter taken away at each step.
      min_dim_size_to_factor: shortest axis that is factored in a parameter of two axes.
      epsilon1: added to squared gradients.
      epsilon2: smallest parameter scale.
      dtype_momentum: dtype the momentum is stored in.
      factor_map: rule (a tuple of FactorDim, an axis each) by parameter path.
      logical_factor_rules: FactorDim, or its name, by logical axis name; replaces `factor_map` once
        `set_param_axes` is called.
      weight_decay_rate_lr_exponent: decay by learning_rate**exponent, times `weight_decay_rate` if
        that is set.
      global_norm_clip_threshold: largest norm of all gradients together; None for any.
      max_parameter_scale: largest parameter scale; None for any.
      skip_nan_updates: leave a number as it was where its update would be NaN.

    Raises:
      ValueError: `factor_map` without `factored`.
      TypeError: `factor_map` or `multiply_by_parameter_scale` of a wrong type.
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        factored: bool = True,
        multiply_by_parameter_scale: bool | HParamMap = True,
        beta1: float | None = None,
        decay_rate: float = 0.8,
        step_offset: int = 0,
        clipping_threshold: float | None = 1.0,
        weight_decay_rate: float | None = None,
        min_dim_size_to_factor: int = 128,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
        dtype_momentum: Any = jnp.float32,
        factor_map: HParamMap | None = None,
        logical_factor_rules: Mapping[str, FactorDim] | None = None,
        weight_decay_rate_lr_exponent: float | None = None,
        global_norm_clip_threshold: float | None = None,
        max_parameter_scale: float | None = None,
        skip_nan_updates: bool | None = False,
    ) -> None:
        if not factored and factor_map is not None:
            raise ValueError("Adafactor.factor_map is set although Adafactor.factored is False")
        if not isinstance(multiply_by_parameter_scale, bool | HParamMap):
            raise TypeError(
                "Adafactor.multiply_by_parameter_scale must be a bool or an HParamMap, "
                f"not {multiply_by_parameter_scale!r}"
            )
        if not isinstance(factor_map, HParamMap | None):
            raise TypeError(f"Adafactor.factor_map must be an HParamMap, not {factor_map!r}")
        super().__init__(
            AdafactorHyperParams(
                learning_rate=learning_rate,
                factored=factored,
                multiply_by_parameter_scale=multiply_by_parameter_scale,
                beta1=beta1,
                decay_rate=decay_rate,
                step_offset=step_offset,
                clipping_threshold=clipping_threshold,
                weight_decay_rate=weight_decay_rate,
                min_dim_size_to_factor=min_dim_size_to_factor,
                epsilon1=epsilon1,
                epsilon2=epsilon2,
                dtype_momentum=jax.dtypes.canonicalize_dtype(dtype_momentum),
                factor_map=factor_map,
                logical_factor_rules=logical_factor_rules,
                weight_decay_rate_lr_exponent=weight_decay_rate_lr_exponent,
                global_norm_clip_threshold=global_norm_clip_threshold,
                max_parameter_scale=max_parameter_scale,
                skip_nan_updates=bool(skip_nan_updates),
            )
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adafactor) and self.hyper_params == other.hyper_params

    def __hash__(self) -> int:
        # The factor map arrives after construction, so it may not take part.
        return hash((type(self), self.hyper_params.decay_rate, self.hyper_params.beta1))

    def init_param_state(self, param: Any, path: str) -> AdafactorParamState:
        """Returns the zero moments of the parameter at `path` (joined by '/')."""
        return _init_param_state(self.hyper_params, param, path)

    def init_state(self, params: Any) -> OptimizerState:
        return OptimizerState(*adafactor_transformation(self.hyper_params).init(params))

    def apply_param_gradient(
        self,
        step: jax.Array,
        hyper_params: AdafactorHyperParams,
        param: jax.Array,
        state: AdafactorParamState,
        grad: jax.Array,
        path: str,
    ) -> tuple[jax.Array, AdafactorParamState]:
        """Returns one parameter after a step, and its new moments."""
        update, new_state = _update_param(hyper_params, step, path, param, state, grad)
        return optax.apply_updates(param, update), new_state

    def apply_gradient(
        self, hyper_params: AdafactorHyperParams, params: Any, state: OptimizerState, grads: Any
    ) -> tuple[Any, OptimizerState]:
        updates, new_state = adafactor_transformation(hyper_params).update(
            grads, AdafactorState(state.step, state.param_states), params
        )
        return optax.apply_updates(params, updates), OptimizerState(*new_state)

    def set_param_axes(self, param_logical_axes: Any) -> None:
        """Derives the factor map from the logical axis names of each parameter.

        A parameter without both a row and a column axis is kept whole. Does nothing if
        `logical_factor_rules` is not set.

        Raises:
          ValueError: an axis name has no rule, or a parameter with row and column axes also has
            an unfactored one.
        """
        rules = self.hyper_params.logical_factor_rules
        if rules is None:
            return
        named_axes, _ = jax.tree_util.tree_flatten_with_path(param_logical_axes)
        factor_map = {
            path_name(path): rule_of_axes(rules, axes, path_name(path)) for path, axes in named_axes
        }
        self.hyper_params = self.hyper_params.replace(factor_map=factor_map)

    def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: Any) -> Optimizer:
        """Returns `optimizer` with logical axes for arrays: factored moments keep theirs."""

        def axes_of(path: Any, axes: PartitionSpec, param: Any) -> AdafactorParamState:
            factors = _factoring(self.hyper_params, param.shape, path_name(path)).factors
            padded = (*axes, *[None] * (len(param.shape) - len(axes)))
            m = axes if self.hyper_params.beta1 is not None else None
            if factors is None:
                return AdafactorParamState(None, None, axes, m)
            rows, columns = factors
            v_row, v_col = (PartitionSpec(*_without(padded, gone)) for gone in (columns, rows))
            return AdafactorParamState(v_row, v_col, None, m)

        param_states = jax.tree_util.tree_map_with_path(
            axes_of, param_logical_axes, optimizer.target
        )
        return Optimizer(
            optimizer.optimizer_def, OptimizerState(None, param_states), param_logical_axes
        )
