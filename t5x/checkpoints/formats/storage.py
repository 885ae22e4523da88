"""Files of a checkpoint wherever they lie: on this machine, gs://, s3:// or https://."""

import functools
import os
from typing import Any

import numpy as np
import tensorstore as ts

from t5x.checkpoints.formats.failures import (
    UnreadableCheckpointError,
    is_http_error,
    status_code,
    translated,
)

# What a checkpoint's arrays are read with: retries as TensorStore has them, for many minutes.
CONTEXT = ts.Context()
# A bucket out of reach is a mistake in the run's settings: say so within seconds.
_RETRIES = {"max_retries": 2, "initial_delay": "500ms", "max_delay": "1s"}
_QUICK = ts.Context({"gcs_request_retries": _RETRIES, "http_request_retries": _RETRIES})
# What is read at once; TensorStore holds it twice for a moment.
_BLOCK_BYTES = 1 << 22


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path names another filesystem than this machine's."""
    return "://" in os.fspath(path)


def _is_usual(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)


class Directory:
    """A directory to read from, or to write small files to.

    Args:
      path: a local path or a URL.

    Raises:
      ValueError: TensorStore knows no such kind of URL.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path).rstrip("/")
        self._first = ts.KvStore.open(self.spec(), context=_QUICK).result()

    @functools.cached_property
    def _patient(self) -> ts.KvStore:
        return ts.KvStore.open(self.spec(), context=CONTEXT).result()

    @property
    def _files(self) -> ts.KvStore:
        return self.__dict__.get("_patient", self._first)

    def _read(self, name: str, byte_range: slice = slice(None)) -> ts.KvStore.ReadResult:
        path = f"{self.path}/{self._inside(name)}"
        if not is_url(path) and os.path.exists(path) and not _is_usual(path):
            raise UnreadableCheckpointError(f"{path} is no file")  # a pipe would be waited for
        with translated(path):
            try:
                return self._files.read(name, byte_range=byte_range).result()
            except ValueError as error:
                # A server that is there and has trouble may get over it.
                if not is_http_error(error) or status_code(error) != "ABORTED":
                    raise
            return self._patient.read(name, byte_range=byte_range).result()

    def _inside(self, name: str) -> str:
        """`name`, which files of a checkpoint may give. Raises where it leaves the directory."""
        if name.startswith("/") or ".." in name.split("/"):
            raise UnreadableCheckpointError(f"{self.path} names {name!r:.80}, which is not in it")
        return name

    def __str__(self) -> str:
        return self.path

    def spec(self, name: str = "") -> Any:
        """Returns TensorStore's key-value store spec of this directory or of one in it."""
        path = f"{self.path}/{self._inside(name)}/" if name else f"{self.path}/"
        return path if is_url(path) else {"driver": "file", "path": os.path.abspath(path) + "/"}

    def exists(self, name: str) -> bool:
        """Tells whether there is a file of this name.

        Raises:
          OSError: it cannot be known: no permission, or out of reach.
        """
        try:
            return self._read(name, slice(0, 1)).state == "value"
        except UnreadableCheckpointError as error:
            if error.__cause__ is not None and status_code(error.__cause__) == "OUT_OF_RANGE":
                return True  # and empty
            raise

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file, or None if there is none of this name.

        Raises:
          OSError: no permission, or out of reach.
        """
        result = self._read(name)
        return result.value if result.state == "value" else None

    def read_into(self, name: str, start: int, target: np.ndarray) -> None:
        """Fills a contiguous array with the bytes of a file from `start` on, a block at a time.

        Raises:
          FileNotFoundError: there is no such file.
          UnreadableCheckpointError: the file ends too early.
          OSError: no permission, or out of reach.
        """
        memory = target.reshape(-1).view(np.uint8)
        for begin in range(0, memory.size, _BLOCK_BYTES):
            block = memory[begin : begin + _BLOCK_BYTES]
            byte_range = slice(start + begin, start + begin + block.size)
            result = self._read(name, byte_range)
            if result.state != "value":
                raise FileNotFoundError(f"{self.path}/{name} does not exist")
            block[:] = np.frombuffer(result.value, np.uint8)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file."""
        self._patient.write(name, content).result()
