"""From Hugging Face's layout to a checkpoint: MODEL_DIR/checkpoint_N with MODEL_DIR/config.gin."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t5x.checkpoints.convert.finite import require_finite
from t5x.checkpoints.convert.settings import count_pieces, make_gin
from t5x.checkpoints.convert.summary import Summary, Track, no_progress
from t5x.checkpoints.formats.huggingface import HuggingFaceArrays, describe_logits
from t5x.checkpoints.formats.orbax import CheckpointWriter
from t5x.checkpoints.formats.storage import is_url
from t5x.checkpoints.layer_names import scanned_name
from t5x.run.files import write_files

# Beside the checkpoints, so that exporting gives them back.
KEPT_DIRECTORY = "huggingface"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
_KEPT_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
# T5X's param_scan_axis.
SCAN_AXIS = 1


def import_model(
    source: str,
    destination: str,
    *,
    step: int = 0,
    dtype: np.dtype | None = None,
    scanned: bool = False,
    open_pickled: Callable[..., Any] | None = None,
    allow_non_finite: bool = False,
    track: Track = no_progress,
) -> Summary:
    """Writes the parameters of a Hugging Face directory as a checkpoint.

    All is checked before anything bears its final name, the checkpoint last.

    Args:
      source: the directory or its URL.
      destination: MODEL_DIR, or MODEL_DIR/checkpoint_N.
      step: N, where `destination` does not say it.
      dtype: of the parameters; as they are if None.
      scanned: stack the layers of encoder and decoder, as scanned models keep them.
      open_pickled: opens pickled weights; None refuses them.
      allow_non_finite: take NaN and infinite numbers, and those that `dtype` cannot hold.
      track: shows progress over the arrays.

    Raises:
      FileExistsError: there is such a checkpoint.
      ValueError: `source` holds no model of the T5 family, its settings are not what they should
        be, or a weight is no number.
    """
    contents = HuggingFaceArrays(source, open_pickled)
    if match := re.fullmatch(r"(?:(.*)/)?checkpoint_(\d+)", destination.rstrip("/")):
        model_dir, step = match[1] or ".", int(match[2])
    else:
        model_dir = destination.rstrip("/")
    path = os.path.join(model_dir, f"checkpoint_{step}")
    notes, settings = ["config.gin and tokenizer are written to local directories only"], {}
    if not is_url(model_dir):
        notes, settings = _make_settings(contents, source, Path(model_dir))
    writer = CheckpointWriter(path)
    try:
        total = _write(contents, writer, step, dtype, scanned, allow_non_finite, track)
        writer.complete()
        write_files(settings)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return Summary(path, total, len(contents.arrays) - 1, notes)


def _write(
    contents: HuggingFaceArrays,
    writer: CheckpointWriter,
    step: int,
    dtype: np.dtype | None,
    scanned: bool,
    allow_non_finite: bool,
    track: Track,
) -> int:
    """Writes all arrays; returns how many parameters they have."""
    layers: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in contents.arrays:
        if path[0] == "target":
            name = "/".join(path)
            name = scanned_name(name) if scanned else name
            layers.setdefault(tuple(name.split("/")), []).append(path)
    for path, parts in layers.items():
        first = contents.arrays[parts[0]]
        shape, axis = first.shape, None
        if path != parts[0]:
            axis = SCAN_AXIS
            shape = (*shape[:axis], len(parts), *shape[axis:])
        writer.create(path, shape, dtype or first.dtype, single_axis=axis)
    writer.create(("state", "step"), (), np.dtype(np.int32))
    writer.write(("state", "step"), np.asarray(step))
    moves = [(path, parts, i) for path, parts in layers.items() for i in range(len(parts))]
    total = 0
    for path, parts, i in track(moves):
        values = contents.read(parts[i])
        total += values.size
        if not allow_non_finite:
            require_finite("/".join(parts[i][1:]), values, dtype)
        is_stacked = path != parts[i]
        writer.write(path, values, (slice(None),) * SCAN_AXIS + (i,) if is_stacked else ())
        del values  # before the next one is read
    return total


def _has_byte_tokenizer(text: bytes, source: str) -> bool:
    """Whether tokenizer_config.json names ByT5's tokenizer.

    Raises:
      ValueError: it is no JSON object.
    """
    try:
        tokenizer = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source}/tokenizer_config.json is not JSON: {error}") from error
    if not isinstance(tokenizer, dict):
        raise ValueError(f"{source}/tokenizer_config.json is not a JSON object")
    return str(tokenizer.get("tokenizer_class")).startswith("ByT5")


def _make_settings(
    contents: HuggingFaceArrays, source: str, model_dir: Path
) -> tuple[list[str], dict[Path, bytes]]:
    """What to tell the user; and config.gin and the directory's small files, by path."""
    kept = {name: contents.directory.read(name) for name in _KEPT_FILES}
    kept = {name: content for name, content in kept.items() if content is not None}
    vocabulary, notes = None, [describe_logits(contents.size)]
    over_bytes = _has_byte_tokenizer(kept.get("tokenizer_config.json", b"{}"), source)
    if over_bytes:
        pass  # bytes need no pieces
    elif "spiece.model" in kept:
        pieces = count_pieces(kept["spiece.model"], f"{source}/spiece.model")
        vocabulary = (model_dir / KEPT_DIRECTORY / "spiece.model", pieces)
    else:
        notes.append(
            f"{source} has no spiece.model: config.gin has T5's own vocabulary, which is right for "
            "T0, T5 v1.1, T5-LM-adapt and FLAN-T5"
        )
    text = make_gin(contents.size, contents.config, source, vocabulary, over_bytes)
    files = {model_dir / KEPT_DIRECTORY / name: content for name, content in kept.items()}
    return notes, files | {model_dir / "config.gin": text.encode()}
