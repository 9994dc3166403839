"""CUDA's plan, which needs no GPU: what is chosen and why, never by N in forward and input_grad."""

from dataclasses import replace

import pytest
import torch

from conv_ext import _C
from passes import PASSES, dtype_name
from problems import CORNERS, NETWORK, SMALL, THREADED, Problem

GATHERING = PASSES[:2]
LAYERS = (
    Problem("resnet_3x3", 1, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1)),
    Problem("resnet_late", 1, 512, 7, 7, 512, 3, 3, padding=(1, 1, 1, 1)),
    Problem("vgg_large", 1, 64, 112, 112, 128, 3, 3, padding=(1, 1, 1, 1)),
    Problem("strided", 1, 128, 28, 28, 256, 3, 3, (2, 2), (1, 1, 1, 1)),
    Problem("grouped", 1, 128, 28, 28, 128, 3, 3, padding=(1, 1, 1, 1), groups=32),
)


def plan(
    pass_name, z, dtype=torch.float32, algorithm="auto", precision="ieee", capability=80, n=None, channels_last=False
):
    n = z.n if n is None else n
    sizes = [[n, *z.input_shape[1:]], list(z.weight_shape), [n, *z.output_shape[1:]]]
    geometry = (z.stride, z.padding, z.dilation, z.groups)
    return _C.plan(pass_name, dtype_name(dtype), *sizes, *geometry, algorithm, precision, channels_last, capability)


def reasons(found):
    return {name: reason for name, reason, *_ in found["candidates"]}


@pytest.mark.parametrize("pass_name", GATHERING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=dtype_name)
def test_forward_and_input_grad_choose_without_n(pass_name, dtype):
    """What decides bits, or an image would not have the same ones in every batch. Blocks may change with N."""
    for z in LAYERS + SMALL + CORNERS + NETWORK + THREADED:
        found = [plan(pass_name, z, dtype, n=n) for n in (1, 2, 31, 256, 4096)]
        for other in found[1:]:
            assert bits(other) == bits(found[0]), z


def bits(found):
    """What a sum's bits follow from."""
    tiles = {key: value for key, value in found["tiles"].items() if key not in ("sums", "splits")}
    return found["algorithm"], tiles, found["candidates"]


def test_a_long_sum_of_few_outputs_is_split():
    assert plan("forward", LAYERS[1])["tiles"]["splits"] > 1
    assert plan("forward", LAYERS[2])["tiles"]["splits"] == 1
    assert plan("weight_grad", LAYERS[2], n=64)["tiles"]["splits"] > 1


def test_parts_cost_little_and_tiles_follow_the_batch():
    """float16 multiplies so fast that more than two parts of 4608 products would cost too much."""
    layer = LAYERS[1]
    found = {n: plan("forward", layer, n=n)["tiles"] for n in (1, 8, 64)}
    assert [t["sums"] for t in found.values()] == ["64x64", "128x128", "128x128"]
    assert {t["parts"] for t in found.values()} == {8}
    assert plan("forward", layer, torch.float16)["tiles"]["parts"] == 2
    assert plan("forward", LAYERS[0], torch.float16)["tiles"]["parts"] == 1
    for n, splits in ((1, 8), (8, 8), (64, 1)):  # a block forms all parts of bfloat16, each a chain of 576 products
        found = plan("forward", layer, torch.bfloat16, n=n)["tiles"]
        assert (found["parts"], found["chain"], found["splits"]) == (8, 18, splits)
    assert plan("forward", LAYERS[0])["tiles"]["parts"] == 4


@pytest.mark.parametrize("pass_name", PASSES)
def test_float32_is_rounded_only_where_that_is_allowed(pass_name):
    z = LAYERS[0]
    strict, allowed = plan(pass_name, z), plan(pass_name, z, precision="tf32")
    assert strict["algorithm"] == "three_tf32" and "precision" in reasons(strict)["tensor_cores"]
    assert allowed["algorithm"] == "tensor_cores"
    with pytest.raises(RuntimeError, match="algorithm tensor_cores cannot compute this.*precision"):
        plan(pass_name, z, algorithm="tensor_cores")
    assert plan(pass_name, z, torch.complex64)["algorithm"] == "multiply_add"


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex128], ids=dtype_name)
def test_tensor_cores_where_the_device_has_them(pass_name, dtype):
    assert plan(pass_name, LAYERS[0], dtype)["algorithm"] == "tensor_cores"
    old = plan(pass_name, LAYERS[0], dtype, capability=75)
    assert old["algorithm"] == "multiply_add" and "8.0" in reasons(old)["tensor_cores"]


