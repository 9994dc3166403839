"""The networks: their parameters as published, their wiring against torch's layers, and that they learn."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conv_ext
from conv_ext import models
from conv_ext.models.lenet import C3_TABLE, digit_codes
from test_mapped import C3

# name -> a narrow network with ten classes, its image
NARROW = {
    "lenet5": (lambda: models.lenet5(), (1, 32, 32)),
    "lenet5 full average": (lambda: models.lenet5(connections="full", pooling="average"), (1, 32, 32)),
    "lenet5 rbf": (lambda: models.lenet5(head="rbf"), (1, 32, 32)),
    "lenet5 relu max": (lambda: models.lenet5(activation="relu", pooling="max"), (1, 32, 32)),
    "mnist_convnet": (models.mnist_convnet, (1, 28, 28)),
    "cifar10_convnet": (models.cifar10_convnet, (3, 32, 32)),
    "alexnet": (lambda: models.alexnet(10, width=1 / 16), (3, 227, 227)),
    "alexnet groups 2": (lambda: models.alexnet(10, groups=2, width=1 / 16), (3, 227, 227)),
    "zfnet": (lambda: models.zfnet(10, width=1 / 16), (3, 224, 224)),
    **{f"vgg {name}": (lambda name=name: models.vgg(name, 10, width=1 / 16), (3, 224, 224))
       for name in ("A", "A-LRN", "B", "C", "D", "E")},
    "nin": (lambda: models.nin(width=1 / 4), (3, 32, 32)),
    "nin imagenet": (lambda: models.nin(images="imagenet", width=1 / 8), (3, 224, 224)),
    "googlenet": (lambda: models.googlenet(10, width=1 / 16), (3, 224, 224)),
    "googlenet naive": (lambda: models.googlenet(10, inception="naive", local_response_norm=True, width=1 / 16),
                        (3, 224, 224)),
    **{f"resnet {n}": (lambda n=n: models.resnet(n, 10, width=1 / 16), (3, 64, 64)) for n in (18, 34, 50, 101, 152)},
    "mobilenet_v2": (lambda: models.mobilenet_v2(10, width_mult=1 / 8), (3, 64, 64)),
    "resnext": (lambda: models.resnext(50, 10, groups=4, width=1 / 8), (3, 64, 64)),
}  # fmt: skip

# parameters of the networks at full size: from the papers' tables where they state them layer by layer (LeNet-5:
# 60,000 trainable ones in all), else sums of the figures in data_networks.json, or those that torchvision states
PARAMETERS = [
    (lambda **w: models.lenet5(head="rbf", **w), 60_000),
    (lambda **w: models.lenet5(connections="full", pooling="average", **w), 61_706),
    (models.mnist_convnet, 155_606),
    (models.cifar10_convnet, 214_806),
    (models.alexnet, 62_378_344),
    (lambda **w: models.alexnet(groups=2, **w), 60_965_224),
    (models.zfnet, 107_627_624),
    (lambda **w: models.vgg("A", **w), 132_863_336),
    (lambda **w: models.vgg("B", **w), 133_047_848),
    (models.vgg16, 138_357_544),
    (models.vgg19, 143_667_240),
    (lambda **w: models.googlenet(auxiliary=False, **w), 6_998_552),
    (lambda **w: models.resnet(18, **w), 11_689_512),
    (lambda **w: models.resnet(34, **w), 21_797_672),
    (lambda **w: models.resnet(50, **w), 25_557_032),
    (lambda **w: models.resnet(101, **w), 44_549_160),
    (lambda **w: models.resnet(152, **w), 60_192_808),
    (models.mobilenet_v2, 3_504_872),
    (models.resnext, 25_028_904),
    (lambda **w: models.resnext(101, groups=32, group_width=8, **w), 88_791_336),
    (lambda **w: models.resnext(101, groups=64, **w), 83_455_272),
    (lambda **w: models.lenet5(activation="relu", pooling="max", connections="full", dense="conv", **w), 61_706),
    (lambda **w: models.vgg16(dense="conv", **w), 138_357_544),
]


@pytest.mark.parametrize("make, parameters", PARAMETERS, ids=[str(count) for _, count in PARAMETERS])
def test_parameters_at_full_size(make, parameters):
    net = make(device="meta")
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert all(p.is_meta for p in net.parameters())


def made(name) -> tuple[nn.Module, Tensor]:
    """The narrow network without its random choices, and four images."""
    torch.manual_seed(0)
    make, image = NARROW[name]
    net = make()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net, torch.randn(4, *image)


def loss_of(net, x) -> Tensor:
    """Cross entropy; with GoogLeNet's auxiliary classifiers weighted as in the paper."""
    classes, y = torch.arange(4), net(x)
    if isinstance(y, Tensor):
        return F.cross_entropy(y, classes)
    assert isinstance(y, models.GoogLeNetScores)
    return F.cross_entropy(y.scores, classes) + 0.3 * sum(F.cross_entropy(each, classes) for each in y[1:])


