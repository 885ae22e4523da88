"""What a training run carries from step to step: parameters, optimizer state, mutable variables.

A state dict has the layout that checkpoints store, with arrays as leaves::

    {'target': params, 'state': {'step': int32, 'param_states': ...}, 'flax_mutables': ...}

where 'flax_mutables' is left out while there are none.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from flax.linen import partitioning as flax_partitioning
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import flatten_dict

from t5x.optimizers.base import Optimizer, OptimizerDef

EMPTY_DICT: FrozenDict = FrozenDict({})


@runtime_checkable
class TrainState(Protocol):
    """What the trainer, the partitioner and checkpoints ask of a train state."""

    @property
    def step(self) -> jax.Array: ...

    @property
    def params(self) -> Mapping[str, Any]: ...

    @property
    def param_states(self) -> Any: ...

    @property
    def flax_mutables(self) -> Mapping[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def restore_state(self, state_dict: Mapping[str, Any]) -> "TrainState": ...

    def replace_params(self, params: Mapping[str, Any]) -> "TrainState": ...

    def replace_flax_mutables(self, flax_mutables: FrozenDict) -> "TrainState": ...

    def replace_step(self, step: jax.Array) -> "TrainState": ...

    def apply_gradient(
        self, grads: Any, learning_rate: Any, flax_mutables: FrozenDict = EMPTY_DICT
    ) -> "TrainState": ...

    def as_logical_axes(self) -> "TrainState": ...


def _axis_names_like(axes: Any, variables: Mapping[str, Any]) -> Any:
    """Returns `variables` with each array replaced by the PartitionSpec of its logical axes.

    Raises:
      ValueError: a variable has no axes.
    """
    names = flatten_dict(flax.core.unfreeze(flax_partitioning.get_axis_names(axes)))
    paths = flatten_dict(flax.core.unfreeze(variables))
    missing = sorted("/".join(path) for path in paths if path not in names)
    if missing:
        raise ValueError(
            f"no logical axis names for {', '.join(missing)}: create these variables with "
            "flax.linen.partitioning.param_with_axes or variable_with_axes"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: names[tuple(entry.key for entry in path)], variables
    )


def _split_variables(
    model_variables: Mapping[str, Any],
) -> tuple[Any, Any | None, FrozenDict, FrozenDict | None]:
    """Splits a model's variables into (params, params_axes, mutables, mutables_axes)."""
    rest, params = flax.core.pop(model_variables, "params")
    params_axes = rest.get("params_axes")
    mutables = {name: value for name, value in rest.items() if not name.endswith("_axes")}
    mutables_axes = {name: rest[f"{name}_axes"] for name in mutables if f"{name}_axes" in rest}
    for name, axes in mutables_axes.items():
        _axis_names_like(axes, mutables[name])
    return (
        params,
        params_axes,
        flax.core.freeze(mutables),
        flax.core.freeze(mutables_axes) or None,
    )


def _mutables_in(state_dict: Mapping[str, Any]) -> FrozenDict:
    return flax.core.freeze(state_dict.get("flax_mutables", {}))


def _mutables_logical_axes(mutables_axes: FrozenDict | None) -> FrozenDict:
    axes = mutables_axes or {}
    return flax.core.freeze(
        {name: flax_partitioning.get_axis_names(collection) for name, collection in axes.items()}
    )


