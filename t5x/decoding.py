"""Decoding: temperature sampling and beam search over an autoregressive cache.

B is the batch, N sequences decoded for each input, L the decoded length, V the vocabulary. Token 0
is both the beginning of every sequence and padding. Results are sorted by score, best last.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PyTree = Any

# Score of what must not be chosen; finite, so that differences stay defined.
NEG_INF_VALUE = -1.0e7
NEG_INF = np.array(NEG_INF_VALUE)
# Below this a temperature means greedy choice.
MIN_TEMPERATURE = np.array(1e-4)
# Cache entries that are the same for every sequence.
SHARED_CACHE_ENTRIES = ("cached_bias", "position_embedder_index")


@flax.struct.dataclass
class DecodingState:
    """What the network sees at a step; a batch entry's N sequences are neighbours.

    Attributes:
      cur_index: (B·N,) positions being decoded (a scalar in beam search).
      sequences: (B·N, L) tokens so far.
      cur_token: (B·N, 1) token at cur_index.
      cache: the network's cache.
    """

    cur_index: jax.Array
    sequences: jax.Array
    cur_token: jax.Array
    cache: PyTree


TokensToLogits = Callable[[DecodingState], tuple[jax.Array, PyTree]]


def cache_map(
    fn: Callable[[jax.Array], jax.Array], cache: PyTree, apply_to_index: bool = False
) -> PyTree:
    """Maps fn over cache entries with a batch axis; cache_index has one only when prefilled."""
    skip = SHARED_CACHE_ENTRIES if apply_to_index else (*SHARED_CACHE_ENTRIES, "cache_index")
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key in skip else fn(x), cache
    )


def flat_batch_beam_expand(x: jax.Array, beam_size: int, offset: int = 0) -> jax.Array:
    """Repeats every batch entry beam_size times in place; the batch is axis `offset`."""
    return jnp.repeat(x, beam_size, axis=offset)


def flatten_beam_dim(x: jax.Array, offset: int = 0) -> jax.Array:
    """(B, N, …) → (B·N, …)."""
    return x.reshape(*x.shape[:offset], -1, *x.shape[offset + 2 :])


def unflatten_beam_dim(x: jax.Array, batch_size: int, beam_size: int, offset: int = 0) -> jax.Array:
    """(B·N, …) → (B, N, …)."""
    return x.reshape(*x.shape[:offset], batch_size, beam_size, *x.shape[offset + 1 :])


def _take_beams(x: jax.Array, indices_BxN: jax.Array, offset: int = 0) -> jax.Array:
    """(B, M, …) → (B, N, …), row by row the beams at those indices."""
    take = jax.vmap(lambda beams, indices: beams[indices])
    for _ in range(offset):
        take = jax.vmap(take, in_axes=(0, None))
    return take(x, indices_BxN)


# Temperature sampling.


@flax.struct.dataclass
class SamplingLoopState:
    """State of `temperature_sample`, as its callbacks see it.

    Attributes:
      step: scalar, from zero.
      cur_index: (B·N,) position of each sequence.
      sequences: (B·N, L + 2) tokens; the last place takes what finished sequences still write.
      cache: the network's cache.
      cur_token: (B·N, 1).
      ended: (B·N, 1) bool.
      rng: key of the following steps.
      log_prob: (B·N,) of the sampled tokens.
    """

    step: jax.Array
    cur_index: jax.Array
    sequences: jax.Array
    cache: PyTree
    cur_token: jax.Array
    ended: jax.Array
    rng: jax.Array
    log_prob: jax.Array


def temperature_sample(
    inputs: jax.Array,
    cache: PyTree,
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    decode_rng: jax.Array | None = None,
    num_decodes: int = 1,
    temperature: float | jax.Array = 1.0,
    topk: int | jax.Array = 1,
    topp: float | jax.Array = 0.0,
    cache_offset: int = 0,
    initial_index: jax.Array | None = None,
    max_decode_steps: int | jax.Array | None = None,
    max_decode_steps_hard_limit: int | None = None,
    rescale_log_probs: bool = True,
    state_callback_fn: Callable[[SamplingLoopState], SamplingLoopState] | None = None,
    logit_callback_fn: Callable[[jax.Array, SamplingLoopState], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Samples num_decodes continuations of each prompt.

    Args:
      inputs: (B, L) prompts: 0, then the forced tokens, then zeros to be filled. The result is
        shifted by one against it: its first token follows the leading 0.
      cache: for B sequences; expanded here to B·N.
      tokens_to_logits: DecodingState → logits (B·N, V) of the next token, and the new cache.
      eos_id: ends a sequence; zeros follow it.
      decode_rng: key, PRNGKey(0) by default.
      temperature: scalar, or (B,); under MIN_TEMPERATURE the choice is greedy.
      topk: sample among the k best tokens (ties included); 0: among all.
      topp: sample among the fewest tokens whose probabilities reach it; 0: all. Not with topk.
      cache_offset: axis of the cache's batch, 1 with scanned layers.
      initial_index: (B,) positions to go on from when the cache is prefilled with the prompts.
      max_decode_steps: tokens to add to a prompt at most.
      max_decode_steps_hard_limit: bound of max_decode_steps where that is an array.
      rescale_log_probs: report probabilities after temperature, topk and topp, not the network's.
      state_callback_fn: changes the state before each step, and the last state.
      logit_callback_fn: changes the logits before a token is drawn.

    Returns:
      Tokens (B, N, L) and their log-probabilities (B, N), prompts not counted.
    """
    if not _is_tracer(topk) and not _is_tracer(topp) and topk and topp:
        raise ValueError(f"temperature_sample: topk = {topk} and topp = {topp}; give only one")
    # Outside jit these may be NumPy's, which a traced index cannot look into.
    inputs, cache = jnp.asarray(inputs), jax.tree.map(jnp.asarray, cache)
    batch_size, length = inputs.shape
    if max_decode_steps is not None and max_decode_steps_hard_limit:
        max_decode_steps = jnp.minimum(max_decode_steps, max_decode_steps_hard_limit)
    if num_decodes > 1:
        inputs = flat_batch_beam_expand(inputs, num_decodes)
        cache = cache_map(
            lambda x: flat_batch_beam_expand(x, num_decodes, cache_offset),
            cache,
            apply_to_index=initial_index is not None,
        )
        if initial_index is not None:
            initial_index = flat_batch_beam_expand(initial_index, num_decodes)
    last_index = length
    if max_decode_steps is not None:
        if not _is_tracer(max_decode_steps) and max_decode_steps > length:
            raise ValueError(f"max_decode_steps = {max_decode_steps} exceeds the length {length}")
        last_index = jnp.minimum(length, jnp.sum(inputs != 0, axis=1) + max_decode_steps)

    sequences = jnp.pad(inputs, ((0, 0), (0, 2)))
    eos_in_prompt = jnp.sum(sequences == eos_id, axis=1, keepdims=True)
    index = jnp.zeros(len(inputs), jnp.int32) if initial_index is None else initial_index
    token = jnp.zeros((len(inputs), 1), jnp.int32)
    if initial_index is not None:
        token = jnp.take_along_axis(sequences, index[:, None], axis=1)
    temperature = jnp.asarray(temperature)
    if temperature.ndim:
        temperature = jnp.repeat(temperature, num_decodes)

    def step(state: SamplingLoopState) -> SamplingLoopState:
        if state_callback_fn is not None:
            state = state_callback_fn(state)
        draw_rng, next_rng = jax.random.split(state.rng)
        logits, new_cache = tokens_to_logits(
            DecodingState(state.cur_index, state.sequences[:, :-2], state.cur_token, state.cache)
        )
        if logit_callback_fn is not None:
            logits = logit_callback_fn(logits, state)
        drawn, log_prob = _draw(draw_rng, logits, temperature, topk, topp, rescale_log_probs)
        # Sequences that are through keep writing to the place after the end.
        i = jnp.minimum(state.cur_index, last_index)
        forced = jnp.take_along_axis(state.sequences, i[:, None] + 1, axis=1)
        is_free = forced == 0
        chosen = jnp.where(state.ended, 0, jnp.where(is_free, drawn[:, None], forced))
        new_sequences = state.sequences.at[jnp.arange(len(i)), i + 1].set(chosen[:, 0])
        has_new_eos = jnp.sum(new_sequences == eos_id, axis=1, keepdims=True) > eos_in_prompt
        return SamplingLoopState(
            step=state.step + 1,
            cur_index=i + 1,
            sequences=new_sequences,
            cache=jax.tree.unflatten(jax.tree.structure(state.cache), jax.tree.leaves(new_cache)),
            cur_token=chosen,
            ended=state.ended | has_new_eos | (i >= last_index - 1)[:, None],
            rng=next_rng,
            log_prob=state.log_prob + jnp.where((is_free & ~state.ended)[:, 0], log_prob, 0.0),
        )

    start = SamplingLoopState(
        step=jnp.zeros((), jnp.int32),
        cur_index=index,
        sequences=sequences,
        cache=cache,
        cur_token=token,
        ended=jnp.zeros((len(inputs), 1), jnp.bool_),
        rng=jax.random.PRNGKey(0) if decode_rng is None else decode_rng,
        log_prob=jnp.zeros(len(inputs), jnp.float32),
    )
    final = lax.while_loop(lambda state: ~jnp.all(state.ended), step, start)
    if state_callback_fn is not None:
        final = state_callback_fn(final)
    decodes = unflatten_beam_dim(final.sequences[:, 1:-1], batch_size, num_decodes)
    log_prob = unflatten_beam_dim(final.log_prob, batch_size, num_decodes)
    order = jnp.argsort(log_prob, axis=-1)
    return _take_beams(decodes, order), _take_beams(log_prob, order)


