"""What is written to a prepared store is read back, and damage is named."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x.data import records, store

TOKENS = st.lists(st.integers(0, 65535), max_size=20)

EXAMPLES = {
    "apples": [(list(range(i)), [i, 1]) for i in range(1, 12)],
    "pears": [([40000 + i], [i, i, 1]) for i in range(5)],
}


@given(
    TOKENS,
    TOKENS,
    st.sampled_from(["uint16", "uint32"]),
    st.none() | st.tuples(st.text(), st.text()),
)
def test_an_example_is_read_back(inputs, targets, dtype, texts):
    texts_given = texts
    if texts and any("\ud800" <= c <= "\udfff" for t in texts for c in t):
        texts_given = None
    record = records.encode_example(np.array(inputs), np.array(targets), dtype, texts_given)
    example = records.decode_example(record, dtype, texts_given is not None)
    assert (example.inputs.tolist(), example.targets.tolist()) == (inputs, targets)
    assert example.texts == texts_given
    for end in {0, 4, len(record) - 1}:
        with pytest.raises(store.StoreError, match="bytes"):
            records.decode_example(record[:end], dtype, texts_given is not None)


def test_an_id_too_large_is_an_error():
    with pytest.raises(store.StoreError, match="65536 do not fit uint16"):
        records.encode_example(np.array([65536]), np.array([1]), "uint16")


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=50))
def test_lengths_are_counted_by_their_bits(lengths):
    counts = store.count_lengths(np.array(lengths))
    assert sum(counts) == len(lengths)
    assert all(n == sum(x.bit_length() == bits for x in lengths) for bits, n in enumerate(counts))


@pytest.mark.parametrize("text", [False, True])
def test_a_store_is_read_back(tmp_path, text, write_store):
    manifest = write_store(tmp_path, EXAMPLES, text=text)
    assert store.read_manifest(tmp_path) == manifest
    assert store.read_entry(tmp_path, "pears", "train") == manifest.entries[1]
    assert store.read_entry(tmp_path, "pears", "test") is None
    own = records.ExampleReader(tmp_path, manifest, manifest.entries, most_open=1)
    for reader in (own, pickle.loads(pickle.dumps(own))):
        for number, (task, examples) in enumerate(EXAMPLES.items()):
            order = [*examples[0::2], *examples[1::2]]  # by shards
            places = np.random.default_rng(0).permutation(len(order))
            read = reader.read(number, places)
            assert [(e.inputs.tolist(), e.targets.tolist()) for e in read] == [
                order[place] for place in places
            ]
            if text:
                assert read[0].texts == tuple(map(str, order[places[0]]))
            lengths = store.read_lengths(tmp_path, manifest.entries[number])
            assert lengths.tolist() == [[len(a), len(b)] for a, b in order]
            path = tmp_path / task / store.name_shard("train", 0, 2)
            assert records.measure_shard(path, "uint16", text).tolist() == [
                [len(a), len(b)] for a, b in examples[0::2]
            ]
        with pytest.raises(IndexError, match="pears has 5 examples"):
            reader.read(1, [5])


def test_the_same_examples_make_the_same_files(tmp_path, write_store):
    one, two = (write_store(tmp_path / name, EXAMPLES) for name in "ab")
    assert one == two


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyError),
        records.ShardWriter(tmp_path, "apples", "train", 0, 1, "uint16") as writer,
    ):
        writer.write([1], [2])
        raise KeyError
    assert not list((tmp_path / "apples").iterdir())


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_damage_is_found_and_named(tmp_path, harm, write_store):
    manifest = write_store(tmp_path, EXAMPLES)
    assert not store.find_damage(tmp_path, manifest.entries[0])
    path = tmp_path / "apples" / store.name_shard("train", 1, 2)
    content = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert store.find_damage(tmp_path, manifest.entries[0]) == [path.name]
    reader = records.ExampleReader(tmp_path, manifest, manifest.entries)
    with pytest.raises(store.StoreError, match=rf"{path.name} is .*torn.*prepare apples again"):
        reader.read(0, range(11))
    with pytest.raises(store.StoreError, match=path.name):
        records.measure_shard(path, "uint16")


def test_torn_lengths_are_named(tmp_path, write_store):
    manifest = write_store(tmp_path, EXAMPLES)
    path = tmp_path / "pears" / "train.lengths.npy"
    path.write_bytes(path.read_bytes()[:-9])
    assert store.find_damage(tmp_path, manifest.entries[1]) == [path.name]
    with pytest.raises(store.StoreError, match=r"train.lengths.npy is missing or torn"):
        store.read_lengths(tmp_path, manifest.entries[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=9), r"format 9, this version reads 1"),
        (lambda m: m.update(colour="red"), r"not the fields of Manifest: \['colour'\]"),
        (lambda m: m.pop("text"), r"not the fields of Manifest: \['text'\]"),
        (lambda m: m["entries"][1].update(rate="2"), r"entries \[1\] rate is '2', expected float"),
        (lambda m: m["entries"][0].update(examples=10), "apples has 10 examples, its shards 11"),
        (lambda m: m["entries"][0].update(examples=-1), "examples is -1, expected int of at least"),
        (lambda m: m["entries"][0].update(rate=float("nan")), "rate is nan, expected float"),
        (lambda m: m.update(token_dtype="int8"), "token_dtype is 'int8'"),
        (lambda m: m["features"].pop("inputs"), r"features are \['targets'\]"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error(tmp_path, change, message, write_store):
    write_store(tmp_path, EXAMPLES)
    path = tmp_path / store.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(store.StoreError, match=message):
        store.read_manifest(tmp_path)


def test_what_is_no_store_is_an_error(tmp_path):
    with pytest.raises(store.StoreError, match=r"manifest.json does not exist"):
        store.read_manifest(tmp_path)
    (tmp_path / store.MANIFEST).write_text('{"format": 1,')
    with pytest.raises(store.StoreError, match=r"manifest.json is not JSON"):
        store.read_manifest(tmp_path)
    for name in ("", "../up", ".hidden", "a/b"):
        with pytest.raises(store.StoreError, match="cannot name a file"):
            store.place_entry(tmp_path, name, "train")


def test_the_missing_share_is_of_all_rates(tmp_path, write_store):
    manifest = write_store(tmp_path, EXAMPLES)
    missing = store.Missing(task="plums", split="train", rate=4.0, reason="no network")
    manifest = dataclasses.replace(manifest, missing=(missing,))
    store.write_manifest(tmp_path, manifest)
    assert store.read_manifest(tmp_path).missing_share == 4 / (11 + 5 + 4)
    assert [e.task for e in manifest.of_split("train")] == ["apples", "pears"]
