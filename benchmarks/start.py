"""What it takes until a training run answers: to a mistake, and with its first step.

    python benchmarks/start.py [--json]

Wall and CPU seconds of `python -m t5x.train` in new processes, one after the other:

* a gin file that is not there, a misspelt binding, a required macro that is not set;
* gin/t0_mini.gin for one step in a new folder, then for one more with what the first has left.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MISTAKES = {
    "missing file": ["--gin_file=no_such_run.gin"],
    "misspelt binding": ["--gin_file=t0_mini.gin", "--gin.train_script.train.total_stepz=1"],
    "required macro": [
        "--gin_file=t5x/examples/t5/t5_1_1/tiny.gin",
        "--gin_file=t5x/configs/runs/pretrain.gin",
    ],
}


def measure(arguments: list[str], succeeds: bool) -> dict[str, float]:
    """Wall and CPU seconds of `python -m t5x.train` with these arguments."""
    before, started = os.times(), time.monotonic()
    command = [sys.executable, "-m", "t5x.train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - started, os.times()
    if (done.returncode == 0) != succeeds:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"wall": round(seconds, 1), "cpu": round(cpu, 1)}


def main() -> None:
    """Prints one line a start."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    args = parser.parse_args()
    found = {name: measure(arguments, False) for name, arguments in MISTAKES.items()}
    with tempfile.TemporaryDirectory() as folder:
        run = ["--gin_file=t0_mini.gin", f"--gin.MODEL_DIR='{Path(folder) / 'run'}'"]
        for steps, name in ((1, "first start, one step"), (2, "second start, one step")):
            found[name] = measure([*run, f"--gin.TRAIN_STEPS={steps}"], True)
    if args.json:
        print(json.dumps(found))
        return
    for name, seconds in found.items():
        print(f"{name:24} {seconds['wall']:6.1f} s, {seconds['cpu']:6.1f} s of CPU")


if __name__ == "__main__":
    main()
