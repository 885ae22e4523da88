"""Prompts of a dataset as SeqIO tasks: names, examples, what is left out, mixing, restoring."""

import itertools
import json
import logging

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from t0x import metrics, registration
from t0x.prompts.template import Metadata, Template
from t0x.registration import source as rendering
from t0x.registration.skipped import (
    BAD_LINE,
    EMPTY,
    NO_LABEL,
    NO_TARGET,
    NO_TEXT,
    NOT_A_CHOICE,
    OTHER_FIELDS,
    TEMPLATE_ERROR,
    UNLABELED,
    noted_rows,
    skipped_in,
)
from t0x.sources import schemas

BYTES = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(BYTES, add_eos=False),
    "targets": seqio.Feature(BYTES, add_eos=True),
}
LENGTHS = {"inputs": 64, "targets": 16}
_numbers = itertools.count()


def template(name, jinja, choices=None, original=True, metric_names=("Accuracy",)):
    return Template(
        name, jinja, choices, "", name, Metadata(original, False, metric_names, ("en",))
    )


CLASSIFY = template("which side?", "{{text}}: left or right?|||{{side}}", "left ||| right")
WRITE = template("write", "Write on the {{side}}.|||{{text}}", metric_names=("ROUGE", "BLEU"))


def register(rows, *templates, **options):
    """Registers rows (a list: train; or by split) under a name of its own."""
    splits = rows if isinstance(rows, dict) else {"train": rows}
    name = f"sides{next(_numbers)}"
    prompts = {template.name: template for template in templates}
    options.setdefault("output_features", FEATURES)
    return name, registration.register_dataset(name, splits, prompts, **options)


def sides(count):
    return [{"text": f"text {i}", "side": ("left", "right")[i % 2]} for i in range(count)]


def examples(task, split="train", **options):
    options.setdefault("shuffle", False)
    dataset = seqio.get_mixture_or_task(task).get_dataset(LENGTHS, split, **options)
    return list(dataset.as_numpy_iterator())


def test_names_are_p3s():
    assert registration.task_name("super_glue", "wsc.fixed", "p is/are r") == (
        "super_glue_wsc.fixed_p_is_are_r"
    )
    assert registration.task_name("ai2_arc", "ARC-Challenge", "i_am-here (a)") == (
        "ai2_arc_ARC_Challenge_i_am_here_a_"
    )
    assert registration.task_name("ag_news", None, "classify  it?!") == "ag_news_classify_it_"


def test_a_prompt_with_choices_has_a_twin():
    name, tasks = register(sides(4), CLASSIFY, WRITE)
    assert tasks.train == tasks.all == [f"{name}_which_side_", f"{name}_write"]
    assert tasks.score_eval == [f"{name}_which_side__score_eval"]


def test_train_examples_are_tokens_with_eos_on_targets_only():
    _, tasks = register(sides(2), CLASSIFY)
    example = examples(tasks.train[0])[1]
    assert example["inputs_pretokenized"].decode() == "text 1: left or right?"
    assert example["targets_pretokenized"].decode() == "right"
    assert example["inputs"].tolist() == BYTES.encode("text 1: left or right?")
    assert example["targets"].tolist() == [*BYTES.encode("right"), BYTES.eos_id]
    assert [choice.decode() for choice in example["answer_choices"]] == ["left", "right"]
    assert (example["row"], example["split"]) == (1, b"train")


