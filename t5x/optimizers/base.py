"""Optimizers as the trainer sees them, and optax optimizers wrapped to look so.

An OptimizerDef is a recipe without arrays; an Optimizer is a recipe with parameters and state. The
wrapped optax constructors below take optax's arguments: `optimizers.adamw(learning_rate=1e-4)`.
They go by their own learning rate or schedule and ignore the one the trainer hands them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import Traversal, empty_node, flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec


@flax.struct.dataclass
class OptimizerState:
    """Steps taken (an int32 scalar), and what an optimizer remembers of the parameters."""

    step: Any
    param_states: Any


class OptimizerDef:
    """A recipe for optimization; subclasses define `init_state` and `apply_gradient`.

    Args:
      hyper_params: a dataclass with a `replace` method and a field `learning_rate`.
    """

    def __init__(self, hyper_params: Any) -> None:
        self.hyper_params = hyper_params

    @property
    def skips_nan_updates(self) -> bool:
        """Whether a step under a loss that is NaN leaves the parameters as they are."""
        return bool(getattr(self.hyper_params, "skip_nan_updates", False))

    def apply_gradient(
        self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
    ) -> tuple[Any, OptimizerState]:
        """Returns the parameters and the state one step later."""
        raise NotImplementedError

    def init_state(self, params: Any) -> OptimizerState:
        """Returns the state at step 0."""
        raise NotImplementedError

    def update_hyper_params(self, **hyper_param_overrides: Any) -> Any:
        """Returns the hyper-parameters with some replaced; `hyper_params=` replaces all first."""
        hyper_params = hyper_param_overrides.pop("hyper_params", self.hyper_params)
        return hyper_params.replace(**hyper_param_overrides)

    def create(self, target: Any) -> "Optimizer":
        """Returns an optimizer of the parameters `target` at step 0."""
        return Optimizer(self, self.init_state(target), target)

    def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
        return {"target": to_state_dict(target), "state": to_state_dict(state)}

    def restore_state(
        self, opt_target: Any, opt_state: OptimizerState, state_dict: Mapping[str, Any]
    ) -> tuple[Any, OptimizerState]:
        """Returns target and state of the given structure with the values of `state_dict`."""
        return (
            from_state_dict(opt_target, state_dict["target"]),
            from_state_dict(opt_state, state_dict["state"]),
        )


class Optimizer(flax.struct.PyTreeNode):
    """An OptimizerDef with its state and the parameters (`target`) it is optimizing."""

    optimizer_def: OptimizerDef = flax.struct.field(pytree_node=False)
    state: OptimizerState
    target: Any

    def apply_gradient(self, grads: Any, **hyper_param_overrides: Any) -> "Optimizer":
        """Returns the optimizer one step later, e.g. `apply_gradient(grads, learning_rate=lr)`."""
        hyper_params = self.optimizer_def.update_hyper_params(**hyper_param_overrides)
        target, state = self.optimizer_def.apply_gradient(
            hyper_params, self.target, self.state, grads
        )
        return self.replace(target=target, state=state)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer_def.state_dict(self.target, self.state)

    def restore_state(self, state: Mapping[str, Any]) -> "Optimizer":
        new_target, new_state = self.optimizer_def.restore_state(
            self.target, self.state, flax.core.unfreeze(state)
        )
        return self.replace(target=new_target, state=new_state)


OptimizerType = Optimizer
OptimizerStateType = OptimizerState | Mapping[str, Any]
OptimizerDefType = OptimizerDef


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


class OptaxStatePartitionRules:
    """Logical axes of optax states, read off their structure.

    Whatever in a state has the structure of the parameters gets the parameters' axes, array by
    array where the ranks agree; all else (counts, hyper-parameters, factored moments) gets None.
    """

    @classmethod
    def derive_optax_logical_axes(cls, optax_state: Any, params_axes: Any) -> Any:
        """Returns `optax_state` with a PartitionSpec, or None, for each array."""
        structure = jax.tree.structure(params_axes)

        def like_params(x: Any) -> bool:
            return jax.tree.structure(x, is_leaf=_is_masked) == structure

        return jax.tree.map(
            lambda x: cls.derive_params_axes(x, params_axes) if like_params(x) else None,
            optax_state,
            is_leaf=like_params,
        )

    @classmethod
    def derive_params_axes(cls, optax_params: Any, params_axes: Any) -> Any:
        """Returns the parameters' axes, less those that optax masked out or reshaped."""

        def axes_of(axes: PartitionSpec, x: Any) -> Any:
            if _is_masked(x):
                return x
            return axes if len(axes) <= jnp.ndim(x) else None

        return jax.tree.map(axes_of, params_axes, optax_params)


