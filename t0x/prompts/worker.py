"""Rendering in a process of its own, under the kernel's limits of processor time and memory.

No template takes more than these there, not even within one call of a C function: the kernel ends
the process, the row counts as an error, and the next one gets a fresh process. The time is the
process's own, so a busy machine ends nothing early. Answers are JSON: what ran the template is not
trusted.
"""

import atexit
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from t0x.prompts.sandbox import Code, describe

SECONDS = 0.4
MOST_MEMORY = 160 << 20  # bytes beyond what the process has when it starts


class WorkerError(RuntimeError):
    """What a template raised over there: the text is `describe`d, `kind` the exception's name."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Worker:
    """This process's worker: started when first needed, and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()

    def ask(self, *request: Any) -> Any:
        """The answer to a request of `_answer`. Raises WorkerError."""
        try:
            content = pickle.dumps(request)
        except RecursionError as error:
            raise WorkerError("the row is nested too deep", "RecursionError") from error
        with self._lock:
            try:
                answer = self._exchange(content)
            except BaseException:  # nobody must take this answer for the next one's
                self.stop()
                raise
        if "value" in answer:
            return answer["value"]
        raise WorkerError(str(answer["error"]), str(answer["kind"]))

    def _exchange(self, content: bytes) -> dict[str, Any]:
        if self._process is None:
            self._start()
        assert self._process is not None and self._pipe is not None
        try:
            self._pipe.send_bytes(content)
            answer = json.loads(self._pipe.recv_bytes())
        except (OSError, EOFError):  # it was ended
            late = self._process.wait() == -signal.SIGPROF
            much = f"more than {SECONDS} s" if late else "more memory or depth than it may have"
            answer = {"error": f"the render took {much}", "kind": "TooMuch"}
        if answer.get("kind") in ("MemoryError", "TooMuch"):
            self.stop()  # the next one finds the memory as this one did
        return answer

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        path = [*map(os.path.abspath, sys.path), str(Path(__file__).parents[2])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-S", "-m", __name__, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the parent's to see
            )

    def stop(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None and self._pipe is not None:
            process.kill()
            process.wait()
            self._pipe.close()

    def forget(self) -> None:
        """In the child of a fork: the worker is the parent's."""
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self.__init__()


def serve(file: int) -> None:
    """In the worker: answers requests from a socket, each within the limits, until it is closed."""
    import decimal  # noqa: F401 (this and the next are what filters and rows import when used)
    import html  # noqa: F401
    import pprint  # noqa: F401

    sys.setrecursionlimit(3000)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(file)
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            answer = {"value": _answer(*pickle.loads(content))}
        except Exception as error:
            answer = {"error": describe(error), "kind": type(error).__name__}
        pipe.send_bytes(json.dumps(answer).encode())
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(source: str, variables: dict[str, Any] | None, seed: str) -> Any:
    """The rendered text; without variables what is to know of the source: its fields, `draws`."""
    code = _compile(source)
    if variables is None:
        return [sorted(code.fields), code.draws]
    return code.render(variables, 0, lambda: seed)


@lru_cache(maxsize=256)
def _compile(source: str) -> Code:
    return Code(source, bounded=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]))

WORKER = Worker()
atexit.register(WORKER.stop)
os.register_at_fork(after_in_child=WORKER.forget)
