"""Schedules against values computed by T5X (google-research/t5x, commit cc342d41)."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x.optimizers import schedules

STEPS = (0, 1, 37, 100, 512, 20001)
GOLDEN = [
    (
        {"factors": "constant", "base_learning_rate": 0.001},
        [0.001, 0.001, 0.001, 0.001, 0.001, 0.001],
    ),
    ({}, [1e-8, 1.5811389e-05, 0.00058502139, 0.0015811389, 0.0080954311, 0.0035354453]),
    (
        {"factors": "constant * rsqrt_decay", "base_learning_rate": 1.0, "warmup_steps": 10000},
        [0.01, 0.01, 0.01, 0.01, 0.01, 0.0070708906],
    ),
    (
        {
            "factors": "linear_decay",
            "base_learning_rate": 0.1,
            "warmup_steps": 100,
            "decay_factor": 0.0005,
        },
        [1e-8, 0.001, 0.037, 0.1, 0.079399996, 1e-8],
    ),
    (
        {
            "factors": "constant * linear_warmup * rsqrt_normalized_decay",
            "base_learning_rate": 0.01,
            "warmup_steps": 50,
        },
        [1e-8, 0.0002, 0.0074, 0.0070710676, 0.0031249998, 0.00049998745],
    ),
    (
        {
            "factors": "constant * decay_every",
            "base_learning_rate": 0.3,
            "steps_per_decay": 70,
            "decay_factor": 0.25,
        },
        [0.3, 0.3, 0.3, 0.075, 1.8310548e-05, 1e-8],
    ),
    (
        {
            "factors": "constant*linear_warmup*cosine_decay",
            "base_learning_rate": 0.2,
            "warmup_steps": 20,
            "steps_per_cycle": 130,
        },
        [1e-8, 0.01, 0.19167922, 0.064539507, 0.022032578, 0.041222252],
    ),
    (
        {"factors": "constant * rsqrt_decay", "step_offset": 60, "warmup_steps": 40},
        [0.079056941, 0.079056941, 0.079056941, 0.079056941, 0.023518022, 0.0035407606],
    ),
]


@pytest.mark.parametrize(("settings", "expected"), GOLDEN)
def test_schedule_equals_t5x(settings, expected):
    learning_rate = schedules.create_learning_rate_scheduler(**settings)
    actual = [float(learning_rate(jnp.int32(step))) for step in STEPS]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_unknown_factor_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown factor 'rsqrt'.*rsqrt_decay"):
        schedules.create_learning_rate_scheduler("constant * rsqrt")
