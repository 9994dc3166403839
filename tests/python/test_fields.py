"""Receptive fields, position by position: what `summary` says an output sees is what it reacts to.

In networks whose weights are positive, an input that is raised far above the others changes exactly those outputs that
depend on it, through max pooling too. So a row or a column of the input is raised at a time.
"""

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import models


def positive(net):
    """The network with positive weights, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data.uniform_(0.5, 1.0, generator=generator)
        p.data.div_(max(1, p[0].numel()) if p.dim() > 1 else 1)
    return net.double().eval()


def reactions(net, layer, size):
    """For each axis: which rows (columns) of the input change each output of `layer`: (H, P, Q) of bools, (W, P, Q)."""
    x, found = 1 + torch.rand(1, *size, dtype=torch.float64), []
    raised = [x]
    for axis in (2, 3):
        for i in range(x.shape[axis]):
            raised.append(x.clone())
            raised[-1].select(axis, i).mul_(1e6)
    handle = layer.register_forward_hook(lambda m, inputs, y: found.append(y))
    with torch.no_grad():
        for some in torch.cat(raised).split(32):
            net(some)
    handle.remove()
    y = torch.cat(found)
    y = y.flatten(1)[..., None, None] if y.dim() == 2 else y
    changed = (y != y[:1]).any(1)[1:]
    return changed[: size[1]], changed[size[1] :]


def check(net, size, *, exact=True, some=None):
    """Every row's window, for every output or for `some` of them."""
    modules, generator = dict(net.named_modules()), random.Random(0)
    rows = conv_ext.summary(net, size, expand=True).rows
    checked = 0
    for row in rows:
        window_of = row.window
        p_count, q_count = row.volume[:2] if len(row.volume) == 3 else (1, 1)
        outputs = [(p, q) for p in range(p_count) for q in range(q_count)]
        if some is not None:
            outputs = sorted({outputs[0], outputs[-1], *generator.choices(outputs, k=some)})
        changed = reactions(net, modules[row.name], size)
        for p, q in outputs:
            window = window_of(p, q)
            assert window is not None, row.name
            for along, part in zip(changed, window):
                seen = along[:, p, q].nonzero().flatten().tolist()
                first, last = (seen[0], seen[-1]) if seen else (0, -1)
                told = part.start, part.stop - 1
                fits = told == (first, last) or not seen and told[0] > told[1]
                if not exact:
                    fits = told[0] <= first and last <= told[1] and told[1] - told[0] <= last - first + 4
                assert fits, (row.name, row.op, (p, q), told, (first, last))
                checked += 1
    return checked


LAYERS = {
    "conv": lambda r, c: nn.Conv2d(c, 2, (r(1, 4), r(1, 4)), stride=(r(1, 3), r(1, 3)), padding=(r(0, 4), r(0, 4)),
                                   dilation=(r(1, 3), r(1, 3))),
    "ours": lambda r, c: conv_ext.Conv2d(c, 2, r(1, 4), stride=r(1, 3), padding=r(["valid", "full", "same_strided"])),
    "mapped": lambda r, c: conv_ext.MappedConv2d([[0], range(c)], r(1, 3), padding=r(["valid", "same", "full"])),
    "deconv": lambda r, c: nn.ConvTranspose2d(c, 2, (r(1, 4), r(1, 4)), stride=(r(1, 3), r(1, 3)), padding=r(0, 1),
                                              dilation=(r(1, 3), r(1, 2))),
    "max": lambda r, c: nn.MaxPool2d((r(1, 3), r(2, 3)), stride=r(1, 3), padding=0, ceil_mode=r([True, False])),
    "dilated": lambda r, c: nn.MaxPool2d(3, stride=r(1, 3), padding=1, dilation=r(1, 3)),
    "avg": lambda r, c: nn.AvgPool2d(r(2, 3), stride=r(1, 3), padding=1),
    "adaptive": lambda r, c: nn.AdaptiveAvgPool2d((r(1, 5), r([None, 3, 4]))),
    "nearest": lambda r, c: nn.Upsample(scale_factor=r([2, 3, (1, 2)])),
    "shuffle": lambda r, c: nn.Sequential(nn.Conv2d(c, 8, 1), nn.PixelShuffle(2)),
    "unshuffle": lambda r, c: nn.Sequential(nn.ZeroPad2d((0, 1, 1, 0)), nn.AdaptiveMaxPool2d(6), nn.PixelUnshuffle(2)),
    "mode": lambda r, c: nn.Conv2d(c, 2, 3, stride=r(1, 2), padding=2, padding_mode=r(["reflect", "replicate"])),
    "around": lambda r, c: conv_ext.Conv2d(c, 2, 3, stride=r(1, 2), padding=1, padding_mode="circular"),
    "pad": lambda r, c: r([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d])(
        (r(0, 2), r(0, 2), r(0, 2), r(0, 2))),
    "crop": lambda r, c: nn.ZeroPad2d((r(-1, 1), 0, r(-1, 0), r(0, 1))),
    "batch": lambda r, c: nn.BatchNorm2d(c),
}  # fmt: skip


def drawn(name, seed):
    """A stack of up to three random layers, `name` the second one, for maps of 11 x 12."""
    rng, others = random.Random(f"{name} {seed}"), sorted(LAYERS)

    def r(low, high=None):
        return rng.choice(low) if high is None else rng.randint(low, high)

    for _ in range(200):
        net, x = nn.Sequential(), torch.zeros(1, 2, 11, 12)
        try:
            for kind in (rng.choice(others), name, rng.choice(others)):
                net.append(LAYERS[kind](r, x.shape[1]))
                x = net[-1].eval()(x)
        except (RuntimeError, ValueError):
            continue
        if 0 < x.numel() < 1500:
            return net
    raise AssertionError(f"no network with {name}")


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer(name):
    assert sum(check(positive(drawn(name, seed)), (2, 11, 12)) for seed in range(6)) > 100