def test_tokens_are_those_of_seqios_own_steps():
    rows = tf.data.Dataset.from_tensor_slices({"inputs": ["a b", "ü"], "targets": ["", "yes"]})
    expected = seqio.preprocessors.append_eos(
        seqio.preprocessors.tokenize(rows, FEATURES), FEATURES
    )
    made = registration.tokenize(rows, FEATURES)
    assert made.element_spec == expected.element_spec
    for ours, theirs in zip(made.as_numpy_iterator(), expected.as_numpy_iterator(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_twin_has_an_example_a_choice():
    _, tasks = register(sides(3), CLASSIFY)
    expanded = examples(tasks.score_eval[0])
    assert [tuple(example["idx"]) for example in expanded] == [
        (row, choice) for row in range(3) for choice in range(2)
    ]
    assert [e["targets_pretokenized"] for e in expanded] == [b"left", b"right"] * 3
    assert [bool(e["is_correct"]) for e in expanded] == [True, False, False, True, True, False]


def test_what_gives_no_example_is_left_out_and_counted(caplog):
    prompt = template(
        "judge",
        "{% if text == 'half' %}no parts{% elif text == 'three' %}a|||b|||c{% else %}"
        "{{text}}|||{{answer_choices[places[0]]}}{% endif %}",
        "left ||| right",
    )
    bad = [
        {"text": "half", "places": [0]},
        {"text": "three", "places": [0]},
        {"text": "", "places": [0]},
        {"text": "no places"},
        {"text": "half \ud83d of one", "places": [0]},
    ]
    rows = [{"text": "good", "places": [1]}, *bad, {"text": "also good", "places": [0]}]
    with caplog.at_level(logging.WARNING, logger="absl"):
        _, tasks = register({"train": rows, "test": bad[:2] + rows[:1]}, prompt)
        kept = examples(tasks.train[0], num_epochs=2)
    assert [e["row"] for e in kept] == [0, 6, 0, 6]
    # Each row counts once, however often it is read.
    assert registration.skipped_rows()[tasks.train[0]] == {
        NO_TARGET: 2,
        EMPTY: 1,
        TEMPLATE_ERROR: 1,
        NO_TEXT: 1,
    }
    assert any(tasks.train[0] in message and "left out" in message for message in caplog.messages)
    examples(tasks.score_eval[0], "test")
    assert skipped_in(tasks.score_eval[0], "test") == {NO_TARGET: 2}
    assert skipped_in(tasks.score_eval[0], "train") == {}


def test_rows_of_another_schema_are_left_out_and_counted():
    rows = [{"text": "a", "place": "left"}, {"text": "b"}, {"text": "c", "place": "right"}]
    adapted = schemas.AdaptedRows(rows, lambda row: {"text": row["text"], "side": row["place"]})
    _, tasks = register({"train": adapted}, CLASSIFY)
    assert [e["row"] for e in examples(tasks.train[0])] == [0, 2]
    assert registration.skipped_rows()[tasks.train[0]] == {OTHER_FIELDS: 1}


def test_examples_are_what_was_counted_where_the_whole_split_is_there():
    def count(here):
        name = f"counted{next(_numbers)}"
        dataset = registration.Dataset(
            name, None, "", {"train": 6, "test": here}, lambda split: sides(2),
            full_splits={"train": 6, "test": 3},
        )  # fmt: skip
        counts = {f"{name}_which_side_": {"train": 4, "test": 2},
                  f"{name}_which_side__score_eval": {"test": 5}}  # fmt: skip
        prompts = {prompt.name: prompt for prompt in (CLASSIFY, WRITE)}
        registration.register_dataset(
            name, dataset, prompts, output_features=FEATURES, examples=counts
        )
        names = (f"{name}_which_side_", f"{name}_which_side__score_eval", f"{name}_write")
        tasks = [seqio.TaskRegistry.get(task) for task in names]
        return [[task.num_input_examples(split) for split in ("train", "test")] for task in tasks]

    assert count(here=3) == [[4, 2], [12, 5], [6, 3]]
    assert count(here=None) == [[4, 2], [12, 4], [6, 2]]  # two of its three rows are there


def test_rank_task_leaves_out_rows_whose_target_is_no_choice():
    rows = [*sides(2), {"text": "t", "side": "middle"}, {"text": "t", "side": ""}]
    _, tasks = register(rows, CLASSIFY)
    assert [e["targets_pretokenized"] for e in examples(tasks.train[0])] == [
        b"left",
        b"right",
        b"middle",
        rendering.NO_TARGET_TEXT.encode(),
    ]
    assert len(examples(tasks.score_eval[0])) == 4
    assert registration.skipped_rows()[tasks.score_eval[0]] == {NOT_A_CHOICE: 1, NO_LABEL: 1}


BY_LABEL = template("label", "{{text}}|||{{answer_choices[label]}}", "left ||| right")


def labelled(*labels):
    return [{"text": "t", "label": label} for label in labels]


def test_rows_whose_label_names_no_choice_are_counted():
    rows = labelled(0, 1.0, "1", None, 7, -1, np.int64(1))
    name, tasks = register(rows, BY_LABEL)
    # What is rendered is promptsource's, and T0's.
    none = rendering.NO_TARGET_TEXT.encode()
    targets = [e["targets_pretokenized"] for e in examples(tasks.train[0])]
    assert targets == [b"left", none, none, none, none, b"right", b"right"]
    assert noted_rows()[f"{name}_label"] == {UNLABELED: 5}
    ranked = examples(tasks.score_eval[0])
    assert [(e["idx"][0], e["is_correct"]) for e in ranked] == [
        (0, True), (0, False), (6, False), (6, True),
    ]  # fmt: skip
    assert registration.skipped_rows()[tasks.score_eval[0]] == {NO_LABEL: 5}


def test_a_split_without_labels_says_that_it_has_none():
    _, tasks = register({"train": labelled(0), "test": labelled(-1, -1)}, BY_LABEL)
    message = (
        r"split test has no labels: no label \(2; row 0 of split test: label = -1; the choices"
    )
    with pytest.raises(rendering.TaskError, match=message):
        examples(tasks.score_eval[0], "test")


def test_an_empty_choice_may_be_right():
    choice = template("empty", "{{text}}|||{{answer_choices[label]}}", "left ||| ")
    _, tasks = register(labelled(1, 0), choice)
    ranked = examples(tasks.score_eval[0])
    assert [(e["targets_pretokenized"], e["is_correct"]) for e in ranked] == [
        (b"left", False), (b"", True), (b"left", True), (b"", False),
    ]  # fmt: skip


def test_a_split_without_one_usable_row_is_an_error_at_once():
    rows = [{"text": "t", "side": "middle"}] * 3
    name, tasks = register({"train": sides(2), "test": rows}, CLASSIFY)
    with pytest.raises(
        ValueError, match=rf"{name}_which_side__score_eval: none of the 3 rows of .*'middle'"
    ):
        examples(tasks.score_eval[0], "test")


def test_a_split_that_is_not_there_is_named():
    name, tasks = register({"train": sides(2), "dev": sides(1)}, WRITE)
    message = f"task {name}_write has no split 'test'; it has train, dev, eval"
    task = seqio.TaskRegistry.get(tasks.train[0])
    for ask in (task.num_input_examples, task.source.get_dataset):
        with pytest.raises(ValueError, match=message):
            ask("test")


def test_the_split_named_eval_is_the_datasets_own():
    only_test = {"train": sides(5), "test": sides(2)}
    both = {"train": sides(5), "validation": sides(1), "test": sides(2)}
    for splits, options, expected in (
        (only_test, {}, (b"test", 4)),
        (both, {}, (b"validation", 2)),
        (both, {"eval_split": "test"}, (b"test", 4)),
    ):
        _, tasks = register(splits, CLASSIFY, **options)
        task = seqio.TaskRegistry.get(tasks.score_eval[0])
        assert set(task.splits) == {*splits, "eval"}
        read = examples(task.name, "eval")
        assert (read[0]["split"], len(read)) == expected
        assert task.num_input_examples("eval") == len(read)  # one a choice
        assert task.source.num_input_examples("eval") == len(read) // 2


def test_held_out_prompts_and_datasets_stay_out_of_training():
    name, tasks = register(sides(2), CLASSIFY, WRITE, held_out_prompts=["which side?"])
    assert tasks.train == [f"{name}_write"]
    assert registration.task_info(tasks.score_eval[0]).seen == "held-out prompt"
    assert registration.task_info(f"{name}_write").seen == "seen"
    name, tasks = register(sides(2), CLASSIFY, held_out=True)
    assert (tasks.train, len(tasks.score_eval)) == ([], 1)
    assert registration.task_info(tasks.score_eval[0]).seen == "held-out dataset"


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"no such prompt in held_out_prompts: \['other'\]"):
        register(sides(1), CLASSIFY, held_out_prompts=["other"])
    with pytest.raises(ValueError, match="no prompt to register"):
        register(sides(1))
    with pytest.raises(ValueError, match=r"no <split>\.jsonl, .* is empty"):
        registration.register_dataset("empty", tmp_path, {"w": WRITE})
    name, _ = register(sides(1), WRITE)
    with pytest.raises(ValueError, match=f"a task named {name}_write is registered already"):
        registration.register_dataset(name, {"train": sides(1)}, {"write": WRITE})
    with pytest.raises(ValueError, match="mixture m: there is no task"):
        registration.register_mixture("m", [])
    with pytest.raises(ValueError, match="mixture m: not registered: nobody"):
        registration.register_mixture("m", ["nobody"])
    for source, message in ((sides(1), "give a folder, or rows by split"),
                            (tmp_path / "none", "none does not exist"),
                            (tmp_path, "no <split>.jsonl, .json")):  # fmt: skip
        with pytest.raises(ValueError, match=f"dataset badly: .*{message}"):
            registration.register_dataset("badly", source, {"write": WRITE})
    with pytest.raises(LookupError, match="'nobody' was not registered"):
        registration.task_info("nobody")


def test_a_folder_of_rows_and_a_template_file(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sides(3)))
    (tmp_path / "templates.yaml").write_text(
        """
dataset: own
templates:
  0c1d: !Template
    answer_choices: left ||| right
    id: 0c1d
    jinja: '{{text}}? ||| {{side}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
      original_task: true
    name: own words
    reference: ''
"""
    )
    tasks = registration.register_dataset(
        "own_folder", tmp_path, tmp_path / "templates.yaml", output_features=FEATURES
    )
    assert tasks.train == ["own_folder_own_words"]
    assert [e["inputs_pretokenized"] for e in examples(tasks.train[0])] == [
        b"text 0?",
        b"text 1?",
        b"text 2?",
    ]
    assert registration.task_info(tasks.train[0]).rate == 3


