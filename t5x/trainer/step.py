"""The train step: gradients of the loss over the global batch, one optimizer update, metrics."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x import metrics as metrics_lib
from t5x import models, train_state, utils

Batch = Mapping[str, jax.Array]
Metrics = dict[str, clu.metrics.Metric]
LearningRateFunction = Callable[[jax.Array], jax.Array]


@jax.jit
def merge_metrics(a: Metrics, b: Metrics) -> Metrics:
    """Merges two collections of metrics, name by name."""
    return jax.tree.map(lambda x, y: x.merge(y), a, b, is_leaf=metrics_lib.is_metric_obj)


class WeightMetricsComputer:
    """Norms of weights, gradients and updates, for every parameter (upstream's names)."""

    def compute_metrics(
        self,
        gradients: Any,
        old_train_state: train_state.TrainState,
        new_train_state: train_state.TrainState,
    ) -> Metrics:
        """Metrics "weight_rms/NAME", "weight_gradient_rms/NAME", "weight_gradient_norm", …"""
        old, new = old_train_state.params, new_train_state.params
        update = jax.tree.map(jnp.subtract, new, old)
        relative_update = jax.tree.map(jnp.divide, update, old)
        squares = [jnp.vdot(g, g) for g in jax.tree.leaves(gradients)]
        average = metrics_lib.AveragePerStep.from_model_output
        metrics = {"weight_gradient_norm": average(jnp.sqrt(sum(squares)))}
        for name, tree in (
            ("weight_rms", new),
            ("weight_gradient_rms", gradients),
            ("weight_update_rms", update),
            ("weight_update_divided_by_weight_rms", relative_update),
        ):
            for key, leaf in utils.flatten_dict_string_keys(tree).items():
                metrics[f"{name}/{key}"] = average(jnp.sqrt(jnp.mean(jnp.square(leaf))))
        for key, leaf in utils.flatten_dict_string_keys(new).items():
            metrics[f"weight_max/{key}"] = average(jnp.max(jnp.abs(leaf)))
        return metrics


def accumulate_grads_microbatched(
    model: models.BaseModel,
    train_state: train_state.TrainState,
    batch: Batch,
    dropout_rng: jax.Array,
    num_microbatches: int | None,
    data_partition_spec: PartitionSpec = PartitionSpec("data"),  # noqa: B008 (a constant)
) -> tuple[Any, Metrics, Any]:
    """Gradients and metrics of a batch, summed over microbatches.

    Microbatch i holds the rows i, i + n, i + 2n, …: each device keeps its own rows, where
    contiguous slices would send the batch over the network.

    Args:
      model: gives `loss_fn`, whose loss must be a sum over rows for the sum of microbatches to
        equal the whole.
      train_state: parameters, and mutable collections if the model has any.
      batch: features of (batch, …).
      dropout_rng: key of this step.
      num_microbatches: number of microbatches; None or 1 takes the batch whole.
      data_partition_spec: sharding of the batch dimension.

    Returns:
      (gradients, metrics, mutable collections or None).

    Raises:
      ValueError: the batch does not divide.
    """
    mutables = train_state.flax_mutables or None
    grad_fn = jax.value_and_grad(model.loss_fn, has_aux=True)

    def gradients(rows: Batch, rng: jax.Array, mutables: Any) -> tuple[Any, Metrics, Any]:
        if mutables is None:
            (_, metrics), grads = grad_fn(train_state.params, rows, rng)
            return grads, metrics, None
        (_, (metrics, mutables)), grads = grad_fn(train_state.params, rows, rng, mutables)
        return grads, metrics, mutables

    if num_microbatches is None or num_microbatches <= 1:
        return gradients(batch, dropout_rng, mutables)

    batch_size = next(iter(batch.values())).shape[0]
    if batch_size % num_microbatches:
        raise ValueError(
            f"Trainer.num_microbatches = {num_microbatches} does not divide BATCH_SIZE = "
            f"{batch_size}"
        )
    if isinstance(model, models.BaseTransformerModel):
        batch = model.batch_for_microbatches(batch)

    def split(rows: jax.Array) -> jax.Array:
        rows = rows.reshape(-1, num_microbatches, *rows.shape[1:]).swapaxes(0, 1)
        if jax.sharding.get_abstract_mesh().empty:
            return rows
        return jax.lax.with_sharding_constraint(rows, PartitionSpec(None, *data_partition_spec))

    def accumulate(carry: tuple[Any, Any], x: tuple[Batch, jax.Array]) -> tuple[Any, Metrics]:
        total, mutables = carry
        rows, rng = x
        grads, metrics, mutables = gradients(rows, rng, mutables)
        return (jax.tree.map(jnp.add, total, grads), mutables), metrics

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), train_state.params)
    rngs = jax.random.split(dropout_rng, num_microbatches)
    (grads, mutables), stacked = jax.lax.scan(
        accumulate, (zeros, mutables), (jax.tree.map(split, dict(batch)), rngs)
    )
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(num_microbatches)]
    return grads, functools.reduce(merge_metrics, each), mutables


def apply_grads(
    train_state: train_state.TrainState,
    grad_accum: Any,
    metrics: Metrics,
    learning_rate: jax.Array,
    weight_metrics_computer: WeightMetricsComputer | None,
    other_state_variables: Mapping[str, Any] | None = None,
) -> tuple[train_state.TrainState, Metrics]:
    """One optimizer update; adds the learning rate and weight metrics."""
    new_state = train_state.apply_gradient(
        grad_accum, learning_rate=learning_rate, **(other_state_variables or {})
    )
    rate = jnp.asarray([learning_rate])
    metrics = {
        **metrics,
        "learning_rate": clu.metrics.Average.from_model_output(rate),
        "learning_rate/current": clu.metrics.LastValue.from_model_output(rate),
    }
    if weight_metrics_computer is not None:
        metrics |= weight_metrics_computer.compute_metrics(grad_accum, train_state, new_state)
    return new_state, metrics


def train_with_lr(
    train_state: train_state.TrainState,
    batch: Batch,
    learning_rate: jax.Array,
    dropout_rng: jax.Array,
    model: models.BaseModel,
    num_microbatches: int | None,
    weight_metrics_computer: WeightMetricsComputer | None = None,
    data_partition_spec: PartitionSpec = PartitionSpec("data"),  # noqa: B008 (a constant)
) -> tuple[train_state.TrainState, Metrics]:
    """The train step: gradients, then one update."""
    grads, metrics, mutables = accumulate_grads_microbatched(
        model, train_state, batch, dropout_rng, num_microbatches, data_partition_spec
    )
    return apply_grads(
        train_state,
        grads,
        metrics,
        learning_rate,
        weight_metrics_computer,
        {"flax_mutables": mutables} if mutables else None,
    )


def eval_step(
    model: models.BaseModel, train_state: train_state.TrainState, batch: Batch
) -> Metrics:
    """Metrics of a batch under teacher forcing."""
    mutables = (train_state.flax_mutables,) if train_state.flax_mutables else ()
    return model.eval_fn(train_state.params, batch, *mutables)[1]
