"""The files that rank classification leaves: where they lie, what they hold, how they are checked.

Evaluation logs to OUTPUT/inference_eval. Under `<log_dir>/rank_classification/<step>/` each task
has two files (step -1: none is known):

`<task>.jsonl`, one line a row, an `Example`.

`<task>.json`, a `Summary`, written last, so that its presence says the task is complete.

`<log_dir>/rank_classification/<mixture>-<step>.json`, an `Overview`, sums up a whole evaluation,
once all is done.

Paths are texts, as a log directory may be in a bucket. Nothing here reads or writes files.
"""

import dataclasses
import json
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

FOLDER = "rank_classification"
LOG_FOLDER = "inference_eval"  # in the evaluation's output directory; T5X's name
# What a task's prompt or dataset is to the mixture trained on.
GROUPS = ("seen", "held-out prompt", "held-out dataset")
# Reason under `Summary.skipped` that evaluation itself has; others are registration's.
CUT_OFF = "not all choices were scored"
NO_STEP = -1


@dataclass(frozen=True)
class Example:
    """One scored row: a score (sum of log-probabilities, in nats) for each choice.

    Attributes:
      idx: number of the row in its split.
      inputs: what the model was given.
      choices: texts.
      scores: of the choices.
      prediction: position of the choice with the highest score.
      label: position of the right one.
    """

    idx: int
    inputs: str
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    prediction: int
    label: int

    def line(self) -> str:
        """The row as a line of `<task>.jsonl`."""
        return json.dumps(vars(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class PackedCounts:
    """What the packed evaluator counts besides.

    Attributes:
      inputs_cut: inputs longer than the model was let read.
      choices_cut: choices longer than that.
      encoded_again: inputs encoded again, because their choices overflowed a row.
    """

    inputs_cut: int = 0
    choices_cut: int = 0
    encoded_again: int = 0


@dataclass(frozen=True)
class Summary:
    """What `<task>.json` says of a task.

    Attributes:
      task: name of the `*_score_eval` task.
      dataset, subset, template, category: what it asks, and of what.
      seen: one of GROUPS.
      examples: rows scored.
      accuracy, chance: 0 to 1; NaN without examples.
      skipped: rows left out, by reason.
      near_ties: see `t0x.rank_classification.is_near_tie`; None in files of other writers.
      step: of the checkpoint, or NO_STEP.
      split: the dataset's own name of it.
      packed: from the packed evaluator only.
      fingerprint: from the packed evaluator only, of the "checkpoint", of the "task"'s content
        and of the "lines" file. A restart trusts the scores only where all three still hold.
    """

    task: str
    dataset: str
    subset: str | None
    template: str
    category: str
    seen: str
    examples: int
    accuracy: float
    chance: float
    skipped: Mapping[str, int]
    step: int
    split: str
    near_ties: int | None = None
    packed: PackedCounts | None = None
    fingerprint: Mapping[str, str] | None = None

    def text(self) -> str:
        """The whole file."""
        record = {**vars(self), **(vars(self.packed) if self.packed else {})}
        del record["packed"]
        for name in ("near_ties", "fingerprint"):
            if record[name] is None:
                del record[name]
        return json.dumps(record, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Overview:
    """What `<mixture>-<step>.json` says of a whole evaluation.

    Attributes:
      mixture: name of it.
      step: of the checkpoint, None where it is not known.
      split: that was asked for.
      checkpoint: fingerprint of the parameters.
      row_lengths: tokens of an encoder ("inputs") and a decoder row ("targets").
      near_ties: of all tasks.
      tasks_left_out: tasks without the split.
      tasks: examples and metrics by task.
      packed: counts of all tasks.
    """

    mixture: str
    step: int | None
    split: str
    checkpoint: str | None
    row_lengths: Mapping[str, int]
    near_ties: int
    tasks_left_out: int
    tasks: Mapping[str, Mapping[str, float]]
    packed: PackedCounts = field(default_factory=PackedCounts)

    def text(self) -> str:
        """The whole file."""
        record = {**vars(self), **vars(self.packed)}
        del record["packed"]
        return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def known_step(step: SupportsIndex | None) -> int:
    """The step as files have it."""
    return NO_STEP if step is None else operator.index(step)


def log_dir_of(output_dir: str | os.PathLike[str]) -> str:
    """Where the evaluation that writes to OUTPUT logs to."""
    return os.path.join(output_dir, LOG_FOLDER)


def run_dir_of(log_dir: Path) -> Path:
    """The run whose evaluation logs to a directory."""
    return log_dir.parent if log_dir.name == LOG_FOLDER else log_dir


def step_dir(log_dir: str | os.PathLike[str], step: SupportsIndex | None) -> str:
    """Folder of the results of a step; None: no step is known."""
    return os.path.join(log_dir, FOLDER, str(known_step(step)))


def examples_path(log_dir: str | os.PathLike[str], step: SupportsIndex | None, task: str) -> str:
    """The file of a task's examples."""
    return os.path.join(step_dir(log_dir, step), f"{task}.jsonl")


def summary_path(log_dir: str | os.PathLike[str], step: SupportsIndex | None, task: str) -> str:
    """The file of a task's summary."""
    return os.path.join(step_dir(log_dir, step), f"{task}.json")


def overview_path(log_dir: str | os.PathLike[str], step: SupportsIndex | None, mixture: str) -> str:
    """The file that sums up an evaluation."""
    return f"{os.path.join(log_dir, FOLDER, mixture)}-{known_step(step)}.json"


def parse_step(name: str) -> int | None:
    """The step that a folder of results is named after; None: it is no such folder."""
    return int(name) if re.fullmatch(r"-1|\d+", name) else None


def parse_summary(text: str, where: str) -> Summary:
    """The fields of `<task>.json`, checked one by one.

    Args:
      text: the whole file.
      where: its path, for messages.

    Raises:
      ValueError: it is torn or a field is not what it must be; names file and field.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); evaluate the task again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be one JSON object; evaluate the task again")
    empty = record.get("examples") == 0

    def is_fraction(value: Any) -> bool:
        if empty and (value is None or value != value):
            return True
        return _is_number(value) and 0 <= value <= 1

    checks: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "task": ("a text", _is_text),
        "dataset": ("a text", _is_text),
        "subset": ("a text or null", lambda value: value is None or isinstance(value, str)),
        "template": ("a text", _is_text),
        "category": ("a text", lambda value: isinstance(value, str)),
        "seen": (f"one of {', '.join(GROUPS)}", lambda value: value in GROUPS),
        "split": ("a text", lambda value: isinstance(value, str)),
        "step": ("a step", lambda value: value == NO_STEP or _is_count(value)),
        "examples": ("a whole number", _is_count),
        "accuracy": ("a number from 0 to 1", is_fraction),
        "chance": ("a number from 0 to 1", is_fraction),
        "skipped": ("counts by reason", _are_counts),
    }
    # Not every writer counts these.
    counted = [item.name for item in dataclasses.fields(PackedCounts)]
    checks |= {
        name: ("a count", _is_count)
        for name in ("near_ties", *counted)
        if record.get(name) is not None
    }
    if record.get("fingerprint") is not None:
        checks["fingerprint"] = ("texts by name", _are_texts)
    for name, (expected, check) in checks.items():
        if name not in record or not check(record[name]):
            raise ValueError(
                f"{where}: field '{name}' is {record.get(name, 'missing')!r:.40}, "
                f"not {expected}; evaluate the task again"
            )
    fields = {name: record[name] for name in checks if name not in counted}
    if empty:
        fields |= {"accuracy": math.nan, "chance": math.nan}
    packed = {name: record[name] for name in counted if name in checks}
    return Summary(**fields, packed=PackedCounts(**packed) if packed else None)


def parse_example(line: str, where: str) -> Example:
    """One line of `<task>.jsonl`.

    Args:
      line: its text.
      where: file and number of the line, for messages.

    Raises:
      ValueError: it is torn or inconsistent; names file and line.
    """
    try:
        record = json.loads(line)
        example = Example(
            idx=record["idx"],
            inputs=record["inputs"],
            choices=tuple(record["choices"]),
            scores=tuple(float(score) for score in record["scores"]),
            prediction=record["prediction"],
            label=record["label"],
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: torn line ({reason}); evaluate the task again") from error
    choices = len(example.choices)
    if not isinstance(example.inputs, str) or not all(map(_is_text, example.choices)):
        raise ValueError(f"{where}: inputs and choices must be texts; evaluate the task again")
    if choices != len(example.scores):
        raise ValueError(f"{where}: {len(example.scores)} scores for {choices} choices")
    if not _is_count(example.idx) or example.idx >= 2**63:
        raise ValueError(f"{where}: idx {example.idx!r} is not the number of a row")
    for name in ("prediction", "label"):
        index = getattr(example, name)
        if not _is_count(index) or index >= choices:
            raise ValueError(f"{where}: {name} {index!r} is not the index of a choice")
    return example


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))
