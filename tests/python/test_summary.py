"""The tables of networks: every printed figure of seven of them, receptive fields by differentiation, bad input."""

import copy
import importlib.util
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import conv_ext
from conv_ext import models
from conv_ext.__main__ import main

DATA = json.loads((Path(__file__).parents[1] / "support" / "data_networks.json").read_text())["networks"]
MAKE = {
    "mnist_convnet": models.mnist_convnet,
    "cifar10_convnet": models.cifar10_convnet,
    "lenet5": lambda **w: models.lenet5(connections="full", pooling="average", **w),
    "alexnet_caffenet": models.alexnet,
    "zfnet": models.zfnet,
    "vgg16": models.vgg16,
    "googlenet": models.googlenet,
}


def parts(op):
    """An op as its word and arguments; stride and padding are printed in either order."""
    if op == "RBF(10)":  # counted as a full connection in the lecture, and one here
        op = "fc(10)"
    word, _, rest = op.partition("(")
    flags = sorted(re.findall(r"[sp]\d+", rest)) if word == "conv" else []
    return word, re.sub(r",[sp]\d+", "", rest) if flags else rest, flags


@pytest.mark.parametrize("name", MAKE)
def test_every_printed_figure(name):
    h, w, c = DATA[name]["input"]
    found = conv_ext.summary(MAKE[name](device="meta"), (c, h, w))
    rows = [[parts(row.op), row.parameters, row.operations, list(row.volume)] for row in found.rows]
    assert rows == [[parts(op), *figures] for op, *figures in DATA[name]["rows"]]
    assert found.parameters == sum(row[1] for row in DATA[name]["rows"])
    assert found.operations == sum(row[2] for row in DATA[name]["rows"])
    assert found.bytes >= 4 * found.rows[0].volume[0] ** 2


def test_there_are_seven_networks():
    assert set(DATA) == set(MAKE) and len(DATA) == 7 and sum(len(net["rows"]) for net in DATA.values()) == 84


@pytest.mark.parametrize("name, fields", [
    ("mnist_convnet", [5, 6, 14, 16, 28, 28]),
    ("lenet5", [5, 6, 14, 16, 32, 32, 32]),
    ("alexnet_caffenet", [11, 19, 19, 51, 67, 67, 99, 131, 163, 195, 355, 355, 355]),
    ("vgg16", [3, 5, 6, 10, 14, 16, 24, 32, 40, 44, 60, 76, 92, 100, 132, 164, 196, 212, 404, 404, 404]),
])  # fmt: skip
def test_known_receptive_fields(name, fields):
    h, w, c = DATA[name]["input"]
    rows = conv_ext.summary(MAKE[name](device="meta"), (c, h, w)).rows
    assert [row.receptive_field for row in rows] == [(field, field) for field in fields]
    if name == "vgg16":
        assert [row.stride for row in rows][-5:] == [(16, 16), (32, 32), None, None, None]


def extent(net, x, pick):
    """Rows and columns of x that one output depends on, by differentiation with positive weights."""
    x = x.requires_grad_()
    pick(net(x)).backward()
    seen = x.grad[0].abs().sum(0) > 0
    return tuple(int(along.nonzero().max() - along.nonzero().min() + 1) for along in (seen.any(1), seen.any(0)))


