"""How rows of other sources differ from the hub's of 2021, which promptsource's prompts expect.

One place for all of it: where plain TFDS keeps a dataset under another name or schema (`in_tfds`),
what the hub has changed since (`on_hub`), and files that come by a manual download
(`manual_files`). Everything here is a pure function of names and rows.

Compared: the fields that promptsource's templates use; the hub's features and loading scripts in
huggingface/datasets 1.9.0 (July 2021) and in its last commit that had any (parent of 8803c182,
October 2022), what maintainers wrote of them since; the builders of tensorflow-datasets 4.9. What
is not named here is the same in all of them, up to details of the text that cannot be undone:
plain TFDS letters ARC's choices where the source numbers them, ends CNN / Daily Mail's sentences
with "." for " .", and lacks some rows of XSum.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Adapter = Callable[[Row], Row]


class SchemaError(ValueError):
    """A row has not the fields that its source is known for."""


class AdaptedRows(Sequence):
    """Rows through an adapter, one at a time; `bad_places` are those of the rows.

    Reading a row raises SchemaError where the adapter finds other fields than it expects.
    """

    def __init__(self, rows: Sequence[Row], adapt: Adapter) -> None:
        self._rows = rows
        self._adapt = adapt

    @property
    def bad_places(self) -> Sequence[str]:
        return getattr(self._rows, "bad_places", ())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        try:
            return self._adapt(row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise SchemaError(f"fields {', '.join(map(str, row))}: {cause}") from error


def renamed(**names: str) -> Adapter:
    """Adapter that gives fields new names: renamed(old="new")."""
    return lambda row: {names.get(name, name): value for name, value in row.items()}


# Plain TFDS


@dataclass(frozen=True)
class InTfds:
    """Where TFDS has a dataset.

    Args:
      name: the builder.
      config: its configuration, None for none.
      split: TFDS's name of a split, where it is another; None where its rows do not serve.
      adapt: row of TFDS → row of the hub.
    """

    name: str
    config: str | None = None
    split: Mapping[str, str | None] = field(default_factory=dict)
    adapt: Adapter | None = None


def _ag_news(row: Row) -> Row:
    return {"text": f"{row['title']} {row['description']}", "label": row["label"]}


def _arc(row: Row) -> Row:
    letters = "ABCDE"
    labels = [letters[place] for place in row["choices"]["label"]]
    choices = {**row["choices"], "label": labels}
    return {**row, "choices": choices, "answerKey": letters[row["answerKey"]]}


def _openbookqa(row: Row) -> Row:
    letters = "ABCD"
    texts = [row["question"][f"choice_{letter}"] for letter in letters]
    return {
        "question_stem": row["question"]["stem"],
        "choices": {"text": texts, "label": list(letters)},
        "answerKey": letters[row["answerKey"]],
        "fact1": row["fact1"],
    }


def _winogrande(row: Row) -> Row:
    kept = {name: row[name] for name in ("sentence", "option1", "option2")}
    # The test split has no answers.
    return {**kept, "answer": str(row["label"] + 1) if row["label"] >= 0 else ""}


_PLAIN: dict[tuple[str, str | None], InTfds | None] = {
    ("ag_news", None): InTfds("ag_news_subset", adapt=_ag_news),
    ("ai2_arc", "ARC-Challenge"): InTfds("ai2_arc", "ARC-Challenge", adapt=_arc),
    ("ai2_arc", "ARC-Easy"): InTfds("ai2_arc", "ARC-Easy", adapt=_arc),
    ("cnn_dailymail", "3.0.0"): InTfds("cnn_dailymail"),
    ("cos_e", "v1.11"): InTfds("cos_e"),
    ("glue", "mrpc"): InTfds("glue", "mrpc", split={"test": None}),  # without labels
    ("imdb", None): InTfds("imdb_reviews", "plain_text"),
    ("openbookqa", "main"): InTfds("openbookqa", adapt=_openbookqa),
    ("paws", "labeled_final"): InTfds("paws_wiki", "labeled_final_tokenized"),
    ("squad_v2", None): InTfds("squad", "v2.0"),
    ("wiki_bio", None): InTfds("wiki_bio", split={"val": "validation"}),
    **{
        ("winogrande", f"winogrande_{size}"): InTfds(
            "winogrande", split={"train": f"train_{size}"}, adapt=_winogrande
        )
        for size in ("xs", "s", "m", "l", "xl", "debiased")
    },
    # What the prompts need of these is not in TFDS, or its rows are other units.
    ("hellaswag", None): None,
    ("race", "high"): None,
    ("race", "middle"): None,
    ("story_cloze", "2016"): None,
}


def in_tfds(dataset: str, subset: str | None, split: str) -> tuple[InTfds, str] | None:
    """Where plain TFDS has a split, and its name there; None where it has nothing that serves.

    ANLI's rounds are splits on the hub and configurations in TFDS.
    """
    if dataset == "anli" and "_" in split:
        split, round_ = split.split("_")
        place = InTfds("anli", round_, {"dev": "validation"}, renamed(context="premise"))
    else:
        place = _PLAIN.get((dataset, subset), InTfds(dataset, subset))
    name = place and place.split.get(split, split)
    return (place, name) if name else None


# Datasets of the hub with lists of records, which TFDS's `huggingface:` builders turn into a record
# of lists.
_LISTS_OF_RECORDS = {"kilt_tasks": ("output",)}


def from_tfds_of_hub(dataset: str) -> Adapter | None:
    """Adapter for rows of a dataset that a `huggingface:` builder prepared; None: as on the hub."""
    fields = _LISTS_OF_RECORDS.get(dataset)
    return functools.partial(_unzip, fields) if fields else None


def _unzip(fields: Sequence[str], row: Row) -> Row:
    def records(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905

    return {name: records(value) if name in fields else value for name, value in row.items()}


# The hub


@dataclass(frozen=True)
class OnHub:
    """How the hub has a dataset today, under the `hub_id` of the catalogue.

    Args:
      config: its configuration there, None for the only one.
      adapt: row of today → row of 2021; a row of 2021 stays as it is.
    """

    config: str | None
    adapt: Adapter | None = None


# TREC's classes as numbered in 2021, and as the hub numbers them now.
_TREC_COARSE = ("DESC ENTY ABBR HUM NUM LOC", "ABBR ENTY DESC HUM LOC NUM")
_TREC_FINE = (
    "manner cremat animal exp ind gr title def date reason event state desc count other letter "
    "religion food country color termeq city body dismed mount money product period substance "
    "sport plant techmeth volsize instru abb speed word lang perc code dist temp symbol ord veh "
    "weight currency",
    "abb exp animal body color cremat currency dismed event food instru lang letter other plant "
    "product religion sport substance symbol techmeth termeq veh word def desc manner reason gr "
    "ind title desc city country mount other state code count date dist money ord other period "
    "perc speed temp volsize weight",
)


def _trec(row: Row) -> Row:
    if "coarse_label" not in row:
        return row

    def number(names: tuple[str, str], place: int) -> int:
        then, now = (text.split() for text in names)
        return then.index(now[place])

    return {
        "text": row["text"],
        "label_coarse": number(_TREC_COARSE, row["coarse_label"]),
        "label_fine": number(_TREC_FINE, row["fine_label"]),
    }


def _record(row: Row) -> Row:
    # A sorted list once, a set written down in any order since.
    return {**row, "entities": sorted(row["entities"])}


def _multi_news(row: Row) -> Row:
    return {**row, "summary": row["summary"].lstrip("- ")}


def _samsum(row: Row) -> Row:
    # One dialogue is empty, which the copy that is left has as null.
    return {name: "" if value is None else value for name, value in row.items()}


_HUB: dict[tuple[str, str | None], OnHub] = {
    ("multi_news", None): OnHub(None, _multi_news),
    ("samsum", None): OnHub(None, _samsum),
    ("super_glue", "record"): OnHub("record", _record),
    ("trec", None): OnHub(None, _trec),
    ("wiki_hop", "original"): OnHub(None, renamed(query="question")),
}


def on_hub(dataset: str, subset: str | None) -> OnHub:
    """How the hub (and a local copy of what it has) keeps a dataset today."""
    return _HUB.get((dataset, subset), OnHub(subset))


# Manual downloads


@dataclass(frozen=True)
class Manual:
    """A dataset whose owners hand it out on request.

    Args:
      patterns: name of the file of each split, as the owners name it.
      adapt: row of the CSV file, all texts → row of the hub.
      how: how to get it, for errors.
    """

    patterns: Mapping[str, str]
    adapt: Adapter
    how: str


def _story_cloze(row: Row) -> Row:
    return {
        "story_id": row["InputStoryid"],
        **{f"input_sentence_{n}": row[f"InputSentence{n}"] for n in range(1, 5)},
        **{f"sentence_quiz{n}": row[f"RandomFifthSentenceQuiz{n}"] for n in (1, 2)},
        "answer_right_ending": int(row["AnswerRightEnding"]),
    }


_MANUAL = {
    ("story_cloze", "2016"): Manual(
        {
            "validation": "cloze_test_val__spring2016*.csv",
            "test": "cloze_test_test__spring2016*.csv",
        },
        _story_cloze,
        "ask for Story Cloze at https://cs.rochester.edu/nlp/rocstories/ and put its two files "
        "cloze_test_val__spring2016….csv and cloze_test_test__spring2016….csv into "
        "$T0X_DATA_DIR/story_cloze/2016/",
    )
}


def manual(dataset: str, subset: str | None) -> Manual | None:
    """The manual download of a dataset, None where it is not one."""
    return _MANUAL.get((dataset, subset))


def manual_files(dataset: str, subset: str | None, folder: Path) -> dict[str, Path]:
    """Files of a manual download in a folder, by split."""
    patterns = _MANUAL[dataset, subset].patterns if (dataset, subset) in _MANUAL else {}
    found = {split: sorted(folder.glob(pattern)) for split, pattern in patterns.items()}
    return {split: paths[0] for split, paths in found.items() if paths}
