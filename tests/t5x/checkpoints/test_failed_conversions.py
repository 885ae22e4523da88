"""Conversions that fail: everything is checked before anything bears its final name."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from t0x.cli import app
from t5x.checkpoints.formats.huggingface import ModelSize, make_config, weights

SMALL = ModelSize(64, 16, 3, 4, 24, 1, 3)


def make_model(directory, size=SMALL):
    """A Hugging Face directory of random weights; returns them."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    tensors = {
        weight.name: rng.normal(size=weight.their_shape).astype(np.float32)
        for weight in weights(size).values()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(make_config(size, np.dtype(np.float32))))
    return tensors


def run(*arguments):
    """Runs `t0x convert`."""
    result = CliRunner().invoke(app, ["convert", *(str(argument) for argument in arguments)])
    if result.exception:
        raise result.exception


def test_nothing_appears_where_the_vocabulary_is_damaged(tmp_path):
    make_model(tmp_path / "hf")
    (tmp_path / "hf/spiece.model").write_bytes(b"half a model")
    with pytest.raises(ValueError, match=r"hf/spiece.model is no SentencePiece model, or damaged"):
        run(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


WEIGHT = "decoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("bad", "dtype", "message"),
    [
        (1e5, "float16", "holds 100000, and float16 ends at 65504: choose --dtype bfloat16"),
        (-np.inf, "bfloat16", "holds infinite numbers; give --allow_non_finite"),
        (np.nan, "float32", "holds NaN; give --allow_non_finite"),
    ],
)
@pytest.mark.parametrize("way", ["import", "export", "average"])
def test_weights_that_are_no_numbers_are_named(tmp_path, bad, dtype, message, way):
    tensors = make_model(tmp_path / "hf")
    tensors[WEIGHT][1, 2] = bad
    save_file(tensors, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    arguments = [tmp_path / "hf", tmp_path / "out", "--dtype", dtype]
    if way == "export":
        run(tmp_path / "hf", tmp_path / "run", "--allow_non_finite")
        arguments[0] = tmp_path / "run"
    if way == "average":
        arguments = ["--average", tmp_path / "hf", *arguments]
    with pytest.raises(ValueError, match=f"decoder/layers_1/self_attention/query/kernel {message}"):
        run(*arguments)
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(*arguments, "--allow_non_finite")
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["import", "export", "average"])
def test_a_full_disk_leaves_nothing(tmp_path, commands, full_disk, way):
    make_model(tmp_path / "hf", ModelSize(4096, 128, 3, 4, 24, 1, 3))
    source = tmp_path / "hf"
    if way == "export":
        run(source, tmp_path / "run")
        source = tmp_path / "run"
    average = ["--average", source] if way == "average" else []
    done = commands.run("t0x", "convert", *average, source, full_disk / "out", ok=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr
    assert str(full_disk) in done.stderr
    assert not list(full_disk.iterdir())
