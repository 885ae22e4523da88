"""What the gin files of a run say, read without running it."""

import contextlib
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin

from t5x import gin_utils
from t5x.run import gin_errors

# What gin files find in `__main__` when a run is started, by the module that has it.
ENTRY_POINTS = {
    "train": "t5x.train",
    "evaluate": "t5x.eval",
    "infer": "t5x.infer",
    "precompile": "t5x.precompile",
}


def read(
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (".",),
    without: Sequence[str] = (),
) -> None:
    """Parses a run's gin files in place of whatever gin configuration there was.

    Args:
      gin_files: as `--gin_file` takes them.
      bindings: "NAME = value" texts.
      search_paths: folders to look in before those of the installed packages.
      without: modules that the files import and the reader can do without; they are not loaded.

    Raises:
      FileNotFoundError, ValueError: see `t5x.gin_utils.parse_gin_flags`.
    """
    gin.clear_config()
    script = types.ModuleType("__main__")
    script.__getattr__ = _entry_point
    left_out = {name: types.ModuleType(name) for name in without if name not in sys.modules}
    with _modules({"__main__": script, **left_out}):
        gin_utils.parse_gin_flags(
            [*search_paths, *gin_utils.find_search_paths()],
            gin_files,
            bindings,
            finalize_config=False,
        )


@contextlib.contextmanager
def _modules(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@functools.cache
def _entry_point(name: str) -> Callable[..., dict[str, Any]]:
    """Has the parameters of an entry point, for gin to check bindings against, and returns them."""
    if name not in ENTRY_POINTS:
        raise AttributeError(f"module '__main__' has no attribute '{name}'")

    @functools.wraps(getattr(importlib.import_module(ENTRY_POINTS[name]), name))
    def arguments(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    return arguments


def arguments(name: str) -> dict[str, Any]:
    """The arguments that the files read give to an entry point, its defaults included.

    Args:
      name: of the entry point, which the files bind: "train".
    """
    entry_point = _entry_point(name)
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(entry_point).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    return defaults | gin.get_configurable(entry_point)()


def macros() -> frozenset[str]:
    """Names of the macros that the files read give a value."""
    bound = gin_errors.bound_macros()
    return frozenset(name for name in bound if not gin_errors.is_required(bound[name]))


def macro(name: str) -> Any:
    """What `%NAME` stands for."""
    return gin.get_configurable(f"{name}/gin.macro")()


def configured(target: Callable[..., Any]) -> Callable[..., Any]:
    """A class or function with the parameters that the files read bind, if they name it at all."""
    try:
        return gin.get_configurable(target)
    except ValueError:  # nothing in the files
        return target
