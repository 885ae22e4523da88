"""Checkpoints of other programs start a run here.

golden/upstream_checkpoints.tar.xz was written by google-research/t5x at
cc342d419ec3e3e9c4bf1df33c82330cafdc1e16: the model of conftest's TinyT5 without dropout, parameters
from `conftest.fill`, after three steps of Adafactor (min_dim_size_to_factor 8, learning rate 0.01,
z_loss 1e-4) on `batch()`. legacy/ by its Checkpointer, orbax/ by its Orbax manager. LOSSES are its
losses of the next three steps. benchmarks/upstream_checkpoints.py is the recipe.

golden/upstream_scalable_checkpoints.tar.xz: the same model by examples/scalable_t5, whose layers
have a relative bias each and whose kernels have an axis for the heads; layers scanned and unrolled.
"""

import contextlib
import functools
import http.server
import json
import tarfile
import threading
import types
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x import adafactor, models, partitioning, utils
from t5x.checkpoints.formats import stores
from t5x.examples.scalable_t5 import network as scalable_network
from t5x.examples.t5 import network

LOSSES = [112.9555435180664, 103.73128509521484, 95.3312759399414]
# Of 20 steps.
# fmt: off
SCALABLE_LOSSES = {
    "scanned": [
        117.7079, 110.9556, 106.0723, 97.2948, 91.5545, 87.2437, 83.2017, 79.4336, 74.4091, 70.1343,
        66.6875, 61.611, 57.9529, 56.5824, 52.4415, 50.0784, 47.759, 43.7386, 39.4273, 40.8983,
    ],
    "unrolled": [
        115.5104, 107.7972, 100.8041, 94.5123, 90.1229, 84.9619, 79.7492, 75.5808, 72.4302, 68.3706,
        63.5767, 60.2339, 56.3621, 54.6311, 49.9959, 46.7109, 44.3738, 43.1989, 38.4236, 35.5601,
    ],
}
# fmt: on
SHAPES = {"encoder_input_tokens": (4, 11), "decoder_input_tokens": (4, 9)}


def batch():
    rng = np.random.RandomState(11)
    targets = rng.randint(2, 48, (4, 9))
    tokens = {
        "encoder_input_tokens": rng.randint(2, 48, (4, 11)),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.concatenate([np.zeros((4, 1), int), targets[:, :-1]], 1),
    }
    tokens = {name: jnp.asarray(x, jnp.int32) for name, x in tokens.items()}
    return tokens | {"decoder_loss_weights": jnp.ones((4, 9), jnp.float32)}


@functools.cache
def initializer(scanned=False, network=network):
    config = {
        "vocab_size": 48,
        "emb_dim": 16,
        "num_heads": 3,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "head_dim": 4,
        "mlp_dim": 24,
        "mlp_activations": ("gelu", "linear"),
        "dropout_rate": 0.0,
    }
    optimizer_def = adafactor.Adafactor(
        0.01,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        min_dim_size_to_factor=8,
    )
    vocabulary = types.SimpleNamespace(eos_id=1)
    model = models.EncoderDecoderModel(
        network.Transformer(network.T5Config(**config, scan_layers=scanned)),
        vocabulary,
        vocabulary,
        optimizer_def,
        z_loss=1e-4,
    )
    rules = partitioning.standard_logical_axis_rules(1, 2)
    partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)
    return model, utils.TrainStateInitializer(
        optimizer_def, model.get_initial_variables, SHAPES, partitioner
    )


def restore(path, scanned=False, network=network, **options):
    """The train state of a checkpoint, by the way of INITIAL_CHECKPOINT_PATH."""
    _, init = initializer(scanned, network)
    config = utils.RestoreCheckpointConfig(
        path=str(path), mode="specific", dtype="float32", **options
    )
    return init.from_checkpoint([config], init_rng=jax.random.PRNGKey(5))


