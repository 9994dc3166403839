"""AMX's tiles: few processors have them, so the same algorithm is tested on tiles emulated in plain C++.

The library "amx-emulated" differs from "amx" in the tile instructions of csrc/cpu/gemm/amx.h alone. Indexing,
splitting into parts, accuracy, special values and memory are those of the real one; the intrinsics themselves are
compiled, linked and loaded here, and not run.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import conv_ext
import emulated as emulated_library
from children import SUPPORT, run_python
from conv_ext.library import EMULATED, available_isas
from passes import PASSES, applicable, call, expected, instruction_set, laid_out, operands, same_bits
from problems import ALL, THREADED, Problem
from tolerance import assert_exact, assert_same_with_non_finite, assert_within_bound, reference

pytestmark = pytest.mark.skipif(not emulated_library.possible(available_isas()), reason=emulated_library.REASON)
every_pass = pytest.mark.parametrize("pass_name", PASSES)
NAMES = (
    "everything no_block_divides pointwise_strided grouped_uneven many_input_channels many_output_channels "
    "one_dimensional stride_shares_a_factor_with_dilation many_images vgg_conv4 resnet_downsample threaded_few_pixels"
).split()
PROBLEMS = tuple(z for z in ALL + THREADED if z.name in NAMES)
assert len(PROBLEMS) == len(NAMES)
# Three dtypes and precisions: one, two and three parts of an operand.
KINDS = ((torch.bfloat16, "ieee"), (torch.float32, "bf16"), (torch.float32, "tf32"), (torch.float32, "ieee"))
LONG = Problem("long", 1, 200, 4, 5, 48, 3, 3, padding=(1, 1, 1, 1))


def real_operands(pass_name, z, kind):
    if kind == "positive":
        return operands(pass_name, z, torch.float32, kind)
    return tuple(
        torch.randn(t.shape, generator=torch.Generator().manual_seed(i))
        for i, t in enumerate(operands(pass_name, z, torch.float32, "positive"))
    )


@pytest.fixture(scope="module", autouse=True)
def built():
    emulated_library.build()


@pytest.fixture
def emulated():
    with instruction_set(EMULATED):
        yield


def test_it_is_chosen_by_name_alone():
    assert EMULATED not in available_isas()
    child = run_python("-c", "import conv_ext; print(conv_ext.build_info()['isa'])", CONV_EXT_ISA=EMULATED)
    assert child.stdout.strip() == EMULATED, child.stderr


@pytest.mark.usefixtures("emulated")
def test_explain_prints_the_estimates_of_tiles():
    x, w = torch.empty(1, 64, 8, 8, dtype=torch.bfloat16), torch.empty(64, 64, 3, 3, dtype=torch.bfloat16)
    plan = conv_ext.explain(x, w, padding=1).forward
    cycles = {name: own for name, _, _, own in plan.candidates}
    assert plan.algorithm == "implicit_gemm" and 0 < cycles["implicit_gemm"] < cycles["broadcast"]
    assert "estimated at 0" not in str(plan)


def test_the_real_one_loads():
    with instruction_set("amx"):
        possible = applicable("forward", LONG, torch.float32)
    assert "implicit_gemm" in possible


@every_pass
@pytest.mark.parametrize("dtype, precision", KINDS)
@pytest.mark.usefixtures("emulated")
def test_against_the_reference(pass_name, dtype, precision):
    tried = 0
    for z in PROBLEMS:
        if "implicit_gemm" not in applicable(pass_name, z, dtype, precision):
            continue
        tried += 1
        for kind in ("integers", "signed", "positive"):
            for layout in ("contiguous", "channels_last"):
                a, b = (laid_out(t, layout) for t in operands(pass_name, z, dtype, kind))
                got = call(pass_name, a, b, z, None, "implicit_gemm", precision)
                ref = expected(pass_name, z, dtype, kind)
                assert_exact(got, ref, dtype) if kind == "integers" else assert_within_bound(got, ref, dtype, precision)
    assert tried >= 3


@every_pass
@pytest.mark.parametrize("kind", ["normal", "positive"])
@pytest.mark.usefixtures("emulated")
def test_parts_are_as_accurate_as_they_should_be(pass_name, kind):
    """Three parts: like float32. Two: the 16 bits of both operands, well within what "tf32" allows."""
    a, b = real_operands(pass_name, LONG, kind)
    ref = reference(pass_name, a, b, LONG)
    errors = {}
    for precision in ("ieee", "tf32", "bf16"):
        got = call(pass_name, a, b, LONG, None, "implicit_gemm", precision)
        assert_within_bound(got, ref, torch.float32, precision)
        errors[precision] = float(((got.double() - ref.value).abs() / ref.magnitude).max())
    assert errors["ieee"] < 4 * 2.0**-24  # torch's own float32 comes to 15.7 on such data
    assert errors["tf32"] < 2.0**-15 < errors["bf16"]


@every_pass
@pytest.mark.parametrize("kind", ["normal", "positive"])
@pytest.mark.parametrize(
    "z",
    [
        Problem("one_step", 1, 32, 6, 6, 32, 1, 1),
        Problem("one_chain", 2, 384, 8, 6, 33, 1, 1),
        Problem("chains_within_a_block", 1, 40, 13, 13, 32, 7, 7, (2, 2), (3, 3, 3, 3)),
        Problem("longest", 1, 512, 6, 6, 32, 3, 3),
        Problem("longest_gradient", 1, 32, 48, 48, 512, 3, 3, padding=(1, 1, 1, 1)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("emulated")
def test_three_parts_of_sums_of_any_length(pass_name, kind, z):
    """Up to 4608 products: chains are short. oneDNN's multiply-adds are 4 to 23 u A off on such numbers."""
    a, b = real_operands(pass_name, z, kind)
    ref = reference(pass_name, a, b, z)
    got = call(pass_name, a, b, z, None, "implicit_gemm", "ieee")
    assert ((got.double() - ref.value).abs() <= 7 * 2.0**-24 * ref.magnitude).all()


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("size", [(3, 11), (7, 7), (1, 5), (16, 5)], ids=str)
@pytest.mark.usefixtures("emulated")
def test_lines_end_where_images_end(size, precision):
    """weight_grad of 1x1 kernels, in strips of 16 positions: what is behind an image's last one is another image's."""
    z = Problem("lines", 3, 40, *size, 36, 1, 1)
    ref = expected("weight_grad", z, torch.float32, "integers")
    for layouts in itertools.product(("contiguous", "channels_last", "sliced"), repeat=2):
        a, b = (laid_out(t, own) for t, own in zip(operands("weight_grad", z, torch.float32, "integers"), layouts))
        assert_exact(call("weight_grad", a, b, z, None, "implicit_gemm", precision), ref, torch.float32)


