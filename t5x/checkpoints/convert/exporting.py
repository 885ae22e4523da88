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
    ACTIVATIONS,
    ModelSize,
    Weight,
    make_config,
    model_size,
    shown,
    weights,
)
from t5x.checkpoints.formats.safetensors import TensorFilesWriter
from t5x.checkpoints.formats.stores import Arrays, open_checkpoint
from t5x.checkpoints.layouts import StoredArray

MAX_FILE_BYTES = 5_000_000_000
_BLOCK_BYTES = 1 << 22
GENERATION_KEYS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


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
      ValueError: it holds no model of the T5 family, and the message says what differs; or a
        weight is no number.
    """
    if os.path.exists(destination):
        raise FileExistsError(f"{destination} exists; remove it or choose another DST")
    checkpoint = find_checkpoint(source)
    contents = open_checkpoint(checkpoint)
    parameters = {
        "/".join(path[1:]): array for path, array in contents.arrays.items() if path[0] == "target"
    }
    settings = read_gin(Path(os.path.dirname(checkpoint)) / "config.gin")
    size = _size_of(parameters, settings, checkpoint)
    plan = _plan(parameters, size, checkpoint)
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


def _activations(settings: Mapping[str, str], gates: int, checkpoint: str) -> tuple[str, ...]:
    """The activations of a model whose blocks have so many gates, as its config.gin says."""
    text = settings.get("mlp_activations")
    default = ("relu",) if gates == 1 else ("gelu", "linear")
    said = _literal(text) if text else default
    found = tuple(said) if isinstance(said, tuple | list) else (said,)
    found = tuple("silu" if name == "swish" else name for name in found)
    if found not in ACTIVATIONS.values() or len(found) != gates:
        known = ", ".join(map(str, ACTIVATIONS.values()))
        raise ValueError(
            f"{checkpoint} was trained with T5Config.mlp_activations = {text}; Hugging Face's T5 "
            f"has one of {known}"
        )
    return found


def _literal(text: str) -> object:
    """A value of a config.gin; None for what is no literal of Python's."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return tuple(value) if isinstance(value, list) else value


def _size_of(
    parameters: Mapping[str, StoredArray], settings: Mapping[str, str], checkpoint: str
) -> ModelSize:
    """Reads the shape of a model off its parameters, and what does not show from its config.gin."""

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in parameters:
                return parameters[name].shape
        raise ValueError(f"{checkpoint} is no T5 encoder-decoder: it lacks target/{names[0]}")

    def of_layers(stack: str, name: str) -> tuple[int, ...]:
        return shape(f"{stack}/layers_0/{name}", f"{stack}/{stack}/{name}")

    vocab_size, emb_dim = shape("token_embedder/embedding")
    counts = []
    for stack in ("encoder", "decoder"):
        layers = [match for match in map(layer_names.UNROLLED.fullmatch, parameters) if match]
        numbers = [int(match["index"]) for match in layers if match["stack"] == stack]
        scales = math.prod(of_layers(stack, "pre_mlp_layer_norm/scale"))
        counts.append(max(numbers) + 1 if numbers else scales // emb_dim)
    shared = "encoder/relpos_bias/rel_embedding"
    per_layer = shared not in parameters
    bias = of_layers("encoder", "relpos_bias/rel_embedding") if per_layer else shape(shared)
    # The embedding's axis apart, and that of scanned layers, heads and their sizes are left.
    in_layers = 1 if "encoder/layers_0/attention/query/kernel" in parameters else counts[0]
    joined = math.prod(of_layers("encoder", "attention/query/kernel")) // emb_dim // in_layers
    gates = (
        1
        if {"encoder/layers_0/mlp/wi/kernel", "encoder/encoder/mlp/wi/kernel"} & (parameters.keys())
        else 2
    )
    mlp_dim = of_layers("encoder", "mlp/wi/kernel" if gates == 1 else "mlp/wi_0/kernel")[-1]
    tied = "decoder/logits_dense/kernel" not in parameters
    scaled = _literal(settings.get("scale_logits", "None"))
    return ModelSize(
        vocab_size,
        emb_dim,
        bias[0],
        joined // bias[0],
        mlp_dim,
        *counts,
        mlp_activations=_activations(settings, gates, checkpoint),
        logits_via_embedding=tied,
        scale_logits=tied if scaled is None else bool(scaled),
        relative_bias_per_layer=per_layer,
    )


def _layer_axis(array: StoredArray, layers: Sequence[Weight]) -> int | None:
    """Returns the layers axis of a scanned array, 1 where that fits, None if none does."""
    for axis in (1, 0):
        rest = (*array.shape[:axis], *array.shape[axis + 1 :])
        if array.shape[axis : axis + 1] == (len(layers),) and _merges(rest, layers[0].shape):
            return axis
    return None


def _merges(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether a shape becomes the other by joining axes, as those of heads and their sizes."""
    if len(into) == 1 or len(shape) <= len(into):
        return shape == into
    return any(
        (math.prod(shape[:cut]), math.prod(shape[cut:])) == into for cut in range(1, len(shape))
    )


def _plan(
    parameters: Mapping[str, StoredArray],
    size: ModelSize,
    checkpoint: str,
) -> dict[str, list[Weight]]:
    """Returns, for each array of the checkpoint, the weights it holds: one, or one a layer.

    Raises:
      ValueError: names or shapes are not those of a model of this size.
    """
    wanted = weights(size)
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
        if path in wanted and not _merges(shape, layers[0].shape):
            misshapen.append(f"target/{path} is {shape}, not {layers[0].shape}")
        elif path not in wanted and _layer_axis(parameters[path], layers) is None:
            stacked = (layers[0].shape[0], len(layers), *layers[0].shape[1:])
            misshapen.append(f"target/{path} is {shape}, not {stacked}")
    strange = [f"target/{path}" for path in parameters if path not in plan]
    problems = [
        f"{text} {shown(lines)}"
        for text, lines in (("lacks", missing), ("has", strange), ("does not fit:", misshapen))
        if lines
    ]
    if problems:
        raise ValueError(
            f"{checkpoint} is no {size.name} encoder-decoder: it {'; '.join(problems)}"
        )
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

    if _merges(array.shape, layers[0].shape):
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
    values = values.reshape(weight.shape)
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
    names = {weight.name for weight in weights(size).values()}
    if old and model_size(old, str(kept), names) == size:
        key = "dtype" if "dtype" in old else "torch_dtype"
        # transformers 5 says of every model that it is tied; older versions need to know.
        ties = {} if size.logits_via_embedding else {"tie_word_embeddings": size.scale_logits}
        config = old | {key: config["torch_dtype"]} | ties
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
