"""`t0x plan`: what a run costs on a TPU slice, asked of the compiler rather than of a slice."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t0x.cli import shared

if TYPE_CHECKING:
    from t0x.plan.estimate import Estimate
    from t0x.plan.slices import Slice


def plan(
    gin_file: Annotated[
        list[str], typer.Option("--gin_file", help="A training run's gin file; may be repeated.")
    ],
    topology: Annotated[
        list[str],
        typer.Option(help="KIND:SHAPE, as v5e:16x16, v4:8x8x8, 2*v5e:16x16; may be repeated."),
    ],
    gin_bindings: shared.GinBindings = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a chip-hour.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to count instead of the gin file's.")
    ] = None,
    rows_per_chip: Annotated[
        int | None,
        typer.Option("--rows_per_chip", min=1, help="BATCH_SIZE = this × chips: weak scaling."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try meshes, remat policies and microbatches; rank.")
    ] = False,
    model_parallel: Annotated[
        str, typer.Option("--model_parallel", help="Model axes that --sweep tries.")
    ] = "1,2,4",
    remat: Annotated[str, typer.Option(help="Remat policies that --sweep tries.")] = "minimal,full",
    microbatches: Annotated[
        str, typer.Option(help="Numbers of microbatches that --sweep tries.")
    ] = "1",
    limit: Annotated[int, typer.Option(min=1, help="Most programs that --sweep compiles.")] = 12,
    dump_hlo: Annotated[
        Path | None, typer.Option("--dump_hlo", help="Write the compiled program's text here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an estimate.")] = False,
) -> None:
    """Estimate memory, time and cost of a training run on a TPU slice.

    Compiles the very train step with libtpu, on any machine, without data, checkpoint or
    vocabulary. What does not fit is reported, not an error.

        t0x plan --gin_file t0_3b.gin --topology v5e:16x16 --price 1.2
        t0x plan --gin_file t0_11b.gin --topology v5e:16x16 --topology v4:8x8x8 --json
        t0x plan --gin_file t0_3b.gin --rows_per_chip 4 --topology v5e:8x8 --topology v5e:16x16
    """
    from t0x.plan import slices

    places = [slices.parse_slice(name) for name in topology]
    shown = []
    for place in places:
        bindings = list(gin_bindings or [])
        if rows_per_chip is not None:
            bindings.append(f"BATCH_SIZE = {rows_per_chip * place.chips}")
        if sweep:
            axes = [_numbers(model_parallel), remat.split(","), _numbers(microbatches)]
            estimates = _sweep(gin_file, bindings, place, axes, limit)
        else:
            dump = _dump_path(dump_hlo, place, len(places))
            estimates = [_estimate(gin_file, bindings, place, (), dump)]
        shown.append(_show(estimates, steps, price, as_json))
    if len(shown) > 1 and not as_json:
        from t0x.plan import text
        from t5x.run.terminal import make_console

        text.print_comparison(shown, make_console())


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"'{text}': give whole numbers with commas between, as 1,2,4") from None


def _dump_path(path: Path | None, place: "Slice", places: int) -> Path | None:
    """The file asked for; of several topologies each gets its name into its own."""
    if path is None or places == 1:
        return path
    return path.with_name(f"{path.stem}.{place.name.replace(':', '-')}{path.suffix}")


def _estimate(
    gin_files: list[str],
    bindings: list[str],
    place: "Slice",
    settings: tuple[str, ...],
    dump: Path | None = None,
) -> "Estimate":
    # Said before, because the compiler can end the whole process and then nothing more is said.
    shared.echo(f"compiling for {place.name}: minutes, for billions of parameters", err=True)
    with shared.quiet():
        from t0x.plan import estimate, step
        from t5x.run.files import write_whole

        run = step.read_run(gin_files, [*bindings, *settings])
        traced = step.trace(run, place.devices())
        result, text = estimate.estimate(traced, place, settings)
    if dump is not None and text is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
        write_whole(dump, text)
    return result


def _sweep(
    gin_files: list[str],
    bindings: list[str],
    place: "Slice",
    axes: list[list],
    limit: int,
) -> list["Estimate"]:
    from t0x.plan import sweep

    with shared.quiet():
        from t0x.plan import step

        batch_size = step.read_run(gin_files, bindings)["train_dataset_cfg"].batch_size
    tried = list(itertools.islice(sweep.candidates(place.chips, batch_size, *axes), limit + 1))
    if not tried:
        raise ValueError(
            f"--sweep: no mesh of {place.name} divides BATCH_SIZE = {batch_size} into whole rows; "
            "give larger --model_parallel or fewer --microbatches"
        )
    if len(tried) > limit:
        shared.echo(f"only the first {limit} candidates are tried (--limit)", err=True)
    estimates = []
    for number, candidate in enumerate(tried[:limit], 1):
        shared.echo(f"{number}/{min(len(tried), limit)}: {candidate}", err=True)
        estimates.append(_estimate(gin_files, bindings, place, candidate.bindings()))
    return estimates


def _show(
    estimates: list["Estimate"], steps: int | None, price: float | None, as_json: bool
) -> "Estimate":
    """Prints the estimates of one slice; returns the best."""
    from t0x.plan import text
    from t5x.run.terminal import make_console

    ranked = text.rank(estimates)
    best = ranked[0]
    if as_json:
        for estimate in ranked:
            shared.echo_json(estimate.as_dict(steps or estimate.step.steps, price))
        return best
    console = make_console()
    if len(estimates) > 1:
        text.print_ranking(estimates, console)
    text.print_estimate(best, steps or best.step.steps, price, console)
    return best
