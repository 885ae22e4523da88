"""Attention's kernels against the reference, and compiled for devices that are not here.

Kernels run in Pallas's interpreter here, in blocks of a few positions.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from flax.linen import partitioning as nn_partitioning
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import topologies

from t5x import models
from t5x.attention import (
    RelativeBias,
    attention,
    fused,
    gpu,
    reference,
    tpu,
)
from t5x.attention.geometry import Problem, live_ranges
from t5x.examples.t5 import network

HEAD_DIM = 64
KERNELS = [tpu, gpu]


class Case:
    """Random inputs of one attention, and what a function of them and its gradients give."""

    def __init__(
        self,
        query_segments,
        key_segments=None,
        *,
        heads=2,
        causal=False,
        biased=True,
        dropped=False,
        dtype=jnp.float32,
    ):
        rng = np.random.default_rng(len(query_segments[0]))
        is_self = key_segments is None
        self.query_segments = np.asarray(query_segments, np.int32)
        self.key_segments = self.query_segments if is_self else np.asarray(key_segments, np.int32)
        (batch, queries), keys = self.query_segments.shape, self.key_segments.shape[1]
        shapes = [(batch, n, heads, HEAD_DIM) for n in (queries, keys, keys, queries)]
        query, key, value, self.cotangent = (rng.normal(size=x) for x in shapes)
        same = self.query_segments[:, :, None] == self.key_segments[:, None]
        visible = same & (self.key_segments > 0)[:, None]
        if causal:
            visible &= np.tril(np.ones((queries, keys), bool))
        # A query that sees no key has no defined output.
        self.defined = visible.any(-1)[..., None, None]
        self.cotangent *= self.defined
        table = RelativeBias(jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32), not causal)
        arrays = [jnp.asarray(x, dtype) for x in (0.2 * query, key, value)]
        keep = rng.random((batch, keys, heads, 1)) < 0.7 if dropped else None
        arrays.append(table if biased else None)
        self.inputs = (arrays, self.query_segments, self.key_segments, keep)
        self.causal = causal

    def by_reference(self):
        return self._results(*_run_reference(self.inputs, self.cotangent, self.causal))

    def by_kernel(self, module=tpu, blocks=(16, 24), arrays=None, cotangent=None):
        kernel = fused.Kernel(module, HEAD_DIM, self.causal, interpret=True, blocks=blocks)
        inputs = (arrays or self.inputs[0], *self.inputs[1:])
        cotangent = self.cotangent if cotangent is None else cotangent
        return self._results(*_run_kernel(inputs, cotangent, kernel))

    def _results(self, out, gradients):
        """Output where it is defined, and the gradients of query, key, value and bias table."""
        arrays = [jnp.where(self.defined, out, 0), *jax.tree.leaves(gradients)]
        return [np.asarray(x, np.float32) for x in arrays]


@functools.partial(jax.jit, static_argnums=2)
def _run_reference(inputs, cotangent, causal):
    arrays, *segments, keep = inputs

    def attend(query, key, value, bias):
        if keep is not None:
            value = jnp.where(keep, value / 0.7, 0).astype(value.dtype)
        return reference.attend(query, key, value, bias, *segments, causal, True)

    out, pull = jax.vjp(attend, *arrays)
    return out, pull(cotangent.astype(out.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _run_kernel(inputs, cotangent, kernel):
    arrays, *segments, keep = inputs
    scale = None if keep is None else keep[..., 0].swapaxes(1, 2) / jnp.float32(0.7)

    def attend(*arrays):
        joined = [x.reshape(*x.shape[:2], -1) for x in arrays[:3]]
        out = fused.attend(kernel, *joined, arrays[3], *segments, scale)
        return out.reshape(arrays[0].shape)

    out, pull = jax.vjp(attend, *arrays)
    return out, pull(cotangent.astype(out.dtype))


def assert_close(got, expected, tolerance):
    """Each array within the tolerance, relative to its largest element.

    Gradients that cancel (of a query that sees one key) are held against what they are sums of: 1.
    """
    assert len(got) == len(expected)
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.abs(y).max(), 1))


PACKED = [[1] * 9 + [2] * 1 + [3] * 15 + [0] * 8, [1] * 33, [0] * 33]


@pytest.mark.parametrize("module", KERNELS)
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "dropped": True}], ids=["encoder", "decoder"]
)
def test_kernel_gives_output_and_gradients_of_the_reference(module, options):
    case = Case(PACKED, **options)
    assert_close(case.by_kernel(module), case.by_reference(), 1e-5)


def test_kernel_in_bfloat16():
    case = Case(PACKED, causal=True, dropped=True, dtype=jnp.bfloat16)
    assert_close(case.by_kernel(), case.by_reference(), 2e-2)


def test_choices_that_share_an_input_attend_to_it():
    """Packed scoring: the segments of queries and keys are not of one length, nor all in use."""
    inputs = [[1] * 20 + [2] * 17 + [3] * 4 + [0] * 7]
    case = Case([[1] * 3 + [1] * 4 + [3] * 9 + [0] * 3], inputs, biased=False)
    assert_close(case.by_kernel(), case.by_reference(), 1e-5)


def _layout(draw, length):
    """Segments of one row: examples of any length from one on, then padding; maybe padding only."""
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=5)))
    positions = np.arange(length)
    segments = 1 + sum((positions >= cut).astype(int) for cut in cuts)
    real = draw(st.sampled_from([length, length, 1, 0, max(0, length - 3)]))
    return np.where(positions < real, segments, 0)


# Lengths of queries and keys, options, blocks: few, for each is compiled.
STRUCTURES = [
    ((19, 19), {"causal": True, "dropped": True}, (8, 16)),
    ((5, 33), {"biased": False}, (64, 64)),
    ((1, 1), {}, (8, 8)),
]


@st.composite
def _cases(draw):
    (queries, keys), options, blocks = draw(st.sampled_from(STRUCTURES))
    query_segments = [_layout(draw, queries) for _ in range(2)]
    key_segments = None if queries == keys else [_layout(draw, keys) for _ in range(2)]
    return Case(query_segments, key_segments, **options), blocks


@settings(max_examples=25, deadline=None, derandomize=True)
@given(_cases())
def test_kernel_equals_reference_for_any_layout(case_and_blocks):
    case, blocks = case_and_blocks
    assert_close(case.by_kernel(tpu, blocks), case.by_reference(), 1e-5)


@pytest.mark.parametrize("module", KERNELS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_padding_never_leaks(module, poison):
    case = Case(PACKED)
    padding = (case.query_segments == 0)[..., None, None]
    *arrays, table = case.inputs[0]
    poisoned = [*(jnp.where(padding, poison, x) for x in arrays), table]
    cotangent = np.where(padding, poison, case.cotangent)
    got = case.by_kernel(module, arrays=poisoned, cotangent=cotangent)
    for x, y in zip(got, case.by_kernel(module), strict=True):
        np.testing.assert_array_equal(x, y)


def test_blocks_that_no_query_can_see_are_skipped():
    segments = jnp.array([[1] * 8 + [2] * 8 + [0] * 8, [0] * 24])
    problem = Problem(
        heads=2,
        head_dim=64,
        query_length=24,
        key_length=24,
        query_block=8,
        key_block=8,
        causal=False,
        has_segments=True,
        has_scale=False,
        max_distance=None,
    )
    first, end = live_ranges(problem.live_blocks(segments, segments), 2)
    np.testing.assert_array_equal(first, [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(end, [1, 2, 0, 0, 0, 0])


def _loss(implementation, **options):
    def loss(query, key, value, table):
        bias = RelativeBias(table, not options.get("causal", False))
        out = attention(
            query, key, value, relative_bias=bias, implementation=implementation, **options
        )
        return jnp.sum(jnp.sin(out))

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))


def test_one_call_on_a_mesh_equals_the_reference_without():
    """Rows over one axis, heads over the other; the same dropout mask for both."""
    rng = np.random.default_rng(5)
    arrays = [jnp.asarray(rng.normal(size=(2, 20, 4, HEAD_DIM)), jnp.float32) for _ in range(3)]
    arrays = [0.2 * arrays[0], *arrays[1:], jnp.asarray(rng.normal(size=(4, 32)), jnp.float32)]
    options = {
        "query_segments": jnp.array([[1] * 8 + [2] * 12] * 2),
        "key_segments": jnp.array([[1] * 8 + [2] * 12] * 2),
        "causal": True,
        "dropout_rng": jax.random.PRNGKey(1),
        "dropout_rate": 0.3,
    }
    expected = jax.jit(_loss("reference", **options))(*arrays)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rules = (("batch", "data"), ("heads", "model"))
    with jax.set_mesh(mesh), nn_partitioning.axis_rules(rules):
        run = jax.jit(_loss("tpu", **options))
        text = run.lower(*arrays).as_text()
        got = run(*arrays)
    assert "tensor<1x128x128xf32>" in text, "each device should work on its own row and heads"
    assert_close(jax.tree.leaves(got), [np.asarray(x) for x in jax.tree.leaves(expected)], 1e-5)


@pytest.fixture
def tpu_mesh(monkeypatch):
    """One device of a TPU that is not here, by name of its slice."""
    pytest.importorskip("libtpu", reason="compiling for TPU needs libtpu (extra [plan])")
    for name, value in {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        monkeypatch.setenv(name, value)

    def mesh(slice_name):
        topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_name)
        devices = np.array(topology.devices[:1])
        return jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    return mesh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slice_name", "length"), [("v4:2x2x1", 600), ("v5e:2x2", 100), ("v6e:2x2", 100)]
)
def test_kernels_compile_for_tpu(tpu_mesh, slice_name, length):
    """Chosen by the mesh's device; with output and log-sum-exp saved no kernel runs twice.

    The largest blocks on the kind that has the least memory for them.
    """
    mesh = tpu_mesh(slice_name)
    policy = jax.checkpoint_policies.save_only_these_names(*fused.SAVED_NAMES)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def abstract(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def layer(table, query, key, segments, rng):
        out = attention(
            query,
            key,
            key,
            relative_bias=RelativeBias(table, False),
            query_segments=segments,
            key_segments=segments,
            causal=True,
            dropout_rng=rng,
            dropout_rate=0.1,
        )
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(jax.checkpoint(layer, policy=policy), argnums=(0, 1, 2)))
        arguments = [abstract((2, 32), jnp.float32), *[abstract((2, length, 2, HEAD_DIM))] * 2]
        arguments += [abstract((2, length), jnp.int32), abstract((2,), jnp.uint32)]
        text = gradient.lower(*arguments).compile().as_text()
    calls = re.findall(r"%(t5_attention_[a-z]+)[\w.]* = ", text)
    assert sorted(calls) == ["t5_attention_backward", "t5_attention_forward"]
    sizes = "600|640|768|1024" if length == 600 else "100"
    assert not re.search(rf"\[(\d+,)*({sizes}),({sizes})\]", text), "scores"


def test_training_packed_scoring_and_inference_run_the_kernels(tpu_mesh):
    """Encoder, decoder and cross-attention; decoding itself reads its cache without a kernel."""
    mesh = tpu_mesh("v5e:2x2")
    config = network.T5Config(
        vocab_size=128,
        dtype=jnp.bfloat16,
        emb_dim=128,
        num_heads=2,
        head_dim=64,
        mlp_dim=128,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size)
    module = network.Transformer(config)
    model = models.EncoderDecoderModel(module, vocabulary, vocabulary, optimizer_def=None)
    lengths = {"encoder": 128, "decoder": 64}
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def features(side, *names):
        shape = (2, lengths[side])
        return {
            f"{side}_{name}": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
            for name in names
        }

    batch = features("encoder", "input_tokens")
    batch |= features("decoder", "input_tokens", "target_tokens", "loss_weights")
    packed = batch | features("encoder", "segment_ids") | features("decoder", "segment_ids")
    choices = packed | features("decoder", "cross_segment_ids")

    def train(params, batch):
        return jax.grad(lambda p: model.loss_fn(p, batch, jax.random.PRNGKey(0))[0])(params)

    with jax.set_mesh(mesh):
        shapes = {name: (2, lengths[name.split("_")[0]]) for name in batch if "input" in name}
        variables = jax.eval_shape(
            lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)
        )
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            variables["params"],
        )

        def kernels(function, batch):
            text = jax.jit(function).lower(params, batch).as_text()
            return text.count("t5_attention_forward"), text.count("t5_attention_backward")

        assert kernels(train, packed) == (3, 3)
        assert kernels(model.score_batch, choices) == (3, 0)
        assert kernels(model.predict_batch, batch) == (1, 0)


def test_kernels_lower_for_cuda():
    """No GPU is needed to get as far as Triton's own language."""

    def loss(query, table, segments):
        kernel = fused.Kernel(gpu, HEAD_DIM, causal=True)
        bias = RelativeBias(table, False)
        out = fused.attend(kernel, query, query, query, bias, segments, segments, None)
        return jnp.sum(out.astype(jnp.float32))

    arguments = [
        jax.ShapeDtypeStruct((1, 100, 2 * HEAD_DIM), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 32), jnp.float32),
        jax.ShapeDtypeStruct((1, 100), jnp.int32),
    ]
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("forward", "backward_query", "backward_key"):
        assert f"t5_attention_{kernel}" in text


def test_blocks_are_the_largest_that_fit_into_vmem():
    """The compiler's own limits are in benchmarks/RESULTS.md; T5's sizes get the fastest blocks."""

    def blocks(length, heads, head_dim, dtype=jnp.bfloat16):
        x = jax.ShapeDtypeStruct((1, length, heads * head_dim), dtype)
        bias = RelativeBias(jnp.zeros((heads, 32)), bidirectional=True)
        p = tpu._problem(x, x, bias, x, x, head_dim, False, None)
        assert tpu.vmem(p, x.dtype.itemsize) <= tpu.VMEM
        return p.query_block, p.key_block

    assert blocks(1024, 32, 64) == blocks(600, 2, 64) == (512, 256)
    assert blocks(256, 32, 64) == (256, 256)
    assert blocks(1024, 4, 32) == blocks(1024, 32, 64, jnp.float32) == (256, 128)
    assert blocks(2048, 32, 64) == (256, 128)
    assert tpu.unsuitable(1024, 1024, 4, 32, 2) is None
    assert tpu.unsuitable(4096, 4096, 32, 64, 2).startswith("lengths 4096 and 4096 need 2")
    assert tpu.unsuitable(256, 8192, 32, 64, 2) is not None
