"""SeqIO's task and mixture, with functions that are traced once for all tasks."""

from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import seqio
import tensorflow as tf

from t0x.registration import fingerprints
from t0x.registration.registry import task_info
from t0x.registration.shared_functions import map_shared


def tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """SeqIO's `tokenize` and `append_eos` in one sequential step.

    SeqIO's own keeps 256 examples of every task in flight: in a mixture of hundreds of tasks that
    is minutes of work before the first batch, and hundreds of megabytes of iterator state.

    Args:
      dataset: examples with a string for each output feature.
      output_features: vocabulary and whether EOS ends the tokens, by feature.

    Returns:
      The examples with int32 tokens, and the strings under `<feature>_pretokenized`.
    """

    features = tuple(output_features.items())

    def encode(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        encoded = dict(example)
        for name, feature in features:
            tokens = feature.vocabulary.encode_tf(example[name])
            if feature.add_eos:
                tokens = tf.concat([tokens, [feature.vocabulary.eos_id]], axis=0)
            encoded[name] = tokens
            encoded[f"{name}_pretokenized"] = example[name]
        return encoded

    return map_shared(dataset, encode, ("tokenize", _vocabularies(features)))


def _vocabularies(features: Iterable[tuple[str, seqio.Feature]]) -> Hashable:
    """What tells two sets of features apart for `tokenize`; keeps their vocabularies alive."""
    return tuple(
        (name, _Identity(feature.vocabulary), feature.add_eos) for name, feature in features
    )


@dataclass(frozen=True, eq=False)
class _Identity:
    """An object as a key: equal to itself alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class PromptedTask(seqio.Task):
    """Task whose source permutes its rows itself, so that shuffling needs no buffer.

    A buffer of rendered examples a task would be most of the memory and of the saved iterator state
    in a mixture of hundreds of tasks. Cached files come in file order and keep SeqIO's buffer.
    """

    def get_dataset(
        self,
        sequence_length: Mapping[str, int] | None = None,
        split: str = "train",
        use_cached: bool = False,
        **options: Any,
    ) -> tf.data.Dataset:
        """See `seqio.Task.get_dataset`."""
        if use_cached:
            task = self.replace(shuffle_buffer_size=seqio.SHUFFLE_BUFFER_SIZE)
            return task.get_dataset(sequence_length, split, use_cached=True, **options)
        return super().get_dataset(sequence_length, split, **options)

    def fingerprint(self, split: str) -> dict[str, str]:
        """Digests of what a split's examples are made from, by what they are of."""
        return fingerprints.describe_task(task_info(self.name), self.source.real_split(split))

    def num_input_examples(self, split: str) -> int:
        """Examples of a split, see `TaskInfo.num_examples`; for a task that is cached they are
        what `get_cached_stats` counted."""
        return task_info(self.name).num_examples(self.source.real_split(split))

    def _trim_output_features(
        self, dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
    ) -> tf.data.Dataset:
        """SeqIO's step with a shared function, for features of one dimension."""
        lengths = {
            name: length
            for name, length in (sequence_length or {}).items()
            if length is not None and name in self.output_features
        }
        if any(self.output_features[name].rank != 1 for name in lengths):
            return super()._trim_output_features(dataset, sequence_length)

        def trim(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {
                name: v[: lengths[name]] if name in lengths else v for name, v in example.items()
            }

        return map_shared(dataset, trim, ("trim", tuple(sorted(lengths.items()))))


class PromptedMixture(seqio.Mixture):
    """Mixture that keeps the wanted features of every task by one shared function."""

    def get_task_dataset(
        self, task: seqio.Task, output_feature_keys: Set[str], *arguments: Any, **options: Any
    ) -> tf.data.Dataset:
        """See `seqio.Mixture.get_task_dataset`."""
        names = ("sequence_length", "split", "use_cached", "shuffle", "seed", "shard_info",
                 "num_epochs", "trim_output_features", "try_in_mem_cache")  # fmt: skip
        given = dict(zip(names, arguments, strict=False))
        kept = frozenset(output_feature_keys)

        def keep(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: value for name, value in example.items() if name in kept}

        return map_shared(task.get_dataset(**given, **options), keep, ("keep", kept))
