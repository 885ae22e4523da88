"""Trains a model: `python -m t5x.train --gin_file=RUN.gin [--gin.NAME=VALUE ...]`.

Reads top to bottom: data, train state, trainer and evaluations, loop.
"""

if __name__ == "__main__":  # a mistake is told before the imports below, which take seconds
    from t5x import cli

    cli.check("train")

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import seqio
from absl import logging
from etils import epath

from t5x import eval as eval_lib
from t5x import models, partitioning, train_state, utils
from t5x import trainer as trainer_lib
from t5x.checkpoints.directories import get_checkpoint_dir, latest_step, set_aside
from t5x.checkpoints.reading import UnreadableCheckpointError
from t5x.checkpoints.restoring import require_checkpoint
from t5x.data.remarks import say_remarks
from t5x.data.shapes import count_tokens
from t5x.run import preemption, processes
from t5x.run.console import console
from t5x.run.progress import StepProgress
from t5x.trainer import announcement, memory, preparation
from t5x.trainer.actions import ActionMode, Judge
from t5x.trainer.evaluations import Evaluations
from t5x.trainer.timetable import Entry, Timetable

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
    init_rng, trainer_rng = _make_rngs(random_seed, use_hardware_rng)
    judge, listener = Judge(actions, concurrent_metrics), preemption.StopListener()
    if not (eval_period or run_eval_before_training):
        train_eval_dataset_cfg = infer_eval_dataset_cfg = None

    # ---- Data -----------------------------------------------------------------------------------
    for cfg in (train_dataset_cfg, train_eval_dataset_cfg):
        if cfg and verify_matching_vocabs_fn and isinstance(model, models.BaseTransformerModel):
            verify_matching_vocabs_fn(cfg, model)
    initializer = preparation.make_initializer(
        train_state_initializer_cls, model, partitioner, train_dataset_cfg
    )
    # Before anything is read: a model too large for the machine is the commonest mistake.
    memory.check(initializer, partitioner)
    _require_start(checkpoint_cfg, model_dir)
    layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
    shard = (layout.shard_id, layout.num_shards)
    train_iter = utils.prepare_train_iter(
        get_dataset_fn(train_dataset_cfg, *shard, model.FEATURE_CONVERTER_CLS),
        partitioner=partitioner,
        checkpoint_cfg=checkpoint_cfg,
        data_layout=layout,
    )
    batch = train_iter.global_shapes
    train_eval_datasets: Mapping[str, Any] = {}
    if train_eval_dataset_cfg:
        train_eval_datasets = train_eval_get_dataset_fn(
            train_eval_dataset_cfg, *shard, eval_steps, model.FEATURE_CONVERTER_CLS
        )

    # ---- Train state: the newest checkpoint of model_dir, the configured one, or a new one ------
    state, manager, origin = _restore_or_initialize(
        initializer, partitioner, checkpoint_cfg, model_dir, train_iter, init_rng, use_orbax
    )
    first_step = int(utils.get_local_data(state.step))
    total_steps = _last_step(first_step, total_steps, relative_steps)

    # ---- Trainer and evaluations ----------------------------------------------------------------
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
    writer.write_scalar("timing/init_or_restore_seconds", time.monotonic() - started, first_step)
    evaluator = infer_eval_dataset_cfg and eval_lib.InferenceEvaluator(
        infer_eval_dataset_cfg,
        inference_evaluator_cls,
        model,
        partitioner,
        log_dir=model_dir,
        verify_matching_vocabs_fn=verify_matching_vocabs_fn,
    )
    evaluations = Evaluations(
        trainer, train_eval_datasets, evaluator, initializer.train_state_axes, judge, listener
    )
    summarize_config_fn(model_dir, writer.summary_writer, first_step)
    steps = f"{first_step} to {total_steps}, {origin}"
    announcement.announce(
        model, initializer, partitioner, train_dataset_cfg, train_iter, steps, model_dir
    )

    # ---- Loop -----------------------------------------------------------------------------------
    def save() -> None:
        trainer.check_losses()
        if manager is not None and checkpoint_cfg.save:
            manager.save(trainer.train_state, checkpoint_cfg.save.state_transformation_fns)

    saving = checkpoint_cfg.save or utils.SaveCheckpointConfig(period=None)
    table = Timetable(
        Entry(saving.period, save, saving.checkpoint_steps or ()),
        Entry(eval_period if evaluations else 0, evaluations.run),
        Entry(gc_period, gc.collect),
        end=total_steps,
        stretch=stats_period,
    )
    if run_eval_before_training:
        evaluations.run()
    if saving.period:
        save()
    with listener.listen(), _collected_by_hand(gc_period):
        step, seconds = _take_steps(trainer, train_iter, batch, first_step, table, judge, listener)
        if listener.stopped and saving.period:
            save()
    _finish(trainer, evaluations, manager, train_iter, listener.stopped)
    say_remarks(train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg)
    listener.raise_if_stopped(step, saved=bool(saving.period))
    announcement.say_trained(first_step, step, seconds, batch)
    announcement.say_read(train_iter.count())
    return step, trainer.train_state


