"""Prepared stores: tokens are SeqIO's, what is there stays, what is missing is named."""

import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import seqio
from hypothesis import given
from hypothesis import strategies as st

from t0x import prepare, registration
from t0x.prepare import jobs, plan
from t0x.prepare.processes import JobError, call, run_jobs
from t0x.prompts.collection import install_directory
from t0x.prompts.template import Template
from t0x.registration.skipped import EMPTY, TEMPLATE_ERROR
from t0x.tasks import mini
from t5x.data import store
from t5x.data.records import ExampleReader

SHARED = Path(__file__).parents[4] / "shared"
_numbers = itertools.count()
CLASSIFY = Template("classify", "{{text}}: left or right?|||{{side}}", "left ||| right")
REPEAT = Template("repeat", "Say it: {{text}}|||{{text}}")


def run_here(request, todo, report):
    """The runner of tests that need no processes."""
    for job in todo:
        jobs.run_job(request, job, report)


def register(rows, *templates, **options):
    """A dataset of its own, with a mixture of its prompts."""
    name = f"prepared{next(_numbers)}"
    source = rows if isinstance(rows, (str, Path)) else {"train": rows}
    registration.register_dataset(
        name,
        source,
        {template.name: template for template in templates or (CLASSIFY, REPEAT)},
        output_features=mini.output_features(),
        **options,
    )
    return name


def rows_of(count, start=0):
    return [{"text": f"word {start + i}", "side": ("left", "right")[i % 2]} for i in range(count)]


def write_rows(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def examples_of(directory, split="train"):
    """Task → its examples, read by the store's own reader."""
    manifest = store.read_manifest(directory)
    entries = manifest.of_split(split)
    reader = ExampleReader(directory, manifest, entries)
    return {
        entry.task: reader.read(number, range(entry.examples))
        for number, entry in enumerate(entries)
    }


def files_of(directory, pattern="**/*"):
    """Path → content and time of change of every file."""
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(directory).glob(pattern)
        if path.is_file()
    }


def contents(directory):
    return {path: content for path, (content, _) in files_of(directory).items()}


def assert_tokens_are_seqios(directory, most=None):
    found = examples_of(directory)
    for task, ours in found.items():
        dataset = seqio.TaskRegistry.get(task).get_dataset(None, "train", shuffle=False)
        theirs = list(dataset.take(most or len(ours)).as_numpy_iterator())
        assert most or len(theirs) == len(ours)
        for mine, expected in zip(ours, theirs, strict=False):
            assert mine.inputs.tolist() == expected["inputs"].tolist()
            assert mine.targets.tolist() == expected["targets"].tolist()
            assert mine.targets[-1] == 1  # EOS
            if mine.texts:
                assert [text.encode() for text in mine.texts] == [
                    expected["inputs_pretokenized"],
                    expected["targets_pretokenized"],
                ]
    return found


def test_tokens_are_seqios(tmp_path):
    tasks = [names.train[0] for name, names in mini.TASKS.items() if names.train]
    registration.register_mixture("prepared_mini", tasks)
    request = prepare.Request("prepared_mini", str(tmp_path), keep_text=True)
    manifest = prepare.prepare(request, run_here)
    found = assert_tokens_are_seqios(tmp_path, most=100)
    assert len(found) == len(tasks) == 8
    for entry in manifest.entries:
        lengths = store.read_lengths(tmp_path, entry)
        pairs = [(len(e.inputs), len(e.targets)) for e in found[entry.task]]
        assert lengths.tolist() == [list(pair) for pair in pairs]
        assert (
            entry.examples
            == entry.source_rows
            == seqio.TaskRegistry.get(entry.task).num_input_examples("train")
        )
        assert not store.find_damage(tmp_path, entry)
    rates = {e.task: e.rate for e in manifest.entries}
    mixture = seqio.MixtureRegistry.get("prepared_mini")
    assert rates == {task.name: mixture.get_rate(task) for task in mixture.tasks}


REAL = """
import sys
from t0x.prepare import Request, Run, prepare
from t0x.prepare.jobs import run_job
import t0x.tasks.local

sys.path.insert(0, {tests!r})
from test_prepare import assert_tokens_are_seqios, run_here

run = Run(steps=20, batch_size=8, inputs=1024, targets=256)
manifest = prepare(Request("local_train", {out!r}, keep_text=True), run_here)
found = assert_tokens_are_seqios({out!r}, most=20)
print(len(found), sum(map(len, found.values())))
"""


