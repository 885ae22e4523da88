"""Results that others published, to stand beside one's own: published.csv, one row a figure.

Columns of published.csv, and of a file of one's own in the same form:

- model: as its authors call it; "run again" where somebody else evaluated it.
- dataset, subset: as in the results they are compared with. A gap of WinoBias has the type alone
  as its subset.
- statistic: "median" or "mean" over prompts, or the setting of a figure from one prompt
  ("zero-shot").
- accuracy: in percent, as printed there.
- source: where it was read; "as quoted by" where that was at second hand.

Only figures that were read somewhere are listed. Of the paper's tables of T0+ and T0++ over the
eleven held-out datasets none was: a comparison says which models it lacks (`EXPECTED`). Give a file
of one's own for more.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from t0x.report.summary import DatasetSummary

# Whose figures a reader of T0's paper looks for.
EXPECTED = ("T0", "T0+", "T0++", "GPT-3 175B")
COLUMNS = ("model", "dataset", "subset", "statistic", "accuracy", "source")


@dataclass(frozen=True)
class Published:
    """One published figure; accuracy is a fraction."""

    model: str
    dataset: str
    subset: str | None
    statistic: str
    accuracy: float
    source: str


@dataclass(frozen=True)
class Row:
    """One dataset of a comparison.

    `ours` has an entry for each checkpoint, `theirs` one for each published (model, statistic);
    None where a dataset was not evaluated.
    """

    name: str
    ours: tuple[DatasetSummary | None, ...]
    theirs: tuple[Published | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Checkpoints and published results side by side, one row a dataset."""

    checkpoints: tuple[tuple[str, int], ...]
    models: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    sources: tuple[str, ...]
    missing: tuple[str, ...]  # Of EXPECTED, those without a figure; none if nothing is published.

    @property
    def columns(self) -> list[tuple[str, list[str]]]:
        """Every published model with its statistics, in the order of `models`."""
        return [
            (model, [statistic for _, statistic in pairs])
            for model, pairs in groupby(self.models, lambda pair: pair[0])
        ]

    def begins(self, place: int) -> bool:
        """Whether a column is the first one of its model."""
        return place == 0 or self.models[place][0] != self.models[place - 1][0]


def load_published(path: Path | None = None) -> list[Published]:
    """Reads the published figures that come with t0x, or a file in the same form.

    Raises:
      ValueError: a column is missing or an accuracy is no percentage; names file and line.
    """
    source = path or files("t0x.report").joinpath("published.csv")
    with source.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{source}: no column {missing[0]}; it needs {', '.join(COLUMNS)}")
        return [_parse(row, f"{source}:{reader.line_num}") for row in reader]


def _parse(row: dict[str, str | None], where: str) -> Published:
    if empty := [name for name in COLUMNS if name != "subset" and not row[name]]:
        raise ValueError(f"{where}: column {empty[0]} is empty")
    try:
        accuracy = float(row["accuracy"]) / 100
    except ValueError:
        accuracy = -1.0
    if not 0 <= accuracy <= 1:
        raise ValueError(f"{where}: accuracy is {row['accuracy']!r}, not a percentage")
    texts = {name: row[name] for name in COLUMNS if name != "accuracy"}
    return Published(**{**texts, "subset": row["subset"] or None}, accuracy=accuracy)


def compare(
    summaries: Sequence[DatasetSummary], published: Sequence[Published]
) -> Comparison | None:
    """Puts checkpoints and published results side by side.

    Held-out prompts are no dataset of their own here. With one checkpoint, datasets that nobody
    published are left out.

    Returns:
      None where there would be nothing to compare with.
    """
    whole = [summary for summary in summaries if summary.seen != "held-out prompt"]
    checkpoints = tuple(dict.fromkeys((summary.run, summary.step) for summary in whole))
    ours: dict[tuple, dict[tuple[str, int], DatasetSummary]] = {}
    for summary in whole:
        key = (summary.dataset, summary.subset, summary.name)
        ours.setdefault(key, {})[summary.run, summary.step] = summary
    theirs: dict[tuple, dict[tuple[str, str], Published]] = {}
    relevant = {(dataset, subset) for dataset, subset, _ in ours}
    for figure in published:
        if (figure.dataset, figure.subset) in relevant:
            column = (figure.model, figure.statistic)
            theirs.setdefault((figure.dataset, figure.subset), {})[column] = figure
    named = list(dict.fromkeys(figure.model for figure in published))
    columns = dict.fromkeys(column for figures in theirs.values() for column in figures)
    models = tuple(sorted(columns, key=lambda column: (named.index(column[0]), column[1])))
    rows = tuple(
        Row(
            name=key[2],
            ours=tuple(found.get(checkpoint) for checkpoint in checkpoints),
            theirs=tuple(theirs.get(key[:2], {}).get(model) for model in models),
        )
        for key, found in ours.items()
        if len(checkpoints) > 1 or key[:2] in theirs
    )
    if not rows:
        return None
    sources = dict.fromkeys(figure.source for row in rows for figure in row.theirs if figure)
    known = {model for model, _ in models}
    missing = tuple(model for model in EXPECTED if known and model not in known)
    return Comparison(checkpoints, models, rows, tuple(sources), missing)


def find_published(
    published: Iterable[Published], dataset: str, subset: str | None
) -> dict[str, dict[str, Published]]:
    """Figures of one dataset: model → statistic → figure."""
    found: dict[str, dict[str, Published]] = {}
    for figure in published:
        if (figure.dataset, figure.subset) == (dataset, subset):
            found.setdefault(figure.model, {})[figure.statistic] = figure
    return found
