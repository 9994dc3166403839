"""The algorithm `wgmma` on a GPU, in a process of its own: a kernel that hangs or faults takes nothing else with it."""

from dataclasses import replace

import pytest
import torch

import conv_ext
from conv_ext import _C
from passes import FILLS, LAYOUTS, PASSES, call, dtype_name, expected, operands, same_bits
from problems import CORNERS, SMALL, Problem
from test_gpu import LAYERS, on_gpu
from tolerance import assert_exact, assert_within_bound

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not conv_ext.build_info()["cuda"], reason="this build holds no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
                       reason="needs compute capability 9.0"),
]  # fmt: skip
KINDS = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
IDS = [f"{dtype_name(dtype)}-{precision}" for dtype, precision in KINDS]
# From one step of one tile to many tiles for every multiprocessor.
TILES = (
    Problem("one_step", 1, 64, 8, 16, 64, 1, 1),
    Problem("one_tap", 2, 256, 14, 15, 128, 1, 1),
    Problem("many_tiles", 16, 64, 56, 57, 136, 3, 3, padding=(1, 1, 1, 1)),
    Problem("tail_of_channels", 3, 200, 17, 16, 72, 3, 2, padding=(1, 1, 0, 1)),
    Problem("groups_in_place", 4, 192, 15, 14, 160, 3, 3, (1, 1), (2, 2, 2, 2), (2, 2), 2),
    Problem("phases", 4, 96, 29, 28, 96, 4, 3, (2, 3), (1, 1, 1, 1)),
)


def runs(pass_name, z, dtype, precision):
    sizes = (z.input_shape, z.weight_shape, z.output_shape)
    found = _C.plan(pass_name, dtype_name(dtype), *sizes, z.stride, z.padding, z.dilation, z.groups, "auto", precision,
                    False, 90)  # fmt: skip
    return next(possible for name, _, possible, _ in found["candidates"] if name == "wgmma")


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("dtype, precision", KINDS, ids=IDS)
@pytest.mark.parametrize("z", TILES + LAYERS + SMALL + CORNERS, ids=str)
def test_against_the_reference(pass_name, z, dtype, precision):
    if not runs(pass_name, z, dtype, precision):
        pytest.skip("it declines")
    for kind in FILLS if z not in CORNERS else FILLS[:2]:
        ref = expected(pass_name, z, dtype, kind)
        for layouts in LAYOUTS if z in SMALL else LAYOUTS[:2]:
            a, b = (on_gpu(t, layout) for t, layout in zip(operands(pass_name, z, dtype, kind), layouts))
            got = call(pass_name, a, b, z, None, "wgmma", precision).cpu()
            if kind == "integers":
                assert_exact(got, ref, dtype)
            else:
                assert_within_bound(got, ref, dtype, precision)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("dtype, precision", KINDS, ids=IDS)
@pytest.mark.parametrize("z", TILES, ids=str)
def test_the_same_bits_again_misaligned_and_in_any_batch(pass_name, z, dtype, precision):
    if not runs(pass_name, z, dtype, precision):
        pytest.skip("it declines")
    z = replace(z, n=5)
    a, b = (on_gpu(t, "channels_last") for t in operands(pass_name, z, dtype, "signed"))
    whole = call(pass_name, a, b, z, None, "wgmma", precision)
    for _ in range(20):
        assert same_bits(call(pass_name, a, b, z, None, "wgmma", precision).cpu(), whole.cpu())
    shifted = torch.empty(a.numel() + 1, dtype=dtype, device="cuda")[1:].as_strided(a.shape, a.stride()).copy_(a)
    assert same_bits(call(pass_name, shifted, b, z, None, "wgmma", precision).cpu(), whole.cpu())
    if pass_name != "weight_grad":
        part = call(pass_name, a[2:4], b, replace(z, n=2), None, "wgmma", precision)
        assert same_bits(part.cpu(), whole[2:4].cpu())
