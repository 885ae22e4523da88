"""Metrics of generated answers, by the names that promptsource's templates use.

Each function takes (targets, predictions), already post-processed: class numbers where a template
has the same answer choices for every row (-1: an answer that is none of them), else text. A target
may be a list of texts, the right answers of one row. Values are in percent, except those of `auc`
(fractions), `edit_distance` (words) and `mean_squared_error`.

Names, keys and values follow t5.evaluation.metrics of t5 0.9.4, which T0 uses. `register_metric`
adds others.
"""

import collections
import re
import string
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

MetricFunction = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
_Function = TypeVar("_Function", bound=MetricFunction)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKS = string.punctuation + "‘’´`_"
_SPACED_PUNCTUATION = str.maketrans(_MARKS, " " * len(_MARKS))
# What a prediction that is no number counts as, t5's default.
NO_NUMBER = -1.0


@dataclass(frozen=True)
class _Metric:
    function: MetricFunction
    classes: int | None


_METRICS: dict[str, _Metric] = {}  # by the name in lower case


def register_metric(*names: str, classes: int | None = None) -> Callable[[_Function], _Function]:
    """Makes a function the metric that templates mean by a name in their metadata.

        @register_metric("Word Overlap")
        def word_overlap(targets, predictions):
            return {"word_overlap": ...}

    The module must be imported before the tasks of such templates are registered.

    Args:
      names: in the templates' `metrics`; upper and lower case are the same.
      classes: how many fixed answer choices the metric needs; tasks of templates that have
        others, or none, do without it. None: it takes any.

    Raises:
      ValueError: a name has a function already.
    """

    def register(function: _Function) -> _Function:
        for name in names:
            known = _METRICS.get(name.lower())
            if known is not None:
                raise ValueError(
                    f"register_metric: '{name}' is {known.function.__module__}."
                    f"{known.function.__name__} already; choose another name"
                )
            _METRICS[name.lower()] = _Metric(function, classes)
        return function

    return register


# Texts. "Other" is scored by accuracy in T0 as well. "Span Squad" and "Mean Reciprocal Rank", which
# promptsource offers and no template uses, have no function: neither fits one generated text.


@register_metric("Accuracy", "Other")
def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Share of predictions equal to their target."""
    right = sum(target == made for target, made in zip(targets, predictions, strict=True))
    return {"accuracy": 100 * right / len(targets)}


@register_metric("Sequence Accuracy")
def sequence_accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """`accuracy` under another name."""
    return {"sequence_accuracy": accuracy(targets, predictions)["accuracy"]}


@register_metric("Squad")
def squad(targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 after SQuAD's normalisation; the best of several right answers."""
    return _question_answering(targets, predictions, _NO_PUNCTUATION)


