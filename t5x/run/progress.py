"""How far a long job is: a bar in a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.errors
import rich.progress
from absl import logging
from rich.text import Text

PLAIN_LINE_PERIOD = 10.0
BAR_PERIOD = 0.1


class Progress:
    """Counts up to a total and tells how long the rest will take.

    Where another live display is on the console already, this one keeps to plain lines above it.

    Args:
      console: where to show it; None shows nothing.
      total: how many there are.
      noun: what they are called.
      start: how many are done already.
      stays: whether a bar is left on the terminal at the end.
    """

    def __init__(
        self,
        console: rich.console.Console | None,
        total: int,
        noun: str,
        start: int = 0,
        stays: bool = False,
    ) -> None:
        self._console, self._total, self._noun = console, total, noun
        self._stays = stays
        self._bar: rich.progress.Progress | None = None
        self.count_from(start)

    def __enter__(self) -> "Progress":
        if self._console is not None and self._console.is_terminal:
            bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[facts]}", markup=False),
                rich.progress.BarColumn(),
                console=self._console,
                transient=not self._stays,
                auto_refresh=False,  # no thread of its own: who shows it may fork
            )
            try:
                bar.start()
            except rich.errors.LiveError:
                return self
            self._bar = bar
            self._task = bar.add_task("", total=self._total, completed=self._start, facts="")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def count_from(self, done: int) -> None:
        """Takes this moment, when `done` are done, as the one that speed is reckoned from."""
        self._start = done
        self._started = self._shown = time.monotonic()

    def speed(self, done: int) -> float:
        """How many a second, since the moment that speed is reckoned from."""
        return (done - self._start) / max(time.monotonic() - self._started, 1e-9)

    @property
    def is_due(self) -> bool:
        """Whether it is time to show something again."""
        period = BAR_PERIOD if self._bar else PLAIN_LINE_PERIOD
        return self._console is not None and time.monotonic() - self._shown >= period

    def update(
        self, done: int, done_before: int = 0, note: str = "", at_once: bool = False
    ) -> None:
        """Shows how many are done, if it is time to.

        Args:
          done: how many.
          done_before: those of them that were no work, and do not count for the speed.
          note: said beside it.
          at_once: show it whatever the time.
        """
        if self._console is None or not (
            at_once or self.is_due or (self._bar and done >= self._total)
        ):
            return
        self._shown = time.monotonic()
        facts = f"{self._noun} {done:,}/{self._total:,}"
        if note:
            facts += f"  {note}"
        speed = self.speed(done - done_before)
        if speed > 0:
            facts += f"  {format_seconds((self._total - done) / speed)} left"
        if self._bar:
            self._bar.update(self._task, completed=done, facts=facts, refresh=True)
        else:
            self._console.print(Text(facts))


class StepProgress:
    """Step, loss, tokens per second and time left of a training run.

    Loss is read one step behind, so that showing it never waits for the devices.

    Args:
      progress: where to show it.
      tokens_per_step: token slots of a batch.
    """

    def __init__(self, progress: Progress, tokens_per_step: int) -> None:
        self._progress, self._tokens_per_step = progress, tokens_per_step
        self._previous: tuple[int, Mapping[str, Any]] | None = None

    def __enter__(self) -> "StepProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous and exc_info[0] is None:
            self._show(*self._previous)
        self._progress.__exit__(*exc_info)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes note of a dispatched step and, now and then, shows the one before."""
        if self._previous is None:
            # The first step holds warm-up; speed is reckoned from its end.
            self._progress.count_from(step)
        elif self._progress.is_due:
            self._show(*self._previous)
        self._previous = (step, metrics)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        try:
            self._display(step, _loss_of(metrics))
        except Exception:
            # What only displays ends no run; a device's failure comes up again where it matters.
            logging.exception("this step is not shown")

    def _display(self, step: int, loss: float | None) -> None:
        rate = self._progress.speed(step) * self._tokens_per_step
        facts = [] if loss is None else [f"loss {loss:.4f}"]
        facts += [f"{format_count(rate)} tokens/s"] if rate else []
        self._progress.update(step, note="  ".join(facts), at_once=True)


def _loss_of(metrics: Mapping[str, Any]) -> float | None:
    """The loss of one step, of a token if that is known; None where a model has other metrics."""
    if "loss_per_nonpadding_target_token" in metrics:
        return float(metrics["loss_per_nonpadding_target_token"].compute())
    # A sum, whichever kind of metric a model makes of it.
    total = getattr(metrics.get("loss"), "total", None)
    return None if total is None or np.ndim(total) else float(total)


def format_count(value: float) -> str:
    """A count in three significant figures: 1.52M, 48.0k."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
