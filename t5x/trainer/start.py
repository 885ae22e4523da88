"""Where a run begins: the newest checkpoint of its MODEL_DIR, the one it is given, or a new state.

A checkpoint of MODEL_DIR is passed over only where its own files are damaged, which is proven; it
is kept beside. Whatever else goes wrong ends the run and leaves everything as it is.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from t5x import partitioning, train_state, utils
from t5x.checkpoints.directories import (
    get_checkpoint_dir,
    latest_step,
    list_set_aside,
    set_aside,
)
from t5x.checkpoints.fingerprints import read_fingerprint
from t5x.checkpoints.formats.failures import UnreadableCheckpointError
from t5x.checkpoints.restoring import require_checkpoint
from t5x.run import processes
from t5x.run.console import console

START_OVER = "begin anew with train.start_over = True"


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      manager: saves; None where nothing is saved.
      origin: where the state came from, in words.
      is_resumed: whether it goes on from a checkpoint of its own.
      first_step: the step at which the run began, at its first start.
    """

    manager: Any
    origin: str
    is_resumed: bool
    first_step: int


def require_start(cfg: utils.CheckpointConfig, model_dir: str) -> None:
    """Raises FileNotFoundError where the checkpoint to start from is not there."""
    restore = cfg.restore
    if restore and restore.path and restore.mode == "specific" and latest_step(model_dir) is None:
        require_checkpoint(restore.path)


def with_saved_seed(
    dataset_cfg: Any, checkpoint_cfg: utils.CheckpointConfig, model_dir: str
) -> Any:
    """The config of the training data, with the seed of the position it goes on at.

    Where DatasetConfig.seed is None a run takes the clock's, once.
    """
    if getattr(dataset_cfg, "seed", 0) is not None or not _restores_position(checkpoint_cfg):
        return dataset_cfg

    def look() -> int:
        step = latest_step(model_dir)
        if step is None:
            return -1
        try:
            saved = read_fingerprint(get_checkpoint_dir(model_dir, step))
        except UnreadableCheckpointError:
            return -1  # restoring it will tell
        seed = ((saved.get("data") or {}).get("settings") or {}).get("DatasetConfig.seed")
        return -1 if seed is None else int(seed)

    seed = processes.decide(look)
    return dataset_cfg if seed < 0 else dataclasses.replace(dataset_cfg, seed=seed)


def _restores_position(cfg: utils.CheckpointConfig) -> bool:
    is_saved = bool(cfg.save and cfg.save.save_dataset is not False)
    return is_saved and not (cfg.restore and cfg.restore.restore_dataset is False)


