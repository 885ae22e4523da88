"""T5X's own unit tests against this package: how many pass, and why the others do not.

    python benchmarks/upstream_tests.py ~/t5x [--only decoding,losses] [--details] [--control]

CHECKOUT is google-research/t5x; nothing of it is copied. Each of its test files runs in a process
of its own with `t5x` being this package (--control: theirs, which tells what their tests say under
this machine's JAX). `t5x.test_utils` comes from the checkout. What their tests take from inside
their modules is led to what does the same in ours (PRIVATE_NAMES), and what is on no package index
(airio, jestimator, t5) or not installed is there to be imported only.
"""

import argparse
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import types
import unittest
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

FILES = (
    "adafactor",
    "checkpoint_importer",
    "checkpoint_utils",
    "decoding",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "partitioning",
    "state_utils",
    "train_state",
    "trainer",
    "utils",
)
STUBS = ("airio", "jestimator", "t5", "chex", "fiddle", "t5x.checkpoint_importer")
THEIRS = ("t5x.test_utils",)
# Why a test does not pass: the first whose pattern is found in "file: test: error".
REASONS = (
    (r"DecoderOnly|remove_prefix", "decoder-only models, which are left out"),
    (r"needs? .*devices|requires 8 global devices|does not divide the 1 devices", "wants devices"),
    (r"Exception message does not match", "the text of an error is ours"),
    (r"no logs of level INFO", "the text of a log line is ours"),
    (r"initial_index", "a prompt is forced token by token, not prefilled"),
    (
        r"checkpoint_utils|checkpoint_importer|OrbaxRestore|create_orbax_checkpoint_manager",
        "functions inside upstream's checkpoints: ours reads and writes all its formats otherwise, "
        "see benchmarks/upstream_checkpoints.py",
    ),
    (
        r"bounds_from_last_device|get_coords|LocalChunker|test_default_mesh",
        "inner functions for hosts of TPU v2 and v3: JAX lays out meshes",
    ),
    (r"P\(None,\) != None", "a replicated array has a PartitionSpec, upstream None"),
    (r"different types at key path", "plain dictionaries stay plain, upstream freezes them"),
    (
        r"_duration_timer|_compiled_eval_steps|test_compile_eval|test_compile_train|PjittedFn"
        r"|num_decodes|Mock|test_write_metrics_summary|get_zeros_batch_like_spec|zip\(\) argument",
        "looks at, or replaces, an inner part that ours has not",
    ),
    (
        r"fake_input_shapes_and_types",
        "our cache is traced for its shape alone, the test looks at values",
    ),
    (r"error_for_other_type", "an int is a number to act on, upstream wants a float"),
    (r"get_training_eval_datasets|isinstance\(\) arg 2", "wants airio, or a converter it mocks"),
)

