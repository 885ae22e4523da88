"""Packed rank classification against PyTorch transformers and against one pass a choice.

T5 1.1 small's shape with random weights, DREAM's validation rows (three choices each), float32 on
the CPU. Three ways to score the same rows with the same weights:

  packed    t0x: every input encoded once, inputs and choices packed;
  unpacked  t0x's slow path, what SeqIO's evaluator does: one row a choice, all padded to the
            longest input there is;
  torch     transformers, as t-zero's run_eval scores (see scoring_torch.py): eight examples a
            batch, its default, and one, which pads inputs least and is what suits a CPU best.

    python benchmarks/scoring.py --data DATA/dream/default/validation.jsonl \
        --vocabulary FILE.model --torch TORCH_PYTHON --examples 320

`--torch` names a Python that has torch, transformers and safetensors. The slow ways score every
`--every`-th group of eight examples, which are as long as the rest; 1: all of them. Packed scoring
is timed before and after the others, and the mean counts, so that a busy machine slows all of them
alike. Compilation, loading and tokenisation are outside of the timed part everywhere. Ratios are
of elapsed time; those that end in "cpu" of processor time, which other programs disturb less.
Prints one JSON line; fails where the scores differ by more than 1e-3.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax import traverse_util

from t0x.evaluation import encoding
from t0x.evaluation.scorer import Scorer
from t5x import models, partitioning, train_state
from t5x.examples.t5 import network

SHAPE = {
    "vocab_size": 32128,
    "emb_dim": 512,
    "num_heads": 6,
    "num_encoder_layers": 8,
    "num_decoder_layers": 8,
    "head_dim": 64,
    "mlp_dim": 1024,
}
LIMITS = {"inputs": 1024, "targets": 256}
UNPACKED_ROWS = 24
GROUP = 8  # examples; what t-zero has in a batch
TOLERANCE = 1e-3


def read_rows(data, vocabulary, count):
    """The first rows, under a prompt in the manner of promptsource's, tokenised."""
    words = seqio.SentencePieceVocabulary(str(vocabulary), extra_ids=0)
    features = {
        "inputs": seqio.Feature(words, add_eos=False),
        "targets": seqio.Feature(words, add_eos=True),
    }
    encoder = encoding.ChoiceEncoder(features, LIMITS)
    rows = []
    for line in Path(data).read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        text = "Dialogue:\n\n" + "\n\n".join(row["dialogue"]) + f"\n\nQuestion: {row['question']}"
        text += "\n\n- " + "\n\n- ".join(row["choice"])
        rows.append(encoder.encode(text, row["choice"]).tokens)
    return rows


def make_params(model):
    """Random parameters of the unrolled network, by name."""
    shapes = {"encoder_input_tokens": (1, 8), "decoder_input_tokens": (1, 8)}
    variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
    return jax.tree.map(
        np.asarray, traverse_util.flatten_dict(variables["params"].unfreeze(), sep="/")
    )


def make_scorer(model, params, rows):
    """The scorer of `t0x score`, on parameters at hand."""
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    state = train_state.InferenceState(
        step=jnp.array(0),
        params=jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/")),
    )
    axes = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), state)
    scorer = Scorer(model, partitioner, state, axes)
    scorer.fit(rows)
    return scorer


