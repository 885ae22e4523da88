"""The data path from a prepared store against SeqIO's on the same tasks: start, speed, packing.

    T0X_DATA_DIR=DATA python benchmarks/data_path.py [--work DIR] [CASE …]

DATA holds ag_news, cosmos_qa and dream as <dataset>/default/<split>.jsonl; their 25 prompts are
registered 330 times in all (data_path_tasks.py). Prints one JSON line a case. Each measurement is a
process of its own; processor seconds count all its threads. DIR keeps the prepared stores between
calls.

Cases: start (seconds and memory to the first packed batch of 16 rows), rate (examples per processor
second, how full rows are), p3_like (rows of log-normal lengths), draws (frequencies against rates),
killed (processes killed at random, 1, 2 and 4 in turn), losses (20 steps through both paths),
tokens (real tokens in a step at T0's batch), prepare (`t0x prepare` against seqio_cache_tasks).
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import data_path_prepare
import numpy as np

from t5x.data import records, store

HERE = Path(__file__).resolve().parent
LENGTHS = {"inputs": 1024, "targets": 256}
ROWS = 16
T0_BATCH = 1024
STEPS_PREPARED = 20
KILLS = 10
STEP_SECONDS = 0.03  # so that processes are killed while they read
SMALL = (
    "--gin.BATCH_SIZE=8",
    "--gin.TRAIN_STEPS=20",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.train.stats_period=1",
    "--gin.SaveCheckpointConfig.period=None",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The fields of `DatasetConfig` that the reader asks, without importing SeqIO for them."""

    mixture_or_task_name: str
    task_feature_lengths: dict[str, int]
    batch_size: int = ROWS
    split: str = "train"
    shuffle: bool = True
    seed: int = 0
    pack: bool = True
    num_workers: int = 0


class EncDecFeatureConverter:
    """Stands for SeqIO's, whose name is all that the reader asks."""


def open_store(directory, mixture, shard=0, shards=1, batch_size=ROWS, lengths=None):
    from t5x.data import prepared

    cfg = Config(mixture, lengths or LENGTHS, batch_size)
    return prepared.get_dataset(cfg, shard, shards, EncDecFeatureConverter, directory=directory)


# -------------------------------------------------------------------------------------------------
# Stores
# -------------------------------------------------------------------------------------------------
def prepare_real(work):
    """Writes the store of 330 tasks by `t0x prepare`, and smaller ones as parts of it."""
    whole = work / "data_path_330"
    command = [
        sys.executable, "-m", "t0x", "prepare", "--mixture=data_path_330", f"--out={whole}",
        "--module=data_path_tasks", f"--steps={STEPS_PREPARED}", f"--batch_size={T0_BATCH}",
        f"--input_length={LENGTHS['inputs']}", f"--target_length={LENGTHS['targets']}",
    ]  # fmt: skip
    if not (whole / store.MANIFEST).exists():
        subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
    manifest = store.read_manifest(whole)
    for count in (50, 325):
        part = work / f"data_path_{count}"
        part.mkdir(exist_ok=True)
        # The order of registration, in which every dataset's prompts come before the next copy's.
        entries = sorted(manifest.entries, key=lambda e: (e.task[-2:], e.task))[:count]
        for entry in entries:
            link = part / entry.task
            if not link.exists():
                link.symlink_to(whole / entry.task)
        store.write_manifest(
            part, dataclasses.replace(manifest, mixture=part.name, entries=tuple(entries))
        )
    return {count: work / f"data_path_{count}" for count in (50, 325, 330)}


def write_lognormal(directory, tasks=330, examples=300, capacity=(1024, 256)):
    """A store of P3-like lengths whose examples begin with their task and place."""
    if (directory / store.MANIFEST).exists():
        return directory
    rng = np.random.default_rng(0)
    feature = store.Feature(vocabulary="none", vocabulary_size=32100, add_eos=False)
    entries = []
    for task in range(tasks):
        name = f"task_{task:03}"
        lengths = np.rint(rng.lognormal(np.log((120, 6)), 1.0, (examples, 2)))
        lengths = np.clip(lengths, (4, 1), capacity).astype(int)
        with records.ShardWriter(directory, name, "train", 0, 1, "uint16") as writer:
            for place, (inputs, targets) in enumerate(lengths):
                tokens = np.full(inputs, 3)
                tokens[:2] = 4 + task, 4 + place
                writer.write(tokens, np.full(targets, 5))
        entries.append(
            store.Entry(
                task=name,
                split="train",
                examples=examples,
                shards=(writer.shard,),
                lengths_sha256=store.write_lengths(directory, name, "train", lengths),
                template_hash="",
                rate=float(rng.lognormal(0, 1)),
                passes=1.0,
                source_rows=examples,
                skipped={},
                truncated_variables=0,
                input_lengths=store.count_lengths(lengths[:, 0]),
                target_lengths=store.count_lengths(lengths[:, 1]),
            )
        )
    manifest = store.Manifest(
        mixture="lognormal",
        token_dtype="uint16",
        text=False,
        features=dict.fromkeys(store.FEATURES, feature),
        entries=tuple(entries),
        missing=(),
    )
    store.write_manifest(directory, manifest)
    return directory


