"""Rows from local files, TFDS and the hub."""

import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import gin
import numpy as np
import pytest

from t0x import sources


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_json_lines_give_every_row_in_any_order(data_dir):
    rows = [{"text": f"row {i} with ü and a\nline break", "label": i} for i in range(300)]
    write_rows(data_dir / "toy/default/train.jsonl", rows)
    opened = sources.open_rows("toy", None, "train")
    assert len(opened) == 300
    assert [opened[i] for i in (299, 0, 17, -1)] == [rows[i] for i in (299, 0, 17, -1)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(opened.__getitem__, range(300))) == rows
    with pytest.raises(IndexError):
        opened[300]


def test_a_file_is_opened_once_and_again_when_it_changed(data_dir):
    path = data_dir / "toy/sub/test.jsonl"
    write_rows(path, [{"a": 1}])
    first = sources.open_rows("toy", "sub", "test")
    assert sources.open_rows("toy", "sub", "test") is first
    write_rows(path, [{"a": 1}, {"a": 2}])
    assert len(sources.open_rows("toy", "sub", "test")) == 2


def test_bad_lines_are_named_by_number(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2\n[3]\n{"a": 4}\n\xff\xfe\n')
    with pytest.raises(ValueError, match=r"3 lines are no JSON object: line 3 .*line 4 .*line 6"):
        len(sources.open_file(path))
    skipping = sources.open_file(path, bad_lines="skip")
    assert list(skipping) == [{"a": 1}, {"a": 4}]
    assert skipping.bad_line_numbers == (3, 4, 6)


def test_bad_lines_policy_is_checked(tmp_path):
    with pytest.raises(ValueError, match="'error' or 'skip', not 'maybe'"):
        sources.JsonLines(tmp_path / "train.jsonl", bad_lines="maybe")


def test_parquet_gives_the_same_rows(data_dir):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"t{i}", "choices": {"label": ["A", "B"], "n": [i, 2]}} for i in range(5)]
    folder = data_dir / "toy/default"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "validation.parquet")
    opened = sources.open_rows("toy", None, "validation")
    assert list(opened) == rows
    assert opened[-1] == rows[-1]


def test_what_is_missing_everywhere_says_what_was_tried_and_what_to_do(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError) as caught:
        sources.open_rows("toy", "sub", "train", hub_id="org/toy")
    message = str(caught.value)
    for part in ("toy/sub, split train", "toy/sub/train", "TFDS", "huggingface__org__toy", "[hub]"):
        assert part in message
    assert "\n" not in message


def test_without_a_data_directory_the_variable_is_named(monkeypatch):
    monkeypatch.delenv(sources.DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"\$T0X_DATA_DIR is not set"):
        sources.open_rows("toy", None, "train", settings=sources.Settings(order=("local",)))


def test_the_order_can_be_set_for_one_dataset_from_gin(data_dir):
    write_rows(data_dir / "toy/default/train.jsonl", [{"a": 1}])
    write_rows(data_dir / "other/default/train.jsonl", [{"a": 1}])
    with gin.unlock_config():
        gin.bind_parameter("t0x.sources.Settings.dataset_order", {"toy": ("tfds",)})
        try:
            with pytest.raises(FileNotFoundError, match="tried TFDS"):
                sources.open_rows("toy", None, "train")
            assert len(sources.open_rows("other", None, "train")) == 1
        finally:
            gin.clear_config()
    with pytest.raises(ValueError, match="'web' is none of local, tfds, hub"):
        sources.open_rows("toy", None, "train", settings=sources.Settings(order=("web",)))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_prepared_tfds_rows_look_like_the_hubs(data_dir, file_format):
    # tensorflow_datasets needs it to write a dataset, and does not require it.
    pytest.importorskip("importlib_resources")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    texts = [f"row {i}" for i in range(4)]
    pairs = np.array([[i, 1] for i in range(4)], np.int64)
    split = tf.data.Dataset.from_tensor_slices({"text": texts, "label": pairs})
    pair = tfds.features.Tensor(shape=(2,), dtype=np.int64)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="huggingface__org__toy",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": pair}),
        split_datasets={"train": split},
        data_dir=data_dir / "tfds",
        file_format=file_format,
    )
    opened = sources.open_rows("toy", None, "train", hub_id="org/toy")
    assert len(opened) == 4
    expected = [{"text": text, "label": [i, 1]} for i, text in enumerate(texts)]
    assert sorted(opened, key=lambda row: row["text"]) == expected
    with pytest.raises(FileNotFoundError, match="tried local"):
        sources.open_rows(
            "toy",
            None,
            "test",
            hub_id="org/toy",
            settings=sources.Settings(order=("local", "tfds")),
        )


def test_the_hub_is_asked_last_under_its_present_name(data_dir, monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if split != "train":
            raise ValueError(f"Unknown split\n{split}")
        return [{"text": "from the hub"}]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert sources.open_rows("toy", "sub", "train", "org/toy")[0] == {"text": "from the hub"}
    assert asked == [("org/toy", "sub", "train")]
    with pytest.raises(FileNotFoundError, match=r"the hub \(org/toy: Unknown split test\)"):
        sources.open_rows("toy", "sub", "test", "org/toy")


def test_hyphens_in_field_names_become_underscores():
    row = {"attitude-towards": 1, "plain": {"in-side": 2}}
    assert sources.underscore_fields(row) == {"attitude_towards": 1, "plain": {"in-side": 2}}