class Unpacked:
    """One row a choice, every row as long as the longest."""

    def __init__(self, model, params, rows):
        self._lengths = (
            max(len(row.inputs) for row in rows),
            max(len(target) for row in rows for target in row.targets),
        )
        self._params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/"))
        self._score = jax.jit(model.score_batch)
        self(rows[:1])

    def __call__(self, rows):
        pairs = [(row.inputs, target) for row in rows for target in row.targets]
        scores = []
        for start in range(0, len(pairs), UNPACKED_ROWS):
            part = pairs[start : start + UNPACKED_ROWS]
            batch = {
                "encoder_input_tokens": self._pad([i for i, _ in part], self._lengths[0]),
                "decoder_target_tokens": self._pad([t for _, t in part], self._lengths[1]),
            }
            targets = batch["decoder_target_tokens"]
            batch["decoder_input_tokens"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
            batch["decoder_loss_weights"] = np.asarray(targets > 0, np.float32)
            scores += np.asarray(self._score(self._params, batch))[: len(part)].tolist()
        found = iter(scores)
        return [[next(found) for _ in row.targets] for row in rows]

    @staticmethod
    def _pad(arrays, length):
        padded = np.zeros((UNPACKED_ROWS, length), np.int32)
        for row, array in zip(padded, arrays, strict=False):
            row[: len(array)] = array
        return padded


class Torch:
    """The other Python, which scores the rows it is told to."""

    def __init__(self, python, params, rows, folder):
        import scoring_torch
        from safetensors.numpy import save_file

        save_file(scoring_torch.to_hf(params, SHAPE), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(scoring_torch.hf_config(SHAPE)))
        listed = [[row.inputs.tolist(), [t.tolist() for t in row.targets]] for row in rows]
        (folder / "rows.json").write_text(json.dumps(listed))
        script = Path(__file__).parent / "scoring_torch.py"
        self._process = subprocess.Popen(
            [python, str(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self._process.stdout.readline()) == "ready"

    def score(self, start, end, examples_per_batch):
        """(seconds, processor seconds, scores) of rows[start:end]."""
        self._process.stdin.write(f"{start} {end} {examples_per_batch}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def spend(function, *arguments):
    """(seconds, processor seconds, result)."""
    started, processor = time.monotonic(), time.process_time()
    result = function(*arguments)
    return time.monotonic() - started, time.process_time() - processor, result


def score_slowly(score, rows, packed_scores, every):
    """Seconds, processor seconds an example, and largest difference to the packed scores."""
    groups = [(i, min(i + GROUP, len(rows))) for i in range(0, len(rows), GROUP)][::every]
    spent, worst = np.zeros(2), 0.0
    for start, end in groups:
        *seconds, scores = score(start, end)
        spent += seconds
        worst = max(worst, _difference(scores, packed_scores[start:end]))
        print(f"rows {start} to {end}: {seconds[0]:.1f} s", file=sys.stderr)
    return spent / sum(end - start for start, end in groups), worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--torch", help="a Python with torch and transformers")
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--every", type=int, default=5)
    arguments = parser.parse_args()

    rows = read_rows(arguments.data, arguments.vocabulary, arguments.examples)
    config = network.T5Config(
        **SHAPE, dtype=jnp.float32, mlp_activations=("gelu", "linear"), scan_layers=False
    )
    words = seqio.ByteVocabulary()
    model = models.EncoderDecoderModel(network.Transformer(config), words, words, None)
    params = make_params(model)
    scorer = make_scorer(model, params, rows)
    unpacked = Unpacked(model, params, rows)
    ways = {"unpacked": lambda start, end: spend(unpacked, rows[start:end])}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.torch:
            torch = Torch(arguments.torch, params, rows, Path(folder))
            ways["torch"] = lambda start, end: torch.score(start, end, GROUP)
            ways["torch_batch_1"] = lambda start, end: torch.score(start, end, 1)
        *before, packed_scores = spend(scorer.score, rows)
        print(f"packed: {len(rows)} rows in {before[0]:.1f} s", file=sys.stderr)
        slow = {
            name: score_slowly(score, rows, packed_scores, arguments.every)
            for name, score in ways.items()
        }
        *after, _ = spend(scorer.score, rows)
        if arguments.torch:
            torch.close()
    packed = (np.array(before) + after) / 2 / len(rows)
    result = {
        "examples": len(rows),
        "row_lengths": scorer.shape,
        "examples_per_s": round(1 / packed[0], 2),
        "packed_s": [round(before[0], 1), round(after[0], 1)],
        "compile_s": round(scorer.compile_seconds, 1),
        "load": os.getloadavg()[0],
    }
    for name, (spent, worst) in slow.items():
        result[f"ratio_to_{name}"] = round(spent[0] / packed[0], 2)
        result[f"ratio_to_{name}_cpu"] = round(spent[1] / packed[1], 2)
        result[f"{name}_examples_per_s"] = round(1 / spent[0], 2)
        result[f"difference_to_{name}"] = worst
    print(json.dumps(result))
    worst = max(worst for _, worst in slow.values())
    if not worst <= TOLERANCE:
        raise SystemExit(f"scores differ by {worst}")


def _difference(a, b):
    return max(abs(x - y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True))


if __name__ == "__main__":
    main()