def test_tokens_of_real_rows_are_seqios(tmp_path, commands):
    data = SHARED / "data" / "hf"
    if not (data.is_dir() and install_directory().is_dir()):
        pytest.skip("real rows or promptsource's prompts are not here")
    place = tmp_path / "hf"
    for file in data.glob("*/*/train.jsonl"):
        lines = file.read_text().splitlines(keepends=True)[:150]
        target = place / file.relative_to(data)
        target.parent.mkdir(parents=True)
        target.write_text("".join(lines))
    script = tmp_path / "real.py"
    script.write_text(REAL.format(tests=str(Path(__file__).parent), out=str(tmp_path / "store")))
    model = next((SHARED / "data" / "vocab").glob("*.model"))
    environment = {"T0X_DATA_DIR": str(place), "T0X_VOCABULARY": str(model)}
    done = commands.run(str(script), environment=environment)
    tasks, examples = map(int, done.stdout.split()[-2:])
    assert tasks == 25
    assert examples == 25 * 150


def test_rows_without_an_example_are_counted(tmp_path):
    judge = Template("judge", "{{text}}|||{{places[0]}}")
    rows = [{"text": "a", "places": ["x"]}, {"text": "", "places": ["x"]}, {"text": "b"}] * 3
    name = register(rows, judge)
    manifest = prepare.prepare(prepare.Request(f"{name}_train", str(tmp_path)), run_here)
    (entry,) = manifest.entries
    assert entry.skipped == {EMPTY: 3, TEMPLATE_ERROR: 3}
    assert (entry.examples, entry.source_rows) == (3, 9)
    # What was left out here is none of the process's own counts.
    assert entry.task not in registration.skipped_rows()


def test_rank_tasks_and_unknown_mixtures_are_refused(tmp_path):
    name = register(rows_of(4))
    with pytest.raises(ValueError, match="rank classification"):
        prepare.prepare(prepare.Request(f"{name}_score_eval", str(tmp_path)), run_here)
    with pytest.raises(LookupError, match="no mixture or task is named 'nowhere'"):
        prepare.prepare(prepare.Request("nowhere", str(tmp_path)), run_here)


def test_a_run_gets_what_it_can_use_spread_over_the_split(tmp_path):
    small, large = register(rows_of(100)), register(rows_of(20_000))
    tasks = [f"{name}_{prompt}" for name in (small, large) for prompt in ("classify", "repeat")]
    registration.register_mixture(f"{large}_both", tasks)
    run = prepare.Run(steps=40, batch_size=8, inputs=64, targets=32)
    manifest = prepare.prepare(
        prepare.Request(f"{large}_both", str(tmp_path), run=run, keep_text=True), run_here
    )
    entries = {entry.task: entry for entry in manifest.entries}
    drawn = {task: entries[task].passes * entries[task].examples for task in tasks}
    assert sum(drawn.values()) == pytest.approx(
        plan.expect_examples(
            jobs.read_surveys(
                prepare.Request(f"{large}_both", str(tmp_path), run=run), [small, large]
            ),
            run,
        )
    )
    texts = {}
    for task in tasks[2:]:
        assert entries[task].examples == int(np.ceil(1.05 * drawn[task]))
        found = examples_of(tmp_path)[task]
        texts[task] = [int(example.texts[0].split("word ")[1].split(":")[0]) for example in found]
        assert texts[task] == sorted(set(texts[task]))
        halves = np.histogram(texts[task], bins=4, range=(0, 20_000))[0]
        assert min(halves) > 0.7 * len(found) / 4
    assert not set(texts[tasks[2]]) & set(texts[tasks[3]])


