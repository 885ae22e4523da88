"""`t0x tasks`: what is registered."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

app = typer.Typer(help="SeqIO tasks and mixtures.", no_args_is_help=True)

# Imported when no --module is given; the last only where there are local rows.
MODULES = ("t0x.tasks.mini", "t0x.tasks.p3")


@app.callback()
def _tasks() -> None:
    """Makes `list` a subcommand although it is the only one."""


@app.command(name="list")
def list_tasks(
    mixture: Annotated[
        str | None, typer.Option(help="Only the tasks of this mixture, with their rates in it.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(
            help="Python module that registers tasks; may be repeated. Default: mini, p3."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON array: name, dataset, subset, template, rate…")
    ] = False,
) -> None:
    """Lists (dataset, prompt) tasks: name, dataset, prompt, mixing rate, examples of each split.

    Examples are those that P3 published where the whole split is there, else one a row (in a rank
    classification task one a choice, where all rows have the same).
    """
    with without_native_chatter():
        import_modules(module)
        tasks = _describe(mixture)
    if as_json:
        typer.echo(json.dumps(tasks, ensure_ascii=False))
    else:
        _print_table(tasks)


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


def import_modules(modules: list[str] | None) -> None:
    """Imports modules that register tasks; by default all of t0x's own that can be."""
    import importlib

    from t0x.sources.openers import DATA_DIR_VARIABLE

    if modules and "" not in sys.path:
        sys.path.insert(0, "")  # a module of the working directory, as for `python -m t5x.train`
    for name in modules or MODULES:
        try:
            importlib.import_module(name)
        except LookupError as error:
            # Without --module, what is not installed is no reason to hide what is.
            if modules:
                raise
            typer.echo(f"{name} is left out: {error}", err=True)
            return
    if not modules and os.environ.get(DATA_DIR_VARIABLE):
        importlib.import_module("t0x.tasks.local")


def mixture_tasks(mixture: str) -> dict[str, float]:
    """Rate of each task of a registered mixture. Raises LookupError naming those there are."""
    import seqio

    if mixture not in seqio.MixtureRegistry.names():
        known = ", ".join(sorted(seqio.MixtureRegistry.names())) or "none"
        raise LookupError(f"no mixture is named {mixture!r}; there are: {known}")
    found = seqio.MixtureRegistry.get(mixture)
    return {task.name: found.get_rate(task) for task in found.tasks}


def _describe(mixture: str | None) -> list[dict[str, object]]:
    from t0x import registration

    if mixture is None:
        rates = {name: info.rate for name, info in registration.task_infos().items()}
    else:
        rates = mixture_tasks(mixture)
    described = []
    for name, rate in rates.items():
        info = registration.task_info(name)
        dataset = info.dataset
        described.append(
            {
                "name": name,
                "dataset": dataset.name,
                "subset": dataset.subset,
                "template": info.template.name,
                "rate": rate,
                "splits": {split: info.num_examples(split) for split in dataset.splits},
            }
        )
    return described


def _print_table(tasks: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(tasks)} tasks")
    for column in ("task", "prompt", "rate", "examples"):
        table.add_column(column, overflow="fold")
    for task in tasks:
        examples = " ".join(f"{split}={count:,}" for split, count in task["splits"].items())
        table.add_row(task["name"], task["template"], f"{task['rate']:,.0f}", examples)
    console = Console()
    # Piped, a row is a line.
    (console if console.is_terminal else Console(width=240)).print(table)
