"""What is saved and restored, when and how: the settings that gin files bind."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from t5x import state_utils
from t5x.checkpoints import manager
from t5x.run.console import log_ignored

DTYPES = (None, "float32", "bfloat16", "float16")


@dataclasses.dataclass
class SaveCheckpointConfig:
    """What is saved and when (upstream `t5x.utils.SaveCheckpointConfig`).

    Attributes:
      dtype: of saved parameters, "float32" or "bfloat16"; optimizer moments keep theirs.
      period: steps between checkpoints.
      checkpoint_steps: further steps to save at.
      keep: newest checkpoints kept; all when None.
      keep_dataset_checkpoints: newest dataset positions kept; as `keep` when None.
      save_dataset: whether the position in the data is saved. None saves it where the dataset
        allows it and logs where it does not; True insists.
      checkpointer_cls: upstream's legacy writer or a keep-best variant of it.
      state_transformation_fns: applied to the state before writing.
      checkpoint_manager_cls: the Orbax manager.
    """

    dtype: str | None = "float32"
    period: int | None = None
    checkpoint_steps: Sequence[int] | None = None
    keep: int | None = None
    keep_dataset_checkpoints: int | None = None
    save_dataset: bool | None = None
    checkpointer_cls: Callable[..., Any] = manager.Checkpointer
    state_transformation_fns: Sequence[Callable[..., Any]] = dataclasses.field(default_factory=list)
    checkpoint_manager_cls: Callable[..., Any] = manager.OrbaxCheckpointManagerInterface

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES[:3]:
            raise ValueError(
                f"SaveCheckpointConfig.dtype must be 'float32' or 'bfloat16', got '{self.dtype}'"
            )
        _log_ignored_checkpointer(self)


@dataclasses.dataclass
class RestoreCheckpointConfig:
    """What is restored and how (upstream `t5x.utils.RestoreCheckpointConfig`).

    Attributes:
      path: a checkpoint ("specific") or a directory of checkpoints ("latest", "all").
      mode: "specific", "latest" or "all".
      assignment_map: (model parameter regex, checkpoint name or None) pairs.
      strict: whether optimizer state must be there too.
      fallback_to_scratch: initialise what the checkpoint lacks.
      dtype: of restored parameters; as saved when None.
      restore_dataset: whether the position in the data is restored; None does so where a run goes
        on from a checkpoint of its own MODEL_DIR, and False then reads the data from its beginning.
      checkpointer_cls: upstream's legacy reader.
      state_transformation_fns: applied to the state after reading, after the assignment map.
      checkpoint_manager_cls: the Orbax manager.
    """

    path: str | Sequence[str]
    mode: str = "latest"
    assignment_map: Sequence[tuple[str, str | None]] | None = None
    strict: bool = True
    fallback_to_scratch: bool = False
    dtype: str | None = None
    restore_dataset: bool | None = None
    checkpointer_cls: Callable[..., Any] = manager.Checkpointer
    state_transformation_fns: Sequence[Callable[..., Any]] = ()
    checkpoint_manager_cls: Callable[..., Any] = manager.OrbaxCheckpointManagerInterface

    def __post_init__(self) -> None:
        if self.mode not in ("specific", "latest", "all"):
            raise ValueError(
                "RestoreCheckpointConfig.mode must be 'specific', 'latest' or 'all', got "
                f"'{self.mode}'"
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                "RestoreCheckpointConfig.dtype must be None, 'float32', 'bfloat16' or 'float16', "
                f"got '{self.dtype}'"
            )
        _log_ignored_checkpointer(self)
        if self.assignment_map is not None:
            assign = functools.partial(
                state_utils.apply_assignment_map, assignment_map=self.assignment_map
            )
            self.state_transformation_fns = (assign, *self.state_transformation_fns)


def _log_ignored_checkpointer(cfg: SaveCheckpointConfig | RestoreCheckpointConfig) -> None:
    cls = cfg.checkpointer_cls
    cls = cls.func if isinstance(cls, functools.partial) else cls
    if not (isinstance(cls, type) and issubclass(cls, manager.Checkpointer)):
        log_ignored(
            f"{type(cfg).__name__}.checkpointer_cls", "bind checkpoint_manager_cls for your own"
        )


@dataclasses.dataclass
class CheckpointConfig:
    """Saving and restoring; None switches either off."""

    save: SaveCheckpointConfig | None = None
    restore: RestoreCheckpointConfig | None = None
