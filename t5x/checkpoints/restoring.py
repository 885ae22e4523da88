"""Where a train state comes from: a checkpoint, or an initialiser run under its own shardings."""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
from absl import logging
from etils import epath

from t5x import optimizers, partitioning, train_state
from t5x.checkpoints.configs import RestoreCheckpointConfig, SaveCheckpointConfig
from t5x.checkpoints.directories import all_steps, find_single, get_checkpoint_dir
from t5x.checkpoints.formats import mesh_tensorflow
from t5x.checkpoints.formats.storage import is_url
from t5x.checkpoints.formats.stores import find_format
from t5x.checkpoints.manager import OrbaxCheckpointManagerInterface, SaveBestCheckpointer
from t5x.run.console import log_ignored


class TrainStateInitializer:
    """Makes sharded train states (upstream `t5x.utils.TrainStateInitializer`).

    Args:
      optimizer_def: optimizer whose state is wanted, or None for parameters alone.
      init_fn: (rng, input_shapes, input_types) → model variables.
      input_shapes: global shape of each model feature.
      partitioner: gives the shardings.
      input_types: dtype of each model feature.

    Attributes:
      global_train_state_shape: the state with jax.ShapeDtypeStruct in place of arrays.
      train_state_axes: the state with PartitionSpec in place of arrays.
    """

    def __init__(
        self,
        optimizer_def: optimizers.OptimizerDef | None,
        init_fn: Callable[..., Any],
        input_shapes: Mapping[str, Sequence[int]],
        partitioner: partitioning.PjitPartitioner,
        input_types: Mapping[str, Any] | None = None,
    ) -> None:
        def initialize(rng: jax.Array) -> train_state.TrainState:
            variables = flax.core.freeze(
                init_fn(rng=rng, input_shapes=input_shapes, input_types=input_types)
            )
            if optimizer_def is None:
                return train_state.InferenceState.create(variables)
            return train_state.FlaxOptimTrainState.create(optimizer_def, variables)

        self._initialize = initialize
        self._partitioner = partitioner
        with partitioner.context():
            self.global_train_state_shape = jax.eval_shape(
                lambda: initialize(jax.random.PRNGKey(0))
            )
        self.train_state_axes = partitioner.get_mesh_axes(self.global_train_state_shape)

    def from_scratch(self, init_rng: jax.Array) -> train_state.TrainState:
        """Initialises every shard on the device that keeps it."""
        logging.info("initializing parameters from scratch")
        initialize = self._partitioner.partition(
            self._initialize, in_axis_resources=None, out_axis_resources=self.train_state_axes
        )
        return initialize(init_rng)

    def from_checkpoints(
        self,
        restore_cfgs: Sequence[RestoreCheckpointConfig],
        ds_iter: Any = None,
        init_rng: jax.Array | None = None,
    ) -> Iterable[tuple[train_state.TrainState, str]]:
        """Yields (train state, path) for each checkpoint of the first config that has any."""
        cfg, paths = get_first_valid_restore_config_and_paths(restore_cfgs)
        for path in paths:
            state, manager = create_checkpoint_manager_and_restore(
                self, self._partitioner, cfg, path, init_rng, ds_iter=ds_iter
            )
            manager.close()
            yield state, path

    def from_checkpoint(
        self,
        ckpt_cfgs: Sequence[RestoreCheckpointConfig],
        *,
        ds_iter: Any = None,
        init_rng: jax.Array | None = None,
    ) -> train_state.TrainState | None:
        """The state of the one checkpoint that the configs name, None if there is none.

        Raises:
          ValueError: there are several.
        """
        states = [state for state, _ in self.from_checkpoints(ckpt_cfgs, ds_iter, init_rng)]
        if len(states) > 1:
            raise ValueError(f"RestoreCheckpointConfig names {len(states)} checkpoints, not one")
        return states[0] if states else None

    def from_checkpoint_or_scratch(
        self,
        ckpt_cfgs: Sequence[RestoreCheckpointConfig],
        *,
        init_rng: jax.Array,
        ds_iter: Any = None,
    ) -> train_state.TrainState:
        """The state of the checkpoint, or a fresh one."""
        state = self.from_checkpoint(ckpt_cfgs, ds_iter=ds_iter, init_rng=init_rng)
        return self.from_scratch(init_rng) if state is None else state


