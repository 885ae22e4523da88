"""The function that SeqIO's evaluator calls, on eight devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x import partitioning
from t5x.inference import function as inference

STATE = SimpleNamespace(params={"scale": jnp.float32(3)}, flax_mutables=None)
AXES = SimpleNamespace(params={"scale": None}, flax_mutables=None)


def _infer(step, total, batch_size=16):
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    infer = inference.get_infer_fn(step, batch_size, AXES, partitioner)
    values = np.arange(total, dtype=np.float32).reshape(-1, 1)
    ds = tf.data.Dataset.from_tensor_slices({"x": values}).enumerate()
    return infer, ds


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 50))
def test_every_example_has_its_result_in_order(total):
    infer, ds = _infer(lambda params, batch: params["scale"] * batch["x"][:, 0], total)
    assert infer(ds, STATE) == [(i, 3.0 * i) for i in range(total)]


def test_auxiliary_values_come_beside_the_results():
    def step(params, batch, rng):
        noise = jax.random.uniform(rng, (batch["x"].shape[0],))
        return batch["x"], {"noise": noise}

    infer, ds = _infer(step, 20)
    results, aux = infer(ds, STATE, rng=jax.random.PRNGKey(0))
    assert [value for _, value in results] == [[float(i)] for i in range(20)]
    # A batch has its own key.
    assert len(set(aux["noise"])) == 20


def test_batch_must_divide_over_the_mesh():
    with pytest.raises(ValueError, match="BATCH_SIZE = 12"):
        _infer(lambda params, batch: batch["x"], 3, batch_size=12)
