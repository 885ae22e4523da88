"""What may stop a run: actions that look at metrics after training or evaluation."""

import abc
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import clu.values
import numpy as np
from absl import logging

MetricValues = Mapping[str, Any]


@enum.unique
class ActionMode(enum.Enum):
    """When an action runs: after a stretch of training, of training eval, of inference eval."""

    TRAIN = 1
    TRAIN_EVAL = 2
    INFER_EVAL = 3


class BaseAction(abc.ABC):
    """Looks at the metrics of all tasks and says whether training should stop."""

    @abc.abstractmethod
    def run(self, train_state: Any, metrics_by_task: Mapping[str, MetricValues]) -> bool:
        """True to stop training."""


ActionMapType = Mapping[ActionMode, Sequence[BaseAction]]


def _scalar(metrics_by_task: Mapping[str, MetricValues], task: str, metric: str) -> float | None:
    """The value of a metric; None, with a warning, where there is no such number."""
    value = metrics_by_task.get(task, {}).get(metric)
    if isinstance(value, clu.values.Scalar):
        value = value.value
    if value is None or np.ndim(value):
        logging.warning("no scalar metric '%s' of '%s' to act on", metric, task)
        return None
    return float(value)


class EarlyStoppingAction(BaseAction):
    """Stops when a metric has not improved `patience` times in a row (upstream's rule).

    Args:
      metric: (task, metric name).
      mode: "min" or "max", the direction of improvement.
      patience: number of values compared, at least 2 for the rule to compare anything.
      atol: absolute change that does not count as improvement.
      rtol: relative change that does not count as improvement.

    Raises:
      ValueError: mode, atol or rtol out of range.
    """

    def __init__(
        self,
        metric: tuple[str, str],
        mode: str,
        patience: int = 3,
        atol: float = 0.0,
        rtol: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"EarlyStoppingAction.mode must be 'min' or 'max', got '{mode}'")
        if atol < 0 or rtol < 0:
            raise ValueError("EarlyStoppingAction.atol and rtol must not be negative")
        self._task, self._metric = metric
        self._sign = 1.0 if mode == "min" else -1.0
        self._patience = patience
        self._atol, self._rtol = atol, rtol
        self._history: list[float] = []

    def run(self, train_state: Any, metrics_by_task: Mapping[str, MetricValues]) -> bool:
        """True when each of the last `patience` values failed to improve on the one before."""
        del train_state
        value = _scalar(metrics_by_task, self._task, self._metric)
        if value is None:
            return False
        self._history = [*self._history, value][-self._patience :]
        if len(self._history) < self._patience:
            return False
        pairs = zip(self._history[:-1], self._history[1:], strict=True)
        return all(not self._improves(previous, current) for previous, current in pairs)

    def _improves(self, previous: float, current: float) -> bool:
        margin = self._atol + self._rtol * abs(previous)
        return self._sign * current < self._sign * previous - margin


class TerminateOnNanAction(BaseAction):
    """Stops when a metric is NaN or infinite.

    Args:
      task: task of the metric; "train" for training itself.
      metric: name of the metric.
    """

    def __init__(self, task: str, metric: str = "loss") -> None:
        self._task, self._metric = task, metric

    def run(self, train_state: Any, metrics_by_task: Mapping[str, MetricValues]) -> bool:
        """True when the value is not finite."""
        del train_state
        value = _scalar(metrics_by_task, self._task, self._metric)
        return value is not None and not np.isfinite(value)
