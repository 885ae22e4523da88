"""Saves checkpoints while training goes on.

The step loop waits for a copy of the state to host memory and for the position in the training
data, which moves on with the next batch. All else happens on one thread, save after save: making
directories, writing, waiting for other processes, giving the checkpoint its name, removing old
ones. Processes wait for one another through JAX's distributed service only, never by a computation
on the devices: those belong to the step loop.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from t5x.checkpoints.directories import (
    DATASET_ITEM,
    all_dataset_checkpoint_steps,
    all_steps,
    get_checkpoint_dir,
    make_way,
    remove_checkpoint,
    remove_incomplete,
)
from t5x.checkpoints.formats.stores import STATE_ITEM, Path
from t5x.checkpoints.positions import DatasetCheckpointHandler, PositionArgs
from t5x.checkpoints.queue import WriteQueue
from t5x.checkpoints.retention import Retention
from t5x.checkpoints.snapshots import Snapshot, SnapshotArgs, SnapshotHandler, SnapshotTaker


class UnwritableCheckpointError(RuntimeError):
    """A checkpoint could not be written; those before it are whole."""


class CheckpointSaver:
    """Saves the checkpoints of one run. All processes make the same calls in the same order.

    Args:
      directory: MODEL_DIR.
      retention: which checkpoints to keep.
      dataset_handler: writes the position in the data; None for none.
      keep_positions: how many positions in the data to keep, the latest; None for all.
      metadata: plain values that every checkpoint bears.
    """

    def __init__(
        self,
        directory: str,
        retention: Retention,
        dataset_handler: DatasetCheckpointHandler | None,
        keep_positions: int | None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._directory = epath.Path(directory)
        self._retention = retention
        self._dataset_handler = dataset_handler
        self._keep_positions = keep_positions
        self._metadata = dict(metadata or {})
        self._steps = set(all_steps(directory))
        self.snapshots = SnapshotTaker()
        self.queue = WriteQueue()

    def has(self, step: int) -> bool:
        """Tells whether there is a checkpoint of a step, or will be."""
        return step in self._steps

    def save(
        self, step: int, arrays: Mapping[Path, Any], dtypes: Mapping[Path, Any], iterator: Any
    ) -> None:
        """Returns when state and position are copied.

        Args:
          step: to save as.
          arrays: by path in the state dict; they may be donated or deleted thereafter.
          dtypes: see `SnapshotTaker.take`.
          iterator: whose position is saved; None for none.

        Raises:
          UnwritableCheckpointError: an earlier one could not be written.
        """
        self.queue.reserve()
        snapshot = self.snapshots.take(arrays, dtypes)
        position = None
        if self._dataset_handler is not None and iterator is not None:
            position = self._dataset_handler.take_position(iterator)
        checkpoint = get_checkpoint_dir(self._directory, step)
        self.queue.put(checkpoint, functools.partial(self._write, checkpoint, snapshot, position))
        self._steps.add(step)

    def close(self) -> None:
        """Finishes writing; raises what goes wrong in it."""
        try:
            self.queue.close()
        finally:
            if "_checkpointer" in self.__dict__:
                self._checkpointer.close()

    @functools.cached_property
    def _checkpointer(self) -> ocp.Checkpointer:
        # Made by the first write: it removes what a killed run left half written, which a job that
        # only reads must not do to a job that is writing.
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            remove_incomplete(self._directory)
        # Named processes wait for one another at the distributed service's barriers.
        processes = ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count()))
        )
        handlers = {STATE_ITEM: SnapshotHandler()}
        if self._dataset_handler is not None:
            handlers[DATASET_ITEM] = self._dataset_handler
        options = ocp.CompositeOptions(multiprocessing_options=processes)
        return ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(composite_options=options, **handlers),
            multiprocessing_options=processes,
        )

    def _write(
        self, checkpoint: str, snapshot: Snapshot, position: Mapping[str, bytes] | None
    ) -> None:
        items: dict[str, ocp.args.CheckpointArgs] = {STATE_ITEM: SnapshotArgs(snapshot)}
        if position is not None:
            items[DATASET_ITEM] = PositionArgs(position)
        try:
            if jax.process_index() == 0:
                make_way(checkpoint)
            self._checkpointer.save(
                checkpoint, args=ocp.args.Composite(**items), custom_metadata=self._metadata
            )
        except Exception as error:
            # Filesystems, Orbax and TensorStore raise all sorts; whatever it was, the checkpoint is
            # not there, and the run must not go on as if it were.
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnwritableCheckpointError(
                f"checkpoint {checkpoint} could not be written ({cause}); see to space and "
                "permissions there: the same command goes on from the one before it"
            ) from error
        if jax.process_index() == 0:
            try:
                self._remove_old()
            except Exception:
                # Cleaning up fails alone: what is there too long harms no checkpoint.
                logging.exception("Old checkpoints in %s could not be sorted out", self._directory)

    def _remove_old(self) -> None:
        for step in self._retention.steps_to_remove(all_steps(self._directory)):
            checkpoint = get_checkpoint_dir(self._directory, step)
            logging.info("Removing %s", checkpoint)
            try:
                remove_checkpoint(checkpoint)
            except OSError:
                logging.exception("%s could not be removed", checkpoint)
        if self._keep_positions:
            positions = all_dataset_checkpoint_steps(self._directory)
            for step in positions[: -self._keep_positions]:
                (epath.Path(get_checkpoint_dir(self._directory, step)) / DATASET_ITEM).rmtree()
