"""Saving and restoring train states with Orbax, in the layout T5X writes with use_orbax::

    MODEL_DIR/checkpoint_N/state     the state dict (see t5x.train_state), one OCDBT store
    MODEL_DIR/checkpoint_N/dataset   train_ds-SHARD-of-SHARDS, the position in the training data

Saving returns once the arrays are copied from the devices (see t5x.checkpoints.saving); writing
goes on in the background, and a checkpoint gets its name only when it is complete. Restoring reads
each array straight into the sharding that the partitioner gives it, from a checkpoint of scanned or
of unrolled layers.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from t5x.checkpoints import fingerprints
from t5x.checkpoints import reading as checkpoint_reading
from t5x.checkpoints.directories import (
    DATASET_ITEM,
    absolute,
    all_dataset_checkpoint_steps,
    all_steps,
    find_checkpoint,
    latest_step,
)
from t5x.checkpoints.formats import mesh_tensorflow
from t5x.checkpoints.layouts import TargetArray
from t5x.checkpoints.positions import DatasetCheckpointHandler
from t5x.checkpoints.retention import KeepBest, KeepLatest, Retention
from t5x.checkpoints.saving import CheckpointSaver
from t5x.checkpoints.snapshots import flatten_state
from t5x.state_utils import flatten_state_dict
from t5x.train_state import TrainState

PyTree = Any
# (state dict, parameter infos) → the same, renamed or thinned out before writing.
SaveStateTransformationFn = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
# (checkpoint's state dict, model's state dict) → the former with the names of the latter. Leaves
# stand for arrays that are yet to be read: move them, do not compute with them.
RestoreStateTransformationFn = Callable[[PyTree, PyTree], PyTree]


def get_local_data(x: Any) -> Any:
    """Returns what this process holds of an array; anything else as it is."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        return x.addressable_data(0)
    return x


def _optimizer_paths(paths: Mapping[str, Any]) -> list[str]:
    return [path for path in paths if path.startswith("state/param_states/")]


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """What a save transformation is told of an array: its path in the state dict, its layout."""

    name: str
    mesh_axes: PartitionSpec | None


