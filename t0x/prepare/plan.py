"""Which rows of which task are written: what a run can use at the mixture's rates, and no more.

A task is drawn as often as its share of the rates says. If that is fewer times than its split has
rows, a seeded sample of the split's rows is written, without replacement and spread over the whole
split; prompts of one dataset take different rows as far as there are enough.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from t0x.prepare.request import Run

# What chance and the estimate of lengths may add to the expected draws.
MARGIN = 1.05
# Work that one process does between two records of it, and the size of a file on a bucket.
EXAMPLES_PER_SHARD = 20_000


@dataclass(frozen=True)
class Sampled:
    """What a few rows of a task tell: how many were tried, gave examples, and their mean tokens.

    Means are of lengths trimmed to the run's; `rate` is the task's in the mixture.
    """

    rate: float
    tried: int
    gave: int
    inputs: float
    targets: float


@dataclass(frozen=True)
class Survey:
    """Rows of a source's split, and what a few of them tell of each task."""

    rows: int
    tasks: Mapping[str, Sampled]


@dataclass(frozen=True)
class TaskPlan:
    """The rows of one task: `count` places of the permuted split from `start` on, all if `whole`.

    `draws` is how often the run is expected to draw the task; 0 where no run was given.
    """

    rate: float
    draws: float
    whole: bool
    start: int
    count: int


@dataclass(frozen=True)
class SourcePlan:
    """What is written of a source: its rows are cut in `shards` ranges, each a file a task."""

    rows: int
    shards: int
    tasks: Mapping[str, TaskPlan]

    @property
    def examples(self) -> int:
        """Rows to render, over tasks."""
        return sum(task.count for task in self.tasks.values())


def expect_examples(surveys: Mapping[str, Survey], run: Run) -> float:
    """Examples that a run's steps hold if its rows are full; one a row without packing."""
    rows = run.steps * run.batch_size
    if not run.pack:
        return float(rows)
    sampled = [task for survey in surveys.values() for task in survey.tasks.values() if task.gave]
    total = sum(task.rate for task in sampled)
    if not total:
        return 0.0
    inputs = sum(task.rate * task.inputs for task in sampled) / total
    targets = sum(task.rate * task.targets for task in sampled) / total
    fit = [most / mean for most, mean in ((run.inputs, inputs), (run.targets, targets)) if mean]
    return rows * max(1.0, min(fit, default=1.0))


def plan_source(
    survey: Survey, total_rate: float, examples: float | None, most_rows: int | None = None
) -> SourcePlan:
    """Chooses how many rows of each task are written.

    Args:
      survey: of the source.
      total_rate: of all tasks of the mixture.
      examples: that the run reads of the whole mixture; None writes every row.
      most_rows: of a task, whatever the run reads.
    """
    tasks, start = {}, 0
    for name, sampled in sorted(survey.tasks.items()):
        draws = (examples or 0.0) * (sampled.rate / total_rate if total_rate else 0.0)
        count = survey.rows if most_rows is None else min(survey.rows, most_rows)
        if examples is not None and sampled.gave:
            count = min(count, math.ceil(MARGIN * draws * sampled.tried / sampled.gave))
        whole = count >= survey.rows
        tasks[name] = TaskPlan(sampled.rate, draws, whole, 0 if whole else start, count)
        if not whole:
            start = (start + count) % survey.rows
    most = max((task.count for task in tasks.values()), default=0)
    return SourcePlan(survey.rows, max(1, math.ceil(most / EXAMPLES_PER_SHARD)), tasks)


def choose_rows(plan: SourcePlan, task: str, shard: int, label: str, seed: int) -> np.ndarray:
    """Row numbers of a task in one shard, int64, ascending.

    Args:
      plan: of the source.
      task: its name.
      shard: which of the plan's.
      label: of the source; sources are permuted differently.
      seed: of the permutation.
    """
    first = plan.rows * shard // plan.shards
    last = plan.rows * (shard + 1) // plan.shards
    chosen = plan.tasks[task]
    if chosen.whole:
        return np.arange(first, last)
    places = np.arange(chosen.start, chosen.start + chosen.count) % plan.rows
    rows = _permute(plan.rows, seed, zlib.crc32(label.encode()))[places]
    return np.sort(rows[(rows >= first) & (rows < last)])


@functools.lru_cache(maxsize=1)
def _permute(rows: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows)
