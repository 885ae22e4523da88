"""Checkpoints of scanned layers for models of unrolled layers, and the other way round.

A scanned stack keeps each parameter of its layers as one array, `encoder/encoder/mlp/wi/kernel`
with a layers axis; an unrolled one has `encoder/layers_0/mlp/wi/kernel` and so forth. The same goes
for what an optimizer keeps of each parameter. Adafactor factors some parameters along other axes
when they are scanned, or only then (see `t5x.optimizers.factor_rules`), so its second moments are
converted from the ones that hold the same averages:

* a factored moment is the average of a whole one, exactly;
* a whole moment is estimated from a factored one, as Adafactor itself does at every step.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from t5x.checkpoints import layer_names
from t5x.optimizers.factor_rules import Axes, FactorDim, two_largest_axes

_SECOND_MOMENT = re.compile(r"state/param_states/(?P<param>.+)/(?P<field>v|v_row|v_col)")
# Stands for a moment that is not in use.
_UNUSED = (1,)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint, not read yet: its path there, its shape and its dtype."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class TargetArray:
    """An array that a train state wants.

    Attributes:
      shape: its shape.
      sharding: how it is laid out over the devices.
      dtype: what floating point numbers are cast to; None leaves them as stored.
    """

    shape: tuple[int, ...]
    sharding: NamedSharding
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Source:
    """How to make an array of the model from arrays of the checkpoint.

    Attributes:
      inputs: the arrays to read.
      shape: the shape of the result.
      function: makes the result from the inputs; None takes the only input as it is.
      input_spec: the PartitionSpec to read the inputs into, from that of the result.
    """

    inputs: tuple[StoredArray, ...]
    shape: tuple[int, ...]
    function: Callable[..., jax.Array] | None = None
    input_spec: Callable[[PartitionSpec], PartitionSpec] = lambda spec: spec

    def build(self, arrays: Sequence[jax.Array], sharding: NamedSharding) -> jax.Array:
        """Makes the result, in a sharding, from the inputs that were read."""
        result = arrays[0] if self.function is None else self.function(*arrays)
        return jax.device_put(result, sharding)


def name_network(stored: Iterable[str], wanted: Iterable[str]) -> str:
    """Returns what to say where one of two models has a relative bias in every layer, else nothing.

    Args:
      stored: paths of a checkpoint's arrays.
      wanted: those of the model's.
    """
    is_of_a_layer = layer_names.BIAS_OF_A_LAYER.fullmatch
    is_stored, is_wanted = (any(map(is_of_a_layer, paths)) for paths in (stored, wanted))
    if is_stored == is_wanted:
        return ""
    if is_stored:
        return (
            " (it has a relative position bias in every layer, as umT5 and T5X's scalable_t5 have: "
            "take the network of t5x.examples.scalable_t5)"
        )
    return (
        " (its layers share a relative position bias: take the network of t5x.examples.t5, not "
        "that of scalable_t5)"
    )


def plan(
    stored: Mapping[str, StoredArray],
    wanted: Mapping[str, tuple[int, ...]],
    factor_map: Mapping[str, tuple[FactorDim, ...]],
) -> dict[str, Source]:
    """Finds what to make the model's arrays from.

    Args:
      stored: the arrays of the checkpoint, by path in the state dict.
      wanted: the shapes of the model's arrays, by path.
      factor_map: Adafactor's rule by the path of a parameter of the model (without 'target/').

    Returns:
      The sources by path, for those of `wanted` that the checkpoint has in either layout. Where no
      array of the wanted shape can be made, the source has the shape that comes closest.
    """
    sources = {}
    for path, shape in wanted.items():
        if path in stored:
            sources[path] = Source((stored[path],), stored[path].shape)
        elif source := _convert(path, shape, stored, wanted, factor_map):
            sources[path] = source
    return sources


def _convert(
    path: str,
    shape: tuple[int, ...],
    stored: Mapping[str, StoredArray],
    wanted: Mapping[str, tuple[int, ...]],
    factor_map: Mapping[str, tuple[FactorDim, ...]],
) -> Source | None:
    moment = _SECOND_MOMENT.fullmatch(path)
    if moment and f"target/{moment['param']}" in wanted:
        return _convert_moment(moment, shape, stored, wanted, factor_map)
    if match := layer_names.SCANNED.fullmatch(path):
        layers = [stored[name] for name in _layer_paths(match, stored)]
        return _stacked(layers, shape) if layers else None
    if match := layer_names.UNROLLED.fullmatch(path):
        scanned = stored.get(layer_names.scanned_name(path))
        count = len(_layer_paths(match, wanted))
        return _sliced(scanned, int(match["index"]), shape, count) if scanned else None
    return None


def _layer_paths(match: re.Match[str], paths: Mapping[str, Any]) -> list[str]:
    """Returns the paths of a parameter in each layer of a stack, in the order of the layers."""
    names = (
        (match["head"] or "") + f"{layer_names.layer_name(match['stack'], index)}/{match['rest']}"
        for index in itertools.count()
    )
    return list(itertools.takewhile(paths.__contains__, names))


def _layer_axis(scanned: Sequence[int], layer: Sequence[int], count: int) -> int | None:
    """Returns the layers axis of a scanned array, 1 if that fits (T5X's param_scan_axis)."""
    axes = [axis for axis in range(len(scanned)) if _insert(layer, axis, count) == tuple(scanned)]
    return 1 if 1 in axes else min(axes, default=None)


def _insert(values: Sequence[Any], axis: int, value: Any) -> tuple[Any, ...]:
    return (*values[:axis], value, *values[axis:])


def _spec_without(axis: int, rank: int, spec: PartitionSpec) -> PartitionSpec:
    padded = (*spec, *[None] * (rank - len(spec)))
    return PartitionSpec(*padded[:axis], *padded[axis + 1 :])


def _spec_with(axis: int, rank: int, spec: PartitionSpec) -> PartitionSpec:
    padded = (*spec, *[None] * (rank - len(spec)))
    return PartitionSpec(*_insert(padded, axis, None))


def _replicated(_: PartitionSpec) -> PartitionSpec:
    return PartitionSpec()


@functools.partial(jax.jit, static_argnames="axis")
def _take(array: jax.Array, index: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)


def _unused() -> Source:
    return Source((), _UNUSED, lambda: jnp.zeros(_UNUSED), _replicated)


def _stacked(layers: Sequence[StoredArray], shape: tuple[int, ...]) -> Source:
    layer_shape = layers[0].shape
    axis = _layer_axis(shape, layer_shape, len(layers))
    if axis is None:
        if shape == layer_shape == _UNUSED:
            return _unused()
        axis = min(1, len(layer_shape))
    return Source(
        tuple(layers),
        _insert(layer_shape, axis, len(layers)),
        lambda *arrays: jnp.stack(arrays, axis),
        functools.partial(_spec_without, axis, len(layer_shape) + 1),
    )


def _sliced(scanned: StoredArray, index: int, shape: tuple[int, ...], count: int) -> Source:
    axis = _layer_axis(scanned.shape, shape, count)
    if axis is None:
        return _unused() if shape == scanned.shape == _UNUSED else Source((scanned,), scanned.shape)
    return Source(
        (scanned,),
        shape,
        lambda array: _take(array, index, axis),
        functools.partial(_spec_with, axis, len(shape)),
    )


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A parameter of a stack in both layouts.

    Attributes:
      scanned: path of the scanned parameter (without 'target/').
      layers: paths of the parameter in each layer.
      shape: its shape in one layer.
      axis: the layers axis of the scanned parameter.
      rule: Adafactor's rule for its axes in one layer, if known.
    """

    scanned: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    axis: int
    rule: tuple[FactorDim, ...] | None

    def factors(self, is_scanned: bool) -> tuple[Axes, Axes] | None:
        """Returns the row and the column axes in one layer if the moment is factored at all."""
        if self.rule is not None and (is_scanned or len(self.shape) > 2):
            rows, columns = (
                tuple(i for i, dim in enumerate(self.rule) if dim is wanted)
                for wanted in (FactorDim.ROW, FactorDim.COLUMN)
            )
            return (rows, columns) if rows and columns else None
        return two_largest_axes(self.shape, 0)

    def kept_axes(self, field: str, is_scanned: bool) -> Axes:
        """Returns the axes, of those in one layer, that a second moment is not averaged over."""
        factors = self.factors(is_scanned)
        gone = () if field == "v" or factors is None else factors[field == "v_row"]
        return tuple(axis for axis in range(len(self.shape)) if axis not in gone)

    def layer_position(self, field: str) -> int:
        """Returns where a scanned second moment has its layers axis."""
        return sum(axis < self.axis for axis in self.kept_axes(field, is_scanned=True))


def _stack_of(
    param: str,
    stored: Mapping[str, StoredArray],
    wanted: Mapping[str, tuple[int, ...]],
    factor_map: Mapping[str, tuple[FactorDim, ...]],
) -> _Stack | None:
    """Returns the stack that a parameter of the model is, or is a layer of."""
    path = f"target/{param}"
    rule = factor_map.get(param)
    if match := layer_names.SCANNED.fullmatch(path):
        layers = _layer_paths(match, stored)
        if not layers:
            return None
        scanned, shape = path, stored[layers[0]].shape
        axis = _layer_axis(wanted[path], shape, len(layers))
        if rule is not None and axis is not None:
            rule = (*rule[:axis], *rule[axis + 1 :])
    elif match := layer_names.UNROLLED.fullmatch(path):
        layers, scanned, shape = (
            _layer_paths(match, wanted),
            layer_names.scanned_name(path),
            wanted[path],
        )
        axis = scanned in stored and _layer_axis(stored[scanned].shape, shape, len(layers))
    else:
        return None
    if axis is None or axis is False:
        return None
    names = [name.removeprefix("target/") for name in layers]
    return _Stack(scanned.removeprefix("target/"), tuple(names), shape, axis, rule)


def _convert_moment(
    moment: re.Match[str],
    shape: tuple[int, ...],
    stored: Mapping[str, StoredArray],
    wanted: Mapping[str, tuple[int, ...]],
    factor_map: Mapping[str, tuple[FactorDim, ...]],
) -> Source | None:
    param, field = moment["param"], moment["field"]
    stack = _stack_of(param, stored, wanted, factor_map)
    if stack is None:
        return None
    if shape == _UNUSED != stack.shape:
        return _unused()
    to_scanned = param == stack.scanned
    kept = stack.kept_axes(field, is_scanned=to_scanned)
    params = stack.layers if to_scanned else (stack.scanned,)
    fields = _fields_to_read(stack, kept, params[0], stored, is_scanned=not to_scanned)
    names = [f"state/param_states/{name}/{part}" for name in params for part in fields]
    if any(name not in stored for name in names):
        return None
    make = functools.partial(_moment_of_layer, stack, fields, kept, is_scanned=not to_scanned)
    inputs = tuple(stored[name] for name in names)
    layer_shape = tuple(stack.shape[axis] for axis in kept)
    if to_scanned:
        position = stack.layer_position(field)

        def stack_layers(*arrays: jax.Array) -> jax.Array:
            groups = [arrays[i : i + len(fields)] for i in range(0, len(arrays), len(fields))]
            return jnp.stack([make(group) for group in groups], position)

        result_shape = _insert(layer_shape, position, len(stack.layers))
        return Source(inputs, result_shape, stack_layers, _replicated)

    index = stack.layers.index(param)

    def slice_layer(*arrays: jax.Array) -> jax.Array:
        layer = [
            _take(array, index, stack.layer_position(part))
            for array, part in zip(arrays, fields, strict=True)
        ]
        return make(layer)

    return Source(inputs, layer_shape, slice_layer, _replicated)


def _fields_to_read(
    stack: _Stack,
    kept: Axes,
    param: str,
    stored: Mapping[str, StoredArray],
    *,
    is_scanned: bool,
) -> tuple[str, ...]:
    """Returns which stored moments of a parameter hold the one averaged over all but `kept`."""
    whole = stored.get(f"state/param_states/{param}/v")
    # What is unused is stored as (1,); a parameter of that very shape is never factored.
    if whole is None or whole.shape != _UNUSED or stack.shape == _UNUSED:
        return ("v",)
    for field in ("v_row", "v_col"):
        if stack.kept_axes(field, is_scanned) == kept:
            return (field,)
    return ("v_row", "v_col")


def _moment_of_layer(
    stack: _Stack,
    fields: Sequence[str],
    kept: Axes,
    arrays: Sequence[jax.Array],
    *,
    is_scanned: bool,
) -> jax.Array:
    """Makes the second moment of one layer, averaged over all but the axes `kept`."""
    if len(fields) == 1:
        (array,) = arrays
        held = stack.kept_axes(fields[0], is_scanned)
        return jnp.mean(array, axis=tuple(held.index(axis) for axis in held if axis not in kept))
    v_row, v_col = arrays
    rows, columns = stack.factors(is_scanned)
    whole = jnp.expand_dims(v_row, columns) * jnp.expand_dims(v_col, rows) / jnp.mean(v_row)
    return jnp.mean(whole, axis=tuple(i for i in range(whole.ndim) if i not in kept))
