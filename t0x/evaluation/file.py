"""A JSONL file of {"inputs", "choices"} on its way through a scorer, which can go on where it was.

The file is read as a stream, a window of rows at a time, and results leave in the order of the
file. Which rows are in which window depends on the file and the settings alone. After each window
a ledger says how far it is, so that a job that was killed and started again computes the very same
numbers from there on: whatever was written since is cut off and computed again.
"""

import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from t0x import rank_classification
from t0x.evaluation import encoding
from t0x.evaluation.scorer import Scorer
from t5x.data import json_lines
from t5x.run.console import console
from t5x.run.files import naming, write_whole

BATCHES_PER_WINDOW = 32
MOST_ROWS_PER_WINDOW = 16_384
# Rows whose lengths decide how long packed rows are.
ROWS_LOOKED_AT = 2048
BAD_ROWS_SHOWN = 5
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Row:
    """A line of the file: the record and its tokens, or why it cannot be scored; neither if blank.

    Attributes:
      line: its place and bytes.
      label: position of the right choice, where the record tells.
    """

    line: json_lines.Line
    record: dict[str, Any] | None = None
    encoded: encoding.Encoded | None = None
    label: int | None = None
    error: str = ""


@dataclass
class Ledger:
    """What has become of a file's rows so far; what a restart reads.

    Attributes:
      settings: fingerprints of all that decides on scores, by name.
      shape: tokens of an encoder and a decoder row; None before the first row that can be scored.
      tokens_per_window: input tokens after which a window ends.
      lines, data_bytes, data_digest: of the part of the file that is through.
      out_bytes, out_digest, bad_bytes: of what was written for it.
      first_bad: the first rows that could not be scored, with the reason.
      seconds: spent on it, compilation not counted.
      complete: whether that is all.
    """

    settings: Mapping[str, str]
    shape: Sequence[int] | None = None
    tokens_per_window: int = 0
    lines: int = 0
    data_bytes: int = 0
    data_digest: str = ""
    out_bytes: int = 0
    out_digest: str = ""
    bad_bytes: int = 0
    examples: int = 0
    labelled: int = 0
    right: int = 0
    near_ties: int = 0
    inputs_cut: int = 0
    choices_cut: int = 0
    encoded_again: int = 0
    bad: int = 0
    first_bad: list[Sequence[Any]] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False


@dataclass(frozen=True)
class _Files:
    """Where things are, all beside the output."""

    data: Path
    out: Path

    @property
    def partial(self) -> Path:
        return Path(f"{self.out}.partial")

    @property
    def bad(self) -> Path:
        return Path(f"{self.out}.bad.jsonl")

    @property
    def ledger(self) -> Path:
        return Path(f"{self.out}.ledger.json")

    def write_ledger(self, ledger: Ledger) -> None:
        write_whole(self.ledger, json.dumps(asdict(ledger), indent=1) + "\n")


def score_file(
    data: Path,
    out: Path,
    scorer: Scorer,
    encoder: encoding.ChoiceEncoder,
    settings: Mapping[str, str],
    overwrite: bool = False,
) -> Ledger:
    """Scores a file; the output appears whole, once everything is scored.

    Args:
      data: JSONL rows {"inputs", "choices", "label"?}; label is a position or a choice's text, null
        or -1 where there is none.
      out: gets each row as it is written with "scores" and "prediction" added; bad rows, those that
        have such a field already among them, go to <out>.bad.jsonl as {"line", "error", "text"},
        line numbers starting at 1; <out>.ledger.json says how far it is.
      settings: fingerprints of all that decides on scores, by name; what was begun with the same
        ones, and with the same data so far, is gone on with.
      overwrite: start from scratch whatever is there.

    Raises:
      ValueError: `out` is there from something else.
      BlockingIOError: another process is at it.
    """
    files = _Files(data, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.partial.open("ab") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"--out {out}: another process is writing it") from None
        try:
            ledger = _find_ledger(files, settings, overwrite)
        except ValueError:
            if not files.partial.stat().st_size:
                files.partial.unlink()
            raise
        if not ledger.complete:
            _score_rest(files, sink, ledger, scorer, encoder)
            # From here on the partial file is the whole one, under either name.
            ledger.complete = True
            files.write_ledger(ledger)
        if files.partial.stat().st_size == ledger.out_bytes and not _holds(
            out, ledger.out_bytes, ledger.out_digest
        ):
            files.partial.replace(out)
        else:
            files.partial.unlink()
    return ledger


