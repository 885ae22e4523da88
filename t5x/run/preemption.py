"""Being told to stop: SIGTERM ends training after a checkpoint, with an exit code of its own.

Spot machines, SLURM's time limits and Kubernetes announce the end of a machine by SIGTERM, some of
them more than once. One process notes the signal from its start to the end of its last write:

* before its first step there is nothing to lose, and it ends at once, compiling or not;
* in a step it stops after that step, and saves;
* an evaluation is given up, and done when the run goes on;
* what is being written is written to the end.

Several processes must stop after the same step: JAX's preemption service, which listens for the
signal when jax.distributed is up, lets them agree on one.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from t5x.run.console import console

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
        self._has_begun = False

    @contextlib.contextmanager
    def listen(self, leave: Callable[[], None] = lambda: None) -> Iterator["StopListener"]:
        """Handles SIGTERM within the context. Only the main thread of a program can.

        Args:
          leave: called before the process ends without coming back here.
        """
        alone = jax.process_count() == 1
        if not alone or threading.current_thread() is not threading.main_thread():
            yield self
            return
        # Python runs its handlers between two of its own instructions: not while XLA compiles. A
        # thread is told of the signal whatever the main one is doing.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        watch = threading.Thread(
            target=self._watch, args=(reader, leave), name="watch for SIGTERM", daemon=True
        )
        watch.start()
        previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        previous = signal.signal(signal.SIGTERM, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, previous)
            signal.set_wakeup_fd(previous_fd)
            os.close(writer)
            watch.join()
            os.close(reader)

    def _watch(self, reader: int, leave: Callable[[], None]) -> None:
        """Ends the process on SIGTERM as long as it has not begun."""
        while numbers := os.read(reader, 64):
            if signal.SIGTERM in numbers and not self._has_begun:
                console.say(
                    "stopped by SIGTERM before the first step, nothing is lost; the same command "
                    "goes on"
                )
                sys.stdout.flush()
                leave()
                os._exit(EXIT_CODE)

    def begin(self) -> None:
        """Says that from now on there are steps to lose."""
        self._has_begun = True

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self._signalled = True
        if self._interruptible:
            self._interruptible = False  # a second signal finds nothing left to give up
            raise Preempted

    def requested(self, step: int) -> bool:
        """Whether to stop now; every process asks at every step and gets the same answer."""
        if jax.process_count() > 1:
            self.stopped = multihost_utils.reached_preemption_sync_point(step)
        else:
            self.stopped = self._signalled
        return self.stopped

    def raise_if_stopped(self, step: int, saved: bool) -> None:
        """Raises Preempted if the run was told to stop, with or without a checkpoint of `step`."""
        if self.stopped or self._signalled:
            state = "its checkpoint is saved" if saved else "no checkpoints are configured"
            raise Preempted(f"stopped by SIGTERM at step {step}, {state}; the same command goes on")

    def give_up_on_signal(self, work: Callable[[], None]) -> bool:
        """Does work that may last long, and gives it up when SIGTERM comes or has come.

        With several processes it does not: they would part company.

        Returns:
          Whether the work was done.
        """
        try:
            self._interruptible = True
            if self._signalled:
                raise Preempted
            work()
            return True
        except Preempted:
            self.stopped = True
            return False
        finally:
            self._interruptible = False
