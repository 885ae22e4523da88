"""Rank classification: a row's answer is the choice to which the model gives the highest score.

The score of a choice is the sum of its tokens' log-probabilities, EOS included, not normalised by
length (T0, section 5.3). Here are the pure rule (`rank`), and the SeqIO preprocessor, postprocessor
and metric that carry it through `seqio.Evaluator`; names, features and units follow t5 0.9.4.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf


# Two different answers whose scores are closer than this (in nats) may swap places with the dtype
# or with the layout of a batch: sums of bfloat16 log-probabilities vary by up to half of it.
NEAR_TIE = 0.04
# Between the right answers in the target of a row that has several.
RIGHT_ANSWERS = "\x1e|\x1e"


class Target(NamedTuple):
    """What the metric needs of one (row, choice) example.

    The first four fields are those of t5's `rank_classification` postprocessor.
    """

    idx: tuple[int, int]  # row, position of the choice
    is_correct: bool
    weight: float
    length: int  # target tokens, EOS included
    choices: int  # how many the row has; -1 where the dataset does not say
    choice: str


class Ranking(NamedTuple):
    """A row's scored choices and the verdict.

    `prediction` and `label` are positions of the first choice with that text, so that a text listed
    twice is one answer: they are equal exactly when the row is answered right.
    """

    row: int
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    prediction: int
    label: int
    weight: float


def rank(scores: Sequence[float], choices: Sequence[str] | None = None) -> int:
    """Position of the highest score; the first one where scores tie.

    Args:
      scores: log-probability of each choice, in nats.
      choices: their texts; where a text occurs twice, its first position is returned.

    Raises:
      ValueError: there are no scores, one is NaN, or their number is not that of the choices.
    """
    if len(scores) == 0:
        raise ValueError("rank: there is no score to choose from")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"rank: a score is NaN: {[float(score) for score in scores]}")
    if choices is None:
        return max(range(len(scores)), key=scores.__getitem__)
    if len(choices) != len(scores):
        raise ValueError(f"rank: {len(scores)} scores for {len(choices)} choices")
    best = max(range(len(scores)), key=scores.__getitem__)
    return list(choices).index(choices[best])


def expand_choices(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    """Expands a row into one example a choice, in the order of the choices.

    Args:
      dataset: examples with the strings `inputs` and `targets`, the string vector
        `answer_choices`, and optionally `row` (an integer that identifies the row; its place in
        the dataset otherwise) and further scalars, which every choice gets.

    Returns:
      Examples with idx (int32, [row, position]), inputs, targets (the choice), is_correct (the
      choice is the row's target, surrounding space aside, or one of several between which stands
      RIGHT_ANSWERS), weight (float32, 1) and num_choices (int32).
    """
    import tensorflow as tf

    def expand(position: "tf.Tensor", row: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
        row = dict(row)
        choices = row.pop("answer_choices")
        count = tf.size(choices)
        place = tf.cast(row.pop("row", position), tf.int32)
        right = tf.strings.split(tf.strings.strip(row.pop("targets")), RIGHT_ANSWERS)
        expanded = {name: tf.fill([count], value) for name, value in row.items()}
        expanded["idx"] = tf.stack([tf.fill([count], place), tf.range(count)], axis=1)
        expanded["targets"] = choices
        expanded["is_correct"] = tf.reduce_any(tf.equal(choices[:, None], right), axis=1)
        expanded["weight"] = tf.ones([count], tf.float32)
        expanded["num_choices"] = tf.fill([count], count)
        return expanded

    return dataset.enumerate().map(tf.autograph.experimental.do_not_convert(expand)).unbatch()


def postprocess(
    score: Any, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Postprocessor for `metric`: a target becomes a `Target`, a score stays as it is."""
    if not is_target or example is None:
        return score
    row, position = (int(place) for place in example["idx"])
    return Target(
        idx=(row, position),
        is_correct=bool(example["is_correct"]),
        weight=float(example.get("weight", 1.0)),
        length=len(example["targets"]),
        choices=int(example.get("num_choices", -1)),
        choice=score if isinstance(score, str) else str(position),
    )


