import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec

from t5x import partitioning


def test_mesh_covers_the_devices_that_are_present():
    assert len(jax.devices()) == 8
    mesh = partitioning.PjitPartitioner(num_partitions=2).mesh
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_submesh_is_a_tile_of_the_device_grid():
    mesh = partitioning.PjitPartitioner(model_parallel_submesh=(1, 4, 1, 1)).mesh
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert [d.id for d in mesh.devices[0]] == [0, 1, 2, 3]


def test_multi_slice_mesh_splits_the_batch_over_slices_too():
    partitioner = partitioning.PjitPartitioner(ici_mesh_shape=(1, 4, 2), dcn_mesh_shape=(1, 1, 1))
    assert dict(partitioner.mesh.shape) == {"replica": 1, "data": 4, "model": 2}
    assert partitioner.data_partition_spec == PartitionSpec(("replica", "data"))
    assert partitioner.data_mesh_size == 4


def test_fsdp_rules_spread_rows_and_parameters_over_everything():
    rules = partitioning.fsdp_logical_axis_rules()
    partitioner = partitioning.PjitPartitioner(4, logical_axis_rules=rules)
    assert partitioner.data_mesh_size == 8
    assert partitioner.data_partition_spec == PartitionSpec(("data", "model"))
    for axes, spec in (
        (("embed", "layers", "mlp"), (("data", "model"), None, None)),
        (("joined_kv", "embed"), (None, ("data", "model"))),
        (("batch", "length", "mlp"), (("data", "model"), None, None)),
    ):
        found = flax_partitioning.logical_to_mesh_axes(axes, partitioner.logical_axis_rules)
        assert found == PartitionSpec(*spec)
    slices = partitioning.PjitPartitioner(
        ici_mesh_shape=(1, 2, 4), dcn_mesh_shape=(1, 1, 1), logical_axis_rules=rules
    )
    assert slices.data_partition_spec == PartitionSpec(("replica", "data", "model"))


def test_mesh_of_devices_that_are_given():
    partitioner = partitioning.PjitPartitioner(2)
    partitioner.devices = jax.devices()[4:]
    assert dict(partitioner.mesh.shape) == {"data": 2, "model": 2}
    assert {device.id for device in partitioner.mesh.devices.flat} == {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_partitions": 3}, r"num_partitions = 3 does not divide the 8 devices"),
        ({"model_parallel_submesh": (1, 3, 1, 1)}, r"submesh = \(1, 3, 1, 1\) does not divide"),
    ],
)
def test_mesh_that_does_not_fit_says_so(settings, message):
    with pytest.raises(ValueError, match=message):
        _ = partitioning.PjitPartitioner(**settings).mesh


def test_partitions_or_submesh_and_the_submesh_wins(caplog):
    with pytest.raises(ValueError, match="bind num_partitions or model_parallel_submesh"):
        partitioning.PjitPartitioner()
    both = partitioning.PjitPartitioner(num_partitions=1, model_parallel_submesh=(1, 2, 1, 1))
    assert both.mesh.shape == {"data": 4, "model": 2}
    assert "num_partitions = 1 is accepted without effect: model_parallel_submesh" in caplog.text


# What T5X (commit cc342d41) maps these axes to, for (activation, parameter) dimensions.
@pytest.mark.parametrize(
    ("dims", "axes", "expected"),
    [
        ((1, 1), ("embed", "mlp"), PartitionSpec(None, "model")),
        ((2, 1), ("embed", "kv"), PartitionSpec("model", None)),
        ((1, 2), ("embed", "joined_kv"), PartitionSpec("data", "model")),
        ((2, 2), ("batch", "length", "embed"), PartitionSpec("data", None, "model")),
        ((2, 2), ("vocab", "embed"), PartitionSpec("model", "data")),
        ((1, 1), ("layers", "heads", "relpos_buckets"), PartitionSpec(None, "model", None)),
    ],
)
def test_standard_rules(dims, axes, expected):
    rules = partitioning.standard_logical_axis_rules(*dims)
    assert flax_partitioning.logical_to_mesh_axes(axes, rules) == expected


def test_rules_refuse_other_dimensions():
    with pytest.raises(ValueError, match="must be 1 or 2"):
        partitioning.standard_logical_axis_rules(3, 1)


def test_batch_must_divide_over_the_mesh():
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    assert partitioner.get_data_layout(16) == partitioning.DataLayout(16, 0, 1, True)
    with pytest.raises(ValueError, match="BATCH_SIZE = 12 is not divisible by the 8"):
        partitioner.get_data_layout(12)


def test_partition_shards_inputs_and_outputs():
    partitioner = partitioning.PjitPartitioner(num_partitions=2)
    double = partitioner.partition(
        lambda x: (2 * x, x.sum()),
        in_axis_resources=(PartitionSpec("data"),),
        out_axis_resources=(PartitionSpec("data"), None),
    )
    doubled, total = double(jnp.arange(8.0))
    assert doubled.sharding.spec == PartitionSpec("data")
    assert total.sharding.is_fully_replicated
    np.testing.assert_array_equal(doubled, 2 * np.arange(8.0))
    compiled = partitioner.compile(double, jnp.arange(8.0))
    np.testing.assert_array_equal(compiled(jnp.arange(8.0))[1], 28.0)
