"""The shared command line, through real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import pytest

from t5x import gin_utils, utils
from t5x.run import gin_errors
from t5x.run.progress import format_count, format_seconds

RUN_FILE = """
from __gin__ import dynamic_registration
import __main__ as script
script.entry.text = %TEXT
TEXT = 'from the file'
"""
SCRIPT = """
import sys, time
from t5x.run.console import console
if '--verbose' not in sys.argv:
    console.capture()
from t5x import cli

def entry(text: str, times: int = 1):
    if text == 'raise':
        raise ValueError('BATCH_SIZE = 3 is wrong;\\n use 4')
    print(text * times, flush=True)
    if text == 'wait':
        for _ in console.track(range(3), 3, 'step'):
            time.sleep(60)

if __name__ == '__main__':
    cli.run(entry)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "run.gin").write_text(RUN_FILE)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "empty.gin").touch()
    return folder


@pytest.fixture
def run(commands, folder):
    def run(*arguments):
        commands.start("script.py", *arguments, cwd=folder)
        return commands.wait()

    return run


def test_a_process_of_its_own_ends_the_same_way(run, folder):
    arguments = ["script.py", "--gin_file=run.gin", "--gin.TEXT='raise'"]
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    forked = run(*arguments[1:])
    assert done.returncode == forked.returncode == 1
    assert done.stdout == forked.stdout == ""
    message = "error: BATCH_SIZE = 3 is wrong; use 4 (traceback in"
    assert done.stderr.startswith(message) and forked.stderr.startswith(message)


def test_ctrl_c_ends_a_run_in_one_line(commands, folder):
    process = commands.start("script.py", "--gin_file=run.gin", "--gin.TEXT='wait'", cwd=folder)
    started = time.monotonic()
    while "wait" not in Path(commands.output("stdout")).read_text():
        assert time.monotonic() - started < 30
        time.sleep(0.05)
    os.kill(process, signal.SIGINT)
    done = commands.wait()
    assert (done.returncode, done.stdout, done.stderr) == (130, "wait\n", "interrupted\n")


def test_rewrite_gin_args():
    assert gin_utils.rewrite_gin_args(["x", "--gin.A.b='c=d'"]) == [
        "x",
        "--gin_bindings=A.b = 'c=d'",
    ]
    with pytest.raises(ValueError, match=r"--gin\.A: a gin binding has the form"):
        gin_utils.rewrite_gin_args(["--gin.A"])


@pytest.mark.parametrize(
    ("arguments", "code", "out", "error"),
    [
        (["--gin_file=run.gin"], 0, "from the file\n", ""),
        (["--gin_file=run.gin", "--gin.TEXT='bound'"], 0, "bound\n", ""),
        (
            ["--gin_file=run.gin", "--gin.TEXT='raise'"],
            1,
            "",
            "error: BATCH_SIZE = 3 is wrong; use 4 (traceback in",
        ),
        (["--gin_file=run.gin", "--gin.TEXT=bare"], 1, "", "a text stands in quotes: 'bare'"),
        (["--gin_file=run.gin", "--gin.entry.times='3'"], 1, "", "times takes a whole number"),
        (["--gin_file=empty.gin"], 1, "", "error: empty.gin: entry has no text; start from"),
        (["--gin_file=no.gin"], 1, "", "error: --gin_file=no.gin is in none of"),
        (
            ["--gin_file=run.gin", "--gin.entry.tims=2"],
            1,
            "",
            "did you mean 'times'?",
        ),
        (["--gin-file=run.gin", "--gin-bindings", "TEXT='a-b'"], 0, "a-b\n", ""),
        (["--gin-file", "run.gin", "--nodry-run", "--noverbose"], 0, "from the file\n", ""),
        (["--gin_file=run.gin", "--gin-flie=x"], 2, "", "Unknown command line flag 'gin-flie'"),
        ([], 2, "", "error: --gin_file=FILE is missing"),
    ],
)
def test_exit_code_and_one_line(run, arguments, code, out, error):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert error in done.stderr
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_configuration_and_stops(run):
    done = run("--gin_file=run.gin", "--dry_run")
    assert done.returncode == 0
    assert "TEXT = 'from the file'" in done.stdout
    assert "\nfrom the file\n" not in done.stdout


def test_verbose_shows_the_traceback(run):
    done = run("--gin_file=run.gin", "--gin.TEXT='raise'", "--verbose")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (48_000, "48k"), (1_520_000, "1.52M"), (2.85e9, "2.85B")]
)
def test_counts_have_three_figures(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3723, "1:02:03")])
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("message", "explained"),
    [
        (
            "Configurable 'x.DatasetConfig' doesn't have a parameter named 'bach_size'.\n"
            '  In file "run.gin", line 3\n    x.DatasetConfig.bach_size = 3',
            "x.DatasetConfig has no parameter 'bach_size'; did you mean 'batch_size'? "
            "(run.gin, line 3)",
        ),
        (
            "Couldn't resolve selector utils.DatasetConfg; <module 't5x.utils' from 'x'> has no "
            "attribute DatasetConfg.",
            "t5x.utils has no 'DatasetConfg'; did you mean 'DatasetConfig'?",
        ),
        ("'utilz' was not provided by an import statement.", "'utilz' is not imported in the gin"),
        ("No bindings specified for 'NOPE/gin.macro' in config", "give --gin.NOPE=VALUE"),
        ("No configurable matching 'train_script.DatasetConfg'", "did you mean 'DatasetConfig'?"),
        ("something else", "something else"),
    ],
)
def test_gins_complaints_are_explained(message, explained):
    if "DatasetConfig" in explained and gin.config._inverse_lookup(utils.DatasetConfig) is None:
        gin.external_configurable(utils.DatasetConfig, module="t5x.utils")
    assert explained in gin_errors.explain(message)


def test_every_required_macro_is_named():
    with gin.unlock_config():
        gin.clear_config()
        gin.parse_config("A = 1\nMODEL_DIR = %gin.REQUIRED\nSTEPS = %gin.REQUIRED\nB = %A\n")
        with pytest.raises(ValueError) as error:
            gin.finalize()
        explained = gin_errors.explain(str(error.value))
        gin.clear_config()
    assert explained == (
        "MODEL_DIR, STEPS are not set; give --gin.MODEL_DIR=VALUE --gin.STEPS=VALUE"
    )


def test_a_misspelt_macro_is_noted(run):
    done = run("--gin_file=run.gin", "--gin.TEXTS='x'", "--gin.TEXT='y'")
    assert done.returncode == 0
    assert done.stdout == "note: --gin.TEXTS is used nowhere; did you mean 'TEXT'?\ny\n"


def test_shard_id_is_for_infer(run):
    done = run("--gin_file=run.gin", "--shard_id=1")
    assert done.returncode == 1
    assert "--shard_id is for infer, entry has no such parameter" in done.stderr