def test_small_groups_have_kernels_of_their_own():
    assert plan("forward", LAYERS[4])["algorithm"] == "grouped"
    assert plan("forward", LAYERS[0])["algorithm"] == "three_tf32"
    forced = plan("forward", LAYERS[0], algorithm="direct")
    assert forced["algorithm"] == "direct"


FEW_CHANNELS = {
    "depthwise": Problem("depthwise", 1, 96, 28, 28, 96, 3, 3, padding=(1, 1, 1, 1), groups=96),
    "grouped": Problem("groups_of_eight", 1, 64, 28, 28, 64, 3, 3, (2, 2), (1, 1, 1, 1), groups=8),
    "first_layer": Problem("first", 1, 3, 112, 112, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
}


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", FEW_CHANNELS)
def test_few_channels(pass_name, name):
    z = FEW_CHANNELS[name]
    assert plan(pass_name, z)["algorithm"] == name
    for other in set(FEW_CHANNELS) - {name}:
        assert reasons(plan(pass_name, z))[other].startswith("it is for ")
    short = plan(pass_name, z, torch.bfloat16)
    if name != "first_layer":
        assert short["algorithm"] == name
    else:
        assert short["algorithm"] == ("first_layer_cores" if pass_name == "forward" else "tensor_cores")
        assert "tensor cores" in reasons(short)[name]
        assert "precision" in reasons(plan("forward", z))["first_layer_cores"]
        assert plan(pass_name, z, torch.bfloat16, capability=75)["algorithm"] == name


def test_few_channels_leave_the_rest_to_others():
    patches = Problem("patches", 1, 3, 224, 224, 768, 16, 16, (16, 16))
    assert "share no input" in reasons(plan("forward", patches))["first_layer"]
    wide = Problem("groups_of_sixteen", 1, 64, 28, 28, 64, 3, 3, padding=(1, 1, 1, 1), groups=4)
    assert plan("forward", wide)["algorithm"] == "grouped"
    assert plan("forward", wide, torch.bfloat16)["algorithm"] == "tensor_cores"
    wider = Problem("groups_of_32", 1, 64, 28, 28, 64, 3, 3, padding=(1, 1, 1, 1), groups=2)
    assert "2 to 16 channels" in reasons(plan("forward", wider))["grouped"]
    far = Problem("dilated_far", 1, 8, 700, 700, 8, 3, 3, dilation=(300, 300), groups=8)
    assert "does not fit" in reasons(plan("forward", far))["depthwise"]
    assert plan("forward", far)["algorithm"] == "direct"
    strided = Problem("strided_far", 1, 8, 70, 70, 8, 3, 3, (17, 17), groups=8)
    assert "stride above 16" in reasons(plan("input_grad", strided))["depthwise"]


@pytest.mark.parametrize("pass_name", PASSES)
def test_three_products_of_tf32_where_that_pays(pass_name):
    """On the devices whose TF32 is eight times as fast as float32, for sums that are long enough."""
    for capability in (80, 90, 100, 103):
        assert plan(pass_name, LAYERS[0], capability=capability)["algorithm"] == "three_tf32"
    for capability in (75, 86, 89, 120):
        found = plan(pass_name, LAYERS[0], capability=capability)
        assert found["algorithm"] == "multiply_add" and reasons(found)["three_tf32"]
    short = plan(pass_name, Problem("short", 1, 9, 1, 19, 9, 1, 1))
    assert short["algorithm"] == "multiply_add" and "32 products" in reasons(short)["three_tf32"]
    assert "one channel" in reasons(plan("forward", Problem("one", 1, 1, 32, 30, 20, 7, 7)))["three_tf32"]


def test_copies_of_operands_are_in_the_workspace():
    """An odd number of channels is filled up to whole vectors; what lies in vectors already is read in place."""
    odd, even = Problem("odd", 2, 31, 20, 20, 128, 1, 1), Problem("even", 2, 32, 20, 20, 128, 1, 1)
    packed_weights, copy = 128 * 32 * 2, 2 * 20 * 20 * 32 * 2
    assert plan("forward", odd, torch.bfloat16)["workspace_bytes"] == packed_weights + copy
    assert plan("forward", even, torch.bfloat16)["workspace_bytes"] == copy
    assert plan("input_grad", even, torch.bfloat16)["workspace_bytes"] == packed_weights + 4 * copy
    assert plan("forward", even, torch.float64)["workspace_bytes"] == 0


@pytest.mark.parametrize("algorithm", ["tensor_cores", "wgmma"])
def test_what_is_read_in_place_is_told(algorithm):
    def told(pass_name, z, dtype, channels_last, **more):
        tiles = plan(pass_name, z, dtype, algorithm, capability=90, channels_last=channels_last, **more)["tiles"]
        return tiles["weights"], tiles["source"]

    z = Problem("even", 2, 64, 20, 20, 128, 3, 3)
    assert told("forward", z, torch.bfloat16, True) == ("in place", "in place")
    assert told("forward", z, torch.bfloat16, False) == ("packed", "copied")
    across = "in place" if algorithm == "wgmma" else "packed"  # weights that run across the sum
    assert told("input_grad", z, torch.float16, True) == (across, "in place")
    assert told("input_grad", z, torch.float16, False)[0] == "packed"
    assert told("input_grad", replace(z, groups=4), torch.float16, True)[0] == across
    assert told("input_grad", replace(z, groups=16), torch.float16, True)[0] == "packed"  # products of 16 cut groups
    assert told("forward", replace(z, c=60), torch.bfloat16, True) == ("packed", "copied")
    if algorithm == "wgmma":
        assert told("forward", z, torch.float32, True, precision="tf32") == ("packed", "copied")
    assert "weights" not in plan("weight_grad", z, torch.bfloat16, algorithm, capability=90)["tiles"]


def test_how_wide_operands_are_read_and_written_is_told():
    def tiles(pass_name, z, dtype=torch.float32, channels_last=True, algorithm="multiply_add", **more):
        return plan(pass_name, z, dtype, algorithm, channels_last=channels_last, **more)["tiles"]

    even, odd = Problem("even", 2, 8, 9, 9, 16, 3, 3), Problem("odd", 2, 7, 9, 9, 16, 3, 3)
    wide, copies = "vectors of channels", "bytes of a copy"
    assert [tiles("forward", z, channels_last=last)["loads"] for z in (even, odd) for last in (True, False)] == [
        wide, "positions", "positions", "positions",
    ]  # fmt: skip
    assert tiles("input_grad", odd)["loads"] == wide  # it reads the gradient's channels
    assert [tiles("weight_grad", even, channels_last=last)["loads"] for last in (True, False)] == [
        "channels", "positions",
    ]  # fmt: skip
    assert tiles("weight_grad", even, torch.float64, algorithm="tensor_cores")["loads"] == wide
    assert tiles("forward", odd, torch.bfloat16, algorithm="tensor_cores")["loads"] == wide  # of a copy
    assert tiles("forward", even, torch.complex64)["loads"] == "positions"
    assert [tiles("input_grad", z)["stores"] for z in (even, odd)] == ["vectors", "numbers"]
    assert tiles("forward", even, channels_last=False)["stores"] == "numbers"  # planes of 49
    assert tiles("forward", replace(even, h=10), channels_last=False)["stores"] == "vectors"  # of 56
    layer = Problem("depthwise", 1, 24, 28, 28, 24, 3, 3, padding=(1, 1, 1, 1), groups=24)
    for z, last, bytes_ in (
        (layer, True, 16),
        (layer, False, 16),
        (replace(layer, w=26), False, 8),
        (replace(layer, w=27), False, 4),
        (replace(layer, c=21, k=21, groups=21), True, 4),
    ):
        found = tiles("forward", z, channels_last=last, algorithm="depthwise")
        assert found[copies] == bytes_, z
    found = tiles("weight_grad", replace(layer, w=26, stride=(1, 2)), torch.bfloat16, False, "depthwise")
    assert (found[copies], found["bytes of a gradient's copy"]) == (4, 2)
    first = Problem("first", 1, 4, 32, 32, 64, 3, 3)
    assert tiles("forward", first, torch.bfloat16, algorithm="first_layer_cores")[copies] == 8


def test_every_no_has_a_reason_and_something_always_runs():
    for z in SMALL + CORNERS:
        for pass_name in PASSES:
            found = plan(pass_name, z)
            assert found["tasks"] >= 1 and found["isa"] == "sm_80"
            for name, reason, possible, _ in found["candidates"]:
                assert possible or reason
                if name == found["algorithm"]:
                    assert reason is None


def test_what_no_kernel_can_count_is_refused_with_a_reason():
    huge = Problem("huge", 1, 1, 1, 2**31, 1, 1, 1)
    with pytest.raises(RuntimeError, match="2.30"):
        plan("forward", huge)
    names = "algorithm must be one of auto, depthwise, grouped, first_layer_cores, first_layer, "
    with pytest.raises(RuntimeError, match=names):
        plan("forward", LAYERS[0], algorithm="winograd")


@pytest.mark.parametrize("pass_name", GATHERING)
def test_wgmma_has_to_be_asked_for_and_says_where_it_cannot(pass_name):
    """It never gives way to another algorithm when it is asked for."""
    on_wgmma = dict(algorithm="wgmma", capability=90)
    assert "not run on a device" in reasons(plan(pass_name, LAYERS[0], torch.bfloat16, capability=90))["wgmma"]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = plan(pass_name, LAYERS[2], dtype, **on_wgmma)
        assert found["algorithm"] == "wgmma"
        assert bits(plan(pass_name, LAYERS[2], dtype, n=31, **on_wgmma)) == bits(found)
    assert plan(pass_name, LAYERS[1], torch.bfloat16, **on_wgmma)["tiles"]["splits"] > 1

    def no(z, dtype=torch.bfloat16, capability=90):
        with pytest.raises(RuntimeError) as error:
            plan(pass_name, z, dtype, algorithm="wgmma", capability=capability)
        return str(error.value)

    assert "9.0" in no(LAYERS[0], capability=100) and "9.0" in no(LAYERS[0], capability=80)
    assert "16 and 32 bits" in no(LAYERS[0], torch.float64) and "16 and 32 bits" in no(LAYERS[0], torch.complex64)
    steps = no(Problem("steps", 1, 8, 90, 9, 8, 1, 1, (9, 2)))
    assert ("8 positions" if pass_name == "forward" else "16 phases") in steps
    assert "box" in no(Problem("reach", 1, 8, 200, 9, 8, 140, 1))
    assert "box" in no(Problem("padding", 1, 8, 9, 9, 8, 1, 1, padding=(0, 0, 130, 0)))


@pytest.mark.parametrize("pass_name", GATHERING)
def test_blocks_of_wgmma_form_all_parts_of_a_sum_where_a_batch_is_large(pass_name):
    """16-bit sums of 4608 products have eight parts: of eight blocks for one image, of one block for 64."""
    found = {n: plan(pass_name, LAYERS[1], torch.bfloat16, "wgmma", capability=90, n=n) for n in (1, 8, 64)}
    assert [f["tiles"]["splits"] for f in found.values()] == [8, 8, 1]
    assert all(f["tiles"]["parts"] == 8 and f["tiles"]["chain"] == 2 for f in found.values())
    assert found[1]["tasks"] >= 64 and found[8]["tasks"] >= 128
    tf32 = plan(pass_name, LAYERS[1], algorithm="wgmma", precision="tf32", capability=90, n=64)
    assert tf32["tiles"]["parts"] == tf32["tiles"]["splits"] == 2


def test_the_widest_tiles_are_for_sums_that_need_no_chains():
    wide = Problem("wide", 1, 128, 28, 28, 512, 3, 3, padding=(1, 1, 1, 1))  # 1152 products
    on_wgmma = dict(algorithm="wgmma", capability=90)
    found = {n: plan("forward", wide, torch.bfloat16, n=n, **on_wgmma)["tiles"] for n in (1, 64)}
    assert found[64]["sums"] == "256x128" and found[1]["sums"] == "64x128"
    assert found[1]["chain"] == found[64]["chain"] == 18  # all steps: the tile does not change a bit
    assert plan("forward", wide, torch.float16, n=64, **on_wgmma)["tiles"]["chain"] == 2
    assert plan("forward", wide, torch.float16, n=64, **on_wgmma)["tiles"]["sums"] == "128x128"
    short = Problem("short", 1, 256, 28, 28, 512, 1, 1)
    assert plan("forward", short, torch.float16, n=64, **on_wgmma)["tiles"]["sums"] == "256x128"
    longer = Problem("longer", 1, 256, 56, 56, 512, 3, 3, padding=(1, 1, 1, 1))  # 2304
    narrower = Problem("narrower", 1, 128, 56, 56, 384, 3, 3, padding=(1, 1, 1, 1))
    for z in (longer, narrower):
        assert plan("forward", z, torch.bfloat16, n=64, **on_wgmma)["tiles"]["sums"] == "128x128"
    assert plan("forward", wide, n=64, **on_wgmma)["tiles"]["sums"] == "128x128"


def test_wgmma_computes_the_weight_grad_of_what_is_multiplied_in_16_bits():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = plan("weight_grad", LAYERS[2], dtype, algorithm="wgmma", capability=90, n=64)
        assert found["algorithm"] == "wgmma" and found["tiles"]["splits"] > 1
    with pytest.raises(RuntimeError, match="weight_grad"):
        plan("weight_grad", LAYERS[0], algorithm="wgmma", precision="tf32", capability=90)