@every_pass
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, torch.finfo(torch.float32).max], ids=str)
@pytest.mark.usefixtures("emulated")
def test_what_has_no_parts(pass_name, value):
    """Parts of Inf are NaN, and those of the largest numbers overflow: they come out right, and harm nobody else."""
    for z in PROBLEMS:
        if "implicit_gemm" not in applicable(pass_name, z, torch.float32):
            continue
        for operand in (0, 1):
            pair = [t.clone() / 8 for t in operands(pass_name, z, torch.float32, "signed")]
            pair[1 - operand].flatten()[::3] = 0
            pair[operand].flatten()[len(z.name) * 7] = value
            ref = reference(pass_name, *pair, z)
            for precision in ("ieee", "tf32"):
                got = call(pass_name, *pair, z, None, "implicit_gemm", precision)
                assert torch.equal(got.isnan(), ref.value.float().isnan())
                if precision == "ieee":
                    assert_same_with_non_finite(got, ref, torch.float32)


@every_pass
@pytest.mark.parametrize("exponents", [(-38, -30), (-45, -36), (-45, 38)], ids=str)
@pytest.mark.usefixtures("emulated")
def test_small_numbers_keep_their_parts(pass_name, exponents):
    """Down to the smallest float32, and from 1e-45 to 1e38 within one sum: nothing is lost that float32 keeps."""
    for z in (LONG, next(z for z in PROBLEMS if z.name == "many_output_channels"), PROBLEMS[-1]):
        if "implicit_gemm" not in applicable(pass_name, z, torch.float32):
            continue
        generator = torch.Generator().manual_seed(len(z.name))
        a, b = (t.double() for t in operands(pass_name, z, torch.float32, "signed"))
        low, high = exponents
        spread = low + (high - low) * torch.rand(a.shape, generator=generator, dtype=torch.float64)
        a = (a * 10.0**spread).float()
        # The sums stay below 1e38.
        b = (b * 10.0 ** (-3 - 42 * torch.rand(b.shape, generator=generator, dtype=torch.float64) * (high > 0))).float()
        for first, second in ((a, b), (b, a)) if a.shape == b.shape else ((a, b),):
            ref = reference(pass_name, first, second, z)
            got = call(pass_name, first, second, z, None, "implicit_gemm", "ieee").double()
            bound = 2 * math.sqrt(ref.length) * 2.0**-24 * ref.magnitude + 2.0**-149
            assert ((got - ref.value).abs() <= bound).all(), (z, ((got - ref.value).abs() / bound).max())


