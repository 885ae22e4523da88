"""Memory of `t0x convert` at real size: a directory of random T5 v1.1 weights, there and back.

Makes a sharded safetensors directory, imports it, exports the checkpoint, compares the files byte
by byte (by SHA-256) and prints one JSON line: seconds and peak resident memory of each command, and
how many times the largest tensor they need on top of what a tiny model needs. XL takes 23 GB of
disk below --directory, removed at the end.

    python benchmarks/convert_memory.py --size xl --directory /tmp
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from t5x.checkpoints.formats.huggingface import ModelSize, make_config, weights
from t5x.checkpoints.formats.safetensors import TensorFilesWriter

SIZES = {
    "tiny": ModelSize(256, 16, 2, 8, 32, 1, 1),
    "small": ModelSize(32128, 512, 6, 64, 1024, 8, 8),
    "base": ModelSize(32128, 768, 12, 64, 2048, 12, 12),
    "xl": ModelSize(32128, 2048, 32, 64, 5120, 24, 24),
    "xxl": ModelSize(32128, 4096, 64, 64, 10240, 24, 24),
}
MAX_FILE_BYTES = 5_000_000_000
BLOCK = 1 << 22
FLOAT32 = np.dtype(np.float32)


def make_model(directory: Path, size: ModelSize, seed: int = 0) -> None:
    """Writes a Hugging Face directory of random float32 weights."""
    directory.mkdir()
    config = json.dumps(make_config(size, FLOAT32))
    (directory / "config.json").write_text(config)
    tensors = {weight.name: (weight.their_shape, FLOAT32) for weight in weights(size).values()}
    files = TensorFilesWriter(directory, tensors, MAX_FILE_BYTES)
    rng = np.random.default_rng(seed)
    for name, (shape, _) in tensors.items():
        rows = max(1, BLOCK // math.prod(shape[1:]))
        for first in range(0, shape[0], rows):
            block = (min(rows, shape[0] - first), *shape[1:])
            files.write(name, first, rng.random(block, np.float32) - 0.5)
    files.close()


def digest_files(directory: Path) -> dict[str, str]:
    """SHA-256 of the safetensors files."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def convert(*arguments: str) -> dict[str, float]:
    """Runs `t0x convert`; returns its seconds and its peak resident memory in bytes."""
    command = [sys.executable, "-c", "from t0x.cli import main; main()", "convert", *arguments]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"t0x convert {' '.join(arguments)} failed")
    return {"seconds": time.monotonic() - started, "peak_rss": usage.ru_maxrss * 1024}


def round_trip(directory: Path, size: ModelSize, *options: str) -> dict[str, object]:
    """Imports and exports a random model below a directory; returns what each command took."""
    source, run, back = directory / "hf", directory / "run", directory / "back"
    make_model(source, size)
    original = digest_files(source)
    imported = convert(str(source), str(run), *options)
    shutil.rmtree(source)
    exported = convert(str(run), str(back))
    shutil.rmtree(run)
    same = digest_files(back) == original
    shutil.rmtree(back)
    return {"import": imported, "export": exported, "byte_equal": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--scanned", action="store_true", help="through a scanned checkpoint")
    args = parser.parse_args()
    size = SIZES[args.size]
    shapes = [weight.shape for weight in weights(size).values()]
    largest = max(map(math.prod, shapes)) * FLOAT32.itemsize
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        options = ["--scanned"] if args.scanned else []
        base = round_trip(Path(directory), SIZES["tiny"], *options)
        figures = round_trip(Path(directory), size, *options)
    parameters = sum(map(math.prod, shapes))
    line = {"benchmark": "convert_memory", "size": args.size, "scanned": args.scanned}
    line |= {"parameters": parameters, "model_gb": parameters * FLOAT32.itemsize / 1e9}
    line |= {"largest_tensor_gb": largest / 1e9, "byte_equal": figures["byte_equal"]}
    for step in ("import", "export"):
        extra = figures[step]["peak_rss"] - base[step]["peak_rss"]
        line |= {
            f"{step}_seconds": round(figures[step]["seconds"], 1),
            f"{step}_peak_rss_gb": round(figures[step]["peak_rss"] / 1e9, 3),
            f"{step}_extra_in_largest_tensors": round(extra / largest, 2),
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
