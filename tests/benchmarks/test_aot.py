"""What is read from the compiler's text, and what follows from it; libtpu itself is not needed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from pmjax import bench, config
from pmjax.benchmarks import aot, tpus
from pmjax.distributed.compile import compiler_options
from pmjax.distributed.mesh import make_mesh
from pmjax.errors import UserError


def cost(cycles):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


LOOPS = f"""
HloModule jit_steps, is_scheduled=true

%fused (p: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[8,8]{{1,0}} parameter(0)
  ROOT %inside = bf16[8,8]{{1,0}} add(%p, %p), {cost(1000000)}
}}

%inner_below (s: (s32[], bf16[8,8])) -> pred[] {{
  %four = s32[]{{:T(128)}} constant(4)
  %s = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %four), direction=LT
}}

%inner_body (s: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %s = (s32[], bf16[8,8]{{1,0:T(8,128)(2,1)}}) parameter(0)
  %f.1 = bf16[8,8]{{1,0}} fusion(%s), kind=kLoop, calls=%fused, {cost(7)}
  ROOT %t = (s32[], bf16[8,8]{{1,0}}) tuple(%s, %f.1)
}}

%outer_below (s: (s32[], bf16[8,8])) -> pred[] {{
  %s = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  ROOT %less = pred[] custom-call(%s), custom_call_target="less"
}}

%outer_body (s: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %s = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  %w = (s32[], bf16[8,8]{{1,0:T(8,128)(2,1)}}) while(%s), condition=%inner_below, body=%inner_body
  ROOT %c = (s32[], bf16[8,8]{{1,0}}) copy(%w), {cost(10)}
}}

ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {{
  %x = bf16[8,8]{{1,0}} parameter(0)
  %out = (s32[], bf16[8,8]{{1,0}}) while(%x), condition=%outer_below, body=%outer_body, BACKEND
  ROOT %last = bf16[8,8]{{1,0}} fusion(%out), kind=kLoop, calls=%fused, {cost(100)}
}}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"3"}}'


def entry(*lines):
    return "\n".join(["ENTRY %main (x: f32[8]) -> f32[8] {", *(f"  {x}" for x in lines), "}"])


def test_loops_multiply_and_fused_operations_count_once():
    read = aot.read(LOOPS.replace("BACKEND", KNOWN))
    assert read.cycles == 3 * (4 * 7 + 10) + 100
    assert read.unknown_loops == 0
    assert read.operations["f.1 bf16[8,8]{1,0}"] == 3 * 4 * 7


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    read = aot.read(LOOPS.replace(", BACKEND", ""))
    assert read.cycles == 4 * 7 + 10 + 100
    assert read.unknown_loops == 1


def test_asynchronous_pairs_count_where_they_start():
    called = f"%wrapped (p: f32[8]) -> f32[8] {{\n  ROOT %f = f32[8] copy(%p), {cost(40)}\n}}\n"
    read = aot.read(
        called
        + entry(
            f"%s = (f32[8], f32[8], u32[]) copy-start(%x), {cost(5)}",
            f"%d = f32[8] copy-done(%s), {cost(5)}",
            "%a = ((f32[8]), f32[8], u32[]) async-start(%d), calls=%wrapped",
            "ROOT %b = f32[8] async-done(%a), calls=%wrapped",
        )
    )
    assert read.cycles == 45


def test_of_a_conditional_the_longest_branch_counts():
    branches = "".join(
        f"%b{i} (p: f32[8]) -> f32[8] {{\n  ROOT %f = f32[8] copy(%p), {cost(cycles)}\n}}\n"
        for i, cycles in enumerate((3, 20, 5))
    )
    listed = "%c = f32[8] conditional(%x, %x, %x), branch_computations={%b0, %b1, %b2}"
    named = "%c = f32[8] conditional(%x), true_computation=%b0, false_computation=%b2"
    assert aot.read(branches + entry(listed)).cycles == 20
    assert aot.read(branches + entry(named)).cycles == 5


