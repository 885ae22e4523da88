"""What commands share: how options are spelled, settings of gin files, registered tasks, tables.

Options are spelled as t5x's flags are, `--gin_file`, and hyphens are taken for underscores:
`--gin-file` is the same option.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.table import Table

GinBindings = Annotated[
    list[str] | None,
    typer.Option(
        "--gin_bindings", help="Gin binding NAME=VALUE, or --gin.NAME=VALUE; may be repeated."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        help="Python module that registers tasks; may be repeated. Default: mini, p3, local."
    ),
]
# Imported when no --module is given; t0x.tasks.local too, where there are local rows.
MODULES = ("t0x.tasks.mini", "t0x.tasks.p3")


def spell(name: str) -> str:
    """The name of an option as it is defined, however it was written."""
    return name.replace("-", "_")


# Of the application; all commands inherit it.
CONTEXT_SETTINGS = {"token_normalize_func": spell}


class GinCommand(TyperCommand):
    """A command with the option --gin_bindings, which takes --gin.NAME=VALUE as t5x's do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line."""
        return super().parse_args(ctx, [re.sub(r"^--gin\.", "--gin_bindings=", a) for a in args])


@contextlib.contextmanager
def without_native_chatter() -> Iterator[None]:
    """Drops what libraries write to file descriptor 2 from C++ while they are imported."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    stderr, sys.stderr = sys.stderr, os.fdopen(os.dup(saved), "w")
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.close()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
        sys.stderr = stderr


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither what libraries say while imported nor gin's list of folders without the file."""
    logging.disable(logging.ERROR)
    try:
        with without_native_chatter():
            yield
    finally:
        logging.disable(logging.NOTSET)


def import_modules(modules: list[str] | None) -> list[str]:
    """Imports modules that register tasks, by default all of t0x's own that can be; their names."""
    import importlib

    from t0x.sources.openers import DATA_DIR_VARIABLE

    if modules and "" not in sys.path:
        sys.path.insert(0, "")  # a module of the working directory, as for `python -m t5x.train`
    imported = []
    for name in modules or MODULES:
        try:
            importlib.import_module(name)
            imported.append(name)
        except LookupError as error:
            # Without --module, what is not installed is no reason to hide what is.
            if modules:
                raise
            echo(f"{name} is left out: {error}", err=True)
            return imported
    if not modules and os.environ.get(DATA_DIR_VARIABLE):
        importlib.import_module("t0x.tasks.local")
        imported.append("t0x.tasks.local")
    return imported


def mixture_tasks(mixture: str) -> dict[str, float]:
    """Rate of each task of a registered mixture. Raises LookupError naming those there are."""
    import seqio

    if mixture not in seqio.MixtureRegistry.names():
        known = ", ".join(sorted(seqio.MixtureRegistry.names())) or "none"
        raise LookupError(f"no mixture is named {mixture!r}; there are: {known}")
    found = seqio.MixtureRegistry.get(mixture)
    return {task.name: found.get_rate(task) for task in found.tasks}


def print_table(table: "Table", piped_width: int = 500) -> None:
    """Prints a table; piped, a row is a line."""
    from t5x.run.terminal import make_console

    console = make_console()
    (console if console.is_terminal else make_console(width=piped_width)).print(table)


def echo(text: str, err: bool = False) -> None:
    """Prints text, which a terminal only shows: it may hold names of files, prompts and tasks."""
    from t5x.run.terminal import printable

    typer.echo(printable(text), err=err)


def echo_json(value: Any) -> None:
    """Prints a value as one line of JSON."""
    from t5x.run.terminal import escape_json

    typer.echo(escape_json(json.dumps(value, ensure_ascii=False)))