class Branches(nn.Module):
    """Two branches, a sum, functions between layers, a stride that differs."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), bias=False)
        self.b = conv_ext.Conv2d(2, 4, 1, stride=(2, 1), bias=False)
        self.c = nn.AvgPool2d(2, 2)
        self.up = conv_ext.ConvTranspose2d(4, 3, 2, stride=2, bias=False)

    def forward(self, x):
        y = torch.relu(self.a(x))
        z = self.b(x)[:, :, : y.shape[2], : y.shape[3]]
        return self.up(self.c(torch.cat([y, z.expand_as(y)], 1)[:, :4]) + 0)


def test_receptive_fields_of_a_graph_are_what_differentiation_finds():
    net = Branches()
    for p in net.parameters():
        nn.init.constant_(p, 0.5)
    x = torch.rand(1, 2, 41, 43)
    rows = {row.name: row for row in conv_ext.summary(net, (2, 41, 43)).rows}
    assert list(rows) == ["a", "b", "c", "up"]
    assert (rows["a"].receptive_field, rows["a"].stride) == ((5, 5), (2, 1))
    assert (rows["c"].receptive_field, rows["c"].stride) == ((7, 6), (4, 2))
    assert (rows["up"].receptive_field, rows["up"].stride) == ((7, 6), (2, 1))
    assert extent(net, x, lambda y: y[0, :, 9, 20].sum()) == (7, 6)
    assert rows["a"].op == "conv(3x5,4,s2x1,p1x2,d2x1)" and rows["up"].op == "deconv(2,3,s2)"
    with pytest.raises(RuntimeError, match="does not run"):
        conv_ext.summary(net, (3, 41, 43))


def test_receptive_field_of_resnet_and_inception():
    rows = conv_ext.summary(models.resnet(18, device="meta"), (3, 224, 224)).rows
    assert [row.receptive_field for row in rows if row.name.endswith("layer4.1.bn2")] == [(435, 435)]
    whole = conv_ext.summary(models.googlenet(device="meta"), (3, 224, 224))
    expanded = conv_ext.summary(models.googlenet(device="meta"), (3, 224, 224), expand=True)
    assert len(whole.rows) == 18 and len(expanded.rows) == 9 + 9 * 7
    assert (whole.parameters, whole.operations, whole.bytes) == (
        expanded.parameters, expanded.operations, expanded.bytes)  # fmt: skip
    assert [r.op for r in expanded.rows if r.name.startswith("stage3.0")] == [
        "conv(1,64)", "conv(1,96)", "conv(3,128,p1)", "conv(1,16)", "conv(5,32,p2)", "pool(3,1,p1)", "conv(1,32)"
    ]  # fmt: skip
    assert whole.unused_parameters == 6_379_728 and "6,379,728 more parameters" in str(whole)


def test_layers_without_bias_are_counted_without_one():
    """Against torch's own counter, which counts products alone."""
    net = models.resnet(50, device="meta").eval()
    found = conv_ext.summary(net, (3, 224, 224))
    rows = {row.name: row.operations for row in found.rows if row.op.startswith(("conv", "fc"))}
    with FlopCounterMode(display=False) as counter:
        conv_ext.revert(net)(torch.empty(1, 3, 224, 224, device="meta"))
    assert 2 * (sum(rows.values()) - 1000) == counter.get_total_flops()  # only fc has biases
    assert next(iter(rows.values())) == 118_013_952  # 112 · 112 · 64 · 7 · 7 · 3

    layers = [
        conv_ext.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.ConvTranspose2d(6, 2, 2, 2, bias=False),
        conv_ext.MappedConv2d([[0, 1], [1]], 2, bias=False),
        nn.Flatten(),
        nn.Linear(242, 3, bias=False),
    ]
    counts = [row.operations for row in conv_ext.summary(nn.Sequential(*layers), (4, 8, 8)).rows]
    assert counts == [36 * 6 * 2 * 9, 36 * 6 * 2 * 4, 11 * 11 * 3 * 4, 242 * 3]


