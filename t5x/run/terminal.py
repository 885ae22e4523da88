"""Text on a terminal: whatever it came from, it is shown, never obeyed.

Names, templates, rows and error messages come from files. Control characters in them would move
the cursor, change colors or rename the window, and marks of direction would reorder the line; both
are shown as visible signs. Nothing is taken for Rich's markup.
"""

import os
import re
import sys

import rich.console
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

# C0 but for tab and line feed, DEL, C1; marks of direction; what is no character.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with a visible sign for each control character, tab and line feed aside."""
    return _CONTROL.sub(_sign, text)


def one_line(text: str) -> str:
    """The text as one line that a terminal only shows."""
    return printable(" ".join(text.split()))


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the signs of Unicode: ␛ for escape
    return "␡" if code == 0x7F else "�"


def escape_json(text: str) -> str:
    """JSON with escapes for the control characters that JSON allows in texts."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _Printable:
    """A renderable whose text a terminal only shows; what Rich itself says to it stays."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield (
                segment
                if segment.control
                else Segment(printable(segment.text), segment.style, segment.control)
            )


class _ShowOnly(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [
            item if isinstance(item, rich.console.Control) else _Printable(item)
            for item in renderables
        ]


class _EndlessConsole(Console):
    """Falls silent, and ends nothing, when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console(goes_on: bool = False, **options: object) -> Console:
    """A Rich console that shows text as it is: no markup, no emoji names, no control characters.

    Args:
      goes_on: whether the program goes on, silently, when nobody reads any more (`| head`); it
        ends otherwise.
      options: of `rich.console.Console`.
    """
    kind = _EndlessConsole if goes_on else Console
    console = kind(markup=False, emoji=False, highlight=False, **options)
    console.push_render_hook(_ShowOnly())
    return console
