"""Values of settings that fit no parameter, named before a run starts."""

from dataclasses import dataclass

import gin
import pytest

from t5x.run import gin_errors, values

FILE = """
train/values_test.Config.batch_size = %BATCH_SIZE
train/values_test.Config.task_feature_lengths = %LENGTHS
values_test.Config.name = 'n'
BATCH_SIZE = 8
LENGTHS = {'inputs': 64, 'targets': 16}
"""


@gin.configurable(module="values_test")
@dataclass
class Config:
    batch_size: int
    task_feature_lengths: dict[str, int] | None = None
    name: str | None = None
    rate: float = 0.0
    pack: bool = False
    eval_steps: int | None = None
    anything: object = None


@pytest.fixture
def parse():
    def parse(*bindings):
        gin.parse_config([FILE, *bindings])

    yield parse
    gin.clear_config()


@pytest.mark.parametrize(
    "binding",
    [
        "BATCH_SIZE = 1",
        "values_test.Config.rate = 3",
        "values_test.Config.rate = 1e-3",
        "values_test.Config.eval_steps = None",
        "values_test.Config.eval_steps = 1e2",
        "values_test.Config.name = None",
        "values_test.Config.anything = [1]",
        "values_test.Config.pack = %values_test_unbound",
        "values_test.Config.batch_size = @values_test.Config()",
    ],
)
def test_what_fits_passes(parse, binding):
    parse(binding)
    values.check()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("BATCH_SIZE = '8'", "BATCH_SIZE = '8': batch_size takes a whole number"),
        ("BATCH_SIZE = -8", "BATCH_SIZE = -8: batch_size takes 1 or more"),
        ("BATCH_SIZE = 0", "BATCH_SIZE = 0: batch_size takes 1 or more"),
        ("BATCH_SIZE = 8.5", "BATCH_SIZE = 8.5: batch_size takes a whole number"),
        ("BATCH_SIZE = True", "BATCH_SIZE = True: batch_size takes a whole number"),
        ("BATCH_SIZE = None", "BATCH_SIZE = None: batch_size takes a whole number"),
        ("B = '9'\nBATCH_SIZE = %B", "B = '9': batch_size takes a whole number"),
        (
            "values_test.Config.eval_steps = 'x'",
            "values_test.Config.eval_steps = 'x': eval_steps takes a whole number or None",
        ),
        ("values_test.Config.eval_steps = -1", "eval_steps takes 0 or more"),
        ("values_test.Config.pack = 'yes'", "pack takes True or False"),
        ("values_test.Config.name = 3", "name takes a text in quotes or None"),
        ("LENGTHS = None", "LENGTHS = None: training needs a length for each feature"),
        ("LENGTHS = {'inputs': 64}", "'targets' has no length"),
        ("LENGTHS = {}", "no feature has a length"),
        ("LENGTHS = 64", "lengths are a mapping"),
        ("LENGTHS = {'inputs': None, 'targets': 8}", "the length of 'inputs' is a whole number"),
        ("LENGTHS = {'inputs': 8, 'targets': -8}", "the length of 'targets' is a whole number"),
    ],
)
def test_what_does_not_is_named(parse, binding, message):
    parse(binding)
    with pytest.raises(ValueError) as caught:
        values.check()
    assert message in str(caught.value)


def test_parameters_without_a_value_are_named(parse):
    def entry(a: int, *, b: int, c: int = 1) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match=r"empty\.gin: entry has no a, b; start from a run file"):
        values.require_bindings(entry, ["empty.gin"])


def test_a_text_without_quotes_is_explained():
    with pytest.raises(Exception) as caught:
        gin.parse_config("VALUES_TEST_NAME = mini_train")
    assert gin_errors.explain(str(caught.value)) == (
        "mini_train is no value; a text stands in quotes: 'mini_train'"
    )
