"""From a checkpoint to Hugging Face's layout: safetensors, config.json, tokenizer."""

import ast
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from t5x.checkpoints import layer_names
from t5x.checkpoints.convert.finite import require_finite
from t5x.checkpoints.convert.importing import KEPT_DIRECTORY, TOKENIZER_FILES
from t5x.checkpoints.convert.settings import read_gin
from t5x.checkpoints.convert.summary import Summary, Track, no_progress
from t5x.checkpoints.convert.tokenizers import write_tokenizer
from t5x.checkpoints.directories import find_checkpoint
from t5x.checkpoints.formats.huggingface import (
    ModelSize,
    Weight,
    make_config,
    model_size,
    shown,
    weights,
)
from t5x.checkpoints.formats.safetensors import TensorFilesWriter
from t5x.checkpoints.formats.stores import Arrays, open_checkpoint
from t5x.checkpoints.layouts import StoredArray, name_scalable_t5

MAX_FILE_BYTES = 5_000_000_000
_BLOCK_BYTES = 1 << 22
GENERATION_KEYS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
_GATED_GELU = ("gelu", "linear")


def export_model(
    source: str,
    destination: str,
    *,
    dtype: np.dtype | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    vocabulary: str | None = None,
    allow_non_finite: bool = False,
    track: Track = no_progress,
) -> Summary:
    """Writes the parameters of a checkpoint as a Hugging Face directory.

    Args:
      source: a checkpoint, or a MODEL_DIR, whose latest is taken; or a URL.
      destination: the directory to make.
      dtype: of the weights; as they are if None.
      max_file_bytes: how much goes into one safetensors file.
      vocabulary: SentencePiece model to make the tokenizer from; None takes what the model was
        imported with, or what its config.gin names.
      allow_non_finite: take NaN and infinite numbers, and those that `dtype` cannot hold.
      track: shows progress over the arrays.

    Raises:
      FileExistsError: `destination` exists.
      FileNotFoundError: there is no such checkpoint.
      ValueError: it holds no T5 v1.1 model, and the message says what differs; or a weight is no
        number.
    """
    if os.path.exists(destination):
        raise FileExistsError(f"{destination} exists; remove it or choose another DST")
    checkpoint = find_checkpoint(source)
    contents = open_checkpoint(checkpoint)
    parameters = {
        "/".join(path[1:]): array for path, array in contents.arrays.items() if path[0] == "target"
    }
    settings = read_gin(Path(os.path.dirname(checkpoint)) / "config.gin")
    _check_activations(settings, checkpoint)
    size = _size_of(parameters, checkpoint)
    wanted = weights(size)
    plan = _plan(parameters, wanted, checkpoint)
    if vocabulary is not None and not os.path.isfile(vocabulary):
        raise FileNotFoundError(f"--vocabulary {vocabulary} does not exist")
    tensors = {
        weight.name: (weight.their_shape, np.dtype(dtype or parameters[path].dtype))
        for path, layers in plan.items()
        for weight in layers
    }
    written = Path(f"{destination.rstrip('/')}.t0x-convert-tmp")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        _check_space(written, sum(math.prod(shape) * x.itemsize for shape, x in tensors.values()))
        files = TensorFilesWriter(written, tensors, max_file_bytes)
        for path in track(list(plan)):
            _write_array(contents, parameters[path], plan[path], files, allow_non_finite)
        files.close()
        kept = Path(os.path.dirname(checkpoint)) / KEPT_DIRECTORY
        _write_configs(written, kept, size, next(iter(tensors.values()))[1])
        notes = _write_tokenizer(written, kept, settings, vocabulary, size)
        os.rename(written, destination)
    except BaseException:
        shutil.rmtree(written)
        raise
    total = sum(math.prod(shape) for shape, _ in tensors.values())
    return Summary(destination, total, len(tensors), notes)


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            f"no space for the model in {directory.parent}: it takes {needed / 1e9:.3g} GB and "
            f"{free / 1e9:.3g} are free"
        )


def _check_activations(settings: Mapping[str, str], checkpoint: str) -> None:
    text = settings.get("mlp_activations")
    if text and _literal(text) != _GATED_GELU:
        raise ValueError(
            f"{checkpoint} was trained with T5Config.mlp_activations = {text}; Hugging Face's T5 "
            f"v1.1 has {_GATED_GELU}"
        )


