"""Packed scores against PyTorch transformers on the same weights: 200 rows, live.

The weights and rows are those of tests/t0x/evaluation/test_packed_scores.py, whose golden values
were made so. Prints one JSON line; fails where a score differs by more than 1e-3.

    python benchmarks/score_equality.py --torch TORCH_PYTHON
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(Path(__file__).parents[1] / "tests" / "t0x"))

import jax.numpy as jnp
import numpy as np
import scoring_torch
import test_packed_scores as packed_scores
from flax import traverse_util
from safetensors.numpy import save_file

from t0x.evaluation import packing

TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", required=True, help="a Python with torch and transformers")
    python = parser.parse_args().torch
    dtype = jnp.dtype("float32")
    rows = packed_scores._golden_rows()
    _, params = packed_scores.tiny(dtype)
    params = traverse_util.flatten_dict(params, sep="/")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = packed_scores.SHAPE
        save_file(scoring_torch.to_hf(params, shape), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(scoring_torch.hf_config(shape)))
        listed = [[row.inputs.tolist(), [t.tolist() for t in row.targets]] for row in rows]
        (folder / "rows.json").write_text(json.dumps(listed))
        done = subprocess.run(
            [python, str(Path(__file__).with_name("scoring_torch.py")), str(folder)],
            input=f"0 {len(rows)} 8\n",
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    theirs = json.loads(done.stdout.splitlines()[1])[-1]
    row_lengths = packing.choose_row_lengths([packing.Lengths.of(rows)])
    ours = packed_scores._packed(dtype, rows, row_lengths)
    pairs = list(zip(ours, theirs, strict=True))
    worst = max(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs)
    same = sum(np.argmax(a) == np.argmax(b) for a, b in pairs)
    result = {"rows": len(rows), "largest_difference": worst, "same_predictions": int(same)}
    print(json.dumps(result | {"row_lengths": row_lengths}))
    if not worst <= TOLERANCE:
        raise SystemExit(f"scores differ by {worst}")


if __name__ == "__main__":
    main()
