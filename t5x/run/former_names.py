"""Names that T5X has given up since its first release: modules and gin files under both.

A former name leads to what bears today's, and says so in one log line. Modules of other
distributions that gin files import are handed over by entry points of the group
`t5x.former_modules` ("promptsource.seqio_tasks = t0x.tasks.former_mixtures"); they count only where
the original is not installed.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import re
import sys
import types
from typing import Any, TextIO

import gin
from absl import logging

# T5X's examples for GPUs had a copy of the network and of its gin files.
MODULES = {
    "t5x.contrib.gpu.t5.network": "t5x.examples.t5.network",
    "t5x.contrib.gpu.t5.layers": "t5x.examples.t5.layers",
    "t5x.contrib.gpu.scripts_gpu.seqio_tasks": "t5x.examples.former_tasks",
}
# The t5 package is rarely there: of its tasks, those that the examples train on.
SUBSTITUTES = {"t5.data.mixtures": "t5x.examples.translation"}
FILES = (
    (r"t5x/contrib/gpu/t5/configs/runs/(?P<file>\w+\.gin)", r"t5x/configs/runs/\g<file>"),
    (r"t5x/contrib/gpu/t5/(?P<file>.+\.gin)", r"t5x/examples/t5/\g<file>"),
    (
        r"t5x/examples/t5/t5_1_1/examples/t5_1_1_(?P<file>base_wmt_\w+\.gin)",
        r"t5x/examples/t5/t5_1_1/examples/\g<file>",
    ),
    (
        r"t5x/examples/t5/t5_1_1/examples/c4_pretrain\.gin",
        "t5x/examples/t5/t5_1_1/examples/base_c4_pretrain.gin",
    ),
    (
        r"t5x/examples/t5/t5_1_1/examples/wmt19_ende_from_scratch\.gin",
        "t5x/examples/t5/t5_1_1/examples/base_wmt19_ende_train.gin",
    ),
)
# In bindings of the command line, which have no imports that gin could look a name up in.
BINDINGS = {"partitioning.ModelBasedPjitPartitioner.": "partitioning.PjitPartitioner."}
_said: set[str] = set()


def say(former: str, name: str) -> None:
    """Logs once a process what a former name is called today."""
    if former not in _said:
        _said.add(former)
        logging.warning("%s is called %s today", former, name)


def register(cls: type, module: str) -> None:
    """Makes gin know a class by its name of today, if it does not know it yet."""
    if f"{module}.{cls.__name__}" not in gin.config._REGISTRY:
        gin.external_configurable(cls, module=module)


def redirect_file(path: str) -> str:
    """Today's path of a gin file; the path itself where it has not moved."""
    for pattern, replacement in FILES:
        if match := re.search(rf"(^|/){pattern}$", path):
            return path[: match.start()] + match[1] + match.expand(replacement)
    return path


def redirect_binding(binding: str) -> str:
    """A binding "NAME = VALUE" with today's name."""
    name, equals, value = binding.partition("=")
    for former, today in BINDINGS.items():
        if former in name:
            say(former.rstrip("."), today.rstrip("."))
            name = name.replace(former, today)
    return name + equals + value


def _is_readable(path: str) -> bool:
    moved = redirect_file(path)
    return moved != path and os.path.isfile(moved)


def _open(path: str) -> TextIO:
    moved = redirect_file(path)
    say(path, moved)
    return open(moved, encoding="utf-8")


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by former names, after everybody else has been asked."""

    def __init__(self, modules: dict[str, str]) -> None:
        self._modules = modules
        parts = (name.split(".")[:-1] for name in modules)
        self._packages = {".".join(p[: i + 1]) for p in parts for i in range(len(p))}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in self._modules or name in self._packages:
            is_package = name in self._packages
            return importlib.machinery.ModuleSpec(name, self, is_package=is_package)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if name := self._modules.get(module.__name__):
            if module.__name__ in SUBSTITUTES:
                logging.warning("%s is not installed: %s takes its place", module.__name__, name)
            else:
                say(module.__name__, name)
            # The very module, so that gin sees one configurable under either name.
            sys.modules[module.__name__] = importlib.import_module(name)


@functools.cache
def install() -> None:
    """Makes imports and gin's includes find former names from here on."""
    announced = importlib.metadata.entry_points(group="t5x.former_modules")
    modules = (
        MODULES | SUBSTITUTES | {entry_point.name: entry_point.value for entry_point in announced}
    )
    sys.meta_path.append(_FormerModules(modules))
    gin.config.register_file_reader(_open, _is_readable)
