"""Whether a dataset's prompts answer the same examples alike.

Prompts list their choices in orders of their own ("Yes ||| No", "No ||| Yes"), so a choice is
compared by what it stands for: where prompt B's label is 1 whenever prompt A's is 0, B's choice 1
is A's choice 0. A prompt for which the labels give no such one-to-one rendering is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t0x.results.evidence import Answers


@dataclass(frozen=True)
class Agreement:
    """How alike prompts answer.

    `pairwise` is the share of equal answers, mean over examples and pairs of prompts. `kappa` is
    Fleiss' kappa: 1 for always the same answer, 0 for no more agreement than chance, None where
    all prompts give all examples one and the same answer. `left_out` prompts could not be compared.
    `by_prompt` has, for every prompt given, its share of equal answers with another one; None for
    those left out.
    """

    prompts: int
    examples: int
    pairwise: float
    kappa: float | None
    left_out: int
    by_prompt: tuple[float | None, ...]


def measure_agreement(prompts: Sequence[Answers]) -> Agreement | None:
    """Agreement of prompts on the examples that all of them scored.

    Args:
      prompts: answers under each prompt; the first is the one others are compared to.

    Returns:
      None with fewer than two comparable prompts, or with no example in common.
    """
    if len(prompts) < 2:
        return None
    reference = prompts[0]
    renderings = [translate(answers, reference) for answers in prompts]
    comparable = [
        (answers.rows, rendering)
        for answers, rendering in zip(prompts, renderings, strict=True)
        if rendering is not None
    ]
    common = comparable[0][0]
    for rows, _ in comparable[1:]:
        common = np.intersect1d(common, rows)
    if len(comparable) < 2 or not len(common):
        return None
    answers = np.stack([given[_places(rows, common)] for rows, given in comparable])
    choices, answers = np.unique(answers, return_inverse=True)
    answers = answers.reshape(len(comparable), len(common))
    counts = np.stack([(answers == place).sum(0) for place in range(len(choices))], axis=1)
    pairwise, kappa = fleiss_kappa(counts)
    others = np.take_along_axis(counts, answers.T, axis=1) - 1  # (examples, prompts)
    shares = iter((others.mean(0) / (len(comparable) - 1)).tolist())
    return Agreement(
        prompts=len(comparable),
        examples=len(common),
        pairwise=pairwise,
        kappa=kappa,
        left_out=len(prompts) - len(comparable),
        by_prompt=tuple(None if item is None else next(shares) for item in renderings),
    )


def translate(answers: Answers, reference: Answers) -> np.ndarray | None:
    """Predictions in terms of the reference's choices; None if the labels give no rendering."""
    common = np.intersect1d(answers.rows, reference.rows)
    ours = answers.labels[_places(answers.rows, common)]
    theirs = reference.labels[_places(reference.rows, common)]
    pairs = np.unique(np.stack([ours, theirs], axis=1), axis=0)
    meaning = dict(pairs.tolist())
    if len(meaning) < len(pairs) or len(set(meaning.values())) < len(pairs):
        return None
    for choice in np.unique(answers.predictions).tolist():
        # A choice that is never right has no counterpart; its own position will do if it is free.
        if choice not in meaning:
            if choice in meaning.values():
                return None
            meaning[choice] = choice
    return np.array([meaning[choice] for choice in answers.predictions.tolist()], np.int64)


def fleiss_kappa(counts: np.ndarray) -> tuple[float, float | None]:
    """Observed pairwise agreement, and Fleiss' kappa.

    Args:
      counts: how many raters gave each answer, (examples, answers); every row sums to the same
        number of raters, at least 2.

    Reference: J. L. Fleiss, Psychological Bulletin 76 (1971), 378-382.
    """
    raters = int(counts[0].sum())
    observed = float(np.mean(((counts**2).sum(1) - raters) / (raters * (raters - 1))))
    expected = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return observed, None if expected == 1 else (observed - expected) / (1 - expected)


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted row stands, the first of them if it does more than once."""
    order = np.argsort(rows, kind="stable")
    return order[np.searchsorted(rows, wanted, sorter=order)]
