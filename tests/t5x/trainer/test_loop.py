"""The train step: what it computes, and how it is compiled for eight devices."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from t5x import adafactor, models, partitioning, trainer, utils
from t5x import metrics as metrics_lib
from t5x.examples.t5 import network

BATCH, INPUTS, TARGETS = 16, 24, 12
VOCABULARY = seqio.ByteVocabulary()


def _model(dropout_rate=0.0, model_cls=models.EncoderDecoderModel, optimizer=None, **settings):
    config = network.T5Config(
        vocab_size=256,
        dtype=jnp.float32,
        emb_dim=16,
        num_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=32,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
        **settings,
    )
    return model_cls(
        module=network.Transformer(config),
        input_vocabulary=VOCABULARY,
        output_vocabulary=VOCABULARY,
        optimizer_def=adafactor.Adafactor(
            logical_factor_rules=adafactor.standard_logical_factor_rules(), **(optimizer or {})
        ),
        z_loss=1e-4,
    )


def _batch():
    """Packed rows: two examples each, the last third padding."""
    rng = np.random.default_rng(0)
    batch = {}
    for side, length in (("encoder", INPUTS), ("decoder", TARGETS)):
        used = np.arange(length) < 2 * length // 3
        segments = np.where(used, 1 + (np.arange(length) >= length // 3), 0)
        positions = np.where(used, np.arange(length) % (length // 3), 0)
        batch[f"{side}_segment_ids"] = np.tile(segments, (BATCH, 1))
        batch[f"{side}_positions"] = np.tile(positions, (BATCH, 1))
        tokens = rng.integers(3, 200, (BATCH, length)) * used
        batch["encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"] = tokens
    batch["decoder_input_tokens"] = np.roll(batch["decoder_target_tokens"], 1, axis=1)
    batch["decoder_loss_weights"] = batch["decoder_target_tokens"] > 0
    return {name: np.asarray(value, np.int32) for name, value in batch.items()}


def _trainer(
    num_partitions=1,
    num_microbatches=None,
    rules=None,
    summary_dir=None,
    cls=trainer.Trainer,
    **settings,
):
    partitioner = partitioning.PjitPartitioner(num_partitions, logical_axis_rules=rules)
    model = _model(**settings)
    shapes = {name: value.shape for name, value in _batch().items()}
    initializer = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, shapes, partitioner
    )
    return cls(
        model=model,
        train_state=initializer.from_scratch(jax.random.PRNGKey(0)),
        partitioner=partitioner,
        eval_names=["task"],
        summary_dir=summary_dir,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(1),
        learning_rate_fn=utils.create_learning_rate_scheduler(
            factors="constant", base_learning_rate=0.01
        ),
        num_microbatches=num_microbatches,
    )


def _train(run, steps=3):
    with run:
        values = run.train(iter([_batch()] * steps), steps, start_step=0).result()
    return float(values["loss"].value), jax.device_get(run.train_state.params)


@pytest.fixture(scope="module")
def whole_batch():
    return _train(_trainer())


def _assert_same_training(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), actual[1], expected[1]
    )


def test_training_lowers_the_loss(whole_batch):
    run = _trainer()
    with run:
        first = run.train(iter([_batch()]), 1, start_step=0).result()["loss"].value
        last = run.train(iter([_batch()] * 8), 8, start_step=1).result()["loss"].value
    assert np.isfinite(last)
    assert last < 0.9 * first


@pytest.mark.parametrize("num_microbatches", [2, 8])
def test_microbatches_give_the_update_of_the_whole_batch(whole_batch, num_microbatches):
    partitions = 4 if num_microbatches == 8 else 2  # a microbatch must cover the data axis
    run = _trainer(num_partitions=partitions, num_microbatches=num_microbatches)
    _assert_same_training(_train(run), whole_batch)


@pytest.mark.parametrize("dims", [(1, 1), (1, 2), (2, 2), None])
def test_every_sharding_computes_the_same(whole_batch, dims):
    if dims is None:
        rules = partitioning.fsdp_logical_axis_rules()
    else:
        rules = partitioning.standard_logical_axis_rules(*dims)
    _assert_same_training(_train(_trainer(num_partitions=2, rules=rules)), whole_batch)


def test_same_seed_same_losses_bit_for_bit():
    first, second = (_train(_trainer(dropout_rate=0.1)) for _ in range(2))
    assert first[0] == second[0]
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def test_microbatches_must_divide_the_batch():
    with pytest.raises(ValueError, match="num_microbatches = 3 does not divide BATCH_SIZE = 16"):
        _train(_trainer(num_partitions=4, num_microbatches=3))


def _shapes(text):
    """All array shapes in a compiled module, as tuples."""
    found = re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text)
    return {tuple(int(n) for n in shape.split(",")) for shape in found}


def test_compiled_step_shards_activations_over_the_batch():
    """On eight devices no activation has all rows, and the constraints are in the program."""
    run = _trainer(num_partitions=1, scan_layers=False)
    batch = {name: jnp.asarray(value) for name, value in _batch().items()}
    lowered = run._partitioned_train_step.lower(run.train_state, batch)
    assert lowered.as_text().count("sharding_constraint") > 10
    text = lowered.compile().as_text()
    shapes = _shapes(text)
    local = BATCH // 8
    for length, width in ((INPUTS, 16), (TARGETS, 16), (INPUTS, 32), (TARGETS, 32)):
        assert (local, length, width) in shapes
        assert (BATCH, length, width) not in shapes
    # Attention scores: (batch, heads, query, key).
    assert (local, 4, INPUTS, INPUTS) in shapes
    assert (BATCH, 4, INPUTS, INPUTS) not in shapes
    # Logits never exist for the whole batch.
    assert (BATCH, TARGETS, 256) not in shapes
    assert (BATCH * TARGETS, 256) not in shapes
    run.close()


def test_weight_metrics_have_a_norm_for_every_parameter():
    run = _trainer()
    state = run.train_state
    gradients = jax.tree.map(jnp.ones_like, state.params)
    metrics = trainer.WeightMetricsComputer().compute_metrics(gradients, state, state)
    names = utils.flatten_dict_string_keys(state.params)
    assert {f"weight_rms/{name}" for name in names} <= set(metrics)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    norm = metrics["weight_gradient_norm"].replace_steps(1).compute()
    np.testing.assert_allclose(norm, count**0.5, rtol=1e-6)
    run.close()


def test_evaluation_and_metrics_are_written(tmp_path):
    run = _trainer(summary_dir=str(tmp_path))
    with run:
        run.train(iter([_batch()] * 2), 2, start_step=0)
        values = run.eval({"task": [_batch(), _batch()]})
    assert np.isfinite(values["task"]["loss"].value)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if row["collection"] == "train"]
    assert rates == pytest.approx([0.01])
    assert any(row["collection"] == "training_eval/task" for row in rows)
    with pytest.raises(ValueError, match="'task' has no full batch"):
        run.eval({"task": []})


class _OwnKeys(trainer.Trainer):
    """As one written for upstream: its steps have keys of their own."""

    def _get_step_rng(self, step):
        return jax.random.fold_in(super()._get_step_rng(step), 7)


def test_a_subclass_gives_steps_their_keys():
    with _trainer(dropout_rate=0.5) as usual, _trainer(dropout_rate=0.5, cls=_OwnKeys) as own:
        keys = [run._get_step_rng(3) for run in (usual, own)]
        base = jax.random.PRNGKey(1)
        np.testing.assert_array_equal(keys[0], jax.random.fold_in(base, 3))
        losses = [
            run.train(iter([_batch()]), 1, start_step=0).result()["loss"].value
            for run in (usual, own)
        ]
    assert losses[0] != losses[1]


def test_the_timer_starts_when_what_it_blocks_on_is_there(tmp_path):
    manager = trainer.MetricsManager("train", str(tmp_path))
    donated = jnp.zeros(1)
    donated.delete()
    manager.start_duration_timer(block_on={"ready": jnp.ones(3), "donated": donated})
    metrics = {"time": metrics_lib.Time()}
    assert 0 <= manager.write_metrics_summary(metrics, 1, 1).result()["time"].value < 60
    assert manager.summary_dir == str(tmp_path / "train")
    manager.close()


class _NanGradients(models.EncoderDecoderModel):
    """Its loss is finite and its gradients are not: the root's slope at zero is infinite."""

    def loss_fn(self, params, batch, dropout_rng):
        loss, metrics = super().loss_fn(params, batch, dropout_rng)
        kernel = params["decoder"]["logits_dense"]["kernel"]
        return loss + jnp.sqrt(jnp.sum(kernel**2) * batch["zero"][0, 0]), metrics


