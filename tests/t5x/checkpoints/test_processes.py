"""Checkpoints of programs that end, are killed, or are several (see checkpoint_process.py)."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from t5x import checkpoints
from t5x.checkpoints.formats import stores

PROCESSES = 2


@pytest.mark.slow
def test_two_processes_save_and_restore_their_parts(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("checkpoint_process.py")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "run", str(port), str(i), str(PROCESSES)],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    for text, _ in outputs:
        line = json.loads(text.splitlines()[-1])
        assert 0 < line["read"] < 0.75 * line["stored"]
    # Each wrote its own, and the whole is one.
    state = tmp_path / "run/checkpoint_12/state"
    assert {path.name for path in state.glob("ocdbt.process_*")} == {
        f"ocdbt.process_{i}" for i in range(PROCESSES)
    }
    contents = stores.open_checkpoint(str(tmp_path / "run/checkpoint_12"))
    assert contents.read(("target", "wi")).any(axis=0).all()
    assert contents.chunk_shape(("target", "wi")) == (8, 2048)


def test_killed_save_leaves_the_one_before(tmp_path):
    script = """
        import os, jax
        from t5x import checkpoints
        from t5x.train_state import InferenceState

        noise = jax.random.normal(jax.random.key(0), (4096, 4096))
        state = InferenceState.create({"params": {"x": noise}}).replace_step(jax.numpy.array(1))
        # Saving does not ask the partitioner anything.
        manager = checkpoints.OrbaxCheckpointManagerInterface(%r, state, partitioner=None)
        manager.save(state)
        manager.wait_until_finished()
        manager.save(state.replace_step(jax.numpy.array(2)))
        while not any(name.startswith("checkpoint_2") for name in os.listdir(%r)):
            pass
        os._exit(9)
    """
    code = textwrap.dedent(script) % (str(tmp_path), str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == 9, killed.stderr.decode()
    names = sorted(os.listdir(tmp_path))
    assert any(name.startswith("checkpoint_2.") for name in names), names
    assert checkpoints.all_steps(tmp_path) == [1]
    contents = stores.open_checkpoint(str(tmp_path / "checkpoint_1"))
    assert contents.read(("target", "x")).shape == (4096, 4096)


def test_a_program_that_just_ends_leaves_whole_checkpoints(tmp_path):
    script = """
        import jax
        from t5x import checkpoints
        from t5x.train_state import InferenceState

        state = InferenceState.create({"params": {"x": jax.numpy.ones((2048, 2048))}})
        manager = checkpoints.OrbaxCheckpointManagerInterface(%r, state, partitioner=None)
        manager.save(state)
        manager.save(state.replace_step(jax.numpy.array(1)))
    """
    code = textwrap.dedent(script) % str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert checkpoints.all_steps(tmp_path) == [0, 1]
