"""Prepared batches are SeqIO's in layout, the same for any number of processes, and counted."""

import dataclasses
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x.checkpoints import fingerprints
from t5x.data import datasets, prepared, provenance, store, vocabularies

LENGTHS = {"inputs": 48, "targets": 12}
CONVERTER = seqio.EncDecFeatureConverter


def _examples(count, seed):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(2, 900, rng.integers(1, 70)).tolist(),
            [*rng.integers(2, 900, rng.integers(0, 14)), 1],
        )
        for _ in range(count)
    ]


TASKS = {"apples": _examples(70, 0), "pears": _examples(40, 1), "plums": _examples(9, 2)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, write_store):
    path = tmp_path_factory.mktemp("prepared")
    write_store(path, TASKS, rates={"apples": 30, "pears": 40, "plums": 9}, shards=1)
    return path


def _config(batch_size=8, **options):
    arguments = {"shuffle": True, "seed": 0, "pack": True, **options}
    return datasets.DatasetConfig("fruit", LENGTHS, "train", batch_size, **arguments)


def _open(directory, shard=0, shards=1, cfg=None, **options):
    return prepared.get_dataset(
        cfg or _config(), shard, shards, CONVERTER, directory=directory, **options
    )


def _take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def _assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def _by_seqio(examples, pack):
    """One row's examples through SeqIO's own converter."""
    types = {name: tf.TensorSpec([None], tf.int32) for name in LENGTHS}
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": a[:48], "targets": b[:12]} for a, b in examples), output_signature=types
    )
    rows = list(CONVERTER(pack=pack)(dataset, LENGTHS).as_numpy_iterator())
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("pack", [True, False])
def test_rows_are_laid_out_as_seqio_does(directory, pack):
    iterator = _open(directory, cfg=_config(pack=pack))
    rows = iterator._source.make_plan().read(prepared.Position(), 8)
    for batch, (plan, _) in zip(_take(iterator, 1), rows, strict=False):
        numbers = batch.pop(provenance.FEATURE)
        spec = iterator.element_spec
        assert {n: (v.dtype, v.shape) for n, v in batch.items()} == {
            n: (s.dtype, s.shape) for n, s in spec.items()
        }
        for row in range(0, 8, 2):  # SeqIO takes seconds a row
            which = np.flatnonzero(plan.rows == row)
            tasks = [iterator.task_names[plan.entries[i]] for i in which]
            examples = [TASKS[task][plan.places[i]] for task, i in zip(tasks, which, strict=True)]
            _assert_equal({n: v[row] for n, v in batch.items()}, _by_seqio(examples, pack))
            named = [iterator.task_names[n - 1] for n in numbers[row] if n]
            assert named == tasks


def test_the_specification_is_that_of_seqio_batches(directory):
    name = "prepared_specification"
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(
            {"inputs": tf.constant([5, 1]), "targets": tf.constant([6, 1])}
        ),
        splits=["train"],
    )
    features = {key: seqio.Feature(seqio.PassThroughVocabulary(1000)) for key in LENGTHS}
    seqio.TaskRegistry.add(name, source, features, [], metric_fns=[])
    try:
        for pack in (True, False):
            cfg = dataclasses.replace(_config(pack=pack), mixture_or_task_name=name)
            theirs = datasets.get_dataset(cfg, 0, 1, CONVERTER).element_spec
            ours = _open(directory, cfg=_config(pack=pack)).element_spec
            assert {n: (s.dtype, s.shape) for n, s in ours.items()} == {
                n: (np.dtype(s.dtype.as_numpy_dtype), tuple(s.shape)) for n, s in theirs.items()
            }
    finally:
        seqio.TaskRegistry.remove(name)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(directory, shards):
    whole = _take(_open(directory), 12)
    parts = [_take(_open(directory, shard, shards), 12) for shard in range(shards)]
    for batch, *own in zip(whole, *parts, strict=True):
        del batch[provenance.FEATURE]
        joined = {name: np.concatenate([part[name] for part in own]) for name in batch}
        _assert_equal(batch, joined)


def test_workers_change_nothing(directory):
    whole = _take(_open(directory), 7)
    for workers in (1, 2):
        iterator = _open(directory, cfg=_config(num_workers=workers))
        for batch, other in zip(whole, _take(iterator, 7), strict=True):
            _assert_equal(batch, other)


def test_stopped_at_random_on_changing_numbers_of_processes_it_reads_the_same(directory, tmp_path):
    whole = _open(directory)
    expected = _take(whole, 60)
    rng, state, done = random.Random(0), None, 0
    for life in range(11):
        shards = (1, 2, 4)[life % 3]
        steps = 60 - done if life == 10 else rng.randint(0, 8)
        iterators = [_open(directory, shard, shards) for shard in range(shards)]
        if state is not None:
            for iterator in iterators:
                iterator.set_state(json.loads(json.dumps(state)))
        for _ in range(steps):
            own = [next(iterator) for iterator in iterators]
            for name in own[0].keys() - {provenance.FEATURE}:
                np.testing.assert_array_equal(
                    np.concatenate([part[name] for part in own]), expected[done][name]
                )
            done += 1
        states = [iterator.get_state() for iterator in iterators]
        assert all(s == states[0] for s in states)
        state = states[-1]
        for iterator in iterators:
            iterator.close()
    assert done == 60
    assert state == whole.get_state()


