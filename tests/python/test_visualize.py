"""Pictures: what is drawn is what the network has; occlusion by hand; errors; matplotlib missing."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import models, visualize

matplotlib = pytest.importorskip("matplotlib")


def drawn(figure):
    """The arrays of all images of a figure, in order."""
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure) and visualize.png(figure).startswith(b"\x89PNG")
    return [torch.from_numpy(image.get_array().data.copy()) for axes in figure.axes for image in axes.images]


def test_filters():
    net = models.cifar10_convnet()
    weight = net.features[0].weight.detach()
    images = drawn(conv_ext.visualize.filters(net))
    assert len(images) == 32 and images[0].shape == (5, 5, 3)
    limit = weight.abs().max()
    torch.testing.assert_close(images[7], (weight[7] / limit / 2 + 0.5).permute(1, 2, 0))
    grey = drawn(visualize.filters(models.lenet5().c1, columns=4))
    assert len(grey) == 6 and grey[0].shape == (5, 5)
    many = torch.randn(5, 12, 3, 2)
    figure = visualize.filters(many)
    images = drawn(figure)
    assert len(images) == 5 * 8 and torch.equal(images[8], many[1, 0]) and "8 of 12 channels" in figure.get_suptitle()
    assert len(drawn(visualize.filters(torch.zeros(3, 2, 2, 2), columns=2))) == 6


def test_filters_of_a_connection_table():
    """What is there, in the rows of the output maps; where nothing connects, nothing is drawn."""
    net = models.lenet5()
    figure = visualize.filters(net.c3, columns=1)
    images = drawn(figure)
    assert len(images) == 60 and all(torch.equal(a, b) for a, b in zip(images, net.c3.weight.detach()))
    filled = [len(axes.images) for axes in figure.axes[: 16 * 6]]
    assert filled == net.c3.table.matrix().flatten().int().tolist()
    coloured = conv_ext.MappedConv2d([[0, 1, 2], [1]], 3)  # of three channels, but with a gap
    assert len(drawn(visualize.filters(nn.Sequential(coloured, net)))) == 4
    assert visualize.filters(net.c3).axes[-1].get_label() == "<colorbar>"


def test_feature_maps_of_a_layer_whose_result_is_changed_in_place():
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)), torch.randn(1, 9, 9)
    with torch.no_grad():
        expected = net[0](x[None])[0]
    assert expected.min() < 0
    assert all(torch.equal(a, b) for a, b in zip(drawn(visualize.feature_maps(net, "0", x)), expected))


def test_feature_maps():
    net = models.lenet5()
    x = torch.randn(1, 32, 32)
    with torch.no_grad():
        expected = net.c1(x[None])[0]
    for layer in ("c1", net.c1):
        images = drawn(visualize.feature_maps(net, layer, x))
        assert len(images) == 6 and all(torch.allclose(a, b) for a, b in zip(images, expected))
    figure = visualize.feature_maps(net, "s4", x[None], columns=3)
    assert len(drawn(figure)) == 16 and figure.get_suptitle() == "s4: 16 maps of 5 × 5"
    assert not net.c1._forward_hooks


class Corner(nn.Module):
    """Scores that depend on one pixel alone."""

    def forward(self, x):
        return torch.stack([x[:, 0, 3, 6], torch.zeros(len(x))], 1)


def test_occlusion():
    x = torch.full((1, 8, 10), 2.0)
    found = visualize.occlusion_map(Corner(), x, 0, patch=3, stride=2, batch_size=5)
    assert found.shape == (3, 4)
    covered = torch.zeros(3, 4, dtype=torch.bool)
    for i in range(3):
        for j in range(4):
            covered[i, j] = 2 * i <= 3 < 2 * i + 3 and 2 * j <= 6 < 2 * j + 3
    assert covered.sum() == 2
    expected = torch.where(covered, 0.5, torch.tensor(2.0).sigmoid())
    torch.testing.assert_close(found, expected)
    images = drawn(visualize.occlusion(Corner(), x))
    assert images[0].shape == (8, 10) and images[1].shape == (7, 9)
    images = drawn(visualize.occlusion(Corner(), x.repeat(3, 1, 1), target=1, patch=3, stride=2, fill=-1.0))
    assert images[0].shape == (8, 10, 3)
    expected = torch.where(covered, torch.tensor(1.0).sigmoid(), torch.tensor(-2.0).sigmoid())
    torch.testing.assert_close(images[1], expected)


@pytest.mark.parametrize("call, error, message", [
    (lambda net, x: visualize.new_figure("a", 1), ValueError, "width must be a number of inches above 0, got 'a'"),
    (lambda net, x: visualize.new_figure(1, 0), ValueError, "height must be a number of inches above 0, got 0"),
    (lambda net, x: visualize.png(x), TypeError, "png takes a figure of conv_ext.visualize, got Tensor"),
    (lambda net, x: visualize.filters(nn.ReLU()), TypeError, "filters takes a layer with a weight .* got ReLU"),
    (lambda net, x: visualize.filters(torch.zeros(2, 3)), ValueError, "expected a weight .K, C, R, S. .* got .2, 3."),
    (lambda net, x: visualize.filters(net, columns=0), ValueError, "columns must be an int of at least 1, got 0"),
    (lambda net, x: visualize.feature_maps(net, "conv9", x), ValueError, "no layer 'conv9'; it has c1, s2, c3"),
    (lambda net, x: visualize.feature_maps(net, nn.ReLU(), x), ValueError, "no layer ReLU; it has c1"),
    (lambda net, x: visualize.feature_maps(net, "c1", x[0]), ValueError, "one image .C, H, W. .* got .32, 32."),
    (lambda net, x: visualize.feature_maps(net, "c1", x[None].repeat(2, 1, 1, 1)), ValueError, "expected one image"),
    (lambda net, x: visualize.feature_maps(net, "f6", x), RuntimeError, "the layer 'f6' makes no maps"),
    (lambda net, x: visualize.occlusion(net, x, patch=33), ValueError, "patch must be from 1 to 32, .* got 33"),
    (lambda net, x: visualize.occlusion(net, x, stride=0), ValueError, "stride must be an int of at least 1, got 0"),
    (lambda net, x: visualize.occlusion_map(net, x, 10, 4, 8), ValueError, "must be a class from 0 to 9, got 10"),
    (lambda net, x: visualize.occlusion_map(net, x, 1.5, 4, 8), ValueError, "must be a class from 0 to 9, got 1.5"),
    (lambda net, x: visualize.occlusion_map(net, x, 1, 1.5), ValueError, "patch must be from 1 to 32, .* got 1.5"),
    (lambda net, x: visualize.occlusion_map(net, x, 1, 4, 1.5), ValueError, "stride must be an int .* got 1.5"),
    (lambda net, x: visualize.occlusion_map(net, x, 1, 4, fill="a"), TypeError, "fill must be a finite .* got 'a'"),
    (lambda net, x: visualize.occlusion(net.c1, x), RuntimeError, r"\(N, classes\) of images, it makes \[1, 6"),
    (lambda net, x: visualize.filters(net, columns=1.5), ValueError, "columns must be an int of at least 1, got 1.5"),
    (lambda net, x: visualize.filters(torch.full((3, 1, 2, 2), torch.nan)), ValueError, "must be finite, got 12"),
    (lambda net, x: visualize.filters(torch.zeros(3, 1, 2, 2, dtype=torch.complex64)), TypeError, "must be real"),
    (lambda net, x: visualize.filters(torch.zeros(3, 1, 2, 2, device="meta")), TypeError, "the meta device"),
    (lambda net, x: visualize.filters(nn.LazyConv2d(3, 3)), TypeError, "no size before the layer's first call"),
])  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(models.lenet5(), torch.zeros(1, 32, 32))


def test_a_layer_that_does_not_run():
    net = models.googlenet(10, width=1 / 16).eval()
    with pytest.raises(RuntimeError, match="the layer 'auxiliary1.1' did not run"):
        visualize.feature_maps(net, "auxiliary1.1", torch.zeros(3, 224, 224))


def test_without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "conv_ext.visualize.picture", raising=False)
    net, x = models.lenet5(), torch.zeros(1, 32, 32)
    for draw in (
        lambda: visualize.filters(net),
        lambda: visualize.feature_maps(net, "c1", x),
        lambda: visualize.occlusion(net, x),
        lambda: visualize.top_patches(net, "c1", x, 0),
        lambda: visualize.deconvnet(net, "c1", x, 0),
        lambda: visualize.maximise(net, "c1", 0, x.shape),
        lambda: visualize.convolution(x[0, :3, :3], x[0, :2, :2]).strip(),
        lambda: visualize.convolution(x[0, :3, :3], x[0, :2, :2]).html(),
    ):
        with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'conv_ext\[demo\]'"):
            draw()


# Every function that looks at a model, on images (N, C, H, W).
LOOKS = {
    "feature_maps": lambda net, x: visualize.feature_maps(net, "c1", x[0]),
    "occlusion": lambda net, x: visualize.occlusion(net, x[0], patch=16, stride=8),
    "occlusion_map": lambda net, x: visualize.occlusion_map(net, x[0], 1, 16, 8),
    "find_patches": lambda net, x: visualize.find_patches(net, "c1", x, 0),
    "top_patches": lambda net, x: visualize.top_patches(net, "c1", x, 0),
    "deconvnet": lambda net, x: visualize.deconvnet(net, "c1", x, 0),
    "deconvnet_maps": lambda net, x: visualize.deconvnet_maps(net, "c1", x, 0),
    "maximise": lambda net, x: visualize.maximise(net, "c1", 0, x.shape[1:], begin=x[0], steps=2),
    "maximised": lambda net, x: visualize.maximised(net, "c1", 0, x.shape[1:], begin=x[0], steps=2),
}
looks = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)


class Normalised(nn.Module):
    """A network with a batch normalisation, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.c1, self.norm, self.never = nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.norm(self.c1(x)).relu().mean((2, 3))


