"""Models between Hugging Face's layout and checkpoints."""

import functools
import hashlib
import importlib.util
import json
import shutil
import types
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file
from sentencepiece import SentencePieceProcessor
from typer.testing import CliRunner

from t0x.cli import app
from t5x import adafactor, checkpoints, gin_utils, models, partitioning
from t5x.checkpoints import restoring
from t5x.checkpoints.configs import RestoreCheckpointConfig
from t5x.checkpoints.formats import huggingface, stores
from t5x.checkpoints.formats.huggingface import ModelSize, make_config, weights
from t5x.checkpoints.formats.safetensors import TensorFiles
from t5x.checkpoints.formats.storage import Directory
from t5x.examples.t5 import network

UNEVEN = ModelSize(64, 16, 3, 4, 24, 1, 3)
GELU, SHAPE = ("gelu", "linear"), (64, 16, 3, 4, 24, 2, 2)
# Activations; logits from the embedding, scaled; a relative bias in every layer.
FAMILY = {
    "T5 1.0": ModelSize(*SHAPE, ("relu",), True, True),
    "T5 v1.1, tied": ModelSize(*SHAPE, GELU, True, False),
    "umT5": ModelSize(*SHAPE, relative_bias_per_layer=True),
    "umT5, tied": ModelSize(*SHAPE, GELU, True, True, True),
    "UL2": ModelSize(*SHAPE, ("silu", "linear")),
}
_PATH = Path(__file__).parents[3] / "benchmarks/convert_memory.py"
_SPEC = importlib.util.spec_from_file_location("convert_memory", _PATH)
convert_memory = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(convert_memory)


def make_model(directory, size=UNEVEN, dtype=np.float32, seed=0):
    """A Hugging Face directory of random weights, written by the safetensors library."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    tensors = {
        weight.name: (rng.normal(size=weight.their_shape) / 4).astype(dtype)
        for weight in weights(size).values()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(make_config(size, np.dtype(dtype))))
    return tensors


def run(*arguments):
    """Runs `t0x`; returns what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize("options", [[], ["--scanned"]], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_round_trip_is_byte_equal(tmp_path, options, dtype):
    make_model(tmp_path / "hf", dtype=dtype)
    output = run("convert", tmp_path / "hf", tmp_path / "run", *options)
    assert f"wrote {tmp_path}/run/checkpoint_0: " in output
    run("convert", tmp_path / "run", tmp_path / "back")
    for name in ("model.safetensors",):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    configs = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("hf", "back")]
    assert configs[0] == configs[1]
    assert (tmp_path / "back/generation_config.json").exists()


def check_equal(directory, expected):
    """Weights byte by byte, settings by what they say."""
    weights_file, config = "model.safetensors", "config.json"
    assert (directory / weights_file).read_bytes() == (expected / weights_file).read_bytes()
    assert json.loads((directory / config).read_text()) == json.loads(
        (expected / config).read_text()
    )


def examples():
    rng = np.random.default_rng(3)
    return rng.integers(2, 64, (2, 9)), rng.integers(2, 64, (2, 5))


def logits_of(tmp_path, size, options):
    """Logits of `examples` by the network, from what `t0x convert` makes of tmp_path/hf."""
    run("convert", tmp_path / "hf", tmp_path / "run", *options)
    contents = stores.open_checkpoint(str(tmp_path / "run/checkpoint_0"))
    params = {path[1:]: contents.read(path) for path in contents.arrays if path[0] == "target"}
    config = network.T5Config(**vars(size), dropout_rate=0.0, scan_layers=bool(options))
    inputs, targets = examples()
    apply = functools.partial(network.Transformer(config).apply, enable_dropout=False)
    return jax.jit(apply)(
        {"params": unflatten_dict(params)},
        jnp.asarray(inputs, jnp.int32),
        jnp.asarray(np.pad(targets, ((0, 0), (1, 0)))[:, :-1], jnp.int32),
        jnp.asarray(targets, jnp.int32),
    )


