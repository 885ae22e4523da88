"""The tasks of a mixture, and the sources that they share."""

from collections.abc import Mapping

import seqio

from t0x.prepare.published import find_cached
from t0x.prepare.request import Request
from t0x.prepare.sources import PromptedRows, Source
from t0x.registration.registry import SCORE_EVAL, task_infos


def find_tasks(request: Request) -> dict[str, seqio.Task]:
    """The tasks of a request's mixture by name.

    Raises:
      LookupError: neither a mixture nor a task has that name.
      ValueError: they are rank classification tasks, or their features are not two texts' tokens.
    """
    name = request.mixture
    known = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    if name not in known:
        mixtures = ", ".join(sorted(seqio.MixtureRegistry.names())) or "none"
        raise LookupError(f"no mixture or task is named {name!r}; mixtures: {mixtures}")
    tasks = {task.name: task for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))}
    ranked = [task for task in tasks if task.endswith(SCORE_EVAL)]
    if ranked:
        raise ValueError(
            f"{name} has rank classification tasks ({ranked[0]}): they are evaluated from rows, "
            "not prepared"
        )
    infos = task_infos()
    foreign = [task for task in tasks if task not in infos]
    if foreign:
        raise ValueError(
            f"{name}: {', '.join(foreign[:3])} was not registered by t0x.registration; train it "
            "through SeqIO"
        )
    first = next(iter(tasks.values())).output_features
    for task in tasks.values():
        features = task.output_features
        same = set(features) == {"inputs", "targets"} and all(
            feature.rank == 1
            and feature.add_eos == first[key].add_eos
            and feature.vocabulary == first[key].vocabulary
            for key, feature in features.items()
        )
        if not same:
            raise ValueError(
                f"{name}: the features of {task.name} are not those of the mixture's first task"
            )
    return tasks


def find_sources(request: Request, tasks: Mapping[str, seqio.Task]) -> dict[str, Source]:
    """The sources of a request's tasks by label: cached tasks alone, others by dataset.

    A task without the split asked for is in none.
    """
    cached = find_cached(request, tasks)
    groups: dict[int, dict[str, seqio.Task]] = {}
    infos = task_infos()
    for name, task in tasks.items():
        if name not in cached and request.split in task.splits:
            groups.setdefault(id(infos[name].dataset), {})[name] = task
    sources: dict[str, Source] = dict(cached)
    for group in groups.values():
        label = infos[next(iter(group))].dataset.label
        sources[label] = PromptedRows(label, group, request.split)
    return sources
