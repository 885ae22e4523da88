"""`t0x tasks stats`: what a mixture trains on, before money is spent."""

import csv
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t0x.cli import shared
from t0x.cli.prepare import Facts, build_request, read_facts

if TYPE_CHECKING:
    from t0x.prepare.statistics import MixtureStatistics

# Rows of every task that are rendered where nothing is prepared.
ROWS = 256


def stats(
    mixture: Annotated[
        str | None, typer.Argument(help="A mixture or task; by default the store's.")
    ] = None,
    prepared: Annotated[
        str | None, typer.Option(help="A store of `t0x prepare`: lengths of every example.")
    ] = None,
    gin_file: Annotated[
        list[str] | None,
        typer.Option("--gin_file", help="The run, for its steps, batch and lengths."),
    ] = None,
    gin_bindings: shared.GinBindings = None,
    module: shared.Modules = None,
    split: Annotated[
        str | None, typer.Option(help="Split of every task; by default the gin file's, or train.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the run.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch", min=1, help="Rows of its batch.")
    ] = None,
    input_length: Annotated[
        int | None, typer.Option("--input_length", min=1, help="Tokens of a row's inputs.")
    ] = None,
    target_length: Annotated[
        int | None, typer.Option("--target_length", min=1, help="Tokens of a row's targets.")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of every task to render where none are prepared.")
    ] = ROWS,
    table_csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the table here, all columns.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure here: .html, .svg or .png.")
    ] = None,
) -> None:
    """Tell what a mixture trains on: for each task its share, epochs, lengths, cuts and packing.

    Without --prepared some rows of every task are rendered, spread over the split.

        t0x tasks stats --prepared gs://BUCKET/t0_prepared --gin_file t0_3b.gin --plot mixture.html
        t0x tasks stats mini_train --steps 1400 --batch_size 8 --input_length 128 --target_length 32
    """
    from t0x.prepare import statistics

    asked = (steps, batch_size, input_length, target_length)
    files, bindings = tuple(gin_file or ()), tuple(gin_bindings or ())
    with shared.quiet():
        facts = read_facts(files, bindings, asked)
    if prepared is not None:
        from t5x.data.store import read_manifest

        manifest = read_manifest(prepared)
        if mixture not in (None, manifest.mixture):
            raise ValueError(f"{prepared} holds {manifest.mixture}, not {mixture}")
        found = statistics.describe_mixture(prepared, manifest, split or facts.split, facts.run)
    else:
        found = _survey(facts, mixture, split, files, bindings, module, rows)
    if table_csv is not None:
        _write_csv(found, table_csv)
    if plot is not None:
        from t0x.prepare.figure import draw

        draw(found, plot)
    _show(found)


def _survey(
    facts: Facts,
    mixture: str | None,
    split: str | None,
    gin_files: tuple[str, ...],
    gin_bindings: tuple[str, ...],
    modules: list[str] | None,
    rows: int,
) -> "MixtureStatistics":
    """Statistics of a mixture by a few rows of every task; what cannot be read is named."""
    from t0x.prepare import command, statistics

    with tempfile.TemporaryDirectory() as folder, shared.quiet():
        request = build_request(
            folder, mixture, split, facts, gin_files, gin_bindings, modules, most_rows=rows
        )
        manifest = command.prepare(request, command.run_locally(command.default_processes()))
        sizes = command.read_split_sizes(request)
        found = statistics.describe_mixture(folder, manifest, request.split, facts.run, sizes)
    for task in manifest.missing:
        typer.echo(f"missing: {task.task}: {task.reason}", err=True)
    return found


def _write_csv(found: "MixtureStatistics", path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for task in found.tasks:
            row = {
                name: value
                for name, value in dataclasses.asdict(task).items()
                if not isinstance(value, dict)
            }
            for feature in ("inputs", "targets"):
                of_feature = dataclasses.asdict(getattr(task, feature))
                row |= {f"{feature}_{name}": value for name, value in of_feature.items()}
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _show(found: "MixtureStatistics") -> None:
    from rich.table import Table

    table = Table(title=f"{found.name}: {len(found.tasks)} tasks")
    table.add_column("task", overflow="fold")
    for column in ("examples", "share", "epochs", "inputs", "cut", "targets", "cut", "a row"):
        table.add_column(column, justify="right", no_wrap=True)
    for task in found.tasks:
        table.add_row(
            task.task,
            f"{task.examples:,}",
            f"{task.share:.2%}",
            "" if task.epochs is None else f"{task.epochs:.2f}",
            f"{task.inputs.median:,.0f}–{task.inputs.p95:,.0f}",
            f"{task.inputs.cut:.1%}",
            f"{task.targets.median:,.0f}–{task.targets.p95:,.0f}",
            f"{task.targets.cut:.1%}",
            f"{task.examples_per_row:.1f}",
        )
    shared.print_table(table)
    run = found.run
    typer.echo("inputs, targets: tokens, median to 95 %; a row: examples of the task packed alone")
    typer.echo(
        f"packed to ({run.inputs}, {run.targets}): {found.examples_per_row:.2f} examples a row, "
        f"encoder {found.encoder_density:.1%} full, decoder {found.decoder_density:.1%}; "
        f"{found.cut:.2%} of examples cut"
    )
    if run.steps and run.batch_size:
        examples = run.steps * run.batch_size * found.examples_per_row
        typer.echo(
            f"{run.steps:,} steps of {run.batch_size:,} rows: {examples:,.0f} examples, "
            f"{found.tokens_per_step:,.0f} tokens a step"
        )
    if found.missing_share:
        typer.echo(f"missing: {found.missing_share:.2%} of the mixture", err=True)
