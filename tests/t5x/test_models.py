"""Models: upstream's loss, gradients, metrics and scores; chunked paths equal plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from t5x import metrics as metrics_lib
from t5x import models

SETTINGS = [
    (None, 0.0, 1e-2, False),
    ("AVERAGE_PER_SEQUENCE", 0.1, 0.0, True),
]


def _loss(model, params, batch):
    function = jax.jit(jax.value_and_grad(lambda p: model.loss_fn(p, batch, None), has_aux=True))
    (loss, metrics), grads = function(params)
    metrics = metrics_lib.set_time_metrics_duration(metrics, 2.0)
    return loss, {name: float(m.compute()) for name, m in metrics.items()}, grads


def _model(tiny_t5, factor, label_smoothing, z_loss, **config):
    return tiny_t5.model(
        loss_normalizing_factor=factor, label_smoothing=label_smoothing, z_loss=z_loss, **config
    )


@pytest.mark.parametrize(("factor", "label_smoothing", "z_loss", "packed"), SETTINGS)
def test_loss_gradients_and_metrics_are_upstreams(tiny_t5, factor, label_smoothing, z_loss, packed):
    model = _model(tiny_t5, factor, label_smoothing, z_loss)
    loss, metrics, grads = _loss(model, tiny_t5.params(), tiny_t5.batch(packed))
    expected = tiny_t5.golden[f"loss/{factor}/{label_smoothing}/{packed}"]
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    flat = traverse_util.flatten_dict(grads, sep="/")
    for name, digest in expected["grad"].items():
        np.testing.assert_allclose(
            tiny_t5.digest(flat[name])[:2], digest, rtol=1e-4, atol=1e-4, err_msg=name
        )
    # Rates per core depend on the number of devices, which is one in the golden run.
    per_core = {name for name in metrics if name.endswith("_per_core")}
    assert metrics.keys() == expected["metrics"].keys()
    for name in metrics.keys() - per_core:
        np.testing.assert_allclose(
            metrics[name], expected["metrics"][name], rtol=1e-5, err_msg=name
        )
    for name in per_core:
        cores = jax.device_count()
        np.testing.assert_allclose(metrics[name] * cores, expected["metrics"][name], rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_loss_equals_the_plain_one(tiny_t5, tied):
    factor, label_smoothing, z_loss, packed = "NUM_REAL_TARGET_TOKENS", 0.1, 1e-2, True
    params = tiny_t5.params(logits_via_embedding=tied)
    # 27 target tokens, 9 of them at a time on a device; 0 is the plain path through all logits.
    chunked, plain = (
        _loss(
            _model(
                tiny_t5,
                factor,
                label_smoothing,
                z_loss,
                logits_via_embedding=tied,
                loss_chunk_tokens=tokens,
            ),
            params,
            tiny_t5.batch(packed),
        )
        for tokens in (9, 0)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), chunked, plain
    )


def test_chunked_step_holds_no_full_logits(tiny_t5):
    params, batch = tiny_t5.stacked(tiny_t5.params()), tiny_t5.batch(packed=False)

    def text(chunk_tokens):
        model = tiny_t5.model(scan_layers=True, loss_chunk_tokens=chunk_tokens)
        loss = jax.value_and_grad(lambda p: model.loss_fn(p, batch, None)[0])
        return jax.jit(loss).lower(params).as_text()

    assert "tensor<3x9x48xf32>" in text(0)
    assert "tensor<3x9x48xf32>" not in text(9)
    assert "tensor<3x3x48xf32>" in text(9)


@pytest.mark.parametrize(
    ("variant", "packed", "config"),
    [
        ("base", False, {}),
        ("base", True, {"loss_chunk_tokens": 9}),
        ("base", True, {"loss_chunk_tokens": 0}),
        ("tied_relu", False, {"logits_via_embedding": True, "mlp_activations": ("relu",)}),
    ],
)
def test_scores_are_upstreams(tiny_t5, variant, packed, config):
    model = tiny_t5.model(**config)
    scores = jax.jit(model.score_batch)(tiny_t5.params(**config), tiny_t5.batch(packed))
    np.testing.assert_allclose(scores, tiny_t5.golden[f"score/{variant}/{packed}"], rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [0, 9])
def test_intermediates_hold_token_scores(tiny_t5, chunk_tokens):
    model, batch = tiny_t5.model(loss_chunk_tokens=chunk_tokens), tiny_t5.batch(packed=False)
    score = jax.jit(functools.partial(model.score_batch, return_intermediates=True))
    scores, intermediates = score(tiny_t5.params(), batch)
    (token_scores,) = intermediates["decoder"]["token_scores"]
    np.testing.assert_allclose(token_scores.sum(-1), scores, rtol=1e-6)
    assert np.all(token_scores[batch["decoder_target_tokens"] == 0] == 0)
    targets = intermediates["decoder"]["target_tokens"][0]
    np.testing.assert_array_equal(targets, batch["decoder_target_tokens"])


def test_eval_has_no_dropout_and_training_has(tiny_t5):
    config = {"num_decoder_layers": 1}
    model, params, batch = tiny_t5.model(**config), tiny_t5.params(**config), tiny_t5.batch(False)
    loss = jax.jit(lambda rng: model.loss_fn(params, batch, rng)[0])
    first, second = jax.random.PRNGKey(0), jax.random.PRNGKey(1)
    assert loss(first) == loss(first)
    assert loss(first) != loss(second)
    assert "random_bits" not in str(jax.make_jaxpr(model.eval_fn)(params, batch))
    assert "random_bits" in str(jax.make_jaxpr(model.loss_fn)(params, batch, jax.random.key(0)))


def test_subclass_with_its_own_logits_is_obeyed(tiny_t5):
    class Uniform(models.EncoderDecoderModel):
        def _compute_logits(self, params, batch, dropout_rng=None, **_):
            return jnp.zeros((*batch["decoder_target_tokens"].shape, 48))

    model, batch = tiny_t5.model(), tiny_t5.batch(packed=False)
    uniform = Uniform(model.module, model.input_vocabulary, model.output_vocabulary, None)
    loss, _ = uniform.loss_fn({}, batch, None)
    np.testing.assert_allclose(loss, 15 * np.log(48), rtol=1e-5)
    scores = uniform.score_batch({}, batch)
    np.testing.assert_allclose(scores, -np.array([9, 4, 2]) * np.log(48), rtol=1e-5)


def test_packed_examples_are_counted():
    ids = jnp.array([[1, 1, 3, 3, 0, 0], [2, 2, 2, 2, 2, 2], [2, 7, 7, 7, 7, 0]])
    assert metrics_lib.count_packed_examples(ids) == 5


def test_metrics_merge_over_microbatches_and_want_steps_and_time():
    merged = metrics_lib.AveragePerStep(total=jnp.array(3.0)).merge(
        metrics_lib.AveragePerStep(total=jnp.array(5.0))
    )
    assert merged.compute() == 4
    tree = {"loss": merged, "rate": metrics_lib.TimeRate(numerator=6.0), "s": metrics_lib.Time()}
    tree = metrics_lib.set_step_metrics_num_steps(tree, 1)
    tree = metrics_lib.set_time_metrics_duration(tree, 2.0)
    assert {k: float(m.compute()) for k, m in tree.items()} == {"loss": 8, "rate": 3, "s": 2}
    with pytest.raises(ValueError, match="replace_duration"):
        metrics_lib.Time().compute()


def test_rng_given_twice_is_refused(tiny_t5):
    model, batch = tiny_t5.model(), tiny_t5.batch(packed=False)
    key = jax.random.PRNGKey(0)
    with pytest.raises(ValueError, match="decode_rng"):
        model.predict_batch_with_aux({}, batch, rng=key, decoder_params={"decode_rng": key})
