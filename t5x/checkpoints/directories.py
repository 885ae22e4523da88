"""Where checkpoints lie: MODEL_DIR/checkpoint_N, each complete once it bears that name.

Hugging Face directories and checkpoints that are read over http are named themselves.
"""

import os
import re

import gin
from absl import logging
from etils import epath

from t5x.checkpoints.formats.storage import is_url
from t5x.checkpoints.formats.stores import COMMIT_FILE, LEGACY_FILE, STATE_ITEM, find_format

DATASET_ITEM = "dataset"
_UNLISTABLE = ("http://", "https://")
# What Orbax adds to the name of what is not complete.
_TEMPORARY = ".orbax-checkpoint-tmp"
# What the name of one that cannot be read gets.
_ASIDE = ".unreadable"


def absolute(path: epath.PathLike) -> str:
    """Returns a local path from the root, as Orbax wants it; others (gs://…) as they are."""
    text = os.fspath(path)
    return text.rstrip("/") if is_url(text) else os.path.abspath(text)


@gin.configurable(module="t5x.checkpoints")
def get_checkpoint_prefix(prefix: str = "checkpoint") -> str:
    """Returns what the names of checkpoint directories begin with."""
    return prefix


def get_checkpoint_dir(
    checkpoints_dir: epath.PathLike, step: int, step_format_fixed_length: int | None = None
) -> str:
    """Returns the directory of the checkpoint of a step."""
    width = step_format_fixed_length or 0
    return os.path.join(checkpoints_dir, f"{get_checkpoint_prefix()}_{step:0{width}d}")


def get_step_from_checkpoint_dir(checkpoints_dir: str) -> tuple[str, int]:
    """Splits MODEL_DIR/checkpoint_N into MODEL_DIR and N.

    Raises:
      ValueError: the last part of the path is not of that form.
    """
    parent, name = os.path.split(os.fspath(checkpoints_dir).rstrip("/"))
    match = re.fullmatch(rf"{re.escape(get_checkpoint_prefix())}_([0-9]+)", name)
    if match is None:
        raise ValueError(f"{checkpoints_dir} is not a checkpoint: its name is not checkpoint_STEP")
    return parent, int(match[1])


