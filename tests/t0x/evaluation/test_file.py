"""A file is scored whole, in order, with memory of where it was; what cannot be scored is told."""

import json
import os
import random

import numpy as np
import pytest
import seqio

from t0x.evaluation import encoding
from t0x.evaluation import file as scored_file

BYTES = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(BYTES, add_eos=False),
    "targets": seqio.Feature(BYTES, add_eos=True),
}
SETTINGS = {"checkpoint": "1", "limits": "2"}


class Killed(BaseException):
    """The process ends here."""


class FakeScorer:
    """Scores that depend on the tokens and, as real ones do, on the company they are in."""

    def __init__(self, killed_after=None):
        self.shape, self.compile_seconds, self.encoded_again = None, 0.0, 0
        self.tokens_per_batch = 40
        self.windows = 0
        self._killed_after = killed_after

    def fit(self, examples):
        longest = max(len(example.inputs) for example in examples)
        if self.shape is None or longest > self.shape[0]:
            self.prepare((longest, 8))

    def prepare(self, shape):
        self.shape = shape

    def score(self, examples):
        if self.windows == self._killed_after:
            raise Killed
        self.windows += 1
        self.encoded_again += 1
        noise = 1e-3 * (len(examples) + self.shape[0])
        return [
            [noise - float(np.dot(t, np.arange(1, len(t) + 1))) for t in e.targets]
            for e in examples
        ]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(scored_file, "BATCHES_PER_WINDOW", 2)
    monkeypatch.setattr(scored_file, "ROWS_LOOKED_AT", 3)


@pytest.fixture
def data(tmp_path):
    rng = random.Random(3)
    lines = []
    for number in range(60):
        row = {"id": number, "inputs": "é" * rng.randint(1, 12), "choices": ["yes", "no", "yes"]}
        if number % 3:
            row["label"] = rng.choice([0, "no"])
        lines.append(json.dumps(row, ensure_ascii=number % 2 == 0))
        if number % 7 == 0:
            lines.append(rng.choice(["{", "", "[]", '{"inputs": "x", "choices": []}']))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _score(data, out, settings=SETTINGS, overwrite=False, killed_after=None):
    encoder = encoding.ChoiceEncoder(FEATURES, {"inputs": 20, "targets": 8})
    scorer = FakeScorer(killed_after)
    return scored_file.score_file(data, out, scorer, encoder, settings, overwrite), scorer


def _files(out):
    """What is left beside the output, but for the time it took."""
    contents = {}
    for path in out.parent.glob(f"{out.name}*"):
        contents[path.name.removeprefix(out.name)] = path.read_bytes()
    ledger = json.loads(contents[".ledger.json"])
    ledger.pop("seconds")
    return contents | {".ledger.json": ledger}