def _find_ledger(files: _Files, settings: Mapping[str, str], overwrite: bool) -> Ledger:
    """Where to go on: the ledger that is there, or a new one."""
    fresh = Ledger(dict(settings))
    try:
        stored = Ledger(**json.loads(files.ledger.read_text(encoding="utf-8")))
    except FileNotFoundError:
        stored = None
    advice = "give --overwrite to score from the start, or another --out"
    if overwrite:
        return fresh
    if stored is None:
        if files.out.exists() and files.out.stat().st_size:
            raise ValueError(f"--out {files.out} is there, without a ledger of scoring: {advice}")
        return fresh
    names = [n for n in settings if stored.settings.get(n) != settings[n]]
    grown = stored.complete and files.data.stat().st_size != stored.data_bytes
    if grown or not _holds(files.data, stored.data_bytes, stored.data_digest):
        names.append("data")
    if names:
        raise ValueError(f"--out {files.out} was begun with other {', '.join(names)}: {advice}")
    places = [files.partial, files.out] if stored.complete else [files.partial]
    whole = any(_holds(place, stored.out_bytes, stored.out_digest) for place in places)
    if whole and (files.bad.stat().st_size if files.bad.exists() else 0) >= stored.bad_bytes:
        return stored
    if stored.complete and files.out.exists():
        raise ValueError(f"--out {files.out} has changed since it was scored: {advice}")
    console.say(f"what was scored before is not all in {files.partial}: scoring from the start")
    return fresh


def _digest(path: Path, size: int) -> Any:
    """Digest of a file's first bytes; of fewer where there are not as many."""
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, path, 0, size)
    return digest


def _update(digest: Any, path: Path, start: int, end: int) -> None:
    """Takes a part of a file into a digest."""
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_BLOCK, end - start)):
            digest.update(block)
            start += len(block)


def _holds(path: Path, size: int, digest: str) -> bool:
    """Whether a file begins with these bytes."""
    if not path.exists() or path.stat().st_size < size:
        return False
    return not size or _digest(path, size).hexdigest() == digest


def _score_rest(
    files: _Files,
    sink: IO[bytes],
    ledger: Ledger,
    scorer: Scorer,
    encoder: encoding.ChoiceEncoder,
) -> None:
    """Scores what the ledger does not have yet, and keeps it up to date, window by window."""
    sink.truncate(ledger.out_bytes)
    if not ledger.bad_bytes:
        files.bad.unlink(missing_ok=True)
    else:
        os.truncate(files.bad, ledger.bad_bytes)
    if ledger.lines:
        console.say(f"going on after line {ledger.lines:,}")
    if ledger.shape:
        scorer.prepare(tuple(ledger.shape))
    data_digest = _digest(files.data, ledger.data_bytes)
    out_digest = _digest(files.partial, ledger.out_bytes)
    before = ledger.data_bytes
    size = max(files.data.stat().st_size, 1)
    with files.data.open("rb") as lines, console.progress(size, "bytes") as bar:
        lines.seek(ledger.data_bytes)
        rows = (parse_row(line, encoder) for line in json_lines.read(lines, ledger.lines + 1))
        for window in _windows(rows, scorer, ledger):
            started = time.monotonic() - scorer.compile_seconds
            again = scorer.encoded_again
            results, bad = _score_window(window, scorer, ledger)
            with naming(files.partial):
                sink.write(results)
                _sync(sink)
            if bad:
                with naming(files.bad), files.bad.open("ab") as side:
                    side.write(bad)
                    _sync(side)
            out_digest.update(results)
            last = window[-1].line
            end = last.start + last.length
            _update(data_digest, files.data, ledger.data_bytes, end)
            ledger.data_bytes, ledger.lines = end, last.number
            ledger.out_bytes += len(results)
            ledger.bad_bytes += len(bad)
            ledger.data_digest, ledger.out_digest = data_digest.hexdigest(), out_digest.hexdigest()
            ledger.shape = scorer.shape
            ledger.encoded_again += scorer.encoded_again - again
            ledger.seconds += time.monotonic() - scorer.compile_seconds - started
            files.write_ledger(ledger)
            bar.update(ledger.data_bytes, before, f"{ledger.examples:,} examples")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def parse_row(line: json_lines.Line, encoder: encoding.ChoiceEncoder) -> Row:
    """Checks and tokenises one line."""
    if line.is_blank:
        return Row(line)
    try:
        record = line.parse()
    except json_lines.LineError as error:
        return Row(line, error=f"not a JSON object: {error}")
    if taken := [name for name in ("scores", "prediction") if name in record]:
        # What is there is somebody's; a row that was scored before would be scored as another.
        return Row(line, error=f"has a field {taken[0]!r} already, which scoring writes; rename it")
    inputs, choices = record.get("inputs"), record.get("choices")
    if not isinstance(inputs, str) or not inputs.strip():
        return Row(line, error="field 'inputs' is not a text with words")
    texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not texts or not choices:
        return Row(line, error="field 'choices' is not a list of texts")
    label = record.get("label")
    if isinstance(label, str) and label in choices:
        label = choices.index(label)
    if label == -1 and not isinstance(label, bool):
        label = None  # as splits without labels have it
    whole = isinstance(label, int) and not isinstance(label, bool)
    if label is not None and not (whole and 0 <= label < len(choices)):
        return Row(line, error=f"field 'label' is {label!r:.80}, which is none of the choices")
    return Row(line, record, encoder.encode(inputs, choices), label)


