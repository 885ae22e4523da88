"""Text of strangers on a terminal: shown, never obeyed."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from t5x.run.progress import Progress
from t5x.run.terminal import escape_json, make_console, one_line, printable

HOSTILE = "[/x] [bold]b[/bold] :smile: \x1b[31m\x1b]0;t\x07\x9b1m\r\u202e"
SHOWN = "[/x] [bold]b[/bold] :smile: ␛[31m␛]0;t␇�1m␍�"


def test_control_characters_have_signs():
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\nc ü 中 😀") == "a\tb\nc ü 中 😀"
    assert one_line(" a\n\tb\x1b ") == "a b␛"


@given(st.text())
def test_json_stays_the_same_value_without_control_characters(text):
    line = escape_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert printable(line) == line
    line.encode()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_takes_nothing_for_markup(terminal):
    stream = io.StringIO()
    console = make_console(
        file=stream, force_terminal=terminal, color_system=None, width=200, legacy_windows=False
    )
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold"))
    console.print(table)
    console.print(HOSTILE)
    shown = stream.getvalue()
    # rich leaves some control characters out of its own accord.
    parts = ("[/x] [bold]b[/bold] :smile:", "␛[31m␛]0;t", "�1m")
    assert all(shown.count(part) == 5 for part in parts)
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert "\x1b[31m" not in shown and "\x1b]" not in shown


def test_progress_shows_names_as_they_are():
    stream = io.StringIO()
    console = make_console(file=stream, force_terminal=True, color_system=None, width=200)
    with Progress(console, 2, "rows") as progress:
        progress.update(1, note="[/x] [bold]", at_once=True)
    assert "[/x] [bold]" in stream.getvalue()


@pytest.mark.parametrize("goes_on", [True, False])
def test_nobody_reading_ends_quietly_or_not_at_all(goes_on, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return 1

    monkeypatch.setattr("os.dup2", lambda a, b: None)
    console = make_console(goes_on=goes_on, file=Closed())
    if goes_on:
        console.print("text")
        console.print("more")
    else:
        with pytest.raises(SystemExit):
            console.print("text")
