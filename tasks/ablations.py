"""Mixtures restricted to some datasets or prompts, set in a gin file: the paper's ablations.

A run file names the function where it would name a mixture:

    from t0x.tasks import ablations

    MIXTURE_OR_TASK_NAME = @ablations.restrict_mixture()
    ablations.restrict_mixture:
      mixture = 't0_train'
      datasets = 10
      prompts = 1

The paper's own ablations (arXiv 2110.08207, section 6.2) need none of this: 1, on average 5.7 and
all prompts a dataset are `t0_train_one_og_prompt`, `t0_train_all_og_prompts` and `t0_train`; 39, 49
and 55 datasets are `t0_train`, `t0+_train` and `t0++_train` (38, 48 and 54 rows of the catalogue).
"""

import difflib
import random
import zlib
from collections.abc import Iterable, Sequence

import gin
import seqio

from t0x.registration import register_mixture, task_info


@gin.configurable(module="t0x.tasks.ablations")
def restrict_mixture(
    mixture: str,
    datasets: int | str | Sequence[str] | None = None,
    prompts: int | None = None,
    original_task: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> str:
    """Registers a part of a mixture and returns its name, so that gin can put it in its place.

    Every task keeps its rate. A larger number with the same seed takes the same datasets and
    prompts and more, so that runs of an ablation differ by what was added alone.

    Args:
      mixture: a registered mixture of tasks that t0x registered.
      datasets: how many to keep, drawn by the seed; or which one or ones, as DATASET or
        DATASET/SUBSET. None keeps all.
      prompts: at most how many to keep of each dataset, drawn by the seed; None keeps all.
      original_task: keep only prompts whose task is the dataset's own, before any are drawn.
      seed: of the draws.
      name: of the new mixture; by default made of the other arguments.

    Raises:
      ValueError: an unknown mixture or dataset, a number out of range, or nothing is left.
    """
    base = _mixture(mixture)
    datasets = [datasets] if isinstance(datasets, str) else datasets
    by_dataset: dict[str, list[str]] = {}
    for task in base.tasks:
        info = task_info(task.name)
        if info.template.metadata.original_task or not original_task:
            by_dataset.setdefault(info.dataset.label, []).append(task.name)
    if not by_dataset:
        raise ValueError(f"restrict_mixture: no prompt of {mixture} is of an original task")
    if prompts is not None and prompts < 1:
        raise ValueError(f"restrict_mixture.prompts = {prompts}; at least 1 is needed")
    kept = [
        task
        for label in _choose_datasets(mixture, by_dataset, datasets, seed)
        for task in _draw(by_dataset[label], prompts, f"{seed}/{label}")
    ]
    name = name or _name(mixture, datasets, prompts, original_task, seed)
    if name not in seqio.MixtureRegistry.names():
        register_mixture(name, kept, base.get_rate)
    elif {task.name for task in seqio.MixtureRegistry.get(name).tasks} != set(kept):
        raise ValueError(f"restrict_mixture.name = '{name}' is the name of another mixture")
    return name


def _mixture(name: str) -> seqio.Mixture:
    known = seqio.MixtureRegistry.names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "import the module that registers it"
        raise ValueError(f"restrict_mixture.mixture = '{name}' is no registered mixture; {hint}")
    return seqio.MixtureRegistry.get(name)


def _choose_datasets(
    mixture: str, available: Iterable[str], wanted: int | Sequence[str] | None, seed: int
) -> list[str]:
    available = list(available)
    if wanted is None:
        return available
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(available):
            raise ValueError(
                f"restrict_mixture.datasets = {wanted}, but {mixture} has {len(available)}"
            )
        return _draw(available, wanted, str(seed))
    if unknown := sorted(set(wanted) - set(available)):
        raise ValueError(
            f"restrict_mixture.datasets: {mixture} has no {', '.join(unknown)}; it has "
            f"{', '.join(available)}"
        )
    return [label for label in available if label in set(wanted)]


def _draw(items: Sequence[str], count: int | None, seed: str) -> list[str]:
    """The first `count` of a permutation of the items, in the order they have."""
    if count is None or count >= len(items):
        return list(items)
    drawn = random.Random(seed).sample(list(items), len(items))[:count]
    return [item for item in items if item in drawn]


def _name(
    mixture: str,
    datasets: int | Sequence[str] | None,
    prompts: int | None,
    original_task: bool,
    seed: int,
) -> str:
    parts = [mixture]
    if isinstance(datasets, int):
        parts.append(f"d{datasets}")
    elif datasets is not None:
        digest = zlib.crc32("\n".join(sorted(datasets)).encode())
        parts.append(f"d{len(set(datasets))}x{digest:08x}")
    if prompts is not None:
        parts.append(f"p{prompts}")
    if original_task:
        parts.append("og")
    return "_".join([*parts, f"s{seed}"])
