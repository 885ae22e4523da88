"""Adafactor against T5X, and against itself on scanned and unrolled parameters.

golden/adafactor.json holds what google-research/t5x at cc342d419ec3e3e9c4bf1df33c82330cafdc1e16
computes; to compute it anew run this file with that repository first on PYTHONPATH::

    python tests/t5x/test_adafactor.py > tests/t5x/golden/adafactor.json
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from t5x import adafactor

GOLDEN = pathlib.Path(__file__).parent / "golden" / "adafactor.json"
STEPS = 10
PARAMETERS = {
    "token_embedder/embedding": ((160, 132), ("vocab", "embed")),
    "attention/query/kernel": ((132, 144), ("embed", "joined_kv")),
    "attention/out/kernel": ((144, 132), ("joined_kv", "embed")),
    "mlp/wi/kernel": ((16, 24), ("embed", "mlp")),
    "layer_norm/scale": ((132,), ("embed",)),
    "relpos_bias/rel_embedding": ((4, 32), ("heads", "relpos_buckets")),
    "scanned/wi/kernel": ((8, 3, 12), ("embed", "layers", "mlp")),
    "scanned/wo/kernel": ((12, 3, 8), ("mlp", "layers", "embed")),
    "scanned/scale": ((8, 3), ("embed", "layers")),
}
# All parameters under all options would take a minute to compile.
FEW = ("token_embedder/embedding", "layer_norm/scale", "scanned/wo/kernel")
KEPT = {"plain": tuple(PARAMETERS), "small factors": ("mlp/wi/kernel",)}
OPTIONS = {
    "plain": {},
    "no parameter scale": {"multiply_by_parameter_scale": False},
    "parameter scale by name": {
        "multiply_by_parameter_scale": adafactor.HParamMap([("scale", False), (".*", True)])
    },
    "momentum": {"beta1": 0.9},
    "bfloat16 momentum": {"beta1": 0.9, "dtype_momentum": "bfloat16"},
    "no clipping": {"clipping_threshold": None},
    "clipping": {"clipping_threshold": 0.5},
    "weight decay": {"weight_decay_rate": 0.01},
    "weight decay by learning rate": {"weight_decay_rate_lr_exponent": 2.0},
    "both weight decays": {"weight_decay_rate_lr_exponent": 2.0, "weight_decay_rate": 0.5},
    "global norm": {"global_norm_clip_threshold": 1.0},
    "largest parameter scale": {"max_parameter_scale": 0.2},
    "NaN": {"skip_nan_updates": True, "beta1": 0.5},
    "offset and constants": {
        "step_offset": -1000, "decay_rate": 0.7, "epsilon1": 1e-8, "epsilon2": 0.5,
    },
    "unfactored": {"factored": False},
    "small factors": {"min_dim_size_to_factor": 8},
}  # fmt: skip


# Compiling takes nearly all the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def wave(shape, phase, scale):
    i = np.arange(np.prod(shape), dtype=np.float64)
    x = np.sin(0.37 * i * (1 + phase) + phase) + 0.3 * np.cos(0.011 * i * i + phase)
    return (scale * x).reshape(shape).astype(np.float32)


def tree(leaf_of):
    leaves = {tuple(k.split("/")): leaf_of(i, *v) for i, (k, v) in enumerate(PARAMETERS.items())}
    return freeze(unflatten_dict(leaves))


def gradients(step, with_nan):
    def gradient(i, shape, _):
        x = wave(shape, i + 10 * step + 3, 0.1 * (step + 1))
        if with_nan and step == 4 and i % 2 == 0:
            x.flat[3] = np.nan
        return jnp.asarray(x)

    return tree(gradient)


def initial_parameters():
    return tree(lambda i, shape, _: jnp.asarray(wave(shape, i, 0.5)))


def make(**options):
    optimizer_def = adafactor.Adafactor(
        learning_rate=0.1,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        **options,
    )
    optimizer_def.set_param_axes(tree(lambda i, shape, axes: P(*axes)))
    return optimizer_def


def train(name):
    """Ten steps; returns the state dict with [norm, a third in, last] for each array."""

    def pick(params):
        flat = flatten_dict(unfreeze(params), sep="/")
        return freeze(unflatten_dict({path: flat[path] for path in KEPT.get(name, FEW)}, sep="/"))

    optimizer = make(**OPTIONS[name]).create(pick(initial_parameters()))
    step = jit(lambda optimizer, grads, lr: optimizer.apply_gradient(grads, learning_rate=lr))
    for i in range(STEPS):
        grads = pick(gradients(i, name == "NaN"))
        optimizer = step(optimizer, grads, 1 / np.sqrt(i + 10))
    state = flatten_dict(unfreeze(optimizer.state_dict()), sep="/")
    probes = {}
    for path, x in state.items():
        x = np.asarray(x, np.float64).ravel()
        if x.any():
            probes[path] = [
                float(f"{v:.9g}") for v in (np.sqrt(np.mean(x * x)), x[x.size // 3], x[-1])
            ]
    return probes


@pytest.mark.parametrize("name", OPTIONS)
def test_ten_steps_equal_t5x(name):
    golden = json.loads(GOLDEN.read_text())[name]
    probes = train(name)
    assert probes.keys() == golden.keys()
    for path, expected in golden.items():
        np.testing.assert_allclose(
            probes[path], expected, rtol=1e-6, atol=1e-6 * expected[0], err_msg=path
        )


LAYERS = 3
STACKED = {
    "wi": ((128, LAYERS, 160), ("embed", "layers", "mlp")),
    "wo": ((160, LAYERS, 128), ("mlp", "layers", "embed")),
    "query": ((128, LAYERS, 128), ("embed", "layers", "joined_kv")),
    "scale": ((128, LAYERS), ("embed", "layers")),
}


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "weight_decay_rate": 0.01}])
def test_scanned_parameter_updates_as_its_layers(options):
    rules = adafactor.standard_logical_factor_rules()

    def trained(layer):
        pick = (lambda x: x) if layer is None else (lambda x: x[:, layer])
        axes = {
            name: P(*axes) if layer is None else P(*(a for a in axes if a != "layers"))
            for name, (_, axes) in STACKED.items()
        }
        optimizer_def = adafactor.Adafactor(0.1, logical_factor_rules=rules, **options)
        optimizer_def.set_param_axes(axes)
        optimizer = optimizer_def.create(
            {name: jnp.asarray(pick(wave(shape, 2, 0.5))) for name, (shape, _) in STACKED.items()}
        )
        for i in range(3):
            gradient = {n: pick(wave(shape, i + 3, 0.1)) for n, (shape, _) in STACKED.items()}
            optimizer = step(optimizer, gradient)
        return optimizer.target

    # One compilation serves all layers.
    step = jit(lambda optimizer, grads: optimizer.apply_gradient(grads))
    scanned = trained(None)
    for layer in range(LAYERS):
        for name, x in trained(layer).items():
            np.testing.assert_allclose(scanned[name][:, layer], x, rtol=2e-6, atol=1e-7)


def test_transformation_is_an_optax_one():
    optimizer_def = adafactor.Adafactor(0.1, min_dim_size_to_factor=4, beta1=0.9)
    params = {"a": {"kernel": jnp.asarray(wave((4, 6), 1, 0.5))}}
    grads = jax.tree.map(jnp.cos, params)
    transformation = optax.chain(
        adafactor.adafactor_transformation(optimizer_def.hyper_params), optax.identity()
    )
    updates, state = transformation.update(grads, transformation.init(params), params)
    optimizer = optimizer_def.create(params).apply_gradient(grads)
    np.testing.assert_array_equal(
        optax.apply_updates(params, updates)["a"]["kernel"], optimizer.target["a"]["kernel"]
    )
    assert int(state[0].count) == int(optimizer.state.step) == 1
    np.testing.assert_array_equal(
        state[0].param_states["a"]["kernel"].v_row,
        optimizer.state.param_states["a"]["kernel"].v_row,
    )


def test_parameters_keep_their_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), initial_parameters())
    grads = gradients(0, False)
    optimizer = jax.eval_shape(lambda: make().create(params).apply_gradient(grads))
    assert {x.dtype for x in jax.tree.leaves(optimizer.target)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(optimizer.state)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }


def test_moments_have_the_logical_axes_they_keep():
    optimizer_def = make(beta1=0.9)
    optimizer = optimizer_def.create(initial_parameters())
    axes = optimizer_def.derive_logical_axes(optimizer, tree(lambda i, shape, axes: P(*axes)))
    state = flatten_dict(unfreeze(axes.state_dict()), sep="/")

    def at(path):
        return [
            state[f"state/param_states/{path}/{field}"] for field in ("v_row", "v_col", "v", "m")
        ]

    full = P("embed", "layers", "mlp")
    assert at("scanned/wi/kernel") == [P("embed", "layers"), P("layers", "mlp"), None, full]
    assert at("scanned/wo/kernel")[:2] == [P("layers", "embed"), P("mlp", "layers")]
    assert at("token_embedder/embedding")[:3] == [P("embed"), P("vocab"), None]
    assert at("layer_norm/scale") == [None, None, P("embed"), P("embed")]
    for path, x in flatten_dict(unfreeze(optimizer.state_dict()), sep="/").items():
        assert state[path] is None or len(state[path]) == x.ndim, path


def test_hparam_map_takes_the_first_rule_found():
    hparams = adafactor.HParamMap([("bias", 1), ("dense/", 2)])
    assert hparams["dense/bias"] == 1
    assert hparams({"dense": {"bias": 0, "kernel": 0}}) == {"dense": {"bias": 1, "kernel": 2}}
    with pytest.raises(KeyError, match="norm/scale"):
        hparams["norm/scale"]


def test_rules_by_name_in_a_gin_file():
    optimizer_def = adafactor.Adafactor(logical_factor_rules={"a": "row", "b": "Col", "c": "batch"})
    optimizer_def.set_param_axes({"x": P("c", "a", "b"), "y": P("c", "a")})
    state = optimizer_def.init_state({"x": jnp.ones((2, 3, 4)), "y": jnp.ones((2, 3))})
    assert state.param_states["x"].v_row.shape == (2, 3)
    assert state.param_states["x"].v_col.shape == (2, 4)
    assert state.param_states["y"].v.shape == (2, 3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: adafactor.Adafactor(factored=False, factor_map=adafactor.HParamMap([])), "factor"),
        (lambda: adafactor.Adafactor().init_state({"x": jnp.ones((2, 3, 4))}), "parameter x of"),
        (
            lambda: adafactor.Adafactor().create({"x": jnp.ones(2)}).apply_gradient({"x": 1.0}),
            "no learning rate",
        ),
        (
            lambda: adafactor.Adafactor(logical_factor_rules={"a": "row"}).set_param_axes(
                {"x": P("a", "z")}
            ),
            "no rule for axis 'z' of parameter x",
        ),
        (
            lambda: adafactor.Adafactor(
                logical_factor_rules={"a": "row", "b": "col", "c": "none"}
            ).set_param_axes({"x": P("a", "b", "c")}),
            "only part of parameter x",
        ),
        (
            lambda: adafactor.Adafactor(
                factor_map=adafactor.HParamMap([("x", (adafactor.FactorDim.ROW,))])
            ).init_state({"x": jnp.ones((2, 3))}),
            "names 1 axes",
        ),
    ],
)
def test_errors_name_the_parameter_and_the_setting(action, message):
    with pytest.raises(ValueError, match=message) as error:
        action()
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    print(json.dumps({name: train(name) for name in OPTIONS}, separators=(",", ":")))
