"""A prepared store as the dataset of a run: mixed, packed and read on Grain.

Neither TensorFlow nor SeqIO takes part. The position is a block of the mixture and a row of it, and
fits any number of processes; what passed is counted.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import clu.data.dataset_iterator as clu_iterator
import grain
import jax
import numpy as np
from absl import flags, logging
from etils import epath
from grain.experimental import ThreadPrefetchIterDataset
from jax.experimental import multihost_utils

from t5x.data.prepared_batches import Batches, Source
from t5x.data.prepared_features import lay_out
from t5x.data.prepared_rows import EXAMPLES_PER_BLOCK, Position, Rows
from t5x.data.store import read_manifest
from t5x.data.vocabularies import hash_vocabulary

# As `t5x.data.provenance` has it.
TASK_NUMBERS = "task_number"
BATCHES_AHEAD = 4
_POSITION_SUFFIX = ".json"


class PreparedIterator(clu_iterator.DatasetIterator):
    """Batches of this process, with a position that fits any number of processes.

    Args:
      source: what to read.
      num_workers: processes that prefetch; a thread of this one when 0.
    """

    def __init__(self, source: Source, num_workers: int = 0) -> None:
        self._source, self._num_workers = source, num_workers
        self.task_names = tuple(e.task for e in source.entries)
        self._batches: grain.DatasetIterator | None = None
        self.reset()

    def reset(self) -> None:
        """Goes to the first batch."""
        self._examples = np.zeros(len(self.task_names), np.int64)
        self._truncated = np.zeros(len(self.task_names), np.int64)
        self._tokens = np.zeros(2, np.int64)
        self._handed_out = 0
        self._go_to(Position())

    def _go_to(self, position: Position) -> None:
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends prefetching; the next batch starts it again."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def _start(self) -> grain.DatasetIterator:
        dataset: grain.IterDataset = Batches(self._source, self._position)
        if self._num_workers:
            # Grain asks its flags, which a program without absl's main has not parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._num_workers, BATCHES_AHEAD)
            return iter(dataset.mp_prefetch(options))
        return iter(ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=BATCHES_AHEAD))

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches)
        self._position = batch.position
        self._examples += batch.examples
        self._truncated += batch.truncated
        self._tokens += batch.tokens
        self._handed_out += 1
        return {**batch.features, TASK_NUMBERS: batch.task_numbers}

    @property
    def element_spec(self) -> dict[str, clu_iterator.ArraySpec]:
        """Shape and dtype of each model feature of this process's batch."""
        rows = self._source.last_row - self._source.first_row
        none = Rows(*np.zeros((3, 0), np.int64), np.zeros((0, 2), np.int64), 0)
        features = lay_out(none, [], [], self._source.capacity, self._source.pack)
        return {
            name: clu_iterator.ArraySpec(feature.dtype, (rows, feature.shape[1]))
            for name, feature in features.items()
        }

    def count(self) -> dict[str, float]:
        """What has been handed out, of all processes, since the run's first step.

        Returns:
          `data/…` by name: examples and truncated examples, the share of padding of both sides,
          and of each task its examples, truncated examples and epochs.
        """
        rows = self._handed_out * self._source.batch_size
        slots = np.maximum(rows * np.array(self._source.capacity, np.int64), 1)
        padding = 1 - self._tokens / slots
        counts = {
            "data/examples": float(self._examples.sum()),
            "data/truncated": float(self._truncated.sum()),
            "data/encoder_padding": float(padding[0]),
            "data/decoder_padding": float(padding[1]),
        }
        for entry, examples, truncated in zip(
            self._source.entries, self._examples, self._truncated, strict=True
        ):
            counts[f"data/examples/{entry.task}"] = float(examples)
            counts[f"data/truncated/{entry.task}"] = float(truncated)
            counts[f"data/epochs/{entry.task}"] = float(examples / entry.examples)
        return counts

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return self._source.describe()

    def get_state(self) -> dict[str, Any]:
        """The position and the counts, as plain values."""
        return {
            **dataclasses.asdict(self._position),
            "batches": self._handed_out,
            "tokens": self._tokens.tolist(),
            "examples": self._examples.tolist(),
            "truncated": self._truncated.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position in the same data: that of the same fingerprint."""
        self._handed_out = state["batches"]
        self._tokens = np.array(state["tokens"], np.int64)
        self._examples = np.array(state["examples"], np.int64)
        self._truncated = np.array(state["truncated"], np.int64)
        self._go_to(Position(state["block"], state["row"]))

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes the position to FILENAME.json."""
        epath.Path(f"{filename}{_POSITION_SUFFIX}").write_text(json.dumps(self.get_state()))

    def restore(self, filename: str | os.PathLike[str]) -> None:
        """Goes to the position in FILENAME.json."""
        self.set_state(json.loads(epath.Path(f"{filename}{_POSITION_SUFFIX}").read_text()))


def open_source(
    cfg: Any,
    directory: str | os.PathLike[str],
    shard_id: int,
    num_shards: int,
    examples_per_block: int = EXAMPLES_PER_BLOCK,
) -> Source:
    """What a `DatasetConfig` reads of a store.

    Raises:
      ValueError: the store holds another mixture, or nothing of the split; or the batch does not
        split evenly.
      StoreError: the store cannot be read.
    """
    manifest = read_manifest(directory)
    name = getattr(cfg.mixture_or_task_name, "name", cfg.mixture_or_task_name)
    if name != manifest.mixture:
        raise ValueError(
            f"PREPARED_DIR = '{directory}' holds {manifest.mixture}, but MIXTURE_OR_TASK_NAME = "
            f"'{name}'; prepare that"
        )
    if cfg.batch_size % num_shards:
        raise ValueError(
            f"DatasetConfig.batch_size = {cfg.batch_size} is not divisible by the {num_shards} "
            "processes that read data"
        )
    seed = cfg.seed
    if seed is None:
        seed = int(multihost_utils.broadcast_one_to_all(np.int32(time.time())))
    lengths = cfg.task_feature_lengths
    rows = cfg.batch_size // num_shards
    source = Source(
        directory=os.fspath(directory),
        manifest=manifest,
        split=cfg.split,
        capacity=(lengths["inputs"], lengths["targets"]),
        seed=seed,
        shuffle=cfg.shuffle,
        pack=cfg.pack,
        examples_per_block=examples_per_block,
        batch_size=cfg.batch_size,
        first_row=shard_id * rows,
        last_row=(shard_id + 1) * rows,
    )
    if not source.entries:
        held = sorted({entry.split for entry in manifest.entries})
        raise ValueError(f"{directory} has no examples of split '{cfg.split}', only of {held}")
    return source


def get_dataset(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    directory: str | None = None,
    examples_per_block: int = EXAMPLES_PER_BLOCK,
) -> Any:
    """Batches of a prepared store, or SeqIO's where there is none; bound to train.get_dataset_fn.

    Args:
      cfg: what to read, a `DatasetConfig`; its `num_workers` processes prefetch, or a thread.
      shard_id, num_shards: which share of every batch is this process's.
      feature_converter_cls: SeqIO's for encoder-decoders.
      num_epochs, continue_from_last_checkpoint: those of `t5x.data.datasets.get_dataset`; prepared
        data is read endlessly.
      directory: the store; None reads through SeqIO.
      examples_per_block: draws that are packed together.

    Raises:
      ValueError: see `open_source`; or a model of another kind, or a number of epochs.
    """
    if directory is None:
        from t5x.data import datasets  # SeqIO takes seconds to import

        return datasets.get_dataset(
            cfg, shard_id, num_shards, feature_converter_cls, num_epochs,
            continue_from_last_checkpoint,
        )  # fmt: skip
    kind = getattr(feature_converter_cls, "__name__", str(feature_converter_cls))
    if kind != "EncDecFeatureConverter":
        raise ValueError(f"prepared data is for encoder-decoders, not for the features of {kind}")
    if num_epochs is not None or continue_from_last_checkpoint:
        raise ValueError("prepared data is read endlessly: num_epochs must be None")
    source = open_source(cfg, directory, shard_id, num_shards, examples_per_block)
    if source.manifest.missing and jax.process_index() == 0:
        logging.warning(
            "%s lacks %d tasks, %.1f %% of the mixture: %s …",
            directory,
            len(source.manifest.missing),
            100 * source.manifest.missing_share,
            source.manifest.missing[0].task,
        )
    return PreparedIterator(source, cfg.num_workers or 0)


def verify_matching_vocabs(cfg: Any, model: Any, *, directory: str | None = None) -> None:
    """Checks that store and model read tokens alike; bound to train.verify_matching_vocabs_fn.

    Args:
      cfg: a `DatasetConfig`; SeqIO's task is looked up where there is no store.
      model: has the vocabularies and the network.
      directory: the store, see `get_dataset`.

    Raises:
      ValueError: their vocabularies differ, or the network's is too small.
    """
    if directory is None:
        from t5x.data import datasets

        datasets.verify_matching_vocabs(cfg, model)
        return
    features = read_manifest(directory).features
    vocabularies = {"inputs": model.input_vocabulary, "targets": model.output_vocabulary}
    for name, vocabulary in vocabularies.items():
        if features[name].vocabulary != hash_vocabulary(vocabulary):
            raise ValueError(
                f"the vocabulary of {name} in PREPARED_DIR = '{directory}' is not the model's "
                f"({vocabulary}); bind VOCABULARY to what it was prepared with"
            )
    rows = getattr(getattr(getattr(model, "module", None), "config", None), "vocab_size", None)
    pieces = max(feature.vocabulary_size for feature in features.values())
    if rows is not None and rows < pieces:
        raise ValueError(
            f"T5Config.vocab_size = {rows} is smaller than the vocabulary's {pieces} pieces; use "
            f"{-(-pieces // 128) * 128}"
        )