def test_layers_of_every_kind():
    shared = nn.Linear(8, 8)
    net = nn.Sequential(
        conv_ext.Conv2d(4, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(), models.Maxout(2),
        conv_ext.MappedConv2d(conv_ext.ConnectionTable.one_to_one(4), 3), nn.GroupNorm(2, 4),
        conv_ext.Conv2d(4, 8, 3, groups=2, padding="full"), models.L2Pool(2), nn.AdaptiveMaxPool2d((2, 3)),
        nn.Conv2d(4, 8, (2, 3)), nn.Flatten(), shared, nn.Dropout(), shared, nn.LayerNorm(8), nn.PReLU(),
    )  # fmt: skip
    found = conv_ext.summary(net, (4, 11, 12))
    assert [row.op for row in found.rows] == [
        "conv(3,8,same)", "BatchNorm2d", "maxout(2)", "conv(3,4,table)", "GroupNorm", "conv(3,8,full,g2)", "l2(2)",
        "pool(6x4,5x4)", "conv(2x3,8)", "fc(8)", "fc(8)", "LayerNorm", "PReLU",
    ]  # fmt: skip
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert [row.parameters for row in found.rows if row.name == "11"] == [72, 0]  # one layer, used twice
    assert found.rows[3].operations == (9 + 1) * 4 * 9 * 10
    assert found.rows[5].operations == (9 * 2 + 1) * 8 * 11 * 12
    sequence = conv_ext.summary(nn.Sequential(conv_ext.Conv1d(2, 3, 5, stride=2), nn.MaxPool1d(2)), (2, 21))
    assert [(r.op, r.volume, r.receptive_field, r.operations) for r in sequence.rows] == [
        ("conv(5,3,s2)", (9, 3), (1, 5), 11 * 27), ("pool(2)", (4, 3), (1, 7), 27)
    ]  # fmt: skip
    row = conv_ext.summary(nn.Sequential(nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 3, 4, 2)), (2, 21)).rows[1]
    assert (row.op, row.volume, row.operations) == ("deconv(4,3,s2)", (44, 3), 21 * 4 * 12 + 44 * 3)
    assert (row.receptive_field, row.stride) == ((1, 2), (1, 0.5))
    pooled = conv_ext.summary(nn.Sequential(nn.Conv1d(2, 3, 1), nn.AdaptiveAvgPool1d(2)), (2, 21)).rows[1]
    assert (pooled.op, pooled.receptive_field) == ("avg(11,10)", (1, 11))
    half = conv_ext.summary(nn.Conv2d(3, 2, 3, dtype=torch.float16), (3, 5, 5))
    assert half.bytes == 2 * 2 * 9 and half.rows[0].name == "Conv2d"


RESIZING = {  # a layer -> its op, the step behind it
    "lp": (nn.LPPool2d(2, 3), "lp(3)", (3, 3)),
    "unshuffle": (nn.PixelUnshuffle(2), "PixelUnshuffle", (2, 2)),
    "shuffle": (nn.PixelShuffle(2), "PixelShuffle", (0.5, 0.5)),
    "nearest": (nn.Upsample(scale_factor=2), "Upsample", (0.5, 0.5)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "Upsample", (0.5, 0.5)),
    "rectangle": (nn.Upsample(scale_factor=(1, 3)), "Upsample", (1, Fraction(1, 3))),
    "transposed": (nn.ConvTranspose2d(4, 4, 2, 2), "deconv(2,4,s2)", (0.5, 0.5)),
    "fractional": (nn.FractionalMaxPool2d(2, output_size=10), "fractional(2)", (2, 2)),
    "pad": (nn.ZeroPad2d(1), "ZeroPad2d", (1, 1)),
}