def _is_tracer(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _draw(
    rng: jax.Array,
    logits: jax.Array,
    temperature: jax.Array,
    topk: int | jax.Array,
    topp: float | jax.Array,
    rescale_log_probs: bool,
) -> tuple[jax.Array, jax.Array]:
    """One token (B·N,) from each row of logits (B·N, V), and its log-probability."""
    temperature_column = temperature[:, None] if temperature.ndim else temperature
    scaled = logits / jnp.maximum(temperature_column, MIN_TEMPERATURE)
    if _is_tracer(topk) or topk:
        scaled = _mask_topk(scaled, topk)
    if _is_tracer(topp) or topp:
        scaled = _mask_topp(scaled, topp)
    is_greedy = temperature <= MIN_TEMPERATURE
    token = jnp.where(
        is_greedy, jnp.argmax(logits, axis=-1), jax.random.categorical(rng, scaled)
    ).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(scaled if rescale_log_probs else logits)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    # A greedy choice is certain.
    return token, jnp.where(is_greedy, 0.0, log_prob) if rescale_log_probs else log_prob


def _mask_topk(logits: jax.Array, k: int | jax.Array) -> jax.Array:
    """Masks all but the k highest of each row, ties with the k-th included; k = 0 masks none."""
    if _is_tracer(k):
        descending = -jnp.sort(-logits, axis=-1)
        threshold = jnp.take(descending, jnp.maximum(k, 1) - 1, axis=-1, mode="clip")[:, None]
        threshold = jnp.where(k > 0, threshold, -jnp.inf)
    else:
        threshold = lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= threshold, logits, NEG_INF)


