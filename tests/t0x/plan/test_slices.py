"""TPU slices: names and sizes as Google Cloud documents them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t0x.plan.slices import parse_machines


@pytest.mark.parametrize(
    ("topology", "accelerator_type", "hosts"),
    [
        ("v5e:16x16", "v5litepod-256", 64),
        ("v5e:2x4", "v5litepod-8", 1),
        ("v6e:4x4", "v6e-16", 4),
        ("v4:4x4x8", "v4-256", 32),
        ("v4:4x8x8", "v4-512", 64),
        ("v5p:2x2x1", "v5p-8", 1),
    ],
)
def test_names_and_hosts(topology, accelerator_type, hosts):
    tpu = parse_machines(topology)
    assert (tpu.accelerator_type, tpu.hosts) == (accelerator_type, hosts)


@given(st.sampled_from(["v5e", "v6e"]), st.sampled_from([1, 2, 4, 8, 16]))
def test_hosts_hold_all_chips(kind, width):
    tpu = parse_machines(f"{kind}:{width}x{width}")
    assert tpu.hosts * tpu.chips_per_host == tpu.chips == width * width


@pytest.mark.parametrize(
    "topology",
    [
        *("v5e", "v5e:16", "v3:8x8", "v4:4x4", "v5e:axb", "v5e:0x2"),
        *("2*v5e:4x4", "v5e:3x3", "v5e:64x64"),
    ],
)
def test_what_is_no_slice_is_refused(topology):
    with pytest.raises(ValueError, match="--topology"):
        parse_machines(topology)
