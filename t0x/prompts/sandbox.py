"""Jinja for templates nobody vouches for: two walls, each of which holds by itself.

What a template may reach is whitelisted by type: methods of plain data, never Python's internals.
What it may take is bounded before it starts: a template whose work for the row at hand is known to
be within `MOST_STEPS` (`t0x.prompts.cost`; most are) renders in this process, all else in a process
of its own (`t0x.prompts.worker`), which the kernel ends when its time or memory is used up. Both
run this code over the same values, so where a row renders does not show in the text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from random import Random
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import meta, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.filters import do_truncate
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Cycler, Namespace
from markupsafe import soft_str

from t0x.prompts import cost

LONGEST_TEXT = 1 << 22  # characters that a row may render to
MOST_STEPS = 50_000_000  # at most 0.25 s
_FORBIDDEN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


# Whose public attributes a template may read. Nothing public of these leads out of them.
_DATA = (str, bytes, int, float, list, tuple, dict, LoopContext, Cycler, Macro, Namespace)
_DATES = frozenset({"year", "month", "day", "hour", "minute", "second", "isoformat", "strftime"})
_PLAIN = frozenset({str, int, float, bool, type(None), list, tuple, dict, Undefined})
_EMPTY: dict[Any, Any] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.items()))


class OverBound(Exception):
    """The row makes the template's work more than this process takes on."""


class TooMuch(RuntimeError):
    """A template asked for more than one render may have."""


class _Context(Context):
    """The variables of one render; what is left of its steps, None where they do not matter."""

    steps: float | None = None
    size: float = 0
    random: Random


class Sandbox(SandboxedEnvironment):
    """The environment of all templates. Immutable after construction, safe to share by threads."""

    context_class = _Context
    intercepted_binops = frozenset({"*", "%", "-"})

    def __init__(self) -> None:
        super().__init__(optimized=False, finalize=_print)
        self.globals: dict[str, Any] = {n: self.globals.get(n, zip) for n in cost.FUNCTIONS}
        filters: dict[str, Any] = self.filters
        filters.update(choice=_choose, random=_choose_if_any, highlight=_highlight)
        filters.update(most_frequent=_most_frequent, truncate=_truncate, turns=_turn)
        filters["string"] = _print_text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers here; what else these operators do is for the worker."""
        if operator == "-" and type(left) in _VIEWS:
            raise TypeError("what is left of keys has no order")
        if context.steps is not None and operator != "-":
            for value in (left, right):
                if not isinstance(value, int | float) or cost.measure(value) > cost.SCALAR:
                    raise OverBound(operator)
        return self.binop_table[operator](left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = attr in _DATES if isinstance(obj, date) else isinstance(obj, _DATA)
        return known and not attr.startswith("_")

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"{attribute!r} of {type(obj).__name__} is not available to prompts")


def _print(value: Any) -> Any:
    """`value`, unless it prints as an address, which is another one in every process."""
    if type(value) in _PLAIN or not re.match(r"<[^>]* at 0x\w+>", repr(value)):
        return value
    raise TypeError(f"{type(value).__name__} is no text: call it, or take its list")


def _print_text(value: Any) -> str:
    return value if type(value) is str else soft_str(_print(value))


@pass_context
def _turn(context: _Context, items: Any, steps: int) -> Any:
    """What a loop goes through, whose turns take so many steps for each character of the row."""
    if not hasattr(items, "__len__"):
        items = list(items)
    assert context.steps is not None  # loops are metered in this process alone
    context.steps -= (len(items) + 1) * steps * context.size
    if context.steps < 0:
        raise OverBound("loop")
    return items


@pass_environment
def _truncate(
    environment: Sandbox, text: str, length: int = 255, *options: Any, **named: Any
) -> str:
    if type(text) is str and type(length) is int and len(text) <= length:
        return text  # as nearly all values are
    return do_truncate(environment, text, length, *options, **named)


@pass_context
def _choose(context: _Context, choices: Any) -> Any:
    return context.random.choice(choices)


@pass_context
def _choose_if_any(context: _Context, choices: Any) -> Any:
    return _choose(context, choices) if choices else context.environment.undefined("no items")


def _highlight(text: str) -> str:
    return "<span style='color: #F08080'>" + text + "</span>"


def _most_frequent(items: Iterable[Any]) -> list[Any] | None:
    """The items that occur most often, in order of appearance; None for no items."""
    counts = Counter(items)
    highest = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == highest] or None


class Code:
    """A template's text, compiled for this process.

    Raises TemplateSyntaxError and its kin for a text that does not compile and, where `bounded`,
    `cost.Unbounded` for one that must not render here.
    """

    def __init__(self, source: str, bounded: bool) -> None:
        tree = SANDBOX.parse(source)
        for node in tree.find_all((*_FORBIDDEN, nodes.Getattr)):
            name = getattr(node, "attr", type(node).__name__.lower())
            if isinstance(node, _FORBIDDEN) or name.startswith("__"):
                raise TemplateSyntaxError(f"{name} is not available to prompts", node.lineno)
        self._steps = cost.bound(tree) if bounded else None
        self._length = len(source) + cost.CONSTANT
        named = [*tree.find_all(nodes.Filter), *tree.find_all(nodes.Const)]  # |map("choice") too
        self.draws = any(
            getattr(n, "name", getattr(n, "value", 0)) in ("choice", "random") for n in named
        )
        tracker = meta.TrackingCodeGenerator(SANDBOX)
        tracker.optimizer = None  # it would work out constants, however large
        tracker.visit(tree)
        self.fields = frozenset(tracker.undeclared_identifiers) - cost.FUNCTIONS
        code = SANDBOX.compile(tree)
        self._run = JinjaTemplate.from_code(SANDBOX, code, SANDBOX.globals).root_render_func

    def render(self, variables: Mapping[str, Any], size: float, seed: Callable[[], str]) -> str:
        """The text for these variables, whose `cost.measure` adds up to `size`.

        Raises whatever the template raises, `TooMuch` and, if bounded, `OverBound`.
        """
        context = _Context(SANDBOX, {**SANDBOX.globals, **variables}, None, {})
        if self.draws:  # from template and row alone, so that a rerun draws the same
            context.random = Random(seed())
        if self._steps is not None:
            context.size = size + self._length
            context.steps = MOST_STEPS - self._steps * context.size
            if context.steps < 0:
                raise OverBound("row")
        text = "".join(self._run(context))
        if len(text) > LONGEST_TEXT:
            raise TooMuch(f"renders to more than {LONGEST_TEXT:,} characters")
        return text


def describe(error: Exception) -> str:
    """The error in one line of at most 200 characters."""
    text, line = str(error), ""
    if isinstance(error, TemplateSyntaxError):
        text, line = error.message or "", f"line {error.lineno}: "
    text = " ".join(text[:1000].split()) or type(error).__name__
    if isinstance(error, LookupError | TypeError | RecursionError | MemoryError | SecurityError):
        text = f"{type(error).__name__}: {text}"
    return f"{line}{text}"[:200]


SANDBOX = Sandbox()
