"""How far a long job is: a bar in a terminal, a plain line now and then elsewhere."""

import time

import rich.console
import rich.errors
import rich.progress
from rich.text import Text

PLAIN_LINE_SECONDS = 10.0
BAR_SECONDS = 0.1


class Progress:
    """Counts examples up to a total and tells how long the rest will take.

    What was done before this process started (`done_before`) does not count for the speed. Where
    another live display is on the console already, this one keeps to plain lines above it.

    Args:
      console: where to show it; None shows nothing.
      total: examples there are.
      noun: what they are called.
    """

    def __init__(self, console: rich.console.Console | None, total: int, noun: str) -> None:
        self._console, self._total, self._noun = console, total, noun
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        if self._console is not None and self._console.is_terminal:
            bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.fields[facts]}"),
                rich.progress.BarColumn(),
                console=self._console,
                transient=True,
                # No thread of its own: its caller may fork.
                auto_refresh=False,
            )
            try:
                bar.start()
            except rich.errors.LiveError:
                return self
            self._bar = bar
            self._task = bar.add_task("", total=self._total, facts="")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, done_before: int = 0, note: str = "") -> None:
        """Shows that `done` examples are through, `done_before` of them without any work."""
        if self._console is None:
            return
        now = time.monotonic()
        facts = f"{self._noun} {done:,}/{self._total:,}"
        if note:
            facts += f"  {note}"
        worked = done - done_before
        if worked > 0:
            facts += f"  {_clock((now - self._started) / worked * (self._total - done))} left"
        if self._bar:
            refresh = now - self._shown >= BAR_SECONDS or done >= self._total
            self._bar.update(self._task, completed=done, facts=facts, refresh=refresh)
            self._shown = now if refresh else self._shown
        elif now - self._shown >= PLAIN_LINE_SECONDS:
            self._console.print(Text(facts))
            self._shown = now


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
