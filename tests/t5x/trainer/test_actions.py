import concurrent.futures

import clu.values
import pytest

from t5x.trainer.actions import (
    ActionMode,
    BaseAction,
    EarlyStoppingAction,
    Judge,
    TerminateOnNanAction,
)


def _stops(action, values):
    return [action.run(None, {"task": {"loss": clu.values.Scalar(v)}}) for v in values]


# Verdicts of T5X's action (commit cc342d41) on the same values.
@pytest.mark.parametrize(
    ("settings", "values", "verdicts"),
    [
        ({"mode": "min", "patience": 3}, [3, 2, 1, 1, 1], [False] * 4 + [True]),
        ({"mode": "max", "patience": 3}, [1, 2, 2, 1], [False, False, False, True]),
        ({"mode": "min", "patience": 2, "atol": 0.5}, [3, 2.6, 2], [False, True, False]),
        ({"mode": "min", "patience": 2, "rtol": 0.1}, [10, 9.5, 8], [False, True, False]),
        ({"mode": "min", "patience": 3}, [1, 2, 1, 2, 3], [False, False, False, False, True]),
    ],
)
def test_early_stopping(settings, values, verdicts):
    assert _stops(EarlyStoppingAction(("task", "loss"), **settings), values) == verdicts


def test_early_stopping_ignores_a_metric_that_is_not_there():
    action = EarlyStoppingAction(("other", "loss"), "min", patience=1)
    assert _stops(action, [1.0, 1.0]) == [False, False]


def test_early_stopping_checks_its_settings():
    with pytest.raises(ValueError, match=r"mode must be 'min' or 'max'"):
        EarlyStoppingAction(("task", "loss"), "lower")
    with pytest.raises(ValueError, match="must not be negative"):
        EarlyStoppingAction(("task", "loss"), "min", atol=-1)


def test_terminate_on_nan():
    action = TerminateOnNanAction("task")
    assert _stops(action, [1.0, float("nan"), float("inf"), 0.0]) == [False, True, True, False]


class _Says(BaseAction):
    def __init__(self, verdict):
        self.verdict, self.seen = verdict, []

    def run(self, train_state, metrics_by_task):
        self.seen.append(metrics_by_task)
        return self.verdict


def test_every_action_sees_every_value_and_one_is_enough_to_stop():
    actions = [_Says(True), _Says(False)]
    judge = Judge({"TRAIN": actions}, concurrent_metrics=False)
    future = concurrent.futures.Future()
    future.set_result({"loss": 1.0})
    judge(ActionMode.INFER_EVAL, None, {"task": {}})
    assert not judge.stop
    judge(ActionMode.TRAIN, None, {"train": future})
    assert judge.stop
    assert [action.seen for action in actions] == [[{"train": {"loss": 1.0}}]] * 2
    judge(ActionMode.TRAIN_EVAL, None, {})
    assert judge.stop


def test_nobody_waits_for_metrics_that_no_action_wants():
    judge = Judge({"TRAIN": [_Says(True)], "TRAIN_EVAL": [_Says(False)]}, concurrent_metrics=True)
    never = concurrent.futures.Future()  # would block
    judge(ActionMode.TRAIN, None, {"train": never})
    judge(ActionMode.INFER_EVAL, None, never)
    assert not judge.stop


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match=r"unknown key \{'TRIAN'\}; use TRAIN, TRAIN_EVAL"):
        Judge({"TRIAN": []}, concurrent_metrics=False)
