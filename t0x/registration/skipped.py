"""Rows that give no example: counted by task, reason and split, told at the end."""

import atexit
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

from absl import logging

# Why rows are left out, as counted by `skipped_rows`.
TEMPLATE_ERROR = "the template raised"
NO_TARGET = "the prompt is not two parts divided by |||"
EMPTY = "the input is empty"
NO_CHOICES = "no answer choices"
NOT_A_CHOICE = "the target is none of the answer choices"
BAD_LINE = "not a JSON object"
OTHER_FIELDS = "not in the dataset's schema"
NO_TEXT = "half of a surrogate pair"  # JSON's \ud83d without its partner: no UTF-8 for it
_skipped: dict[str, dict[str, set[tuple[str, int]]]] = {}
_skipped_lock = threading.Lock()
_here = threading.local()


def skipped_rows() -> dict[str, dict[str, int]]:
    """Rows left out so far: task → reason → number of different rows."""
    with _skipped_lock:
        return {
            task: {reason: len(rows) for reason, rows in reasons.items()}
            for task, reasons in _skipped.items()
        }


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
    with _skipped_lock:
        rows = _skipped.setdefault(task, {}).setdefault(reason, set())
        first = not rows
        rows.add((split, row))
    if first:
        why = f"{reason}: {detail}" if detail else reason
        logging.warning("%s: row %d of split %s left out: %s", task, row, split, why)


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


class _AtExit:
    """Lets tf.data's threads come to rest before the interpreter goes.

    A thread that calls into an interpreter which is shutting down never returns, and the iterator's
    destructor waits for its threads: the process would hang. Nobody reads any more by then, so the
    buffers fill, with filler as that is quick, and the calls end.
    """

    PATIENCE_SECONDS = 20.0
    QUIET_SECONDS = 0.2

    def __init__(self) -> None:
        self.begun = False
        self._active = 0
        self._calls = 0
        self._lock = threading.Lock()
        atexit.register(self.wait)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._active += 1
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def wait(self) -> None:
        """Returns when there was no call for a moment, or patience is at its end."""
        self.begun = True
        deadline = time.monotonic() + self.PATIENCE_SECONDS
        while self._calls and time.monotonic() < deadline:
            calls = self._calls
            time.sleep(self.QUIET_SECONDS)
            if calls == self._calls and not self._active:
                break
        if _is_entry_point():
            for task, reasons in sorted(skipped_rows().items()):
                counts = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
                print(f"rows left out of {task}: {counts}")


def _is_entry_point() -> bool:
    """Whether this process is `python -m t5x.train` or one of its kin."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("t5x.")


at_exit = _AtExit()
