"""What a user's run ends with where something is not as it should be, and what ends none.

The commands themselves run in this process, on files as users have them.
"""

import gzip
import json
import shutil
from types import MappingProxyType

import clu.metrics
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x import eval as eval_lib
from t5x import infer, models, train, utils
from t5x.data.shapes import batch_shapes

LENGTHS = "{'inputs': 24, 'targets': 12}"


def _bindings(**settings):
    return [f"{name.replace('__', '.')} = {value}" for name, value in settings.items()]


@pytest.fixture
def evaluate(echo, tmp_path):
    """Runs eval.gin on a checkpoint; returns the folder of its results."""

    def run(path, **settings):
        settings = {
            "CHECKPOINT_PATH": repr(str(path)),
            "EVAL_OUTPUT_DIR": repr(str(tmp_path / "results")),
            "MIXTURE_OR_TASK_NAME": "'echo'",
            "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
            "TASK_FEATURE_LENGTHS": LENGTHS,
            "DROPOUT_RATE": "0.0",
            "BATCH_SIZE": "8",
            "DatasetConfig__split": "'validation'",
            **settings,
        }
        echo(["echo_model.gin", "t5x/configs/runs/eval.gin"], _bindings(**settings))
        gin.get_configurable(eval_lib.evaluate)()
        return tmp_path / "results"

    return run


def _steps(results):
    (file,) = results.glob("inference_eval/echo-metrics.jsonl")
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_checkpoint_of_any_name_is_evaluated(evaluate, checkpoint, tmp_path):
    best, second = tmp_path / "best", tmp_path / "second"
    shutil.copytree(checkpoint, best)
    results = evaluate(best)
    assert _steps(results) == [1_000_000]
    assert str(best) in (results / "eval.echo.ckpt").read_text().split("\n")
    shutil.copytree(checkpoint, second)
    both = f"['{best}', '{second}']"
    with pytest.raises(ValueError, match="several checkpoints of step 1000000"):
        evaluate(best, RestoreCheckpointConfig__path=both)


def test_an_empty_split_is_named(evaluate, checkpoint):
    empty = {"inputs": tf.constant([], tf.string), "targets": tf.constant([], tf.string)}
    feature = seqio.Feature(seqio.ByteVocabulary())
    if "empty" not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add(
            "empty",
            source=seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(empty),
                splits=["validation"],
            ),
            preprocessors=[seqio.preprocessors.tokenize],
            output_features={"inputs": feature, "targets": feature},
            metric_fns=[lambda targets, predictions: {}],
        )
    with pytest.raises(ValueError, match="'empty' has no rows in split 'validation'"):
        evaluate(checkpoint, MIXTURE_OR_TASK_NAME="'empty'")


@pytest.fixture
def predict(echo, checkpoint, tmp_path, monkeypatch):
    """Runs an inference file, with a constant in the model's place."""

    def get_infer_fn(*args):
        return lambda ds, train_state, rng: [(i, [3, 4, 1]) for i in range(len(ds))]

    monkeypatch.setattr(utils, "get_infer_fn", get_infer_fn)

    def run(run_file, **settings):
        settings = {
            "CHECKPOINT_PATH": repr(checkpoint),
            "INFER_OUTPUT_DIR": repr(str(tmp_path / "out")),
            "DROPOUT_RATE": "0.0",
            "DatasetConfig__batch_size": "8",
            **settings,
        }
        echo(["echo_model.gin", f"t5x/configs/runs/{run_file}"], _bindings(**settings))
        gin.get_configurable(infer.infer)()
        return tmp_path / "out"

    return run


