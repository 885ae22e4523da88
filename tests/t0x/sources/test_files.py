"""Rows as files have them: what a template sees is what `datasets` gives."""

import datetime
import decimal
import gzip
import json
import os

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from t0x import sources

TABLE = {
    "int8": pyarrow.array([1, -1, None], pyarrow.int8()),
    "uint64": pyarrow.array([2**64 - 1, 0, None], pyarrow.uint64()),
    "half": pyarrow.array(np.array([1.5, 2, 3], np.float16)),
    "float": pyarrow.array([0.1, float("nan"), float("inf")], pyarrow.float32()),
    "double": pyarrow.array([1.0, None, -0.0]),
    "bool": pyarrow.array([True, None, False]),
    "null": pyarrow.nulls(3),
    "date": pyarrow.array([datetime.date(2020, 1, 2), None, datetime.date(1, 1, 1)]),
    "seconds": pyarrow.array([datetime.datetime(2020, 1, 2), None, None], pyarrow.timestamp("s")),
    "nanoseconds": pyarrow.array([1577934245123456789, None, 0], pyarrow.timestamp("ns")),
    "zoned": pyarrow.array([datetime.datetime(2020, 1, 2)] * 3, pyarrow.timestamp("us", "UTC")),
    "time": pyarrow.array([datetime.time(1, 2, 3), None, None], pyarrow.time64("us")),
    "duration": pyarrow.array([datetime.timedelta(1), None, None], pyarrow.duration("us")),
    "decimal": pyarrow.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")]),
    "large string": pyarrow.array(["a", None, "c"], pyarrow.large_string()),
    "string view": pyarrow.array(["a", None, "c"], pyarrow.string_view()),
    "dictionary": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
    "list of structs": pyarrow.array([[{"x": 1, "y": "p"}, {"x": None, "y": "q"}], [], None]),
    "struct of lists": pyarrow.array([{"x": [1, 2], "y": ["p", None]}, {"x": [], "y": None}, None]),
    "large list": pyarrow.array([[1, 2], [], None], pyarrow.large_list(pyarrow.int64())),
    "list of two": pyarrow.array([[1, 2], [3, 4], None], pyarrow.list_(pyarrow.int64(), 2)),
    "lists of lists": pyarrow.array([[[1], [2, 3]], [], None]),
    "with.dot": pyarrow.array([1, 2, 3]),
}
LINES = {
    "whole and broken": '{"a": 1, "b": 1}\n{"a": 2.5, "b": 2}\n',
    "floats": '{"label": 1.0}\n{"label": -1.0}\n',
    "missing fields": '{"a": 1}\n{"b": "x"}\n{}\n',
    "nested nulls": '{"a": [null, 1], "b": {"c": null}}\n{"a": null, "b": null}\n',
    "NaN": '{"a": NaN}\n{"a": 1}\n',
    "infinite": '{"a": Infinity}\n{"a": -Infinity}\n',
    "64 bits": '{"a": 9223372036854775807}\n{"a": -1}\n',
    "beyond 64 bits": '{"a": 18446744073709551616}\n{"a": 1}\n',
    "byte order mark": '\ufeff{"a": 1}\n{"a": 2}\n',
    "CR LF": '{"a": 1}\r\n\r\n{"a": 2}\r\n',
    "mixed kinds": '{"a": 1}\n{"a": "x"}\n{"a": true}\n',
    "empty lists": '{"a": []}\n{"a": [1.5]}\n',
    "records": '{"a": [{"x": 1, "y": "p"}], "b": {"x": [1, 2]}}\n',
    "NUL": '{"a": "x\\u0000y\\ud83d\\ude00"}\n',
    "an array": '[{"a": 1}, {"a": 2.0}]',
    "an array on lines": '\ufeff[\n {"a": "x"},\n\n {"a": [1]}\n]\n',
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Rows as `datasets` gives them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def load(kind, path):
        rows = datasets.load_dataset(
            kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        return list(rows)

    return load


def test_parquet_gives_what_datasets_gives(tmp_path, load):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table(TABLE), path)
    ours, theirs = list(sources.open_file(path)), load("parquet", path)
    for row, other in zip(ours, theirs, strict=True):  # a template sees what pandas' times print
        assert str(row.pop("nanoseconds")) == str(other.pop("nanoseconds"))
    # NaN is not equal to itself.
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", LINES)
def test_json_gives_what_datasets_gives(tmp_path, load, name):
    path = tmp_path / ("rows.json" if "array" in name else "rows.jsonl")
    path.write_text(LINES[name], encoding="utf-8", newline="")
    assert repr(list(sources.open_file(path))) == repr(load("json", path))


@pytest.mark.parametrize("line", ['{"a": 1, "a": 2}', '{"a": "\\ud83d"}', '{"a": 1e999}'])
def test_what_datasets_refuses_is_refused(tmp_path, load, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: 1 line is no row: line 2 \("):
        len(sources.open_file(path))
    with pytest.raises(Exception, match="error occurred while generating"):
        load("json", path)


def test_bytes_are_texts_where_they_are_utf8(tmp_path):
    path = tmp_path / "rows.parquet"
    kinds = (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary(2))
    columns = {str(kind): pyarrow.array(["é".encode(), b"\xff\xfe"], kind) for kind in kinds}
    columns["inside"] = pyarrow.array([["é".encode()], [b"\xff\xfe"]])
    parquet.write_table(pyarrow.table(columns), path)
    for name in columns:
        values = [row[name] for row in sources.open_file(path)]
        wrapped = name == "inside"
        assert values == ([["é"], [b"\xff\xfe"]] if wrapped else ["é", b"\xff\xfe"])


def test_only_selected_columns_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"text": ["a", "b"], "food-id": [1, 2], "image": [b"\xff", b"\xfe"]}
    parquet.write_table(pyarrow.table(columns), path)
    rows = sources.open_file(path)
    chosen = sources.select(rows, {"text", "food_id", "unknown"})
    assert list(chosen) == [{"text": "a", "food-id": 1}, {"text": "b", "food-id": 2}]
    assert set(rows._columns) == {"text", "food-id"}
    assert rows[1] == {"text": "b", "food-id": 2, "image": b"\xfe"}


def test_a_torn_parquet_file_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 99] * 99}), path, compression="none")
    whole = path.read_bytes()
    for torn in (whole[:-20], whole[:50], b"", b"PAR1" + b"\0" * (len(whole) - 4)):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"rows\.parquet is no whole Parquet file"):
            len(sources.open_file(path))


