"""Time of one train step of a T5 1.1 on one device: forward, backward and Adafactor.

Prints one JSON line: seconds a step, tokens per second, and the share of the device's peak that the
model's own matrix products (no recomputation counted) reach, where the peak is known.

    python benchmarks/train_step.py --size large --rows 8
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5x import adafactor, losses, partitioning, train_state
from t5x.examples.t5 import network

# emb_dim, heads, layers of each stack, head_dim, mlp_dim.
SIZES = {
    "small": (512, 6, 8, 64, 1024),
    "base": (768, 12, 12, 64, 2048),
    "large": (1024, 16, 24, 64, 2816),
    "xl": (2048, 32, 24, 64, 5120),
}
VOCABULARY = 32128
# Dense bf16 products per second, from the makers' data sheets.
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def make_batch(rows, inputs, targets):
    rng = np.random.default_rng(0)
    batch = {
        "encoder_input_tokens": rng.integers(3, 32000, (rows, inputs)),
        "decoder_target_tokens": rng.integers(3, 32000, (rows, targets)),
        # Four packed examples a row.
        "encoder_segment_ids": np.tile(1 + np.arange(inputs) * 4 // inputs, (rows, 1)),
        "decoder_segment_ids": np.tile(1 + np.arange(targets) * 4 // targets, (rows, 1)),
    }
    batch["decoder_input_tokens"] = np.roll(batch["decoder_target_tokens"], 1, axis=1)
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


def count_flops(config, rows, inputs, targets):
    """Multiply-adds of forward and backward, times two; attention over whole rows."""
    d, hd, m = config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
    dense = 4 * d * hd + 3 * d * m
    encoder = config.num_encoder_layers * (dense + 2 * inputs * hd) * inputs
    own = config.num_decoder_layers * (dense + 2 * targets * hd + 2 * d * hd + 2 * inputs * hd)
    cross = config.num_decoder_layers * 2 * d * hd * inputs
    return 6 * rows * (encoder + own * targets + cross + d * config.vocab_size * targets)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--targets", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", default="minimal")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    emb_dim, heads, layers, head_dim, mlp_dim = SIZES[args.size]
    config = network.T5Config(
        vocab_size=VOCABULARY,
        dtype=args.dtype,
        emb_dim=emb_dim,
        num_heads=heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        mlp_activations=("gelu", "linear"),
        dropout_rate=args.dropout,
        remat_policy=args.remat,
    )
    module = network.Transformer(config)
    optimizer = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    batch = make_batch(args.rows, args.inputs, args.targets)
    tokens = [batch[f"{n}_tokens"] for n in ("encoder_input", "decoder_input", "decoder_target")]

    def initialize(rng):
        variables = module.init(rng, *tokens, enable_dropout=False)
        return train_state.FlaxOptimTrainState.create(optimizer, variables)

    def loss_fn(params, rng):
        hidden = module.apply(
            {"params": params},
            *tokens,
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            rngs={"dropout": rng},
            return_hidden=True,
        )
        sums = losses.loss_sums_from_hidden(
            lambda p, h: module.apply({"params": p}, h, method="logits"),
            module.logits_params(params),
            hidden,
            batch["decoder_target_tokens"],
            None,
            z_loss=1e-4,
            chunk_tokens=config.loss_chunk_tokens,
        )
        return sums.loss

    def train_step(state):
        rng = jax.random.fold_in(jax.random.PRNGKey(0), state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, rng)
        return state.apply_gradient(grads, learning_rate=1e-3), loss

    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    with partitioner.context():
        state = jax.jit(initialize)(jax.random.PRNGKey(0))
        tick = time.perf_counter()
        step = jax.jit(train_step, donate_argnums=0).lower(state).compile()
        compiled = time.perf_counter() - tick
        times, values = [], []
        for _ in range(args.steps + 2):
            tick = time.perf_counter()
            state, loss = step(state)
            values.append(float(loss))
            times.append(time.perf_counter() - tick)
    median = float(np.median(times[2:]))
    kind = jax.devices()[0].device_kind
    flops = count_flops(config, args.rows, args.inputs, args.targets)
    slots = args.rows * (args.inputs + args.targets)
    print(
        json.dumps(
            {
                "size": args.size,
                "shape": [args.rows, args.inputs, args.targets],
                "dtype": args.dtype,
                "remat": args.remat,
                "device": kind,
                "jax": jax.__version__,
                "seconds_per_step": round(median, 4),
                "slowest": round(max(times[2:]), 4),
                "tokens_per_second": round(slots / median),
                "mfu": round(flops / median / PEAK_FLOPS[kind], 3) if kind in PEAK_FLOPS else None,
                "compile_seconds": round(compiled, 1),
                "loss_per_token": [round(v / args.rows / args.targets, 3) for v in values[::4]],
            }
        )
    )


if __name__ == "__main__":
    main()
