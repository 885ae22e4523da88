"""A loss that is not finite: stops the run and keeps the batch, to be trained on again.

Gradients may be NaN under a finite loss: before parameters are saved, they are looked at too. The
loss of a step is looked at two steps later, when the devices have long computed it, so that
looking never makes them wait. Every process looks at the same step at the same time and stops
there.
"""

import collections
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from absl import logging
from etils import epath

from t5x.run.files import write_whole

_LAG = 2
_DIRECTORY = "non_finite_loss"


class NonFiniteLossError(FloatingPointError):
    """The loss, or a parameter, became NaN or infinite."""


class LossWatch:
    """Looks at the loss of every step and raises when it is not finite.

    Args:
      directory: MODEL_DIR, where the batch is saved; None saves nothing.
      is_skipped: the optimizer leaves out updates that are NaN: a loss that is not finite is logged
        and the run goes on.
    """

    def __init__(self, directory: str | None, is_skipped: bool = False) -> None:
        self._directory, self._is_skipped = directory, is_skipped
        self._pending: collections.deque[tuple[int, Any, Any, Any]] = collections.deque()
        self._last: tuple[int, Any, Any] | None = None

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
        self._last = (step, batch, name_tasks)
        self._pending.append((step, loss, batch, name_tasks))
        if len(self._pending) > _LAG:
            self._check(*self._pending.popleft())

    def check(self) -> None:
        """Looks at all that is left; raises as `note` does."""
        while self._pending:
            self._check(*self._pending.popleft())

    def check_parameters(self, params: Any, step: int) -> None:
        """Looks at the parameters after the last step noted, whose loss may hide its gradients.

        Args:
          params: nested dictionary of the parameters.
          step: the step they are of.

        Raises:
          NonFiniteLossError: one of them has a number that is NaN or infinite.
        """
        flat, _ = jax.tree_util.tree_flatten_with_path(params)
        finite = jax.device_get(_are_finite([leaf for _, leaf in flat]))
        bad = [
            "/".join(str(getattr(key, "key", key)) for key in path)
            for (path, _), is_finite in zip(flat, finite, strict=True)
            if not is_finite
        ]
        if not bad:
            return
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        message = f"parameters are not finite after step {step} ({bad[0]}{more})"
        if self._last is not None and self._last[0] == step:
            message += ", though its loss is"
            message += self._keep(*self._last, "finite")
        raise NonFiniteLossError(
            f"{message}; they are not saved: go on from the last checkpoint with a lower learning "
            "rate, or in float32"
        )

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
        message = f"the loss of step {step} is {value}"
        if self._is_skipped:
            logging.warning("%s; updates that are NaN are left out (skip_nan_updates)", message)
            return
        raise NonFiniteLossError(
            f"{message}{self._keep(step, batch, name_tasks, value)}; go on from the last "
            "checkpoint with a lower learning rate, or in float32"
        )

    def _keep(
        self,
        step: int,
        batch: Mapping[str, jax.Array],
        name_tasks: Callable[[], Sequence[str]],
        loss: float | str,
    ) -> str:
        """Saves a batch; returns what to say of it."""
        tasks, text = name_tasks(), ""
        if tasks:
            shown = ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
            text = f", on examples of {shown}"
        if self._directory is None:
            return text
        try:
            path = save_batch(self._directory, step, batch, tasks, loss)
        except Exception as error:  # whatever it is, it is not what ends the run
            logging.exception("the batch of step %d is not saved", step)
            return f"{text}; its batch could not be saved ({type(error).__name__}: {error})"
        return f"{text}; its batch is saved in {path}, see t5x.trainer.replay"


@jax.jit
def _are_finite(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def save_batch(
    directory: epath.PathLike,
    step: int,
    batch: Mapping[str, jax.Array],
    tasks: Sequence[str],
    loss: float | str,
) -> epath.Path:
    """Writes this process's rows of a batch, and what is known of them.

    Returns:
      The folder: `process_I_of_N.npz` of each process and `batch.json`.
    """
    path = epath.Path(directory) / _DIRECTORY / f"step_{step}"
    path.mkdir(parents=True, exist_ok=True)
    rows = {name: _local_rows(values) for name, values in batch.items()}
    name = f"process_{jax.process_index()}_of_{jax.process_count()}"
    content = io.BytesIO()  # a bucket's files cannot be sought in
    np.savez_compressed(content, **rows)
    write_whole(path / f"{name}.npz", content.getvalue())
    facts = {"step": step, "loss": str(loss), "tasks": list(tasks)}
    write_whole(path / f"{name}.json", json.dumps(facts, indent=1))
    return path


def _local_rows(values: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
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
