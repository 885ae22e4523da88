"""The rank rule, the expansion of a row into its choices, and SeqIO's evaluator over both."""

import math

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x import rank_classification, registration
from t0x.prompts.template import Metadata, Template
from t0x.rank_classification import Target, rank
from t0x.results import evidence, format

BYTES = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(BYTES, add_eos=False),
    "targets": seqio.Feature(BYTES, add_eos=True),
}

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
choice_lists = st.lists(words.map(str.strip).filter(bool), min_size=1, max_size=6, unique=True)


@given(st.lists(st.floats(-1e6, 0), min_size=1, max_size=8))
def test_rank_is_the_first_highest_score(scores):
    chosen = rank(scores)
    assert scores[chosen] == max(scores)
    assert max(scores) not in scores[:chosen]


def test_rank_takes_a_repeated_text_as_one_answer():
    assert rank([-3.0, -2.0, -1.0], ["yes", "no", "yes"]) == 0


@pytest.mark.parametrize(
    ("scores", "choices", "message"),
    [
        ([], None, "no score"),
        ([-1.0, float("nan")], None, "NaN"),
        ([-1.0], ["a", "b"], "1 scores for 2 choices"),
    ],
)
def test_rank_refuses_what_has_no_answer(scores, choices, message):
    with pytest.raises(ValueError, match=message):
        rank(scores, choices)


def expand(rows):
    """Rows of (inputs, choices, target) through the preprocessor, as NumPy examples."""

    def examples():
        for inputs, choices, target in rows:
            yield {"inputs": inputs, "targets": target, "answer_choices": choices}

    signature = {
        "inputs": tf.TensorSpec([], tf.string),
        "targets": tf.TensorSpec([], tf.string),
        "answer_choices": tf.TensorSpec([None], tf.string),
    }
    dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
    return list(rank_classification.expand_choices(dataset).as_numpy_iterator())


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(words, choice_lists, st.integers(0, 5)), min_size=1, max_size=4))
def test_expansion_has_every_choice_in_order_and_keeps_the_label(drawn):
    rows = [(inputs, choices, choices[n % len(choices)]) for inputs, choices, n in drawn]
    # The target is stripped, as T0 does with the space P3's targets begin with.
    expanded = expand([(inputs, choices, f" {target}\n") for inputs, choices, target in rows])
    assert len(expanded) == sum(len(choices) for _, choices, _ in rows)
    left = iter(expanded)
    for place, (inputs, choices, target) in enumerate(rows):
        group = [next(left) for _ in choices]
        assert [tuple(example["idx"]) for example in group] == [
            (place, n) for n in range(len(choices))
        ]
        assert {example["inputs"].decode() for example in group} == {inputs}
        assert [example["targets"].decode() for example in group] == choices
        assert [bool(example["is_correct"]) for example in group] == [c == target for c in choices]
        assert {example["weight"] for example in group} == {1.0}
        assert {example["num_choices"] for example in group} == {len(choices)}


def targets_of(rows, label=0):
    """Targets of rows with that many choices, `label` the right one."""
    return [
        Target((row, place), place == label, 1.0, 3, choices, f"choice {place}")
        for row, choices in enumerate(rows)
        for place in range(choices)
    ]


def test_metric_in_percent_whatever_the_order_and_the_form_of_scores():
    targets = targets_of([2, 3, 2])
    scores = np.array([-1.0, -2.0, -1.0, -0.5, -2.0, -5.0, -9.0])  # right, wrong, right
    expected = {"accuracy": pytest.approx(200 / 3)}
    assert rank_classification.metric(targets, scores) == expected
    assert rank_classification.metric(targets, (scores, {"logits": scores})) == expected
    order = np.random.default_rng(0).permutation(len(targets))
    assert rank_classification.metric([targets[i] for i in order], scores[order]) == expected


def test_metric_weighs_rows():
    heavy = [target._replace(weight=3.0) for target in targets_of([2])]
    light = [target._replace(idx=(1, target.idx[1])) for target in targets_of([2])]
    scores = [-1.0, -2.0, -2.0, -1.0]
    assert rank_classification.metric(heavy + light, scores) == {"accuracy": 75.0}


def test_a_row_that_was_cut_off_does_not_count():
    targets = targets_of([3, 3])[:5]
    ranked = rank_classification.rankings(targets, [-1.0, -2.0, -3.0, -9.0, -8.0])
    assert [ranking.row for ranking in ranked] == [0]
    with pytest.raises(ValueError, match="no row has all of its choices"):
        rank_classification.metric(targets[:2], [-1.0, -2.0])