@pytest.mark.parametrize("options", [[], ["--scanned"]], ids=["unrolled", "scanned"])
def test_logits_are_those_of_transformers(tmp_path, options):
    """golden/hf_logits.npy: benchmarks/hf_logits.py (transformers 5.23.0, torch 2.15.0) on the
    directory of `make_model` and the rows of `examples`."""
    make_model(tmp_path / "hf")
    golden = np.load(Path(__file__).parents[1] / "golden/hf_logits.npy")
    logits = logits_of(tmp_path, UNEVEN, options)
    np.testing.assert_allclose(logits, golden, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, ["--scanned"] * (i % 2)) for i, name in enumerate(FAMILY)],
)
def test_the_whole_family_has_the_logits_of_transformers(tmp_path, name, options):
    """golden/hf_family_logits.npz: the same by transformers 5.24.0, torch 2.14.1."""
    size = FAMILY[name]
    make_model(tmp_path / "hf", size)
    golden = np.load(Path(__file__).parents[1] / "golden/hf_family_logits.npz")[name]
    logits = logits_of(tmp_path, size, options)
    np.testing.assert_allclose(logits, golden, rtol=0, atol=1e-4)
    run("convert", tmp_path / "run", tmp_path / "back")
    check_equal(tmp_path / "back", tmp_path / "hf")
    # Without what the import kept, from the arrays and config.gin alone.
    shutil.rmtree(tmp_path / "run/huggingface")
    run("convert", tmp_path / "run", tmp_path / "again")
    check_equal(tmp_path / "again", tmp_path / "hf")


def test_the_arrays_say_what_a_model_is_before_its_config_does(tmp_path):
    # As transformers 5.24 saves a T5 v1.1 whose head is its own.
    make_model(tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    said = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    file.write_text(json.dumps(config | said))
    assert "logits from lm_head.weight, not scaled" in run(
        "convert", tmp_path / "hf", tmp_path / "run"
    )
    run("convert", tmp_path / "run", tmp_path / "back")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["tie_word_embeddings"], back["scale_decoder_outputs"]) == (False, False)


def test_bytes_need_no_vocabulary(tmp_path):
    make_model(tmp_path / "hf", ModelSize(384, 16, 3, 4, 24, 2, 1))
    (tmp_path / "hf/tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    output = run("convert", tmp_path / "hf", tmp_path / "run")
    assert "VOCABULARY = @seqio.ByteVocabulary()" in (tmp_path / "run/config.gin").read_text()
    assert "spiece" not in output


@functools.cache
def make_initializer():
    optimizer_def = adafactor.Adafactor(
        0.01, logical_factor_rules=adafactor.standard_logical_factor_rules()
    )
    vocabulary = types.SimpleNamespace(eos_id=1)
    config = network.T5Config(**vars(UNEVEN), scan_layers=True)
    model = models.EncoderDecoderModel(
        network.Transformer(config), vocabulary, vocabulary, optimizer_def
    )
    lengths = {"encoder_input_tokens": (8, 4), "decoder_input_tokens": (8, 4)}
    rules = partitioning.standard_logical_axis_rules(1, 2)
    partitioner = partitioning.PjitPartitioner(1, logical_axis_rules=rules)
    initializer = restoring.TrainStateInitializer(
        optimizer_def, model.get_initial_variables, lengths, partitioner
    )
    return partitioner, initializer


def start_from(initializer, path):
    restore = RestoreCheckpointConfig(path=str(path), mode="specific", dtype="float32")
    return initializer.from_checkpoint([restore])


def test_initial_checkpoint_may_be_a_hugging_face_directory(tmp_path):
    tensors = make_model(tmp_path / "hf")
    _, initializer = make_initializer()
    state = start_from(initializer, tmp_path / "hf")
    assert int(state.step) == 0
    kernel = state.params["decoder"]["decoder"]["mlp"]["wo"]["kernel"]
    theirs = tensors["decoder.block.2.layer.2.DenseReluDense.wo.weight"]
    np.testing.assert_array_equal(kernel[:, 2], theirs.T)
    # Each device has its own columns; the optimizer state, which is not there, is new.
    assert kernel.addressable_shards[0].data.shape == (24, 3, 2)
    assert all(not np.any(x) for x in jax.tree.leaves(state.param_states))


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """A model of two tensors of 134 MB and small ones, in less than twice 134 MB."""
    size = ModelSize(65536, 512, 8, 64, 512, 1, 1)
    largest = size.vocab_size * size.emb_dim * 4
    tiny = convert_memory.round_trip(tmp_path, UNEVEN)
    figures = convert_memory.round_trip(tmp_path, size)
    assert figures["byte_equal"]
    for step in ("import", "export"):
        extra = figures[step]["peak_rss"] - tiny[step]["peak_rss"]
        assert extra < 2 * largest, f"{step}: {extra / largest:.2f} × the largest tensor"


def test_files_in_shards_and_their_damage(tmp_path):
    tensors = make_model(tmp_path / "hf")
    run("convert", tmp_path / "hf", tmp_path / "run")
    run("convert", tmp_path / "run", tmp_path / "back", "--max_file_size", "20KB")
    files = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 2
    loaded = {}
    for file in files:
        loaded |= load_file(tmp_path / "back" / file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
    reader = TensorFiles(Directory(tmp_path / "back"))
    rows = reader.read("lm_head.weight", slice(5, 9))
    np.testing.assert_array_equal(rows, tensors["lm_head.weight"][5:9])
    last = tmp_path / "back" / files[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"OUT_OF_RANGE|cannot satisfy"):
        run("convert", tmp_path / "back", tmp_path / "again")
    assert not list((tmp_path / "again").glob("*"))
    last.write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=f"{files[-1]} is not a whole safetensors file"):
        run("convert", tmp_path / "back", tmp_path / "again")
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[-1]} does not exist"):
        run("convert", tmp_path / "back", tmp_path / "again")


