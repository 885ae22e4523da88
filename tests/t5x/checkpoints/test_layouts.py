"""Scanned and unrolled checkpoints, converted into each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x import adafactor, optimizers
from t5x.checkpoints import layouts

LAYERS = 2
KERNELS = {
    # Longer first, longer last, square, one axis, and one too small to factor where unrolled.
    "mlp/wi/kernel": ((10, 16), ("embed", "mlp")),
    "mlp/wo/kernel": ((16, 10), ("mlp", "embed")),
    "attention/out/kernel": ((10, 10), ("joined_kv", "embed")),
    "layer_norm/scale": ((10,), ("embed",)),
    "mlp/tiny/kernel": ((4, 6), ("embed", "mlp")),
}


# An unfactored Adafactor takes norms over all layers of a scanned parameter, as T5X's does.
ELEMENTWISE = {"multiply_by_parameter_scale": False, "clipping_threshold": None}


def parameters(scanned, axis=1):
    """The same parameters in either layout, with their logical axes."""
    rng = np.random.default_rng(0)
    params, axes = {"shared/embedding": jnp.ones((8, 4))}, {"shared/embedding": P("vocab", "embed")}
    for name, (shape, names) in KERNELS.items():
        layers = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(LAYERS)]
        if scanned:
            params[f"encoder/encoder/{name}"] = jnp.stack(layers, axis)
            axes[f"encoder/encoder/{name}"] = P(*names[:axis], "layers", *names[axis:])
        else:
            params |= {f"encoder/layers_{i}/{name}": layer for i, layer in enumerate(layers)}
            axes |= {f"encoder/layers_{i}/{name}": P(*names) for i in range(LAYERS)}
    return unflatten_dict(params, sep="/"), unflatten_dict(axes, sep="/")


def trained_state(optimizer_def, scanned, axis=1):
    """The flat state dict after three steps, and the optimizer's factor map."""
    params, axes = parameters(scanned, axis)
    if hasattr(optimizer_def, "set_param_axes"):
        optimizer_def.set_param_axes(axes)
    optimizer = optimizer_def.create(params)
    # Compiling takes nearly all the time of these tests.
    step = jax.jit(
        lambda o: o.apply_gradient(jax.tree.map(jnp.cos, o.target), learning_rate=0.1),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    for _ in range(3):
        optimizer = step(optimizer)
    factor_map = getattr(optimizer_def.hyper_params, "factor_map", None) or {}
    return flatten_dict(optimizer.state_dict(), sep="/"), factor_map


def convert(source, target, factor_map):
    stored = {
        k: layouts.StoredArray(tuple(k.split("/")), x.shape, x.dtype) for k, x in source.items()
    }
    sources = layouts.plan(stored, {path: x.shape for path, x in target.items()}, factor_map)
    mesh = Mesh(np.array(jax.devices()[:1]), "x")
    converted = {}
    for path, found in sources.items():
        arrays = [source["/".join(array.path)] for array in found.inputs]
        converted[path] = found.build(arrays, NamedSharding(mesh, P()))
        assert converted[path].shape == found.shape
    return converted


def adafactor_def(**options):
    rules = adafactor.standard_logical_factor_rules()
    return adafactor.Adafactor(0.1, logical_factor_rules=rules, min_dim_size_to_factor=8, **options)


@pytest.mark.parametrize(
    ("make", "axis"),
    [
        (lambda: adafactor_def(beta1=0.9), 1),
        (lambda: adafactor_def(), 0),
        (lambda: adafactor_def(factored=False, **ELEMENTWISE), 1),
        (lambda: optimizers.adamw(0.1), 1),
    ],
    ids=["momentum", "first axis", "unfactored", "adamw"],
)
def test_each_layout_becomes_the_other(make, axis):
    scanned, scanned_map = trained_state(make(), True, axis)
    unrolled, unrolled_map = trained_state(make(), False)
    for source, target, factor_map in (
        (unrolled, scanned, scanned_map),
        (scanned, unrolled, unrolled_map),
    ):
        converted = convert(source, target, factor_map)
        assert converted.keys() == target.keys()
        for path, expected in target.items():
            assert converted[path].shape == expected.shape, path
            if "tiny" in path:
                # Factored in one layout only: the updates differ, hence everything does.
                continue
            np.testing.assert_allclose(
                converted[path], expected, rtol=1e-5, atol=1e-6, err_msg=path
            )


def test_small_kernels_are_averaged_to_factors_and_estimated_back():
    unrolled, unrolled_map = trained_state(adafactor_def(), False)
    scanned, scanned_map = trained_state(adafactor_def(), True)
    base = "state/param_states/encoder/encoder/mlp/tiny/kernel"
    layer = "state/param_states/encoder/layers_1/mlp/tiny/kernel/v"
    converted = convert(unrolled, scanned, scanned_map)
    v = unrolled[layer]
    np.testing.assert_allclose(converted[f"{base}/v_row"][:, 1], v.mean(1), rtol=1e-6)
    np.testing.assert_allclose(converted[f"{base}/v_col"][1], v.mean(0), rtol=1e-6)
    back = convert(scanned | converted, unrolled, unrolled_map)[layer]
    np.testing.assert_allclose(back, np.outer(v.mean(1), v.mean(0)) / v.mean(), rtol=1e-5)


def test_inputs_are_read_sharded_as_the_result():
    state, factor_map = trained_state(adafactor_def(), False)
    stored = {
        k: layouts.StoredArray(tuple(k.split("/")), x.shape, x.dtype) for k, x in state.items()
    }
    path = "target/encoder/encoder/mlp/wi/kernel"
    source = layouts.plan(stored, {path: (10, LAYERS, 16)}, factor_map)[path]
    assert source.input_spec(P("data", None, "model")) == P("data", "model")
    stored = {path: layouts.StoredArray(tuple(path.split("/")), (10, LAYERS, 16), np.float32)}
    wanted = {f"target/encoder/layers_{i}/mlp/wi/kernel": (10, 16) for i in range(LAYERS)}
    source = layouts.plan(stored, wanted, {})["target/encoder/layers_1/mlp/wi/kernel"]
    assert source.input_spec(P(None, "model")) == P(None, None, "model")


def test_other_numbers_of_layers_show_in_the_shape():
    state, factor_map = trained_state(adafactor_def(), False)
    stored = {
        k: layouts.StoredArray(tuple(k.split("/")), x.shape, x.dtype) for k, x in state.items()
    }
    path = "target/encoder/encoder/mlp/wi/kernel"
    assert layouts.plan(stored, {path: (10, 5, 16)}, factor_map)[path].shape == (10, 2, 16)
    assert layouts.plan(stored, {"target/encoder/encoder/other": (1,)}, factor_map) == {}