@register_metric("Trivia QA")
def trivia_qa(targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """As `squad`, after TriviaQA's normalisation: punctuation becomes space."""
    return _question_answering(targets, predictions, _SPACED_PUNCTUATION)


@register_metric("COQA F1")
def coqa_f1(targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """Token F1 of CoQA's evaluation: `squad`'s, but two empty answers agree."""

    def f1(answer: list[str], made: list[str]) -> float:
        return _token_f1(answer, made) if answer or made else 1.0

    best = _best(f1, targets, predictions, _NO_PUNCTUATION)
    return {"f1": 100 * sum(best) / len(best)}


def _question_answering(
    targets: Sequence[Any], predictions: Sequence[str], punctuation: Mapping[int, Any]
) -> dict[str, float]:
    exact = _best(lambda answer, made: float(answer == made), targets, predictions, punctuation)
    f1 = _best(_token_f1, targets, predictions, punctuation)
    return {"em": 100 * sum(exact) / len(exact), "f1": 100 * sum(f1) / len(f1)}


def _best(
    score: Callable[[list[str], list[str]], float],
    targets: Sequence[Any],
    predictions: Sequence[str],
    punctuation: Mapping[int, Any],
) -> list[float]:
    """The score of each prediction with the right answer that suits it best."""
    return [
        max(score(_words(answer, punctuation), _words(made, punctuation)) for answer in answers)
        for answers, made in zip(_answers(targets), predictions, strict=True)
    ]


def _answers(targets: Sequence[Any]) -> list[Sequence[Any]]:
    return [target if isinstance(target, (list, tuple)) else [target] for target in targets]


def _words(text: Any, punctuation: Mapping[int, Any]) -> list[str]:
    return _ARTICLES.sub(" ", str(text).lower().translate(punctuation)).split()


def _token_f1(target: Sequence[str], made: Sequence[str]) -> float:
    shared = sum((collections.Counter(target) & collections.Counter(made)).values())
    return 2 * shared / (len(target) + len(made)) if shared else 0.0


@register_metric("BLEU")
def bleu(targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU by sacrebleu, with its international tokenizer."""
    import sacrebleu

    answers = [list(map(str, several)) for several in _answers(targets)]
    # sacrebleu wants one list a reference, as long as the corpus; None where a row has fewer.
    most = max(map(len, answers))
    # Its annotations leave out the None that it documents.
    references: list[Any] = [[a[i] if i < len(a) else None for a in answers] for i in range(most)]
    score = sacrebleu.corpus_bleu(list(map(str, predictions)), references, tokenize="intl")
    return {"bleu": score.score}


@register_metric("ROUGE")
def rouge(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Mean ROUGE-1, -2 and -L (of sentences) F1 by rouge-score.

    t5 reports the middle of a bootstrap, which is this mean up to its random sampling.
    """
    from rouge_score import rouge_scorer

    kinds = ("rouge1", "rouge2", "rougeLsum")
    scorer = rouge_scorer.RougeScorer(kinds)
    # ROUGE-Lsum takes a line for a sentence.
    lines = (
        [str(text).replace(" . ", " .\n") for text in texts] for texts in (targets, predictions)
    )
    scores = [scorer.score(*pair) for pair in zip(*lines, strict=True)]
    return {kind: 100 * sum(s[kind].fmeasure for s in scores) / len(scores) for kind in kinds}


@register_metric("Edit Distance")
def edit_distance(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Levenshtein distance between the lower-case words of target and prediction."""
    import statistics

    import editdistance

    distances = [
        editdistance.distance(*(re.split(r"\W", str(text).lower()) for text in pair))
        for pair in zip(targets, predictions, strict=True)
    ]
    return {
        "min_edit": min(distances),
        "max_edit": max(distances),
        "mean_edit": statistics.fmean(distances),
        "median_edit": statistics.median(distances),
        "sum_edit": sum(distances),
    }


# Numbers


@register_metric("Pearson Correlation")
def pearson(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Pearson's correlation; NaN where either side is constant."""
    import scipy.stats

    return {"pearson_corrcoef": _correlation(scipy.stats.pearsonr, targets, predictions)}


@register_metric("Spearman Correlation")
def spearman(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Spearman's rank correlation; NaN where either side is constant."""
    import scipy.stats

    return {"spearman_corrcoef": _correlation(scipy.stats.spearmanr, targets, predictions)}


def _correlation(
    measure: Callable[..., Any], targets: Sequence[Any], predictions: Sequence[Any]
) -> float:
    """In percent."""
    import scipy.stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return 100 * float(measure(_numbers(targets), _numbers(predictions))[0])


@register_metric("Mean Squared Error")
def mean_squared_error(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Mean of the squared differences; not in percent (and not in t5)."""
    pairs = zip(_numbers(targets), _numbers(predictions), strict=True)
    return {"mean_squared_error": sum((a - b) ** 2 for a, b in pairs) / len(targets)}


def _numbers(values: Sequence[Any]) -> list[float]:
    def number(value: Any) -> float:
        try:
            return float(value)
        except ValueError:
            return NO_NUMBER

    return [number(value) for value in values]


# Classes, given as numbers


@register_metric("AUC", classes=2)
def auc(targets: Sequence[int], predictions: Sequence[float]) -> dict[str, float]:
    """Areas (0 to 1) under the ROC and the precision-recall curve of two classes."""
    import sklearn.metrics

    return {
        "auc-roc": float(sklearn.metrics.roc_auc_score(targets, predictions)),
        "auc-pr": float(sklearn.metrics.average_precision_score(targets, predictions)),
    }


def f1_of_two(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of class 1; an answer that is neither class counts as the wrong one."""
    import sklearn.metrics

    valid = [
        made if made in (0, 1) else 1 - right
        for right, made in zip(targets, predictions, strict=True)
    ]
    return {"f1": 100 * float(sklearn.metrics.f1_score(targets, valid))}


@register_metric("MultiRC", classes=2)
def multirc_f1(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """MultiRC's F1 over all answers: `f1_of_two`, of numbers or of t5's {"value": number}."""
    values = (
        [item["value"] if isinstance(item, Mapping) else item for item in items]
        for items in (targets, predictions)
    )
    return f1_of_two(*values)


def mean_f1_of_three(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Mean over three classes of a class's F1, SuperGLUE's metric of CB."""
    import sklearn.metrics

    score = sklearn.metrics.f1_score(targets, predictions, labels=range(3), average="macro")
    return {"mean_3class_f1": 100 * float(score)}


def matthews(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews' correlation, GLUE's metric of CoLA."""
    import sklearn.metrics

    value = sklearn.metrics.matthews_corrcoef(targets, predictions)
    return {"matthews_corrcoef": 100 * float(value)}


# Benchmarks whose own metrics T0 takes, and how many classes those need.
BENCHMARKS: dict[tuple[str, str | None], tuple[int, tuple[MetricFunction, ...]]] = {
    ("glue", "cola"): (2, (matthews,)),
    ("glue", "mrpc"): (2, (f1_of_two, accuracy)),
    ("glue", "qqp"): (2, (f1_of_two, accuracy)),
    ("super_glue", "cb"): (3, (mean_f1_of_three, accuracy)),
}


def metric_functions(
    names: Iterable[str],
    classes: int = 0,
    dataset: str = "",
    subset: str | None = None,
) -> list[MetricFunction]:
    """Functions for a template's metric names, each once.

    Args:
      names: as in the template's metadata; those that nobody registered are left out.
      classes: number of fixed answer choices, 0 for a template without.
      dataset: with `subset`, to give GLUE's and SuperGLUE's tasks their own metrics.
      subset: configuration of the dataset.
    """
    needed, own = BENCHMARKS.get((dataset, subset), (0, ()))
    if own and classes == needed:
        return list(own)
    found = [_METRICS[name.lower()] for name in names if name.lower() in _METRICS]
    fitting = [metric.function for metric in found if metric.classes in (None, classes)]
    return list(dict.fromkeys(fitting))
