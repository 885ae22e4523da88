"""One task's inference in chunks: read ahead, written beside, each counted once."""

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import seqio
import tensorflow as tf
from etils import epath

from t5x.data.datasets import DatasetConfig
from t5x.inference.files import Inferences
from t5x.run import processes
from t5x.run.console import console, log_ignored
from t5x.run.files import write_whole
from t5x.run.progress import format_seconds


def infer_task(
    task: seqio.Task,
    output: "Output",
    settings: Mapping[str, Any],
    reader: "Reader",
    infer_fn: Callable[..., Any],
    write_fn: Callable[..., None],
    checkpoint_ds_iter: bool,
) -> None:
    """Writes the chunks that are not there yet. Reading, inferring and writing overlap."""
    started, rows = time.monotonic(), 0
    is_writer = jax.process_index() == 0
    if is_writer:
        output.open_chunks(settings)
    first = processes.decide(output.count_chunks)
    chunks = reader.read(task, first, output if checkpoint_ds_iter else None)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as read_thread,
        concurrent.futures.ThreadPoolExecutor(1) as write_thread,
    ):
        following = read_thread.submit(next, chunks, None)
        writing: concurrent.futures.Future[None] | None = None
        chunk = first
        while (features := following.result()) is not None:
            following = read_thread.submit(next, chunks, None)
            task_rows, model_rows = map(tf.data.Dataset.from_tensor_slices, features)
            rng = jax.random.fold_in(jax.random.PRNGKey(0), chunk)
            inferences = _split_auxiliary(infer_fn(model_rows.enumerate(), rng=rng))
            rows += len(inferences[0])
            if writing:
                writing.result()  # raises what went wrong in writing
            if is_writer:
                writing = write_thread.submit(
                    output.write_chunk, chunk, write_fn, inferences, task_rows
                )
            chunk += 1
        if writing:
            writing.result()
    if chunk == 0:
        raise ValueError(
            f"'{task.name}' has no rows in this shard of split '{settings['split']}'; choose "
            "another DatasetConfig.split or fewer infer.num_shards"
        )
    resumed = f" after {first} chunks of a run before" if first else ""
    console.say(
        f"{task.name}: {rows} rows{resumed} in {format_seconds(time.monotonic() - started)}, "
        f"{output.file}"
    )


def _split_auxiliary(results: Any) -> Inferences:
    """(results by row, auxiliary values) of what `get_infer_fn`'s function returns."""
    pairs, auxiliary = results if isinstance(results, tuple) else (results, {})
    return [result for _, result in pairs], auxiliary


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads a task's rows a chunk at a time, as the task has them and as the model takes them."""

    cfg: DatasetConfig
    converter: seqio.FeatureConverter
    shard_id: int
    num_shards: int
    checkpoint_period: int
    _datasets_made: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def chunk_rows(self) -> int:
        return self.checkpoint_period * self.cfg.batch_size

    def element_spec(self, task: seqio.Task) -> Mapping[str, tf.TensorSpec]:
        """Shape and dtype of the model's features of one row."""
        return self._datasets(task)[1].element_spec

    def _datasets(self, task: seqio.Task) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        # TensorFlow takes seconds to trace a task's functions: once is enough.
        if task.name not in self._datasets_made:
            self._datasets_made[task.name] = self._make_datasets(task)
        return self._datasets_made[task.name]

    def _make_datasets(self, task: seqio.Task) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        cfg = self.cfg
        rows = task.get_dataset(
            sequence_length=cfg.task_feature_lengths,
            split=cfg.split,
            shuffle=False,
            num_epochs=1,
            shard_info=seqio.ShardInfo(index=self.shard_id, num_shards=self.num_shards),
            use_cached=cfg.use_cached,
            seed=cfg.seed,
            trim_output_features=cfg.trim_output_features,
        )
        return rows, self.converter(rows, task_feature_lengths=cfg.task_feature_lengths)

    def read(self, task: seqio.Task, first: int, positions: "Output | None") -> Any:
        """Yields (task's features, model's features) of chunks, the chunk `first` first.

        Args:
          task: the task.
          first: number of chunks that are done.
          positions: where the position after each chunk is kept; None keeps none.
        """
        dataset = tf.data.Dataset.zip(self._datasets(task))
        iterator = iter(dataset.padded_batch(self.chunk_rows))
        checkpoint = tf.train.Checkpoint(ds=iterator)
        last = positions.position(first - 1) if positions and first else None
        if last is not None and last.with_suffix(".index").exists():
            checkpoint.read(str(last)).assert_consumed()
        else:
            for _ in range(first):
                if next(iterator, None) is None:
                    raise ValueError(
                        f"'{task.name}' has fewer rows than when its first {first} chunks were "
                        "written; remove its tmp- folder to begin again"
                    )
        for chunk, features in enumerate(_named_mistakes(iterator, task.source), start=first):
            if positions and jax.process_index() == 0:
                positions = positions if _save(checkpoint, positions.position(chunk)) else None
            yield features


