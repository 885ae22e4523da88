"""Metrics that a train or eval step returns: sums that merge over microbatches, steps and hosts.

They follow clu.metrics. Two kinds cannot be known inside a compiled step and are set on the host
before `compute`: how many steps were merged (`Step`) and how long they took (`Time`).
"""

import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

MetricsMap = MutableMapping[str, clu_metrics.Metric]
Scalar = int | float | np.number | np.ndarray | jax.Array


@flax.struct.dataclass
class Sum(clu_metrics.Metric):
    """Total of a value over everything merged."""

    total: Scalar

    @classmethod
    def from_model_output(cls, values: Scalar, **_: Any) -> Self:
        return cls(total=jnp.sum(jnp.asarray(values)))

    def merge(self, other: Self) -> Self:
        return type(self)(total=self.total + other.total)

    def compute(self) -> jax.Array:
        return jnp.asarray(self.total)


@flax.struct.dataclass
class Step(clu_metrics.Metric):
    """Counts steps. Set with `replace_steps`: merging counts microbatches as steps of their own."""

    steps: int | None = 1

    def replace_steps(self, steps: int) -> Self:
        return self.replace(steps=steps)

    def compute(self) -> jax.Array:
        if self.steps is None:
            raise ValueError("steps is not set: call replace_steps before compute")
        return jnp.asarray(self.steps)


@flax.struct.dataclass
class AveragePerStep(Step):
    """Total divided by the number of steps."""

    total: Scalar | None = None

    @classmethod
    def from_model_output(cls, values: Scalar, steps: int | None = 1, **_: Any) -> Self:
        return cls(total=jnp.sum(jnp.asarray(values)), steps=steps)

    def merge(self, other: Self) -> Self:
        return type(self)(total=self.total + other.total, steps=self.steps + other.steps)

    def compute(self) -> jax.Array:
        if self.total is None:
            raise ValueError("total is not set")
        return self.total / super().compute()


@flax.struct.dataclass
class Time(clu_metrics.Metric):
    """Duration in seconds, set on the host with `replace_duration`."""

    duration: Scalar | None = None

    def merge(self, other: Self) -> Self:
        return self

    def compute(self) -> jax.Array:
        if self.duration is None:
            raise ValueError("duration is not set: call replace_duration before compute")
        return jnp.asarray(self.duration)

    def replace_duration(self, duration: Scalar) -> Self:
        return self.replace(duration=duration)


@flax.struct.dataclass
class TimeRate(Time):
    """Total of a value per second."""

    numerator: Scalar | None = None

    @classmethod
    def from_model_output(cls, numerator: Scalar, **_: Any) -> Self:
        return cls(numerator=numerator)

    def merge(self, other: Self) -> Self:
        if self.duration is not None or other.duration is not None:
            raise ValueError("a rate whose duration is set cannot be merged")
        return type(self)(numerator=self.numerator + other.numerator)

    def compute(self) -> jax.Array:
        return self.numerator / super().compute()


@flax.struct.dataclass
class StepsPerTime(Step, Time):
    """Steps per second."""

    @classmethod
    def from_model_output(cls, steps: int | None = 1, **_: Any) -> Self:
        return cls(steps=steps)

    def merge(self, other: Self) -> Self:
        return type(self)(steps=self.steps + other.steps)

    def compute(self) -> jax.Array:
        return Step.compute(self) / Time.compute(self)


def is_metric_obj(obj: Any) -> bool:
    return isinstance(obj, clu_metrics.Metric)


def is_time_metric(obj: Any) -> bool:
    return isinstance(obj, Time)


def create_metrics_dict(values: Mapping[str, Scalar]) -> dict[str, Sum]:
    """Each value as a `Sum`."""
    return {name: Sum(value) for name, value in values.items()}


