"""What a run shows: one header, one progress line, its results. The rest goes to a log file."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO, TypeVar

import jax
import rich.console
import rich.table
from absl import logging
from rich.text import Text

from t5x.run.progress import Progress
from t5x.run.terminal import make_console, one_line

Item = TypeVar("Item")
_ignored: set[str] = set()


def log_ignored(parameter: str, reason: str = "") -> None:
    """Logs that a parameter which someone set is accepted without effect, once a process.

    Args:
      parameter: its name as gin has it, 'train.use_orbax'.
      reason: why it has none.
    """
    if parameter not in _ignored:
        _ignored.add(parameter)
        logging.warning(
            "%s is accepted without effect%s", parameter, f": {reason}" if reason else ""
        )


class Console:
    """The terminal of one process. Processes other than the first stay silent but for errors.

    `capture()` sends file descriptor 2 to a log file: Python logging, warnings and the C++ notes of
    TensorFlow, XLA and Orbax all end there, none on the terminal.
    """

    def __init__(self) -> None:
        self.verbose = False
        self.log_path: Path | None = None
        self._out = make_console(goes_on=True, soft_wrap=True)
        self._errors: TextIO | None = None
        self._captured = self._temporary = False
        self._quiet = False

    def capture(self) -> None:
        """Sends everything written to file descriptor 2 to a temporary log file from now on.

        What ends the process all the same, an exception nobody caught or a crash in C++, is still
        shown.
        """
        if self._captured:
            return
        sys.stderr.flush()
        self._errors = os.fdopen(os.dup(2), "w", buffering=1)
        descriptor, name = tempfile.mkstemp(prefix="t5x-", suffix=".log")
        os.dup2(descriptor, 2)
        os.close(descriptor)
        self.log_path = Path(name)
        self._captured = self._temporary = True
        sys.excepthook = lambda kind, error, trace: self.fail(error)
        faulthandler.enable(self._errors)

    def move_log(self, directory: str, name: str) -> None:
        """Goes on writing the log in a local output directory, with what it has so far."""
        if not self._captured or "://" in directory or jax.process_index() != 0:
            return
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr.flush()
        with path.open("ab") as file:
            file.write(self.log_path.read_bytes())
            file.flush()
            os.dup2(file.fileno(), 2)
        self.log_path.unlink()
        self.log_path, self._temporary = path, False

    def header(self, title: str, facts: Mapping[str, str]) -> None:
        """Prints the facts of the run, a line each."""
        if jax.process_index() != 0:
            return
        self._out.print(Text(title, style="bold"))
        width = max(map(len, facts))
        for name, value in facts.items():
            self._out.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value))

    def say(self, text: str, by_all: bool = False) -> None:
        """Prints one line; `by_all`: of every process, for what each knows of its own."""
        if by_all or jax.process_index() == 0:
            self._out.print(Text(text))

    def table(self, table: rich.table.Table) -> None:
        """Prints a table."""
        if jax.process_index() == 0:
            self._out.print(table)

    def progress(self, total: int, noun: str, start: int = 0, stays: bool = False) -> Progress:
        """How far something long is; shown by process 0, unless `quiet`."""
        shows = jax.process_index() == 0 and not self._quiet
        return Progress(self._out if shows else None, total, noun, start, stays)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Lets no progress be shown inside: the caller shows the larger whole."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def track(self, items: Iterable[Item], total: int, name: str) -> Iterator[Item]:
        """Passes items on while showing how many of `total` are done, where that takes long."""
        with self.progress(total, name) as progress:
            for done, item in enumerate(items, start=1):
                yield item
                progress.update(done)

    @property
    def log_is_temporary(self) -> bool:
        """Whether the log lies where nobody looks for it: `move_log` was not called."""
        return self.log_path is not None and self._temporary

    @property
    def errors(self) -> TextIO:
        """The terminal's standard error, wherever file descriptor 2 goes."""
        return self._errors or sys.stderr

    def usage_error(self, message: str) -> None:
        """Says what is wrong with the command line."""
        print(f"error: {one_line(message)}", file=self.errors, flush=True)

    def fail(self, error: BaseException) -> None:
        """Says what went wrong in one line; the traceback goes to the log."""
        traceback.print_exception(error)
        sys.stderr.flush()
        if self.verbose:
            return
        line = f"error: {summarise_error(error)}"
        if self.log_path:
            line += f" (traceback in {self.log_path}; --verbose shows it here)"
        print(one_line(line), file=self.errors, flush=True)


def summarise_error(error: BaseException) -> str:
    """An exception as one line, without gin's notes on where a call came from.

    Where a file was read from matters for a mistake in it, not for something that is missing.
    """
    message = str(error).split("\n  In call to configurable")[0]
    if isinstance(error, LookupError | OSError):
        message = message.split("\n  In file")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines) if lines else type(error).__name__
    if isinstance(error, KeyError | AssertionError | AttributeError | TypeError | IndexError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 600 else f"{text[:600]} …"


console = Console()
