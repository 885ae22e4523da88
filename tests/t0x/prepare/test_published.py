"""P3 as published, one folder a task in SeqIO's cache format: trained from, and taken in."""

import json
import re
import shutil
import sys

import pytest
import seqio

from t0x import prepare
from t0x.prepare.jobs import run_job
from t5x.data import store
from t5x.data.records import ExampleReader

pytest.importorskip("apache_beam")
NAME = "news_of_old"
PUBLISHED = ("inputs", "inputs_pretokenized", "targets", "targets_pretokenized")
# A module, as SeqIO's writer imports what registers the tasks.
MODULE = """
from t0x.prompts.template import Template
from t0x.registration import register_dataset
from t0x.tasks import mini

rows = [{"text": f"word {i}", "side": ("left", "right")[i % 2]} for i in range(60)]
prompts = {
    "ask": Template("ask", "{{text}}?|||{{side}}", "left ||| right"),
    "tell": Template("tell", "{% if side == 'left' %}Tell {{text}}{% endif %}|||{{text}}"),
}
register_dataset("news_of_old", {"train": rows}, prompts, output_features=mini.output_features())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, commands):
    """A module that registers tasks, and their cache as SeqIO's own writer makes it.

    The cache is described as P3's authors' is: of the features it names the four they published.
    """
    folder = tmp_path_factory.mktemp("published")
    (folder / "old_news.py").write_text(MODULE)
    commands.run(
        "seqio.scripts.cache_tasks_main",
        f"--tasks={NAME}_ask,{NAME}_tell",
        "--module_import=old_news",
        "--output_cache_dir=cache",
        "--min_shards=3",
        cwd=folder,
    )
    for path in folder.glob("cache/*/info.*.json"):
        info = json.loads(path.read_text())
        info["features"] = {name: info["features"][name] for name in PUBLISHED}
        path.write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="module")
def request_(folder):
    sys.path.insert(0, str(folder))
    yield prepare.Request(
        f"{NAME}_train", "", keep_text=True, caches=(str(folder / "cache"),), modules=("old_news",)
    )
    sys.path.remove(str(folder))


def run_here(request, jobs, report):
    for job in jobs:
        run_job(request, job, report)


def at(request, directory, **changes):
    return prepare.Request(**{**vars(request), "directory": str(directory), **changes})


def examples_of(directory):
    """Task → its examples' texts and tokens, sorted: SeqIO's writer shuffles."""
    manifest = store.read_manifest(directory)
    entries = manifest.of_split("train")
    reader = ExampleReader(directory, manifest, entries)
    return {
        entry.task: sorted(
            (example.texts, example.inputs.tolist(), example.targets.tolist())
            for example in reader.read(number, range(entry.examples))
        )
        for number, entry in enumerate(entries)
    }


def test_a_cache_is_taken_in_with_its_own_tokens(tmp_path, folder, request_):
    manifest = prepare.prepare(at(request_, tmp_path / "taken"), run_here)
    assert [entry.examples for entry in manifest.entries] == [60, 30]
    prepare.prepare(at(request_, tmp_path / "rendered", caches=()), run_here)
    assert examples_of(tmp_path / "taken") == examples_of(tmp_path / "rendered")
    # In the order of the cache's files, and some of it where the run needs no more.
    run = prepare.Run(steps=2, batch_size=3, inputs=16, targets=8)
    manifest = prepare.prepare(at(request_, tmp_path / "some", run=run), run_here)
    assert 0 < manifest.entries[0].examples < 60
    everything = examples_of(tmp_path / "taken")
    for task, examples in examples_of(tmp_path / "some").items():
        assert len({str(example) for example in examples}) == len(examples)
        assert all(example in everything[task] for example in examples)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "No such file"),
        ("torn", "DataLossError|corrupted|truncated"),
        ("short", "61 examples expected, not row 60"),
        ("others", "not those of the task's vocabulary"),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, folder, request_, fault, reason):
    shutil.copytree(folder / "cache", tmp_path / "cache")
    task = tmp_path / "cache" / f"{NAME}_ask"
    last = task / "train.tfrecord-00002-of-00003"
    if fault == "missing":
        last.unlink()
    elif fault == "torn":
        last.write_bytes(last.read_bytes()[:-5])
    elif fault == "short":
        stats = json.loads((task / "stats.train.json").read_text())
        (task / "stats.train.json").write_text(json.dumps({**stats, "examples": 61}))
    else:
        import tensorflow as tf

        first = task / "train.tfrecord-00000-of-00003"
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(first))]
        with tf.io.TFRecordWriter(str(first)) as writer:
            for record in records:
                example = tf.train.Example.FromString(record)
                example.features.feature["targets"].int64_list.value[0] += 1
                writer.write(example.SerializeToString())
    caches = (str(tmp_path / "cache"),)
    manifest = prepare.prepare(at(request_, tmp_path / "store", caches=caches), run_here)
    assert [entry.task for entry in manifest.entries] == [f"{NAME}_tell"]
    (missing,) = manifest.missing
    assert missing.task == f"{NAME}_ask"
    assert re.search(reason, missing.reason), missing.reason


def test_the_prompted_task_reads_it(folder, request_):
    from t0x.prepare.request import register

    register(request_)
    seqio.add_global_cache_dirs([str(folder / "cache")])
    task = seqio.TaskRegistry.get(f"{NAME}_ask")
    lengths = {"inputs": 3, "targets": 2}
    cached = list(task.get_dataset(lengths, use_cached=True, seed=0).as_numpy_iterator())
    rendered = list(task.get_dataset(lengths, seed=0).as_numpy_iterator())
    key = ("inputs_pretokenized", "inputs", "targets")

    def plain(examples):
        return sorted([e[key[0]], e[key[1]].tolist(), e[key[2]].tolist()] for e in examples)

    assert set(cached[0]) == set(PUBLISHED)
    assert plain(cached) == plain(rendered)


@pytest.mark.slow
def test_training_reads_it(folder, commands, tmp_path):
    command = (
        "t5x.train",
        "--gin_file=t0_mini.gin",
        f"--gin.MIXTURE_OR_TASK_NAME='{NAME}_train'",
        "--gin.MIXTURE_OR_TASK_MODULE='old_news'",
        f"--gin.MODEL_DIR='{tmp_path}'",
        "--gin.TRAIN_STEPS=2",
        "--gin.USE_CACHED_TASKS=True",
    )
    cache = f"--seqio_additional_cache_dirs={folder / 'cache'}"
    # The rows are out of reach: nothing but the cache can have been read.
    (folder / "old_news.py").write_text(MODULE + "rows.clear()\n")
    done = commands.run(*command, cache, cwd=folder)
    assert "trained 2 steps" in done.stdout
    done = commands.run(*command, cwd=folder, ok=False)
    assert f"{NAME}" in done.stderr
