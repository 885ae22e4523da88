"""Gin's complaints as one line that names the binding, the file and the nearest name."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence

import gin

_PLACE = re.compile(r'In file "(?P<file>.+?)", line (?P<line>\d+)')
_PARAMETER = re.compile(r"Configurable '(?P<owner>[\w./]+)' doesn't have a parameter named '(\w+)'")
_CONFIGURABLE = re.compile(r"No configurable matching (?:reference )?'@?(?P<selector>[\w./]+)'")
_ATTRIBUTE = re.compile(r"selector (?P<selector>\S+); <module '(?P<module>.+?)'.* attribute (\w+)")
_SYMBOL = re.compile(r"'(\w+)' was not provided by an import statement")
_UNBOUND_MACRO = re.compile(r"No bindings specified for '(?P<name>\w+)/gin\.macro'")
_BARE_WORD = re.compile(
    r"malformed node or string.*ast\.Name.*Failed to parse token '(?P<word>\w+)'", re.DOTALL
)
_REQUIRED_MACRO = re.compile(r"/macro\.value set to `%gin\.REQUIRED`")


def explain(message: str) -> str:
    """Gin's message about a binding or a name it does not know, with the nearest one it does."""
    if match := _PARAMETER.search(message):
        owner, name = match.groups()
        return _complain(f"{owner} has no parameter '{name}'", name, _parameters(owner), message)
    if match := _CONFIGURABLE.search(message):
        name = match["selector"].split(".")[-1]
        known = [selector.split(".")[-1] for selector, _ in gin.config._REGISTRY.items()]
        return _complain(f"nothing is called '{match['selector']}'", name, known, message)
    if match := _ATTRIBUTE.search(message):
        name = match[3]
        text = f"{match['module']} has no '{name}'"
        return _complain(text, name, vars(sys.modules[match["module"]]), message)
    if match := _SYMBOL.search(message):
        return _complain(f"'{match[1]}' is not imported in the gin file", "", (), message)
    if match := _UNBOUND_MACRO.search(message):
        text = f"%{match['name']} is not set; give --gin.{match['name']}=VALUE"
        return _complain(text, match["name"], bound_macros(), message)
    if match := _BARE_WORD.search(message):
        word = match["word"]
        return f"{word} is no value; a text stands in quotes: '{word}'"
    if _REQUIRED_MACRO.search(message):
        return describe_required([x for x, value in bound_macros().items() if is_required(value)])
    return message


def describe_required(names: Sequence[str]) -> str:
    """What to say of macros that have no value and need one."""
    are = "is" if len(names) == 1 else "are"
    settings = " ".join(f"--gin.{name}=VALUE" for name in names)
    return f"{', '.join(names)} {are} not set; give {settings}"


def _complain(text: str, name: str, known: Iterable[str], message: str) -> str:
    near = difflib.get_close_matches(name, [other for other in known if other != name], n=1)
    text += f"; did you mean '{near[0]}'?" if near else ""
    place = _PLACE.search(message)
    return f"{text} ({place['file']}, line {place['line']})" if place else text


def _parameters(selector: str) -> list[str]:
    """Parameters of the configurables that a selector may mean."""
    name = selector.split("/")[-1].split(".")[-1]
    return [
        parameter
        for full_name, configurable in gin.config._REGISTRY.items()
        if full_name.split(".")[-1] == name
        for parameter in inspect.signature(configurable.wrapped).parameters
    ]


def bound_macros() -> dict[str, object]:
    """The macros that have a value, with it."""
    return {
        scope: parameters.get("value")
        for (scope, selector), parameters in gin.config._CONFIG.items()
        if selector == "gin.macro"
    }


def is_required(value: object) -> bool:
    """Whether a macro's value is `%gin.REQUIRED`, which gin keeps as a reference to a constant."""
    return isinstance(value, gin.config.ConfigurableReference) and (
        value.scoped_selector == "gin.REQUIRED/gin.constant"
    )


def describe_unused(bindings: Sequence[str], macros: Iterable[str]) -> list[str]:
    """A line for each "NAME = value" among `bindings` that no gin file sets or uses.

    Args:
      bindings: those of the command line.
      macros: the macros that the gin files set. To gin any new name is a macro, so a misspelt one
        would be accepted without a word.
    """
    known = {*macros, *_used_macros()}
    lines = []
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        if name.isidentifier() and name not in known:
            lines.append(_complain(f"--gin.{name} is used nowhere", name, known, ""))
    return lines


def _used_macros() -> set[str]:
    references = gin.config.iterate_references(gin.config._CONFIG)
    suffix = "/gin.macro"
    return {
        reference.scoped_selector.removesuffix(suffix)
        for reference in references
        if reference.scoped_selector.endswith(suffix)
    }
