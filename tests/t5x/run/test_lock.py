"""One training at a time in a MODEL_DIR; what a process that is gone leaves behind is no lock."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from t5x.run import lock

HOLD = """
import sys, time
from t5x.run import lock
held = lock.RunLock(sys.argv[1])
held.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_until_the_first_is_gone(tmp_path, other):
    with pytest.raises(lock.RunningElsewhereError, match=f"by process {other.pid} on "):
        lock.RunLock(str(tmp_path)).acquire()
    other.kill()  # it cannot give anything back
    other.wait()
    assert (tmp_path / lock.FILE).exists()
    second = lock.RunLock(str(tmp_path))
    started = time.monotonic()
    second.acquire()
    assert time.monotonic() - started < 5
    assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()
    second.release()
    second.release()
    assert not (tmp_path / lock.FILE).exists()


def test_a_process_of_the_same_number_is_another_one(tmp_path):
    # The machine has given the number of a process that is gone to this very one, or to another.
    for number in (os.getpid(), 1):
        facts = lock.describe_process() | {"process": number, "started": "1", "time": time.time()}
        (tmp_path / lock.FILE).write_text(json.dumps(facts))
        held = lock.RunLock(str(tmp_path))
        held.acquire()
        held.release()


def _elsewhere(age=0.0):
    """What a process on another machine has written."""
    facts = {"host": "far-away", "process": 7, "machine": "another", "started": "1"}
    return json.dumps(facts | {"time": time.time() - age})


def _stores(tmp_path, object_server):
    return [(str(tmp_path), tmp_path), (f"{object_server.bucket}/run", object_server.root / "run")]


def test_on_another_machine_a_sign_of_life_is_waited_for(tmp_path, object_server):
    for directory, folder in _stores(tmp_path, object_server):
        folder.mkdir(exist_ok=True)
        (folder / lock.FILE).write_text(_elsewhere())
        said = []
        held = lock.RunLock(directory, patience_seconds=0.6)
        held.acquire(said.append)
        assert "left locked by process 7 on far-away" in said[0]
        held.release()
        assert not (folder / lock.FILE).exists()

        (folder / lock.FILE).write_text(_elsewhere(age=10_000))
        held.acquire(said.append)
        assert len(said) == 1  # nobody waits for so old a one
        held.release()


def test_a_living_process_on_another_machine_is_left_alone(tmp_path, object_server):
    for directory, _ in _stores(tmp_path, object_server):
        first = lock.RunLock(directory, beat_seconds=0.1)
        real, lock.describe_process = lock.describe_process, lambda: json.loads(_elsewhere())
        try:
            first.acquire()
            lock.describe_process, far = real, lock.describe_process
            beat = threading.Thread(target=_beat_as, args=(first, far))
            beat.start()
            with pytest.raises(lock.RunningElsewhereError, match="by process 7 on far-away"):
                lock.RunLock(directory, patience_seconds=5).acquire(lambda _: None)
        finally:
            lock.describe_process = real
        beat.join()
        first.release()


def _beat_as(held, describe):
    """Writes a lock anew, as its own thread does, in the name of another machine."""
    held._stop.set()
    held._thread.join()
    for _ in range(10):
        time.sleep(0.1)
        content = json.dumps(describe() | {"time": time.time()}).encode()
        written = held._store.write(lock.FILE, content, if_equal=held._generation).result()
        held._generation = written.generation


def test_two_at_the_same_moment(tmp_path):
    """Whoever writes first has it: the other one's write is refused by the store."""
    first, second = lock.RunLock(str(tmp_path)), lock.RunLock(str(tmp_path))
    nothing = first._store.read(lock.FILE).result().stamp.generation
    assert first._write(nothing)
    assert not second._write(nothing)


def test_a_lock_cut_short_is_no_lock_for_ever(tmp_path):
    (tmp_path / lock.FILE).write_text('{"host": "h')
    held = lock.RunLock(str(tmp_path), patience_seconds=0.2)
    held.acquire(lambda _: None)
    held.release()
