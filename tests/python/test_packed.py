"""Packed weights: the bits of the layer that packs in each call, and nothing that is kept outlives its weight."""

import copy
import gc
import io
import logging
import pickle
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

import conv_ext
from conv_ext import _C, ops
from conv_ext.packed import _HEAD

FORMATS = (torch.contiguous_format, torch.channels_last)
GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), 1)  # of the layer that most tests take
SIZE = (16, 7, 6)


def images(*size, seed=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=dtype if dtype.is_complex else torch.float32).to(dtype)


def made(*arguments, **options):
    """A Conv2d of ours; by default of 16 maps to 24, whose weight every plan packs."""
    torch.manual_seed(7)
    arguments = arguments or (16, 24, 3)
    return conv_ext.Conv2d(*arguments, **{"padding": 1, **options} if arguments == (16, 24, 3) else options)


def packed_of(layer, *size):
    return conv_ext.PackedConv2d.of(layer, torch.empty(1, *(size or SIZE), dtype=layer.weight.dtype))


def is_used(packed, x):
    """Whether a call reads what is kept: it is put out of order for the time of one."""
    kept = packed._held["packed"]
    with torch.no_grad():
        expected, before = packed(x), kept.clone()
        kept[_HEAD:] = 0
        found = packed(x)
        kept.copy_(before)
    return not torch.equal(found, expected)


def assert_same(packed, layer, *sizes, dtype=None):
    """The bits of the layer that packs in each call."""
    assert isinstance(packed, conv_ext.PackedConv2d) and type(layer) is conv_ext.Conv2d
    for size in sizes or ((1, *SIZE), (5, *SIZE)):
        x = images(*size, dtype=dtype or layer.weight.dtype)
        with torch.no_grad():
            assert torch.equal(packed(x), layer(x))


# ---- the operators

PROBLEMS = {  # C, K, R, S, height, width, stride, dilation, groups
    "3x3": (16, 24, 3, 3, 7, 6, (1, 1), (1, 1), 1),
    "1x1": (16, 32, 1, 1, 7, 6, (1, 1), (1, 1), 1),
    "strided": (12, 20, 3, 2, 9, 8, (2, 1), (1, 2), 1),
    "grouped": (32, 48, 3, 3, 8, 9, (1, 1), (1, 1), 2),
    "depthwise": (16, 16, 3, 3, 9, 8, (1, 1), (1, 1), 16),
    "first": (3, 16, 5, 5, 12, 11, (2, 2), (1, 1), 1),
    "deep": (96, 64, 3, 3, 4, 4, (1, 1), (1, 1), 1),
}
KINDS = [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.float32, "bf16"), (torch.float64, "ieee"),
         (torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.complex64, "ieee")]  # fmt: skip


