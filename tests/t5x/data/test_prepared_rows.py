"""Draws follow the rates, every example comes once an epoch, rows are full and lose nothing."""

import collections

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x.data.prepared_rows import Position, RowPlan, pack

CAPACITY = (64, 16)
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def _plan(sizes, rates=None, seed=0, **options):
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, (80, 20), (size, 2)).astype(np.uint32) for size in sizes]
    names = [f"task_{i}" for i in range(len(sizes))]
    return RowPlan(names, rates or sizes, lengths, CAPACITY, seed=seed, **options)


def _ids(rows):
    return list(zip(rows.rows.tolist(), rows.entries.tolist(), rows.places.tolist(), strict=True))


def _read(plan, batches, batch_size, position=Position()):  # noqa: B008 - frozen
    """(row, task, place) of each example, rows numbered through; and the position after."""
    ids = []
    for number, (rows, after) in zip(range(batches), plan.read(position, batch_size), strict=False):
        assert rows.count == batch_size
        ids += [(row + number * batch_size, task, place) for row, task, place in _ids(rows)]
        position = after
    return ids, position


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 16)), max_size=200),
)
def test_packing_keeps_every_example_and_the_capacity(lengths):
    lengths = np.array(lengths, np.int64).reshape(-1, 2)
    rows, order = pack(lengths, np.array(CAPACITY))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    sums = np.zeros((int(rows.max(initial=-1)) + 1, 2), np.int64)
    np.add.at(sums, rows, lengths)
    assert (sums <= CAPACITY).all()
    assert len(np.unique(rows)) == len(sums)
    # Best fit opens a row only for what fits nowhere: no two rows together fit into one …
    if len(sums) > 1:
        smallest = np.argsort(sums[:, 0])[:2]
        if (sums[:, 1] == 0).all():  # … as far as one feature decides.
            assert sums[smallest, 0].sum() > CAPACITY[0]


def test_packing_fills_rows_of_p3_like_lengths():
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log((120, 6)), 1.0, (8192, 2))
    lengths = np.clip(np.rint(lengths), 2, (1024, 256)).astype(np.int64)
    rows, _ = pack(lengths, np.array((1024, 256)))
    assert lengths[:, 0].sum() / ((rows.max() + 1) * 1024) > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_draws_follow_the_rates(seed):
    rates = np.random.default_rng(seed).lognormal(0, 2, 330)
    plan = _plan([50] * 330, rates.tolist(), seed)
    drawn, block = np.zeros(330), 0
    while drawn.sum() < 200_000:
        tasks, _ = plan.draw(block)
        drawn += np.bincount(tasks, minlength=330)
        block += 1
    shares = rates / rates.sum()
    assert scipy.stats.chisquare(drawn, shares * drawn.sum()).pvalue > 0.01
    assert np.abs(drawn - shares * plan._block_size * block).max() < 1


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 2**31 - 1), st.booleans())
def test_every_example_comes_once_an_epoch(sizes, seed, packed):
    plan = _plan(sizes, seed=seed, pack=packed, examples_per_block=64)
    taken = collections.defaultdict(list)
    for block in range(6):
        tasks, draws = plan.draw(block)
        places = plan.find_places(tasks, draws)
        for task, draw, place in zip(tasks, draws, places, strict=True):
            assert draw == len(taken[task])
            taken[task].append(int(place))
        for task, of_task in taken.items():
            counts = np.bincount(of_task, minlength=sizes[task])
            assert counts.max() - counts.min() <= 1
        # What is in the rows is what was drawn.
        rows = plan.plan(block)
        assert sorted(zip(rows.entries, rows.places, strict=True)) == sorted(
            zip(tasks, places, strict=True)
        )
    for task, of_task in taken.items():
        size = sizes[task]
        for start in range(0, len(of_task) - size + 1, size):
            assert sorted(of_task[start : start + size]) == list(range(size))


def test_epochs_seeds_and_tasks_are_permuted_differently():
    def epoch(seed, task, number):
        plan = _plan([50, 50], seed=seed)
        draws = np.arange(50) + 50 * number
        return plan.find_places(np.full(50, task), draws).tolist()

    orders = [epoch(seed, task, n) for seed in (0, 1) for task in (0, 1) for n in (0, 1)]
    assert len({tuple(order) for order in orders}) == len(orders)
    large = _plan([5000])
    first, second = (
        large.find_places(np.zeros(5000, int), np.arange(5000) + start) for start in (0, 5000)
    )
    assert sorted(first) == sorted(second) == list(range(5000))
    assert (first == second).mean() < 0.01
    plan = _plan([50, 50], shuffle=False)
    assert plan.find_places(np.zeros(50, int), np.arange(50, 100)).tolist() == list(range(50))


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(1, 30), st.integers(0, 40), st.booleans(), st.booleans())
def test_rows_are_the_same_for_any_batch_and_position(sizes, batch_size, first, packed, shuffle):
    options = {"pack": packed, "shuffle": shuffle, "examples_per_block": 40}
    whole, _ = _read(_plan(sizes, **options), 60, 1)
    start, position = _read(_plan(sizes, **options), first, 1)
    assert whole[: len(start)] == start
    batches = (60 - first) // batch_size
    rest, _ = _read(_plan(sizes, **options), batches, batch_size, position)
    rest = [(row + first, task, place) for row, task, place in rest]
    assert rest == whole[len(start) : len(start) + len(rest)]
    assert [row for row, *_ in whole] == sorted(row for row, *_ in whole)


def test_without_shuffling_a_task_is_read_in_order():
    ids, _ = _read(_plan([30], shuffle=False, pack=False), 75, 1)
    assert ids == [(row, 0, row % 30) for row in range(75)]


def test_lengths_are_those_of_the_places():
    plan = _plan([20, 30])
    rows = plan.plan(0)
    for entry, place, lengths in zip(rows.entries, rows.places, rows.lengths, strict=True):
        assert lengths.tolist() == plan._lengths[entry][place].tolist()
    trimmed = np.minimum(rows.lengths, CAPACITY)
    for feature in range(2):
        assert np.bincount(rows.rows, trimmed[:, feature]).max() <= CAPACITY[feature]


@pytest.mark.parametrize(
    ("sizes", "rates", "message"),
    [
        ([], [], "no tasks"),
        ([3, 0], [1, 1], "task_1"),
        ([3], [0], "not weights"),
        ([3, 2], [2, -1], "weights"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(sizes, rates, message):
    with pytest.raises(ValueError, match=message):
        RowPlan(
            [f"task_{i}" for i in range(len(sizes))],
            rates,
            [np.ones((size, 2), np.uint32) for size in sizes],
            CAPACITY,
            seed=0,
        )
