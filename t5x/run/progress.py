"""How far a run is: a bar in a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import rich.console
import rich.progress
import rich.table
from rich.text import Text

PLAIN_LINE_PERIOD = 10.0
_REFRESH_PERIOD = 0.5


class Progress:
    """Step, loss, tokens per second and time left; a bar in a terminal, plain lines elsewhere.

    Loss is read one step behind, so that showing it never waits for the devices.
    """

    def __init__(
        self, console: rich.console.Console, total: int, start: int, tokens_per_step: int
    ) -> None:
        self._console = console
        self._total, self._tokens_per_step = total, tokens_per_step
        self._silent = jax.process_index() != 0
        self._previous: tuple[int, Mapping[str, Any]] | None = None
        self._first: tuple[int, float] | None = None
        self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if console.is_terminal and not self._silent:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[facts]}"),
                rich.progress.TimeRemainingColumn(),
                console=console,
                transient=False,
            )
            self._task = self._bar.add_task("", total=total, completed=start, facts="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous and not self._silent and exc_info[0] is None:
            self._show(*self._previous)
        if self._bar:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes note of a dispatched step and, now and then, shows the one before."""
        now = time.monotonic()
        if self._first is None:
            # The first step holds warm-up; rates count from its end.
            self._first = (step, now)
        period = _REFRESH_PERIOD if self._bar else PLAIN_LINE_PERIOD
        if self._previous and not self._silent and now - self._shown >= period:
            self._show(*self._previous)
            self._shown = now
        self._previous = (step, metrics)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        loss = float(metrics["loss_per_nonpadding_target_token"].compute())
        first_step, first_time = self._first or (step, time.monotonic())
        elapsed = time.monotonic() - first_time
        rate = (step - first_step) / elapsed if elapsed > 0 else 0.0
        facts = f"loss {loss:.4f}"
        if rate:
            facts += f"  {format_count(rate * self._tokens_per_step)} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=step, facts=facts)
            return
        left = format_seconds((self._total - step) / rate) if rate else "?"
        self._console.print(Text(f"step {step}/{self._total}  {facts}  {left} left"))


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