# (module, name in theirs) → makes it of our module.
PRIVATE_NAMES: Mapping[tuple[str, str], Callable[[types.ModuleType], Any]] = {
    ("adafactor", "_AdafactorHyperParams"): lambda ours: ours.AdafactorHyperParams,
    ("adafactor", "_AdafactorParamState"): lambda ours: ours.AdafactorParamState,
    ("decoding", "_left_align_prompts"): lambda ours: ours._left_align,
    ("decoding", "_right_align_prompts"): lambda ours: ours._right_align,
    ("decoding", "_temperature_sample_single_trial"): lambda ours: _single_trial(ours),
    ("decoding", "add_beam_dim"): lambda ours: (
        lambda x, beam_size, offset=0: ours.unflatten_beam_dim(
            ours.flat_batch_beam_expand(x, beam_size, offset), x.shape[offset], beam_size, offset
        )
    ),
    ("decoding", "top_k_two_stage"): lambda ours: ours.lax.top_k,
    ("losses", "_sum_weights_per_segment"): lambda ours: (
        lambda positions, segments, weights: ours._sum_by_segment(weights, segments)
    ),
}


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules of some packages importable: whatever is taken from them is a mock."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        package = name if name in STUBS else name.split(".")[0]
        if package in STUBS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = mock.MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class FromCheckout(importlib.abc.MetaPathFinder):
    """Finds the modules of THEIRS in the checkout."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        if name not in THEIRS:
            return None
        file = self._checkout / f"{name.replace('.', '/')}.py"
        return importlib.util.spec_from_file_location(name, file)


def lead_private_names() -> None:
    """Gives our modules the names that their tests look for inside theirs."""
    for (module, theirs), make in PRIVATE_NAMES.items():
        ours = importlib.import_module(f"t5x.{module}")
        if not hasattr(ours, theirs):
            setattr(ours, theirs, make(ours))


def _single_trial(decoding: types.ModuleType) -> Callable[..., Any]:
    """Their inner function samples once for each row; num_decodes is done by its caller."""

    def sample(
        inputs: Any, cache: Any, tokens_to_logits: Any, eos_id: int, prng_key: Any, **settings: Any
    ) -> Any:
        settings = {"topk": 20, **settings}
        if settings.get("topp"):
            settings["topk"] = 0
        tokens, scores = decoding.temperature_sample(
            inputs, cache, tokens_to_logits, eos_id, decode_rng=prng_key, **settings
        )
        return tokens[:, 0], scores[:, 0]

    return sample


def lead_patches(face: types.ModuleType) -> None:
    """Lets what a test patches in a package's face take effect in the modules behind it."""
    vars(face).update({name: getattr(face, name) for name in face.__all__})
    rooms = [module for name, module in sys.modules.items() if name.startswith(f"{face.__name__}.")]
    # Theirs takes the time by a function of its own, which tests replace by a list of moments.
    vars(face)["_time"] = time.monotonic
    last = 0.0

    def monotonic() -> float:
        nonlocal last
        with contextlib.suppress(StopIteration):  # ours looks at the clock in other places
            last = vars(face)["_time"]()
        return last

    for module in rooms:
        if getattr(module, "time", None) is time:
            module.time = types.SimpleNamespace(monotonic=monotonic)

    class Face(types.ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            for module in rooms:
                if name in vars(module):
                    setattr(module, name, value)

    face.__class__ = Face


class Result(unittest.TestResult):
    """Remembers what became of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.outcomes.setdefault(_name(test), "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[_name(test)] = f"skipped: {reason}"

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[_name(test)] = self._describe(test, err)

    addError = addFailure

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[_name(test)] = self._describe(test, err)

    def _describe(self, test: Any, err: Any) -> str:
        text = self._exc_info_to_string(err, test)
        lines = [line for line in str(err[1]).splitlines() if line.strip()] or [""]
        return f"{err[0].__name__}: {lines[0]}\n{text}"


def _name(test: unittest.TestCase) -> str:
    return test.id().removeprefix("__main__.").split("_test.", 1)[-1]


def run_file(checkout: Path, name: str, control: bool) -> dict[str, str]:
    """What became of each test of a file, in this process."""
    sys.meta_path.append(Stubs())
    if control:
        sys.path.insert(0, str(checkout))
        once = types.ModuleType("cached_property")
        once.cached_property = functools.cached_property
        sys.modules["cached_property"] = once
    else:
        sys.meta_path.insert(0, FromCheckout(checkout))
        lead_private_names()
    from absl import flags

    flags.FLAGS([sys.argv[0]])
    os.chdir(checkout)
    file = checkout / "t5x" / f"{name}_test.py"
    spec = importlib.util.spec_from_file_location(f"t5x.{name}_test", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, AttributeError) as error:
        return {"": f"{type(error).__name__}: {error}"}
    if not control and "t5x.trainer" in sys.modules:
        lead_patches(sys.modules["t5x.trainer"])
    result = Result()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    return result.outcomes


def _run_apart(checkout: Path, name: str, control: bool) -> dict[str, str]:
    command = [sys.executable, __file__, str(checkout), "--one", name]
    done = subprocess.run(
        [*command, *(["--control"] if control else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"": f"exit code {done.returncode}: {done.stderr[-500:]}"}
    return json.loads(lines[-1])


def print_table(outcomes: Mapping[str, Mapping[str, str]], details: bool) -> None:
    print("| tests of | passed | of | others |\n|---|---|---|---|")
    for name, tests in outcomes.items():
        failed = {test: text for test, text in tests.items() if text != "passed"}
        print(f"| {name} | {len(tests) - len(failed)} | {len(tests)} | {len(failed)} |")
    reasons: dict[str, list[str]] = {}
    for name, tests in outcomes.items():
        for test, text in tests.items():
            if text == "passed":
                continue
            line = f"{name}: {test}: {text.splitlines()[0][:200]}"
            known = (reason for pattern, reason in REASONS if re.search(pattern, line))
            reasons.setdefault(next(known, "not explained"), []).append(text if details else line)
    print("\n| why | tests |\n|---|---|")
    for reason, lines in reasons.items():
        print(f"| {reason} | {len(lines)} |")
    for reason, lines in reasons.items():
        print(f"\n{reason}:", *lines, sep="\n- ")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default=",".join(FILES))
    parser.add_argument("--details", action="store_true", help="whole tracebacks")
    parser.add_argument("--control", action="store_true", help="run their code, not ours")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    checkout = options.checkout.resolve()
    if options.one:
        outcomes = run_file(checkout, options.one, options.control)
        print("\n" + json.dumps(outcomes))
        return
    outcomes = {
        name: _run_apart(checkout, name, options.control) for name in options.only.split(",")
    }
    print_table(outcomes, options.details)


if __name__ == "__main__":
    main()
