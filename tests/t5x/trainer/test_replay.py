"""A loss that is not finite: found in step, its batch kept and given back."""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x.trainer.replay import LossWatch, NonFiniteLossError, get_saved_batch


def _batch(rows=8):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tokens = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    return {"tokens": jax.device_put(tokens, sharding)}, tokens


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_step_is_named_and_its_batch_comes_back(tmp_path, bad):
    watch = LossWatch(str(tmp_path))
    batch, tokens = _batch()
    other = {"tokens": jnp.zeros_like(tokens)}
    watch.note(1, jnp.float32(1.0), other, lambda: ("good",))
    watch.note(2, jnp.float32(bad), batch, lambda: ("news", "pairs"))
    with pytest.raises(NonFiniteLossError, match=r"loss of step 2 is .*news, pairs") as caught:
        for step in range(3, 9):
            watch.note(step, jnp.float32(1.0), other, tuple)
    assert step <= 4
    (path,) = (tmp_path / "non_finite_loss").iterdir()
    assert str(path) in str(caught.value)
    cfg = types.SimpleNamespace(batch_size=8)
    for shard in (0, 1):
        dataset = get_saved_batch(cfg, shard, 2, None, path=str(path))
        for rows, _ in zip(dataset.as_numpy_iterator(), range(2), strict=False):
            np.testing.assert_array_equal(rows["tokens"], tokens[shard * 4 : shard * 4 + 4])
    with pytest.raises(ValueError, match="bind BATCH_SIZE = 8"):
        get_saved_batch(types.SimpleNamespace(batch_size=4), 0, 1, None, path=str(path))


def test_the_last_steps_are_looked_at_too(tmp_path):
    watch = LossWatch(None)
    watch.note(1, jnp.float32(np.nan), {}, tuple)
    with pytest.raises(NonFiniteLossError, match="step 1"):
        watch.check()


def test_a_batch_that_cannot_be_saved_hides_no_loss(tmp_path):
    (tmp_path / "non_finite_loss").write_text("a file where the folder should be")
    watch = LossWatch(str(tmp_path))
    watch.note(1, jnp.float32(np.nan), {}, lambda: ("news",))
    with pytest.raises(NonFiniteLossError, match=r"step 1 is nan, on .* news; .*not be sav"):
        watch.check()


class _ForwardOnly(io.FileIO):
    """A file of an object store: written front to back."""

    def seek(self, *_):
        raise PermissionError("a file of a bucket cannot be sought in")

    tell = seek


def test_batches_are_written_without_seeking(tmp_path, monkeypatch):
    local = type(epath.Path("/"))
    plain = local.open

    def open_forward_only(path, mode="r", **options):
        return _ForwardOnly(path, "w") if "w" in mode else plain(path, mode, **options)

    batch, tokens = _batch()
    watch = LossWatch(str(tmp_path))
    watch.note(1, jnp.float32(np.nan), batch, tuple)
    with monkeypatch.context() as patch:
        patch.setattr(local, "open", open_forward_only)
        with pytest.raises(PermissionError), epath.Path(tmp_path / "probe").open("wb") as file:
            file.seek(0)
        with pytest.raises(NonFiniteLossError, match="its batch is saved"):
            watch.check()
    with np.load(tmp_path / "non_finite_loss/step_1/process_0_of_1.npz") as saved:
        np.testing.assert_array_equal(saved["tokens"], tokens)


def test_a_folder_without_a_batch_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"replay.get_saved_batch.path = .*holds no saved batch"):
        get_saved_batch(types.SimpleNamespace(batch_size=8), 0, 1, None, path=str(tmp_path))
