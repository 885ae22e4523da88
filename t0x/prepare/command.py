"""`t0x prepare` from request to manifest: survey, plan, write, assemble."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import rich.console
from etils import epath

from t0x.prepare import assembly, jobs, processes, shards
from t0x.prepare.jobs import Job
from t0x.prepare.plan import SourcePlan, expect_examples, plan_source
from t0x.prepare.request import Request
from t0x.prepare.sources import Source
from t5x.data import store
from t5x.run.progress import Progress

# Jobs a process gets on average: fewer open a dataset less often, more end together.
_JOBS_PER_PROCESS = 4


class Runner(Protocol):
    """Does jobs wherever it likes; `report` may stay uncalled."""

    def __call__(
        self, request: Request, jobs: Sequence[Job], report: Callable[[int, int], None]
    ) -> None: ...


def default_processes() -> int:
    """Processes for all cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_locally(processes_: int) -> Runner:
    """A runner on this machine's cores."""

    def run(request: Request, todo: Sequence[Job], report: Callable[[int, int], None]) -> None:
        # Before the forks: they find it done.
        jobs.open_sources(request)
        processes.run_jobs(
            lambda job, tell: jobs.run_job(request, job, tell), todo, processes_, report
        )

    return run


def prepare(
    request: Request,
    runner: Runner,
    overwrite: bool = False,
    console: rich.console.Console | None = None,
) -> store.Manifest:
    """Writes what is asked for and not there yet; the same bytes whatever the runner.

    As under SeqIO, a task without the split is no part of the mixture; a source that cannot be read
    leaves its tasks in the manifest's `missing`.

    Args:
      request: what to prepare.
      runner: does the work.
      overwrite: begin anew whatever there is.
      console: where progress is shown.

    Raises:
      ValueError: the store is another mixture's, or has other features.
      processes.JobError: the work failed for another reason than a source.
    """
    jobs.open_sources.cache_clear()  # rows may have changed since this process read them
    sources = jobs.open_sources(request)
    if not sources:
        raise ValueError(f"no task of {request.mixture} has a split {request.split!r}")
    _check_store(request, sources, overwrite)
    jobs.forget_failures(request, list(sources))
    plans = _plan(request, sources, runner, console)
    todo = [job for label, plan in plans.items() for job in _jobs_of(label, plan, sources, plans)]
    total = sum(plan.examples for plan in plans.values())
    with Progress(console, total, "examples") as progress:
        counts = [0, 0]

        def report(done: int, before: int) -> None:
            counts[0] += done
            counts[1] += before
            progress.update(*counts)

        runner(request, todo, report)
    failures = jobs.read_failures(request, list(sources))
    manifest = assembly.assemble(
        request,
        sources,
        {label: plan for label, plan in plans.items() if label not in failures},
        _missing(request, failures),
    )
    assembly.remove_leftovers(request, manifest)
    return manifest


def _check_store(request: Request, sources: Mapping[str, Source], overwrite: bool) -> None:
    path = epath.Path(request.directory) / store.MANIFEST
    if not path.exists():
        return
    if overwrite:
        path.unlink()
        work = epath.Path(request.directory) / shards.WORK
        if work.exists():
            work.rmtree()
        return
    before = store.read_manifest(request.directory)
    wanted = (
        request.mixture,
        request.keep_text,
        shards.describe_features(next(iter(sources.values()))),
    )
    for name, there, asked in zip(
        ("mixture", "kept text", "vocabulary"),
        (before.mixture, before.text, before.features),
        wanted,
        strict=True,
    ):
        if there != asked:
            raise ValueError(
                f"{request.directory} holds a store of another {name} ({there}, not {asked}); "
                "give another --out or --overwrite"
            )


def _plan(
    request: Request,
    sources: Mapping[str, Source],
    runner: Runner,
    console: rich.console.Console | None,
) -> dict[str, SourcePlan]:
    """The plans of all sources that can be read; what was planned before stays as it was.

    So that a dataset which could not be read the first time does not change the others' rows.
    """
    path = _place_plan(request)
    settings = {
        "mixture": request.mixture,
        "seed": request.seed,
        "most_rows": request.most_rows,
        "run": request.run and dataclasses.asdict(request.run),
        "sources": sorted(
            [label, source.sequential, sorted(source.tasks)] for label, source in sources.items()
        ),
    }
    before = shards.read_json(path)
    if before is None or before["settings"] != settings:
        # What readers would be told is about to change.
        (epath.Path(request.directory) / store.MANIFEST).unlink(missing_ok=True)
        before = {"settings": settings, "examples": None, "total_rate": 0.0, "sources": {}}
    unknown = [label for label in sources if label not in before["sources"]]
    if unknown:
        with Progress(console, len(unknown), "datasets surveyed") as progress:
            numbers = itertools.count(1)
            surveys_of = [Job(label) for label in unknown]
            runner(request, surveys_of, lambda *_: progress.update(next(numbers)))
        failed = jobs.read_failures(request, unknown)
        surveys = jobs.read_surveys(request, [label for label in unknown if label not in failed])
        if not before["sources"]:
            before["total_rate"] = _total_rate(surveys, failed)
            if request.run:
                before["examples"] = expect_examples(surveys, request.run)
        for label, survey in surveys.items():
            plan = plan_source(survey, before["total_rate"], before["examples"], request.most_rows)
            before["sources"][label] = dataclasses.asdict(plan)
        shards.write_json(path, before)
    return {label: jobs.parse_plan(plan) for label, plan in before["sources"].items()}


def _place_plan(request: Request) -> epath.Path:
    return epath.Path(request.directory) / shards.WORK / request.split / "plan.json"


def read_split_sizes(request: Request) -> dict[str, int]:
    """Rows that the split of every task has, written or not, by what was planned."""
    sources = shards.read_json(_place_plan(request))["sources"].values()
    return {name: source["rows"] for source in sources for name in source["tasks"]}


def _total_rate(surveys: Mapping[str, Any], failed: Mapping[str, Any]) -> float:
    read = sum(task.rate for survey in surveys.values() for task in survey.tasks.values())
    return read + sum(sum(failure["rates"].values()) for failure in failed.values())


def _jobs_of(
    label: str, plan: SourcePlan, sources: Mapping[str, Source], plans: Mapping[str, SourcePlan]
) -> list[Job]:
    """The shards of a source in jobs, all in one where reading one means reading those before."""
    everything = range(plan.shards)
    if sources[label].sequential:
        return [Job(label, plan, everything)]
    each = max(1, _shards(plans) // (_JOBS_PER_PROCESS * default_processes()))
    return [Job(label, plan, everything[i : i + each]) for i in range(0, plan.shards, each)]


def _shards(plans: Mapping[str, SourcePlan]) -> int:
    return sum(plan.shards for plan in plans.values())


def _missing(request: Request, failures: Mapping[str, Any]) -> dict[str, store.Missing]:
    """The tasks of sources that could not be read."""
    missing = {}
    for failure in failures.values():
        for name, rate in failure["rates"].items():
            missing[name] = store.Missing(
                task=name, split=request.split, rate=rate, reason=failure["reason"]
            )
    return missing
