"""Checkpoints to and from upstream T5X: run by a Python that imports google-research/t5x as `t5x`.

    PYTHONPATH=T5X:AIRIO_AND_JESTIMATOR python benchmarks/upstream_checkpoints.py write DIRECTORY
    PYTHONPATH=…                        python benchmarks/upstream_checkpoints.py read CHECKPOINT

A third argument chooses the network: t5 (the default), scalable_t5 (umT5's too), or
scalable_t5_unrolled; a fourth the number of steps whose losses are printed. Both run with this
package as `t5x`, too, and then write with its manager alone.

`write` trains a tiny T5 three steps from parameters that are a formula of their names, writes it in
both of T5X's formats (DIRECTORY/legacy, and DIRECTORY/checkpoint_3 by Orbax) and prints the losses
of the next three steps; it made tests/t5x/golden/upstream_checkpoints.tar.xz. `read` restores a
checkpoint of that model, e.g. one that this package's manager or `t0x convert` wrote (the latter
only for parameters), and prints the same. Checked with T5X cc342d41: equal losses both ways.
"""

import importlib
import json
import os
import sys
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from t5x import adafactor, checkpoints, models, partitioning, utils

SHAPES = {"encoder_input_tokens": (4, 11), "decoder_input_tokens": (4, 9)}
STEPS = 3


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The initial parameter of that name."""
    seed = zlib.crc32(name.encode()) % 2**31
    normal = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("scale"):
        return 1 + 0.1 * normal
    return normal if name.endswith("embedding") else normal / np.sqrt(shape[0])


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(11)
    targets = rng.randint(2, 48, (4, 9))
    tokens = {
        "encoder_input_tokens": rng.randint(2, 48, (4, 11)),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.concatenate([np.zeros((4, 1), int), targets[:, :-1]], 1),
    }
    tokens = {name: np.asarray(x, np.int32) for name, x in tokens.items()}
    return tokens | {"decoder_loss_weights": np.ones((4, 9), np.float32)}


def main() -> None:
    action, path, name, steps = (*sys.argv[1:], *("t5", STEPS)[len(sys.argv) - 3 :])
    network = importlib.import_module(f"t5x.examples.{name.removesuffix('_unrolled')}.network")
    scanning = {} if name == "t5" else {"scan_layers": not name.endswith("unrolled")}
    optimizer_def = adafactor.Adafactor(
        0.01,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        min_dim_size_to_factor=8,
    )
    config = network.T5Config(
        vocab_size=48,
        emb_dim=16,
        num_heads=3,
        num_encoder_layers=1,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=24,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        **scanning,
    )
    words = types.SimpleNamespace(eos_id=1, vocab_size=48)
    transformer = network.Transformer(config)
    model = models.EncoderDecoderModel(transformer, words, words, optimizer_def, z_loss=1e-4)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = utils.TrainStateInitializer(
        optimizer_def, model.get_initial_variables, SHAPES, partitioner
    )

    @jax.jit
    def step(state, batch):
        loss_of = lambda params: model.loss_fn(params, batch, None)  # noqa: E731
        (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return loss, state.apply_gradient(grads, learning_rate=0.01)

    def train(state, steps=STEPS):
        losses = []
        for _ in range(steps):
            loss, state = step(state, make_batch())
            losses.append(float(loss))
        return losses, state

    if action == "write":
        state = initializer.from_scratch(jax.random.PRNGKey(0))
        shapes = traverse_util.flatten_dict(state.state_dict()["target"], sep="/")
        filled = {name: jnp.asarray(fill(name, x.shape)) for name, x in shapes.items()}
        params = traverse_util.unflatten_dict(filled, sep="/")
        _, state = train(state.restore_state(state.state_dict() | {"target": params}))
        os.makedirs(path)
        if hasattr(checkpoints, "VERSION"):  # only upstream writes its own older format
            checkpoints.Checkpointer(state, partitioner, f"{path}/legacy").save(state)
        manager = checkpoints.OrbaxCheckpointManagerInterface(path, state, partitioner)
        manager.save(state)
        manager.close()
    else:
        manager = checkpoints.OrbaxCheckpointManagerInterface(
            os.path.dirname(path), initializer.global_train_state_shape, partitioner
        )
        state = manager.restore(path=path)
    at = int(state.step)
    print(json.dumps({"step": at, "losses": train(state, int(steps))[0]}))


if __name__ == "__main__":
    main()
