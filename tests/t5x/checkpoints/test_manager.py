"""Checkpoints: what is saved comes back, wherever the run was stopped."""

import dataclasses
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from clu.data import dataset_iterator
from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x import adafactor, checkpoints, optimizers, state_utils
from t5x.checkpoints import queue as checkpoint_queue
from t5x.checkpoints.fingerprints import ChangedDataError, ChangedRunError
from t5x.checkpoints.retention import KeepBest
from t5x.train_state import FlaxOptimTrainState, InferenceState


@dataclasses.dataclass
class Partitioner:
    """Shards 'mlp' over four devices, in the way of t5x.partitioning.PjitPartitioner."""

    devices: int = 8
    data_shards: int = 1

    @property
    def mesh(self):
        devices = np.array(jax.devices()[: self.devices])
        return Mesh(devices.reshape(-1, min(4, self.devices)), ("data", "model"))

    def get_mesh_axes(self, train_state):
        logical = train_state.as_logical_axes()
        rules = (("mlp", "model"), ("embed", "data"), ("layers", None))
        axes = jax.tree.map(
            lambda names: flax_partitioning.logical_to_mesh_axes(names, rules),
            logical.state_dict(),
            is_leaf=lambda x: isinstance(x, P),
        )
        return logical.restore_state(axes)

    def get_data_layout(self):
        @dataclasses.dataclass
        class Layout:
            shard_id: int = 0
            num_shards: int = self.data_shards

        return Layout()


def make_state(optimizer_def=None, *, mlp=16, seed=0, layers=None, dtype=jnp.float32):
    """A small train state at step 0; `layers`: None, 'scanned' or 'unrolled'."""
    rng = np.random.default_rng(seed)
    params, axes = {"norm": {"scale": jnp.ones(8, dtype)}}, {"norm": {"scale_axes": ("embed",)}}
    kernels = jnp.asarray(rng.normal(size=(8, 2, mlp)), dtype)
    if layers == "scanned":
        params["encoder"] = {"encoder": {"wi": kernels}}
        axes["encoder"] = {"encoder": {"wi_axes": ("embed", "layers", "mlp")}}
    elif layers == "unrolled":
        params["encoder"] = {f"layers_{i}": {"wi": kernels[:, i]} for i in range(2)}
        axes["encoder"] = {f"layers_{i}": {"wi_axes": ("embed", "mlp")} for i in range(2)}
    else:
        params["wi"], axes["wi_axes"] = kernels[:, 0], ("embed", "mlp")
    is_names = lambda x: isinstance(x, tuple)  # noqa: E731
    axes = jax.tree.map(flax_partitioning.AxisMetadata, axes, is_leaf=is_names)
    if optimizer_def == "none":
        return InferenceState.create({"params": params, "params_axes": axes})
    optimizer_def = optimizer_def or adafactor.Adafactor(
        0.1,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        min_dim_size_to_factor=8,
    )
    return FlaxOptimTrainState.create(optimizer_def, {"params": params, "params_axes": axes})


def trained(state, steps=1):
    for _ in range(steps):
        state = state.apply_gradient(jax.tree.map(jnp.cos, state.params), 0.1)
    return state


def manager(directory, state, **options):
    options = {"partitioner": Partitioner(), **options}
    return checkpoints.OrbaxCheckpointManagerInterface(str(directory), state, **options)


def save(directory, *states, **options):
    writer = manager(directory, states[0], **options)
    for state in states:
        assert writer.save(state)
    writer.close()


def flat(state):
    return flatten_dict(state.state_dict(), sep="/")


def assert_same(state, expected):
    assert flat(state).keys() == flat(expected).keys()
    for path, x in flat(expected).items():
        np.testing.assert_array_equal(flat(state)[path], x, err_msg=path)
        assert flat(state)[path].dtype == x.dtype, path


