"""What may stop a run: actions that look at metrics after training or evaluation."""

import abc
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import clu.values
import numpy as np
from absl import logging

from t5x.run import processes
from t5x.run.console import log_ignored

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


class Judge:
    """Asks the actions of a run whether it should stop.

    Args:
      actions: {"TRAIN" | "TRAIN_EVAL" | "INFER_EVAL": actions}.
      concurrent_metrics: metrics are computed while training goes on, so that actions which wait
        for them are left out.

    Attributes:
      stop: whether one of them said so.

    Raises:
      ValueError: a key is none of these.
    """

    def __init__(
        self, actions: Mapping[str, Sequence[BaseAction]] | None, concurrent_metrics: bool
    ) -> None:
        modes = ActionMode.__members__
        unknown = set(actions or {}) - set(modes)
        if unknown:
            raise ValueError(f"train.actions has unknown key {unknown}; use {', '.join(modes)}")
        self._actions = {modes[name]: some for name, some in (actions or {}).items() if some}
        self.stop = False
        for mode in (ActionMode.TRAIN, ActionMode.INFER_EVAL):
            if concurrent_metrics and self._actions.pop(mode, None):
                log_ignored(
                    f"train.actions['{mode.name}']", "bind train.concurrent_metrics = False"
                )

    def __call__(self, mode: ActionMode, train_state: Any, metrics_by_task: Any) -> None:
        """Process 0 runs the actions of a mode, all take its verdict.

        Args:
          mode: what was just done.
          train_state: the state after it.
          metrics_by_task: {task: {metric: value}}, or futures where it or a task's metrics stand;
            they are waited for only if an action wants them.
        """
        actions = self._actions.get(mode)
        if not actions:
            return
        values = {name: _wait(metrics) for name, metrics in (_wait(metrics_by_task) or {}).items()}
        # All of them see every value, whatever the others say.
        verdict = processes.decide(lambda: sum(bool(a.run(train_state, values)) for a in actions))
        self.stop |= bool(verdict)


def _wait(value: Any) -> Any:
    return value.result() if hasattr(value, "result") else value


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
