from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from t5x import partitioning
from t5x.trainer import memory


class _State(SimpleNamespace):
    def state_dict(self):
        return {"target": self.params, "state": {"step": self.step, "m": None}}


def _initializer(width):
    shape = _State(
        params={"kernel": jax.ShapeDtypeStruct((width, 16), jnp.float32)},
        step=jax.ShapeDtypeStruct((), jnp.int32),
    )
    axes = _State(params={"kernel": PartitionSpec("data", None)}, step=None)
    return SimpleNamespace(global_train_state_shape=shape, train_state_axes=axes)


def test_bytes_are_those_of_one_device():
    partitioner = partitioning.PjitPartitioner(num_partitions=2)
    init = _initializer(80)
    state = (init.global_train_state_shape.state_dict(), init.train_state_axes.state_dict())
    # 80 rows over 4 data shards, 16 columns of 4 bytes; and the step.
    assert memory.bytes_per_device(*state, partitioner) == 20 * 16 * 4 + 4


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "limit_per_device", lambda device: 3 * 2**30)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    memory.check(_initializer(2**20), partitioner)
    with pytest.raises(ValueError, match=r"need 4\.0 GiB on each of 8 devices .* has 3\.0 GiB"):
        memory.check(_initializer(2**28), partitioner)


def test_cpu_devices_share_the_memory_of_the_machine():
    limit = memory.limit_per_device(jax.devices()[0])
    assert 2**26 < limit < 2**44