def _literal(text: str) -> object:
    """A value of a config.gin; None for what is no literal of Python's."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return tuple(value) if isinstance(value, list) else value


def _size_of(parameters: Mapping[str, StoredArray], checkpoint: str) -> ModelSize:
    """Reads the shape of a model off its parameters."""

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in parameters:
                return parameters[name].shape
        raise ValueError(
            f"{checkpoint} is no T5 v1.1 encoder-decoder: it lacks target/{names[0]}"
            + name_scalable_t5(parameters)
            + (" (T5 v1.0 computes logits by the embedding)" if "logits" in names[0] else "")
            + (" (T5 v1.0 has one wi)" if "wi_0" in names[0] else "")
        )

    vocab_size, emb_dim = shape("token_embedder/embedding")
    shape("decoder/logits_dense/kernel")
    num_heads, _ = shape("encoder/relpos_bias/rel_embedding")
    mlp_dim = shape("encoder/layers_0/mlp/wi_0/kernel", "encoder/encoder/mlp/wi_0/kernel")[-1]
    queries = "attention/query/kernel"
    joined = shape(f"encoder/layers_0/{queries}", f"encoder/encoder/{queries}")[-1]
    counts = []
    for stack in ("encoder", "decoder"):
        layers = [match for match in map(layer_names.UNROLLED.fullmatch, parameters) if match]
        numbers = [int(match["index"]) for match in layers if match["stack"] == stack]
        norm = "pre_mlp_layer_norm/scale"
        scales = math.prod(shape(f"{stack}/{stack}/{norm}", f"{stack}/layers_0/{norm}"))
        counts.append(max(numbers) + 1 if numbers else scales // emb_dim)
    return ModelSize(vocab_size, emb_dim, num_heads, joined // num_heads, mlp_dim, *counts)


def _layer_axis(array: StoredArray, layers: Sequence[Weight]) -> int | None:
    """Returns the layers axis of a scanned array, 1 where that fits, None if none does."""
    shape = layers[0].shape
    fits = (axis for axis in (1, 0) if _insert(shape, axis, len(layers)) == array.shape)
    return next(fits, None)


def _insert(shape: tuple[int, ...], axis: int, count: int) -> tuple[int, ...]:
    return (*shape[:axis], count, *shape[axis:])


def _plan(
    parameters: Mapping[str, StoredArray],
    wanted: Mapping[str, Weight],
    checkpoint: str,
) -> dict[str, list[Weight]]:
    """Returns, for each array of the checkpoint, the weights it holds: one, or one a layer.

    Raises:
      ValueError: names or shapes are not those of a T5 v1.1 model of this size.
    """
    plan: dict[str, list[Weight]] = {}
    missing, misshapen = [], []
    for path, weight in wanted.items():
        found = path if path in parameters else layer_names.scanned_name(path)
        if found not in parameters:
            missing.append(f"target/{path}")
            continue
        plan.setdefault(found, []).append(weight)
    for path, layers in plan.items():
        shape = parameters[path].shape
        if path in wanted and shape != layers[0].shape:
            misshapen.append(f"target/{path} is {shape}, not {layers[0].shape}")
        elif path not in wanted and _layer_axis(parameters[path], layers) is None:
            stacked = _insert(layers[0].shape, 1, len(layers))
            misshapen.append(f"target/{path} is {shape}, not {stacked}")
    strange = [f"target/{path}" for path in parameters if path not in plan]
    problems = [
        f"{text} {shown(lines)}"
        for text, lines in (("lacks", missing), ("has", strange), ("does not fit:", misshapen))
        if lines
    ]
    if problems:
        raise ValueError(f"{checkpoint} is no T5 v1.1 encoder-decoder: it {'; '.join(problems)}")
    return plan


def _write_array(
    contents: Arrays,
    array: StoredArray,
    layers: Sequence[Weight],
    files: TensorFilesWriter,
    allow_non_finite: bool,
) -> None:
    """Writes one array of the checkpoint to the weights it holds."""

    def write(values: np.ndarray, weight: Weight) -> None:
        if not allow_non_finite:
            require_finite("/".join(array.path[1:]), values, files.dtype(weight.name))
        _write_weight(values, weight, files)

    if array.shape == layers[0].shape:
        write(contents.read(array.path), layers[0])
        return
    axis = _layer_axis(array, layers)
    # A layer at a time where layers are stored apart; else what is stored as one is read once.
    apart = contents.chunk_shape(array.path)[axis] == 1
    whole = None if apart else contents.read(array.path)
    for layer, weight in enumerate(layers):
        if whole is None:
            index = (slice(None),) * axis + (slice(layer, layer + 1),)
            values = contents.read(array.path, index).squeeze(axis)
        else:
            values = whole[(slice(None),) * axis + (layer,)]
        write(values, weight)


def _write_weight(values: np.ndarray, weight: Weight, files: TensorFilesWriter) -> None:
    """Writes a weight some rows at a time: transposing and casting need memory of their own."""
    theirs = values.T if weight.transposed else values
    row_bytes = max(1, math.prod(theirs.shape[1:]) * theirs.dtype.itemsize)
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for first in range(0, len(theirs), rows):
        files.write(weight.name, first, theirs[first : first + rows])


def _write_configs(directory: Path, kept: Path, size: ModelSize, dtype: np.dtype) -> None:
    """Writes config.json and generation_config.json: those of the import where they still fit."""
    config = make_config(size, dtype)
    generation = {key: config[key] for key in GENERATION_KEYS}
    old = _read_json(kept / "config.json")
    if old and model_size(old, str(kept)) == size:
        key = "dtype" if "dtype" in old else "torch_dtype"
        # What transformers 5 saves names no tie, older versions need it.
        config = old | {key: config["torch_dtype"], "tie_word_embeddings": False}
        generation = _read_json(kept / "generation_config.json") or generation
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, object] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_tokenizer(
    directory: Path,
    kept: Path,
    settings: Mapping[str, str],
    vocabulary: str | None,
    size: ModelSize,
) -> list[str]:
    """Writes the tokenizer; returns what to tell the user."""
    if vocabulary is None:
        files = [kept / name for name in TOKENIZER_FILES if (kept / name).exists()]
        for file in files:
            shutil.copy(file, directory / file.name)
        if files:
            return []
        vocabulary = _literal(settings.get("sentencepiece_model_file", "None"))
    if not isinstance(vocabulary, str) or not os.path.isfile(vocabulary):
        return ["no tokenizer was written: name its SentencePiece model with --vocabulary"]
    return write_tokenizer(Path(vocabulary), directory, size.vocab_size)
