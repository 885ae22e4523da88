"""tf.data steps whose function is traced once and shared by the datasets of many tasks.

`Dataset.map` traces its function anew for every dataset, tens of milliseconds each; a mixture of
300 tasks with five steps each spends a minute on that before its first batch. Here a function is
traced once for each structure of elements, and every dataset gets an op that calls it, with what
differs between datasets as arguments.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

_traced: dict[Hashable, tuple[Any, Any]] = {}


def map_shared(
    dataset: tf.data.Dataset,
    function: Callable[..., Any],
    key: Hashable,
    arguments: Sequence[tf.Tensor] = (),
) -> tf.data.Dataset:
    """`dataset.map(lambda element: function(element, *arguments))`, one element after the other.

    Args:
      dataset: its elements may be any structure of tensors.
      function: stateless; called once for all datasets with the same key and element structure.
      key: tells functions apart that are not the same; whatever the function closes over.
      arguments: tensors of one shape and dtype for all datasets of the key.
    """
    concrete, made = _trace(dataset, function, key, arguments)
    flat = tf.nest.flatten(made)
    variant = tf.raw_ops.MapDataset(
        **_call(dataset, concrete, arguments),
        f=concrete,
        output_types=[spec.dtype for spec in flat],
        output_shapes=[spec.shape for spec in flat],
        preserve_cardinality=True,
    )
    return tf.data.experimental.from_variant(variant, made)


def filter_shared(
    dataset: tf.data.Dataset, predicate: Callable[[Any], tf.Tensor], key: Hashable
) -> tf.data.Dataset:
    """`dataset.filter(predicate)`; see `map_shared`."""
    concrete, _ = _trace(dataset, predicate, key, ())
    flat = tf.nest.flatten(dataset.element_spec)
    variant = tf.raw_ops.FilterDataset(
        **_call(dataset, concrete, ()),
        predicate=concrete,
        output_types=[spec.dtype for spec in flat],
        output_shapes=[spec.shape for spec in flat],
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)


def _call(dataset: tf.data.Dataset, concrete: Any, arguments: Sequence[tf.Tensor]) -> dict:
    return {
        "input_dataset": tf.data.experimental.to_variant(dataset),
        "other_arguments": [*map(tf.convert_to_tensor, arguments), *concrete.captured_inputs],
    }


def _trace(
    dataset: tf.data.Dataset,
    function: Callable[..., Any],
    key: Hashable,
    arguments: Sequence[tf.Tensor],
) -> tuple[Any, Any]:
    """The traced function over flat tensors, and the structure of what it returns."""
    spec = dataset.element_spec
    flat = tf.nest.flatten(spec)
    described = (key, repr(spec))
    if described not in _traced:
        given = [_spec(tf.convert_to_tensor(value)) for value in arguments]
        structure = []

        def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
            element = tf.nest.pack_sequence_as(spec, tensors[: len(flat)])
            made = function(element, *tensors[len(flat) :])
            structure.append(tf.nest.map_structure(_spec, made))
            return tf.nest.flatten(made)

        with tf.init_scope():
            concrete = tf.function(call, input_signature=[*flat, *given], autograph=False)
            _traced[described] = concrete.get_concrete_function(), structure[-1]
    return _traced[described]


def _spec(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tensor.dtype)
