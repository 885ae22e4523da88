"""T5X's `utils` surface: the names that gin files and task modules import from here."""

import re
from collections.abc import Sequence
from typing import Any

import flax
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from flax.linen import partitioning as flax_partitioning
from jax.experimental import multihost_utils

from t5x import partitioning, state_utils, train_state
from t5x.checkpoints.configs import CheckpointConfig, RestoreCheckpointConfig, SaveCheckpointConfig
from t5x.checkpoints.manager import get_local_data
from t5x.checkpoints.restoring import (
    TrainStateInitializer,
    create_checkpoint_manager_and_restore,
    get_fallback_state,
    get_first_valid_restore_config_and_paths,
)
from t5x.data.datasets import (
    DatasetConfig,
    get_dataset,
    get_deterministic_dataset,
    get_training_eval_datasets,
    get_vocabulary,
    import_module,
    verify_matching_vocabs,
)
from t5x.data.iterator import ShardedDatasetIterator, prepare_train_iter
from t5x.inference.function import get_infer_fn
from t5x.optimizers.schedules import create_learning_rate_scheduler
from t5x.run.files import write_whole

TensorBoardLogger = seqio.TensorBoardLogger

__all__ = [
    "CheckpointConfig",
    "DatasetConfig",
    "RestoreCheckpointConfig",
    "SaveCheckpointConfig",
    "ShardedDatasetIterator",
    "TensorBoardLogger",
    "TrainStateInitializer",
    "create_checkpoint_manager_and_restore",
    "create_learning_rate_scheduler",
    "flatten_dict_string_keys",
    "get_dataset",
    "get_deterministic_dataset",
    "get_fallback_state",
    "get_first_valid_restore_config_and_paths",
    "get_infer_fn",
    "get_local_data",
    "get_training_eval_datasets",
    "get_vocabulary",
    "get_zeros_batch_like_dataset",
    "import_module",
    "log_model_info",
    "override_params_axes_names",
    "prepare_train_iter",
    "round_vocab_size_to_multiple",
    "set_hardware_rng_ops",
    "sync_global_devices",
    "verify_matching_vocabs",
]


def sync_global_devices(name: str) -> None:
    """A barrier over all processes."""
    multihost_utils.sync_global_devices(name)


def set_hardware_rng_ops() -> None:
    """Switches to the accelerator's own fast bit generator."""
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")


def round_vocab_size_to_multiple(vocabulary: seqio.Vocabulary, divisor: int = 128) -> int:
    """The vocabulary's size rounded up to a multiple of `divisor`."""
    return -(-vocabulary.vocab_size // divisor) * divisor


def flatten_dict_string_keys(tree: Any) -> dict[str, Any]:
    """A nested dictionary as {"a/b": leaf}."""
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(tree), sep="/")


def get_zeros_batch_like_dataset(
    dataset: tf.data.Dataset, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """A batch of zeros with the dataset's shapes, optionally of another batch size."""

    def zeros(spec: tf.TensorSpec) -> jax.Array:
        shape = (batch_size, *spec.shape[1:]) if batch_size else tuple(spec.shape)
        return jnp.zeros(shape, spec.dtype.as_numpy_dtype)

    return {name: zeros(spec) for name, spec in dataset.element_spec.items()}


def log_model_info(
    log_file: str | None,
    full_train_state: train_state.TrainState,
    partitioner: partitioning.PjitPartitioner,
) -> None:
    """Writes a line a variable: name, size, shape by logical axis, partition spec."""
    if jax.process_index() != 0 or log_file is None:
        return
    state = full_train_state.state_dict()
    logical_axes = partitioner.get_logical_axes(full_train_state).state_dict()
    mesh_axes = partitioner.get_mesh_axes(full_train_state).state_dict()
    lines = []
    for part in ("target", "state"):
        names = state_utils.flatten_state_dict(state[part])
        axes = state_utils.flatten_state_dict(logical_axes[part])
        specs = state_utils.flatten_state_dict(mesh_axes[part])
        for name, value in names.items():
            lines.append(_describe_variable(name, value, axes.get(name), specs.get(name)))
        if part == "target":
            total = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(state[part]))
            lines += [f"Total number of parameters: {total}", ""]
    path = epath.Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(lines) + "\n")


def _describe_variable(name: str, value: Any, axes: Any, spec: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"Variable {name:<80} None"
    sized = ", ".join(
        f"{axis}={size}" for axis, size in zip(axes or (None,) * len(shape), shape, strict=True)
    )
    return (
        f"Variable {name:<80} size {int(np.prod(shape)):<12} shape ({sized}) partition spec {spec}"
    )


def override_params_axes_names(
    model_variables: Any,
    params_axes_names_override: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> Any:
    """Replaces the logical axis names of parameters whose whole name matches a regex.

    Args:
      model_variables: variables with collections "params" and "params_axes".
      params_axes_names_override: (regex, axis names) pairs; the first match wins.

    Raises:
      ValueError: there are no axes to override, or the names do not fit a parameter's rank.
    """
    if "params_axes" not in model_variables:
        raise ValueError("override_params_axes_names: the model has no 'params_axes' collection")
    variables = flax.core.unfreeze(model_variables)
    params = flax.traverse_util.flatten_dict(variables["params"])
    axes = flax.traverse_util.flatten_dict(variables["params_axes"])
    for path, param in params.items():
        name = "/".join(path)
        override = next(
            (names for regex, names in params_axes_names_override if re.fullmatch(regex, name)),
            None,
        )
        if override is None:
            continue
        if len(override) != param.ndim:
            raise ValueError(
                f"override_params_axes_names: {name} has rank {param.ndim}, axes {override} do not "
                "fit"
            )
        key = (*path[:-1], f"{path[-1]}_axes")
        axes[key] = flax_partitioning.AxisMetadata(names=tuple(override))
    variables["params_axes"] = flax.traverse_util.unflatten_dict(axes)
    return flax.core.freeze(variables)
