"""`t0x score`: rank-scores a JSONL file with a checkpoint."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from t0x.cli import shared


def score(
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint, or a run's directory (then its newest one).")
    ],
    data: Annotated[Path, typer.Option(help="JSONL rows {inputs, choices, label?}.")],
    out: Annotated[Path, typer.Option(help="Gets the rows with scores and prediction added.")],
    gin_file: Annotated[
        list[str] | None,
        typer.Option(
            "--gin_file", help="The model's run file; by default config.gin beside the checkpoint."
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="SentencePiece model; by default the run's own.")
    ] = None,
    gin_bindings: shared.GinBindings = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Packed rows in a batch; by default 4,096 tokens.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score from the start whatever OUT is.")
    ] = False,
) -> None:
    """Scores every answer choice of every row by its log-probability, and picks the best.

    Inputs are encoded once and packed. Rows that cannot be scored go to OUT.bad.jsonl. Killed and
    started again, it goes on where it was (OUT.ledger.json), to the very same output; an OUT from
    other data, settings or parameters is left alone.

    t0x score --checkpoint runs/t0_mini --data questions.jsonl --out scored.jsonl
    """
    from t5x.run.console import console

    if "--verbose" not in sys.argv:
        console.capture()
    from t0x.evaluation.command import score_checkpoint

    try:
        score_checkpoint(
            checkpoint, data, out, gin_file or (), gin_bindings or (), vocabulary, rows, overwrite
        )
    except Exception as error:
        # File descriptor 2 is the log's.
        console.fail(error)
        raise typer.Exit(1) from error
