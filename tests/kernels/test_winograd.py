"""The Winograd algorithm with the larger tiles that precision "tf32" allows, and where the plan takes it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import conv_ext
from passes import PASSES, applicable, call, fill, laid_out, operands, same_bits
from problems import CORNERS, NETWORK, THREADED, Problem
from tolerance import Reference, assert_within_bound, reference

TILE = 4  # outputs of a tile along an axis
PROBLEMS = [z for z in CORNERS + NETWORK + THREADED if z.stride == z.dilation == (1, 1) and z.groups < z.c]
every_pass = pytest.mark.parametrize("pass_name", PASSES)
each_isa = pytest.mark.usefixtures("each_isa")


def over_tiles(ref: Reference, pass_name: str) -> Reference:
    """The magnitude A as the bound of "tf32" counts it: the largest over what one tile transforms together."""
    kernel = 2 * TILE - 1 if pass_name != "weight_grad" else 13  # every tile that an output may lie in; all taps
    magnitude = F.max_pool2d(ref.magnitude, kernel, 1, kernel // 2)
    return Reference(ref.terms, magnitude, ref.length)


@each_isa
@every_pass
@pytest.mark.parametrize("z", PROBLEMS, ids=str)
def test_larger_tiles_keep_the_bound_of_tf32(pass_name, z):
    for kind in ("signed", "positive"):
        a, b = operands(pass_name, z, torch.float32, kind)
        ref = over_tiles(reference(pass_name, a, b, z), pass_name)
        for layouts in (("contiguous", "contiguous"), ("channels_last", "channels_last")):
            laid = [laid_out(t, layout) for t, layout in zip((a, b), layouts)]
            got = call(pass_name, *laid, z, algorithm="winograd", precision="tf32")
            assert_within_bound(got, ref, torch.float32, "tf32")


@each_isa
@pytest.mark.parametrize("kind", ["identity", "one tap", "any"])
def test_an_error_is_in_proportion_to_what_a_tile_reads(kind):
    """Of numbers of very different sizes, where A of an output would be too little (docs/promises.md)."""
    x = torch.randn(2, 16, 21, 20) * torch.exp(4 * torch.randn(2, 16, 21, 20))
    w = torch.nn.init.dirac_(torch.empty(16, 16, 3, 3)) if kind == "identity" else torch.randn(16, 16, 3, 3)
    if kind == "one tap":
        w[:, :, 1:], w[:, :, :, 1:] = 0, 0
    z = Problem("wide", 2, 16, 21, 20, 16, 3, 3, padding=(1, 1, 1, 1))
    ref = reference("forward", x, w, z)
    around = F.max_pool2d(F.pad(x.double().abs(), (1, 1, 1, 1)), 3, 1)
    read = F.conv2d(around, w.double().abs().sum((2, 3), keepdim=True))
    got = call("forward", x, w, z, algorithm="winograd")
    assert_within_bound(got, Reference(ref.terms, read, ref.length), torch.float32)
    with pytest.raises(AssertionError, match="beyond the bound"):
        assert_within_bound(got, ref, torch.float32)
    direct = call("forward", x, w, z, algorithm="direct")
    assert_within_bound(direct, ref, torch.float32)
    assert kind != "identity" or same_bits(direct, x)


@every_pass
def test_the_larger_tiles_are_what_tf32_takes(pass_name):
    """Or the tests around this one would say nothing of them."""
    seen = set()
    for z in PROBLEMS:
        sizes = (z.input_shape, z.weight_shape, z.output_shape)
        for precision in ("ieee", "tf32"):
            if precision == "ieee" and "winograd" not in applicable(pass_name, z, torch.float32):
                continue
            plan = conv_ext._C.plan(
                pass_name, "float32", *sizes, z.stride, z.padding, z.dilation, z.groups, "winograd", precision
            )
            seen.add((precision, plan["tiles"]["transform"]))
    wanted = {("ieee", "F(2x2, 3x3)"), ("tf32", "F(4x4, 3x3)"), ("tf32", "F(4x4, 5x5)")}
    assert wanted <= seen and {transform for precision, transform in seen if precision == "ieee"} == {"F(2x2, 3x3)"}


@each_isa
@every_pass
@pytest.mark.parametrize("z", [z for z in PROBLEMS if z.name.startswith(("winograd", "threaded"))], ids=str)
def test_same_bits(pass_name, z):
    """For any number of threads, and for an image alone, whichever operand is transformed first."""
    a, b = operands(pass_name, z, torch.float32, "signed")
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(call(pass_name, a, b, z, algorithm="winograd", precision="tf32"))
    assert all(same_bits(results[0], other) for other in results[1:])
    if pass_name == "weight_grad":
        return
    for precision in ("ieee", "tf32") if "winograd" in applicable(pass_name, z, torch.float32) else ("tf32",):
        for n in (1, 2, 200):
            order = torch.arange(n) % z.n
            whole = call(pass_name, a[order], b, replace(z, n=n), algorithm="winograd", precision=precision)
            one = call(pass_name, a[:1], b, replace(z, n=1), algorithm="winograd", precision=precision)
            assert same_bits(whole[:1], one)


@each_isa
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_what_is_not_finite_stays_where_it_is_read(value, precision):
    """Transforms alone would spread it over a tile, turn infinities into NaN, and overflow on large numbers."""
    z = Problem("spoiled", 2, 17, 11, 10, 18, 3, 3, padding=(1, 1, 1, 1))
    for pass_name in PASSES:
        a, b = (t.clone() for t in operands(pass_name, z, torch.float32, "signed"))
        a[1, 3, 4, 5] = value
        got = call(pass_name, a, b, z, algorithm="winograd", precision=precision)
        wanted = call(pass_name, a, b, z, algorithm="reference")
        assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())
        assert torch.equal(got[wanted.isinf()], wanted[wanted.isinf()])


def test_the_plan_takes_it_where_it_saves():
    def chosen(c, h, k, r, precision, stride=1, groups=1):
        x, w = torch.empty(1, c, h, h), torch.empty(k, c // groups, r, r)
        with conv_ext.precision(precision):
            return conv_ext.explain(x, w, stride=stride, padding=r // 2, groups=groups).forward

    if conv_ext.build_info()["isa"] == "amx":  # three products of tiles are faster than the transforms alone
        assert chosen(64, 56, 64, 3, "tf32").algorithm == chosen(64, 28, 64, 5, "tf32").algorithm == "implicit_gemm"
    else:
        assert chosen(64, 56, 64, 3, "ieee").tiles["transform"] == "F(2x2, 3x3)"
        assert chosen(64, 56, 64, 3, "tf32").tiles["transform"] == "F(4x4, 3x3)"
        assert chosen(64, 28, 64, 5, "tf32").tiles["transform"] == "F(4x4, 5x5)"
    # Fewer channels than a vector holds, and kernels that save no products: it could be forced, and is never chosen.
    for plan, why in (
        (chosen(12, 56, 64, 3, "ieee"), None),
        (chosen(128, 56, 64, 1, "tf32"), None),
        (chosen(64, 56, 64, 3, "ieee", stride=2), "stride 1"),
    ):
        reason, possible, cycles = {name: rest for name, *rest in plan.candidates}["winograd"]
        assert plan.algorithm != "winograd" and cycles is None
        assert possible if why is None else why in reason


def test_forced_where_it_would_not_be_taken():
    """The context manager asks for it; what it cannot do at all is an error with the reason."""
    x, w = fill((2, 11, 6, 7), torch.float32, "signed", 1), fill((4, 11, 3, 3), torch.float32, "signed", 2)
    with conv_ext.algorithm("winograd"):
        torch.testing.assert_close(conv_ext.conv2d(x, w), F.conv2d(x, w))
        with pytest.raises(RuntimeError, match="algorithm winograd cannot.*its tiles are for stride 1"):
            conv_ext.conv2d(x, w, stride=2)
        with pytest.raises(RuntimeError, match="algorithm winograd cannot.*it is for float32"):
            conv_ext.conv2d(x.double(), w.double())
        with pytest.raises(RuntimeError, match="algorithm winograd cannot.*fewer than 96 products"):
            conv_ext.conv2d(x[:, :3], w[:, :3])
