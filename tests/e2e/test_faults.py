"""Faults injected into real runs: what is killed and started again trains as if nothing had been.

`make faults` injects all of them; without T0X_ALL_FAULTS those that take longest are left out.
The table at the end of the session says what was injected and what was lost.
"""

import contextlib
import json
import os
import random
import resource
import shutil
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
_SAME = "nothing: same losses"
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
        if row["collection"] == "train" and "loss" in row:
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
    return _SAME if _losses(model_dir) == uninterrupted else "the same losses"


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


LONG_EVALUATION = (
    "--gin.train.train_eval_dataset_cfg=@train_eval/utils.DatasetConfig()",
    "--gin.train.eval_period=8",
)


def _when(phase, process, model_dir):
    """Returns when a run is in a phase."""
    if phase == "start":
        _wait_for(process, (model_dir / "training.lock").exists)
    elif phase == "compile":
        while "log" not in process.stdout.readline():  # the last line of the header
            assert process.poll() is None, process.communicate()
    elif phase == "save":
        _wait_for_step(process, model_dir, 3)
        _wait_for(process, lambda: any(model_dir.glob(f"checkpoint_{PERIOD}.orbax*")))
    else:
        last = {"step": PERIOD + 3, "evaluation": PERIOD, "close": STEPS}[phase]
        _wait_for_step(process, model_dir, last)


@all_faults
@pytest.mark.parametrize("phase", ["start", "compile", "step", "save", "evaluation", "close"])
def test_sigterm_twice_in_every_phase(uninterrupted, tmp_path, phase, record_property):
    model_dir = tmp_path / "run"
    evaluation = LONG_EVALUATION if phase == "evaluation" else ()
    with _started(model_dir, *evaluation, "--gin.EVAL_STEPS=100000") as process:
        _when(phase, process, model_dir)
        started = time.monotonic()
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        out, error = process.communicate()
        seconds = time.monotonic() - started
    assert process.returncode == EXIT_CODE, out + error
    assert seconds < 30
    assert not (model_dir / "training.lock").exists()
    if phase not in ("start", "compile"):
        assert "its checkpoint is saved" in out
        assert _newest_checkpoint(model_dir).name == f"checkpoint_{max(_losses(model_dir))}"
    if phase == "evaluation":
        assert not (model_dir / "evaluated_step").exists()
        out = _finish(model_dir, *evaluation, "--gin.EVAL_STEPS=1", f"--gin.TRAIN_STEPS={PERIOD}")
        assert "trained 0 steps" in out
        assert (model_dir / "evaluated_step").read_text() == f"{PERIOD}\n"
    _finish(model_dir)
    assert not list(model_dir.glob("*unreadable*"))
    injected = f"SIGTERM twice, {phase}"
    ended = f"exit code 75 after {seconds:.1f} s"
    assert _losses(model_dir) == uninterrupted
    _record(record_property, injected, ended, _lost(model_dir, uninterrupted))


@all_faults
def test_a_second_run_in_the_same_directory_is_refused(uninterrupted, tmp_path, record_property):
    model_dir = tmp_path / "run"
    with _started(model_dir, "--gin.TRAIN_STEPS=1000000") as process:
        _wait_for_step(process, model_dir, 3)
        with _started(model_dir) as second:
            _, error = second.communicate()
        assert second.returncode == 1
        assert f"is being trained in by process {process.pid} on " in error
        _wait_for_step(process, model_dir, STEPS)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate()
    assert process.returncode == EXIT_CODE, out + error
    losses = _losses(model_dir)
    assert {step: losses[step] for step in uninterrupted} == uninterrupted
    _record(record_property, "a second run in the same MODEL_DIR", "exit code 1, the second", _SAME)


@all_faults
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_an_old_checkpoint_that_cannot_be_removed(uninterrupted, tmp_path, record_property):
    model_dir = tmp_path / "run"
    _finish(model_dir, f"--gin.TRAIN_STEPS={PERIOD}")
    stuck = model_dir / f"checkpoint_{PERIOD}"
    mounted = subprocess.run(["mount", "--bind", stuck, stuck], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        _finish(model_dir, "--gin.SaveCheckpointConfig.keep=1")
        assert stuck.is_dir()
        assert "could not be removed" in (model_dir / "train.log").read_text()
    finally:
        subprocess.run(["umount", stuck], check=True)
    assert _newest_checkpoint(model_dir).name == f"checkpoint_{STEPS}"
    lost = _lost(model_dir, uninterrupted)
    assert _losses(model_dir) == uninterrupted
    _record(record_property, "a checkpoint that cannot be removed", "exit code 0", lost)


LIMITED = """
import resource

from t5x.checkpoints.manager import OrbaxCheckpointManagerInterface


class LimitedManager(OrbaxCheckpointManagerInterface):
    def restore(self, *args, **kwargs):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        return super().restore(*args, **kwargs)
"""
USE_LIMITED = """
from __gin__ import dynamic_registration

import limited
from t5x import utils

utils.SaveCheckpointConfig.checkpoint_manager_cls = @limited.LimitedManager
"""


@all_faults
def test_out_of_memory_on_restoring(uninterrupted, tmp_path, record_property):
    model_dir = tmp_path / "run"
    _finish(model_dir, f"--gin.TRAIN_STEPS={PERIOD}")
    (tmp_path / "limited.py").write_text(LIMITED)
    (tmp_path / "limited.gin").write_text(USE_LIMITED)
    before = sorted(path.name for path in model_dir.glob("checkpoint*"))
    with _started(model_dir, f"--gin_file={tmp_path}/limited.gin") as process:
        out, error = process.communicate()
    # Where a thread of TensorStore or XLA finds no memory, the whole process is gone.
    assert process.returncode not in (0, EXIT_CODE), out + error
    assert sorted(path.name for path in model_dir.glob("checkpoint*")) == before
    _finish(model_dir)
    assert _losses(model_dir) == uninterrupted
    ended = f"exit code {process.returncode}"
    lost = _lost(model_dir, uninterrupted)
    _record(record_property, "out of memory while restoring", ended, lost)


@all_faults
def test_a_burst_of_errors_of_an_object_store(
    uninterrupted, tmp_path, object_server, record_property
):
    """A run starts from a checkpoint in a bucket as it does from one on a disk."""
    here = tmp_path / "here"
    _finish(here, f"--gin.TRAIN_STEPS={PERIOD}")
    shutil.copytree(here, object_server.root / "run")
    model_dir = tmp_path / "run"
    start = [
        f"--gin.utils.RestoreCheckpointConfig.path='{object_server.bucket}/run/checkpoint_{PERIOD}'",
        "--gin.utils.RestoreCheckpointConfig.mode='specific'",
        "--gin.utils.RestoreCheckpointConfig.dtype='float32'",
    ]
    object_server.fail(503, times=4, of="/state/d/")
    _finish(model_dir, *start, f"--gin.TRAIN_STEPS={2 * PERIOD}")
    assert object_server.failed == 4
    again = tmp_path / "again"
    local = [binding.replace(object_server.bucket, str(object_server.root)) for binding in start]
    _finish(again, *local, f"--gin.TRAIN_STEPS={2 * PERIOD}")
    assert _losses(model_dir) == _losses(again)
    assert len(_losses(again)) == PERIOD
    _record(
        record_property, "answers of 503 while restoring", "exit code 0", "nothing: same losses"
    )


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
