"""A dataset and its prompted tasks as mixtures and reports see them, and T0's mixing rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from t0x.prompts.template import Template

# T0, section 4: a dataset counts as at most this many examples, divided over its prompts.
MAX_EXAMPLES_PER_DATASET = 500_000


@dataclass(frozen=True)
class Dataset:
    """A dataset whose rows can be had by split.

    Args:
      name: as promptsource names it; with `subset` it starts the names of the tasks.
      subset: configuration, or None.
      category: kind of task, for reports ("sentiment", "NLI", …).
      splits: rows of each split; None where they are counted when asked for.
      rows: opens a split; random access, lazy.
      held_out: True where training never sees the dataset.
      train_size: rows that T0's mixing rule counts, where that is not the train split's size.
      eval_split: what the split named `eval` stands for.
      full_splits: rows of the whole splits, where those at hand may be a part of them.
    """

    name: str
    subset: str | None
    category: str
    splits: Mapping[str, int | None]
    rows: Callable[[str], Sequence[Mapping[str, Any]]]
    held_out: bool = False
    train_size: int | None = None
    eval_split: str | None = None
    full_splits: Mapping[str, int] = field(default_factory=dict)

    def num_examples(self, split: str) -> int:
        """Rows of a split; opens it where nobody has counted it before."""
        known = self.splits[split]
        return len(self.rows(split)) if known is None else known

    @property
    def label(self) -> str:
        return f"{self.name}/{self.subset}" if self.subset else self.name


def mixing_rate(train_size: int, num_templates: int) -> int:
    """T0's rate of one prompt: the train size, above 500,000 rows 500,000 ÷ number of prompts."""
    if train_size <= MAX_EXAMPLES_PER_DATASET:
        return train_size
    return MAX_EXAMPLES_PER_DATASET // num_templates


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a registered task beyond what SeqIO keeps."""

    name: str
    dataset: Dataset
    template: Template
    num_templates: int  # prompts of the dataset, which share its weight in a mixture
    train_split: str
    held_out_prompt: bool
    score_eval: bool
    # Examples that the whole of a split gives, where somebody counted them.
    examples: Mapping[str, int] = field(default_factory=dict)

    def num_examples(self, split: str) -> int:
        """Examples of a split as far as they are known without rendering it.

        The count in `examples`, if the rows at hand are the whole split; else one a row, and in a
        rank classification task whose choices are the same for every row one a choice.
        """
        rows = self.dataset.num_examples(split)
        if split in self.examples and rows == self.dataset.full_splits.get(split, rows):
            return self.examples[split]
        fixed = self.score_eval and self.template.get_fixed_answer_choices_list()
        return rows * len(fixed) if fixed else rows

    @property
    def seen(self) -> str:
        """One of "seen", "held-out prompt" and "held-out dataset"."""
        if self.dataset.held_out:
            return "held-out dataset"
        return "held-out prompt" if self.held_out_prompt else "seen"

    @property
    def rate(self) -> int:
        """T0's mixing rate, see `mixing_rate`."""
        size = self.dataset.train_size
        if size is None:
            known = self.train_split in self.dataset.splits
            size = self.dataset.num_examples(self.train_split) if known else 0
        return mixing_rate(size, self.num_templates)