def _named_mistakes(batches: Iterator[Any], source: Any) -> Iterator[Any]:
    """Passes batches on; where the source can tell what is wrong with its files, raises that."""
    try:
        yield from batches
    except (
        tf.errors.DataLossError,
        tf.errors.InvalidArgumentError,
        UnicodeDecodeError,  # TensorFlow's message quotes the record
    ) as error:
        mistake = source.find_mistake() if hasattr(source, "find_mistake") else None
        if mistake is None:
            raise
        raise ValueError(mistake) from error


def _save(checkpoint: tf.train.Checkpoint, position: epath.Path) -> bool:
    """Saves a position in the data; False, and a log line, where the data does not allow it."""
    try:
        checkpoint.write(str(position))
    except (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError) as error:
        reason = str(error).split("\n")[0]
        log_ignored("infer.checkpoint_ds_iter", f"a restart reads the data again: {reason}")
        return False
    return True


class Output:
    """The result of one task and shard, and the folder of its chunks until it is complete."""

    def __init__(
        self, folder: epath.Path, task: str, mode: str, extension: str, shard: int, shards: int
    ) -> None:
        suffix = f"{shard:05}-of-{shards:05}"
        self.file = folder / f"{task}-{mode}.{extension}-{suffix}"
        self.chunks = folder / f"tmp-{task}-{mode}-{suffix}"
        self._complete = folder / f"{self.file.name}.COMPLETED"

    def is_complete(self) -> bool:
        return self._complete.exists()

    def mark_complete(self) -> None:
        self._complete.write_text("")

    def position(self, chunk: int) -> epath.Path:
        """Prefix of the files that hold the position in the data after a chunk."""
        return self.chunks / f"position{chunk:05}"

    def _chunk(self, chunk: int) -> epath.Path:
        return self.chunks / f"{self.file.name}-chunk{chunk:05}"

    def _marker(self, chunk: int) -> epath.Path:
        return self.chunks / f"{self.file.name}-chunk{chunk:05}.COMPLETED"

    def open_chunks(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder of chunks, or makes sure that the one there was made by such a run.

        Raises:
          ValueError: it was made with other settings, so its chunks hold other rows or results, or
            it does not say with which.
        """
        file = self.chunks / f"{self.file.name}.settings.json"
        wanted = json.loads(json.dumps(settings))
        if file.exists():
            found = json.loads(file.read_text())
            for name in wanted:
                if found.get(name) != wanted[name]:
                    raise ValueError(
                        f"{self.chunks} holds chunks made with {name} = {found.get(name)}, not "
                        f"{wanted[name]}; go on with that, or remove the folder"
                    )
            return
        self.chunks.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in self.chunks.iterdir())
        strange = [name for name in names if not name.startswith(file.name)]
        if strange:
            raise ValueError(
                f"{self.chunks} holds {strange[0]} and not the settings it was made with; remove "
                "the folder, or bind another infer.output_dir"
            )
        write_whole(file, json.dumps(wanted))

    def count_chunks(self) -> int:
        """Number of chunks, from the first on, that are done."""
        count = 0
        while self._marker(count).exists():
            count += 1
        return count

    def write_chunk(
        self,
        chunk: int,
        write_fn: Callable[..., None],
        inferences: Inferences,
        task_rows: tf.data.Dataset,
    ) -> None:
        """Writes a chunk and then its marker; the position before it is needed no more."""
        write_fn(str(self._chunk(chunk)), inferences, task_rows)
        self._marker(chunk).write_text("")
        for file in self.chunks.glob(f"{self.position(chunk - 1).name}.*"):
            file.unlink()

    def remove_chunks(self) -> None:
        """Deletes the folder of chunks, if it is there; what is not of this result stays."""
        if not self.chunks.exists():
            return
        for path in self.chunks.iterdir():
            if path.name.startswith((self.file.name, "position")):
                path.rmtree() if path.is_dir() else path.unlink()
        if not any(self.chunks.iterdir()):
            self.chunks.rmdir()
