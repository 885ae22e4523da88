"""Which tasks the examples of a batch come from, packed ones too.

Every example of a mixture carries the number of its task as one more feature, which SeqIO takes
through mixing and packing as a passthrough feature. The numbers stay on the host.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

FEATURE = "task_number"


class _NumberedConverter(seqio.EncDecFeatureConverter):
    """SeqIO packs any feature of tokens, but its constructor lets none pass through if it packs."""

    pack = False

    def __init__(self, pack: bool) -> None:
        spec = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)
        super().__init__(pack=False, passthrough_features={FEATURE: spec})
        self.pack = pack


def get_numbered_dataset(
    mixture: seqio.Mixture,
    task_feature_lengths: Mapping[str, int],
    *,
    pack: bool,
    batch_size: int,
    **arguments: Any,
) -> tf.data.Dataset:
    """What `seqio.get_dataset` gives for an encoder-decoder, with each example's task number.

    Args:
      mixture: what to read.
      task_feature_lengths: longest sequence of each feature, in tokens.
      pack: put several short examples in one row.
      batch_size: rows of a batch.
      **arguments: those of `seqio.Mixture.get_dataset`.

    Returns:
      Batches of model features and FEATURE: (rows, examples of a row), numbers from 1, 0 for none;
      `task_names` on the dataset are the names by number - 1.
    """
    names = tuple(sorted(task.name for task in mixture.tasks))
    # SeqIO offers no way to derive a mixture from another: how it samples and what its class
    # overrides show only in the mixture itself, so a copy is told where its tasks' rows come from.
    numbered = copy.copy(mixture)
    numbered.get_task_dataset = functools.partial(_get_task_dataset, mixture, names)
    dataset = numbered.get_dataset(
        task_feature_lengths, passthrough_features=[FEATURE], **arguments
    )
    # An example has a token of each feature, so a row never has more of them than this: packing
    # is the same as without the numbers.
    most = min(task_feature_lengths.values()) if pack else 1
    dataset = _NumberedConverter(pack)(dataset, {**task_feature_lengths, FEATURE: most})
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset.task_names = names
    return dataset


def _get_task_dataset(
    mixture: seqio.Mixture, names: Sequence[str], task: seqio.Task, *args: Any, **kwargs: Any
) -> tf.data.Dataset:
    number = tf.constant([names.index(task.name) + 1], tf.int32)
    return mixture.get_task_dataset(task, *args, **kwargs).map(
        lambda example: {**example, FEATURE: number}, num_parallel_calls=tf.data.AUTOTUNE
    )


def name_tasks(numbers: np.ndarray | None, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the tasks whose numbers occur in an array; none for None."""
    if numbers is None:
        return ()
    return tuple(names[number - 1] for number in np.unique(numbers) if number)
