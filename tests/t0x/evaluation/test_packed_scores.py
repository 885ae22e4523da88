"""Packed scores are those of one pass a choice, and those of PyTorch transformers.

golden/transformers_scores.json: transformers 5.23.0 (T5ForConditionalGeneration, float64), each
example by itself, on the weights and rows that `tiny`, `_fill` and `_golden_rows` below draw;
rounded to five places. benchmarks/scoring_torch.py names the weights as transformers does.
"""

import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x import rank_classification
from t0x.evaluation import packing
from t5x import models
from t5x.examples.t5 import network

SHAPE = {
    "vocab_size": 96,
    "emb_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "head_dim": 8,
    "mlp_dim": 48,
}
# Shapes of packed rows: tight, roomy, and decoder rows that choices overflow.
ROW_LENGTHS = [(24, 16), (64, 56), (40, 12)]
MOST_INPUTS, MOST_TARGETS = 24, 10
ROWS = 4
UNPACKED_ROWS = 16


def _fill(name, shape):
    seed = zlib.crc32(name.encode()) % 2**31
    normal = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("scale"):
        return 1 + 0.1 * normal
    return normal if name.endswith("embedding") else normal / np.sqrt(shape[0])


@functools.cache
def tiny(dtype):
    """(jitted token scores of a batch, parameters)."""
    config = network.T5Config(
        **SHAPE, dtype=dtype, mlp_activations=("gelu", "linear"), scan_layers=False
    )
    words = seqio.ByteVocabulary()
    model = models.EncoderDecoderModel(network.Transformer(config), words, words, None)
    lengths = {"encoder_input_tokens": (1, 8), "decoder_input_tokens": (1, 8)}
    shapes = jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), lengths))
    flat = traverse_util.flatten_dict(shapes["params"].unfreeze(), sep="/")
    params = {name: _fill(name, x.shape) for name, x in flat.items()}

    def token_scores(params, batch):
        return model.score_batch(params, batch, True)[1]["decoder"]["token_scores"][0]

    return jax.jit(token_scores), traverse_util.unflatten_dict(params, sep="/")


def _in_batches(dtype, features, rows):
    token_scores, params = tiny(dtype)
    count = len(features["encoder_input_tokens"])
    padded = {k: np.pad(x, ((0, -count % rows), (0, 0))) for k, x in features.items()}
    parts = [
        token_scores(params, {name: x[start : start + rows] for name, x in padded.items()})
        for start in range(0, count, rows)
    ]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])[:count]


def _packed(dtype, examples, shape):
    packed = packing.pack(examples, *shape)
    return packing.sum_scores(packed.slots, _in_batches(dtype, packed.features, ROWS))


def _unpacked(dtype, examples):
    """One row a choice, padded, without segments: what SeqIO's evaluator has scored."""
    pairs = [(example.inputs, target) for example in examples for target in example.targets]
    features = {
        name: np.zeros((len(pairs), length), np.int32)
        for name, length in (
            ("encoder_input_tokens", MOST_INPUTS),
            ("decoder_target_tokens", MOST_TARGETS),
        )
    }
    for row, (inputs, target) in enumerate(pairs):
        features["encoder_input_tokens"][row, : len(inputs)] = inputs
        features["decoder_target_tokens"][row, : len(target)] = target
    targets = features["decoder_target_tokens"]
    features["decoder_input_tokens"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    features["decoder_loss_weights"] = (targets > 0).astype(np.int32)
    sums = iter(_in_batches(dtype, features, UNPACKED_ROWS).sum(axis=1).tolist())
    return [[next(sums) for _ in example.targets] for example in examples]


@st.composite
def example_lists(draw):
    lengths = st.tuples(
        st.integers(1, MOST_INPUTS),
        st.lists(st.integers(1, MOST_TARGETS), min_size=1, max_size=6),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [
        packing.Choices(rng.integers(2, 96, n), [rng.integers(2, 96, m) for m in targets])
        for n, targets in draw(st.lists(lengths, min_size=1, max_size=10))
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(examples=example_lists(), shape=st.sampled_from(ROW_LENGTHS))
def test_any_packing_gives_the_scores_of_one_pass_a_choice(dtype, tolerance, examples, shape):
    dtype = jnp.dtype(dtype)
    packed, unpacked = _packed(dtype, examples, shape), _unpacked(dtype, examples)
    for ours, theirs in zip(packed, unpacked, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
        runner_up, best = sorted([-np.inf, *theirs])[-2:]
        if best - runner_up >= rank_classification.NEAR_TIE:
            assert rank_classification.rank(ours) == rank_classification.rank(theirs)


def _golden_rows():
    rng = np.random.RandomState(5)
    rows = []
    for _ in range(200):
        inputs = rng.randint(2, 96, rng.randint(1, 200))
        targets = [rng.randint(2, 96, rng.randint(1, 12)) for _ in range(rng.randint(2, 6))]
        rows.append(packing.Choices(inputs, targets))
    return rows


def test_scores_are_those_of_transformers():
    golden = json.loads((Path(__file__).parents[1] / "golden/transformers_scores.json").read_text())
    rows = _golden_rows()
    scores = _packed(
        jnp.dtype("float32"), rows, packing.choose_row_lengths([packing.Lengths.of(rows)])
    )
    for ours, theirs in zip(scores, golden["scores"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
