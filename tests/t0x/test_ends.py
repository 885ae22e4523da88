"""How the command ends: exit codes, one line, a terminal left as it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

T0X = [sys.executable, str(Path(sys.executable).with_name("t0x"))]
ROWS = '{"text": "\\u001b[31m", "label": 0}\n'


def run(*arguments, **options):
    return subprocess.run([*T0X, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, ""),
        ([], 0, ""),
        (["prompts"], 0, ""),
        (["score"], 2, "error: Missing option '--checkpoint'."),
        (["no [/x] \x1b[31m"], 2, "error: No such command 'no [/x] \\x1b[31m'."),
        (["report", "--wrong", "x", "r"], 2, "error: Invalid value for '--wrong'"),
        (["report", "no [/x] \x1b[31m"], 1, "error: no [/x] ␛[31m"),
        (["prompts", "validate", "nowhere"], 1, "error: "),
        (["tasks", "list", "--mixture", "no\nmixture"], 1, "error: no mixture is named"),
    ],
)
def test_exit_codes_and_one_line(arguments, code, message):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") <= 1 and "\x1b" not in done.stderr
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("arguments", [["--help"], ["prompts", "list"], ["tasks", "list"]])
def test_a_closed_pipe_is_silent(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*T0X, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        ([*T0X, "tasks", "list"], 0.4),
        ([*T0X, "tasks", "list"], 1.5),
        ([sys.executable, "-m", "t5x.train", "--gin_file=t0_mini.gin"], 0.5),
        ([sys.executable, "-m", "t5x.train", "--gin_file=t0_mini.gin"], 2.0),
    ],
)
def test_ctrl_c_while_things_are_imported(command, seconds, tmp_path):
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error, out) == (130, "interrupted\n", "")
    assert list(tmp_path.iterdir()) == []
