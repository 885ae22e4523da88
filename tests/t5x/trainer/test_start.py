"""Where a run goes on: all of its processes from one checkpoint, which each of them can read.

Real processes, one of which is lost, are in tests/e2e/test_faults.py.
"""

import dataclasses
import json
import types

import numpy as np
import pytest

from t5x import utils
from t5x.checkpoints.fingerprints import as_metadata
from t5x.checkpoints.formats.failures import UnreadableCheckpointError
from t5x.run import processes
from t5x.trainer import start

MODEL_DIR_STEPS = (8, 16, 24)


@dataclasses.dataclass
class State:
    """Stands for a train state."""

    step: int


class Iterator:
    """Stands for the training data; counts how often it was set back to its beginning."""

    resets = 0

    def reset(self):
        self.resets += 1


@pytest.fixture
def resume(monkeypatch, tmp_path):
    """Runs the search of one of two processes; `damaged[i]` are steps that process i cannot read.

    Returns what it found, which checkpoints were set aside, and the iterator.
    """
    for step in MODEL_DIR_STEPS:
        (tmp_path / f"checkpoint_{step}" / "state").mkdir(parents=True)
        (tmp_path / f"checkpoint_{step}" / "state" / "_METADATA").write_text("{}")

    def run(damaged, process=0, seen_by_process_0=None, **options):
        tried = []

        def restore(*args, **_):
            tried.append(args[3] and int(args[3].rpartition("_")[2]))
            if tried[-1] in damaged[process]:
                raise UnreadableCheckpointError(f"checkpoint {args[3]} cannot be read (cut short)")
            manager = types.SimpleNamespace(fingerprint={})
            return tried[-1] and State(tried[-1]), manager

        def gather(failed):
            assert failed == (tried[-1] in damaged[process])
            return [tried[-1] in steps for steps in damaged]

        def broadcast(step):
            return step if seen_by_process_0 is None else np.int32(seen_by_process_0)

        monkeypatch.setattr(utils, "create_checkpoint_manager_and_restore", restore)
        collectives = {"process_allgather": gather, "broadcast_one_to_all": broadcast}
        monkeypatch.setattr(processes, "multihost_utils", types.SimpleNamespace(**collectives))
        iterator = Iterator()
        initializer = types.SimpleNamespace(from_scratch=lambda _: State(0))
        config = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=8))
        try:
            state, begun = start.begin(
                initializer, None, config, str(tmp_path), iterator, None, **options
            )
        finally:
            run.aside = sorted(path.name for path in tmp_path.glob("*.unreadable"))
        return state.step, begun.origin, run.aside, iterator.resets

    return run


@pytest.mark.parametrize("damaged", [({24}, {24}), ({24}, set()), (set(), {24})])
def test_what_any_process_cannot_read_none_uses(resume, damaged, tmp_path):
    state, origin, aside, resets = resume(damaged)
    assert state == 16
    assert origin == f"resumed from {tmp_path}/checkpoint_16"
    assert aside == ["checkpoint_24.unreadable"]
    assert resets == 1  # the data might stand where the damaged one had it


ALL_DAMAGED = ({8, 24}, {16})


def test_with_none_that_can_be_read_a_run_ends_and_ends_again(resume, tmp_path):
    for _ in range(2):
        with pytest.raises(UnreadableCheckpointError, match=r"has no other; .*start_over = True"):
            resume(ALL_DAMAGED)
        # The oldest one keeps its name, so that no later start takes this for a new run.
        assert resume.aside == ["checkpoint_16.unreadable", "checkpoint_24.unreadable"]
    (tmp_path / "checkpoint_8").rename(tmp_path / "checkpoint_8.unreadable")
    with pytest.raises(UnreadableCheckpointError, match=r"but those set aside .*checkpoint_8.unre"):
        resume(ALL_DAMAGED)


def test_a_run_starts_over_where_it_is_told_to(resume):
    step, origin, aside, resets = resume(ALL_DAMAGED, start_over=True)
    assert (step, origin) == (0, "from scratch")
    assert len(aside) == resets == 3


def test_all_take_the_checkpoint_that_the_first_process_sees(resume):
    step, *_ = resume((set(), set()), process=1, seen_by_process_0=16)
    assert step == 16


def test_a_path_that_yields_nothing_is_an_error(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    restore = utils.RestoreCheckpointConfig(path=str(tmp_path / "elsewhere"), mode="latest")
    config = utils.CheckpointConfig(restore=restore)
    with pytest.raises(FileNotFoundError, match=r"elsewhere' holds no checkpoint to start from"):
        start.begin(None, None, config, str(tmp_path / "run"), None, None)
    # Upstream's way to say that a run goes on in its own directory.
    own = utils.RestoreCheckpointConfig(path=str(tmp_path / "run"), mode="latest")
    (tmp_path / "run").mkdir()
    initializer = types.SimpleNamespace(from_scratch=lambda _: State(0))
    config = utils.CheckpointConfig(restore=own)
    _, begun = start.begin(initializer, None, config, str(tmp_path / "run/"), None, None)
    assert begun.origin == "from scratch"


def test_a_seed_of_the_clock_is_taken_once(tmp_path):
    cfg = utils.DatasetConfig("task", {}, "train", 8, False, None)
    saving = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=8))
    assert start.with_saved_seed(cfg, saving, str(tmp_path)) is cfg
    (tmp_path / "checkpoint_8" / "state").mkdir(parents=True)
    (tmp_path / "checkpoint_8" / "state" / "_METADATA").write_text("{}")
    fingerprint = {"data": {"settings": {"DatasetConfig.seed": 123}}}
    metadata = json.dumps({"custom_metadata": as_metadata(fingerprint)})
    (tmp_path / "checkpoint_8" / "_CHECKPOINT_METADATA").write_text(metadata)
    assert start.with_saved_seed(cfg, saving, str(tmp_path)).seed == 123
    anew = utils.CheckpointConfig(
        save=saving.save, restore=utils.RestoreCheckpointConfig([], restore_dataset=False)
    )
    assert start.with_saved_seed(cfg, anew, str(tmp_path)) is cfg
    bound = dataclasses.replace(cfg, seed=7)
    assert start.with_saved_seed(bound, saving, str(tmp_path)) is bound
