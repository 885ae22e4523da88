"""One training at a time in a MODEL_DIR: a lock file that says who is at work there.

The file is written on the condition that nobody else has written it, which disks and object stores
can do alike. Who holds it writes it anew every few seconds. A process that is gone leaves it
behind: on the same machine that is seen at once, elsewhere by its not being written anew.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts
from absl import logging

from t5x.run import processes
from t5x.run.console import console

FILE = "training.lock"
# Stores that write on a condition, besides this machine's disks.
_LOCKABLE = ("gs://", "s3://")
_BEAT_SECONDS = 15.0
# Who has not been heard of for this long is gone.
_PATIENCE_SECONDS = 60.0
# By the clocks of two machines, which may differ: so old that there is no need to wait and see.
_OLD_SECONDS = 900.0
_POLL_SECONDS = 1.0


class RunningElsewhereError(RuntimeError):
    """Another process trains in the same MODEL_DIR."""


def describe_process() -> dict[str, Any]:
    """Returns what tells this process from all others, here and elsewhere."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _machine() -> str:
    """Names this machine since it was booted, and the namespace that process numbers are of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this machine was started, in clock ticks; None if there is none."""
    try:
        # The name in parentheses may hold anything.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _alive(process)


def _alive(process: int) -> str | None:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


class RunLock:
    """The lock of a directory, held from `acquire` to `release`.

    Args:
      directory: MODEL_DIR.
      beat_seconds: how often the file is written anew.
      patience_seconds: how long to wait for a sign of life of a holder on another machine.
    """

    def __init__(
        self,
        directory: str,
        beat_seconds: float = _BEAT_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._directory = directory
        self._beat, self._patience = beat_seconds, patience_seconds
        local = {"driver": "file", "path": f"{os.path.abspath(directory)}/"}
        spec = f"{directory.rstrip('/')}/" if "://" in directory else local
        self._store = ts.KvStore.open(spec).result()
        self._generation = b""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    def acquire(self, wait: Callable[[str], None] = logging.warning) -> None:
        """Takes the lock, from a process that is gone where need be.

        Args:
          wait: told that there is something to wait for.

        Raises:
          RunningElsewhereError: the process that holds it is alive.
        """
        while True:
            found = self._store.read(FILE).result()
            if found.state == "value" and self._is_held(found, wait):
                holder = _parse(found.value)
                raise RunningElsewhereError(
                    f"{self._directory} is being trained in by process {holder.get('process')} on "
                    f"{holder.get('host')}; stop that one, or use another MODEL_DIR (if it is gone "
                    f"for certain, remove {self._directory.rstrip('/')}/{FILE})"
                )
            if self._write(found.stamp.generation):
                break
        self._thread = threading.Thread(target=self._keep, name="hold lock", daemon=True)
        self._thread.start()

    def _is_held(self, found: ts.KvStore.ReadResult, wait: Callable[[str], None]) -> bool:
        holder, me = _parse(found.value), describe_process()
        if holder.get("machine") == me["machine"]:
            is_alive = _started(int(holder["process"])) == holder.get("started")
            return is_alive and holder["process"] != me["process"]
        if time.time() - float(holder.get("time", 0)) > _OLD_SECONDS:
            return False
        wait(
            f"{self._directory} was left locked by process {holder.get('process')} on "
            f"{holder.get('host')}: waiting up to {self._patience:.0f} s for a sign of life"
        )
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_SECONDS, self._patience / 4))
            seen = self._store.read(FILE).result()
            if seen.stamp.generation != found.stamp.generation:
                return seen.state == "value"
        return False

    def _write(self, generation: bytes) -> bool:
        content = json.dumps(describe_process() | {"time": time.time()}).encode()
        self._generation = self._store.write(FILE, content, if_equal=generation).result().generation
        return bool(self._generation)  # empty where somebody else was faster

    def _keep(self) -> None:
        while not self._stop.wait(self._beat):
            with self._guard:
                if self._stop.is_set():
                    return
                try:
                    is_ours = self._write(self._generation)
                except ValueError:  # TensorStore's only error; the storage may get over it
                    logging.exception("%s could not be written anew", FILE)
                    continue
                if not is_ours:
                    logging.error("%s was taken by somebody else", FILE)
                    return

    def release(self) -> None:
        """Gives the lock back, if it is held still; may be called more than once."""
        self._stop.set()
        with self._guard:
            if not self._generation:
                return
            generation, self._generation = self._generation, b""
            try:
                self._store.write(FILE, None, if_equal=generation).result()
            except ValueError:  # TensorStore's only error; others see that this process is gone
                logging.exception("%s could not be removed", FILE)


def _parse(content: bytes) -> dict[str, Any]:
    """What a lock file says; of one that was cut short nothing is known but its age."""
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}


@contextlib.contextmanager
def held(directory: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a directory within the context, process 0 for all.

    Returns:
      What gives it back before the context ends.

    Raises:
      RunningElsewhereError: see `RunLock.acquire`.
    """
    if "://" in directory and not directory.startswith(_LOCKABLE):
        logging.warning("%s cannot be locked: see to it that one run at a time uses it", directory)
        yield lambda: None
        return
    lock = failure = None
    if jax.process_index() == 0:
        lock = RunLock(directory)
        try:
            lock.acquire(console.say)
        except RunningElsewhereError as error:
            failure = error
    if processes.decide(lambda: failure is not None):
        raise failure or RunningElsewhereError(f"{directory} is being trained in by another run")
    release = lock.release if lock else lambda: None
    try:
        yield release
    finally:
        release()