# -------------------------------------------------------------------------------------------------
# What is measured in a process of its own
# -------------------------------------------------------------------------------------------------
def measure(path, directory, mixture, batches):
    """First batch and `batches` more of one path, as one JSON line."""
    if path == "prepared":
        iterator = open_store(directory, mixture)
    else:
        import seqio

        from t5x.data import datasets

        __import__("data_path_tasks")
        cfg = datasets.DatasetConfig(mixture, LENGTHS, "train", ROWS, True, 0, pack=True)
        iterator = datasets.get_dataset(cfg, 0, 1, seqio.EncDecFeatureConverter)
        iterator = iterator.as_numpy_iterator()
    next(iterator)
    first = time.time() - started_at()
    first_cpu = time.process_time()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"first_batch_s": first, "first_batch_cpu_s": first_cpu, "rss_gb": rss}
    if batches:
        tokens, examples = np.zeros(2), 0
        cpu, wall = time.process_time(), time.time()
        for _ in range(batches):
            batch = next(iterator)
            tokens += [np.count_nonzero(batch[f"{s}_segment_ids"]) for s in ("encoder", "decoder")]
            examples += int(batch["encoder_segment_ids"].max(axis=1).sum())
        density = tokens / (batches * ROWS * np.array(list(LENGTHS.values())))
        found |= {
            "examples_per_cpu_s": examples / (time.process_time() - cpu),
            "examples_per_s": examples / (time.time() - wall),
            "encoder_density": density[0],
            "decoder_density": density[1],
        }
    print(json.dumps(found), flush=True)
    os._exit(0)


def started_at():
    """When this process began, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def log_ids(directory, shard, shards, folder, resume, batches):
    """Reads batches, saving the position before and the examples' ids of each, until killed."""
    iterator = open_store(directory, "lognormal", shard, shards)
    done = 0
    if resume:
        iterator.set_state(json.loads(Path(resume).read_text()))
        done = iterator.get_state()["batches"]
    for number in range(done, batches):
        batch = next(iterator)
        time.sleep(STEP_SECONDS)
        starts = (batch["encoder_positions"] == 0) & (batch["encoder_segment_ids"] > 0)
        rows, columns = np.nonzero(starts)
        tokens = batch["encoder_input_tokens"]
        ids = np.stack([tokens[rows, columns], tokens[rows, columns + 1]], 1)
        for kind, content in (("ids", ids.tolist()), ("json", iterator.get_state())):
            part = folder / f"{number + 1}.{shard}.{kind}.part"
            part.write_text(json.dumps(content))
            part.rename(part.with_suffix(""))