def _mask_topp(logits: jax.Array, p: float | jax.Array) -> jax.Array:
    """Masks all but the fewest highest of each row whose probabilities sum to at least p."""
    probs = jax.nn.softmax(logits)
    descending = -jnp.sort(-probs, axis=-1)
    # Kept while what comes before has not reached p.
    before = jnp.cumsum(descending, axis=-1) - descending
    threshold = jnp.min(jnp.where(before < p, descending, jnp.inf), axis=-1, keepdims=True)
    threshold = jnp.where(p > 0, threshold, 0.0)
    return jnp.where(probs >= threshold, logits, NEG_INF)


# Beam search.


def brevity_penalty(alpha: float, length: jax.Array | int) -> jax.Array:
    """Divisor of a log-probability that makes up for length (arXiv 1609.08144, eq. 14)."""
    return jnp.power((5.0 + length) / 6.0, alpha)


@flax.struct.dataclass
class BeamState:
    """State of `beam_search`.

    Attributes:
      cur_index: scalar position.
      live_logprobs, live_seqs: (B, N), (B, N, L + 1) sequences still growing, best last.
      finished_scores, finished_seqs: the same for ended ones; scores have the brevity penalty.
      finished_flags: (B, N) whether that place is taken.
      cache: the network's, with axes (B, N).
    """

    cur_index: jax.Array
    live_logprobs: jax.Array
    finished_scores: jax.Array
    live_seqs: jax.Array
    finished_seqs: jax.Array
    finished_flags: jax.Array
    cache: PyTree


