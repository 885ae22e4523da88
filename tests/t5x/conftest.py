"""A tiny T5 whose parameters are a formula of their names, and upstream's figures for it.

The golden figures come from google-research/t5x at cc342d419ec3e3e9c4bf1df33c82330cafdc1e16, run on
CPU with the parameters, batches and settings of `TinyT5` (golden/t5_network.json).
"""

import functools
import json
import sys
import types
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from t5x import decoding, models
from t5x.examples.t5 import network

TESTDATA = Path(__file__).parent / "testdata"
CONFIG = {
    "vocab_size": 48,
    "emb_dim": 16,
    "num_heads": 3,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "head_dim": 4,
    "mlp_dim": 24,
    "mlp_activations": ("gelu", "linear"),
    "dropout_rate": 0.1,
    "scan_layers": False,
}


def fill(name, shape):
    """Value of the unrolled parameter of that name."""
    seed = zlib.crc32(name.encode()) % 2**31
    normal = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("scale"):
        return 1 + 0.1 * normal
    return normal if name.endswith("embedding") else normal / np.sqrt(shape[0])


class TinyT5:
    """Models, parameters and batches that the golden figures belong to."""

    golden = json.loads((Path(__file__).parent / "golden/t5_network.json").read_text())

    @staticmethod
    @functools.cache
    def model(
        decode_fn=decoding.beam_search,
        loss_normalizing_factor=None,
        label_smoothing=0.0,
        z_loss=0.0,
        **config,
    ):
        vocabulary = types.SimpleNamespace(eos_id=1)
        return models.EncoderDecoderModel(
            network.Transformer(network.T5Config(**{**CONFIG, **config})),
            vocabulary,
            vocabulary,
            optimizer_def=None,
            decode_fn=decode_fn,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            loss_normalizing_factor=loss_normalizing_factor,
        )

    @staticmethod
    @functools.cache
    def shapes(model):
        lengths = {"encoder_input_tokens": (2, 6), "decoder_input_tokens": (2, 6)}
        return jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), lengths))

    def params(self, **config):
        """Parameters of the unrolled network."""
        shapes = self.shapes(self.model(**config))["params"].unfreeze()
        flat = traverse_util.flatten_dict(shapes, sep="/")
        filled = {name: fill(name, x.shape) for name, x in flat.items()}
        return traverse_util.unflatten_dict(filled, sep="/")

    @staticmethod
    def stacked(params, axis=1):
        """The same parameters for the scanned network: layers_0, layers_1, … along one axis."""
        stacked = {"token_embedder": params["token_embedder"]}
        for stack in ("encoder", "decoder"):
            own = dict(params[stack])
            layers = [own.pop(f"layers_{i}") for i in range(len(own)) if f"layers_{i}" in own]
            own[stack] = jax.tree.map(lambda *xs: np.stack(xs, axis), *layers)
            stacked[stack] = own
        return stacked

    @staticmethod
    def batch(packed):
        rng = np.random.RandomState(7)
        inputs, targets = rng.randint(2, 48, (3, 11)), rng.randint(2, 48, (3, 9))
        batch = {}
        if packed:
            input_ids = [[1] * 4 + [2] * 5 + [0] * 2, [1] * 11, [1] * 3 + [2] * 3 + [3] * 4 + [0]]
            target_ids = [
                [1] * 3 + [2] * 4 + [0] * 2,
                [1] * 8 + [0],
                [1] * 2 + [2] * 3 + [3] * 3 + [0],
            ]
            for side, ids in (("encoder", np.array(input_ids)), ("decoder", np.array(target_ids))):
                batch[f"{side}_segment_ids"] = ids
                batch[f"{side}_positions"] = np.array([_positions(row) for row in ids])
            inputs = inputs * (batch["encoder_segment_ids"] > 0)
            targets = targets * (batch["decoder_segment_ids"] > 0)
        else:
            for row, (input_length, target_length) in enumerate([(11, 9), (6, 4), (8, 2)]):
                inputs[row, input_length:] = 0
                targets[row, target_length:] = 0
        shifted = np.concatenate([np.zeros((3, 1), int), targets[:, :-1]], axis=1)
        if packed:
            shifted = shifted * (batch["decoder_positions"] > 0)
        batch |= {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": shifted,
        }
        batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
        return batch | {"decoder_loss_weights": jnp.asarray(targets > 0, jnp.float32)}

    @staticmethod
    def digest(x):
        """Sum, absolute sum and first three elements: how golden arrays are kept."""
        x = np.asarray(x, np.float64)
        return [x.sum(), np.abs(x).sum(), *x.ravel()[:3]]


def _positions(segment_ids):
    """Position of each token within its segment."""
    starts = {}
    return [i - starts.setdefault(segment, i) for i, segment in enumerate(segment_ids)]


@pytest.fixture(scope="session")
def tiny_t5():
    return TinyT5()


@pytest.fixture(scope="module")
def echo():
    """Parses gin files and bindings, in place of the command line, with testdata at hand.

    On one device of the eight: what is tested here is not sharding, and it compiles faster.
    """
    import gin

    from t5x import eval as eval_lib
    from t5x import gin_utils, infer, partitioning, precompile, train
    from t5x.inference.files import create_task_from_tfexample_file

    entry_points = {
        "train": train.train,
        "evaluate": eval_lib.evaluate,
        "infer": infer.infer,
        "precompile": precompile.precompile,
    }
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    patch = pytest.MonkeyPatch()
    patch.setattr(partitioning, "default_mesh", lambda *args: mesh)
    sys.path.insert(0, str(TESTDATA))
    paths = [str(TESTDATA), *gin_utils.find_search_paths()]

    def parse(files, bindings):
        with gin.unlock_config():
            gin.clear_config()
            gin_utils.parse_gin_flags(paths, files, bindings)

    # Gin files import the entry point from __main__.
    names = {
        **entry_points,
        "create_task_from_tfexample_file": create_task_from_tfexample_file,
    }
    vars(sys.modules["__main__"]).update(names)
    for entry_point in entry_points.values():
        if gin.config._inverse_lookup(entry_point) is None:
            gin.configurable(entry_point)
    yield parse
    with gin.unlock_config():
        gin.clear_config()
    sys.path.remove(str(TESTDATA))
    patch.undo()


@pytest.fixture(scope="module")
def checkpoint(echo, tmp_path_factory):
    """A checkpoint of random parameters that says it is of step 1,000,000."""
    import gin

    from t5x import partitioning, utils

    echo(["echo_model.gin"], ["DROPOUT_RATE = 0.0"])
    model = gin.query_parameter("MODEL/macro.value").scoped_configurable_fn()
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    shapes = {"encoder_input_tokens": (8, 24), "decoder_input_tokens": (8, 12)}
    initializer = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, shapes, partitioner
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    state_dict = state.state_dict()
    state_dict["state"]["step"] = jnp.int32(1_000_000)
    folder = tmp_path_factory.mktemp("checkpoint")
    _, manager = utils.create_checkpoint_manager_and_restore(
        initializer,
        partitioner,
        None,
        None,
        None,
        save_checkpoint_cfg=utils.SaveCheckpointConfig(period=1),
        model_dir=str(folder),
    )
    manager.save(state.restore_state(state_dict))
    manager.close()
    return str(folder / "checkpoint_1000000")
