"""Mixtures over the datasets of the catalogue whose rows lie under $T0X_DATA_DIR.

Importing this module registers, over all datasets with local rows:

- `local_train`: every prompt of every dataset with a local train split, mixed by T0's rule over the
  rows that are there.
- `local_score_eval`: the rank classification tasks of their original-task prompts. Evaluate it on
  the split named `eval`, which stands for each dataset's own test or validation split.

`register_local` makes the same two over chosen datasets under another name.
"""

import os
from collections.abc import Iterable

import seqio

from t0x.registration import mixing_rate, register_mixture, task_info
from t0x.sources.openers import DATA_DIR_VARIABLE, local_splits
from t0x.tasks import p3
from t0x.tasks.catalogue import catalogue


def _rate(task: seqio.Task) -> int:
    info = task_info(task.name)
    return mixing_rate(info.dataset.num_examples(info.train_split), info.num_templates)


def register_local(prefix: str, datasets: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Registers `<prefix>_train` and `<prefix>_score_eval` over datasets with local rows.

    Args:
      prefix: start of the mixtures' names.
      datasets: names of datasets in the catalogue; all that have local rows by default.

    Returns:
      Tasks by mixture.

    Raises:
      LookupError: a dataset asked for, or any at all, has no local rows.
    """
    keys = [key for key in catalogue() if local_splits(*key)]
    if datasets is not None:
        wanted = list(datasets)
        if missing := sorted(set(wanted) - {name for name, _ in keys}):
            raise LookupError(f"no local rows for {', '.join(missing)}: {_hint()}")
        keys = [key for key in keys if key[0] in wanted]
    if not keys:
        raise LookupError(f"no local rows for any dataset of T0: {_hint()}")
    train, score_eval = [], []
    for key in keys:
        tasks = p3.register(*key)
        local = local_splits(*key)
        if "train" in local:
            train.extend(task for task in tasks.all if task not in p3.EXCLUDED)
        if catalogue()[key].eval_split in local:
            score_eval.extend(
                task for task in tasks.score_eval if task_info(task).template.metadata.original_task
            )
    mixtures = {f"{prefix}_train": train, f"{prefix}_score_eval": score_eval}
    for name, tasks in mixtures.items():
        if tasks:
            register_mixture(name, tasks, _rate)
    return mixtures


def _hint() -> str:
    root = os.environ.get(DATA_DIR_VARIABLE)
    return (
        f"put them at ${DATA_DIR_VARIABLE}/<dataset>/<subset or default>/<split>.jsonl "
        f"({DATA_DIR_VARIABLE} is {root or 'not set'})"
    )


register_local("local")
