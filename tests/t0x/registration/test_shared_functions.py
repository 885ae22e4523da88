"""Traced functions shared by datasets."""

import tensorflow as tf

from t0x.registration.shared_functions import filter_shared, map_shared


def test_one_trace_serves_datasets_with_their_own_arguments():
    traces = []

    def scale(element, factor):
        traces.append(element)
        return {"scaled": element["n"] * factor, "kept": element["n"]}

    def scaled(count, factor):
        dataset = tf.data.Dataset.range(count).map(lambda n: {"n": n})
        dataset = map_shared(dataset, scale, "scale", [tf.constant(factor, tf.int64)])
        return [(int(e["kept"]), int(e["scaled"])) for e in dataset]

    assert scaled(3, 2) == [(0, 0), (1, 2), (2, 4)]
    assert scaled(2, 5) == [(0, 0), (1, 5)]
    assert len(traces) == 1


def test_other_keys_and_structures_are_other_traces():
    numbers, texts = tf.data.Dataset.range(2), tf.data.Dataset.from_tensor_slices(["a", "b"])

    def twice(element):
        return element + element

    assert [int(n) for n in map_shared(numbers, twice, "twice")] == [0, 2]
    assert [t.numpy() for t in map_shared(texts, twice, "twice")] == [b"aa", b"bb"]
    assert [int(n) for n in map_shared(numbers, lambda n: n - 1, "less")] == [-1, 0]


def test_filtering_and_what_a_dataset_says_of_itself():
    numbers = tf.data.Dataset.range(10)
    even = filter_shared(numbers, lambda n: n % 2 == 0, "even")
    assert [int(n) for n in even] == [0, 2, 4, 6, 8]
    assert even.element_spec == numbers.element_spec
    made = map_shared(numbers, lambda n: {"n": tf.cast(n, tf.int32)}, "cast")
    assert made.element_spec == {"n": tf.TensorSpec([], tf.int32)}
    assert int(made.cardinality()) == 10


def test_the_position_is_saved(tmp_path):
    def iterator():
        return iter(map_shared(tf.data.Dataset.range(9), lambda n: n * 3, "thrice"))

    running = iterator()
    assert [int(next(running)) for _ in range(4)] == [0, 3, 6, 9]
    saved = tf.train.Checkpoint(rows=running).save(str(tmp_path / "rows"))
    restored = iterator()
    tf.train.Checkpoint(rows=restored).restore(saved)
    assert int(next(restored)) == 12
