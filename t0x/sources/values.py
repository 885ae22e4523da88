"""Values of a row as plain Python, whatever library they come from."""

import functools
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
    if hasattr(value, "to_pydatetime"):  # pandas', of which pyarrow makes use for nanoseconds
        return str(value) if value.nanosecond else value.to_pydatetime()
    if hasattr(value, "to_pytimedelta"):
        return str(value) if value.nanoseconds else value.to_pytimedelta()
    # named tuples and their like are left as they are
    return tuple(map(as_plain, value)) if type(value) is tuple else value


@functools.lru_cache(maxsize=4096)
def field_name(name: str) -> str:
    """What templates call a field: an underscore for each character that no name in Jinja has.

    So `food-id` is `food_id` and `Review Text` is `Review_Text`; an underscore goes before a digit
    (`_2nd`) and after a word of Jinja's own (`if_`).
    """
    named = "".join(letter if f"a{letter}".isidentifier() else "_" for letter in name)
    if not named.isidentifier():
        named = f"_{named}"
    return f"{named}_" if named in _JINJA_WORDS else named


_JINJA_WORDS = frozenset(
    {"and", "else", "if", "in", "is", "not", "or", "none", "true", "false", "None", "True", "False"}
)
