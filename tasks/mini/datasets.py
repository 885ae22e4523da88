"""Mini-P3's twelve datasets: their categories, sizes and splits.

Rows are drawn from a seed by the functions of `mini_training` and `mini_held_out`; nothing is read
or downloaded.
"""

import functools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from t0x.tasks.mini import held_out as mini_held_out
from t0x.tasks.mini import training
from t0x.tasks.mini.training import Row

SEED = 2110_08207
VALIDATION_ROWS = 200
# Share of split keys kept for validation. The keys of a row decide its split, so that no text,
# question or sentence pair of validation is ever met in training.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class MiniDataset:
    """How one dataset is drawn.

    Attributes:
      draw: (generator, class) → row.
      classes: number of classes; rows take turns through them, so each has the same share.
      split_fields: fields whose values decide a row's split; the splits share none of them.
    """

    name: str
    category: str
    draw: Callable[[Random, int], Row]
    classes: int
    split_fields: tuple[str, ...]
    train_rows: int
    held_out: bool = False

    @property
    def splits(self) -> dict[str, int]:
        return {"train": self.train_rows, "validation": VALIDATION_ROWS}


DATASETS = (
    MiniDataset("reviews", "sentiment", training.draw_review, 2, ("text",),
                1500),
    MiniDataset("news", "topic_classification", training.draw_news, 4, ("text",),
                1000),
    MiniDataset("pairs", "paraphrase", training.draw_pair, 2, ("sentence1",),
                10000),
    MiniDataset("stories", "QA_extractive", training.draw_story, 2, ("context",),
                6000),
    MiniDataset("facts", "QA_closed_book", training.draw_fact, 4, ("question",),
                2500),
    MiniDataset("dilemmas", "QA_multiple_choice", training.draw_dilemma, 3, ("context",),
                5000),
    MiniDataset("summaries", "summarization", training.draw_summary, 3, ("document",),
                2000),
    MiniDataset("records", "structure_to_text", training.draw_record, 3, ("text",),
                1000),
    MiniDataset("entailment", "NLI", mini_held_out.draw_entailment, 2, ("premise",),
                2000, held_out=True),
    MiniDataset("pronouns", "coreference", mini_held_out.draw_pronoun, 2, ("text",),
                2000, held_out=True),
    MiniDataset("endings", "story_completion", mini_held_out.draw_ending, 4, ("context",),
                2000, held_out=True),
    MiniDataset("senses", "word_sense_disambiguation", mini_held_out.draw_sense, 2, ("sentence1",),
                1000, held_out=True),
)  # fmt: skip


def belongs_to_validation(dataset: MiniDataset, row: Row) -> bool:
    """Decides by the row's split fields alone, with a hash that is the same everywhere."""
    key = json.dumps([dataset.name, *(row[field] for field in dataset.split_fields)])
    return zlib.crc32(key.encode()) / 2**32 < VALIDATION_SHARE


def draw_rows(dataset: MiniDataset, split: str) -> Iterator[Row]:
    """Distinct rows of one split without end, classes taking turns."""
    rng = Random(f"{SEED}/{dataset.name}/{split}")
    seen = set()
    label = 0
    while True:
        row = dataset.draw(rng, label)
        fingerprint = json.dumps(row, sort_keys=True)
        if fingerprint in seen or belongs_to_validation(dataset, row) != (split == "validation"):
            continue
        seen.add(fingerprint)
        label = (label + 1) % dataset.classes
        yield row


@functools.cache
def rows(name: str, split: str) -> tuple[Row, ...]:
    """The rows of a dataset's split, drawn on first use.

    Raises:
      LookupError: no such dataset, or no such split.
    """
    by_name = {dataset.name: dataset for dataset in DATASETS}
    if name not in by_name:
        raise LookupError(f"Mini-P3 has no dataset {name!r}; it has {', '.join(by_name)}")
    dataset = by_name[name]
    if split not in dataset.splits:
        raise LookupError(f"mini/{name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    drawn = draw_rows(dataset, split)
    return tuple(row for row, _ in zip(drawn, range(dataset.splits[split]), strict=False))
