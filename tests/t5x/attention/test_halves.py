"""Attention by rows and halves is the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x.attention import RelativeBias, attention

BATCH, LENGTH, HEADS = 4, 256, 2


def _rows():
    """Rows with and without a segment across their middle; padding in the middle and at the end."""
    segments = np.zeros((BATCH, LENGTH), np.int32)
    for row, lengths in enumerate([(100, 90, 60), (100, 28, 128), (50,), (128, -20, 60)]):
        start = 0
        for number, length in enumerate(lengths, start=1):
            segments[row, start : start + abs(length)] = number if length > 0 else 0
            start += abs(length)
    return jnp.asarray(segments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_the_references(dtype):
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    qkv = [jax.random.normal(key, (BATCH, LENGTH, HEADS, 8), jnp.dtype(dtype)) for key in keys[:3]]
    bias = RelativeBias(jax.random.normal(keys[3], (HEADS, 32)), bidirectional=True)
    segments = _rows()

    def attend(name):
        return jax.jit(
            lambda *x: attention(
                *x,
                relative_bias=bias,
                query_segments=segments,
                key_segments=segments,
                implementation=name,
            )
        )

    real = np.asarray(segments > 0)
    ours, theirs = (np.asarray(attend(name)(*qkv), np.float32) for name in ("halves", "reference"))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(ours[real], theirs[real], atol=tolerance)
    assert np.isfinite(ours).all()
    assert " cond" in str(jax.make_jaxpr(attend("halves"))(*qkv))


def test_padding_within_an_input_does_not_cut_it():
    # Unpacked, segments are where tokens are not 0, and an input may hold a token 0 anywhere.
    segments = np.ones((3, LENGTH), np.int32)
    segments[0, LENGTH // 2] = segments[1, LENGTH // 2 - 1] = 0
    segments[2, LENGTH // 2 - 40 : LENGTH // 2 + 40] = 0
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    qkv = [jax.random.normal(key, (3, LENGTH, HEADS, 8)) for key in keys]
    ours, theirs = (
        attention(
            *qkv,
            relative_bias=None,
            query_segments=jnp.asarray(segments),
            key_segments=jnp.asarray(segments),
            implementation=name,
        )
        for name in ("halves", "reference")
    )
    np.testing.assert_allclose(ours[segments > 0], theirs[segments > 0], atol=1e-5)
