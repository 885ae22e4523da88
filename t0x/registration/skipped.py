"""Rows that give no example, or one without a label: counted by task, reason and split."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from absl import logging

# Why rows are left out, as counted by `skipped_rows`.
TEMPLATE_ERROR = "the template raised"
NO_TARGET = "the prompt is not two parts divided by |||"
EMPTY = "the input is empty"
NO_CHOICES = "no answer choices"
NOT_A_CHOICE = "the target is none of the answer choices"
NO_LABEL = "no label"
BAD_LINE = "not a JSON object"
OTHER_FIELDS = "not in the dataset's schema"
NO_TEXT = "half of a surrogate pair"  # JSON's \ud83d without its partner: no UTF-8 for it
# Why rows that are trained on are counted all the same, by `noted_rows`.
UNLABELED = "the label names no choice"
_Counts = dict[str, dict[str, set[tuple[str, int]]]]
_skipped: _Counts = {}
_noted: _Counts = {}
_first: dict[tuple[str, str], str] = {}
_skipped_lock = threading.Lock()
_here = threading.local()


def skipped_rows() -> dict[str, dict[str, int]]:
    """Rows left out so far: task → reason → number of different rows."""
    return _count(_skipped)


def noted_rows() -> dict[str, dict[str, int]]:
    """Rows so far that are odd, and used as they are: task → reason → number of different rows."""
    return _count(_noted)


def _count(counts: _Counts) -> dict[str, dict[str, int]]:
    with _skipped_lock:
        return {
            task: {reason: len(rows) for reason, rows in reasons.items()}
            for task, reasons in counts.items()
        }


def describe(task: str) -> str:
    """The reasons for which a task left rows out, with their counts and each one's first row."""
    reasons = skipped_rows().get(task, {})
    return ", ".join(
        f"{reason} ({count}; {_first[task, reason]})" for reason, count in reasons.items()
    )


def skipped_in(task: str, split: str) -> dict[str, int]:
    """Rows of one split that a task left out so far: reason → number of different rows."""
    with _skipped_lock:
        reasons = _skipped.get(task, {})
        counts = {why: sum(place[0] == split for place in rows) for why, rows in reasons.items()}
    return {reason: count for reason, count in counts.items() if count}


def skip(task: str, reason: str, split: str, row: int, detail: str = "") -> None:
    """Counts a row that is left out; only a task's first row for each reason is logged."""
    counts = getattr(_here, "counts", None)
    if counts is not None:
        counts[task, reason] += 1
        return
    _add(_skipped, "left out", task, reason, split, row, detail)


def note(task: str, reason: str, split: str, row: int, detail: str) -> None:
    """Counts a row that is odd and used as it is; the first for each reason is logged."""
    _add(_noted, "kept", task, reason, split, row, detail)


def _add(
    counts: _Counts, what: str, task: str, reason: str, split: str, row: int, detail: str
) -> None:
    place = f"row {row} of split {split}" if row >= 0 else f"split {split}"
    with _skipped_lock:
        rows = counts.setdefault(task, {}).setdefault(reason, set())
        first = not rows
        rows.add((split, row))
        if first:
            _first[task, reason] = f"{place}: {detail}" if detail else place
    if first:
        why = f"{reason}: {detail}" if detail else reason
        logging.warning("%s: %s %s: %s", task, place, what, why)


@contextlib.contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """Counts rows left out inside, in this thread, by (task, reason) and apart from all others.

    Nothing is logged, and a row that is rendered twice counts twice.
    """
    before, _here.counts = getattr(_here, "counts", None), Counter()
    try:
        yield _here.counts
    finally:
        _here.counts = before


def remarks(task: str) -> list[str]:
    """A line for the rows that a task left out so far, and one for those that are odd."""
    lines = []
    for what, counts in (("left out of", _skipped), ("noted in", _noted)):
        reasons = _count(counts).get(task, {})
        if reasons:
            shown = ", ".join(
                f"{count} ({reason}; {_first[task, reason]})" for reason, count in reasons.items()
            )
            lines.append(f"rows {what} {task}: {_printable(shown)}")
    return lines


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
