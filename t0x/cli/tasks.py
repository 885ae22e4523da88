"""`t0x tasks`: what is registered."""

from typing import Annotated

import typer

from t0x.cli import shared

app = typer.Typer(help="SeqIO tasks and mixtures.", no_args_is_help=True)


@app.callback()
def _tasks() -> None:
    """Makes `list` a subcommand although it is the only one."""


@app.command(name="list")
def list_tasks(
    mixture: Annotated[
        str | None, typer.Option(help="Only the tasks of this mixture, with their rates in it.")
    ] = None,
    module: shared.Modules = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON array: name, dataset, subset, template, rate…")
    ] = False,
) -> None:
    """Lists (dataset, prompt) tasks: name, dataset, prompt, mixing rate, examples of each split.

    Examples are those that P3 published where the whole split is there, else one a row (in a rank
    classification task one a choice, where all rows have the same).
    """
    with shared.without_native_chatter():
        shared.import_modules(module)
        tasks = _describe(mixture)
    if as_json:
        shared.echo_json(tasks)
    else:
        _print_table(tasks)


def _describe(mixture: str | None) -> list[dict[str, object]]:
    from t0x import registration

    if mixture is None:
        rates = {name: info.rate for name, info in registration.task_infos().items()}
    else:
        rates = shared.mixture_tasks(mixture)
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
    from rich.table import Table

    table = Table(title=f"{len(tasks)} tasks")
    for column in ("task", "prompt", "rate", "examples"):
        table.add_column(column, overflow="fold")
    for task in tasks:
        examples = " ".join(f"{split}={count:,}" for split, count in task["splits"].items())
        table.add_row(task["name"], task["template"], f"{task['rate']:,.0f}", examples)
    shared.print_table(table, piped_width=240)