def test_a_position_is_saved_and_found_again(directory, tmp_path):
    iterator = _open(directory)
    for _ in range(5):
        next(iterator)
    iterator.save(tmp_path / "position")
    expected = next(iterator)
    other = _open(directory)
    first = next(other)
    other.restore(tmp_path / "position")
    _assert_equal(next(other), expected)
    other.reset()
    _assert_equal(next(other), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "DatasetConfig.seed was 0 and is 1"),
        ({"pack": False}, "DatasetConfig.pack was True and is False"),
        ({"batch_size": 4}, "BATCH_SIZE was 8 and is 4"),
        ({"task_feature_lengths": {"inputs": 40, "targets": 12}}, "TASK_FEATURE_LENGTHS was "),
    ],
)
def test_a_position_in_other_data_is_named(directory, change, message):
    before = _open(directory).fingerprint
    now = _open(directory, cfg=dataclasses.replace(_config(), **change)).fingerprint
    changes = fingerprints.describe_changes(before, now)
    assert len(changes) == 1
    assert changes[0].startswith(message)
    # Any number of processes reads the same.
    assert fingerprints.describe_changes(before, _open(directory, 1, 2).fingerprint) == []


def test_a_position_does_not_fit_other_templates(directory, tmp_path):
    manifest = store.read_manifest(directory)
    entries = [
        dataclasses.replace(e, template_hash="1") if e.task == "pears" else e
        for e in manifest.entries
    ]
    store.write_manifest(tmp_path, dataclasses.replace(manifest, entries=tuple(entries)))
    before, now = (_open(path).fingerprint for path in (directory, tmp_path))
    assert fingerprints.describe_changes(before, now) == [
        "the template of pears changed (0 then, 1 now)"
    ]


def test_everything_is_counted(directory):
    iterator = _open(directory)
    batches = _take(iterator, 20)
    counts = iterator.count()
    tokens = {
        side: sum(np.count_nonzero(batch[f"{side}_segment_ids"]) for batch in batches)
        for side in ("encoder", "decoder")
    }
    assert counts["data/encoder_padding"] == pytest.approx(1 - tokens["encoder"] / (160 * 48))
    assert counts["data/decoder_padding"] == pytest.approx(1 - tokens["decoder"] / (160 * 12))
    numbers = np.concatenate([batch[provenance.FEATURE].ravel() for batch in batches])
    seen = np.bincount(numbers, minlength=4)[1:]
    assert counts["data/examples"] == seen.sum()
    for task, count in zip(iterator.task_names, seen, strict=True):
        assert counts[f"data/examples/{task}"] == count
        assert counts[f"data/epochs/{task}"] == count / len(TASKS[task])
    long = sum(counts[f"data/truncated/{task}"] for task in TASKS)
    assert counts["data/truncated"] == long > 0
    rows = iterator._source.make_plan().read(prepared.Position(), 8)
    examples = [
        TASKS[iterator.task_names[entry]][place]
        for (plan, _), _ in zip(rows, range(20), strict=False)
        for entry, place in zip(plan.entries, plan.places, strict=True)
    ]
    assert long == sum(len(a) > 48 or len(b) > 12 for a, b in examples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture_or_task_name": "vegetables"}, "holds fruit, but MIXTURE_OR_TASK_NAME = 'veg"),
        ({"split": "test"}, r"no examples of split 'test', only of \['train'\]"),
        ({"batch_size": 7}, "batch_size = 7 is not divisible by the 2"),
    ],
)
def test_what_does_not_fit_the_store_is_named(directory, change, message):
    with pytest.raises(ValueError, match=message):
        _open(directory, 0, 2, cfg=dataclasses.replace(_config(), **change))


def test_other_models_and_epochs_are_refused(directory):
    with pytest.raises(ValueError, match="not for the features of LMFeatureConverter"):
        prepared.get_dataset(_config(), 0, 1, seqio.LMFeatureConverter, directory=directory)
    with pytest.raises(ValueError, match="num_epochs must be None"):
        prepared.get_dataset(_config(), 0, 1, CONVERTER, 1, directory=directory)
    with pytest.raises(store.StoreError, match=r"manifest.json does not exist"):
        _open(directory / "apples")


def test_a_torn_file_ends_reading_by_its_name(tmp_path, write_store):
    write_store(tmp_path, TASKS, shards=1)
    path = tmp_path / "plums" / store.name_shard("train", 0, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(store.StoreError, match=r"plums.*torn"):
        _take(_open(tmp_path), 20)


def test_the_vocabulary_of_the_store_is_the_models(directory, tmp_path, write_store):
    vocabulary = seqio.ByteVocabulary()
    feature = store.Feature(
        vocabulary=vocabularies.hash_vocabulary(vocabulary),
        vocabulary_size=vocabulary.vocab_size,
        add_eos=True,
    )
    manifest = dataclasses.replace(
        write_store(tmp_path, TASKS), features=dict.fromkeys(store.FEATURES, feature)
    )
    store.write_manifest(tmp_path, manifest)
    network = SimpleNamespace(config=SimpleNamespace(vocab_size=384))
    model = SimpleNamespace(
        input_vocabulary=vocabulary, output_vocabulary=vocabulary, module=network
    )
    prepared.verify_matching_vocabs(_config(), model, directory=tmp_path)
    with pytest.raises(
        ValueError, match=r"vocabulary of inputs in PREPARED_DIR = .* not the model"
    ):
        prepared.verify_matching_vocabs(_config(), model, directory=directory)
    network.config.vocab_size = 128
    with pytest.raises(ValueError, match=r"vocab_size = 128 is smaller .* 259 pieces; use 384"):
        prepared.verify_matching_vocabs(_config(), model, directory=tmp_path)
