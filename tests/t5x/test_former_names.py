"""Gin files that name what T5X has renamed since its first release run, and say so once."""

import json

import pytest

SCRIPT = """
import json, logging, sys
from absl import logging as absl_logging
import gin
from t5x import gin_utils, train

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
absl_logging.get_absl_logger().addHandler(handler)

sys.modules["__main__"] = train
gin.configurable(train.train)
paths = [sys.argv[1], *gin_utils.find_search_paths()]
submesh = "partitioning.ModelBasedPjitPartitioner.model_parallel_submesh = (2, 2, 1, 1)"
gin_utils.parse_gin_flags(paths, ["run.gin"], [submesh])
from t5x import models, partitioning, trainer
from t5x.examples.t5 import network

partitioner = gin.get_configurable("t5x.partitioning.PjitPartitioner")()
model = gin.get_configurable("t5x.models.EncoderDecoderModel")()
model._compute_logits = lambda params, batch, dropout_rng=None: params["logits"]
model._wants_all_logits = True

import jax.numpy as jnp
import numpy as np
logits = jnp.asarray(np.random.RandomState(0).randn(1, 2, 5), jnp.float32)
tokens = jnp.ones((1, 2), jnp.int32)
batch = {"decoder_target_tokens": tokens, "decoder_loss_weights": jnp.ones((1, 2))}
loss, _ = model.loss_fn({"logits": logits}, batch, None)
own, _ = models.EncoderDecoderModel.loss_fn(model, {"logits": logits}, batch, None, z_loss=0.5)
print(json.dumps({
    "submesh": partitioner._model_parallel_submesh,
    "loss": float(loss), "with z_loss": float(own),
    "network": sys.modules["t5x.contrib.gpu.t5.network"] is network,
    "log": records,
}))
"""

RUN = """
from __gin__ import dynamic_registration

import __main__ as train_script
import t5.data.mixtures
from t5x import models
from t5x import partitioning
from t5x import trainer
from t5x.contrib.gpu.t5 import network

include 't5x/contrib/gpu/t5/t5_1_1/small.gin'
include 't5x/contrib/gpu/t5/configs/runs/finetune.gin'

DROPOUT_RATE = 0.1
MODEL_DIR = 'run'
MIXTURE_OR_TASK_NAME = 'task'
TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 8}
TRAIN_STEPS = 1
INITIAL_CHECKPOINT_PATH = 'checkpoint_1'
models.EncoderDecoderModel.loss_fn:
  z_loss = 0.5
  label_smoothing = 0.0
partitioning.ModelBasedPjitPartitioner:
  num_partitions = None
  model_parallel_submesh = (4, 2, 1, 1)
trainer.Trainer.log_weight_metrics = True
network.T5Config.dtype = 'float32'
"""


@pytest.fixture(scope="module")
def found(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("former")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "run.gin").write_text(RUN)
    done = commands.run("script.py", folder, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_former_class_is_the_one_of_today(found):
    # Bound by its former name, in the file and on top on the command line; made by the name that
    # the run file of today has.
    assert found["submesh"] == [2, 2, 1, 1]
    assert found["network"]


def test_the_losss_settings_are_bound_where_they_were(found):
    assert found["loss"] == pytest.approx(found["with z_loss"])
    assert found["loss"] > 0


ALONE = """
import sys
import gin
from t5x import eval, gin_utils, partitioning
sys.modules["__main__"] = eval
gin.configurable(eval.evaluate)
submesh = "partitioning.ModelBasedPjitPartitioner.model_parallel_submesh = (2, 2, 1, 1)"
gin_utils.parse_gin_flags([sys.argv[1]], ["alone.gin"], [submesh])
made = gin.query_parameter("evaluate.partitioner").scoped_configurable_fn()
print(type(made) is partitioning.PjitPartitioner, made._model_parallel_submesh)
"""


def test_a_former_class_alone_is_bound_by_either_name(commands, tmp_path):
    (tmp_path / "script.py").write_text(ALONE)
    (tmp_path / "alone.gin").write_text("""
from __gin__ import dynamic_registration
import __main__ as eval_script
from t5x import partitioning
eval_script.evaluate.partitioner = @partitioning.ModelBasedPjitPartitioner()
""")
    done = commands.run("script.py", tmp_path, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "True (2, 2, 1, 1)"


@pytest.mark.parametrize(
    "line",
    [
        "partitioning.ModelBasedPjitPartitioner is called partitioning.PjitPartitioner today",
        "t5x.contrib.gpu.t5.network is called t5x.examples.t5.network today",
        "EncoderDecoderModel.loss_fn.z_loss is called EncoderDecoderModel.z_loss today",
    ],
)
def test_each_says_so_once(found, line):
    assert found["log"].count(line) == 1


def test_files_are_found_under_former_paths(found):
    lines = [line for line in found["log"] if "contrib/gpu/t5/" in line]
    assert [line.partition("t5x/contrib")[2] for line in lines] == [
        "/gpu/t5/t5_1_1/small.gin is called " + lines[0].split(" is called ")[1],
        "/gpu/t5/configs/runs/finetune.gin is called " + lines[1].split(" is called ")[1],
    ]
    assert "t5x/examples/t5/t5_1_1/small.gin today" in lines[0]
    assert "t5x/configs/runs/finetune.gin today" in lines[1]
