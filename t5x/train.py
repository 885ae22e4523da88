"""Trains a model: `python -m t5x.train --gin_file=RUN.gin [--gin.NAME=VALUE ...]`.

Reads top to bottom: data, train state, trainer, evaluator, loop.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from t5x import eval as eval_lib
from t5x import models, partitioning, train_state, utils
from t5x import trainer as trainer_lib
from t5x.checkpoints.directories import get_checkpoint_dir, latest_step, set_aside
from t5x.checkpoints.reading import UnreadableCheckpointError
from t5x.checkpoints.restoring import require_checkpoint
from t5x.run import preemption
from t5x.run.console import console, log_ignored
from t5x.run.progress import format_count, format_seconds
from t5x.trainer import memory

TRAIN_METRIC_KEY = "train"


def train(
    *,
    model: models.BaseTransformerModel,
    train_dataset_cfg: utils.DatasetConfig,
    train_eval_dataset_cfg: utils.DatasetConfig | None,
    infer_eval_dataset_cfg: utils.DatasetConfig | None,
    checkpoint_cfg: utils.CheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    trainer_cls: Callable[..., trainer_lib.BaseTrainer],
    model_dir: str,
    total_steps: int,
    eval_steps: int,
    eval_period: int,
    relative_steps: int | None = None,
    stats_period: int | None = None,
    random_seed: int | None,
    use_hardware_rng: bool = False,
    summarize_config_fn: Callable[..., None],
    inference_evaluator_cls: Callable[..., Any] = seqio.Evaluator,
    get_dataset_fn: Callable[..., Any] = utils.get_dataset,
    concurrent_metrics: bool = True,
    actions: Mapping[str, Sequence[trainer_lib.BaseAction]] | None = None,
    train_eval_get_dataset_fn: Callable[..., Any] = utils.get_training_eval_datasets,
    run_eval_before_training: bool = False,
    train_state_initializer_cls: type[utils.TrainStateInitializer] = utils.TrainStateInitializer,
    use_orbax: bool = True,
    verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
    gc_period: int = 0,
) -> tuple[int, train_state.TrainState]:
    """Trains until `total_steps`, from the newest checkpoint in `model_dir` if there is one.

    Args:
      model: model with its optimizer.
      train_dataset_cfg: what to train on.
      train_eval_dataset_cfg: what to evaluate under teacher forcing; None for nothing.
      infer_eval_dataset_cfg: what to evaluate by SeqIO's metrics; None for nothing.
      checkpoint_cfg: what to save, and what to start from when `model_dir` has no checkpoint.
      partitioner: shards parameters and data over the devices.
      trainer_cls: makes the trainer.
      model_dir: where checkpoints, metrics and logs go.
      total_steps: step to stop at.
      eval_steps: batches of each training evaluation.
      eval_period: steps between evaluations; 0 for never.
      relative_steps: if given, steps to train from the step started at, in place of total_steps.
      stats_period: steps between summaries; the shortest of the periods when None.
      random_seed: seed of initialisation and dropout; None takes the clock's.
      use_hardware_rng: use the accelerator's fast bit generator.
      summarize_config_fn: writes the configuration, (model_dir, summary_writer, step).
      inference_evaluator_cls: SeqIO evaluator class.
      get_dataset_fn: reads `train_dataset_cfg`.
      concurrent_metrics: let metrics be computed while training goes on.
      actions: {"TRAIN" | "TRAIN_EVAL" | "INFER_EVAL": actions} that may stop the run.
      train_eval_get_dataset_fn: reads `train_eval_dataset_cfg`.
      run_eval_before_training: evaluate at the first step too.
      train_state_initializer_cls: makes the train state.
      use_orbax: accepted without effect, checkpoints are always Orbax's.
      verify_matching_vocabs_fn: checks task against model; None for no check.
      gc_period: steps between garbage collections; 0 leaves them to Python.

    Returns:
      (last step, train state).

    Raises:
      preemption.Preempted: SIGTERM came; a checkpoint is saved.
      replay.NonFiniteLossError: the loss became NaN or infinite.
      ValueError: settings that do not fit together; the message names the binding.
    """
    started = time.monotonic()
    epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
    console.move_log(model_dir, "train.log")
    actions = _actions_by_mode(actions)
    for mode in (trainer_lib.ActionMode.TRAIN, trainer_lib.ActionMode.INFER_EVAL):
        if concurrent_metrics and actions.get(mode):
            log_ignored(f"train.actions['{mode.name}']", "bind train.concurrent_metrics = False")
    init_rng, trainer_rng = _make_rngs(random_seed, use_hardware_rng)

    # ---------------------------------------------------------------------------------------------
    # Data
    # ---------------------------------------------------------------------------------------------
    for cfg in (train_dataset_cfg, train_eval_dataset_cfg):
        if cfg and verify_matching_vocabs_fn and isinstance(model, models.BaseTransformerModel):
            verify_matching_vocabs_fn(cfg, model)
    layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
    converter = model.FEATURE_CONVERTER_CLS(pack=train_dataset_cfg.pack)
    lengths = converter.get_model_feature_lengths(train_dataset_cfg.task_feature_lengths)
    initializer = train_state_initializer_cls(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: (layout.batch_size, length) for name, length in lengths.items()},
        partitioner=partitioner,
    )
    # Before anything is read: a model too large for the machine is the commonest mistake.
    memory.check(initializer, partitioner)
    start = checkpoint_cfg.restore
    if start and start.path and start.mode == "specific" and latest_step(model_dir) is None:
        require_checkpoint(start.path)
    train_iter = utils.prepare_train_iter(
        get_dataset_fn(
            train_dataset_cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
        ),
        partitioner=partitioner,
        checkpoint_cfg=checkpoint_cfg,
        data_layout=layout,
    )
    spec = train_iter.element_spec
    input_shapes = {name: (layout.batch_size, *s.shape[1:]) for name, s in spec.items()}
    train_eval_datasets: Mapping[str, tf.data.Dataset] = {}
    if train_eval_dataset_cfg and (eval_period or run_eval_before_training):
        train_eval_datasets = train_eval_get_dataset_fn(
            train_eval_dataset_cfg,
            layout.shard_id,
            layout.num_shards,
            eval_steps,
            model.FEATURE_CONVERTER_CLS,
        )

    # ---------------------------------------------------------------------------------------------
    # Train state: the newest checkpoint of model_dir, else the configured one, else from scratch
    # ---------------------------------------------------------------------------------------------
    state, manager, origin = _restore_or_initialize(
        initializer, partitioner, checkpoint_cfg, model_dir, train_iter, init_rng, use_orbax
    )
    first_step = int(utils.get_local_data(state.step))
    if relative_steps:
        total_steps = first_step + relative_steps
    if total_steps < first_step:
        raise ValueError(
            f"TRAIN_STEPS = {total_steps} lies before the checkpoint's step {first_step}; raise it "
            "or use another MODEL_DIR"
        )
    utils.log_model_info(
        f"{model_dir}/model-info.txt", initializer.global_train_state_shape, partitioner
    )

    # ---------------------------------------------------------------------------------------------
    # Trainer and evaluator
    # ---------------------------------------------------------------------------------------------
    trainer = trainer_cls(
        model=model,
        train_state=state,
        partitioner=partitioner,
        train_state_axes=initializer.train_state_axes,
        eval_names=list(train_eval_datasets),
        summary_dir=model_dir,
        rng=trainer_rng,
    )
    del state
    writer = trainer.train_metrics_manager
    summarize_config_fn(model_dir, writer.summary_writer, first_step)
    writer.write_scalar("timing/init_or_restore_seconds", time.monotonic() - started, first_step)
    evaluator = None
    if infer_eval_dataset_cfg and (eval_period or run_eval_before_training):
        evaluator = eval_lib.InferenceEvaluator(
            infer_eval_dataset_cfg,
            inference_evaluator_cls,
            model,
            partitioner,
            log_dir=model_dir,
            verify_matching_vocabs_fn=verify_matching_vocabs_fn,
        )
    tokens_per_step = _tokens_per_step(input_shapes)
    console.header(
        "t5x train",
        {
            "model": _describe_model(model, initializer),
            "devices": _describe_mesh(partitioner),
            "data": _describe_data(train_dataset_cfg, input_shapes, tokens_per_step),
            "steps": f"{first_step} to {total_steps}, {origin}",
            "output": model_dir,
            "log": str(console.log_path or "terminal"),
        },
    )

    def evaluate() -> None:
        if train_eval_datasets:
            summaries = trainer.eval(
                {
                    name: ds.as_numpy_iterator() if isinstance(ds, tf.data.Dataset) else ds
                    for name, ds in train_eval_datasets.items()
                }
            )
            trainer.stop_training |= run_actions(
                trainer_lib.ActionMode.TRAIN_EVAL, actions, trainer.train_state, summaries
            )
        if evaluator is not None and evaluator.eval_tasks:
            future = evaluator.evaluate(trainer.train_state, initializer.train_state_axes)
            if not concurrent_metrics:
                trainer.stop_training |= run_actions(
                    trainer_lib.ActionMode.INFER_EVAL,
                    actions,
                    trainer.train_state,
                    future.result() or {},
                )

    def save() -> None:
        trainer.check_losses()
        if manager is not None and checkpoint_cfg.save:
            manager.save(trainer.train_state, checkpoint_cfg.save.state_transformation_fns)

    # ---------------------------------------------------------------------------------------------
    # Loop: stretches of steps between one thing to do and the next
    # ---------------------------------------------------------------------------------------------
    save_period = (checkpoint_cfg.save.period if checkpoint_cfg.save else None) or 0
    save_steps = (checkpoint_cfg.save.checkpoint_steps if checkpoint_cfg.save else None) or ()
    eval_period = eval_period if train_eval_datasets or evaluator else 0
    if not stats_period:
        stats_period = min(filter(None, (eval_period, save_period, gc_period, total_steps)))
    if run_eval_before_training:
        evaluate()
    if save_period:
        save()
    if gc_period:
        gc.disable()
    step = first_step
    if step < total_steps:
        trainer.compile_train(_zeros_batch(input_shapes, spec, partitioner))
    loop_started = time.monotonic()
    stop_listener = preemption.StopListener()
    preempted = False
    with (
        console.progress(total_steps, first_step, tokens_per_step) as progress,
        stop_listener.listen(),
    ):
        trainer.on_step = progress.update
        trainer.should_stop = stop_listener.requested
        while step < total_steps and not trainer.stop_training:
            periods = (stats_period, eval_period, save_period, gc_period)
            stops = [(step // period + 1) * period for period in periods if period]
            stop = min([*stops, *(s for s in save_steps if s > step), total_steps])
            summary = trainer.train(train_iter, stop - step, start_step=step)
            if trainer.interrupted:
                step, preempted = int(utils.get_local_data(trainer.train_state.step)), True
                break
            step = stop
            if not concurrent_metrics:
                trainer.stop_training |= run_actions(
                    trainer_lib.ActionMode.TRAIN,
                    actions,
                    trainer.train_state,
                    {TRAIN_METRIC_KEY: summary.result()},
                )
            last = step == total_steps or trainer.stop_training
            if (save_period and (last or step % save_period == 0)) or step in save_steps:
                save()
            if eval_period and (last or step % eval_period == 0):
                try:
                    with stop_listener.interruptible():
                        evaluate()
                except preemption.Preempted:
                    preempted = True
                    break
            if gc_period and (last or step % gc_period == 0):
                gc.collect()
        if preempted and save_period:
            save()
    if gc_period:
        gc.enable()
    trainer.check_losses()
    jax.block_until_ready(trainer.train_state)
    seconds = time.monotonic() - loop_started
    trainer.close()
    if evaluator is not None and not preempted:
        evaluator.close()
    if manager is not None:
        manager.wait_until_finished()
        manager.close()
    utils.sync_global_devices("train finished")
    if preempted:
        saved = "its checkpoint is saved" if save_period else "no checkpoints are configured"
        raise preemption.Preempted(
            f"stopped by SIGTERM at step {step}, {saved}; the same command goes on"
        )
    rate = (step - first_step) * tokens_per_step / seconds if step > first_step else 0.0
    console.say(
        f"trained {step - first_step} steps in {format_seconds(seconds)} "
        f"({format_count(rate)} tokens/s), now at step {step}"
    )
    return step, trainer.train_state


def run_actions(
    mode: trainer_lib.ActionMode,
    actions: trainer_lib.ActionMapType,
    state: train_state.TrainState,
    metrics_by_task: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Runs the actions of a mode on process 0 and tells every process the verdict.

    Returns:
      Whether training should stop.
    """
    if not actions.get(mode):
        return False
    stop = False
    if jax.process_index() == 0:
        for action in actions[mode]:
            stop |= action.run(state, metrics_by_task)
    return bool(multihost_utils.broadcast_one_to_all(np.array(stop)))


