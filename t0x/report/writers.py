"""CSV for machines (fractions, full precision) and Markdown for people (percent)."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t0x.report.bias import BiasMeasure, about_bias, measure_bias
from t0x.report.generations import Generated
from t0x.report.published import Comparison, Published, compare, load_published
from t0x.report.summary import (
    DatasetSummary,
    average_groups,
    collect_notes,
    label_evaluations,
    list_evaluations,
    name_step,
    summarise,
    wilson_interval,
)
from t0x.report.table import describe_group, percent
from t0x.results.format import GROUPS
from t0x.results.reading import TaskResult
from t5x.run.files import write_whole

Labels = Mapping[tuple[str, int], str]

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
    "mean",
    "median",
    "q1",
    "q3",
    "minimum",
    "maximum",
    "chance",
    "confidence",
    "agreement",
    "kappa",
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
    "confidence",
    "agreement",
    "near_ties",
    "skipped",
)
BIAS_COLUMNS = (
    "run",
    "step",
    "dataset",
    "subset",
    "measure",
    "method",
    "prompts",
    "examples",
    "mean",
    "median",
    "note",
)


def write_csv(results: Sequence[TaskResult], path: Path) -> None:
    """Writes a row for each dataset and checkpoint; see DATASET_COLUMNS."""
    _write_rows(path, DATASET_COLUMNS, map(_dataset_row, summarise(results)))


def _dataset_row(summary: DatasetSummary) -> list[object]:
    row = {column: getattr(summary, column, None) for column in DATASET_COLUMNS}
    row["agreement"] = summary.agreement.pairwise if summary.agreement else None
    row["kappa"] = summary.agreement.kappa if summary.agreement else None
    row["confidence"] = _or_empty(summary.confidence)
    return list(row.values())


def write_prompts_csv(results: Sequence[TaskResult], path: Path) -> None:
    """Writes a row for each prompt and checkpoint; a task without examples has empty figures."""
    agreement = {
        task.file: share
        for summary in summarise(results)
        for task, share in zip(summary.tasks, summary.agreement_by_prompt, strict=True)
    }
    rows = (_prompt_row(result, agreement.get(result.file)) for result in results)
    _write_rows(path, PROMPT_COLUMNS, rows)


def _prompt_row(result: TaskResult, agreement: float | None) -> list[object]:
    row = {column: getattr(result, column, None) for column in PROMPT_COLUMNS}
    row["agreement"] = agreement
    row["skipped"] = sum(result.skipped.values())
    row["confidence"] = _or_empty(result.confidence)
    if result.examples:
        row["ci95_low"], row["ci95_high"] = wilson_interval(result.correct, result.examples)
    else:
        row["accuracy"] = row["chance"] = None
    return list(row.values())


def write_bias_csv(
    results: Sequence[TaskResult], path: Path, generations: Sequence[Generated] = ()
) -> None:
    """Writes a row for each bias measure and checkpoint; see BIAS_COLUMNS, `t0x.report.bias`."""
    measures = measure_bias(results, generations)
    rows = ([getattr(item, column) for column in BIAS_COLUMNS] for item in measures)
    _write_rows(path, BIAS_COLUMNS, rows)


def _or_empty(figure: float) -> float | None:
    """A figure for a CSV cell; what is not a number leaves the cell empty."""
    return figure if math.isfinite(figure) else None


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_as_text(cell) for cell in row] for row in rows)
    write_whole(path, text.getvalue())


def _as_text(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula: an apostrophe before what begins one."""
    formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if formula else cell


def write_markdown(
    results: Sequence[TaskResult],
    path: Path,
    generations: Sequence[Generated] = (),
    published: Sequence[Published] | None = None,
) -> None:
    """Writes the dataset table with group means, then comparison, bias and prompts.

    Sections with nothing in them are left out. `published` is published.csv by default.
    """
    summaries = summarise(results)
    published = load_published() if published is None else published
    comparison = compare(summaries, [item for item in published if not about_bias(item)])
    labels = label_evaluations(results)
    lines = ["# Rank classification", "", _describe_evaluations(results), ""]
    lines += _dataset_lines(summaries, labels)
    lines += ["", "Accuracy in %. Median and quartiles over prompts (linear interpolation); "]
    lines[-1] += "means over datasets, of the medians."
    if comparison:
        lines += ["", "## Side by side", "", *_comparison_lines(comparison, labels)]
    if measures := measure_bias(results, generations):
        lines += ["", "## Bias and fairness", "", *_bias_lines(measures, labels)]
    lines += ["", "## Prompts", "", *_prompt_lines(summaries, labels)]
    lines += ["", *(f"- {_escape(note)}" for note in collect_notes(results))]
    write_whole(path, "\n".join(lines).rstrip() + "\n")


