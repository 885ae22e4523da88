"""What a traced train step needs on a slice, as the TPU compiler estimates it."""

import dataclasses
import re
import time
from typing import Any

from t0x.plan import hlo
from t0x.plan.slices import Slice
from t0x.plan.step import Step

SECONDS_PER_HOUR = 3600
# What hand-written kernels are taken to reach of a chip's peak: the compiler says nothing of them.
KERNEL_SHARE_OF_PEAK = 0.3
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One allocation that the compiler names when memory runs out."""

    bytes: int
    shape: str
    operator: str


@dataclasses.dataclass(frozen=True)
class Shortage:
    """Why a program does not fit the chips' memory.

    Attributes:
      needed, available: bytes of HBM a chip, in the compiler's count.
      largest: the largest buffers, where it lists them.
      message: the compiler's own first line.
    """

    needed: int
    available: int
    largest: tuple[Buffer, ...]
    message: str


def read_shortage(message: str) -> Shortage | None:
    """Reads the TPU compiler's out-of-memory error; None if the error is another one."""
    forms = (
        rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)",
        rf"[Uu]sed {_SIZE} of {_SIZE} hbm",
        rf"needs {_SIZE}.*? has {_SIZE}",
    )
    match = next((m for form in forms if (m := re.search(form, message, re.S))), None)
    if match is None or not re.search(r"RESOURCE_EXHAUSTED|[Oo]ut ?of ?memory|Oom", message):
        return None
    needed, available = _bytes(*match.groups()[:2]), _bytes(*match.groups()[2:])
    largest = tuple(
        Buffer(_bytes(size, unit), shape, operator)
        for size, unit, operator, shape in re.findall(
            rf"Size: {_SIZE}\s*\n(?:\s*Operator: (?:op_name=\"([^\"]*)\")?[^\n]*\n)?"
            r"\s*Shape: ([^{\s]+)",
            message,
        )
    )
    return Shortage(needed, available, largest, message.strip().split("\n")[0])


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One train step on one slice. All of it is the compiler's estimate or follows from it.

    Attributes:
      slice: where.
      step: what.
      compile_seconds: time the compiler took.
      arguments, temporaries, peak: bytes of HBM a chip; 0 where the program does not fit.
      cost: cycles and bytes on the wire of one chip and step; None where it does not fit.
      shortage: why it does not fit, or None.
      settings: what a sweep changed, as gin bindings.
    """

    slice: Slice
    step: Step
    compile_seconds: float
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    cost: hlo.Cost | None = None
    shortage: Shortage | None = None
    settings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.shortage is None

    @property
    def total_cycles(self) -> float:
        """Cycles outside kernels and in them."""
        return self.compute_seconds * self.slice.chip.clock

    @property
    def compute_seconds(self) -> float:
        """Time of the estimated cycles at the chip's clock, and of the kernels."""
        return self._cost.cycles / self.slice.chip.clock + self.kernel_seconds

    @property
    def kernel_seconds(self) -> float:
        """Time of the kernels' declared work at KERNEL_SHARE_OF_PEAK."""
        return self._cost.kernel_flops / (KERNEL_SHARE_OF_PEAK * self.slice.chip.peak_flops)

    @property
    def wire_seconds(self) -> float:
        """Time of the bytes on the wire, over all links of a chip at once, then between slices."""
        chip = self.slice.chip
        within = self._cost.wire_bytes / chip.link_bytes
        return within + self._cost.network_bytes / chip.network_bytes

    @property
    def seconds(self) -> float:
        """Time of a step if computing and sending overlap wholly."""
        return max(self.compute_seconds, self.wire_seconds)

    @property
    def mfu(self) -> float | None:
        """Share of the slice's peak that the model's own matrix products are."""
        if self.step.flops is None:
            return None
        return self.step.flops / (self.seconds * self.slice.chips * self.slice.chip.peak_flops)

    @property
    def tokens_per_chip_hour(self) -> float:
        return self.step.tokens * SECONDS_PER_HOUR / (self.seconds * self.slice.chips)

    @property
    def _cost(self) -> hlo.Cost:
        if self.cost is None:
            raise ValueError(f"{self.slice.name}: what does not fit has no cost")
        return self.cost

    def chip_hours(self, steps: int) -> float:
        return steps * self.seconds * self.slice.chips / SECONDS_PER_HOUR

    def as_dict(self, steps: int, price: float | None) -> dict[str, Any]:
        """Everything as JSON takes it; times in seconds, sizes in bytes, `price` a chip-hour."""
        known: dict[str, Any] = {
            "topology": self.slice.name,
            "chips": self.slice.chips,
            "mesh": self.step.mesh,
            "settings": list(self.settings),
            "batch": {name: list(x.shape) for name, x in self.step.batch.items()},
            "parameters": self.step.parameters,
            "tokens_per_step": self.step.tokens,
            "model_flops": self.step.flops,
            "hbm_limit": self.slice.chip.hbm,
            "fits": self.fits,
            "compile_seconds": round(self.compile_seconds, 1),
            "estimated_by": "TPU compiler, not measured",
        }
        if self.shortage is not None:
            return known | {
                "hbm_needed": self.shortage.needed,
                "hbm_short": self.shortage.needed - self.shortage.available,
                "largest_buffers": [dataclasses.asdict(b) for b in self.shortage.largest],
                "message": self.shortage.message,
            }
        hours = self.chip_hours(steps)
        return known | {
            "hbm_arguments": self.arguments,
            "hbm_temporaries": self.temporaries,
            "hbm_peak": self.peak,
            "cycles": self._cost.cycles,
            "kernel_flops": self._cost.kernel_flops,
            "kernel_seconds": self.kernel_seconds,
            "total_cycles": self.total_cycles,
            "compute_seconds": self.compute_seconds,
            "wire_bytes": self._cost.wire_bytes,
            "wire_bytes_by_collective": dict(self._cost.wire),
            "network_bytes": self._cost.network_bytes,
            "network_bytes_by_collective": dict(self._cost.network),
            "wire_seconds": self.wire_seconds,
            "step_seconds": self.seconds,
            "mfu": self.mfu,
            "tokens_per_chip_hour": self.tokens_per_chip_hour,
            "steps": steps,
            "chip_hours": hours,
            "cost": None if price is None else hours * price,
        }


def estimate(
    step: Step, place: Slice, settings: tuple[str, ...] = ()
) -> tuple[Estimate, str | None]:
    """Compiles a traced step; returns the estimate and the program's text (None: does not fit).

    Raises:
      RuntimeError: the compiler failed for another reason than memory.
    """
    started = time.monotonic()
    try:
        compiled = step.lowered.compile()
    except Exception as error:  # the compiler's status errors share no other class
        shortage = read_shortage(str(error))
        if shortage is None:
            raise
        seconds = time.monotonic() - started
        return Estimate(place, step, seconds, shortage=shortage, settings=settings), None
    seconds = time.monotonic() - started
    text, memory = compiled.as_text(), compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return (
        Estimate(
            place,
            step,
            seconds,
            arguments=arguments,
            temporaries=temporaries,
            peak=memory.peak_memory_in_bytes,
            cost=hlo.cost(hlo.parse(text), place.chips, place.count),
            settings=settings,
        ),
        text,
    )