def _write_records(path, rows):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            features = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                for name, text in row.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("cut", r"rows.tfrecord, record 20: it is cut short or damaged"),
        ("flip", r"rows.tfrecord, record 3: it is cut short or damaged"),
        ("compress", r"rows.tfrecord is compressed"),
        ("key", r"rows.tfrecord, record 12: no feature 'inputs', there is input; bind"),
        ("kind", r"rows.tfrecord, record 5: feature 'inputs' is not one text"),
        ("no example", r"rows.tfrecord, record 1: it is no tf.train.Example"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(predict, tmp_path, harm, message):
    path = tmp_path / "rows.tfrecord"
    _write_records(
        path,
        [{"input" if harm == "key" and i == 11 else "inputs": f"row {i}"} for i in range(20)],
    )
    content = path.read_bytes()
    size = len(content) // 20
    if harm == "cut":
        path.write_bytes(content[:-5])
    elif harm == "flip":
        path.write_bytes(content[: 2 * size + 20] + b"\xff" + content[2 * size + 21 :])
    elif harm == "compress":
        path.write_bytes(gzip.compress(content))
    elif harm in ("kind", "no example"):
        number = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
        features = tf.train.Features(feature={"inputs": number})
        bad = tf.train.Example(features=features).SerializeToString()
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        records[4 if harm == "kind" else 0] = bad if harm == "kind" else b"\xff\xff"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
    with pytest.raises(ValueError, match=message):
        predict(
            "infer_from_tfexample_file.gin",
            TF_EXAMPLE_FILE_PATHS=f"['{path}']",
            TF_EXAMPLE_FILE_TYPE="'tfrecord'",
            FEATURE_LENGTHS=LENGTHS,
        )


ECHO = {
    "MIXTURE_OR_TASK_NAME": "'echo'",
    "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
    "TASK_FEATURE_LENGTHS": LENGTHS,
    "DatasetConfig__split": "'validation'",
    "infer__checkpoint_period": 1,
}


def test_a_second_mode_leaves_an_unfinished_first_one(predict, tmp_path, monkeypatch):
    calls = []

    def write(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        infer.write_inferences_to_file(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(infer.infer.__kwdefaults__, "write_fn", write)
        predict("infer.gin", **ECHO)
    out = tmp_path / "out"
    unfinished = {path.name: path.read_bytes() for path in out.glob("tmp-*/*")}
    assert any(name.endswith("chunk00000.COMPLETED") for name in unfinished)
    predict("infer.gin", **ECHO, infer__mode="'score'")
    assert (out / "echo-score.jsonl-00000-of-00001").exists()
    assert {path.name: path.read_bytes() for path in out.glob("tmp-*/*")} == unfinished
    (folder,) = out.glob("tmp-*")
    (folder / "echo-predict.jsonl-00000-of-00001.settings.json").unlink()
    with pytest.raises(ValueError, match=r"tmp-echo-predict-.* and not the settings"):
        predict("infer.gin", **ECHO)
    assert len(list(folder.iterdir())) == len(unfinished) - 1


class _OwnMetrics(models.EncoderDecoderModel):
    """As upstream documents it: `_compute_metrics` gives what the run shows."""

    def _compute_metrics(self, logits, targets, **_):
        hits = jnp.argmax(logits, axis=-1) == targets
        return {"hits": clu.metrics.Average.from_model_output(hits)}


class _OwnConfig:
    """The settings of a network of one's own, which has none of ours."""

    loss_chunk_tokens = 0


@pytest.fixture
def train_echo(echo, tmp_path):
    """Runs pretrain.gin for a few steps; returns the folder of the run."""

    def run(model=None, **settings):
        settings = {
            "MODEL_DIR": repr(str(tmp_path)),
            "MIXTURE_OR_TASK_NAME": "'echo'",
            "MIXTURE_OR_TASK_MODULE": "'echo_tasks'",
            "TASK_FEATURE_LENGTHS": LENGTHS,
            "DROPOUT_RATE": "0.0",
            "BATCH_SIZE": "8",
            "USE_CACHED_TASKS": "False",
            "TRAIN_STEPS": 2,
            "train__eval_period": 2,
            "train__eval_steps": 1,
            "infer_eval/utils.DatasetConfig__split": "'validation'",
            **settings,
        }
        echo(["echo_model.gin", "t5x/configs/runs/pretrain.gin"], _bindings(**settings))
        given = {}
        if model is not None:
            made = gin.query_parameter("MODEL/macro.value").scoped_configurable_fn()
            given["model"] = model(made)
        return gin.get_configurable(train.train)(**given)

    return run


def test_a_model_with_metrics_of_its_own_is_trained(train_echo, tmp_path, capsys):
    def own(model):
        return _OwnMetrics(
            model.module, model.input_vocabulary, model.output_vocabulary, model.optimizer_def
        )

    step, _ = train_echo(own)
    assert step == 2
    assert "step 2/2" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("hits" in row for row in rows)


def test_a_network_with_settings_of_its_own_is_described(monkeypatch, capsys):
    from t5x.trainer import announcement

    shape = {"kernel": jax.ShapeDtypeStruct((10, 20), jnp.float32)}
    initializer = type("", (), {"global_train_state_shape": type("", (), {"params": shape})})
    for config, text in (
        (_OwnConfig(), "200 parameters"),
        (type("", (), {"emb_dim": 8, "dtype": "bfloat16"})(), "200 parameters: width 8, bfloat16"),
        (None, "200 parameters"),
    ):
        model = type("", (), {"module": type("", (), {"config": config})})
        assert announcement._describe_model(model, initializer) == text
    # A shape that is no shape: told in the log, and the run goes on.
    broken = type("", (), {"global_train_state_shape": None})
    assert announcement._fact(announcement._describe_model, None, broken).startswith("not told")


def test_a_run_of_no_steps_evaluates_only(train_echo, tmp_path):
    step, state = train_echo(TRAIN_STEPS=0, train__run_eval_before_training=True)
    assert step == int(state.step) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["collection"] == "training_eval/echo"] == [0]


FRAMES = seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=2)
TOKENS = seqio.EncDecFeatureConverter.TASK_FEATURES["targets"]


class _Continuous(seqio.EncDecFeatureConverter):
    TASK_FEATURES = MappingProxyType({"inputs": FRAMES, "targets": TOKENS})
    MODEL_FEATURES = MappingProxyType(
        {**seqio.EncDecFeatureConverter.MODEL_FEATURES, "encoder_input_tokens": FRAMES}
    )


def test_inputs_of_a_higher_rank_have_the_tasks_width():
    if "frames" not in seqio.TaskRegistry.names():
        rows = {"inputs": np.ones((4, 6, 5), np.float32), "targets": np.ones((4, 3), np.int32)}
        vocabulary = seqio.PassThroughVocabulary(8)
        seqio.TaskRegistry.add(
            "frames",
            source=seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(rows),
                splits=["train"],
            ),
            preprocessors=[],
            output_features={
                "inputs": seqio.ContinuousFeature(vocabulary, rank=2, dtype=tf.float32),
                "targets": seqio.Feature(vocabulary, add_eos=False),
            },
        )
    cfg = utils.DatasetConfig(
        "frames", {"inputs": 6, "targets": 3}, "train", 4, shuffle=False, seed=0, pack=False
    )
    model = type("", (), {"FEATURE_CONVERTER_CLS": _Continuous})
    shapes = batch_shapes(model, cfg, 4)
    assert shapes["encoder_input_tokens"].shape == (4, 6, 5)
    assert shapes["encoder_input_tokens"].dtype == jnp.float32
    assert shapes["decoder_target_tokens"].shape == (4, 3)
