"""`t0x prepare`: renders and tokenizes a mixture once, for training to read at random."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t0x.cli import shared

if TYPE_CHECKING:
    from t0x.prepare.request import Request, Run
    from t5x.data.store import Manifest, Missing


def prepare(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="The store: a folder, or gs://BUCKET/FOLDER.")],
    mixture: Annotated[
        str | None, typer.Option(help="A mixture or task; by default the gin file's.")
    ] = None,
    module: shared.Modules = None,
    split: Annotated[
        str | None, typer.Option(help="Split of every task; by default the gin file's, or train.")
    ] = None,
    gin_file: Annotated[
        list[str] | None,
        typer.Option("--gin_file", help="Run that will read the store; may be repeated."),
    ] = None,
    gin_bindings: shared.GinBindings = None,
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
    most_rows: Annotated[
        int | None, typer.Option("--most_rows", min=1, help="At most so many rows of every task.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Write every row, however many the run reads.")
    ] = False,
    from_cache: Annotated[
        list[str] | None,
        typer.Option(
            "--from_cache", help="Folder of SeqIO's cached tasks to take in; may be repeated."
        ),
    ] = None,
    keep_text: Annotated[
        bool, typer.Option("--keep_text", help="Keep the texts beside the tokens.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core.")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="local, or beam: Beam's own options follow after --.")
    ] = "local",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew whatever --out holds.")
    ] = False,
) -> None:
    """Render and tokenize the tasks of a mixture once, into ArrayRecord files.

    Writes what the run can use at the mixture's rates: a seeded sample of a split's rows where the
    run does not come to all of them. Killed and called again, it goes on. A dataset that cannot be
    read does not end the others: it is named, the exit code is 1, and the next call does what is
    missing.

        t0x prepare --gin_file t0_3b.gin --out gs://BUCKET/t0_prepared
        t0x prepare --mixture mini_train --out prepared
        t0x prepare --mixture t0_train --out P --steps 12200 --batch_size 1024
        t0x prepare --gin_file t0_3b.gin --out gs://B/P --runner beam -- --runner=DataflowRunner …
    """
    if runner not in ("local", "beam"):
        raise ValueError(f"--runner={runner}: local or beam; Beam's own --runner follows after --")
    if context.args and runner != "beam":
        raise ValueError(f"unknown argument {context.args[0]!r}")
    files, bindings = tuple(gin_file or ()), tuple(gin_bindings or ())
    with shared.quiet():
        facts = read_facts(files, bindings, (steps, batch_size, input_length, target_length))
        if (facts.run.steps == 0) != (facts.run.batch_size == 0):
            raise ValueError("--steps and --batch_size belong together")
        request = build_request(
            out,
            mixture,
            split,
            facts,
            files,
            bindings,
            module,
            run=facts.run if facts.run.steps and not everything else None,
            most_rows=most_rows,
            seed=seed,
            keep_text=keep_text,
            caches=tuple(from_cache or ()),
        )
    _run(request, runner, processes, context.args, overwrite)


@dataclass(frozen=True)
class Facts:
    """What gin files and options say of a run; its steps and batch are 0 where they say nothing."""

    mixture: str | None
    split: str
    module: str | None
    run: "Run"


def read_facts(
    gin_files: tuple[str, ...], gin_bindings: tuple[str, ...], asked: tuple[int | None, ...]
) -> Facts:
    """The run of gin files; `asked` are steps, batch size and both lengths, and come first."""
    from t0x.prepare import processes
    from t0x.prepare.request import Run, read_run

    found = {"mixture": None, "split": "train", "module": None, "run": Run(0, 0, 1024, 256)}
    if gin_files:
        # In a process of its own: it starts JAX, which forks of this one would rather not inherit.
        found |= processes.call(read_run, gin_files, gin_bindings)
    names = ("steps", "batch_size", "inputs", "targets")
    given = {name: value for name, value in zip(names, asked, strict=True) if value is not None}
    return Facts(**found | {"run": replace(found["run"], **given)})


def build_request(
    out: str,
    mixture: str | None,
    split: str | None,
    facts: Facts,
    gin_files: tuple[str, ...],
    gin_bindings: tuple[str, ...],
    modules: list[str] | None,
    **options: Any,
) -> "Request":
    """The request of a command line, its tasks registered."""
    from t0x.prepare.request import Request, configure

    if mixture is None and facts.mixture is None:
        raise ValueError("give a mixture, or the run's --gin_file")
    configure(gin_files, gin_bindings)
    named = [*(modules or []), *filter(None, [facts.module])]
    return Request(
        mixture=mixture or facts.mixture,
        directory=out if "://" in out else str(Path(out).absolute()),
        split=split or facts.split,
        modules=tuple(shared.import_modules(named)),
        gin_files=gin_files,
        gin_bindings=gin_bindings,
        **options,
    )


def _run(
    request: "Request", runner: str, count: int | None, options: list[str], overwrite: bool
) -> None:

    from t0x.prepare import command
    from t5x.run.terminal import make_console

    console = make_console(soft_wrap=True)
    if runner == "beam":
        from t0x.prepare.beam import run_on_beam

        work = run_on_beam(options)
    else:
        work = command.run_locally(count or command.default_processes())
    started = time.monotonic()
    manifest = command.prepare(request, work, overwrite, console)
    _show(request, manifest, time.monotonic() - started)
    if any(task.split == request.split for task in manifest.missing):
        raise typer.Exit(1)


def _show(request: "Request", manifest: "Manifest", seconds: float) -> None:
    entries = manifest.of_split(request.split)
    skipped = sum((Counter(entry.skipped) for entry in entries), Counter())
    for reason, count in skipped.most_common():
        shared.echo(f"left out: {count:,} rows ({reason})")
    total = sum(task.rate for task in (*entries, *manifest.missing) if task.split == request.split)
    missing: dict[str, list[Missing]] = {}
    for task in manifest.missing:
        if task.split == request.split:
            missing.setdefault(task.reason, []).append(task)
    for reason, tasks in missing.items():
        share = sum(task.rate for task in tasks) / total if total else 0.0
        more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
        shared.echo(
            f"missing: {tasks[0].task}{more}, {share:.2%} of the mixture: {reason}", err=True
        )
    examples = sum(entry.examples for entry in entries)
    size = sum(shard.bytes for entry in entries for shard in entry.shards)
    shared.echo(
        f"{request.directory}: {len(entries)} tasks, {examples:,} examples, "
        f"{size / 2**20:,.1f} MiB in {seconds:.0f} s"
    )
