"""Jobs on the cores of one machine: a process for each job, so many at a time.

Rendering holds Python's lock, so threads would take turns. Processes are forks: what is registered
and imported is there, and what a job opened is freed with it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

_fork = multiprocessing.get_context("fork")


class JobError(RuntimeError):
    """A job failed for another reason than its source: one line."""


def run_jobs(
    work: Callable[[Any, Callable[[int, int], None]], Any],
    jobs: Iterable[Any],
    processes: int,
    report: Callable[[int, int], None],
) -> None:
    """Calls `work(job, report)` for every job in processes of their own.

    Args:
      work: reports numbers through its second argument.
      jobs: in order of start.
      processes: most at a time.
      report: is called here with what the jobs report.

    Raises:
      JobError: a job raised or was killed; the others are ended.
    """
    waiting = iter(jobs)
    running: dict[connection.Connection, multiprocessing.Process] = {}
    with _ending(running):
        while True:
            while len(running) < processes and (job := next(waiting, None)) is not None:
                receiver, process = _start(work, job)
                running[receiver] = process
            if not running:
                return
            for receiver in connection.wait(list(running)):
                try:
                    message = receiver.recv()
                except EOFError:
                    _finish(running.pop(receiver))
                    continue
                if isinstance(message, str):
                    raise JobError(message)
                report(*message)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called in a process of its own.

    Raises:
      JobError: it raised; one line.
    """
    receiver, sender = _fork.Pipe(duplex=False)

    def answer() -> None:
        receiver.close()
        try:
            sender.send((function(*arguments), None))
        except Exception as error:
            sender.send((None, " ".join(str(error).split()) or type(error).__name__))

    process = _fork.Process(target=answer)
    process.start()
    sender.close()
    try:
        result, problem = receiver.recv()
    except EOFError:
        _finish(process)
        raise JobError("a process ended without an answer") from None
    process.join()
    if problem is not None:
        raise JobError(problem)
    return result


def _start(work: Callable[..., Any], job: Any) -> tuple[connection.Connection, Any]:
    receiver, sender = _fork.Pipe(duplex=False)
    parent = os.getpid()

    def target() -> None:
        receiver.close()
        # Ctrl-C reaches the whole group; the parent ends us then.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.disable(logging.WARNING)  # what is left out is counted, not told

        def report(*numbers: int) -> None:
            if os.getppid() != parent:  # it was killed: nobody wants the rest
                os._exit(1)
            sender.send(numbers)

        try:
            work(job, report)
        except Exception as error:
            logging.error("%s", traceback.format_exc())
            sender.send(" ".join(str(error).split()) or type(error).__name__)

    process = _fork.Process(target=target)
    process.start()
    sender.close()
    return receiver, process


def _finish(process: Any) -> None:
    process.join()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        raise JobError(f"a process was ended by {name}{hint}; the next call goes on from here")


@contextlib.contextmanager
def _ending(running: dict[Any, Any]) -> Iterator[None]:
    """Ends what still runs when the block is left by an error."""
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
