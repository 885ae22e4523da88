"""Every public name, parameter, default and method of upstream's encoder-decoder modules is here.

golden/surface.json lists them for google-research/t5x at cc342d41: for each name the parameters
with their defaults as source text (null: none), which of them are keyword-only, and the methods.
"""

import dataclasses
import importlib
import inspect
import json
import sys
from pathlib import Path

import gin
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from absl import logging

from t5x import checkpoints, decoding, gin_utils, partitioning, utils
from t5x.checkpoints import restoring
from t5x.run import console

SURFACE = json.loads((Path(__file__).parent / "golden/surface.json").read_text())
NAMES = [(module, name) for module, names in SURFACE.items() for name in names]

# What upstream has and this package has not: reason → names, "module:name" or "module:name.member".
LEFT_OUT = {
    "decoder-only models are not what T0 is about": ["t5x.models:DecoderOnlyModel"],
    "a stack computes its position bias once and passes it to each layer's call": [
        "t5x.examples.t5.network:EncoderLayer.relative_embedding",
        "t5x.examples.t5.network:DecoderLayer.relative_embedding",
    ],
}
# Whole modules of upstream that the list of names does not cover, for the record.
LEFT_OUT_MODULES = {
    "decoder-only models": ["t5x.examples.decoder_only"],
    "mixture of experts": ["t5x.contrib.moe"],
    "confident adaptive language modelling": ["t5x.contrib.calm"],
    "export to SavedModel": ["t5x.export", "t5x.export_lib"],
    "airio and fiddle, which have no release": ["t5x.config_utils", "t5x.fiddle_configs"],
    "notebooks": ["t5x.interactive_model"],
}
# Defaults that differ: name → (ours, why).
OTHER_DEFAULTS = {
    "t5x.utils:SaveCheckpointConfig.save_dataset": (
        None,
        "the position in the data is saved where it can be, so that a resumed run repeats nothing",
    ),
    "t5x.utils:RestoreCheckpointConfig.restore_dataset": (
        None,
        "False says that a run is not to go on in its own data either",
    ),
}
LEFT_OUT_NAMES = {name for names in LEFT_OUT.values() for name in names}
NAMESPACE = {
    "checkpoints": checkpoints,
    "dataclasses": dataclasses,
    "decoding": decoding,
    "gin": gin,
    "gin_utils": gin_utils,
    "jnp": jnp,
    "np": np,
    "seqio": seqio,
    "utils": utils,
}


def _member(module, name):
    return getattr(importlib.import_module(module), name, None)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_name_has_upstreams_parameters_and_methods(module, name):
    owner = f"{module}:{name}"
    found = _member(module, name)
    if owner in LEFT_OUT_NAMES:
        assert found is None, f"{owner} is there: take it off the list"
        return
    assert found is not None, f"{owner} is missing"
    spec = SURFACE[module][name]
    parameters = inspect.signature(found).parameters
    for parameter, default in spec["params"].items():
        full_name = f"{owner}.{parameter}"
        if full_name in LEFT_OUT_NAMES:
            assert parameter not in parameters, f"{full_name} is there: take it off the list"
        elif default == "struct.field(init=False)":
            assert hasattr(found, parameter), f"{full_name} is missing"
        else:
            assert parameter in parameters, f"{full_name} is missing"
            _check_default(full_name, parameters[parameter].default, default, found)
    for parameter in spec.get("keyword_only", ()):
        assert parameters[parameter].kind is inspect.Parameter.KEYWORD_ONLY
    for method in spec.get("methods", ()):
        # Instance attributes, made in __init__, count as properties that upstream has.
        assert hasattr(found, method) or f"self.{method} =" in inspect.getsource(found.__init__), (
            f"{owner}.{method} is missing"
        )


def _check_default(full_name, ours, upstreams, owner):
    owner_module = sys.modules[full_name.partition(":")[0]]
    if full_name in OTHER_DEFAULTS:
        assert ours == OTHER_DEFAULTS[full_name][0], full_name
    elif upstreams is None or "pytree_node" in upstreams:
        assert ours is inspect.Parameter.empty or upstreams, f"{full_name} has a default"
    elif "default_factory" in upstreams:
        (field,) = [f for f in dataclasses.fields(owner) if full_name.endswith(f".{f.name}")]
        assert field.default_factory is eval(upstreams, NAMESPACE).default_factory
    else:
        assert ours == eval(upstreams, NAMESPACE | vars(owner_module)), full_name


def test_left_out_names_are_upstreams():
    for name in LEFT_OUT_NAMES | set(OTHER_DEFAULTS):
        module, _, path = name.partition(":")
        owner, _, member = path.partition(".")
        assert owner in SURFACE[module]
        assert not member or member in SURFACE[module][owner]["params"]
    for modules in LEFT_OUT_MODULES.values():
        for module in modules:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(module)


def _dataset_config(**settings):
    return utils.DatasetConfig("task", {}, "train", 8, False, 0, **settings)


def _train_eval(**settings):
    with pytest.raises(ValueError, match="not a registered"):
        utils.get_training_eval_datasets(_dataset_config(), 0, 1, 1, None, **settings)


@pytest.mark.parametrize(
    ("parameter", "use"),
    [
        *(
            (f"DatasetConfig.{name}", lambda name=name: _dataset_config(**{name: 1}))
            for name in (
                "use_custom_packing_ops",
                "runtime_preprocessors",
                "num_prefetch_threads",
                "num_workers",
            )
        ),
        *(
            (f"get_training_eval_datasets.{name}", lambda name=name: _train_eval(**{name: 1}))
            for name in ("deterministic", "model_dir", "start_step")
        ),
        *(
            (f"{cls.__name__}.checkpointer_cls", lambda cls=cls: cls(None, checkpointer_cls=print))
            for cls in (utils.SaveCheckpointConfig, utils.RestoreCheckpointConfig)
        ),
        (
            "get_mesh.input_local_devices and tile_by_host_if_needed",
            lambda: partitioning.get_mesh((1, 1), tile_by_host_if_needed=False),
        ),
        (
            "use_orbax",
            lambda: restoring.create_checkpoint_manager_and_restore(
                *[None] * 2, None, None, None, use_orbax=False
            ),
        ),
    ],
)
def test_a_parameter_without_effect_says_so_once(parameter, use, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(console, "_ignored", set())
    for _ in range(2):
        try:
            use()
        except TypeError:
            assert parameter == "use_orbax"  # said before it looks at the rest
    assert [line.split(" is accepted without effect")[0] for line in lines] == [parameter]


def test_parameters_at_their_defaults_say_nothing(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda *args: lines.append(args))
    _dataset_config()
    utils.SaveCheckpointConfig()
    utils.RestoreCheckpointConfig("x", checkpointer_cls=checkpoints.SaveBestCheckpointer)
    partitioning.get_mesh((1, 1))
    assert not lines
