"""Which prepared examples make which row, known from seed, rates and lengths alone.

The mixture is one endless sequence of draws, cut into blocks. How often a task has been drawn when
a block begins is a function of the block's number, so a position is a block and a row of it, and
every host works out the same rows whatever their number.
"""

import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from grain.experimental import index_shuffle

# A larger block packs no denser and takes longer to plan.
EXAMPLES_PER_BLOCK = 8192
# Where a task is tiny, blocks still hold this many, or their last rows would be half empty.
_FEWEST_PACKED = 512
# A cipher's walk through so few is longer than sorting them, and theirs are small to keep.
_LARGEST_SORTED = 1 << 12
_DRAWS, _TIES, _ROWS = range(3)


@dataclasses.dataclass(frozen=True)
class Position:
    """The next row to read: a block and a row of it."""

    block: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples of consecutive rows, ordered by row.

    Attributes:
      entries: (examples,) the task's number.
      places: (examples,) place in the task.
      rows: (examples,) the row each is in, from 0.
      lengths: (examples, 2) tokens of inputs and targets before trimming.
      count: rows.
    """

    entries: np.ndarray
    places: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray
    count: int

    def take(self, first: int, last: int) -> "Rows":
        """Rows `first` to `last`, numbered from 0 again."""
        start, stop = np.searchsorted(self.rows, (first, last))
        return Rows(
            self.entries[start:stop],
            self.places[start:stop],
            self.rows[start:stop] - first,
            self.lengths[start:stop],
            last - first,
        )


def _join(parts: Sequence[Rows]) -> Rows:
    starts = np.cumsum([0, *(part.count for part in parts)])
    return Rows(
        np.concatenate([part.entries for part in parts]),
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.lengths for part in parts]),
        int(starts[-1]),
    )


class RowPlan:
    """The rows of a mixture.

    A task of share p has been drawn floor(p * x + u) times after x draws of the mixture, u being a
    random number of its own: never more than one off its share. Its draws go through a fresh
    permutation of its examples every epoch.

    Args:
      names: of the tasks; each one's permutations depend on seed and name alone.
      rates: weight of each task.
      lengths: uint32 (examples, 2) of each task, tokens of inputs and targets; none empty.
      capacity: tokens of a row, of inputs and targets; longer examples count as trimmed.
      seed: of draws, permutations and the order of rows.
      shuffle: whether examples and rows are permuted; tasks are read in order if not.
      pack: whether a row takes several examples.
      examples_per_block: draws that are packed together.

    Raises:
      ValueError: no task has a rate, or one has no examples.
    """

    def __init__(
        self,
        names: Sequence[str],
        rates: Sequence[float],
        lengths: Sequence[np.ndarray],
        capacity: tuple[int, int],
        *,
        seed: int,
        shuffle: bool = True,
        pack: bool = True,
        examples_per_block: int = EXAMPLES_PER_BLOCK,
    ) -> None:
        self._sizes = np.array([len(of_task) for of_task in lengths], np.int64)
        if not len(names) or not self._sizes.all():
            empty = [name for name, size in zip(names, self._sizes, strict=True) if not size]
            raise ValueError(f"nothing to draw from: {', '.join(empty) or 'no tasks'}")
        if not math.fsum(rates) > 0 or min(rates) < 0:
            raise ValueError(f"rates {list(rates)[:5]}… are not weights")
        self._shares = np.array(rates, np.float64) / math.fsum(rates)
        self._names = [zlib.crc32(name.encode()) for name in names]
        self._lengths = lengths
        self._capacity = np.array(capacity, np.int64)
        self._seed, self._shuffle, self._pack = seed, shuffle, pack
        # Nothing is drawn twice in a block, as far as blocks may be that small.
        with np.errstate(divide="ignore"):
            once = int(min((self._sizes / self._shares).min(), examples_per_block))
        fewest = min(_FEWEST_PACKED, examples_per_block) if pack else 1
        self._block_size = max(once, fewest)
        bits = self._draw_bits(len(names), _DRAWS)
        self._offsets = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _draw_bits(self, count: int, *key: int) -> np.ndarray:
        """Random uint64 of a key; the stream of a bit generator is NumPy's promise."""
        state = np.random.SeedSequence([self._seed, *key]).generate_state(2, np.uint64)
        return np.random.Philox(key=state).random_raw(count)

    def count_draws(self, block: int) -> np.ndarray:
        """How often each task has been drawn when a block begins, int64 (tasks,)."""
        return np.floor(self._shares * (self._block_size * block) + self._offsets).astype(np.int64)

    def draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The draws of a block, task by task: (task numbers, draws of that task from 0)."""
        first, last = self.count_draws(block), self.count_draws(block + 1)
        counts = last - first
        tasks = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts
        return tasks, np.arange(len(tasks)) + np.repeat(first - starts, counts)

    def find_places(self, tasks: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The place of a task's example that each of its draws takes."""
        sizes = self._sizes[tasks]
        epochs, within = np.divmod(draws, sizes)
        if not self._shuffle:
            return within
        places = np.empty(len(tasks), np.int64)
        starts = np.flatnonzero(np.diff(tasks, prepend=-1) | np.diff(epochs, prepend=-1))
        for start, stop in itertools.pairwise([*starts.tolist(), len(tasks)]):
            key = (int(tasks[start]), int(epochs[start]))
            size = int(sizes[start])
            if size <= _LARGEST_SORTED:
                places[start:stop] = self._permute(*key)[within[start:stop]]
                continue
            seed = self._seed_epoch(*key)
            places[start:stop] = [
                index_shuffle(i, max_index=size - 1, seed=seed, rounds=4)
                for i in within[start:stop].tolist()
            ]
        return places

    def _seed_epoch(self, task: int, epoch: int) -> int:
        key = [self._seed, self._names[task], epoch]
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    @functools.lru_cache(maxsize=1 << 10)  # noqa: B019 - a plan lives as long as its dataset
    def _permute(self, task: int, epoch: int) -> np.ndarray:
        bits = np.random.Philox(key=self._seed_epoch(task, epoch)).random_raw(self._sizes[task])
        return np.argsort(bits, kind="stable").astype(np.int16)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def plan(self, block: int) -> Rows:
        """The rows of a block."""
        tasks, draws = self.draw(block)
        places = self.find_places(tasks, draws)
        lengths = np.empty((len(tasks), 2), np.int64)
        starts = np.flatnonzero(np.diff(tasks, prepend=-1))
        for start, stop in itertools.pairwise([*starts, len(tasks)]):
            lengths[start:stop] = self._lengths[tasks[start]][places[start:stop]]
        if self._shuffle:
            order = np.argsort(self._draw_bits(len(tasks), _TIES, block), kind="stable")
        else:
            order = np.argsort((draws + 1 - self._offsets[tasks]) / self._shares[tasks])
        tasks, places, lengths = tasks[order], places[order], lengths[order]
        if self._pack:
            rows, order = pack(np.minimum(lengths, self._capacity), self._capacity)
        else:
            rows = order = np.arange(len(tasks))
        count = int(rows.max(initial=-1)) + 1
        if self._shuffle:
            numbers = np.argsort(self._draw_bits(count, _ROWS, block), kind="stable")
            rows = numbers[rows]
        order = order[np.argsort(rows[order], kind="stable")]
        return Rows(tasks[order], places[order], rows[order], lengths[order], count)

    def read(self, position: Position, batch_size: int) -> Iterator[tuple[Rows, Position]]:
        """Batch after batch from a position on, each with the position after it."""
        block, row = position.block, position.row
        while True:
            parts, missing = [], batch_size
            while missing:
                rows = self.plan(block)
                taken = min(missing, rows.count - row)
                parts.append(rows.take(row, row + taken))
                missing, row = missing - taken, row + taken
                if row == rows.count:
                    block, row = block + 1, 0
            yield _join(parts), Position(block, row)


