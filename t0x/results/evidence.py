"""What the examples of one task say, gathered one example at a time.

Only numbers and the first wrong predictions stay in memory: a few bytes an example, however long
the prompts are.
"""

import math
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from t0x.rank_classification import is_near_tie
from t0x.results.format import Example


@dataclass(frozen=True)
class Answers:
    """The choice every example got, as int64 arrays of one length; `rows` are numbers of rows."""

    rows: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray


class Evidence:
    """Running counts over the examples of one task; keeps the first `keep` wrong predictions."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._columns = array("q"), array("q"), array("q")
        self._confidence = 0.0
        self.examples = self.wrong_total = self.near_ties = self.not_finite = 0
        self.labels: Counter[int] = Counter()
        self.predictions: Counter[int] = Counter()
        self.choice_names: tuple[str, ...] | None = None
        self.wrong: list[Example] = []

    def add(self, example: Example) -> None:
        """Counts an example."""
        if self.examples == 0:
            self.choice_names = example.choices
        elif self.choice_names != example.choices:
            self.choice_names = ()
        self.examples += 1
        self.labels[example.label] += 1
        self.predictions[example.prediction] += 1
        values = (example.idx, example.prediction, example.label)
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self.near_ties += is_near_tie(example.scores, example.choices, example.prediction)
        self._add_scores(example)
        if example.prediction != example.label:
            self.wrong_total += 1
            if len(self.wrong) < self._keep:
                self.wrong.append(example)

    def _add_scores(self, example: Example) -> None:
        if not all(map(math.isfinite, example.scores)):
            self.not_finite += 1
            return
        self._confidence += softmax(example.scores)[example.prediction]

    @property
    def confidence(self) -> float:
        """Mean softmax probability of the predicted choice, over finite scores; else NaN."""
        finite = self.examples - self.not_finite
        return self._confidence / finite if finite else math.nan

    @property
    def answers(self) -> Answers:
        """Every example's answer, in file order."""
        return Answers(*(np.array(column, np.int64) for column in self._columns))


def softmax(scores: tuple[float, ...]) -> list[float]:
    """Probabilities of the choices, were one of them certain; all NaN if a score is not finite."""
    if not all(map(math.isfinite, scores)):
        return [math.nan] * len(scores)
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]