@every_pass
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], ids=hex)
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.usefixtures("emulated")
def test_every_nan_stays_nan(pass_name, precision, bits):
    """Rounding to a part carries a NaN of all ones over into zero, and cuts off what makes the least one a NaN."""
    z = Problem("nan", 2, 33, 5, 4, 40, 1, 2)
    nan = torch.tensor([bits - (bits >> 31 << 32)], dtype=torch.int32).view(torch.float32)
    for operand in (0, 1):
        pair = [t.clone() for t in operands(pass_name, z, torch.float32, "signed")]
        pair[operand].flatten()[51:52] = nan
        ref = reference(pass_name, *pair, z)
        assert torch.equal(call(pass_name, *pair, z, None, "implicit_gemm", precision).isnan(), ref.value.isnan())


@every_pass
@pytest.mark.parametrize("exponent", [38.5, 40, 42, 52, 57])
@pytest.mark.usefixtures("emulated")
def test_sums_that_overflow_when_they_are_scaled(pass_name, exponent):
    """Sums from 2^80 and numbers from 2^104 on are formed anew: they are as right as any."""
    for z in (LONG, next(z for z in PROBLEMS if z.name == "many_output_channels")):
        if "implicit_gemm" not in applicable(pass_name, z, torch.float32):
            continue
        for first in (exponent, 2 * exponent - 20 if exponent > 50 else exponent):
            a, b = operands(pass_name, z, torch.float32, "signed")
            a, b = a * 2.0**first, b * 2.0 ** (2 * exponent - first)
            ref = reference(pass_name, a, b, z)
            got = call(pass_name, a, b, z, None, "implicit_gemm", "ieee")
            assert got.isfinite().all()
            assert_within_bound(got, ref, torch.float32)


