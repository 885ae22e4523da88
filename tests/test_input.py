"""Every row of the tables in docs/input.md, run."""

import gzip
import os
import re
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
import seqio
from pyarrow import parquet

from t0x import registration, sources
from t0x.prompts.labels import missing_label
from t0x.prompts.template import Template
from t0x.registration.source import NO_TARGET_TEXT

PAGE = Path(__file__).parents[1] / "docs/input.md"
LINES = b'{"a": 1}\n{"a": 2}\n'


def rows_of(heading):
    """Cells of the first table below a heading."""
    section = re.split(r"\n#+ ", PAGE.read_text().split(f"# {heading}\n", 1)[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("| ``")]
    cells = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    return [[cell.strip("`")[1:-1] if cell else "" for cell in row] for row in cells]


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


def test_there_are_sixty_cases():
    headings = ("JSON lines", "Parquet", "Files and folders", "Labels")
    assert sum(len(rows_of(heading)) for heading in headings) >= 60


@pytest.mark.parametrize(("text", "expected"), rows_of("JSON lines"))
def test_json_lines(tmp_path, text, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(eval(text))
    if expected.startswith("{"):
        assert repr(sources.open_file(path)[0]) == expected
        return
    with pytest.raises(ValueError) as caught:
        len(sources.open_file(path))
    assert str(caught.value).startswith(f"{path}: 1 line is no row: {expected}")
    assert len(sources.open_file(path, bad_lines="skip")) == 0


@pytest.mark.parametrize(("text", "expected"), rows_of("Parquet"))
def test_parquet(tmp_path, text, expected):
    names = {"date": date, "datetime": datetime, "timedelta": timedelta, "Decimal": Decimal}
    column = eval(text, {**vars(pyarrow), **names})
    path = tmp_path / "rows.parquet"
    write_parquet(path, value=column)
    template = Template("t", "{{ value }}|||")
    assert template.apply(sources.underscore_fields(sources.open_file(path)[0]))[0] == expected


@pytest.mark.parametrize(("text", "expected"), rows_of("Files and folders"))
def test_files_and_folders(tmp_path, monkeypatch, text, expected):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
    names = {
        "LINES": LINES,
        "PARQUET": write_parquet(tmp_path / "rows.parquet", a=[1, 2]),
        "FIFO": None,
        "FOLDER": 0,
        "gzip": gzip.compress,
        "zstd": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
    }
    folder = tmp_path / "toy/default"
    folder.mkdir(parents=True)
    for name, data in eval(text, names).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            os.mkfifo(path)
        elif data == 0:
            path.mkdir()
        else:
            path.write_bytes(data)
    settings = sources.Settings(order=("local",))

    def read():
        return len(sources.open_rows("toy", None, "train", settings=settings))

    if re.fullmatch(r"\d+ rows", expected):
        assert read() == int(expected.split()[0])
        return
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read()
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("label", "target", "counted"), rows_of("Labels"))
def test_labels(label, target, counted):
    template = Template("t", "{{ text }}|||{{ answer_choices[label] }}", "no ||| yes")
    row = {"text": "t", "label": eval(label)}
    rendered = template.apply(row)[1]
    assert (rendered or NO_TARGET_TEXT) == target
    assert (missing_label(template, row, rendered, ["no", "yes"]) or "") == counted
    feature = seqio.Feature(seqio.ByteVocabulary())
    tasks = registration.register_dataset(
        f"input{label}", {"train": [row]}, {"t": template}, mixtures=False,
        output_features={"inputs": feature, "targets": feature},
    )  # fmt: skip
    (example,) = seqio.TaskRegistry.get(tasks.all[0]).get_dataset(None, "train")
    assert example["targets_pretokenized"].numpy().decode() == target
