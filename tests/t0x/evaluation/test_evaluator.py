"""The packed evaluator gives the scores, metrics and result files of SeqIO's evaluator."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from jax.experimental import multihost_utils

from t0x import evaluation, registration, results
from t0x.prompts.template import Metadata, Template
from t5x import eval as eval_lib
from t5x import models, partitioning, utils
from t5x.examples.t5 import network

BYTES = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(BYTES, add_eos=False),
    "targets": seqio.Feature(BYTES, add_eos=True),
}
LENGTHS = {"inputs": 48, "targets": 12}
_numbers = itertools.count()


def _template(name, jinja, choices):
    return Template(name, jinja, choices, "", name, Metadata(True, True, ("Accuracy",), ("en",)))


TEMPLATES = [
    _template("side", "{{text}}: left or right?|||{{side}}", "left ||| right"),
    _template("which", "Which of them? {{text}}|||{{side}}", "{{names | join('|||')}}"),
]


@pytest.fixture(scope="module")
def mixture():
    rows = [
        {
            # U+2028 ends a line for str.splitlines, not for JSON lines.
            "text": "word " * (1 + i % 5) + "\u2028" * (i == 0) + str(i),
            "side": ("left", "right")[i % 2],
            # Two to six choices, some longer than the limit on targets.
            "names": ["left", "right", "up", "straight ahead and on", "no", "back"][: 2 + i % 5],
        }
        for i in range(23)
    ]
    name = f"packed{next(_numbers)}"
    prompts = {template.name: template for template in TEMPLATES}
    tasks = registration.register_dataset(
        name, {"train": rows, "validation": rows}, prompts, output_features=FEATURES
    )
    registration.register_mixture(f"{name}_score_eval", tasks.score_eval)
    return f"{name}_score_eval"


@pytest.fixture(scope="module")
def model():
    config = network.T5Config(
        vocab_size=384,
        dtype=jnp.float32,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        head_dim=8,
        mlp_dim=32,
        mlp_activations=("gelu", "linear"),
    )
    return models.EncoderDecoderModel(network.Transformer(config), BYTES, BYTES, None)


def _evaluate(evaluator_cls, mixture, model, log_dir, **settings):
    class WithLoggers(evaluator_cls):
        def __init__(self, **kwargs):
            super().__init__(logger_cls=[results.ResultsLogger], **{**kwargs, **settings})

    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    cfg = utils.DatasetConfig(mixture, LENGTHS, "validation", 16, False, 0)
    evaluator = eval_lib.InferenceEvaluator(
        cfg, WithLoggers, model, partitioner, log_dir=str(log_dir)
    )
    shapes = {name: (16, *shape) for name, shape in evaluator.model_feature_shapes.items()}
    initializer = utils.TrainStateInitializer(
        None, model.get_initial_variables, shapes, partitioner
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    metrics = evaluator.evaluate(state, initializer.train_state_axes).result()
    evaluator.close()
    return metrics, log_dir / "inference_eval" / "rank_classification" / "0"


@pytest.fixture(scope="module")
def seqio_results(mixture, model, tmp_path_factory):
    return _evaluate(seqio.Evaluator, mixture, model, tmp_path_factory.mktemp("seqio"))


def _lines(path):
    return [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]


# Rows just long enough, rows of many examples, rows too short for an example's choices.
@pytest.mark.parametrize("targets_per_row", [None, 96, 16])
def test_scores_are_those_of_one_pass_a_choice(
    mixture, model, seqio_results, tmp_path, targets_per_row
):
    expected, expected_folder = seqio_results
    actual, folder = _evaluate(
        evaluation.RankEvaluator, mixture, model, tmp_path, targets_per_row=targets_per_row
    )
    assert actual.keys() == expected.keys()
    for task in actual:
        ours, theirs = (_lines(f / f"{task}.jsonl") for f in (folder, expected_folder))
        assert len(ours) == 23
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.pop("scores"), b.pop("scores"), atol=1e-4)
            assert a == b
        ours, theirs = (
            json.loads((f / f"{task}.json").read_text()) for f in (folder, expected_folder)
        )
        assert set(ours) - set(theirs) == {
            "inputs_cut",
            "choices_cut",
            "encoded_again",
            "fingerprint",
        }
        assert {name: ours[name] for name in theirs} == theirs


def test_what_is_cut_is_counted(mixture, model, tmp_path):
    _evaluate(evaluation.RankEvaluator, mixture, model, tmp_path, use_memory_cache=False)
    folder = tmp_path / "inference_eval" / "rank_classification"
    for path in (folder / "0").glob("*.json"):
        rows, summary = _lines(path.with_suffix(".jsonl")), json.loads(path.read_text())
        inputs = sum(len(row["inputs"]) > LENGTHS["inputs"] for row in rows)
        choices = sum(len(c) + 1 > LENGTHS["targets"] for row in rows for c in row["choices"])
        assert (summary["inputs_cut"], summary["choices_cut"]) == (inputs, choices)
    overview = json.loads((folder / f"{mixture}-0.json").read_text())
    assert overview["choices_cut"] > 0
    assert {task["examples"] for task in overview["tasks"].values()} == {23}


def _token_scores(dataset):
    """A score for every position that depends on its token alone."""
    tokens = np.stack([row["decoder_target_tokens"] for _, row in dataset.as_numpy_iterator()])
    return None, {"decoder": {"token_scores": (-1.0 * tokens,)}}


@pytest.mark.parametrize("process", [0, 1])
def test_processes_leave_out_what_the_first_one_has_found(mixture, tmp_path, monkeypatch, process):
    """Results lie where only process 0 can read them; all processes must score the same batches."""
    params = {"w": np.arange(6, dtype=np.float32)}

    def evaluator():
        return evaluation.RankEvaluator(
            mixture,
            eval_split="validation",
            logger_cls=[results.ResultsLogger],
            log_dir=str(tmp_path),
        )

    shapes = []

    def score_fn(dataset):
        shapes.append(len(dataset))
        return _token_scores(dataset)

    arguments = {"step": 3, "score_fn": score_fn, "params": params, "batch_size": 1}
    _, expected = evaluator().evaluate(compute_metrics=True, **arguments)
    first, second = (task.name for task in evaluator().eval_tasks)
    (tmp_path / "rank_classification" / "3" / f"{second}.json").unlink()
    shapes.clear()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, x]))
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda flags: np.array([True, False])
    )
    _, outputs = evaluator().evaluate(compute_metrics=process == 0, **arguments)
    assert shapes
    assert outputs[second] == expected[second]
    assert (first in outputs) == (process == 0)


def test_tasks_without_the_split_are_counted(mixture, tmp_path, capsys):
    evaluator = evaluation.RankEvaluator(mixture, eval_split="train")
    assert len(evaluator.eval_tasks) == 2
    evaluator = evaluation.RankEvaluator(mixture, eval_split="dev")
    assert not evaluator.eval_tasks
    evaluator.evaluate(compute_metrics=True, score_fn=_token_scores)
    assert "2 tasks of" in capsys.readouterr().out


def test_one_tasks_failure_does_not_end_the_others(model, tmp_path, capsys):
    texts = [{"text": f"t{i}", "label": i % 2} for i in range(5)]
    template = _template("label", "{{text}}|||{{answer_choices[label]}}", "no ||| ")
    splits = {
        "good": {"validation": texts},
        "unlabelled": {"validation": [{"text": "t", "label": -1}] * 2},
        "torn": tmp_path / "torn",
    }
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/validation.jsonl").write_text('{"text": ')
    names = []
    for name, source in splits.items():
        tasks = registration.register_dataset(
            f"{name}{next(_numbers)}", source, {"label": template}, output_features=FEATURES
        )
        names += tasks.score_eval
    mixture = f"some_fail{next(_numbers)}"
    registration.register_mixture(mixture, names, rate=lambda task: 1.0)
    metrics, folder = _evaluate(evaluation.RankEvaluator, mixture, model, tmp_path)
    # The empty choice is one like the others.
    assert list(metrics) == names[:1]
    assert len(_lines(folder / f"{names[0]}.jsonl")) == 5
    shown = capsys.readouterr().out
    assert f"not evaluated: task {names[1]}: split validation has no labels: no label (2;" in shown
    assert f"not evaluated: task {names[2]}:" in shown and "validation.jsonl: 1 line is" in shown
    with pytest.raises(ValueError, match=f"{names[1]}: task {names[1]}: split validation has no"):
        evaluation.RankEvaluator(names[1], eval_split="validation")


def test_the_first_rows_only(mixture, model, tmp_path):
    _, folder = _evaluate(evaluation.RankEvaluator, mixture, model, tmp_path, num_examples=5)
    for path in folder.glob("*.jsonl"):
        assert [line["idx"] for line in _lines(path)] == list(range(5))


def test_other_tasks_are_refused(mixture):
    task = mixture.removesuffix("_score_eval") + "_side"
    with pytest.raises(ValueError, match=r"cannot evaluate .*@seqio.Evaluator"):
        evaluation.RankEvaluator(task, eval_split="validation")


def test_a_score_function_without_token_scores_is_refused(mixture):
    evaluator = evaluation.RankEvaluator(mixture, eval_split="validation")
    with pytest.raises(ValueError, match="needs the score of every target position"):
        evaluator.evaluate(compute_metrics=True, score_fn=lambda ds: [(0, 0.0)])
