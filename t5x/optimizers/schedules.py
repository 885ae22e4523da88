"""Learning-rate schedules as a product of named factors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LearningRateFunction = Callable[[jax.Array], jax.Array]


def create_learning_rate_scheduler(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> LearningRateFunction:
    """A schedule from a product of factors, e.g. "constant * rsqrt_decay".

    Factors (upstream `t5x.utils.create_learning_rate_scheduler`; s is the step less the offset):
      constant: `base_learning_rate`.
      linear_warmup: min(1, s / warmup_steps).
      linear_decay: base_learning_rate ·
        min(s / warmup_steps, 1 + decay_factor · (warmup_steps - s)).
      rsqrt_decay: 1 / sqrt(max(s, warmup_steps)).
      rsqrt_normalized_decay: sqrt(warmup_steps) / sqrt(max(s, warmup_steps)).
      decay_every: decay_factor ** (s // steps_per_decay).
      cosine_decay: half a cosine over steps_per_cycle after the warmup, again every cycle.

    Args:
      factors: names joined by "*".
      base_learning_rate: the constant.
      warmup_steps: steps of warmup, at least 1 where a factor uses them.
      decay_factor: see decay_every and linear_decay.
      steps_per_decay: see decay_every.
      steps_per_cycle: see cosine_decay.
      step_offset: step that counts as 0.
      min_learning_rate: lower bound of the product.

    Returns:
      A function from the step to a float32 scalar.

    Raises:
      ValueError: a factor is unknown.
    """
    table: dict[str, LearningRateFunction] = {
        "constant": lambda s: base_learning_rate,
        "linear_warmup": lambda s: jnp.minimum(1.0, s / warmup_steps),
        "linear_decay": lambda s: (
            base_learning_rate
            * jnp.minimum(s / warmup_steps, 1.0 + decay_factor * (warmup_steps - s))
        ),
        "rsqrt_decay": lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, warmup_steps)),
        "rsqrt_normalized_decay": lambda s: (
            jnp.sqrt(warmup_steps) / jnp.sqrt(jnp.maximum(s, warmup_steps))
        ),
        "decay_every": lambda s: decay_factor ** (s // steps_per_decay),
        "cosine_decay": lambda s: jnp.maximum(
            0.0, 0.5 * (1 + jnp.cos(jnp.pi * (_cycle(s, warmup_steps, steps_per_cycle) % 1.0)))
        ),
    }
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in table:
            raise ValueError(
                f"create_learning_rate_scheduler.factors: unknown factor '{name}'; known are "
                f"{', '.join(table)}"
            )

    def learning_rate(step: jax.Array) -> jax.Array:
        elapsed = jnp.maximum(0, step - step_offset)
        rate = jnp.float32(1.0)
        for name in names:
            rate *= table[name](elapsed)
        return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

    return learning_rate


def _cycle(step: jax.Array, warmup_steps: int, steps_per_cycle: int) -> jax.Array:
    return jnp.maximum(0.0, (step - warmup_steps) / float(steps_per_cycle))
