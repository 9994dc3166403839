"""FlopCounterMode counts our convolutions: as many as torch's, with groups and in the backward pass as by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import conv_ext
from children import run_python


def count(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


CALLS = {
    "conv2d": lambda m: m.conv2d(torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 2), torch.randn(6), 2, (1, 0)),
    "groups": lambda m: m.conv2d(torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 2), None, 1, 0, 2, 2),
    "unbatched": lambda m: m.conv2d(torch.randn(4, 9, 8), torch.randn(6, 4, 1, 1)),
    "conv1d": lambda m: m.conv1d(torch.randn(2, 4, 9), torch.randn(6, 4, 3), padding="same"),
    "conv_transpose2d": lambda m: m.conv_transpose2d(torch.randn(2, 4, 5, 6), torch.randn(4, 3, 3, 2), stride=2),
    "conv_transpose1d": lambda m: m.conv_transpose1d(torch.randn(2, 4, 5), torch.randn(4, 3, 3), stride=2),
    "transposed, groups": lambda m: m.conv_transpose2d(torch.randn(2, 4, 5, 6), torch.randn(4, 3, 3, 2), groups=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_as_many_as_torchs(name):
    mine = count(lambda: CALLS[name](conv_ext))
    assert mine == count(lambda: CALLS[name](F)) > 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_training_step(groups):
    """Each of the three passes multiplies N P Q K C/groups R S times."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.Tanh(), nn.ConvTranspose2d(6, 2, 2, 2))
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    passes = 3 * 2 * (2 * 7 * 6 * 6 * 4 // groups * 9 + 2 * 7 * 6 * 6 * 2 * 4)
    theirs = count(lambda: net(x).sum().backward())
    of_weight = 2 * (2 * 7 * 6 * 6 * 4 // groups * 9)
    assert theirs == passes + (groups - 1) * of_weight  # torch counts a grouped weight gradient as a full one
    conv_ext.convert(net)
    assert count(lambda: net(x).sum().backward()) == passes


def test_in_either_order_of_imports():
    script = "{}; {}; import torch\n"
    script += "with F(display=False) as c: e.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))"
    imports = "import conv_ext as e", "from torch.utils.flop_counter import FlopCounterMode as F"
    for order in (imports, imports[::-1]):
        child = run_python("-c", script.format(*order) + "\nprint(c.get_total_flops())")
        assert child.stdout.strip() == "32", child.stderr