def test_bad_lines_that_are_skipped_are_counted(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "side": "left"}\nnot json\n')
    name = f"torn{next(_numbers)}"
    (task,) = registration.register_dataset(
        name, tmp_path, {"write": WRITE}, output_features=FEATURES
    ).train
    with pytest.raises(ValueError, match=r"train\.jsonl: 1 line is no row: line 2"):
        examples(task)
    with gin.unlock_config():
        gin.bind_parameter("t0x.sources.Settings.bad_lines", "skip")
        try:
            assert len(examples(task)) == 1
        finally:
            gin.clear_config()
    assert registration.skipped_rows()[task] == {BAD_LINE: 1}
    (line,) = seqio.TaskRegistry.get(task).source.remarks()
    assert line.startswith(f"rows left out of {task}: 1 ({BAD_LINE}; ")


def test_cached_files_are_read_through_a_shuffle_buffer(tmp_path, monkeypatch):
    _, tasks = register(sides(50), CLASSIFY)
    (task,) = tasks.train
    folder = tmp_path / task
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        for number in range(50):
            values = tf.train.Feature(int64_list=tf.train.Int64List(value=[number + 3, 1]))
            features = tf.train.Features(feature={"inputs": values, "targets": values})
            writer.write(tf.train.Example(features=features).SerializeToString())
    tokens = {"dtype": "int32", "shape": [None]}
    info = {"num_shards": 1, "features": {"inputs": tokens, "targets": tokens},
            "seqio_version": seqio.__version__}  # fmt: skip
    (folder / "info.train.json").write_text(json.dumps(info))
    (folder / "stats.train.json").write_text(json.dumps({"examples": 50}))
    (folder / "COMPLETED").touch()
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path)])
    read = examples(task, use_cached=True, shuffle=True, seed=1)
    order = [int(example["inputs"][0]) - 3 for example in read]
    assert sorted(order) == list(range(50)) and order != list(range(50))


