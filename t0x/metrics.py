"""Metrics of generated answers, by the names that promptsource's templates use.

Each function takes (targets, predictions), already post-processed, and returns values in percent.
Names with no function here (Trivia QA, MultiRC, COQA F1, the correlations and others) give a task
no generation metric; its rank classification twin is not affected.
"""

import collections
import re
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MetricFunction = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Share of predictions equal to their target."""
    right = sum(target == made for target, made in zip(targets, predictions, strict=True))
    return {"accuracy": 100 * right / len(targets)}


def squad(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 after SQuAD's normalisation (case, articles, punctuation)."""
    pairs = [
        (_normalise(target).split(), _normalise(made).split())
        for target, made in zip(targets, predictions, strict=True)
    ]
    exact = sum(target == made for target, made in pairs) / len(pairs)
    f1 = sum(_token_f1(target, made) for target, made in pairs) / len(pairs)
    return {"em": 100 * exact, "f1": 100 * f1}


def _normalise(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _token_f1(target: Sequence[str], made: Sequence[str]) -> float:
    shared = sum((collections.Counter(target) & collections.Counter(made)).values())
    if not shared:
        return float(not target and not made)
    return 2 * shared / (len(target) + len(made))


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU by sacrebleu.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    import sacrebleu

    score = sacrebleu.corpus_bleu(list(predictions), [list(targets)])
    return {"bleu": score.score}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, -2 and -L F1 with stemming, by rouge-score.

    Raises:
        ImportError: rouge-score is not installed.
    """
    from rouge_score import rouge_scorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(targets, predictions, strict=True)]
    return {kind: 100 * sum(s[kind].fmeasure for s in scores) / len(scores) for kind in kinds}


# "Other" is scored by accuracy in T0 as well.
BY_NAME: dict[str, MetricFunction] = {
    "Accuracy": accuracy,
    "Other": accuracy,
    "Squad": squad,
    "BLEU": bleu,
    "ROUGE": rouge,
}


def metric_functions(names: Iterable[str]) -> list[MetricFunction]:
    """Functions for a template's metric names, each once, unknown names left out."""
    return list(dict.fromkeys(BY_NAME[name] for name in names if name in BY_NAME))