@pytest.mark.parametrize("name", RESIZING)
def test_layers_that_change_how_many_positions_there_are(name):
    """What two convolutions with such a layer between them see is what differentiation finds."""
    layer, op, step = RESIZING[name]
    channels = {"shuffle": 1, "unshuffle": 16}.get(name, 4)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), layer, nn.Conv2d(channels, 3, 3))
    rows = conv_ext.summary(net, (2, 20, 20)).rows
    assert (rows[1].op, rows[1].stride, rows[1].operations) == (op, step, rows[1].operations) and len(rows) == 3
    if name == "transposed":
        assert rows[1].operations == 4 * 20 * 20 * 16 + 4 * 40 * 40
    else:
        assert rows[1].operations == 4 * 20 * 20
    if name == "fractional":  # its windows are at random places
        return
    for p in net.parameters():
        nn.init.constant_(p, 0.5)
    x, seen = torch.rand(1, 2, 20, 20) + 1, []
    h, w = (n // 2 for n in rows[2].volume[:2])
    for i, j in ((0, 0), (1, 1)):  # neighbours see more or less where the step is a fraction

        def pick(y, i=i, j=j):
            return y[0, :, min(h, y.shape[2] - 2) + i, min(w, y.shape[3] - 2) + j].sum()

        seen.append(extent(net, x.clone(), pick))
    assert rows[2].receptive_field == tuple(map(max, *seen))


def test_what_is_not_known_is_called_unknown():
    unfold, fold = nn.Unfold(2, stride=2), nn.Fold((6, 6), 2, stride=2)
    columns = nn.Sequential(nn.Conv2d(2, 4, 3), unfold, fold, nn.Conv2d(4, 3, 3))
    found = conv_ext.summary(columns, (2, 8, 8))
    assert [row.op for row in found.rows] == ["conv(3,4)", "Unfold", "Fold", "conv(3,3)"]
    assert [row.receptive_field for row in found.rows] == [(3, 3), None, None, None]
    assert str(found).count("unknown") == 3 and "unknown" in found.to_markdown()


@pytest.mark.parametrize("size", [(4, 12), (4, 12, 12)])
def test_every_layer_of_torch_that_moves_positions_has_a_row(size):
    """Each class of torch.nn that runs on such an input and changes the number of its positions."""
    n, found = len(size) - 1, set()
    calls = [{}, {"kernel_size": 2}, {"kernel_size": 2, "output_size": 5}, {"norm_type": 2, "kernel_size": 2},
             {"output_size": 3}, {"scale_factor": 2}, {"upscale_factor": 2}, {"downscale_factor": 2}, {"padding": 1},
             {"padding": 1, "value": 0.0}, {"in_channels": 4, "out_channels": 2, "kernel_size": 2}]  # fmt: skip
    for name, kind in vars(nn).items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or name.startswith("Lazy"):
            continue
        for options in calls:
            try:
                layer = kind(**options).eval()
                y = layer(torch.rand(1, *size))
            except Exception:
                continue  # another call fits
            if isinstance(y, torch.Tensor) and y.dim() == n + 2 and y.shape[2:] != (12,) * n:
                found.add(name)
                (row,) = conv_ext.summary(nn.Sequential(layer), size).rows
                assert row.volume == (*y.shape[2:], y.shape[1]) and row.operations > 0, name
            break
    dimensional = {f"{kind}{n}d" for kind in ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool",
                   "ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad", "Conv")}  # fmt: skip
    plane = {"FractionalMaxPool2d", "PixelShuffle", "PixelUnshuffle", "UpsamplingNearest2d", "UpsamplingBilinear2d"}
    assert found >= dimensional | {"Upsample"} | (plane if n == 2 else set())


def test_the_model_stays_as_it_is():
    net = models.googlenet(10, width=1 / 16)
    net.pool3.eval()
    before, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    conv_ext.summary(net, (3, 224, 224))
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(RuntimeError):
        conv_ext.summary(net, (4, 224, 224))
    assert [m.training for m in net.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Alias(nn.Module):
    """A layer under two names, of which one is called; a buffer that two modules share; tensors of other kinds."""

    def __init__(self):
        super().__init__()
        self.enc, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.layers, self.again = nn.ModuleList([self.enc]), self.norm
        self.register_buffer("mean", self.norm.running_mean)
        self.scale, self.lstm, self.cache = torch.ones(6, 1, 1), nn.LSTM(4, 2), {}
        self.tied = nn.Conv2d(6, 6, 1)
        self.tied.weight = nn.Parameter(torch.rand(6, 6, 1, 1))
        self.twin = nn.Conv2d(6, 6, 1)
        self.twin.weight = self.tied.weight

    def forward(self, x):
        self.seen = self.twin(self.tied(self.again(self.enc(x)))) * self.scale
        self.cache[x.shape] = y = self.seen + self.mean[:, None, None]
        return self.lstm(y.flatten(2)[0, :, :4])[0]


def tensors(net):
    """Every tensor that a module of the network holds, by where it is."""
    return {
        (name, slot, key): value
        for name, module in net.named_modules(remove_duplicate=False)
        for slot, held in vars(module).items()
        for key, value in (held.items() if isinstance(held, dict) else [(None, held)])
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["twice", "alias", "weight_norm", "parametrized"])
def test_every_tensor_of_the_model_is_the_same_object_afterwards(name):
    linear = nn.Linear(6, 6)
    net = {
        "twice": lambda: nn.Sequential(linear, nn.ReLU(), linear),
        "alias": Alias,
        "weight_norm": lambda: nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3))),
        "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3))),
    }[name]()
    before, attributes = tensors(net), [set(vars(module)) for module in net.modules()]
    values = {key: tensor.detach().clone() for key, tensor in before.items()}
    found = conv_ext.summary(net, (3, 6, 6))
    after = tensors(net)
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in before)
    assert all(torch.equal(before[key], values[key]) for key in before)
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert found.parameters == sum(p.numel() for p in net.parameters()) and found.unused_parameters == 0
    net(torch.rand(2, 3, 6, 6))
    with pytest.raises(RuntimeError, match="does not run"):
        conv_ext.summary(net, (2, 6, 5))
    after = tensors(net)
    assert all(after[key] is before[key] for key in before if name != "weight_norm")