def _dataset_lines(summaries: Sequence[DatasetSummary], labels: Labels) -> list[str]:
    means = average_groups(summaries)
    lines = _header(
        [*_checkpoint_heading(labels), "Dataset", "Category", "Group"],
        ["Prompts", "Median", "Q1–Q3", "Chance"],
    )
    for group in GROUPS:
        for item in (summary for summary in summaries if summary.seen == group):
            figures = [item.prompts, percent(item.median)]
            figures += [f"{percent(item.q1)}–{percent(item.q3)}", percent(item.chance)]
            who = _checkpoint(item, labels)
            lines.append(_row([*who, item.name, item.category, group, *figures]))
        for mean in (mean for mean in means if mean.seen == group):
            figures = [mean.prompts, percent(mean.median), "", percent(mean.chance)]
            cells = [*_checkpoint(mean, labels), f"mean of {mean.datasets}", ""]
            cells += [describe_group(group), *figures]
            lines.append(
                _row([f"**{_escape(cell)}**" if cell != "" else "" for cell in cells], raw=True)
            )
    return lines


def _comparison_lines(comparison: Comparison, labels: Labels) -> list[str]:
    ours = [
        f"{labels[pair]} {kind}" for pair in comparison.checkpoints for kind in ("median", "mean")
    ]
    theirs = [f"{model}, {statistic}" for model, statistic in comparison.models]
    lines = _header(["Dataset"], [*ours, *theirs])
    for row in comparison.rows:
        figures = [
            percent(figure) if summary else ""
            for summary in row.ours
            for figure in ((summary.median, summary.mean) if summary else (0, 0))
        ]
        for figure in row.theirs:
            note = f" [{comparison.sources.index(figure.source) + 1}]" if figure else ""
            figures.append(percent(figure.accuracy) + note if figure else "")
        lines.append(_row([row.name, *figures]))
    sources = enumerate(comparison.sources, start=1)
    notes = [f"[{number}] {_escape(source)}" for number, source in sources]
    if comparison.missing:
        lines += ["", f"Not here: {_escape(', '.join(comparison.missing))}."]
    return [*lines, *(["", "; ".join(notes)] if notes else [])]


def _bias_lines(measures: Sequence[BiasMeasure], labels: Labels) -> list[str]:
    lines = _header(
        [*_checkpoint_heading(labels), "Dataset", "Measure", "By"], ["Prompts", "Mean", "Median"]
    )
    for item in measures:
        cells = [*_checkpoint(item, labels), item.name, item.measure, item.method, item.prompts]
        lines.append(_row([*cells, percent(item.mean), percent(item.median)]))
    return lines


def _prompt_lines(summaries: Sequence[DatasetSummary], labels: Labels) -> list[str]:
    lines = _header(
        [*_checkpoint_heading(labels), "Dataset", "Prompt", "Group"],
        ["Examples", "Accuracy", "95 % interval", "Chance"],
    )
    for task in (task for summary in summaries for task in summary.tasks):
        low, high = wilson_interval(task.correct, task.examples)
        figures = [task.examples, percent(task.accuracy), f"{percent(low)}–{percent(high)}"]
        names = [task.dataset_name, task.template, task.seen]
        lines.append(_row([*_checkpoint(task, labels), *names, *figures, percent(task.chance)]))
    return lines


def _checkpoint_heading(labels: Labels) -> list[str]:
    return ["Checkpoint"] if len(labels) > 1 else []


def _checkpoint(item: Any, labels: Labels) -> list[str]:
    """The cell that says which checkpoint a line is about, where there are several."""
    return [labels.get((item.run, item.step), item.run)] if len(labels) > 1 else []


def _describe_evaluations(results: Sequence[TaskResult]) -> str:
    pairs = list_evaluations(results)
    return "; ".join(f"run {_escape(run)}, step {name_step(step)}" for run, step in pairs)


def _header(texts: Sequence[str], figures: Sequence[str]) -> list[str]:
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
