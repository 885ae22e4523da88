"""What a training run evaluates on its way: under teacher forcing, and by its tasks' metrics."""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from t5x import utils
from t5x.run import processes
from t5x.run.preemption import StopListener
from t5x.trainer.actions import ActionMode, Judge

# The file in MODEL_DIR that says which step was evaluated last.
_MEMORY = "evaluated_step"


class Evaluations:
    """Both evaluations of a run, each followed by the actions that may stop it.

    Args:
      trainer: has the state, and evaluates under teacher forcing.
      datasets: of that, by name.
      evaluator: `t5x.eval.InferenceEvaluator`, or None.
      train_state_axes: PartitionSpecs of the state.
      judge: asked after each evaluation.
      listener: may end them before they are through.
      model_dir: where the step that was evaluated last is remembered.
    """

    def __init__(
        self,
        trainer: Any,
        datasets: Mapping[str, Any],
        evaluator: Any,
        train_state_axes: Any,
        judge: Judge,
        listener: StopListener,
        model_dir: str,
    ) -> None:
        self._trainer, self._datasets, self._evaluator = trainer, datasets, evaluator
        self._axes, self._judge, self._listener = train_state_axes, judge, listener
        self._memory = epath.Path(model_dir) / _MEMORY

    def __bool__(self) -> bool:
        return bool(self._datasets or self._evaluator)

    def run(self) -> None:
        """Evaluates the trainer's state; metrics are written as they come."""
        self._listener.give_up_on_signal(self._run)

    def have_seen(self, step: int) -> bool:
        """Whether the metrics of a step were all written, by this start of the run or another."""

        def look() -> bool:
            return self._memory.exists() and self._memory.read_text().strip() == str(step)

        return bool(processes.decide(look))

    def _remember(self, step: int) -> None:
        if jax.process_index() == 0:
            self._memory.write_text(f"{step}\n")

    def _run(self) -> None:
        step = int(utils.get_local_data(self._trainer.train_state.step))
        if self._datasets:
            summaries = self._trainer.eval(
                {
                    # A dataset is read from its beginning every time.
                    name: data.as_numpy_iterator() if hasattr(data, "as_numpy_iterator") else data
                    for name, data in self._datasets.items()
                }
            )
            self._judge(ActionMode.TRAIN_EVAL, self._trainer.train_state, summaries)
        metrics = None
        if self._evaluator is not None and self._evaluator.eval_tasks:
            metrics = self._evaluator.evaluate(self._trainer.train_state, self._axes)
            self._judge(ActionMode.INFER_EVAL, self._trainer.train_state, metrics)
        if isinstance(metrics, concurrent.futures.Future):
            # They are computed and written while training goes on.
            metrics.add_done_callback(lambda done: done.exception() or self._remember(step))
        else:
            self._remember(step)

    def close(self) -> None:
        """Waits until metrics are written, unless the run is told to stop."""
        if self._evaluator is not None:
            self._listener.give_up_on_signal(self._evaluator.close)