class Scaled(nn.Module):
    """Parameters of its own beside layers: a scale and a token; a layer whose weight alone is read; one that idles."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle = nn.Conv2d(3, 8, 2, 2), nn.Linear(5, 5)
        self.scale, self.token = nn.Parameter(torch.ones(8, 1, 1)), nn.ParameterList([torch.zeros(1, 1, 8)])
        self.attention, self.read = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        assert self.idle.weight.dtype == x.dtype and self.idle.weight.shape[0] == 5
        x = (self.conv(x) * self.scale).flatten(2).transpose(1, 2)
        x = torch.cat([self.token[0].expand(len(x), -1, -1), x], 1)
        return self.attention(x, x, x)[0] @ self.read.weight


def test_parameters_that_a_module_uses_by_itself_have_a_row():
    inner = Scaled()
    found = conv_ext.summary(nn.Sequential(inner, nn.Linear(8, 2)), (3, 8, 8))
    rows = [(row.op, row.name, row.parameters) for row in found.rows]
    assert rows == [
        ("conv(2,8,s2)", "0.conv", 104), ("MultiheadAttention", "0.attention", 288), ("Scaled", "0", 8 + 8 + 64),
        ("fc(2)", "1", 18),
    ]  # fmt: skip
    assert [row.operations for row in found.rows[1:3]] == [row.bytes for row in found.rows[1:3]] == [0, 0]
    assert found.unused_parameters == 30 and "30 more parameters are not used in eval mode" in str(found)
    inner.op = "block"  # one row now, with all that is used in it
    found = conv_ext.summary(nn.Sequential(inner, nn.Linear(8, 2)), (3, 8, 8))
    assert [(row.op, row.parameters) for row in found.rows] == [("block", 104 + 288 + 80), ("fc(2)", 18)]


def test_parametrized_layers_have_one_row_and_wrapped_models_those_of_what_is_inside():
    weight_norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), weight_norm(nn.Linear(64, 2)), nn.PReLU())
    net[3] = weight_norm(net[3], dim=None)
    found = conv_ext.summary(net, (3, 6, 6))
    parameters = [4 + 108 + 4, 2 + 128 + 2, 2]
    assert [row.parameters for row in found.rows] == parameters and found.unused_parameters == 0
    assert [row.op for row in found.rows] == ["conv(3,4)", "fc(2)", "ParametrizedPReLU"]
    for wrapped in (nn.DataParallel(net), torch.compile(net), nn.DataParallel(torch.compile(net))):
        assert conv_ext.summary(wrapped, (3, 6, 6)) == found
    inside = nn.Sequential(nn.DataParallel(net))
    inside[0].device_ids = [0]  # as on a machine with a GPU
    assert [row.parameters for row in conv_ext.summary(inside, (3, 6, 6)).rows] == parameters
    assert inside[0].device_ids == [0]


def test_printing():
    found = conv_ext.summary(models.mnist_convnet(), (1, 28, 28))
    text = str(found)
    assert "ConvNet, input 1 × 28 × 28" in text
    assert re.search(r"conv\(5,64\) +features\.3 +51,264 +3,280,896 +3,276,800 +8×8×64", text)
    assert re.search(r"^all +155,606 +3,886,166 +3,841,000 +", text, re.MULTILINE) and repr(found) == text
    table = found.to_markdown().splitlines()
    assert table[0].startswith("| op | name | parameters |") and table[1].startswith("| --- | --- | ---: |")
    assert text.endswith("\n7,682,000 FLOPs, as torch's FlopCounterMode counts them")
    assert table[-2:] == ["", "7,682,000 FLOPs, as torch's FlopCounterMode counts them."]
    table = table[:-2]
    assert len(table) == 2 + 6 + 1 and {row.count("|") for row in table} == {11}
    assert "| conv(5,64) | features.3 | 51,264 | 3,280,896 | 3,276,800 | 8×8×64 | 14 | 2 | 0 | 16.0 |" in table


@pytest.mark.parametrize("model, size, error, message", [
    ("vgg16", (3, 224, 224), TypeError, "summary takes a torch.nn.Module, got str"),
    (nn.Conv2d(1, 1, 1), 28, TypeError, "input_size must be a sequence of ints, got 28"),
    (nn.Conv2d(1, 1, 1), (1, 2.5, 3), TypeError, "input_size must be a sequence of ints"),
    (nn.Conv2d(1, 1, 1), torch.ones(2, 1, 5, 6), TypeError, "a Tensor of .2, 1, 5, 6.: give its size, .1, 5, 6.$"),
    (nn.Conv2d(1, 1, 1), torch.ones(1, 5, 6), TypeError, "a Tensor of .1, 5, 6.: give the size of one image"),
    (nn.Conv2d(1, 1, 1), (1,), ValueError, "input_size must be .C, H, W. or .C, L., each at least 1"),
    (nn.Conv2d(1, 1, 1), (1, 0, 3), ValueError, "each at least 1, got .1, 0, 3."),
    (nn.Conv2d(1, 1, 1), (1, 10**12, 10**12), RuntimeError, "summary: Conv2d does not run with an input of .1, 10"),
    (nn.Conv2d(1, 1, 3), (1, 2, 2), RuntimeError, "summary: Conv2d does not run with an input of .1, 2, 2.: "),
    (nn.Sequential(nn.LazyConv2d(1, 1)), (1, 2, 2), RuntimeError, "LazyConv2d '0' has no weight before its first call"),
    (torch.jit.script(nn.Conv2d(1, 1, 1)), (1, 2, 2), RuntimeError, "Module is compiled by TorchScript"),
])  # fmt: skip
def test_bad_input(model, size, error, message):
    with pytest.raises(error, match=message):
        conv_ext.summary(model, size)


def outcome(capsys, *arguments):
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_command(capsys):
    code, out, _ = outcome(capsys, "summary", "vgg16", "--input", "3x224x224")
    assert code == 0 and re.search(r"^all +138,357,544 +15,\d{3},\d{3},\d{3} +", out, re.MULTILINE)
    code, out, _ = outcome(capsys, "summary", "resnet18", "--input", "1x64x96", "--classes", "7", "--markdown")
    assert code == 0 and "| fc(7) | fc | 3,591 |" in out and out.startswith("| op |")
    code, out, _ = outcome(capsys, "summary", "googlenet", "--expand")
    assert code == 0 and "stage5.1.branch5.2" in out
    code, _, err = outcome(capsys, "summary", "vgg16", "--input", "3x200x200")
    assert code == 2 and re.match(r"conv_ext summary: VGG does not run .*takes images of 224 x 224", err)
    for wrong in ("0", "-3", "x", str(2**31), "9" * 5000):
        code, _, err = outcome(capsys, "summary", "vgg16", f"--classes={wrong}")
        assert code == 2 and f"must be a number from 1 to 2147483647, got '{wrong[:40]}'" in err
    code, _, err = outcome(capsys, "summary", "vgg16", "--input", "3x224")
    assert code == 2 and "VGG does not run with an input of [3, 224]" in err
    for wrong in ("224", "3x0x5", "axbxc", "3x-1x5", "1x3x2x1x1", "3x" + "9" * 5000 + "x1"):
        code, _, err = outcome(capsys, "summary", "vgg16", "--input", wrong)
        assert code == 2 and f"as 3x224x224, each from 1 to 2147483647, got '{wrong[:40]}'" in err
    code, _, err = outcome(capsys, "summary", "vgg17")
    assert code == 2 and "conv_ext summary: there is no network 'vgg17': did you mean vgg1" in err
    code, out, _ = outcome(capsys, "summary", "--help")
    assert code == 0 and "--expand" in out and "nin_imagenet" in out


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2"])
def test_macs_and_flops_are_those_of_other_tools(name):
    """FlopCounterMode on a real call; two FLOPs for each product, and the lectures' operations are more."""
    from torch.utils.flop_counter import FlopCounterMode

    model = models.NETWORKS[name].make(num_classes=10).eval()
    found = conv_ext.summary(model, (3, 64, 64), batch=2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 64, 64))
    assert found.flops == counter.get_total_flops() == 2 * found.macs < 2 * found.operations
    one = conv_ext.summary(model, (3, 64, 64))
    for name in ("macs", "flops", "operations", "bytes"):
        assert getattr(found, name) == 2 * getattr(one, name), name
    assert found.parameters == one.parameters and [r.volume for r in found.rows] == [r.volume for r in one.rows]
    assert "2 images" in str(found).splitlines()[0] and "one image" in str(one).splitlines()[0]


