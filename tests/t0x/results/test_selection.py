"""Choosing a checkpoint, over results and checkpoints made here."""

import json

import pytest

from t0x.cli import shared
from t0x.cli.select import select
from t0x.results import format, selection

TASKS = ["a_score_eval", "b_score_eval"]


def summary(task, step, accuracy, examples=10):
    return format.Summary(
        *(task, "data", None, "prompt", "category", "seen", examples, accuracy, 0.5, {}),
        step=step,
        split="validation",
    )


def make_run(folder, kept, results):
    """A run with checkpoints at steps `kept` and accuracies {step: {task: accuracy}}."""
    for step in kept:
        state = folder / f"checkpoint_{step}/state"
        state.mkdir(parents=True)
        (state / "_METADATA").touch()
    for step, found in results.items():
        place = folder / "inference_eval/rank_classification" / str(step)
        place.mkdir(parents=True)
        for task, accuracy in found.items():
            (place / f"{task}.json").write_text(summary(task, step, accuracy).text())
        (place / "unfinished_score_eval.jsonl").write_text("")
    return folder


@pytest.fixture
def run(tmp_path):
    """The best mean is at 300, which is gone; then 200; 100 is half done, 400 not at all."""
    both = {step: dict(zip(TASKS, values, strict=True)) for step, values in
            {200: (0.5, 0.7), 300: (0.9, 0.9)}.items()}  # fmt: skip
    return make_run(tmp_path / "run", (100, 200, 400), {100: {TASKS[0]: 0.8}, **both})


def test_the_best_mean_of_those_that_are_there_and_complete(run):
    candidates = selection.read_candidates(run, TASKS)
    means = {one.step: one.mean and round(one.mean, 9) for one in candidates}
    assert means == {100: None, 200: 0.6, 300: 0.9, 400: None}
    assert [one.step for one in candidates if not one.kept] == [300]
    assert candidates[0].missing == (TASKS[1],) and candidates[3].missing == tuple(TASKS)
    assert selection.choose(candidates).step == 200


def test_ties_go_to_the_earlier_checkpoint(tmp_path):
    results = {step: dict.fromkeys(TASKS, 0.5) for step in (30, 10, 20)}
    run = make_run(tmp_path, (10, 20, 30), results)
    assert selection.choose(selection.read_candidates(run, TASKS)).step == 10


def test_a_checkpoint_that_is_half_written_is_not_chosen(run):
    """As on object stores, where a directory has its final name from the start."""
    last = run / "checkpoint_200/state/_METADATA"
    last.unlink()
    candidates = selection.read_candidates(run, TASKS)
    assert [one.step for one in candidates if one.kept] == [100, 400]
    assert selection.choose(candidates) is None  # 200 has the best results of those with both
    last.touch()
    assert selection.choose(selection.read_candidates(run, TASKS)).step == 200


def test_common_counts_what_every_evaluated_checkpoint_has(run):
    candidates = selection.read_candidates(run, TASKS, common=True)
    assert {one.step: one.mean for one in candidates} == {100: 0.8, 200: 0.5, 300: 0.9, 400: None}
    assert selection.choose(candidates).step == 100


def test_results_may_lie_elsewhere(run, tmp_path):
    make_run(tmp_path / "out", (), {400: dict.fromkeys(TASKS, 0.1)})
    candidates = selection.read_candidates(run, TASKS, tmp_path / "out")
    assert selection.choose(candidates).step == 400


def test_unlike_evaluations_are_not_compared(run):
    place = run / "inference_eval/rank_classification/200/a_score_eval.json"
    place.write_text(summary("a_score_eval", 200, 1.0, examples=5).text())
    message = "a_score_eval was evaluated on 10 rows of validation at step 100 and on 5 of"
    with pytest.raises(ValueError, match=message):
        selection.read_candidates(run, TASKS)
    place.write_text("{")
    with pytest.raises(ValueError, match=r"200/a_score_eval.json: not valid JSON"):
        selection.read_candidates(run, TASKS)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        selection.read_candidates(tmp_path / "nowhere", TASKS)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint_N in it"):
        selection.read_candidates(tmp_path, TASKS)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `t0x select` with a mixture of TASKS registered."""
    monkeypatch.setattr(shared, "import_modules", lambda modules: None)
    monkeypatch.setattr(shared, "mixture_tasks", lambda mixture: dict.fromkeys(TASKS, 1.0))

    def run_it(model_dir, **options):
        defaults = {"results": None, "common": False, "module": None, "as_json": False}
        select(str(model_dir), mixture="m", gin_file="eval.gin", **{**defaults, **options})
        return capsys.readouterr().out

    return run_it


def test_the_command_says_which_and_what_is_missing(run, command):
    text = command(run)
    assert f"best: {run}/checkpoint_200 (60.00 % over 2 tasks)" in text
    assert "checkpoint removed" in text and "not evaluated" in text
    assert "not complete: step 100, 400" in text
    assert "--gin_file=eval.gin" in text and """RestoreCheckpointConfig.mode='"all"'""" in text
    found = json.loads(command(run, as_json=True))
    assert found["best"] == f"{run}/checkpoint_200"
    assert [one["step"] for one in found["checkpoints"]] == [100, 200, 300, 400]
    assert found["checkpoints"][0]["missing"] == [TASKS[1]]


def test_nothing_complete_is_an_error_that_gives_the_command(tmp_path, command):
    run = make_run(tmp_path, (7,), {})
    with pytest.raises(LookupError, match=r"no checkpoint has a result .* the 2 tasks of m; evalu"):
        command(run)
    printed = selection.evaluation_command(run, "m", [7], "eval.gin")
    assert f"""CHECKPOINT_PATH='"{run}/checkpoint_7"'""" in printed
    assert """mode='"specific"'""" in printed