def test_a_column_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 99] * 99}), path, compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(ValueError, match=r"rows\.parquet is no whole Parquet file"):
        sources.open_file(path)[0]


def test_numpy_values_are_plain():
    row = {"label": np.int64(3), "scores": np.array([1.5, 2]), "deep": [{"x": np.str_("t")}]}
    plain = sources.underscore_fields(row)
    assert repr(plain) == "{'label': 3, 'scores': [1.5, 2.0], 'deep': [{'x': 't'}]}"


def test_two_fields_of_one_name_are_no_row():
    with pytest.raises(ValueError, match="food-id: another field has that name"):
        sources.underscore_fields({"food-id": 1, "food_id": 2})


ROWS = [{"a": n} for n in range(7)]


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_parquet(rows, path):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


LAYOUTS = {
    "train.jsonl": lambda path, rows: path.write_bytes(lines_of(rows)),
    "train.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines_of(rows))),
    "train.jsonl.zst": lambda path, rows: path.write_bytes(
        pyarrow.compress(lines_of(rows), "zstd", asbytes=True)
    ),
    "train.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    "data/train.json": lambda path, rows: path.write_bytes(lines_of(rows)),
    "train.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "train-0000{n}-of-00002.parquet": lambda path, rows: write_parquet(rows, path),
    "data/train-0000{n}-of-00002-8d8fd25e3f2b2f8a.parquet": (
        lambda path, rows: write_parquet(rows, path)
    ),
    "train/000{n}.parquet": lambda path, rows: write_parquet(rows, path),
    "train-0000{n}-of-00002.jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress(lines_of(rows))
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["toy/default", "toy"])
def test_folders_as_they_are_downloaded(tmp_path, monkeypatch, layout, place):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
    parts = [ROWS[:4], ROWS[4:]] if "{n}" in layout else [ROWS]
    for n, rows in enumerate(parts):
        path = tmp_path / place / layout.format(n=n)
        path.parent.mkdir(parents=True, exist_ok=True)
        LAYOUTS[layout](path, rows)
    (tmp_path / place / "dataset_infos.json").write_text("{}")
    assert list(sources.local_splits("toy", None)) == ["train"]
    opened = sources.open_rows("toy", None, "train")
    assert [opened[n] for n in range(-7, 7)] == ROWS + ROWS
    with pytest.raises(IndexError):
        opened[7]