def test_products_between_the_layers_are_flops():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            x = self.project(x)
            return nn.functional.scaled_dot_product_attention(x, x, x)

    found = conv_ext.summary(Attention(), (5, 8))
    assert found.macs == 5 * 8 * 8 and found.flops == 2 * found.macs + 2 * 2 * 5 * 5 * 8


def test_macs_of_transposed_layers_and_of_a_table():
    layers = nn.ConvTranspose2d(4, 6, 3, stride=2), conv_ext.MappedConv2d([[0, 1], [2], [3, 4, 5]], 3)
    rows = conv_ext.summary(nn.Sequential(*layers), (4, 5, 5), batch=3).rows
    assert [row.macs for row in rows] == [3 * 4 * 5 * 5 * 6 * 9, 3 * 6 * 9 * 9 * 9]
    assert [row.operations - row.macs for row in rows] == [3 * 6 * 11 * 11, 3 * 3 * 9 * 9]


@pytest.mark.parametrize("place", [(0.5, 0), (0, "a"), (None, 0)])
def test_a_window_of_no_place(place):
    row = conv_ext.summary(nn.Conv2d(1, 1, 3), (1, 8, 8)).rows[0]
    with pytest.raises(TypeError, match="is at a row and a column, ints, got "):
        row.window(*place)


