"""Rows from local files, TFDS and the hub."""

import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import gin
import numpy as np
import pytest
import seqio

from t0x import sources
from t0x.sources import schemas


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_json_lines_give_every_row_in_any_order(data_dir):
    rows = [{"text": f"row {i} with ü and a\nline break", "label": i} for i in range(300)]
    write_rows(data_dir / "toy/default/train.jsonl", rows)
    opened = sources.open_rows("toy", None, "train")
    assert len(opened) == 300
    assert [opened[i] for i in (299, 0, 17, -1)] == [rows[i] for i in (299, 0, 17, -1)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(opened.__getitem__, range(300))) == rows
    with pytest.raises(IndexError):
        opened[300]


def test_a_file_is_opened_once_and_again_when_it_changed(data_dir):
    path = data_dir / "toy/sub/test.jsonl"
    write_rows(path, [{"a": 1}])
    first = sources.open_rows("toy", "sub", "test")
    assert sources.open_rows("toy", "sub", "test") is first
    write_rows(path, [{"a": 1}, {"a": 2}])
    assert len(sources.open_rows("toy", "sub", "test")) == 2


def test_bad_lines_are_named_by_number(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2\n[3]\n{"a": 4}\n\xff\xfe\n')
    with pytest.raises(ValueError, match=r"3 lines are no row: line 3 .*line 4 .*line 6"):
        len(sources.open_file(path))
    skipping = sources.open_file(path, bad_lines="skip")
    assert list(skipping) == [{"a": 1}, {"a": 4}]
    assert [place.split(" (")[0] for place in skipping.bad_places] == [
        f"train.jsonl, line {number}" for number in (3, 4, 6)
    ]


def test_bad_lines_policy_is_checked(tmp_path):
    with pytest.raises(ValueError, match="'error' or 'skip', not 'maybe'"):
        sources.JsonRows(tmp_path / "train.jsonl", bad_lines="maybe")


def test_parquet_gives_the_same_rows(data_dir):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"t{i}", "choices": {"label": ["A", "B"], "n": [i, 2]}} for i in range(5)]
    folder = data_dir / "toy/default"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "validation.parquet")
    opened = sources.open_rows("toy", None, "validation")
    assert list(opened) == rows
    assert opened[-1] == rows[-1]


def test_what_is_missing_everywhere_says_what_was_tried_and_what_to_do(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError) as caught:
        sources.open_rows("toy", "sub", "train", hub_id="org/toy")
    message = str(caught.value)
    for part in ("toy/sub, split train", "toy/sub/train", "TFDS", "org__toy", "[hub]"):
        assert part in message
    assert "\n" not in message


def test_without_a_data_directory_the_variable_is_named(monkeypatch):
    monkeypatch.delenv(sources.DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"\$T0X_DATA_DIR is not set"):
        sources.open_rows("toy", None, "train", settings=sources.Settings(order=("local",)))


def test_the_order_can_be_set_for_one_dataset_from_gin(data_dir):
    write_rows(data_dir / "toy/default/train.jsonl", [{"a": 1}])
    write_rows(data_dir / "other/default/train.jsonl", [{"a": 1}])
    with gin.unlock_config():
        gin.bind_parameter("t0x.sources.Settings.dataset_order", {"toy": ("tfds",)})
        try:
            with pytest.raises(FileNotFoundError, match="tried TFDS"):
                sources.open_rows("toy", None, "train")
            assert len(sources.open_rows("other", None, "train")) == 1
        finally:
            gin.clear_config()
    with pytest.raises(ValueError, match="'web' is none of local, tfds, hub"):
        sources.open_rows("toy", None, "train", settings=sources.Settings(order=("web",)))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_prepared_tfds_rows_look_like_the_hubs(data_dir, file_format):
    # tensorflow_datasets needs it to write a dataset, and does not require it.
    pytest.importorskip("importlib_resources")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    texts = [f"row {i}" for i in range(4)]
    pairs = np.array([[i, 1] for i in range(4)], np.int64)
    split = tf.data.Dataset.from_tensor_slices({"text": texts, "label": pairs})
    pair = tfds.features.Tensor(shape=(2,), dtype=np.int64)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="org__toy",  # as `tfds build huggingface:org/toy` names it
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": pair}),
        split_datasets={"train": split},
        data_dir=data_dir / "tfds",
        file_format=file_format,
    )
    opened = sources.open_rows("toy", None, "train", hub_id="org/toy")
    assert len(opened) == 4
    expected = [{"text": text, "label": [i, 1]} for i, text in enumerate(texts)]
    assert sorted(opened, key=lambda row: row["text"]) == expected
    with pytest.raises(FileNotFoundError, match="tried local"):
        sources.open_rows(
            "toy",
            None,
            "test",
            hub_id="org/toy",
            settings=sources.Settings(order=("local", "tfds")),
        )


