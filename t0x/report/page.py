"""The HTML report: one file, no network, readable without JavaScript."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from t0x.rank_classification import NEAR_TIE
from t0x.report.bias import PARITY, BiasMeasure, about_bias, measure_bias
from t0x.report.charts import draw_panels
from t0x.report.generations import Generated
from t0x.report.prompt_table import Prompt, describe_prompts
from t0x.report.published import Published, compare, find_published, load_published
from t0x.report.summary import (
    SKEW,
    DatasetSummary,
    GroupMean,
    average_groups,
    collect_notes,
    label_evaluations,
    list_evaluations,
    name_step,
    summarise,
)
from t0x.report.table import describe_group, percent
from t0x.results.format import GROUPS
from t0x.results.reading import TaskResult
from t5x.run.files import write_whole


@dataclass(frozen=True)
class Checkpoint:
    """One line of the page's header."""

    run: str
    step: int
    model: str | None
    date: str
    tasks: int
    examples: int


def write_html(
    results: Sequence[TaskResult],
    path: Path,
    *,
    unfinished: int = 0,
    generations: Sequence[Generated] = (),
    published: Sequence[Published] | None = None,
) -> None:
    """Writes the page to `path`.

    Args:
      results: what to report on.
      path: the file; its folder exists.
      unfinished: tasks left out because their evaluation did not end; only mentioned.
      generations: WinoBias by generated text.
      published: figures to compare with; those of published.csv by default.

    Raises:
      ModuleNotFoundError: the plots' libraries are not installed; names the extra.
      ValueError: no task has a scored example.
    """
    summaries = summarise(results)
    if not summaries:
        raise ValueError(f"{path}: not written, none of the {len(results)} tasks has an example")
    published = load_published() if published is None else published
    prompts = describe_prompts(summaries)
    bias = measure_bias(results, generations)
    html = (
        _environment()
        .get_template("page.html")
        .render(
            style=_read("page.css"),
            script=_read("page.js"),
            checkpoints=[
                _describe_checkpoint(results, *pair) for pair in list_evaluations(results)
            ],
            labels=label_evaluations(results),
            sections=_group_summaries(summaries),
            means={(mean.seen, mean.run, mean.step): mean for mean in average_groups(summaries)},
            comparison=compare(summaries, [item for item in published if not about_bias(item)]),
            alike=_are_alike(summaries),
            panels=draw_panels(summaries),
            prompts=prompts,
            datasets=[(name, list(group)) for name, group in groupby(prompts, lambda p: p.dataset)],
            groups=[group for group in GROUPS if any(item.seen == group for item in summaries)],
            bias=[
                (items, _cite(items[0], published))
                for _, group in groupby(bias, lambda item: (item.name, item.measure, item.method))
                if (items := list(group))
            ],
            wrong=_count_wrong(prompts),
            notes=collect_notes(results),
            unfinished=unfinished,
            near_ties=sum(result.near_ties for result in results),
            examples=sum(result.examples for result in results),
            near_tie=NEAR_TIE,
            skew=SKEW,
        )
    )
    write_whole(path, html)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("t0x.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "step": name_step}
    environment.filters |= {"describe": describe_group, "breakable": breakable}
    return environment


def _count_wrong(prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Wrong predictions on the page, and all of them."""
    return (
        sum(len(prompt.wrong) for prompt in prompts),
        sum(prompt.result.wrong_total for prompt in prompts),
    )


def _cite(measure: BiasMeasure, published: Sequence[Published]) -> list[str]:
    """Published figures of the same measure, mean and median: "T0 68.0, 71.7"."""
    if measure.measure == PARITY:
        return []
    write = points if measure.is_gap else percent
    found = find_published(published, measure.dataset, measure.subset)
    return [
        f"{model} "
        + ", ".join(write(figures[kind].accuracy) for kind in ("mean", "median") if kind in figures)
        for model, figures in found.items()
    ]


def _read(name: str) -> str:
    return files("t0x.report").joinpath(name).read_text(encoding="utf-8")


def _group_summaries(
    summaries: Sequence[DatasetSummary],
) -> list[tuple[str, list[list[DatasetSummary]], list[GroupMean]]]:
    """Per group: its datasets, each with a summary for every checkpoint, and the group's means."""
    means = average_groups(summaries)
    return [
        (
            group,
            [list(rows) for _, rows in groupby(members, lambda summary: summary.name)],
            [mean for mean in means if mean.seen == group],
        )
        for group, members in groupby(summaries, lambda summary: summary.seen)
    ]


def _describe_checkpoint(results: Sequence[TaskResult], run: str, step: int) -> Checkpoint:
    mine = [result for result in results if (result.run, result.step) == (run, step)]
    return Checkpoint(
        run=run,
        step=step,
        model=_read_model(mine[0].run_dir),
        date=max(result.date for result in mine).strftime("%Y-%m-%d %H:%M UTC"),
        tasks=len(mine),
        examples=sum(result.examples for result in mine),
    )


def _are_alike(summaries: Sequence[DatasetSummary]) -> bool:
    """Whether all checkpoints were evaluated on the same datasets."""
    found: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for summary in summaries:
        found.setdefault((summary.run, summary.step), set()).add((summary.seen, summary.name))
    return len({frozenset(names) for names in found.values()}) == 1


def _read_model(run_dir: Path) -> str | None:
    """The parameter count from the model-info.txt that t5x leaves in a model's directory."""
    for directory in (run_dir, run_dir.parent):
        file = directory / "model-info.txt"
        if file.exists():
            text = file.read_text(encoding="utf-8", errors="replace")
            if match := re.search(r"Total number of parameters: ([\d,]+)", text):
                return f"{int(match[1].replace(',', '')):,} parameters"
    return None


def breakable(name: str) -> Markup:
    """A name that may break after its underscores and slashes, escaped."""
    return Markup(re.sub(r"([_/])", r"\1<wbr>", str(escape(name))))


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")
