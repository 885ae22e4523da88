"""A figure of a mixture's statistics, drawn by Altair."""

from pathlib import Path
from typing import Any

from t0x.prepare.statistics import MixtureStatistics
from t0x.report.charts import import_altair

SUFFIXES = (".html", ".svg", ".png")


def draw(statistics: MixtureStatistics, path: Path) -> None:
    """Writes bars of every task's share beside its epochs and its lengths.

    Args:
      statistics: of the mixture.
      path: what to write; its suffix says how.

    Raises:
      ModuleNotFoundError: Altair is not installed; names the extra.
      ValueError: another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a figure is written as {', '.join(SUFFIXES)}")
    altair = import_altair()
    rows = [
        {
            "task": task.task,
            "share": task.share,
            "epochs": task.epochs,
            "median": task.inputs.median,
            "p95": task.inputs.p95,
            "cut": task.inputs.cut,
            "examples": task.examples,
        }
        for task in statistics.tasks
    ]
    order = [row["task"] for row in rows]

    def panel(names: bool) -> Any:
        axis = altair.Axis(labelLimit=320) if names else None
        return altair.Chart(altair.Data(values=rows)).encode(
            y=altair.Y("task:N", sort=order, title=None, axis=axis),
            tooltip=["task:N", "examples:Q", "share:Q", "epochs:Q", "median:Q", "p95:Q", "cut:Q"],
        )

    percent = altair.Axis(format="%")
    panels = [
        panel(True)
        .mark_bar()
        .encode(x=altair.X("share:Q", title="share of the examples", axis=percent))
    ]
    if statistics.run.steps:
        title = f"epochs in {statistics.run.steps:,} steps"
        x = altair.X("epochs:Q", title=title, scale=altair.Scale(type="log"))
        panels.append(panel(False).mark_point(filled=True).encode(x=x))
    x = altair.X("median:Q", title="tokens of inputs, median to 95 %")
    limit = altair.Chart(altair.Data(values=[{"most": statistics.run.inputs}]))
    panels.append(
        panel(False).mark_rule().encode(x=x, x2="p95:Q")
        + limit.mark_rule(color="firebrick").encode(x="most:Q")
    )
    panels = [one.properties(width=260, height={"step": 12}) for one in panels]
    figure = altair.hconcat(*panels).properties(title=f"{statistics.name}: {len(rows)} tasks")
    figure.save(str(path))
