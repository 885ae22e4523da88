"""Data through SeqIO: batches on the mesh, positions that can be saved, errors that name things."""

import types

import clu.data.dataset_iterator as clu_iterator
import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf
from jax.sharding import PartitionSpec

from t5x import partitioning
from t5x.data import datasets
from t5x.data.iterator import prepare_train_iter

VOCABULARY = seqio.ByteVocabulary()
FEATURES = {
    "inputs": seqio.Feature(VOCABULARY, add_eos=True),
    "targets": seqio.Feature(VOCABULARY, add_eos=True),
}


def _rows(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    numbers = tf.strings.as_string(tf.range(40))
    return tf.data.Dataset.from_tensor_slices({"inputs": numbers, "targets": numbers})


def _generated_rows(split, shuffle_files, seed=None):
    del split, shuffle_files, seed

    def generate():
        yield from ({"inputs": str(i), "targets": str(i)} for i in range(40))

    spec = {name: tf.TensorSpec((), tf.string) for name in ("inputs", "targets")}
    return tf.data.Dataset.from_generator(generate, output_signature=spec)


@pytest.fixture(scope="module", autouse=True)
def tasks():
    for name, rows in (("test_numbers", _rows), ("test_generated", _generated_rows)):
        seqio.TaskRegistry.add(
            name,
            seqio.FunctionDataSource(rows, splits=["train", "validation"]),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features=FEATURES,
        )
    yield
    for name in ("test_numbers", "test_generated"):
        seqio.TaskRegistry.remove(name)


def _config(name="test_numbers", **settings):
    settings = {"split": "train", "batch_size": 8, "shuffle": True, "seed": 0, **settings}
    lengths = {"inputs": 16, "targets": 16}
    return datasets.DatasetConfig(
        mixture_or_task_name=name, task_feature_lengths=lengths, **settings
    )


def _iterate(config, must_save=True):
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    checkpoint_cfg = types.SimpleNamespace(save=types.SimpleNamespace(save_dataset=must_save))
    return prepare_train_iter(
        datasets.get_dataset(config, 0, 1, seqio.EncDecFeatureConverter),
        partitioner=partitioner,
        checkpoint_cfg=checkpoint_cfg,
        data_layout=partitioner.get_data_layout(config.batch_size),
    )


def _targets(batch):
    return np.asarray(batch["decoder_target_tokens"])


def test_batches_are_sharded_over_the_data_axis():
    batch = next(_iterate(_config(pack=True)))
    assert batch["encoder_input_tokens"].shape == (8, 16)
    assert batch["encoder_input_tokens"].sharding.spec == PartitionSpec("data")
    assert {shard.data.shape for shard in batch["encoder_segment_ids"].addressable_shards} == {
        (1, 16)
    }


@pytest.mark.parametrize("pack", [False, True])
def test_a_saved_position_continues_with_the_same_batches(tmp_path, pack):
    iterator = _iterate(_config(pack=pack))
    for _ in range(3):
        next(iterator)
    iterator.save(str(tmp_path / "position"))
    expected = [_targets(next(iterator)) for _ in range(8)]
    # Another seed: what is restored is the whole state, shuffling included.
    resumed = _iterate(_config(pack=pack, seed=5))
    resumed.restore(str(tmp_path / "position"))
    for batch in expected:
        np.testing.assert_array_equal(_targets(next(resumed)), batch)


def test_a_generator_has_no_position_to_save(tmp_path):
    iterator = _iterate(_config("test_generated"), must_save=None)
    next(iterator)
    iterator.save(str(tmp_path / "position"))
    resumed = _iterate(_config("test_generated"), must_save=None)
    resumed.restore(str(tmp_path / "position"))
    assert _targets(next(resumed)).shape == (8, 16)
    insisting = _iterate(_config("test_generated"), must_save=True)
    next(insisting)
    with pytest.raises(ValueError, match=r"save_dataset = True, but this dataset's position"):
        insisting.save(str(tmp_path / "other"))


def test_shards_of_the_data_are_disjoint_and_complete():
    config = _config(shuffle=False, split="validation")
    seen = []
    for shard in range(2):
        ds = datasets.get_dataset(config, shard, 2, seqio.EncDecFeatureConverter, num_epochs=1)
        seen += [row.tobytes() for batch in ds for row in batch["decoder_target_tokens"].numpy()]
    assert len(seen) == len(set(seen)) == 40


def test_training_evaluation_has_the_steps_asked_for():
    config = _config(split="validation", shuffle=False)
    found = datasets.get_training_eval_datasets(config, 0, 1, 7, seqio.EncDecFeatureConverter)
    assert {name: len(list(ds)) for name, ds in found.items()} == {"test_numbers": 7}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config("test_number"), "'test_number' is not a registered.*did you mean 'test_numbers'"),
        (_config("zzz"), "MIXTURE_OR_TASK_MODULE"),
        (_config(batch_size=7), "batch_size = 7 is not divisible by the 2 processes"),
    ],
)
def test_errors_name_the_setting(config, message):
    with pytest.raises(ValueError, match=message):
        datasets.get_dataset(config, 0, 2, seqio.EncDecFeatureConverter)


def test_vocabularies_must_match():
    model = types.SimpleNamespace(
        input_vocabulary=VOCABULARY, output_vocabulary=seqio.ByteVocabulary(extra_ids=5)
    )
    with pytest.raises(ValueError, match="bind VOCABULARY to the task's"):
        datasets.verify_matching_vocabs(_config(), model)


def test_the_network_must_have_a_row_for_every_piece():
    config = types.SimpleNamespace(vocab_size=256)
    model = types.SimpleNamespace(
        input_vocabulary=VOCABULARY,
        output_vocabulary=VOCABULARY,
        module=types.SimpleNamespace(config=config),
    )
    with pytest.raises(
        ValueError, match=r"vocab_size = 256 is smaller than .* 259 pieces; use 384"
    ):
        datasets.verify_matching_vocabs(_config(), model)


def test_other_iterators_are_refused():
    with pytest.raises(ValueError, match=r"get_dataset_fn returned list"):
        prepare_train_iter([], partitioner=None, data_layout=None)


def test_sharded_iterator_passes_on_reset_and_spec():
    iterator = _iterate(_config(shuffle=False))
    first = _targets(next(iterator))
    iterator.reset()
    np.testing.assert_array_equal(_targets(next(iterator)), first)
    assert iterator.element_spec["encoder_input_tokens"].shape == (8, 16)
    assert isinstance(iterator, clu_iterator.DatasetIterator)
    assert jax.process_count() == 1
