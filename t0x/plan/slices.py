"""TPU slices by name: their chips, machines and names in the cloud, and devices without having any.

Names and sizes are those of Google Cloud's TPU documentation.
"""

import dataclasses
import math
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip by its data sheet.

    Attributes:
      kind: "v4", "v5e", "v5p" or "v6e".
      peak_flops: dense bfloat16 floating-point operations a second.
      flops_per_cycle: of its matrix units together; peak_flops over this is the clock.
      hbm: bytes a program can use (the compiler's own limit).
      link_bytes: bytes a second that it sends over all its links to other chips of its slice.
      network_bytes: bytes a second that it sends over the data centre's network to other slices.
      largest: the largest slice's grid.
      accelerator: first part of a slice's name in `gcloud compute tpus`.
      runtime_version: image of TPU VMs.
      gke_accelerator: value of GKE's node label cloud.google.com/gke-tpu-accelerator.
      config: libtpu's chip configuration that makes one device of a chip's cores, or None.
    """

    kind: str
    peak_flops: float
    flops_per_cycle: int
    hbm: int
    link_bytes: float
    network_bytes: float
    largest: tuple[int, ...]
    accelerator: str
    runtime_version: str
    gke_accelerator: str
    config: str | None = None

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak_flops / self.flops_per_cycle


GIB = 2**30
MEGACHIP = "megachip_tccontrol"
# Google Cloud's system architecture pages. Link rates: half of the bidirectional figure. Network
# rates: the pod's or host's over its chips; v4 has none published and gets the least of the others.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip(
            *("v4", 275e12, 2**18, int(31.25 * GIB), 300e9, 3.125e9, (16, 16, 16)),
            *("v4", "tpu-ubuntu2204-base", "tpu-v4-podslice", "megacore"),
        ),
        Chip(
            *("v5e", 197e12, 2**17, int(15.75 * GIB), 200e9, 3.125e9, (16, 16)),
            *("v5litepod", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
        ),
        Chip(
            *("v5p", 459e12, 2**18, int(95.74 * GIB), 600e9, 6.25e9, (16, 16, 24)),
            *("v5p", "v2-alpha-tpuv5", "tpu-v5p-slice", MEGACHIP),
        ),
        Chip(
            *("v6e", 918e12, 2**19, int(31.25 * GIB), 400e9, 12.5e9, (16, 16)),
            *("v6e", "v2-alpha-tpuv6e", "tpu-v6e-slice"),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A grid of chips, or several equal ones joined by the data centre's network.

    Attributes:
      chip: what it is made of.
      grid: chips in each dimension.
      count: slices of that shape.
    """

    chip: Chip
    grid: tuple[int, ...]
    count: int = 1

    @property
    def name(self) -> str:
        """As `parse_slice` reads it."""
        one = f"{self.chip.kind}:{self.shape}"
        return one if self.count == 1 else f"{self.count}*{one}"

    @property
    def shape(self) -> str:
        """The grid alone, "16x16"."""
        return "x".join(map(str, self.grid))

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.count * math.prod(self.grid)

    @property
    def chips_per_host(self) -> int:
        """Chips of one machine."""
        each = math.prod(self.grid)
        # Flat slices of up to eight chips are one machine; all others are made of machines of four.
        return each if each <= (8 if len(self.grid) == 2 else 4) else 4

    @property
    def hosts(self) -> int:
        """Machines of all slices.

        Raises:
          ValueError: there is no such number of whole machines.
        """
        if self.chips % self.chips_per_host:
            raise ValueError(
                f"--topology {self.name} is not a whole number of {self.chips_per_host}-chip "
                "machines"
            )
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Name of one slice in `gcloud compute tpus`, "v5litepod-256"."""
        # Grids of three dimensions are named by cores, two a chip.
        cores = 2 if len(self.grid) == 3 else 1
        return f"{self.chip.accelerator}-{cores * math.prod(self.grid)}"

    def devices(self) -> list[Any]:
        """Descriptions of its devices, which programs can be compiled for.

        Raises:
          ImportError: libtpu is not installed.
          ValueError: libtpu knows no such slice.
        """
        try:
            import libtpu  # noqa: F401 (named only to say what is missing)
        except ImportError:
            raise ImportError(
                "t0x plan needs the TPU compiler: pip install 't0x[plan]' (or libtpu)"
            ) from None
        # libtpu asks the cloud's metadata server where it is unless told not to.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        # No TPU is opened, so several may compile side by side.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        options: dict[str, Any] = {}
        if self.chip.config:
            options["chip_config_name"] = self.chip.config
        if self.count > 1:
            options["num_slices"] = self.count
        one = f"{self.chip.kind}:{self.shape}"
        try:
            topology = topologies.get_topology_desc(platform="tpu", topology_name=one, **options)
        except Exception as error:  # libtpu's status errors share no other class
            raise ValueError(
                f"--topology {self.name}: libtpu knows no such slice ({_first_line(error)})"
            ) from error
        return list(topology.devices)


def parse_slice(text: str) -> Slice:
    """The slice named "v5e:16x16", or "2*v5e:16x16" for two of them.

    Raises:
      ValueError: the name has another form or an unknown kind of chip.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(v\w+):(\d+(?:x\d+)*)", text.strip())
    kinds = ", ".join(CHIPS)
    if match is None or match.group(2) not in CHIPS:
        raise ValueError(
            f"--topology {text}: write KIND:SHAPE as in v5e:16x16, KIND one of {kinds}, or "
            "2*v5e:16x16 for two slices"
        )
    count, kind, shape = match.groups()
    grid = tuple(int(extent) for extent in shape.split("x"))
    chip = CHIPS[kind]
    if len(grid) != len(chip.largest) or 0 in grid or count == "0":
        example = "4x4x8" if len(chip.largest) == 3 else "16x16"
        raise ValueError(
            f"--topology {text}: a {kind} slice has {len(chip.largest)} dimensions, as in "
            f"{kind}:{example}"
        )
    # Two dimensions are as wired; three are joined of cubes by optical switches, in any proportion.
    flat_and_long = len(grid) == 2 and max(grid) > max(chip.largest)
    if flat_and_long or math.prod(grid) > math.prod(chip.largest):
        largest = f"{kind}:{'x'.join(map(str, chip.largest))}"
        raise ValueError(
            f"--topology {text}: the largest {kind} slice is {largest}; take several, as in "
            f"4*{largest}, with PjitPartitioner.ici_mesh_shape and dcn_mesh_shape bound"
        )
    return Slice(chip, grid, int(count or 1))


def parse_machines(text: str) -> Slice:
    """The one slice named "v5e:16x16", to be had as machines.

    Raises:
      ValueError: `parse_slice` raises, it names several, or it is no number of whole machines.
    """
    place = parse_slice(text)
    if place.count > 1:
        raise ValueError(f"--topology {text}: give one slice; GKE takes several by --slices")
    _ = place.hosts
    return place


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].split(";")[0]
