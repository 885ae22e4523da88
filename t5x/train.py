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
from t5x.checkpoints.queue import finish_writing
from t5x.data.remarks import say_remarks
from t5x.data.shapes import count_tokens
from t5x.run import lock, preemption, processes
from t5x.run.console import console
from t5x.run.progress import StepProgress
from t5x.trainer import announcement, memory, preparation, start
from t5x.trainer.actions import ActionMode, Judge
from t5x.trainer.evaluations import Evaluations
from t5x.trainer.timetable import Entry, Timetable

TRAIN_METRIC_KEY = "train"
# A checkpoint that is nearly written when a run leaves before its first step is worth this long.
_LEAVING_SECONDS = 20.0


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
    start_over: bool = False,
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
      relative_steps: if given, steps to train from where the run began at its first start, in
        place of total_steps.
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
      start_over: begin anew where all checkpoints of `model_dir` are damaged.

    Returns:
      (last step, train state).

    Raises:
      preemption.Preempted: SIGTERM came; a checkpoint is saved.
      replay.NonFiniteLossError: the loss became NaN or infinite.
      lock.RunningElsewhereError: another process trains in `model_dir`.
      fingerprints.ChangedRunError: `model_dir`'s checkpoint is of another run.
      ValueError: settings that do not fit together; the message names the binding.
    """
    started = time.monotonic()
    epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
    console.move_log(model_dir, "train.log")
    with _only_run_of(model_dir) as listener:
        init_rng, trainer_rng = _make_rngs(random_seed, use_hardware_rng)
        judge = Judge(actions, concurrent_metrics)
        if not (eval_period or run_eval_before_training):
            train_eval_dataset_cfg = infer_eval_dataset_cfg = None

        # ---- Data --------------------------------------------------------------------------------
        for cfg in (train_dataset_cfg, train_eval_dataset_cfg):
            if cfg and verify_matching_vocabs_fn and isinstance(model, models.BaseTransformerModel):
                verify_matching_vocabs_fn(cfg, model)
        initializer = preparation.make_initializer(
            train_state_initializer_cls, model, partitioner, train_dataset_cfg
        )
        # Before anything is read: a model too large for the machine is the commonest mistake.
        memory.check(initializer, partitioner)
        start.require_start(checkpoint_cfg, model_dir)
        train_dataset_cfg = start.with_saved_seed(train_dataset_cfg, checkpoint_cfg, model_dir)
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

        # ---- Train state: the newest checkpoint of model_dir, the configured one, or a new one ---
        state, begun = start.begin(
            initializer,
            partitioner,
            checkpoint_cfg,
            model_dir,
            train_iter,
            init_rng,
            use_orbax=use_orbax,
            start_over=start_over,
        )
        first_step = int(utils.get_local_data(state.step))
        total_steps = _last_step(begun, first_step, total_steps, relative_steps)

        # ---- Trainer and evaluations -------------------------------------------------------------
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
        seconds = time.monotonic() - started
        writer.write_scalar("timing/init_or_restore_seconds", seconds, first_step)
        evaluator = infer_eval_dataset_cfg and eval_lib.InferenceEvaluator(
            infer_eval_dataset_cfg,
            inference_evaluator_cls,
            model,
            partitioner,
            log_dir=model_dir,
            verify_matching_vocabs_fn=verify_matching_vocabs_fn,
        )
        evaluations = Evaluations(
            trainer,
            train_eval_datasets,
            evaluator,
            initializer.train_state_axes,
            judge,
            listener,
            model_dir,
        )
        summarize_config_fn(model_dir, writer.summary_writer, first_step)
        steps = f"{first_step} to {total_steps}, {begun.origin}"
        announcement.announce(
            model, initializer, partitioner, train_dataset_cfg, train_iter, steps, model_dir
        )

        # ---- Loop --------------------------------------------------------------------------------
        def save() -> None:
            trainer.check_losses()
            if begun.manager is not None and checkpoint_cfg.save:
                begun.manager.save(
                    trainer.train_state, checkpoint_cfg.save.state_transformation_fns
                )

        saving = checkpoint_cfg.save or utils.SaveCheckpointConfig(period=None)
        is_saving = bool(saving.period or saving.checkpoint_steps)
        timetable = Timetable(
            Entry(saving.period, save, saving.checkpoint_steps or ()),
            Entry(eval_period if evaluations else 0, evaluations.run),
            Entry(gc_period, gc.collect),
            end=total_steps,
            stretch=stats_period,
        )
        # An evaluation was given up when the run was told to stop, unless its metrics are there.
        was_due = begun.is_resumed and first_step and timetable.is_due(evaluations.run, first_step)
        if run_eval_before_training or (was_due and not evaluations.have_seen(first_step)):
            evaluations.run()
        if saving.period:
            save()
        with _collected_by_hand(gc_period):
            step, seconds = _take_steps(
                trainer, train_iter, batch, first_step, timetable, judge, listener
            )
        if is_saving:
            save()  # whatever made the run stop here
        read = train_iter.count()
        _finish(trainer, evaluations, begun.manager, train_iter)
        say_remarks(train_dataset_cfg, train_eval_dataset_cfg, infer_eval_dataset_cfg)
        listener.raise_if_stopped(step, saved=is_saving)
        announcement.say_trained(first_step, step, seconds, batch)
        announcement.say_read(read)
        return step, trainer.train_state


@contextlib.contextmanager
def _only_run_of(model_dir: str) -> Iterator[preemption.StopListener]:
    """Listens for being told to stop, and holds the directory's lock."""
    processes.require_service()
    listener, on_leaving = preemption.StopListener(), contextlib.ExitStack()
    on_leaving.callback(finish_writing, _LEAVING_SECONDS)
    with listener.listen(on_leaving.close), lock.held(model_dir) as release:
        on_leaving.callback(release)
        yield listener


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
    listener.begin()
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
    trainer: trainer_lib.BaseTrainer, evaluations: Evaluations, manager: Any, train_iter: Any
) -> None:
    """Waits for all that is still to be written, on all processes; ends what was opened."""
    trainer.check_losses()
    trainer.close()
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


def _last_step(begun: start.Start, step: int, total_steps: int, relative_steps: int | None) -> int:
    """The step to stop at; `relative_steps` count from where the run began, however often."""
    if relative_steps:
        return max(step, begun.first_step + relative_steps)
    if total_steps < step:
        raise ValueError(
            f"TRAIN_STEPS = {total_steps} lies before the checkpoint's step {step}; raise it or "
            "use another MODEL_DIR"
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