def _with_zero(batch, zero):
    return batch | {"zero": np.full((BATCH, 1), zero, np.float32)}


def test_nan_gradients_under_a_finite_loss_are_not_saved(tmp_path):
    run = _trainer(summary_dir=str(tmp_path), model_cls=_NanGradients)
    batches = [_with_zero(_batch(), 1.0), _with_zero(_batch(), 0.0)]
    with run, pytest.raises(FloatingPointError, match=r"not finite after step 2 \(.*kernel") as end:
        future = run.train(iter(batches[:1]), 1, start_step=0)
        run.check_losses()
        future = run.train(iter(batches[1:]), 1, start_step=1)
        assert np.isfinite(future.result()["loss"].value)
        run.check_losses()
    assert "though its loss is" in str(end.value)
    assert (tmp_path / "non_finite_loss/step_2/process_0_of_1.npz").exists()


def test_a_loss_whose_update_is_skipped_does_not_end_the_run(tmp_path, caplog):
    run = _trainer(summary_dir=str(tmp_path), optimizer={"skip_nan_updates": True})
    bad = _batch()
    bad["decoder_loss_weights"] = np.full((BATCH, TARGETS), np.nan, np.float32)
    good = _batch()
    good["decoder_loss_weights"] = good["decoder_loss_weights"].astype(np.float32)
    with run:
        run.train(iter([good, bad, good, good, good]), 5, start_step=0)
        run.check_losses()
        assert int(run.train_state.step) == 5
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.train_state.params))
    assert "the loss of step 2 is nan; updates that are NaN are left out" in caplog.text
    assert not (tmp_path / "non_finite_loss").exists()
