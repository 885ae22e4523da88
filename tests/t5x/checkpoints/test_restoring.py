"""Where a train state comes from."""

import pytest

from t5x.checkpoints import restoring


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    restoring.require_checkpoint(str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint_7' does not exist; set .*INITIAL_CHECK"
    ):
        restoring.require_checkpoint(str(tmp_path / "checkpoint_7"))


def test_a_checkpoint_out_of_reach_is_one_line(monkeypatch):
    def fail(path):
        raise PermissionError("no credentials\nfor the bucket")

    monkeypatch.setattr(restoring, "find_format", fail)
    with pytest.raises(FileNotFoundError) as error:
        restoring.require_checkpoint("gs://bucket/checkpoint_7")
    assert str(error.value).startswith(
        "checkpoint 'gs://bucket/checkpoint_7' is out of reach: no cr"
    )
    assert "\n" not in str(error.value)
