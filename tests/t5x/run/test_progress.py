"""What a terminal and a log get to see of a long job."""

import io

import jax.numpy as jnp
import pytest
import rich.console

from t5x import metrics
from t5x.run import progress as progress_lib
from t5x.run.progress import Progress, StepProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def plain():
    return rich.console.Console(file=io.StringIO(), width=200)


def _lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_every_ten_seconds(clock, plain):
    with Progress(plain, 3000, "examples") as progress:
        for second in range(1, 26):
            clock[0] = second
            progress.update(100 * second, note="so far")
    assert _lines(plain) == [
        "examples 1,000/3,000  so far  0:20 left",
        "examples 2,000/3,000  so far  0:10 left",
    ]


def test_what_was_no_work_does_not_count_for_the_speed(clock, plain):
    with Progress(plain, 3000, "examples") as progress:
        clock[0] = 10
        progress.update(1000, done_before=900)
    assert _lines(plain) == ["examples 1,000/3,000  3:20 left"]


def test_a_bar_inside_another_keeps_to_plain_lines(clock):
    terminal = rich.console.Console(file=io.StringIO(), force_terminal=True, width=200)
    with Progress(terminal, 10, "outer"), Progress(terminal, 10, "inner") as inner:
        clock[0] = 10
        inner.update(5)
    assert "inner 5/10  0:10 left" in terminal.file.getvalue()


def test_steps_show_the_loss_of_the_step_before_and_the_last_one_at_the_end(clock, plain):
    name = "loss_per_nonpadding_target_token"

    def loss(value):
        return {name: metrics.AveragePerStep.from_model_output(jnp.float32(value)).replace_steps(1)}

    with StepProgress(Progress(plain, 40, "step", start=10), tokens_per_step=2000) as progress:
        for step in range(11, 24):
            clock[0] += 1
            progress.update(step, loss(step))
    assert _lines(plain) == [
        "step 20/40  loss 20.0000  1.8k tokens/s  0:22 left",
        "step 23/40  loss 23.0000  2k tokens/s  0:17 left",
    ]
