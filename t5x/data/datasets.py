"""From a SeqIO task or mixture to batches on the mesh, with a position that can be saved."""

import dataclasses
import difflib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from absl import logging

from t5x.data import provenance
from t5x.data.fingerprints import describe_data
from t5x.run import former_names, processes
from t5x.run.console import log_ignored

FeatureConverterClass = Callable[..., seqio.FeatureConverter]


@dataclasses.dataclass
class DatasetConfig:
    """Which examples to read and how (upstream `t5x.utils.DatasetConfig`).

    Attributes:
      mixture_or_task_name: a registered SeqIO mixture or task, or the provider itself.
      task_feature_lengths: longest sequence of each feature, in tokens; longer ones are trimmed.
      split: name of the split.
      batch_size: examples (packed rows) in the global batch.
      shuffle: whether to shuffle in memory.
      seed: seed of shuffling and of the mixture; None takes the clock's.
      use_cached: read SeqIO's offline cache.
      pack: put several short examples in one row.
      use_custom_packing_ops: accepted without effect; SeqIO packs with its own ops.
      module: module to import first, which registers the task.
      use_memory_cache: keep evaluation data in memory.
      trim_output_features: whether SeqIO trims features to their length.
      num_data_shards: parts that the data is read in, each making an equal share of every batch;
        one a process when None. Bound to a multiple of the number of processes, the batches are
        the same for any number of processes that divides it.
      runtime_preprocessors, num_prefetch_threads, num_workers: upstream's airio settings, accepted
        without effect.
    """

    mixture_or_task_name: str | seqio.Task | seqio.Mixture
    task_feature_lengths: Mapping[str, int] | None
    split: str
    batch_size: int
    shuffle: bool
    seed: int | None
    use_cached: bool = False
    pack: bool = False
    use_custom_packing_ops: bool = False
    module: str | None = None
    use_memory_cache: bool = True
    trim_output_features: bool = True
    runtime_preprocessors: Sequence[Any] | None = None
    num_prefetch_threads: int | None = None
    num_workers: int | None = 0
    num_data_shards: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "use_custom_packing_ops",
            "runtime_preprocessors",
            "num_prefetch_threads",
            "num_workers",
        ):
            if getattr(self, name):
                log_ignored(f"DatasetConfig.{name}", "SeqIO reads the data")


def import_module(module: str) -> None:
    """Imports a module for what it registers.

    Raises:
      RuntimeError: it registers gin configurables after gin was locked.
    """
    try:
        importlib.import_module(module)
    except RuntimeError as error:
        if "after the config was locked" not in str(error):
            raise
        raise RuntimeError(
            f"{module} registers gin configurables; add 'import {module}' to the gin file instead "
            "of naming it in MIXTURE_OR_TASK_MODULE"
        ) from error


def get_provider(cfg: DatasetConfig) -> seqio.Task | seqio.Mixture:
    """The task or mixture of a config, its module imported first.

    Raises:
      ValueError: no task or mixture of that name is registered.
    """
    if cfg.module:
        import_module(cfg.module)
    if isinstance(cfg.mixture_or_task_name, seqio.DatasetProviderBase):
        return cfg.mixture_or_task_name
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if cfg.mixture_or_task_name not in names:
        raise ValueError(_unknown_name(str(cfg.mixture_or_task_name), names))
    return seqio.get_mixture_or_task(cfg.mixture_or_task_name)


def _unknown_name(name: str, names: set[str]) -> str:
    message = f"MIXTURE_OR_TASK_NAME = '{name}' is not a registered SeqIO task or mixture"
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"{message}; did you mean '{near[0]}'?"
    return f"{message}; name the module that registers it in MIXTURE_OR_TASK_MODULE"


