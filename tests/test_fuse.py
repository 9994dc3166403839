"""`fuse`: the same scores in fewer passes; what it takes in, what it leaves alone, what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import models
from test_models import NARROW, made


def with_statistics(net):
    """Normalisations that do something: random statistics, gains and biases."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def kinds(net):
    return [type(module).__name__ for module in net.modules()]


def assert_fused(net, x, norms=0, relus=0):
    """Equal scores, the model unchanged, and how many normalisations and ReLUs are left."""
    state, shown = copy.deepcopy(net.state_dict()), repr(net)
    fused = conv_ext.fuse(net)
    assert repr(net) == shown and all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))
    with torch.no_grad():
        expected, found = net(x), fused(x)
        largest = expected.abs().max().item()
        relative = 1e-12 if x.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=0, atol=relative * largest)
    graph = [n for n in fused.graph.nodes if n.op != "placeholder"]
    called = [type(fused.get_submodule(n.target)).__name__ for n in graph if n.op == "call_module"]
    called += [getattr(n.target, "__name__", n.target) for n in graph if n.op in ("call_function", "call_method")]
    assert sum("BatchNorm" in each for each in called) == norms, called
    assert sum("relu" in str(each).lower() for each in called) == relus, called
    return fused


# What is left: in ResNets the ReLU behind each sum, in the others those behind full connections.
LEFT = {"resnet 18": 8, "resnet 50": 16, "vgg D": 2, "vgg A-LRN": 2, "alexnet": 2, "googlenet": 0, "nin": 0,
        "mnist_convnet": 1, "lenet5": 0, "alexnet groups 2": 2}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LEFT)
def test_networks(name, dtype):
    net, x = made(name)
    assert_fused(with_statistics(net).to(dtype), x[:2].to(dtype), relus=LEFT[name])


@pytest.mark.parametrize("name", [name for name in NARROW if name not in LEFT])
def test_every_other_network_can_be_fused(name):
    net, x = made(name)
    torch.testing.assert_close(conv_ext.fuse(net.eval())(x[:1]), net(x[:1]), rtol=1e-3, atol=1e-4)


class Forms(nn.Module):
    """Every form of a ReLU, and layers of torch's."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), conv_ext.Conv2d(4, 4, 3, padding="full", bias=False)
        self.c, self.d = conv_ext.MappedConv2d([[0, 1], [2], [3, 0]], 3), nn.Conv2d(3, 4, 1)
        self.e, self.f = nn.Conv2d(4, 4, 1), nn.Conv1d(4, 5, 3)
        self.norm, self.norm1d = nn.BatchNorm2d(4), nn.BatchNorm1d(5, affine=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu(self.norm(self.b(x)))
        x = self.c(x).relu_()
        x = self.relu(self.d(x))
        x = F.relu(self.e(x), inplace=True)
        return self.norm1d(self.f(x.flatten(2))).relu()


def test_every_form():
    net = with_statistics(Forms())
    fused = assert_fused(net, torch.randn(2, 3, 9, 8))
    assert type(net.a) is nn.Conv2d and type(fused.a) is conv_ext.Conv2d
    assert fused.b.activation == "relu" and fused.b.bias is not None and net.b.bias is None
    assert not hasattr(fused, "norm") and not fused.training
    # A fused model can be fused again, changed in dtype, copied and compiled.
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    again = assert_fused(copy.deepcopy(fused).double(), x)
    torch.testing.assert_close(torch.compile(again, backend="aot_eager")(x), again(x))


class Kept(nn.Module):
    """What must stay: results that are read twice, other activations, a norm before the layer, batch statistics."""

    def __init__(self):
        super().__init__()
        self.before, self.a, self.b, self.c = nn.BatchNorm2d(3), *(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.after, self.batch = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        x = self.a(self.before(x))
        x = x + torch.relu(x)
        y = self.b(x)
        return torch.relu(torch.tanh(self.c(self.after(y) + y))) + self.batch(self.b(x))


def test_what_must_stay():
    fused = assert_fused(with_statistics(Kept()), torch.randn(2, 3, 5, 6), norms=3, relus=2)
    assert all(getattr(fused, name).activation == "none" for name in "abc")


class Shared(nn.Module):
    """One layer called three times, with different things behind it; and its weight read by a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.first(self.conv(x)) + torch.relu(self.second(self.conv(x)))
        return self.conv(x) + F.conv2d(x, self.conv.weight)


def test_layers_that_are_called_more_than_once():
    assert_fused(with_statistics(Shared()), torch.randn(2, 3, 5, 6))


def test_layers_with_hooks_and_parametrizations_stay():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU()))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    nn.utils.parametrizations.weight_norm(net[2])
    net.eval()  # what a parametrization adds comes in training mode
    assert_fused(net, torch.randn(2, 3, 5, 6), norms=1, relus=1)


def test_single_layers_and_complex_ones():
    layer = nn.Conv2d(3, 2, 3).eval()
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(conv_ext.fuse(layer)(x), layer(x))
    net = nn.Sequential(conv_ext.Conv2d(3, 2, 3, dtype=torch.complex64), nn.Identity()).eval()
    assert conv_ext.fuse(net)(x.to(torch.complex64)).is_complex()


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_refused():
    with pytest.raises(TypeError, match="fuse takes a torch.nn.Module, got str"):
        conv_ext.fuse("resnet50")
    with pytest.raises(ValueError, match="in eval mode, but Sequential and 1 more is in training mode: model.eval()"):
        conv_ext.fuse(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(RuntimeError, match="fuse: Untraceable cannot be traced by torch.fx; .* torch.fx says: "):
        conv_ext.fuse(Untraceable().eval())


def test_gradients_pass_through_a_fused_model():
    net = with_statistics(made("resnet 18")[0]).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    mine, = torch.autograd.grad(conv_ext.fuse(net)(x).sum(), x)
    theirs, = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())


def test_models_in_bfloat16_agree_as_far_as_they_round():
    net, x = made("vgg A")
    net, x = net.eval().bfloat16(), x[:1].bfloat16()
    assert torch.equal(conv_ext.fuse(net)(x), net(x))  # nothing to fold: a ReLU in the epilogue has the same bits
    assert isinstance(models.vgg("A", width=1 / 16).features[0], conv_ext.Conv2d)