@gin.configurable(module="t5x.checkpoints")
class OrbaxCheckpointManagerInterface:
    """Saves and restores the train states of one run.

    Args:
      directory: MODEL_DIR.
      train_state: a train state with the structure and the shapes of those to save and restore;
        its leaves may be `jax.ShapeDtypeStruct`.
      partitioner: gives the mesh, the PartitionSpecs of a train state and the data layout.
      dataset_iterator: its position is saved too, and restored from MODEL_DIR's checkpoints.
      save_dtype: dtype parameters are written in; None for their own.
      restore_dtype: dtype parameters are restored to; None for the one they were saved in.
      keep: how many checkpoints to keep, the latest; None for all.
      period: steps between checkpoints, for `should_save`.
      checkpoint_steps: further steps to save at, for `should_save`.
      keep_dataset_checkpoints: how many positions in the data to keep, the latest; None for all.
      force_keep_period: checkpoints of steps divisible by it are always kept.
      metric_name_to_monitor: keep the `keep` checkpoints with the best values of this metric,
        besides the latest; RUN/TAG as in TensorBoard, e.g. 'inference_eval/task/eval/accuracy'.
      metric_mode: 'max' or 'min', which value is best.
      keep_checkpoints_without_metrics: keep all those without a value.

    Attributes:
      retention: which checkpoints are kept.
      fingerprint: what is trained and on what, see `t5x.checkpoints.fingerprints`; checkpoints
        bear it from the first save on.

    Raises:
      ValueError: `metric_mode` is neither 'max' nor 'min'.
    """

    __module__ = "t5x.checkpoints"  # as gin files, and config.gin, name it

    def __init__(
        self,
        directory: epath.PathLike,
        train_state: TrainState,
        partitioner: Any,
        dataset_iterator: Any = None,
        save_dtype: Any = None,
        restore_dtype: Any = None,
        keep: int | None = None,
        period: int | None = 1,
        checkpoint_steps: Sequence[int] | None = None,
        keep_dataset_checkpoints: int | None = None,
        force_keep_period: int | None = None,
        metric_name_to_monitor: str | None = None,
        metric_mode: str = "max",
        keep_checkpoints_without_metrics: bool = True,
    ) -> None:
        if metric_mode not in ("max", "min"):
            raise ValueError(f"metric_mode must be 'max' or 'min', not {metric_mode!r}")
        self._directory = absolute(directory)
        self._train_state = train_state
        self._partitioner = partitioner
        self._dataset_iterator = dataset_iterator
        self.fingerprint: dict[str, Any] = _describe_optimizer(train_state)
        if dataset_iterator is not None:
            data = getattr(dataset_iterator, "fingerprint", None)
            self.fingerprint["data"] = data or fingerprints.describe_batches(dataset_iterator)
        self._save_dtype = None if save_dtype is None else jnp.dtype(save_dtype)
        self._restore_dtype = None if restore_dtype is None else jnp.dtype(restore_dtype)
        self._period = period
        self._checkpoint_steps = frozenset(checkpoint_steps or ())
        self._keep_dataset_checkpoints = keep_dataset_checkpoints
        self.retention: Retention = KeepLatest(keep, force_keep_period)
        if metric_name_to_monitor is not None:
            self.retention = KeepBest(
                checkpoints_dir=self._directory,
                metric_name=metric_name_to_monitor,
                mode=metric_mode,
                keep=keep,
                keep_without_metrics=keep_checkpoints_without_metrics,
                keep_period=force_keep_period,
            )

    @functools.cached_property
    def _dataset_handler(self) -> DatasetCheckpointHandler:
        layout = self._partitioner.get_data_layout()
        return DatasetCheckpointHandler(f"train_ds-{layout.shard_id:03}-of-{layout.num_shards:03}")

    @functools.cached_property
    def _saver(self) -> CheckpointSaver:
        handler = None if self._dataset_iterator is None else self._dataset_handler
        return CheckpointSaver(
            self._directory,
            self.retention,
            handler,
            self._keep_dataset_checkpoints,
            fingerprints.as_metadata(self.fingerprint),
        )

    @property
    def directory(self) -> epath.Path:
        return epath.Path(self._directory)

    def all_steps(self) -> list[int]:
        """Returns the steps with a complete checkpoint, in ascending order."""
        return all_steps(self._directory)

    def latest_step(self) -> int | None:
        """Returns the last step with a complete checkpoint, or None."""
        return latest_step(self._directory)

    def should_save(self, step: int) -> bool:
        """Tells whether a checkpoint is due at a step by `period` and `checkpoint_steps`."""
        return bool(self._period and step % self._period == 0) or step in self._checkpoint_steps

    def wait_until_finished(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong in writing it."""
        if "_saver" in self.__dict__:
            self._saver.queue.wait()

    def close(self) -> None:
        """Finishes writing; the manager saves no more thereafter."""
        if "_saver" in self.__dict__:
            self._saver.close()

    def save(
        self,
        train_state: TrainState,
        state_transformation_fns: Sequence[SaveStateTransformationFn] = (),
        force: bool = True,
    ) -> bool:
        """Copies the state and starts to write it; waits if two are still to be written.

        Args:
          train_state: what to save; its arrays may be donated or deleted thereafter.
          state_transformation_fns: applied in turn to (state dict, infos) before writing, where
            infos is the state dict with a ParameterInfo for each array.
          force: save whatever `should_save` says.

        Returns:
          False if nothing was saved, because none is due or the step has a checkpoint already.

        Raises:
          UnwritableCheckpointError: an earlier one could not be written.
        """
        step = int(get_local_data(train_state.step))
        if not force and not self.should_save(step):
            return False
        if self._saver.has(step):
            logging.info("Not saving step %d: %s has a checkpoint of it", step, self._directory)
            return False
        arrays = self._saver.snapshots.flatten(train_state)
        if state_transformation_fns:
            state_dict, infos = train_state.state_dict(), self._parameter_infos()
            for transform in state_transformation_fns:
                state_dict, infos = transform(state_dict, infos)
            arrays = flatten_state(state_dict)
        self._saver.save(step, arrays, self._save_dtypes(arrays), self._dataset_iterator)
        return True

    def _parameter_infos(self) -> PyTree:
        mesh_axes = self._mesh_axes()
        arrays = flatten_dict(self._train_state.state_dict(), keep_empty_nodes=True, sep="/")
        infos = {
            path: empty_node if x is empty_node else ParameterInfo(path, mesh_axes.get(path))
            for path, x in arrays.items()
        }
        return unflatten_dict(infos, sep="/")

    def _mesh_axes(self) -> dict[str, PartitionSpec | None]:
        return flatten_dict(
            self._partitioner.get_mesh_axes(self._train_state).state_dict(), sep="/"
        )

    def _save_dtypes(self, arrays: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
        if self._save_dtype is None:
            return {}
        return {
            path: self._save_dtype
            for path, x in arrays.items()
            if path[0] == "target" and x is not None and jnp.issubdtype(x.dtype, jnp.floating)
        }

    def restore(
        self,
        step: int | None = None,
        path: str | None = None,
        fallback_state: Mapping[str, Any] | None = None,
        state_transformation_fns: Sequence[RestoreStateTransformationFn] = (),
        lazy_parameters: bool | None = False,
        *,
        restore_dataset: bool | None = None,
    ) -> TrainState:
        """Restores a train state into the shardings of the partitioner.

        Args:
          step: which of MODEL_DIR's checkpoints; the latest if `path` is None, too.
          path: a checkpoint elsewhere, DIRECTORY/checkpoint_N.
          fallback_state: a state dict that fills in what the checkpoint lacks.
          state_transformation_fns: applied in turn to (checkpoint's, model's state dict); what
            they drop must come from `fallback_state`.
          lazy_parameters: without effect.
          restore_dataset: move the dataset iterator to the saved position; None does so if the
            checkpoint is one of MODEL_DIR, that is, if a run goes on.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: both `step` and `path` are given, or the checkpoint does not fit the model.
          UnreadableCheckpointError: files of it are damaged.
          ChangedRunError: it is one of MODEL_DIR, of another vocabulary, optimizer or data.
          OSError, MemoryError: it could not be read, though it may be whole.
        """
        if step is not None and path is not None:
            raise ValueError("restore takes a step or a path, not both")
        if lazy_parameters:
            logging.log_first_n(logging.WARNING, "lazy_parameters has no effect", 1)
        checkpoint = find_checkpoint(path or self._directory, step)
        is_own = os.path.dirname(absolute(checkpoint)) == self._directory
        if restore_dataset is None:
            restore_dataset = is_own
        position = self._find_position(checkpoint) if restore_dataset else None
        self._check_fingerprint(checkpoint, is_own=is_own, has_position=position is not None)
        contents = checkpoint_reading.open_arrays(checkpoint)
        stored = unflatten_dict(contents.arrays)
        for transform in state_transformation_fns:
            stored = transform(stored, self._train_state.state_dict())
        stored = flatten_state_dict(stored)
        fallback = flatten_state_dict(fallback_state or {})
        wanted = flatten_dict(self._train_state.state_dict(), keep_empty_nodes=True, sep="/")
        targets = self._targets(wanted)
        # What was trained elsewhere, or is there for inference, has no optimizer state.
        own = () if _optimizer_paths(stored | fallback) else _optimizer_paths(targets)
        read = {path: target for path, target in targets.items() if path not in own}
        state = checkpoint_reading.read_state(
            checkpoint, contents, stored, read, fallback, self._factor_map()
        )
        if own:
            logging.warning("%s has no optimizer state: a new one is made", checkpoint)
            lacking = {path: targets[path] for path in own}
            optimizer = self._train_state._optimizer
            state |= checkpoint_reading.create_optimizer_state(optimizer, state, lacking)
        if position is not None:
            with checkpoint_reading.name_checkpoint_in_errors(checkpoint):
                self._dataset_handler.move(position, self._dataset_iterator)
        state_dict = unflatten_dict(
            {path: state.get(path, x) for path, x in wanted.items()}, sep="/"
        )
        return self._train_state.restore_state(state_dict)

    def restore_from_tf_checkpoint(
        self, path_or_dir: str, strict: bool = True, translator: Any = None
    ) -> TrainState:
        """Restores a train state from a TensorFlow checkpoint of T5 (`formats.mesh_tensorflow`)."""
        wanted = flatten_dict(self._train_state.state_dict(), keep_empty_nodes=True, sep="/")
        state = mesh_tensorflow.read_state(
            path_or_dir, self._targets(wanted), self._factor_map(), strict, translator
        )
        state_dict = {path: state.get(path, x) for path, x in wanted.items()}
        return self._train_state.restore_state(unflatten_dict(state_dict, sep="/"))

    def _targets(self, wanted: Mapping[str, Any]) -> dict[str, TargetArray]:
        mesh_axes, mesh = self._mesh_axes(), self._partitioner.mesh
        return {
            path: TargetArray(
                shape=tuple(x.shape),
                sharding=NamedSharding(mesh, mesh_axes.get(path) or PartitionSpec()),
                dtype=self._restore_dtype if path.startswith("target/") else None,
            )
            for path, x in wanted.items()
            if x is not None and x is not empty_node
        }

    def _factor_map(self) -> Mapping[str, Any]:
        optimizer = getattr(self._train_state, "_optimizer", None)
        hyper_params = getattr(getattr(optimizer, "optimizer_def", None), "hyper_params", None)
        return getattr(hyper_params, "factor_map", None) or {}

    def _check_fingerprint(self, checkpoint: str, *, is_own: bool, has_position: bool) -> None:
        """Raises ChangedRunError where a run is to go on with something else than it was."""
        if not is_own and not has_position:
            return
        with checkpoint_reading.name_checkpoint_in_errors(checkpoint):
            saved = fingerprints.read_fingerprint(checkpoint)
        if is_own:
            fingerprints.check_model(checkpoint, saved, self.fingerprint)
        if has_position:
            fingerprints.check_data(checkpoint, saved, self.fingerprint)

    def _find_position(self, checkpoint: str) -> epath.Path | None:
        """Returns where the position of a checkpoint lies, None if none is wanted or there."""
        if self._dataset_iterator is None:
            return None
        directory = epath.Path(absolute(checkpoint)) / DATASET_ITEM
        if not directory.is_dir():
            logging.warning(
                "%s does not exist: the training data starts again from the beginning", directory
            )
            return None
        return directory


def _describe_optimizer(train_state: TrainState) -> dict[str, Any]:
    """Returns what an optimizer keeps of a parameter, which tells one from another."""
    optimizer_def = getattr(getattr(train_state, "_optimizer", None), "optimizer_def", None)
    if optimizer_def is None:
        return {}
    arrays = flatten_dict(train_state.state_dict(), sep="/")
    params = [path.removeprefix("target") for path in arrays if path.startswith("target/")]
    kept = set()
    for path in _optimizer_paths(arrays):
        # Some put the parameter's path before what they keep of it, some behind.
        name = path.removeprefix("state/param_states") + "/"
        of = next((param for param in params if f"{param}/" in name), "")
        kept.add(name.replace(f"{of}/", "/", 1).strip("/"))
    return {"optimizer": f"{type(optimizer_def).__name__} ({', '.join(sorted(kept))})"}


class Checkpointer(OrbaxCheckpointManagerInterface):
    """Saves and restores one train state after the other, each save finished when it returns.

    Args:
      train_state, partitioner, dataset_iterator, keep, save_dtype, restore_dtype,
      keep_dataset_checkpoints: see `OrbaxCheckpointManagerInterface`.
      checkpoints_dir: MODEL_DIR.
    """

    def __init__(
        self,
        train_state: TrainState,
        partitioner: Any,
        checkpoints_dir: epath.PathLike,
        dataset_iterator: Any = None,
        *,
        keep: int | None = None,
        save_dtype: Any = np.float32,
        restore_dtype: Any = None,
        keep_dataset_checkpoints: int | None = None,
        **keep_best: Any,
    ) -> None:
        super().__init__(
            checkpoints_dir,
            train_state,
            partitioner,
            dataset_iterator,
            save_dtype=save_dtype,
            restore_dtype=restore_dtype,
            keep=keep,
            keep_dataset_checkpoints=keep_dataset_checkpoints,
            **keep_best,
        )

    def all_dataset_checkpoint_steps(self) -> list[int]:
        """Returns the steps whose checkpoints hold a position in the training data."""
        return all_dataset_checkpoint_steps(self.directory)

    def save(
        self,
        train_state: TrainState,
        state_transformation_fns: Sequence[SaveStateTransformationFn] = (),
        *,
        concurrent_gb: int = 128,
    ) -> bool:
        """Writes a checkpoint; `concurrent_gb` is without effect, memory is bounded anyway."""
        del concurrent_gb
        saved = super().save(train_state, state_transformation_fns)
        self.wait_until_finished()
        return saved

    def convert_from_tf_checkpoint(
        self,
        path_or_dir: str,
        *,
        state_transformation_fns: Sequence[SaveStateTransformationFn] = (),
        concurrent_gb: int = 16,
        translator: Any = None,
    ) -> bool:
        """Writes a TensorFlow checkpoint of T5 as one of ours."""
        train_state = self.restore_from_tf_checkpoint(path_or_dir, translator=translator)
        return self.save(train_state, state_transformation_fns, concurrent_gb=concurrent_gb)


@gin.configurable(module="t5x.checkpoints")
class SaveBestCheckpointer(Checkpointer):
    """A Checkpointer that keeps the latest checkpoint and the `keep` best others.

    Args:
      metric_name_to_monitor, metric_mode, keep_checkpoints_without_metrics, force_keep_period:
        see `OrbaxCheckpointManagerInterface`; the others are those of Checkpointer.
    """

    __module__ = "t5x.checkpoints"  # as gin files, and config.gin, name it

    def __init__(
        self,
        train_state: TrainState,
        partitioner: Any,
        checkpoints_dir: epath.PathLike,
        dataset_iterator: Any = None,
        *,
        keep: int | None = None,
        save_dtype: Any = np.float32,
        restore_dtype: Any = None,
        metric_name_to_monitor: str = "train/accuracy",
        metric_mode: str = "max",
        keep_checkpoints_without_metrics: bool = True,
        force_keep_period: int | None = None,
        keep_dataset_checkpoints: int | None = None,
    ) -> None:
        super().__init__(
            train_state,
            partitioner,
            checkpoints_dir,
            dataset_iterator,
            keep=keep,
            save_dtype=save_dtype,
            restore_dtype=restore_dtype,
            keep_dataset_checkpoints=keep_dataset_checkpoints,
            metric_name_to_monitor=metric_name_to_monitor,
            metric_mode=metric_mode,
            keep_checkpoints_without_metrics=keep_checkpoints_without_metrics,
            force_keep_period=force_keep_period,
        )
