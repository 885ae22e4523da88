"""Rank classification of whole mixtures with every input encoded once.

`RankEvaluator` takes the place of `seqio.Evaluator` (same constructor, same `evaluate`) for the
`*_score_eval` tasks registered by t0x. It renders and tokenises rows itself, packs them (see
`t0x.evaluation.packing`) and gives the loggers the same scores that SeqIO's evaluator would.
"""

import concurrent.futures
import contextlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from t0x import rank_classification
from t0x.evaluation import encoding, fingerprints, packing
from t0x.evaluation.token_scores import score_tokens
from t0x.rank_classification import Ranking, Target
from t0x.registration.registry import task_info, task_infos
from t0x.registration.source import PromptedSource, TaskError
from t0x.results.format import Overview, PackedCounts
from t0x.results.writing import ResultsLogger

# Batches that are scored before results are looked at: what is lost when the process is killed.
BATCHES_AT_ONCE = 8


@dataclass(frozen=True)
class _Example:
    """One row of a task, tokenised."""

    row: int
    inputs: str
    choices: Sequence[str]
    correct: Sequence[bool]
    tokens: packing.Choices


@dataclass(frozen=True)
class _Survey:
    """What one pass over a task's rows tells; the examples themselves where they are kept."""

    task: seqio.Task
    lengths: packing.Lengths
    cut: encoding.CutCounts
    fingerprint: str
    examples: Sequence[_Example] | None

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def count(self) -> int:
        return len(self.lengths.inputs)


@dataclass
class _Waiting:
    """A task some of whose rows are not scored yet."""

    survey: _Survey
    examples: Sequence[_Example]
    packed: packing.PackedRows
    stored: bool  # its scores are known from a former run
    scored: list[np.ndarray] = field(default_factory=list)
    taken: int = 0

    @property
    def left(self) -> int:
        return self.packed.rows - self.taken


