"""Evaluates checkpoints: `python -m t5x.eval --gin_file=EVAL.gin [--gin.NAME=VALUE ...]`."""

if __name__ == "__main__":  # a mistake is told before the imports below, which take seconds
    from t5x import cli

    cli.check("evaluate")

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import seqio
from absl import logging
from etils import epath

from t5x import checkpoints, gin_utils, models, partitioning, train_state, utils
from t5x import trainer as trainer_lib
from t5x.data.remarks import say_remarks
from t5x.run.console import console
from t5x.run.files import write_whole
from t5x.run.progress import format_seconds


class InferenceEvaluator:
    """Runs SeqIO's metrics of a task or mixture with a model's parameters.

    Args:
      infer_eval_dataset_cfg: what to evaluate on.
      inference_evaluator_cls: `seqio.Evaluator` or one with its interface. One whose attribute
        `scores_tokens` is true gets (row scores, intermediates) from its score function, with
        every token's score in them, and `batch_size` and `params` as further arguments.
      model: gives predict_batch, predict_batch_with_aux and score_batch.
      partitioner: jits them.
      log_dir: parent of the folder "inference_eval" that results go to; None writes none.
      verify_matching_vocabs_fn: checks task against model; None for no check.
    """

    def __init__(
        self,
        infer_eval_dataset_cfg: utils.DatasetConfig,
        inference_evaluator_cls: Callable[..., Any],
        model: models.BaseModel,
        partitioner: partitioning.PjitPartitioner,
        log_dir: str | None = None,
        verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
    ) -> None:
        cfg = infer_eval_dataset_cfg
        if verify_matching_vocabs_fn and isinstance(model, models.BaseTransformerModel):
            verify_matching_vocabs_fn(cfg, model)
        self._model = model
        self._partitioner = partitioner
        self._batch_size = cfg.batch_size
        logs = {"log_dir": f"{log_dir}/inference_eval"} if log_dir else {"logger_cls": ()}
        if log_dir and jax.process_index() == 0:
            # SeqIO's loggers count on one another to make it.
            epath.Path(logs["log_dir"]).mkdir(parents=True, exist_ok=True)
        self._evaluator = inference_evaluator_cls(
            mixture_or_task_name=cfg.mixture_or_task_name,
            feature_converter=model.FEATURE_CONVERTER_CLS(pack=False),
            eval_split=cfg.split,
            use_cached=cfg.use_cached,
            seed=cfg.seed,
            sequence_length=cfg.task_feature_lengths,
            use_memory_cache=cfg.use_memory_cache,
            **logs,
        )
        self._functions: dict[str, Callable[..., Any]] | None = None
        # What SeqIO's evaluator has read.
        for name, examples in getattr(self._evaluator, "cached_task_datasets", {}).items():
            if not len(examples):
                raise ValueError(
                    f"'{name}' has no rows in split '{cfg.split}' to evaluate on; choose another "
                    "DatasetConfig.split"
                )

    @property
    def model_feature_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each model feature of one example."""
        return self._evaluator.model_feature_shapes

    @property
    def eval_tasks(self) -> Sequence[seqio.Task]:
        """Tasks that have the split and a metric."""
        return self._evaluator.eval_tasks

    def close(self) -> None:
        """Waits until metrics are written."""
        self._evaluator.close()

    def evaluate(
        self, train_state: train_state.TrainState, train_state_axes: train_state.TrainState
    ) -> Any:
        """Evaluates all tasks; the metrics are in the returned future."""
        scores_tokens = getattr(self._evaluator, "scores_tokens", False)
        if self._functions is None:
            score = self._model.score_batch
            if scores_tokens:
                # An evaluator that packs rows sums the tokens of each segment itself.
                score = functools.partial(score, return_intermediates=True)
            self._functions = {
                name: utils.get_infer_fn(
                    step,
                    self._batch_size,
                    train_state_axes,
                    self._partitioner,
                    keep_aux_as_numpy=scores_tokens,
                )
                for name, step in (
                    ("predict", self._model.predict_batch),
                    ("predict_with_aux", self._model.predict_batch_with_aux),
                    ("score", score),
                )
            }
        bind = functools.partial
        rng = jax.random.PRNGKey(0)
        functions = self._functions
        further: dict[str, Any] = {}
        if scores_tokens:
            further = {"batch_size": self._batch_size, "params": train_state.params}
        metrics, _ = self._evaluator.evaluate(
            compute_metrics=jax.process_index() == 0,
            step=int(utils.get_local_data(train_state.step)),
            predict_fn=bind(functions["predict"], train_state=train_state, rng=rng),
            score_fn=bind(functions["score"], train_state=train_state),
            predict_with_aux_fn=bind(
                functions["predict_with_aux"], train_state=train_state, rng=rng
            ),
            **further,
        )
        return metrics


def evaluate(
    *,
    model: models.BaseTransformerModel,
    dataset_cfg: utils.DatasetConfig,
    restore_checkpoint_cfg: utils.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    inference_evaluator_cls: Callable[..., Any] = seqio.Evaluator,
    training_evaluator_cls: Callable[..., trainer_lib.BaseTrainer] | None = None,
    summarize_config_fn: Callable[..., None] = gin_utils.summarize_gin_config,
    train_state_initializer_cls: type[utils.TrainStateInitializer] = utils.TrainStateInitializer,
    train_eval_get_dataset_fn: Callable[..., Any] = utils.get_training_eval_datasets,
    fallback_init_rng: int | None = None,
    use_orbax: bool = True,
) -> None:
    """Evaluates one checkpoint, or each of a directory (restore mode "all").

    Args:
      model: the model.
      dataset_cfg: what to evaluate on.
      restore_checkpoint_cfg: which checkpoints; those a former run of mode "all" finished are
        skipped.
      partitioner: shards parameters and data over the devices.
      output_dir: where results go.
      inference_evaluator_cls: SeqIO evaluator class.
      training_evaluator_cls: trainer whose teacher-forced metrics are wanted too, or None.
      summarize_config_fn: writes the configuration.
      train_state_initializer_cls: makes the train state.
      train_eval_get_dataset_fn: reads the data of `training_evaluator_cls`.
      fallback_init_rng: seed for what a checkpoint lacks.
      use_orbax: accepted without effect.

    Raises:
      ValueError: nothing to evaluate, or no checkpoint.
    """
    started = time.monotonic()
    epath.Path(output_dir).mkdir(parents=True, exist_ok=True)
    console.move_log(output_dir, "eval.log")
    summarize_config_fn(model_dir=output_dir, summary_writer=None, step=0)
    restore_checkpoint_cfg.strict = False  # only parameters are wanted
    done_file = epath.Path(output_dir) / f"eval.{dataset_cfg.mixture_or_task_name}.ckpt"
    cfg, paths = utils.get_first_valid_restore_config_and_paths([restore_checkpoint_cfg])
    if cfg is not None and cfg.mode == "all":
        paths = [path for path in paths if path not in _read_done(done_file)]
    if cfg is None:
        raise ValueError(
            f"no checkpoint under '{restore_checkpoint_cfg.path}'; set CHECKPOINT_PATH to one or "
            "train first"
        )
    for path in paths:
        if not epath.Path(path).exists():
            raise FileNotFoundError(f"checkpoint '{path}' does not exist; set CHECKPOINT_PATH")

    steps = [step for step in map(_step_of, paths) if step is not None]
    if len(set(steps)) < len(steps):
        raise _several_of_one_step(max(steps, key=steps.count))

    evaluator = InferenceEvaluator(
        dataset_cfg, inference_evaluator_cls, model, partitioner, log_dir=output_dir
    )
    if not evaluator.eval_tasks:
        raise ValueError(
            f"'{dataset_cfg.mixture_or_task_name}' has no metrics to evaluate on split "
            f"'{dataset_cfg.split}'; choose another DatasetConfig.split"
        )
    shapes = {
        name: (dataset_cfg.batch_size, *shape)
        for name, shape in evaluator.model_feature_shapes.items()
    }
    initializer = train_state_initializer_cls(
        optimizer_def=None,
        init_fn=model.get_initial_variables,
        input_shapes=shapes,
        partitioner=partitioner,
    )
    axes = initializer.train_state_axes
    utils.log_model_info(
        f"{output_dir}/model-info.txt", initializer.global_train_state_shape, partitioner
    )
    console.header(
        "t5x eval",
        {
            "checkpoints": ", ".join(paths) or "all evaluated already",
            "data": f"{dataset_cfg.mixture_or_task_name} ({len(evaluator.eval_tasks)} tasks, split "
            f"'{dataset_cfg.split}'), batch {dataset_cfg.batch_size}",
            "output": output_dir,
            "log": str(console.log_path or "terminal"),
        },
    )
    evaluate_under_teacher_forcing = _make_training_eval(
        training_evaluator_cls,
        train_eval_get_dataset_fn,
        model,
        dataset_cfg,
        partitioner,
        axes,
        output_dir,
    )
    seed = None if fallback_init_rng is None else jax.random.PRNGKey(fallback_init_rng)
    evaluated = set()
    for path in paths:
        state, manager = utils.create_checkpoint_manager_and_restore(
            initializer, partitioner, cfg, path, seed, use_orbax=use_orbax
        )
        manager.close()
        step = int(utils.get_local_data(state.step))
        if step in evaluated:
            raise _several_of_one_step(step)
        evaluated.add(step)
        evaluate_under_teacher_forcing(state)
        metrics = evaluator.evaluate(state, axes).result() or {}
        utils.sync_global_devices(f"evaluated {path}")
        if jax.process_index() == 0:
            done = dict.fromkeys((*_read_done(done_file), path))
            write_whole(done_file, "\n".join(done))
        logging.info("metrics of %s: %s", path, metrics)
        console.say(
            f"evaluated {path}: {len(metrics)} tasks, "
            f"{format_seconds(time.monotonic() - started)} since start"
        )
    evaluator.close()
    say_remarks(dataset_cfg)


def _make_training_eval(
    trainer_cls: Callable[..., trainer_lib.BaseTrainer] | None,
    get_datasets: Callable[..., Any],
    model: models.BaseModel,
    cfg: utils.DatasetConfig,
    partitioner: partitioning.PjitPartitioner,
    axes: Any,
    output_dir: str,
) -> Callable[[train_state.TrainState], None]:
    """A function that writes teacher-forced metrics of a state; does nothing without a trainer."""
    if trainer_cls is None:
        return lambda state: None
    layout = partitioner.get_data_layout(cfg.batch_size)
    data = get_datasets(
        cfg,
        layout.shard_id,
        layout.num_shards,
        feature_converter_cls=model.FEATURE_CONVERTER_CLS,
    )
    trainer = trainer_cls(
        model=model,
        train_state=None,
        partitioner=partitioner,
        train_state_axes=axes,
        eval_names=list(data),
        summary_dir=output_dir,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=None,
        num_microbatches=None,
    )

    def run(state: train_state.TrainState) -> None:
        trainer.train_state = state
        trainer.eval({name: ds.as_numpy_iterator() for name, ds in data.items()})

    return run


def _read_done(file: epath.Path) -> Collection[str]:
    """Checkpoints that are evaluated already."""
    return file.read_text().split("\n") if file.exists() else ()


def _step_of(path: str) -> int | None:
    """The step that a checkpoint's name says; None where it has another name."""
    try:
        return checkpoints.get_step_from_checkpoint_dir(path)[1]
    except ValueError:
        return None


def _several_of_one_step(step: int) -> ValueError:
    return ValueError(
        "results are kept by step, and RestoreCheckpointConfig.path names several checkpoints "
        f"of step {step}; evaluate each into its own EVAL_OUTPUT_DIR"
    )


if __name__ == "__main__":
    cli.run(evaluate)
