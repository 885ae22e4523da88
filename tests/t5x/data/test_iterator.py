"""Iterators of global batches: what is left of one that is closed."""

import time

import numpy as np
import tensorflow as tf

from t5x import partitioning
from t5x.data.iterator import prepare_train_iter


def test_a_closed_iterator_calls_python_no_more():
    calls = [0]

    def call(row):
        calls[0] += 1
        return row

    rows = tf.data.Dataset.range(10**9).map(lambda i: tf.numpy_function(call, [i], tf.int64))
    rows = rows.map(lambda i: {"x": tf.ensure_shape(i, [])}).batch(8, drop_remainder=True)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    batches = prepare_train_iter(
        rows.prefetch(10**6), partitioner=partitioner, data_layout=partitioner.get_data_layout(8)
    )
    np.testing.assert_array_equal(next(batches)["x"], np.arange(8))
    batches.close()
    before = calls[0]
    time.sleep(0.3)
    assert before >= 8
    assert calls[0] == before
