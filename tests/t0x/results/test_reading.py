"""Reading results: what is found, how runs are called, what bad files end in."""

import json
import math

import pytest

from t0x import report
from t0x.report.summary import collect_notes


def test_loads_run_and_step_from_the_path(run):
    results = report.load_results([run])
    assert len(results) == 8
    assert {(result.run, result.step) for result in results} == {("t0_mini", 1000)}
    assert report.load_results([run / "inference_eval" / "rank_classification" / "1000"]) == results
    assert report.load_results([run, run / "inference_eval"]) == results, (
        "found once, however named"
    )


def test_keeps_the_first_wrong_predictions_and_counts_all(run):
    result = report.load_results([run], wrong_examples=2)[0]
    assert (result.dataset, result.wrong_total, len(result.wrong)) == ("nli", 7, 2)
    assert [example.idx for example in result.wrong] == [3, 4]
    assert result.correct + result.wrong_total == result.examples


def test_near_ties_and_scores_that_are_not_finite_are_counted(write_task, tmp_path):
    step_dir = tmp_path / "rank_classification" / "1"
    write_task(step_dir, template="tie", scores=(-1.001, -1.0))
    write_task(step_dir, template="nan", scores=(math.nan, -1.0))
    # The report's word is the evaluation's: an answer listed twice does not tie with itself.
    twice = {"choices": ("yes", "no", "yes"), "scores": (-1.0, -3.0, -1.0)}
    write_task(step_dir, template="twice", **twice)
    by_template = {result.template: result for result in report.load_results([tmp_path])}
    assert by_template["tie"].near_ties == 10 and by_template["tie"].not_finite == 0
    assert by_template["twice"].near_ties == 0
    assert by_template["nan"].not_finite == 10 and by_template["nan"].near_ties == 0
    assert any(
        "10 examples with scores that are not finite" in n
        for n in collect_notes([*by_template.values()])
    )


def tear_line(file):
    examples = file.with_suffix(".jsonl")
    examples.write_text(examples.read_text()[:-20])
    return r"_score_eval\.jsonl:10: torn line"


def drop_line(file):
    examples = file.with_suffix(".jsonl")
    examples.write_text("".join(examples.read_text().splitlines(keepends=True)[:-1]))
    return r"_score_eval\.jsonl: holds 9 examples, .*\.json says 10"


def drop_examples(file):
    file.with_suffix(".jsonl").unlink()
    return r"_score_eval\.jsonl: missing"


def tear_summary(file):
    file.write_text(file.read_text()[:30])
    return r"_score_eval\.json: not valid JSON"


def replace_in_summary(**fields):
    def spoil(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return rf"_score_eval\.json: field '{next(iter(fields))}'"

    return spoil


def replace_in_examples(**fields):
    def spoil(file):
        examples = file.with_suffix(".jsonl")
        lines = examples.read_text().splitlines()
        lines[2] = json.dumps(json.loads(lines[2]) | fields)
        examples.write_text("\n".join(lines) + "\n")
        return r"_score_eval\.jsonl:3: "

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        tear_line,
        drop_line,
        drop_examples,
        tear_summary,
        replace_in_summary(accuracy=60.0),
        replace_in_summary(accuracy=0.9),
        replace_in_summary(seen="perhaps"),
        replace_in_summary(skipped=3),
        replace_in_summary(examples=True),
        replace_in_summary(inputs_cut=-1),
        replace_in_examples(label=2),
        replace_in_examples(prediction=None),
        replace_in_examples(scores=[-1.0]),
        replace_in_examples(scores=["low", "high"]),
        replace_in_examples(choices=[1, 2]),
    ],
)
def test_bad_results_end_in_one_line_naming_the_file(write_task, tmp_path, spoil):
    file = write_task(tmp_path / "rank_classification" / "5")
    expected = spoil(file)
    with pytest.raises(ValueError, match=expected) as caught:
        report.load_results([tmp_path])
    assert "\n" not in str(caught.value)


def test_missing_and_empty_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        report.load_results([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no results below it"):
        report.load_results([tmp_path])
    (tmp_path / "rank_classification" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match="no finished task"):
        report.load_results([tmp_path])


def test_unfinished_tasks_are_found_not_counted(run):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    (step_dir / "half_score_eval.jsonl").write_text('{"idx": 0, "inp')
    assert len(report.load_results([run])) == 8
    assert [file.stem for file in report.find_unfinished([run])] == ["half_score_eval"]


def test_runs_of_the_same_name_are_told_apart(write_task, tmp_path):
    for parent in ("one", "two"):
        write_task(tmp_path / parent / "model" / "rank_classification" / "5")
    results = report.load_results([tmp_path / "one", tmp_path / "two"])
    assert [result.run for result in results] == ["one/model", "two/model"]


def test_what_an_evaluator_cut_is_noted(write_task, tmp_path):
    write_task(tmp_path / "rank_classification" / "5", inputs_cut=3, choices_cut=0)
    (note,) = collect_notes(report.load_results([tmp_path]))
    assert note.endswith("3 inputs cut to the longest that was allowed")
