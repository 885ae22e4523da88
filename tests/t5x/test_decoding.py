"""Decoding: upstream's sequences and scores, masks, and a toy model whose answers are known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import decoding

EOS = 1


@pytest.mark.parametrize(
    ("decode_fn", "num_decodes", "prompted", "scan_layers"),
    [
        ("beam_search", 3, False, False),
        ("beam_search", 2, True, True),
        ("temperature_sample", 1, False, False),
        ("temperature_sample", 2, True, True),
    ],
)
def test_decodes_are_upstreams(tiny_t5, decode_fn, num_decodes, prompted, scan_layers):
    params = tiny_t5.params()
    # A likelier EOS, so that sequences of several lengths come out.
    params["decoder"]["logits_dense"]["kernel"][:, EOS] *= 2.5
    if scan_layers:
        params = tiny_t5.stacked(params)
    model = tiny_t5.model(decode_fn=getattr(decoding, decode_fn), scan_layers=scan_layers)
    batch = tiny_t5.batch(packed=False)
    if prompted:
        batch["decoder_input_tokens"] = batch["decoder_input_tokens"].at[:, 3:].set(0)
    greedy = {"temperature": 0.0, "rescale_log_probs": False}
    decodes, aux = jax.jit(
        functools.partial(
            model.predict_batch_with_aux,
            num_decodes=num_decodes,
            return_all_decodes=True,
            prompt_with_targets=prompted,
            decoder_params=greedy if decode_fn == "temperature_sample" else None,
        )
    )(params, batch)
    tokens, scores = tiny_t5.golden[f"{decode_fn}/{num_decodes}/{prompted}"]
    np.testing.assert_array_equal(decodes, tokens)
    np.testing.assert_allclose(aux["scores"], scores, rtol=1e-4)


def _chain(log_probs, with_index=False):
    """A language model: the next token depends on the last one alone. log_probs is (V, V)."""

    def tokens_to_logits(state):
        return log_probs[state.cur_token[:, 0]], jax.tree.map(lambda x: x + 1, state.cache)

    return tokens_to_logits


def _random_chain(vocab=5, seed=0):
    logits = np.random.default_rng(seed).normal(size=(vocab, vocab)) * 2
    logits[:, 0] = -1e9
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))


def _best_by_enumeration(chain, length, alpha):
    """Score and tokens of the best sequence that ends within the length."""
    best = (-np.inf, None)
    for size in range(1, length + 1):
        for body in itertools.product(range(2, len(chain)), repeat=size - 1):
            tokens = (*body, EOS)
            log_prob = sum(chain[a, b] for a, b in zip((0, *body), tokens, strict=True))
            score = float(log_prob / decoding.brevity_penalty(alpha, size))
            best = max(best, (score, tokens + (0,) * (length - size)))
    return best


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wide_beam_finds_the_best_sequence(seed):
    chain = _random_chain(seed=seed)
    inputs = jnp.zeros((2, 5), jnp.int32)
    sequences, scores = jax.jit(
        lambda: decoding.beam_search(inputs, {"x": jnp.zeros(2)}, _chain(chain), EOS, 60)
    )()
    score, tokens = _best_by_enumeration(np.asarray(chain), 5, 0.6)
    np.testing.assert_array_equal(sequences[:, -1], [tokens] * 2)
    np.testing.assert_allclose(scores[:, -1], score, rtol=1e-5)
    assert np.all(np.diff(scores, axis=1) >= 0)


def test_cache_follows_its_beam():
    """A cache that records the tokens fed so far must agree with the sequence of its beam."""
    chain = _random_chain(seed=3)

    def tokens_to_logits(state):
        history = state.cache["history"].at[:, state.cur_index].set(state.cur_token[:, 0])
        differs = jnp.any(history != state.sequences[:, :6], axis=1)
        wrong = jnp.where(jnp.arange(6) <= state.cur_index, differs[:, None], False).any(axis=1)
        logits = jnp.where(wrong[:, None], jnp.nan, chain[state.cur_token[:, 0]])
        return logits, {"history": history}

    cache = {"history": jnp.zeros((2, 6), jnp.int32)}
    _, scores = decoding.beam_search(jnp.zeros((2, 6), jnp.int32), cache, tokens_to_logits, EOS, 4)
    assert np.all(np.isfinite(scores))


@pytest.mark.parametrize("decode_fn", [decoding.beam_search, decoding.temperature_sample])
def test_prefilled_prompts_are_kept(decode_fn):
    """Starting at the end of a prompt continues it as if its tokens had been forced."""
    chain = _random_chain(seed=5)
    inputs = jnp.array([[0, 3, 4, 2, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0]])
    cache = {"x": jnp.zeros(2), "cache_index": jnp.array([3, 1])}
    extra = {"temperature": 0.0} if decode_fn is decoding.temperature_sample else {}
    forced, _ = decode_fn(inputs, {"x": jnp.zeros(2)}, _chain(chain), EOS, num_decodes=2, **extra)
    prefilled, _ = decode_fn(
        inputs,
        cache,
        _chain(chain),
        EOS,
        num_decodes=2,
        initial_index=jnp.array([3, 1]),
        **extra,
    )
    np.testing.assert_array_equal(forced[:, -1], prefilled[:, -1])
    np.testing.assert_array_equal(prefilled[:, -1, :3][0], [3, 4, 2])


@pytest.mark.parametrize("decode_fn", [decoding.beam_search, decoding.temperature_sample])
def test_numpy_inputs_outside_jit(decode_fn):
    chain = _random_chain(seed=5)
    inputs = np.array([[0, 3, 4, 2, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0]])
    run = functools.partial(decode_fn, tokens_to_logits=_chain(chain), eos_id=EOS, num_decodes=2)
    plain = run(inputs, {"x": np.zeros(2)})
    traced = jax.jit(lambda *x: run(*x))(inputs, {"x": np.zeros(2)})
    for ours, theirs in zip(plain, traced, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    prefilled, _ = run(
        inputs,
        {"x": np.zeros(2), "cache_index": np.array([3, 1])},
        initial_index=np.array([3, 1]),
    )
    np.testing.assert_array_equal(prefilled[:, -1, :3][0], [3, 4, 2])


def test_beam_search_bounds():
    chain = _random_chain(seed=0).at[:, EOS].set(-1e9)
    inputs = jnp.zeros((1, 6), jnp.int32)
    run = functools.partial(decoding.beam_search, inputs, {"x": jnp.zeros(1)}, _chain(chain), EOS)
    assert np.count_nonzero(run(num_decodes=2, max_decode_len=4)[0][0, -1]) == 4
    assert np.count_nonzero(run(num_decodes=2, max_decode_step=3)[0][0, -1]) == 3
    assert np.count_nonzero(run(num_decodes=2, min_log_prob=-1e-3)[0][0, -1]) < 6


def test_sampling_follows_the_distribution():
    chain = _random_chain(seed=1)
    first = jax.nn.softmax(chain[0])
    sample = jax.jit(
        lambda: decoding.temperature_sample(
            jnp.zeros((2, 3), jnp.int32),
            {"x": jnp.zeros(2)},
            _chain(chain),
            EOS,
            jax.random.PRNGKey(4),
            num_decodes=2000,
            topk=0,
        )
    )
    tokens, log_prob = sample()
    counts = np.bincount(np.asarray(tokens)[:, :, 0].ravel(), minlength=5) / 4000
    np.testing.assert_allclose(counts, first, atol=0.04)
    row = np.asarray(tokens)[0, 0]
    expected = 0.0
    for previous, token in itertools.pairwise((0, *row)):
        expected += float(chain[previous, token]) if token else 0.0
    np.testing.assert_allclose(log_prob[0, 0], expected, rtol=1e-4)
    after_eos = np.cumsum(np.asarray(tokens) == EOS, axis=-1) - (np.asarray(tokens) == EOS)
    assert np.all(np.asarray(tokens)[after_eos > 0] == 0)


def test_masks_keep_the_best():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    kept = lambda masked: np.asarray(masked > decoding.NEG_INF_VALUE / 2).tolist()  # noqa: E731
    best_two = [[False, True, False, True], [True] * 4]
    assert kept(decoding._mask_topk(logits, 2)) == best_two
    assert kept(jax.jit(decoding._mask_topk)(logits, 2)) == best_two
    assert kept(jax.jit(decoding._mask_topk)(logits, 0)) == [[True] * 4] * 2
    assert kept(decoding._mask_topp(logits[:1], 0.6)) == [best_two[0]]
    assert kept(decoding._mask_topp(logits[:1], 0.75)) == [[False, True, True, True]]
    assert kept(jax.jit(decoding._mask_topp)(logits, 0.0)) == [[True] * 4] * 2


def test_temperature_per_example_and_bounds():
    chain = _random_chain(seed=2)
    run = functools.partial(
        decoding.temperature_sample,
        jnp.zeros((2, 4), jnp.int32),
        {"x": jnp.zeros(2)},
        _chain(chain),
        EOS,
        topk=0,
    )
    greedy, certain = run(temperature=0.0, num_decodes=3)
    mixed, _ = run(temperature=jnp.array([0.0, 5.0]), num_decodes=3)
    assert np.all(np.asarray(certain) == 0)
    np.testing.assert_array_equal(mixed[0], greedy[0])
    assert not np.array_equal(mixed[1], greedy[1])
    short, _ = run(temperature=0.0, max_decode_steps=2)
    np.testing.assert_array_equal(short[:, 0, 2:], 0)
    with pytest.raises(ValueError, match="max_decode_steps = 9"):
        run(max_decode_steps=9)
    with pytest.raises(ValueError, match="topk = 2 and topp"):
        run(**{"topp": 0.5, "topk": 2} | {})


def test_callbacks_see_and_change_state_and_logits():
    chain = _random_chain(seed=2)
    only_three = lambda logits, state: jnp.full_like(logits, -1e9).at[:, 3].set(0.0)  # noqa: E731
    tokens, _ = decoding.temperature_sample(
        jnp.zeros((1, 4), jnp.int32),
        {"x": jnp.zeros(1)},
        _chain(chain),
        EOS,
        logit_callback_fn=only_three,
        state_callback_fn=lambda s: s.replace(ended=s.ended | (s.step >= 2)),
    )
    np.testing.assert_array_equal(tokens[0, 0], [3, 3, 0, 0])