def _take_steps(
    trainer: trainer_lib.BaseTrainer,
    train_iter: Any,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    first_step: int,
    timetable: Timetable,
    judge: Judge,
    listener: preemption.StopListener,
) -> tuple[int, float]:
    """Stretches of steps between one thing to do and the next.

    Returns:
      The step reached: the timetable's end, unless an action or a signal ended the run before; and
      the seconds it took.
    """
    step, end = first_step, timetable.end
    if step < end:
        trainer.compile_train(batch)
    started = time.monotonic()
    bar = console.progress(end, "step", first_step, stays=True)
    with StepProgress(bar, count_tokens(batch)) as progress:

        def after_step(step: int, metrics: trainer_lib.Metrics) -> bool:
            progress.update(step, metrics)
            return listener.requested(step)

        while step < end and not (judge.stop or trainer.stop_training or listener.stopped):
            stop = timetable.next_stop(step)
            summary = trainer.train(train_iter, stop - step, step, after_step)
            if listener.stopped:
                step = int(utils.get_local_data(trainer.train_state.step))
                break
            step = stop
            judge(ActionMode.TRAIN, trainer.train_state, {TRAIN_METRIC_KEY: summary})
            for act in timetable.due(step, last=step == end or judge.stop or trainer.stop_training):
                act()
        jax.block_until_ready(trainer.train_state)
    return step, time.monotonic() - started


def _finish(
    trainer: trainer_lib.BaseTrainer,
    evaluations: Evaluations,
    manager: Any,
    train_iter: Any,
    stopped: bool,
) -> None:
    """Waits for all that is still to be written, on all processes; ends what was opened."""
    trainer.check_losses()
    trainer.close()
    if not stopped:
        evaluations.close()
    if manager is not None:
        manager.wait_until_finished()
        manager.close()
    train_iter.close()
    utils.sync_global_devices("train finished")


def _make_rngs(random_seed: int | None, use_hardware_rng: bool) -> tuple[jax.Array, jax.Array]:
    """Keys of initialisation and of training."""
    if use_hardware_rng or random_seed is None:
        utils.set_hardware_rng_ops()
    if random_seed is None:
        random_seed = processes.decide(lambda: int(time.time()))
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
        failed = processes.processes_where(failure is not None)
        if not failed:
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

    def look() -> int:
        step = latest_step(model_dir)
        return -1 if step is None else step

    agreed = processes.decide(look)
    return None if agreed < 0 else agreed


def _resuming(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: fn(*args, **kwargs, is_resuming=True)


def _require_start(cfg: utils.CheckpointConfig, model_dir: str) -> None:
    """Raises FileNotFoundError where the checkpoint to start from is not there."""
    restore = cfg.restore
    if restore and restore.path and restore.mode == "specific" and latest_step(model_dir) is None:
        require_checkpoint(restore.path)


def _last_step(first_step: int, total_steps: int, relative_steps: int | None) -> int:
    """The step to stop at."""
    if relative_steps:
        return first_step + relative_steps
    if total_steps < first_step:
        raise ValueError(
            f"TRAIN_STEPS = {total_steps} lies before the checkpoint's step {first_step}; raise it "
            "or use another MODEL_DIR"
        )
    return total_steps


@contextlib.contextmanager
def _collected_by_hand(period: int) -> Iterator[None]:
    """Without Python's own garbage collections, if they are done every `period` steps."""
    if period:
        gc.disable()
    try:
        yield
    finally:
        if period:
            gc.enable()


if __name__ == "__main__":
    cli.run(train)