OPTIMIZERS = {
    "adafactor": lambda: None,
    "adamw": lambda: optimizers.adamw(0.1),
    "no optimizer": lambda: "none",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_round_trip_into_shardings(tmp_path, name):
    state = make_state(OPTIMIZERS[name]())
    state = state.replace_step(jnp.array(7)) if name == "no optimizer" else trained(state, 7)
    save(tmp_path, state)
    shapes = jax.eval_shape(lambda: make_state(OPTIMIZERS[name](), seed=1))
    restored = manager(tmp_path, shapes).restore()
    assert_same(restored, state)
    assert restored.params["wi"].sharding == NamedSharding(Partitioner().mesh, P("data", "model"))
    assert restored.step.sharding.is_fully_replicated
    if name == "adafactor":
        assert restored.param_states["wi"].v_col.sharding.spec == P("model")


def test_layout_on_disk_is_that_of_t5x(tmp_path):
    save(tmp_path, trained(make_state()), dataset_iterator=make_iterator())
    checkpoint = tmp_path / "checkpoint_1"
    assert {p.name for p in checkpoint.iterdir()} >= {"state", "dataset"}
    assert (checkpoint / "state" / "manifest.ocdbt").is_file()
    assert (checkpoint / "dataset" / "train_ds-000-of-001.index").is_file()


def test_another_mesh(tmp_path):
    state = trained(make_state())
    save(tmp_path, state)
    restored = manager(tmp_path, state, partitioner=Partitioner(devices=2)).restore()
    assert_same(restored, state)
    assert len(restored.params["wi"].sharding.device_set) == 2


def test_inference_from_a_training_checkpoint(tmp_path):
    state = trained(make_state())
    save(tmp_path, state)
    restored = manager(tmp_path, make_state("none")).restore(step=1)
    np.testing.assert_array_equal(restored.params["wi"], state.params["wi"])
    assert restored.step == 1


def test_save_and_restore_dtypes_touch_parameters_only(tmp_path):
    state = trained(make_state())
    save(tmp_path, state, save_dtype="bfloat16")
    as_saved = manager(tmp_path, state).restore()
    assert as_saved.params["wi"].dtype == jnp.bfloat16
    restored = manager(tmp_path, state, restore_dtype="float32").restore()
    np.testing.assert_array_equal(restored.params["wi"], state.params["wi"].astype(jnp.bfloat16))
    assert restored.params["wi"].dtype == jnp.float32
    np.testing.assert_array_equal(restored.param_states["wi"].v_row, state.param_states["wi"].v_row)
    assert restored.step.dtype == jnp.int32


def test_keep_the_latest(tmp_path):
    states = [trained(make_state(), steps) for steps in (1, 2, 3, 4)]
    save(tmp_path, *states, keep=2)
    assert checkpoints.all_steps(tmp_path) == [3, 4]
    assert checkpoints.latest_step(tmp_path) == 4
    save(tmp_path / "period", *states, keep=1, force_keep_period=2)
    assert checkpoints.all_steps(tmp_path / "period") == [2, 4]


def test_when_a_checkpoint_is_due(tmp_path):
    writer = manager(tmp_path, make_state(), period=10, checkpoint_steps=[3])
    assert [step for step in range(1, 31) if writer.should_save(step)] == [3, 10, 20, 30]
    assert not writer.save(trained(make_state(), 2), force=False)
    assert writer.save(trained(make_state(), 3), force=False)
    assert not writer.save(trained(make_state(), 3))
    writer.close()
    assert checkpoints.all_steps(tmp_path) == [3]


def make_iterator(seed=None):
    dataset = tf.data.Dataset.range(100).map(lambda i: {"x": i})
    if seed is not None:
        dataset = dataset.shuffle(50, seed=seed)
    return dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)