def test_killed_anywhere_it_ends_in_the_same_bytes(data, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    ledger, scorer = _score(data, whole)
    assert ledger.examples == 60
    assert scorer.windows > 8
    rng = random.Random(0)
    for _ in range(5):
        with pytest.raises(Killed):
            _score(data, torn, killed_after=rng.randint(0, 2))
        assert not torn.exists()
        for name in ("partial", "bad.jsonl"):  # the last line is torn
            with open(f"{torn}.{name}", "ab") as file:
                file.write(b'{"inputs": "half of a li')
    _, scorer = _score(data, torn)

    assert _files(torn) == _files(whole)
    assert not os.path.exists(f"{torn}.partial")
    # It did go on: and what is complete is not scored again.
    assert 0 < scorer.windows < _score(data, tmp_path / "third")[1].windows
    written = torn.stat().st_mtime_ns
    assert _score(data, torn)[1].windows == 0
    assert torn.stat().st_mtime_ns == written


def test_killed_before_the_output_has_its_name(data, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    _score(data, whole)
    _score(data, torn)
    torn.rename(f"{torn}.partial")
    assert _score(data, torn)[1].windows == 0
    assert _files(torn) == _files(whole)


def test_what_is_not_all_there_is_scored_from_the_start(data, tmp_path, capsys):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    _score(data, whole)
    with pytest.raises(Killed):
        _score(data, torn, killed_after=4)
    partial = tmp_path / "torn.partial"
    partial.write_bytes(partial.read_bytes()[:-3])
    _score(data, torn)
    assert "scoring from the start" in capsys.readouterr().out
    assert _files(torn) == _files(whole)


def _change_checkpoint(data, out):
    return SETTINGS | {"checkpoint": "another"}


def _change_data(data, out):
    data.write_bytes(data.read_bytes().replace(b'"id": 0', b'"id": 9'))
    return SETTINGS


def _append_data(data, out):
    data.write_bytes(data.read_bytes() + b'\n{"inputs": "x", "choices": ["y"]}\n')
    return SETTINGS


def _edit_output(data, out):
    out.write_bytes(out.read_bytes()[:-5])
    return SETTINGS


def _lose_ledger(data, out):
    os.remove(f"{out}.ledger.json")
    return SETTINGS


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_change_checkpoint, "begun with other checkpoint: give --overwrite"),
        (_change_data, "begun with other data: give --overwrite"),
        (_append_data, "begun with other data: give --overwrite"),
        (_edit_output, "has changed since it was scored: give --overwrite"),
        (_lose_ledger, "without a ledger of scoring: give --overwrite"),
    ],
)
def test_an_output_of_something_else_is_left_alone(data, tmp_path, change, error):
    out = tmp_path / "out"
    _score(data, out)
    settings = change(data, out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=error):
        _score(data, out, settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    _, scorer = _score(data, out, settings, overwrite=True)
    assert scorer.windows > 8
    _score(data, tmp_path / "fresh", settings)
    assert _files(out) == _files(tmp_path / "fresh")


def test_a_half_scored_file_may_grow_at_its_end(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    with pytest.raises(Killed):
        _score(data, out, killed_after=4)
    _append_data(data, out)
    _score(data, out)
    _score(data, whole)
    assert _files(out) == _files(whole)


def test_two_at_once_are_refused(data, tmp_path):
    import fcntl

    with open(tmp_path / "out.partial", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process"):
            _score(data, tmp_path / "out")


def test_bad_rows_are_told_by_line(tmp_path):
    lines = [
        b'{"inputs": "a \\ud800", "choices": ["a"]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs": "a", "choices": ["a"], "prediction": "mine"}',
        b'{"inputs": " ", "choices": ["a"]}',
        b'{"inputs": "a", "choices": "a"}',
        b'{"inputs": "a", "choices": ["a", 1]}',
        b'{"inputs": "a", "choices": ["a", "b"], "label": true}',
        b'{"inputs": "a", "choices": ["a", "b"], "label": -2}',
        b"",
        b'{"inputs": "a", "choices": ["a", "b"], "label": "b", "id": 12345678901234567890123}\r',
        b'{"label": -1, "x": NaN, "inputs": "a", "choices": ["a", "b"] } ',
    ]
    data, out = tmp_path / "data", tmp_path / "out"
    data.write_bytes(b"\n".join(lines))
    ledger, _ = _score(data, out)
    assert (ledger.examples, ledger.bad, ledger.labelled) == (2, 9, 1)
    bad = [json.loads(line) for line in (tmp_path / "out.bad.jsonl").read_text().splitlines()]
    assert [row["line"] for row in bad] == list(range(1, 10))
    reasons = ["surrogate", "not UTF-8", "not a JSON object", "'prediction' already"]
    for row, reason in zip(bad, reasons, strict=False):
        assert reason in row["error"]
    # Rows are as they were written, whatever their numbers.
    whole, other = out.read_bytes().splitlines()
    assert whole.startswith(lines[10][:-2] + b', "scores": [')
    assert other.startswith(lines[11][:-3] + b', "scores": [')
    assert bad[5]["text"] == lines[5].decode()


def test_scores_that_are_no_numbers_name_the_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        FakeScorer, "score", lambda self, examples: [[np.nan] * len(e.targets) for e in examples]
    )
    with pytest.raises(ValueError, match="line 1: rank: a score is NaN"):
        _score(data, tmp_path / "out")


def test_a_full_disk_is_named_and_nothing_is_lost(data, tmp_path, full_disk):
    out = full_disk / "out.jsonl"
    filler = full_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with filler.open("rb+") as file:
        file.truncate(filler.stat().st_size - 3 * 4096)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out.jsonl\..*'"):
        _score(data, out)
    assert not out.exists()
    filler.unlink()
    _score(data, out)
    _score(data, tmp_path / "whole.jsonl")
    assert _rows(out) == _rows(tmp_path / "whole.jsonl")


def _rows(path):
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]
