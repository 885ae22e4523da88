"""Statistics over prompts and over examples, against numpy, the literature and hand counts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t0x import report
from t0x.report.agreement import fleiss_kappa, measure_agreement, translate
from t0x.report.summary import average_groups, find_skew, label_evaluations, share_labels
from t0x.results.evidence import Answers, softmax


def test_groups_follow_seen_then_held_out_prompts_then_held_out_datasets(run):
    summaries = report.summarise(report.load_results([run]))
    assert [(item.name, item.seen, item.prompts) for item in summaries] == [
        ("reviews", "seen", 4),
        ("reviews", "held-out prompt", 1),
        ("nli", "held-out dataset", 3),
    ]
    assert summaries[0].median == pytest.approx(0.7)
    assert (summaries[0].q1, summaries[0].q3) == pytest.approx((0.575, 0.825))
    assert summaries[2].chance == pytest.approx(1 / 3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_statistics_equal_numpy_for_any_prompts(write_task, tmp_path_factory, counts):
    step_dir = tmp_path_factory.mktemp("run") / "rank_classification" / "7"
    for index, correct in enumerate(counts):
        write_task(step_dir, template=f"p{index}", correct=correct, wrong=20 - correct)
    results = report.load_results([step_dir.parent.parent])
    (summary,) = report.summarise(results)
    accuracies = np.array(counts) / 20
    assert summary.median == pytest.approx(np.median(accuracies))
    assert summary.q1 == pytest.approx(np.quantile(accuracies, 0.25))
    assert summary.q3 == pytest.approx(np.quantile(accuracies, 0.75))
    assert (summary.minimum, summary.maximum) == (accuracies.min(), accuracies.max())
    assert average_groups([summary])[0].median == pytest.approx(summary.median)


def test_a_dataset_with_several_splits_is_not_mixed(write_task, tmp_path):
    step_dir = tmp_path / "a" / "rank_classification" / "1"
    for split, correct in (("dev_r1", 3), ("dev_r2", 7)):
        write_task(step_dir, dataset="anli", template=split, correct=correct, wrong=3, split=split)
    summaries = report.summarise(report.load_results([tmp_path]))
    assert [(item.name, item.median) for item in summaries] == [
        ("anli/dev_r1", 0.5),
        ("anli/dev_r2", 0.7),
    ]


def test_wilson_interval_against_published_values():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
    assert report.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert report.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert report.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert report.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    with pytest.raises(ValueError, match="3/2"):
        report.wilson_interval(3, 2)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_contains_the_rate(examples, data):
    correct = data.draw(st.integers(0, examples))
    low, high = report.wilson_interval(correct, examples)
    assert 0 <= low <= correct / examples + 1e-12
    assert correct / examples - 1e-12 <= high <= 1


def test_labels_far_from_predictions_are_named(write_task, tmp_path):
    step_dir = tmp_path / "a" / "rank_classification" / "1"
    write_task(step_dir, correct=5, wrong=5)  # Always says "good", which is right half the time.
    write_task(step_dir, template="even", correct=9, wrong=1)
    skewed, even = sorted(report.load_results([tmp_path]), key=lambda result: result.accuracy)
    shares = share_labels(skewed)
    assert [(share.name, share.true, share.predicted) for share in shares] == [
        ("bad", 0.5, 0.0),
        ("good", 0.5, 1.0),
    ]
    assert find_skew(shares).name == "good"
    assert find_skew(share_labels(even)) is None


def test_varying_choices_are_counted_by_position(write_task, tmp_path):
    step_dir = tmp_path / "rank_classification" / "1"
    file = write_task(step_dir, correct=2, wrong=0).with_suffix(".jsonl")
    first, second = map(json.loads, file.read_text().splitlines())
    second["choices"] = ["left", "right"]
    file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    (result,) = report.load_results([tmp_path])
    assert [share.name for share in share_labels(result)] == ["choice 1", "choice 2"]


def answers(predictions, labels, rows=None):
    rows = range(len(labels)) if rows is None else rows
    return Answers(*(np.array(list(column)) for column in (rows, predictions, labels)))


def test_fleiss_kappa_of_its_published_example():
    # 10 subjects, 14 raters, 5 categories: kappa 0.210 (worked example on Wikipedia).
    counts = """
    0 0 0 0 14 | 0 2 6 4 2 | 0 0 3 5 6 | 0 3 9 2 0 | 2 2 8 1 1
    7 7 0 0 0 | 3 2 6 3 0 | 2 5 3 2 2 | 6 5 2 1 0 | 0 2 2 3 7
    """
    table = np.array([row.split() for row in counts.replace("\n", "|").split("|") if row.strip()])
    pairwise, kappa = fleiss_kappa(table.astype(int))
    assert (pairwise, kappa) == pytest.approx((0.378, 0.210), abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [3, 0]])) == (1.0, None)


def test_prompts_are_compared_by_what_their_choices_mean():
    labels = [0, 1, 0, 1]
    yes_no = answers([0, 1, 1, 1], labels)
    # The same answers under a prompt that lists "No" first.
    no_yes = answers([1, 0, 0, 0], [1 - label for label in labels])
    assert translate(no_yes, yes_no).tolist() == [0, 1, 1, 1]
    agreement = measure_agreement([yes_no, no_yes])
    assert (agreement.pairwise, agreement.kappa, agreement.left_out) == (1.0, 1.0, 0)
    # Three of four alike. Expected by chance: 4 of 8 answers are 0, so 1/4 + 1/4.
    differs = answers([0, 1, 0, 0], labels)
    both = measure_agreement([answers([0, 1, 1, 0], labels), differs])
    assert (both.pairwise, both.kappa) == pytest.approx((0.75, (0.75 - 17 / 32) / (1 - 17 / 32)))


def test_prompts_without_a_common_meaning_are_left_out_and_counted():
    straight = answers([0, 1, 1], [0, 1, 0])
    shuffled = answers([0, 1, 1], [0, 0, 1])  # The label 0 stands for 0 here and for 1 there.
    assert translate(shuffled, straight) is None
    assert measure_agreement([straight, shuffled]) is None
    assert measure_agreement([straight, straight, shuffled]).left_out == 1
    assert measure_agreement([straight]) is None
    elsewhere = answers([0], [0], rows=[9])
    assert measure_agreement([straight, elsewhere]) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_agreement_of_two_prompts_is_the_share_of_equal_answers(pairs):
    labels = [0, 1, 2, *(0 for _ in pairs)]
    first = answers([0, 1, 2, *(a for a, _ in pairs)], labels)
    order = np.random.default_rng(0).permutation(len(labels))
    second = np.array([0, 1, 2, *(b for _, b in pairs)])[order]
    other = answers(second, np.array(labels)[order], rows=order)
    equal = (3 + sum(a == b for a, b in pairs)) / len(labels)
    assert measure_agreement([first, other]).pairwise == pytest.approx(equal)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=12))
def test_a_prompts_agreement_is_its_share_of_equal_answers_with_the_others(given_answers):
    labels = [0, 1, 2, *(0 for _ in given_answers)]
    columns = [[0, 1, 2, *column] for column in zip(*given_answers, strict=True)]
    shuffled = answers([0] * len(labels), [1, 1, 0, *labels[3:]])  # Comparable with none.
    prompts = [answers(column, labels) for column in columns]
    found = measure_agreement([*prompts, shuffled])
    for place, column in enumerate(columns):
        others = [other for n, other in enumerate(columns) if n != place]
        equal = [a == b for other in others for a, b in zip(column, other, strict=True)]
        assert found.by_prompt[place] == pytest.approx(np.mean(equal))
    assert found.by_prompt[3] is None
    assert np.mean(found.by_prompt[:3]) == pytest.approx(found.pairwise)


def test_confidence_is_the_mean_probability_of_the_given_answer(write_task, tmp_path):
    step_dir = tmp_path / "a" / "rank_classification" / "1"
    write_task(step_dir, scores=(-2.0, -2.0 + np.log(3)), correct=5, wrong=5)
    (result,) = report.load_results([tmp_path])
    assert result.confidence == pytest.approx(0.75)
    (summary,) = report.summarise([result])
    assert summary.confidence - summary.mean == pytest.approx(0.25)
    assert softmax((-1000.0, -1001.0))[0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert np.isnan(softmax((float("-inf"), 0.0))).all()


def test_checkpoints_are_called_by_what_tells_them_apart(write_task, tmp_path):
    def label(*places):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for run, step in places:
            write_task(root / run / "rank_classification" / str(step))
        return list(label_evaluations(report.load_results([root])).values())

    assert label(("a", 1), ("b", 1)) == ["a", "b"]
    assert label(("a", 1000), ("a", 2000)) == ["step 1,000", "step 2,000"]
    assert label(("a", 1), ("a", 2), ("b", 1)) == ["a, step 1", "a, step 2", "b, step 1"]
