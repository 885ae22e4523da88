"""Being told to stop: SIGTERM ends training after a checkpoint, with an exit code of its own.

Spot machines, SLURM's time limits and Kubernetes announce the end of a machine by SIGTERM. One
process notes the signal and stops after the step it is in. Several processes must stop after the
same step: JAX's preemption service, which listens for the signal when jax.distributed is up, lets
them agree on one.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again.
EXIT_CODE = 75


class Preempted(Exception):
    """The run was told to stop and has saved what it can; start it again to go on."""


class StopListener:
    """Notes SIGTERM from `listen()` on until its context ends.

    Attributes:
      stopped: whether the run was told to stop and has taken note.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signalled = False
        self._interruptible = False

    @contextlib.contextmanager
    def listen(self) -> Iterator["StopListener"]:
        """Handles SIGTERM within the context. Only the main thread of a program can."""
        alone = jax.process_count() == 1
        if not alone or threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = signal.signal(signal.SIGTERM, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self._signalled = True
        if self._interruptible:
            raise Preempted

    def requested(self, step: int) -> bool:
        """Whether to stop now; every process asks at every step and gets the same answer."""
        if jax.process_count() > 1:
            self.stopped = multihost_utils.reached_preemption_sync_point(step)
        else:
            self.stopped = self._signalled
        return self.stopped

    def raise_if_stopped(self, step: int, saved: bool) -> None:
        """Raises Preempted if the run was stopped, at `step`, with or without a checkpoint."""
        if self.stopped:
            state = "its checkpoint is saved" if saved else "no checkpoints are configured"
            raise Preempted(f"stopped by SIGTERM at step {step}, {state}; the same command goes on")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within the context, which may last long, SIGTERM ends it at once.

        With several processes it does not: they would part company.
        """
        self._interruptible = True
        try:
            yield
        except Preempted:
            self.stopped = True
        finally:
            self._interruptible = False
