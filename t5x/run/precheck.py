"""Mistakes that gin files show as mere text, found before anything that takes seconds is imported.

What is not certain is left to gin, which parses the files again with all they import.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath
from gin import config_parser

from t5x.run import gin_errors

_REQUIRED = "gin.REQUIRED"


class _Macro(NamedTuple):
    name: str


class _Delegate(config_parser.ParserDelegate):
    """Leaves references as they are: all that counts here is which value is a macro."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> None:
        del scoped_configurable_name, evaluate

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


def find_file(name: str, search_paths: Sequence[str]) -> epath.Path | None:
    """A gin file where gin would find it; None where it would not."""
    places = (epath.Path(path) / name for path in ("", *search_paths))
    return next((place for place in places if place.exists()), None)


def require_macros(
    entry_point: str,
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str],
) -> None:
    """Sees to it that macros which the entry point's own parameters are bound to have a value.

    Args:
      entry_point: its name, "train".
      gin_files, bindings, search_paths: as `gin_utils.parse_gin_flags` takes them.

    Raises:
      ValueError: one is `%gin.REQUIRED`; the message has all that are.
    """
    macros: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    try:
        for statement in _statements(gin_files, bindings, search_paths):
            if not statement.arg_name and not statement.scope:
                macros[statement.selector] = statement.value
            elif statement.selector.split(".")[-1] == entry_point and not statement.scope:
                parameters[statement.arg_name] = statement.value
    except (SyntaxError, ValueError, OSError):
        return  # gin says it better
    missing = [name for name, value in macros.items() if value == _Macro(_REQUIRED)]
    if any(_value(value, macros) == _Macro(_REQUIRED) for value in parameters.values()):
        raise ValueError(gin_errors.describe_required(missing))


def _statements(
    gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]
) -> Iterator[config_parser.BindingStatement]:
    """The bindings of files, of what they include and of the command line, in order."""
    for name in gin_files:
        file = find_file(name, search_paths)
        if file is None:
            raise FileNotFoundError(name)
        yield from _read(file.read_text(), search_paths)
    yield from _read("\n".join(bindings), search_paths)


def _read(text: str, search_paths: Sequence[str]) -> Iterator[config_parser.BindingStatement]:
    for statement in config_parser.ConfigParser(text, _Delegate()):
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _statements([statement.filename], [], search_paths)
        elif isinstance(statement, config_parser.BindingStatement):
            yield statement


def _value(value: Any, macros: dict[str, Any]) -> Any:
    """What a value stands for, macros that stand for macros followed; not in circles."""
    for _ in macros:
        if not isinstance(value, _Macro) or value.name not in macros:
            break
        value = macros[value.name]
    return value
