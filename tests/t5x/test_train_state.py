"""Train states: layout of the state dict, restoring, logical axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, freeze
from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from t5x import adafactor, optimizers
from t5x.train_state import FlaxOptimTrainState, InferenceState, TrainState

VARIABLES = {
    "params": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}},
    "params_axes": {
        "dense": {
            "kernel_axes": flax_partitioning.AxisMetadata(("embed", "mlp")),
            "bias_axes": flax_partitioning.AxisMetadata(("mlp",)),
        }
    },
    "batch_stats": {"mean": jnp.zeros(3)},
    "batch_stats_axes": {"mean_axes": flax_partitioning.AxisMetadata(("mlp",))},
}
PLAIN = {name: VARIABLES[name] for name in ("params", "params_axes")}


def make_adafactor():
    return adafactor.Adafactor(0.1, logical_factor_rules=adafactor.standard_logical_factor_rules())


@pytest.mark.parametrize("freezing", [freeze, dict])
def test_layout_of_the_state_dict(freezing):
    state = FlaxOptimTrainState.create(make_adafactor(), freezing(PLAIN))
    assert isinstance(state, TrainState)
    moments = {
        f"state/param_states/dense/{p}/{m}"
        for p in ("kernel", "bias")
        for m in ("v_row", "v_col", "v", "m")
    }
    assert flatten_dict(state.state_dict(), sep="/").keys() == moments | {
        "state/step",
        "target/dense/kernel",
        "target/dense/bias",
    }
    with_mutables = FlaxOptimTrainState.create(optimizers.sgd(0.1), freezing(VARIABLES))
    assert with_mutables.state_dict()["flax_mutables"].keys() == {"batch_stats"}
    assert not isinstance(with_mutables.state_dict()["flax_mutables"], FrozenDict)


@pytest.mark.parametrize("freezing", [freeze, dict])
@pytest.mark.parametrize("make", [make_adafactor, lambda: optimizers.adamw(0.1)])
def test_steps_and_restoring(freezing, make):
    state = FlaxOptimTrainState.create(make(), freezing(VARIABLES))
    stats = freeze({"batch_stats": {"mean": jnp.ones(3)}})
    new = state.apply_gradient(jax.tree.map(jnp.ones_like, state.params), 0.1, stats)
    assert int(new.step) == 1
    assert new.flax_mutables is stats
    restored = state.restore_state(new.state_dict())
    assert jax.tree.structure(restored) == jax.tree.structure(new)
    jax.tree.map(np.testing.assert_array_equal, restored, new)
    assert type(restored.params) is type(state.params)
    # Mutables that a step does not hand on are gone, as in T5X.
    assert not state.apply_gradient(state.params, 0.1).flax_mutables


def test_replacing():
    for state in (
        FlaxOptimTrainState.create(make_adafactor(), PLAIN),
        InferenceState.create(PLAIN),
    ):
        assert state.replace_step(jnp.array(5)).step == 5
        doubled = state.replace_params(jax.tree.map(lambda x: 2 * x, state.params))
        np.testing.assert_array_equal(doubled.params["dense"]["kernel"], 2 * np.ones((2, 3)))
        assert state.replace_flax_mutables(freeze({"a": 1})).flax_mutables == freeze({"a": 1})


def test_jit_and_eval_shape_keep_the_structure():
    shapes = jax.eval_shape(lambda: FlaxOptimTrainState.create(make_adafactor(), freeze(PLAIN)))
    assert shapes.params["dense"]["kernel"].shape == (2, 3)
    assert shapes.as_logical_axes().params["dense"]["kernel"] == P("embed", "mlp")
    state = FlaxOptimTrainState.create(make_adafactor(), freeze(PLAIN))
    new = jax.jit(lambda state: state.apply_gradient(state.params, 0.1))(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("freezing", [freeze, dict])
def test_logical_axes(freezing):
    axes = FlaxOptimTrainState.create(make_adafactor(), freezing(VARIABLES)).as_logical_axes()
    flat = flatten_dict(axes.state_dict(), sep="/")
    assert (
        flat["target/dense/kernel"]
        == flat["state/param_states/dense/kernel/v"]
        == P("embed", "mlp")
    )
    assert flat["flax_mutables/batch_stats/mean"] == P("mlp")
    assert flat["state/step"] is None
    inference = InferenceState.create(freezing(VARIABLES)).as_logical_axes()
    assert inference.step is None
    assert inference.params["dense"]["bias"] == P("mlp")
    assert inference.flax_mutables["batch_stats"]["mean"] == P("mlp")


def test_inference_state():
    state = InferenceState.create(VARIABLES)
    assert flatten_dict(state.state_dict(), sep="/").keys() == {
        "target/dense/kernel",
        "target/dense/bias",
        "state/step",
        "flax_mutables/batch_stats/mean",
    }
    trained = FlaxOptimTrainState.create(make_adafactor(), VARIABLES).replace_step(jnp.array(9))
    restored = state.restore_state(trained.state_dict())
    assert restored.step == 9
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    with pytest.raises(NotImplementedError, match="no optimizer"):
        state.apply_gradient(None, 0.1)
    with pytest.raises(NotImplementedError, match="no optimizer"):
        _ = state.param_states


def test_errors_name_what_lacks_axes():
    only_params = {"params": VARIABLES["params"]}
    with pytest.raises(ValueError, match="Adafactor needs logical axis names"):
        FlaxOptimTrainState.create(make_adafactor(), only_params)
    partial = {
        **PLAIN,
        "params_axes": {"dense": {"bias_axes": PLAIN["params_axes"]["dense"]["bias_axes"]}},
    }
    for create in (
        InferenceState.create,
        lambda v: FlaxOptimTrainState.create(make_adafactor(), v),
    ):
        with pytest.raises(ValueError, match="no logical axis names for dense/kernel"):
            create(partial)
    without = FlaxOptimTrainState.create(optimizers.sgd(0.1), only_params)
    for state in (without, InferenceState.create(only_params)):
        with pytest.raises(ValueError, match="emits no 'params_axes'"):
            state.as_logical_axes()
    bare = FlaxOptimTrainState(optimizers.Optimizer(optimizers.OptimizerDef(None), None, {}))
    with pytest.raises(ValueError, match="no derive_logical_axes"):
        bare.as_logical_axes()