def _windows(rows: Iterator[Row], scorer: Scorer, ledger: Ledger) -> Iterator[list[Row]]:
    """Rows in file order, as many at a time as fill BATCHES_PER_WINDOW batches."""
    head: list[Row] = []
    if not ledger.tokens_per_window:
        head = list(itertools.islice(rows, ROWS_LOOKED_AT))
        examples = [row.encoded.tokens for row in head if row.encoded]
        if examples:
            scorer.fit(examples)
        ledger.tokens_per_window = BATCHES_PER_WINDOW * scorer.tokens_per_batch

    def cut() -> Iterator[list[Row]]:
        window: list[Row] = []
        tokens = 0
        for row in itertools.chain(head, rows):
            window.append(row)
            if row.encoded:
                parts = row.encoded.tokens
                tokens += max(len(parts.inputs), sum(map(len, parts.targets)))
            if len(window) >= MOST_ROWS_PER_WINDOW or tokens >= ledger.tokens_per_window:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    return _read_ahead(cut())


def _read_ahead(windows: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """The same windows, the next one being read and tokenised while one is scored."""
    iterator = iter(windows)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, None)
        while (window := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield window


def _score_window(window: Sequence[Row], scorer: Scorer, ledger: Ledger) -> tuple[bytes, bytes]:
    """Scores the good rows of a window; lines for the output and for the file of bad rows."""
    good = [row for row in window if row.encoded]
    examples = [row.encoded.tokens for row in good]
    if examples:
        scorer.fit(examples)
    results = []
    for row, scores in zip(good, scorer.score(examples) if examples else [], strict=True):
        choices = row.record["choices"]
        try:
            prediction = rank_classification.rank(scores, choices)
        except ValueError as error:
            raise ValueError(f"line {row.line.number}: {error}; is the checkpoint whole?") from None
        results.append(_with_results(row.line.data, scores, prediction))
        ledger.examples += 1
        ledger.inputs_cut += row.encoded.input_cut
        ledger.choices_cut += row.encoded.choices_cut
        ledger.near_ties += rank_classification.is_near_tie(scores, choices, prediction)
        if row.label is not None:
            ledger.labelled += 1
            ledger.right += choices[row.label] == choices[prediction]
    bad = []
    for row in window:
        if not row.error:
            continue
        ledger.bad += 1
        if len(ledger.first_bad) < BAD_ROWS_SHOWN:
            ledger.first_bad.append((row.line.number, row.error))
        text = row.line.data.decode("utf-8", errors="replace").rstrip("\r\n")
        record = {"line": row.line.number, "error": row.error, "text": text}
        bad.append(json.dumps(record) + "\n")
    return b"".join(results), "".join(bad).encode("utf-8")


def _with_results(line: bytes, scores: Sequence[float], prediction: int) -> bytes:
    """A row with its results after its own fields, which stay as they are written."""
    row = line.removeprefix(b"\xef\xbb\xbf").strip()
    results = json.dumps({"scores": scores, "prediction": prediction})
    return row[:-1].rstrip() + b", " + results[1:].encode("utf-8") + b"\n"
