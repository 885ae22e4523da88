"""Jinja for templates nobody vouches for: whitelisted attributes and a budget of work per render.

Jinja's immutable sandbox keeps a template from reaching Python's internals, but not from nesting
five loops over `range(10**5)` or building a string of gigabytes. Here every operation that loops,
copies, compares or prints pays (see `t0x.prompts.budget`) before it is carried out; a render that
has spent its budget ends with `BudgetExceeded`. Work is counted, not timed, so a row that renders
on one machine renders on all of them.

Attributes are whitelisted by type. Methods that change a list or dict, which promptsource's
templates call on lists of their own, are available on a copy of the row only.
"""

import operator
import types
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import meta, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.filters import do_truncate
from jinja2.runtime import (
    Context,
    LoopContext,
    Macro,
    TemplateReference,
    Undefined,
    markup_join,
    str_join,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg

from t0x.prompts.budget import (
    CONSTANT_FILTERS,
    FILTER_GUARDS,
    ITEM_FILTERS,
    MOST_BITS,
    MUTATOR_NAMES,
    MUTATORS,
    READABLE,
    UNITS_PER_RENDER,
    WHOLE_FILTERS,
    BudgetExceeded,
    check_format_spec,
    length,
    metered,
    price_method,
    price_operator,
    weigh,
)
from t0x.prompts.compilation import LONGEST_VARIABLE, MeteredGenerator, count_units

LONGEST_SOURCE = 32_768  # characters of a template; promptsource's longest has 2,849
_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
_LOOP_ATTRIBUTES = frozenset(
    {
        "index",
        "index0",
        "revindex",
        "revindex0",
        "first",
        "last",
        "length",
        "depth",
        "depth0",
        "previtem",
        "nextitem",
        "cycle",
        "changed",
    }
)
_ATTRIBUTES = {
    **READABLE,
    LoopContext: _LOOP_ATTRIBUTES,
    Cycler: frozenset({"current", "next", "reset"}),
    Macro: frozenset({"name", "arguments"}),
}


class MeteredContext(Context):
    """The variables of one render, what is left of its budget and its source of randomness."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.units = UNITS_PER_RENDER
        self.macro_units = 1
        self.seed: Callable[[], str] = str
        self._random: Random | None = None

    def spend(self, units: int) -> None:
        """Takes `units` off the budget. Raises BudgetExceeded when it is used up."""
        self.units -= units
        if self.units < 0:
            raise BudgetExceeded(f"more work than one render may do ({UNITS_PER_RENDER} units)")

    def admit(self, value: Any, whole: bool = False) -> Any:
        """Pays for reading through `value`; an iterator pays as it is read."""
        if hasattr(value, "__next__"):
            value = self.iterate(value)
            if not whole:
                return value
            value = list(islice(value, UNITS_PER_RENDER))
        self.spend(weigh(value, self.units))
        return value

    def iterate(self, items: Any, units: int = 1) -> Iterator[Any]:
        """The items, each paid with `units` and its weight."""
        for item in items:
            self.spend(units + weigh(item, self.units))
            yield item

    @property
    def random(self) -> Random:
        """Random numbers that depend on template and row alone, so that a rerun draws the same."""
        if self._random is None:
            self._random = Random(self.seed())
        return self._random


class _Loop:
    """What a `for` iterates over: pays for each turn, keeps the length that `loop` asks for."""

    def __init__(self, spend: Callable[[int], None], items: Any, units: int) -> None:
        self._spend, self._items, self._units = spend, items, units

    def __iter__(self) -> Iterator[Any]:
        return metered(self._items, self._spend, self._units)

    def __len__(self) -> int:
        return len(self._items)


class _Formatter(SandboxedFormatter):
    """`str.format` whose widths are bounded and whose values are paid for."""

    def __init__(self, environment: "Sandbox", spend: Callable[[int], None]) -> None:
        super().__init__(environment)
        self._spend = spend

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_format_spec(format_spec)
        self._spend(weigh(value))
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._spend(weigh(value))
        return super().convert_field(value, conversion)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates. Immutable after construction, safe to share by threads."""

    code_generator_class = MeteredGenerator
    context_class = MeteredContext
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        # Constant folding would carry out a template's operations at compile time, unpaid.
        super().__init__(optimized=False, finalize=_pay_output)
        del self.globals["lipsum"]  # random text, of no use in a prompt
        self.globals["zip"] = zip
        self._functions = frozenset(id(value) for value in self.globals.values())
        self.filters.update(choice=_choose, random=_choose_if_any)
        self.filters.update(highlight=_highlight, most_frequent=_most_frequent)
        self.filters = {name: _pay_filter(name, f) for name, f in self.filters.items()}
        self.tests = {name: _pay_test(name, f) for name, f in self.tests.items()}

    # Called by the generated code.

    def loop(self, context: MeteredContext, items: Any, units: int) -> _Loop:
        return _Loop(context.spend, items, units)

    def compare(self, context: MeteredContext, left: Any, *steps: Any) -> Any:
        late = len(steps) > 2
        outcome: Any = True
        for name, right in zip(steps[::2], steps[1::2], strict=True):
            right = right() if late else right
            right = _pay_comparison(context, left, right)
            outcome = _COMPARISONS[name](left, right)
            if not outcome:
                break
            left = right
        return outcome

    def join(self, context: MeteredContext, parts: tuple) -> str:
        context.spend(weigh(parts, context.units))
        return (markup_join if context.eval_ctx.autoescape else str_join)(parts)

    def slice(self, context: MeteredContext, value: Any, *bounds: Any) -> Any:
        result = value[slice(*bounds)]
        context.spend(length(result))
        return result

    def key(self, value: Any) -> Any:
        if weigh(value, 1000) > 1000:
            raise BudgetExceeded("a large value as key")
        return value

    def truncate(self, context: MeteredContext, value: Any) -> str:
        if not isinstance(value, str):
            context.spend(weigh(value, context.units))
            value = str(value)
        if len(value) <= LONGEST_VARIABLE:
            return value
        return do_truncate(self, value, LONGEST_VARIABLE)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        context.spend(price_operator(operator, left, right))
        return self.binop_table[operator](left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute in _readable(obj):
            return _bind_format(self, getattr(obj, attribute))
        if type(obj) is Namespace:
            if not attribute.startswith("_"):
                return getattr(obj, attribute, self.undefined(obj=obj, name=attribute))
            raise SecurityError(f"attribute {attribute!r} of namespace is not available")
        try:
            return obj[attribute]
        except (TypeError, LookupError):
            internal = attribute.startswith("__") or isinstance(obj, TemplateReference)
            if internal or hasattr(type(obj), attribute):
                raise SecurityError(
                    f"attribute {attribute!r} of {type(obj).__name__} is not available"
                ) from None
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[self.key(argument)]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def mutator(self, obj: Any, name: str) -> Any:
        """`obj.name` where the template's text says so; the row was copied for it."""
        if name in MUTATORS.get(type(obj), ()):
            return getattr(obj, name)
        return self.getattr(obj, name)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        kind = type(obj)
        if kind is types.BuiltinMethodType:
            return _call_method(context, obj, args, kwargs)
        if kind is _BoundFormat:
            return obj(context, *args, **_plain(kwargs))
        if kind is LoopContext:
            args = tuple(self.loop(context, items, context.macro_units) for items in args)
        elif not (
            kind in (Macro, Joiner)
            or isinstance(obj, Undefined)
            or id(obj) in self._functions
            or (kind is types.MethodType and type(obj.__self__) in (LoopContext, Cycler))
        ):
            raise SecurityError(f"{kind.__name__} is not callable here")
        if obj is zip:
            context.spend(len(args))
            return _zip(context, args, **_plain(kwargs))
        context.spend(context.macro_units + weigh(args, context.units))
        if kwargs:
            context.spend(weigh(list(_plain(kwargs).values()), context.units))
        return context.call(obj, *args, **kwargs)


def _plain(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords a template wrote, without those its loops pass along."""
    return {key: keywords[key] for key in keywords if key not in ("_loop_vars", "_block_vars")}


def _readable(obj: Any) -> frozenset[str]:
    for kind in type(obj).__mro__:
        if kind in _ATTRIBUTES:
            return _ATTRIBUTES[kind]
    return frozenset()


class _BoundFormat:
    """`text.format`, called with the context that pays."""

    def __init__(self, environment: Sandbox, text: str) -> None:
        self._environment, self._text = environment, text

    def __call__(self, context: MeteredContext, *arguments: Any, **keywords: Any) -> str:
        context.spend(length(self._text))
        formatter = _Formatter(self._environment, context.spend)
        return type(self._text)(formatter.vformat(self._text, arguments, keywords))


def _bind_format(environment: Sandbox, value: Any) -> Any:
    if getattr(value, "__name__", "") == "format":
        return _BoundFormat(environment, value.__self__)
    return value


def _call_method(context: MeteredContext, method: Any, args: tuple, kwargs: dict) -> Any:
    owner, name = method.__self__, method.__name__
    if name not in _readable(owner) and name not in MUTATORS.get(type(owner), ()):
        raise SecurityError(f"{name} is not callable here")
    # Iterators pay while they are read; `join` and `extend` must be paid before.
    args = tuple(
        context.admit(arg, whole=True) if hasattr(arg, "__next__") else arg for arg in args
    )
    kwargs = _plain(kwargs)
    context.spend(price_method(owner, name, args, kwargs))
    return method(*args, **kwargs)


def _zip(context: MeteredContext, args: tuple, **options: Any) -> Iterator[tuple]:
    strict = bool(options.pop("strict", False))
    return metered(zip(*args, strict=strict, **options), context.spend, len(args) + 1)


@pass_context
def _pay_output(context: MeteredContext, value: Any) -> Any:
    context.spend(length(value) if type(value) is str else weigh(value, context.units))
    return value


def _pay_comparison(context: MeteredContext, left: Any, right: Any) -> Any:
    """Pays for comparing or searching; returns what to use as `right`."""
    units = weigh(left, context.units)
    if hasattr(right, "__next__"):
        return context.iterate(right, units)
    context.spend(units + weigh(right, context.units))
    return right


def _pay_filter(name: str, function: Callable) -> Callable:
    """The filter, paying for what it reads before it runs and for what it makes after."""
    kind = _PassArg.from_obj(function)
    guard = FILTER_GUARDS.get(name)

    @pass_context
    def run(context: MeteredContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        if name in CONSTANT_FILTERS:
            context.spend(1)
        else:
            value = context.admit(value, whole=name in WHOLE_FILTERS)
        if name in ITEM_FILTERS and isinstance(value, str):
            context.spend(len(value))
        if args or kwargs:
            context.spend(weigh(args, context.units) + weigh(kwargs, context.units))
        if guard is not None and not isinstance(value, Undefined):
            context.spend(guard(value, *args, **kwargs))
        if kind is None:
            result = function(value, *args, **kwargs)
        elif kind is _PassArg.context:
            result = function(context, value, *args, **kwargs)
        elif kind is _PassArg.eval_context:
            result = function(context.eval_ctx, value, *args, **kwargs)
        else:
            result = function(context.environment, value, *args, **kwargs)
        if type(result) is int and result.bit_length() > MOST_BITS:
            raise BudgetExceeded(f"an integer of {result.bit_length()} bits")
        context.spend(length(result))
        return result

    return run


def _pay_test(name: str, function: Callable) -> Callable:
    kind = _PassArg.from_obj(function)

    @pass_context
    def run(context: MeteredContext, value: Any, *args: Any) -> bool:
        context.spend(weigh(value, context.units) if name in ("lower", "upper") else 1)
        if args:
            args = tuple(_pay_comparison(context, value, argument) for argument in args)
        if name in ("odd", "even", "divisibleby") and isinstance(value, str):
            raise TypeError(f"{value[:20]!r} is not a number")  # % would format it
        return function(context.environment, value) if kind else function(value, *args)

    return run


@pass_context
def _choose(context: MeteredContext, choices: Any) -> Any:
    return context.random.choice(choices)


@pass_context
def _choose_if_any(context: MeteredContext, choices: Any) -> Any:
    return _choose(context, choices) if choices else context.environment.undefined("no items")


def _highlight(text: str) -> str:
    return "<span style='color: #F08080'>" + text + "</span>"


def _most_frequent(items: Any) -> list | None:
    """The items that occur most often, in order of appearance; None for no items."""
    if not items:
        return None
    counts: dict[Any, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    highest = max(counts.values())
    return [item for item, count in counts.items() if count == highest]


class Program:
    """A template's text, compiled once. A text that does not compile raises when it is rendered."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.error: str | None = None
        self.fields: frozenset[str] = frozenset()
        self.draws = False
        try:
            self._compile(source)
        except Exception as error:
            self.error = describe(error)

    @staticmethod
    def functions() -> frozenset[str]:
        """Names that every template may call."""
        return frozenset(SANDBOX.globals)

    def _compile(self, source: str) -> None:
        if len(source) > LONGEST_SOURCE:
            raise TemplateSyntaxError(f"longer than {LONGEST_SOURCE} characters", 1)
        tree = SANDBOX.parse(source)
        self._units = count_units(tree)[id(tree)]
        self.fields = frozenset(meta.find_undeclared_variables(tree))
        self.draws = any(node.name in ("choice", "random") for node in tree.find_all(nodes.Filter))
        self._mutates = any(node.attr in MUTATOR_NAMES for node in tree.find_all(nodes.Getattr))
        code = SANDBOX.compile(source)
        self._run = JinjaTemplate.from_code(SANDBOX, code, SANDBOX.globals).root_render_func

    def render(self, variables: Mapping[str, Any], seed: Callable[[], str]) -> str:
        """The text for these variables; `seed` feeds the `choice` filter.

        Raises whatever the template raises, BudgetExceeded among others, and ValueError for a
        source that does not compile.
        """
        if self.error is not None:
            raise ValueError(self.error)
        if self._mutates:
            variables = _copy_containers(variables)
        context = MeteredContext(SANDBOX, {**SANDBOX.globals, **variables}, None, {})
        context.macro_units = self._units
        context.seed = seed
        return "".join(self._run(context))


def describe(error: Exception) -> str:
    """The error in one line of at most 200 characters."""
    line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    text = " ".join(str(error)[:1000].split()) or type(error).__name__
    if isinstance(error, LookupError | TypeError | RecursionError | MemoryError):
        text = f"{type(error).__name__}: {text}"
    return f"{line}{text}"[:200]


def _copy_containers(value: Any) -> Any:
    """Lists and dicts afresh, so that a template changes its own copy of the row."""
    if isinstance(value, Mapping):
        return {key: _copy_containers(item) for key, item in value.items()}
    return [_copy_containers(item) for item in value] if isinstance(value, list) else value


SANDBOX = Sandbox()
