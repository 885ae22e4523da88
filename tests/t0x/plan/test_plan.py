"""`t0x plan`: reading compiled programs, the compiler's refusals, and whole small runs."""

import importlib.util
import json
import sys
from pathlib import Path

import gin
import pytest
import typer.testing

from t0x import cli
from t0x.plan import estimate, hlo, slices, step, sweep

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu: pip install 't0x[plan]'",
)

# Written by hand in the form that the TPU compiler prints.
PROGRAM = (Path(__file__).parents[1] / "golden" / "program.hlo.txt").read_text()


def test_cycles_are_multiplied_by_the_trips_of_loops():
    cost = hlo.cost(hlo.parse(PROGRAM), chips=8)
    # Five trips of (7 + three trips of 100), the dearer branch, the copy.
    assert cost.cycles == 5 * (7 + 3 * 100) + 50 + 11
    assert cost.by_source["layer/dot"] == 1500
    assert sum(cost.by_source.values()) == cost.cycles


def test_declared_work_of_kernels_is_multiplied_by_the_trips_of_loops():
    """One line in the form that a Pallas call takes in a compiled program."""
    kernel = (
        '  %kernel = f32[16] custom-call(%copy.9), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"100",'
        '"transcendentals":"5"}}}'
    )
    (dot,) = [line for line in PROGRAM.splitlines() if "layer/dot" in line]
    cost = hlo.cost(hlo.parse(PROGRAM.replace(dot, f"{dot}\n{kernel}")), chips=8)
    assert cost.kernel_flops == 5 * 3 * 100
    assert cost.cycles == 5 * (7 + 3 * 100) + 50 + 11


def test_each_collective_sends_what_a_ring_sends():
    wire = hlo.cost(hlo.parse(PROGRAM), chips=8).wire
    assert wire == {
        "all-gather": 15 * 64 * 4 * 2 * 3 / 4,
        "all-reduce": 2 * 16 * 4 * 3 / 4,  # once, though start and done both hold it
        "collective-permute": 10 * 4,  # the result alone
        "reduce-scatter": 6 * 2 * 3 + 40 * 2 * 2 * 3 / 4,  # the second as a fusion
    }


