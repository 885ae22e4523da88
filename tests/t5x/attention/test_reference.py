"""Attention as it is defined: upstream's buckets, masks and dropout; which implementation runs."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x.attention import attention, bias, reference, relative_position_bucket


@pytest.mark.parametrize(
    ("bidirectional", "expected"),
    [
        # google-research/t5x at cc342d4: RelativePositionBiases._relative_position_bucket
        (True, [15, 15, 15, 14, 12, 10, 8, 7, 1, 0, 17, 23, 24, 26, 28, 30, 31, 31, 31]),
        (False, [31, 31, 31, 26, 21, 16, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_buckets_are_upstreams(bidirectional, expected):
    near = [1, 7, 8, 16, 32, 64, 127, 128, 1000]
    distances = np.array([-d for d in reversed(near)] + [0] + near)
    buckets = relative_position_bucket(distances, bidirectional, 32, 128)
    np.testing.assert_array_equal(buckets, expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (300, 200), (1, 7)])
def test_bias_by_contraction_is_the_bias_by_diagonals(bidirectional, queries, keys):
    table_HxN = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    distance_D = np.arange(1 - queries, keys)
    buckets_D = relative_position_bucket(distance_D, bidirectional, 32, 128)
    one_hot_NxD = buckets_D[None] == np.arange(32)[:, None]
    distance_QxK = jnp.arange(keys) - jnp.arange(queries)[:, None]
    one_hot = bias.one_hot_of_intervals(distance_QxK, distance_D, one_hot_NxD, jnp.float32)
    expected = bias.spread_over_diagonals(jnp.asarray(table_HxN @ one_hot_NxD), queries, keys)
    np.testing.assert_allclose(np.einsum("hn,nqk->hqk", table_HxN, one_hot), expected, rtol=1e-6)


def test_softmax_has_the_gradient_of_jaxs():
    scores, weights = jax.random.normal(jax.random.PRNGKey(0), (2, 3, 4, 5))

    def gradient(softmax):
        return jax.grad(lambda x: jnp.sum(softmax(x) * weights))(scores)

    np.testing.assert_allclose(gradient(reference.softmax), gradient(jax.nn.softmax), atol=1e-6)


def _qkv(seed, batch=2, queries=5, keys=7, heads=3, size=4):
    rng = np.random.default_rng(seed)
    shapes = ((batch, queries, heads, size), (batch, keys, heads, size), (batch, keys, heads, size))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_dropout_drops_a_key_for_all_queries():
    """One draw for all queries: dropping rows of the values drops columns of the weights."""
    query, key, _ = _qkv(0)
    identity = jnp.broadcast_to(jnp.eye(7)[None, :, None, :], (2, 7, 3, 7))
    # With the identity as values, the output is the matrix of weights itself.
    plain = attention(query, key, identity)
    dropped = attention(query, key, identity, dropout_rng=jax.random.PRNGKey(3), dropout_rate=0.4)
    scale_BxHxK = (dropped / plain)[:, 0]
    np.testing.assert_allclose(dropped, plain * scale_BxHxK[:, None], rtol=1e-5)
    values = np.unique(np.round(scale_BxHxK, 3))
    np.testing.assert_allclose(values, [0, 1 / 0.6], atol=2e-3)


def test_segments_and_causality_mask():
    query, key, value = _qkv(1, queries=7)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]] * 2)
    arguments = {"query_segments": segments, "key_segments": segments, "causal": True}
    out = attention(query, key, value, **arguments)
    poisoned = value.at[:, 6].set(1e6)
    with_padding = attention(query, key, poisoned, **arguments)
    np.testing.assert_array_equal(out[:, :6], with_padding[:, :6])
    second = attention(query[:, 3:6], key[:, 3:6], value[:, 3:6], causal=True)
    np.testing.assert_allclose(out[:, 3:6], second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[:, 3], value[:, 3], rtol=1e-6)


def test_bfloat16_with_float32_scores():
    query, key, value = (x.astype(jnp.bfloat16) for x in _qkv(2))
    out = attention(query, key, value, float32_logits=True)
    exact = attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2e-2)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_does_not_leak_through_the_reference(poison):
    query, key, value = (np.asarray(x) for x in _qkv(4, queries=7))
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]] * 2)
    run = functools.partial(attention, query_segments=segments, key_segments=segments)
    poisoned = []
    for x in (query, key, value):
        poisoned.append(x.copy())
        poisoned[-1][:, 5:] = poison
    np.testing.assert_array_equal(run(*poisoned)[:, :5], run(query, key, value)[:, :5])


def test_shapes_that_do_not_suit_fall_back_with_one_line(caplog):
    query, key, value = _qkv(6)
    expected = attention(query, key, value)
    with caplog.at_level(logging.INFO, logger="absl"):
        for _ in range(2):
            got = attention(query, key, value, implementation="tpu")
    np.testing.assert_array_equal(got, expected)
    lines = [
        x.getMessage() for x in caplog.records if "instead of the tpu kernel" in x.getMessage()
    ]
    assert lines == [
        "attention: the reference instead of the tpu kernel, for 3 heads of 4 a device do not fill "
        "vectors of 128"
    ]


def test_unknown_implementation_names_the_known_ones():
    with pytest.raises(ValueError, match=r"T5Config.attention = 'fast': choose from auto, refer"):
        attention(*_qkv(7), implementation="fast")
