"""Users' gin files, as upstream T5X takes them, in every mode; inference writes every row once."""

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import jaxlib.xla_client
import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x import eval as eval_lib
from t5x import infer, precompile, train, utils
from t5x.inference import files as inference_files
from t5x.inference.files import create_task_from_tfexample_file, write_inferences_to_file

TESTDATA = Path(__file__).parent / "testdata"
DREAM = Path(__file__).parents[3] / "shared/data/hf/dream/default/train.jsonl"
LENGTHS = "{'inputs': 24, 'targets': 12}"


RUN_FILES = {
    "pretrain": train.train,
    "finetune": train.train,
    "eval": eval_lib.evaluate,
    "infer": infer.infer,
    "infer_from_tfexample_file": infer.infer,
    "precompile": precompile.precompile,
}
# Gin knows a module by the last parts of its name, so a process is for one of the two families.
FAMILY = os.environ.get("T5X_TEST_FAMILY", "t5")
SIZES = {f"{FAMILY}/t5_1_1/{size}" for size in ("tiny", "small", "base", "large", "xl", "xxl")}


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("run_file", RUN_FILES)
def test_every_size_parses_with_every_run_file(echo, size, run_file):
    paths = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH", "EVAL_OUTPUT_DIR")
    names = ("INFER_OUTPUT_DIR", "MIXTURE_OR_TASK_NAME", "TF_EXAMPLE_FILE_TYPE")
    macros = dict.fromkeys((*paths, *names), "'x'")
    macros |= {"TASK_FEATURE_LENGTHS": LENGTHS, "FEATURE_LENGTHS": LENGTHS}
    macros |= {"TF_EXAMPLE_FILE_PATHS": "['x']", "TRAIN_STEPS": "1", "DROPOUT_RATE": "0.0"}
    files = [f"t5x/examples/{size}.gin", f"t5x/configs/runs/{run_file}.gin"]
    echo(files, [f"{name} = {value}" for name, value in macros.items()])
    # By its whole name: another test may have registered another function of the same.
    entry_point = gin.config._inverse_lookup(RUN_FILES[run_file]).selector
    assert gin.query_parameter(f"{entry_point}.model") is not None
    assert gin.query_parameter(f"{FAMILY}.network.T5Config.vocab_size") == 32128


