"""One of the processes of test_checkpoint_processes.py: DIRECTORY PORT INDEX COUNT.

Trains a small state sharded over all processes, saves while it goes on, restores what it saved and
prints a JSON line: what TensorStore read from disk for that, of how much.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

directory, port, index, count = sys.argv[1], *map(int, sys.argv[2:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", count, index)

from flax.traverse_util import unflatten_dict  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from test_manager import Partitioner, flat, make_iterator, make_state, manager  # noqa: E402

from t5x import checkpoints, partitioning  # noqa: E402

STEPS = 4


def bytes_read():
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


partitioner = Partitioner(devices=4, data_shards=count)
partitioner.get_data_layout = lambda: partitioning.DataLayout(8, index, count, True)
shapes = jax.eval_shape(lambda: make_state(mlp=8192))
axes = flat(partitioner.get_mesh_axes(shapes))
host = make_state(mlp=8192)
placed = {
    path: jax.make_array_from_callback(
        x.shape,
        NamedSharding(partitioner.mesh, axes[path] or PartitionSpec()),
        lambda index, x=x: np.asarray(x)[index],
    )
    for path, x in flat(host).items()
}
state = host.restore_state(unflatten_dict(placed, sep="/"))


@jax.jit
def step(state):
    # A sum over all processes in each step: saving must not come between.
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step), (8, 8192))
    return state.apply_gradient(
        {"norm": {"scale": jnp.sum(noise, 1)}, "wi": noise + jnp.mean(state.params["wi"])}, 0.1
    )


iterator = make_iterator()
writer = manager(directory, shapes, partitioner=partitioner, dataset_iterator=iterator, keep=2)
for _ in range(STEPS):
    for _ in range(3):
        state = step(state)
    next(iterator)
    writer.save(state)
writer.close()
multihost_utils.sync_global_devices("saved")
assert checkpoints.all_steps(directory) == [9, 12], checkpoints.all_steps(directory)
before = bytes_read()
restored = writer.restore()
read = bytes_read() - before
for path, x in flat(state).items():
    found = flat(restored)[path].addressable_shards
    for mine, theirs in zip(x.addressable_shards, found, strict=True):
        np.testing.assert_array_equal(mine.data, theirs.data, err_msg=path)
assert int(next(iterator)["x"]) == STEPS
stored = sum(x.nbytes for x in flat(restored).values())
print(json.dumps({"read": read, "stored": stored}), flush=True)
