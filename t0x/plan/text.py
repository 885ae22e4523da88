"""Estimates as people read them."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from t0x.plan.estimate import KERNEL_SHARE_OF_PEAK, Estimate

NOTE = (
    "These are estimates by the TPU compiler (its cycles for every operation, loops counted by "
    "their trips) and by data-sheet rates, not measurements. A step is taken to last as long as "
    "the longer of computing and sending, as if they overlapped wholly. Of hand-written kernels "
    f"the compiler says nothing: they are taken to reach {KERNEL_SHARE_OF_PEAK:.0%} of the peak."
)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def print_estimate(estimate: Estimate, steps: int, price: float | None, console: Console) -> None:
    """Prints one estimate as a table of two columns."""
    step, chip = estimate.step, estimate.slice.chip
    table = Table(title=f"{estimate.slice.name}, {estimate.slice.chips} chips", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    mesh = " × ".join(f"{name} {size}" for name, size in step.mesh.items())
    rows = [
        ("model", f"{step.parameters / 1e9:.3f} B parameters"),
        ("batch", f"{_batch(estimate)}, {step.tokens:,} token slots"),
        ("mesh", mesh),
        *([("settings", "\n".join(estimate.settings))] if estimate.settings else []),
        *(_shortage_rows(estimate) if estimate.shortage else _cost_rows(estimate, steps, price)),
        ("compile time", f"{estimate.compile_seconds:.0f} s"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    if estimate.fits:
        console.print(f"{NOTE} Clock {chip.clock / 1e9:.2f} GHz.", soft_wrap=True)


def _batch(estimate: Estimate) -> str:
    shapes = {name: x.shape for name, x in estimate.step.batch.items()}
    names = ("encoder_input_tokens", "decoder_target_tokens")
    lengths = [str(shapes[name][1]) for name in names if name in shapes]
    return f"{next(iter(shapes.values()))[0]} rows of ({', '.join(lengths)})"


def _shortage_rows(estimate: Estimate) -> list[tuple[str, str]]:
    shortage = estimate.shortage
    missing = shortage.needed - shortage.available
    largest = "\n".join(f"{gib(b.bytes)}  {b.shape}  {b.operator}" for b in shortage.largest[:8])
    return [
        ("HBM", f"does not fit: needs {gib(shortage.needed)} a chip, {gib(missing)} too much"),
        ("largest buffers", largest or "the compiler names none"),
        ("compiler", shortage.message),
    ]


def _cost_rows(estimate: Estimate, steps: int, price: float | None) -> list[tuple[str, str]]:
    chip, cost = estimate.slice.chip, estimate.cost
    hours = estimate.chip_hours(steps)
    bill = "" if price is None else f", {hours * price:,.0f} at {price:g} a chip-hour"
    return [
        (
            "HBM a chip",
            f"arguments {gib(estimate.arguments)}, temporaries {gib(estimate.temporaries)}, "
            f"peak {gib(estimate.peak)} of {gib(chip.hbm)}",
        ),
        ("compute", f"{cost.cycles:.3e} cycles{_kernels(estimate)}"),
        ("wire a chip", _sent(cost.wire, chip.link_bytes)),
        *([("to other slices", _sent(cost.network, chip.network_bytes))] if cost.network else []),
        ("step", f"{estimate.seconds:.3f} s"),
        ("model FLOPs use", "unknown" if estimate.mfu is None else f"{estimate.mfu:.1%} of peak"),
        ("tokens a chip-hour", f"{estimate.tokens_per_chip_hour:,.0f}"),
        (
            f"the run's {steps:,} steps",
            f"{steps * estimate.seconds / 3600:,.1f} hours, {hours:,.0f} chip-hours{bill}",
        ),
    ]


def _sent(by_kind: Mapping[str, float], rate: float) -> str:
    """Bytes that a chip sends, by kind of collective, and how long they take."""
    kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(by_kind.items()))
    total = sum(by_kind.values())
    amount = f"{total / 1e9:.2f} GB{f' ({kinds})' if kinds else ''}"
    return f"{amount}, {total / rate:.3f} s at {rate / 1e9:.3g} GB/s"


def _kernels(estimate: Estimate) -> str:
    """The rest of the line on computing: kernels where there are any, and the time of it all."""
    total = f", {estimate.compute_seconds:.3f} s"
    if not estimate.cost.kernel_flops:
        return total
    cycles = estimate.kernel_seconds * estimate.slice.chip.clock
    return f" outside kernels, {cycles:.3e} in them{total}"


def print_ranking(estimates: Sequence[Estimate], console: Console) -> None:
    """Prints a sweep, cheapest step first, what does not fit last."""
    table = Table(title=f"sweep over {estimates[0].slice.name}")
    for column in ("mesh", "settings", "HBM", "cycles", "wire GB", "step s", "MFU"):
        table.add_column(column, overflow="fold")
    for estimate in rank(estimates):
        mesh = "×".join(str(size) for size in estimate.step.mesh.values())
        settings = ", ".join(
            binding.rsplit(".", 1)[-1].replace(" = ", "=") for binding in estimate.settings
        )
        if estimate.shortage:
            missing = estimate.shortage.needed - estimate.shortage.available
            table.add_row(mesh, settings, f"{gib(missing)} too much", "", "", "", "")
            continue
        table.add_row(
            mesh,
            settings,
            gib(estimate.peak),
            f"{estimate.cost.cycles:.3e}",
            f"{estimate.cost.wire_bytes / 1e9:.1f}",
            f"{estimate.seconds:.3f}",
            "" if estimate.mfu is None else f"{estimate.mfu:.1%}",
        )
    console.print(table)
    console.print(NOTE, soft_wrap=True)


def print_comparison(estimates: Sequence[Estimate], console: Console) -> None:
    """Prints estimates for several slices side by side, cycles against the first that fits."""
    table = Table(title="slices")
    for column in ("slice", "rows a chip", "HBM", "cycles", "growth", "wire GB", "step s", "MFU"):
        table.add_column(column)
    first = next((x.total_cycles for x in estimates if x.fits), None)
    for x in estimates:
        rows = f"{next(iter(x.step.batch.values())).shape[0] / x.slice.chips:g}"
        if x.shortage:
            table.add_row(x.slice.name, rows, "does not fit", *[""] * 5)
            continue
        table.add_row(
            x.slice.name,
            rows,
            gib(x.peak),
            f"{x.total_cycles:.3e}",
            f"{x.total_cycles / first - 1:+.1%}",
            f"{(x.cost.wire_bytes + x.cost.network_bytes) / 1e9:.1f}",
            f"{x.seconds:.3f}",
            "" if x.mfu is None else f"{x.mfu:.1%}",
        )
    console.print(table)


def rank(estimates: Sequence[Estimate]) -> list[Estimate]:
    """By time of a step; what does not fit comes last, the least short first."""

    def key(estimate: Estimate) -> tuple[bool, float]:
        if estimate.shortage:
            return True, float(estimate.shortage.needed)
        return False, estimate.seconds

    return sorted(estimates, key=key)