@pytest.mark.slow
@pytest.mark.skipif(FAMILY != "t5", reason="the process that this test starts")
def test_every_size_of_the_scalable_family_parses_too():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        __file__,
        "-k",
        "every_size_parses",
    ]
    environment = {**os.environ, "T5X_TEST_FAMILY": "scalable_t5"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_fine_tuning_file_of_upstreams_runs(echo, checkpoint, tmp_path):
    bindings = {"MODEL_DIR": repr(str(tmp_path)), "INITIAL_CHECKPOINT_PATH": repr(checkpoint)}
    echo(["echo_finetune.gin"], [f"{name} = {value}" for name, value in bindings.items()])
    step, state = gin.get_configurable(train.train)()
    assert step == int(state.step) == 1_000_004
    assert (tmp_path / "checkpoint_1000004" / "dataset").is_dir()
    assert not (tmp_path / "checkpoint_1000002").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert np.all(np.isfinite(losses))
    (results,) = tmp_path.glob("inference_eval/echo-metrics.jsonl")
    assert [json.loads(line)["step"] for line in results.read_text().splitlines()] == [
        1_000_002,
        1_000_004,
    ]
    assert list((tmp_path / "training_eval" / "echo").glob("events.*"))


@pytest.mark.parametrize(("num_microbatches", "rows"), [("None", 8), ("2", 4)])
def test_precompile_writes_the_programs_of_the_run(echo, tmp_path, capsys, num_microbatches, rows):
    bindings = {
        "MODEL_DIR": repr(str(tmp_path)),
        "MIXTURE_OR_TASK_NAME": "'echo'",
        "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "DROPOUT_RATE": "0.0",
        "BATCH_SIZE": "8",
        "USE_CACHED_TASKS": "False",
        "trainer.Trainer.num_microbatches": num_microbatches,
    }
    echo(
        ["echo_model.gin", "t5x/configs/runs/precompile.gin"],
        [f"{name} = {value}" for name, value in bindings.items()],
    )
    gin.get_configurable(precompile.precompile)()
    assert np.load(tmp_path / "assignment").tolist() == [[0]]
    for name in ("lowered_hlo_pre_optimization", "lowered_hlo_post_optimization"):
        assert b"jit_train_step" in (tmp_path / name).read_bytes()
    program = (tmp_path / "lowered_hlo_pre_optimization").read_bytes()
    text = jaxlib.xla_client.XlaComputation(program).as_hlo_text()
    # Embedded input tokens, as the encoder sees them, of a microbatch.
    assert f"f32[{rows},24,16]" in text
    assert f"f32[{12 - rows},24,16]" not in text
    assert "for 1 cpu" in capsys.readouterr().out


def _bindings(checkpoint, out, **settings):
    settings = {
        "CHECKPOINT_PATH": repr(checkpoint),
        "INFER_OUTPUT_DIR": repr(str(out)),
        "DROPOUT_RATE": "0.0",
        "RestoreCheckpointConfig.dtype": "'float32'",
        **settings,
    }
    return [f"{name} = {value}" for name, value in settings.items()]


@pytest.fixture
def run(echo, checkpoint, tmp_path):
    """Runs infer.gin in process with some bindings and returns the rows it wrote."""

    def run_with(run_file="infer.gin", files=(), **settings):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        if run_file == "infer.gin":
            settings = {
                "MIXTURE_OR_TASK_NAME": "'echo'",
                "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
                "TASK_FEATURE_LENGTHS": LENGTHS,
                "DatasetConfig.split": "'validation'",
                "DatasetConfig.batch_size": "8",
                **settings,
            }
        bindings = _bindings(checkpoint, out, **settings)
        echo(["echo_model.gin", f"t5x/configs/runs/{run_file}", *files], bindings)
        gin.get_configurable(infer.infer)()
        return {file.name: _read(file) for file in sorted(out.glob("*jsonl-*-of-?????"))}

    return run_with


def _read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def _texts(rows):
    return [row["inputs"]["inputs_pretokenized"] for row in rows]


EXPECTED = [f"row {i} of validation" for i in range(20)]


@pytest.fixture
def constant(monkeypatch):
    """Stands in for the model where only the way of the rows matters."""

    def get_infer_fn(*args):
        return lambda ds, train_state, rng: [(i, [3, 4, 1]) for i in range(len(ds))]

    monkeypatch.setattr(utils, "get_infer_fn", get_infer_fn)


def test_predictions_with_all_decodes_and_their_scores(run):
    decodes = {"files": ["echo_two_decodes.gin"], "infer.mode": "'predict_with_aux'"}
    ((name, rows),) = run(**decodes).items()
    assert name == "echo-predict_with_aux.jsonl-00000-of-00001"
    assert _texts(rows) == EXPECTED
    for row in rows:
        assert len(row["prediction"]) == len(row["aux"]["scores"]) == 2
        assert all(isinstance(text, str) for text in row["prediction"])


def test_shards_share_the_rows(run, constant):
    shards = [run(**{"infer.num_shards": 2, "infer.shard_id": shard}) for shard in range(2)]
    names = [name for shard in shards for name in shard]
    assert names == [f"echo-predict.jsonl-{i:05}-of-00002" for i in range(2)]
    texts = [text for shard in shards for rows in shard.values() for text in _texts(rows)]
    assert sorted(texts) == sorted(EXPECTED)


def test_chunks_can_stay_apart(run, constant, tmp_path):
    settings = {"infer.checkpoint_period": 1, "infer.merge_chunked_results": "False"}
    assert run(**settings, **{"infer.file_extension": "'txt'"}) == {}
    files = sorted(
        tmp_path.glob("*/tmp-echo-predict-00000-of-00001/*.txt-00000-of-00001-chunk?????")
    )
    assert [len(_read(file)) for file in files] == [8, 8, 4]
    assert _texts(itertools.chain(*map(_read, files))) == EXPECTED


@pytest.mark.parametrize("file_type", inference_files.FILE_TYPES)
def test_rows_of_files(tmp_path, file_type):
    texts = ["one", "two, and — more", "three"]
    if file_type == "tfrecord":
        with tf.io.TFRecordWriter(str(tmp_path / "rows")) as writer:
            for text in texts:
                value = tf.train.BytesList(value=[text.encode()])
                features = {"in": tf.train.Feature(bytes_list=value)}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    else:
        lines = [json.dumps({"in": x, "id": 1}) for x in texts] if file_type == "jsonl" else texts
        (tmp_path / "rows").write_text("\n".join(lines) + "\n\n")
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
    features = {"inputs": feature, "targets": feature}
    name = create_task_from_tfexample_file([f"{tmp_path}/ro*"], file_type, "in", None, features)
    assert name.startswith("infer_")
    rows = list(seqio.get_mixture_or_task(name).get_dataset(None, "infer", shuffle=False))
    assert [row["inputs_pretokenized"].numpy().decode() for row in rows] == texts


def test_the_run_file_for_files(run, constant, tmp_path):
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    (rows,) = run(
        "infer_from_tfexample_file.gin",
        TF_EXAMPLE_FILE_PATHS=f"['{tmp_path}/*.txt']",
        TF_EXAMPLE_FILE_TYPE="'text'",
        FEATURE_LENGTHS=LENGTHS,
        **{"DatasetConfig.batch_size": 8},
    ).values()
    assert _texts(rows) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inputs": "a"}\n{"input": "b"}', r"rows: .*line 2 \(no text under 'inputs'"),
        ('{"inputs": "a"}\nnot json', r"rows: .*line 2 \(Expecting value"),
        ('{"inputs": 3}', r"rows: .*line 1 \(no text under 'inputs'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "rows").write_text(text)
    with pytest.raises(ValueError, match=message):
        create_task_from_tfexample_file([str(tmp_path / "rows")], "jsonl", "inputs", None, {})
    path = tmp_path / "others"
    path.write_text("\ufeff" + '{"inputs": "whole"}\r\n' + text)
    name = create_task_from_tfexample_file(
        [str(path)], "jsonl", "inputs", None, {}, bad_lines="skip"
    )
    expected = 1 + text.startswith('{"inputs": "a"}')
    assert seqio.TaskRegistry.get(name).num_input_examples("infer") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"infer.mode": "'guess'"}, "infer.mode = 'guess' is not one of"),
        ({"infer.shard_id": 1}, "infer.shard_id = 1 is not below num_shards = 1"),
        ({"RestoreCheckpointConfig.path": "'nowhere'"}, "checkpoint 'nowhere' does not exist"),
        ({"infer.num_shards": 30, "infer.shard_id": 29}, "'echo' has no rows in this shard"),
    ],
)
def test_a_mistake_is_named(run, constant, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(**settings)


def test_what_is_written_of_the_inputs(tmp_path):
    rows = tf.data.Dataset.from_tensors({"a": [3, 4], "a_pretokenized": "text", "b": 5.0})
    vocabulary = seqio.ByteVocabulary()
    write = functools.partial(
        write_inferences_to_file,
        str(tmp_path / "out"),
        ([[*vocabulary.encode("yes"), 1, 0]], {}),
        rows,
        "predict",
        vocabulary,
    )

    def inputs(**settings):
        write(**settings)
        (row,) = _read(tmp_path / "out")
        assert row["prediction"] == "yes"
        return row["inputs"]

    assert inputs() == {"a_pretokenized": "text"}
    assert inputs(include_all_inputs=True) == {"a": [3, 4], "a_pretokenized": "text", "b": 5.0}
    assert inputs(input_fields_to_include=["a"]) == {"a": [3, 4], "a_pretokenized": "text"}
    write(output_ids=True)
    assert _read(tmp_path / "out")[0]["prediction_tokens"] == [*vocabulary.encode("yes"), 1]
    with pytest.raises(ValueError, match="not both"):
        write(include_all_inputs=True, input_fields_to_include=["a"])


def _command(checkpoint, out):
    settings = {
        "MIXTURE_OR_TASK_NAME": "'echo_mixture'",
        "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "DatasetConfig.batch_size": "8",
        "infer.checkpoint_period": "2",
        "infer.mode": "'score'",
    }
    bindings = [
        f"--gin.{line.replace(' = ', '=', 1)}" for line in _bindings(checkpoint, out, **settings)
    ]
    files = ["--gin_file=echo_model.gin", "--gin_file=t5x/configs/runs/infer.gin"]
    return [sys.executable, "-m", "t5x.infer", *files, *bindings]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_every_row_once(checkpoint, tmp_path):
    """200 generated rows, and where it is there 200 of DREAM."""
    has_dream = DREAM.exists()
    env = {
        **os.environ,
        "PYTHONPATH": str(TESTDATA),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        **({"DREAM_FILE": str(DREAM)} if has_dream else {}),
    }
    out = tmp_path / "out"
    command = _command(checkpoint, out)
    start = functools.partial(
        subprocess.Popen, command, env=env, cwd=TESTDATA, stdout=subprocess.PIPE, text=True
    )
    task = "dream" if has_dream and random.random() < 0.5 else "echo"
    chunks = out / f"tmp-{task}-score-00000-of-00001"
    wanted = random.randrange(1, 8)
    process = start()
    while len(list(chunks.glob("*.COMPLETED"))) < wanted:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (out / f"{task}-score.jsonl-00000-of-00001").exists()
    done = sorted(path.with_suffix("") for path in chunks.glob("*chunk*.COMPLETED"))
    before = [path.read_text() for path in done]
    # What a kill in the midst of writing leaves.
    half = done[-1].with_name(f"{done[-1].name[:-5]}{len(done):05}")
    half.write_text('{"inputs": {"inputs_prete')

    process = start()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"after {len(done)} chunks of a run before" in output
    expected = {"echo": [f"row {i} of test" for i in range(200)]}
    if has_dream:
        with DREAM.open() as file:
            rows = [json.loads(next(file)) for _ in range(200)]
        expected["dream"] = [f"{i} {row['question']}" for i, row in enumerate(rows)]
    for name, texts in expected.items():
        file = out / f"{name}-score.jsonl-00000-of-00001"
        assert _texts(_read(file)) == texts
        assert all(row["score"] < 0 for row in _read(file))
        assert (out / f"{file.name}.COMPLETED").exists()
    assert (out / f"{task}-score.jsonl-00000-of-00001").read_text().startswith("".join(before))
    assert not list(out.glob("tmp-*"))
    if not has_dream:
        pytest.skip(f"{DREAM} is not here: generated rows only, which passed")


def test_a_run_with_other_settings_does_not_go_on(run, constant, tmp_path, monkeypatch):
    settings = {"infer.checkpoint_period": 1}
    out = tmp_path / "out"
    settings["infer.output_dir"] = f"'{out}'"
    calls = []

    def write(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("disk full")
        inference_files.write_inferences_to_file(*args)

    monkeypatch.setitem(infer.infer.__kwdefaults__, "write_fn", write)
    with pytest.raises(OSError, match="disk full"):
        run(**settings)
    monkeypatch.setitem(infer.infer.__kwdefaults__, "write_fn", write_inferences_to_file)
    with pytest.raises(ValueError, match="chunks made with batch_size = 8, not 16; go on with"):
        run(**settings, **{"DatasetConfig.batch_size": 16})
    run(**settings)
    assert _texts(_read(out / "echo-predict.jsonl-00000-of-00001")) == EXPECTED
