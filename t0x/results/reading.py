"""Finds and reads the results of rank classification, checking every line on the way in.

A task is finished once its `<task>.json` exists; its examples stand beside it in `<task>.jsonl`.
Examples are read one at a time and leave little behind (see `t0x.results.evidence`).
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from t0x.results.evidence import Answers, Evidence, Example

GROUPS = ("seen", "held-out prompt", "held-out dataset")
FOLDER = "rank_classification"
# Counted by some evaluators only: texts longer than the model was let read.
OPTIONAL_COUNTS = ("inputs_cut", "choices_cut")
STEP = re.compile(r"-1|\d+")  # -1: evaluated outside of training, no step is known.


@dataclass(frozen=True)
class TaskResult:
    """What one checkpoint scored on one (dataset, prompt) task.

    Accuracy and chance are fractions. `wrong` holds the first wrong predictions in file order,
    `wrong_total` counts them all. `choice_names` is None where choices differ between examples;
    `label_counts` and `predicted_counts` then count positions. `confidence` is the mean softmax
    probability of the predictions (NaN where no score is finite).
    """

    run: str
    step: int
    run_dir: Path
    task: str
    dataset: str
    subset: str | None
    template: str
    category: str
    seen: str
    split: str
    examples: int
    accuracy: float
    chance: float
    skipped: dict[str, int]
    inputs_cut: int
    choices_cut: int
    date: datetime
    choice_names: tuple[str, ...] | None
    label_counts: dict[int, int]
    predicted_counts: dict[int, int]
    near_ties: int
    not_finite: int
    wrong_total: int
    confidence: float
    wrong: tuple[Example, ...]
    file: Path  # The examples.
    answers: Answers = field(compare=False, repr=False)

    @property
    def correct(self) -> int:
        return self.examples - self.wrong_total

    @property
    def dataset_name(self) -> str:
        return f"{self.dataset}/{self.subset}" if self.subset else self.dataset


def load_results(paths: Sequence[Path | str], wrong_examples: int = 10) -> list[TaskResult]:
    """Loads every finished task below `paths`, checkpoint by checkpoint.

    Args:
        paths: run directories (searched for `rank_classification/<step>`), in the order to report.
        wrong_examples: how many wrong predictions to keep in memory for each task.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path holds no results, or a file is torn; one line naming file and line.
    """
    step_dirs = _find_step_dirs(paths)
    names = _name_runs([run_dir_of(step_dir.parent.parent) for step_dir in step_dirs])
    results = [
        _load_task(file, names[run_dir_of(step_dir.parent.parent)], wrong_examples)
        for step_dir in step_dirs
        for file in sorted(step_dir.glob("*.json"))
    ]
    if not results:
        where = ", ".join(str(path) for path in paths)
        raise ValueError(
            f"{where}: no finished task in {FOLDER}/<step>/<task>.json; "
            "run the evaluation to its end, or give its output directory"
        )
    return results


def find_unfinished(paths: Sequence[Path | str]) -> list[Path]:
    """Example files whose task never finished: their summary, written last, is missing."""
    return [
        file
        for step_dir in _find_step_dirs(paths)
        for file in sorted(step_dir.glob("*.jsonl"))
        if not file.with_suffix(".json").exists()
    ]


def _find_step_dirs(paths: Sequence[Path | str]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such directory; give the directory of a run")
        steps = sorted(_walk(path.resolve()), key=lambda step: (step.parent, int(step.name)))
        if not steps:
            raise ValueError(
                f"{path}: no results below it; looked for {FOLDER}/<step>/, which evaluation writes"
            )
        found.update(dict.fromkeys(steps))
    return list(found)


def _walk(root: Path) -> Iterator[Path]:
    for directory, names, _ in os.walk(root):
        path = Path(directory)
        if path.parent.name == FOLDER and STEP.fullmatch(path.name):
            names.clear()
            yield path
        # A checkpoint has thousands of files and never a result.
        names[:] = sorted(name for name in names if not name.startswith("checkpoint_"))


def run_dir_of(log_dir: Path) -> Path:
    """The run whose evaluation logs to a directory."""
    return log_dir.parent if log_dir.name == "inference_eval" else log_dir


def _name_runs(run_dirs: Sequence[Path]) -> dict[Path, str]:
    """Names each run by its last component, or by its relative path where those collide."""
    distinct = list(dict.fromkeys(run_dirs))
    if len({run.name for run in distinct}) == len(distinct):
        return {run: run.name for run in distinct}
    root = Path(os.path.commonpath(distinct))
    return {run: run.name if run == root else str(run.relative_to(root)) for run in distinct}


def _load_task(file: Path, run: str, wrong_examples: int) -> TaskResult:
    summary = _read_summary(file)
    examples_file = file.with_suffix(".jsonl")
    evidence = Evidence(wrong_examples)
    if examples_file.exists():
        for example in read_examples(examples_file):
            evidence.add(example)
    elif summary["examples"]:
        raise ValueError(f"{examples_file}: missing beside {file.name}; evaluate the task again")
    count = summary["examples"]
    if evidence.examples != count:
        raise ValueError(
            f"{examples_file}: holds {evidence.examples} examples, {file.name} says {count}; "
            "delete both and evaluate the task again"
        )
    correct = count - evidence.wrong_total
    if count and abs(correct / count - summary["accuracy"]) > 1e-3:
        raise ValueError(
            f"{file}: field 'accuracy' is {summary['accuracy']:.4f}, its examples give "
            f"{correct / count:.4f}; delete both files and evaluate the task again"
        )
    return TaskResult(
        run=run,
        run_dir=run_dir_of(file.parent.parent.parent),
        date=datetime.fromtimestamp(file.stat().st_mtime, UTC),
        choice_names=evidence.choice_names or None,
        label_counts=dict(evidence.labels),
        predicted_counts=dict(evidence.predictions),
        near_ties=evidence.near_ties,
        not_finite=evidence.not_finite,
        wrong_total=evidence.wrong_total,
        confidence=evidence.confidence,
        wrong=tuple(evidence.wrong),
        file=examples_file,
        answers=evidence.answers,
        **summary,
    )


def _read_summary(file: Path) -> dict[str, Any]:
    """The fields of `<task>.json`, checked one by one."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); evaluate the task again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file}: must be one JSON object; evaluate the task again")
    empty = record.get("examples") == 0

    def is_fraction(value: Any) -> bool:
        if empty and (value is None or value != value):
            return True
        return _is_number(value) and 0 <= value <= 1

    checks = {
        "task": ("a text", _is_text),
        "dataset": ("a text", _is_text),
        "subset": ("a text or null", lambda value: value is None or isinstance(value, str)),
        "template": ("a text", _is_text),
        "category": ("a text", lambda value: isinstance(value, str)),
        "seen": (f"one of {', '.join(GROUPS)}", lambda value: value in GROUPS),
        "split": ("a text", lambda value: isinstance(value, str)),
        "step": ("a step", lambda value: value == -1 or _is_count(value)),
        "examples": ("a whole number", _is_count),
        "accuracy": ("a number from 0 to 1", is_fraction),
        "chance": ("a number from 0 to 1", is_fraction),
        "skipped": ("counts by reason", _are_counts),
    }
    for name, (expected, check) in checks.items():
        if name not in record or not check(record[name]):
            raise ValueError(
                f"{file}: field '{name}' is {record.get(name, 'missing')!r:.40}, "
                f"not {expected}; evaluate the task again"
            )
    fields = {name: record[name] for name in checks}
    for name in OPTIONAL_COUNTS:
        fields[name] = record.get(name, 0)
        if not _is_count(fields[name]):
            raise ValueError(f"{file}: field '{name}' is {fields[name]!r:.40}, not a count")
    if empty:
        fields |= {"accuracy": math.nan, "chance": math.nan}
    return fields


def read_examples(file: Path) -> Iterator[Example]:
    """Reads `<task>.jsonl` line by line.

    Raises:
        ValueError: a line is torn or inconsistent; names file and line.
    """
    with file.open(encoding="utf-8", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield _parse_example(line, f"{file}:{number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 text; evaluate the task again") from error


def _parse_example(line: str, where: str) -> Example:
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