@pytest.mark.parametrize("options", [
    {"mode": "bilinear", "scale_factor": 2}, {"mode": "bilinear", "size": (15, 9), "align_corners": True},
    {"mode": "bicubic", "scale_factor": 1.5}, {"mode": "nearest-exact", "size": (7, 17)},
    {"mode": "nearest", "scale_factor": 1.7}, {"mode": "nearest", "scale_factor": 1.7, "recompute_scale_factor": True},
], ids=str)  # fmt: skip
def test_interpolation(options):
    """Taps whose weight happens to be zero belong to the field."""
    exact = "nearest" in options["mode"]
    check(
        positive(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Upsample(**options), nn.Conv2d(2, 2, 2))), (2, 9, 10), exact=exact
    )


LONG = pytest.mark.exhaustive


@pytest.mark.parametrize("make, size", [
    (models.lenet5, (1, 32, 32)),
    (lambda: models.nin(width=1 / 16), (3, 32, 32)),
    (lambda: models.resnet(18, 10, width=1 / 32), (3, 65, 70)),
    (lambda: models.googlenet(10, auxiliary=False, width=1 / 32), (3, 65, 50)),
    pytest.param(lambda: models.alexnet(10, groups=2, width=1 / 32), (3, 227, 227), marks=LONG),
    pytest.param(lambda: models.vgg("A", 10, width=1 / 32), (3, 224, 224), marks=LONG),
])  # fmt: skip
def test_networks(make, size):
    """At some outputs of every layer: the corners and others."""
    net = positive(make())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1)
    assert check(net, size, some=3) > 40


def test_offsets():
    """Where the field of the first output begins, by the usual arithmetic: -padding of each layer times its step."""
    rows = {row.name: row for row in conv_ext.summary(models.resnet(18, device="meta"), (3, 224, 224)).rows}
    assert rows["conv1"].offset == (-3, -3) and rows["maxpool"].offset == (-5, -5)
    assert rows["layer2.0.downsample.0"].offset == (-5 - 4 * 4,) * 2
    vgg = conv_ext.summary(models.vgg16(device="meta"), (3, 224, 224)).rows
    assert [row.offset[0] for row in vgg[:6]] == [-1, -2, -2, -4, -6, -6]
    for row in vgg[:18]:  # the exact field of an inner output, where no border is near
        p = row.volume[0] // 2
        first = row.offset[0] + p * row.stride[0]
        exact = range(224)[max(first, 0) : min(first + row.receptive_field[0], 224)]
        assert row.window(p, p)[0] == slice(exact[0], exact[-1] + 1)
    with pytest.raises(ValueError, match=r"features.0 has 224 x 224 outputs, there is none at \(224, 0\)"):
        vgg[0].window(224)
    assert vgg[-1].window() == (slice(0, 224), slice(0, 224))
    with pytest.raises(ValueError, match="has 1 x 1 outputs, there is none at"):
        vgg[-1].window(0, 1)


def test_what_is_not_known():
    unfold, fold = nn.Unfold(2, stride=2), nn.Fold((6, 6), 2, stride=2)
    columns = conv_ext.summary(nn.Sequential(nn.Conv2d(2, 4, 3), unfold, fold, nn.Conv2d(4, 3, 3)), (2, 8, 8)).rows
    assert [row.offset for row in columns] == [(0, 0), None, None, None]
    assert columns[3].window(0, 0) is None and columns[0].window(1, 2) == (slice(1, 4), slice(2, 5))

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return self.b(F.max_pool2d(self.a(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2), 2))

    rows = conv_ext.summary(Between(), (1, 12, 12)).rows
    assert rows[0].offset == (0, 0) and rows[1].offset is None and rows[1].window(0, 0) is None


def test_padding_alone():
    row = conv_ext.summary(nn.Sequential(nn.Conv2d(1, 1, 1, padding=2)), (1, 4, 5)).rows[0]
    assert row.offset == (-2, -2) and row.window(0, 2)[0] == slice(0, 0) and row.window(2, 2) == (slice(0, 1),) * 2


def test_a_sequence():
    net = nn.Sequential(nn.Conv1d(1, 2, 5, stride=2, padding=1), nn.MaxPool1d(2))
    rows = conv_ext.summary(net, (1, 21)).rows
    assert rows[1].offset == (0, -1) and rows[1].window(0, 1) == (slice(0, 1), slice(3, 10))


def test_weight_layers():
    """As papers count them."""
    counts = {"lenet5": 5, "alexnet": 8, "zfnet": 8, "vgg16": 16, "vgg19": 19, "nin": 9, "googlenet": 22,
              "resnet18": 18, "resnet50": 50, "resnet152": 152}  # fmt: skip
    for name, count in counts.items():
        entry = models.NETWORKS[name]
        assert conv_ext.summary(entry.make(device="meta"), entry.image).weight_layers == count, name


def test_copies():
    """A deep network's table can be copied and pickled."""
    found = conv_ext.summary(models.resnet(152, device="meta"), (3, 224, 224))
    for made in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert made == found and made.rows[-3].window(3, 3) == found.rows[-3].window(3, 3)
