"""Which mistakes are seen in gin files as text, and which are left to gin."""

import pytest

from t5x.run import precheck

RUN = """
import __main__ as train_script
import no_such_module
MODEL_DIR = %gin.REQUIRED
OTHER = %gin.REQUIRED
STEPS = %MODEL_STEPS
MODEL_STEPS = %gin.REQUIRED
train_script.train:
  model_dir = %MODEL_DIR
  total_steps = %STEPS
  partitioner = @partitioning.PjitPartitioner()
utils.Config.path = %OTHER
"""


@pytest.fixture
def require(tmp_path):
    """Checks a run file of the given text, or one that includes it."""
    (tmp_path / "run.gin").write_text(RUN)
    (tmp_path / "including.gin").write_text("include 'run.gin'\nMODEL_DIR = 'here'\n")

    def check(*bindings, file="run.gin", entry_point="train"):
        precheck.require_macros(entry_point, [file], bindings, ["/nowhere", str(tmp_path)])

    return check


@pytest.mark.parametrize(
    ("file", "bindings"),
    [
        ("run.gin", []),
        ("run.gin", ["MODEL_DIR = 'here'"]),
        ("including.gin", []),
        ("including.gin", ["STEPS = %MODEL_STEPS"]),
    ],
)
def test_a_parameter_of_the_entry_point_needs_a_value(require, file, bindings):
    with pytest.raises(ValueError, match=r"MODEL_STEPS are not set; give .*--gin\.OTHER=VALUE"):
        require(*bindings, file=file)


def test_what_may_never_be_asked_for_is_left_to_gin(require):
    require("STEPS = 1", "MODEL_DIR = 'here'")  # OTHER may be of no use to this run
    require("train.model_dir = 'here'", "train_script.train.total_steps = 1")
    require(entry_point="evaluate")
    require("MODEL_DIR = = 1")  # gin says what is wrong
    require(file="no_such_file.gin")