@given(
    rows=st.integers(1, 500),
    shards=st.integers(1, 7),
    start=st.integers(0, 499),
    share=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_shards_divide_the_chosen_rows(rows, shards, start, share, seed):
    count = int(rows * share)
    task = plan.TaskPlan(1.0, 0.0, False, start % rows, count)
    chosen = plan.SourcePlan(rows, shards, {"t": task})
    parts = [plan.choose_rows(chosen, "t", shard, "s", seed) for shard in range(shards)]
    everything = np.concatenate(parts)
    assert len(everything) == count
    assert (np.diff(everything) > 0).all()
    assert set(everything) <= set(range(rows))
    whole = plan.SourcePlan(rows, shards, {"t": plan.TaskPlan(1.0, 0.0, True, 0, rows)})
    parts = [plan.choose_rows(whole, "t", shard, "s", seed) for shard in range(shards)]
    assert np.concatenate(parts).tolist() == list(range(rows))


def test_torn_shards_are_done_again_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "EXAMPLES_PER_SHARD", 20)
    name = register(rows_of(100))
    request = prepare.Request(f"{name}_train", str(tmp_path))
    manifest = prepare.prepare(request, run_here)
    assert [len(entry.shards) for entry in manifest.entries] == [5, 5]
    before = files_of(tmp_path, "*/*.array_record")
    torn, missing = sorted(before)[2], sorted(before)[7]
    (tmp_path / torn).write_bytes(before[torn][0][:-20])
    (tmp_path / missing).unlink()
    (tmp_path / torn.parent / ".partial-killed").mkdir()
    assert prepare.prepare(request, run_here) == manifest
    after = files_of(tmp_path, "*/*.array_record")
    assert {path for path in before if before[path] != after[path]} == {torn, missing}
    assert all(before[path][0] == after[path][0] for path in before)
    assert not list(tmp_path.glob("*/.partial-*"))


def test_a_dataset_that_cannot_be_read_does_not_end_the_others(tmp_path):
    folder = write_rows(tmp_path / "rows", rows_of(30))
    good, bad = register(rows_of(90)), register(folder)
    lines = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(lines + '{"text": "half\n')
    tasks = [f"{name}_{prompt}" for name in (good, bad) for prompt in ("classify", "repeat")]
    mixture = f"{bad}_both"
    registration.register_mixture(mixture, tasks, lambda task: 90 if good in task.name else 30)
    request = prepare.Request(mixture, str(tmp_path / "store"))
    manifest = prepare.prepare(request, run_here)
    assert [entry.task for entry in manifest.entries] == sorted(tasks[:2])
    assert [missing.task for missing in manifest.missing] == sorted(tasks[2:])
    assert "line 31" in manifest.missing[0].reason
    assert manifest.missing_share == 0.25
    written = files_of(tmp_path / "store", "*/*.array_record")
    time.sleep(0.01)
    (folder / "train.jsonl").write_text(lines)
    manifest = prepare.prepare(request, run_here)
    assert not manifest.missing
    assert len(manifest.entries) == 4
    now = files_of(tmp_path / "store", "*/*.array_record")
    assert all(now[path] == written[path] for path in written)


def test_rows_that_changed_since_are_named(tmp_path):
    folder = write_rows(tmp_path / "rows", rows_of(30))
    name = register(folder)
    request = prepare.Request(f"{name}_train", str(tmp_path / "store"))
    prepare.prepare(request, run_here)
    write_rows(folder, rows_of(31))
    shutil.rmtree(tmp_path / "store" / f"{name}_repeat")
    manifest = prepare.prepare(request, run_here)
    assert "31 rows, 30 were planned" in manifest.missing[0].reason
    manifest = prepare.prepare(request, run_here, overwrite=True)
    assert [entry.examples for entry in manifest.entries] == [31, 31]


def test_another_mixture_or_other_settings_need_another_folder(tmp_path):
    one, two = register(rows_of(4)), register(rows_of(4))
    prepare.prepare(prepare.Request(f"{one}_train", str(tmp_path)), run_here)
    with pytest.raises(ValueError, match="another mixture"):
        prepare.prepare(prepare.Request(f"{two}_train", str(tmp_path)), run_here)
    with pytest.raises(ValueError, match="kept text"):
        prepare.prepare(prepare.Request(f"{one}_train", str(tmp_path), keep_text=True), run_here)


