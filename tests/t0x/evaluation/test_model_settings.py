"""A checkpoint's own config.gin is data: it names nothing that would run."""

import os
import textwrap
from pathlib import Path

import pytest

from t0x.evaluation.model_settings import read_model

ROOT = Path(__file__).parents[3]
MODEL = """
from __gin__ import dynamic_registration
import __main__ as train_script
import seqio
from t5x import adafactor
from t5x import models
from t5x.examples.t5 import network
DROPOUT_RATE = 0.1
OPTIMIZER = @adafactor.Adafactor()
VOCABULARY = @seqio.ByteVocabulary()
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel.module = @network.Transformer()
models.EncoderDecoderModel.optimizer_def = %OPTIMIZER
models.EncoderDecoderModel.input_vocabulary = %VOCABULARY
network.T5Config.mlp_activations = ('gelu', 'linear')
train_script.train.model = %MODEL
train/utils.DatasetConfig.module = 'os'
"""


def read(text: str, path: str = "config.gin") -> str:
    return read_model(path, [str(ROOT)], text)


def test_the_model_is_kept_and_nothing_else():
    kept = read(MODEL)
    assert "models.EncoderDecoderModel.module = @network.Transformer()\n" in kept
    assert "network.T5Config.mlp_activations = ('gelu', 'linear')\n" in kept
    assert "VOCABULARY = @seqio.ByteVocabulary()\n" in kept
    for foreign in ("adafactor", "OPTIMIZER", "train", "DatasetConfig", "__main__"):
        assert foreign not in kept


def test_included_packaged_file_is_read_as_data_too():
    kept = read("include 't5x/examples/t5/t5_1_1/small.gin'\nDROPOUT_RATE = 0.0\n")
    assert "network.T5Config.emb_dim = 512\n" in kept
    assert "network.T5Config.vocab_size = 32128\n" in kept  # of base.gin, which small.gin includes
    assert "include" not in kept


def test_a_model_of_scalable_t5_is_that_networks():
    umt5 = """
        include 't5x/examples/scalable_t5/umt5/pretrain_small.gin'
        include 't5x/examples/scalable_t5/local_tiny.gin'
        import seqio
        VOCABULARY = @seqio.ByteVocabulary()
    """
    kept = read(textwrap.dedent(umt5))
    assert "from t5x.examples.scalable_t5 import network\n" in kept
    assert "from t5x.examples.t5 import network" not in kept
    assert "network.T5Config.scan_layers = True\n" in kept
    with pytest.raises(ValueError, match="emb_dim = 0 is not from 1"):
        read(MODEL.replace("t5 import", "scalable_t5 import") + "network.T5Config.emb_dim = 0")
    with pytest.raises(ValueError, match=r"imports both t5x\.examples\.t5\.network and"):
        read(MODEL + textwrap.dedent(umt5))


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nX = @subprocess.getoutput()",
        "import subprocess\n@subprocess.getoutput.cmd = 'touch pwned'",
        "import subprocess\nsubprocess.getoutput.cmd = 'touch pwned'",
        "import os as seqio\nX = @seqio.ByteVocabulary()",
        "from t5x import utils\nX = @utils.os.system()\nutils.os.system.command = 'touch pwned'",
        "a/models.EncoderDecoderModel.module = @b/seqio.ByteVocabulary()",
    ],
)
def test_what_is_not_about_the_model_is_left_out(text):
    try:
        kept = read(text)
    except ValueError as error:
        assert "is no gin" in str(error)
        return
    for foreign in ("subprocess", "os.", "touch", "@"):
        assert foreign not in kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL.replace("@network.Transformer", "@os.system"), "names @os.system"),
        (MODEL.replace("@network.Transformer", "@models.os.a"), r"config.gin:\d+: .*@models.os"),
        (MODEL.replace("@seqio.ByteVocabulary", "@evil.vocabulary"), "names %VOCABULARY"),
        ("include '/etc/passwd'", "config.gin:1: include '/etc/passwd' is no file of the"),
        ("include '../secret.gin'", "is no file of the installed packages"),
        ("include 't5x/../../secret.gin'", "is no file of the installed packages"),
        (MODEL + "network.T5Config.num_encoder_layers = 1e9", "num_encoder_layers = 1000000000.0"),
        (MODEL + "N = 1000000000\nnetwork.T5Config.num_decoder_layers = %N", "from 1 to 1,000"),
        (MODEL + "network.T5Config.emb_dim = -1", "emb_dim = -1 is not from 1"),
        ("x = " + "[" * 100_000, "config.gin is no gin"),
        ("x = \0", "config.gin is no gin"),
        ("MODEL = ", "config.gin is no gin"),
    ],
)  # fmt: skip
def test_what_is_refused_names_file_and_statement(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_odd_files_end_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("pipe", "no file"), ("large", "no file of at"), ("binary", "no text")):
        with pytest.raises(ValueError, match=message):
            read_model(str(tmp_path / name), [])
    vocabulary = (
        f"import seqio\nseqio.SentencePieceVocabulary.sentencepiece_model_file = '{tmp_path}/pipe'"
    )
    with pytest.raises(ValueError, match="is no file"):
        read(vocabulary)