def get_vocabulary(cfg: DatasetConfig) -> tuple[seqio.Vocabulary, seqio.Vocabulary]:
    """The (inputs, targets) vocabularies of a config's task or mixture.

    Raises:
      ValueError: there are no features of those names and the others' vocabularies differ.
    """
    features = get_provider(cfg).output_features
    if "inputs" in features and "targets" in features:
        return features["inputs"].vocabulary, features["targets"].vocabulary
    vocabularies = [feature.vocabulary for feature in features.values()]
    real = [v for v in vocabularies if not isinstance(v, seqio.PassThroughVocabulary)]
    candidates = real or vocabularies
    if not candidates or any(v != candidates[0] for v in candidates):
        raise ValueError(
            f"{cfg.mixture_or_task_name} has no single vocabulary: features {sorted(features)}"
        )
    return candidates[0], candidates[0]


def verify_matching_vocabs(cfg: DatasetConfig, model: Any) -> None:
    """Checks that task and model read tokens alike, and that the network has a row for each.

    Raises:
      ValueError: their vocabularies differ, or the network's is too small.
    """
    vocabularies = get_vocabulary(cfg)
    if vocabularies != (model.input_vocabulary, model.output_vocabulary):
        raise ValueError(
            f"the vocabulary of {cfg.mixture_or_task_name} ({vocabularies[0]}) is not the model's "
            f"({model.input_vocabulary}); bind VOCABULARY to the task's"
        )
    rows = getattr(getattr(getattr(model, "module", None), "config", None), "vocab_size", None)
    pieces = max(vocabulary.vocab_size for vocabulary in vocabularies)
    if rows is not None and rows < pieces:
        raise ValueError(
            f"T5Config.vocab_size = {rows} is smaller than the vocabulary's {pieces} pieces; use "
            f"{-(-pieces // 128) * 128}"
        )


