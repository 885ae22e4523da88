"""Hand-written results of rank classification for the report's tests."""

import json

import pytest


def write(
    step_dir,
    *,
    dataset="reviews",
    template="plain",
    subset=None,
    seen="seen",
    category="sentiment",
    correct=6,
    wrong=4,
    choices=("bad", "good"),
    inputs="A fine film.",
    scores=(-1.5, -0.5),
    split="validation",
    **fields,
):
    """Writes one finished task whose every example predicts the last choice."""
    step_dir.mkdir(parents=True, exist_ok=True)
    task = f"{dataset}_{subset or ''}_{template}_score_eval".replace("/", "_")
    last = len(choices) - 1
    lines = [
        {
            "idx": index,
            "inputs": f"{inputs} {index}",
            "choices": list(choices),
            "scores": list(scores),
            "prediction": last,
            "label": last if index < correct else 0,
        }
        for index in range(correct + wrong)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (step_dir / f"{task}.jsonl").write_text(text, encoding="utf-8")
    summary = {
        "task": task,
        "dataset": dataset,
        "subset": subset,
        "template": template,
        "category": category,
        "seen": seen,
        "examples": len(lines),
        "accuracy": correct / len(lines) if lines else None,
        "chance": 1 / len(choices),
        "skipped": {},
        "step": int(step_dir.name),
        "split": split,
    }
    file = step_dir / f"{task}.json"
    file.write_text(json.dumps(summary | fields), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def write_task():
    """Writes one finished task; see `write`."""
    return write


@pytest.fixture
def run(tmp_path):
    """A run with a seen dataset of four prompts, its held-out prompt and a held-out dataset."""
    step_dir = tmp_path / "t0_mini" / "inference_eval" / "rank_classification" / "1000"
    for index, correct in enumerate((5, 6, 8, 9)):
        write(step_dir, template=f"prompt {index}", correct=correct, wrong=10 - correct)
    write(step_dir, template="unseen", seen="held-out prompt", correct=7, wrong=3)
    for index, correct in enumerate((3, 4, 4)):
        write(
            step_dir,
            dataset="nli",
            template=f"way {index}",
            seen="held-out dataset",
            category="natural language inference",
            correct=correct,
            wrong=10 - correct,
            choices=("no", "maybe", "yes"),
            scores=(-3.0, -2.0, -1.0),
        )
    return tmp_path / "t0_mini"
