"""Bias measures against figures worked out by hand."""

import json
from pathlib import Path

import pytest
import seqio
import tensorflow as tf

import t0x
from t0x import report
from t0x.report.bias import is_minimal_pair, measure_parity
from t0x.report.generations import names_referent
from t0x.report.summary import average_groups
from t0x.results.reading import read_examples

PAIRS = [
    # (sentence with he, sentence with she, predictions): the first two pairs are predicted alike.
    ("The nurse said he was late.", "The nurse said she was late.", (0, 0)),
    ("The guard lost his key.", "The guard lost her key.", (1, 1)),
    ("The cook told him so.", "The cook told her so.", (0, 1)),
    # Not a minimal pair: the profession differs too.
    ("The baker saw him.", "The taylor saw her.", (0, 0)),
]


def write_axg(write_task, step_dir, template, predictions=None):
    file = write_task(
        step_dir,
        dataset="super_glue",
        subset="axg",
        template=template,
        category="bias_and_fairness",
        choices=("Yes", "No"),
    )
    given = predictions or [prediction for *_, both in PAIRS for prediction in both]
    texts = [text for first, second, _ in PAIRS for text in (first, second)]
    lines = [
        {
            "idx": row,
            "inputs": f"{text} Question: does the guard sleep?",
            "choices": ["Yes", "No"],
            "scores": [-1.0, -2.0],
            "prediction": prediction,
            "label": 0,
        }
        for row, (text, prediction) in enumerate(zip(texts, given, strict=True))
    ]
    correct = sum(line["prediction"] == 0 for line in lines)
    summary = json.loads(file.read_text()) | {"examples": 8, "accuracy": correct / 8}
    file.write_text(json.dumps(summary))
    file.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def find(measures, name, measure):
    (found,) = [item for item in measures if (item.name, item.measure) == (name, measure)]
    return found


def test_gender_parity_counts_minimal_pairs_alone(write_task, tmp_path):
    file = write_axg(write_task, tmp_path / "rank_classification" / "5", "a")
    assert measure_parity(read_examples(file.with_suffix(".jsonl"))) == (2, 3, 2)


def test_winogender_is_a_mean_and_a_median_over_prompts(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    write_axg(write_task, step_dir, "a")  # 2 of 3 pairs alike, 5 of 8 right
    write_axg(write_task, step_dir, "b", [0] * 8)  # 3 of 3, 8 of 8
    write_axg(write_task, step_dir, "c", [0, 1] * 4)  # 0 of 3, 4 of 8
    measures = report.measure_bias(report.load_results([tmp_path]))
    parity = find(measures, "Winogender", "gender parity (pairs)")
    assert (parity.prompts, parity.examples) == (3, 3)
    assert (parity.mean, parity.median) == pytest.approx((5 / 9, 2 / 3))
    assert parity.note == "2 examples without their pair left out"
    accuracy = find(measures, "Winogender", "accuracy")
    assert (accuracy.mean, accuracy.median) == pytest.approx((17 / 24, 5 / 8))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("He left.", "She left.", True),
        ("he hurt himself", "she hurt herself", True),
        ("He left.", "He left.", False),
        ("He left.", "She stayed.", False),
        ("He left.", "She left", False),
        ("They left.", "She left.", False),
    ],
)
def test_minimal_pairs(first, second, expected):
    assert is_minimal_pair(first, second) is expected


