"""Gin files that others have written, or runs of older versions: they run as they are."""

import json
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "testdata"
ONE_DEVICE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def train(commands, folder, name):
    run = folder / "run"
    commands.run(
        "t5x.train",
        *(f"--gin_file={FILES / name}", f"--gin.MODEL_DIR='{run}'", "--gin.train.stats_period=1"),
        cwd=folder,
        environment={"XLA_FLAGS": ONE_DEVICE},
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return run, {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_a_configuration_that_an_older_version_left(commands, tmp_path):
    """The losses are those that the version which wrote it had, on one CPU device.

    It is the config.gin of version 0.1.0 before its modules moved into packages, and names classes
    that moved: checkpoints, evaluation, results, sources.
    """
    run, losses = train(commands, tmp_path, "older_config.gin")
    expected = {1: 511.839050, 2: 524.106201, 3: 492.173004, 4: 445.254089}
    assert losses == {step: pytest.approx(loss, rel=1e-4) for step, loss in expected.items()}
    # The best by loss, 4, and those of the period that it keeps.
    assert (run / "checkpoint_4").is_dir() and (run / "checkpoint_0").is_dir()
    results = run / "inference_eval/rank_classification/4"
    summary = json.loads((results / "mini_reviews_options_first_score_eval.json").read_text())
    assert summary["examples"] > 0
    config = (run / "config.gin").read_text()
    bindings = set((FILES / "older_config.gin").read_text().splitlines())
    lost = bindings - set(config.splitlines())
    assert lost == {"MODEL_DIR = 'run'"}


@pytest.mark.slow
def test_a_gin_file_in_the_style_of_upstreams_users(commands, tmp_path):
    run, losses = train(commands, tmp_path, "upstream_style.gin")
    assert sorted(losses) == [1, 2]
    assert (run / "checkpoint_2").is_dir()
    assert "@t5x.checkpoints.SaveBestCheckpointer" in (run / "config.gin").read_text()