def begin(
    initializer: utils.TrainStateInitializer,
    partitioner: partitioning.PjitPartitioner,
    checkpoint_cfg: utils.CheckpointConfig,
    model_dir: str,
    train_iter: Any,
    init_rng: jax.Array,
    *,
    use_orbax: bool = True,
    start_over: bool = False,
) -> tuple[train_state.TrainState, Start]:
    """Restores or initialises a train state, on all processes from the same checkpoint.

    Args:
      initializer: makes the state.
      partitioner: gives the shardings.
      checkpoint_cfg: what to save and what to start from.
      model_dir: where the run's own checkpoints are.
      train_iter: the training data, moved to the checkpoint's position.
      init_rng: key of a new state.
      use_orbax: see `create_checkpoint_manager_and_restore`.
      start_over: begin anew where all checkpoints of MODEL_DIR are damaged.

    Raises:
      UnreadableCheckpointError: all checkpoints of MODEL_DIR are damaged, or the one to start from.
      FileNotFoundError: there is nothing at RestoreCheckpointConfig.path.
      ChangedRunError: the run is not the one that MODEL_DIR's checkpoint is of.
      OSError, MemoryError: a checkpoint could not be read, though it may be whole.
    """
    save, restore = checkpoint_cfg.save, checkpoint_cfg.restore
    resume = utils.RestoreCheckpointConfig(
        path=model_dir,
        dtype="float32",  # what was saved in fewer bits goes on in full precision
        restore_dataset=None if _restores_position(checkpoint_cfg) else False,
    )
    if restore:
        # Transformations that rename an initial checkpoint know when they are given our own.
        resume.state_transformation_fns = [_resuming(fn) for fn in restore.state_transformation_fns]
    if restore and restore.path and (restore.mode == "all" or not isinstance(restore.path, str)):
        raise ValueError(
            "RestoreCheckpointConfig must name one checkpoint for training; use mode 'specific'"
        )
    while True:
        step = _latest_step_of_all(model_dir)
        if step is None:
            _refuse_to_forget(model_dir, start_over)
            chosen, paths = _find_initial(restore, model_dir)
        else:
            chosen, paths = resume, [get_checkpoint_dir(model_dir, step)]
        state = manager = failure = None
        try:
            if chosen or save:
                state, manager = utils.create_checkpoint_manager_and_restore(
                    initializer,
                    partitioner,
                    chosen,
                    paths[0] if paths else None,
                    init_rng,
                    save_checkpoint_cfg=save,
                    model_dir=model_dir,
                    ds_iter=train_iter,
                    use_orbax=use_orbax,
                )
        except UnreadableCheckpointError as error:
            if chosen is not resume:
                raise
            logging.exception("unreadable checkpoint")
            failure = error
        # Each process reads its own part: what one cannot read is of no use to any.
        failed = processes.processes_where(failure is not None)
        if not failed:
            break
        said = (
            str(failure).split("; if its files")[0]
            if failure
            else (f"checkpoint {paths[0]} cannot be read by process {failed[0]}")
        )
        if not start_over and _earlier_step_of_all(model_dir, step) is None:
            raise UnreadableCheckpointError(
                f"{said}, and {model_dir} has no other; put one there, or {START_OVER}"
            ) from failure
        console.say(said)
        if jax.process_index() == 0:
            console.say(f"kept as {set_aside(paths[0])}; going on from the one before it")
        utils.sync_global_devices("checkpoint set aside")
        train_iter.reset()  # it may stand where that checkpoint had it
    if state is None:
        state, origin = initializer.from_scratch(init_rng), "from scratch"
    else:
        origin = f"{'resumed' if chosen is resume else 'starting'} from {paths[0]}"
    first_step = int(utils.get_local_data(state.step))
    if chosen is resume:
        first_step = int(read_fingerprint(paths[0]).get("first_step", first_step))
    if (fingerprint := getattr(manager, "fingerprint", None)) is not None:
        fingerprint["first_step"] = first_step
    return state, Start(manager, origin, chosen is resume, first_step)


def _find_initial(
    restore: utils.RestoreCheckpointConfig | None, model_dir: str
) -> tuple[utils.RestoreCheckpointConfig | None, list[str]]:
    """The checkpoint to start from and its config; (None, []) where none is configured.

    Raises:
      FileNotFoundError: one is configured, and there is none.
    """
    if not (restore and restore.path):
        return None, []
    chosen, paths = utils.get_first_valid_restore_config_and_paths([restore])
    # Who names MODEL_DIR itself wants what is done anyway.
    if not paths and os.path.normpath(restore.path) != os.path.normpath(model_dir):
        raise FileNotFoundError(
            f"RestoreCheckpointConfig.path = '{restore.path}' holds no checkpoint to start from; "
            "name one, or bind RestoreCheckpointConfig.path = [] to start from scratch"
        )
    return chosen, paths


def _refuse_to_forget(model_dir: str, start_over: bool) -> None:
    """Raises where a run had checkpoints and has none that can be read."""
    aside = list_set_aside(model_dir)
    if aside and not start_over:
        raise UnreadableCheckpointError(
            f"{model_dir} has no checkpoint but those set aside as damaged ({', '.join(aside)}); "
            f"mend one and give it its name back, or {START_OVER}"
        )


def _latest_step_of_all(model_dir: str) -> int | None:
    """The newest checkpoint that process 0 sees; the others might look at another moment."""
    return _agree(lambda: latest_step(model_dir))


def _earlier_step_of_all(model_dir: str, step: int) -> int | None:
    return _agree(lambda: latest_step(model_dir, before=step))


def _agree(look: Callable[[], int | None]) -> int | None:
    def find() -> int:
        step = look()
        return -1 if step is None else step

    agreed = processes.decide(find)
    return None if agreed < 0 else agreed


def _resuming(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: fn(*args, **kwargs, is_resuming=True)