def test_dataset_goes_on_where_it_was(tmp_path):
    iterator = make_iterator(seed=3)
    for _ in range(5):
        next(iterator)
    save(tmp_path, trained(make_state()), dataset_iterator=iterator)
    expected = [int(next(iterator)["x"]) for _ in range(5)]

    resumed = make_iterator(seed=3)
    reader = manager(tmp_path, make_state(), dataset_iterator=resumed)
    reader.restore()
    assert [int(next(resumed)["x"]) for _ in range(5)] == expected

    # Another run starting from this checkpoint reads its own data from the beginning.
    fresh = make_iterator()
    other = manager(tmp_path / "other", make_state(), dataset_iterator=fresh)
    other.restore(path=str(tmp_path / "checkpoint_1"))
    assert int(next(fresh)["x"]) == 0
    with pytest.raises(ChangedDataError, match="another number of data shards"):
        manager(
            tmp_path,
            make_state(),
            dataset_iterator=make_iterator(),
            partitioner=Partitioner(data_shards=2),
        ).restore()


def test_keep_fewer_dataset_positions_than_checkpoints(tmp_path):
    states = [trained(make_state(), steps) for steps in (1, 2, 3)]
    save(tmp_path, *states, dataset_iterator=make_iterator(), keep_dataset_checkpoints=2)
    assert checkpoints.all_steps(tmp_path) == [1, 2, 3]
    assert checkpoints.all_dataset_checkpoint_steps(tmp_path) == [2, 3]


def test_state_transformations(tmp_path):
    state = trained(make_state())

    def rename(state_dict, infos):
        assert infos["target"]["wi"].name == "target/wi"
        assert infos["target"]["wi"].mesh_axes == P("data", "model")
        for tree in (state_dict, infos):
            tree["target"]["old"] = tree["target"].pop("wi")
        return state_dict, infos

    writer = manager(tmp_path, state)
    writer.save(state, [rename])
    writer.close()
    back = [("target/wi", "target/old")]
    reader = manager(tmp_path, state)
    restored = reader.restore(
        state_transformation_fns=[
            lambda found, wanted: state_utils.apply_assignment_map(found, wanted, back)
        ]
    )
    assert_same(restored, state)
    with pytest.raises(
        ValueError, match=r"lacks target/wi; it has target/old instead; .*assignment"
    ):
        reader.restore()


def test_fallback_fills_in_what_is_dropped(tmp_path):
    state, scratch = trained(make_state()), make_state(seed=5)
    save(tmp_path, state)
    drop = [(r"target/wi", None), (r"state/param_states/.*", None)]
    restored = manager(tmp_path, state).restore(
        fallback_state=scratch.state_dict(),
        state_transformation_fns=[
            lambda found, wanted: state_utils.apply_assignment_map(found, wanted, drop)
        ],
    )
    np.testing.assert_array_equal(restored.params["wi"], scratch.params["wi"])
    np.testing.assert_array_equal(restored.params["norm"]["scale"], state.params["norm"]["scale"])
    np.testing.assert_array_equal(
        restored.param_states["wi"].v_row, 0 * restored.param_states["wi"].v_row
    )
    assert restored.params["wi"].sharding.spec == P("data", "model")


@pytest.mark.parametrize(("saved", "wanted"), [("scanned", "unrolled"), ("unrolled", "scanned")])
def test_scanned_and_unrolled_layers_are_converted(tmp_path, saved, wanted):
    save(tmp_path, trained(make_state(layers=saved)))
    restored = manager(tmp_path, make_state(layers=wanted, seed=1)).restore()
    expected = trained(make_state(layers=wanted))
    for path, x in flat(expected).items():
        np.testing.assert_allclose(flat(restored)[path], x, rtol=1e-5, err_msg=path)
    wi = restored.params["encoder"]
    wi = wi["encoder"]["wi"] if wanted == "scanned" else wi["layers_1"]["wi"]
    assert wi.sharding.spec == (
        P("data", None, "model") if wanted == "scanned" else P("data", "model")
    )


def one_line(error):
    return "\n" not in str(error.value)


