"""Ctrl-C: one line and exit code 130, at every phase of a command.

While a program is imported nothing is half done, and libraries may swallow KeyboardInterrupt or
print pages about it: it ends at once. While it runs, KeyboardInterrupt unwinds it.
"""

import os
import signal
import sys
from types import FrameType

# What shells report for a process that SIGINT ended.
EXIT_CODE = 130


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process on the spot."""
    signal.signal(signal.SIGINT, _leave)


def unwind() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt in the main thread."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    console = getattr(sys.modules.get("t5x.run.console"), "console", None)
    stream = console.errors if console else sys.stderr
    os.write(stream.fileno(), b"interrupted\n")
    if console and console.log_is_temporary:
        console.log_path.unlink(missing_ok=True)
    os._exit(EXIT_CODE)