@pytest.mark.parametrize("batch, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_bad_batch(batch, error):
    with pytest.raises(error, match=f"batch must be (at least 1|an int), got {batch}"):
        conv_ext.summary(nn.Conv2d(1, 1, 1), (1, 2, 2), batch=batch)


def test_the_command_takes_any_model(capsys, tmp_path, monkeypatch):
    (tmp_path / "summary_nets.py").write_text("from torch import nn\ndef net():\n    return nn.Conv1d(4, 2, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = outcome(capsys, "summary", "summary_nets:net", "--input", "4x20")
    assert code == 0 and "conv(3,2)" in out and "288 FLOPs" not in out and "864 FLOPs" in out
    code, out, _ = outcome(capsys, "summary", "lenet5", "--input", "4x1x32x32")
    assert code == 0 and "4 images" in out
    for arguments, said in (
        (["summary_nets:net"], "is not known: give --input"), (["summary_nets:nix"], "has no 'nix'"),
        (["summary_nets:net", "--input", "4x20", "--classes", "3"], "num_classes can be chosen of"),
    ):  # fmt: skip
        code, _, err = outcome(capsys, "summary", *arguments)
        assert code == 2 and said in err and err.startswith("conv_ext summary: ")


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_of_the_catalogue(name):
    entry = models.NETWORKS[name]
    found = conv_ext.summary(entry.make(num_classes=7, in_channels=2, device="meta"), (2, *entry.image[1:]))
    assert found.rows[-1].volume[-1] == 7 and found.operations > found.parameters


def test_the_page_of_networks_is_what_its_script_makes():
    page = Path(__file__).parents[2] / "docs" / "networks.md"
    script = page.with_name("make_networks.py")
    spec = importlib.util.spec_from_file_location("make_networks", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert page.read_text(encoding="utf-8") == module.text(), f"run python {script.relative_to(page.parents[1])} --text"
    for picture in re.findall(r"\]\((networks/\w+\.png)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / picture).is_file(), picture


class ByName(nn.Module):
    """A layer that is called by its argument's name, and one that returns no tensor."""

    def __init__(self, nothing):
        super().__init__()
        self.convolution, self.nothing = nn.Conv2d(3, 4, 3), nothing

    def forward(self, x):
        self.nothing(x)
        return self.convolution(input=x)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value, self.scale = value, nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.value


@pytest.mark.parametrize("value", [None, 3, ()], ids=str)
def test_arguments_by_name_and_results_that_are_no_tensors(value):
    found = conv_ext.summary(ByName(Returns(value)), (3, 8, 8))
    assert [row.parameters for row in found.rows] == [112]
