"""What the page shows of each prompt: interval, calibration, labels, some wrong predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from t0x.report.summary import (
    DatasetSummary,
    LabelShare,
    find_skew,
    share_labels,
    wilson_interval,
)
from t0x.results.evidence import softmax
from t0x.results.format import Example
from t0x.results.reading import TaskResult

# A rendered prompt may hold a whole article; the page shows its beginning and says so.
SHOWN_CHARACTERS = 1500
# Labels that vary by example can have many positions; the most frequent tell the story.
SHOWN_LABELS = 8
# The best choices by score; the label is always among those shown.
SHOWN_CHOICES = 12
# Bytes of wrong predictions on a page, all prompts together: browsers open 10 MB readily.
EXAMPLE_BUDGET = 7_000_000


@dataclass(frozen=True)
class Choice:
    """A choice as the page lists it; `probability` is a softmax over the choices' scores."""

    text: str
    score: float
    probability: float
    right: bool
    given: bool


@dataclass(frozen=True)
class WrongExample:
    """A wrong prediction, cut to what the page shows, and how much that leaves out."""

    idx: int
    inputs: str
    more_characters: int
    choices: tuple[Choice, ...]
    more_choices: int

    @property
    def size(self) -> int:
        """Bytes on the page, roughly."""
        texts = [self.inputs, *(choice.text for choice in self.choices)]
        written = sum(len(escape(text).encode()) for text in texts)
        return 250 + written + 150 * len(self.choices)


@dataclass(frozen=True)
class Prompt:
    """One line of the prompt table and its drill-down."""

    anchor: str
    result: TaskResult
    dataset: str
    low: float
    high: float
    overconfidence: float | None  # Mean confidence minus accuracy, as a fraction.
    agreement: float | None  # Share of answers equal to those of another prompt of the dataset.
    shares: tuple[LabelShare, ...]
    more_labels: int
    skew: LabelShare | None
    wrong: tuple[WrongExample, ...]


def describe_prompts(
    summaries: Sequence[DatasetSummary], budget: int = EXAMPLE_BUDGET
) -> list[Prompt]:
    """Every prompt with its interval and labels: training datasets first, prompts together.

    Wrong predictions are taken evenly over the prompts until they come to `budget` bytes.
    """
    ordered = sorted(
        summaries, key=lambda item: (item.seen == "held-out dataset", item.category, item.name)
    )
    prompts = [
        (summary.name, result, agreement)
        for summary in ordered
        for result, agreement in zip(summary.tasks, summary.agreement_by_prompt, strict=True)
    ]
    wrong = _share_budget([result.wrong for _, result, _ in prompts], budget)
    return [
        _describe(f"task-{number}", *prompt, shown)
        for number, (prompt, shown) in enumerate(zip(prompts, wrong, strict=True), start=1)
    ]


def _describe(
    anchor: str,
    dataset: str,
    result: TaskResult,
    agreement: float | None,
    wrong: tuple[WrongExample, ...],
) -> Prompt:
    low, high = wilson_interval(result.correct, result.examples)
    shares = share_labels(result)
    frequent = sorted(shares, key=lambda share: -max(share.true, share.predicted))
    gap = result.confidence - result.accuracy
    return Prompt(
        anchor=anchor,
        result=result,
        dataset=dataset,
        low=low,
        high=high,
        overconfidence=gap if math.isfinite(gap) else None,
        agreement=agreement,
        shares=tuple(shares if len(shares) <= SHOWN_LABELS else frequent[:SHOWN_LABELS]),
        more_labels=max(0, len(shares) - SHOWN_LABELS),
        skew=find_skew(shares),
        wrong=wrong,
    )


def _share_budget(
    wrong: Sequence[Sequence[Example]], budget: int
) -> list[tuple[WrongExample, ...]]:
    """The first examples of every prompt, one more each in turn while the budget lasts."""
    shown: list[list[WrongExample]] = [[] for _ in wrong]
    for place in range(max(map(len, wrong), default=0)):
        for examples, kept in zip(wrong, shown, strict=True):
            if place < len(examples):
                example = cut_example(examples[place])
                budget -= example.size
                if budget < 0:
                    return [tuple(kept) for kept in shown]
                kept.append(example)
    return [tuple(kept) for kept in shown]


def cut_example(example: Example) -> WrongExample:
    """What the page shows of an example."""
    probabilities = softmax(example.scores)
    order = range(len(example.choices))
    if len(order) > SHOWN_CHOICES:
        best = sorted(order, key=lambda place: -example.scores[place])[: SHOWN_CHOICES - 1]
        order = sorted({*best, example.label, example.prediction})
    choices = tuple(
        Choice(
            text=_cut(example.choices[place]),
            score=example.scores[place],
            probability=probabilities[place],
            right=place == example.label,
            given=place == example.prediction,
        )
        for place in order
    )
    return WrongExample(
        idx=example.idx,
        inputs=example.inputs[:SHOWN_CHARACTERS],
        more_characters=max(0, len(example.inputs) - SHOWN_CHARACTERS),
        choices=choices,
        more_choices=len(example.choices) - len(choices),
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