def test_tfds_is_read_where_seqio_was_told_to(data_dir, monkeypatch):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", None)
    tfds_only = sources.Settings(order=("tfds",))
    for where in ("one", "two"):
        seqio.set_tfds_data_dir_override(str(data_dir / where))  # what --tfds_data_dir does
        with pytest.raises(FileNotFoundError, match=f"toy is not prepared in {data_dir}/{where}"):
            sources.open_rows("toy", None, "train", settings=tfds_only)


def store(data_dir, name, config, version="1.0.0", **splits):
    """Writes a prepared TFDS dataset with one row a split, of texts, numbers and lists of them."""
    pytest.importorskip("importlib_resources")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def feature(value):
        if isinstance(value, dict):
            return {key: feature(item) for key, item in value.items()}
        if isinstance(value, list):
            return tfds.features.Sequence(feature(value[0]))
        return tfds.features.Text() if isinstance(value, str) else np.int64

    first = next(iter(splits.values()))
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        config=config,
        features=tfds.features.FeaturesDict({key: feature(value) for key, value in first.items()}),
        split_datasets={split: tf.data.Dataset.from_tensors(row) for split, row in splits.items()},
        data_dir=data_dir / "tfds",
    )


def test_plain_tfds_has_other_names_and_schemas(data_dir):
    store(
        data_dir, "ag_news_subset", None,
        train={"title": "A title", "description": "and more.", "label": 2},
    )  # fmt: skip
    choices = {"text": ["x", "y"], "label": [0, 1]}
    store(data_dir, "ai2_arc", "ARC-Easy", train={"choices": choices, "answerKey": 1})
    store(
        data_dir, "openbookqa", None,
        train={
            "question": {"stem": "Why", "choice_A": "1", "choice_B": "2", "choice_C": "3",
                         "choice_D": "4"},
            "answerKey": 2, "fact1": "f",
        },
    )  # fmt: skip
    store(
        data_dir, "winogrande", None,
        train_xl={"sentence": "s _", "option1": "a", "option2": "b", "label": 1},
    )  # fmt: skip
    store(data_dir, "anli", "r2", validation={"context": "c", "hypothesis": "h", "label": 1})
    settings = sources.Settings(order=("tfds",))

    def first(*place):
        return sources.open_rows(*place, settings=settings)[0]

    assert first("ag_news", None, "train") == {"text": "A title and more.", "label": 2}
    assert first("ai2_arc", "ARC-Easy", "train") == {
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    assert first("openbookqa", "main", "train") == {
        "question_stem": "Why",
        "choices": {"text": ["1", "2", "3", "4"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
        "fact1": "f",
    }
    assert first("winogrande", "winogrande_xl", "train") == {
        "sentence": "s _", "option1": "a", "option2": "b", "answer": "2",
    }  # fmt: skip
    assert first("anli", None, "dev_r2") == {"premise": "c", "hypothesis": "h", "label": 1}
    store(data_dir, "wiki_bio", None, validation={"target_text": "t"})
    assert first("wiki_bio", None, "val") == {"target_text": "t"}
    store(data_dir, "cos_e", None, train={"question": "q"})
    assert first("cos_e", "v1.11", "train") == {"question": "q"}
    # What TFDS has of these does not serve.
    store(data_dir, "glue", "mrpc", test={"sentence1": "s", "label": -1})
    store(data_dir, "hellaswag", None, train={"context": "c"})
    for place in (("hellaswag", None, "train"), ("glue", "mrpc", "test")):
        with pytest.raises(FileNotFoundError, match=r"no rows for .*; tried TFDS"):
            first(*place, f"org/{place[0]}")


def test_the_newest_version_and_the_only_configuration_of_tfds_are_read(data_dir):
    settings = sources.Settings(order=("tfds",))
    for version in ("1.9.0", "1.10.0"):
        store(data_dir, "org__toy", "plain_text", version, train={"text": version})
    rows = sources.open_rows("toy", None, "train", "org/toy", settings)
    assert rows[0] == {"text": "1.10.0"}
    store(data_dir, "org__toy", "other", train={"text": "which?"})
    with pytest.raises(FileNotFoundError):
        sources.open_rows("toy", None, "train", "org/toy", settings)


def test_lists_of_records_come_back_from_huggingface_builders(data_dir):
    row = {"input": "q", "output": {"answer": ["a", "b"], "meta": ["1", "2"]}}
    store(data_dir, "facebook__kilt_tasks", "hotpotqa", train=row)
    opened = sources.open_rows("kilt_tasks", "hotpotqa", "train", "facebook/kilt_tasks")
    records = [{"answer": "a", "meta": "1"}, {"answer": "b", "meta": "2"}]
    assert opened[0] == {"input": "q", "output": records}


def test_classes_of_trec_keep_the_numbers_that_prompts_know(data_dir):
    now = [
        {"text": "When?", "coarse_label": 5, "fine_label": 39},  # NUM, NUM:date
        {"text": "Which hill?", "coarse_label": 4, "fine_label": 34},  # LOC, LOC:mount
    ]
    then = {"text": "Then?", "label-coarse": 4, "label-fine": 8}  # 2021's numbers
    write_rows(data_dir / "trec/default/train.jsonl", now)
    write_rows(data_dir / "trec/default/test.jsonl", [then])
    opened = sources.open_rows("trec", None, "train")
    assert opened[0] == {"text": "When?", "label_coarse": 4, "label_fine": 8}
    assert opened[1] == {"text": "Which hill?", "label_coarse": 5, "label_fine": 24}
    assert sources.open_rows("trec", None, "test")[0] == then


STORY = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    'id-1,One.,"Two, ""so"".",Three.,Four.,Good end.,Bad end.,1\n'
)


def test_story_cloze_comes_from_a_manual_download(data_dir):
    settings = sources.Settings(order=("local", "tfds"))
    place = ("story_cloze", "2016")
    with pytest.raises(FileNotFoundError, match=r"ask for Story Cloze at .*/story_cloze/2016/$"):
        sources.open_rows(*place, "test", settings=settings)
    folder = data_dir / "story_cloze/2016"
    folder.mkdir(parents=True)
    name = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    (folder / name).write_text(STORY)
    assert sources.local_splits(*place) == {"test": (folder / name,)}
    (row,) = sources.open_rows(*place, "test", settings=settings)
    assert row == {
        "story_id": "id-1",
        "input_sentence_1": "One.",
        "input_sentence_2": 'Two, "so".',
        "input_sentence_3": "Three.",
        "input_sentence_4": "Four.",
        "sentence_quiz1": "Good end.",
        "sentence_quiz2": "Bad end.",
        "answer_right_ending": 1,
    }
    write_rows(folder / "test.jsonl", [{"mine": 1}])  # rows in the hub's schema come first
    assert list(sources.open_rows(*place, "test", settings=settings)) == [{"mine": 1}]


CONVERTED = [
    "README.md",
    "pro/test/0000.parquet",
    "pro/val/0000.parquet",
    "pro/val/0001.parquet",
    "anti/val/0000.parquet",
    "anti/partial-train/0000.parquet",
]


@pytest.fixture
def scripts(monkeypatch):
    """A hub of scripts alone and of what it converted; gives the list of what was loaded."""
    loaded = []

    def load_dataset(name, config=None, split=None, data_files=None):
        if data_files is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found toy.py")
        loaded.append((name, data_files, split))
        return [{"n": 1}]

    def list_repo_files(hub_id, repo_type, revision):
        assert (repo_type, revision) == ("dataset", "refs/convert/parquet")
        return CONVERTED if hub_id == "org/toy" else ["plain_text/train/0000.parquet"]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    hub = types.SimpleNamespace(list_repo_files=list_repo_files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return loaded


def test_what_was_a_script_is_read_from_the_hubs_conversion(data_dir, scripts):
    assert sources.open_rows("toy", "pro", "val", "org/toy")[0] == {"n": 1}
    assert sources.open_rows("one", None, "train", "org/one")[0] == {"n": 1}
    base = "hf://datasets/org/toy@refs/convert/parquet/pro/val"
    one = "hf://datasets/org/one@refs/convert/parquet/plain_text/train/0000.parquet"
    assert scripts == [
        ("parquet", [f"{base}/0000.parquet", f"{base}/0001.parquet"], "train"),
        ("parquet", [one], "train"),
    ]


@pytest.mark.parametrize(
    ("subset", "split", "message"),
    [
        ("anti", "train", "converted only a part of anti/train"),
        ("pro", "train", "converted are only anti/partial-train, anti/val, pro/test, pro/val"),
        (None, "val", "converted are only anti/partial-train"),  # which of the two?
    ],
)
def test_a_conversion_is_never_mixed_up_or_cut(data_dir, scripts, subset, split, message):
    with pytest.raises(FileNotFoundError, match=message):
        sources.open_rows("toy", subset, split, "org/toy")
    assert scripts == []


# Rows as the hub has them today (or a copy of it) and as the prompts know them.
@pytest.mark.parametrize(
    ("dataset", "subset", "today", "then"),
    [
        (
            "wiki_hop",
            "original",
            {"query": "country_of_citizenship ada", "candidates": ["a", "b"]},
            {"question": "country_of_citizenship ada", "candidates": ["a", "b"]},
        ),
        (
            "super_glue",
            "record",
            {"entities": ["Rome", "Bern", "Oslo"], "answers": ["Oslo"]},
            {"entities": ["Bern", "Oslo", "Rome"], "answers": ["Oslo"]},
        ),
        (
            "multi_news",
            None,
            {"document": "- a ||||| b", "summary": "- -It rained."},
            {"document": "- a ||||| b", "summary": "It rained."},
        ),
        (
            "samsum",
            None,
            {"id": "1", "dialogue": None, "summary": "Nobody spoke."},
            {"id": "1", "dialogue": "", "summary": "Nobody spoke."},
        ),
        ("super_glue", "cb", {"entities": ["b", "a"]}, {"entities": ["b", "a"]}),
    ],
)
def test_rows_of_today_become_those_that_prompts_know(data_dir, dataset, subset, today, then):
    for split, row in (("train", today), ("test", then)):  # a row of 2021 stays as it is
        write_rows(data_dir / dataset / (subset or "default") / f"{split}.jsonl", [row])
        assert sources.open_rows(dataset, subset, split)[0] == then


def test_a_row_of_another_schema_is_named(data_dir):
    write_rows(data_dir / "super_glue/record/train.jsonl", [{"passage": "p", "entity": []}])
    rows = sources.open_rows("super_glue", "record", "train")
    with pytest.raises(schemas.SchemaError, match="fields passage, entity: KeyError: 'entities'"):
        rows[0]


def test_the_hub_has_wiki_hop_under_its_only_configuration(data_dir, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"query": "q"}]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    rows = sources.open_rows("wiki_hop", "original", "train", "MoE-UNC/wikihop")
    assert (rows[0], asked) == ({"question": "q"}, [("MoE-UNC/wikihop", None, "train")])


def test_rows_of_the_hub_library_itself(data_dir):
    pytest.importorskip("datasets", reason="the extra [hub] is not installed")
    folder = data_dir / "repository"
    rows = [{"text": f"row {n}", "spans": {"a": [n, 2]}} for n in range(5)]
    write_rows(folder / "train.jsonl", rows)
    opened = sources.open_rows("toy", None, "train", str(folder))
    assert len(opened) == 5
    assert [opened[n] for n in (4, 0)] == [rows[4], rows[0]]
    with pytest.raises(FileNotFoundError, match="the hub") as caught:
        sources.open_rows("toy", None, "nothing", str(folder))
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_last_under_its_present_name(data_dir, monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if split != "train":
            raise ValueError(f"Unknown split\n{split}")
        return [{"text": "from the hub"}]

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert sources.open_rows("toy", "sub", "train", "org/toy")[0] == {"text": "from the hub"}
    assert asked == [("org/toy", "sub", "train")]
    with pytest.raises(FileNotFoundError, match=r"the hub \(org/toy: Unknown split test\)"):
        sources.open_rows("toy", "sub", "test", "org/toy")


def test_hyphens_in_field_names_become_underscores():
    row = {"attitude-towards": 1, "plain": {"in-side": 2}}
    assert sources.underscore_fields(row) == {"attitude_towards": 1, "plain": {"in-side": 2}}
