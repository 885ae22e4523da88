"""What counts as damage of a checkpoint, and what does not: the real causes, not stand-ins."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import gin
import numpy as np
import pytest
import tensorflow as tf
import tensorstore as ts

from t5x import checkpoints, utils
from t5x.checkpoints import fingerprints, reading
from t5x.checkpoints.directories import all_steps, latest_step
from t5x.checkpoints.formats import stores
from t5x.checkpoints.formats.failures import RemovedCheckpointError, UnreadableCheckpointError
from t5x.checkpoints.formats.orbax import CheckpointWriter
from t5x.checkpoints.formats.storage import Directory
from t5x.checkpoints.restoring import find_checkpoints, get_first_valid_restore_config_and_paths
from t5x.checkpoints.retention import KeepBest, populate_metrics_for_steps

NOBODY = 65534


def write(directory, step=8, size=64, values=None):
    """A checkpoint of one parameter and the step."""
    path = directory / f"checkpoint_{step}"
    writer = CheckpointWriter(str(path))
    if values is None:
        values = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
    for name, array in ((("target", "w"), values), (("state", "step"), np.int32(step))):
        writer.create(name, array.shape, array.dtype)
        writer.write(name, np.asarray(array))
    writer.close()
    return path


def write_as_files(path):
    """The same in directories of zarr chunks, without a database."""
    state = path / "state"
    for name, values in (("target.w", np.ones((4, 4), np.float32)), ("state.step", np.int32(8))):
        spec = {
            "driver": "zarr",
            "dtype": str(values.dtype),
            "kvstore": f"file://{state}/{name}/",
            "metadata": {"shape": list(values.shape), "chunks": [2] * values.ndim},
        }
        ts.open(spec, create=True).result().write(values).result()
    leaf = {"key_metadata": [], "value_metadata": {"skip_deserialize": False}}
    tree = {"('target', 'w')": leaf, "('state', 'step')": leaf}
    (state / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_ocdbt": False}))
    return path


@pytest.mark.parametrize("form", ["database", "files"])
@pytest.mark.parametrize("remove", [shutil.rmtree, checkpoints.directories.remove_checkpoint])
def test_a_checkpoint_removed_while_it_is_read_is_named(tmp_path, form, remove):
    make = write if form == "database" else lambda path: write_as_files(path / "checkpoint_8")
    path = make(tmp_path)
    contents = stores.open_checkpoint(str(path))
    assert contents.read(("target", "w")).any()
    remove(path)
    for name in contents.arrays:
        with pytest.raises(RemovedCheckpointError, match=f"{path} was removed while it was read"):
            contents.read(name)
    with pytest.raises(FileNotFoundError):
        stores.open_checkpoint(str(path))


def test_a_database_without_its_manifest_is_damaged(tmp_path):
    path = write(tmp_path)
    contents = stores.open_checkpoint(str(path))
    (path / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(UnreadableCheckpointError, match=r"manifest\.ocdbt is missing"):
        contents.read(("target", "w"))


def _cut(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _spoil(path):
    path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))


@pytest.mark.parametrize("harm", [_cut, _spoil, os.unlink])
@pytest.mark.parametrize("victim", ["state/manifest.ocdbt", "state/_METADATA", "state/d/*"])
def test_damage_of_its_own_files_is_proven(tmp_path, harm, victim):
    if harm is os.unlink and victim == "state/_METADATA":
        return  # then it is no checkpoint
    path = write(tmp_path, size=4096)
    for file in path.glob(victim):
        harm(file)
    with (
        pytest.raises(UnreadableCheckpointError, match=f"checkpoint {path} cannot be read"),
        reading.name_checkpoint_in_errors(str(path)),
    ):
        contents = stores.open_checkpoint(str(path))
        for name in contents.arrays:
            contents.read(name)


READ = """
    import os, sys
    from t5x.checkpoints import reading
    from t5x.checkpoints.formats import stores
    from t5x.checkpoints.directories import all_steps
    {before}
    try:
        {what}
    except Exception as error:
        print(type(error).__name__, error)
