"""BIG-bench's JSON tasks: reading, rendering, registration, and results that the report reads."""

import json
from pathlib import Path

import pytest
import seqio

from t0x import report
from t0x.evaluation import RankEvaluator
from t0x.registration import task_info
from t0x.registration.skipped import skipped_in
from t0x.results import ResultsLogger
from t0x.tasks import bigbench

GOLDEN = Path(__file__).parent / "golden" / "bigbench.json"
FEATURES = {
    "inputs": seqio.Feature(seqio.ByteVocabulary(), add_eos=False),
    "targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=True),
}


def example(text, **scores):
    return {"input": text, "target_scores": scores}


def write(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"name": folder.name, "metrics": ["multiple_choice_grade"], **fields}
    (folder / "task.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    "recorded", json.loads(GOLDEN.read_text()), ids=lambda r: r["task"]["name"]
)
def test_prompts_are_big_benchs_own_in_any_number_of_shots(tmp_path, recorded):
    """Golden prompts: google/BIG-bench 1.0.0 (source archive on PyPI), bigbench.api.json_task's
    JsonTask and make_nshot_dataset with seed 42, on these tasks, which we wrote."""
    folder = write(tmp_path / "t", **recorded["task"])
    for shots, expected in recorded["shots"].items():
        rows = bigbench.read_task(folder, shots=int(shots))
        assert [row["inputs"] for row in rows] == [row["inputs"] for row in expected]
        assert [row["choices"] for row in rows] == [row["choices"] for row in expected]


def test_every_choice_with_the_best_score_is_right(tmp_path):
    examples = [
        example("two", a=1, b=0, c=1),
        example("graded", a=0.5, b=0.2, c=0.1),
        example("none", a=1, b=1),
        {"input": "Say.", "target": "so"},
    ]
    rows = bigbench.read_task(write(tmp_path / "t", examples=examples))
    assert [row["best"] for row in rows] == [["a", "c"], ["a"], [], []]
    with pytest.raises(ValueError, match="example 2: no choice is right, no shot can be made"):
        bigbench.read_task(tmp_path / "t", shots=1)


def test_too_few_examples_for_the_shots(tmp_path):
    folder = write(tmp_path / "t", examples=[example(f"q{n}", a=1, b=0) for n in range(4)])
    with pytest.raises(ValueError, match=r"task\.json: 4 examples are too few for 4 shots"):
        bigbench.read_task(folder, shots=4)


def test_a_file_without_examples_stands_for_its_subtasks(tmp_path):
    folder = tmp_path / "logic"
    write(folder, description="Two subtasks below.")
    write(folder / "five", task_prefix="5 ", examples=[example("f", a=1, b=0)])
    write(folder / "three", task_prefix="3 ", examples=[example("t", a=1, b=0)])
    assert bigbench.find_tasks(tmp_path) == ["logic/five", "logic/three"]
    assert [row["inputs"][:2] for row in bigbench.read_task(folder / "three")] == ["3 "]
    with pytest.raises(ValueError, match="no list; register its subtasks: five, three"):
        bigbench.read_task(folder)


def test_an_example_listed_twice_counts_once(tmp_path):
    twice = [example("x", a=1, b=0), example("y", a=0, b=1), example("x", a=1, b=0)]
    assert len(bigbench.read_task(write(tmp_path / "t", examples=twice))) == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "field 'examples' is no list"),
        ({"examples": [], "task_prefix": 3}, "field 'task_prefix' is 3"),
        ({"examples": [{"target": "x"}]}, "example 0: field 'input' is no text"),
        (
            {"examples": [{"input": "x", "target_scores": ["a"]}]},
            "example 0: field 'target_scores'",
        ),
        ({"examples": [example("x", a="1")]}, "example 0: .* no number"),
        ({"examples": [{"input": "x", "target_scores": {" ": 1, "b": 0}}]}, "an empty choice"),
    ],
)
def test_files_out_of_format_end_in_one_line(tmp_path, fields, expected):
    folder = write(tmp_path / "t", **fields)
    with pytest.raises(ValueError, match=rf"task\.json: .*{expected}|{expected}") as caught:
        bigbench.read_task(folder)
    assert str(folder / "task.json") in str(caught.value) and "\n" not in str(caught.value)
    (folder / "task.json").write_text('{"examples": [')
    with pytest.raises(ValueError, match=r"task\.json: not valid JSON"):
        bigbench.read_task(folder)


