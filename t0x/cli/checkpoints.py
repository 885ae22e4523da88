"""`t0x checkpoints`: what a run has saved."""

import dataclasses
from typing import Annotated

import typer

from t0x.cli import shared

app = typer.Typer(help="Checkpoints of any format: list and inspect them.", no_args_is_help=True)


@app.command(name="ls")
def list_checkpoints(
    model_dir: Annotated[str, typer.Argument(help="Directory of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """List the checkpoints of a run: step, size on disk, parameters, layout, what else is there."""
    from rich.table import Table

    from t5x.checkpoints.convert import inspection
    from t5x.run.terminal import make_console

    found = inspection.list_checkpoints(model_dir)
    if as_json:
        rows = [dataclasses.asdict(facts) for facts in found]
        shared.echo_json([{k: v for k, v in row.items() if k != "arrays"} for row in rows])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "on disk", "parameters"):
        table.add_column(name, justify="right")
    for name in ("layers", "format", "optimizer", "data position"):
        table.add_column(name)
    for facts in found:
        table.add_row(
            str(facts.step),
            _megabytes(facts.bytes_on_disk),
            f"{facts.parameters:,}",
            facts.layout,
            facts.format,
            "yes" if facts.has_optimizer else "no",
            "yes" if facts.has_dataset else "no",
        )
    make_console().print(table)


@app.command(name="inspect")
def inspect_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(help="MODEL_DIR/checkpoint_N, a Hugging Face directory, or a URL.")
    ],
    hashes: Annotated[
        bool, typer.Option("--hashes", help="Read everything and show SHA-256 of each array.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the arrays of a checkpoint: path, shape, dtype, size, digest."""
    from t5x.checkpoints.convert import inspection
    from t5x.checkpoints.directories import find_checkpoint

    facts = inspection.inspect_checkpoint(find_checkpoint(checkpoint), with_digests=hashes)
    if as_json:
        shared.echo_json(dataclasses.asdict(facts))
        return
    shared.echo(
        f"{facts.path}: step {facts.step}, {facts.parameters:,} parameters, {facts.layout} layers, "
        f"{facts.format}, {_megabytes(facts.bytes_on_disk)} on disk"
    )
    width = max(len(array.path) for array in facts.arrays)
    for array in facts.arrays:
        shape = "×".join(map(str, array.shape)) or "scalar"
        line = (
            f"{array.path:<{width}}  {shape:>16}  {array.dtype:<8}  {_megabytes(array.bytes):>10}"
        )
        shared.echo(f"{line}  {array.sha256}" if array.sha256 else line)


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.1f} MB"
