"""What `t0x tasks stats` tells of a mixture, against what can be counted by hand."""

import csv

import numpy as np
import pytest

from t0x.prepare.request import Run
from t0x.prepare.statistics import describe_mixture
from t5x.data import store
from t5x.data.records import ShardWriter

FEATURE = store.Feature(vocabulary="none", vocabulary_size=100, add_eos=True)
# Task → (rate, lengths of its examples).
TASKS = {
    "short": (3.0, [(8, 2)] * 40),
    "long": (1.0, [(20, 2)] * 5 + [(4, 9)] * 5),
}


@pytest.fixture
def prepared(tmp_path):
    """A store of examples whose packing can be told by hand."""
    entries = []
    for task, (rate, lengths) in TASKS.items():
        with ShardWriter(tmp_path, task, "train", 0, 1, "uint16") as writer:
            for inputs, targets in lengths:
                writer.write(np.ones(inputs, int), np.ones(targets, int))
        entries.append(
            store.Entry(
                task=task,
                split="train",
                examples=len(lengths),
                shards=(writer.shard,),
                lengths_sha256=store.write_lengths(tmp_path, task, "train", writer.lengths),
                template_hash="none",
                rate=rate,
                passes=0.0,
                source_rows=2 * len(lengths),
                skipped={"odd": len(lengths)},
                truncated_variables=None,
                input_lengths=store.count_lengths(writer.lengths[:, 0]),
                target_lengths=store.count_lengths(writer.lengths[:, 1]),
            )
        )
    manifest = store.Manifest(
        mixture="both",
        token_dtype="uint16",
        text=False,
        features={"inputs": FEATURE, "targets": FEATURE},
        entries=tuple(entries),
        missing=(store.Missing(task="gone", split="train", rate=1.0, reason="lost"),),
    )
    store.write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_shares_epochs_and_cuts(prepared):
    directory, manifest = prepared
    run = Run(steps=100, batch_size=2, inputs=16, targets=8)
    found = describe_mixture(str(directory), manifest, "train", run)
    short, long = found.tasks
    assert (short.task, short.share, long.share) == ("short", 0.75, 0.25)
    assert found.missing_share == 0.2
    assert (short.inputs.cut, short.targets.cut, short.cut) == (0, 0, 0)
    assert (long.inputs.cut, long.targets.cut, long.cut) == (0.5, 0.5, 1)
    assert found.cut == 0.25
    assert (short.examples_per_row, short.encoder_density, short.decoder_density) == (2, 1, 0.5)
    # Five fill the inputs of a row alone; five fill its targets.
    assert long.examples_per_row == 1
    examples = 200 * found.examples_per_row
    assert short.draws + long.draws == pytest.approx(examples)
    assert short.epochs == pytest.approx(0.75 * examples / 40)
    tokens = np.minimum([(8, 2)] * 6 + [(20, 2), (4, 9)], (16, 8)).mean(axis=0)
    expected = tokens * found.examples_per_row / (16, 8)
    densities = (found.encoder_density, found.decoder_density)
    assert densities == pytest.approx(tuple(expected), rel=0.01)


def test_examples_of_a_sample_are_scaled_to_the_split(prepared):
    directory, manifest = prepared
    run = Run(steps=0, batch_size=0, inputs=16, targets=8)
    found = describe_mixture(str(directory), manifest, "train", run, {"short": 800, "long": 2_000})
    assert [task.examples for task in found.tasks] == [400, 1_000]
    assert found.tasks[0].epochs is None
    with pytest.raises(ValueError, match="no examples of split 'test'"):
        describe_mixture(str(directory), manifest, "test", run)


def test_the_command_of_a_store_and_of_rows(prepared, commands, tmp_path):
    pytest.importorskip("vl_convert")
    directory, _ = prepared
    options = ("--steps", "100", "--batch", "2", "--input-length", "16", "--target-length", "8")
    table, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    done = commands.run(
        *("t0x", "tasks", "stats", "--prepared", directory, "--csv", table, "--plot", plot),
        *options,
    )
    assert "packed to (16, 8)" in done.stdout
    assert "100 steps of 2 rows" in done.stdout
    assert "20.00% of the mixture" in done.stderr
    rows = list(csv.DictReader(table.open()))
    assert [row["task"] for row in rows] == ["short", "long"]
    assert float(rows[1]["inputs_cut"]) == 0.5
    assert "short" in plot.read_text()
    (tmp_path / "rows_of_mine.py").write_text(
        "from t0x.prompts.template import Template\n"
        "from t0x.registration import register_dataset\n"
        "from t0x.tasks import mini\n"
        "rows = [{'text': f'word {i}', 'side': 'left'} for i in range(1000)]\n"
        "prompt = {'ask': Template('ask', '{{text}}|||{{side}}')}\n"
        "features = mini.output_features()\n"
        "register_dataset('mine', {'train': rows}, prompt, output_features=features)\n"
    )
    done = commands.run(
        *("t0x", "tasks", "stats", "mine_train", "--module", "rows_of_mine", "--rows", "20"),
        cwd=tmp_path,
    )
    assert "mine_ask" in done.stdout
    assert "1,000" in done.stdout
