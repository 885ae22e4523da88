"""The train step of a gin file, traced for devices that are elsewhere and from shapes alone."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5x.data.shapes import batch_shapes, count_tokens
from t5x.run import settings
from t5x.trainer import preparation

# Register tasks, which planning takes no part in.
TASK_MODULES = ("t0x.tasks.p3",)


def read_run(gin_files: Sequence[str], bindings: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments that a training run's gin files give to `t5x.train.train`, defaults included.

    P3's tasks, whose prompts need not be installed to plan a run, are not registered.

    Raises:
      FileNotFoundError, ValueError: see `t5x.gin_utils.parse_gin_flags`.
    """
    settings.read(gin_files, bindings, without=TASK_MODULES)
    return settings.arguments("train")


def trace(run: dict[str, Any], devices: Sequence[jax.Device]) -> "Step":
    """Traces the train step that a run would take on these devices.

    No array is made: state and batch are shapes. The batch has the features that the model's
    feature converter makes.

    Args:
      run: see `read_run`.
      devices: what the mesh is made of.

    Raises:
      ValueError: the batch does not divide over the mesh, or settings do not fit together.
    """
    model, partitioner, dataset = run["model"], run["partitioner"], run["train_dataset_cfg"]
    partitioner.devices = list(devices)
    batch = batch_shapes(model, dataset, partitioner.get_data_layout(dataset.batch_size).batch_size)
    implementation = jax.config.jax_default_prng_impl
    if run["use_hardware_rng"] or run["random_seed"] is None:
        implementation = "unsafe_rbg"
    with jax.default_prng_impl(implementation):
        initializer = preparation.make_initializer(
            run["train_state_initializer_cls"], model, partitioner, dataset
        )
        lowered = preparation.lower_train_step(
            run["trainer_cls"], model, partitioner, initializer, batch, jax.random.PRNGKey(0)
        )
    return Step(
        lowered=lowered,
        mesh=dict(partitioner.mesh.shape),
        batch=batch,
        parameters=count_parameters(initializer.global_train_state_shape.params),
        flops=count_flops(model, batch),
        steps=count_steps(run),
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """A traced train step.

    Attributes:
      lowered: the traced computation.
      mesh: size of each mesh axis.
      batch: global shape and dtype of each model feature.
      parameters: number of them.
      flops: floating-point operations that the model's own matrix products need for one batch,
        forward and backward, without recomputation; None for networks of unknown shape.
      steps: optimizer steps from the run's initial checkpoint, or from scratch, to its end.
    """

    lowered: jax.stages.Lowered
    mesh: dict[str, int]
    batch: dict[str, jax.ShapeDtypeStruct]
    parameters: int
    flops: float | None
    steps: int

    @property
    def tokens(self) -> int:
        """Token slots of a batch, inputs and targets, padding included."""
        return count_tokens(self.batch)


def count_steps(run: Mapping[str, Any]) -> int:
    """Optimizer steps of a run, counted from the step in its initial checkpoint's name."""
    if run["relative_steps"]:
        return run["relative_steps"]
    restore = run["checkpoint_cfg"].restore
    path = restore.path if restore and isinstance(restore.path, str) else ""
    match = re.search(r"checkpoint_(\d+)/?$", path)
    return run["total_steps"] - (int(match.group(1)) if match else 0)


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_flops(model: Any, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float | None:
    """Matrix-product operations of forward and backward; attention over whole rows.

    Six for each multiply-add of the forward pass (two each way, and two more for the gradient of
    the weights), as PaLM (arXiv 2204.02311, appendix B) counts them. None if the model's network
    has no T5Config.
    """
    config = getattr(getattr(model, "module", None), "config", None)
    if not hasattr(config, "num_encoder_layers"):
        return None
    rows, inputs = batch["encoder_input_tokens"].shape
    targets = batch["decoder_target_tokens"].shape[1]
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    projections = 4 * width * joined
    mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
    encoder = inputs * (projections + mlp + 2 * inputs * joined)
    decoder = targets * (1.5 * projections + mlp + 2 * (targets + inputs) * joined)
    decoder += inputs * projections / 2  # cross-attention's keys and values
    logits = targets * width * config.vocab_size
    layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    return 6.0 * rows * (layers + logits)