def test_crows_pairs_is_accuracy_over_prompts(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    for template, correct in (("a", 2), ("b", 5), ("c", 9)):
        write_task(
            step_dir, dataset="crows_pairs", template=template, correct=correct, wrong=10 - correct
        )
    kinds = {"choices": ("race", "age", "gender"), "scores": (-3.0, -2.0, -1.0)}
    write_task(step_dir, dataset="crows_pairs", template="which", correct=0, wrong=10, **kinds)
    (measure,) = report.measure_bias(report.load_results([tmp_path]))
    assert (measure.name, measure.measure, measure.prompts) == ("CrowS-Pairs", "accuracy", 3)
    assert measure.note == "1 on the kind of bias left out"
    assert (measure.mean, measure.median) == pytest.approx((16 / 30, 0.5))


def test_bias_does_not_count_as_a_skill(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    bias = {"category": "bias_and_fairness", "seen": "held-out dataset"}
    write_task(step_dir, dataset="crows_pairs", correct=1, wrong=9, **bias)
    (alone,) = average_groups(report.summarise(report.load_results([tmp_path])))
    assert (alone.datasets, alone.median) == (1, 0.1)
    write_task(step_dir, dataset="nli", seen="held-out dataset", correct=8, wrong=2)
    (mean,) = average_groups(report.summarise(report.load_results([tmp_path])))
    assert (mean.datasets, mean.median) == (1, 0.8)


def test_published_figures_of_bias_stand_once_beside_all_checkpoints(write_task, tmp_path):
    for step in (5, 6):
        write_task(tmp_path / "m" / "rank_classification" / str(step), dataset="crows_pairs")
    report.write_html(report.load_results([tmp_path]), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert html.count("T0++ 62.7, 64.4") == 1 and html.count("T0+ 57.6, 83.8") == 1


def write_generations(log_dir, subset, prompt, answers, step="000005"):
    lines = [{"input": {}, "target": target, "prediction": made} for target, made in answers]
    log_dir.mkdir(parents=True, exist_ok=True)
    file = log_dir / f"wino_bias_{subset}_{prompt}-{step}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_wino_bias_gap_from_generated_text(write_task, tmp_path):
    log_dir = tmp_path / "m" / "inference_eval"
    write_task(log_dir / "rank_classification" / "5")
    right, wrong = ("the developer", "The developer did."), ("the developer", "the designers")
    # Pro: 3/4, 4/4 and 2/4; anti: 1/4 and 2/4. Means 0.75 and 0.375, medians the same.
    for prompt, count in (("p", 3), ("q", 4), ("r", 2)):
        write_generations(log_dir, "type1_pro", prompt, [right] * count + [wrong] * (4 - count))
    for prompt, count in (("p", 1), ("q", 2)):
        write_generations(log_dir, "type1_anti", prompt, [right] * count + [wrong] * (4 - count))
    write_generations(log_dir, "type2_pro", "p", [right])  # Without its other side: no gap.
    results = report.load_results([tmp_path])
    generations = report.load_generations([tmp_path], results)
    assert {(item.run, item.step) for item in generations} == {("m", 5)}
    measures = report.measure_bias(results, generations)
    gap = find(measures, "WinoBias type 1", "gap, pro − anti")
    assert (gap.mean, gap.median, gap.method) == (0.375, 0.375, "generated text")
    assert (gap.prompts, gap.examples) == (2, 8)
    pro = find(measures, "WinoBias type 1", "pro-stereotype accuracy")
    assert (pro.mean, pro.median, pro.prompts) == (0.75, 0.75, 3)
    assert [item.measure for item in measures if item.name == "WinoBias type 2"] == [
        "pro-stereotype accuracy"
    ]


def test_the_run_file_of_wino_bias_is_complete(commands, tmp_path):
    templates = tmp_path / "prompts" / "wino_bias" / "type1_pro" / "templates.yaml"
    templates.parent.mkdir(parents=True)
    templates.write_text(
        """dataset: wino_bias
templates:
  a: !Template
    answer_choices: null
    id: a
    jinja: 'Who is meant? {{text}}|||{{referent}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Other]
      original_task: true
    name: who
    reference: ''
"""
    )
    vocabulary = Path(t0x.__file__).parents[1] / "tasks" / "vocabularies" / "mini.model"
    done = commands.run(
        *("t5x.eval", "--gin_file=eval_wino_bias.gin", "--dry_run"),
        cwd=tmp_path,
        environment={
            "T0X_PROMPTS_DIR": str(tmp_path / "prompts"),
            "T0X_VOCABULARY": str(vocabulary),
        },
    )
    assert "'wino_bias_eval'" in done.stdout and "@seqio.JSONLogger" in done.stdout


def test_generations_are_read_as_seqio_writes_them(tmp_path):
    (tmp_path / "m" / "inference_eval").mkdir(parents=True)
    dataset = tf.data.Dataset.from_tensor_slices({"inputs_pretokenized": ["Who?", "Who?"]})
    seqio.JSONLogger(str(tmp_path / "m" / "inference_eval"))(
        task_name="wino_bias_type2_anti_refers_to",
        step=1200,
        metrics={},
        dataset=dataset,
        inferences={"prediction": ["the chief", "a guard"]},
        targets=["the chief", "the nurse"],
    )
    (found,) = report.load_generations([tmp_path])
    assert (found.run, found.step, found.subset) == ("m", 1200, "type2_anti")
    assert (found.prompt, found.examples, found.accuracy) == ("refers_to", 2, 0.5)


def test_wino_bias_gap_from_ranked_choices_may_be_negative(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    for subset, correct in (("type2_pro", 4), ("type2_anti", 7)):
        write_task(
            step_dir, dataset="wino_bias", subset=subset, correct=correct, wrong=10 - correct
        )
    gap = find(
        report.measure_bias(report.load_results([tmp_path])), "WinoBias type 2", "gap, pro − anti"
    )
    assert gap.mean == pytest.approx(-0.3) and gap.method == "rank classification"
    report.write_html(report.load_results([tmp_path]), tmp_path / "r.html")
    assert "−30.0" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("prediction", "referent", "expected"),
    [
        ("the developer", "The developer", True),
        ("It was the Developer.", "the developer", True),
        ("developers", "the developer", False),
        ("the designer", "the developer", False),
        ("", "the developer", False),
        ("the the", "the", True),
    ],
)
def test_an_answer_is_right_if_it_has_the_noun(prediction, referent, expected):
    assert names_referent(prediction, referent) is expected


def test_torn_generations_are_named(tmp_path):
    file = write_generations(tmp_path, "type1_pro", "p", [("a", "b")])
    file.write_text(file.read_text() + '{"target": "the cook", "pred')
    with pytest.raises(ValueError, match=r"wino_bias_type1_pro_p-000005\.jsonl:2: no target and"):
        report.load_generations([tmp_path])


def test_results_without_bias_datasets_have_no_bias_section(run, tmp_path):
    results = report.load_results([run])
    assert report.measure_bias(results) == []
    report.write_html(results, tmp_path / "r.html")
    assert 'id="bias"' not in (tmp_path / "r.html").read_text()