def beam_search(
    inputs: jax.Array,
    cache: PyTree,
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    num_decodes: int = 4,
    alpha: float = 0.6,
    max_decode_len: int | None = None,
    max_decode_step: int = -1,
    min_log_prob: float = NEG_INF_VALUE,
    decode_rng: jax.Array | None = None,
    cache_offset: int = 0,
    initial_index: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Finds the likeliest continuations of each prompt with num_decodes beams.

    Args:
      inputs, cache, tokens_to_logits, eos_id, cache_offset: as in `temperature_sample`.
      alpha: exponent of the brevity penalty.
      max_decode_len: length of the result, that of inputs by default.
      max_decode_step: bound on the number of steps; -1: none.
      min_log_prob: stop when no growing sequence has this log-probability.
      decode_rng: not used; there is nothing random.
      initial_index: (B,) lengths of the prompts when the cache is prefilled with them.

    Returns:
      Tokens (B, N, L) and scores (B, N). Where nothing ended in time, what was still growing.
    """
    del decode_rng
    # Outside jit these may be NumPy's, which a traced index cannot look into.
    inputs, cache = jnp.asarray(inputs), jax.tree.map(jnp.asarray, cache)
    batch_size, input_length = inputs.shape
    length = (input_length if max_decode_len is None else max_decode_len) + 1
    prefilled = initial_index is not None
    prompts = inputs
    live_seqs = jnp.zeros((batch_size, num_decodes, length), jnp.int32)
    prompt_lengths = jnp.zeros(batch_size, jnp.int32)
    if prefilled:
        # The search starts from the last token of each prompt; the rest is put back at the end.
        prompt_lengths = jnp.asarray(initial_index)
        prompts = _right_align(inputs)
        live_seqs = live_seqs.at[:, :, 0].set(prompts[:, -1:])
        inputs = jnp.zeros_like(inputs)

    def keep_going(state: BeamState) -> jax.Array:
        best_live = state.live_logprobs[:, -1:] / brevity_penalty(alpha, length)
        worst_finished = jnp.min(state.finished_scores, axis=1, keepdims=True)
        worst_finished = jnp.where(state.finished_flags, worst_finished, NEG_INF)
        is_settled = jnp.all(worst_finished > best_live)
        floor = min_log_prob / brevity_penalty(alpha, length)
        is_hopeless = jnp.all(best_live < floor) & (state.cur_index > 0)
        has_room = state.cur_index + jnp.min(prompt_lengths) < length - 1
        out_of_steps = (max_decode_step > 0) & (state.cur_index >= max_decode_step)
        return has_room & ~is_settled & ~is_hopeless & ~out_of_steps

    def step(state: BeamState) -> BeamState:
        log_probs, new_cache = _next_log_probs(tokens_to_logits, state, cache_offset)
        sequences, sequence_log_probs, beams = _extend(log_probs, state, inputs)
        ended = sequences[:, :, state.cur_index + 1] == eos_id
        live_log_probs = sequence_log_probs + ended * NEG_INF
        best = _best_last(live_log_probs, num_decodes)
        parents = _take_beams(beams, best)
        total_lengths = prompt_lengths[:, None] + state.cur_index + 1
        scores = sequence_log_probs / brevity_penalty(alpha, total_lengths) + ~ended * NEG_INF
        finished = (
            jnp.concatenate([state.finished_seqs, sequences], axis=1),
            jnp.concatenate([state.finished_scores, scores], axis=1),
            jnp.concatenate([state.finished_flags, ended], axis=1),
        )
        best_finished = _best_last(finished[1], num_decodes)
        seqs, finished_scores, flags = (_take_beams(x, best_finished) for x in finished)
        return BeamState(
            cur_index=state.cur_index + 1,
            live_logprobs=_take_beams(live_log_probs, best),
            live_seqs=_take_beams(sequences, best),
            finished_seqs=seqs,
            finished_scores=finished_scores,
            finished_flags=flags,
            cache=cache_map(lambda x: _take_beams(x, parents, cache_offset), new_cache),
        )

    final = lax.while_loop(
        keep_going, step, _first_beams(live_seqs, cache, cache_offset, prefilled)
    )
    any_finished = jnp.any(final.finished_flags, axis=1)[:, None]
    sequences = jnp.where(any_finished[:, :, None], final.finished_seqs, final.live_seqs)[:, :, 1:]
    if prefilled:
        shape = (batch_size, num_decodes, input_length)
        whole = [jnp.broadcast_to(prompts[:, None], shape), sequences]
        sequences = _left_align(jnp.concatenate(whole, axis=-1))[:, :, : length - 1]
    return sequences, jnp.where(any_finished, final.finished_scores, final.live_logprobs)


def _first_beams(
    live_seqs: jax.Array, cache: PyTree, cache_offset: int, prefilled: bool
) -> BeamState:
    """All beams are the same at first, so all but one are ruled out."""
    batch_size, beams, _ = live_seqs.shape
    log_probs = jnp.array([0.0] + [NEG_INF_VALUE] * (beams - 1))

    def add_beams(x: jax.Array) -> jax.Array:
        expanded = flat_batch_beam_expand(x, beams, cache_offset)
        return unflatten_beam_dim(expanded, batch_size, beams, cache_offset)

    return BeamState(
        cur_index=jnp.array(0),
        live_logprobs=jnp.tile(log_probs, (batch_size, 1)),
        live_seqs=live_seqs,
        finished_seqs=jnp.zeros_like(live_seqs),
        finished_scores=jnp.full((batch_size, beams), NEG_INF_VALUE),
        finished_flags=jnp.zeros((batch_size, beams), jnp.bool_),
        cache=cache_map(add_beams, cache, apply_to_index=prefilled),
    )


def _next_log_probs(
    tokens_to_logits: TokensToLogits, state: BeamState, cache_offset: int
) -> tuple[jax.Array, PyTree]:
    """Log-probability (B, N, V) of every live sequence with each next token; the new cache."""
    batch_size, beams, _ = state.live_seqs.shape
    token = lax.dynamic_slice_in_dim(state.live_seqs, state.cur_index, 1, axis=2)
    logits, new_cache = tokens_to_logits(
        DecodingState(
            cur_index=state.cur_index,
            sequences=flatten_beam_dim(state.live_seqs),
            cur_token=flatten_beam_dim(token),
            cache=cache_map(lambda x: flatten_beam_dim(x, cache_offset), state.cache),
        )
    )
    new_cache = cache_map(
        lambda x: unflatten_beam_dim(x, batch_size, beams, cache_offset), new_cache
    )
    log_probs = jax.nn.log_softmax(unflatten_beam_dim(logits, batch_size, beams))
    # The loop wants the container it was given, frozen or not.
    new_cache = jax.tree.unflatten(jax.tree.structure(state.cache), jax.tree.leaves(new_cache))
    return log_probs + state.live_logprobs[:, :, None], new_cache


def _extend(
    log_probs: jax.Array, state: BeamState, inputs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 2·N best one-token extensions: sequences, log-probabilities, and the beams they extend.

    Twice as many as beams, so that N go on even if N end. Inside a prompt its token is forced and
    only one beam goes on, for all would be the same.
    """
    batch_size, beams, vocab_size = log_probs.shape
    best, flat_indices = lax.top_k(log_probs.reshape(batch_size, -1), 2 * beams)
    tokens, parents = flat_indices % vocab_size, flat_indices // vocab_size
    forced = inputs[:, state.cur_index + 1][:, None].astype(jnp.int32)
    one_beam = jnp.where(jnp.arange(2 * beams) == 0, 0.0, NEG_INF_VALUE)[None]
    best = jnp.where(forced == 0, best, one_beam)
    tokens = jnp.where(forced == 0, tokens, forced)
    sequences = _take_beams(state.live_seqs, parents)
    sequences = lax.dynamic_update_slice_in_dim(
        sequences, tokens[:, :, None], state.cur_index + 1, axis=2
    )
    return sequences, best, parents


def _best_last(scores_BxM: jax.Array, count: int) -> jax.Array:
    """Indices (B, count) of the highest scores, ascending."""
    return jnp.flip(lax.top_k(scores_BxM, count)[1], axis=1)


def _right_align(prompts_BxL: jax.Array) -> jax.Array:
    """Shifts each row so that its last nonzero token comes last."""
    length = prompts_BxL.shape[1]
    last = jnp.max(jnp.where(prompts_BxL != 0, jnp.arange(length), 0), axis=1)
    return _shift(prompts_BxL, last - (length - 1))


def _left_align(sequences: jax.Array) -> jax.Array:
    """Shifts each row of the last axis so that its first nonzero token comes first."""
    return _shift(sequences, jnp.argmax(sequences != 0, axis=-1))


def _shift(x: jax.Array, by: jax.Array) -> jax.Array:
    """x[..., i + by], zero beyond the ends."""
    length = x.shape[-1]
    source = jnp.arange(length) + by[..., None]
    taken = jnp.take_along_axis(x, jnp.clip(source, 0, length - 1), axis=-1)
    return jnp.where((source >= 0) & (source < length), taken, 0)
