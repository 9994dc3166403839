"""LeNet-5 against the figures that are printed for it, and as a network of our layers."""

import copy

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext.models import LeNet5, lenet5

# name, parameters, operations (r * r * c + 1 for each output of a layer with weights, one for each input of a pooling
# layer), volume [H, W, C]: Y. Avrithis' lecture "convolution and network architectures", 2018.
FIGURES = [
    ("c1", 156, 122304, (28, 28, 6)),
    ("s2", 0, 4704, (14, 14, 6)),
    ("c3", 2416, 241600, (10, 10, 16)),
    ("s4", 0, 1600, (5, 5, 16)),
    ("c5", 48120, 48120, (1, 1, 120)),
    ("f6", 10164, 10164, (84,)),
    ("output", 850, 850, (10,)),
]


def test_lenet5_has_the_printed_figures():
    net = lenet5()
    rows = []

    def note(name):
        def hook(module, args, output):
            parameters = sum(parameter.numel() for parameter in module.parameters())
            outputs, volume = output.numel(), tuple(output.shape[1:])
            per_output = parameters // output.shape[1]  # weights and the bias of one output
            operations = outputs * per_output if parameters else args[0].numel()
            rows.append((name, parameters, operations, volume[1:] + volume[:1]))

        return hook

    for name, module in net.named_children():
        module.register_forward_hook(note(name))
    net(torch.zeros(1, 1, 32, 32))
    assert rows == FIGURES
    assert sum(parameter.numel() for parameter in net.parameters()) == 61706


def test_lenet5_is_made_of_our_layers_and_gives_what_torchs_give():
    net = lenet5(num_classes=7, in_channels=3, dtype=torch.float64)
    assert isinstance(net, LeNet5) and [type(net.c1), type(net.c3), type(net.c5)] == [conv_ext.Conv2d] * 3
    twin = conv_ext.revert(copy.deepcopy(net))
    assert [type(twin.c1), type(twin.c3), type(twin.c5)] == [nn.Conv2d] * 3
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    scores, expected = net(x), twin(x)
    assert scores.shape == (4, 7)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    for each in (scores, expected):
        nn.functional.cross_entropy(each, torch.arange(4)).backward()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_lenet5_elsewhere_and_on_a_wrong_image():
    assert lenet5(device="meta")(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 10)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        lenet5()(torch.zeros(1, 1, 28, 28))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        lenet5()(torch.zeros(1, 1, 36, 36))
