"""Fingerprints change with what they stand for, and with nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t0x.evaluation import fingerprints


def _params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.standard_normal((16, 6)), jnp.float32)},
        "b": jnp.asarray(rng.standard_normal(8), jnp.bfloat16),
    }


def test_sharding_does_not_matter():
    params = _params()
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("x")))
    assert fingerprints.of_parameters(sharded) == fingerprints.of_parameters(params)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["a"].update(kernel=p["a"]["kernel"].at[3, 2].add(1e-6)),
        lambda p: p["a"].update(kernel=p["a"]["kernel"][::-1]),
        lambda p: p["a"].update(kernel=p["a"]["kernel"][:, [1, 0, 2, 3, 4, 5]]),
        lambda p: p["a"].update(kernel=p["a"]["kernel"].reshape(6, 16)),
        lambda p: p.update(b=p["b"].astype(jnp.float32)),
        lambda p: p.update(c=p.pop("b")),
    ],
)
def test_any_change_shows(change):
    params = _params()
    before = fingerprints.of_parameters(params)
    change(params)
    assert fingerprints.of_parameters(params) != before


def test_where_parts_end_matters():
    assert fingerprints.of_parts([b"ab", b"c"]) != fingerprints.of_parts([b"a", b"bc"])
