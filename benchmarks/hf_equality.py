"""Logits after conversion against Hugging Face transformers, both ways, packed and padded.

Models of every family with random weights, one with other depths of encoder and decoder. Each is
written as a Hugging Face directory, by us or by the installed transformers itself, imported by
`t0x convert` and run here; the checkpoint is exported again and run by transformers. Prints one
JSON line with the largest differences.

    python benchmarks/hf_equality.py --torch_python /path/to/python
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from t5x.checkpoints import convert
from t5x.checkpoints.formats.huggingface import (
    HuggingFaceArrays,
    ModelSize,
    make_config,
    weights,
)
from t5x.checkpoints.formats.safetensors import TensorFilesWriter
from t5x.checkpoints.formats.stores import open_checkpoint
from t5x.examples.t5 import network

GELU = ("gelu", "linear")
SHAPES = {
    "small": ModelSize(512, 64, 4, 16, 128, 2, 2),
    "uneven": ModelSize(384, 48, 3, 8, 96, 2, 5),
    "wide": ModelSize(1024, 128, 6, 32, 320, 4, 3),
    "T5 1.0": ModelSize(512, 64, 4, 16, 128, 2, 2, ("relu",), True, True),
    "umT5": ModelSize(384, 48, 3, 8, 96, 2, 3, relative_bias_per_layer=True),
    "umT5, tied": ModelSize(384, 48, 3, 8, 96, 2, 3, GELU, True, True, True),
    "UL2": ModelSize(512, 64, 4, 16, 128, 2, 2, ("silu", "linear")),
    "T5 v1.1, tied": ModelSize(512, 64, 4, 16, 128, 2, 2, GELU, True, False),
}
# As the installed transformers saves them: class and what its configuration is given.
SMALL = {"vocab_size": 384, "d_model": 48, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 3}
SAVED = {
    "saved T5 1.0": ("T5", {}),
    "saved T5 v1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "saved UL2": ("T5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    "saved mT5": ("MT5", {}),
    "saved umT5": ("UMT5", {}),
    "saved umT5, not scaled": ("UMT5", {"tie_word_embeddings": False}),
}
LENGTHS = [(37, 11), (20, 5), (150, 30), (7, 3)]
PADDED = (160, 32)
FLOAT32 = np.dtype(np.float32)


def make_model(directory: Path, size: ModelSize) -> None:
    """Random weights of a trained model's scale."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(make_config(size, FLOAT32)))
    tensors = {weight.name: (weight.their_shape, FLOAT32) for weight in weights(size).values()}
    files = TensorFilesWriter(directory, tensors, 1 << 40)
    rng = np.random.default_rng(0)
    for name, (shape, _) in tensors.items():
        scale = 1.0 if "norm" in name or "shared" in name else shape[-1] ** -0.5
        files.write(name, 0, scale * rng.normal(size=shape).astype(np.float32))
    files.close()


def save_model(python: str, directory: Path, kind: str, settings: dict[str, object]) -> None:
    """A model with random weights as transformers saves it."""
    script = Path(__file__).with_name("hf_logits.py")
    command = [python, script, "save", directory, kind, json.dumps(SMALL | settings)]
    subprocess.run(command, check=True, capture_output=True)


def make_examples(vocab_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(2, vocab_size, n) for n in lengths) for lengths in LENGTHS]


def logits_here(size: ModelSize, checkpoint: str, examples: list, packed: bool) -> list[np.ndarray]:
    """Logits of each example by our network, each in a row of its own or all in one."""
    contents = open_checkpoint(checkpoint)
    flat = {path[1:]: contents.read(path) for path in contents.arrays if path[0] == "target"}
    model = network.Transformer(network.T5Config(**vars(size), dropout_rate=0.0, scan_layers=False))
    rows = [examples] if packed else [[example] for example in examples]
    lengths = [sum(n) for n in zip(*LENGTHS, strict=True)] if packed else PADDED
    tokens, segments = (np.zeros((2, len(rows), max(lengths)), np.int32) for _ in range(2))
    places = []
    for row, members in enumerate(rows):
        ends = [0, 0]
        for number, example in enumerate(members, start=1):
            for side, ids in enumerate(example):
                part = slice(ends[side], ends[side] + len(ids))
                tokens[side, row, part], segments[side, row, part] = ids, number
                ends[side] = part.stop
            places.append((row, part))
    inputs, targets = (tokens[side][:, : lengths[side]] for side in range(2))
    ids = [segments[side][:, : lengths[side]] for side in range(2)]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1] * (np.diff(ids[1], prepend=0) == 0)
    extra = {"encoder_segment_ids": ids[0], "decoder_segment_ids": ids[1]} if packed else {}
    run = jax.jit(lambda params: model.apply({"params": params}, enable_dropout=False, **arrays))
    arrays = {
        "encoder_input_tokens": jnp.asarray(inputs),
        "decoder_input_tokens": jnp.asarray(shifted),
        "decoder_target_tokens": jnp.asarray(targets),
    } | {name: jnp.asarray(x) for name, x in extra.items()}
    logits = np.asarray(run(unflatten_dict(flat)))
    return [logits[row, part] for row, part in places]


def logits_there(python: str, directory: Path, examples: list, scratch: Path) -> list[np.ndarray]:
    """Logits of each example by transformers."""
    given = {f"inputs_{i}": inputs for i, (inputs, _) in enumerate(examples)}
    given |= {f"targets_{i}": targets for i, (_, targets) in enumerate(examples)}
    files = [scratch / "examples.npz", scratch / "logits.npz"]
    np.savez(files[0], **given)
    script = Path(__file__).with_name("hf_logits.py")
    subprocess.run([python, script, directory, *files], check=True, capture_output=True)
    logits = np.load(files[1])
    return [logits[f"logits_{i}"] for i in range(len(examples))]


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python", required=True, help="Python with torch, transformers")
    args = parser.parse_args()
    figures: dict[str, dict[str, float | bool]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in [*SHAPES, *SAVED]:
            directory = Path(scratch, name)
            directory.mkdir()
            source, run, back = directory / "hf", directory / "run", directory / "back"
            if name in SHAPES:
                make_model(source, SHAPES[name])
            else:
                save_model(args.torch_python, source, *SAVED[name])
            size = HuggingFaceArrays(str(source)).size
            assert size == SHAPES.get(name, size)
            examples = make_examples(size.vocab_size)
            theirs = logits_there(args.torch_python, source, examples, directory)
            checkpoint = convert.import_model(str(source), str(run)).path
            convert.export_model(checkpoint, str(back))
            exported = logits_there(args.torch_python, back, examples, directory)
            weights_file = "model.safetensors"
            figures[name] = {
                "padded": largest_difference(
                    logits_here(size, checkpoint, examples, packed=False), theirs
                ),
                "packed": largest_difference(
                    logits_here(size, checkpoint, examples, packed=True), theirs
                ),
                "exported": largest_difference(exported, theirs),
                "largest_logit": max(float(np.abs(x).max()) for x in theirs),
                "byte_equal": (source / weights_file).read_bytes()
                == (back / weights_file).read_bytes(),
            }
    worst = max(max(f["padded"], f["packed"], f["exported"]) for f in figures.values())
    print(json.dumps({"benchmark": "hf_equality", "worst": worst, "limit": 1e-4, **figures}))


if __name__ == "__main__":
    main()
