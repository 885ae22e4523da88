"""Reading what a run's gin files say, without running it."""

import sys

import pytest

from t5x import models, partitioning
from t5x.run import settings


@pytest.fixture
def read(tmp_path):
    """Reads a gin file of the given text."""

    def read_text(text, *bindings, **arguments):
        file = tmp_path / "run.gin"
        file.write_text(text)
        settings.read([str(file)], bindings, **arguments)

    return read_text


HEAD = "from __gin__ import dynamic_registration\n"


def test_arguments_of_an_entry_point_are_returned_and_nothing_runs(read):
    main = sys.modules["__main__"]
    read(
        f"{HEAD}import __main__ as train_script\nMODEL_DIR = %gin.REQUIRED\n"
        "train_script.train:\n  model_dir = %MODEL_DIR\n  total_steps = 7\n",
        "MODEL_DIR = '/nowhere'",
    )
    arguments = settings.arguments("train")
    assert (arguments["model_dir"], arguments["total_steps"]) == ("/nowhere", 7)
    assert arguments["gc_period"] == 0  # a default
    assert sys.modules["__main__"] is main


def test_macros_and_configured_classes(read):
    text = (
        f"{HEAD}from t5x import partitioning\nLENGTHS = {{'inputs': 8}}\nUNSET = %gin.REQUIRED\n"
        "MODEL = @partitioning.PjitPartitioner()\npartitioning.PjitPartitioner.num_partitions = 2\n"
    )
    read(text)
    assert {"LENGTHS", "MODEL"} <= settings.macros()
    assert "UNSET" not in settings.macros()
    assert settings.macro("LENGTHS") == {"inputs": 8}
    assert isinstance(settings.macro("MODEL"), partitioning.PjitPartitioner)
    partitioner = settings.configured(partitioning.PjitPartitioner)
    assert partitioner().mesh.shape["model"] == 2
    assert partitioner(num_partitions=1).mesh.shape["model"] == 1
    assert settings.configured(models.BaseModel) is models.BaseModel
    read(f"{HEAD}OTHER = 1\n")
    assert settings.macros() == {"OTHER"}  # nothing is left of the file before


def test_modules_the_reader_can_do_without_are_not_imported(read):
    read(f"{HEAD}import no_such_module\nX = 1\n", without=["no_such_module"])
    assert settings.macro("X") == 1
    assert "no_such_module" not in sys.modules


def test_unknown_parameters_and_entry_points_are_named(read):
    with pytest.raises(ValueError, match="train has no parameter 'total_stepz'; did you mean"):
        read(f"{HEAD}import __main__ as s\ns.train.total_stepz = 1\n")
    with pytest.raises(ValueError, match="has no 'trian'"):
        read(f"{HEAD}import __main__ as s\ns.trian.total_steps = 1\n")