def shape_obj_to_defined_obj(obj: clu_metrics.Metric) -> clu_metrics.Metric:
    """The metric with zeros wherever `jax.eval_shape` left a shape."""

    def define(value: Any) -> Any:
        if is_metric_obj(value):
            return shape_obj_to_defined_obj(value)
        return jnp.zeros(value.shape, value.dtype) if hasattr(value, "shape") else value

    fields = {field.name: define(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    return type(obj)(**fields)


def set_time_metrics_duration(metrics: Any, duration: Scalar) -> Any:
    """The tree of metrics with every duration set."""
    return jax.tree.map(
        lambda m: m.replace_duration(duration) if is_time_metric(m) else m,
        metrics,
        is_leaf=is_metric_obj,
    )


def set_step_metrics_num_steps(metrics: Any, num_steps: int) -> Any:
    """The tree of metrics with every number of steps set."""
    return jax.tree.map(
        lambda m: m.replace_steps(num_steps) if isinstance(m, Step) else m,
        metrics,
        is_leaf=is_metric_obj,
    )


def count_packed_examples(segment_ids: jax.Array) -> jax.Array:
    """Number of examples in packed rows (B, L): runs of equal ids, padding (0, last) left out."""
    starts = jnp.diff(segment_ids.astype(jnp.int32), axis=1) != 0
    return jnp.sum(starts) + segment_ids.shape[0] - jnp.sum(segment_ids[:, -1] == 0)


def compute_base_metrics(
    logits: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array | None,
    loss: jax.Array,
    z_loss: jax.Array | None = None,
    segment_ids: Mapping[str, jax.Array] | None = None,
    correct: jax.Array | None = None,
) -> MetricsMap:
    """Metrics of a step, under upstream's names.

    Args:
      logits: (B, L, V), or None where `correct` is given.
      targets, mask: (B, L); mask holds the loss weights.
      segment_ids: by feature, (B, L).
      correct: number of right predictions among tokens of nonzero weight.
    """
    mask = jnp.ones(targets.shape, jnp.float32) if mask is None else mask
    if correct is None:
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == targets) & (mask != 0))
    rows, tokens, devices = targets.shape[0], targets.size, jax.device_count()
    real_tokens = jnp.sum(mask)
    average = clu_metrics.Average

    def per_token(total: jax.Array) -> clu_metrics.Average:
        return average(total=total, count=jnp.array(tokens))

    metrics: MetricsMap = {
        "accuracy": clu_metrics.Accuracy(
            total=jnp.asarray(correct, jnp.float32), count=jnp.sum(mask != 0)
        ),
        "loss": AveragePerStep(total=loss),
        "loss_per_nonpadding_target_token": average(total=loss, count=real_tokens),
        "loss_per_all_target_tokens": per_token(loss),
        "timing/seqs_per_second": TimeRate(numerator=jnp.array(rows)),
        "timing/steps_per_second": StepsPerTime(),
        "timing/seconds": Time(),
        "timing/seqs": Sum(jnp.array(rows)),
        "timing/seqs_per_second_per_core": TimeRate(numerator=jnp.array(rows / devices)),
        "timing/target_tokens_per_second": TimeRate(numerator=jnp.array(tokens)),
        "timing/target_tokens_per_second_per_core": TimeRate(numerator=jnp.array(tokens / devices)),
        "non_padding_fraction/loss_weights": per_token(real_tokens),
    }
    if z_loss is not None:
        metrics |= {
            "z_loss": AveragePerStep(total=z_loss),
            "z_loss_per_all_target_tokens": per_token(z_loss),
            "cross_ent_loss": AveragePerStep(total=loss - z_loss),
            "cross_ent_loss_per_all_target_tokens": per_token(loss - z_loss),
        }
    return metrics | _padding_metrics(segment_ids or {})


def _padding_metrics(segment_ids: Mapping[str, jax.Array]) -> MetricsMap:
    """Examples per step and the share of positions in use, by feature and over all."""
    metrics: MetricsMap = {}
    used, size = jnp.array(0), 0
    for feature, ids in segment_ids.items():
        if ids is None or ids.shape[1] == 0:
            continue
        metrics[f"effective_batch_size/{feature}"] = AveragePerStep(
            total=count_packed_examples(ids)
        )
        feature_used = jnp.sum(ids != 0)
        metrics[f"non_padding_fraction/{feature}"] = clu_metrics.Average(
            total=feature_used, count=jnp.array(ids.size)
        )
        used, size = used + feature_used, size + ids.size
    if metrics:
        metrics["non_padding_fraction/overall"] = clu_metrics.Average(
            total=used, count=jnp.array(size)
        )
    return metrics