def test_processes_write_the_same_bytes(tmp_path):
    registration.register_mixture("prepared_two", mini.TASKS["news"].train)
    for folder, runner in (("one", run_here), ("two", prepare.run_locally(2))):
        prepare.prepare(prepare.Request("prepared_two", str(tmp_path / folder)), runner)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_beam_writes_the_same_bytes(tmp_path):
    pytest.importorskip("apache_beam")
    from t0x.prepare.beam import run_on_beam

    run = prepare.Run(steps=10, batch_size=8, inputs=64, targets=32)
    registration.register_mixture("prepared_beam", mini.TASKS["news"].train)
    for folder, runner in (("here", run_here), ("beam", run_on_beam(["--runner=DirectRunner"]))):
        request = prepare.Request("prepared_beam", str(tmp_path / folder), run=run)
        prepare.prepare(request, runner)
    assert contents(tmp_path / "here") == contents(tmp_path / "beam")


def raise_or_die(job, report):
    report(1, 0)
    if job == "raise":
        raise ValueError("no space\nleft")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_that_fails_or_is_killed_ends_the_others():
    counts = []
    run_jobs(raise_or_die, ["a", "b", "c"], 2, lambda *numbers: counts.append(numbers))
    assert counts == [(1, 0)] * 3
    with pytest.raises(JobError, match="no space left"):
        run_jobs(raise_or_die, ["raise"], 2, lambda *_: None)
    with pytest.raises(JobError, match="SIGKILL; out of memory"):
        run_jobs(raise_or_die, ["die"], 2, lambda *_: None)
    assert call(max, 1, 2) == 2
    with pytest.raises(JobError, match="invalid literal"):
        call(int, "x")


MANY = """
from t0x.prompts.template import Template
from t0x.registration import register_dataset, register_mixture
from t0x.tasks import mini

rows = [{"text": f"word {i}", "side": ("left", "right")[i % 2]} for i in range(400)]
prompts = {name: Template(name, f"{name} {{{{text}}}}|||{{{{side}}}}") for name in ("say", "ask")}
for number in range(16):
    source = {"train": rows[number:]}
    register_dataset(f"many{number}", source, prompts, output_features=mini.output_features())
names = [f"many{number}_{prompt}" for number in range(16) for prompt in prompts]
register_mixture("many", names, lambda task: 1.0)
"""


def test_killed_it_goes_on_to_the_same_bytes(tmp_path, commands):
    (tmp_path / "many_rows.py").write_text(MANY)
    command = ("t0x", "prepare", "--module", "many_rows", "--mixture", "many", "--processes", "2")
    commands.run(*command, "--out", "whole", cwd=tmp_path)
    killed, records = tmp_path / "killed", ".work/train/shards/*/*.json"
    pid = commands.start(*command, "--out", "killed", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(killed.glob(records)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert commands.wait().returncode == -signal.SIGKILL
    assert not (killed / "manifest.json").exists()
    done = files_of(killed, records)
    assert 0 < len(done) < 32
    commands.run(*command, "--out", "killed", cwd=tmp_path)
    assert contents(killed) == contents(tmp_path / "whole")
    again = files_of(killed, records)
    assert all(again[path] == done[path] for path in done)


def test_the_command_names_what_is_missing(tmp_path, commands):
    for name in ("good", "bad"):
        write_rows(tmp_path / name, rows_of(20))
    with open(tmp_path / "bad" / "train.jsonl", "a") as file:
        file.write("no JSON\n")
    (tmp_path / "kinds.py").write_text(
        "from t0x.prompts.template import Template\n"
        "from t0x.registration import register_dataset, register_mixture\n"
        "from t0x.tasks import mini\n"
        "prompt = {'ask': Template('ask', '{{text}}|||{{side}}')}\n"
        "for name in ('good', 'bad'):\n"
        "    register_dataset(name, name, prompt, output_features=mini.output_features())\n"
        "register_mixture('both', ['good_ask', 'bad_ask'], lambda task: 1.0)\n"
    )
    command = ("t0x", "prepare", "--module", "kinds", "--mixture", "both", "--out", "store")
    done = commands.run(*command, cwd=tmp_path, ok=False)
    assert "missing: bad_ask, 50.00% of the mixture" in done.stderr
    assert "1 tasks, 20 examples" in done.stdout
    write_rows(tmp_path / "bad", rows_of(20))
    done = commands.run(*command, cwd=tmp_path)
    assert "2 tasks, 40 examples" in done.stdout
