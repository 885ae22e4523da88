"""Losses: upstream's figures, closed forms against one-hot ones, chunks against the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x import losses

FACTORS = (None, 7.0, "NUM_REAL_TARGET_TOKENS", "num_total_target_tokens", "AVERAGE_PER_SEQUENCE")


def _arrays(seed, batch=3, length=8, size=5, vocab=11):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=(batch, length, size)), jnp.float32),
        jnp.asarray(rng.normal(size=(size, vocab)), jnp.float32),
        jnp.asarray(rng.integers(0, vocab, (batch, length))),
        jnp.asarray(rng.integers(0, 3, (batch, length)), jnp.float32),
    )


_cross_entropy = jax.jit(losses.compute_weighted_cross_entropy, static_argnums=(3, 4))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 1e-2), (0.1, 0.0)])
def test_weighted_cross_entropy_is_upstreams(tiny_t5, factor, packed, label_smoothing, z_loss):
    batch = tiny_t5.batch(packed)
    logits = np.random.RandomState(3).standard_normal((3, 9, 48)).astype(np.float32) * 3
    number, weights = losses.get_loss_normalizing_factor_and_weights(factor, batch)
    result = _cross_entropy(
        logits, batch["decoder_target_tokens"], weights, label_smoothing, z_loss, number
    )
    name = factor.upper() if isinstance(factor, str) else factor
    expected = tiny_t5.golden[f"ce/{name}/{label_smoothing}/{packed}"]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _by_tokens(logits, targets, z_loss, label_smoothing):
    def loss(logits):
        return losses.token_losses(logits, targets, z_loss, label_smoothing).loss.sum()

    return jax.value_and_grad(loss)(logits)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _by_distributions(logits, targets, z_loss, label_smoothing):
    one_hot = jax.nn.one_hot(targets, logits.shape[-1])
    low = label_smoothing / (logits.shape[-1] - 1)
    soft = one_hot * (1 - label_smoothing) + (1 - one_hot) * low
    entropy = -jnp.sum(jnp.where(soft > 0, soft * jnp.log(soft + 1e-20), 0))

    def loss(logits):
        return losses.cross_entropy_with_logits(logits, soft, z_loss)[0].sum() - entropy

    return jax.value_and_grad(loss)(logits)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), arguments=st.sampled_from([(1e-2, 0.0), (0.0, 0.1), (1e-2, 0.4)]))
def test_integer_targets_equal_distributions(seed, arguments):
    """Loss and gradient of the closed form equal those against smoothed one-hot targets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 8, 11)).astype(np.float32) * 4
    targets = rng.integers(0, 11, (3, 8))
    loss, grad = _by_tokens(logits, targets, *arguments)
    expected_loss, expected_grad = _by_distributions(logits, targets, *arguments)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_cross_entropy_gradient_is_that_of_the_formula():
    hidden, kernel, targets, _ = _arrays(4)
    soft = jax.nn.one_hot(targets, 11)

    def formula(logits):
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return jnp.sum(log_z - jnp.sum(soft * logits, -1) + 0.1 * log_z**2)

    def ours(logits):
        return losses.cross_entropy_with_logits(logits, soft, 0.1)[0].sum()

    grads = jax.jit(lambda x: (jax.grad(ours)(x), jax.grad(formula)(x)))(hidden @ kernel)
    np.testing.assert_allclose(*grads, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "chunk_tokens", "label_smoothing"), [(8, 7, 0.1), (7, 5, 0.0), (6, 0, 0.0)]
)
def test_chunks_equal_the_whole(length, chunk_tokens, label_smoothing):
    hidden, kernel, targets, weights = _arrays(0, length=length)

    def project(kernel, hidden):
        return hidden @ kernel

    def by_chunks(kernel, hidden):
        sums = losses.loss_sums_from_hidden(
            project,
            kernel,
            hidden,
            targets,
            weights,
            label_smoothing=label_smoothing,
            z_loss=1e-2,
            chunk_tokens=chunk_tokens,
        )
        return 3 * sums.loss, sums

    def whole(kernel, hidden):
        logits = hidden @ kernel
        loss, z_loss, _ = losses.compute_weighted_cross_entropy(
            logits, targets, weights, label_smoothing, 1e-2
        )
        right = (jnp.argmax(logits, -1) == targets) & (weights != 0)
        return 3 * loss, losses.LossSums(loss, z_loss, right.sum())

    @jax.jit
    def all_of_it(kernel, hidden):
        log_probs = jnp.take_along_axis(
            jax.nn.log_softmax(hidden @ kernel), targets[..., None], axis=-1
        )
        scores = losses.log_likelihoods_from_hidden(
            project, kernel, hidden, targets, chunk_tokens=chunk_tokens
        )
        grads = [jax.grad(f, (0, 1), has_aux=True)(kernel, hidden) for f in (by_chunks, whole)]
        return grads[0], grads[1], by_chunks(kernel, hidden)[1], scores, log_probs[..., 0]

    trained, expected, evaluated, scores, log_probs = all_of_it(kernel, hidden)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, trained, expected)
    jax.tree.map(compare, evaluated, expected[1])
    compare(scores, log_probs)


