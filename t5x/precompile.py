"""Compiles the train step, no more: `python -m t5x.precompile --gin_file=PRECOMPILE.gin …`."""

if __name__ == "__main__":  # a mistake is told before the imports below, which take seconds
    from t5x import cli

    cli.check("precompile")

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from t5x import models, partitioning, utils
from t5x import trainer as trainer_lib
from t5x.run.console import console
from t5x.run.progress import format_count, format_seconds
from t5x.trainer import preparation

_PLAIN_TRAINER = functools.partial(
    trainer_lib.Trainer, learning_rate_fn=lambda step: 1e-3, num_microbatches=None
)


def precompile(
    *,
    model: models.BaseTransformerModel,
    train_dataset_cfg: utils.DatasetConfig,
    partitioner: partitioning.PjitPartitioner,
    model_dir: str,
    random_seed: int | None,
    trainer_cls: Callable[..., trainer_lib.BaseTrainer] | None = None,
    get_dataset_fn: Callable[..., Any] = utils.get_dataset,
    verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
) -> None:
    """Writes the train step, before and after optimization, for the devices of the partitioner.

    No parameter is allocated and no row is read. The files (upstream's names):
      lowered_hlo_pre_optimization, lowered_hlo_post_optimization: serialised HloModuleProtos.
      assignment: the mesh's device ids, a NumPy array.

    Args:
      model: model with its optimizer.
      train_dataset_cfg: gives the shapes of a batch.
      partitioner: gives devices and shardings.
      model_dir: where the files go.
      random_seed: of the dropout key that is compiled in; 42 when None.
      trainer_cls: the run's trainer, whose step it is: its microbatches, learning rate and weight
        metrics. None stands for one without microbatches, at a constant rate.
      get_dataset_fn: reads `train_dataset_cfg`.
      verify_matching_vocabs_fn: checks task against model; None for no check.
    """
    started = time.monotonic()
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    console.move_log(model_dir, "precompile.log")
    if verify_matching_vocabs_fn is not None:
        verify_matching_vocabs_fn(train_dataset_cfg, model)
    layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
    batches = utils.prepare_train_iter(
        get_dataset_fn(
            train_dataset_cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
        ),
        partitioner=partitioner,
        data_layout=layout,
    )
    batch = batches.global_shapes
    batches.close()
    lowered = preparation.lower_train_step(
        trainer_cls or _PLAIN_TRAINER,
        model,
        partitioner,
        preparation.make_initializer(
            utils.TrainStateInitializer, model, partitioner, train_dataset_cfg
        ),
        batch,
        jax.random.split(jax.random.PRNGKey(random_seed or 42))[1],
    )
    (folder / "lowered_hlo_pre_optimization").write_bytes(
        lowered.compiler_ir(dialect="hlo").as_serialized_hlo_module_proto()
    )
    compiled = lowered.compile()
    (module,) = compiled.runtime_executable().hlo_modules()
    (folder / "lowered_hlo_post_optimization").write_bytes(module.as_serialized_hlo_module_proto())
    with (folder / "assignment").open("wb") as file:
        np.save(file, partitioner.mesh.device_ids)
    memory = compiled.memory_analysis()
    console.say(
        f"compiled the train step in {format_seconds(time.monotonic() - started)} for "
        f"{partitioner.mesh.size} {partitioner.mesh.devices.flat[0].device_kind}: "
        f"{format_count(memory.argument_size_in_bytes)}B of arguments and "
        f"{format_count(memory.temp_size_in_bytes)}B of temporaries a device, in {model_dir}"
    )


if __name__ == "__main__":
    cli.run(precompile)
