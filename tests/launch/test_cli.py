"""`t0x launch`, where nothing is run."""

import subprocess
import sys

import pytest
import typer.testing

from t0x import cli

JOB = ["--name", "t0-3b", "--gin_file", "t0_3b.gin", "--model_dir", "gs://b/t0_3b"]


def _launch(*words):
    return typer.testing.CliRunner().invoke(cli.app, ["launch", *words])


@pytest.mark.parametrize(
    ("place", "submitted"),
    [
        (["tpu", "watch", "--zone", "us-east5-b", "--spot"], "$ gcloud compute tpus tpu-vm ssh"),
        (["gke", "--slices", "2"], "$ kubectl apply -f t0-3b.yaml"),
        (["slurm", "--nodes", "4"], "$ sbatch t0-3b.sh"),
        (["skypilot", "--accelerators", "H100:8"], "$ sky jobs launch t0-3b.yaml"),
    ],
)
def test_a_dry_run_prints_what_it_would_submit(place, submitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    done = _launch(*place, *JOB, "--env", "A=x y", "--dry_run")
    assert done.exception is None, done.output
    assert submitted in done.stdout
    assert "python -m t5x.train --gin_file=t0_3b.gin" in done.stdout
    assert "x y" in done.stdout
    assert not list(tmp_path.iterdir())


def test_options_win_over_the_job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("{name: a, gin_file: b.gin, model_dir: c, mode: eval}\n")
    done = _launch("gke", "--job", str(path), "--gin_file", "d.gin", "--dry_run")
    assert "t5x.eval --gin_file=d.gin" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gke", "--name", "a", "--dry_run"], "gin_file is missing"),
        (["gke", *JOB, "--env", "A", "--dry_run"], "--env A must be NAME=VALUE"),
        (["tpu", "tail", "--zone", "z", "--dry_run"], "--name is missing"),
    ],
)
def test_mistakes_are_named(words, message):
    assert message in str(_launch(*words).exception)


def test_slurm_installs_nothing():
    assert _launch("slurm", *JOB, "--package", "t0x").exit_code == 2


def test_a_dry_run_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from t0x import cli; "
        "cli.app(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'jax', 'numpy', 'tensorflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "launch", "gke", *JOB, "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "cloud.google.com/gke-tpu-topology: 16x16" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