@gin.configurable(module="t0x.evaluation")
class RankEvaluator:
    """Scores every choice of every row of the tasks of a mixture; upstream's evaluator interface.

    Tasks are packed each by itself, batches go on from one task to the next; which row is in which
    batch depends on nothing but the tasks. So a run that goes on where another was killed, and
    leaves out batches whose tasks are all complete, computes the very same numbers.

    Args:
      mixture_or_task_name: a mixture or task of `*_score_eval` tasks registered by t0x.
      feature_converter: accepted for compatibility; rows are packed here.
      eval_split: split to evaluate; tasks without it are left out, and counted.
      use_cached, seed, shuffle, target_field_name, async_compute_metrics: accepted for
        compatibility, without effect.
      sequence_length: most tokens of an input and of a choice; longer ones are cut there, as SeqIO
        does, and counted. None: no limit.
      num_examples: evaluate the first rows only; None for all.
      logger_cls: SeqIO logger classes that get the results. `results.ResultsLogger` among them
        makes the evaluation resumable: tasks whose results are there already, of the same
        parameters and the same rows, are not scored again.
      log_dir: where they write.
      use_memory_cache: keep the tokenised rows from one evaluation to the next, rather than
        rendering each task again when its turn comes.
      inputs_per_row, targets_per_row: tokens of an encoder and of a decoder row, the same for all
        tasks; None: what costs least. An example whose choices need more than a row is encoded
        again for the rest, and counted.

    A task whose rows cannot be read, or give no example, is left out and named; the others go on.

    Raises:
      ValueError: a task was not registered by t0x, or every one is left out.
    """

    __module__ = "t0x.evaluation"  # as gin files, and config.gin, name it

    # Tells t5x.eval to hand over the log-probability of every target position.
    scores_tokens = True

    def __init__(
        self,
        mixture_or_task_name: str,
        feature_converter: Any = None,
        eval_split: str = "validation",
        use_cached: bool = False,
        seed: int | None = 42,
        sequence_length: Mapping[str, int] | None = None,
        num_examples: int | None = None,
        shuffle: bool = False,
        logger_cls: Sequence[Callable[..., seqio.Logger]] = (),
        log_dir: str | None = None,
        use_memory_cache: bool = True,
        async_compute_metrics: bool = True,
        target_field_name: str = "targets",
        inputs_per_row: int | None = None,
        targets_per_row: int | None = None,
    ) -> None:
        del feature_converter, use_cached, seed, shuffle
        del async_compute_metrics, target_field_name
        self._name = mixture_or_task_name
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture_or_task_name))
        self.eval_tasks = [task for task in tasks if eval_split in task.splits]
        self._left_out = len(tasks) - len(self.eval_tasks)
        for task in self.eval_tasks:
            if task.name not in task_infos() or not task_info(task.name).score_eval:
                raise ValueError(
                    f"RankEvaluator cannot evaluate '{task.name}', which is no *_score_eval task "
                    "of t0x; bind evaluate.inference_evaluator_cls = @seqio.Evaluator"
                )
        self._split = eval_split
        self._limits = dict(sequence_length or {})
        self._num_examples = num_examples
        self._failed: dict[str, str] = {}
        self._surveys = self._survey_all(use_memory_cache)
        self._shape = packing.choose_row_lengths(
            [survey.lengths for survey in self._surveys], inputs_per_row, targets_per_row
        )
        self._loggers = [cls(output_dir=log_dir) for cls in logger_cls] if log_dir else []

    @property
    def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature of a packed row."""
        features = packing.pack([], *self._shape).features
        return {name: array.shape[1:] for name, array in features.items()}

    def close(self) -> None:
        """Nothing is left open."""

    def evaluate(
        self,
        *,
        compute_metrics: bool,
        step: int | None = None,
        score_fn: Callable[..., Any],
        batch_size: int = 1,
        params: Any = None,
        **_: Any,
    ) -> tuple[concurrent.futures.Future, dict[str, list[list[float]]]]:
        """Scores all tasks in order and logs each as soon as its last row is scored.

        Args:
          compute_metrics: whether this process computes and logs metrics.
          step: step of the checkpoint.
          score_fn: enumerated dataset → (row scores, intermediates with decoder/token_scores).
          batch_size: rows that score_fn takes at a time.
          params: the parameters, by whose fingerprint stored results are known again; None trusts
            none.

        Returns:
          (future of {task: {metric: value}}, {task: scores of each row's choices}). Processes that
          compute no metrics have no scores of tasks that were complete already.
        """
        checkpoint = None if params is None else fingerprints.of_parameters(params)
        stored = self._read_stored(step, checkpoint) if compute_metrics else {}
        skipped = self._agree(stored)
        metrics: dict[str, dict[str, float]] = {}
        remarks: Counter[str] = Counter()
        outputs: dict[str, list[list[float]]] = {}
        for task, scores in self._score(score_fn, batch_size, skipped, compute_metrics):
            name = task.survey.name
            if task.stored and name not in stored:
                continue
            outputs[name] = stored[name] if task.stored else scores
            if compute_metrics:
                ranked, metrics[name] = self._log(task, step, outputs[name], checkpoint)
                remarks["near_ties"] += rank_classification.near_ties(ranked)
                remarks["encoded_again"] += task.packed.repeated
        if compute_metrics:
            self._sum_up(step, checkpoint, metrics, remarks)
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(metrics)
        return future, outputs

    def _read(self, task: seqio.Task) -> Iterator[tuple[_Example, encoding.Encoded]]:
        """Renders and tokenises a task's rows as its SeqIO preprocessors would."""
        source = task.source
        assert isinstance(source, PromptedSource)
        encoder = encoding.ChoiceEncoder(task.output_features, self._limits)
        for row, rendered in source.read(self._split, self._num_examples):
            encoded = encoder.encode(rendered.inputs, rendered.choices)
            right = rendered.targets.strip().split(rank_classification.RIGHT_ANSWERS)
            correct = [choice in right for choice in rendered.choices]
            yield (
                _Example(row, rendered.inputs, rendered.choices, correct, encoded.tokens),
                encoded,
            )

    def _survey_all(self, keep: bool) -> list[_Survey]:
        """Surveys of the tasks that have examples on every process; the others go to `_failed`."""
        surveys: dict[str, _Survey] = {}
        for task in self.eval_tasks:
            try:
                surveys[task.name] = self._survey(task, keep)
            except (TaskError, FileNotFoundError) as error:
                self._failed[task.name] = str(error)
        names = [task.name for task in self.eval_tasks]
        for name in _failing_anywhere([name in self._failed for name in names], names):
            self._failed.setdefault(name, f"task {name}: another process cannot read its rows")
        if self._failed and len(self._failed) == len(names):
            raise ValueError(f"{self._name}: {'; '.join(list(self._failed.values())[:3])}")
        self.eval_tasks = [task for task in self.eval_tasks if task.name not in self._failed]
        return [surveys[task.name] for task in self.eval_tasks]

    def _survey(self, task: seqio.Task, keep: bool) -> _Survey:
        """One pass over a task's rows."""
        cut = encoding.CutCounts()
        examples: list[_Example] = []
        sizes: list[tuple[int, int, int]] = []

        def contents() -> Iterator[bytes]:
            nonlocal cut
            for example, encoded in self._read(task):
                cut = cut.plus(encoded)
                lengths = [len(target) for target in example.tokens.targets]
                sizes.append((len(example.tokens.inputs), sum(lengths), max(lengths)))
                if keep:
                    examples.append(example)
                yield repr((example.row, example.inputs, example.choices, example.correct)).encode()
                yield example.tokens.inputs.tobytes()
                yield from (target.tobytes() for target in example.tokens.targets)

        fingerprint = fingerprints.of_parts(contents())
        inputs, targets, longest = np.array(sizes, int).reshape(-1, 3).T
        lengths = packing.Lengths(inputs, targets, int(longest.max(initial=1)))
        return _Survey(task, lengths, cut, fingerprint, examples if keep else None)

    def _read_stored(self, step: int | None, checkpoint: str | None) -> dict[str, list]:
        """Scores of the tasks that are complete already."""
        logger = self._results
        if logger is None or checkpoint is None:
            return {}
        found = {
            survey.name: logger.read_scores(
                survey.name, step, {"checkpoint": checkpoint, "task": survey.fingerprint}
            )
            for survey in self._surveys
        }
        return {name: scores for name, scores in found.items() if scores is not None}

    def _agree(self, stored: Mapping[str, Any]) -> set[str]:
        """Tasks not to score: what process 0 has found, for every process to leave out."""
        from t5x.run import processes

        flags = processes.decide(
            lambda: [survey.name in stored for survey in self._surveys], (len(self._surveys),)
        )
        return {s.name for s, flag in zip(self._surveys, flags, strict=True) if flag}

    def _pack(self, survey: _Survey, stored: bool) -> _Waiting:
        examples = survey.examples
        if examples is None:
            examples = [example for example, _ in self._read(survey.task)]
        packed = packing.pack([example.tokens for example in examples], *self._shape)
        return _Waiting(survey, examples, packed, stored)

    def _score(
        self,
        score_fn: Callable[..., Any],
        batch_size: int,
        skipped: set[str],
        show: bool,
    ) -> Iterator[tuple[_Waiting, list[list[float]]]]:
        """Tasks in order, each with its scores (none where it is skipped), as they get complete."""
        from t5x.run.console import console

        chunk = batch_size * BATCHES_AT_ONCE
        total = sum(survey.count for survey in self._surveys)
        waiting: deque[_Waiting] = deque()
        done = done_before = tasks = 0
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(console.progress(total, "examples"))
            stack.enter_context(console.quiet())
            for number, survey in enumerate(self._surveys, start=1):
                waiting.append(self._pack(survey, survey.name in skipped))
                last = number == len(self._surveys)
                while sum(task.left for task in waiting) >= (1 if last else chunk):
                    _score_chunk(score_fn, waiting, chunk)
                    while waiting and not waiting[0].left:
                        task = waiting.popleft()
                        tasks += 1
                        done += task.survey.count
                        if task.stored:
                            done_before += task.survey.count
                            yield task, []
                        else:
                            scores = np.concatenate(task.scored)
                            yield task, packing.sum_scores(task.packed.slots, scores)
                    part = sum(
                        task.survey.count * task.taken // task.packed.rows
                        for task in waiting
                        if not task.stored
                    )
                    note = f"tasks {tasks}/{len(self._surveys)}"
                    bar.update(done + part, done_before, note)

    @property
    def _results(self) -> ResultsLogger | None:
        return next((x for x in self._loggers if isinstance(x, ResultsLogger)), None)

    def _log(
        self, task: _Waiting, step: int | None, scores: list[list[float]], checkpoint: str | None
    ) -> tuple[list[Ranking], dict[str, float]]:
        """Ranked rows and metrics of a task; its loggers are called as SeqIO calls them."""
        ranked = [
            rank_classification.rank_row(e.row, e.choices, row_scores, e.correct)
            for e, row_scores in zip(task.examples, scores, strict=True)
        ]
        metrics = {"accuracy": 100 * rank_classification.accuracy(ranked)}
        for logger in self._loggers:
            if isinstance(logger, ResultsLogger):
                self._write_results(logger, task, step, ranked, checkpoint)
                continue
            targets = [
                Target((e.row, place), e.correct[place], 1.0, len(tokens), len(e.choices), choice)
                for e in task.examples
                for place, (choice, tokens) in enumerate(
                    zip(e.choices, e.tokens.targets, strict=True)
                )
            ]
            logger(
                task_name=task.survey.name,
                step=step,
                metrics={name: seqio.metrics.Scalar(value) for name, value in metrics.items()},
                dataset=self._logged_dataset(task, targets),
                inferences={"score": list(itertools.chain.from_iterable(scores))},
                targets=targets,
            )
        return ranked, metrics

    def _write_results(
        self,
        logger: ResultsLogger,
        task: _Waiting,
        step: int | None,
        ranked: Sequence[Ranking],
        checkpoint: str | None,
    ) -> None:
        survey = task.survey
        fingerprint = {"checkpoint": checkpoint, "task": survey.fingerprint} if checkpoint else None
        logger.write(
            survey.name,
            step,
            ranked,
            {example.row: example.inputs for example in task.examples},
            task_split(survey.name, self._split),
            PackedCounts(survey.cut.inputs, survey.cut.choices, task.packed.repeated),
            fingerprint,
        )

    def _logged_dataset(self, task: _Waiting, targets: Sequence[Target]) -> tf.data.Dataset:
        """What SeqIO would give the loggers: an element a choice."""
        name = task.survey.name
        return tf.data.Dataset.from_tensor_slices(
            {
                "idx": [target.idx for target in targets],
                "inputs_pretokenized": [e.inputs for e in task.examples for _ in e.choices],
                "targets_pretokenized": [target.choice for target in targets],
                "split": [task_split(name, self._split)] * len(targets),
            }
        )

    def _sum_up(
        self,
        step: int | None,
        checkpoint: str | None,
        metrics: Mapping[str, Mapping[str, float]],
        remarks: Mapping[str, int],
    ) -> None:
        """Says what was left out or cut, and writes the overview, last of all."""
        from t5x.run.console import console

        for error in self._failed.values():
            console.say(f"not evaluated: {error}")
        if self._left_out:
            console.say(
                f"{self._left_out} tasks of {self._name} have no split '{self._split}' and were "
                "left out; EVAL_SPLIT = 'eval' takes each dataset's own"
            )
        inputs_cut = sum(survey.cut.inputs for survey in self._surveys)
        choices_cut = sum(survey.cut.choices for survey in self._surveys)
        if inputs_cut or choices_cut:
            limits = ", ".join(f"{name} {limit}" for name, limit in self._limits.items())
            console.say(
                f"cut at the limit of tokens ({limits}): {inputs_cut:,} inputs, "
                f"{choices_cut:,} choices"
            )
        if remarks["encoded_again"]:
            console.say(f"{remarks['encoded_again']:,} inputs encoded again for more choices")
        if remarks["near_ties"]:
            console.say(
                f"{remarks['near_ties']:,} near-ties "
                f"(best two within {rank_classification.NEAR_TIE} nats)"
            )
        if self._results is None:
            return
        tasks = {
            survey.name: {"examples": survey.count, **metrics[survey.name]}
            for survey in self._surveys
        }
        self._results.write_overview(
            Overview(
                mixture=self._name,
                step=step,
                split=self._split,
                checkpoint=checkpoint,
                row_lengths={"inputs": self._shape[0], "targets": self._shape[1]},
                near_ties=remarks["near_ties"],
                tasks_left_out=self._left_out,
                tasks=tasks,
                packed=PackedCounts(inputs_cut, choices_cut, remarks["encoded_again"]),
            )
        )


def _failing_anywhere(failed: Sequence[bool], names: Sequence[str]) -> list[str]:
    """Names of the tasks that fail on any process."""
    import jax
    from jax.experimental import multihost_utils

    flags = np.array(failed, bool)
    if jax.process_count() > 1:
        flags = multihost_utils.process_allgather(flags).any(axis=0)
    return [name for name, flag in zip(names, flags, strict=True) if flag]


def task_split(name: str, split: str) -> str:
    """The dataset's own name of a split of a task: what "eval" stands for."""
    return seqio.TaskRegistry.get(name).source.real_split(split)


def _score_chunk(score_fn: Callable[..., Any], waiting: Iterable[_Waiting], chunk: int) -> None:
    """Takes the next rows of the waiting tasks and scores them, unless all are stored already."""
    pieces = []
    for task in waiting:
        count = min(chunk, task.left)
        if count:
            pieces.append((task, slice(task.taken, task.taken + count)))
            task.taken += count
            chunk -= count
    if all(task.stored for task, _ in pieces):
        return
    names = pieces[0][0].packed.features
    features = {
        name: np.concatenate([task.packed.features[name][rows] for task, rows in pieces])
        for name in names
    }
    scores = score_tokens(score_fn, features)
    start = 0
    for task, rows in pieces:
        end = start + rows.stop - rows.start
        task.scored.append(scores[start:end])
        start = end