def rank_row(
    row: int, choices: Sequence[str], scores: Sequence[float], correct: Sequence[bool]
) -> Ranking:
    """Ranks the choices of one row.

    Args:
      row: its number.
      choices: their texts.
      scores: log-probability of each choice, in nats.
      correct: which of them are right.

    Raises:
      ValueError: none is, or `rank` raises.
    """
    right = [place for place, is_right in enumerate(correct) if is_right]
    if not right:
        raise ValueError(
            f"rank classification: no choice of row {row} is correct: {tuple(choices)}"
        )
    best = rank(scores, choices)
    # Several right answers: the predicted one, if it is among them, is the label.
    label = best if best in right else right[0]
    return Ranking(row, tuple(choices), tuple(map(float, scores)), best, label, weight=1.0)


def rankings(targets: Sequence[Target], scores: Any) -> list[Ranking]:
    """Groups scored (row, choice) examples by row and ranks each row.

    Args:
      targets: what `postprocess` made of the examples, in any order.
      scores: their log-probabilities in the same order, or the pair (scores, intermediates) that
        a model returns which was asked for intermediates too.

    Returns:
      Rows by number. A row whose choices are not all there is left out: that happens to the last
      one where the evaluation was told to stop after a number of examples.

    Raises:
      ValueError: numbers of targets and scores differ, or no choice of a row is correct.
    """
    scores = scores[0] if isinstance(scores, tuple) else scores
    if len(targets) != len(scores):
        raise ValueError(f"rank classification: {len(scores)} scores for {len(targets)} examples")
    scored = sorted(zip(targets, map(float, scores), strict=True), key=lambda pair: pair[0].idx)
    ranked = []
    for row, group in itertools.groupby(scored, key=lambda pair: pair[0].idx[0]):
        group_targets, group_scores = zip(*group, strict=True)
        if len(group_targets) < group_targets[0].choices:
            continue
        choices = [target.choice for target in group_targets]
        correct = [target.is_correct for target in group_targets]
        ranking = rank_row(row, choices, group_scores, correct)
        ranked.append(ranking._replace(weight=group_targets[ranking.prediction].weight))
    return ranked


def metric(targets: Sequence[Target], scores: Any) -> dict[str, float]:
    """Accuracy in percent, weighted by row, as t5's `rank_classification` metric names it.

    Raises:
      ValueError: there is no complete row, or `rankings` raises.
    """
    return {"accuracy": 100 * accuracy(rankings(targets, scores))}


def accuracy(ranked: Sequence[Ranking]) -> float:
    """Share (0 to 1) of the rows, by weight, that are answered right.

    Raises:
      ValueError: there is no row.
    """
    total = sum(ranking.weight for ranking in ranked)
    if not total:
        raise ValueError("rank classification: no row has all of its choices scored")
    return sum(r.weight for r in ranked if r.prediction == r.label) / total


def is_near_tie(scores: Sequence[float], choices: Sequence[str], prediction: int) -> bool:
    """Whether an answer other than the predicted one is closer to it than NEAR_TIE.

    A text that is listed twice is one answer. Scores that are not finite are close to nothing.
    """
    answer = choices[prediction]
    pairs = list(zip(choices, scores, strict=True))
    best = max(score for choice, score in pairs if choice == answer)
    return any(best - score < NEAR_TIE for choice, score in pairs if choice != answer)


def near_ties(ranked: Sequence[Ranking]) -> int:
    """Rows in which two different answers nearly tie, see `is_near_tie`."""
    return sum(is_near_tie(r.scores, r.choices, r.prediction) for r in ranked)


def chance(ranked: Sequence[Ranking]) -> float:
    """Accuracy (0 to 1) of choosing at random: the mean of 1 ÷ number of choices.

    A right answer that is listed twice is as likely as its listings.
    """
    likely = [r.choices.count(r.choices[r.label]) / len(r.choices) for r in ranked]
    return sum(likely) / len(likely)
