"""Writes what rank classification found, task by task, where `t0x report` reads it.

What the files are called and hold is in `t0x.results.format`.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from t0x import rank_classification
from t0x.registration.registry import SCORE_EVAL, task_info, task_infos
from t0x.registration.skipped import skipped_in
from t0x.results import format
from t5x.run.files import write_whole


@gin.configurable(module="t0x.results")
class ResultsLogger(seqio.Logger):
    """For `seqio.Evaluator.logger_cls`; passes over tasks other than rank classification.

    Args:
      output_dir: where the folder `rank_classification` goes; local or any path of tf.io.gfile.
      train_mixture: mixture trained on. Given, it decides what is "seen": a task whose prompt is
        in it; "held-out prompt": another prompt of a dataset in it. Not given, the
        registration's word stands.
    """

    __module__ = "t0x.results"  # as gin files, and config.gin, name it

    def __init__(self, output_dir: str, train_mixture: str | None = None) -> None:
        super().__init__(output_dir)
        self._train_mixture = train_mixture

    def __call__(
        self,
        task_name: str,
        step: int | None,
        metrics: Mapping[str, Any],
        dataset: tf.data.Dataset,
        inferences: Mapping[str, Sequence[Any]],
        targets: Sequence[Any],
    ) -> None:
        """Writes both files of a task; see `seqio.Logger`."""
        if task_name not in task_infos() or not task_info(task_name).score_eval:
            return
        ranked = rank_classification.rankings(targets, inferences["score"])
        inputs, split = _inputs_by_row(dataset)
        self.write(task_name, step, ranked, inputs, split)

    def write(
        self,
        task_name: str,
        step: int | None,
        ranked: Sequence[rank_classification.Ranking],
        inputs: Mapping[int, str],
        split: str,
        packed: format.PackedCounts | None = None,
        fingerprint: Mapping[str, str] | None = None,
    ) -> None:
        """Writes both files of a task, each whole or not at all; leaves alone what is there.

        Args:
          ranked: the rows that have all their scores.
          inputs: what the model was given, by row; rows that are not in `ranked` are counted.
          split: the dataset's own name of the split.
          packed: what the packed evaluator counted.
          fingerprint: of "checkpoint" and "task", see `read_scores`.
        """
        lines = "".join(_line(ranking, inputs[ranking.row]) for ranking in ranked).encode("utf-8")
        if fingerprint:
            fingerprint = {**fingerprint, "lines": hashlib.sha256(lines).hexdigest()}
        summary = self._summary(
            task_name,
            ranked,
            cut_off=len(inputs) - len(ranked),
            step=step,
            split=split,
            packed=packed,
            fingerprint=fingerprint,
        )
        lines_file, summary_file = self._files(task_name, step)
        tf.io.gfile.makedirs(os.path.dirname(lines_file))
        if tf.io.gfile.exists(summary_file) and not _holds(lines_file, lines):
            # It speaks of other lines.
            tf.io.gfile.remove(summary_file)
        _write(lines_file, lines)
        _write(summary_file, summary.text().encode("utf-8"))

    def read_scores(
        self, task_name: str, step: int | None, fingerprint: Mapping[str, str]
    ) -> list[list[float]] | None:
        """Scores of every row of a task that is complete; None where it must be scored (again).

        Args:
          fingerprint: what "checkpoint" and "task" are now. Results of another checkpoint, of
            other rows or another prompt, and torn ones, are not trusted.
        """
        lines_file, summary_file = self._files(task_name, step)
        if not (tf.io.gfile.exists(lines_file) and tf.io.gfile.exists(summary_file)):
            return None
        lines = _read(lines_file)
        try:
            stored = format.parse_summary(_read(summary_file).decode("utf-8"), summary_file)
            if stored.fingerprint != {**fingerprint, "lines": hashlib.sha256(lines).hexdigest()}:
                return None
            # Not splitlines, to which a text's own U+2028 is the end of a line too.
            texts = lines.decode("utf-8").removesuffix("\n").split("\n")
            examples = [format.parse_example(text, lines_file) for text in texts]
        except ValueError:  # torn
            return None
        return [list(example.scores) for example in examples]

    def write_overview(self, overview: format.Overview) -> None:
        """Writes the file that sums up a whole evaluation."""
        path = format.overview_path(self.output_dir, overview.step, overview.mixture)
        _write(path, overview.text().encode("utf-8"))

    def _files(self, task_name: str, step: int | None) -> tuple[str, str]:
        return (
            format.examples_path(self.output_dir, step, task_name),
            format.summary_path(self.output_dir, step, task_name),
        )

    def _summary(
        self,
        task_name: str,
        ranked: Sequence[rank_classification.Ranking],
        cut_off: int,
        step: int | None,
        split: str,
        packed: format.PackedCounts | None,
        fingerprint: Mapping[str, str] | None,
    ) -> format.Summary:
        info = task_info(task_name)
        skipped = skipped_in(task_name, split)
        if cut_off:
            skipped[format.CUT_OFF] = cut_off
        return format.Summary(
            task=task_name,
            dataset=info.dataset.name,
            subset=info.dataset.subset,
            template=info.template.name,
            category=info.dataset.category,
            seen=self._seen(task_name),
            examples=len(ranked),
            accuracy=sum(r.prediction == r.label for r in ranked) / len(ranked),
            chance=rank_classification.chance(ranked),
            skipped=skipped,
            near_ties=rank_classification.near_ties(ranked),
            step=format.known_step(step),
            split=split,
            packed=packed,
            fingerprint=fingerprint,
        )

    def _seen(self, task_name: str) -> str:
        info = task_info(task_name)
        if self._train_mixture is None:
            return info.seen
        trained = {task.name for task in seqio.MixtureRegistry.get(self._train_mixture).tasks}
        if task_name.removesuffix(SCORE_EVAL) in trained:
            return "seen"
        infos = task_infos()
        datasets = {infos[name].dataset.label for name in trained if name in infos}
        return "held-out prompt" if info.dataset.label in datasets else "held-out dataset"


def _inputs_by_row(dataset: tf.data.Dataset) -> tuple[dict[int, str], str]:
    inputs: dict[int, str] = {}
    split = ""
    for example in tfds.as_numpy(dataset):
        row = int(example["idx"][0])
        if row not in inputs:
            inputs[row] = example["inputs_pretokenized"].decode("utf-8")
            split = example["split"].decode("utf-8")
    return inputs, split


def _line(ranking: rank_classification.Ranking, inputs: str) -> str:
    return format.Example(
        idx=ranking.row,
        inputs=inputs,
        choices=ranking.choices,
        scores=ranking.scores,
        prediction=ranking.prediction,
        label=ranking.label,
    ).line()


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _holds(path: str, contents: bytes) -> bool:
    return tf.io.gfile.exists(path) and _read(path) == contents


def _write(path: str, contents: bytes) -> None:
    if _holds(path, contents):
        return
    # A reader sees the whole file or none.
    write_whole(path, contents)