def problem(name, dtype, n=1, layouts=FORMATS[:1] * 2):
    c, k, r, s, h, w, stride, dilation, groups = PROBLEMS[name]
    x = images(n, c, h, w, dtype=dtype).to(memory_format=layouts[0])
    weight = images(k, c // groups, r, s, seed=4, dtype=dtype).to(memory_format=layouts[1])
    return x, weight, images(k, seed=5, dtype=dtype), (stride, (1, 0, 2, 1), dilation, groups)


@pytest.mark.parametrize("dtype, precision", KINDS, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_bits(name, dtype, precision):
    """Over layouts, batches, threads and activations; and what is kept is used, where anything is."""
    for layouts in (FORMATS[:1] * 2, FORMATS[1:] * 2, FORMATS, FORMATS[::-1]):
        x, weight, bias, geometry = problem(name, dtype, 1, layouts)
        kept = ops.pack(weight, x, *geometry, precision)
        assert kept.dtype == torch.uint8 and kept.is_contiguous()
        for n in (1, 5):
            x = problem(name, dtype, n, layouts)[0]
            for b, activation in ((None, "none"), (bias, "none" if dtype.is_complex else "relu")):
                options = *geometry, precision, "auto", activation
                expected = ops.forward(x, weight, b, *options)
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    found = ops.forward_packed(x, weight, kept, b, *options)
                    assert torch.equal(found, expected) and found.stride() == expected.stride()
                    assert torch.equal(_C.forward_packed(x, weight, b, *options, kept), expected)
                torch.set_num_threads(1)
        if kept.numel():
            zeros = torch.where(torch.arange(kept.numel()) < _HEAD, kept, 0)
            assert not torch.equal(ops.forward_packed(x, weight, zeros, bias, *options), expected)


def test_packing_does_not_depend_on_threads_or_batch():
    x, weight, _, geometry = problem("deep", torch.float32)
    kept = ops.pack(weight, x, *geometry)
    torch.set_num_threads(2)
    many = ops.pack(weight, x.expand(5, -1, -1, -1), *geometry)
    assert kept.numel() > _HEAD and torch.equal(kept[:_HEAD], many[:_HEAD]) and kept.numel() == many.numel()
    assert ops.pack(weight, x, *geometry, "ieee", "reference").numel() == 0  # it reads the weight where it lies


def test_what_is_not_for_a_call_is_passed_by():
    x, weight, bias, geometry = problem("3x3", torch.float32)
    expected = ops.forward(x, weight, bias, *geometry)
    kept = ops.pack(weight, x, *geometry)
    assert kept.numel() > _HEAD
    others = {
        "nothing": kept[:0],
        "another type": kept.view(torch.int32),
        "as floats": kept.float(),
        "cut": kept[:-1],
        "the head alone": kept[:_HEAD],
        "longer": torch.cat([kept, kept]),
        "every second byte": torch.stack([kept, kept], 1)[:, 0],
        "not aligned": torch.cat([kept[:1], kept])[1:],
        "two dimensions": kept[None],
        "of a precision": ops.pack(weight, x, *geometry, "bf16"),
        "of a type": ops.pack(weight.double(), x.double(), *geometry),
        "of a stride": ops.pack(weight, x, (2, 2), *geometry[1:]),
        "of padding": ops.pack(weight, x, geometry[0], (0, 0, 0, 0), *geometry[2:]),
        "of another layer": ops.pack(problem("deep", torch.float32)[1], problem("deep", torch.float32)[0], *geometry),
    }
    generator = torch.Generator().manual_seed(9)
    for i in range(20):  # the head at random, in one byte and in all
        broken = kept.clone()
        broken[: _HEAD if i % 2 else 200] = torch.randint(256, (_HEAD if i % 2 else 200,), generator=generator).byte()
        others[f"a head at random {i}"] = broken
        one = kept.clone()
        one[torch.randint(180, (), generator=generator)] += 1
        others[f"one byte {i}"] = one
    for name, other in others.items():
        assert torch.equal(ops.forward_packed(x, weight, other, bias, *geometry), expected), name
        assert torch.equal(_C.forward_packed(x, weight, bias, *geometry, "ieee", "auto", "none", other), expected), name
    for wrong in (None, 3, [kept]):
        if wrong is not None:  # which the dispatcher takes for a tensor of nothing
            with pytest.raises((TypeError, RuntimeError), match="packed"):
                ops.forward_packed(x, weight, wrong, bias, *geometry)
        with pytest.raises(TypeError, match="packed must be a Tensor"):
            _C.forward_packed(x, weight, bias, *geometry, "ieee", "auto", "none", wrong)
    with pytest.raises((RuntimeError, NotImplementedError)):
        ops.forward_packed(x, weight, kept.to_sparse(), bias, *geometry)
    with pytest.raises(RuntimeError, match="input and packed on the same device"):
        ops.forward_packed(x, weight, kept.to("meta"), bias, *geometry)


def test_errors_of_the_operators_are_forwards():
    x, weight, bias, geometry = problem("3x3", torch.float32)
    kept = ops.pack(weight, x, *geometry)
    for bad in ((x[:, :5], weight), (x.double(), weight), (x[0], weight), (x, weight.long())):
        with pytest.raises(RuntimeError) as wanted:
            ops.forward(*bad, bias, *geometry)
        with pytest.raises(RuntimeError) as found:
            ops.forward_packed(*bad, kept, bias, *geometry)
        assert str(found.value) == str(wanted.value)
        with pytest.raises(RuntimeError):
            ops.pack(bad[1], bad[0], *geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    pytest.importorskip("expecttest")  # which opcheck imports
    x, weight, bias, geometry = problem("3x3", dtype)
    kept = ops.pack(weight, x, *geometry)
    torch.library.opcheck(ops.pack, (weight, x, *geometry))
    torch.library.opcheck(ops.forward_packed, (x, weight, kept, bias, *geometry))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(ops.forward_packed, (*leaves[:2], kept, leaves[2], *geometry))
    torch.library.opcheck(ops.pack, (weight, x, *geometry))


def test_fake_and_meta_tensors():
    x, weight, bias, geometry = problem("3x3", torch.float32)
    meta = [t.to("meta") for t in (x, weight, torch.empty(8, dtype=torch.uint8), bias)]
    y = ops.forward_packed(*meta, *geometry)
    assert y.device.type == "meta" and y.shape == ops.forward(x, weight, bias, *geometry).shape
    with pytest.raises(RuntimeError, match="data-dependent shape"):
        ops.pack(meta[1], meta[0], *geometry)
    kept = ops.pack(weight, x, *geometry)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, weight, kept, bias)]
        assert ops.forward_packed(*fakes, *geometry).shape == y.shape
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        kept = ops.pack(mode.from_tensor(weight), mode.from_tensor(x), *geometry)
        assert kept.dtype == torch.uint8 and not isinstance(kept.shape[0], int)


def test_gradients_are_those_of_forward():
    x, weight, bias, geometry = problem("3x3", torch.float64)
    kept = ops.pack(weight, x, *geometry)
    for needed in ((0,), (1,), (2,), (0, 1, 2)):
        leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate((x, weight, bias))]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        y = ops.forward_packed(*leaves[:2], kept, leaves[2], *geometry)
        expected = ops.forward(*leaves, *geometry)
        assert y.requires_grad and torch.equal(y, expected)
        found = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        expected = torch.autograd.grad(expected.sin().sum(), wanted, create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected)) and all(g.requires_grad for g in found)
        with torch.no_grad():
            assert not ops.forward_packed(*leaves[:2], kept, leaves[2], *geometry).requires_grad

    def of_input(x):
        return ops.forward_packed(x, weight, kept, bias, *geometry)

    tangent = images(*x.shape, seed=8, dtype=torch.float64)
    _, found = torch.func.jvp(of_input, (x,), (tangent,))
    assert torch.equal(found, ops.forward(tangent, weight, None, *geometry))
    with torch.autograd.forward_ad.dual_level():
        y = of_input(torch.autograd.forward_ad.make_dual(x, tangent))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, found)
    found = torch.func.grad(lambda x: of_input(x).sum())(x)
    assert torch.equal(found, torch.func.grad(lambda x: ops.forward(x, weight, bias, *geometry).sum())(x))
    hessian = torch.func.jacrev(torch.func.jacfwd(lambda x: of_input(x)[:, 0].sin().sum()))(x[:, :, :3, :3])
    assert hessian.abs().sum() > 0


@pytest.mark.parametrize("dims", [(0, None, None, None), (1, None, None, 0), (0, None, 0, None), (None, 0, None, None),
                                  (0, 1, 0, 0), (None, None, 0, None)], ids=str)  # fmt: skip
def test_vmap(dims):
    x, weight, bias, geometry = problem("3x3", torch.float32)
    kept = ops.pack(weight, x, *geometry)
    operands = [t if dim is None else torch.stack([t, t.flip(0) if t is not kept else t], dim)
                for t, dim in zip((x, weight, kept, bias), dims)]  # fmt: skip
    found = torch.func.vmap(lambda *t: ops.forward_packed(*t, *geometry), dims)(*operands)
    for i, y in enumerate(found):
        x, weight, _, bias = (t if dim is None else t.select(dim, i) for t, dim in zip(operands, dims))
        torch.testing.assert_close(y, ops.forward(x, weight, bias, *geometry), rtol=1e-5, atol=1e-5)
    if dims[0] == 0 and dims[1:] == (None, None, None):  # a weight that is shared is the one that was packed
        kept[_HEAD:] = 0
        assert not torch.equal(torch.func.vmap(lambda *t: ops.forward_packed(*t, *geometry), dims)(*operands), found)


