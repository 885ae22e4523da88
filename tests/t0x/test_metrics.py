"""Metrics of generated answers against those of t5 0.9.4.

golden/metrics.json holds data and the values that t5.evaluation.metrics of t5 0.9.4 (PyPI) gave
for it: 40 random texts of 20 words and punctuation marks, each changed in up to three places to
make its prediction, two rows with empty answers, classes with -1 for invalid answers, numbers of 1
to 5.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import seqio

from t0x import metrics, registration
from t0x.prompts.template import Metadata, Template

GOLDEN = json.loads((Path(__file__).parent / "golden/metrics.json").read_text())
FUNCTIONS = {
    "f1": metrics.f1_of_two,
    "mean_f1_of_3": metrics.mean_f1_of_three,
    "multirc": metrics.multirc_f1,
}


@pytest.mark.parametrize("case", GOLDEN["values"])
def test_values_are_t5s(case):
    name = case.split(",")[0]
    function = FUNCTIONS.get(name) or getattr(metrics, name)
    (targets, predictions), expected = GOLDEN["values"][case]
    found = function(GOLDEN["data"][targets], GOLDEN["data"][predictions])
    # The middle of t5's bootstrap is random; its spread over 40 texts is about 3.
    tolerance = {"abs": 0.5} if name == "rouge" else {"rel": 1e-9}
    assert found == {key: pytest.approx(value, **tolerance) for key, value in expected.items()}


def test_several_right_answers_count_by_the_best():
    assert metrics.squad([["cats", "a dog"], "owl"], ["dog", "the owl!"]) == {"em": 100, "f1": 100}
    # To t5 two empty answers agree exactly and share no token; to CoQA they agree.
    assert metrics.squad(["the"], [""]) == {"em": 100, "f1": 0}
    assert metrics.coqa_f1(["the"], [""]) == {"f1": 100}
    both = metrics.bleu([["a b c d e", "f g h i j"], ["k l m n o"]], ["f g h i j", "k l m n o"])
    assert both["bleu"] == pytest.approx(100)


def test_multirc_takes_t5s_records_too():
    targets, made = [1, 0, 1, 1], [1, 1, 0, -1]
    records = ([{"value": value} for value in values] for values in (targets, made))
    assert metrics.multirc_f1(*records) == metrics.multirc_f1(targets, made)


def test_what_is_no_number_counts_as_minus_one():
    assert metrics.mean_squared_error(["1", 2.0], ["four", "2"]) == {"mean_squared_error": 2.0}
    assert metrics.pearson([1, 2, 3], ["1", "2", "3.0"])["pearson_corrcoef"] == pytest.approx(100)
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3])["spearman_corrcoef"])


def test_names_of_templates_become_functions():
    pick = metrics.metric_functions
    assert pick(["ROUGE", "BLEU", "Other", "Accuracy"]) == [
        metrics.rouge,
        metrics.bleu,
        metrics.accuracy,
    ]
    assert pick(["Pearson correlation", "no such", "Mean Reciprocal Rank"]) == [metrics.pearson]
    assert pick(["AUC", "Accuracy"], classes=2) == [metrics.auc, metrics.accuracy]
    assert pick(["AUC", "Accuracy"]) == [metrics.accuracy]


def test_glue_and_superglue_keep_their_own_metrics():
    pick = metrics.metric_functions
    mrpc = [metrics.f1_of_two, metrics.accuracy]
    assert pick(["Accuracy"], 2, "glue", "mrpc") == pick(["Other"], 2, "glue", "qqp") == mrpc
    assert pick(["Accuracy"], 3, "super_glue", "cb") == [metrics.mean_f1_of_three, metrics.accuracy]
    # A prompt that asks for text, or for other classes, has what its author named.
    assert pick(["BLEU"], 0, "glue", "mrpc") == [metrics.bleu]
    assert pick(["Accuracy"], 2, "super_glue", "cb") == [metrics.accuracy]


def test_importing_loads_no_metric_library():
    heavy = "{'sacrebleu', 'rouge_score', 'sklearn', 'scipy', 'numpy'}"
    code = f"import sys, t0x.metrics; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PAGE = (Path(__file__).parents[2] / "docs/new_task.md").read_text()


@pytest.fixture
def registered(monkeypatch):
    """Metrics registered in a test are gone after it."""
    monkeypatch.setattr(metrics, "_METRICS", dict(metrics._METRICS))


def test_a_metric_from_outside_is_what_templates_mean_by_its_name(registered):
    """The one that docs/new_task.md registers, on its way to the evaluation of a task."""
    (code,) = re.findall(r"^`my_metrics.py`:\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.M)
    exec(code, {"__name__": "my_metrics"})
    template = Template(
        "t", "{{x}}|||{{y}}", None, "", "t", Metadata(True, False, ("word overlap",))
    )
    rows = {"train": [{"x": "a", "y": "dry and sunny"}]}
    features = {
        name: seqio.Feature(seqio.ByteVocabulary(), add_eos=name == "targets")
        for name in ("inputs", "targets")
    }
    tasks = registration.register_dataset(
        "overlap", rows, {"t": template}, output_features=features
    )
    (function,) = seqio.TaskRegistry.get(tasks.train[0]).metric_fns
    found = function(["dry and sunny", "heavy rain"], ["sunny and warm", "heavy rain"])
    assert found == {"word_overlap": pytest.approx(100 * (2 / 3 + 1) / 2)}


def test_a_metric_may_need_a_number_of_classes(registered):
    @metrics.register_metric("Of Three", classes=3)
    def of_three(targets, predictions):
        return {"of_three": 0.0}

    assert metrics.metric_functions(["Of Three"], classes=3) == [of_three]
    assert metrics.metric_functions(["Of Three"], classes=2) == []


def test_a_name_is_registered_once(registered):
    with pytest.raises(ValueError, match=r"'rouge' is t0x\.metrics\.rouge already"):
        metrics.register_metric("rouge")(metrics.accuracy)
