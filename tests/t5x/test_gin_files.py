"""Gin files under upstream's paths bind what upstream's do; former names lead to today's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What google-research/t5x at cc342d4 binds, file by file: benchmarks/gin_survey.py --bindings.
UPSTREAM = json.loads((Path(__file__).parent / "golden/gin_bindings.json").read_text())
# Parts that other files include; alone they do not parse upstream either.
PARTS = {
    "t5x/examples/scalable_t5/umt5/architectures/encoder_decoder.gin",
    "t5x/examples/scalable_t5/umt5/optimizer/adafactor.gin",
    "t5x/examples/scalable_t5/umt5/optimizer/adafactor_momentum_nofactor.gin",
    "t5x/examples/scalable_t5/umt5/vocab.gin",
}
# Where ours differ on purpose, by the end of the binding's name.
ON_PURPOSE = {
    "SaveCheckpointConfig.save_dataset": "the position in the data is saved by default",
    "SaveCheckpointConfig.keep": "None is the default",
    "DatasetConfig.use_custom_packing_ops": "accepted without effect",
    "PjitPartitioner.backend": "precompiles for the devices present, not for a TPU alone",
    "EVAL_STEPS/gin.macro.value": "a macro for what upstream binds directly",
    "EVAL_PERIOD/gin.macro.value": "likewise",
    "MIXTURE_OR_TASK_MODULE/gin.macro.value": "likewise, in precompile.gin",
    "train/t5x.utils.DatasetConfig.module": "likewise",
}
# It compiles the very step of the trainer, which upstream's does not name.
OWN = {
    "t5x/configs/runs/precompile.gin": (
        "t5x.precompile.precompile.trainer_cls",
        "t5x.trainer.Trainer.",
        "t5x.utils.create_learning_rate_scheduler.",
    )
}
# Upstream's imports the network of the other folder, which has no scan_layers.
OTHER_NETWORK = "t5x/examples/scalable_t5/local_tiny.gin"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """What our files bind, and what the survey printed."""
    out = tmp_path_factory.mktemp("survey") / "bindings.json"
    script = ROOT / "benchmarks/gin_survey.py"
    command = [sys.executable, script, ROOT, "--under", "t5x", "--bindings", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(out.read_text()), done.stdout.splitlines()


def resolved(bindings):
    """Values with macros in place of their names."""

    def resolve(value):
        return re.sub(r"%(\w+)", lambda m: bindings.get(f"{m[1]}/gin.macro.value", m[0]), value)

    return {name: resolve(value) for name, value in bindings.items()}


def test_every_file_parses_but_the_parts(survey):
    lines = survey[1]
    assert {line.split(":")[0] for line in lines[:-1]} == PARTS
    counts = json.loads(lines[-1])
    assert counts["parse"] == counts["files"] - len(PARTS) >= 68


@pytest.mark.parametrize("file", sorted(UPSTREAM))
def test_a_file_binds_what_upstreams_binds(survey, file):
    ours, theirs = resolved(survey[0][file]), resolved(UPSTREAM[file])
    if file == OTHER_NETWORK:
        theirs = {k.replace("t5.network", "scalable_t5.network"): v for k, v in theirs.items()}
    different = {
        name
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
        and not name.endswith(tuple(ON_PURPOSE))
        and not name.startswith(OWN.get(file, "-"))
    }
    assert not different, {name: (ours.get(name), theirs.get(name)) for name in different}