def test_errors_name_the_checkpoint_and_the_fix(tmp_path):
    state = trained(make_state())
    with pytest.raises(FileNotFoundError, match="has no checkpoints; set Restore") as error:
        manager(tmp_path, state).restore()
    assert one_line(error)
    save(tmp_path, state)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint_5: .* has steps 1; set Restore"
    ) as error:
        manager(tmp_path, state).restore(step=5)
    assert one_line(error)
    with pytest.raises(FileNotFoundError, match="no checkpoint at") as error:
        manager(tmp_path, state).restore(path=str(tmp_path / "checkpoint_6"))
    with pytest.raises(ValueError, match="not both"):
        manager(tmp_path, state).restore(step=1, path="x")
    with pytest.raises(
        ValueError, match=r"target/wi has shape \(8, 16\) there and \(8, 12\) in the model"
    ) as error:
        manager(tmp_path, make_state(mlp=12)).restore()
    assert one_line(error)
    other = make_state(optimizers.adamw(0.1))
    with pytest.raises(ChangedRunError, match=r"the optimizer was Adafactor .*, v_row\) and is"):
        manager(tmp_path, other).restore()
    with pytest.raises(
        ValueError, match=r"lacks state/param_states/0.*fallback_to_scratch"
    ) as error:
        manager(tmp_path / "other", other).restore(path=str(tmp_path / "checkpoint_1"))
    assert one_line(error)
    with pytest.raises(ValueError, match="'max' or 'min'"):
        manager(tmp_path, state, metric_mode="best")


@pytest.mark.parametrize("victim", ["_METADATA", "manifest.ocdbt", "d"])
def test_damaged_checkpoint_is_named(tmp_path, victim):
    save(tmp_path, trained(make_state()), trained(make_state(), 2))
    path = tmp_path / "checkpoint_2" / "state" / victim
    if path.is_dir():
        shutil.rmtree(path)
        shutil.rmtree(path.parent / "ocdbt.process_0", ignore_errors=True)
    else:
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"checkpoint_2 cannot be read .* another step of 1"
    ) as error:
        manager(tmp_path, make_state()).restore()
    assert one_line(error)


def test_half_written_checkpoint_is_not_seen_and_is_cleaned_up(tmp_path):
    save(tmp_path, trained(make_state()))
    half = tmp_path / "checkpoint_2.orbax-checkpoint-tmp-17"
    shutil.copytree(tmp_path / "checkpoint_1", half)
    reader = manager(tmp_path, make_state())
    assert reader.all_steps() == [1]
    assert reader.restore().step == 1
    reader.close()
    # A job that only reads leaves alone what may be another job's write in progress.
    assert half.exists()
    save(tmp_path, trained(make_state(), 3))
    assert not half.exists()


def test_what_is_saved_is_what_was_there(tmp_path):
    """The step donates the state: its buffers are overwritten while the checkpoint is written."""
    state = jax.tree.map(lambda x: x + 0, make_state(mlp=256))
    expected = jax.tree.map(np.array, flat(trained(state)))
    step = jax.jit(lambda state: trained(state), donate_argnums=0)
    state = step(state)
    writer = manager(tmp_path, make_state(mlp=256))
    writer.save(state)
    for _ in range(3):
        state = step(state)
    writer.close()
    restored = manager(tmp_path, make_state(mlp=256, seed=1)).restore()
    for path, x in flat(restored).items():
        np.testing.assert_allclose(x, expected[path], rtol=1e-6, err_msg=path)


class HeldUp:
    """A position whose writing, on the background thread, takes until it is let go."""

    def __init__(self, manager):
        self.go = threading.Event()
        saver = manager._saver
        write = saver._write

        def wait_and_write(*args):
            self.go.wait()
            write(*args)

        saver._write = wait_and_write