def pack(lengths: np.ndarray, capacity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts examples in rows by best fit, the largest first.

    An example goes to the row with the least room for inputs left in which both its features fit.

    Args:
      lengths: (examples, 2), none above the capacity.
      capacity: (2,) tokens of a row.

    Returns:
      The row of each example, and the order in which they were placed.
    """
    order = np.argsort(-(lengths / capacity).max(axis=1), kind="stable")
    rows = np.empty(len(lengths), np.int64)
    room = np.empty((2, len(lengths)), np.int32)  # of rows that may still take an example
    numbers = np.empty(len(lengths), np.int64)
    none = np.int32(np.iinfo(np.int32).max)
    least = lengths.min(axis=0, initial=0 if not len(lengths) else none)
    count = still = 0
    sorted_lengths = lengths[order].tolist()
    for step, (example, (inputs, targets)) in enumerate(
        zip(order.tolist(), sorted_lengths, strict=True)
    ):
        if step % 64 == 0:
            kept = np.flatnonzero((room[:, :still] >= least[:, None]).all(axis=0))
            room[:, : len(kept)], numbers[: len(kept)] = room[:, kept], numbers[kept]
            still = len(kept)
        best = still
        if still:
            fits = (room[0, :still] >= inputs) & (room[1, :still] >= targets)
            best = int(np.where(fits, room[0, :still], none).argmin())
            best = best if fits[best] else still
        if best == still:
            room[:, best], numbers[best] = capacity, count
            count, still = count + 1, still + 1
        room[0, best] -= inputs
        room[1, best] -= targets
        rows[example] = numbers[best]
    return rows, order