CONVOLUTIONS = (nn.Conv2d, conv_ext.MappedConv2d)


@pytest.mark.parametrize("name", NARROW)
def test_every_network_overfits_one_batch(name):
    net, x = made(name)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, CONVOLUTIONS)}
    assert layers and all(type(m).__module__.startswith("conv_ext") for m in layers.values())
    before = {n: m.weight.detach().clone() for n, m in layers.items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.1 * losses[0]:
            break
    assert losses[-1] < 0.1 * losses[0], losses
    still = [n for n, m in layers.items() if torch.equal(m.weight, before[n])]
    assert not still
    assert net.eval()(x[:1]).shape == (1, 10)


@pytest.mark.parametrize("name", NARROW)
def test_loss_and_gradients_are_those_of_torchs_layers(name):
    net, x = made(name)
    net, x = net.double(), x.double()
    twin = conv_ext.revert(copy.deepcopy(net))
    assert not any(isinstance(m, conv_ext.Conv2d) for m in twin.modules())
    losses = [loss_of(each, x) for each in (net, twin)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    for loss in losses:
        loss.backward()
    for (n, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-8 * scale + 1e-12, msg=lambda m: f"{n}: {m}")


@pytest.mark.parametrize("make", [
    models.lenet5, models.mnist_convnet, models.cifar10_convnet, models.nin,
    lambda *c, **w: models.alexnet(*c, width=1 / 16, **w), lambda *c, **w: models.zfnet(*c, width=1 / 16, **w),
    lambda *c, **w: models.vgg("A", *c, width=1 / 16, **w), lambda *c, **w: models.googlenet(*c, width=1 / 16, **w),
    lambda *c, **w: models.resnet(18, *c, width=1 / 16, **w), lambda *c, **w: models.resnext(50, *c, width=1 / 16, **w),
    lambda *c, **w: models.mobilenet_v2(*c, width_mult=1 / 8, **w),
    lambda *c, **w: models.lenet5(*c, dense="conv", activation="relu", pooling="max", **w),
    lambda *c, **w: models.vgg("A", *c, width=1 / 16, dense="conv", **w),
])  # fmt: skip
def test_classes_channels_device_and_dtype(make):
    net = make(7, 2, dtype=torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    assert first.in_channels == 2
    assert getattr(last, "out_features", getattr(last, "out_channels", None)) == 7
    assert all(p.is_meta for p in make(device="meta").parameters())
    for arguments, message in (((0,), "num_classes must be at least 1, got 0"), ((7, -1), "in_channels must be at")):
        with pytest.raises(ValueError, match=message):
            make(*arguments)
    with pytest.raises(TypeError, match="num_classes must be an int, got '7'"):
        make("7")


@pytest.mark.parametrize("call, message", [
    (lambda: models.lenet5(connections="some"), "connections must be one of 'table', 'full', got 'some'"),
    (lambda: models.lenet5(pooling="sum"), "pooling must be one of 'trainable', 'average', 'max', got 'sum'"),
    (lambda: models.lenet5(activation="elu"), "activation must be one of 'tanh', 'relu', got 'elu'"),
    (lambda: models.lenet5(dense="none"), "dense must be one of 'linear', 'conv', got 'none'"),
    (lambda: models.vgg16(dense="none"), "dense must be one of 'linear', 'conv', got 'none'"),
    (lambda: models.resnext(18), "layers must be one of 50, 101, 152, got 18"),
    (lambda: models.resnext(groups=0), "groups must be at least 1, got 0"),
    (lambda: models.resnext(group_width=-1), "group_width must be at least 1, got -1"),
    (lambda: models.lenet5(head="softmax"), "head must be one of 'linear', 'rbf', got 'softmax'"),
    (lambda: models.lenet5(11, head="rbf"), "num_classes must be up to 10, got 11"),
    (lambda: models.alexnet(groups=3), "groups must be one of 1, 2, got 3"),
    (lambda: models.zfnet(width=0), "width must be above 0 and finite, got 0"),
    (lambda: models.nin(width=float("inf")), "width must be above 0 and finite, got inf"),
    (lambda: models.vgg("F"), "configuration must be one of 'A', 'A-LRN', 'B', 'C', 'D', 'E', got 'F'"),
    (lambda: models.nin(images="mnist"), "images must be one of 'cifar10', 'imagenet', got 'mnist'"),
    (lambda: models.googlenet(inception="v3"), "inception must be one of 'reduced', 'naive', got 'v3'"),
    (lambda: models.resnet(51), "layers must be one of 18, 34, 50, 101, 152, got 51"),
    (lambda: models.mobilenet_v2(width_mult=0), "width_mult must be above 0 and finite, got 0"),
    (lambda: models.mobilenet_v2(width_mult=float("nan")), "width_mult must be above 0 and finite, got nan"),
])  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match="width must be a number, got 'half'"):
        models.vgg("A", width="half")
    for name, dtype in itertools.product(("lenet5", "vgg16", "resnext", "googlenet"), ("float32", torch.int32)):
        with pytest.raises(TypeError, match=f"dtype must be a floating or complex torch.dtype, got {dtype!r}"):
            getattr(models, name)(dtype=dtype, device="meta")
        with pytest.raises(TypeError, match="num_classes must be an int, got 1.5"):
            getattr(models, name)(num_classes=1.5)


def test_images_of_another_size():
    with pytest.raises(RuntimeError, match=r"images of 32 x 32: expected maps of \[120, 1, 1\].* got \[120, 2, 2\]"):
        models.lenet5()(torch.zeros(1, 1, 36, 36))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        models.lenet5()(torch.zeros(1, 1, 28, 28))
    for name, image in (("alexnet", "227 x 227"), ("vgg D", "224 x 224"), ("mnist_convnet", "28 x 28")):
        net, x = made(name)
        with pytest.raises(RuntimeError, match=f"takes images of {image}"):
            net(F.pad(x, (0, 40)))
    for name in ("nin", "resnet 18", "googlenet", "mobilenet_v2"):  # a mean over all positions: any size will do
        net, x = made(name)
        assert net.eval()(F.pad(x, (0, 40))).shape == (4, 10)


# ---- LeNet-5


def test_lenet5s_table_and_codes():
    assert C3_TABLE.sources == tuple(map(tuple, C3)) and C3_TABLE.connections == 60
    assert sum(p.numel() for p in models.lenet5().c3.parameters()) == 1516
    codes = digit_codes()
    assert codes.shape == (10, 84) and set(codes.flatten().tolist()) == {1.0, -1.0}
    assert torch.cdist(codes, codes).add(100 * torch.eye(10)).min() > 4  # no two pictures are alike
    net = models.lenet5(head="rbf")
    assert "output.codes" in net.state_dict() and not list(net.output.parameters())
    torch.testing.assert_close(net.output(codes), -0.5 * torch.cdist(codes, codes).square(), atol=1e-3, rtol=1e-5)
    assert models.lenet5(5, head="rbf")(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


def test_lenet5_as_formulas():
    net = models.lenet5(dtype=torch.float64)
    for p in (net.s2.gain, net.s2.bias, net.s4.gain, net.s4.bias):
        nn.init.normal_(p)
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)

    def squash(a):
        return 1.7159 * torch.tanh(2 * a / 3)

    def pooled(a, layer):
        total = 4 * F.avg_pool2d(a, 2)
        return squash(total * layer.gain[:, None, None] + layer.bias[:, None, None])

    y = pooled(squash(F.conv2d(x, net.c1.weight, net.c1.bias)), net.s2)
    y = pooled(squash(F.conv2d(y, net.c3.dense_weight(), net.c3.bias)), net.s4)
    y = squash(F.conv2d(y, net.c5.weight, net.c5.bias)).flatten(1)
    y = net.output(squash(net.f6(y)))
    torch.testing.assert_close(net(x), y)


# ---- pooling


@pytest.mark.parametrize("layer", [models.L2Pool(3), models.Maxout(3), models.TrainablePool2d(6).double()])
def test_pooling_modules(layer):
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    if not list(layer.parameters()):
        assert torch.autograd.gradcheck(layer, (x[:, :, 0, 0],))
        parts = torch.stack([x[:, 0:3], x[:, 3:6]], 1)
        expected = parts.square().sum(2).sqrt() if isinstance(layer, models.L2Pool) else parts.amax(2)
        torch.testing.assert_close(layer(x), expected)
        zero = torch.zeros(1, 6, 2, 2, requires_grad=True)
        layer(zero).sum().backward()
        assert zero.grad.isfinite().all() and zero.grad.abs().max() <= 1
        with pytest.raises(RuntimeError, match="3 maps must divide C, got input .1, 4, 2, 2."):
            layer(torch.zeros(1, 4, 2, 2))
        with pytest.raises(ValueError, match="maps must be at least 1, got 0"):
            type(layer)(0)
    else:
        torch.testing.assert_close(layer(x), F.avg_pool2d(x, 2))  # before it has learned
        layer(x).sum().backward()
        torch.testing.assert_close(layer.gain.grad, 4 * F.avg_pool2d(x, 2).sum((0, 2, 3)))
        torch.testing.assert_close(layer.bias.grad, torch.full((6,), 8.0, dtype=torch.float64))


# ---- GoogLeNet and torchvision


def test_inception_modules():
    reduced = models.Inception(192, 64, (96, 128), (16, 32), 32)
    naive = models.Inception(192, 64, 128, 32)
    assert (reduced.out_channels, naive.out_channels) == (256, 416)
    assert (reduced.op, naive.op) == ("inc(64,(96,128),(16,32),32)", "inc(64,128,32)")
    x = torch.randn(2, 192, 7, 5)
    for module in (reduced, naive):
        y = module(x)
        assert y.shape == (2, module.out_channels, 7, 5)
        torch.testing.assert_close(y[:, :64], F.relu(F.conv2d(x, module.branch1[0].weight, module.branch1[0].bias)))
    torch.testing.assert_close(naive(x)[:, 224:], F.max_pool2d(x, 3, 1, 1))


def test_googlenet_has_auxiliary_scores_in_training_alone():
    net, x = made("googlenet")
    assert [each.shape for each in net(x)] == [(4, 10)] * 3
    torch.testing.assert_close(net.eval()(x), net.train()(x).scores)
    plain = models.googlenet(10, auxiliary=False, width=1 / 16)
    assert plain(x).shape == (4, 10)


def test_the_naive_module_as_it_is_counted():
    """5b without reductions, on maps of 7 x 7; docs/networks.md says how the printed figure came about."""
    rows = conv_ext.summary(nn.Sequential(models.Inception(832, 384, 384, 128)), (832, 7, 7), expand=True).rows
    assert [row.op for row in rows] == ["conv(1,384)", "conv(3,384,p1)", "conv(5,128,p2)", "pool(3,1,p1)"]
    operations = [row.operations for row in rows]
    assert sum(operations) == 287_091_392 and sum(operations[1:]) + 384 == 271_418_048
    (whole,) = conv_ext.summary(nn.Sequential(models.Inception(832, 384, 384, 128)), (832, 7, 7)).rows
    assert whole.operations == 287_091_392


# ---- convolutions in place of full connections: images of any size


WHOLE = {
    "table": {},
    "rbf": {"head": "rbf"},
    "relu": {"activation": "relu", "pooling": "max", "connections": "full"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_map_of_scores_is_that_of_every_window(name):
    """LeNet-5 slides over a larger image as one network: each score is that of a window of 32 x 32."""
    torch.manual_seed(0)
    net = models.lenet5(**WHOLE[name]).double()
    whole = models.lenet5(**WHOLE[name], dense="conv").double()
    assert whole.load_state_dict(net.state_dict()) and whole.load_state_dict(copy.deepcopy(whole).state_dict())
    assert net.f6.weight.dim() == 2 and whole.f6.weight.dim() == 4
    x = torch.randn(2, 1, 41, 36, dtype=torch.float64)
    scores = whole(x)
    assert scores.shape == (2, 10, 3, 2)
    for p in range(3):
        for q in range(2):
            window = x[:, :, 4 * p : 4 * p + 32, 4 * q : 4 * q + 32]
            torch.testing.assert_close(scores[:, :, p, q], net(window), rtol=1e-10, atol=1e-10)
    assert pickle.loads(pickle.dumps(whole))(x).equal(scores)


def test_vgg_on_images_of_any_size():
    torch.manual_seed(0)
    net, whole = (models.vgg("A", 10, width=1 / 16, dense=kind).eval() for kind in ("linear", "conv"))
    assert whole.load_torchvision(net.state_dict()) is whole
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(whole(x)[:, :, 0, 0], net(x), rtol=1e-4, atol=1e-6)
    assert whole(F.pad(x, (0, 40, 0, 70))).shape == (1, 10, 3, 2)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        whole(x[:, :, :100])
    with pytest.raises(RuntimeError, match="size mismatch for classifier.6.weight"):
        whole.load_state_dict(models.vgg("A", 7, width=1 / 16).state_dict())
    with pytest.raises(ValueError, match=r"classifier.6.weight is \[7, 256\], not \[10, 256, 1, 1\]"):
        whole.load_torchvision(models.vgg("A", 7, width=1 / 16).state_dict())
    assert conv_ext.summary(whole, (3, 224, 224)).parameters == conv_ext.summary(net, (3, 224, 224)).parameters


def test_torch_fx_traces_lenet5():
    """The default, with its table of connections; and features of a layer by what the graph has."""
    net, x = models.lenet5().eval(), torch.randn(2, 1, 32, 32)
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(x), net(x))
    node = next(node for node in traced.graph.nodes if node.op == "call_function" and node.target is conv_ext.conv2d)
    assert node.args[0].target == "x" or node.args[0].op == "placeholder"


# ---- accuracy


def test_topk():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.3, 0.2], [0.9, 0.05, 0.05], [1.0, 2.0, 3.0]])
    labels = torch.tensor([2, 2, 0, 0])
    assert [models.topk(scores, labels, k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert models.topk(torch.zeros(8, 10), torch.arange(8), 5) == 0.0  # the same for every class: nothing is known
    torch.manual_seed(0)
    scores, labels = torch.randn(200, 20), torch.randint(20, (200,))
    for k in (1, 5, 20):
        expected = (scores.topk(k).indices == labels[:, None]).any(1).double().mean().item()
        assert models.topk(scores, labels, k) == models.topk(scores.softmax(1), labels, k) == expected
    wrong = torch.full((2, 3), torch.nan)
    wrong[1, 1] = 0
    assert models.topk(wrong, torch.tensor([0, 1]), 2) == 0.0 and models.topk(wrong, torch.tensor([0, 1]), 3) == 1.0


@pytest.mark.parametrize("call, error, message", [
    (lambda s, t: models.topk(s, t, 4), ValueError, "k must be up to the number of classes, 3, got 4"),
    (lambda s, t: models.topk(s, t, 0), ValueError, "k must be at least 1, got 0"),
    (lambda s, t: models.topk(s, t, 1.5), TypeError, "k must be an int, got 1.5"),
    (lambda s, t: models.topk(s, t[:1], 1), ValueError, r"got \[2, 3\], \[1\]"),
    (lambda s, t: models.topk(s[:0], t[:0], 1), ValueError, "expected scores"),
    (lambda s, t: models.topk([[0.0]], t, 1), TypeError, "scores must be a tensor of real values, got list"),
    (lambda s, t: models.topk(s.to(torch.complex64), t, 1), TypeError, "real values, got torch.complex64 on cpu"),
    (lambda s, t: models.topk(s, t.to("meta"), 1), TypeError, "labels must be .* got torch.int64 on meta"),
    (lambda s, t: models.topk(s, t.float(), 1), TypeError, "labels must be integers, got torch.float32"),
    (lambda s, t: models.topk(s, t - 1, 1), ValueError, "labels must be from 0 to 2, got -1 to 1"),
    (lambda s, t: models.topk(s, t + 1, 1), ValueError, "labels must be from 0 to 2, got 1 to 3"),
])  # fmt: skip
def test_topk_of_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3), torch.tensor([0, 2]))