def test_autocast():
    x, weight, bias, geometry = problem("3x3", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, kept = ops.forward(x, weight, bias, *geometry), ops.pack(weight, x, *geometry)
        found = ops.forward_packed(x, weight, kept, bias, *geometry)
        other = ops.forward_packed(x, weight, ops.pack(weight.double(), x.double(), *geometry), bias, *geometry)
        kept[_HEAD:] = 0
        assert not torch.equal(ops.forward_packed(x, weight, kept, bias, *geometry), expected)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected) and torch.equal(other, expected)


def test_flops():
    x, weight, bias, geometry = problem("grouped", torch.float32)
    kept, counts = ops.pack(weight, x, *geometry), []
    for call in (lambda: ops.forward(x, weight, bias, *geometry),
                 lambda: ops.forward_packed(x, weight, kept, bias, *geometry)):  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
def test_nothing_is_kept_on_cuda():
    x, weight, bias, geometry = (t.cuda() if isinstance(t, torch.Tensor) else t for t in problem("3x3", torch.float32))
    kept = ops.pack(weight, x, *geometry)
    assert kept.numel() == 0 and kept.is_cuda
    expected = ops.forward(x, weight, bias, *geometry)
    assert torch.equal(ops.forward_packed(x, weight, kept, bias, *geometry), expected)
    layer = packed_of(made()).cuda()
    assert layer.packed_bytes == 0 and not layer.is_packed_for(x)


# ---- a layer