CONFIGS = {
    "one gate": ({"feed_forward_proj": "relu"}, r"lacks .*DenseReluDense\.wi\.weight"),
    "activation": ({"feed_forward_proj": "gelu"}, "the networks here have one of relu, gated-relu"),
    "foreign": (
        {"model_type": "bert"},
        "a model of type 'bert'; what can be read is the T5 family",
    ),
    "buckets": ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets = 64"),
    "dropout": ({"dropout_rate": "much"}, "config.json: dropout_rate = 'much' is no number"),
    "lacking": ({"d_ff": None}, "lacks d_ff"),
    "other shape": ({"d_ff": 32}, r"does not fit its config.json: .*wi_0.weight is \(24, 16\)"),
    "more layers": ({"num_layers": 2}, "lacks encoder.block.1.layer.0.SelfAttention.k.weight"),
    "fewer layers": ({"num_decoder_layers": 2}, "has decoder.block.2.*which T5 v1.1 has not"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_other_models_get_a_clear_answer(tmp_path, case):
    make_model(tmp_path / "hf")
    change, message = CONFIGS[case]
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        run("convert", tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pickles_are_refused(tmp_path):
    make_model(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights .*--allow_pickle"):
        run("convert", tmp_path / "hf", tmp_path / "run")


def test_a_second_embedding_that_differs_is_refused(tmp_path):
    tensors = make_model(tmp_path / "hf")
    copies = dict.fromkeys(huggingface.DUPLICATES, tensors["shared.weight"])
    save_file(tensors | copies, tmp_path / "hf/model.safetensors")
    run("convert", tmp_path / "hf", tmp_path / "run")
    copies["decoder.embed_tokens.weight"] = -tensors["shared.weight"]
    save_file(tensors | copies, tmp_path / "hf/model.safetensors")
    with pytest.raises(ValueError, match=r"decoder.embed_tokens.weight differs from shared.weight"):
        run("convert", tmp_path / "hf", tmp_path / "run2")


def test_average_is_the_mean(tmp_path):
    models_ = [make_model(tmp_path / f"hf{seed}", seed=seed) for seed in range(3)]
    for seed in range(3):
        run("convert", tmp_path / f"hf{seed}", tmp_path / f"run{seed}", "--step", seed)
    # Formats may be mixed.
    sources = [tmp_path / "run0", tmp_path / "run1/checkpoint_1", tmp_path / "hf2"]
    run("convert", "--average", *sources, tmp_path / "mean")
    run("convert", tmp_path / "mean/checkpoint_1", tmp_path / "back")
    mean = load_file(tmp_path / "back/model.safetensors")
    for name in mean:
        expected = np.mean([model[name].astype(np.float64) for model in models_], axis=0)
        np.testing.assert_allclose(mean[name], expected, rtol=1e-6, atol=1e-7)
    make_model(tmp_path / "other", ModelSize(64, 16, 3, 4, 24, 1, 2))
    with pytest.raises(ValueError, match="of different models: target/decoder/layers_2"):
        run("convert", "--average", tmp_path / "hf0", tmp_path / "other", tmp_path / "mean2")
    with pytest.raises(FileExistsError, match="exists; remove it or choose another"):
        run("convert", "--average", *sources, tmp_path / "mean")
    with pytest.raises(ValueError, match="give --average"):
        run("convert", *sources, tmp_path / "mean2")


def test_an_average_starts_a_run(tmp_path):
    """Averages of training checkpoints say that they have no optimizer state; training makes it."""
    partitioner, initializer = make_initializer()
    states = []
    for seed in (1, 2):
        make_model(tmp_path / f"hf{seed}", seed=seed)
        states.append(start_from(initializer, tmp_path / f"hf{seed}").replace_step(jnp.array(seed)))
    manager = checkpoints.OrbaxCheckpointManagerInterface(
        str(tmp_path / "run"), initializer.global_train_state_shape, partitioner
    )
    for state in states:
        manager.save(state)
    manager.close()
    (tmp_path / "run/config.gin").write_text("# the model\n")
    sources = [tmp_path / "run/checkpoint_1", tmp_path / "run/checkpoint_2"]
    output = run("convert", "--average", *sources, tmp_path / "mean")
    assert "optimizer state is left out of an average" in output
    assert (tmp_path / "mean/config.gin").read_text() == "# the model\n"
    (row,) = json.loads(run("checkpoints", "ls", tmp_path / "mean", "--json"))
    assert (row["step"], row["has_optimizer"]) == (2, False)
    mean = start_from(initializer, tmp_path / "mean/checkpoint_2")
    assert int(mean.step) == 2
    jax.tree.map(
        lambda x, a, b: np.testing.assert_allclose(x, (a + b) / 2, rtol=1e-5, atol=1e-7),
        *(state.state_dict()["target"] for state in (mean, *states)),
    )
    assert all(not np.any(x) for x in jax.tree.leaves(mean.param_states))


def test_tokenizer_is_built_and_kept(tmp_path):
    vocabulary = next((Path(__file__).parents[3] / "tasks/vocabularies").glob("*.model"))
    make_model(tmp_path / "hf", ModelSize(1792, 16, 3, 4, 24, 1, 1))
    run("convert", tmp_path / "hf", tmp_path / "run")
    output = run("convert", tmp_path / "run", tmp_path / "back", "--vocabulary", vocabulary)
    assert "no tokenizer" not in output
    pieces = SentencePieceProcessor(model_file=str(tmp_path / "back/spiece.model"))
    assert pieces.encode("Is it so?") == SentencePieceProcessor(str(vocabulary)).encode("Is it so?")
    config = json.loads((tmp_path / "back/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "T5Tokenizer"
    # Imported with its tokenizer, the model's gin settings name it and export gives it back.
    run("convert", tmp_path / "back", tmp_path / "run2")
    gin_text = (tmp_path / "run2/config.gin").read_text()
    assert f"sentencepiece_model_file = '{tmp_path}/run2/huggingface/spiece.model'" in gin_text
    run("convert", tmp_path / "run2", tmp_path / "back2")
    for name in ("spiece.model", "tokenizer_config.json"):
        assert (tmp_path / "back2" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_config_gin_builds_the_model(tmp_path):
    make_model(tmp_path / "hf")
    run("convert", tmp_path / "hf", tmp_path / "run")
    try:
        gin_utils.parse_gin_flags(
            gin_utils.find_search_paths(), [str(tmp_path / "run/config.gin")], []
        )
        config = gin.get_configurable(network.T5Config)()
    finally:
        gin.clear_config()
    for field, value in vars(UNEVEN).items():
        assert getattr(config, field) == value


def test_checkpoints_ls_and_inspect(tmp_path):
    tensors = make_model(tmp_path / "hf")
    for step in (3, 20):
        run("convert", tmp_path / "hf", tmp_path / "run", "--step", step, "--scanned")
    rows = json.loads(run("checkpoints", "ls", tmp_path / "run", "--json"))
    assert [row["step"] for row in rows] == [3, 20]
    count = sum(tensor.size for tensor in tensors.values())
    assert rows[0]["parameters"] == count
    assert (rows[0]["layout"], rows[0]["has_optimizer"]) == ("scanned", False)
    assert f"{count:,}" in run("checkpoints", "ls", tmp_path / "run")
    digests = []
    for path in ("run", "hf"):
        facts = json.loads(run("checkpoints", "inspect", tmp_path / path, "--hashes", "--json"))
        named = {array["path"]: array["sha256"] for array in facts["arrays"]}
        digests.append(named["target/token_embedder/embedding"])
    expected = hashlib.sha256(tensors["shared.weight"].tobytes()).hexdigest()
    assert digests == [expected] * 2
    table = run("checkpoints", "inspect", tmp_path / "run/checkpoint_3")
    assert "target/encoder/encoder/mlp/wo/kernel" in table
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        run("checkpoints", "ls", tmp_path)