def test_shards_share_their_fields(tmp_path):
    write = LAYOUTS["train.jsonl"]
    write(tmp_path / "train-00000-of-00002.jsonl", [{"a": 1}])
    write(tmp_path / "train-00001-of-00002.jsonl", [{"a": 1.5, "b": 2}])
    rows = sources.open_files(sources.find_splits(tmp_path)["train"])
    assert repr(list(rows)) == "[{'a': 1.0, 'b': None}, {'a': 1.5, 'b': 2}]"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00001-of-00003.jsonl"], r"train-00000-of-00003 and 1 more is missing"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"], "in 1 and in 2 files"),
        (
            ["train-00000-of-00001-aaaaaaaa.jsonl", "train-00000-of-00001-bbbbbbbb.jsonl"],
            "train-00000-of-00001 twice",
        ),
    ],
)
def test_a_part_of_a_split_is_no_split(tmp_path, names, message):
    for name in names:
        LAYOUTS["train.jsonl"](tmp_path / name, ROWS)
    with pytest.raises(ValueError, match=message):
        sources.open_files(sources.find_splits(tmp_path)["train"])


def test_what_was_looked_for_and_what_lies_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
    local = sources.Settings(order=("local",))
    with pytest.raises(FileNotFoundError, match=r"no train\.jsonl, .*toy/default does not exist"):
        sources.open_rows("toy", None, "train", settings=local)
    (tmp_path / "toy/default").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"toy/default is empty"):
        sources.open_rows("toy", None, "train", settings=local)
    (tmp_path / "toy/default/train.tsv").touch()
    (tmp_path / "toy/default/notes").mkdir()
    with pytest.raises(FileNotFoundError, match=r"in .*toy/default lie notes/, train\.tsv"):
        sources.open_rows("toy", None, "train", settings=local)


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"train\.jsonl is a pipe or a device"):
        sources.open_file(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"test\.jsonl is a folder"):
        sources.open_file(tmp_path / "test.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a": 1, "a": 2}\n]', r"line 3 \(the key 'a' occurs twice\)"),
        ('[\n{"a": 1}\n{"a": 2}]', r"line 3: the array goes on with neither , nor \]"),
        ('[{"a": 1},\n', r"line 2: Expecting value"),
        ('[{"a": 1},\n' + "[" * 100_000, r"line 2: more than 64 lists"),
        ('[{"a": 1}, 2]', r"line 1 \(a number, not an object\)"),
    ],
)
def test_errors_in_an_array_name_the_line(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        len(sources.open_file(path))


def test_bad_lines_are_skipped_for_every_reason(tmp_path):
    path = tmp_path / "train.jsonl"
    bad = [b'{"a": 1, "a": 2}', b'{"a": ' + b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
    bad += [b'{"a": "\\ud83d"}', b'{"a": "\xff"}', b"[1]", b'{"a": ', b'{"a": "\0"}']
    path.write_bytes(b'{"a": 1}\n' + b"\n".join(bad) + b'\n{"a": 2}\n')
    rows = sources.open_file(path, bad_lines="skip")
    assert list(rows) == [{"a": 1}, {"a": 2}]
    assert len(rows.bad_places) == len(bad)
    assert rows.bad_places[1] == (
        "train.jsonl, line 3 (more than 64 lists and objects within one another)"
    )