"""
OPEN = "reading.open_arrays(sys.argv[1])"


def _as_nobody(path, what=OPEN):
    """What a user with no rights of their own gets."""
    code = textwrap.dedent(READ).format(before=f"os.setuid({NOBODY})", what=what)
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("victim", ["state/manifest.ocdbt", "state/_METADATA", "state", "."])
def test_what_may_not_be_read_is_not_damaged(tmp_path, victim):
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    path = write(tmp_path)
    (path / victim).chmod(0)
    said = _as_nobody(path)
    assert said.startswith(f"PermissionError checkpoint {path} may not be read"), said
    assert "see to the permissions" in said
    assert said.count("\n") == 1
    if victim != "state/manifest.ocdbt":
        # Nor is it passed over, as if there were no such step.
        assert _as_nobody(tmp_path, "print(all_steps(sys.argv[1]))").startswith("PermissionError")


def test_memory_is_no_damage(tmp_path):
    path = write(tmp_path, values=np.zeros((1 << 23, 16), np.float16))  # 256 MiB
    script = """
        import resource, sys
        import jax
        from jax.sharding import NamedSharding, PartitionSpec
        from t5x.checkpoints import reading

        path = sys.argv[1]
        contents = reading.open_arrays(path)
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        sharding = NamedSharding(mesh, PartitionSpec())
        wanted = {x: (sharding, "float32") for x in contents.arrays.values() if x.shape}
        contents.read(("state", "step"))  # starts the threads
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        # Room for the array as it is stored, not for what it is cast to.
        resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), used + (600 << 20)))
        try:
            reading._read_arrays(path, contents, wanted)
        except Exception as error:
            print(type(error).__name__, error)
    """
    code = textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(
        f"OutOfMemoryError not enough memory to restore checkpoint {path}"
    ), done.stdout + done.stderr


def test_a_step_is_a_directory_in_a_known_format_named_in_ascii_digits(tmp_path):
    write(tmp_path, 8)
    (tmp_path / "checkpoint_99").mkdir()
    (tmp_path / "checkpoint_77").write_text("a file")
    shutil.copytree(tmp_path / "checkpoint_8", tmp_path / "checkpoint_٣")
    shutil.copytree(tmp_path / "checkpoint_8", tmp_path / "checkpoint_²")
    shutil.copytree(tmp_path / "checkpoint_8", tmp_path / "checkpoint_008")
    assert all_steps(tmp_path) == [8]
    assert latest_step(tmp_path) == 8
    assert checkpoints.find_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint_8")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoints.get_step_from_checkpoint_dir(str(tmp_path / "checkpoint_٣"))


def test_every_mode_takes_a_runs_directory_a_checkpoint_and_its_state(tmp_path):
    for step in (3, 8):
        write(tmp_path, step)
    newest, all_of_them = (
        [str(tmp_path / "checkpoint_8")],
        [str(tmp_path / f"checkpoint_{step}") for step in (3, 8)],
    )
    for mode in ("specific", "latest", "all"):
        for path in (tmp_path, tmp_path / "checkpoint_8", tmp_path / "checkpoint_8" / "state"):
            cfg = utils.RestoreCheckpointConfig(path=str(path), mode=mode)
            wanted = all_of_them if mode == "all" and path == tmp_path else newest
            assert get_first_valid_restore_config_and_paths([cfg]) == (cfg, wanted)


def test_a_directory_of_tensorflow_checkpoints_is_found(tmp_path):
    tensorflow = tf.train.Checkpoint(x=tf.Variable(1.0))
    for step in (900, 1000):
        tensorflow.write(str(tmp_path / f"model.ckpt-{step}"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"')
    assert find_checkpoints(str(tmp_path)) == [
        str(tmp_path / f"model.ckpt-{step}") for step in (900, 1000)
    ]
    cfg = utils.RestoreCheckpointConfig(path=str(tmp_path), mode="latest")
    assert get_first_valid_restore_config_and_paths([cfg])[1] == [str(tmp_path / "model.ckpt-1000")]


def _write_events(directory, values):
    with tf.summary.create_file_writer(str(directory)).as_default():
        for step, value in values.items():
            tf.summary.scalar("accuracy", value, step=step)
    (file,) = directory.glob("*tfevents*")
    return file


def test_a_broken_event_file_costs_no_checkpoint(tmp_path):
    file = _write_events(tmp_path / "run", {1: 0.1, 2: 0.9, 3: 0.5})
    content = bytearray(file.read_bytes())
    content[-9] ^= 0xFF  # in the last record: step 3
    file.write_bytes(content)
    metrics = populate_metrics_for_steps(tmp_path, "run/accuracy", [1, 2, 3])
    assert metrics == pytest.approx({1: 0.1, 2: 0.9})
    policy = KeepBest(tmp_path, "run/accuracy", "max", 1, keep_without_metrics=False,
                      keep_period=None)  # fmt: skip
    assert policy.steps_to_remove([1, 2, 3, 4]) == [1]


def test_fingerprints_name_what_changed():
    before = {
        "reader": "SeqIO",
        "kind": "mixture",
        "tasks": {name: {"templates": name, "rate": 1} for name in "abcdef"},
        "vocabulary": {"inputs": "Byte of 259"},
        "settings": {"BATCH_SIZE": 8, "TASK_FEATURE_LENGTHS": {"inputs": 24}},
    }
    assert fingerprints.describe_changes(before, json.loads(json.dumps(before))) == []
    now = json.loads(json.dumps(before))
    now["settings"] |= {"BATCH_SIZE": 16, "TASK_FEATURE_LENGTHS": {"inputs": 32}}
    now["vocabulary"]["inputs"] = "SentencePiece x of 32100"
    for name in "abcde":
        del now["tasks"][name]
    now["tasks"]["g"] = {"templates": "g", "rate": 1}
    now["tasks"]["f"]["templates"] = "other"
    assert fingerprints.describe_changes(before, now) == [
        "a, b, c and 2 more tasks no longer in MIXTURE_OR_TASK_NAME",
        "g new in MIXTURE_OR_TASK_NAME",
        "the templates of f changed (f then, other now)",
        "BATCH_SIZE was 8 and is 16",
        "TASK_FEATURE_LENGTHS was {'inputs': 24} and is {'inputs': 32}",
        "the vocabulary of inputs was Byte of 259 and is SentencePiece x of 32100",
    ]
    assert fingerprints.describe_changes(before, {"reader": "prepared"}) == [
        "it was read by SeqIO and is read by prepared"
    ]


@pytest.mark.parametrize("scheme", ["http", "gs"])
def test_the_directory_of_a_server_in_trouble_is_read_in_the_end(object_server, scheme):
    url = object_server.url if scheme == "http" else object_server.bucket
    (object_server.root / "file").write_text("content")
    object_server.fail(503, times=5)
    assert Directory(url).read("file") == b"content"
    object_server.fail(403, times=1)
    with pytest.raises(PermissionError, match="403"):
        Directory(url).read("file")
    object_server.fail(400, times=1)
    with pytest.raises(OSError, match="400"):
        Directory(url).exists("file")


@pytest.mark.parametrize("scheme", ["http", "gs"])
def test_bursts_of_errors_while_arrays_are_read(object_server, scheme):
    path = write(object_server.root)
    root = object_server.url if scheme == "http" else object_server.bucket
    contents = reading.open_arrays(f"{root}/checkpoint_8")
    object_server.fail(503, times=3)
    expected = stores.open_checkpoint(str(path)).read(("target", "w"))
    np.testing.assert_array_equal(contents.read(("target", "w")), expected)
    assert object_server.failed == 3


def test_bursts_of_errors_while_arrays_are_written(object_server):
    writer = CheckpointWriter(f"{object_server.bucket}/checkpoint_8")
    values = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    writer.create(("target", "w"), values.shape, values.dtype)
    object_server.fail(503, times=3)
    writer.write(("target", "w"), values)
    writer.close()
    assert object_server.failed == 3
    contents = stores.open_checkpoint(str(object_server.root / "checkpoint_8"))
    np.testing.assert_array_equal(contents.read(("target", "w")), values)


def test_the_best_are_kept_as_a_gin_file_says(tmp_path):
    text = """
        from __gin__ import dynamic_registration
        from t5x import checkpoints
        from t5x import utils

        utils.SaveCheckpointConfig:
          keep = 3
          checkpointer_cls = @checkpoints.SaveBestCheckpointer
        checkpoints.SaveBestCheckpointer:
          metric_name_to_monitor = 'inference_eval/task/rouge'
          metric_mode = 'min'
          keep_checkpoints_without_metrics = False
          force_keep_period = 7
        KEPT = @utils.SaveCheckpointConfig()
    """
    with gin.unlock_config():
        gin.clear_config()
        gin.parse_config(textwrap.dedent(text))
        save = gin.query_parameter("KEPT/macro.value").scoped_configurable_fn()
    try:
        from t5x.checkpoints.restoring import _keep_best_settings

        assert _keep_best_settings(save, None, None) == {
            "metric_name_to_monitor": "inference_eval/task/rouge",
            "metric_mode": "min",
            "keep_checkpoints_without_metrics": False,
            "force_keep_period": 7,
        }
    finally:
        with gin.unlock_config():
            gin.clear_config()