def test_rates_follow_t0s_rule():
    def rate(train_size, count):
        prompts = {f"w{i}": template(f"w{i}", "{{text}}|||a") for i in range(count)}
        dataset = registration.Dataset(
            f"rated{next(_numbers)}", None, "", {"train": train_size}, lambda split: []
        )
        tasks = registration.register_dataset(
            dataset.name, dataset, prompts, output_features=FEATURES
        )
        mixture = registration.register_mixture(f"{dataset.name}_mixture", tasks.train)
        (found,) = {mixture.get_rate(task) for task in mixture.tasks}
        return found

    assert rate(320, 3) == 320
    assert rate(500_000, 3) == 500_000
    assert rate(500_001, 3) == 166_666
    assert rate(3_600_000, 9) == 55_555


def test_shards_are_disjoint_and_complete_in_any_order():
    _, tasks = register(sides(23), CLASSIFY)
    for shuffle in (False, True):
        seen = [
            int(example["row"])
            for index in range(3)
            for example in examples(
                tasks.train[0], shuffle=shuffle, seed=5, shard_info=seqio.ShardInfo(index, 3)
            )
        ]
        assert sorted(seen) == list(range(23))


def test_shuffling_is_a_permutation_set_by_the_seed():
    _, tasks = register(sides(40), CLASSIFY, WRITE)

    def order(task, seed):
        return [int(e["row"]) for e in examples(task, shuffle=True, seed=seed)]

    first = order(tasks.train[0], 1)
    assert sorted(first) == list(range(40)) and first != list(range(40))
    assert first == order(tasks.train[0], 1)
    assert first != order(tasks.train[0], 2)
    assert first != order(tasks.train[1], 1)  # two prompts do not walk the rows in step