def _candidates(checkpoints_dir: epath.PathLike) -> list[int]:
    """Steps in ascending order whose directory has a checkpoint's name, whatever is in it."""
    if os.fspath(checkpoints_dir).startswith(_UNLISTABLE):
        return []
    directory = epath.Path(checkpoints_dir)
    if not directory.is_dir():
        return []
    # As `get_checkpoint_dir` writes it: Python's own idea of a digit has those of all scripts.
    pattern = re.compile(rf"{re.escape(get_checkpoint_prefix())}_(0|[1-9][0-9]*)")
    matches = (pattern.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _is_complete(checkpoints_dir: epath.PathLike, step: int) -> bool:
    # On object stores a directory bears its final name from the start, and a marker completes it.
    return find_format(get_checkpoint_dir(checkpoints_dir, step)) is not None


def all_steps(checkpoints_dir: epath.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints in a directory, in ascending order.

    A step is a directory named in ASCII digits that holds a checkpoint in a known format.

    Raises:
      OSError: that cannot be known: no permission, or out of reach.
    """
    return [step for step in _candidates(checkpoints_dir) if _is_complete(checkpoints_dir, step)]


def latest_step(checkpoints_dir: epath.PathLike, before: int | None = None) -> int | None:
    """Returns the last step, or the last one before a step, with a complete checkpoint, or None.

    Raises:
      OSError: see `all_steps`.
    """
    newest_first = reversed(_candidates(checkpoints_dir))
    steps = (step for step in newest_first if before is None or step < before)
    return next((step for step in steps if _is_complete(checkpoints_dir, step)), None)


def all_dataset_checkpoint_steps(checkpoints_dir: epath.PathLike) -> list[int]:
    """Returns the steps whose checkpoints hold the state of the dataset iterator."""
    return [
        step
        for step in all_steps(checkpoints_dir)
        if (epath.Path(get_checkpoint_dir(checkpoints_dir, step)) / DATASET_ITEM).is_dir()
    ]


def remove_checkpoint(checkpoint: epath.PathLike) -> None:
    """Removes a checkpoint; one whose removal is interrupted no longer counts as a checkpoint."""
    path = epath.Path(checkpoint)
    if is_url(checkpoint):
        (path / COMMIT_FILE).unlink(missing_ok=True)
    else:
        path = path.rename(path.parent / f"{path.name}{_TEMPORARY}-removed")
    path.rmtree()


def remove_incomplete(checkpoints_dir: epath.PathLike) -> None:
    """Removes what was left of checkpoints that were not written, or not removed, to the end.

    What cannot be removed stays, and the log says so: it is in nobody's way.
    """
    name = rf"{re.escape(get_checkpoint_prefix())}_[0-9]+"
    half = name if is_url(checkpoints_dir) else rf"{name}{re.escape(_TEMPORARY)}.*"
    for path in epath.Path(checkpoints_dir).iterdir():
        if not re.fullmatch(half, path.name) or find_format(os.fspath(path)) is not None:
            continue
        if not is_url(checkpoints_dir) or (path / STATE_ITEM).exists():
            try:
                path.rmtree()
            except OSError:
                logging.exception("%s is incomplete and could not be removed", path)


def make_way(checkpoint: epath.PathLike) -> None:
    """Removes an empty directory that has the name of a checkpoint yet to be written."""
    path = epath.Path(checkpoint)
    if not is_url(checkpoint) and path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def set_aside(checkpoint: epath.PathLike) -> epath.Path:
    """Renames a checkpoint that cannot be read, so that its step can be saved again."""
    path = epath.Path(checkpoint)
    aside = path.parent / f"{path.name}{_ASIDE}"
    number = 1
    while aside.exists():
        number += 1
        aside = path.parent / f"{path.name}{_ASIDE}{number}"
    return path.rename(aside)


def list_set_aside(checkpoints_dir: epath.PathLike) -> list[str]:
    """Returns the names of the checkpoints in a directory that are set aside."""
    directory = epath.Path(checkpoints_dir)
    if not directory.is_dir():
        return []
    name = rf"{re.escape(get_checkpoint_prefix())}_[0-9]+{re.escape(_ASIDE)}[0-9]*"
    return sorted(path.name for path in directory.iterdir() if re.fullmatch(name, path.name))


def find_single(path: str) -> str | None:
    """Returns the checkpoint that a path is, or is the `state` or the legacy file of; else None."""
    path = path.rstrip("/")
    parent, name = os.path.split(path)
    if name == STATE_ITEM and find_format(parent) == "orbax":
        return parent
    if name == LEGACY_FILE and find_format(parent) == "legacy":
        return parent
    return path if find_format(path) else None


def find_checkpoint(path: epath.PathLike, step: int | None = None) -> str:
    """Returns the directory of a complete checkpoint.

    Args:
      path: MODEL_DIR, MODEL_DIR/checkpoint_N, `state` or the file `checkpoint` (that T5X's own
        format has) in the latter, or a Hugging Face directory.
      step: which step of MODEL_DIR; the latest if None.

    Raises:
      FileNotFoundError: there is no such checkpoint; the message lists those that there are.
    """
    path = os.fspath(path).rstrip("/")
    if step is None and (single := find_single(path)):
        return single
    step = latest_step(path) if step is None else step
    checkpoint = path if step is None else get_checkpoint_dir(path, step)
    if find_format(checkpoint):
        return checkpoint
    is_directory = step is None and not is_url(path) and os.path.isdir(path)
    directory = path if is_directory else os.path.dirname(checkpoint)
    steps = all_steps(directory)
    present = f"has steps {', '.join(map(str, steps))}" if steps else "has no checkpoints"
    raise FileNotFoundError(
        f"no checkpoint at {checkpoint}: {directory} {present}; set RestoreCheckpointConfig.path "
        "to MODEL_DIR/checkpoint_STEP, or to MODEL_DIR with mode 'latest'"
    )
