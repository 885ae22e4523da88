"""The `t0x` command: one Typer app; each command imports what it needs when it runs."""

import sys
import traceback

import typer

from t0x.cli import checkpoints, launch, prompts, shared, tasks
from t0x.cli.convert import convert
from t0x.cli.plan import plan
from t0x.cli.prepare import prepare
from t0x.cli.report import report
from t0x.cli.score import score
from t0x.cli.select import select
from t0x.cli.stats import stats

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


def main() -> None:
    """Runs the command line; any error becomes one line on stderr and exit code 1."""
    verbose = "--verbose" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--verbose"]
    try:
        app(arguments, prog_name="t0x")
    except Exception as error:
        if verbose:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