@flax.struct.dataclass
class _OptaxHyperParams:
    """The trainer sets a learning rate at every step; wrapped optimizers have their own."""

    learning_rate: Any = None


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_key_type(x: Any) -> Any:
    if not _is_key(x):
        return x
    is_shape = isinstance(x, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, x) if is_shape else jax.random.key_data(x)


def _with_key_type(x: Any, like: Any) -> Any:
    # Shapes and shardings are restored, too; only numbers can be made keys.
    if not _is_key(like) or not isinstance(x, jax.Array | np.ndarray):
        return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), like.dtype)))


class OptaxWrapper(OptimizerDef):
    """An optax optimizer as an OptimizerDef.

    State dicts leave out the states of optax that hold nothing, since a checkpoint cannot store an
    empty dict, and have plain numbers for random keys.

    Args:
      optax_optimizer: any optax gradient transformation.
    """

    def __init__(self, optax_optimizer: optax.GradientTransformation) -> None:
        self.optax_optimizer = optax_optimizer
        super().__init__(_OptaxHyperParams())

    def init_state(self, params: Any) -> OptimizerState:
        return OptimizerState(jnp.zeros([], jnp.int32), self.optax_optimizer.init(params))

    def apply_gradient(
        self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
    ) -> tuple[Any, OptimizerState]:
        del hyper_params
        updates, param_states = self.optax_optimizer.update(grads, state.param_states, params)
        return optax.apply_updates(params, updates), OptimizerState(state.step + 1, param_states)

    def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: Any) -> Optimizer:
        """Returns `optimizer` with a PartitionSpec of logical axes, or None, for each array."""
        param_states = OptaxStatePartitionRules.derive_optax_logical_axes(
            optimizer.state.param_states, param_logical_axes
        )
        return Optimizer(
            optimizer.optimizer_def, OptimizerState(None, param_states), param_logical_axes
        )

    def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
        flat = flatten_dict(to_state_dict(jax.tree.map(_without_key_type, state)))
        return {"target": to_state_dict(target), "state": unflatten_dict(flat)}

    def restore_state(
        self, opt_target: Any, opt_state: OptimizerState, state_dict: Mapping[str, Any]
    ) -> tuple[Any, OptimizerState]:
        """Returns target and state of the given structure with the values of `state_dict`.

        Raises:
          ValueError: `state_dict` lacks part of the optimizer's state.
        """
        wanted = flatten_dict(to_state_dict(opt_state), keep_empty_nodes=True)
        given = flatten_dict(dict(state_dict["state"]))
        missing = sorted(
            "/".join(path)
            for path, leaf in wanted.items()
            if path not in given and leaf is not empty_node
        )
        if missing:
            raise ValueError(
                f"optimizer state lacks {missing[0]} and {len(missing) - 1} more: it is of another "
                "optimizer; to start with a fresh one, bind "
                "RestoreCheckpointConfig.fallback_to_scratch = True"
            )
        filled = {
            path: _with_key_type(given[path], leaf) if path in given else leaf
            for path, leaf in wanted.items()
        }
        return (
            from_state_dict(opt_target, state_dict["target"]),
            from_state_dict(opt_state, unflatten_dict(filled)),
        )


def wrap_optax_optimizer(
    optax_optimizer: Callable[..., optax.GradientTransformation],
) -> Callable[..., OptaxWrapper]:
    """Turns a constructor of optax optimizers into one of OptimizerDefs with the same arguments."""

    @functools.wraps(optax_optimizer)
    def wrapped_optimizer(*args: Any, **kwargs: Any) -> OptaxWrapper:
        return OptaxWrapper(optax_optimizer(*args, **kwargs))

    return wrapped_optimizer


