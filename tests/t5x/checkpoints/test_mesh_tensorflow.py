"""TensorFlow checkpoints with Mesh TensorFlow's names, restored scanned and unrolled."""

import re

import jax
import numpy as np
import pytest
import tensorflow as tf
from flax import traverse_util

from t5x import adafactor, partitioning, utils
from t5x.checkpoints import restoring
from t5x.checkpoints.formats import mesh_tensorflow
from t5x.checkpoints.layouts import TargetArray

LENGTHS = {"encoder_input_tokens": (8, 6), "decoder_input_tokens": (8, 6)}
SIZES = {"emb_dim": 128, "num_heads": 2, "head_dim": 64, "mlp_dim": 136}


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def scan_layers(request):
    return request.param


def _initializer(tiny_t5, scan_layers, partitioner):
    model = tiny_t5.model(scan_layers=scan_layers, **SIZES)
    optimizer = adafactor.Adafactor(
        1e-3, logical_factor_rules=adafactor.standard_logical_factor_rules()
    )
    return utils.TrainStateInitializer(optimizer, model.get_initial_variables, LENGTHS, partitioner)


def _variable_name(path):
    """Mesh TensorFlow's name of an array of the unrolled train state, None for what it lacks."""
    if path == "state/step":
        return "global_step"
    field = ""
    if path.startswith("state/"):
        path, _, field = path.removeprefix("state/param_states/").rpartition("/")
        if field == "m":
            return None
        field = {"v": "_slot_v", "v_row": "_slot_vr", "v_col": "_slot_vc"}[field]
    path = path.removeprefix("target/")
    if path == "token_embedder/embedding":
        return f"shared/embedding{field}"
    if path == "decoder/logits_dense/kernel":
        return f"decoder/logits/kernel{field}"
    stack, rest = path.split("/", 1)
    if rest == "relpos_bias/rel_embedding":
        return f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias{field}"
    if rest.endswith("_norm/scale") and "layers_" not in rest:
        return f"{stack}/{'final_layer' if stack == 'encoder' else 'rms'}_norm/scale{field}"
    layer, rest = re.fullmatch(r"layers_(\d+)/(.+)", rest).groups()
    order = ["mlp", "attention"] if stack == "encoder" else ["mlp", "cross", "self"]
    kind = next(i for i, name in enumerate(order) if name in rest.replace("encoder_dec", "cross"))
    block = f"{stack}/block_{int(layer):03}/layer_{len(order) - 1 - kind:03}"
    if rest.endswith("norm/scale"):
        return f"{block}/layer_norm/scale{field}"
    if kind == 0:
        return f"{block}/DenseReluDense/{rest.split('/')[1]}/kernel{field}"
    attention = "EncDecAttention" if order[kind] == "cross" else "SelfAttention"
    return f"{block}/{attention}/{rest.split('/')[1][0]}{field}"


@pytest.fixture(scope="module")
def checkpoint(tiny_t5, tmp_path_factory):
    """(prefix, state dict) of a checkpoint whose arrays are random."""
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    state = _initializer(tiny_t5, False, partitioner).global_train_state_shape.state_dict()
    rng = np.random.RandomState(0)
    arrays, variables = {}, {}
    for path, x in traverse_util.flatten_dict(state, sep="/").items():
        value = rng.uniform(1, 2, x.shape).astype(np.float32)
        value = np.int32(1000) if path == "state/step" else value
        unused = path.startswith("state/param") and x.shape == (1,)
        arrays[path] = np.zeros(1, np.float32) if unused else value
        if not unused:
            variables[_variable_name(path)] = np.int64(value) if value.ndim == 0 else value
    prefix = str(tmp_path_factory.mktemp("tf") / "model.ckpt-1000")
    names = sorted(variables)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[variables[name] for name in names],
    )
    return prefix, arrays


def test_every_array_is_restored(tiny_t5, checkpoint, scan_layers, tmp_path):
    prefix, arrays = checkpoint
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = _initializer(tiny_t5, scan_layers, partitioner)
    cfg = utils.RestoreCheckpointConfig(prefix, mode="specific", dtype="float32")
    state, _ = restoring.create_checkpoint_manager_and_restore(
        initializer, partitioner, cfg, prefix, None, model_dir=str(tmp_path)
    )
    found = traverse_util.flatten_dict(state.state_dict(), sep="/")
    assert int(state.step) == 1000
    for path, value in found.items():
        scanned = re.fullmatch(r"(.*(encoder|decoder))/\2/(.+)", path)
        if scanned is None:
            np.testing.assert_array_equal(value, arrays[path])
        elif path.startswith("target/"):
            name = f"{scanned[1]}/layers_{{}}/{scanned[3]}".format
            layers = [arrays[name(i)] for i in range(2) if name(i) in arrays]
            np.testing.assert_array_equal(value, np.stack(layers, axis=1))


def test_what_does_not_fit_is_named(tiny_t5, checkpoint):
    prefix, _ = checkpoint
    sharding = jax.sharding.NamedSharding(
        partitioning.PjitPartitioner(num_partitions=1).mesh, jax.sharding.PartitionSpec()
    )
    make = TargetArray
    targets = {"target/token_embedder/embedding": make((48, 128), sharding, None)}
    with pytest.raises(ValueError, match="that the model has not; bind RestoreCheckpointConfig"):
        mesh_tensorflow.read_state(prefix, targets, {})
    assert mesh_tensorflow.read_state(prefix, targets, {}, strict=False).keys() == targets.keys()
    targets["target/nowhere"] = make((3,), sharding, None)
    with pytest.raises(ValueError, match=r"lacks target/nowhere of shape \(3,\)"):
        mesh_tensorflow.read_state(prefix, targets, {}, strict=False)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("encoder/block_011/layer_001/DenseReluDense/wi_0/kernel_slot_vc",
         "state/param_states/encoder/layers_11/mlp/wi_0/kernel/v_col"),
        ("decoder/block_002/layer_001/EncDecAttention/v",
         "target/decoder/layers_2/encoder_decoder_attention/value/kernel"),
        ("decoder/block_000/layer_002/layer_norm/scale",
         "target/decoder/layers_0/pre_mlp_layer_norm/scale"),
        ("encoder/block_001/layer_000/SelfAttention/relative_attention_bias",
         "target/encoder/layers_1/relpos_bias/rel_embedding"),
        ("bert/embeddings", None),
        ("encoder/block_000/layer_005/layer_norm/scale", None),
    ],
)  # fmt: skip
def test_translate(name, path):
    assert mesh_tensorflow.translate(name) == path