TORCHVISION = {"vgg11": ("vgg", "A"), "vgg13": ("vgg", "B"), "vgg16": ("vgg", "D"), "vgg19": ("vgg", "E"),
               **{f"resnet{n}": ("resnet", n) for n in (18, 34, 50, 101, 152)},
               "mobilenet_v2": ("mobilenet_v2",),
               "resnext50_32x4d": ("resnext", 50)}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights(name):
    theirs_of = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    theirs = getattr(theirs_of, name)(num_classes=10).eval()
    family, *which = TORCHVISION[name]
    ours = getattr(models, family)(*which, 10).eval()
    assert ours.load_torchvision(theirs.state_dict()) is ours
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        scores, expected = ours(x), theirs(x)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_weights_that_do_not_fit():
    net = models.resnet(18, 10, width=1 / 16)
    state = models.resnet(18, 7, width=1 / 16).state_dict()
    with pytest.raises(ValueError, match=r"weights of such a ResNet: fc.weight is \[7, 32\], not \[10, 32\]; fc.b"):
        net.load_torchvision(state)
    with pytest.raises(ValueError, match=r"is missing; .* and \d+ more"):
        net.load_torchvision(models.vgg("A", 10, width=1 / 16).state_dict())
    assert net.load_torchvision(copy.deepcopy(net.state_dict())) is net