@wrap_optax_optimizer
def chain(transformations: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
    """Applies optax transformations one after the other."""
    return optax.chain(*transformations)


adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
dpsgd = wrap_optax_optimizer(optax.contrib.dpsgd)
fromage = wrap_optax_optimizer(optax.fromage)
lamb = wrap_optax_optimizer(optax.lamb)
lars = wrap_optax_optimizer(optax.lars)
lion = wrap_optax_optimizer(optax.lion)
noisy_sgd = wrap_optax_optimizer(optax.noisy_sgd)
radam = wrap_optax_optimizer(optax.radam)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
yogi = wrap_optax_optimizer(optax.yogi)


class MultiOptimizer(OptimizerDef):
    """Several optimizers, each for a part of the parameters; the rest stay as they are.

    The sub-optimizers keep one state per parameter, as Adafactor does. To mix optax optimizers use
    `optax.multi_transform` inside `OptaxWrapper`.

    Args:
      traversals_and_optimizers: pairs of a `flax.traverse_util.Traversal`, which picks parameters
        from a nested dict (e.g. ModelParamTraversal), and an OptimizerDef.
    """

    def __init__(self, traversals_and_optimizers: Sequence[tuple[Traversal, OptimizerDef]]) -> None:
        self.traversals, self.sub_optimizers = zip(*traversals_and_optimizers, strict=True)
        super().__init__([optimizer.hyper_params for optimizer in self.sub_optimizers])

    @property
    def skips_nan_updates(self) -> bool:
        return all(optimizer.skips_nan_updates for optimizer in self.sub_optimizers)

    def _paths(self, tree: Any) -> list[list[tuple[str, ...]]]:
        """Returns the paths of the parameters that each sub-optimizer is for."""
        tree_of_paths = unflatten_dict({path: path for path in flatten_dict(_plain(tree))})
        return [list(traversal.iterate(tree_of_paths)) for traversal in self.traversals]

    def init_state(self, params: Any) -> OptimizerState:
        paths = self._paths(params)
        claimed = [path for group in paths for path in group]
        twice = sorted("/".join(path) for path in set(claimed) if claimed.count(path) > 1)
        if twice:
            raise ValueError(f"MultiOptimizer: several optimizers match parameter {twice[0]}")
        states = {}
        for group, optimizer in zip(paths, self.sub_optimizers, strict=True):
            sub_states = optimizer.init_state(_pick(params, group)).param_states
            if not isinstance(sub_states, dict):
                raise ValueError(
                    f"MultiOptimizer: {type(optimizer).__name__} does not keep one state per "
                    "parameter; mix optax optimizers with optax.multi_transform"
                )
            states |= _picked(sub_states, group)
        return OptimizerState(jnp.zeros([], jnp.int32), _fill(params, states))

    def apply_gradient(
        self, hyper_params: Sequence[Any], params: Any, state: OptimizerState, grads: Any
    ) -> tuple[Any, OptimizerState]:
        new_params, new_states = {}, {}
        for group, optimizer, hparams in zip(
            self._paths(params), self.sub_optimizers, hyper_params, strict=True
        ):
            sub_state = OptimizerState(state.step, _pick(state.param_states, group))
            sub_params, sub_state = optimizer.apply_gradient(
                hparams, _pick(params, group), sub_state, _pick(grads, group)
            )
            new_params |= _picked(sub_params, group)
            new_states |= _picked(sub_state.param_states, group)
        untouched = flatten_dict(_plain(params))
        new_params = _fill(params, untouched | new_params)
        return new_params, OptimizerState(state.step + 1, _fill(params, new_states))

    def update_hyper_params(self, **hyper_param_overrides: Any) -> list[Any]:
        """Returns the hyper-parameters of each sub-optimizer with the same ones replaced in all."""
        hyper_params = hyper_param_overrides.pop("hyper_params", None) or [
            optimizer.hyper_params for optimizer in self.sub_optimizers
        ]
        return [hparams.replace(**hyper_param_overrides) for hparams in hyper_params]

    def set_param_axes(self, param_logical_axes: Any) -> None:
        """Passes each sub-optimizer the logical axes of its parameters."""
        for group, optimizer in zip(
            self._paths(param_logical_axes), self.sub_optimizers, strict=True
        ):
            if hasattr(optimizer, "set_param_axes"):
                optimizer.set_param_axes(_pick(param_logical_axes, group))

    def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: Any) -> Optimizer:
        """Returns `optimizer` with a PartitionSpec of logical axes, or None, for each array."""
        axes = {}
        for group, optimizer_def in zip(
            self._paths(param_logical_axes), self.sub_optimizers, strict=True
        ):
            sub_state = OptimizerState(None, _pick(optimizer.state.param_states, group))
            sub_optimizer = Optimizer(optimizer_def, sub_state, _pick(optimizer.target, group))
            if hasattr(optimizer_def, "derive_logical_axes"):
                derived = optimizer_def.derive_logical_axes(
                    sub_optimizer, _pick(param_logical_axes, group)
                )
                axes |= _picked(derived.state.param_states, group)
        param_states = _fill(param_logical_axes, axes)
        return Optimizer(
            optimizer.optimizer_def, OptimizerState(None, param_states), param_logical_axes
        )


def _plain(tree: Any) -> Any:
    return flax.core.unfreeze(tree)


def _picked(tree: Any, paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Any]:
    """Returns what lies at each of the paths."""
    return {path: functools.reduce(lambda node, key: node[key], path, tree) for path in paths}


def _pick(tree: Any, paths: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Returns the part of a nested dict that lies at the paths."""
    return unflatten_dict(_picked(tree, paths))


def _fill(like: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Returns a nested dict like `like` with the values by path, or None."""
    filled = unflatten_dict({path: values.get(path) for path in flatten_dict(_plain(like))})
    return flax.core.freeze(filled) if isinstance(like, flax.core.FrozenDict) else filled