@every_pass
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.usefixtures("emulated")
def test_tiles_are_chosen_where_packing_pays(pass_name, layout):
    """float32 in parts where channels are many, whatever the batch; bfloat16 always."""

    def chosen(z, precision, dtype=torch.float32):
        x, w = (torch.empty(shape, dtype=dtype) for shape in (z.input_shape, z.weight_shape))
        with conv_ext.precision(precision):
            plans = conv_ext.explain(laid_out(x, layout), laid_out(w, layout), stride=z.stride, padding=z.r // 2)
        return getattr(plans, pass_name).algorithm

    def layer(channels, size, r, n=1, stride=1, k=None):
        return Problem("layer", n, channels, size, size, k or channels, r, r, (stride, stride))

    for n in (1, 16):
        for many in (layer(512, 28, 1), layer(256, 28, 3, stride=2), layer(256, 14, 3)):
            for precision in ("ieee", "tf32"):
                assert chosen(replace(many, n=n), precision) == "implicit_gemm"
        for few in (layer(12, 56, 1), layer(8, 56, 3), layer(4, 28, 3, k=64)):
            assert chosen(replace(few, n=n), "ieee") != "implicit_gemm"
        assert chosen(replace(layer(64, 14, 1), n=n), "ieee", torch.bfloat16) == "implicit_gemm"


@every_pass
@pytest.mark.parametrize(("groups", "is_for_tiles"), [(1, True), (4, True), (8, True), (16, False), (32, False)])
@pytest.mark.usefixtures("emulated")
def test_groups_that_fill_no_vector_are_not_for_tiles(pass_name, groups, is_for_tiles):
    """A tile is 32 channels wide: of ResNeXt's groups of 4 it would multiply zeros."""
    x, w = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((2, 128, 14, 14), (128, 128 // groups, 3, 3)))
    plan = getattr(conv_ext.explain(x, w, padding=1, groups=groups), pass_name)
    assert (plan.algorithm == "implicit_gemm") == is_for_tiles


EITHER_LAYOUT = dict.fromkeys(("contiguous", "channels_last"), "weights")
LINES = {"contiguous": "lanes", "channels_last": "line", "sliced": "weights"}
SCHEDULES = [  # one image packs all of its source first, so many do not
    (Problem("deep_1x1", 1, 512, 4, 4, 520, 1, 1), 64, LINES),
    (Problem("deep_3x3", 1, 128, 5, 5, 320, 3, 3, padding=(1, 1, 1, 1)), 64, EITHER_LAYOUT),
    (Problem("deep_strided", 1, 384, 6, 5, 352, 2, 2, (2, 2)), 200, EITHER_LAYOUT),
    (Problem("deep_1x1_strided", 1, 512, 7, 7, 528, 1, 1, (2, 2)), 64, EITHER_LAYOUT),
    (Problem("deep_groups", 1, 800, 5, 6, 820, 1, 3, groups=2), 64, EITHER_LAYOUT),
]


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
@pytest.mark.parametrize("z, many, layouts", SCHEDULES, ids=[z.name for z, _, _ in SCHEDULES])
@pytest.mark.usefixtures("emulated")
def test_every_schedule_has_the_same_bits(pass_name, z, many, layouts):
    def schedule(a, b, z):
        x, w = (a, b) if pass_name == "forward" else (laid_out(torch.empty(z.input_shape), layout), b)
        with conv_ext.algorithm("implicit_gemm"):
            plans = conv_ext.explain(x, w, stride=z.stride, padding=z.padding[0], groups=z.groups)
        return getattr(plans, pass_name).tiles["first"]

    a, b = operands(pass_name, replace(z, n=many), torch.float32, "signed")
    results = []
    for layout, expected_schedule in layouts.items():
        whole = laid_out(a, layout)
        assert schedule(whole, b, replace(z, n=many)) == expected_schedule
        assert schedule(whole[7:8], b, z) == "source"
        results.append(call(pass_name, whole, b, replace(z, n=many), None, "implicit_gemm")[7:8])
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(call(pass_name, whole[7:8], b, z, None, "implicit_gemm"))
    assert all(same_bits(results[0], other) for other in results[1:])
    assert_within_bound(results[0], reference(pass_name, a[7:8], b, z), torch.float32)


@every_pass
@pytest.mark.parametrize("dtype, precision", KINDS)
@pytest.mark.usefixtures("emulated")
def test_the_same_bits(pass_name, dtype, precision):
    z = next(z for z in THREADED if z.name == "threaded_few_pixels")
    a, b = operands(pass_name, z, dtype, "signed")
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(call(pass_name, a, b, z, None, "implicit_gemm", precision))
    assert all(same_bits(results[0], other) for other in results[1:])
    if pass_name != "weight_grad":
        one = call(pass_name, a[2:3], b, replace(z, n=1), None, "implicit_gemm", precision)
        assert same_bits(one, results[0][2:3])


def test_memory():
    """Against unreadable pages, as in test_memory.py."""
    child = run_python("-X", "faulthandler", str(SUPPORT / "guarded_calls.py"), "calls", CONV_EXT_ISA=EMULATED)
    assert child.returncode == 0, f"in: {child.stdout.splitlines()[-1:]}\n{child.stderr[-3000:]}"
