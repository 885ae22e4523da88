"""Packing keeps every token of every choice, within its row and beside its own input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x.evaluation import packing

INPUTS, TARGETS = 24, 16
lengths = st.tuples(
    st.integers(0, INPUTS), st.lists(st.integers(1, TARGETS), min_size=1, max_size=9)
)


def _examples(shapes):
    """Examples whose tokens are all different numbers."""
    counter = iter(range(1, 10**6))
    take = lambda n: np.array([next(counter) for _ in range(n)], np.int32)  # noqa: E731
    return [packing.Choices(take(n), [take(m) for m in targets]) for n, targets in shapes]


@settings(max_examples=80, deadline=None)
@given(st.lists(lengths, max_size=12))
def test_every_choice_lies_in_one_piece_beside_its_input(shapes):
    examples = _examples(shapes)
    packed = packing.pack(examples, INPUTS, TARGETS)
    f = packed.features
    for example, slots in zip(examples, packed.slots, strict=True):
        for target, slot in zip(example.targets, slots, strict=True):
            here = (slot.row, slice(slot.start, slot.start + slot.length))
            np.testing.assert_array_equal(f["decoder_target_tokens"][here], target)
            # Shifted right within the segment.
            np.testing.assert_array_equal(f["decoder_input_tokens"][here], [0, *target[:-1]])
            (segment,) = set(f["decoder_segment_ids"][here])
            assert (f["decoder_segment_ids"][slot.row] == segment).sum() == slot.length
            (cross,) = set(f["decoder_cross_segment_ids"][here])
            beside = f["encoder_input_tokens"][slot.row][
                f["encoder_segment_ids"][slot.row] == cross
            ]
            np.testing.assert_array_equal(beside, example.inputs)
    # Nothing else is in the rows.
    total = sum(len(t) for e in examples for t in e.targets)
    assert (f["decoder_target_tokens"] > 0).sum() == f["decoder_loss_weights"].sum() == total


def test_an_example_is_encoded_once_where_its_choices_fit():
    examples = _examples([(10, [3, 3, 3])] * 4)
    packed = packing.pack(examples, INPUTS, 2 * TARGETS)
    assert packed.repeated == 0
    assert len(packed.features["encoder_input_tokens"]) == 2


def test_choices_that_overflow_a_row_are_spread_and_counted():
    packed = packing.pack(_examples([(5, [10, 10, 10])]), INPUTS, TARGETS)
    assert packed.repeated == 2
    assert [slot.length for slot in packed.slots[0]] == [10, 10, 10]
    assert (packed.features["encoder_input_tokens"] > 0).sum() == 15


@pytest.mark.parametrize(
    ("shape", "message"), [((25, [1]), "an input of 25 tokens"), ((1, [17]), "a choice of 17")]
)
def test_what_cannot_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        packing.pack(_examples([shape]), INPUTS, TARGETS)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(lengths, min_size=1, max_size=12), min_size=1, max_size=4))
def test_chosen_row_lengths_hold_every_input_and_choice(groups):
    groups = [_examples(shapes) for shapes in groups]
    inputs, targets = packing.choose_row_lengths([packing.Lengths.of(group) for group in groups])
    for group in groups:
        packing.pack(group, inputs, targets)


def test_chosen_rows_are_full():
    rng = np.random.default_rng(0)
    shapes = [(int(n), [int(m) for m in rng.integers(2, 9, 4)]) for n in rng.integers(20, 300, 600)]
    examples = _examples(shapes)
    features = packing.pack(
        examples, *packing.choose_row_lengths([packing.Lengths.of(examples)])
    ).features
    assert np.mean(features["encoder_segment_ids"] > 0) > 0.9
    assert np.mean(features["decoder_segment_ids"] > 0) > 0.7


def test_settled_row_lengths_that_are_too_short_are_refused():
    group = packing.Lengths.of(_examples([(10, [3, 5])]))
    assert packing.choose_row_lengths([group], 12, 5) == (12, 5)
    with pytest.raises(ValueError, match="inputs_per_row = 9 is shorter than the 10 tokens"):
        packing.choose_row_lengths([group], 9)
    with pytest.raises(ValueError, match="targets_per_row = 4 is shorter than the 5 tokens"):
        packing.choose_row_lengths([group], None, 4)


def test_scores_are_summed_over_each_slot():
    slots = [[packing.Slot(0, 0, 2), packing.Slot(0, 2, 1)], [packing.Slot(1, 1, 3)]]
    scores = -np.array([[1, 2, 4, 8], [16, 32, 64, 128]], np.float32)
    assert packing.sum_scores(slots, scores) == [[-3, -4], [-224]]
