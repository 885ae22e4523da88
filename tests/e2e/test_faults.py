"""Faults injected into real runs: what is killed and started again trains as if nothing had been.

`make faults` injects all of them; without T0X_ALL_FAULTS those that take longest are left out.
The table at the end of the session says what was injected and what was lost.
"""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t0x.launch.local import LocalProcesses
from t5x.run.preemption import EXIT_CODE

pytestmark = pytest.mark.slow
all_faults = pytest.mark.skipif(
    not os.environ.get("T0X_ALL_FAULTS"), reason="injected by make faults"
)
STEPS, PERIOD = 40, 8
TINY = [
    "--gin_file=t0_mini.gin",
    "--gin.MIXTURE_OR_TASK_NAME='mini_reviews_options_first'",
    f"--gin.TRAIN_STEPS={STEPS}",
    "--gin.train.stats_period=1",
    f"--gin.SaveCheckpointConfig.period={PERIOD}",
    "--gin.SaveCheckpointConfig.keep=2",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=32",
    # Four devices in one process, or two in each of two, then read the very same batches.
    "--gin.train/utils.DatasetConfig.num_data_shards=2",
]


def _arguments(model_dir, *more):
    return [*TINY, f"--gin.MODEL_DIR='{model_dir}'", *more]


@contextlib.contextmanager
def _started(model_dir, *more, command=("-m", "t5x.train"), **options):
    process = subprocess.Popen(
        [sys.executable, *command, *_arguments(model_dir, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=model_dir.parent,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _finish(model_dir, *more, **options):
    with _started(model_dir, *more, **options) as process:
        out, error = process.communicate()
    assert process.returncode == 0, out + error
    return out


def _losses(model_dir):
    """Loss by step; a step that was trained twice must have had the same loss both times."""
    losses = {}
    path = model_dir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if "loss" in row:
            assert losses.setdefault(row["step"], row["loss"]) == row["loss"], row["step"]
    return losses


def _wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def _wait_for_step(process, model_dir, step):
    path = model_dir / "metrics.jsonl"
    _wait_for(process, lambda: path.exists() and f'"step": {step}, ' in path.read_text())


def _interrupt(process, model_dir, number):
    """Sends a signal at a random moment after the next checkpoint; returns (output, seconds)."""
    first = max(_losses(model_dir), default=0) + PERIOD + 1
    _wait_for_step(process, model_dir, first)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(number)
    started = time.monotonic()
    out, error = process.communicate()
    return out + error, time.monotonic() - started


def _lost(model_dir, uninterrupted):
    return "nothing: same losses" if _losses(model_dir) == uninterrupted else "the same losses"


def _record(record_property, injected, ended_with, lost):
    record_property("fault", (injected, ended_with, lost))


def _newest_checkpoint(model_dir):
    return max(model_dir.glob("checkpoint_*[0-9]"), key=lambda path: int(path.name[11:]))


def _damage(checkpoint):
    """Cuts the largest file of a checkpoint to half its length."""
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    _finish(model_dir)
    losses = _losses(model_dir)
    assert sorted(losses) == list(range(1, STEPS + 1))
    return losses


def test_a_run_that_is_killed_told_to_stop_and_robbed_of_a_checkpoint(
    uninterrupted, tmp_path, record_property
):
    model_dir = tmp_path / "run"
    with _started(model_dir) as process:
        _interrupt(process, model_dir, signal.SIGKILL)
    _record(record_property, "kill -9", "signal 9", "steps since the checkpoint, trained again")
    with _started(model_dir) as process:
        out, seconds = _interrupt(process, model_dir, signal.SIGTERM)
    assert process.returncode == EXIT_CODE, out
    assert "its checkpoint is saved" in out
    assert seconds < 30
    _record(record_property, "SIGTERM", f"exit code 75 after {seconds:.1f} s", "nothing")
    newest = _newest_checkpoint(model_dir)
    _damage(newest)
    out = _finish(model_dir)
    assert f"checkpoint {newest} cannot be read" in out
    assert (model_dir / f"{newest.name}.unreadable").is_dir()
    assert "resumed from" in out
    assert _losses(model_dir) == uninterrupted
    record_property(
        "fault", ("half of a file of the newest checkpoint", "exit code 0", "that checkpoint")
    )
    _record(record_property, "all three", "exit code 0", _lost(model_dir, uninterrupted))


def test_two_processes_one_of_which_is_lost_and_a_checkpoint_too(tmp_path, record_property):
    model_dir = tmp_path / "run"
    launch = ("-m", "t0x", "launch", "local", "--processes", "2", "--log_dir", str(tmp_path))
    with _started(model_dir, command=launch) as process:
        _wait_for(process, (model_dir / f"checkpoint_{2 * PERIOD}").is_dir)  # two of them
        (victim,) = _processes("--process_index=1", str(model_dir))
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        _, error = process.communicate()
    seconds = time.monotonic() - started
    assert process.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with signal SIGKILL" in error
    assert seconds < 60
    assert not _processes(str(model_dir))
    _record(
        record_property,
        "kill -9 of one of two processes",
        f"exit code 137 after {seconds:.1f} s",
        "both processes",
    )
    if not os.environ.get("T0X_ALL_FAULTS"):
        return  # what follows is in tests/t5x/test_resuming.py too, without processes
    newest = _newest_checkpoint(model_dir)
    _damage(newest)
    out = _finish(model_dir, command=launch)
    assert f"checkpoint {newest} cannot be read" in out
    assert (model_dir / f"{newest.name}.unreadable").is_dir()
    assert "resumed from" in out
    assert sorted(_losses(model_dir)) == list(range(1, STEPS + 1))
    lost = "that checkpoint; the same losses"
    _record(record_property, "half of a file of two processes' checkpoint", "exit code 0", lost)


def _processes(*words):
    """Processes whose command line has all the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode().replace("\0", " ")
            if "t5x.train" in line and all(word in line for word in words):
                found.append(int(path.parent.name))
    return found


@all_faults
def test_killed_at_five_random_moments(uninterrupted, tmp_path, record_property):
    model_dir = tmp_path / "run"
    for _ in range(5):
        with _started(model_dir) as process:
            time.sleep(random.uniform(5, 40))
            process.kill()
            process.communicate()
    _finish(model_dir)
    assert _losses(model_dir) == uninterrupted
    _record(record_property, "kill -9 five times", "exit code 0", _lost(model_dir, uninterrupted))


@all_faults
def test_a_full_disk_leaves_the_last_good_checkpoint(uninterrupted, tmp_path, record_property):
    model_dir = tmp_path / "run"
    _finish(model_dir, f"--gin.TRAIN_STEPS={PERIOD}")
    limit = 300_000  # bytes of one file: less than a checkpoint's, more than a log's

    def full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with _started(model_dir, preexec_fn=full_disk) as process:
        out, error = process.communicate()
    assert process.returncode == 1, out + error
    assert len(error.strip().splitlines()) == 1
    assert _newest_checkpoint(model_dir).name == f"checkpoint_{PERIOD}"
    _finish(model_dir)
    assert _losses(model_dir) == uninterrupted
    record_property(
        "fault", ("no room for a checkpoint", "exit code 1", _lost(model_dir, uninterrupted))
    )


@all_faults
def test_sigterm_stops_two_processes_after_the_same_step(tmp_path, record_property):
    model_dir = tmp_path / "run"
    launch = ("-m", "t0x", "launch", "local", "--processes", "2")
    with _started(model_dir, command=launch) as process:
        out, seconds = _interrupt(process, model_dir, signal.SIGTERM)
    assert process.returncode == EXIT_CODE, out
    step = int(_newest_checkpoint(model_dir).name[11:])
    assert f"stopped by SIGTERM at step {step}" in out
    _record(record_property, "SIGTERM to two", f"exit code 75 after {seconds:.1f} s", "nothing")


@all_faults
def test_a_process_left_alone_ends_by_itself(tmp_path, record_property):
    model_dir = tmp_path / "run"
    run = LocalProcesses(2)
    arguments = _arguments(model_dir, "--gin.TRAIN_STEPS=100000", "--heartbeat_timeout=15")
    commands = run.commands("train", arguments, port=_free_port())
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **run.environment(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for index, command in enumerate(commands)
    ]
    try:
        _wait_for_step(processes[0], model_dir, 3)
        processes[1].kill()
        started = time.monotonic()
        _, error = processes[0].communicate(timeout=60)
        seconds = time.monotonic() - started
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode not in (0, EXIT_CODE)
    assert error.strip()
    record_property(
        "fault", ("kill -9 of one, no launcher", f"an error after {seconds:.1f} s", "both")
    )


def _free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@all_faults
def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_replayed(tmp_path, record_property):
    model_dir = tmp_path / "run"
    explode = "--gin.utils.create_learning_rate_scheduler.base_learning_rate=1e38"
    mixture = "--gin.MIXTURE_OR_TASK_NAME='mini_train'"
    with _started(model_dir, explode, mixture) as process:
        _, error = process.communicate()
    assert process.returncode == 1
    assert "the loss of step" in error
    assert "mini_" in error
    (saved,) = (model_dir / "non_finite_loss").iterdir()
    replay = [
        "--gin.train.get_dataset_fn=@replay.get_saved_batch",
        f"--gin.replay.get_saved_batch.path='{saved}'",
    ]
    again = tmp_path / "again"
    with _started(again, explode, *replay) as process:
        _, error = process.communicate()
    assert "the loss of step" in error
    record_property(
        "fault", ("a learning rate of 1e38", "exit code 1", "nothing; the batch is kept")
    )


@all_faults
def test_any_number_of_processes_has_the_same_losses(tmp_path, record_property):
    losses = {}
    shards = "--gin.train/utils.DatasetConfig.num_data_shards=4"
    for processes in (1, 2, 4):
        model_dir = tmp_path / f"run{processes}"
        launch = ("-m", "t0x", "launch", "local", "--processes", str(processes))
        devices = ("--devices_per_process", str(4 // processes))
        _finish(model_dir, shards, "--gin.TRAIN_STEPS=6", command=(*launch, *devices))
        losses[processes] = list(_losses(model_dir).values())
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert losses[1] == pytest.approx(losses[4], rel=1e-6)
    record_property(
        "fault", ("1 × 4, 2 × 2, 4 × 1 processes", "exit code 0", "nothing: same losses")
    )
