"""What a full disk leaves: what was there before."""

import errno
import json

import pytest
import seqio
import tensorflow as tf

from t5x.inference import files as inference_files
from t5x.run import files
from t5x.trainer.summaries import MetricsManager


def fill(disk, but=0):
    """Leaves `but` bytes free."""
    filler = disk / "filler"
    with pytest.raises(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with filler.open("rb+") as file:
        file.truncate(filler.stat().st_size - but)


def beside(disk):
    return sorted(path.name for path in disk.rglob("*") if path.is_file() and path.name != "filler")


def test_a_file_is_replaced_or_stays(full_disk):
    path = full_disk / "report.html"
    files.write_whole(path, "first — é")
    assert path.read_text(encoding="utf-8") == "first — é"
    fill(full_disk, but=8192)
    with pytest.raises(OSError, match=r"report\.html") as caught:
        files.write_whole(path, "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text(encoding="utf-8") == "first — é"
    assert beside(full_disk) == ["report.html"]


def test_files_that_belong_together_appear_together(full_disk):
    fill(full_disk, but=16384)
    contents = {full_disk / "run/a": b"small", full_disk / "run/kept/b": b"x" * 100_000}
    with pytest.raises(OSError, match="run/kept/b"):
        files.write_files(contents)
    assert not (full_disk / "run").exists()
    files.write_files(dict.fromkeys(contents, b"small"))
    assert beside(full_disk) == ["a", "b"]


def test_metrics_are_whole_lines_and_the_run_goes_on(full_disk, capsys):
    manager = MetricsManager("train", str(full_disk))
    manager.write_scalar("loss", 1.0, 1)
    before = (full_disk / "metrics.jsonl").read_text()
    fill(full_disk)
    step = 2
    while "metrics of this step are not in" not in capsys.readouterr().out:
        manager.write_scalars(step, {f"weight_rms/{i}": 0.5 for i in range(200)})
        step += 1
        assert step < 20
    text = (full_disk / "metrics.jsonl").read_text()
    assert text.startswith(before)
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(1, step - 1))
    (full_disk / "filler").unlink()
    manager.write_scalar("loss", 2.0, 99)
    manager.close()
    last = (full_disk / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == {"step": 99, "collection": "train", "loss": 2.0}


def test_inferences_appear_whole(full_disk):
    rows = tf.data.Dataset.from_tensor_slices({"inputs_pretokenized": ["é" * 2000] * 50})
    results = [[3, 4]] * 50
    for i in range(2):
        (full_disk / f"out-chunk{i:05}").write_bytes(b"y" * 20_000)
    fill(full_disk, but=30_000)
    vocabulary = seqio.ByteVocabulary()
    with pytest.raises(OSError, match=r"echo-predict\.jsonl"):
        inference_files.write_inferences_to_file(
            str(full_disk / "echo-predict.jsonl"), (results, {}), rows, "predict", vocabulary
        )
    with pytest.raises(OSError, match="disk/out"):
        inference_files.merge_chunks_to_file(str(full_disk), "out", str(full_disk), None)
    assert beside(full_disk) == ["out-chunk00000", "out-chunk00001"]