def get_first_valid_restore_config_and_paths(
    restore_cfgs: Sequence[RestoreCheckpointConfig],
) -> tuple[RestoreCheckpointConfig | None, list[str]]:
    """The first config that names an existing checkpoint, with its checkpoints in order of step.

    In every mode a path may be a run's directory, a single checkpoint or the latter's `state`.
    Directories without checkpoints are passed over; in mode "specific" they are returned as they
    are, for whoever reads them to complain.

    Raises:
      ValueError: a path of mode "latest" or "all" is not there.
    """
    for cfg in restore_cfgs:
        paths = [cfg.path] if isinstance(cfg.path, str) else list(cfg.path)
        if cfg.mode == "specific":
            return cfg, [(find_checkpoints(path) or [path])[-1] for path in paths]
        for path in paths:
            found = find_checkpoints(path)
            if found:
                return cfg, found[-1:] if cfg.mode == "latest" else found
            if not epath.Path(path).is_dir():
                raise ValueError(
                    f"RestoreCheckpointConfig.path = '{path}' is neither a checkpoint nor a "
                    "directory of checkpoints"
                )
    return None, []


def find_checkpoints(path: str) -> list[str]:
    """The checkpoints that a path stands for, in the order of steps.

    Args:
      path: a run's directory, a checkpoint of any format, a checkpoint's `state`, or a directory of
        TensorFlow checkpoints.

    Raises:
      OSError: no permission, or out of reach.
    """
    path = path.rstrip("/")
    # Their directories have a file `checkpoint`, as T5X's older format has.
    if not is_url(path) and (found := mesh_tensorflow.list_checkpoints(path)):
        return found
    if single := find_single(path):
        return [single]
    if mesh_tensorflow.is_tensorflow_checkpoint(path):
        return [path]
    if is_url(path) and (found := mesh_tensorflow.list_checkpoints(path)):
        return found
    return [str(get_checkpoint_dir(path, step)) for step in all_steps(path)]


def require_checkpoint(path: str) -> None:
    """Makes sure that something is at the path of a checkpoint.

    Raises:
      FileNotFoundError: nothing is, or it is out of reach.
    """
    fix = (
        "set RestoreCheckpointConfig.path (CHECKPOINT_PATH or INITIAL_CHECKPOINT_PATH in the run "
        "files)"
    )
    try:
        found = find_format(path) is not None if is_url(path) else epath.Path(path).exists()
        found = found or mesh_tensorflow.is_tensorflow_checkpoint(path)
    except Exception as error:  # each filesystem has errors of its own
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"checkpoint '{path}' is out of reach: {reason}; {fix}") from error
    if not found:
        raise FileNotFoundError(f"checkpoint '{path}' does not exist; {fix}")


def get_fallback_state(
    restore_cfg: RestoreCheckpointConfig | None,
    init_fn: Callable[[jax.Array], Mapping[str, Any]],
    init_rng: jax.Array | None,
) -> Mapping[str, Any] | None:
    """State dict from scratch for what a checkpoint may lack, None unless asked for.

    Raises:
      ValueError: fallback_to_scratch without transformations or without a seed.
    """
    if restore_cfg is None or not restore_cfg.fallback_to_scratch:
        return None
    if not restore_cfg.state_transformation_fns:
        raise ValueError(
            "RestoreCheckpointConfig.fallback_to_scratch needs an assignment_map or "
            "state_transformation_fns"
        )
    if init_rng is None:
        raise ValueError(
            "RestoreCheckpointConfig.fallback_to_scratch needs a seed; bind evaluate."
            "fallback_init_rng"
        )
    return init_fn(init_rng)


