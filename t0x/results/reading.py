"""Finds and reads the results of rank classification, checking every line on the way in.

Examples are read one at a time and leave little behind (see `t0x.results.evidence`); what the files
are called and hold is in `t0x.results.format`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from t0x.results.evidence import Answers, Evidence
from t0x.results.format import (
    FOLDER,
    Example,
    PackedCounts,
    parse_example,
    parse_step,
    parse_summary,
    run_dir_of,
)


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
    skipped: Mapping[str, int]
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
        if path.parent.name == FOLDER and parse_step(path.name) is not None:
            names.clear()
            yield path
        # A checkpoint has thousands of files and never a result.
        names[:] = sorted(name for name in names if not name.startswith("checkpoint_"))


def _name_runs(run_dirs: Sequence[Path]) -> dict[Path, str]:
    """Names each run by its last component, or by its relative path where those collide."""
    distinct = list(dict.fromkeys(run_dirs))
    if len({run.name for run in distinct}) == len(distinct):
        return {run: run.name for run in distinct}
    root = Path(os.path.commonpath(distinct))
    return {run: run.name if run == root else str(run.relative_to(root)) for run in distinct}


def _load_task(file: Path, run: str, wrong_examples: int) -> TaskResult:
    try:
        summary = parse_summary(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text; evaluate the task again") from error
    examples_file = file.with_suffix(".jsonl")
    evidence = Evidence(wrong_examples)
    if examples_file.exists():
        for example in read_examples(examples_file):
            evidence.add(example)
    elif summary.examples:
        raise ValueError(f"{examples_file}: missing beside {file.name}; evaluate the task again")
    count = summary.examples
    if evidence.examples != count:
        raise ValueError(
            f"{examples_file}: holds {evidence.examples} examples, {file.name} says {count}; "
            "delete both and evaluate the task again"
        )
    correct = count - evidence.wrong_total
    if count and abs(correct / count - summary.accuracy) > 1e-3:
        raise ValueError(
            f"{file}: field 'accuracy' is {summary.accuracy:.4f}, its examples give "
            f"{correct / count:.4f}; delete both files and evaluate the task again"
        )
    packed = summary.packed or PackedCounts()
    return TaskResult(
        run=run,
        step=summary.step,
        run_dir=run_dir_of(file.parent.parent.parent),
        task=summary.task,
        dataset=summary.dataset,
        subset=summary.subset,
        template=summary.template,
        category=summary.category,
        seen=summary.seen,
        split=summary.split,
        examples=count,
        accuracy=summary.accuracy,
        chance=summary.chance,
        skipped=summary.skipped,
        inputs_cut=packed.inputs_cut,
        choices_cut=packed.choices_cut,
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
    )


def read_examples(file: Path) -> Iterator[Example]:
    """Reads `<task>.jsonl` line by line.

    Raises:
      ValueError: a line is torn or inconsistent; names file and line.
    """
    with file.open(encoding="utf-8", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield parse_example(line, f"{file}:{number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 text; evaluate the task again") from error
