"""What changed between two starts in one MODEL_DIR, and what the run does: docs/launch.md's table.

Every row of the table is a row here; each begins with a copy of the same run of two steps.
"""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs/launch.md"
TITLE = "## The same MODEL_DIR, other settings"
TASKS = """
import os

import gin
import seqio
from t0x.registration import register_dataset, register_mixture
from t0x.tasks import mini


@gin.configurable
def vocabulary():
    return seqio.ByteVocabulary() if os.path.exists("bytes") else mini.vocabulary()


features = {
    "inputs": seqio.Feature(vocabulary(), add_eos=False),
    "targets": seqio.Feature(vocabulary(), add_eos=True),
}
found = register_dataset("own", "rows", "templates.yaml", output_features=features)
register_mixture("one_task", found.train[:1])
register_mixture("renamed", found.train)
"""
TEMPLATES = """
dataset: own
templates:
  a: !Template
    id: a
    name: first
    reference: ''
    jinja: "Is {{ text }} left or right? ||| {{ answer_choices[label] }}"
    answer_choices: left ||| right
    metadata: !TemplateMetadata
      metrics: [Accuracy]
  b: !Template
    id: b
    name: second
    reference: ''
    jinja: "{{ text }}: which side? ||| {{ answer_choices[label] }}"
    answer_choices: left ||| right
    metadata: !TemplateMetadata
      metrics: [Accuracy]
"""
RUN = """
from __gin__ import dynamic_registration

import own_tasks
from t5x import utils
from t5x.examples.t5 import network

include 't0_mini.gin'

VOCABULARY = @own_tasks.vocabulary()
MODEL_DIR = 'run'
MIXTURE_OR_TASK_NAME = 'own_train'
TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 8}
TRAIN_STEPS = 2
utils.SaveCheckpointConfig.keep = None
utils.SaveCheckpointConfig.period = 1
network.T5Config:
  num_encoder_layers = 1
  num_decoder_layers = 1
  emb_dim = 32
  num_heads = 2
  head_dim = 16
  mlp_dim = 32
"""
ADAMW = """
from __gin__ import dynamic_registration

from t5x import optimizers

OPTIMIZER = @optimizers.adamw()
optimizers.adamw.learning_rate = 0.001
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A change, and what is printed of it: None where the run goes on."""

    changed: str
    bindings: tuple[str, ...] = ()
    edit: tuple[str, str, str] | None = None  # file, text, other text
    says: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    file: str | None = None


ANEW = "utils.RestoreCheckpointConfig.restore_dataset=False"
WAYS = "keep what it was, or bind RestoreCheckpointConfig.restore_dataset = False"
ONE_DEVICE = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
ROWS = [
    Row(
        "learning rate, dropout, microbatches, periods, evaluation, `RANDOM_SEED`",
        (
            "utils.create_learning_rate_scheduler.base_learning_rate=0.1",
            "DROPOUT_RATE=0.1",
            "trainer.Trainer.num_microbatches=2",
            "utils.SaveCheckpointConfig.period=3",
            "RANDOM_SEED=7",
        ),
    ),
    Row("the mesh, the number of devices", environment=(("XLA_FLAGS", ONE_DEVICE),)),
    Row("the name of the mixture, with the same tasks", ("MIXTURE_OR_TASK_NAME='renamed'",)),
    Row(
        "the tasks",
        ("MIXTURE_OR_TASK_NAME='one_task'",),
        says=rf"position in other training data: own_second no longer in MIXTURE.*; {WAYS}",
    ),
    Row(
        "a template",
        edit=("templates.yaml", "which side?", "on which side?"),
        says=rf"the template of own_second changed \(\w+ then, \w+ now\); {WAYS}",
    ),
    Row(
        "answer choices",
        edit=("templates.yaml", "left ||| right", "port ||| starboard"),
        says=rf"the answer choices of own_first, own_second changed; {WAYS}",
    ),
    Row(
        "rows",
        edit=("rows/train.jsonl", "text 3", "no text"),
        says=rf"the rows of own_first, own_second changed; {WAYS}",
    ),
    Row(
        "`TASK_FEATURE_LENGTHS`",
        ("TASK_FEATURE_LENGTHS={'inputs': 40, 'targets': 8}",),
        says=rf"TASK_FEATURE_LENGTHS was \{{'inputs': 32, .* and is \{{'inputs': 40, .*; {WAYS}",
    ),
    Row("`BATCH_SIZE`", ("BATCH_SIZE=16",), says=rf"BATCH_SIZE was 8 and is 16; {WAYS}"),
    Row(
        "`DatasetConfig.seed`, `shuffle`, `pack`, `split`",
        ("train/utils.DatasetConfig.seed=1", "train/utils.DatasetConfig.pack=False"),
        says=rf"seed was 0 and is 1; DatasetConfig.pack was True and is False; {WAYS}",
    ),
    Row(
        "the number of processes that read data, unless `num_data_shards` is bound",
        ("train/utils.DatasetConfig.num_data_shards=2",),
        says=rf"number of data shards .* was 1 and is 2; {WAYS}",
    ),
    Row(
        "any of these, with `RestoreCheckpointConfig.restore_dataset = False`",
        ("MIXTURE_OR_TASK_NAME='one_task'", "BATCH_SIZE=16", ANEW),
    ),
    Row(
        "the vocabulary",
        (ANEW,),
        edit=("bytes", "", "here"),
        says=r"the vocabulary of \w+ was SentencePiece \w+ of \d+ and is ByteVocabulary of 259, "
        r"but this run goes on from run/checkpoint_2; use the VOCABULARY of that run, or another",
    ),
    Row(
        "the model's size",
        ("network.T5Config.mlp_dim=64",),
        says=r"checkpoint run/checkpoint_2 does not fit the model: .* has shape .*32\) there and",
    ),
    Row(
        "the optimizer",
        file="adamw.gin",
        says=r"the optimizer was Adafactor .* and is \w+ .*0/mu.*; bind the former OPTIMIZER, or",
    ),
    Row(
        "`TRAIN_STEPS`, to less than the checkpoint's",
        ("TRAIN_STEPS=1",),
        says=r"TRAIN_STEPS = 1 lies before the checkpoint's step 2; raise it or use another",
    ),
]


