"""Gradients of microbatches add up to the whole batch's, for every loss setting, packed or not."""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import trainer


def _four_rows(batch):
    """The three rows of the tiny batch and its first one once more, with its last token cut off."""
    batch = {name: jnp.concatenate([x, x[:1]]) for name, x in batch.items()}
    weights = batch["decoder_loss_weights"]
    return batch | {"decoder_loss_weights": weights.at[3].multiply(jnp.arange(9) < 4)}


@pytest.mark.parametrize(
    ("factor", "packed"),
    [
        (None, True),
        ("NUM_REAL_TARGET_TOKENS", True),
        ("NUM_TOTAL_TARGET_TOKENS", False),
        ("AVERAGE_PER_SEQUENCE", True),
    ],
)
def test_microbatches_add_up_to_the_whole_batch(tiny_t5, factor, packed):
    config = {"num_decoder_layers": 1, "dropout_rate": 0.0}
    model = tiny_t5.model(loss_normalizing_factor=factor, z_loss=0.01, **config)
    state = types.SimpleNamespace(params=tiny_t5.params(**config), flax_mutables=None)
    batch = _four_rows(tiny_t5.batch(packed))

    def gradients(num_microbatches):
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        # A mesh is the partitioner's; who calls the function alone has none.
        with jax.set_mesh(mesh) if packed else contextlib.nullcontext():
            step = jax.jit(
                lambda batch: trainer.accumulate_grads_microbatched(
                    model, state, batch, jax.random.PRNGKey(0), num_microbatches
                )[:2],
                compiler_options={"xla_backend_optimization_level": 0},
            )
            return step(batch)

    (whole, metrics), (parts, added) = gradients(None), gradients(2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 + 1e-5 * abs(b).max()),
        parts,
        whole,
    )
    for name in ("loss", "z_loss", "accuracy"):
        np.testing.assert_allclose(
            _value(added[name]), _value(metrics[name]), rtol=1e-5, err_msg=name
        )


def _value(metric):
    return metric.total / getattr(metric, "count", 1)
