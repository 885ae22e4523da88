"""What a training run says of itself, before its first step and after its last."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from t5x import utils
from t5x.data import shapes
from t5x.run.console import console
from t5x.run.progress import format_count, format_seconds


def announce(
    model: Any,
    initializer: Any,
    partitioner: Any,
    dataset_cfg: Any,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    steps: str,
    model_dir: str,
) -> None:
    """Prints model, devices, data, steps and where the output goes; variables to model-info.txt."""
    utils.log_model_info(
        f"{model_dir}/model-info.txt", initializer.global_train_state_shape, partitioner
    )
    console.header(
        "t5x train",
        {
            "model": _describe_model(model, initializer),
            "devices": _describe_mesh(partitioner),
            "data": _describe_data(dataset_cfg, batch),
            "steps": steps,
            "output": model_dir,
            "log": str(console.log_path or "terminal"),
        },
    )


def say_trained(
    first_step: int, step: int, seconds: float, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
    """Prints how many steps were taken, and how fast."""
    rate = (step - first_step) * shapes.count_tokens(batch) / seconds
    console.say(
        f"trained {step - first_step} steps in {format_seconds(seconds)} "
        f"({format_count(rate)} tokens/s), now at step {step}"
    )


def _describe_model(model: Any, initializer: Any) -> str:
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


def _describe_mesh(partitioner: Any) -> str:
    devices = partitioner.mesh.devices.flat
    axes = ", ".join(f"{name} {size}" for name, size in partitioner.mesh.shape.items())
    return f"{len(devices)} {devices[0].device_kind}, mesh {axes}"


def _describe_data(cfg: Any, batch: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    import seqio

    provider = seqio.get_mixture_or_task(cfg.mixture_or_task_name)
    return (
        f"{provider.name} ({len(seqio.get_subtasks(provider))} tasks), batch {cfg.batch_size} × "
        f"{shapes.token_lengths(batch)}{' packed' if cfg.pack else ''}, "
        f"{format_count(shapes.count_tokens(batch))} tokens a step"
    )
