"""The report in a terminal, or piped: whole figures at any width."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t0x.report.summary import (
    BIAS,
    DatasetSummary,
    GroupMean,
    average_groups,
    collect_notes,
    list_evaluations,
    name_step,
    summarise,
)
from t0x.results.format import GROUPS
from t0x.results.reading import TaskResult
from t5x.run.terminal import make_console

FIGURES = ("Prompts", "Median", "Q1–Q3", "Chance")
# What makes way for the names of datasets on a narrow terminal.
LEFT_OUT = (
    (),
    ("Category",),
    ("Category", "Chance"),
    ("Category", "Chance", "Prompts"),
    ("Category", "Chance", "Prompts", "Q1–Q3"),
)
STYLES = {"seen": "blue", "held-out prompt": "cyan", "held-out dataset": "yellow"}


def print_table(results: Sequence[TaskResult], console: Console | None = None) -> None:
    """Prints a line a dataset and checkpoint, a mean line a group, then what was skipped."""
    console = console or make_console()
    summaries = summarise(results)
    several = len(list_evaluations(results)) > 1
    mixed = len({summary.category == BIAS for summary in summaries}) > 1
    wide = console.options.update(width=10_000)
    table = build_table(summaries, several=several)
    if console.is_terminal:
        for left_out in LEFT_OUT:
            table = build_table(summaries, several=several, left_out=left_out)
            # Measured minimum: no word is broken.
            if console.measure(table, options=wide).minimum <= console.width:
                break
        console.print(table)
    else:
        # A pipe has no width of its own; rich would assume 80 columns and wrap.
        maximum = console.measure(table, options=wide).maximum
        width, console.width = console.width, max(console.width, maximum)
        console.print(table)
        console.width = width
    console.print(
        "Accuracy in %, over prompts. Mean: over datasets, of the medians"
        + (", without bias and fairness." if mixed else "."),
        style="dim",
        soft_wrap=True,
    )
    for note in collect_notes(results):
        console.print(Text(note, style="yellow"), soft_wrap=True)


def build_table(
    summaries: Sequence[DatasetSummary], *, several: bool, left_out: Sequence[str] = ()
) -> Table:
    """Builds the table; `several` adds the run and step, `left_out` are headings to do without."""
    category = "Category" not in left_out
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Dataset", overflow="fold")
    if category:
        table.add_column("Category", overflow="fold")
    if several:
        table.add_column("Run", overflow="fold")
        table.add_column("Step", justify="right", no_wrap=True)
    kept = [place for place, heading in enumerate(FIGURES) if heading not in left_out]
    for heading in (FIGURES[place] for place in kept):
        table.add_column(heading, justify="right", no_wrap=True)
    means = average_groups(summaries)
    for group in GROUPS:
        members = [summary for summary in summaries if summary.seen == group]
        if not members:
            continue
        table.add_row(Text(describe_group(group), style=f"bold {STYLES[group]}"))
        previous = None
        for summary in members:
            first = summary.name != previous
            previous = summary.name
            cells = [Text("  " + summary.name) if first else ""]
            cells += [Text(summary.category if first else "")] if category else []
            cells += [Text(summary.run), name_step(summary.step)] if several else []
            figures = _figures(summary)
            table.add_row(*cells, *(figures[place] for place in kept))
        for mean in (mean for mean in means if mean.seen == group):
            cells = ["  mean"] + [""] * category
            cells += [Text(mean.run), name_step(mean.step)] if several else []
            figures = _mean_figures(mean)
            table.add_row(*cells, *(figures[place] for place in kept), style="bold")
        table.add_section()
    return table


def describe_group(group: str) -> str:
    """A group's heading: 'held-out dataset' → 'Held-out datasets'."""
    return {
        "seen": "Seen",
        "held-out prompt": "Held-out prompts",
        "held-out dataset": "Held-out datasets",
    }[group]


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal."""
    return f"{100 * fraction:.1f}"


def _figures(summary: DatasetSummary) -> tuple[str, ...]:
    return (
        str(summary.prompts),
        percent(summary.median),
        f"{percent(summary.q1)}–{percent(summary.q3)}",
        percent(summary.chance),
    )


def _mean_figures(mean: GroupMean) -> tuple[str, ...]:
    return str(mean.prompts), percent(mean.median), "", percent(mean.chance)
