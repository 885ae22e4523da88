"""Values of settings that fit no parameter, found before anything heavy starts.

What a parameter takes is what its annotation says; parameters without one, and values that are made
by a configurable, are left alone.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin

from t5x.run import gin_errors

_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in quotes"}
# Smallest value by the parameter's name.
_SMALLEST = {
    "batch_size": 1,
    "total_steps": 0,
    "relative_steps": 0,
    "eval_steps": 0,
    "eval_period": 0,
    "stats_period": 0,
    "gc_period": 0,
    "period": 0,
    "checkpoint_period": 1,
    "num_microbatches": 1,
    "num_partitions": 1,
}


def check() -> None:
    """Holds the bound values against what their parameters take.

    Raises:
      ValueError: one does not fit; the message names the setting and its value.
    """
    macros = gin_errors.bound_macros()
    for (scope, selector), parameters in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        hints = _hints(selector)
        for name, value in parameters.items():
            setting = "/".join(filter(None, (scope, f"{selector}.{name}")))
            while _is_macro(value) and value.scoped_selector.split("/")[0] in macros:
                setting = value.scoped_selector.split("/")[0]
                value = macros[setting]
            if name == "task_feature_lengths" and value is None and "train" in scope.split("/"):
                raise ValueError(f"{setting} = None: training needs a length for each feature")
            for problem in _problems(name, value, hints.get(name)):
                raise ValueError(f"{setting} = {value!r:.100}: {problem}")


def require_bindings(entry_point: Callable[..., Any], gin_files: Sequence[str]) -> None:
    """Sees to it that every parameter without a default is bound.

    Raises:
      ValueError: some are not; the message names them.
    """
    name = entry_point.__name__
    bound = {
        parameter
        for (_, selector), parameters in gin.config._CONFIG.items()
        if selector.split(".")[-1] == name
        for parameter in parameters
    }
    missing = [
        parameter.name
        for parameter in inspect.signature(entry_point).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in bound
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{', '.join(dict.fromkeys(gin_files))}: {name} has no {', '.join(missing[:3])}{more}; "
            "start from a run file, such as t0_mini.gin"
        )


def _hints(selector: str) -> Mapping[str, Any]:
    registered = gin.config._REGISTRY.get_match(selector)
    target = registered.wrapped if registered else None
    if inspect.isclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target)
    except (TypeError, NameError):  # nothing that is annotated, or names for type checkers alone
        return {}


def _is_macro(value: Any) -> bool:
    return isinstance(value, gin.config.ConfigurableReference) and value.scoped_selector.endswith(
        "/gin.macro"
    )


def _problems(name: str, value: Any, hint: Any) -> Iterator[str]:
    if isinstance(value, gin.config.ConfigurableReference):
        return
    if name == "task_feature_lengths":
        yield from _length_problems(value)
        return
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is typing.Union:
        allowed = typing.get_args(hint)
    plain = all(kind in _KINDS or kind is types.NoneType for kind in allowed)
    if plain and not any(_fits(value, kind) for kind in allowed):
        takes = [_KINDS[kind] for kind in allowed if kind in _KINDS]
        takes += ["None"] * (types.NoneType in allowed)
        yield f"{name} takes {' or '.join(takes)}"
        return
    smallest = _SMALLEST.get(name)
    if smallest is not None and isinstance(value, int | float) and value < smallest:
        yield f"{name} takes {smallest} or more"


def _fits(value: Any, kind: type) -> bool:
    if kind is types.NoneType:
        return value is None
    if isinstance(value, bool) and kind is not bool:
        return False
    if kind is int:  # 1e5 is as good as 100000
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _length_problems(lengths: Any) -> Iterator[str]:
    if lengths is None:
        return
    if not isinstance(lengths, Mapping):
        yield "lengths are a mapping, {'inputs': 512, 'targets': 114}"
        return
    if not lengths:
        yield "no feature has a length"
    for name, length in lengths.items():
        if isinstance(length, gin.config.ConfigurableReference):
            continue
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            yield f"the length of {name!r} is a whole number above 0"
            return
    if set(lengths) == {"inputs"}:
        yield "'targets' has no length"
