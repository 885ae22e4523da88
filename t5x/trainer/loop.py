"""The train step and the loop around it.

A step is one jitted function: gradients of the loss over the global batch (optionally in
microbatches), one optimizer update, metrics. The random key of step n is the run's key folded with
n, so a resumed run needs no history.
"""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp

from t5x import models, partitioning, train_state
from t5x.data.iterator import shard_batch
from t5x.run import former_names
from t5x.trainer import replay
from t5x.trainer.step import (
    Batch,
    LearningRateFunction,
    Metrics,
    WeightMetricsComputer,
    eval_step,
    merge_metrics,
    train_with_lr,
)
from t5x.trainer.summaries import MetricsManager


class BaseTrainer:
    """The loop over a partitioned train step; subclasses give the steps.

    Args:
      model: the model to train.
      train_state: sharded parameters and optimizer state.
      partitioner: jits the steps.
      eval_names: names of the training-evaluation datasets.
      summary_dir: MODEL_DIR, where metrics are written; None writes none.
      train_state_axes: PartitionSpecs of the state.
      rng: the run's key.

    Attributes:
      train_state: the state after the steps dispatched so far.
      stop_training: upstream's; a trainer that sets it ends the run.
    """

    def __init__(
        self,
        model: models.BaseModel,
        train_state: train_state.TrainState,
        partitioner: partitioning.PjitPartitioner,
        eval_names: Sequence[str],
        summary_dir: str | None,
        train_state_axes: Any,
        rng: jax.Array,
        stop_on_non_finite_loss: bool = True,
    ) -> None:
        self._model = model
        self.train_state = train_state
        self._partitioner = partitioner
        self._train_state_axes = train_state_axes
        self._base_rng = rng
        self._compiled_train_step: Callable[..., Any] | None = None
        self._started = time.monotonic()
        self.stop_training = False
        self._loss_watch = None
        if stop_on_non_finite_loss:
            optimizer_def = getattr(model, "optimizer_def", None)
            is_skipped = getattr(optimizer_def, "skips_nan_updates", False) is True
            self._loss_watch = replay.LossWatch(summary_dir, is_skipped)
        self.train_metrics_manager = MetricsManager("train", summary_dir)
        self.eval_metrics_managers = {
            name: MetricsManager(f"training_eval/{name[:113]}", summary_dir) for name in eval_names
        }

    def __enter__(self) -> "BaseTrainer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until all metrics are written."""
        for manager in (self.train_metrics_manager, *self.eval_metrics_managers.values()):
            manager.close()

    def _get_step_rng(self, step: int | jax.Array) -> jax.Array:
        """The key of a step; subclasses written for upstream call it."""
        return jax.random.fold_in(self._base_rng, step)

    @property
    def _partitioned_train_step(self) -> Callable[..., Any]:
        raise NotImplementedError

    @property
    def _partitioned_eval_step(self) -> Callable[..., Any]:
        raise NotImplementedError

    def train(
        self,
        batch_iter: Iterator[Batch],
        num_steps: int,
        start_step: int | None = None,
        after_step: Callable[[int, Metrics], bool] = lambda step, metrics: False,
    ) -> concurrent.futures.Future:
        """Trains for `num_steps`, or fewer.

        Steps are dispatched without waiting for the devices.

        Args:
          batch_iter: global batches.
          num_steps: steps to take, at least 1.
          start_step: steps that the state has behind it; asked of the state when None.
          after_step: called with (step reached, its metrics, still on the devices); True ends here.

        Returns:
          A future of {metric name: clu value} over these steps.
        """
        step_fn = self._compiled_train_step or self._partitioned_train_step
        state, metrics = self.train_state, None
        first = int(state.step) if start_step is None else start_step
        self.train_metrics_manager.start_duration_timer()
        for step in range(first, first + num_steps):
            batch = next(batch_iter)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, update = step_fn(state, batch)
            # The previous state's buffers are donated: whoever asks must get the new one.
            self.train_state = state
            metrics = update if metrics is None else merge_metrics(metrics, update)
            # Metrics are the model's; one that is no sum says nothing here.
            loss = getattr(update.get("loss"), "total", None)
            if self._loss_watch and loss is not None:
                describe = getattr(batch_iter, "describe_batch", None)
                name_tasks = describe() if describe else tuple
                self._loss_watch.note(step + 1, loss, batch, name_tasks)
            if after_step(step + 1, update):
                num_steps = step + 1 - first
                break
        if metrics is None:
            raise ValueError("Trainer.train: num_steps must be at least 1")
        uptime = jnp.asarray([time.monotonic() - self._started])
        metrics = {**metrics, "timing/uptime": clu.metrics.LastValue.from_model_output(uptime)}
        count = getattr(batch_iter, "count", dict)
        if counts := count():
            self.train_metrics_manager.write_scalars(first + num_steps, counts)
        return self.train_metrics_manager.write_metrics_summary(
            metrics, first + num_steps, num_steps
        )

    def check_losses(self) -> None:
        """Waits for the steps dispatched so far; looks at their losses and at the parameters.

        Raises:
          replay.NonFiniteLossError: one is NaN or infinite.
        """
        if self._loss_watch:
            self._loss_watch.check()
            self._loss_watch.check_parameters(self.train_state.params, int(self.train_state.step))

    def lower_train(self, batch: Batch) -> jax.stages.Lowered:
        """The train step traced for batches of this shape; state and batch may be abstract."""
        return self._partitioned_train_step.lower(self.train_state, batch)

    def compile_train(self, batch: Batch) -> None:
        """Compiles the train step for batches of this shape ahead of the first step."""
        tick = time.monotonic()
        self._compiled_train_step = self._partitioner.compile(
            self._partitioned_train_step, self.train_state, batch
        )
        self.train_metrics_manager.write_scalar(
            "timing/compilation_seconds", time.monotonic() - tick, int(self.train_state.step)
        )

    def eval(self, batch_iters: Mapping[str, Iterator[Batch]]) -> dict[str, Mapping[str, Any]]:
        """Metrics of every dataset under teacher forcing, written and returned.

        Raises:
          ValueError: a dataset is empty.
        """
        summaries = {}
        step = int(self.train_state.step)
        num_shards = self._partitioner.get_data_layout().num_shards
        for name, batches in batch_iters.items():
            manager = self.eval_metrics_managers[name]
            manager.start_duration_timer()
            metrics, num_steps = None, 0
            for batch in batches:
                rows = next(iter(batch.values())).shape[0] * num_shards
                sharded = shard_batch(batch, self._partitioner, rows)
                update = self._partitioned_eval_step(self.train_state, sharded)
                metrics = update if metrics is None else merge_metrics(metrics, update)
                num_steps += 1
            if metrics is None:
                raise ValueError(f"training evaluation of '{name}' has no full batch of examples")
            summaries[name] = manager.write_metrics_summary(metrics, step, num_steps)
        return {name: future.result() for name, future in summaries.items()}

    def compile_eval(self, batches: Mapping[str, Batch]) -> None:
        """Accepted for compatibility: equal shapes share one compilation in jit's own cache."""
        del batches