def test_a_row_without_a_right_choice_is_an_error():
    wrong = [target._replace(is_correct=False) for target in targets_of([2])]
    with pytest.raises(ValueError, match="no choice of row 0 is correct"):
        rank_classification.metric(wrong, [-1.0, -2.0])
    with pytest.raises(ValueError, match="3 scores for 2 examples"):
        rank_classification.metric(targets_of([2]), [-1.0, -2.0, -3.0])


def test_repeated_right_choice_is_right_under_either_place():
    targets = [
        Target((0, place), choice == "same", 1.0, 3, 3, choice)
        for place, choice in enumerate(["other", "same", "same"])
    ]
    (ranking,) = rank_classification.rankings(targets, [-5.0, -2.0, -1.0])
    assert (ranking.prediction, ranking.label) == (1, 1)
    assert rank_classification.chance([ranking]) == pytest.approx(2 / 3)


def test_chance_is_the_mean_over_rows():
    ranked = rank_classification.rankings(targets_of([2, 4]), [-1.0] * 6)
    assert rank_classification.chance(ranked) == pytest.approx((1 / 2 + 1 / 4) / 2)


def oracle(right):
    """A score function that prefers the choices `right` accepts; sees model features only."""

    def score(dataset, model_feature_shapes=None):
        scored = []
        for index, example in dataset.as_numpy_iterator():
            tokens = example["decoder_target_tokens"]
            choice = BYTES.decode([int(t) for t in tokens if t > 1])
            inputs = BYTES.decode([int(t) for t in example["encoder_input_tokens"] if t > 1])
            scored.append((int(index), -1.0 if right(inputs, choice) else -2.0))
        # Out of order, as several hosts would return them.
        return scored[::-1]

    return score


@pytest.mark.parametrize("intermediates", [False, True])
def test_seqio_evaluator_end_to_end(intermediates):
    template = Template(
        name=f"compare {intermediates}",
        jinja="Is {{a}} above {{b}}?|||{{answer_choices[label]}}",
        answer_choices="no ||| yes",
        reference="",
        id="1",
        metadata=Metadata(True, False, ("Accuracy",), ("en",)),
    )
    rows = [{"a": i % 7, "b": i % 5, "label": int(i % 7 > i % 5)} for i in range(40)]
    tasks = registration.register_dataset(
        f"numbers_{intermediates}",
        {"validation": rows},
        {template.name: template},
        output_features=FEATURES,
    )
    evaluator = seqio.Evaluator(
        tasks.score_eval[0],
        seqio.EncDecFeatureConverter(pack=False),
        eval_split="validation",
    )

    def score(dataset, model_feature_shapes=None):
        def says_yes_to_large(inputs, choice):
            return choice == ("yes" if int(inputs.split()[1]) > 3 else "no")

        scored = oracle(says_yes_to_large)(dataset)
        return (scored, {"step": [np.zeros(1)] * len(scored)}) if intermediates else scored

    metrics, _ = evaluator.evaluate(compute_metrics=True, score_fn=score)
    right = sum((row["a"] > 3) == bool(row["label"]) for row in rows)
    assert metrics.result() == {tasks.score_eval[0]: {"accuracy": pytest.approx(100 * right / 40)}}


def test_near_ties_are_between_different_answers():
    def ranking(choices, scores):
        best = rank_classification.rank(scores, choices)
        return rank_classification.Ranking(0, choices, scores, best, best, 1.0)

    rows = [
        ranking(("a", "b"), (-1.0, -1.01)),
        ranking(("a", "b"), (-1.0, -1.5)),
        # One answer listed twice does not tie with itself.
        ranking(("a", "b", "a"), (-1.0, -3.0, -1.0)),
        ranking(("a",), (-1.0,)),
    ]
    assert rank_classification.near_ties(rows) == 1


@pytest.mark.parametrize(
    ("choices", "scores", "near"),
    [
        (("yes", "no", "yes"), (-1.0, -3.0, -1.0), False),
        (("yes", "no", "yes"), (-1.0, -1.01, -1.0), True),
        # What the batch's layout did to one listing of the answer is no tie with another one.
        (("yes", "no", "yes"), (-1.02, -1.05, -1.0), False),
        (("yes", "no", "no"), (-1.0, -math.inf, -1.01), True),
        (("yes", "no"), (-math.inf, -math.inf), False),
        (("yes",), (-1.0,), False),
    ],
)
def test_a_near_tie_is_the_same_to_evaluation_and_to_reports(choices, scores, near):
    prediction = rank_classification.rank(scores, choices)
    assert rank_classification.is_near_tie(scores, choices, prediction) == near
    collected = evidence.Evidence(keep=0)
    collected.add(format.Example(0, "?", choices, scores, prediction, prediction))
    assert collected.near_ties == near
    rows = [rank_classification.Ranking(0, choices, scores, prediction, prediction, 1.0)]
    assert rank_classification.near_ties(rows) == near