def test_chunks_divide_the_length_and_respect_the_bound():
    assert losses._chunk_count(batch=4, length=256, chunk_tokens=0) == 1
    assert losses._chunk_count(batch=4, length=256, chunk_tokens=1024) == 1
    assert losses._chunk_count(batch=4, length=256, chunk_tokens=300) == 4
    assert losses._chunk_count(batch=4, length=62, chunk_tokens=100) == 31
    assert losses._chunk_count(batch=4096, length=7, chunk_tokens=100) == 7


def test_projection_happens_once_per_chunk_when_training():
    """Loss and gradients cost three products with the kernel, not four."""
    hidden, kernel, targets, weights = _arrays(1)

    def loss(kernel, hidden):
        return losses.loss_sums_from_hidden(
            lambda kernel, hidden: hidden @ kernel, kernel, hidden, targets, weights, chunk_tokens=6
        ).loss

    text = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(kernel, hidden).as_text()
    assert text.count("stablehlo.dot_general") == 3
    assert "tensor<3x8x11xf32>" not in text


def test_average_per_sequence_weighs_packed_examples_equally(tiny_t5):
    batch = tiny_t5.batch(packed=True)
    factor, weights = losses.get_loss_normalizing_factor_and_weights("AVERAGE_PER_SEQUENCE", batch)
    ids = np.asarray(batch["decoder_segment_ids"])
    for row in range(3):
        for segment in range(1, ids[row].max() + 1):
            np.testing.assert_allclose(weights[row][ids[row] == segment].sum(), 1, rtol=1e-6)
    assert weights[ids == 0].sum() == 0
    np.testing.assert_allclose(factor, 6, rtol=1e-6)


def test_padding_is_no_sequence_to_average_over():
    # The weights of padding are what a feature converter of one's own may leave there.
    batch = {
        "decoder_target_tokens": jnp.array([[4, 5, 6], [7, 8, 0]]),
        "decoder_segment_ids": jnp.array([[1, 1, 2], [1, 0, 0]]),
        "decoder_loss_weights": jnp.array([[1.0, 3.0, 2.0], [0.5, 4.0, 4.0]]),
    }
    factor, weights = losses.get_loss_normalizing_factor_and_weights("AVERAGE_PER_SEQUENCE", batch)
    np.testing.assert_allclose(weights, [[0.25, 0.75, 1], [1, 0, 0]])
    assert factor == 3


def test_unknown_factor_names_the_known_ones(tiny_t5):
    with pytest.raises(ValueError, match=r"LOSS_NORMALIZING_FACTOR = 'tokens'.*AVERAGE"):
        losses.get_loss_normalizing_factor_and_weights("tokens", tiny_t5.batch(packed=False))


def test_shapes_that_do_not_match_are_named():
    with pytest.raises(ValueError, match=r"logits \(2, 3\).*targets \(2, 3\)"):
        losses.compute_weighted_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 3), jnp.int32))
