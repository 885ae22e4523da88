"""Where a run goes on: all of its processes from one checkpoint, which each of them can read.

Real processes, one of which is lost, are in tests/e2e/test_faults.py.
"""

import types

import numpy as np
import pytest

from t5x import train, utils
from t5x.checkpoints.reading import UnreadableCheckpointError
from t5x.run import processes

MODEL_DIR_STEPS = (8, 16, 24)


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
        (tmp_path / f"checkpoint_{step}").mkdir()
    monkeypatch.setattr(train, "latest_step", lambda _: max(_present(tmp_path), default=None))

    def run(damaged, process=0, seen_by_process_0=None):
        tried = []

        def restore(*args, **_):
            tried.append(args[3] and int(args[3].rpartition("_")[2]))
            if tried[-1] in damaged[process]:
                raise UnreadableCheckpointError(f"checkpoint {args[3]} cannot be read (cut short)")
            return tried[-1] and f"state of {tried[-1]}", "manager"

        def gather(failed):
            assert failed == (tried[-1] in damaged[process])
            return [tried[-1] in steps for steps in damaged]

        def broadcast(step):
            return step if seen_by_process_0 is None else np.int32(seen_by_process_0)

        monkeypatch.setattr(utils, "create_checkpoint_manager_and_restore", restore)
        collectives = {"process_allgather": gather, "broadcast_one_to_all": broadcast}
        monkeypatch.setattr(processes, "multihost_utils", types.SimpleNamespace(**collectives))
        iterator = Iterator()
        initializer = types.SimpleNamespace(from_scratch=lambda _: "fresh state")
        config = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=8))
        arguments = (initializer, None, config, str(tmp_path), iterator, None, True)
        state, _, origin = train._restore_or_initialize(*arguments)
        aside = sorted(path.name for path in tmp_path.glob("*.unreadable"))
        return state, origin, aside, iterator.resets

    return run


def _present(directory):
    return [int(path.name[11:]) for path in directory.glob("checkpoint_*[0-9]")]


@pytest.mark.parametrize("damaged", [({24}, {24}), ({24}, set()), (set(), {24})])
def test_what_any_process_cannot_read_none_uses(resume, damaged, tmp_path):
    state, origin, aside, resets = resume(damaged)
    assert state == "state of 16"
    assert origin == f"resumed from {tmp_path}/checkpoint_16"
    assert aside == ["checkpoint_24.unreadable"]
    assert resets == 1  # the data might stand where the damaged one had it


def test_with_none_that_can_be_read_a_run_starts_over(resume):
    state, origin, aside, resets = resume(({8, 24}, {16}))
    assert (state, origin) == ("fresh state", "from scratch")
    assert len(aside) == resets == 3


def test_all_take_the_checkpoint_that_the_first_process_sees(resume):
    state, *_ = resume((set(), set()), process=1, seen_by_process_0=16)
    assert state == "state of 16"
