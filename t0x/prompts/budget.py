"""What the operations of a template cost, known before they are carried out.

The unit is the time of one expression node of a template, about 0.1 µs, or of 32 characters
copied. `weigh` is what a value costs to print, compare or hash: nested containers count as often
as they are reached, since that is how often Python visits them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.utils import Namespace

UNITS_PER_RENDER = 250_000
CHARACTERS_PER_UNIT = 32
WIDEST_FIELD = 999  # characters that a width or precision in a format may ask for
MOST_BITS = 16_384  # of an integer

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_CONSTANT = frozenset({bool, float, type(None)})
_ITEMS = frozenset({list, tuple, set, frozenset, *_VIEWS})
# isinstance takes tuples faster than unions.
_TEXT = (str, bytes)
_NUMBERS = (int, float)
# A width or precision of four digits or, as `*`, taken from the arguments. Possessive, so linear.
_WIDE_PRINTF = re.compile(r"[%)][-+ #0]*+(?:\d*+\.)?+(?:\d{4}|\*|\d*+\.\*)")
_WIDE_FORMAT = re.compile(r"\d{4}")


class BudgetExceeded(RuntimeError):
    """A template asked for more work than one render may do."""


def weigh(value: Any, limit: int = UNITS_PER_RENDER) -> int:
    """Units that printing, comparing or hashing `value` costs; stops counting beyond `limit`."""
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS_PER_UNIT
    weight, pending = 0, [value]
    while pending and weight <= limit:
        item = pending.pop()
        weight += 1
        kind = type(item)
        if kind in _CONSTANT:
            continue
        if kind is str:
            weight += len(item) // CHARACTERS_PER_UNIT
        elif kind in _ITEMS or isinstance(item, dict):
            if len(item) > limit:
                return weight + len(item)
            pending.extend(item)
            if isinstance(item, dict):
                pending.extend(item.values())
        elif kind is Namespace:
            pending.append(object.__getattribute__(item, "_Namespace__attrs"))
        else:
            weight += _weigh_rare(item)
    return weight


def _weigh_rare(item: Any) -> int:
    if isinstance(item, int):
        return item.bit_length() // CHARACTERS_PER_UNIT
    if isinstance(item, _TEXT):
        return len(item) // CHARACTERS_PER_UNIT
    if isinstance(item, range):
        return len(item)
    # Asked of the type: an undefined value raises whatever attribute it is asked for.
    return int(item.nbytes) if hasattr(type(item), "nbytes") else 0


def length(value: Any) -> int:
    """Units that copying `value` costs, without what it refers to."""
    if isinstance(value, _TEXT):
        return 1 + len(value) // CHARACTERS_PER_UNIT
    try:
        return 1 + len(value)
    except TypeError:
        return 1


def _copied(characters: int) -> int:
    return max(characters, 0) // CHARACTERS_PER_UNIT


def _whole(value: Any) -> int:
    """`value` as a size: what is no integer is refused by the operation itself."""
    return value if isinstance(value, int) else 0


# Operators


def price_operator(operator: str, left: Any, right: Any) -> int:
    """Units of `left operator right`. Raises TypeError for operands that are no plain data."""
    if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
        return _price_numbers(operator, left, right)
    if operator == "%" and isinstance(left, str):
        return length(left) + price_printf(left, right)
    if operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and hasattr(times, "__index__"):
                size = len(sequence) * max(int(times), 0)
                return 1 + (_copied(size) if isinstance(sequence, str) else size)
    for operand in (left, right):
        if hasattr(operand, "shape") and operand.shape != ():
            raise TypeError(f"operator {operator} does not take arrays")
    return length(left) + length(right)


def _price_numbers(operator: str, left: float, right: float) -> int:
    if isinstance(left, float) or isinstance(right, float):
        return 1
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 1)
    if bits > 2 * MOST_BITS:
        raise BudgetExceeded(f"integers of {bits} bits")
    return 1


def price_printf(text: str, arguments: Any) -> int:
    """Units of `text % arguments`; long widths are refused."""
    wide = _WIDE_PRINTF.search(text)
    if wide:
        raise BudgetExceeded(f"the width in {wide.group()[:20]!r}")
    # Each placeholder prints one argument, the named ones as often as they are named.
    prints = 1 if not isinstance(arguments, dict) else text.count("%(") + 1
    return weigh(arguments) * prints + text.count("%") * (WIDEST_FIELD // CHARACTERS_PER_UNIT)


def check_format_spec(spec: str) -> None:
    """Refuses long widths in a specification of `str.format`."""
    if _WIDE_FORMAT.search(spec):
        raise BudgetExceeded(f"the width in {spec[:20]!r}")


# Methods of strings, lists and dicts

READABLE: dict[type, frozenset[str]] = {
    str: frozenset(
        {
            "capitalize",
            "casefold",
            "center",
            "count",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
            "zfill",
        }
    ),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}
MUTATORS: dict[type, frozenset[str]] = {
    list: frozenset({"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}),
    dict: frozenset({"clear", "pop", "popitem", "setdefault", "update"}),
}
MUTATOR_NAMES = frozenset().union(*MUTATORS.values())


def price_method(owner: Any, name: str, arguments: tuple, keywords: dict) -> int:
    """Units of `owner.name(*arguments, **keywords)` for a method of READABLE or MUTATORS."""
    if "key" in keywords:  # would call a macro from C, past every count
        raise TypeError("a sort key is not available to templates")
    price = 1 + weigh(arguments) + (weigh(keywords) if keywords else 0)
    if isinstance(owner, str):
        return price + length(owner) + _price_string_method(owner, name, *arguments, **keywords)
    if name in ("count", "index", "remove", "sort"):
        return price + weigh(owner)
    if name in ("insert", "pop", "reverse", "copy"):  # move what lies behind, 8 bytes an item
        return price + length(owner) // 4
    return price


def _price_string_method(owner: str, name: str, *arguments: Any, **keywords: Any) -> int:
    first = arguments[0] if arguments else None
    if name in ("center", "ljust", "rjust", "zfill"):
        return _copied(_whole(first))
    if name == "expandtabs":
        width = keywords.get("tabsize", 8 if first is None else first)
        return _copied(_whole(width) * owner.count("\t"))
    if name == "replace" and len(arguments) > 1 and all(isinstance(a, str) for a in arguments[:2]):
        return price_replace(owner, *arguments[:2])
    if name == "join":
        return _copied(len(owner) * length(first))
    if name in ("split", "rsplit", "splitlines"):
        separator = first if isinstance(first, str) and first else " "
        return 2 * owner.count(separator) + owner.count("\n")  # a list of so many strings
    return 0


def price_replace(text: str, old: str, new: str) -> int:
    """Units of replacing every `old` by `new`."""
    return _copied(text.count(old) * len(new))


# Filters. Each guard takes the filter's own arguments; the weight of the input is paid apart.


def _guard_round(value: Any, precision: int = 0, method: str = "common") -> int:
    if abs(_whole(precision)) > 400:
        raise BudgetExceeded(f"round to {precision} digits")
    return 1


def _guard_sum(value: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise TypeError("sum adds numbers")  # lists would be copied once per item
    return 1


def _guard_replace(value: Any, old: Any, new: Any, count: Any = None) -> int:
    return price_replace(str(value), str(old), str(new))


def _guard_join(value: Any, d: Any = "", attribute: Any = None) -> int:
    return _copied(len(str(d)) * length(value))


def _guard_center(value: Any, width: Any = 80) -> int:
    return _copied(_whole(width))


def _guard_indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    margin = len(width) if isinstance(width, str) else _whole(width)
    return _copied(margin * (str(value).count("\n") + 2)) * 2


def _guard_wordwrap(value: Any, width: Any = 79, *options: Any, **more: Any) -> int:
    size = len(str(value))
    return weigh(options) + weigh(more) + 4 * size * (1 + size // max(_whole(width), 1) // 1024)


def _guard_batch(value: Any, linecount: Any, fill_with: Any = None) -> int:
    return _whole(linecount)


def _guard_tojson(value: Any, indent: Any = None) -> int:
    return weigh(value) * (1 + (len(indent) if isinstance(indent, str) else _whole(indent)))


def _guard_format(value: Any, *arguments: Any, **keywords: Any) -> int:
    return price_printf(str(value), keywords or arguments)


def _guard_striptags(value: Any) -> int:
    text = str(value)
    return _copied(len(text) * (1 + text.count("<")))


def _guard_urlize(value: Any, *options: Any, **more: Any) -> int:
    size = len(str(value))
    return size * (1 + size // 4096) + size * (weigh(options) + weigh(more))


def _guard_slow(value: Any, *arguments: Any, **keywords: Any) -> int:
    return weigh(value) * 64


FILTER_GUARDS: dict[str, Callable[..., int]] = {
    "batch": _guard_batch,
    "center": _guard_center,
    "format": _guard_format,
    "indent": _guard_indent,
    "join": _guard_join,
    "pprint": _guard_slow,
    "replace": _guard_replace,
    "round": _guard_round,
    "slice": _guard_batch,
    "striptags": _guard_striptags,
    "sum": _guard_sum,
    "tojson": _guard_tojson,
    "urlize": _guard_urlize,
    "wordwrap": _guard_wordwrap,
    "xmlattr": _guard_slow,
}
# These look at their input without walking through it.
CONSTANT_FILTERS = frozenset({"abs", "attr", "count", "d", "default", "first", "last", "length"})
# These must know how many items there are before they start.
WHOLE_FILTERS = frozenset({"join"})
# These take a string apart into its characters.
ITEM_FILTERS = frozenset(
    {
        "batch",
        "groupby",
        "join",
        "list",
        "map",
        "max",
        "min",
        "most_frequent",
        "reject",
        "rejectattr",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "unique",
    }
)


def metered(items: Iterable[Any], spend: Callable[[int], None], units: int = 1) -> Iterator[Any]:
    """`items`, each paid with `units` as it is taken."""
    for item in items:
        spend(units)
        yield item
