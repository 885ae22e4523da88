"""Registers (dataset, prompt) pairs as SeqIO tasks under P3's names and mixes them at T0's rates.

Registering reads no rows; the first `get_dataset` does.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from t0x import metrics, rank_classification, vocabulary
from t0x.prompts.files import read_templates
from t0x.prompts.template import Template
from t0x.registration.dataset import Dataset, TaskInfo
from t0x.registration.registry import SCORE_EVAL, TASKS, DatasetTasks, task_info, task_name
from t0x.registration.source import PromptedSource
from t0x.registration.tasks import PromptedMixture, PromptedTask, tokenize
from t0x.sources import folders
from t0x.sources.files import Rows, open_files
from t0x.sources.openers import Settings


@functools.cache
def _default_output_features() -> dict[str, seqio.Feature]:
    words = vocabulary.t5_vocabulary()
    return {
        "inputs": seqio.Feature(words, add_eos=False, dtype=tf.int32),
        "targets": seqio.Feature(words, add_eos=True, dtype=tf.int32),
    }


def _postprocessor(template: Template) -> Callable[..., Any]:
    """T0's: strip; where the choices are the same for every row, their position (-1: none)."""
    fixed = template.get_fixed_answer_choices_list()

    def postprocess(text: str, example: Any = None, is_target: bool = False) -> str | int:
        text = text.strip()
        if not fixed:
            return text
        return fixed.index(text) if text in fixed else -1

    return postprocess


def register_prompt(
    name: str,
    info: TaskInfo,
    output_features: Mapping[str, seqio.Feature] | None = None,
    examples: Mapping[str, Mapping[str, int]] | None = None,
) -> list[str]:
    """Registers one prompt of a dataset, and its rank classification twin if it has choices.

    Args:
      name: the task's name; the twin's has `_score_eval` appended.
      info: its metadata; `name`, `score_eval` and `examples` in it are set here.
      output_features: inputs and targets; T5's vocabulary, EOS on targets only, by default.
      examples: by task and split, what whole splits give, where it was counted.

    Returns:
      The names registered.

    Raises:
      ValueError: a task of that name exists.
    """
    features = output_features or _default_output_features()
    preprocessors = [tokenize, seqio.CacheDatasetPlaceholder(required=False)]
    if name in seqio.TaskRegistry.names():
        raise ValueError(f"a task named {name} is registered already")
    counted = examples or {}
    TASKS[name] = replace(info, name=name, score_eval=False, examples=counted.get(name, {}))
    seqio.TaskRegistry.add(
        name,
        source=PromptedSource(TASKS[name]),
        output_features=features,
        preprocessors=preprocessors,
        postprocess_fn=_postprocessor(info.template),
        task_cls=PromptedTask,
        shuffle_buffer_size=None,
        metric_fns=metrics.metric_functions(
            info.template.metadata.metrics,
            len(info.template.get_fixed_answer_choices_list() or ()),
            info.dataset.name,
            info.dataset.subset,
        ),
    )
    if not info.template.answer_choices:
        return [name]
    twin = name + SCORE_EVAL
    TASKS[twin] = replace(info, name=twin, score_eval=True, examples=counted.get(twin, {}))
    seqio.TaskRegistry.add(
        twin,
        source=PromptedSource(TASKS[twin]),
        output_features=features,
        preprocessors=[rank_classification.expand_choices, *preprocessors],
        postprocess_fn=rank_classification.postprocess,
        task_cls=PromptedTask,
        shuffle_buffer_size=None,
        metric_fns=[rank_classification.metric],
    )
    return [name, twin]


def register_dataset(
    name: str,
    source: Dataset | str | Path | Mapping[str, Sequence[Mapping[str, Any]]],
    templates: Mapping[str, Template] | str | Path,
    *,
    subset: str | None = None,
    category: str = "",
    held_out: bool = False,
    held_out_prompts: Iterable[str] = (),
    output_features: Mapping[str, seqio.Feature] | None = None,
    train_split: str = "train",
    eval_split: str = "validation",
    name_task: Callable[[str, str | None, str], str] = task_name,
    examples: Mapping[str, Mapping[str, int]] | None = None,
    mixtures: bool = True,
) -> DatasetTasks:
    """Registers every prompt of a dataset under P3's names, and two mixtures of them.

    The mixtures are `<name>_train` of the training tasks, at T0's rates, and `<name>_score_eval` of
    the rank classification tasks, where there are any; a subset is part of the name.

    Args:
      name: the dataset.
      source: a `Dataset` (then subset, category, held_out and eval_split are its own), a folder
        of files as `t0x.sources.folders` knows them, or rows by split.
      templates: prompts by name, or a promptsource templates.yaml.
      subset: configuration of the dataset; part of the tasks' names.
      category: kind of task, for reports.
      held_out: keep the dataset out of `train`.
      held_out_prompts: names of prompts to keep out of `train`.
      output_features: see `register_prompt`.
      train_split: split whose size sets the mixing rate.
      eval_split: what the split named `eval` stands for; the last split where it is not there.
      name_task: (dataset, subset, prompt) → task name.
      examples: see `register_prompt`.
      mixtures: whether to register the mixtures.

    Raises:
      ValueError: a held-out prompt that does not exist, a name taken, no rows, no prompts.
    """
    if not isinstance(source, Dataset):
        source = _dataset(name, subset, category, held_out, source, eval_split)
    if not isinstance(templates, Mapping):
        templates = read_templates(Path(templates))
    if not templates:
        raise ValueError(f"dataset {source.label}: there is no prompt to register")
    held_out_prompts = frozenset(held_out_prompts)
    if unknown := sorted(held_out_prompts - set(templates)):
        raise ValueError(f"dataset {source.label}: no such prompt in held_out_prompts: {unknown}")
    tasks = DatasetTasks()
    for template in templates.values():
        held = template.name in held_out_prompts
        info = TaskInfo("", source, template, len(templates), train_split, held, False)
        full_name = name_task(source.name, source.subset, template.name)
        _register_into(tasks, full_name, info, output_features, examples)
    if mixtures:
        prefix = task_name(source.name, source.subset, "")
        for suffix, names in (("train", tasks.train), (SCORE_EVAL[1:], tasks.score_eval)):
            if names:
                register_mixture(f"{prefix}_{suffix}", names)
    return tasks


