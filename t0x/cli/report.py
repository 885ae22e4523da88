"""`t0x report`: what the results of rank classification say."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from t0x.cli import shared


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Run directories, searched for rank_classification/<step>."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page here.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV row for each dataset here.")] = None,
    prompts_csv: Annotated[
        Path | None,
        typer.Option("--prompts_csv", help="Write a CSV row for each prompt here."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables as Markdown here.")
    ] = None,
    bias_csv: Annotated[
        Path | None,
        typer.Option("--bias_csv", help="Write a CSV row for each bias measure here."),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(help="Published figures to compare with, in the form of published.csv."),
    ] = None,
    wrong: Annotated[
        int, typer.Option(min=0, help="Wrong predictions to show on the page for each prompt.")
    ] = 10,
) -> None:
    """Print accuracy over prompts for each dataset; write HTML, CSV and Markdown.

    Give several runs to see them side by side:

        t0x report runs/t0_mini --out report.html
        t0x report runs/a runs/b --csv datasets.csv
    """
    from t0x import report as reports
    from t5x.run.terminal import make_console

    loaded = reports.load_results(results, wrong_examples=wrong)
    unfinished = reports.find_unfinished(results)
    generations = reports.load_generations(results, loaded)
    figures = reports.load_published(published)
    reports.print_table(loaded, make_console())
    if unfinished:
        names = ", ".join(file.stem for file in unfinished[:3]) + (", …" if unfinished[3:] else "")
        shared.echo(f"{len(unfinished)} unfinished and left out: {names}")
    page = partial(reports.write_html, unfinished=len(unfinished), generations=generations)
    writers = (
        (csv, reports.write_csv),
        (prompts_csv, reports.write_prompts_csv),
        (bias_csv, partial(reports.write_bias_csv, generations=generations)),
        (markdown, partial(reports.write_markdown, generations=generations, published=figures)),
        (out, partial(page, published=figures)),
    )
    for path, write in writers:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(loaded, path)
            shared.echo(f"wrote {path} ({path.stat().st_size / 1024:,.0f} KiB)")
