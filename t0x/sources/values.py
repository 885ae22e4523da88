"""Values of a row as plain Python, whatever library they come from."""

from collections.abc import Mapping
from typing import Any

_PLAIN = (str, int, float, bool, type(None))


def as_plain(value: Any) -> Any:
    """NumPy values, and bytes that are UTF-8, as the Python values that the hub would give.

    Other bytes stay bytes, which templates show as `b'…'`.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {as_plain(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    # named tuples and their like are left as they are
    return tuple(map(as_plain, value)) if type(value) is tuple else value
