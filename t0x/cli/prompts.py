"""`t0x prompts`: install, list, show, render, validate and start prompt templates."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t0x.cli import shared

if TYPE_CHECKING:
    from t0x.prompts.template import Template

app = typer.Typer(
    help="Prompt templates in promptsource's format.", no_args_is_help=True, rich_markup_mode="rich"
)

_ROWS_CHECKED = 200
_DATASET = typer.Argument(metavar="DATASET[/SUBSET]", help="For example ag_news or glue/mrpc.")


@app.command()
def install(
    archive: Annotated[
        Path | None, typer.Option(help="A local copy of promptsource-0.2.3.tar.gz (no network).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is installed.")] = False,
) -> None:
    """Download promptsource's 2,085 templates.

    The source archive comes from the package index that pip uses, its digest is checked, only
    its YAML files are unpacked, none of its code is run.

    Example: [bold]t0x prompts install[/bold]
    """
    from t0x.prompts.collection import TemplateCollection
    from t0x.prompts.install import ARCHIVE, install
    from t5x.run.terminal import make_console

    console = make_console(stderr=True)
    with console.status(f"Getting {ARCHIVE} …"):
        directory, new = install(archive, force)
    collection = TemplateCollection([directory])
    count = sum(1 for _ in collection.templates())
    state = "installed in" if new else "already in"
    shared.echo(f"{count} templates of {len(collection.datasets())} datasets {state} {directory}")


@app.command(name="list")
def list_templates(
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET[/SUBSET]]", help="Only this dataset.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array on stdout.")] = False,
) -> None:
    """List templates: dataset, name, answer choices, whether it is the original task.

    Example: [bold]t0x prompts list ag_news[/bold]
    """
    unread: list[str] = []
    entries = _entries(dataset, unread.append)
    if as_json:
        shared.echo_json([_record(*entry) for entry in entries])
    elif entries:
        _print_table(entries)
    elif not unread:
        raise LookupError("no templates found; get promptsource's with `t0x prompts install`")
    if unread:
        raise ValueError(f"{len(unread)} files left out: {'; '.join(unread)}")


def _entries(
    name: str | None, report: Callable[[str], None]
) -> "list[tuple[str, str | None, Template]]":
    from t0x.prompts.authoring import resolve
    from t0x.prompts.collection import default_collection

    collection = default_collection()
    if name is None:
        return list(collection.templates(report))
    subsets = [key for key in collection.datasets() if key[0] == name]
    chosen = subsets or [resolve(collection, name)]
    return [(*key, template) for key in chosen for template in collection.get(*key).values()]


def _record(dataset: str, subset: str | None, template: "Template") -> dict:
    from t0x.prompts.template import RenderError

    try:
        fixed = template.get_fixed_answer_choices_list()
    except RenderError:  # listed all the same; `validate` says what is wrong
        fixed = None
    return {
        "dataset": dataset,
        "subset": subset,
        "name": template.name,
        "fixed_answer_choices": fixed,
        "has_answer_choices": template.answer_choices is not None,
        "original_task": template.metadata.original_task,
        "choices_in_prompt": template.metadata.choices_in_prompt,
        "metrics": list(template.metadata.metrics),
    }


def _print_table(entries: "list[tuple[str, str | None, Template]]") -> None:
    from rich.table import Table

    table = Table()
    for column in ("dataset", "template", "answer choices", "original task"):
        # A name that is cut could not be given to --template.
        table.add_column(column, overflow="fold")
    for entry in entries:
        record = _record(*entry)
        dataset = f"{entry[0]}/{entry[1]}" if entry[1] else entry[0]
        fixed = record["fixed_answer_choices"]
        choices = " | ".join(fixed) if fixed else "per row" if record["has_answer_choices"] else ""
        original = {True: "yes", False: "no", None: ""}[record["original_task"]]
        table.add_row(dataset, record["name"], choices, original)
    shared.print_table(table)


@app.command()
def show(
    dataset: Annotated[str, _DATASET],
    template: Annotated[str | None, typer.Option(help="Only the template of this name.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="JSONL file; the first row is rendered too.")
    ] = None,
) -> None:
    """Show templates as they are written, and rendered on a row.

    Example: [bold]t0x prompts show ag_news --template classify --rows ag_news/test.jsonl[/bold]
    """
    from t0x.prompts.authoring import find_template, read_rows, resolve
    from t0x.prompts.collection import default_collection
    from t5x.run.terminal import make_console

    collection = default_collection()
    templates = collection.get(*resolve(collection, dataset))
    if template is not None:
        templates = {template: find_template(templates, template, dataset)}
    row = None
    if rows is not None and (row := next(read_rows(rows), None)) is None:
        raise ValueError(f"--rows {rows}: there is no row in it")
    console = make_console()
    for chosen in templates.values():
        _print_template(console, chosen, row)


def _print_template(console: "object", template: "Template", row: dict | None) -> None:
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.text import Text

    def block(title: str, text: str) -> None:
        console.print(Text(title, style="bold"))
        console.print(Padding(Text(text), (0, 0, 0, 2)))

    noted = template.metadata
    console.print(Rule(Text(template.name), align="left"))
    console.print(
        f"original task: {noted.original_task}, choices in prompt: {noted.choices_in_prompt}, "
        f"metrics: {', '.join(noted.metrics) or 'none'}"
    )
    block("template", template.jinja)
    if template.answer_choices is not None:
        block("answer choices", template.answer_choices)
    if row is not None:
        for title, part in zip(("input", "target"), template.apply(row), strict=False):
            block(title, part)
        choices = template.get_answer_choices_list(row)
        if choices is not None:
            block("this row's choices", "\n".join(choices))


@app.command()
def render(
    dataset: Annotated[str, _DATASET],
    template: Annotated[str, typer.Option(help="Name of the template.")],
    rows: Annotated[Path, typer.Option(help="JSONL file, one row a line.")],
) -> None:
    """Render rows: one JSON line a row on stdout, {"parts": […], "answer_choices": […]}.

    A row that cannot be rendered gives {"parts": null, "answer_choices": null, "error": …}, and
    exit code 1 at the end.

    Example: [bold]t0x prompts render ag_news --template classify --rows test.jsonl[/bold]
    """
    from t0x.prompts.authoring import find_template, read_rows, resolve
    from t0x.prompts.collection import default_collection
    from t0x.prompts.template import RenderError

    collection = default_collection()
    chosen = find_template(collection.get(*resolve(collection, dataset)), template, dataset)
    failures: list[str] = []
    count = 0
    for row in read_rows(rows):
        count += 1
        try:
            result = {
                "parts": chosen.apply(row),
                "answer_choices": chosen.get_answer_choices_list(row),
            }
        except RenderError as error:
            result = {"parts": None, "answer_choices": None, "error": str(error)}
            failures.append(str(error))
        shared.echo_json(result)
    if failures:
        raise ValueError(f"{len(failures)} of {count} rows did not render; first: {failures[0]}")


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="A templates.yaml, or a folder of them.")],
    rows: Annotated[
        Path | None, typer.Option(help=f"JSONL file; the first {_ROWS_CHECKED} rows are rendered.")
    ] = None,
) -> None:
    """Check template files; exit code 1 if there is an error.

    YAML and Jinja syntax, input ||| target, repeated names; with rows also fields that no row
    has, rows that do not render, targets that are none of the answer choices.

    Example: [bold]t0x prompts validate prompts/my_data --rows my_data/train.jsonl[/bold]
    """
    from t0x.prompts import authoring

    sample = list(islice(authoring.read_rows(rows), _ROWS_CHECKED)) if rows is not None else []
    count, findings = authoring.validate(path, sample)
    for finding in findings:
        name = "" if finding.template is None else f"template {finding.template!r}: "
        shared.echo(f"{finding.level}: {finding.file}: {name}{finding.text}")
    errors = sum(finding.level == "error" for finding in findings)
    shared.echo(f"{count} templates, {errors} errors, {len(findings) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@app.command()
def new(
    dataset: Annotated[str, _DATASET],
    out: Annotated[Path, typer.Option(help="Folder of prompt collections.")] = Path("prompts"),
    rows: Annotated[
        Path | None, typer.Option(help="JSONL file; the first row's fields are used.")
    ] = None,
) -> None:
    """Start a template file with two prompts to edit.

    Example: [bold]t0x prompts new my_data --rows my_data/train.jsonl[/bold]
    """
    from t0x.prompts import authoring

    row = next(authoring.read_rows(rows), {}) if rows is not None else {}
    path = authoring.create(dataset, out, list(row))
    shared.echo(f"{path} written; edit it, then `t0x prompts validate {path}`")
    shared.echo(f"export T0X_PROMPTS_DIR={out.resolve()} makes t0x find it")