# -------------------------------------------------------------------------------------------------
# Cases
# -------------------------------------------------------------------------------------------------
def environment():
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def spawn(*arguments):
    command = [sys.executable, str(HERE / "data_path.py"), "--child", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def ask(*arguments):
    out, _ = spawn(*arguments).communicate()
    return json.loads(out.strip().splitlines()[-1])


def start(work):
    stores = prepare_real(work)
    few, many = (ask("measure", "prepared", stores[n], f"data_path_{n}", 0) for n in (50, 330))
    theirs = ask("measure", "seqio", "-", "data_path_330", 0)
    return {
        "tasks": 330,
        **many,
        **{f"growth_{name}": many[name] / few[name] for name in many},
        **{f"seqio_{name}": value for name, value in theirs.items()},
    }


def rate(work):
    stores = prepare_real(work)
    ours = ask("measure", "prepared", stores[325], "data_path_325", 600)
    theirs = ask("measure", "seqio", "-", "data_path_325", 40)
    names = ("examples_per_cpu_s", "examples_per_s", "encoder_density", "decoder_density")
    return {
        "tasks": 325,
        **{name: ours[name] for name in names},
        **{f"seqio_{name}": theirs[name] for name in names},
        "ratio": ours["examples_per_cpu_s"] / theirs["examples_per_cpu_s"],
    }


def p3_like(work):
    iterator = open_store(write_lognormal(work / "lognormal"), "lognormal")
    plan, blocks = iterator._source.make_plan(), 4
    rows = [plan.plan(block) for block in range(blocks)]
    for _ in range(sum(block.count for block in rows) // ROWS):
        next(iterator)
    counts = iterator.count()
    # Every draw of whole blocks is in a row, each once.
    lost = 0
    for number, block in enumerate(rows):
        tasks, draws = plan.draw(number)
        drawn = _count_pairs(tasks, plan.find_places(tasks, draws))
        kept = _count_pairs(block.entries, block.places)
        lost += sum((drawn - kept).values()) + sum((kept - drawn).values())
    return {
        "tasks": 330,
        "examples": int(counts["data/examples"]),
        "examples_lost": lost,
        "truncated": int(counts["data/truncated"]),
        "encoder_density": 1 - counts["data/encoder_padding"],
        "decoder_density": 1 - counts["data/decoder_padding"],
    }


def _count_pairs(*arrays):
    return collections.Counter(map(tuple, np.stack(arrays, axis=1).tolist()))


def draws(work):
    import scipy.stats

    iterator = open_store(write_lognormal(work / "lognormal"), "lognormal")
    plan = iterator._source.make_plan()
    rates = np.array([entry.rate for entry in iterator._source.entries])
    drawn, block, places = np.zeros(len(rates), int), 0, []
    while drawn.sum() < 200_000:
        tasks, numbers = plan.draw(block)
        drawn += np.bincount(tasks, minlength=len(rates))
        places.append(np.stack([tasks, plan.find_places(tasks, numbers)]))
        block += 1
    expected = rates / rates.sum() * drawn.sum()
    tasks, places = np.concatenate(places, axis=1)
    uneven = 0
    for task, entry in enumerate(iterator._source.entries):
        counts = np.bincount(places[tasks == task], minlength=entry.examples)
        uneven += int(counts.max() - counts.min() > 1)
    test = scipy.stats.chisquare(drawn, expected)
    return {
        "draws": int(drawn.sum()),
        "chi2": test.statistic,
        "p": test.pvalue,
        "furthest_off": np.abs(drawn - expected).max(),
        "tasks_with_an_example_twice_in_an_epoch": uneven,
    }


def killed(work, batches=160):
    directory = write_lognormal(work / "lognormal")
    whole = _folder(work / "whole")
    log_ids(directory, 0, 1, whole, None, batches)
    expected = [_ids(whole, number, 1) for number in range(1, batches + 1)]
    rng, found, resume, lives = random.Random(0), [], None, []
    for life in range(KILLS + 1):
        shards = (1, 2, 4)[life % 3]
        folder = _folder(work / f"life_{life}")
        children = [
            spawn("log_ids", directory, shard, shards, folder, resume or "", batches)
            for shard in range(shards)
        ]
        if life < KILLS:
            # Killed some time after the last of the processes has begun to read.
            while not all(any(folder.glob(f"*.{shard}.json")) for shard in range(shards)):
                time.sleep(0.02)
            time.sleep(rng.random() * 0.3)
            for child in children:
                child.kill()
        codes = [child.wait() for child in children]
        read = [n for n in range(len(found) + 1, batches + 1) if _is_whole(folder, n, shards)]
        found += [_ids(folder, number, shards) for number in read]
        if read:  # a checkpoint is one of all processes, any of which has the position
            resume = folder / f"{read[-1]}.{rng.randrange(shards)}.json"
        lives.append({"processes": shards, "batches": len(read), "killed": codes.count(-9)})
    return {
        "kills": sum(life["killed"] > 0 for life in lives),
        "batches": len(found),
        "examples": sum(map(len, found)),
        "equal": found == expected,
        "lives": lives,
    }


def _folder(path):
    path.mkdir(exist_ok=True)
    for file in path.iterdir():
        file.unlink()
    return path


def _is_whole(folder, number, shards):
    return all((folder / f"{number}.{shard}.json").exists() for shard in range(shards))


def _ids(folder, number, shards):
    parts = [json.loads((folder / f"{number}.{shard}.ids").read_text()) for shard in range(shards)]
    return [pair for part in parts for pair in part]


# Rows as lists of examples, each row packed by SeqIO's converter.
REPLAY = """
import json
import seqio, tensorflow as tf

def get_dataset(cfg, shard_id, num_shards, feature_converter_cls):
    rows = json.load(open({path!r}))
    one = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1)
    def read():
        for row in rows:
            yield tuple(tf.ragged.constant(side, tf.int32, ragged_rank=1) for side in zip(*row))
    def pack(inputs, targets):
        examples = tf.data.Dataset.range(tf.cast(inputs.nrows(), tf.int64))
        examples = examples.map(lambda i: {{"inputs": inputs[i], "targets": targets[i]}})
        return feature_converter_cls(pack=True)(examples, cfg.task_feature_lengths)
    dataset = tf.data.Dataset.from_generator(read, output_signature=(one, one))
    return dataset.flat_map(pack).batch(cfg.batch_size)
"""
REPLAY_GIN = """
from __gin__ import dynamic_registration
import __main__ as train_script
import data_path_replay
include 't0_mini.gin'
train_script.train.get_dataset_fn = @data_path_replay.get_dataset
"""


def losses(work):
    """The same rows in the same order through both paths, by the real command on t0_mini.gin."""
    prepared_dir = work / "mini"
    lengths = {"inputs": 128, "targets": 32}
    if not (prepared_dir / store.MANIFEST).exists():
        command = [
            sys.executable, "-m", "t0x", "prepare", "--mixture=mini_train", f"--out={prepared_dir}",
            "--steps=20", "--batch_size=8", "--input_length=128", "--target_length=32",
        ]  # fmt: skip
        subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
    from t5x.data.prepared_batches import _TokenReader
    from t5x.data.prepared_rows import Position

    iterator = open_store(prepared_dir, "mini_train", batch_size=8, lengths=lengths)
    reader, replayed = _TokenReader(iterator._source), []
    plan = iterator._source.make_plan().read(Position(), 8)
    for (rows, _), _ in zip(plan, range(21), strict=False):
        batch = [[] for _ in range(rows.count)]
        for row, *example in zip(rows.rows, *reader.read(rows), strict=True):
            batch[row].append([tokens.tolist() for tokens in example])
        replayed += batch
    (work / "rows.json").write_text(json.dumps(replayed))
    module = REPLAY.format(path=str(work / "rows.json"))
    (work / "data_path_replay.py").write_text(module)
    (work / "data_path_replay.gin").write_text(REPLAY_GIN)
    runs = {
        "prepared": ["--gin_file=t0_mini.gin", f"--gin.PREPARED_DIR='{prepared_dir}'"],
        "seqio": [f"--gin_file={work}/data_path_replay.gin"],
    }
    found = {}
    for name, bindings in runs.items():
        model_dir = work / f"losses_{name}_{os.getpid()}"
        command = [
            sys.executable, "-m", "t5x.train",
            f"--gin.MODEL_DIR='{model_dir}'", *bindings, *SMALL,
        ]  # fmt: skip
        env = environment()
        env["PYTHONPATH"] = os.pathsep.join([str(work), env["PYTHONPATH"]])
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)
        lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
        found[name] = [line["loss"] for line in lines if "loss" in line]
    return {
        "steps": len(found["prepared"]),
        "equal": found["prepared"] == found["seqio"],
        "largest_difference": float(np.abs(np.subtract(*found.values())).max()),
        "first": found["prepared"][0],
        "last": found["prepared"][-1],
    }


def tokens(work):
    """Whole batches of 1,024 rows from the store; SeqIO's from how full its rows were."""
    iterator = open_store(prepare_real(work)[325], "data_path_325", batch_size=T0_BATCH)
    for _ in range(4):
        next(iterator)
    counts = iterator.count()
    slots = T0_BATCH * np.array(list(LENGTHS.values()))
    padding = np.array([counts["data/encoder_padding"], counts["data/decoder_padding"]])
    theirs = ask("measure", "seqio", "-", "data_path_325", 40)
    density = np.array([theirs["encoder_density"], theirs["decoder_density"]])
    ours, before = slots * (1 - padding), slots * density
    return {
        "batch": T0_BATCH,
        "tokens_per_step": ours.sum(),
        "seqio_tokens_per_step": before.sum(),
        "encoder_tokens_per_step": ours[0],
        "seqio_encoder_tokens_per_step": before[0],
        "ratio": ours.sum() / before.sum(),
    }


def prepare(_work):
    """`t0x prepare` against SeqIO's writer of caches (data_path_prepare.py)."""
    return data_path_prepare.prepare()


CASES = {f.__name__: f for f in (start, rate, p3_like, draws, killed, losses, tokens, prepare)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--work", type=Path, default=Path("data_path_work"))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    for name in arguments.cases or CASES:
        print(json.dumps({"case": name, **CASES[name](work)}, default=float), flush=True)


def child(name, *arguments):
    if name == "measure":
        path, directory, mixture, batches = arguments
        measure(path, directory, mixture, int(batches))
    else:
        directory, shard, shards, folder, resume, batches = arguments
        log_ids(directory, int(shard), int(shards), Path(folder), resume, int(batches))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
