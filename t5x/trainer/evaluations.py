"""What a training run evaluates on its way: under teacher forcing, and by its tasks' metrics."""

from collections.abc import Mapping
from typing import Any

from t5x.run.preemption import StopListener
from t5x.trainer.actions import ActionMode, Judge


class Evaluations:
    """Both evaluations of a run, each followed by the actions that may stop it.

    Args:
      trainer: has the state, and evaluates under teacher forcing.
      datasets: of that, by name.
      evaluator: `t5x.eval.InferenceEvaluator`, or None.
      train_state_axes: PartitionSpecs of the state.
      judge: asked after each evaluation.
      listener: may end them before they are through.
    """

    def __init__(
        self,
        trainer: Any,
        datasets: Mapping[str, Any],
        evaluator: Any,
        train_state_axes: Any,
        judge: Judge,
        listener: StopListener,
    ) -> None:
        self._trainer, self._datasets, self._evaluator = trainer, datasets, evaluator
        self._axes, self._judge, self._listener = train_state_axes, judge, listener

    def __bool__(self) -> bool:
        return bool(self._datasets or self._evaluator)

    def run(self) -> None:
        """Evaluates the trainer's state; metrics are written as they come."""
        with self._listener.interruptible():
            self._run()

    def _run(self) -> None:
        if self._datasets:
            summaries = self._trainer.eval(
                {
                    # A dataset is read from its beginning every time.
                    name: data.as_numpy_iterator() if hasattr(data, "as_numpy_iterator") else data
                    for name, data in self._datasets.items()
                }
            )
            self._judge(ActionMode.TRAIN_EVAL, self._trainer.train_state, summaries)
        if self._evaluator is not None and self._evaluator.eval_tasks:
            metrics = self._evaluator.evaluate(self._trainer.train_state, self._axes)
            self._judge(ActionMode.INFER_EVAL, self._trainer.train_state, metrics)

    def close(self) -> None:
        """Waits until metrics are written."""
        if self._evaluator is not None:
            self._evaluator.close()
