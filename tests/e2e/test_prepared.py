"""Prepared once, trained from, stopped, resumed: through the real commands."""

import json

import pytest

pytestmark = pytest.mark.slow
SMALL = [
    "--gin.BATCH_SIZE=8",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=32",
    "--gin.train.stats_period=1",
    "--gin.SaveCheckpointConfig.period=3",
]
RUN = ["--steps=6", "--batch_size=8", "--input_length=128", "--target_length=32"]


@pytest.fixture(scope="module")
def store(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "mini"
    prepare = ["prepare", "--mixture=mini_train", f"--out={folder}", "--processes=1", *RUN]
    commands.run("t0x", *prepare)
    return folder


def _train(model_dir, store, steps):
    return (
        "t5x.train",
        "--gin_file=t0_mini.gin",
        f"--gin.MODEL_DIR='{model_dir}'",
        f"--gin.PREPARED_DIR='{store}'",
        f"--gin.TRAIN_STEPS={steps}",
        *SMALL,
    )


def _rows(model_dir):
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def _losses(model_dir):
    return {row["step"]: row["loss"] for row in _rows(model_dir) if "loss" in row}


def _counts(model_dir):
    return {row["step"]: row for row in _rows(model_dir) if "data/examples" in row}


def test_a_run_from_a_prepared_store_resumes_bit_for_bit_and_counts_on(commands, store, tmp_path):
    done = commands.run(*_train(tmp_path / "whole", store, 6))
    assert "mini_train (48 tasks)" in done.stdout
    assert "examples of 48 tasks, 0 truncated; padding" in done.stdout
    commands.run(*_train(tmp_path / "resumed", store, 3))
    done = commands.run(*_train(tmp_path / "resumed", store, 6))
    assert "3 to 6, resumed from" in done.stdout
    assert _losses(tmp_path / "resumed") == _losses(tmp_path / "whole")
    assert _counts(tmp_path / "resumed") == _counts(tmp_path / "whole")
    last = _counts(tmp_path / "whole")[6]
    of_tasks = {name: n for name, n in last.items() if name.startswith("data/examples/")}
    assert len(of_tasks) == 48
    assert sum(of_tasks.values()) == last["data/examples"] > 48
    assert 0 < last["data/encoder_padding"] < 0.1


def test_a_store_of_something_else_is_named(commands, store, tmp_path):
    command = _train(tmp_path, store, 6)
    done = commands.run(*command, "--gin.MIXTURE_OR_TASK_NAME='other'", ok=False)
    assert done.returncode == 1
    assert "holds mini_train, but MIXTURE_OR_TASK_NAME = 'other'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = commands.run(*command, f"--gin.PREPARED_DIR='{tmp_path / 'none'}'", ok=False)
    assert "manifest.json does not exist" in done.stderr