def create_checkpoint_manager_and_restore(
    train_state_initializer: TrainStateInitializer,
    partitioner: partitioning.PjitPartitioner,
    restore_checkpoint_cfg: RestoreCheckpointConfig | None,
    restore_path: str | None,
    fallback_init_rng: jax.Array | None,
    save_checkpoint_cfg: SaveCheckpointConfig | None = None,
    model_dir: str | None = None,
    ds_iter: Any = None,
    use_orbax: bool = True,
) -> tuple[train_state.TrainState | None, OrbaxCheckpointManagerInterface]:
    """Opens MODEL_DIR's checkpoints and restores one, if a path is given.

    `use_orbax` is accepted without effect: writing is always Orbax, reading finds the format.

    Raises:
      FileNotFoundError: `restore_path` does not exist.
    """
    if not use_orbax:
        log_ignored("use_orbax", "checkpoints are written by Orbax and read in any format")
    if restore_path:
        require_checkpoint(restore_path)
    save, restore = save_checkpoint_cfg, restore_checkpoint_cfg
    with_dataset = bool(
        (save and save.save_dataset is not False) or (restore and restore.restore_dataset)
    )
    # Either config may bind it; who saves has the last word.
    bound = [cfg.checkpoint_manager_cls for cfg in (save, restore) if cfg]
    default = OrbaxCheckpointManagerInterface
    manager_cls = next((cls for cls in bound if cls is not default), default)
    manager = manager_cls(
        directory=model_dir or os.path.dirname(restore_path),
        train_state=train_state_initializer.global_train_state_shape,
        partitioner=partitioner,
        dataset_iterator=ds_iter if with_dataset else None,
        save_dtype=save.dtype if save else None,
        restore_dtype=restore.dtype if restore else None,
        keep=save.keep if save else None,
        period=(save.period if save else None) or 1,
        checkpoint_steps=save.checkpoint_steps if save else None,
        keep_dataset_checkpoints=save.keep_dataset_checkpoints if save else None,
        **_keep_best_settings(save, train_state_initializer.global_train_state_shape, partitioner),
    )
    if ds_iter is not None and hasattr(manager, "fingerprint"):
        # What a run is trained on is known whether its position is saved or not.
        manager.fingerprint["data"] = getattr(ds_iter, "fingerprint", None)
    if not restore_path:
        return None, manager
    fallback = get_fallback_state(
        restore,
        lambda rng: train_state_initializer.from_scratch(rng).state_dict(),
        fallback_init_rng,
    )
    if mesh_tensorflow.is_tensorflow_checkpoint(restore_path):
        if restore.state_transformation_fns:
            raise ValueError(
                f"RestoreCheckpointConfig.path = '{restore_path}' is a TensorFlow checkpoint, to "
                "which neither assignment_map nor state_transformation_fns apply; restore it "
                "without them, save it, and start from that"
            )
        return manager.restore_from_tf_checkpoint(restore_path, strict=restore.strict), manager
    state = manager.restore(
        path=restore_path,
        fallback_state=fallback,
        state_transformation_fns=restore.state_transformation_fns,
        restore_dataset=restore.restore_dataset,
    )
    return state, manager


def _keep_best_settings(
    save: SaveCheckpointConfig | None, train_state: train_state.TrainState, partitioner: Any
) -> dict[str, Any]:
    """The keep-best parameters of `SaveCheckpointConfig.checkpointer_cls`, if it has any."""
    if save is None:
        return {}
    cls = save.checkpointer_cls
    bare = cls.func if isinstance(cls, functools.partial) else cls
    if not (isinstance(bare, type) and issubclass(bare, SaveBestCheckpointer)):
        return {}
    # What gin binds, or a default says, is known when it is made, and not before.
    best = cls(train_state, partitioner, "").retention
    return {
        "metric_name_to_monitor": best.metric_name,
        "metric_mode": best.mode,
        "keep_checkpoints_without_metrics": best.keep_without_metrics,
        "force_keep_period": best.keep_period,
    }
