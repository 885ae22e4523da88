"""Task numbers ride along without changing a batch."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x.data import datasets, provenance

VOCABULARY = seqio.ByteVocabulary()
LENGTHS = {"inputs": 24, "targets": 12}


def _rows(word, count):
    def read(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        rows = {
            "inputs": [f"{word} {i} {'x' * (i % 9)}" for i in range(count)],
            "targets": [str(i) for i in range(count)],
        }
        return tf.data.Dataset.from_tensor_slices(rows)

    return seqio.FunctionDataSource(read, splits=["train"])


@pytest.fixture(scope="module")
def mixture():
    names = []
    for word, count in (("apples", 40), ("pears", 60)):
        names.append(f"provenance_{word}")
        seqio.TaskRegistry.add(
            names[-1],
            source=_rows(word, count),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={key: seqio.Feature(VOCABULARY) for key in LENGTHS},
            metric_fns=[],
        )
    name = "provenance_fruit"
    seqio.MixtureRegistry.add(name, [(names[0], 1.0), (names[1], 2.0)])
    yield name
    for name_ in names:
        seqio.TaskRegistry.remove(name_)
    seqio.MixtureRegistry.remove(name)


@pytest.mark.parametrize("pack", [False, True])
def test_batches_are_those_of_seqio_and_their_tasks_are_known(mixture, pack):
    cfg = datasets.DatasetConfig(mixture, LENGTHS, "train", 8, True, 0, pack=pack)
    numbered = datasets.get_dataset(cfg, 0, 1, seqio.EncDecFeatureConverter)
    plain = seqio.get_dataset(
        mixture,
        LENGTHS,
        seqio.EncDecFeatureConverter(pack=pack),
        shuffle=True,
        num_epochs=None,
        seed=0,
        batch_size=8,
        shard_info=seqio.ShardInfo(0, 1),
    )
    pairs = zip(numbered.as_numpy_iterator(), plain.as_numpy_iterator(), range(6), strict=False)
    for batch, expected, _ in pairs:
        numbers = batch.pop(provenance.FEATURE)
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)
        for tokens, row in zip(batch["encoder_input_tokens"], numbers, strict=True):
            text = VOCABULARY.decode(tokens.tolist())
            found = provenance.name_tasks(row, numbered.task_names)
            assert set(found) <= {"provenance_apples", "provenance_pears"}
            for word in ("apples", "pears"):
                assert (word in text) <= (f"provenance_{word}" in found)


def test_shards_give_the_same_batch_in_one_process_and_in_two(mixture):
    def read(shard, shards):
        cfg = datasets.DatasetConfig(
            mixture, LENGTHS, "train", 8, True, 0, pack=True, num_data_shards=4
        )
        dataset = datasets.get_dataset(cfg, shard, shards, seqio.EncDecFeatureConverter)
        return next(dataset.as_numpy_iterator())

    whole, halves = read(0, 1), [read(0, 2), read(1, 2)]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))


def test_shards_must_divide(mixture):
    cfg = datasets.DatasetConfig(mixture, LENGTHS, "train", 8, True, 0, num_data_shards=3)
    with pytest.raises(ValueError, match="num_data_shards = 3"):
        datasets.get_dataset(cfg, 0, 2, seqio.EncDecFeatureConverter)
