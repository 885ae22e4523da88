"""Which gin files of a checkout this package reads: every one, through the real entry points.

    python benchmarks/gin_survey.py CHECKOUT [--all] [--under FOLDER] [--bindings OUT.json]

Each file is parsed in a process of its own as `python -m t5x.train` (or eval, infer, precompile:
what the file binds) would parse it, `include`s found in the checkout first. Modules of third
parties that are not installed are stubbed, and required macros may be open. What is not about
encoder-decoder models (decoder-only, mixtures of experts) or not T5X's (Mesh TensorFlow) is counted
apart. Prints a line for each file that does not parse, why, and a JSON summary. With --bindings,
what each file that parses binds, as text, goes into a JSON file: with a checkout of T5X it made
tests/t5x/golden/gin_bindings.json.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import types
import warnings
from pathlib import Path

OURS = ("t5x", "t0x", "seqio", "gin", "jax", "flax", "optax", "promptsource")
# What a script of T5X is called in gin, by the function that it binds.
ENTRY_POINTS = {"train": "train", "evaluate": "eval", "infer": "infer", "precompile": "precompile"}
APART = {
    "decoder-only": r"decoder_only|DecoderOnly|gins/(n?c_dec|dec)_",
    "mixture of experts": r"contrib[./]moe",
    "export to SavedModel": r"export_lib",
    "Mesh TensorFlow's": r"mesh_tensorflow\.transformer",
}
INCLUDE = re.compile(r"^\s*include\s+['\"](.+?)['\"]", re.MULTILINE)
# Scripts of their own, with parameters that T5X's have not.
FOREIGN = re.compile(r"create_task_from_tuples|restore_checkpoint_config =")


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in place of those of third parties that are not installed."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._inside = False

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in OURS or self._inside:
            return None
        if top not in self.names:
            self._inside = True
            try:
                if importlib.util.find_spec(top) is not None:
                    return None
            except (ImportError, ValueError):
                pass
            finally:
                self._inside = False
            self.names.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def whole_text(file: Path, root: Path) -> str:
    """The file with the text of what it includes, for telling what it is about."""
    text = file.read_text()
    for name in INCLUDE.findall(text):
        included = next((p for p in (root / name, file.parent / name) if p.exists()), None)
        text += whole_text(included, root) if included else ""
    return text


def entry_point(text: str):
    """(module, function) of the script that the file binds; train where it binds none."""
    found = re.findall(r"^(?:\w+_script|\w+)\.(train|evaluate|infer|precompile)\b", text, re.M)
    name = found[0] if found else "train"
    module = importlib.import_module(f"t5x.{ENTRY_POINTS[name]}")
    return module, getattr(module, name)


def parse(file: Path, root: Path, text: str) -> None:
    """Parses one file as its entry point would.

    Raises:
      Exception: whatever the user would see.
    """
    import gin

    from t5x import gin_utils

    module, function = entry_point(text)
    sys.modules["__main__"] = module
    sys.meta_path.append(Stubs())
    os.chdir(root)
    gin.configurable(function)
    paths = [str(root), str(file.parent), *gin_utils.find_search_paths()]
    gin_utils.parse_gin_flags(paths, [str(file.relative_to(root))], [], finalize_config=False)


def bindings() -> dict[str, str]:
    """Every binding that was parsed, by "scope/selector.parameter", as gin would write it."""
    import gin

    return {
        f"{scope}/{selector}.{name}".lstrip("/"): repr(value)
        for (scope, selector), parameters in gin.config._CONFIG.items()
        for name, value in parameters.items()
    }


def survey(file: Path, root: Path) -> tuple[str | None, dict[str, str]]:
    """Why the file does not parse, in one line, or None, and what it binds.

    In a process of its own.
    """
    text = whole_text(file, root)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            parse(file, root, text)
            answer = [None, bindings()]
        except BaseException as error:  # the child's one purpose is to report it
            answer = [" ".join(f"{type(error).__name__}: {error}".split()), {}]
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    problem, bound = json.loads(answer) if answer else ("the process died", {})
    return problem, bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--all", action="store_true", help="name the files that parse too")
    parser.add_argument("--under", default="", help="a folder of the checkout")
    parser.add_argument("--bindings", type=Path, help="where to write what the files bind")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    root = options.checkout.resolve()
    for name in ENTRY_POINTS.values():
        importlib.import_module(f"t5x.{name}")
    counts = {"files": 0, "parse": 0, "do not parse": 0}
    bound: dict[str, dict[str, str]] = {}
    for file in sorted((root / options.under).rglob("*.gin")):
        counts["files"] += 1
        text = f"{file.relative_to(root)}\n{whole_text(file, root)}"
        apart = next((why for why, pattern in APART.items() if re.search(pattern, text)), None)
        if apart or FOREIGN.search(text):
            apart = apart or "another script's"
            counts[apart] = counts.get(apart, 0) + 1
            continue
        problem, found = survey(file, root)
        if not problem:
            bound[str(file.relative_to(root))] = found
        counts["do not parse" if problem else "parse"] += 1
        if problem or options.all:
            print(f"{file.relative_to(root)}: {problem or 'parses'}", flush=True)
    if options.bindings:
        options.bindings.write_text(json.dumps(bound, indent=1, sort_keys=True) + "\n")
    print(json.dumps({"checkout": root.name, **counts}))


if __name__ == "__main__":
    main()
