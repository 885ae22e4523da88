"""Checkpoints that came from somewhere: their files name no others, and are what they say."""

import json
import os
import struct

import msgpack
import pytest

from t5x.checkpoints.formats import stores
from t5x.checkpoints.formats.failures import UnreadableCheckpointError
from t5x.checkpoints.formats.huggingface import model_size
from t5x.checkpoints.formats.safetensors import TensorFiles
from t5x.checkpoints.formats.storage import Directory


def write_safetensors(path, offsets, size, shape=(2,)):
    header = {
        f"t{number}": {"dtype": "F32", "shape": list(shape), "data_offsets": list(pair)}
        for number, pair in enumerate(offsets)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def test_tensors_that_follow_one_another_are_read(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", [(8, 16), (0, 8)], 16)
    assert TensorFiles(Directory(tmp_path)).read("t0").tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("offsets", "size", "message"),
    [
        ([(0, 8), (4, 12)], 12, "overlap at byte 4"),
        ([(0, 8), (0, 8)], 8, "overlap at byte 0"),
        ([(0, 8), (12, 20)], 20, "leave a gap at byte 8"),
        ([(4, 12)], 12, "leave a gap at byte 0"),
        ([(-8, 0)], 8, "overlap at byte -8"),
        ([(8, 0)], 8, "a gap"),
        ([(0, 8)], 12, "bytes follow"),
        ([(0, 8)], 4, "not a whole safetensors file"),
        ([("0", "8")], 8, "not a whole safetensors file"),
    ],
)
def test_tensors_elsewhere_are_refused(tmp_path, offsets, size, message):
    write_safetensors(tmp_path / "model.safetensors", offsets, size)
    with pytest.raises(ValueError, match=message) as caught:
        TensorFiles(Directory(tmp_path))
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("shape", [(-1, -2), ("2",), (2.0,), (True, 2)])
def test_shape_of_no_array_is_refused(tmp_path, shape):
    write_safetensors(tmp_path / "model.safetensors", [(0, 8)], 8, shape)
    with pytest.raises(ValueError, match="t0 has shape"):
        TensorFiles(Directory(tmp_path))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", 3, "a/b"])
def test_index_names_files_beside_it(tmp_path, name):
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "model.safetensors", [(0, 8)], 8)
    index = json.dumps({"weight_map": {"t0": name}})
    (tmp_path / "in/model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="which is no file's name"):
        TensorFiles(Directory(tmp_path / "in"))


def legacy(path, spec):
    path.mkdir()
    content = {"version": 3, "optimizer": {"target": {"w": spec}, "state": {"step": 1}}}
    (path / "checkpoint").write_bytes(msgpack.packb(content))
    return str(path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kvstore": {"path": "../../etc"}}, "names '../../etc', which is not in it"),
        ({"kvstore": {"path": "a/../../b"}}, "which is not in it"),
        ({"kvstore": {"path": 3}}, "without a path"),
        ({"kvstore": []}, "without a path"),
        ({"driver": "json", "kvstore": {"path": "a"}}, "is no zarr array"),
        ({"metadata": 1, "kvstore": {"path": "a"}}, "is no zarr array"),
    ],
)
def test_legacy_arrays_lie_in_their_folder(tmp_path, spec, message):
    spec = {"driver": "zarr", "metadata": {}, **spec}
    with pytest.raises(UnreadableCheckpointError, match=message):
        stores.open_checkpoint(legacy(tmp_path / "checkpoint_1", spec))


@pytest.mark.parametrize(
    "metadata",
    [
        "[" * 100_000,
        json.dumps({"tree_metadata": {"(" * 5000: {"value_metadata": {}}}}),
        json.dumps({"tree_metadata": {"('target',)": {"value_metadata": "x"}}}),
        json.dumps({"tree_metadata": {"('a', '/../../etc')": {"value_metadata": {}}}}),
        json.dumps({"tree_metadata": [1]}),
        "\0",
    ],
)
def test_malformed_metadata_names_its_file(tmp_path, metadata):
    (tmp_path / "_METADATA").write_text(metadata)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        stores.open_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pipe_in_a_files_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UnreadableCheckpointError, match=r"config\.json is no file"):
        stores.open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 10**9), ("num_layers", True), ("d_model", -1), ("num_decoder_layers", 1e9)],
)
def test_sizes_that_no_model_has(field, value):
    sizes = dict.fromkeys(("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers"), 8)
    config = {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    assert model_size(config | sizes, "config.json").emb_dim == 8
    with pytest.raises(ValueError, match=f"config.json has {field}"):
        model_size(config | sizes | {field: value}, "config.json")
