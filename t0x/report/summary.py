"""Statistics over prompts and over examples.

Over prompts: median and quartiles by linear interpolation between order statistics (numpy's
default, type 7), the robustness measure of the T0 paper (arXiv 2110.08207, section 6). Over the
examples of one prompt: Wilson's score interval of a binomial proportion.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from t0x.report.agreement import Agreement, measure_agreement
from t0x.results.format import GROUPS
from t0x.results.reading import TaskResult

# Total variation distance between predicted and true labels from which a prompt is called skewed.
SKEW = 0.25
# Category of WinoBias, CrowS-Pairs and AX-g in the catalogue.
BIAS = "bias_and_fairness"


@dataclass(frozen=True)
class DatasetSummary:
    """One dataset under one checkpoint: accuracies over prompts, all as fractions."""

    dataset: str
    subset: str | None
    split: str | None  # Named only where a dataset has several, as ANLI's rounds.
    category: str
    seen: str
    prompts: int
    examples: int  # The largest number scored under one prompt.
    mean: float
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    chance: float
    confidence: float  # Mean softmax probability of the predictions; NaN if no score is finite.
    agreement: Agreement | None
    step: int
    run: str
    tasks: tuple[TaskResult, ...]

    @property
    def name(self) -> str:
        parts = (self.dataset, self.subset, self.split)
        return "/".join(part for part in parts if part)

    @property
    def agreement_by_prompt(self) -> tuple[float | None, ...]:
        """For each of `tasks`, how often it answers as another prompt does; None: not compared."""
        return self.agreement.by_prompt if self.agreement else (None,) * len(self.tasks)


@dataclass(frozen=True)
class GroupMean:
    """Means over the datasets of one group under one checkpoint."""

    seen: str
    run: str
    step: int
    datasets: int
    prompts: int
    median: float
    chance: float


def summarise(results: Iterable[TaskResult]) -> list[DatasetSummary]:
    """Summarises prompts by dataset: seen first, then held-out prompts, then held-out datasets.

    Within a group the order is category, dataset, then checkpoint in the order of `results`.
    Tasks without a scored example have no accuracy and are left out; `collect_notes` names them.
    """
    results = [result for result in results if result.examples]
    order = {key: position for position, key in enumerate(list_evaluations(results))}
    splits: dict[tuple[str, str | None], set[str]] = {}
    for result in results:
        splits.setdefault((result.dataset, result.subset), set()).add(result.split)

    def key(result: TaskResult) -> tuple:
        several = len(splits[result.dataset, result.subset]) > 1
        return (
            GROUPS.index(result.seen),
            result.category,
            result.dataset,
            result.subset or "",
            result.split if several else "",
            order[result.run, result.step],
        )

    ordered = sorted(results, key=lambda result: (*key(result), result.template))
    return [
        _summarise_dataset(tuple(tasks), split=group[4] or None)
        for group, tasks in groupby(ordered, key)
    ]


def _summarise_dataset(tasks: tuple[TaskResult, ...], split: str | None) -> DatasetSummary:
    accuracies = np.array([task.accuracy for task in tasks])
    q1, median, q3 = np.percentile(accuracies, [25, 50, 75], method="linear")
    first = tasks[0]
    return DatasetSummary(
        dataset=first.dataset,
        subset=first.subset,
        split=split,
        category=first.category,
        seen=first.seen,
        prompts=len(tasks),
        examples=max(task.examples for task in tasks),
        mean=float(accuracies.mean()),
        median=float(median),
        q1=float(q1),
        q3=float(q3),
        minimum=float(accuracies.min()),
        maximum=float(accuracies.max()),
        chance=float(np.mean([task.chance for task in tasks])),
        confidence=float(np.mean([task.confidence for task in tasks])),
        agreement=measure_agreement([task.answers for task in tasks]),
        step=first.step,
        run=first.run,
        tasks=tasks,
    )


def list_evaluations(results: Iterable[TaskResult | DatasetSummary]) -> list[tuple[str, int]]:
    """The (run, step) pairs reported on, in order of appearance."""
    return list(dict.fromkeys((result.run, result.step) for result in results))


def name_step(step: int) -> str:
    """A step as people read it; evaluation without a known step is stored as -1."""
    return "none" if step < 0 else f"{step:,}"


def label_evaluations(
    results: Iterable[TaskResult | DatasetSummary],
) -> dict[tuple[str, int], str]:
    """What to call each (run, step): the run, its step, or both, whatever tells them apart."""
    pairs = list_evaluations(results)
    runs, steps = ({pair[place] for pair in pairs} for place in (0, 1))
    if len(runs) == len(pairs):
        return {pair: pair[0] for pair in pairs}
    if len(runs) == 1 and len(steps) == len(pairs):
        return {pair: f"step {name_step(pair[1])}" for pair in pairs}
    return {(run, step): f"{run}, step {name_step(step)}" for run, step in pairs}


def average_groups(summaries: Sequence[DatasetSummary]) -> list[GroupMean]:
    """Means of median and chance over the datasets of each group and checkpoint.

    Measures of bias are no skill: their datasets count only where a group has no others.
    """
    members: dict[tuple[str, str, int], list[DatasetSummary]] = {}
    for summary in sorted(summaries, key=lambda summary: summary.category == BIAS):
        group = members.setdefault((summary.seen, summary.run, summary.step), [])
        if summary.category != BIAS or all(member.category == BIAS for member in group):
            group.append(summary)
    return [
        GroupMean(
            seen=seen,
            run=run,
            step=step,
            datasets=len(group),
            prompts=sum(summary.prompts for summary in group),
            median=float(np.mean([summary.median for summary in group])),
            chance=float(np.mean([summary.chance for summary in group])),
        )
        for (seen, run, step), group in members.items()
    ]


def wilson_interval(correct: int, examples: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for `correct` of `examples`; 95 % by default.

    Reference: E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if not 0 <= correct <= examples or examples == 0:
        raise ValueError(
            f"an interval needs 0 <= correct <= examples > 0, got {correct}/{examples}"
        )
    rate = correct / examples
    scale = 1 + z * z / examples
    centre = (rate + z * z / (2 * examples)) / scale
    half = z * math.sqrt(rate * (1 - rate) / examples + z * z / (4 * examples**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class LabelShare:
    """How often one choice is the label and how often it is predicted, as fractions."""

    name: str
    true: float
    predicted: float


def share_labels(result: TaskResult) -> list[LabelShare]:
    """Shares of each choice, by its text or, where choices vary, by its position."""
    names = result.choice_names
    count = len(names) if names else 1 + max([*result.label_counts, *result.predicted_counts])
    return [
        LabelShare(
            name=names[index] if names else f"choice {index + 1}",
            true=result.label_counts.get(index, 0) / result.examples,
            predicted=result.predicted_counts.get(index, 0) / result.examples,
        )
        for index in range(count)
    ]


def find_skew(shares: Sequence[LabelShare]) -> LabelShare | None:
    """The most over-predicted choice, if predictions are far from the labels' frequencies."""
    distance = sum(abs(share.true - share.predicted) for share in shares) / 2
    if distance < SKEW:
        return None
    return max(shares, key=lambda share: share.predicted - share.true)


def collect_notes(results: Sequence[TaskResult]) -> list[str]:
    """What a reader must know beside the figures: skipped rows, empty tasks, odd scores."""
    several = len(list_evaluations(results)) > 1
    notes = []
    for result in results:
        where = (
            f"{result.task} ({result.run}, step {name_step(result.step)})"
            if several
            else result.task
        )
        if result.skipped:
            reasons = "; ".join(f"{count} × {reason}" for reason, count in result.skipped.items())
            total = sum(result.skipped.values())
            notes.append(f"{where}: {total} {'row' if total == 1 else 'rows'} skipped ({reasons})")
        for kind, count in (("inputs", result.inputs_cut), ("choices", result.choices_cut)):
            if count:
                notes.append(f"{where}: {count} {kind} cut to the longest that was allowed")
        if not result.examples:
            notes.append(f"{where}: no example was scored, left out of the figures")
        if result.not_finite:
            notes.append(f"{where}: {result.not_finite} examples with scores that are not finite")
    return notes
