"""Ctrl-C: one line and exit code 130, at every phase of a command.

Where a module is being imported, the process ends at once: libraries swallow KeyboardInterrupt
there, or print pages about it. Elsewhere KeyboardInterrupt unwinds the program as ever.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

# What shells report for a process that SIGINT ended.
EXIT_CODE = 130
_IMPORTING = "<frozen importlib._bootstrap>"
_SHOW_CURSOR = b"\x1b[?25h"


def listen() -> None:
    """Handles Ctrl-C from now on."""
    signal.signal(signal.SIGINT, _handle)


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process on the spot."""
    signal.signal(signal.SIGINT, lambda number, frame: _leave())


def _handle(number: int, frame: FrameType | None) -> NoReturn:
    del number
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave() -> NoReturn:
    console = getattr(sys.modules.get("t5x.run.console"), "console", None)
    stream = console.errors if console else sys.stderr
    if stream.isatty():
        os.write(stream.fileno(), _SHOW_CURSOR)
    os.write(stream.fileno(), b"interrupted\n")
    if console and console.log_is_temporary:
        console.log_path.unlink(missing_ok=True)
    os._exit(EXIT_CODE)