def _actions_by_mode(
    actions: Mapping[str, Sequence[trainer_lib.BaseAction]] | None,
) -> dict[trainer_lib.ActionMode, Sequence[trainer_lib.BaseAction]]:
    modes = trainer_lib.ActionMode.__members__
    unknown = set(actions or {}) - set(modes)
    if unknown:
        raise ValueError(f"train.actions has unknown key {unknown}; use {', '.join(modes)}")
    return {modes[name]: value for name, value in (actions or {}).items()}


def _make_rngs(random_seed: int | None, use_hardware_rng: bool) -> tuple[jax.Array, jax.Array]:
    """Keys of initialisation and of training."""
    if use_hardware_rng or random_seed is None:
        utils.set_hardware_rng_ops()
    if random_seed is None:
        random_seed = int(multihost_utils.broadcast_one_to_all(np.int32(time.time())))
        logging.info("random_seed is not bound; using %d", random_seed)
    init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(random_seed))
    return init_rng, trainer_rng


def _restore_or_initialize(
    initializer: utils.TrainStateInitializer,
    partitioner: partitioning.PjitPartitioner,
    checkpoint_cfg: utils.CheckpointConfig,
    model_dir: str,
    train_iter: Any,
    init_rng: jax.Array,
    use_orbax: bool,
) -> tuple[train_state.TrainState, Any, str]:
    """(train state, checkpoint manager or None, where the state came from)."""
    save, restore = checkpoint_cfg.save, checkpoint_cfg.restore
    resume = utils.RestoreCheckpointConfig(
        path=model_dir,
        dtype="float32",  # what was saved in fewer bits goes on in full precision
        restore_dataset=save.save_dataset is not False if save else False,
    )
    if restore:
        # Transformations that rename an initial checkpoint know when they are given our own.
        resume.state_transformation_fns = [_resuming(fn) for fn in restore.state_transformation_fns]
    if restore and restore.path and (restore.mode == "all" or not isinstance(restore.path, str)):
        raise ValueError(
            "RestoreCheckpointConfig must name one checkpoint for training; use mode 'specific'"
        )
    while True:
        step = _latest_step_of_all(model_dir)
        if step is None:
            initial = [restore] if restore and restore.path else []
            chosen, paths = utils.get_first_valid_restore_config_and_paths(initial)
        else:
            chosen, paths = resume, [get_checkpoint_dir(model_dir, step)]
        state = manager = failure = None
        try:
            if chosen or save:
                state, manager = utils.create_checkpoint_manager_and_restore(
                    initializer,
                    partitioner,
                    chosen,
                    paths[0] if paths else None,
                    init_rng,
                    save_checkpoint_cfg=save,
                    model_dir=model_dir,
                    ds_iter=train_iter,
                    use_orbax=use_orbax,
                )
        except UnreadableCheckpointError as error:
            if chosen is not resume:
                raise
            logging.exception("unreadable checkpoint")
            failure = str(error).split("; if its files")[0]
        # Each process reads its own part: what one cannot read is of no use to any.
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
        if not failed.size:
            break
        console.say(failure or f"checkpoint {paths[0]} cannot be read by process {failed[0]}")
        if jax.process_index() == 0:
            console.say(f"kept as {set_aside(paths[0])}; going on from the one before it")
        utils.sync_global_devices("checkpoint set aside")
        train_iter.reset()  # it may stand where that checkpoint had it
    if state is None:
        return initializer.from_scratch(init_rng), manager, "from scratch"
    return state, manager, f"{'resumed' if chosen is resume else 'starting'} from {paths[0]}"


