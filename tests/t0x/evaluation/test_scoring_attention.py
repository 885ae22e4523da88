"""Scoring on a CPU computes attention by rows and halves, on one device and on a mesh."""

import dataclasses

import jax
import numpy as np
import seqio

from t0x.evaluation import packing
from t5x import models, partitioning
from t5x.examples.t5 import network

LENGTH, ROWS = 256, 8
CONFIG = network.T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=32,
    scan_layers=True,
)


def _model(attention):
    words = seqio.ByteVocabulary()
    module = network.Transformer(dataclasses.replace(CONFIG, attention=attention))
    return models.EncoderDecoderModel(module, words, words, None)


def test_scores_are_the_references():
    rng = np.random.default_rng(0)
    examples = [
        packing.Choices(rng.integers(2, 64, n), [rng.integers(2, 64, 3) for _ in range(2)])
        for n in rng.integers(1, 200, 40)
    ]
    packed = packing.pack(examples, LENGTH, 48).features
    # The longest inputs come first.
    some = [*range(ROWS // 2), *range(-ROWS // 2, 0)]
    features = {name: array[some] for name, array in packed.items()}
    middle = features["encoder_segment_ids"][:, LENGTH // 2 - 1 : LENGTH // 2 + 1]
    assert 0 < np.sum(middle[:, 0] == middle[:, 1]) < ROWS
    reference, auto = _model("reference"), _model("auto")
    shapes = {"encoder_input_tokens": (1, 8), "decoder_input_tokens": (1, 8)}
    initialize = jax.jit(lambda: reference.get_initial_variables(jax.random.PRNGKey(0), shapes))
    params = initialize()["params"]
    expected = np.asarray(jax.jit(reference.score_batch)(params, features))
    partitioner = partitioning.PjitPartitioner(num_partitions=2)
    step = partitioner.partition(
        auto.score_batch,
        in_axis_resources=(None, partitioner.data_partition_spec),
        out_axis_resources=None,
    )
    np.testing.assert_allclose(np.asarray(step(params, features)), expected, atol=1e-4)
    conditions = [
        str(jax.make_jaxpr(model.score_batch)(params, features)).count(" cond[")
        for model in (reference, auto)
    ]
    assert conditions[1] > conditions[0]
