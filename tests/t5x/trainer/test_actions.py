import clu.values
import pytest

from t5x.trainer.actions import EarlyStoppingAction, TerminateOnNanAction


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