@looks
def test_what_cannot_be_looked_at_is_said(look):
    net, x = models.lenet5(), torch.rand(2, 1, 32, 32)
    nan, infinite = x.clone(), x.clone()
    nan[0, 0, 3, 3], infinite[0, 0, 0, 0] = float("nan"), float("inf")
    for model, images, error, message in (
        ("net", x, TypeError, "the model must be a torch.nn.Module, got str"),
        (models.lenet5(device="meta"), x, TypeError, "values to look at, but 'c1.weight' is on the meta device"),
        (nn.Sequential(nn.LazyConv2d(2, 3)), x, TypeError, "'0.weight' has no size before the first call: call it"),
        (net, x.to("meta"), TypeError, "images must have values to look at, got a tensor on the meta device"),
        (net, x.to(torch.complex64), TypeError, "images must be real, got torch.complex64"),
        (net, nan, ValueError, "images must be finite, got 1 of .* numbers that are NaN or infinite"),
        (net, infinite, ValueError, "images must be finite, got 1 of"),
        (net, x.expand(-1, 3, -1, -1), RuntimeError, "to have 1 channels, but got 3 channels"),
        (net, x[:, :, :2], (RuntimeError, ValueError), "Kernel size can't be greater|from 1 to 2, the image's shorter"),
    ):
        with pytest.raises(error, match=message):
            look(model, images)
    assert not any(module._forward_hooks for module in net.modules())


