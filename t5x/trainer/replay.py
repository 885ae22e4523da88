"""A loss that is not finite: stops the run and keeps the batch, to be trained on again.

The loss of a step is looked at two steps later, when the devices have long computed it, so that
looking never makes them wait. Every process looks at the same step at the same time and stops
there.
"""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np
import tensorflow as tf
from etils import epath

_LAG = 2
_DIRECTORY = "non_finite_loss"


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite."""


class LossWatch:
    """Looks at the loss of every step and raises when it is not finite.

    Args:
      directory: MODEL_DIR, where the batch is saved; None saves nothing.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._pending: collections.deque[tuple[int, Any, Any, Any]] = collections.deque()

    def note(
        self,
        step: int,
        loss: jax.Array,
        batch: Mapping[str, jax.Array],
        name_tasks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Takes note of a dispatched step and looks at an earlier one.

        Args:
          step: the step that this batch made, from 1.
          loss: its loss, a scalar that may not be computed yet.
          batch: its global batch.
          name_tasks: names the tasks it has examples of.

        Raises:
          NonFiniteLossError: an earlier loss is NaN or infinite.
        """
        self._pending.append((step, loss, batch, name_tasks))
        if len(self._pending) > _LAG:
            self._check(*self._pending.popleft())

    def check(self) -> None:
        """Looks at all that is left; raises as `note` does."""
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(
        self,
        step: int,
        loss: jax.Array,
        batch: Mapping[str, jax.Array],
        name_tasks: Callable[[], Sequence[str]],
    ) -> None:
        value = float(loss)
        if np.isfinite(value):
            return
        tasks = name_tasks()
        message = f"the loss of step {step} is {value}"
        if tasks:
            shown = ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
            message += f", on examples of {shown}"
        if self._directory is not None:
            path = save_batch(self._directory, step, batch, tasks, value)
            message += f"; its batch is saved in {path}, see t5x.trainer.replay"
        raise NonFiniteLossError(
            f"{message}; go on from the last checkpoint with a lower learning rate, or in float32"
        )


def save_batch(
    directory: epath.PathLike,
    step: int,
    batch: Mapping[str, jax.Array],
    tasks: Sequence[str],
    loss: float,
) -> epath.Path:
    """Writes this process's rows of a batch, and what is known of them.

    Returns:
      The folder: `process_I_of_N.npz` of each process and `batch.json`.
    """
    path = epath.Path(directory) / _DIRECTORY / f"step_{step}"
    path.mkdir(parents=True, exist_ok=True)
    rows = {name: _local_rows(values) for name, values in batch.items()}
    name = f"process_{jax.process_index()}_of_{jax.process_count()}"
    with (path / f"{name}.npz").open("wb") as file:
        np.savez_compressed(file, **rows)
    facts = {"step": step, "loss": str(loss), "tasks": list(tasks)}
    (path / f"{name}.json").write_text(json.dumps(facts, indent=1))
    return path


def _local_rows(values: jax.Array) -> np.ndarray:
    # Devices that differ only in model parallelism hold the same rows.
    shards = {shard.index[0].start or 0: shard.data for shard in values.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


@gin.configurable(module="t5x.trainer.replay")
def get_saved_batch(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    *,
    path: str,
    **unused: Any,
) -> tf.data.Dataset:
    """The saved batch over and over, in place of `utils.get_dataset`.

    In gin: `train.get_dataset_fn = @replay.get_saved_batch` and
    `replay.get_saved_batch.path = "MODEL_DIR/non_finite_loss/step_N"`.

    Raises:
      ValueError: the batch was saved by another number of processes, or has another size.
    """
    del feature_converter_cls, unused
    files = sorted(epath.Path(path).glob("process_*.npz"))
    if not files:
        raise ValueError(f"replay.get_saved_batch.path = {path} holds no saved batch")
    batches = []
    for file in files:
        with file.open("rb") as opened, np.load(opened) as saved:
            batches.append({name: saved[name] for name in saved.files})
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    count = len(next(iter(rows.values())))
    if count != cfg.batch_size:
        raise ValueError(
            f"{path} holds {count} rows and DatasetConfig.batch_size is {cfg.batch_size}; bind "
            f"BATCH_SIZE = {count}"
        )
    mine = slice(shard_id * count // num_shards, (shard_id + 1) * count // num_shards)
    return tf.data.Dataset.from_tensors({k: v[mine] for k, v in rows.items()}).repeat()