def test_a_task_that_is_not_there_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("T0X_BIGBENCH_DIR", str(tmp_path))
    task = seqio.TaskRegistry.get("bigbench_winowhy_zero_shot_score_eval")
    with pytest.raises(FileNotFoundError, match=r"'winowhy': no task\.json in .*/winowhy; copy"):
        task.source.num_input_examples("validation")
    monkeypatch.delenv("T0X_BIGBENCH_DIR")
    monkeypatch.setenv("T0X_DATA_DIR", str(tmp_path / "data"))
    assert bigbench.directory() == tmp_path / "data" / "bigbench"
    monkeypatch.delenv("T0X_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="set T0X_BIGBENCH_DIR to it"):
        bigbench.directory()


def test_t0s_fourteen_are_a_mixture_with_or_without_files():
    mixture = seqio.MixtureRegistry.get("t0_bigbench_score_eval")
    infos = [task_info(task.name) for task in mixture.tasks]
    assert len({info.dataset.subset.split("/")[0] for info in infos}) == 14
    assert len({info.name for info in infos}) == 21  # Two of them have subtasks.
    names = [info.name for info in infos]
    assert "bigbench_formal_fallacies_syllogisms_negation_zero_shot_score_eval" in names
    assert "bigbench_logical_deduction_three_objects_zero_shot_score_eval" in names


def test_only_tasks_with_choices_are_found(tmp_path):
    write(tmp_path / "ranked", examples=[example("x", a=1, b=0)])
    write(tmp_path / "written", examples=[{"input": "1+1", "target": "2"}])
    write(tmp_path / "parts" / "one", examples=[example("x", a=1, b=0)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "task.json").touch()
    assert bigbench.find_tasks(tmp_path) == ["parts/one", "ranked"]
    assert bigbench.find_tasks(tmp_path / "nowhere") == []


def test_evaluation_and_report_treat_them_like_any_task(tmp_path):
    long = "word " * 1000  # Longer than promptsource's templates let a field be.
    folder = write(
        tmp_path / "sums",
        append_choices_to_input=False,
        examples=[
            example(f"1 + 1 ||| {long}", **{"2": 1, "3": 0}),
            example("2 + 2", **{"4": 1, "5": 0, "6": 0}),
            example("Either?", a=1, b=1, c=0),
            example("None?", a=1, b=1),
            {"input": "Say.", "target": "so"},
        ],
    )
    registered = bigbench.register("sums", folder, output_features=FEATURES)
    assert registered == bigbench.register("sums", folder)
    (name,) = registered.score_eval
    task = seqio.TaskRegistry.get(name)
    dataset = task.get_dataset(None, "eval", shuffle=False)
    rows = list(dataset.as_numpy_iterator())
    assert rows[0]["inputs_pretokenized"].decode() == f"\nQ: 1 + 1 ||| {long}\nA: "
    assert skipped_in(name, "validation") == {"the template raised": 2}
    (survey,) = RankEvaluator(name)._surveys  # Which renders the rows itself.
    assert [list(e.correct) for e in survey.examples] == [
        [True, False],
        [True, False, False],
        [True, True, False],
    ]

    targets = [
        task.postprocess_fn(r["targets_pretokenized"].decode(), example=r, is_target=True)
        for r in rows
    ]
    # Right, wrong, and the second of two right answers.
    scores = [-1.0, -2.0, -3.0, -2.0, -4.0, -3.0, -1.0, -2.0]
    logger = ResultsLogger(str(tmp_path / "run" / "inference_eval"))
    logger(name, 7, {}, dataset, {"score": scores}, targets)
    (result,) = report.load_results([tmp_path / "run"])
    assert (result.dataset_name, result.template) == ("bigbench/sums", "zero_shot")
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.seen == "held-out dataset" and sum(result.skipped.values()) == 2
    assert result.wrong[0].choices == ("4", "5", "6")