def test_saving_does_not_wait_for_writing(tmp_path):
    states = [trained(make_state(), steps) for steps in range(4)]
    writer = manager(tmp_path, states[0])
    held = HeldUp(writer)
    # One is being written, one waits.
    assert writer.save(states[0])
    assert writer.save(states[1])
    assert not writer.save(states[1])
    assert checkpoints.all_steps(tmp_path) == []
    threading.Timer(0.3, held.go.set).start()
    started = time.monotonic()
    assert writer.save(states[2])
    assert time.monotonic() - started > 0.25
    queue = writer._saver.queue
    assert queue.blocked == 1
    assert queue.blocked_seconds > 0.25
    writer.close()
    assert checkpoints.all_steps(tmp_path) == [0, 1, 2]
    assert writer.save(states[3])
    writer.close()
    assert checkpoints.latest_step(tmp_path) == 3


def test_what_cannot_be_written_is_an_error_of_the_next_call(tmp_path):
    states = [trained(make_state(), steps) for steps in range(2)]
    (tmp_path / "file").touch()
    writer = manager(tmp_path / "file" / "run", states[0])
    assert writer.save(states[0])
    with pytest.raises(RuntimeError, match=r"checkpoint_0 could not be written \(NotADirectory"):
        writer.wait_until_finished()
    writer.wait_until_finished()  # said once
    assert writer.save(states[1])
    while writer._saver.queue._jobs:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"checkpoint_1 could not be written .* goes on from"):
        writer.save(trained(make_state(), 2))
    checkpoint_queue.finish_writing(timeout=10)
    writer.close()


def write_metric(directory, values):
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default():
        for step, value in values.items():
            tf.summary.scalar("accuracy", value, step=step)
    writer.close()


@pytest.mark.parametrize(("mode", "kept"), [("max", [2, 5]), ("min", [3, 5])])
def test_keep_the_best(tmp_path, mode, kept):
    write_metric(tmp_path / "eval" / "task", {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.4})
    state = make_state()
    checkpointer = checkpoints.SaveBestCheckpointer(
        state,
        Partitioner(),
        str(tmp_path),
        keep=1,
        metric_name_to_monitor="eval/task/accuracy",
        metric_mode=mode,
    )
    for steps in range(1, 6):
        checkpointer.save(trained(state, steps))
    assert checkpointer.all_steps() == kept
    checkpointer.close()


def test_keep_the_best_without_values():
    def removed(**options):
        policy = KeepBest("/nonexistent", "run/tag", "max", 2, keep_period=None, **options)
        return policy.steps_to_remove([1, 2, 3, 4, 5])

    assert removed(keep_without_metrics=True) == []
    assert removed(keep_without_metrics=False) == [1, 2]


def test_checkpointer_writes_before_it_returns(tmp_path):
    state = trained(make_state())
    checkpointer = checkpoints.Checkpointer(state, Partitioner(), str(tmp_path), make_iterator())
    assert checkpointer.save(state, concurrent_gb=1)
    assert checkpoints.find_checkpoint(tmp_path) == str(tmp_path / "checkpoint_1")
    assert checkpointer.all_dataset_checkpoint_steps() == [1]
    assert_same(checkpointer.restore(), state)
    checkpointer.close()


def test_paths_of_checkpoints():
    assert checkpoints.get_checkpoint_dir("/m", 7) == "/m/checkpoint_7"
    assert checkpoints.get_checkpoint_dir("/m", 7, 4) == "/m/checkpoint_0007"
    assert checkpoints.get_step_from_checkpoint_dir("/m/checkpoint_7/") == ("/m", 7)
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoints.get_step_from_checkpoint_dir("/m/export_7")
    assert checkpoints.latest_step("/nonexistent") is None


def test_get_local_data():
    assert checkpoints.get_local_data(3) == 3
    sharded = jax.device_put(jnp.arange(8), NamedSharding(Partitioner().mesh, P("data")))
    np.testing.assert_array_equal(checkpoints.get_local_data(sharded), np.arange(4))


def test_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state()
    save("runs/small", state)
    assert (tmp_path / "runs" / "small" / "checkpoint_0" / "state").is_dir()
    assert_same(manager("runs/small", state).restore(path="runs/small/checkpoint_0"), state)