@pytest.mark.parametrize("try_in_mem_cache", [False, True])
def test_a_restored_iterator_goes_on_with_the_same_rows(tmp_path, try_in_mem_cache):
    name, tasks = register(sides(30), CLASSIFY, WRITE)
    registration.register_mixture(name, tasks.train)

    def iterator():
        dataset = seqio.get_mixture_or_task(name).get_dataset(
            LENGTHS,
            "train",
            shuffle=True,
            seed=3,
            copy_pretokenized=True,
            try_in_mem_cache=try_in_mem_cache,
        )
        return iter(dataset)

    def take(rows, count):
        return [next(rows)["inputs_pretokenized"].numpy() for _ in range(count)]

    running = iterator()
    take(running, 17)
    saved = tf.train.Checkpoint(rows=running).save(str(tmp_path / "rows"))
    expected = take(running, 100)
    restored = iterator()
    tf.train.Checkpoint(rows=restored).restore(saved)
    assert take(restored, 100) == expected


def test_generated_answers_are_scored_as_the_template_says():
    _, tasks = register(sides(2), CLASSIFY, WRITE)
    ranked, written = (seqio.TaskRegistry.get(task) for task in tasks.train)
    assert ranked.metric_fns == [metrics.accuracy]
    assert written.metric_fns == [metrics.rouge, metrics.bleu]
    # Fixed choices become class ids, as in T0; other answers are stripped.
    assert [ranked.postprocess_fn(text) for text in (" right ", "left", "up")] == [1, 0, -1]
    assert written.postprocess_fn(" text\n") == "text"


def test_a_dataset_comes_with_its_mixtures():
    name, tasks = register(sides(6), CLASSIFY, WRITE, held_out_prompts=["write"])

    def mixed(mixture):
        found = seqio.MixtureRegistry.get(mixture)
        return {task.name: found.get_rate(task) for task in found.tasks}

    assert mixed(f"{name}_train") == dict.fromkeys(tasks.train, 6)
    assert list(mixed(f"{name}_score_eval")) == tasks.score_eval
    name, _ = register(sides(2), WRITE, subset="a-b")
    assert f"{name}_a_b_train" in seqio.MixtureRegistry.names()
    assert f"{name}_a_b_score_eval" not in seqio.MixtureRegistry.names()
    name, _ = register(sides(2), WRITE, mixtures=False)
    assert f"{name}_train" not in seqio.MixtureRegistry.names()


def test_prompts_are_added_to_a_dataset_that_is_there(tmp_path):
    name, tasks = register(sides(4), CLASSIFY)
    more = template("other words", "{{text}}?|||{{side}}", "left ||| right")
    added = registration.add_prompts(name, {"other words": more})
    assert added.train == added.all == [f"{name}_other_words"]
    assert added.score_eval == [f"{name}_other_words_score_eval"]
    assert examples(added.train[0])[1]["inputs_pretokenized"] == b"text 1?"
    infos = [registration.task_info(task) for task in (tasks.train[0], added.train[0])]
    assert infos[0].rate == infos[1].rate == 4
    with pytest.raises(ValueError, match="other_words is registered already"):
        registration.add_prompts(name, {"other words": more})
    with pytest.raises(LookupError, match="no task of dataset 'nobody' is registered"):
        registration.add_prompts("nobody", {"other words": more})
