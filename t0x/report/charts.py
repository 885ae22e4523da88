"""Box plots over prompts, one small panel a dataset, as inline SVG drawn by Altair.

Boxes are drawn from our own summaries, so that figure and table can never differ. Colours are CSS
variables (`--seen`, …) for the page to define, hence its dark mode reaches into the figures.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from t0x.report.summary import DatasetSummary, label_evaluations, name_step
from t0x.results.format import GROUPS
from t5x.run.terminal import printable

WIDTH = 300
PADDING = {"left": 6, "right": 6, "top": 2, "bottom": 24}
STRIP = 50  # Height of one box with its label, in px.
COLOURS = {
    "seen": "var(--seen)",
    "held-out prompt": "var(--held-prompt)",
    "held-out dataset": "var(--held-dataset)",
}
SHAPES = {"seen": "circle", "held-out prompt": "diamond", "held-out dataset": "square"}
# Accuracies of prompts often coincide; fixed offsets around the box's axis keep every point apart.
OFFSETS = (0, 6, -6, 3, -3, 8, -8)


@dataclass(frozen=True)
class Panel:
    """The figure of one dataset; `group` is the section of the page it belongs to."""

    name: str
    category: str
    group: str
    svg: str


def draw_panels(summaries: Sequence[DatasetSummary]) -> list[Panel]:
    """Draws a panel for each dataset, a box for each checkpoint; training datasets come first.

    A training dataset's held-out prompts stand below its seen ones in the same panel.

    Raises:
      ModuleNotFoundError: Altair or vl-convert is not installed; names the extra.
    """
    altair = import_altair()
    labels = label_evaluations(summaries)
    members: dict[tuple[bool, str], list[DatasetSummary]] = {}
    for summary in summaries:
        members.setdefault((summary.seen == "held-out dataset", summary.name), []).append(summary)
    return [
        Panel(
            name=name,
            category=group[0].category,
            group="held-out dataset" if held_out else "seen",
            svg=_draw(altair, group, labels),
        )
        for (held_out, name), group in sorted(members.items(), key=lambda item: item[0][0])
    ]


def import_altair() -> ModuleType:
    """Altair, with the converter it draws through."""
    try:
        import altair
        import vl_convert  # noqa: F401 - Altair imports it when it saves
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the HTML report needs {error.name}: pip install 't0x[report]'"
        ) from error
    return altair


def _draw(
    altair: ModuleType,
    summaries: Sequence[DatasetSummary],
    labels: Mapping[tuple[str, int], str],
) -> str:
    height = STRIP * len(summaries)
    boxes, points = [], []
    for row, summary in enumerate(summaries):
        top = row * STRIP
        middle = top + 31
        boxes.append(
            {
                "spread": summary.prompts > 1,
                "seen": summary.seen,
                "label": printable(_label(summary, labels)),
                "figure": f"{100 * summary.median:.1f}",
                "text_y": top + 10,
                "middle": middle,
                "top": middle - 9,
                "bottom": middle + 9,
                "chance_top": middle - 14,
                "chance_bottom": middle + 14,
                "left": 0,
                "right": 1,
                **{key: getattr(summary, key) for key in ("median", "q1", "q3", "chance")},
                "low": summary.minimum,
                "high": summary.maximum,
            }
        )
        for index, task in enumerate(summary.tasks):
            points.append(
                {
                    "seen": summary.seen,
                    "accuracy": task.accuracy,
                    "y": middle + OFFSETS[index % len(OFFSETS)],
                    "size": 26 if summary.prompts > 1 else 64,
                    "title": printable(f"{task.template}: {100 * task.accuracy:.1f} %"),
                }
            )
    chart = altair.layer(*_layers(altair, boxes, points, height))
    # A fixed frame gives every panel the same scale, whatever stands at its edges.
    chart = chart.properties(
        width=WIDTH, height=height, background="transparent", padding=PADDING, autosize="none"
    )
    chart = chart.configure(font="sans-serif", aria=True).configure_view(stroke=None)
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    return clean_svg(buffer.getvalue(), _describe(summaries))


def _layers(
    altair: ModuleType, boxes: list[dict[str, Any]], points: list[dict[str, Any]], height: int
) -> list[Any]:
    """Whiskers, box, chance, points, median and labels, from back to front."""
    axis = altair.Axis(
        values=[0, 0.25, 0.5, 0.75, 1],
        format="%",
        title=None,
        domain=False,
        ticks=False,
        gridColor="var(--rule)",
        labelColor="var(--soft)",
        labelFontSize=11,
        labelPadding=6,
    )

    def x(field: str) -> Any:
        return altair.X(f"{field}:Q", scale=altair.Scale(domain=[0, 1]), axis=axis)

    def y(field: str) -> Any:
        scale = altair.Scale(domain=[0, height], range=[0, height])
        return altair.Y(f"{field}:Q", scale=scale, axis=None)

    def by_group(channel: Any, values: dict[str, str]) -> Any:
        scale = altair.Scale(domain=list(GROUPS), range=[values[group] for group in GROUPS])
        return channel("seen:N", scale=scale, legend=None)

    colour = by_group(altair.Color, COLOURS)
    base = altair.Chart(altair.InlineData(boxes))
    # One prompt has no spread: its point stands alone.
    spread = altair.Chart(altair.InlineData([box for box in boxes if box["spread"]]))
    label = {"fontSize": 11.5, "baseline": "middle"}
    return [
        spread.mark_rule(aria=False, strokeWidth=1.5).encode(
            x=x("low"), x2="high", y=y("middle"), color=colour
        ),
        spread.mark_rect(aria=False, fillOpacity=0.22, strokeWidth=1.2, cornerRadius=1.5).encode(
            x=x("q1"),
            x2="q3",
            y=y("top"),
            y2="bottom",
            fill=by_group(altair.Fill, COLOURS),
            stroke=by_group(altair.Stroke, COLOURS),
        ),
        base.mark_rule(aria=False, strokeWidth=1.5, strokeDash=[3, 2], color="var(--ink)").encode(
            x=x("chance"), y=y("chance_top"), y2="chance_bottom"
        ),
        altair.Chart(altair.InlineData(points))
        .mark_point(filled=True, opacity=0.8, stroke="var(--paper)", strokeWidth=0.6)
        .encode(
            x=x("accuracy"),
            y=y("y"),
            fill=by_group(altair.Fill, COLOURS),
            shape=by_group(altair.Shape, SHAPES),
            size=altair.Size("size:Q", scale=None),
            description="title:N",
        ),
        spread.mark_rule(aria=False, strokeWidth=3).encode(
            x=x("median"), y=y("top"), y2="bottom", color=colour
        ),
        base.mark_text(aria=False, align="left", color="var(--soft)", **label).encode(
            x=x("left"), y=y("text_y"), text="label:N"
        ),
        base.mark_text(
            aria=False, align="right", color="var(--ink)", fontWeight="bold", **label
        ).encode(x=x("right"), y=y("text_y"), text="figure:N"),
    ]


def _label(summary: DatasetSummary, labels: Mapping[tuple[str, int], str]) -> str:
    prompts = f"{summary.prompts} prompt{'s' * (summary.prompts != 1)}"
    label = f"held out, {prompts}" if summary.seen == "held-out prompt" else prompts
    if len(labels) > 1:
        checkpoint = labels[summary.run, summary.step]
        checkpoint = checkpoint if len(checkpoint) <= 24 else "…" + checkpoint[-23:]
        label = f"{checkpoint}, {label}"
    return label


def _describe(summaries: Sequence[DatasetSummary]) -> str:
    """The figure in words, for those who do not see it."""
    parts = [
        f"{summary.seen}, {summary.run} step {name_step(summary.step)}: "
        f"median {100 * summary.median:.1f} %, "
        f"quartiles {100 * summary.q1:.1f} to {100 * summary.q3:.1f} %, "
        f"{summary.prompts} prompts, chance {100 * summary.chance:.1f} %"
        for summary in summaries
    ]
    return printable(f"{summaries[0].name}. " + "; ".join(parts))


def clean_svg(svg: str, description: str) -> str:
    """Makes Vega's SVG fit to stand inside HTML.

    Points get a title, which browsers show on hover; the rest of Vega's ARIA tree gives way to one
    description, because screen readers would read every tick; fonts come from the page.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = re.sub(r"^\{.*\}", "", element.tag)
        label = element.attrib.pop("aria-label", None)
        if element.attrib.pop("aria-roledescription", "") == "point" and label:
            ElementTree.SubElement(element, "title").text = label
        for name in ("role", "aria-hidden", "font-family", "class", "pointer-events"):
            element.attrib.pop(name, None)
    _drop_empty(root)
    root.attrib.pop("version", None)
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


def _drop_empty(parent: ElementTree.Element) -> None:
    """Vega draws invisible backgrounds and foregrounds around every mark."""
    for child in list(parent):
        _drop_empty(child)
        invisible = child.get("display") == "none" or child.get("d") in ("", "M0,0h0v0h0Z")
        if invisible or (child.tag == "g" and len(child) == 0):
            parent.remove(child)
