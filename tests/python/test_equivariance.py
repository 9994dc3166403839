"""Equivariance to translation: what is moved in the input is moved in the output, and nothing else changes."""

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import models

SHIFTS = [(0, 1), (3, 0), (2, 5)]


def moved(x, rows, columns):
    """The maps with their content so many rows down and columns right, zeros where it was."""
    y = torch.zeros_like(x)
    y[..., rows:, columns:] = x[..., : x.shape[-2] - rows, : x.shape[-1] - columns]
    return y


@pytest.fixture
def spot():
    """Maps in which something is in the middle, far from the border."""
    x = torch.zeros(2, 4, 28, 30)
    x[:, :, 8:14, 9:15] = torch.randn(2, 4, 6, 6)
    return x


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("options", [{}, {"padding": 2}, {"dilation": 2}, {"groups": 2}], ids=str)
def test_convolution_is_equivariant_to_translation(options, shift, spot):
    """To the bit: the sum of an output is the same wherever it is."""
    w = torch.randn(6, 4 // options.get("groups", 1), 3, 3)
    y, y_moved = (conv_ext.conv2d(x, w, **options) for x in (spot, moved(spot, *shift)))
    assert y.any() and torch.equal(y_moved, moved(y, *shift)) and not torch.equal(y_moved, y)


@pytest.mark.parametrize("shift", SHIFTS)
def test_its_input_gradient_is_equivariant_too_and_its_weight_gradient_invariant(shift, spot):
    w = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for rows, columns in ((0, 0), shift):
        x = moved(spot.double(), rows, columns).requires_grad_()
        y = conv_ext.conv2d(x, w)
        found.append(torch.autograd.grad(y, (x, w), y.detach()))
    torch.testing.assert_close(found[1][0], moved(found[0][0], *shift), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-12, atol=1e-12)


def test_a_stride_leaves_equivariance_to_its_multiples(spot):
    w = torch.randn(6, 4, 3, 3)
    y = conv_ext.conv2d(spot, w, stride=2)
    assert torch.equal(conv_ext.conv2d(moved(spot, 4, 2), w, stride=2), moved(y, 2, 1))
    assert not torch.equal(conv_ext.conv2d(moved(spot, 4, 1), w, stride=2), moved(y, 2, 0))
    assert not torch.equal(conv_ext.conv2d(moved(spot, 4, 1), w, stride=2), moved(y, 2, 1))


def test_a_table_of_connections_is_equivariant(spot):
    layer = conv_ext.MappedConv2d([[0, 1], [1, 2, 3], [3]], 3, bias=False)
    assert torch.equal(layer(moved(spot, 2, 3)), moved(layer(spot), 2, 3))


def test_a_network_is_equivariant_by_its_step_and_a_full_connection_is_not(spot):
    """Two convolutions, each with pooling by two: four positions of the image are one of the maps."""
    torch.manual_seed(0)
    net = models.mnist_convnet(in_channels=4).eval()
    for module in net.features:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    x = spot[:, :, :28, :28]
    with torch.no_grad():
        y, scores = net.features(x), net(x)
        assert torch.equal(net.features(moved(x, 4, 4))[:, :, 1:, 1:], y[:, :, :-1, :-1])
        assert not torch.equal(net.features(moved(x, 2, 0)), y)
        assert (net(moved(x, 4, 4)) - scores).abs().max() > 0.1
