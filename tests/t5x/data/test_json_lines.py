"""One rule for JSON lines: what is a row, what is none and why."""

import gzip
import io
import json
import os

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x.data import json_lines


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'\xef\xbb\xbf{"a": 1}\r\n', {"a": 1}),
        (b'{"a": 9223372036854775807}', {"a": 2**63 - 1}),
        (b'{"a": -9223372036854775808}', {"a": -(2**63)}),
        (b'{"a": 9223372036854775808}', {"a": 9.223372036854776e18}),
        (b'{"a": "\\ud83d\\ude00 \\u0000"}', {"a": "\U0001f600 \0"}),
        (b'{"a": -0, "b": 1.0}', {"a": 0, "b": 1.0}),
        (b'{"a": "' + b"[" * 1000 + b'"}', {"a": "[" * 1000}),
        (b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", None),
    ],
)
def test_what_is_a_row(line, row):
    parsed = json_lines.parse(line)
    assert row is None or (parsed == row and type(parsed["a"]) is type(row["a"]))
    assert json_lines.parse_again(line) == parsed


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_numbers_of_python_are_numbers(text):
    assert repr(json_lines.parse(f'{{"a": {text}}}'.encode())["a"]) == repr(float(text))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"b": [{"a": 1, "a": 1}]}', "the key 'a' occurs twice"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "the number 99999999999999999999… is beyond the floats"),
        (b'{"a": 1e400}', "the number 1e400… is beyond the floats"),
        (b'{"a": ' + b"[" * 100_000, "more than 64 lists and objects within one another"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 lists and objects"),
        (b'{"a":' * 100_000, "more than 64 lists and objects within one another"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"a": "x\0"}', "a NUL byte"),
        ('{"a": 1}'.encode("utf-16"), "is it UTF-16?"),
        (b'{"a": "\xe9"}', "not UTF-8 at byte 8"),
        (b"[1, 2]", "a list, not an object"),
        (b"null", "null, not an object"),
        (b'{"a": 1} {"a": 2}', "Extra data at character 10"),
        (b"{\"a\": 'x'}", "Expecting value at character 7"),
    ],
)
def test_what_is_none_says_why(line, reason):
    with pytest.raises(json_lines.LineError) as caught:
        json_lines.parse(line)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 120


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_python_writes_is_read_as_python_reads_it(row):
    line = json.dumps(row).encode()

    def whole(value):
        if type(value) is int and not -(2**63) <= value < 2**63:
            return float(value)
        if isinstance(value, list):
            return [whole(item) for item in value]
        return {k: whole(v) for k, v in value.items()} if isinstance(value, dict) else value

    try:
        parsed = json_lines.parse(line)
    except json_lines.LineError as error:
        assert "surrogate" in str(error) or "beyond the floats" in str(error)
        return
    assert parsed == whole(json.loads(line))


@given(st.binary())
def test_any_bytes_are_a_row_or_have_a_reason(line):
    try:
        assert isinstance(json_lines.parse(line), dict)
    except json_lines.LineError as error:
        assert str(error) and "\n" not in str(error)


def test_lines_have_their_places_and_long_ones_are_not_kept(monkeypatch):
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 100)
    text = b'{"a": 1}\n\n' + b"x" * 500 + b'\n{"b": 2}'
    lines = list(json_lines.read(io.BytesIO(text)))
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [text[line.start : line.start + line.length] for line in lines] == text.splitlines(True)
    assert [line.is_blank for line in lines] == [False, True, False, False]
    assert lines[3].parse() == {"b": 2}
    with pytest.raises(json_lines.LineError, match="longer than"):
        lines[2].parse()
    assert len(lines[2].data) <= 1000


def test_packed_files_are_unpacked_and_torn_ones_named(tmp_path):
    text = b'{"a": 1}\n' * 1000
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(text))
    squeezed = tmp_path / "rows.jsonl.zst"
    squeezed.write_bytes(pyarrow.compress(text, "zstd", asbytes=True))
    for path in (packed, squeezed):
        with json_lines.open_unpacked(path) as file:
            assert file.read() == text
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match=rf"{path.name}: not a whole .* file"):
            json_lines.open_unpacked(path)
    packed.write_bytes(text)
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: not a whole \.gz file"):
        json_lines.open_unpacked(packed)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl is a pipe or a device"):
        json_lines.open_unpacked(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match="is a folder, not a file of rows"):
        json_lines.open_unpacked(tmp_path)


def test_bad_lines_are_described_in_one_line():
    assert json_lines.describe("f", {3: "why"}) == "f: 1 line is no row: line 3 (why)"
    many = json_lines.describe("f", dict.fromkeys(range(1, 10), "why"))
    assert many.startswith("f: 9 lines are no row: line 1 (why)")
    assert many.endswith("line 5 (why) and 4 more")