@looks
def test_looking_changes_nothing(look):
    """Neither modes, statistics, gradients nor hooks, in training mode too; in any mode of autograd, of any dtype."""
    net, x = Normalised(), torch.rand(3, 1, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        look(net, x)
    with torch.inference_mode():
        look(net, torch.rand(3, 1, 32, 32))
        look(Normalised(), x)
    look(net.bfloat16(), (x * 255).to(torch.uint8))
    look(Normalised().half(), x.double().transpose(2, 3))
    net.float()
    assert net.training and not net.c1._forward_hooks and all(p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor, before[name]), name


def test_models_in_another_and_layers_with_two_names():
    net, x = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()), torch.rand(2, 1, 8, 8)
    net.append(net[0])
    parallel = nn.DataParallel(net)
    for look in (visualize.find_patches, visualize.deconvnet_maps):
        found = [look(model, layer, x, 0) for model, layer in ((net, "0"), (net, "2"), (parallel, "module.0"))]
        assert all(torch.equal(a, found[0]) if isinstance(a, torch.Tensor) else a == found[0] for a in found)


def test_occlusion_of_a_traced_model():
    net, x = Normalised().eval(), torch.rand(1, 1, 32, 32)
    traced = torch.jit.trace(net, x)
    torch.testing.assert_close(*(visualize.occlusion_map(each, x, 1, 16, 8) for each in (traced, net)))


def test_many_filters_and_maps_are_cut_short():
    """A figure of thousands of images would take minutes. (Not drawn here: that takes seconds.)"""

    def images(figure):
        return sum(len(axes.images) for axes in figure.axes)

    figure = visualize.filters(torch.randn(512, 512, 3, 3))
    assert images(figure) == 128 and "the first 16 of 512 filters" in figure.get_suptitle()
    figure = visualize.feature_maps(nn.Sequential(nn.Conv2d(1, 300, 1)), "0", torch.rand(1, 4, 4))
    assert images(figure) == 128 and "the first 128 of 300 maps" in figure.get_suptitle()
    table = conv_ext.ConnectionTable.random(6, 40, 2, torch.Generator().manual_seed(0))
    assert images(visualize.filters(conv_ext.MappedConv2d(table, 3))) == sum(map(len, table.sources[:21]))


@pytest.mark.gpu
def test_pictures_of_a_model_on_a_gpu():
    torch.manual_seed(0)
    net, image = models.lenet5().eval(), torch.randn(1, 32, 32)
    with conv_ext.precision("ieee"):
        here = drawn(visualize.feature_maps(net, "c1", image)), visualize.occlusion_map(net, image, 3, 8, 6)
        net = net.cuda()
        there = drawn(visualize.feature_maps(net, "c1", image)), visualize.occlusion_map(net, image, 3, 8, 6)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)
    assert drawn(visualize.occlusion(net, image.cuda(), patch=8, stride=6)) and drawn(visualize.filters(net))
    assert len(conv_ext.summary(net, (1, 32, 32)).rows) > 5


def test_the_page_of_pictures_has_them():
    """Each picture that docs/visualize.md shows is there, and each that is there is shown by it."""
    page = Path(__file__).parents[2] / "docs" / "visualize.md"
    shown = set(re.findall(r"\]\(visualize/([\w.]+)\)", page.read_text(encoding="utf-8")))
    there = {path.name for path in (page.parent / "visualize").iterdir()}
    assert shown <= there and len(shown) > 8
    assert {name.split(".")[0] for name in there} == {name.split(".")[0] for name in shown}
    for name in re.findall(r"visualize\.(\w+)\(", page.read_text(encoding="utf-8")):
        assert name in visualize.__all__
