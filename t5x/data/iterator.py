"""Global batches on the mesh from the batches of each process, with a position to save."""

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import clu.data.dataset_iterator as clu_iterator
import jax
import numpy as np
import tensorflow as tf
from absl import logging
from etils import epath

from t5x import partitioning
from t5x.checkpoints.fingerprints import describe_batches
from t5x.data import provenance

_NO_POSITION = "the position in the data cannot be saved: a restart reads it from the beginning"
_NO_POSITION_SUFFIX = ".unsaved"


class ShardedDatasetIterator(clu_iterator.DatasetIterator):
    """Turns the batches of one process into global arrays on the mesh.

    Its state is the underlying iterator's: what was handed out is what was consumed.

    Args:
      iterator: batches of this process.
      partitioner: gives mesh and sharding.
      batch_size: rows of the global batch.
      task_names: of the numbers in the batches' `provenance.FEATURE`.
      must_save: whether a dataset whose position cannot be saved (one read by a Python generator,
        say) is an error. If not, that is logged and a restart reads from the beginning.
      fingerprint: describes the data, see `t5x.data.fingerprints`; by default its batches do.
    """

    def __init__(
        self,
        iterator: clu_iterator.DatasetIterator,
        partitioner: partitioning.PjitPartitioner,
        batch_size: int,
        must_save: bool = False,
        task_names: Sequence[str] = (),
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        self._iterator = iterator
        self.fingerprint = fingerprint or describe_batches(iterator)
        self._task_names = tuple(task_names)
        self._task_numbers: np.ndarray | None = None
        self._partitioner = partitioner
        self._batch_size = batch_size
        self._must_save = must_save

    def __iter__(self) -> Iterator[Mapping[str, jax.Array]]:
        return self

    def __next__(self) -> Mapping[str, jax.Array]:
        batch = dict(next(self._iterator))
        self._task_numbers = batch.pop(provenance.FEATURE, None)
        return shard_batch(batch, self._partitioner, self._batch_size)

    def describe_batch(self) -> Callable[[], tuple[str, ...]]:
        """What names the tasks of the batch handed out last, on this process."""
        return functools.partial(provenance.name_tasks, self._task_numbers, self._task_names)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that rows come from, where they are known."""
        return self._task_names

    def count(self) -> dict[str, float]:
        """What the steps so far have read, by the names of metrics; empty where it is not counted.

        See `t5x.data.prepared.PreparedIterator.count`.
        """
        count = getattr(self._iterator, "count", None)
        return count() if count else {}

    def close(self) -> None:
        """Ends the underlying iterator and its threads; nothing can be read or saved afterwards.

        Threads of tf.data that call Python never return from an interpreter that shuts down, and
        the process would wait for them.
        """
        self._iterator, closed = None, self._iterator
        if hasattr(closed, "close"):
            closed.close()
        # tf.data ends an iterator with its last reference, and checkpoints refer to it in circles.
        del closed
        gc.collect()

    def reset(self) -> None:
        """Starts the underlying dataset again."""
        self._iterator.reset()

    @property
    def element_spec(self) -> Mapping[str, Any]:
        """Shape and dtype of each feature of this process's batch."""
        spec = self._iterator.element_spec
        return {name: value for name, value in spec.items() if name != provenance.FEATURE}

    @property
    def global_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, dtype and sharding of each feature of the global batch."""
        sharding = jax.sharding.NamedSharding(
            self._partitioner.mesh, self._partitioner.data_partition_spec
        )
        return {
            name: jax.ShapeDtypeStruct(
                (self._batch_size, *spec.shape[1:]), spec.dtype, sharding=sharding
            )
            for name, spec in self.element_spec.items()
        }

    @property
    def iterator(self) -> Any:
        """The underlying iterator."""
        return self._iterator

    def save(self, filename: str) -> None:
        """Writes the position to files that start with `filename`.

        Raises:
          ValueError: the dataset does not allow it and `must_save` is set.
        """
        try:
            self._iterator.save(filename)
        except (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError) as error:
            reason = str(error).split("\n")[0]
            if self._must_save:
                raise ValueError(
                    "SaveCheckpointConfig.save_dataset = True, but this dataset's position cannot "
                    f"be saved: {reason}"
                ) from error
            logging.log_first_n(logging.WARNING, "%s: %s", 1, _NO_POSITION, reason)
            epath.Path(f"{filename}{_NO_POSITION_SUFFIX}").write_text(reason)

    def restore(self, filename: str) -> None:
        """Goes back to a position written by `save`; stays put, logged, where it had none."""
        if epath.Path(f"{filename}{_NO_POSITION_SUFFIX}").exists():
            logging.warning(_NO_POSITION)
            return
        self._iterator.restore(filename)


def shard_batch(
    batch: Mapping[str, np.ndarray], partitioner: partitioning.PjitPartitioner, batch_size: int
) -> Mapping[str, jax.Array]:
    """Global arrays of `batch_size` rows from the rows that this process has read."""
    sharding = jax.sharding.NamedSharding(partitioner.mesh, partitioner.data_partition_spec)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.asarray(rows), (batch_size, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def prepare_train_iter(
    train_iter: tf.data.Dataset | clu_iterator.DatasetIterator,
    *,
    partitioner: partitioning.PjitPartitioner,
    checkpoint_cfg: Any = None,
    data_layout: partitioning.DataLayout,
) -> ShardedDatasetIterator:
    """The iterator of global batches that a trainer consumes.

    Raises:
      ValueError: `get_dataset_fn` returned something else than a dataset or a dataset iterator.
    """
    task_names = getattr(train_iter, "task_names", ())
    fingerprint = getattr(train_iter, "fingerprint", None)
    if isinstance(train_iter, tf.data.Dataset):
        train_iter = clu_iterator.TfDatasetIterator(train_iter, checkpoint=True)
    elif not isinstance(train_iter, clu_iterator.DatasetIterator):
        raise ValueError(
            f"train.get_dataset_fn returned {type(train_iter).__name__}; it must return a "
            "tf.data.Dataset or a clu DatasetIterator"
        )
    save = checkpoint_cfg.save if checkpoint_cfg else None
    must_save = bool(save and save.save_dataset)
    return ShardedDatasetIterator(
        train_iter, partitioner, data_layout.batch_size, must_save, task_names, fingerprint
    )
