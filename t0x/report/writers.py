"""CSV for machines (fractions, full precision) and Markdown for people (percent)."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from t0x.report.results import GROUPS, TaskResult
from t0x.report.summary import (
    average_groups,
    collect_notes,
    list_evaluations,
    name_step,
    summarise,
    wilson_interval,
)
from t0x.report.table import describe_group, percent

DATASET_COLUMNS = (
    "run",
    "step",
    "dataset",
    "subset",
    "split",
    "category",
    "seen",
    "prompts",
    "examples",
    "median",
    "q1",
    "q3",
    "minimum",
    "maximum",
    "chance",
)
PROMPT_COLUMNS = (
    "run",
    "step",
    "task",
    "dataset",
    "subset",
    "split",
    "category",
    "seen",
    "template",
    "examples",
    "correct",
    "accuracy",
    "ci95_low",
    "ci95_high",
    "chance",
    "near_ties",
    "skipped",
)


def write_csv(results: Sequence[TaskResult], path: Path) -> None:
    """Writes a row for each dataset and checkpoint; see DATASET_COLUMNS."""
    rows = ([getattr(row, column) for column in DATASET_COLUMNS] for row in summarise(results))
    _write_rows(path, DATASET_COLUMNS, rows)


def write_prompts_csv(results: Sequence[TaskResult], path: Path) -> None:
    """Writes a row for each prompt and checkpoint; a task without examples has empty figures."""
    _write_rows(path, PROMPT_COLUMNS, map(_prompt_row, results))


def _prompt_row(result: TaskResult) -> list[object]:
    row = {column: getattr(result, column, None) for column in PROMPT_COLUMNS}
    row["skipped"] = sum(result.skipped.values())
    if result.examples:
        row["ci95_low"], row["ci95_high"] = wilson_interval(result.correct, result.examples)
    else:
        row["accuracy"] = row["chance"] = None
    return list(row.values())


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_markdown(results: Sequence[TaskResult], path: Path) -> None:
    """Writes the dataset table with a mean line for each group, then the prompt table."""
    several = len(list_evaluations(results)) > 1
    summaries = summarise(results)
    means = average_groups(summaries)
    run = ["Run", "Step"] if several else []
    lines = ["# Rank classification", "", _describe_evaluations(results), ""]
    lines += _header([*run, "Dataset", "Category", "Group"], ["Prompts", "Median", "Q1–Q3"])
    for group in GROUPS:
        for item in (summary for summary in summaries if summary.seen == group):
            figures = [item.prompts, percent(item.median)]
            figures += [f"{percent(item.q1)}–{percent(item.q3)}", percent(item.chance)]
            who = [item.run, name_step(item.step)] if several else []
            lines.append(_row([*who, item.name, item.category, group, *figures]))
        for mean in (mean for mean in means if mean.seen == group):
            who = [mean.run, name_step(mean.step)] if several else []
            figures = [mean.prompts, percent(mean.median), "", percent(mean.chance)]
            cells = [*who, f"mean of {mean.datasets}", "", describe_group(group), *figures]
            lines.append(
                _row([f"**{_escape(cell)}**" if cell != "" else "" for cell in cells], raw=True)
            )
    lines += ["", "Accuracy in %. Median and quartiles over prompts (linear interpolation); "]
    lines[-1] += "means over datasets, of the medians."
    lines += ["", "## Prompts", ""]
    lines += _header(
        [*run, "Dataset", "Prompt", "Group"], ["Examples", "Accuracy", "95 % interval"]
    )
    for task in (task for summary in summaries for task in summary.tasks):
        low, high = wilson_interval(task.correct, task.examples)
        who = [task.run, name_step(task.step)] if several else []
        figures = [task.examples, percent(task.accuracy), f"{percent(low)}–{percent(high)}"]
        names = [task.dataset_name, task.template, task.seen]
        lines.append(_row([*who, *names, *figures, percent(task.chance)]))
    lines += ["", *(f"- {_escape(note)}" for note in collect_notes(results))]
    Path(path).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _describe_evaluations(results: Sequence[TaskResult]) -> str:
    pairs = list_evaluations(results)
    return "; ".join(f"run {_escape(run)}, step {name_step(step)}" for run, step in pairs)


def _header(texts: Sequence[str], figures: Sequence[str]) -> list[str]:
    figures = [*figures, "Chance"]
    rule = ["---"] * len(texts) + ["---:"] * len(figures)
    return [_row([*texts, *figures]), _row(rule, raw=True)]


def _row(cells: Sequence[object], raw: bool = False) -> str:
    return "| " + " | ".join(str(cell) if raw else _escape(cell) for cell in cells) + " |"


def _escape(cell: object) -> str:
    """Keeps a cell in its cell: no pipes, line breaks or markup of its own."""
    text = " ".join(str(cell).split())
    for mark in "\\|*_`<>[]":
        text = text.replace(mark, "\\" + mark)
    return text