@pytest.fixture(scope="module")
def run_before(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("restarts")
    (folder / "rows").mkdir()
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(32)]
    (folder / "rows/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own_tasks.py").write_text(TASKS)
    (folder / "templates.yaml").write_text(TEMPLATES)
    (folder / "run.gin").write_text(RUN)
    (folder / "adamw.gin").write_text(ADAMW)
    commands.run("t5x.train", "--gin_file=run.gin", cwd=folder)
    return folder


def _copy(run_before, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run_before, folder)
    return folder


def _content(model_dir):
    """The files of a run's checkpoints, which nobody is to touch."""
    files = sorted(path for path in model_dir.glob("checkpoint_*/**/*") if path.is_file())
    return {str(path.relative_to(model_dir)): path.read_bytes() for path in files}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.changed)
def test_what_a_run_does(commands, run_before, tmp_path, row, record_property):
    folder = _copy(run_before, tmp_path)
    before = _content(folder / "run")
    if row.edit:
        file, text, other = row.edit
        path = folder / file
        content = path.read_text() if path.exists() else ""
        assert text in content
        path.write_text(content.replace(text, other))
    # What the row binds wins.
    bindings = [f"--gin.{binding}" for binding in ("TRAIN_STEPS=3", *row.bindings)]
    files = ["--gin_file=run.gin", *([f"--gin_file={row.file}"] if row.file else [])]
    done = commands.run(
        "t5x.train",
        *files,
        *bindings,
        cwd=folder,
        environment=dict(row.environment),
        ok=row.says is None,
    )
    after = _content(folder / "run")
    assert before.items() <= after.items()
    assert not list((folder / "run").glob("*unreadable*"))
    assert not (folder / "run/training.lock").exists()
    if row.says is None:
        assert "resumed from run/checkpoint_2" in done.stdout
        assert (folder / "run/checkpoint_3/state").is_dir()
    else:
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert re.search(row.says, done.stderr), done.stderr
        assert before == after
    if os.environ.get("T0X_ALL_FAULTS"):
        ended = "exit code 0" if row.says is None else "exit code 1, one line"
        record_property("fault", (f"changed: {row.changed}", ended, "nothing"))


def test_the_table_has_these_rows():
    section = PAGE.read_text().partition(TITLE)[2].partition("\n## ")[0]
    lines = [line.strip("|").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    table = {cells[0].strip(): cells[1].strip() for cells in lines[1:]}
    assert list(table) == [row.changed for row in ROWS]
    for row in ROWS:
        assert table[row.changed].startswith("goes on" if row.says is None else "refused"), row


def test_relative_steps_count_from_the_first_start(commands, run_before, tmp_path):
    folder = _copy(run_before, tmp_path)
    shutil.rmtree(folder / "run")
    for steps, reached in ((1, 1), (3, 3), (3, 3)):
        relative = f"--gin.TRAIN_STEPS_RELATIVE={steps}"
        done = commands.run("t5x.train", "--gin_file=run.gin", relative, cwd=folder)
        assert f"now at step {reached}" in done.stdout


def test_an_own_seed_of_the_clock_is_kept(commands, run_before, tmp_path):
    folder = _copy(run_before, tmp_path)
    shutil.rmtree(folder / "run")
    for steps in (1, 2):
        bindings = (f"--gin.TRAIN_STEPS={steps}", "--gin.train/utils.DatasetConfig.seed=None")
        commands.run("t5x.train", "--gin_file=run.gin", *bindings, cwd=folder)
    saved = [
        json.loads((folder / f"run/checkpoint_{step}/_CHECKPOINT_METADATA").read_text())
        for step in (1, 2)
    ]
    seeds = [x["custom_metadata"]["t5x"]["data"]["settings"]["DatasetConfig.seed"] for x in saved]
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize("way", ["a run's directory", "a checkpoint", "its state"])
@pytest.mark.parametrize("mode", ["specific", "latest"])
def test_a_run_starts_from_what_it_is_given(commands, run_before, tmp_path, way, mode):
    folder = _copy(run_before, tmp_path)
    path = {"a run's directory": "run", "a checkpoint": "run/checkpoint_2"}.get(
        way, "run/checkpoint_2/state"
    )
    done = commands.run(
        "t5x.train",
        "--gin_file=run.gin",
        "--gin.MODEL_DIR='other'",
        "--gin.TRAIN_STEPS=3",
        f"--gin.utils.RestoreCheckpointConfig.path='{path}'",
        f"--gin.utils.RestoreCheckpointConfig.mode='{mode}'",
        cwd=folder,
    )
    assert "starting from run/checkpoint_2" in done.stdout
    assert "now at step 3" in done.stdout
