"""SIGTERM before the first step, in an evaluation, and more than once: real signals."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from t5x.run import preemption, processes


def _run(body):
    """A program that listens, prints "ready", and does as `body` says."""
    code = """
        import time
        from t5x.run.preemption import Preempted, StopListener

        listener = StopListener()
        with listener.listen(lambda: print("left", flush=True)):
    """
    code = textwrap.dedent(code) + textwrap.indent(textwrap.dedent(body), "    ")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def _stop(process, times=1):
    assert process.stdout.readline() == "ready\n"
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    started = time.monotonic()
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return out, time.monotonic() - started


def test_before_the_first_step_it_ends_at_once_whatever_the_main_thread_does():
    # One long call into C, in which Python runs no handler, as compiling is.
    body = """
        import hashlib
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    """
    with _run(body) as process:
        out, seconds = _stop(process)
    assert process.returncode == preemption.EXIT_CODE
    assert "before the first step, nothing is lost" in out
    assert out.endswith("left\n")
    assert seconds < 20


def test_what_is_being_done_is_finished_however_often_it_comes():
    body = """
        listener.begin()
        print("ready", flush=True)
        time.sleep(1)
        print("written", flush=True)
        assert listener.requested(3) and listener.stopped
        try:
            listener.raise_if_stopped(3, saved=True)
        except Preempted as stop:
            print(stop, flush=True)
    """
    with _run(body) as process:
        out, _ = _stop(process, times=3)
    assert process.returncode == 0
    assert out.startswith("written\nstopped by SIGTERM at step 3, its checkpoint is saved")


def test_an_evaluation_is_given_up_in_its_midst_and_before_it_begins():
    body = """
        listener.begin()
        print("ready", flush=True)
        assert not listener.give_up_on_signal(lambda: time.sleep(600))
        assert listener.stopped
        assert not listener.give_up_on_signal(lambda: time.sleep(600))
        print("given up", flush=True)
    """
    with _run(body) as process:
        out, seconds = _stop(process, times=2)
    assert out == "given up\n"
    assert seconds < 20


def test_after_it_the_signal_is_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    listener = preemption.StopListener()
    with listener.listen():
        listener.begin()
        assert not listener.requested(1)
        assert listener.give_up_on_signal(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert listener.requested(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_processes_without_the_service_say_so(monkeypatch):
    processes.require_service()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"4 processes .* add --multiprocess_gpu to the command"):
        processes.require_service()
