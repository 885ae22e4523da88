"""Wrapped optax optimizers and MultiOptimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.traverse_util import ModelParamTraversal, flatten_dict
from jax.sharding import PartitionSpec as P

from t5x import adafactor, optimizers

PARAMS = {"dense": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3)}}
GRADS = jax.tree.map(jnp.cos, PARAMS)
AXES = {"dense": {"kernel": P("embed", "mlp"), "bias": P("mlp")}}

WRAPPED = {
    "adabelief": (0.1,), "adagrad": (0.1,), "adam": (0.1,), "adamw": (0.1,), "fromage": (0.1,),
    "lamb": (0.1,), "lars": (0.1,), "lion": (0.1,), "noisy_sgd": (0.1,), "radam": (0.1,),
    "rmsprop": (0.1,), "sgd": (0.1, 0.9), "yogi": (0.1,),
}  # fmt: skip


def without_keys(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, *map(without_keys, (a, b)))


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_optimizer_is_optax(name):
    transformation = getattr(optax, name)(*WRAPPED[name])
    optimizer = getattr(optimizers, name)(*WRAPPED[name]).create(PARAMS)
    step = jax.jit(lambda optimizer: optimizer.apply_gradient(GRADS, learning_rate=77.0))

    @jax.jit
    def optax_step(params, state):
        updates, state = transformation.update(GRADS, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, transformation.init(PARAMS)
    for _ in range(2):
        optimizer = step(optimizer)
        params, state = optax_step(params, state)
    assert_trees_equal(optimizer.target, params)
    assert_trees_equal(optimizer.state.param_states, state)
    assert int(optimizer.state.step) == 2


def test_chain_and_constructor_arguments():
    clip, sgd = optax.clip(0.1), optax.sgd(1.0)
    optimizer = optimizers.chain(transformations=[clip, sgd]).create(PARAMS)
    moved = optimizer.apply_gradient(GRADS, learning_rate=None).target["dense"]["bias"]
    np.testing.assert_allclose(moved, 1 - 0.1)
    assert optimizers.adamw.__name__ == "adamw"


@pytest.mark.parametrize(
    "transformation",
    [
        optax.adamw(0.1),
        optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        optax.masked(optax.adam(0.1), {"dense": {"kernel": True, "bias": False}}),
        optax.apply_if_finite(optax.adam(0.1), 3),
        optax.noisy_sgd(0.1, key=jax.random.key(5)),
    ],
)
def test_state_dict_has_no_empty_nodes_and_restores(transformation):
    optimizer = optimizers.OptaxWrapper(transformation).create(PARAMS)
    optimizer = optimizer.apply_gradient(GRADS, learning_rate=None)
    state_dict = optimizer.state_dict()
    flat = flatten_dict(state_dict, keep_empty_nodes=True)
    assert all(isinstance(np.asarray(leaf), np.ndarray) for leaf in flat.values())
    shapes = jax.eval_shape(lambda: optimizer)
    assert jax.tree.map(jnp.shape, shapes.state_dict()) == jax.tree.map(jnp.shape, state_dict)
    assert_trees_equal(shapes.restore_state(state_dict).state, optimizer.state)
    fresh = optimizers.OptaxWrapper(transformation).create(jax.tree.map(jnp.zeros_like, PARAMS))
    restored = fresh.restore_state(state_dict)
    assert_trees_equal(restored.state, optimizer.state)
    assert_trees_equal(restored.target, optimizer.target)


def test_restoring_another_optimizer_says_so():
    state_dict = optimizers.sgd(0.1).create(PARAMS).state_dict()
    with pytest.raises(ValueError, match=r"lacks state|lacks param_states/0/.* another optimizer"):
        optimizers.adam(0.1).create(PARAMS).restore_state(state_dict)


def axes_of(transformation, params=PARAMS, axes=AXES):
    optimizer_def = optimizers.OptaxWrapper(transformation)
    return optimizer_def.derive_logical_axes(optimizer_def.create(params), axes)


def test_axes_of_states_that_look_like_parameters():
    optimizer = axes_of(optax.adamw(0.1))
    assert optimizer.target == AXES
    adam = optimizer.state.param_states[0]
    assert (adam.mu, adam.nu, adam.count) == (AXES, AXES, None)
    frozen = axes_of(optax.adamw(0.1), freeze(PARAMS), freeze(AXES))
    assert frozen.state.param_states[0].mu == freeze(AXES)


def test_axes_in_nested_states():
    steps = axes_of(optax.MultiSteps(optax.lion(0.1), 2).gradient_transformation())
    state = steps.state.param_states
    assert state.acc_grads == AXES
    assert state.inner_opt_state[0].mu == AXES
    assert (state.mini_step, state.gradient_step) == (None, None)
    mask = {"dense": {"kernel": True, "bias": False}}
    mu = axes_of(optax.masked(optax.scale_by_adam(), mask)).state.param_states.inner_state.mu
    assert mu["dense"]["kernel"] == P("embed", "mlp")
    assert isinstance(mu["dense"]["bias"], optax.MaskedNode)


def test_axes_of_factored_optax_states_stay_within_their_rank():
    params = {"kernel": jnp.ones((128, 256))}
    optimizer = axes_of(optax.adafactor(0.1), params, {"kernel": P("embed", "mlp")})
    for axes, x in zip(
        jax.tree.leaves(optimizer.state.param_states, is_leaf=lambda x: x is None),
        jax.tree.leaves(
            optimizers.OptaxWrapper(optax.adafactor(0.1)).create(params).state.param_states
        ),
        strict=True,
    ):
        assert axes is None or len(axes) <= x.ndim


def multi(**options):
    return optimizers.MultiOptimizer(
        [
            (
                ModelParamTraversal(lambda path, _: "kernel" in path),
                adafactor.Adafactor(
                    0.1,
                    logical_factor_rules=adafactor.standard_logical_factor_rules(),
                    min_dim_size_to_factor=2,
                ),
            ),
            (ModelParamTraversal(lambda path, _: "bias" in path), adafactor.Adafactor(0.2)),
        ],
        **options,
    )


@pytest.mark.parametrize("freezing", [freeze, dict])
def test_multi_optimizer_is_each_on_its_own(freezing):
    params = freezing({**PARAMS, "norm": {"scale": jnp.ones(3)}})
    axes = freezing({**AXES, "norm": {"scale": P("embed")}})
    grads = jax.tree.map(jnp.cos, params)
    optimizer_def = multi()
    optimizer_def.set_param_axes(axes)
    optimizer = optimizer_def.create(params)
    new = optimizer.apply_gradient(grads, learning_rate=0.5)
    for (_, sub), name in zip(
        zip(optimizer_def.traversals, optimizer_def.sub_optimizers, strict=True),
        ("kernel", "bias"),
        strict=True,
    ):
        alone = sub.create({"dense": {name: params["dense"][name]}})
        alone = alone.apply_gradient({"dense": {name: grads["dense"][name]}}, learning_rate=0.5)
        np.testing.assert_array_equal(new.target["dense"][name], alone.target["dense"][name])
        np.testing.assert_array_equal(
            new.state.param_states["dense"][name].v, alone.state.param_states["dense"][name].v
        )
    np.testing.assert_array_equal(new.target["norm"]["scale"], params["norm"]["scale"])
    assert new.state.param_states["norm"]["scale"] is None
    assert jax.tree.structure(new) == jax.tree.structure(optimizer)
    derived = optimizer_def.derive_logical_axes(optimizer, axes)
    assert derived.state.param_states["dense"]["kernel"].v_row == P("embed")
    assert derived.state.param_states["dense"]["bias"].v == P("mlp")
    assert derived.state.param_states["norm"]["scale"] is None
    assert_trees_equal(optimizer.restore_state(new.state_dict()), new)


def test_multi_optimizer_learning_rates_by_hyper_params():
    optimizer = multi().create(PARAMS)
    kernel, bias = optimizer.optimizer_def.hyper_params
    new = optimizer.apply_gradient(
        GRADS, hyper_params=[kernel.replace(learning_rate=0.0), bias.replace(learning_rate=1.0)]
    )
    np.testing.assert_array_equal(new.target["dense"]["kernel"], PARAMS["dense"]["kernel"])
    assert not np.array_equal(new.target["dense"]["bias"], PARAMS["dense"]["bias"])


def test_multi_optimizer_refuses_what_it_cannot_do():
    everything = ModelParamTraversal(lambda path, _: True)
    twice = optimizers.MultiOptimizer([(everything, adafactor.Adafactor())] * 2)
    with pytest.raises(ValueError, match="several optimizers match parameter dense/bias"):
        twice.create(PARAMS)
    with pytest.raises(ValueError, match=r"OptaxWrapper .* optax.multi_transform"):
        optimizers.MultiOptimizer([(everything, optimizers.adam(0.1))]).create(PARAMS)