@pytest.mark.parametrize("line, kind, size", [
    ("%r = f32[3,5]{1,0:T(4,128)S(1)} all-reduce(%x)", "all-reduce", 60),
    ("%r = (bf16[2,4]{1,0}, f32[]{:T(128)}, /*index=5*/u8[7], pred[2,2]) all-reduce(%x, %y)",
     "all-reduce", 16 + 4 + 7 + 4),
    ("%r = (bf16[10], s64[2]) all-reduce-start(%x, %y)", "all-reduce", 36),
    ("%r = f8e4m3fn[16]{0} reduce-scatter(%x)", "reduce-scatter", 16),
    ("%r = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%x)",
     "collective-permute", 20),
    ("%r = f32[3] all-reduce-done(%x)", "all-reduce", 0),
    ("%r = f32[3] add(%x, %y)", "all-reduce", 0),
])  # fmt: skip
def test_bytes_of_collectives(line, kind, size):
    assert aot.read(entry(line)).collectives[kind] == size


@pytest.mark.parametrize("shape, links", [
    ("v5e:2x2", 2), ("v5e:4x4", 2), ("v5e:8x16", 3), ("v5e:16x16", 4), ("v4:2x2x1", 2),
    ("v5p:4x4x4", 6),
])  # fmt: skip
def test_links_of_a_slice(shape, links):
    assert tpus.links(*tpus.parse_shape(shape)) == links


def test_a_pod_reduces_at_the_bandwidth_that_its_vendor_states():
    for shape, stated in (("v5e:16x16", 51.2e12), ("v6e:16x16", 102.4e12)):
        # Each byte is sent twice, but for the share of the chip itself.
        assert math.isclose(
            2 * 255 / 256 * 1e9 / tpus.all_reduce_s(1e9, *tpus.parse_shape(shape)), stated / 256
        )


def test_the_time_of_an_all_to_all_follows_from_its_bytes_and_the_links_of_a_torus():
    chip, (side, _) = tpus.parse_shape("v5e:16x16")
    hops = 2 * sum(min(i, side - i) for i in range(side)) / side
    assert math.isclose(tpus.all_to_all_s(1e9, chip, (side, side)), 1e9 * hops / (4 * chip.link))
    # In a square each chip has a link of its own across the middle, for half of what it sends.
    assert math.isclose(tpus.all_to_all_s(1e9, chip, (2, 2)), 1e9 / 2 / chip.link)
    assert tpus.all_to_all_s(1e9, chip, (1, 1)) == 0


def test_peaks_are_the_stated_ones():
    for name, stated in (("v4", 275e12), ("v5e", 197e12), ("v5p", 459e12), ("v6e", 918e12)):
        assert math.isclose(tpus.CHIPS[name].peak, stated, rel_tol=3e-3)


def figures(chips, cycles, megabytes):
    memory = dict.fromkeys(("arguments_gb", "temporaries_gb", "output_gb", "peak_gb"), 1.0)
    return memory | {
        "chips": chips,
        "batch_size": 128 * chips,
        "step_cycles": cycles,
        "collective_mb": megabytes,
        "written_gflop": 3000.0,
        "compiled_gflop": 3100.0,
        "hbm_gb": 16.0,
        "compile_s": 60.0,
    }


