"""The files that rank classification leaves for the report."""

import json

import numpy as np
import pytest
import seqio

from t0x import registration, results
from t0x.prompts.template import Metadata, Template
from t0x.registration.skipped import NOT_A_CHOICE

BYTES = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(BYTES, add_eos=False),
    "targets": seqio.Feature(BYTES, add_eos=True),
}


def template(name, choices="low ||| high"):
    jinja = name + ": {{n}} ü?|||{{answer}}"
    return Template(name, jinja, choices, "", name, Metadata(True, True, (), ()))


@pytest.fixture(scope="module")
def tasks():
    rows = [{"n": n, "answer": "high" if n > 4 else "low"} for n in range(10)]
    rows[2] = {"n": 2, "answer": "unsure"}
    prompts = {name: template(name) for name in ("plain", "other")}
    return registration.register_dataset(
        "levels",
        {"train": rows[:4], "test": rows},
        prompts,
        subset="ten",
        category="arithmetic",
        held_out_prompts=["other"],
        output_features=FEATURES,
    )


def evaluate(tmp_path, task, step, logger=results.ResultsLogger, **options):
    evaluator = seqio.Evaluator(
        task,
        seqio.EncDecFeatureConverter(pack=False),
        eval_split="eval",
        logger_cls=[logger],
        log_dir=str(tmp_path),
        **options,
    )

    def always_high(dataset, model_feature_shapes=None):
        lengths = [
            (int(index), float(np.sum(example["decoder_target_tokens"] > 0)))
            for index, example in dataset.as_numpy_iterator()
        ]
        return [(index, length - step) for index, length in lengths]

    metrics, _ = evaluator.evaluate(compute_metrics=True, step=step, score_fn=always_high)
    return metrics.result()[task]


def test_two_files_a_task_and_step(tmp_path, tasks):
    task = "levels_ten_plain_score_eval"
    accuracy = evaluate(tmp_path, task, 100)["accuracy"] / 100
    evaluate(tmp_path, task, 200)
    for step in (100, 200):
        folder = tmp_path / "rank_classification" / str(step)
        assert sorted(path.name for path in folder.iterdir()) == [f"{task}.json", f"{task}.jsonl"]
        assert json.loads((folder / f"{task}.json").read_text()) == {
            "task": task,
            "dataset": "levels",
            "subset": "ten",
            "template": "plain",
            "category": "arithmetic",
            "seen": "seen",
            "examples": 9,
            "accuracy": pytest.approx(accuracy),
            "chance": 0.5,
            "skipped": {NOT_A_CHOICE: 1},
            "near_ties": 0,
            "step": step,
            "split": "test",
        }
    assert accuracy == pytest.approx(5 / 9)
    lines = (folder / f"{task}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["idx"] for record in records] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    # Tokens and EOS of "low" and "high", less the step.
    assert records[2] == {
        "idx": 3,
        "inputs": "plain: 3 ü?",
        "choices": ["low", "high"],
        "scores": [4.0 - 200, 5.0 - 200],
        "prediction": 1,
        "label": 0,
    }


def test_rows_cut_off_by_num_examples_are_counted(tmp_path, tasks):
    task = "levels_ten_other_score_eval"
    evaluate(tmp_path, task, 1, num_examples=5)
    summary = json.loads((tmp_path / "rank_classification/1" / f"{task}.json").read_text())
    assert summary["examples"] == 2
    assert summary["skipped"][results.CUT_OFF] == 1
    assert summary["seen"] == "held-out prompt"


def test_the_mixture_trained_on_decides_what_was_seen(tmp_path, tasks):
    elsewhere = registration.register_dataset(
        "elsewhere",
        {"train": [{"n": 1, "answer": "low"}]},
        {"p": template("p")},
        output_features=FEATURES,
    )
    registration.register_mixture("trained_on", ["levels_ten_other"])

    def logger(output_dir):
        return results.ResultsLogger(output_dir, train_mixture="trained_on")

    seen = {}
    for task in (*tasks.score_eval, *elsewhere.score_eval):
        evaluate(tmp_path, task, 3, logger)
        path = tmp_path / "rank_classification/3" / f"{task}.json"
        seen[task] = json.loads(path.read_text())["seen"]
    assert seen == {
        "levels_ten_other_score_eval": "seen",
        "levels_ten_plain_score_eval": "held-out prompt",
        "elsewhere_p_score_eval": "held-out dataset",
    }


def test_other_tasks_are_passed_over(tmp_path):
    logger = results.ResultsLogger(str(tmp_path))
    logger("a_task_of_others", 1, {}, None, {}, [])
    logger("levels_ten_plain", 1, {}, None, {}, [])
    assert not list(tmp_path.iterdir())
