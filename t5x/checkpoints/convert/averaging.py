"""The mean of several checkpoints of one model, as a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x.checkpoints.convert.finite import require_finite
from t5x.checkpoints.convert.importing import KEPT_DIRECTORY
from t5x.checkpoints.convert.summary import Summary, Track, no_progress
from t5x.checkpoints.directories import find_checkpoint
from t5x.checkpoints.formats.huggingface import shown
from t5x.checkpoints.formats.orbax import CheckpointWriter
from t5x.checkpoints.formats.storage import is_url
from t5x.checkpoints.formats.stores import Arrays, find_format, open_checkpoint
from t5x.run.files import write_files

_STEP = ("state", "step")


def average(
    sources: Sequence[str],
    destination: str,
    *,
    dtype: np.dtype | None = None,
    allow_non_finite: bool = False,
    track: Track = no_progress,
) -> Summary:
    """Writes the mean of the parameters of checkpoints; its step is the latest of theirs.

    Optimizer state is left out: that of one trajectory does not fit the mean of several. Training
    from an average makes a new one. The first source's config.gin comes along, if the destination
    has none.

    Args:
      sources: checkpoints of any format, of one model.
      destination: MODEL_DIR, or MODEL_DIR/checkpoint_N.
      dtype: of the result; the first one's if None. Sums are float32.
      allow_non_finite: take NaN and infinite numbers, and those that `dtype` cannot hold.
      track: shows progress over the arrays.

    Raises:
      FileExistsError: `destination` exists.
      FileNotFoundError: a source is no checkpoint.
      ValueError: names or shapes differ, or a weight is no number.
    """
    found = [find_checkpoint(source) for source in sources]
    opened = [open_checkpoint(checkpoint) for checkpoint in found]
    first = opened[0]
    paths = [path for path in first.arrays if path[0] == "target"]
    for source, contents in zip(sources[1:], opened[1:], strict=True):
        _check_same(sources[0], first, source, contents)
    step = max(int(contents.read(_STEP)) for contents in opened if _STEP in contents.arrays)
    if not os.path.basename(destination.rstrip("/")).startswith("checkpoint_"):
        destination = os.path.join(destination, f"checkpoint_{step}")
    settings = _read_settings(found[0], os.path.dirname(destination))
    writer = CheckpointWriter(destination)
    try:
        writer.create(_STEP, (), np.dtype(np.int32))
        writer.write(_STEP, np.asarray(step))
        for path in paths:
            writer.create(path, first.arrays[path].shape, dtype or first.arrays[path].dtype)
        for path in track(paths):
            for index in _blocks(first, path):
                mean = _mean(opened, path, index)
                if not allow_non_finite:
                    require_finite("/".join(path[1:]), mean, dtype or first.arrays[path].dtype)
                writer.write(path, mean, index)
        writer.complete()
        write_files(settings)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    total = sum(int(np.prod(first.arrays[path].shape)) for path in paths)
    notes = []
    if any(key[:2] == ("state", "param_states") for contents in opened for key in contents.arrays):
        notes.append(
            "optimizer state is left out of an average: evaluation needs none, and training that "
            "starts from it makes a new one"
        )
    if not os.path.exists(os.path.join(os.path.dirname(destination), "config.gin")):
        notes.append(f"no config.gin came along from {sources[0]}: name the model's gin file")
    return Summary(destination, total, len(paths), notes)


def _read_settings(checkpoint: str, model_dir: str) -> dict[Path, bytes]:
    """config.gin, and what the model was imported with, by where they are to be."""
    if is_url(checkpoint) or is_url(model_dir) or find_format(checkpoint) == "huggingface":
        return {}
    source, destination = Path(checkpoint).parent, Path(model_dir)
    kept = sorted((source / KEPT_DIRECTORY).glob("*"))
    if (destination / KEPT_DIRECTORY).exists():
        kept = []
    files = [source / "config.gin", *kept]
    return {
        destination / file.relative_to(source): file.read_bytes()
        for file in files
        if file.is_file() and not (destination / file.relative_to(source)).exists()
    }


def _check_same(name: str, first: Arrays, other_name: str, other: Arrays) -> None:
    mine, theirs = (
        {"/".join(path): x.shape for path, x in contents.arrays.items() if path[0] == "target"}
        for contents in (first, other)
    )
    differing = [
        f"{path} is {mine.get(path, 'not in the former')}, {theirs.get(path, 'not in the latter')}"
        for path in sorted(mine.keys() | theirs.keys())
        if mine.get(path) != theirs.get(path)
    ]
    if differing:
        raise ValueError(f"{name} and {other_name} are of different models: {shown(differing)}")


def _blocks(contents: Arrays, path: tuple[str, ...]) -> list[tuple[slice, ...]]:
    """Returns the rows of an array that are stored together, as indices."""
    shape = contents.arrays[path].shape
    if not shape:
        return [()]
    rows = contents.chunk_shape(path)[0]
    return [(slice(i, min(i + rows, shape[0])),) for i in range(0, shape[0], rows)]


def _mean(opened: Sequence[Arrays], path: tuple[str, ...], index: tuple[slice, ...]) -> Any:
    total = opened[0].read(path, index).astype(np.float32)
    for contents in opened[1:]:
        total += contents.read(path, index)
    total /= len(opened)
    return total