def _register_into(
    tasks: DatasetTasks,
    name: str,
    info: TaskInfo,
    output_features: Mapping[str, seqio.Feature] | None,
    examples: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    task, *twin = register_prompt(name, info, output_features, examples)
    tasks.all.append(task)
    tasks.score_eval.extend(twin)
    if not (info.held_out_prompt or info.dataset.held_out):
        tasks.train.append(task)


def add_prompts(dataset: str, templates: Mapping[str, Template] | str | Path) -> DatasetTasks:
    """Registers more prompts of a dataset that has tasks already; mixtures stay as they are.

    The new tasks have the features, the training split and the mixing rate of those there are.

    Args:
      dataset: DATASET or DATASET/SUBSET, as in `Dataset.label`.
      templates: prompts by name, or a promptsource templates.yaml.

    Returns:
      The names of the new tasks.

    Raises:
      LookupError: the dataset has no task.
      ValueError: a prompt has the name of one there is.
    """
    known = [info for info in TASKS.values() if info.dataset.label == dataset]
    if not known:
        raise LookupError(
            f"add_prompts: no task of dataset {dataset!r} is registered; import the module that "
            "registers it first"
        )
    if not isinstance(templates, Mapping):
        templates = read_templates(Path(templates))
    features = seqio.TaskRegistry.get(known[0].name).output_features
    tasks = DatasetTasks()
    for template in templates.values():
        info = replace(known[0], template=template, held_out_prompt=False)
        name = task_name(info.dataset.name, info.dataset.subset, template.name)
        _register_into(tasks, name, info, features)
    return tasks


def _dataset(
    name: str,
    subset: str | None,
    category: str,
    held_out: bool,
    source: str | Path | Mapping[str, Sequence[Mapping[str, Any]]],
    eval_split: str,
) -> Dataset:
    if isinstance(source, Mapping):
        splits: dict[str, int | None] = {split: len(rows) for split, rows in source.items()}
        rows: Callable[[str], Sequence[Mapping[str, Any]]] = source.__getitem__
    elif not isinstance(source, str | Path):
        raise ValueError(f"dataset {name}: give a folder, or rows by split: {{'train': [...]}}")
    elif not Path(source).is_dir():
        raise ValueError(f"dataset {name}: {folders.describe(Path(source))}; give a folder of rows")
    else:
        files = folders.find_splits(Path(source))
        splits = dict.fromkeys(files)

        def rows(split: str) -> Rows:
            return open_files(files[split], Settings().bad_lines)

    if not splits:
        there = "no rows are given"
        if not isinstance(source, Mapping):
            there = f"no {folders.expected('<split>')}; {folders.describe(Path(source))}"
        raise ValueError(f"dataset {name}: {there}")
    shown = eval_split if eval_split in splits else list(splits)[-1]
    return Dataset(name, subset, category, splits, rows, held_out, eval_split=shown)


def register_mixture(
    name: str,
    tasks: Iterable[str],
    rate: Callable[[seqio.Task], float] | None = None,
) -> seqio.Mixture:
    """Mixes tasks, by default at T0's rates (`TaskInfo.rate`), worked out when it is first read.

    A mixture of that name with these tasks, such as `register_dataset` makes, is returned as it is.

    Raises:
      ValueError: there are no tasks, one is not registered, or the name is taken by others.
    """
    tasks = list(tasks)
    if not tasks:
        raise ValueError(f"mixture {name}: there is no task to mix")
    if missing := [task for task in tasks if task not in seqio.TaskRegistry.names()]:
        raise ValueError(f"mixture {name}: not registered: {', '.join(missing[:5])}")
    known = name in seqio.MixtureRegistry.names() and seqio.MixtureRegistry.get(name)
    if known and rate is None and {task.name for task in known.tasks} == set(tasks):
        return known
    rate = rate or (lambda task: task_info(task.name).rate)
    return seqio.MixtureRegistry.add(name, tasks, default_rate=rate, mixture_cls=PromptedMixture)
