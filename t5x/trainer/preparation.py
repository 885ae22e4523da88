"""What training, precompilation and planning do alike before a step: shapes, state, the trace."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from t5x import partitioning
from t5x.checkpoints.restoring import TrainStateInitializer
from t5x.data.shapes import batch_shapes


def make_initializer(
    initializer_cls: Callable[..., TrainStateInitializer],
    model: Any,
    partitioner: partitioning.PjitPartitioner,
    dataset_cfg: Any,
) -> TrainStateInitializer:
    """What makes the train state of a model for the batches of a dataset."""
    layout = partitioner.get_data_layout(dataset_cfg.batch_size)
    batch = batch_shapes(model, dataset_cfg, layout.batch_size)
    return initializer_cls(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: x.shape for name, x in batch.items()},
        partitioner=partitioner,
    )


def lower_train_step(
    trainer_cls: Callable[..., Any],
    model: Any,
    partitioner: partitioning.PjitPartitioner,
    initializer: TrainStateInitializer,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    rng: jax.Array,
) -> jax.stages.Lowered:
    """The very train step of a run, traced from shapes: no array is made.

    Args:
      trainer_cls: the run's trainer.
      model: the model to train.
      partitioner: gives the devices.
      initializer: knows shapes and shardings of the train state.
      batch: shape of each feature of the global batch.
      rng: the run's key, which is compiled in.
    """
    with trainer_cls(
        model=model,
        train_state=initializer.global_train_state_shape,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=rng,
    ) as trainer:
        return trainer.lower_train(batch)
