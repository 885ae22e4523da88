"""The one description of a run."""

import shlex
import subprocess

import pytest
import yaml

from t0x.launch.job import Job, read_job
from t5x.run import preemption

OPTIONS = {"name": "t0-3b", "gin_file": "t0_3b.gin", "model_dir": "gs://b/t0_3b"}


def test_the_command_survives_a_shell():
    job = Job(**OPTIONS, bindings=("A='x y'", 'B="$HOME"'))
    line = f"set -- {job.command_line('--multiprocess_gpu')}; printf '%s\\n' \"$@\""
    words = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == job.command("--multiprocess_gpu")
    assert '--gin.MODEL_DIR="gs://b/t0_3b"' in job.command()


def test_options_win_over_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**OPTIONS, "mode": "eval", "environment": {"A": 1}}))
    job = read_job(path, {"name": "other", "mode": None})
    assert (job.name, job.mode, job.environment) == ("other", "eval", {"A": "1"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**OPTIONS, "modle": 1}, "unknown field 'modle'"),
        ({"name": "a", "gin_file": "b"}, "model_dir is missing"),
        ({**OPTIONS, "name": "T0"}, "--name"),
        ({**OPTIONS, "mode": "fly"}, "--mode"),
        ({**OPTIONS, "bindings": ["A"]}, "NAME=VALUE"),
        ({**OPTIONS, "environment": {"A B": "c"}}, "--env"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_job(path, {})
    assert "\n" not in str(caught.value)


def test_requirements():
    assert Job(**OPTIONS).requirement("tpu") == "t0x[tpu]"
    assert Job(**OPTIONS, package="t0x==0.2").requirement("gpu") == "t0x[gpu]==0.2"
    wheel = Job(**OPTIONS, package="dist/t0x-0.1-py3-none-any.whl")
    assert wheel.requirement("tpu", "./") == "./t0x-0.1-py3-none-any.whl[tpu]"
    assert "@ https://x/t0x.whl" in Job(**OPTIONS, package="https://x/t0x.whl").requirement("tpu")


def test_launchers_know_the_exit_code_of_t5x():
    from t0x.launch.job import PREEMPTED_EXIT_CODE

    assert preemption.EXIT_CODE == PREEMPTED_EXIT_CODE
    assert shlex.split(Job(**OPTIONS).command_line()) == Job(**OPTIONS).command()