class FlaxOptimTrainState(flax.struct.PyTreeNode):
    """Train state of a Flax model with its optimizer.

    Attributes:
      params_axes: AxisMetadata of every parameter, as the model emitted it, or None.
      flax_mutables: the model's mutable variable collections, by name.
      flax_mutables_axes: AxisMetadata of those that have one, or None.
    """

    _optimizer: Optimizer
    params_axes: Any | None = None
    flax_mutables: FrozenDict = EMPTY_DICT
    flax_mutables_axes: FrozenDict | None = None

    @classmethod
    def create(
        cls, optimizer_def: OptimizerDef, model_variables: Mapping[str, Any]
    ) -> "FlaxOptimTrainState":
        """Makes a state at step 0.

        Args:
          optimizer_def: the optimizer. If it has `set_param_axes`, it is told the parameters'
            logical axis names first, so that it can shape its own state by them.
          model_variables: collections as `flax.linen.Module.init` returns them; 'params' is
            needed, 'params_axes' holds the logical axes, all others are mutable variables.

        Raises:
          ValueError: the optimizer needs logical axes and the model emits none, or a variable
            lacks them.
        """
        params, params_axes, mutables, mutables_axes = _split_variables(model_variables)
        axis_names = None if params_axes is None else _axis_names_like(params_axes, params)
        if hasattr(optimizer_def, "set_param_axes"):
            if axis_names is None:
                raise ValueError(
                    f"{type(optimizer_def).__name__} needs logical axis names, and the model emits "
                    "no 'params_axes' collection: create its parameters with "
                    "flax.linen.partitioning.param_with_axes"
                )
            optimizer_def.set_param_axes(axis_names)
        return cls(optimizer_def.create(params), params_axes, mutables, mutables_axes)

    @property
    def step(self) -> jax.Array:
        return self._optimizer.state.step

    @property
    def params(self) -> Any:
        return self._optimizer.target

    @property
    def param_states(self) -> Any:
        return self._optimizer.state.param_states

    def state_dict(self) -> dict[str, Any]:
        state_dict = self._optimizer.state_dict()
        if self.flax_mutables:
            state_dict["flax_mutables"] = flax.core.unfreeze(self.flax_mutables)
        return state_dict

    def restore_state(self, state_dict: Mapping[str, Any]) -> "FlaxOptimTrainState":
        return self.replace(
            _optimizer=self._optimizer.restore_state(state_dict),
            flax_mutables=_mutables_in(state_dict),
        )

    def replace_params(self, params: Mapping[str, Any]) -> "FlaxOptimTrainState":
        return self.replace(_optimizer=self._optimizer.replace(target=params))

    def replace_flax_mutables(self, flax_mutables: FrozenDict) -> "FlaxOptimTrainState":
        return self.replace(flax_mutables=flax_mutables)

    def replace_step(self, step: jax.Array) -> "FlaxOptimTrainState":
        state = self._optimizer.state.replace(step=step)
        return self.replace(_optimizer=self._optimizer.replace(state=state))

    def apply_gradient(
        self, grads: Any, learning_rate: Any, flax_mutables: FrozenDict = EMPTY_DICT
    ) -> "FlaxOptimTrainState":
        """Returns the state one step later, with `flax_mutables` in place of the old ones."""
        optimizer = self._optimizer.apply_gradient(grads, learning_rate=learning_rate)
        return self.replace(_optimizer=optimizer, flax_mutables=flax_mutables)

    def as_logical_axes(self) -> "FlaxOptimTrainState":
        """Returns the state with a PartitionSpec of logical axis names, or None, for each array.

        Raises:
          ValueError: the optimizer cannot say how its state is laid out, or the model emitted
            no axes.
        """
        optimizer_def = self._optimizer.optimizer_def
        if not hasattr(optimizer_def, "derive_logical_axes"):
            raise ValueError(
                f"{type(optimizer_def).__name__} has no derive_logical_axes, so its state cannot "
                "be partitioned by logical axis names"
            )
        if self.params_axes is None:
            raise ValueError(
                "the train state has no logical axis names: the model emits no 'params_axes' "
                "collection"
            )
        axis_names = _axis_names_like(self.params_axes, self.params)
        return FlaxOptimTrainState(
            optimizer_def.derive_logical_axes(self._optimizer, axis_names),
            flax_mutables=_mutables_logical_axes(self.flax_mutables_axes),
        )


class InferenceState(flax.struct.PyTreeNode):
    """Parameters and step without an optimizer, in the same state dict layout."""

    step: jax.Array | None
    params: Any
    params_axes: Any | None = None
    flax_mutables: FrozenDict = EMPTY_DICT
    flax_mutables_axes: FrozenDict | None = None

    @classmethod
    def create(cls, model_variables: Mapping[str, Any]) -> "InferenceState":
        """Makes a state at step 0 from a model's variable collections.

        Raises:
          ValueError: a variable lacks logical axis names that others have.
        """
        params, params_axes, mutables, mutables_axes = _split_variables(model_variables)
        if params_axes is not None:
            _axis_names_like(params_axes, params)
        return cls(jnp.array(0), params, params_axes, mutables, mutables_axes)

    @property
    def param_states(self) -> Any:
        raise NotImplementedError("InferenceState has no optimizer state")

    def apply_gradient(self, *args: Any, **kwargs: Any) -> "InferenceState":
        raise NotImplementedError("InferenceState has no optimizer to apply a gradient with")

    def state_dict(self) -> dict[str, Any]:
        state_dict = {"target": to_state_dict(self.params), "state": {"step": self.step}}
        if self.flax_mutables:
            state_dict["flax_mutables"] = flax.core.unfreeze(self.flax_mutables)
        return state_dict

    def restore_state(self, state_dict: Mapping[str, Any]) -> "InferenceState":
        return self.replace(
            params=from_state_dict(self.params, flax.core.unfreeze(state_dict["target"])),
            step=state_dict["state"]["step"],
            flax_mutables=_mutables_in(state_dict),
        )

    def replace_params(self, params: Mapping[str, Any]) -> "InferenceState":
        return self.replace(params=params)

    def replace_flax_mutables(self, flax_mutables: FrozenDict) -> "InferenceState":
        return self.replace(flax_mutables=flax_mutables)

    def replace_step(self, step: jax.Array) -> "InferenceState":
        return self.replace(step=step)

    def as_logical_axes(self) -> "InferenceState":
        """Returns the state with a PartitionSpec of logical axis names for each parameter.

        The step becomes None, which partitioners read as replicated.

        Raises:
          ValueError: the model emitted no axes.
        """
        if self.params_axes is None:
            raise ValueError(
                "the inference state has no logical axis names: the model emits no 'params_axes' "
                "collection"
            )
        return InferenceState(
            step=None,
            params=_axis_names_like(self.params_axes, self.params),
            flax_mutables=_mutables_logical_axes(self.flax_mutables_axes),
        )
