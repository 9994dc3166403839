"""The padding strings beyond torch's: "full" and "same_strided", as function and as layer, against explicit zeros."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext.arguments import padding_of

RULES = ("full", "same_strided")
GEOMETRIES = [  # kernel, stride, dilation
    ((3, 3), (1, 1), (1, 1)),
    ((4, 3), (2, 3), (1, 2)),
    ((5, 2), (3, 1), (2, 1)),
    ((1, 1), (2, 2), (1, 1)),
    ((2, 7), (5, 2), (1, 1)),
]


def zeros(rule, size, kernel, stride, dilation):
    """What F.pad takes, by the definitions: (left, right, top, bottom)."""
    found = []
    for n, r, s, d in reversed(list(zip(size, kernel, stride, dilation))):
        reach = d * (r - 1)
        total = max((math.ceil(n / s) - 1) * s + reach + 1 - n, 0)
        found += [reach, reach] if rule == "full" else [total // 2, total - total // 2]
    return found


def operands(kernel, size=(11, 8)):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    return x, w


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel, stride, dilation", GEOMETRIES)
def test_functions(rule, kernel, stride, dilation):
    x, w = operands(kernel)
    y = conv_ext.conv2d(x, w, None, stride, rule, dilation)
    expected = F.conv2d(F.pad(x, zeros(rule, x.shape[2:], kernel, stride, dilation)), w, None, stride, 0, dilation)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if rule == "same_strided":
        assert y.shape[2:] == tuple(math.ceil(n / s) for n, s in zip(x.shape[2:], stride))
    elif stride == (1, 1):
        assert y.shape[2:] == tuple(n + d * (r - 1) for n, r, d in zip(x.shape[2:], kernel, dilation))
    g = torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(expected, (x, w), g)):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        conv_ext.conv1d(x[:, :, 0], w[:, :, 0], None, stride[1], rule, dilation[1]),
        F.conv1d(F.pad(x[:, :, 0], zeros(rule, x.shape[3:], kernel[1:], stride[1:], dilation[1:])), w[:, :, 0], None,
                 stride[1], 0, dilation[1]),
    )  # fmt: skip


def test_a_kernel_of_one_element_needs_none_whatever_the_size():
    """The size is not looked at: what followed from a symbolic one would have to be proved to be 0."""
    assert padding_of("same_strided", (None, None), (1, 1), (3, 2), (1, 4)) == (0,) * 4


def test_full_is_the_mathematicians_convolution_of_polynomials():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])
    product = conv_ext.conv1d(a[None], b.flip(0)[None, None], padding="full")[0]
    assert product.tolist() == [4.0, 13.0, 22.0, 15.0]  # (1 + 2x + 3x²)(4 + 5x)


@pytest.mark.parametrize("algorithm", ["direct", "reference"])
def test_every_way_through(algorithm):
    x, w = (t.detach().float() for t in operands((4, 3)))
    with conv_ext.algorithm(algorithm):
        for rule in RULES:
            wanted = F.conv2d(F.pad(x, zeros(rule, (11, 8), (4, 3), (2, 1), (1, 1))), w, stride=(2, 1))
            torch.testing.assert_close(conv_ext.conv2d(x, w, stride=(2, 1), padding=rule), wanted)
            torch.testing.assert_close(conv_ext.conv2d(x[0], w, stride=(2, 1), padding=rule), wanted[0])
            shown = str(conv_ext.explain(x, w, stride=(2, 1), padding=rule))
            assert f"P {wanted.shape[2]}  Q {wanted.shape[3]}" in shown


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_layers(rule, mode):
    kernel, stride, dilation = (4, 3), (2, 3), (1, 2)
    keywords = {"dilation": dilation, "padding_mode": mode, "dtype": torch.float64}
    layer = conv_ext.Conv2d(3, 4, kernel, stride, rule, **keywords)
    assert layer.padding == rule and f"padding={rule}" in repr(layer)
    by_name = conv_ext.Conv2d(3, 4, kernel, stride, padding=rule, **keywords)
    by_name.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    amounts = zeros(rule, (11, 8), kernel, stride, dilation)
    padded = F.pad(x, amounts) if mode == "zeros" else F.pad(x, amounts, mode=mode)
    expected = F.conv2d(padded, layer.weight, layer.bias, stride, 0, dilation)
    for each in (layer, by_name, copy.deepcopy(layer)):
        torch.testing.assert_close(each(x), expected, rtol=1e-12, atol=1e-12)
    short = conv_ext.Conv1d(3, 4, 4, stride=2, padding=rule, padding_mode=mode)
    assert short(x[:, :, 0].float()).shape[2] == (4 if rule == "same_strided" else (8 + 2 * 3 - 4) // 2 + 1)
    # torch's constructor fills weights with the same random numbers whatever the padding is
    torch.manual_seed(0)
    first = conv_ext.Conv2d(3, 4, 3, padding=rule).weight
    torch.manual_seed(0)
    assert torch.equal(first, nn.Conv2d(3, 4, 3).weight)


def test_revert_writes_full_as_numbers_and_refuses_same_strided():
    net = nn.Sequential(conv_ext.Conv2d(3, 4, (4, 3), stride=2, padding="full", dilation=2))
    x = torch.randn(2, 3, 11, 8)
    expected = net(x)
    conv_ext.revert(net)
    assert type(net[0]) is nn.Conv2d and net[0].padding == (6, 4)
    torch.testing.assert_close(net(x), expected)
    net = nn.Sequential(conv_ext.Conv2d(3, 4, 3), conv_ext.Conv2d(4, 4, 3, stride=2, padding="same_strided"))
    with pytest.raises(ValueError, match="revert: torch's layers have no padding 'same_strided', but 1 has it"):
        conv_ext.revert(net)
    assert type(net[0]) is conv_ext.Conv2d


def test_bad_strings():
    x, w = operands((3, 3))
    names = "'valid', 'same', 'full', 'same_strided'"
    with pytest.raises(RuntimeError, match=f"Invalid padding string: 'FULL': it must be one of {names}"):
        conv_ext.conv2d(x, w, padding="FULL")
    with pytest.raises(RuntimeError, match="'same' is not supported for strided convolutions.*'same_strided' pads to"):
        conv_ext.conv2d(x, w, stride=2, padding="same")
    for make in (conv_ext.Conv1d, conv_ext.Conv2d):
        with pytest.raises(ValueError, match=f"Invalid padding string 'SAME', should be one of {names}"):
            make(3, 4, 3, padding="SAME")
        with pytest.raises(ValueError, match="'same' is not supported for strided"):
            make(3, 4, 3, stride=2, padding="same")
    for rule in RULES:  # what else is wrong stays the operator's to say
        with pytest.raises(RuntimeError, match="stride must be positive"):
            conv_ext.conv2d(x, w, stride=0, padding=rule)
        with pytest.raises(RuntimeError, match="dilation should be greater than zero"):
            conv_ext.conv2d(x, w, dilation=0, padding=rule)
        with pytest.raises(RuntimeError, match="effective kernel size exceeds"):
            conv_ext.conv2d(x, w, dilation=2**62, padding=rule)
        with pytest.raises(TypeError, match="must be tuple of ints, not str"):
            conv_ext.conv_transpose2d(x, w, padding=rule)


@pytest.mark.parametrize("rule", RULES)
def test_compiled_with_sizes_that_change(rule):
    layer = conv_ext.Conv2d(3, 4, 3, stride=2, padding=rule)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((7, 9), (8, 12), (10, 5)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), layer(x))
