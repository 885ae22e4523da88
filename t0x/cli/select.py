"""`t0x select`: which checkpoint of a run is the best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t0x.cli import shared

if TYPE_CHECKING:
    from t0x.results.selection import Candidate


def select(
    model_dir: Annotated[
        str, typer.Argument(help="MODEL_DIR of the run, with checkpoint_N in it.")
    ],
    mixture: Annotated[
        str, typer.Option(help="The *_score_eval mixture whose tasks count.")
    ] = "t0_train_score_eval",
    results: Annotated[
        str | None, typer.Option(help="EVAL_OUTPUT_DIR of the evaluation, if not MODEL_DIR.")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Count only tasks that every evaluated checkpoint has.")
    ] = False,
    module: shared.Modules = None,
    gin_file: Annotated[
        str, typer.Option("--gin_file", help="Run file in the commands that are printed.")
    ] = "eval_t0.gin",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Choose the checkpoint with the highest mean accuracy over the tasks of a mixture.

    Reads what `t5x.eval` wrote for each checkpoint, and says how to evaluate what is missing. T0
    chose by the validation splits of its training datasets:

        t0x select --mixture t0_train_score_eval runs/t0_3b
    """
    from t0x.results import selection

    with shared.without_native_chatter():
        shared.import_modules(module)
        tasks = shared.mixture_tasks(mixture)
    candidates = selection.read_candidates(model_dir, tasks, results, common)
    best = selection.choose(candidates)
    undone = [one.step for one in candidates if one.kept and one.missing]
    command = selection.evaluation_command(model_dir, mixture, undone, gin_file) if undone else None
    if as_json:
        shared.echo_json(_record(model_dir, mixture, candidates, best, command))
    else:
        _print_table(candidates, best)
    if best is None:
        counted = len(tasks)
        raise LookupError(
            f"no checkpoint has a result for each of the {counted} tasks of {mixture}; "
            f"evaluate: {command} (or compare what there is: --common)"
        )
    if not as_json:
        if command:
            shared.echo(
                f"not complete: step {', '.join(map(str, undone))}; to evaluate:\n  {command}"
            )
        path = f"{model_dir}/checkpoint_{best.step}"
        count = len(best.accuracies)
        over = f"{count} task{'s' if count > 1 else ''}"
        shared.echo(f"best: {path} ({100 * best.mean:.2f} % over {over})")


def _record(
    model_dir: str,
    mixture: str,
    candidates: "list[Candidate]",
    best: "Candidate | None",
    command: str | None,
) -> dict:
    return {
        "mixture": mixture,
        "best": str(Path(model_dir) / f"checkpoint_{best.step}") if best else None,
        "checkpoints": [
            {
                "step": one.step,
                "kept": one.kept,
                "mean": one.mean,
                "tasks": len(one.accuracies),
                "missing": list(one.missing),
            }
            for one in candidates
        ],
        "evaluate": command,
    }


def _print_table(candidates: "list[Candidate]", best: "Candidate | None") -> None:
    from rich.table import Table

    from t5x.run.terminal import make_console

    table = Table("step", "tasks", "mean accuracy", "")
    for one in candidates:
        counted = len(one.accuracies) + len(one.missing)
        notes = ["best"] if one is best else []
        if not one.kept:
            notes.append("checkpoint removed")
        if one.missing:
            more = f" and {len(one.missing) - 1} more" if len(one.missing) > 1 else ""
            what = "not evaluated" if not one.accuracies else f"missing {one.missing[0]}{more}"
            notes.append(what)
        mean = "" if one.mean is None else f"{100 * one.mean:.2f}"
        table.add_row(str(one.step), f"{len(one.accuracies)}/{counted}", mean, ", ".join(notes))
    make_console().print(table)
