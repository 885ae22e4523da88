"""How the estimated cycles of a train step grow with the slice, at the same rows a chip.

Compiles the step of a run for slices of one family with `t0x plan`, each in a process of its own
(minutes and some gigabytes each; no TPU needed). Prints one JSON line; `ratio` is the cycles of the
largest slice over those of the smallest.

    python benchmarks/weak_scaling.py [--keep DIR]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SLICES = ("v4:4x4x4", "v4:4x8x8", "v4:8x8x16")
RUN = ("t0_3b.gin", "slice_v4.gin")
ROWS_PER_CHIP = 4
# One side of the grid of each slice.
PARTITIONS = {"v4:4x4x4": 4}


def plan(topology: str, keep: Path | None) -> dict[str, Any]:
    """The estimate for a slice, from an earlier run if it was kept."""
    path = keep and keep / f"{topology.replace(':', '_')}.json"
    if path and path.exists():
        return json.loads(path.read_text())
    command = [sys.executable, "-m", "t0x", "plan", "--json", f"--topology={topology}"]
    command += [f"--rows_per_chip={ROWS_PER_CHIP}", *(f"--gin_file={name}" for name in RUN)]
    if topology in PARTITIONS:
        name = "partitioning.PjitPartitioner.num_partitions"
        command += ["--gin_bindings", f"{name} = {PARTITIONS[topology]}"]
    line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, help="folder that keeps the estimates")
    found = [plan(topology, parser.parse_args().keep) for topology in SLICES]
    names = ("chips", "mesh", "cycles", "compute_seconds", "wire_bytes", "hbm_peak", "mfu")
    slices = {x["topology"]: {name: x[name] for name in names} for x in found}
    ratio = found[-1]["compute_seconds"] / found[0]["compute_seconds"]  # one clock
    print(json.dumps({"ratio": round(ratio, 4), "rows_per_chip": ROWS_PER_CHIP, "slices": slices}))


if __name__ == "__main__":
    main()