def _latest_step_of_all(model_dir: str) -> int | None:
    """The newest checkpoint that process 0 sees; the others might look at another moment."""
    step = latest_step(model_dir)
    agreed = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if agreed < 0 else agreed


def _resuming(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: fn(*args, **kwargs, is_resuming=True)


def _zeros_batch(
    shapes: Mapping[str, Sequence[int]], spec: Mapping[str, Any], partitioner: Any
) -> dict[str, jax.Array]:
    sharding = jax.sharding.NamedSharding(partitioner.mesh, partitioner.data_partition_spec)
    return {
        name: jax.make_array_from_callback(
            tuple(shape),
            sharding,
            lambda index, shape=shape, dtype=spec[name].dtype: np.zeros(shape, dtype)[index],
        )
        for name, shape in shapes.items()
    }


def _tokens_per_step(input_shapes: Mapping[str, Sequence[int]]) -> int:
    """Token slots of a batch: those of the features that the network reads."""
    names = ("encoder_input_tokens", "decoder_target_tokens")
    return sum(math.prod(input_shapes[name]) for name in names if name in input_shapes)


def _describe_model(model: Any, initializer: utils.TrainStateInitializer) -> str:
    params = jax.tree.leaves(initializer.global_train_state_shape.params)
    count = format_count(sum(math.prod(param.shape) for param in params))
    config = getattr(getattr(model, "module", None), "config", None)
    if config is None:
        return f"{count} parameters"
    return (
        f"{count} parameters: {config.num_encoder_layers}+{config.num_decoder_layers} layers, "
        f"width {config.emb_dim}, {config.num_heads} heads, mlp {config.mlp_dim}, "
        f"vocabulary {config.vocab_size}, {jax.numpy.dtype(config.dtype).name}"
    )


def _describe_mesh(partitioner: partitioning.PjitPartitioner) -> str:
    devices = partitioner.mesh.devices.flat
    axes = ", ".join(f"{name} {size}" for name, size in partitioner.mesh.shape.items())
    return f"{len(devices)} {devices[0].device_kind}, mesh {axes}"


def _describe_data(
    cfg: utils.DatasetConfig, input_shapes: Mapping[str, Sequence[int]], tokens_per_step: int
) -> str:
    provider = seqio.get_mixture_or_task(cfg.mixture_or_task_name)
    shapes = [
        input_shapes[name][1]
        for name in ("encoder_input_tokens", "decoder_target_tokens")
        if name in input_shapes
    ]
    return (
        f"{provider.name} ({len(seqio.get_subtasks(provider))} tasks), batch {cfg.batch_size} × "
        f"{tuple(shapes)}{' packed' if cfg.pack else ''}, {format_count(tokens_per_step)} "
        "tokens a step"
    )


if __name__ == "__main__":
    from t5x import cli

    cli.run(train)
