"""Nested dicts of train state."""

import pytest
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from hypothesis import given
from hypothesis import strategies as st

from t5x import state_utils

SPEC = {"driver": "zarr", "kvstore": {"driver": "file"}, "metadata": {}}
flat_states = st.dictionaries(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=3).map("/".join), st.integers()
)


def nested(flat):
    return unflatten_dict(flat, sep="/")


def test_flatten_stops_at_tensorstore_specs():
    state = {"a": {"x": SPEC, "y": 1}, "b": {}}
    assert state_utils.flatten_state_dict(state) == {"a/x": SPEC, "a/y": 1}
    assert state_utils.flatten_state_dict(state, keep_empty_nodes=True)["b"] is empty_node
    assert not state_utils.tensorstore_leaf("x", {"driver": 1, "kvstore": 2})


def test_name_tree():
    assert state_utils.get_name_tree({"a": {"b": 1}, "c": {}}) == {"a": {"b": "a/b"}}
    assert state_utils.get_name_tree({"c": {}}, keep_empty_nodes=True) == {"c": "c"}


@given(flat_states, flat_states)
def test_intersection_and_merge(a, b):
    both = state_utils.flatten_state_dict(state_utils.intersect_state(nested(a), nested(b)))
    assert both == {path: a[path] for path in a.keys() & b.keys()}
    assert flatten_dict(state_utils.merge_state(nested(a), nested(b)), sep="/") == b | a
    overwritten = state_utils.merge_state(nested(a), nested(b), overwrite=True)
    assert flatten_dict(overwritten, sep="/") == a | b


def assign(checkpoint, model, rules, **options):
    result = state_utils.apply_assignment_map(nested(checkpoint), nested(model), rules, **options)
    return flatten_dict(result, sep="/")


def test_assignment():
    checkpoint = {"old/a": 1, "old/b": 2, "same": 3, "extra": 4}
    model = {"new/a": 0, "new/b": 0, "same": 0, "fresh": 0}
    rules = [(r"new/(\w)", r"old/\1"), ("fresh", None)]
    assert assign(checkpoint, model, rules) == {"new/a": 1, "new/b": 2, "same": 3, "extra": 4}
    assert assign(checkpoint, model, rules, is_resuming=True) == checkpoint


def test_one_entry_for_two_and_rotations():
    assert assign({"a": 1}, {"b": 0, "c": 0}, [("b|c", "a")]) == {"b": 1, "c": 1}
    assert assign({"a": 1, "b": 2}, {"a": 0, "b": 0}, [("a", "b"), ("b", "a")]) == {"a": 2, "b": 1}
    # Read under another name, yet still wanted under its own.
    assert assign({"a": 1}, {"a": 0, "b": 0}, [("b", "a")]) == {"a": 1, "b": 1}


def test_first_rule_wins_and_none_drops():
    assert assign(
        {"a": 1, "b": 2}, {"a": 0}, [("a", "b"), (".*", None)], require_all_rules_match=False
    ) == {"a": 2}
    assert assign({"a": 1}, {"a": 0}, [("a", None)]) == {}


def test_errors_name_the_rule():
    with pytest.raises(ValueError, match=r"assignment_map: 'x\.' match no parameter"):
        assign({"a": 1}, {"a": 0}, [("x.", "a")])
    with pytest.raises(
        ValueError, match="reads a from z, which is not in the checkpoint; it has b"
    ):
        assign({"b": 1}, {"a": 0}, [("a", "z")])