class Trainer(BaseTrainer):
    """Trains with a learning-rate schedule and optional microbatches.

    Args beyond BaseTrainer's:
      learning_rate_fn: step → learning rate.
      num_microbatches: parts that the batch is split in; None for one.
      weight_metrics_computer: adds norms of weights and gradients; None adds none.
      log_weight_metrics: former name of a `weight_metrics_computer`.
      stop_on_non_finite_loss: raise when a loss is NaN or infinite, its batch saved; see `replay`.
    """

    def __init__(
        self,
        model: models.BaseModel,
        train_state: train_state.TrainState,
        partitioner: partitioning.PjitPartitioner,
        eval_names: Sequence[str],
        summary_dir: str | None,
        train_state_axes: Any,
        rng: jax.Array,
        learning_rate_fn: LearningRateFunction,
        num_microbatches: int | None,
        weight_metrics_computer: WeightMetricsComputer | None = None,
        log_weight_metrics: bool = False,
        stop_on_non_finite_loss: bool = True,
    ) -> None:
        if log_weight_metrics and weight_metrics_computer is None:
            former_names.say(
                "trainer.Trainer.log_weight_metrics = True",
                "trainer.Trainer.weight_metrics_computer = @trainer.WeightMetricsComputer()",
            )
            weight_metrics_computer = WeightMetricsComputer()
        self._learning_rate_fn = learning_rate_fn
        self._num_microbatches = num_microbatches
        self._weight_metrics_computer = weight_metrics_computer
        super().__init__(
            model,
            train_state,
            partitioner,
            eval_names,
            summary_dir,
            train_state_axes,
            rng,
            stop_on_non_finite_loss,
        )

    @functools.cached_property
    def _partitioned_train_step(self) -> partitioning.PartitionedFunction:
        def train_step(state: train_state.TrainState, batch: Batch) -> Any:
            return train_with_lr(
                state,
                batch,
                learning_rate=self._learning_rate_fn(state.step),
                dropout_rng=self._get_step_rng(state.step),
                model=self._model,
                num_microbatches=self._num_microbatches,
                weight_metrics_computer=self._weight_metrics_computer,
                data_partition_spec=self._partitioner.data_partition_spec,
            )

        axes = self._train_state_axes
        return self._partitioner.partition(
            train_step,
            in_axis_resources=(axes, self._partitioner.data_partition_spec),
            out_axis_resources=(axes, None),
            donate_argnums=(0,),
        )

    @functools.cached_property
    def _partitioned_eval_step(self) -> partitioning.PartitionedFunction:
        return self._partitioner.partition(
            functools.partial(eval_step, self._model),
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=None,
        )
