"""Predicts or scores a task's rows: `python -m t5x.infer --gin_file=INFER.gin [--gin.NAME=VALUE]`.

Rows are worked on in chunks of `checkpoint_period` batches. A chunk counts once its file and then
its marker are written; a run that was killed goes on after the last chunk that counts, so every row
is written exactly once.
"""

if __name__ == "__main__":  # a mistake is told before the imports below, which take seconds
    from t5x import cli

    cli.check("infer")

import functools
from collections.abc import Callable
from typing import Any

import jax
import seqio
import tensorflow as tf
from etils import epath

from t5x import gin_utils, models, partitioning, utils
from t5x.data.datasets import get_provider
from t5x.data.remarks import say_remarks
from t5x.inference.chunks import Output, Reader, infer_task
from t5x.inference.files import (
    MODES,
    Inferences,
    create_task_from_tfexample_file,
    merge_chunks_to_file,
    write_inferences_to_file,
)
from t5x.run import former_names, processes
from t5x.run.console import console, log_ignored

__all__ = [
    "create_task_from_tfexample_file",
    "infer",
    "merge_chunks_to_file",
    "write_inferences_to_file",
]
WriteFn = Callable[..., None]
MergeFn = Callable[[str, str, str, int | None], None]


def infer(
    *,
    mode: str,
    model: models.BaseTransformerModel,
    dataset_cfg: utils.DatasetConfig,
    restore_checkpoint_cfg: utils.RestoreCheckpointConfig,
    partitioner: partitioning.PjitPartitioner,
    output_dir: str,
    checkpoint_period: int,
    shard_id: int = 0,
    num_shards: int = 1,
    merge_chunked_results: bool = True,
    write_fn: WriteFn = write_inferences_to_file,
    checkpoint_ds_iter: bool = True,
    train_state_initializer_cls: type[utils.TrainStateInitializer] = utils.TrainStateInitializer,
    fallback_init_rng: int | None = None,
    merge_fn: MergeFn = merge_chunks_to_file,
    summarize_config_fn: Callable[..., None] = gin_utils.summarize_gin_config,
    verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
    output_vocab_feature_name: str = "targets",
    file_extension: str = "jsonl",
    keep_aux_as_numpy: bool = False,
    use_orbax: bool = True,
    run_xprof: bool = False,
    merge_epoch_results: bool | None = None,
) -> None:
    """Writes OUTPUT_DIR/TASK-MODE.jsonl-SHARD-of-SHARDS for each task, then FILE.COMPLETED.

    Args:
      mode: 'predict' (decoded text), 'predict_with_aux' (and what the decoder says of it) or
        'score' (log-likelihood of the targets).
      model: the model.
      dataset_cfg: which rows; they are read once, in order.
      restore_checkpoint_cfg: which checkpoint, a single one.
      partitioner: shards parameters and data over the devices.
      output_dir: where results go.
      checkpoint_period: batches of a chunk.
      shard_id: which shard of the rows this run takes.
      num_shards: how many runs share the rows.
      merge_chunked_results: join the chunks into one file and delete them; if not, they stay in
        OUTPUT_DIR/tmp-TASK-MODE-SHARD-of-SHARDS.
      write_fn: (path, inferences, task rows, mode, vocabulary) → None, writes a chunk.
      checkpoint_ds_iter: save the position in the data after each chunk; without it, or where the
        data does not allow it, a restart reads again what came before, which takes longer.
      train_state_initializer_cls: makes the train state.
      fallback_init_rng: seed for what the checkpoint lacks.
      merge_fn: (output_dir, file name, chunk folder, step) → None, joins chunks.
      summarize_config_fn: writes the configuration, for shard 0.
      verify_matching_vocabs_fn: checks task against model; None for no check.
      output_vocab_feature_name: feature whose vocabulary predictions are decoded with.
      file_extension: of the result's name.
      keep_aux_as_numpy: pass auxiliary values to `write_fn` as arrays.
      use_orbax: accepted without effect.
      run_xprof: accepted without effect.
      merge_epoch_results: former name of `merge_chunked_results`.

    Raises:
      ValueError: settings that do not fit together, no rows, or chunks of another run in
        `output_dir`; the message names the binding.
      FileNotFoundError: the checkpoint does not exist.
    """
    if run_xprof:
        log_ignored("infer.run_xprof", "jax.profiler traces a run")
    if merge_epoch_results is not None:
        former_names.say("infer.merge_epoch_results", "infer.merge_chunked_results")
        merge_chunked_results = merge_epoch_results
    if mode not in MODES:
        raise ValueError(f"infer.mode = '{mode}' is not one of {', '.join(MODES)}")
    if not 0 <= shard_id < num_shards:
        raise ValueError(f"infer.shard_id = {shard_id} is not below num_shards = {num_shards}")
    for name in ("shuffle", "pack"):
        if getattr(dataset_cfg, name):
            log_ignored(f"DatasetConfig.{name}", "inference reads rows one by one, in order")
    folder = epath.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    console.move_log(output_dir, "infer.log" if num_shards == 1 else f"infer-{shard_id:05}.log")
    if shard_id == 0:
        summarize_config_fn(model_dir=output_dir, summary_writer=None, step=0)
    if verify_matching_vocabs_fn is not None:
        verify_matching_vocabs_fn(dataset_cfg, model)
    converter = model.FEATURE_CONVERTER_CLS(pack=False)
    reader = Reader(dataset_cfg, converter, shard_id, num_shards, checkpoint_period)
    tasks = seqio.get_subtasks(get_provider(dataset_cfg))
    restore_checkpoint_cfg.strict = False  # only parameters are wanted
    cfg, paths = utils.get_first_valid_restore_config_and_paths([restore_checkpoint_cfg])
    if len(paths) != 1:
        raise ValueError(
            f"RestoreCheckpointConfig names {len(paths)} checkpoints under "
            f"'{restore_checkpoint_cfg.path}', infer takes one; set CHECKPOINT_PATH"
        )
    console.header(
        "t5x infer",
        {
            "checkpoint": paths[0],
            "data": f"{dataset_cfg.mixture_or_task_name} ({len(tasks)} tasks, split "
            f"'{dataset_cfg.split}', shard {shard_id} of {num_shards})",
            "mode": f"{mode}, batch {dataset_cfg.batch_size}, a chunk every "
            f"{reader.chunk_rows} rows",
            "output": output_dir,
            "log": str(console.log_path or "terminal"),
        },
    )

    spec = reader.element_spec(tasks[0])
    initializer = train_state_initializer_cls(
        optimizer_def=None,
        init_fn=model.get_initial_variables,
        input_shapes={name: (dataset_cfg.batch_size, *s.shape) for name, s in spec.items()},
        input_types={name: s.dtype.as_numpy_dtype for name, s in spec.items()},
        partitioner=partitioner,
    )
    if shard_id == 0:
        utils.log_model_info(
            f"{output_dir}/model-info.txt", initializer.global_train_state_shape, partitioner
        )
    seed = None if fallback_init_rng is None else jax.random.PRNGKey(fallback_init_rng)
    state, manager = utils.create_checkpoint_manager_and_restore(
        initializer, partitioner, cfg, paths[0], seed, use_orbax=use_orbax
    )
    manager.close()
    infer_fn = utils.get_infer_fn(
        _step_of(model, mode),
        dataset_cfg.batch_size,
        initializer.train_state_axes,
        partitioner,
        keep_aux_as_numpy,
    )
    # Chunks of two runs fit together when these are the same.
    settings = {
        "mode": mode,
        "checkpoint": paths[0],
        "split": dataset_cfg.split,
        "task_feature_lengths": dict(dataset_cfg.task_feature_lengths or {}),
        "batch_size": dataset_cfg.batch_size,
        "checkpoint_period": checkpoint_period,
    }

    for task in tasks:
        output = Output(folder, task.name, mode, file_extension, shard_id, num_shards)
        if processes.decide(output.is_complete):
            console.say(f"{task.name}: {output.file} is there already")
        else:
            vocabulary = task.output_features[output_vocab_feature_name].vocabulary
            infer_task(
                task,
                output,
                settings,
                reader,
                functools.partial(infer_fn, train_state=state),
                functools.partial(_write, write_fn, mode, vocabulary),
                checkpoint_ds_iter,
            )
        if jax.process_index() == 0:
            if merge_chunked_results and not output.is_complete():
                step = int(utils.get_local_data(state.step))
                merge_fn(output_dir, output.file.name, str(output.chunks), step)
            output.mark_complete()
            if merge_chunked_results:
                output.remove_chunks()
        utils.sync_global_devices(f"inferred {task.name}")
    say_remarks(dataset_cfg)


def _step_of(model: models.BaseModel, mode: str) -> Callable[..., Any]:
    if mode == "score":
        return model.score_batch
    return model.predict_batch if mode == "predict" else model.predict_batch_with_aux


def _write(
    write_fn: WriteFn,
    mode: str,
    vocabulary: seqio.Vocabulary,
    path: str,
    inferences: Inferences,
    rows: tf.data.Dataset,
) -> None:
    write_fn(path, inferences, rows, mode, vocabulary)


if __name__ == "__main__":
    cli.run(infer)