def get_dataset(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: FeatureConverterClass,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
    """Batches of model features read through SeqIO.

    Args:
      cfg: what to read.
      shard_id: shard of this process.
      num_shards: number of shards; must divide the batch size.
      feature_converter_cls: makes model features of task features.
      num_epochs: passes over the data; endless when None, and then the attribute `fingerprint` of
        what is returned describes it (see `t5x.data.fingerprints`).
      continue_from_last_checkpoint: must be False, the iterator's state is restored instead.

    Raises:
      ValueError: unknown task, missing split, or a batch that does not split evenly.
    """
    if continue_from_last_checkpoint:
        raise ValueError("get_dataset: continue_from_last_checkpoint must be False")
    total = cfg.num_data_shards or num_shards
    if total % num_shards:
        raise ValueError(
            f"DatasetConfig.num_data_shards = {total} is not a multiple of the {num_shards} "
            "processes that read data"
        )
    if cfg.batch_size % total:
        raise ValueError(
            f"DatasetConfig.batch_size = {cfg.batch_size} is not divisible by the {total} "
            "processes that read data"
        )
    provider = get_provider(cfg)
    seed = cfg.seed
    if seed is None:
        seed = processes.decide(lambda: int(time.time()))
    # Endless data is trained on, and its position saved.
    fingerprint = None
    if num_epochs is None:
        fingerprint = describe_data(cfg, provider, seed=seed, num_shards=total)
    each = total // num_shards
    parts = [
        _read_shard(cfg, provider, shard, total, feature_converter_cls, num_epochs, seed)
        for shard in range(shard_id * each, (shard_id + 1) * each)
    ]
    if each == 1:
        parts[0].fingerprint = fingerprint
        return parts[0]
    joined = tf.data.Dataset.zip(tuple(parts)).map(
        lambda *batches: {
            name: tf.concat([batch[name] for batch in batches], axis=0) for name in batches[0]
        }
    )
    joined.task_names = getattr(parts[0], "task_names", ())
    joined.fingerprint = fingerprint
    return joined


def require_caches(provider: seqio.Task | seqio.Mixture) -> None:
    """Raises ValueError where a task that is to be read from SeqIO's offline cache has none."""
    lacking = [task.name for task in seqio.get_subtasks(provider) if task.cache_dir is None]
    if lacking:
        more = f" and {len(lacking) - 1} more tasks" if len(lacking) > 1 else ""
        raise ValueError(
            f"USE_CACHED_TASKS = True: no cache of {lacking[0]}{more} in "
            f"{', '.join(seqio.utils.get_global_cache_dirs()) or 'no folder'}; give "
            "--seqio_additional_cache_dirs=FOLDER or USE_CACHED_TASKS = False"
        )


def _read_shard(
    cfg: DatasetConfig,
    provider: seqio.Task | seqio.Mixture,
    shard: int,
    num_shards: int,
    feature_converter_cls: FeatureConverterClass,
    num_epochs: int | None,
    seed: int,
) -> tf.data.Dataset:
    """One shard's share of the batches."""
    if cfg.use_cached:
        require_caches(provider)
    arguments = {
        "shuffle": cfg.shuffle,
        "num_epochs": num_epochs,
        "shard_info": seqio.ShardInfo(index=shard, num_shards=num_shards),
        "use_cached": cfg.use_cached,
        "seed": seed,
        "trim_output_features": cfg.trim_output_features,
    }
    # Training on a mixture reads endlessly, and wants to know where a bad batch came from.
    numbered = num_epochs is None and isinstance(provider, seqio.Mixture)
    if numbered and feature_converter_cls is seqio.EncDecFeatureConverter:
        return provenance.get_numbered_dataset(
            provider,
            cfg.task_feature_lengths,
            split=cfg.split,
            pack=cfg.pack,
            batch_size=cfg.batch_size // num_shards,
            **arguments,
        )
    return seqio.get_dataset(
        mixture_or_task_name=provider,
        task_feature_lengths=cfg.task_feature_lengths,
        dataset_split=cfg.split,
        feature_converter=feature_converter_cls(pack=cfg.pack),
        batch_size=cfg.batch_size // num_shards,
        **arguments,
    )


def get_deterministic_dataset(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: FeatureConverterClass,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    model_dir: str | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """`get_dataset` under the name of T5X's reader of deterministic tasks.

    A run goes on where its checkpoint was in the data whatever the reader, so `model_dir` and
    `start_step` have nothing to find out.
    """
    former_names.say("utils.get_deterministic_dataset", "utils.get_dataset")
    return get_dataset(
        cfg, shard_id, num_shards, feature_converter_cls, num_epochs, continue_from_last_checkpoint
    )


def get_training_eval_datasets(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int,
    feature_converter_cls: FeatureConverterClass,
    deterministic: bool = False,
    model_dir: str | None = None,
    start_step: int = 0,
) -> dict[str, tf.data.Dataset]:
    """`eval_steps` batches for every subtask that has the split, and for the mixture itself.

    `deterministic`, `model_dir` and `start_step` are upstream's, accepted without effect: these
    datasets are always read in the same order.
    """
    upstream = {"deterministic": deterministic, "model_dir": model_dir, "start_step": start_step}
    for name, value in upstream.items():
        if value:
            log_ignored(f"get_training_eval_datasets.{name}", "the order is always the same")
    if cfg.batch_size % num_shards:
        raise ValueError(
            f"DatasetConfig.batch_size = {cfg.batch_size} is not divisible by the {num_shards} "
            "processes that read data"
        )

    def read(provider: seqio.Task | seqio.Mixture) -> tf.data.Dataset:
        # Batches of one are split over processes afterwards, so that uneven file shards cannot
        # give processes different numbers of batches.
        one = dataclasses.replace(cfg, mixture_or_task_name=provider, batch_size=1)
        epochs = eval_steps * cfg.batch_size
        rows = get_dataset(one, 0, 1, feature_converter_cls, num_epochs=epochs).unbatch().repeat()
        batches = rows.shard(num_shards, shard_id).batch(
            cfg.batch_size // num_shards, drop_remainder=True
        )
        batches = batches.take(eval_steps)
        return batches.cache() if cfg.use_memory_cache else batches

    provider = get_provider(cfg)
    datasets = {}
    for task in seqio.get_subtasks(provider):
        if cfg.split in task.splits:
            datasets[task.name] = read(task)
        else:
            logging.info("%s has no split '%s': not in training evaluation", task.name, cfg.split)
    if isinstance(provider, seqio.Mixture):
        datasets[provider.name] = read(provider)
    return datasets
