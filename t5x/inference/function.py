"""Runs a prediction or scoring step over an enumerated dataset, on every process."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax.experimental import multihost_utils

from t5x import partitioning
from t5x.data.iterator import shard_batch
from t5x.run.console import console

InferFunction = Callable[..., Any]
PADDING_INDEX = -1


def get_infer_fn(
    infer_step: Callable[..., Any],
    batch_size: int,
    train_state_axes: Any,
    partitioner: partitioning.PjitPartitioner,
    keep_aux_as_numpy: bool = False,
) -> InferFunction:
    """Makes the function that SeqIO's evaluator calls with an enumerated dataset.

    Args:
      infer_step: (params, batch[, rng][, flax_mutables]) → results with a leading batch dimension,
        or (results, auxiliary mapping).
      batch_size: rows of the global batch; the last one is filled up and cut again.
      train_state_axes: PartitionSpecs of the train state.
      partitioner: jits the step over its mesh.
      keep_aux_as_numpy: leave auxiliary values as arrays instead of lists.

    Returns:
      infer_fn(ds, train_state, rng=None) → [(index, result), ...] in the dataset's order, with the
      auxiliary mapping beside it where the step gives one.
    """
    parameters = inspect.signature(infer_step).parameters

    def step(params: Any, batch: Any, rng: Any, indices: jax.Array, mutables: Any) -> Any:
        extra = {}
        if "rng" in parameters:
            extra["rng"] = rng
        if "flax_mutables" in parameters:
            extra["flax_mutables"] = mutables
        return indices, infer_step(params, batch, **extra)

    data_spec = partitioner.data_partition_spec
    partitioned_step = partitioner.partition(
        step,
        in_axis_resources=(
            train_state_axes.params,
            data_spec,
            None,
            data_spec,
            train_state_axes.flax_mutables,
        ),
        out_axis_resources=(None, None),
    )
    layout = partitioner.get_data_layout(batch_size)

    def infer_fn(ds: tf.data.Dataset, train_state: Any, rng: jax.Array | None = None) -> Any:
        total = len(ds)
        batches = _read_shard(ds, total, batch_size, layout)
        results = []
        for index, batch in console.track(batches.as_numpy_iterator(), len(batches), "batch"):
            step_rng = None
            if rng is not None:
                step_rng, rng = jax.random.split(rng)
            sharded = shard_batch({**batch, "": index}, partitioner, batch_size)
            index = sharded.pop("")
            # Results are fetched after the next batch is on its way.
            results.append(
                partitioned_step(
                    train_state.params, sharded, step_rng, index, train_state.flax_mutables
                )
            )
            if len(results) > 1:
                results[-2] = jax.device_get(results[-2])
        results[-1:] = [jax.device_get(result) for result in results[-1:]]
        indices = np.concatenate([index for index, _ in results])
        values = jax.tree.map(
            lambda *parts: np.concatenate(parts), *[value for _, value in results]
        )
        return _in_order(indices, values, total, keep_aux_as_numpy)

    return infer_fn


def _read_shard(
    ds: tf.data.Dataset, total: int, batch_size: int, layout: partitioning.DataLayout
) -> tf.data.Dataset:
    """This process's share of the dataset in whole batches; fillers carry PADDING_INDEX."""
    if jax.process_count() > 1:
        multihost_utils.assert_equal(
            np.int32(total), "processes see evaluation datasets of different lengths"
        )
    fill = -total % batch_size
    if fill:
        first = ds.take(1).map(lambda index, row: (tf.constant(PADDING_INDEX, tf.int64), row))
        ds = ds.concatenate(first.cache().repeat(fill))
    return ds.shard(layout.num_shards, layout.shard_id).batch(
        batch_size // layout.num_shards, drop_remainder=True
    )


def _in_order(indices: np.ndarray, values: Any, total: int, keep_aux_as_numpy: bool) -> Any:
    """Pairs every example's index with its result; fillers dropped, dataset order restored."""
    order = np.argsort(indices, kind="stable")
    order = order[indices[order] != PADDING_INDEX]
    if not np.array_equal(indices[order], np.arange(total)):
        raise ValueError(f"inference returned {len(order)} results for {total} examples")
    values = jax.tree.map(lambda array: array[order], values)
    auxiliary: Mapping[str, Sequence[Any]] | None = None
    if isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], Mapping):
        values, auxiliary = values
    leaves, structure = jax.tree.flatten(values)
    rows = zip(*[leaf.tolist() for leaf in leaves], strict=True)
    pairs = [(i, jax.tree.unflatten(structure, row)) for i, row in enumerate(rows)]
    if auxiliary is None:
        return pairs
    as_list = list if keep_aux_as_numpy else np.ndarray.tolist
    return pairs, {
        name: jax.tree.map(lambda array: as_list(np.asarray(array)), value)
        for name, value in auxiliary.items()
    }
