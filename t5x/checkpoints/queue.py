"""Writing in the background, one checkpoint after the other."""

import threading
import time
import weakref
from collections.abc import Callable

from absl import logging

# While one is being written one more may wait, in host memory; a third blocks the step loop.
_WAITING = 1
# How often the thread looks whether the program has ended.
_IDLE_SECONDS = 0.5

_queues: "weakref.WeakSet[WriteQueue]" = weakref.WeakSet()


class WriteQueue:
    """Runs jobs in turn on a thread, which goes on after the main one until there are none left.

    A job that fails takes those behind it along: what it left to the next is unknown. Its error is
    raised by the next call of any method.

    Attributes:
      blocked: how often `reserve` had to wait.
      blocked_seconds: for how long in all.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._jobs: list[tuple[str, Callable[[], None]]] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = False
        self.blocked = 0
        self.blocked_seconds = 0.0
        _queues.add(self)

    def reserve(self) -> None:
        """Returns once a further job may be put; raises what went wrong in earlier ones."""
        with self._condition:
            if len(self._jobs) > _WAITING:
                started = time.monotonic()
                self._condition.wait_for(lambda: len(self._jobs) <= _WAITING)
                seconds = time.monotonic() - started
                self.blocked += 1
                self.blocked_seconds += seconds
                logging.warning(
                    "Waited %.1f s for %d checkpoints still to be written (%d times, %.1f s so "
                    "far): save less often, or to faster storage",
                    seconds,
                    _WAITING + 1,
                    self.blocked,
                    self.blocked_seconds,
                )
            self._raise()

    def put(self, name: str, job: Callable[[], None]) -> None:
        """Has a job run after those before it.

        Args:
          name: what it writes, for messages.
          job: is called without arguments.
        """
        with self._condition:
            self._raise()
            self._jobs.append((name, job))
            if self._thread is None:
                # It is not started anew for each job: that takes longer than waking it.
                self._thread = threading.Thread(target=self._run, name="write checkpoints")
                self._thread.start()
            self._condition.notify_all()

    def wait(self, timeout: float | None = None) -> None:
        """Returns when all jobs are done, or after `timeout` seconds; raises what went wrong."""
        with self._condition:
            self._condition.wait_for(lambda: not self._jobs, timeout)
            self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the thread when all jobs are done; raises what went wrong."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self.wait()

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        with self._condition:
            while not self._jobs:
                if self._closed or not threading.main_thread().is_alive():
                    self._thread = None
                    self._closed = False
                    return None
                self._condition.wait(_IDLE_SECONDS)
            return self._jobs[0]

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            name, job = entry
            try:
                job()
            except BaseException as error:
                # Logged too: a program may end without asking.
                logging.exception("%s could not be written", name)
                with self._condition:
                    self._error = error
                    for lost, _ in self._jobs[1:]:
                        logging.error("%s is not written either", lost)
                    self._jobs.clear()
                    self._condition.notify_all()
                continue
            del job, entry  # lets go of what it has written
            with self._condition:
                self._jobs.pop(0)
                self._condition.notify_all()


def finish_writing(timeout: float | None = None) -> None:
    """Lets every queue of this process finish, for a program that is about to end.

    Args:
      timeout: seconds to wait for each; None for as long as it takes. What goes wrong in writing
        is in the log.
    """
    for queue in list(_queues):
        try:
            queue.wait(timeout)
        except Exception:
            logging.exception("a checkpoint was not finished")


# At exit, before the interpreter closes the thread pools that writing makes use of; the only way
# to be called then, and the one by which concurrent.futures closes them.
threading._register_atexit(finish_writing)