@functools.cache
def train_step(scanned=False, network=network):
    model, _ = initializer(scanned, network)

    @jax.jit
    def step(state, rows):
        loss_of = lambda params: model.loss_fn(params, rows, None)  # noqa: E731
        (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return loss, state.apply_gradient(grads, learning_rate=0.01)

    return step


def losses(state, steps=3, step_fn=None):
    """The losses of some steps, on one device: that compiles faster."""
    state, found = jax.device_get(state), []
    for _ in range(steps):
        loss, state = (step_fn or train_step())(state, batch())
        found.append(float(loss))
    return found


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    directory = tmp_path_factory.mktemp("upstream")
    with tarfile.open(Path(__file__).parents[1] / "golden/upstream_checkpoints.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize("form", ["legacy", "orbax"])
def test_training_goes_on_where_upstream_stopped(upstream, form):
    state = restore(upstream / form / "checkpoint_3")
    assert int(state.step) == 3
    assert state.step.dtype == jnp.int32
    np.testing.assert_allclose(losses(state), LOSSES, rtol=0, atol=1e-4)
    spec = state.params["token_embedder"]["embedding"].sharding.spec
    assert spec == P("model", "data")


@pytest.fixture(scope="module")
def upstream_scalable(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scalable")
    golden = Path(__file__).parents[1] / "golden/upstream_scalable_checkpoints.tar.xz"
    with tarfile.open(golden) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize(
    ("layout", "form"), [("scanned", "orbax"), ("scanned", "legacy"), ("unrolled", "orbax")]
)
def test_training_goes_on_where_upstreams_scalable_network_stopped(upstream_scalable, layout, form):
    path = upstream_scalable / layout / form / "checkpoint_3"
    how = {"scanned": layout == "scanned", "network": scalable_network}
    state = restore(path, **how)
    expected = SCALABLE_LOSSES[layout]
    found = losses(state, len(expected), train_step(**how))
    # Compiled quickly, as tests are, rounding differs and grows; compiled well: 5e-7 at step 20.
    np.testing.assert_allclose(found[:10], expected[:10], rtol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_relative_bias_too_many_or_too_few_is_named(upstream, upstream_scalable):
    with pytest.raises(ValueError, match=r"relative position bias in every layer.*scalable_t5"):
        restore(upstream_scalable / "unrolled/orbax/checkpoint_3")
    with pytest.raises(ValueError, match=r"share a relative position bias.*examples\.t5"):
        restore(upstream / "orbax/checkpoint_3", network=scalable_network)


@pytest.mark.parametrize("form", ["legacy", "orbax"])
def test_scanned_model_from_upstreams_unrolled_layers(upstream, form):
    state = restore(upstream / form / "checkpoint_3", scanned=True)
    assert int(state.step) == 3
    model, _ = initializer(scanned=True)
    # Scanning factors other moments (checkpoints/layouts): only the parameters are the very same.
    loss, _ = jax.jit(lambda params, rows: model.loss_fn(params, rows, None))(
        jax.device_get(state.params), batch()
    )
    assert abs(float(loss) - LOSSES[0]) < 1e-4


def test_assignment_map_renames_entries_of_a_legacy_checkpoint(upstream):
    swap = [(r"target/(en|de)coder/\1coder_norm/scale", "target/decoder/decoder_norm/scale")]
    state = restore(upstream / "legacy/checkpoint_3", assignment_map=swap)
    whole = restore(upstream / "legacy/checkpoint_3")
    expected = whole.params["decoder"]["decoder_norm"]["scale"]
    assert not np.array_equal(whole.params["encoder"]["encoder_norm"]["scale"], expected)
    for stack in ("encoder", "decoder"):
        np.testing.assert_array_equal(state.params[stack][f"{stack}_norm"]["scale"], expected)


def edit_index(checkpoint, change):
    """Changes every TensorStore spec of a legacy checkpoint's index file."""
    file = checkpoint / "checkpoint"
    index = flax.serialization.msgpack_restore(file.read_bytes())
    flat = flax.traverse_util.flatten_dict(
        index, is_leaf=lambda _, x: isinstance(x, dict) and "kvstore" in x
    )
    for leaf in flat.values():
        if isinstance(leaf, dict):
            change(leaf)
    index = flax.traverse_util.unflatten_dict(flat)
    file.write_bytes(flax.serialization.msgpack_serialize(index))


@pytest.fixture
def legacy(upstream, tmp_path):
    """A copy of the legacy checkpoint to change."""
    import shutil

    return Path(shutil.copytree(upstream / "legacy/checkpoint_3", tmp_path / "checkpoint_3"))


def test_specs_as_written_to_a_bucket_by_an_older_tensorstore(legacy, upstream):
    def change(spec):
        path = spec["kvstore"].pop("path")
        spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
        spec["path"] = path

    edit_index(legacy, change)
    contents = stores.open_checkpoint(str(legacy))
    original = stores.open_checkpoint(str(upstream / "legacy/checkpoint_3"))
    assert contents.arrays == original.arrays
    for path in contents.arrays:
        np.testing.assert_array_equal(contents.read(path), original.read(path))


def test_damage_to_a_legacy_checkpoint_is_named(legacy):
    name = "target.token_embedder.embedding"
    whole = (legacy / name / "0.0").read_bytes()
    (legacy / name / "0.0").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=rf"checkpoint_3 cannot be read .*{name}/0.0"):
        restore(legacy)
    (legacy / name / "0.0").unlink()
    with pytest.raises(ValueError, match=rf"checkpoint_3 cannot be read .*{name}/0.0 is missing"):
        restore(legacy)
    (legacy / name / "0.0").write_bytes(whole)
    moment = "state.param_states.decoder.decoder_norm.scale.v"
    assert (legacy / moment / "0").exists()
    (legacy / moment / "0").unlink()
    with pytest.raises(ValueError, match=rf"{moment}/0 is missing"):
        restore(legacy)
    (legacy / name / ".zarray").unlink()
    with pytest.raises(ValueError, match=r"checkpoint_3 cannot be read .*token_embedder"):
        restore(legacy)
    edit_index(legacy, lambda spec: spec["metadata"].update(dtype="<u2"))
    with pytest.raises(ValueError, match="stored as uint16"):
        restore(legacy)
    (legacy / "checkpoint").write_bytes(b"model_checkpoint_path: 'x'")
    with pytest.raises(ValueError, match="is not msgpack"):
        restore(legacy)
    (legacy / "checkpoint").write_bytes(flax.serialization.msgpack_serialize({"version": 1}))
    with pytest.raises(ValueError, match="version 1 of T5X's format"):
        restore(legacy)


class FileHandler(http.server.BaseHTTPRequestHandler):
    """Files below `root`, by plain http and by the part of Cloud Storage's API that reads."""

    root = ""

    def do_GET(self):
        from urllib.parse import parse_qs, unquote, urlsplit

        url = urlsplit(self.path)
        prefix = "/storage/v1/b/test-bucket/o"
        if url.path == prefix:
            wanted = parse_qs(url.query).get("prefix", [""])[0]
            files = (p.relative_to(self.root) for p in Path(self.root).rglob("*") if p.is_file())
            names = sorted(str(name) for name in files if str(name).startswith(wanted))
            body = json.dumps({"items": [{"name": name} for name in names]}).encode()
            return self.answer(200, body)
        path = Path(self.root) / unquote(url.path.removeprefix(prefix)).strip("/")
        if not path.is_file():
            return self.answer(404, b"")
        body = path.read_bytes()
        if url.path.startswith(prefix) and "alt=media" not in url.query:
            facts = {"name": str(path.relative_to(self.root)), "generation": "1"}
            return self.answer(200, json.dumps(facts | {"size": str(len(body))}).encode())
        if (header := self.headers.get("Range")) is None:
            return self.answer(200, body)
        first, last = header.removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1 if last else None]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        return self.answer(206, part, {"Content-Range": span})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(upstream):
    """The upstream checkpoints behind http."""
    with serve(upstream) as url:
        yield url


@contextlib.contextmanager
def serve(root):
    handler = type("Handler", (FileHandler,), {"root": str(root)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.closing(server.socket):
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("form", ["legacy", "orbax"])
@pytest.mark.parametrize("scheme", ["http", "gs"])
def test_checkpoints_that_lie_elsewhere(upstream, served, form, scheme, monkeypatch):
    if scheme == "gs":
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", served)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    root = served if scheme == "http" else "gs://test-bucket"
    state = restore(f"{root}/{form}/checkpoint_3")
    assert int(state.step) == 3
    local = restore(upstream / form / "checkpoint_3")
    jax.tree.map(np.testing.assert_array_equal, state.state_dict(), local.state_dict())


@pytest.mark.parametrize("scheme", ["http", "gs"])
def test_damage_is_named_that_lies_elsewhere(legacy, scheme, monkeypatch):
    chunk = legacy / "target.decoder.layers_1.mlp.wo.kernel" / "0.0"
    with serve(legacy.parent) as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        root = url if scheme == "http" else "gs://test-bucket"
        contents = stores.open_checkpoint(f"{root}/checkpoint_3")
        path = ("target", "decoder", "layers_1", "mlp", "wo", "kernel")
        chunk.write_bytes(chunk.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"wo.kernel/0.0"):
            contents.read(path)
        chunk.unlink()
        with pytest.raises(ValueError, match=r"checkpoint_3/.*wo.kernel/0.0 is missing"):
            contents.read(path, (slice(0, 2),))


def test_nothing_there(served):
    with pytest.raises(
        FileNotFoundError, match=r"does not exist; set RestoreCheckpointConfig.path"
    ):
        restore(f"{served}/legacy/checkpoint_4")