# ---- MobileNetV2

# Table 2 of the paper at full width, 224 x 224: the input of each of its lines, as (positions each way, maps).
TABLE_2 = [(224, 3), (112, 32), (112, 16), (56, 24), (28, 32), (14, 64), (14, 96), (7, 160), (7, 320), (1, 1280)]


def test_mobilenet_v2_has_the_sizes_of_the_papers_table():
    net = models.mobilenet_v2(device="meta")
    maps = [torch.empty(1, 3, 224, 224, device="meta")]
    for layer in net.features:
        maps.append(layer(maps[-1]))
    # maps[i] is what the i-th layer reads; a line of the table begins with these.
    found = [(maps[i].shape[-1], maps[i].shape[1]) for i in (0, 1, 2, 4, 7, 11, 14, 17, 18)]
    assert [*found, (1, maps[-1].shape[1])] == TABLE_2
    assert [block.residual for block in net.features[1:18]] == [False, False, True, False, True, True, False] + [
        True, True, True, False, True, True, False, True, True, False]  # fmt: skip
    rows = conv_ext.summary(net, (3, 224, 224)).rows
    products = sum(row.operations for row in rows if row.op.startswith(("conv", "fc")))
    assert round(products / 1e6) == 301  # "300M" multiplications and additions (table 4)


@pytest.mark.parametrize("width_mult", [0.35, 0.5, 0.75, 1.4])
def test_mobilenet_v2_has_torchvisions_shapes_at_every_width(width_mult):
    theirs = pytest.importorskip("torchvision").models.mobilenet_v2(width_mult=width_mult)
    ours = models.mobilenet_v2(width_mult=width_mult, device="meta").state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(ours) == list(theirs.state_dict())


def test_widths_of_mobilenet_v2_are_multiples_of_eight():
    """Without torchvision: 0.35 of 24 maps are 8.4, and 8 of them; 1.4 of 1280 are 1792; a last layer keeps 1280."""
    narrow, wide = (models.mobilenet_v2(width_mult=w, device="meta") for w in (0.35, 1.4))
    maps = [
        [layer.weight.shape[0] for layer in net.modules() if isinstance(layer, nn.Conv2d)] for net in (narrow, wide)
    ]
    assert all(k % 8 == 0 for each in maps for k in each)
    assert (maps[0][0], maps[0][2], maps[0][5], maps[0][-1]) == (16, 8, 8, 1280)
    assert (maps[1][0], maps[1][2], maps[1][5], maps[1][-1]) == (48, 24, 32, 1792)
