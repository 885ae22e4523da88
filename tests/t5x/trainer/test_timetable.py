"""What falls on which step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x.trainer.timetable import Entry, Timetable

PERIOD = st.one_of(st.none(), st.integers(0, 12))
ENTRY = st.tuples(PERIOD, st.lists(st.integers(0, 40), max_size=3))


def _walk(entries, end, stretch=None, first=0):
    """[(step, what was done)] of a run that is not stopped."""
    done = []
    step = first
    timetable = Timetable(
        *(Entry(period, i, steps) for i, (period, steps) in enumerate(entries)),
        end=end,
        stretch=stretch,
    )
    while step < end:
        following = timetable.next_stop(step)
        assert step < following <= end
        step = following
        done.append((step, timetable.due(step, last=step == end)))
    return done


@given(st.lists(ENTRY, max_size=3), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 9)))
def test_every_action_is_done_at_its_steps_and_at_the_end(entries, end, stretch):
    done = dict(_walk(entries, end, stretch))
    for step in range(1, end + 1):
        expected = [
            i
            for i, (period, steps) in enumerate(entries)
            if (period and (step == end or step % period == 0)) or step in steps
        ]
        assert done.get(step, []) == expected


@pytest.mark.parametrize(
    ("periods", "stretch", "stops"),
    [
        ((4, 6), None, [4, 6, 8, 10]),  # by the shortest period, as T5X does
        ((0, None), None, [10]),  # nothing to do: all at once
        ((20,), None, [10]),
        ((8,), 3, [3, 6, 8, 9, 10]),
    ],
)
def test_stretches(periods, stretch, stops):
    assert [step for step, _ in _walk([(p, ()) for p in periods], 10, stretch)] == stops


def test_a_run_of_no_steps_has_a_timetable():
    assert Timetable(Entry(0, print), end=0).end == 0
