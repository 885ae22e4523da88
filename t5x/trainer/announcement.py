"""What a training run says of itself, before its first step and after its last."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from t5x import utils
from t5x.data import shapes
from t5x.run.console import console
from t5x.run.progress import format_count, format_seconds


def announce(
    model: Any,
    initializer: Any,
    partitioner: Any,
    dataset_cfg: Any,
    train_iter: Any,
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
            "model": _fact(_describe_model, model, initializer),
            "devices": _fact(_describe_mesh, partitioner),
            "data": _fact(_describe_data, dataset_cfg, train_iter),
            "steps": steps,
            "output": model_dir,
            "log": str(console.log_path or "terminal"),
        },
    )


def say_trained(
    first_step: int, step: int, seconds: float, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> None:
    """Prints how many steps were taken, and how fast."""
    rate = (step - first_step) * shapes.count_tokens(batch) / seconds if seconds else 0.0
    console.say(
        f"trained {step - first_step} steps in {format_seconds(seconds)} "
        f"({format_count(rate)} tokens/s), now at step {step}"
    )


def say_read(counts: Mapping[str, float]) -> None:
    """Prints what `ShardedDatasetIterator.count` gives; per task it is in metrics.jsonl."""
    if not counts.get("data/examples"):
        return
    examples, truncated = int(counts["data/examples"]), int(counts["data/truncated"])
    prefix = "data/epochs/"
    epochs = sorted(
        (value, name.removeprefix(prefix))
        for name, value in counts.items()
        if name.startswith(prefix)
    )
    (fewest, rarest), (most, commonest) = epochs[0], epochs[-1]
    inputs, targets = (counts[f"data/{side}_padding"] for side in ("encoder", "decoder"))
    console.say(
        f"read {examples} examples of {len(epochs)} tasks, {truncated} truncated; padding "
        f"{inputs:.1%} of inputs, {targets:.1%} of targets; epochs {fewest:.3g} ({rarest}) to "
        f"{most:.3g} ({commonest})"
    )


def _fact(describe: Callable[..., str], *args: Any) -> str:
    """What the header says of something; models and datasets of one's own may not answer."""
    try:
        return describe(*args)
    except Exception:  # what only displays ends no run
        logging.exception("the header lacks a fact")
        return "not told, see the log"


def _describe_model(model: Any, initializer: Any) -> str:
    params = jax.tree.leaves(initializer.global_train_state_shape.params)
    count = format_count(sum(math.prod(param.shape) for param in params))
    config = getattr(getattr(model, "module", None), "config", None)
    told = {
        name: getattr(config, name)
        for name in ("emb_dim", "num_heads", "mlp_dim", "vocab_size")
        if hasattr(config, name)
    }
    layers = [getattr(config, f"num_{side}_layers", None) for side in ("encoder", "decoder")]
    facts = [f"{layers[0]}+{layers[1]} layers"] if None not in layers else []
    texts = {"emb_dim": "width {}", "num_heads": "{} heads", "mlp_dim": "mlp {}"}
    facts += [texts.get(name, "vocabulary {}").format(value) for name, value in told.items()]
    if hasattr(config, "dtype"):
        facts.append(jax.numpy.dtype(config.dtype).name)
    return f"{count} parameters{': ' * bool(facts)}{', '.join(facts)}"


def _describe_mesh(partitioner: Any) -> str:
    devices = partitioner.mesh.devices.flat
    axes = ", ".join(f"{name} {size}" for name, size in partitioner.mesh.shape.items())
    return f"{len(devices)} {devices[0].device_kind}, mesh {axes}"


def _describe_data(cfg: Any, train_iter: Any) -> str:
    batch = train_iter.global_shapes
    name = getattr(cfg.mixture_or_task_name, "name", cfg.mixture_or_task_name)
    tasks = len(train_iter.task_names)
    return (
        f"{name} ({tasks or _count_tasks(cfg)} tasks), batch {cfg.batch_size} × "
        f"{shapes.token_lengths(batch)}{' packed' if cfg.pack else ''}, "
        f"{format_count(shapes.count_tokens(batch))} tokens a step"
    )


def _count_tasks(cfg: Any) -> int:
    import seqio

    return len(seqio.get_subtasks(seqio.get_mixture_or_task(cfg.mixture_or_task_name)))