def test_a_layer():
    layer = made()
    packed = packed_of(layer)
    assert packed.packed_bytes > layer.weight.numel() and f"packed={packed.packed_bytes} bytes" in repr(packed)
    assert type(layer) is conv_ext.Conv2d and isinstance(layer.weight, nn.Parameter)
    assert_same(packed, layer, (1, *SIZE), (5, *SIZE), (0, *SIZE), SIZE, (2, 16, 11, 3))
    assert is_used(packed, images(1, *SIZE)) and is_used(packed, images(5, *SIZE)) and is_used(packed, images(*SIZE))
    with torch.no_grad():
        assert torch.equal(packed(input=images(1, *SIZE)), packed(images(1, *SIZE)))
    with torch.inference_mode():
        assert is_used(packed, images(1, *SIZE))


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "relu": {"activation": "relu"},
    "stride": {"stride": (2, 1), "dilation": (1, 2)},
    "groups": {"groups": 2},
    **{f"padding {p}": {"padding": p} for p in ("same", "valid", "full", "same_strided")},
    **{f"mode {m}": {"padding_mode": m, "padding": (1, 2)} for m in ("reflect", "replicate", "circular")},
    "mode, full": {"padding_mode": "replicate", "padding": "full"},
    "mode, same_strided": {"padding_mode": "circular", "padding": "same_strided", "stride": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_layers(name):
    layer = made(16, 24, 3, **OPTIONS[name])
    packed = packed_of(layer)
    assert_same(packed, layer, (1, *SIZE), (5, *SIZE), SIZE, (2, 16, 11, 9))
    assert is_used(packed, images(2, *SIZE)) and packed.is_packed_for(images(2, *SIZE))
    assert list(packed.state_dict()) == list(layer.state_dict())


@pytest.mark.parametrize("dtype, precision", KINDS, ids=str)
def test_settings_of_a_call(dtype, precision):
    layer = made(dtype=dtype)
    x = images(2, *SIZE, dtype=dtype)
    with conv_ext.precision(precision):
        packed = packed_of(layer)
        assert packed.is_packed_for(x) and is_used(packed, x)
    for other in ("ieee", "tf32", "bf16"):
        for algorithm in ("auto", "reference"):
            with conv_ext.precision(other), conv_ext.algorithm(algorithm), torch.no_grad():
                assert torch.equal(packed(x), layer(x))
                assert is_used(packed, x) <= packed.is_packed_for(x)
    with pytest.raises(RuntimeError, match="algorithm"), conv_ext.algorithm("wgmma"):
        packed(x)


def test_layouts_of_a_call():
    for layout in FORMATS:
        layer = made().to(memory_format=layout)
        packed = conv_ext.PackedConv2d.of(layer, images(1, *SIZE).to(memory_format=layout))
        assert packed.weight.stride() == layer.weight.stride()
        for x in (images(2, *SIZE), images(2, *SIZE).to(memory_format=torch.channels_last), images(4, *SIZE)[::2],
                  images(2, *SIZE).transpose(2, 3), images(1, *SIZE).expand(3, -1, -1, -1)):  # fmt: skip
            with torch.no_grad():
                found, expected = packed(x), layer(x)
            assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_is_packed_for():
    layer = made(64, 64, 3, padding=1)
    packed = packed_of(layer, 64, 14, 14)
    small, large = images(1, 64, 14, 14), images(2, 64, 56, 56)
    assert all(map(packed.is_packed_for, (small, small[0], small.expand(9, -1, -1, -1))))
    for x in (small, large, images(1, 64, 3, 3), small.to(memory_format=torch.channels_last)):
        assert packed.is_packed_for(x) == is_used(packed, x), x.shape
    with conv_ext.algorithm("reference"):  # it packs nothing
        assert packed.is_packed_for(small) and not is_used(packed, small)
    kept = packed._held["packed"]
    with conv_ext.precision("bf16"):
        assert not packed.is_packed_for(small)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packed.is_packed_for(small)
    assert not packed.is_packed_for(small.clone().requires_grad_())
    with torch.no_grad():
        assert packed.is_packed_for(small.clone().requires_grad_())
    assert packed._held["packed"] is kept
    packed._held["packed"] = None
    assert not packed.is_packed_for(small)
    with pytest.raises(TypeError, match="takes a Tensor"):
        packed.is_packed_for([1])
    with pytest.raises(RuntimeError, match="channels"):
        packed.is_packed_for(small[:, :5])


def test_errors_of_a_call_are_the_layers():
    layer = made()
    for packed in (packed_of(layer), conv_ext.PackedConv2d(16, 24, 3, padding=1)):
        for bad in (images(1, 5, 7, 6), images(1, *SIZE).double(), images(1, *SIZE)[None], None, 3,
                    images(1, *SIZE).long(), images(1, *SIZE).to_sparse()):  # fmt: skip
            with pytest.raises((RuntimeError, TypeError)) as wanted:
                layer(bad)
            with pytest.raises((RuntimeError, TypeError)) as found:
                packed(bad)
            assert type(found.value) is type(wanted.value) and str(found.value) == str(wanted.value)
        assert_like_new(packed)


def assert_like_new(packed):
    """What is kept is of the weight that the layer has."""
    assert_same(packed, packed.unpacked())


def test_what_of_refuses():
    x = images(1, *SIZE)

    class Derived(conv_ext.Conv2d):
        pass

    hooked = made()
    hooked.register_forward_hook(lambda *_: None)
    own = made()
    own.register_parameter("scale", nn.Parameter(torch.ones(1)))
    bare = made()
    del bare.weight
    bare.weight = torch.zeros(24, 16, 3, 3)
    patched = made()
    patched.forward = lambda x: x
    parametrized = made()
    nn.utils.parametrizations.weight_norm(parametrized)
    for layer, error, text in (
        (nn.Linear(3, 3), TypeError, "takes a Conv2d, got Linear"),
        (conv_ext.Conv1d(3, 3, 3), TypeError, "takes a Conv2d, got Conv1d"),
        (Derived(16, 24, 3), TypeError, "derived"),
        (parametrized, TypeError, "parametrized"),
        (hooked, ValueError, "hooks"),
        (own, ValueError, "its parameters are others"),
        (bare, ValueError, "its parameters are others"),
        (patched, ValueError, "forward of its own"),
        (made().to("meta"), ValueError, "on meta"),
    ):
        with pytest.raises(error, match=text):
            conv_ext.PackedConv2d.of(layer, x)
    for bad in (images(1, 5, 7, 6), x.double(), x[None], x[:, :, :0, :0]):
        with pytest.raises(RuntimeError):
            conv_ext.PackedConv2d.of(made(padding=0), bad)
    with pytest.raises(TypeError, match="input Tensor"):
        conv_ext.PackedConv2d.of(made(), SIZE)


def test_of_torchs_layer_and_of_a_packed_one():
    layer = nn.Conv2d(16, 24, 3, padding=1)
    packed = packed_of(layer)
    assert type(layer) is nn.Conv2d
    again = packed_of(packed, 16, 40, 40)
    assert again is not packed and again._example.size == (1, 16, 40, 40) and packed._example.size == (1, *SIZE)
    assert_same(again, conv_ext.convert(layer))


def test_the_constructor():
    torch.manual_seed(7)
    packed = conv_ext.PackedConv2d(16, 24, 3, padding="full", activation="relu")
    torch.manual_seed(7)
    layer = conv_ext.Conv2d(16, 24, 3, padding="full", activation="relu")
    assert torch.equal(packed.weight, layer.weight) and torch.equal(packed.bias, layer.bias)
    assert "packed=not yet" in repr(packed) and packed.packed_bytes == 0
    x = images(0, *SIZE)
    with torch.no_grad():
        packed(x)
    assert packed.packed_bytes > 0 and is_used(packed, images(3, *SIZE))  # packed by the first call, of no image
    assert_same(packed, layer)
    empty = nn.utils.skip_init(conv_ext.PackedConv2d, 16, 24, 3, padding=1)
    empty.load_state_dict(layer.state_dict())
    assert_like_new(empty)
    assert torch.equal(empty.weight, layer.weight)
    with pytest.raises(ValueError, match="activation"):
        conv_ext.PackedConv2d(3, 4, 3, activation="gelu")


# ---- nothing that is kept outlives its weight


def in_place(write):
    return lambda packed, other: write(packed)


def set_data(packed, other):
    packed.weight.data = other.weight
    packed.bias.data.zero_()


def write_numpy(packed, other):
    packed.weight.numpy()[:] = 0


def write_parameters(packed, other):
    for parameter in [*packed.parameters(), *packed.buffers(), *packed.state_dict(keep_vars=True).values()]:
        parameter.data.zero_()


def write_in_apply(packed, other):
    """A function that keeps what it gets and what it gives, and writes into both afterwards."""
    seen = []

    def keep(t):
        seen.extend([t, t.clone()])
        return seen[-1]

    packed._apply(keep)
    for t in seen:
        t.zero_()


def write_assigned(packed, other):
    weight = packed.weight
    packed.weight = weight
    weight.zero_()
    bias = nn.Parameter(packed.bias)
    packed.bias = bias
    bias.data.zero_()


def write_loaded(packed, other):
    for assign in (False, True):
        state = packed.state_dict()
        packed.load_state_dict(state, assign=assign)
        for t in state.values():
            t.zero_()


CHANGES_NOTHING = {
    "weight.zero_()": in_place(lambda packed: packed.weight.zero_()),
    "weight.data": set_data,
    "weight.data.mul_": in_place(lambda packed: packed.weight.data.mul_(2)),
    "weight[0] = 0": in_place(lambda packed: packed.weight.__setitem__(0, 0)),
    "nn.init": in_place(lambda packed: nn.init.zeros_(packed.weight)),
    "numpy": write_numpy,
    "state_dict": in_place(lambda packed: [t.zero_() for t in packed.state_dict().values()]),
    "parameters and buffers": write_parameters,
    "what _apply has seen": write_in_apply,
    "what was assigned": write_assigned,
    "what was loaded": write_loaded,
    "unpacked()": in_place(lambda packed: packed.unpacked().weight.data.zero_()),
    "a deep copy": in_place(lambda packed: copy.deepcopy(packed)._apply(torch.zeros_like)),
    "a copy": in_place(lambda packed: copy.copy(packed)._apply(torch.zeros_like)),
    "requires_grad_": in_place(lambda packed: packed.requires_grad_(True)),
    "an optimizer": in_place(lambda packed: torch.optim.SGD([packed.weight.requires_grad_()], 1.0).step()),
    "vector_to_parameters": in_place(lambda p: nn.utils.vector_to_parameters(torch.zeros(0), p.parameters())),
}


@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_writing_changes_nothing(name):
    layer = made()
    packed = packed_of(layer)
    assert_same(packed, layer)
    CHANGES_NOTHING[name](packed, made())
    assert packed.packed_bytes > 0 and is_used(packed, images(1, *SIZE))
    assert_same(packed, layer)
    assert torch.equal(packed.weight, layer.weight) and torch.equal(packed.bias, layer.bias)


def assign(wrap):
    def change(packed, layer, other):
        packed.weight, packed.bias = wrap(other.weight.detach()), wrap(other.bias.detach())
        layer.load_state_dict(other.state_dict())

    return change


def augmented(packed, layer, other):
    packed.weight *= 2
    packed.bias += 1
    layer.weight.data *= 2
    layer.bias.data += 1


def without_bias(packed, layer, other):
    packed.bias = layer.bias = None


def reset(packed, layer, other):
    for each in (packed, layer):
        torch.manual_seed(99)
        each.reset_parameters()


def both(call):
    def change(packed, layer, other):
        for each in (packed, layer):
            call(each, other)

    return change


CHANGES = {
    "a tensor": assign(lambda t: t),
    "a Parameter": assign(nn.Parameter),
    "setattr in inference mode": torch.inference_mode()(assign(lambda t: t.clone())),
    "weight *= 2": augmented,
    "bias = None": without_bias,
    "load_state_dict": both(lambda each, other: each.load_state_dict(other.state_dict())),
    "load_state_dict, assign": both(lambda each, other: each.load_state_dict(other.state_dict(), assign=True)),
    "the weight alone": both(lambda each, other: each.load_state_dict({"weight": other.weight}, strict=False)),
    "double": both(lambda each, other: each.double()),
    "half": both(lambda each, other: each.half()),
    "bfloat16": both(lambda each, other: each.bfloat16()),
    "to": both(lambda each, other: each.to(torch.float64, memory_format=torch.channels_last)),
    "there and back": both(lambda each, other: each.bfloat16().float()),
    "channels_last": both(lambda each, other: each.to(memory_format=torch.channels_last)),
    "_apply": both(lambda each, other: each._apply(lambda t: t.detach() * 3)),
    "share_memory": both(lambda each, other: each.share_memory()),
    "reset_parameters": reset,
    "geometry": both(lambda each, other: [setattr(each, "stride", (2, 1)), setattr(each, "padding", (2, 0))]),
    "activation": both(lambda each, other: setattr(each, "activation", "relu")),
    "through a model": both(lambda each, other: nn.Sequential(each).double()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_layer(name):
    torch.manual_seed(11)
    layer, other = made(), conv_ext.Conv2d(16, 24, 3)
    packed = packed_of(layer)
    CHANGES[name](packed, layer, other)
    assert packed.weight.dtype == layer.weight.dtype and packed.weight.stride() == layer.weight.stride()
    for _ in range(2):  # the first call may be the one that packs
        assert_same(packed, layer)
    assert all(torch.equal(a, b) for a, b in zip(packed.state_dict().values(), layer.state_dict().values()))
    x = images(2, *SIZE, dtype=layer.weight.dtype)
    assert packed.packed_bytes > 0 and (name == "geometry" or is_used(packed, x))
    x.requires_grad_()
    assert torch.autograd.grad(packed(x).sum(), x)[0].abs().sum() > 0  # no tensor of inference mode is kept


def test_a_weight_of_another_size():
    layer, packed = conv_ext.Conv2d(8, 32, 5), packed_of(made())
    packed.padding, packed.kernel_size, packed.in_channels, packed.out_channels = (0, 0), (5, 5), 8, 32
    packed.weight, packed.bias = layer.weight.detach(), layer.bias.detach()
    assert packed.packed_bytes == 0
    assert_same(packed, layer, (2, 8, 9, 9))
    assert packed.packed_bytes > 0 and is_used(packed, images(1, 8, 9, 9))


@pytest.mark.parametrize("how", [setattr, lambda layer, name, t: layer.register_parameter(name, nn.Parameter(t))])
def test_another_size_or_dtype_is_refused_at_once(how):
    packed = conv_ext.PackedConv2d.of(conv_ext.Conv2d(4, 6, 3, groups=2), images(1, 4, 5, 5))
    before = copy.deepcopy(packed.state_dict())
    weight, bias = packed.weight, packed.bias
    size = r"must have the size \[6, 2, 3, 3\], \(out_channels, in_channels / groups, \*kernel_size\), "
    for wrong in (torch.zeros(6, 4, 3, 3), weight[:4], weight[0], weight.flatten(), weight.mT[..., :1]):
        with pytest.raises(RuntimeError, match=size + rf".* got {re.escape(str(list(wrong.shape)))}, torch.float32"):
            how(packed, "weight", wrong)
    for wrong in (weight.double(), weight.bfloat16(), weight.to(torch.complex64)):
        with pytest.raises(RuntimeError, match=rf"the dtype torch.float32, got \[6, 2, 3, 3\], {wrong.dtype}"):
            how(packed, "weight", wrong)
    for wrong in (bias[:5], bias[None], bias.sum(), bias.double()):
        with pytest.raises(RuntimeError, match=r"the bias of .* \[6\], \(out_channels,\), and the dtype torch.float32"):
            how(packed, "bias", wrong)
    assert all(torch.equal(packed.state_dict()[name], t) for name, t in before.items()) and packed.packed_bytes > 0
    packed.bias = None
    with pytest.raises(RuntimeError, match="the bias of"):  # where there is none
        how(packed, "bias", torch.zeros(5))
    packed.double()
    how(packed, "weight", 2 * weight.double())
    assert torch.equal(packed.weight, 2 * weight.double())


def test_what_cannot_be_assigned():
    packed = packed_of(made())
    before = packed.weight
    for wrong in (3, [1.0], None, "w"):
        with pytest.raises(TypeError, match="must be a Tensor"):
            packed.weight = wrong
    graph = before.clone().requires_grad_()
    for recorded in (graph, graph * 2):
        with pytest.raises(RuntimeError, match="no gradient flows to it"):
            packed.weight = recorded
    x = images(1, *SIZE)

    def call(weight):
        return torch.func.functional_call(packed, {"weight": weight}, x).sum()

    for transformed in (
        lambda: torch.func.grad(call)(before),
        lambda: torch.func.vmap(call)(before[None]),
        lambda: torch.func.jvp(call, (before,), (before,)),
    ):
        with pytest.raises(RuntimeError, match="no transform of torch.func reaches it"):
            transformed()
    with pytest.raises((AttributeError, TypeError)):
        del packed.weight
    with pytest.raises(ValueError, match="does not have"):
        nn.utils.parametrize.register_parametrization(packed, "weight", nn.Identity())
    with pytest.raises(ValueError, match="does not have"):
        nn.utils.parametrizations.weight_norm(packed)
    with pytest.raises(KeyError):
        packed.register_buffer("weight", before)
    with pytest.raises(RuntimeError, match="size mismatch"):
        packed.load_state_dict({"weight": before[:3], "bias": packed.bias})
    with pytest.raises(RuntimeError, match="Missing key"):
        packed.load_state_dict({"weight": before})
    assert torch.equal(packed.weight, before)
    assert_like_new(packed)


def test_functional_call_puts_back_what_was_there():
    layer, packed = made(), packed_of(made())
    other = layer.weight.detach() * 2
    with torch.no_grad():
        x = images(1, *SIZE)
        found = torch.func.functional_call(packed, {"weight": other}, x)
        assert torch.equal(found, torch.func.functional_call(layer, {"weight": other}, x))
    assert_same(packed, layer)


def test_copies_and_pickles():
    layer = made(activation="relu")
    packed = packed_of(layer)
    twins = [copy.deepcopy(packed), copy.copy(packed), pickle.loads(pickle.dumps(packed))]
    file = io.BytesIO()
    torch.save(nn.Sequential(packed), file)
    assert len(file.getvalue()) < layer.weight.nbytes + packed.packed_bytes  # without the packed bytes
    file.seek(0)
    twins.append(torch.load(file, weights_only=False)[0])
    for twin in twins:
        assert twin.packed_bytes == packed.packed_bytes  # at once: compiled code could not pack
        assert_same(twin, layer)
        assert twin.packed_bytes == packed.packed_bytes and is_used(twin, images(1, *SIZE))
    twins[0].weight = torch.zeros_like(layer.weight)
    assert_same(packed, layer)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    fresh = conv_ext.Conv2d(16, 24, 3, padding=1, activation="relu")
    fresh.load_state_dict(torch.load(file))
    assert_same(packed, fresh)


def test_the_state_dict_is_the_layers():
    layer = made()
    packed = packed_of(layer)
    for keep_vars in (False, True):
        mine, theirs = packed.state_dict(keep_vars=keep_vars), layer.state_dict(keep_vars=keep_vars)
        assert list(mine) == list(theirs) == ["weight", "bias"]
        assert all(torch.equal(a, b) and type(a) is type(b) for a, b in zip(mine.values(), theirs.values()))
    assert not list(packed.parameters()) and not list(packed.buffers())
    for assign in (False, True):
        other = made()
        assert str(other.load_state_dict(packed.state_dict(), assign=assign)) == "<All keys matched successfully>"
        assert str(packed.load_state_dict(layer.state_dict(), assign=assign)) == "<All keys matched successfully>"
    assert packed_of(made(bias=False)).state_dict().keys() == {"weight"}


def test_moving_to_meta_and_back():
    packed = packed_of(made()).to("meta")
    assert packed.packed_bytes == 0 and packed(images(2, *SIZE).to("meta")).shape == (2, 24, 7, 6)
    packed.to_empty(device="cpu").load_state_dict(made().state_dict())
    assert_same(packed, made())
    assert is_used(packed, images(1, *SIZE))


def test_gradients_through_a_layer():
    layer = made()
    packed = packed_of(layer)
    found, expected = (torch.autograd.grad(each(x).sin().sum(), x)[0]
                       for each in (packed, layer) for x in [images(2, *SIZE).requires_grad_()])  # fmt: skip
    assert torch.equal(found, expected)
    assert torch.equal(torch.func.vmap(packed)(images(3, 1, *SIZE)), torch.func.vmap(layer)(images(3, 1, *SIZE)))


def test_two_threads_at_the_first_call():
    layer = made()
    expected = layer(images(2, *SIZE)).detach()
    for _ in range(20):
        packed = conv_ext.PackedConv2d(16, 24, 3, padding=1)
        packed.load_state_dict(layer.state_dict())
        found, start = [], threading.Barrier(3)

        def call(packed=packed, found=found, start=start):
            start.wait()
            with torch.no_grad():
                found.extend(packed(images(2, *SIZE)) for _ in range(3))

        def assign(packed=packed, start=start):
            start.wait()
            for _ in range(3):
                packed.weight = layer.weight.detach()

        threads = [threading.Thread(target=target) for target in (call, call, assign)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(found) == 6 and all(torch.equal(y, expected) for y in found)


def test_memory_that_cannot_be_had():
    """Whichever block fails: an error, or the right result, and a layer that packs as if nothing had been."""
    layer, x = made(64, 64, 3, padding=1), images(2, 64, 9, 9)
    with torch.no_grad():
        expected = layer(x)
    for what in ("of", "call", "assign"):
        number = 0
        while True:
            packed = packed_of(layer, 64, 9, 9) if what == "assign" else conv_ext.PackedConv2d(64, 64, 3, padding=1)
            packed.load_state_dict(layer.state_dict())
            _C.fail_block(number)
            try:
                with torch.no_grad():
                    if what == "of":
                        packed_of(layer, 64, 9, 9)
                    elif what == "call":
                        packed(x)
                    else:
                        packed.weight = layer.weight.detach()
            except RuntimeError as error:
                assert "could not allocate" in str(error)
            finally:
                reached = _C.fail_block(-1) < 0
            with torch.no_grad():
                assert torch.equal(packed(x), expected) and torch.equal(packed(x), expected)
            assert what == "of" or is_used(packed, x)
            if not reached:
                break
            number += 1
        assert number > 0, what


def test_the_old_bytes_are_freed():
    packed = packed_of(made(64, 64, 3, padding=1), 64, 9, 9)
    kept = packed._held["packed"]
    packed.weight = packed.weight
    gc.collect()
    alive = sum(t is kept for t in gc.get_objects() if type(t) is torch.Tensor)
    assert packed._held["packed"] is not kept and alive <= 1 and not gc.get_referrers(packed._held["packed"])[1:]


# ---- compilers and tracers


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["plain", "padding same_strided", "mode reflect"])
def test_compile(name):
    layer = made(16, 24, 3, **OPTIONS[name])
    packed = packed_of(layer)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((1, *SIZE), (5, *SIZE), (2, 16, 11, 9)):
            assert torch.equal(compiled(images(*size)), layer(images(*size)))
        x = images(1, *SIZE)
        before, kept = compiled(x), packed._held["packed"].clone()
        packed._held["packed"][_HEAD:] = 0
        assert not torch.equal(compiled(x), before)  # it is used
        packed._held["packed"].copy_(kept)
        packed.weight = layer.weight.detach() * 2
        layer.weight.mul_(2)
        assert torch.equal(compiled(x), layer(x)) and not torch.equal(compiled(x), before)
    x = images(1, *SIZE).requires_grad_()
    found, expected = (torch.autograd.grad(each(x).sin().sum(), x)[0] for each in (compiled, layer))
    torch.testing.assert_close(found, expected)
    unpacked = torch.compile(conv_ext.PackedConv2d(16, 24, 3), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert unpacked(images(1, *SIZE)).shape == (1, 24, 5, 4)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.exhaustive
def test_inductor():
    layer = made()
    packed = packed_of(layer)
    compiled = torch.compile(nn.Sequential(packed, nn.ReLU()), fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(images(2, *SIZE)), layer(images(2, *SIZE)).relu())


def program(layer, x, **options):
    with torch.no_grad():
        return torch.export.export(nn.Sequential(layer, nn.ReLU()).eval(), (x,), **options)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    layer, x = made(), images(2, *SIZE)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = program(packed_of(layer), x, dynamic_shapes=({0: batch},), strict=strict)
    assert "conv_ext.forward_packed" in str(exported.graph)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    with torch.no_grad():
        for each in (exported, torch.export.load(file)):
            assert torch.equal(each.module()(images(5, *SIZE)), layer(images(5, *SIZE)).relu())


@pytest.mark.exhaustive
def test_aot_inductor(tmp_path):
    layer, x = made(), images(2, *SIZE)
    path = torch._inductor.aoti_compile_and_package(program(packed_of(layer), x), package_path=str(tmp_path / "m.pt2"))
    with torch.no_grad():
        assert torch.equal(torch._inductor.aoti_load_package(path)(x), layer(x).relu())


@pytest.mark.parametrize("padding", [1, "same", "same_strided"])
def test_jit_trace(padding):
    layer = made(16, 24, 3, padding=padding)
    packed = packed_of(layer)
    with torch.no_grad():
        traced = torch.jit.trace(packed, (images(1, *SIZE),))
        assert ("forward_packed" in str(traced.inlined_graph)) == (padding == 1)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        for size in ((1, *SIZE), (5, *SIZE), (2, 16, 11, 9)):
            for each in (traced, torch.jit.load(file)):
                file.seek(0)
                assert torch.equal(each(images(*size)), layer(images(*size)))
    with pytest.raises(RuntimeError, match="cannot compile conv_ext.PackedConv2d"):
        torch.jit.script(packed)


def test_fx():
    layer = made()
    packed = packed_of(layer)
    net = nn.Sequential(packed, nn.ReLU())
    traced = torch.fx.symbolic_trace(net)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert traced.get_submodule("0") is packed
    alone = torch.fx.symbolic_trace(packed)
    with torch.no_grad():
        x = images(2, *SIZE)
        assert torch.equal(traced(x), layer(x).relu()) and torch.equal(alone(x), layer(x))
    alone._tensor_constant0.zero_()  # a copy
    assert_same(packed, layer)


def test_fake_mode():
    packed = packed_of(made())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert packed(torch.empty(2, *SIZE)).shape == (2, 24, 7, 6)
        fresh = conv_ext.PackedConv2d(16, 24, 3, padding=1)
        assert fresh(torch.empty(2, *SIZE)).shape == (2, 24, 7, 6) and fresh.packed_bytes == 0
    assert_same(packed, made())


def test_modes_and_subclasses():
    layer, packed = made(), packed_of(made())
    x = images(1, *SIZE)

    class Tagged(torch.Tensor):
        pass

    with torch.no_grad():
        with torch.device("cpu"):  # a mode: it passes the call on
            assert is_used(packed, x)
        found = packed(x.as_subclass(Tagged))
        assert type(found) is Tagged and torch.equal(found.as_subclass(torch.Tensor), layer(x))
        with conv_ext.override():
            assert torch.equal(packed(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(packed(x), layer(x))
            assert is_used(packed_of(made()), x)


# ---- a model


class Net(nn.Module):
    def __init__(self, first=conv_ext.Conv2d):
        super().__init__()
        self.first = first(3, 16, 3, padding=1)
        self.shared = conv_ext.Conv2d(16, 16, 3, padding=1)
        self.again = self.shared
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.never = nn.Conv2d(4, 4, 1)
        self.transposed = nn.ConvTranspose2d(16, 8, 2)
        self.mapped = conv_ext.MappedConv2d([[0, 1], [2, 7]], 3)
        self.hooked = conv_ext.Conv2d(2, 8, 3)
        self.hooked.register_forward_hook(lambda *_: None)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))

    def forward(self, x, scale=1.0):
        x = self.again(F.max_pool2d(self.shared(self.first(x).relu()), 2))
        x = self.mapped(self.transposed(self.depthwise(x)))
        return self.normed(self.hooked(x)) * scale


def test_a_model():
    net, texts = Net(nn.Conv2d).eval(), []
    shown, state = repr(net), copy.deepcopy(net.state_dict())
    packed = conv_ext.pack(net, images(1, 3, 24, 24), scale=2.0, report=texts.append)
    assert repr(net) == shown and all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))
    assert type(packed) is Net and not packed.training and packed.shared is packed.again
    became = {name for name, module in packed.named_modules() if type(module) is conv_ext.PackedConv2d}
    assert became == {"first", "shared", "depthwise"}
    ours = conv_ext.convert(copy.deepcopy(net))
    with torch.no_grad():
        for n in (1, 3):
            x = images(n, 3, 24, 24)
            assert torch.equal(packed(x, 2.0), ours(x, 2.0))
    assert packed.state_dict().keys() == net.state_dict().keys()
    net.load_state_dict(packed.state_dict())
    assert packed.first.packed_bytes > 0 and is_used(packed.shared, images(1, 16, 24, 24))
    (text,) = texts
    for line in ("3 convolutions packed: ", "shared: called with 2 sizes, packed for the first", "5 convolutions left:",
                 "never: the call does not reach it", "transposed: only Conv2d", "mapped: only Conv2d",
                 "hooked: it has hooks", "normed: it is parametrized"):  # fmt: skip
        assert line in text, text
    unpacked = conv_ext.unpack(packed)
    assert unpacked is packed and repr(packed) == repr(ours)
    assert all(p.requires_grad for p in packed.parameters())
    assert [name for name, _ in packed.named_parameters()] == [name for name, _ in net.named_parameters()]
    with torch.no_grad():
        assert torch.equal(packed(x), ours(x))
    packed(x).sum().backward()
    assert packed.first.weight.grad.abs().sum() > 0


def test_pack_of_a_layer_and_logging(caplog):
    layer = made().eval()
    with caplog.at_level(logging.INFO, logger="conv_ext"):
        packed = conv_ext.pack(layer, images(1, *SIZE))
    assert "1 convolution packed" in caplog.text
    assert_same(packed, layer)
    assert is_used(packed, images(2, *SIZE))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        under = conv_ext.pack(layer, images(1, *SIZE))
        assert torch.equal(under(images(2, *SIZE)), layer(images(2, *SIZE))) and is_used(under, images(2, *SIZE))
    twice = conv_ext.pack(packed, images(1, 16, 30, 30))
    assert twice._example.size == (1, 16, 30, 30)
    assert_same(twice, layer)


def test_the_way_back_keeps_what_was_frozen():
    layer = made().eval()
    layer.weight.requires_grad_(False)
    packed = pickle.loads(pickle.dumps(conv_ext.pack(layer, images(1, *SIZE))))
    for back in (packed.unpacked(), conv_ext.unpack(packed)):
        assert type(back) is conv_ext.Conv2d and repr(back) == repr(layer)
        assert not back.weight.requires_grad and back.bias.requires_grad
        assert torch.equal(back.weight, layer.weight) and list(back._parameters) == ["weight", "bias"]
        assert not {"_held", "_example", "_trainable"} & vars(back).keys()


def test_a_weight_that_others_have_too():
    net = nn.Sequential(conv_ext.Conv2d(8, 8, 3, padding=1), conv_ext.Conv2d(8, 8, 3, padding=1)).eval()
    net[1].weight = net[0].weight
    texts = []
    packed = conv_ext.pack(net, images(1, 8, 9, 9), report=texts.append)
    assert [type(m) for m in packed] == [conv_ext.Conv2d] * 2 and packed[0].weight is packed[1].weight
    assert "another module has its weight" in texts[0]


def test_fused_models_and_summary():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)).double().eval()
    fused = conv_ext.fuse(net)
    packed = conv_ext.pack(fused, images(1, 3, 12, 12, dtype=torch.float64))
    x = images(4, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(packed(x), fused(x))
    assert [r.parameters for r in conv_ext.summary(packed, (3, 12, 12)).rows] == [448, 2320]
    assert conv_ext.summary(packed, (3, 12, 12)).operations == conv_ext.summary(fused, (3, 12, 12)).operations
    assert conv_ext.summary(packed, (3, 12, 12)).unused_parameters == 0
    kept = sum(m.packed_bytes for m in packed.modules() if type(m) is conv_ext.PackedConv2d)
    assert conv_ext.summary(packed, (3, 12, 12)).packed_bytes == kept > 0
    assert f"{kept / 1024:,.1f} KiB of packed weights" in str(conv_ext.summary(packed, (3, 12, 12)))
    with torch.no_grad():
        assert torch.equal(packed(x), fused(x))  # the summary gives every tensor back
    layer = next(m for m in packed.modules() if type(m) is conv_ext.PackedConv2d)
    assert is_used(layer, x) and str(conv_ext.explain(layer, x)) == str(conv_ext.explain(layer.unpacked(), x))


def test_what_pack_refuses():
    net, x = Net().eval(), images(1, 3, 24, 24)
    for wrong in (3, Net, None):
        with pytest.raises(TypeError, match=r"takes a torch.nn.Module"):
            conv_ext.pack(wrong, x)
        with pytest.raises(TypeError, match=r"takes a torch.nn.Module"):
            conv_ext.unpack(wrong)
    with pytest.raises(TypeError, match="what the model is called with"):
        conv_ext.pack(net)
    net.mapped.train()
    with pytest.raises(ValueError, match=r"eval mode, but mapped is in training mode: model.eval\(\)"):
        conv_ext.pack(net, x)
    with pytest.raises(ValueError, match="and 1 more are in training"):
        conv_ext.pack(nn.Sequential(made()), x)
    with pytest.raises(RuntimeError, match="no parameters before its first call"):
        conv_ext.pack(nn.Sequential(nn.LazyConv2d(3, 3)).eval(), x)
    with pytest.raises(RuntimeError, match="channels"):
        conv_ext.pack(net.eval(), x[:, :2])
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_revert_of_a_fused_and_packed_model_gives_torchs_layers():
    """What an exporter wants of a model on its way to people without conv_ext."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3)).eval()
    x = torch.randn(2, 3, 12, 12)
    packed = conv_ext.pack(conv_ext.fuse(conv_ext.convert(copy.deepcopy(model))), x)
    assert any(isinstance(layer, conv_ext.PackedConv2d) for layer in packed.modules())
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)
        reverted = conv_ext.revert(packed)
        assert not any(
            type(layer).__module__.startswith("conv_ext.") for layer in reverted.modules() if not list(layer.children())
        )
        torch.testing.assert_close(reverted(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_another_layout_of_the_images_than_that_of_packing(kernel, dtype, precision, each_isa):
    """What is packed for positions as lanes is not what channels as lanes read."""
    layer = conv_ext.Conv2d(64, 40, kernel, padding=kernel // 2).to(dtype)
    formats = torch.contiguous_format, torch.channels_last
    for packed_for, called_with in ((0, 1), (1, 0)):
        x, y = (torch.randn(3, 64, 14, 14).to(dtype, memory_format=formats[i]) for i in (packed_for, called_with))
        with torch.no_grad(), conv_ext.precision(precision):
            packed = conv_ext.PackedConv2d.of(layer, x)
            assert torch.equal(packed(y), layer(y)) and torch.equal(packed(x), layer(x))
