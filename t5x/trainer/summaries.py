"""Where metrics go: TensorBoard, MODEL_DIR/metrics.jsonl and whoever waits for the values."""

import concurrent.futures
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import clu.metrics
import clu.values
import jax
import numpy as np
from absl import logging
from clu import metric_writers
from etils import epath

from t5x import metrics as metrics_lib
from t5x.run.console import console

_jsonl_lock = threading.Lock()


class MetricsManager:
    """Writes the metrics of one collection ("train", "training_eval/TASK") from a worker thread.

    Only process 0 writes. Close it to wait for what is under way.

    Args:
      name: collection; the TensorBoard run of that name under `summary_dir`.
      summary_dir: MODEL_DIR, or None to write nothing.

    Attributes:
      summary_dir: folder of the collection's TensorBoard events, or None.
    """

    def __init__(self, name: str, summary_dir: str | None = None) -> None:
        self._name = name
        self.summary_dir = os.path.join(summary_dir, name) if summary_dir else None
        self._jsonl: epath.Path | None = None
        self._writer: metric_writers.MetricWriter = metric_writers.MultiWriter([])
        if jax.process_index() == 0 and summary_dir:
            self._jsonl = epath.Path(summary_dir) / "metrics.jsonl"
            self._writer = metric_writers.create_default_writer(
                summary_dir, collection=name, asynchronous=True
            )
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._previous_end = 0.0

    @property
    def summary_writer(self) -> metric_writers.MetricWriter:
        """The TensorBoard writer."""
        return self._writer

    def write_scalar(self, key: str, value: Any, step: int) -> None:
        """Writes one number."""
        self.write_scalars(step, {key: value})

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers at a step, to TensorBoard and metrics.jsonl."""
        self._write(int(step), {name: clu.values.Scalar(v) for name, v in scalars.items()})

    def start_duration_timer(self, block_on: Any = ()) -> None:
        """Marks the start of the steps that the next summary is about.

        Args:
          block_on: arrays that the devices may still compute; the start is when they are there.
        """
        self._started = time.monotonic()
        pending = [x for x in jax.tree.leaves(block_on) if isinstance(x, jax.Array)]
        if pending:
            self._pool.submit(self._start_after, pending)

    def _start_after(self, pending: Sequence[jax.Array]) -> None:
        for array in pending:
            if not array.is_deleted():  # what was donated is computed
                jax.block_until_ready(array)
        self._previous_end = time.monotonic()

    def write_metrics_summary(
        self, metrics: Mapping[str, clu.metrics.Metric], step: int, num_steps: int
    ) -> concurrent.futures.Future:
        """Writes metrics accumulated over `num_steps` steps once the devices have them.

        The duration runs from the end of the previous summary's steps, or from the timer's start,
        whichever is later, to the moment the values are there: steps run one after another, however
        early they were dispatched.

        Returns:
          A future of {name: clu value}.
        """
        started = self._started

        def summarise() -> dict[str, clu.values.Value]:
            fetched = jax.device_get(dict(metrics))
            end = time.monotonic()
            duration = end - max(started, self._previous_end)
            self._previous_end = end
            fetched = metrics_lib.set_time_metrics_duration(fetched, duration)
            fetched = metrics_lib.set_step_metrics_num_steps(fetched, num_steps)
            values = {name: metric.compute_value() for name, metric in fetched.items()}
            self._write(step, values)
            return values

        return self._pool.submit(summarise)

    def _write(self, step: int, values: Mapping[str, clu.values.Value]) -> None:
        with self._lock:
            metric_writers.write_values(self._writer, step, values)
        if self._jsonl is None:
            return
        row = {"step": step, "collection": self._name}
        row |= {
            name: float(np.asarray(value.value))
            for name, value in values.items()
            if isinstance(value, clu.values.Scalar)
        }
        # One file for all collections, appended to by several managers of this process.
        with _jsonl_lock:
            _append(self._jsonl, (json.dumps(row) + "\n").encode())

    def flush(self) -> None:
        """Waits for everything written so far."""
        self._pool.submit(lambda: None).result()
        self._writer.flush()

    def close(self) -> None:
        """Waits for what is under way and closes the files."""
        self._pool.shutdown(wait=True)
        self._writer.close()


def _append(path: epath.Path, line: bytes) -> None:
    """Appends a whole line or nothing; where it cannot be, says so and lets the run go on."""
    length = 0
    try:
        with path.open("ab") as file:
            length = file.tell()
            file.write(line)
    except OSError as error:
        if length and "://" not in str(path):
            os.truncate(path, length)  # a bucket's objects appear whole
        logging.exception("a row of metrics is lost")
        console.say(f"metrics of this step are not in {path}: {error.strerror}")