def test_rates_shares_and_efficiency_follow_from_cycles_and_bytes():
    got = aot.derive({
        "v5e:16x16": figures(
            256, 75e6, {"all-reduce": 256.0, "reduce-scatter": 256.0, "all-to-all": 50.0}
        ),
        "v5e:2x2": figures(4, 75e6, {"all-reduce": 100.0}),
        "v6e:2x2": figures(4, 35e6, {}),
    })  # fmt: skip
    small, large = got["v5e:2x2"], got["v5e:16x16"]
    assert math.isclose(small["compute_ms"], 50) and math.isclose(small["links_ms"], 1.5)
    assert math.isclose(large["links_ms"], 2 * 255 / 256 * 1.5 * 256e6 / 200e9 * 1e3 + 2)
    assert math.isclose(small["images_per_s_per_chip"], 128 / 51.5e-3)
    assert math.isclose(small["share_of_peak"], 3e12 / 50e-3 / (131072 * 1.5e9))
    assert math.isclose(small["share_with_links"], 3e12 / 51.5e-3 / (131072 * 1.5e9))
    assert math.isclose(large["efficiency"], 51.5 / large["step_ms"])
    assert small["efficiency"] == got["v6e:2x2"]["efficiency"] == 1
    assert got["v6e:2x2"]["links_ms"] == 0

    text = aot.table({"libtpu": "1.2", "batch_per_chip": 128, "data": [9, 64, 64, 3],
                      "shapes": got})  # fmt: skip
    assert "ESTIMATES" in text and "9 images of 64×64×3" in text
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()[3:]}
    assert rows["est. ms/step"] == [f"{got[shape]['step_ms']:.1f}" for shape in got]
    assert rows["collectives, MB"] == ["562.0", "100.0", "0.0"]


@pytest.mark.parametrize("shape", [
    "v5e", "v5e:", "v5e:4", "v5e:2x2x2", "v9:2x2", "v4:2x2", "v5e:0x4", "v5e:2x-2", "v5e:axb",
])  # fmt: skip
def test_unknown_shapes_list_valid_ones(shape):
    with pytest.raises(UserError, match="v5e:16x16.*v4:2x2x1"):
        tpus.parse_shape(shape)


def test_mistakes_are_reported_before_anything_is_compiled(monkeypatch):
    settings = config.load("configs/digits.py", {})
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "pmjax\[tpu\]"'):
        aot.measure(settings, ["v5e:2x2"], per_chip=128, data=(10, 8, 8, 1))
    with pytest.raises(UserError, match="--aot_batch=0"):
        aot.measure(settings, ["v5e:2x2"], per_chip=0, data=(10, 8, 8, 1))
    with pytest.raises(UserError, match="IMAGESxHEIGHTxWIDTHxCHANNELS"):
        aot.parse_data("64x64x3")


def test_the_command_refuses_an_unknown_shape(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", "--config=configs/digits.py", "--aot=v5e:7"])
    with pytest.raises(UserError, match="v5e:16x16"):
        bench.main()


def test_the_real_step_lowers_with_its_table_divided_or_not():
    overrides = {"nets": "mlp", "nets_args.width": "8", "data.batch_size": "8"}
    settings = config.load("configs/digits.py", overrides | {"steps_per_dispatch": "3"})
    mesh = make_mesh(2)
    for images in (100, 10_000_000):  # 10 million take more than a tenth of the budget
        text = aot.lowered(settings, mesh, (images, 8, 8, 1)).as_text()
        table = "2x5000000x64xui8" if images > 100 else "100x8x8x1xui8"
        assert table in text


@pytest.mark.parametrize("kind, options", [
    ("TPU v5 lite", {"xla_tpu_scoped_vmem_limit_kib": "32768"}), ("TPU v4", {}),
])  # fmt: skip
def test_options_of_the_compiler_for_tpus(kind, options):
    device = SimpleNamespace(device_kind=kind, platform="tpu")
    mesh = SimpleNamespace(devices=np.asarray([device]))
    assert compiler_options(mesh, loop=True) == options


def test_the_share_of_peak_counts_the_plain_nets():
    nets = {"mlp": {"nets_args.width": "8"}, "resnet": {"nets_args.width": "4"}}
    for name, args in nets.items():
        overrides = {"nets": name, "data.batch_size": "8", "steps_per_dispatch": "1"}
        settings = config.load("configs/digits.py", overrides | args)
        written = aot.written_flops(settings, 8, (32, 32, 3))
        cpu = aot.lowered(settings, make_mesh(1), (8, 32, 32, 3)).cost_analysis()["flops"]
        if name == "mlp":
            assert math.isclose(written, cpu, rel_tol=1e-3)
        else:  # CPUs resample behind the convolution: a quarter of its products
            assert written > 1.005 * cpu
