"""Which checkpoints to keep: the latest, or those that a metric says are best."""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Protocol

from absl import logging
from etils import epath


def populate_metrics_for_steps(
    checkpoints_dir: epath.PathLike, metric_name: str, steps: Collection[int]
) -> dict[int, float]:
    """Reads a metric from the TensorBoard event files of a run.

    Args:
      checkpoints_dir: the directory under which the event files lie.
      metric_name: 'RUN/TAG', where RUN is the directory of the event files relative to
        `checkpoints_dir`, e.g. 'inference_eval/task/eval/accuracy'.
      steps: the steps of interest.

    Returns:
      The last value written for each step; steps without one are left out, among them those of
      a damaged file behind its damage, which the log names.
    """
    return _read_metric(checkpoints_dir, metric_name, steps)[0]


def _read_metric(
    checkpoints_dir: epath.PathLike, metric_name: str, steps: Collection[int]
) -> tuple[dict[int, float], bool]:
    """(what `populate_metrics_for_steps` returns, whether all event files could be read)."""
    from tensorflow import make_ndarray
    from tensorflow.compat.v1.train import summary_iterator
    from tensorflow.errors import DataLossError

    parts = metric_name.split("/")
    runs = ["/".join(parts[:length]) for length in range(1, len(parts))]
    metrics, is_whole = {}, True
    for run in runs:
        directory = epath.Path(checkpoints_dir) / run
        if not directory.is_dir():
            continue
        tag = metric_name[len(run) + 1 :]
        for path in sorted(directory.glob("*tfevents*")):
            events = summary_iterator(os.fspath(path))
            while True:
                try:
                    event = next(events)
                except StopIteration:
                    break
                except DataLossError as error:
                    logging.warning("%s is damaged: %s", path, error.message)
                    is_whole = False
                    break
                for value in event.summary.value:
                    if event.step in steps and value.tag == tag:
                        is_tensor = value.HasField("tensor")
                        number = make_ndarray(value.tensor) if is_tensor else value.simple_value
                        metrics[event.step] = float(number)
    return metrics, is_whole


class Retention(Protocol):
    """Decides which checkpoints go."""

    def steps_to_remove(self, steps: Sequence[int]) -> list[int]:
        """Returns those of the steps, given in ascending order, that are not worth keeping."""
        ...


@dataclasses.dataclass(frozen=True)
class KeepLatest:
    """Keeps the latest checkpoints.

    Attributes:
      keep: how many; None for all.
      keep_period: steps divisible by it are kept, too.
    """

    keep: int | None
    keep_period: int | None

    def steps_to_remove(self, steps: Sequence[int]) -> list[int]:
        """Returns those of the steps, given in ascending order, that are not worth keeping."""
        if self.keep is None:
            return []
        period = self.keep_period
        return [step for step in steps[: -max(1, self.keep)] if not period or step % period]


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Keeps the latest checkpoint and the best of the others.

    Attributes:
      checkpoints_dir: where the checkpoints and the event files lie.
      metric_name: see `populate_metrics_for_steps`.
      mode: 'max' or 'min', what is best.
      keep: how many to keep besides the latest; None for all.
      keep_without_metrics: keep all those the metric is not known of. If False they count as
        the worst, the oldest first.
      keep_period: steps divisible by it are kept, too, and are not counted.
    """

    checkpoints_dir: epath.PathLike
    metric_name: str
    mode: str
    keep: int | None
    keep_without_metrics: bool
    keep_period: int | None

    def steps_to_remove(self, steps: Sequence[int]) -> list[int]:
        """Returns those of the steps, given in ascending order, that are not worth keeping."""
        others = [step for step in steps[:-1] if not self.keep_period or step % self.keep_period]
        if self.keep is None or len(others) <= self.keep:
            return []
        metrics, is_whole = _read_metric(self.checkpoints_dir, self.metric_name, others)
        logging.info("Metric %s of checkpoints: %s", self.metric_name, metrics)
        # What a damaged file does not say may be the best of all.
        if self.keep_without_metrics or not is_whole:
            others = [step for step in others if step in metrics]
        sign = 1 if self.mode == "max" else -1
        others.sort(key=lambda step: sign * metrics.get(step, -sign * float("inf")))
        return others[: max(0, len(others) - self.keep)]
