"""What units look for: patches by brute force, the deconvnet written out by hand, gradient ascent that ascends."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import models, visualize
from test_visualize import drawn

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def learned():
    """A LeNet-5 after an epoch of scikit-learn's digits, and test images."""
    pytest.importorskip("sklearn")
    from conv_ext.demo import transfer
    from conv_ext.demo.data import load_digits

    torch.manual_seed(0)
    images, net = load_digits(), models.lenet5()
    accuracy, _ = transfer.learn(net, images, 45, 0, torch.device("cpu"))
    assert accuracy > 0.5
    net.zero_grad()
    return net.eval(), images.test_batch(slice(0, 60))[0]


def strongest(net, layer, x, channel):
    """By brute force: the activation of each image, and its place."""
    found = []
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda m, i, y: found.append(y.clone()))
    with torch.no_grad():
        net(x)
    handle.remove()
    y = found[0] if found[0].dim() == 4 else found[0][:, :, None, None]
    value, at = y[:, channel].flatten(1).max(1)
    return value, [divmod(place, y.shape[3]) for place in at.tolist()]


def test_patches_are_the_strongest(learned):
    net, x = learned
    for layer, channel in (("c1", 4), ("s2", 0), ("c3", 7), ("s4", 15), ("output", 3)):
        value, places = strongest(net, layer, x, channel)
        order = value.argsort(descending=True, stable=True).tolist()
        (found,) = visualize.find_patches(net, layer, x, channel, k=5, batch_size=17)
        assert [patch.image for patch in found] == order[:5]
        torch.testing.assert_close(torch.tensor([patch.value for patch in found]), value[order[:5]])
        assert [patch.place for patch in found] == [places[image] for image in order[:5]]
    several = visualize.find_patches(net, net.c3, x, [7, 2], k=100)
    assert [len(patches) for patches in several] == [60, 60]
    assert several[0][:3] == visualize.find_patches(net, "c3", x, 7, k=3)[0]
    assert not net.c3._forward_hooks and all(p.requires_grad and p.grad is None for p in net.parameters())


NETWORKS = {
    "lenet5": (lambda: models.lenet5(), (1, 32, 32)),
    "mnist_convnet": (models.mnist_convnet, (1, 28, 28)),
    "alexnet": (lambda: models.alexnet(10, groups=2, width=1 / 16), (3, 227, 227)),
    "vgg": (lambda: models.vgg("A", 10, width=1 / 16), (3, 224, 224)),
    "googlenet": (lambda: models.googlenet(10, auxiliary=False, width=1 / 16), (3, 65, 81)),
    "resnet": (lambda: models.resnet(18, 10, width=1 / 16), (3, 65, 81)),
    "resnext": (lambda: models.resnext(50, 10, groups=4, width=1 / 16), (3, 65, 81)),
    "nin": (lambda: models.nin(width=1 / 16), (3, 32, 32)),
}


