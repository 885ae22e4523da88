"""T0's datasets: datasets.csv, one row a (dataset, subset); examples.csv, one row a task of P3.

Columns of datasets.csv:

- dataset, subset: as promptsource names them; they start the names of P3's tasks.
- hub_id: where the Hugging Face hub keeps the dataset today.
- category: kind of task, after T0's figure 2.
- train_group: "T0" trained every model, "T0+" the models T0+ and T0++, "T0++" only the latter;
  empty: no model trained on it.
- eval_group: "T0" (held-out evaluation, figure 4) or "bias_fairness" (appendix); often empty.
- train_size: rows counted by T0's mixing rule, those of train (ANLI: of its three rounds); empty
  where T0 never mixes the dataset.
- splits: rows of each split on the hub, `name=rows` divided by spaces.
- eval_split: what the split named `eval` stands for: a test split with public labels where this
  project reports on it, else validation, else test; empty where there is only train.

Columns of examples.csv:

- task: its name in P3, of the tasks that T0 was trained or evaluated on.
- splits: examples of each split as P3 has them, `name=examples` divided by spaces. Rows that the
  prompt leaves out do not count; a *_score_eval task has an example for each choice of each row. A
  split that is not named has none, or could not be made (COPA's labels are missing in test).

Facts: the datasets.csv of bigscience-workshop/t-zero, the published table of P3's tasks, and the
dataset_infos.json of huggingface/datasets 1.9.0.
"""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

from t0x.registration import Dataset
from t0x.sources.files import Rows
from t0x.sources.openers import local_splits, open_rows

PATH = Path(__file__).with_name("datasets.csv")
EXAMPLES_PATH = Path(__file__).with_name("examples.csv")
ANLI_ROUNDS = ("r1", "r2", "r3")


@dataclass(frozen=True)
class Entry:
    """One row of datasets.csv; see the columns above."""

    name: str
    subset: str | None
    hub_id: str
    category: str
    train_group: str
    eval_group: str
    train_size: int
    splits: dict[str, int]
    eval_split: str | None

    @property
    def held_out(self) -> bool:
        """Whether the model named T0 was never trained on it."""
        return self.train_group != "T0"

    def datasets(self) -> list[Dataset]:
        """What is registered for the entry: itself, or ANLI's three rounds."""
        if self.name != "anli":
            return [self._dataset(self.subset, {split: split for split in self.splits})]
        real = {"train": "train", "validation": "dev", "test": "test"}
        return [
            self._dataset(round_, {split: f"{name}_{round_}" for split, name in real.items()})
            for round_ in ANLI_ROUNDS
        ]

    def _dataset(self, subset: str | None, split_names: dict[str, str]) -> Dataset:
        def rows(split: str) -> Rows:
            return open_rows(self.name, self.subset, split_names[split], self.hub_id)

        sizes = {split: self.splits[name] for split, name in split_names.items()}
        # Where rows are at hand, they count: a folder may hold part of a split.
        found = local_splits(self.name, self.subset)
        return Dataset(
            name=self.name,
            subset=subset,
            category=self.category,
            splits={s: None if split_names[s] in found else size for s, size in sizes.items()},
            rows=rows,
            held_out=self.held_out,
            train_size=self.train_size,
            eval_split=self.eval_split,
            full_splits=sizes,
        )


@functools.cache
def catalogue() -> dict[tuple[str, str | None], Entry]:
    """Every entry by (dataset, subset), in the order of datasets.csv."""
    with open(PATH, newline="", encoding="utf-8") as file:
        entries = [_entry(row) for row in csv.DictReader(file)]
    return {(entry.name, entry.subset): entry for entry in entries}


@functools.cache
def published_examples() -> dict[str, dict[str, int]]:
    """Examples of P3's tasks that T0 used, as published: task → split → number."""
    with open(EXAMPLES_PATH, newline="", encoding="utf-8") as file:
        return {row["task"]: _sizes(row["splits"]) for row in csv.DictReader(file)}


def _sizes(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in (item.split("=") for item in text.split())}


def _entry(row: dict[str, str]) -> Entry:
    return Entry(
        name=row["dataset"],
        subset=row["subset"] or None,
        hub_id=row["hub_id"],
        category=row["category"],
        train_group=row["train_group"],
        eval_group=row["eval_group"],
        train_size=int(row["train_size"] or 0),
        splits=_sizes(row["splits"]),
        eval_split=row["eval_split"] or None,
    )