def test_groups_that_are_not_named_are_all_chips():
    assert hlo.group_size("replica_groups={}", 8) == 8
    assert hlo.group_size("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 1) == 8


def test_what_goes_to_other_slices_is_counted_apart():
    """A transfer in the form that the compiler gives the part of a collective between slices."""
    send = (
        "  %send.1 = (f32[64,8]{1,0:T(8,128)}, u32[], token[]) send(%x, %token), channel_id=3, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    (copy,) = [line for line in PROGRAM.splitlines() if "ROOT %out" in line]
    text = PROGRAM.replace(copy, f"{send}\n{copy}")
    cost = hlo.cost(hlo.parse(text), chips=24, slices=3)
    assert cost.network == {"all-reduce": 2 * 64 * 8 * 4 * 2 / 3}
    assert cost.wire == hlo.cost(hlo.parse(PROGRAM), chips=24).wire
    gather = hlo.cost(hlo.parse(text.replace("ALL_REDUCE", "ALL_GATHER")), slices=3)
    assert gather.network == {"all-gather": 2 * 64 * 8 * 4}


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing\n")


def test_shortage_is_read_from_either_form_of_the_error():
    short = estimate.read_shortage(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (17.00G) exceeds available HBM (15.75G). HLO module: jit_f."
    )
    assert short.needed - short.available == int(1.25 * 2**30)
    listed = estimate.read_shortage(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 31.10G of 15.75G hbm. Exceeded hbm capacity by 15.35G.\n\n"
        "Largest program allocations in hbm:\n\n"
        '  1. Size: 4.00G\n     Operator: op_name="jit(f)/dot" source_file="f.py"\n'
        "     Shape: bf16[4,32,1024]{2,1,0:T(8,128)}\n     Unpadded size: 4.00G\n"
        "     ==========================\n\n"
        "  2. Size: 512.00M\n     Shape: f32[8]{0}\n     Unpadded size: 512.00M\n"
    )
    assert listed.needed == round(31.10 * 2**30)
    assert listed.largest == (
        estimate.Buffer(4 * 2**30, "bf16[4,32,1024]", "jit(f)/dot"),
        estimate.Buffer(2**29, "f32[8]", ""),
    )
    assert estimate.read_shortage("INVALID_ARGUMENT: no such thing") is None


def test_slices_have_names():
    assert slices.parse_slice("v4:8x8x8").chips == 512
    two = slices.parse_slice("2*v5e:4x4")
    assert (two.chips, two.count, two.name) == (32, 2, "2*v5e:4x4")
    assert slices.CHIPS["v5e"].clock == pytest.approx(1.5e9, rel=0.01)
    for name in ("v5e", "v5e:16", "v4:8x8", "v9:2x2", "0*v5e:2x2"):
        with pytest.raises(ValueError, match="--topology"):
            slices.parse_slice(name)


def test_slices_that_nobody_has_are_refused_before_the_compiler_aborts():
    assert slices.parse_slice("v4:12x12x24").chips == 3456
    for name in ("v5e:32x32", "v6e:8x32", "v4:16x16x32"):
        with pytest.raises(ValueError, match=r"the largest \w+ slice is .*; take several"):
            slices.parse_slice(name)


def test_candidates_give_every_data_shard_whole_rows():
    found = list(sweep.candidates(8, 16, [1, 2, 3], ["full"], [1, 4]))
    assert [(c.model_parallel, c.microbatches) for c in found] == [(1, 1), (2, 1), (2, 4)]
    assert found[0].bindings()[1] == "network.T5Config.remat_policy = 'full'"


@pytest.fixture
def clean_gin():
    yield
    gin.clear_config()


def test_p3_run_is_read_without_prompts_or_vocabulary(clean_gin, monkeypatch, tmp_path):
    monkeypatch.setenv("T0X_CACHE_DIR", str(tmp_path))  # neither prompts nor vocabulary there
    monkeypatch.delenv("T0X_DATA_DIR", raising=False)
    before = sys.modules.get("t0x.tasks.p3"), sys.modules["__main__"]
    run = step.read_run(["t0_3b.gin"])
    assert (sys.modules.get("t0x.tasks.p3"), sys.modules["__main__"]) == before
    assert run["train_dataset_cfg"].batch_size == 1024
    assert step.count_steps(run) == 12_200


@pytest.mark.parametrize("preset", ["v4", "v5e", "v5p", "v6e", "one_gpu"])
def test_presets_of_slices_go_after_a_runs_own_file(clean_gin, preset):
    name = "one_gpu.gin" if preset == "one_gpu" else f"slice_{preset}.gin"
    partitioner = step.read_run(["t0_11b.gin", name])["partitioner"]
    sharded = dict(partitioner.logical_axis_rules)["embed"]
    assert sharded == (None if preset == "one_gpu" else ("data", "model"))


def test_binding_of_a_parameter_that_does_not_exist_is_refused(clean_gin):
    with pytest.raises(ValueError, match="nonsense"):
        step.read_run(["t0_mini.gin"], ["train_script.train.nonsense = 1"])


SMALL = [
    "BATCH_SIZE = 8",
    "TASK_FEATURE_LENGTHS = {'inputs': 128, 'targets': 32}",
    "network.T5Config.num_encoder_layers = 1",
    "network.T5Config.num_decoder_layers = 1",
]


def _plan(*arguments):
    settings = [part for binding in SMALL for part in ("--gin_bindings", binding)]
    result = typer.testing.CliRunner().invoke(
        cli.app, ["plan", "--gin_file", "t0_mini.gin", *settings, *arguments]
    )
    assert result.exception is None, result.output
    return result.stdout


@needs_libtpu
def test_small_run_is_estimated_for_four_chips(clean_gin, tmp_path):
    dump = tmp_path / "step.txt"
    sharding = ["--gin_file", "slice_v5e.gin", "--gin_bindings", f"{sweep.NUM_PARTITIONS} = 2"]
    options = ["--price", "2", "--dump_hlo", str(dump), "--json"]
    out = _plan("--topology", "v5e:2x2", *sharding, *options)
    found = json.loads(out.splitlines()[-1])
    assert found["fits"] and found["chips"] == 4 and found["steps"] == 1400
    assert found["mesh"] == {"data": 2, "model": 2}
    assert 0 < found["hbm_arguments"] < found["hbm_peak"] < found["hbm_limit"]
    assert 0 < found["mfu"] < 1
    assert found["cost"] == pytest.approx(2 * found["chip_hours"])
    # The dump is the program that was added up.
    cost = hlo.cost(hlo.parse(dump.read_text()), 4)
    assert (cost.cycles, cost.wire_bytes) == (found["cycles"], found["wire_bytes"])
    # The gradient of every matrix, float32 here, is scattered once, and those of the layers and the
    # logits are gathered.
    encoder, decoder, embedding = 4 * 128**2 + 3 * 128 * 256, 8 * 128**2 + 3 * 128 * 256, 128 * 1792
    shares = 3 / 4 * 4 * (encoder + decoder + 2 * embedding)
    assert found["wire_bytes_by_collective"]["reduce-scatter"] == shares
    # The compiler gathers as bfloat16 where its matrix units want that.
    assert shares / 2 <= found["wire_bytes_by_collective"]["all-gather"] < 2 * shares


# Kernels take long to compile and change nothing of what such a test is about.
WITHOUT_KERNELS = ["--gin_bindings", "network.T5Config.attention = 'reference'"]


@needs_libtpu
def test_two_slices_send_each_other_what_a_chip_keeps_of_the_gradients(clean_gin):
    mesh = {"num_partitions": None, "ici_mesh_shape": (1, 2, 2), "dcn_mesh_shape": (2, 1, 1)}
    settings = [
        part
        for name, value in mesh.items()
        for part in ("--gin_bindings", f"partitioning.PjitPartitioner.{name} = {value}")
    ]
    sharding = ["--gin_file", "slice_v5e.gin", *settings, *WITHOUT_KERNELS]
    found = json.loads(_plan("--topology", "2*v5e:2x2", "--json", *sharding).splitlines()[-1])
    assert found["chips"] == 8
    assert found["mesh"] == {"replica": 2, "data": 2, "model": 2}
    # A chip keeps a quarter of each float32 gradient; all-reducing over two slices sends it once.
    gradients = found["parameters"]
    assert gradients <= found["network_bytes"] <= 1.15 * gradients
    network = found["network_bytes"] / slices.CHIPS["v5e"].network_bytes
    within = found["wire_bytes"] / slices.CHIPS["v5e"].link_bytes
    assert found["wire_seconds"] == pytest.approx(network + within)


@needs_libtpu
def test_running_out_of_memory_is_an_answer(clean_gin):
    wide = ["--gin_bindings", "network.T5Config.mlp_dim = 16_777_216", *WITHOUT_KERNELS]
    out = _plan("--topology", "v5e:2x2", *wide)
    assert "does not fit" in out and "too much" in out


@needs_libtpu
def test_sweep_ranks_what_it_tried_and_says_that_nothing_was_measured(clean_gin):
    sizes = ["--model_parallel", "1,2", "--remat", "full", "--price", "3"]
    out = _plan("--topology", "v5e:2x2", "--sweep", *sizes, *WITHOUT_KERNELS)
    assert "num_partitions=1" in out and "num_partitions=2" in out
    assert "not measurements" in " ".join(out.split())
    assert "at 3 a chip-hour" in " ".join(out.split())
