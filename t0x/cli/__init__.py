"""The `t0x` command: one Typer app; each command imports what it needs when it runs."""

import os
import sys
import traceback
from pathlib import Path

from t5x.run import interruption

if Path(sys.argv[0]).name == "t0x":  # the command, not something that imports it
    interruption.listen()

import typer

from t0x.cli import checkpoints, launch, prompts, shared, tasks
from t0x.cli.convert import convert
from t0x.cli.plan import plan
from t0x.cli.prepare import prepare
from t0x.cli.report import report
from t0x.cli.score import score
from t0x.cli.select import select
from t0x.cli.stats import stats

USAGE = 2  # the exit code; see docs/input.md

app = typer.Typer(
    help="Prompts, tasks, zero-shot evaluation and reports for T0-style models.",
    no_args_is_help=True,
    add_completion=False,
    context_settings=shared.CONTEXT_SETTINGS,
    pretty_exceptions_enable=False,
)
app.add_typer(prompts.app, name="prompts")
tasks.app.command(cls=shared.GinCommand)(stats)
app.add_typer(tasks.app, name="tasks")
app.add_typer(launch.app, name="launch")
app.add_typer(checkpoints.app, name="checkpoints")
app.command()(report)
app.command(cls=shared.GinCommand)(score)
app.command()(select)
app.command()(convert)
app.command(cls=shared.GinCommand)(plan)
# Beam's own options follow after --.
app.command(cls=shared.GinCommand, context_settings={"allow_extra_args": True})(prepare)


# typer hands on the exceptions of its own copy of click, of which it exports only this one.
_UsageError = typer.BadParameter.__mro__[1]


def main() -> None:
    """Runs the command line, and ends the process with one of the exit codes of docs/input.md.

    An error becomes one line on stderr, with --verbose a traceback too. Nobody listening any more
    (`| head`) is no error.
    """
    verbose = "--verbose" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--verbose"]
    code = 0
    try:
        code = app(arguments, prog_name="t0x", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_pipe()
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        _leave_pipe()  # typer and rich end so
    except _UsageError as error:
        code = _say_usage(error)
    except typer.Abort:
        code = interruption.EXIT_CODE
    except KeyboardInterrupt:
        code = interruption.EXIT_CODE
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = getattr(error, "exit_code", 1)
        _say(f"error: {str(error) or type(error).__name__}")
    if code == interruption.EXIT_CODE:
        _say("interrupted")
    sys.exit(code if isinstance(code, int) else 0)


def _leave_pipe() -> None:
    """Lets what is left in the buffer of a closed pipe go nowhere, at exit too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _say(text: str) -> None:
    from t5x.run.terminal import one_line

    # Once a command has taken file descriptor 2 for its log, the terminal is the console's.
    console = getattr(sys.modules.get("t5x.run.console"), "console", None)
    print(one_line(text), file=console.errors if console else sys.stderr, flush=True)


def _say_usage(error: "_UsageError") -> int:
    if error.ctx is not None and type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())
        return 0
    command = error.ctx.command_path if error.ctx else "t0x"
    _say(f"error: {error.format_message()} ({command} --help says what there is)")
    return USAGE
