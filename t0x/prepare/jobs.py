"""The two kinds of work, by source: learning from a few rows, and writing shards."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import seqio

from t0x.prepare import shards
from t0x.prepare.mixture import find_sources, find_tasks
from t0x.prepare.plan import Sampled, SourcePlan, Survey, TaskPlan
from t0x.prepare.request import Request, register
from t0x.prepare.sources import Source, SourceError, reading
from t0x.registration.dataset import mixing_rate
from t0x.registration.registry import task_info
from t0x.registration.skipped import counted

# Rows of every task that a survey renders.
SURVEYED_ROWS = 64


@dataclass(frozen=True)
class Job:
    """Work on one source, done by one process.

    Attributes:
      label: of the source.
      plan: None for a survey.
      shards: which of the plan's.
    """

    label: str
    plan: SourcePlan | None = None
    shards: Sequence[int] = ()


@functools.cache
def open_sources(request: Request) -> dict[str, Source]:
    """The sources of a request by label; its tasks are registered if they are not."""
    register(request)
    return find_sources(request, find_tasks(request))


def run_job(request: Request, job: Job, report: Callable[[int, int], None]) -> bool:
    """Does a job and leaves its record in the store.

    Args:
      request: what is prepared.
      job: what to do.
      report: called with numbers of rows that are done, and that were before; once for a survey.

    Returns:
      False where the source cannot be read, which is recorded; any other error is raised.
    """
    source = open_sources(request)[job.label]
    try:
        if job.plan is None:
            try:
                shards.write_json(_place(request, "surveys", job.label), _survey(request, source))
            finally:
                report(1, 0)
        else:
            shards.write_shards(request, source, job.plan, job.shards, report)
    except SourceError as error:
        record = {"reason": str(error), "rates": _rates_unread(request, source)}
        shards.write_json(_place(request, "failures", job.label), record)
        return False
    return True


def _place(request: Request, kind: str, label: str) -> Any:
    return shards.place(request.directory, request.split, kind, label)


def _survey(request: Request, source: Source) -> dict[str, Any]:
    count = len(source)
    rates = _rates(request, source)
    lengths: dict[str, list[tuple[int, int]]] = {name: [] for name in source.tasks}
    rows = source.sample(SURVEYED_ROWS) if request.run else ()
    if len(rows):
        with counted():
            for name, _, example in source.read(dict.fromkeys(source.tasks, rows)):
                if example is not None:
                    pair = len(example.inputs), len(example.targets)
                    lengths[name].append(
                        (min(pair[0], request.run.inputs), min(pair[1], request.run.targets))
                    )
    sampled = {
        name: Sampled(
            rate=rates[name],
            tried=len(rows),
            gave=len(pairs),
            inputs=sum(i for i, _ in pairs) / max(1, len(pairs)),
            targets=sum(t for _, t in pairs) / max(1, len(pairs)),
        )
        for name, pairs in lengths.items()
    }
    return dataclasses.asdict(Survey(count, sampled))


def _rates(request: Request, source: Source) -> dict[str, float]:
    """Rates of a source's tasks in the mixture; a function of rates may count rows."""
    provider = seqio.get_mixture_or_task(request.mixture)
    if not isinstance(provider, seqio.Mixture):
        return dict.fromkeys(source.tasks, 1.0)
    with reading(source.label):
        return {name: float(provider.get_rate(task)) for name, task in source.tasks.items()}


def _rates_unread(request: Request, source: Source) -> dict[str, float]:
    """Rates where rows cannot be read; if they count rows, T0's rule over the published sizes."""
    try:
        return _rates(request, source)
    except SourceError:
        pass
    rates = {}
    for name in source.tasks:
        info = task_info(name)
        size = info.dataset.train_size or info.dataset.full_splits.get(info.train_split) or 0
        rates[name] = float(mixing_rate(size, info.num_templates))
    return rates


def read_surveys(request: Request, labels: Sequence[str]) -> dict[str, Survey]:
    """The surveys that were made of some sources."""
    found = {}
    for label in labels:
        data = shards.read_json(_place(request, "surveys", label))
        if data is not None:
            tasks = {name: Sampled(**sampled) for name, sampled in data["tasks"].items()}
            found[label] = Survey(data["rows"], tasks)
    return found


def read_failures(request: Request, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Why some sources could not be read: reason, and rates of their tasks."""
    found = {label: shards.read_json(_place(request, "failures", label)) for label in labels}
    return {label: failure for label, failure in found.items() if failure is not None}


def forget_failures(request: Request, labels: Sequence[str]) -> None:
    """Removes the records of failures, for a new try."""
    for label in labels:
        _place(request, "failures", label).unlink(missing_ok=True)


def parse_plan(data: Mapping[str, Any]) -> SourcePlan:
    """A source's plan from JSON's values."""
    tasks = {name: TaskPlan(**task) for name, task in data["tasks"].items()}
    return SourcePlan(data["rows"], data["shards"], tasks)
