"""What goes wrong in reading a checkpoint: damage of its own files, or something around it.

TensorStore raises ValueError for everything; its message begins with absl's status code, which says
what it was. Only damage that is proven counts as such: permissions, memory, disks and networks
leave a checkpoint as whole as it was.
"""

import contextlib
import re
from collections.abc import Iterator

_CODES = frozenset(
    {
        "ABORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INTERNAL",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "UNKNOWN",
    }
)
# TensorStore leaves out this one, the code of what it cannot make sense of.
_UNNAMED_CODE = "INVALID_ARGUMENT"
# A file that is missing, shorter than it was, or whose bytes cannot be decoded.
_DAMAGE = frozenset(
    {"DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", _UNNAMED_CODE}
)
_DENIED = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
# As the drivers of http and of Cloud Storage have it.
_HTTP = re.compile(r"\[(?:HTTP code |http_response_code=')(\d+)")
# What a server answers where a file is missing or ends before the range that was asked for.
_HTTP_DAMAGE = frozenset({"404", "416"})


class UnreadableCheckpointError(ValueError):
    """Files of a checkpoint are missing, cut short or cannot be decoded: proven damage."""


class RemovedCheckpointError(FileNotFoundError):
    """A checkpoint went away while it was read."""


class OutOfMemoryError(MemoryError):
    """There is not enough memory for what was asked for."""


def status_code(error: BaseException) -> str:
    """Returns the absl status code of an error of TensorStore or XLA."""
    code = str(error).partition(":")[0]
    return code if code in _CODES else _UNNAMED_CODE


def is_http_error(error: BaseException) -> bool:
    """Tells whether a server was reached and answered with an error."""
    return _HTTP.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """Returns what an error says, without the specs that TensorStore appends."""
    lines = str(error).splitlines()
    return lines[0].split(" [tensorstore_spec=")[0] if lines else type(error).__name__


def translate(error: ValueError, path: str) -> Exception:
    """Returns the error of TensorStore as one whose type says what it was.

    Args:
      error: TensorStore's.
      path: the checkpoint or directory that was read.

    Returns:
      UnreadableCheckpointError for proven damage, PermissionError, OutOfMemoryError, else OSError.
    """
    code, text = status_code(error), f"{path}: {first_line(error)}"
    http = _HTTP.search(str(error))
    if code in _DENIED:
        return PermissionError(text)
    if code == "RESOURCE_EXHAUSTED":
        return OutOfMemoryError(text)
    if code in _DAMAGE and (http is None or http[1] in _HTTP_DAMAGE):
        return UnreadableCheckpointError(text)
    return OSError(text)


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Raises TensorStore's errors as `translate` has them; put nothing else inside."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, UnreadableCheckpointError):
            raise
        raise translate(error, path) from error