def layers_of(net, size):
    """The names of all layers that make maps or vectors."""
    found, handles = [], []
    for name, module in net.named_modules():
        if name:

            def note(m, i, y, name=name):
                if isinstance(y, torch.Tensor) and y.dim() in (2, 4) and name not in found:
                    found.append(name)

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        net(torch.zeros(1, *size))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patch_alone_excites_its_unit_as_the_image_does(name, learned):
    """For every layer: whatever stands outside the patch changes nothing; and the deconvnet stays within it."""
    if name == "lenet5":
        net, x = learned
        x = x[:2]
    else:
        torch.manual_seed(0)
        make, size = NETWORKS[name]
        net, x = make().eval(), torch.randn(2, *size)
    layers = layers_of(net, x.shape[1:])
    assert len(layers) > 6
    layers = layers if len(layers) < 40 else layers[:: len(layers) // 12]
    small = 0
    for layer in layers:
        (found,) = visualize.find_patches(net, layer, x, 0, k=1)
        patch = found[0]
        image, noise = x[patch.image : patch.image + 1], torch.randn_like(x[:1]) * 3
        noise[:, :, patch.rows, patch.columns] = image[:, :, patch.rows, patch.columns]
        ys = []
        handle = dict(net.named_modules())[layer].register_forward_hook(lambda m, i, y, ys=ys: ys.append(y.clone()))
        with torch.no_grad():
            net(torch.cat([image, noise]))
        handle.remove()
        y = ys[0] if ys[0].dim() == 4 else ys[0][:, :, None, None]
        here = y[:, 0, patch.place[0], patch.place[1]]
        torch.testing.assert_close(here[1], here[0], rtol=1e-4, atol=1e-5, msg=lambda m, layer=layer: f"{layer}: {m}")
        back = visualize.deconvnet_maps(net, layer, image, 0, [patch.place])[0]
        assert back.isfinite().all()
        back[:, patch.rows, patch.columns] = 0
        assert not back.any(), layer
        small += patch.rows.stop - patch.rows.start < x.shape[2]
    assert small > 2


class Functions(nn.Module):
    """ReLUs in every form in which they are called."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x), inplace=True), 2).relu()
        return torch.relu(self.b(x)).relu_()


def by_hand(a, b, x, channel, place):
    """Zeiler and Fergus, section 2.1, with torch's functions: unpooling by switches, rectifying, transposed filters."""
    y = F.relu(F.conv2d(x, a.weight, a.bias, padding=1))
    pooled, switches = F.max_pool2d(y, 2, return_indices=True)
    top = F.relu(F.conv2d(pooled, b.weight, b.bias, stride=2, padding=1))
    signal = torch.zeros_like(top)
    signal[0, channel, place[0], place[1]] = top[0, channel, place[0], place[1]]
    rest = [n - ((m - 1) * 2 - 2 + 3) for n, m in zip(pooled.shape[2:], top.shape[2:])]
    back = F.conv_transpose2d(F.relu(signal), b.weight, stride=2, padding=1, output_padding=rest)
    back = F.relu(F.max_unpool2d(back, switches, 2, output_size=y.shape[2:]))
    return F.conv_transpose2d(back, a.weight, padding=1)


def test_the_deconvnet_by_hand():
    torch.manual_seed(3)
    a, b = nn.Conv2d(2, 5, 3, padding=1).double(), nn.Conv2d(5, 4, 3, stride=2, padding=1).double()
    x = torch.randn(3, 2, 12, 14, dtype=torch.float64)
    a_relu, b_relu = (conv_ext.convert(copy.deepcopy(layer)) for layer in (a, b))
    a_relu.activation = b_relu.activation = "relu"
    nets = {
        "modules": (nn.Sequential(a, nn.ReLU(inplace=True), nn.MaxPool2d(2), b, nn.ReLU()), "4"),
        "functions": (Functions(a, b), ""),
        "epilogue": (nn.Sequential(a_relu, nn.MaxPool2d(2), b_relu), "2"),
    }
    for name, (net, layer) in nets.items():
        (found,) = visualize.find_patches(net, layer or net, x, 2, k=3)
        assert found[-1].value > 0
        back = visualize.deconvnet_maps(net, layer or net, x, 2)
        for patch in found:
            expected = by_hand(a, b, x[patch.image : patch.image + 1], 2, patch.place)[0].detach().float()
            torch.testing.assert_close(back[patch.image], expected, rtol=1e-5, atol=1e-7, msg=name)
        assert back.abs().max() > 1e-3
    # It is not the gradient, which the ReLUs of the way forward would cut.
    xs = x.clone().requires_grad_()
    y = nets["modules"][0](xs)[:, 2].flatten(1)
    (grad,) = torch.autograd.grad((y.max(1).values ** 2 / 2).sum(), xs)
    assert (grad.float() - back).abs().max() > 0.05 * back.abs().max()


def test_the_way_back_is_our_input_grad():
    """torch's layers as ours; and no weight is differentiated."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        visualize.deconvnet_maps(net, "2", torch.randn(1, 1, 9, 9), 1)
    counts = {event.key.split("[")[0]: event.count for event in profile.key_averages()}
    assert counts["conv_ext::forward"] == counts["conv_ext::input_grad"] == 2
    assert "conv_ext::weight_grad" not in counts and "aten::convolution" not in counts
    assert all(p.grad is None for p in net.parameters())


def test_places_may_be_chosen():
    net, x = models.mnist_convnet().eval(), torch.randn(2, 1, 28, 28)
    one = visualize.deconvnet_maps(net, "features.3", x, 5, [(0, 0), (7, 7)])
    rows = {row.name: row for row in conv_ext.summary(net, (1, 28, 28)).rows}
    for image, place in zip(one, ((0, 0), (7, 7))):
        window = rows["features.3"].window(*place)
        assert image[:, window[0], window[1]].any()
        assert image.count_nonzero() == image[:, window[0], window[1]].count_nonzero()


def activation(net, layer, channel, x, place):
    found = []
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda m, i, y: found.append(y))
    with torch.no_grad():
        net(x)
    handle.remove()
    y = found[0] if found[0].dim() == 4 else found[0][:, :, None, None]
    return y[torch.arange(len(x)), channel].mean((1, 2)) if place == "all" else y[:, channel, place[0], place[1]]


@pytest.mark.parametrize("layer, place", [("c1", (3, 20)), ("c3", (5, 5)), ("c3", "all"), ("f6", (0, 0)),
                                          ("output", (0, 0))])  # fmt: skip
def test_ascent_finds_what_no_image_reaches(layer, place, learned):
    net, x = learned
    made = visualize.maximised(net, layer, 3, (1, 32, 32), place=place, steps=60, bar=False)
    assert made.shape == (1, 1, 32, 32) and made.dtype == torch.float32 and made.isfinite().all()
    assert activation(net, layer, 3, made, place).item() > activation(net, layer, 3, x, place).max().item()
    assert all(p.grad is None for p in net.parameters())


def test_ascent_of_several_channels_and_its_options():
    torch.manual_seed(0)
    net = models.resnet(18, 10, width=1 / 16).eval()
    options = {"steps": 12, "bar": False}
    several = visualize.maximised(net, "layer2.0.conv1", [1, 3, 4], (3, 48, 48), batch_size=2, **options)
    for channel, image in zip((1, 3, 4), several):
        alone = visualize.maximised(net, net.layer2[0].conv1, channel, (3, 48, 48), **options)
        torch.testing.assert_close(alone[0], image, rtol=1e-3, atol=1e-4)
    other = visualize.maximised(net, "layer2.0.conv1", [1], (3, 48, 48), seed=1, **options)
    assert not torch.allclose(other[0], several[0], atol=1e-3)
    begin = torch.full((3, 48, 48), 0.4)
    clamped = visualize.maximised(
        net, "fc", 2, (3, 48, 48), begin=begin, limits=(0.3, 0.5), rate=0.3, decay=0, **options
    )
    assert clamped.min() == torch.tensor(0.3) and clamped.max() == torch.tensor(0.5)
    small = visualize.maximised(net, "fc", 2, (3, 48, 48), decay=0.2, **options)
    large = visualize.maximised(net, "fc", 2, (3, 48, 48), decay=0.0, **options)
    assert small.square().mean() < 0.8 * large.square().mean()
    rough, smooth = (visualize.maximised(net, "fc", 2, (3, 48, 48), blur=blur, **options) for blur in (0, 2))
    assert smooth.diff().abs().mean() < 0.8 * rough.diff().abs().mean()
    assert torch.equal(visualize.maximised(net, "fc", 2, (3, 48, 48), **options),
                       visualize.maximised(net, "fc", 2, (3, 48, 48), **options))  # fmt: skip


def test_a_unit_that_is_off_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([5.0, -500.0]))
    for function in (visualize.maximised, visualize.maximise):
        with pytest.warns(UserWarning, match=r"no gradient .* from channels \[1\] of '1', which are off") as said:
            function(net, "1", [0, 1], (1, 6, 6), steps=3)
        assert said[0].filename == __file__  # the line that asked for it


def test_numbers_that_are_lost():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with pytest.raises(RuntimeError, match=r"ascent to channels \[0\] of '0' left the finite numbers: is the rate too"):
        visualize.maximised(net, "0", 0, (1, 6, 6), rate=1e38, steps=9)
    with torch.no_grad():
        net[0].weight[1, 0, 0, 0] = torch.nan
    x = torch.rand(2, 1, 6, 6)
    assert visualize.find_patches(net, "0", x, 0)  # a channel that has nothing to do with it
    with pytest.raises(RuntimeError, match="the way back from '0' is not finite: a weight on it is NaN"):
        visualize.deconvnet_maps(net, "0", x, 0)
    for look in (visualize.find_patches, visualize.deconvnet_maps, visualize.top_patches):
        with pytest.raises(RuntimeError, match="the layer '0' makes NaN of 2 of 2 images"):
            look(net, "0", x, 1)


def test_a_layer_that_runs_twice_is_seen_the_first_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.a(self.a(x))

    net, x = Twice(), torch.rand(2, 1, 9, 9)
    value, _ = net.a(x).flatten(1).max(1)
    (found,) = visualize.find_patches(net, "a", x, 0)
    torch.testing.assert_close(torch.tensor([p.value for p in found]), value.sort(descending=True).values.detach())
    assert found[0].rows.stop - found[0].rows.start == 3


def test_figures(learned):
    net, x = learned
    (found,) = visualize.find_patches(net, "c3", x, 5)
    figure = visualize.top_patches(net, "c3", x, 5)
    (image,) = drawn(figure)
    assert image.shape == (3 * 14 + 2, 3 * 14 + 2, 4) and "in fields of 14 × 14" in figure.get_suptitle()
    low, high = x.min(), x.max()
    for number, (patch, i, j) in enumerate((found[n], n // 3 * 15, n % 3 * 15) for n in range(9)):
        expected = (x[patch.image, 0, patch.rows, patch.columns] - low) / (high - low)
        torch.testing.assert_close(image[i : i + 14, j : j + 14, 1], expected, msg=str(number))
    height, pixels = figure.bbox.height, figure.axes[0].get_tightbbox()  # of all in it: the bar is at the lower edge
    assert pixels.y0 < 0.04 * height
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["5 pixels"] and figure.axes[0].get_title("left").startswith("channel 5: ")
    bar = figure.axes[0].lines[0]
    assert bar.get_xdata()[1] - bar.get_xdata()[0] == 5
    assert len(drawn(visualize.top_patches(net, "c3", x, [5, 6, 7]))) == 3
    four = visualize.top_patches(net, "c3", x, range(4)).axes
    assert len(four) == 4 and four[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    pairs = drawn(visualize.deconvnet(net, "c3", x, [5, 9], k=4))
    assert len(pairs) == 4 and all(pair.shape == (29, 29, 4) for pair in pairs)
    assert torch.allclose(pairs[0][:14, :14, 0], image[:14, :14, 0])
    back = visualize.deconvnet_maps(net, "c3", x[found[0].image][None], 5)[0, 0, found[0].rows, found[0].columns]
    red = pairs[1][:14, :14, 0] - pairs[1][:14, :14, 2]  # above zero: more red than blue
    clear = back.abs() > 0.2 * back.abs().max()
    assert torch.equal(torch.sign(red)[clear], torch.sign(back)[clear])
    made = drawn(visualize.maximise(net, "c3", [0, 1], (1, 32, 32), steps=4, bar=False))
    assert len(made) == 2 and made[0].shape == (14, 14, 4)
    assert drawn(visualize.maximise(net, "c3", 0, (1, 32, 32), place="all", steps=4))[0].shape == (32, 32, 4)


def test_a_patch_at_the_border_lies_where_it_was():
    """Its missing part is grey, on the side where the image ends."""
    net = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2, bias=False))
    nn.init.ones_(net[0].weight)
    x = torch.zeros(2, 1, 9, 9)
    x[0, 0, 0, 0], x[1, 0, 8, 4] = 3.0, 2.0
    found = visualize.find_patches(net, "0", x, 0)[0]
    assert [patch.place for patch in found] == [(0, 0), (6, 2)]  # of equal ones the first
    (image,) = drawn(visualize.top_patches(net, "0", x, 0))
    grey = torch.tensor([0.86, 0.86, 0.86, 1.0])
    assert torch.equal(image[0, 0], grey) and torch.equal(image[1, 4], grey) and image[2, 2, 0] == 1
    assert not torch.equal(image[4, 6], grey)


def test_a_field_that_is_not_known_is_the_whole_image():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return self.b(F.max_pool2d(self.a(x), 2))

    net, x = Pooled(), torch.randn(2, 1, 12, 12)
    assert visualize.find_patches(net, "a", x, 0)[0][0].rows != slice(0, 12)
    assert visualize.find_patches(net, "b", x, 0)[0][0].rows == slice(0, 12)


@pytest.mark.parametrize("call, error, message", [
    (lambda n, x: visualize.find_patches(n, "c9", x, 0), ValueError, "the model has no layer 'c9'; it has c1, s2"),
    (lambda n, x: visualize.find_patches(n, "c3", x, 16), ValueError, "from 0 to 15, the maps of 'c3', got 16"),
    (lambda n, x: visualize.find_patches(n, "c3", x, -1), ValueError, "from 0 to 15, the maps of 'c3', got -1"),
    (lambda n, x: visualize.find_patches(n, "c3", x, []), ValueError, "from 0 to 15, the maps of 'c3', got "),
    (lambda n, x: visualize.find_patches(n, "c3", x, 0.5), TypeError, "an int or a sequence of ints, got 0.5"),
    (lambda n, x: visualize.find_patches(n, "c3", x, 0, k=0), ValueError, "k must be an int of at least 1, got 0"),
    (lambda n, x: visualize.find_patches(n, "c3", x[0, 0], 0), ValueError, r"images .N, C, H, W. .* \[32, 32\]"),
    (lambda n, x: visualize.find_patches(n, "c3", [x], 0), TypeError, "images must be a tensor, got list"),
    (lambda n, x: visualize.top_patches(n, n.flatten.children, x, 0), ValueError, "has no layer method"),
    (lambda n, x: visualize.deconvnet_maps(n, "c3", x, 0, [(0, 0)]), ValueError, "one for each of 2 images, got 1"),
    (lambda n, x: visualize.deconvnet_maps(n, "c3", x, 0, [(0, 0), (10, 0)]), ValueError,
     r"within maps of 10 x 10, got \(10, 0\)"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (32, 32)), ValueError, r"size must be \(C, H, W\)"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), place="top"), ValueError, "'centre', 'all' or a row"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), place=(0, 10)), ValueError, "within maps of 10 x 10"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), decay=1), ValueError, "got 0.1, 1, 0.5"),
    (lambda n, x: visualize.maximised(n, "c3", 0, None), ValueError, r"size must be \(C, H, W\), .* got None"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), rate="a"), TypeError, "rate must be a number, got 'a'"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), blur=float("inf")), ValueError, "all of them finite"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), limits=(1, 2, 3)), ValueError, "lower and a higher"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), place=(1, 2, 3)), TypeError, "two ints, got .1, 2, 3."),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), seed="a"), TypeError, "seed must be an int, got 'a'"),
    (lambda n, x: visualize.deconvnet_maps(n, "c3", x, 0, 3), TypeError, "places must be a sequence .* got 3"),
    (lambda n, x: visualize.deconvnet_maps(n, "c3", x, 0, [(0.5, 1)] * 2), TypeError, "two ints, got .0.5, 1."),
    (lambda n, x: visualize.deconvnet_maps(n, "c3", x, [0, 1]), TypeError, "channel must be an int or a sequence"),
    (lambda n, x: visualize.find_patches(n, "c3", x, True), TypeError, "channel must be an int .* got True"),
    (lambda n, x: visualize.find_patches(n, "c3", x, {0, 1}), TypeError, "channel must be an int .* got {0, 1}"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), rate=0), ValueError, "rate must be above 0"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), steps=0), ValueError, "steps must be an int"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), limits=(1, 0)), ValueError, "a lower and a higher"),
    (lambda n, x: visualize.maximised(n, "c3", 0, (1, 32, 32), begin=x), ValueError, r"of the size \(1, 32, 32\), got"),
])  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(models.lenet5(), torch.zeros(2, 1, 32, 32))


def test_layers_that_make_nothing_to_look_at():
    net, x = models.googlenet(10, width=1 / 16).eval(), torch.zeros(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="the layer 'auxiliary1.1' did not run"):
        visualize.find_patches(net, "auxiliary1.1", x, 0)
    lstm = nn.Sequential(nn.Flatten(2), nn.Flatten(0, 1), nn.LSTM(64, 2))
    with pytest.raises(RuntimeError, match="the layer '2' makes neither maps"):
        visualize.find_patches(lstm, "2", torch.zeros(1, 3, 8, 8), 0)


def test_a_notebook_shows_the_figures():
    """By the method that notebooks ask for, and through IPython itself where it is installed."""
    figure = visualize.filters(models.lenet5())
    assert figure._repr_png_().startswith(b"\x89PNG") and len(figure._repr_png_()) > 2000
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")
