"""`t0x prepare` against `seqio_cache_tasks` on Beam's direct runner: same tasks, whole commands.

    T0X_DATA_DIR=DATA python benchmarks/data_path_prepare.py [ROWS]

DATA holds <dataset>/default/train.jsonl of DREAM, CosmosQA and AG News, and T5's vocabulary in
../vocab beside it; ROWS of every dataset are rendered by all of its prompts. Prints one JSON line.

From processor seconds those of the same command with nothing left to do are taken, so that their
ratio does not depend on the number of rows; wall seconds are of whole commands. SeqIO's writes a
split twice that is also named `eval`: both count for it. Tokens must be equal, byte for byte, over
all examples.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

DATASETS = ("dream", "cosmos_qa", "ag_news")
MODULE = """
from pathlib import Path
from t0x.prompts.collection import default_collection
from t0x.registration import register_dataset, register_mixture

tasks = []
for name in {datasets}:
    folder = Path({folder!r}, name, "default")
    made = register_dataset("some_" + name, folder, default_collection().get(name), mixtures=False)
    tasks += made.all
register_mixture("some", tasks, lambda task: 1.0)
"""


def prepare(rows=200):
    """The case's figures, over the first `rows` rows of every dataset."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in DATASETS:
            lines = Path(os.environ["T0X_DATA_DIR"], name, "default", "train.jsonl").read_text()
            target = folder / "rows" / name / "default" / "train.jsonl"
            target.parent.mkdir(parents=True)
            target.write_text("".join(lines.splitlines(True)[:rows]))
        text = MODULE.format(datasets=DATASETS, folder=str(folder / "rows"))
        (folder / "some_tasks.py").write_text(text)
        ours = [
            *("t0x", "prepare", "--module", "some_tasks", "--mixture", "some"),
            *("--out", str(folder / "store"), "--processes", str(os.cpu_count())),
        ]
        theirs = [
            *("seqio.scripts.cache_tasks_main", "--module_import=some_tasks", "--min_shards=1"),
            *("--tasks=some_.*", "--excluded_tasks=.*_score_eval"),
            f"--output_cache_dir={folder / 'cache'}",
        ]
        figures = {}
        for side, command in (("prepare", ours), ("seqio", theirs)):
            figures[side] = [*measure(command, folder), measure(command, folder)[1]]
        written = read_store(folder / "store")
        cached, every = read_cache(folder / "cache")
    examples = sum(written.values())
    wall, cpu, start = figures["prepare"]
    their_wall, their_cpu, their_start = figures["seqio"]
    rate, their_rate = examples / (cpu - start), every / (their_cpu - their_start)
    return {
        "tasks": len({task for task, *_ in written}),
        "examples": examples,
        "seqio_examples": every,
        "examples_per_cpu_s": round(rate),
        "seqio_examples_per_cpu_s": round(their_rate),
        "ratio_cpu": round(rate / their_rate, 1),
        "wall_s": round(wall, 1),
        "seqio_wall_s": round(their_wall, 1),
        "ratio_wall": round(examples / wall / (every / their_wall), 1),
        "start_cpu_s": round(start, 1),
        "seqio_start_cpu_s": round(their_start, 1),
        "tokens_equal": written == cached,
    }


def measure(command, folder):
    """Wall and processor seconds of `python -m …`, children included."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu


def read_store(directory):
    """(task, tokens of inputs, of targets) → how many examples have them."""
    from t5x.data import records, store

    manifest = store.read_manifest(directory)
    entries = manifest.of_split("train")
    reader = records.ExampleReader(directory, manifest, entries)
    return Counter(
        (entry.task, tuple(example.inputs.tolist()), tuple(example.targets.tolist()))
        for number, entry in enumerate(entries)
        for example in reader.read(number, range(entry.examples))
    )


def read_cache(directory):
    """The same of a cache's train split, and examples of all splits that were written."""
    import tensorflow as tf

    found, every = Counter(), 0
    for stats in directory.glob("*/stats.*.json"):
        every += json.loads(stats.read_text())["examples"]
    for path in directory.glob("*/train.tfrecord-*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            tokens = (tuple(features[f].int64_list.value) for f in ("inputs", "targets"))
            found[(path.parent.name, *tokens)] += 1
    return found, every


if __name__ == "__main__":
    print(json.dumps({"case": "prepare", **prepare(*map(int, sys.argv[1:]))}))
