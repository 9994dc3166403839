"""`fuse` packs the weights of what it has fused: the same bits, a report of the bytes, and a way back."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import PackedConv2d


class Net(nn.Module):
    """Two layers that are packed, one whose weight lies as the kernel reads it, and what is none of Conv2d."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.up = nn.Conv2d(16, 32, 3, stride=2), nn.ConvTranspose2d(32, 4, 2)

    def forward(self, x):
        return self.up(torch.relu(self.second(self.norm(self.first(x)).relu())))


def net() -> Net:
    torch.manual_seed(3)
    made = Net()
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(8, 3, 12, 12))  # statistics
    return made.eval()


def images(n: int = 2, size: int = 12) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def packed_layers(model) -> dict[str, PackedConv2d]:
    return {name: layer for name, layer in model.named_modules() if type(layer) is PackedConv2d}


def scores(model, x) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("given", [True, False], ids=["an example", "the first call"])
def test_weights_are_packed_at_once_or_by_the_first_call(given):
    x = images()
    plain, fused = conv_ext.fuse(net(), pack=False), conv_ext.fuse(net(), *([x] if given else []))
    layers = packed_layers(fused)
    assert set(layers) == {"first", "second"} and not packed_layers(plain)
    assert all((layer.packed_bytes > 0) is given for layer in layers.values())
    for each in (x, images(5), images(1)):
        assert torch.equal(scores(fused, each), scores(plain, each))
    assert all(layer.packed_bytes > 0 for layer in layers.values())
    with torch.no_grad():
        assert layers["first"].is_packed_for(images(7))
    # Another size than that of the first call is computed as well.
    assert torch.equal(scores(fused, images(2, 17)), scores(plain, images(2, 17)))


def test_the_report_counts_bytes():
    fused = conv_ext.fuse(net(), images())
    packing = fused.report.packing
    assert packing.kept == {name: layer.packed_bytes for name, layer in packed_layers(fused).items()}
    assert packing.bytes == sum(packing.kept.values()) > 0
    assert packing.weights == 4 * sum(layer.weight.numel() for layer in packed_layers(fused).values())
    assert packing.left == {"up": "only Conv2d can be packed"}
    text = str(fused.report)
    assert "2 convolutions packed: " in text and "up: only Conv2d can be packed" in text
    assert "2 convolutions packed: " in fused.report._repr_html_()
    weights = sum(layer.weight.nbytes for layer in packed_layers(fused).values())
    assert f" KiB beside {weights / 1024:.1f} KiB of weights" in text
    later = conv_ext.fuse(net())
    assert later.report.packing.kept == {"first": None, "second": None} and later.report.packing.bytes == 0
    assert "2 convolutions to be packed by the first call" in str(later.report)
    assert conv_ext.fuse(net(), pack=False).report.packing is None


def test_several_sizes_and_layers_that_the_call_does_not_reach():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.each(self.each(x)[..., ::2, ::2])

    class Whole(nn.Module):  # what torch.fx cannot trace keeps the layer that nobody calls
        def __init__(self):
            super().__init__()
            self.inner = Twice()

        def forward(self, x):
            return self.inner(x) if bool(x.isfinite().all()) else x

    fused = conv_ext.fuse(Whole().eval(), images(2, 16))
    packing = fused.report.packing
    assert packing.several == {"inner.each": 2} and packing.left == {"inner.never": "the call does not reach it"}
    assert "inner.each: called with 2 sizes, packed for the first" in str(fused.report)


def test_the_way_back_is_torchs():
    x = images()
    model = net()
    for fused in (conv_ext.fuse(model, x), conv_ext.fuse(model)):
        want = scores(fused, x)
        plain = conv_ext.unpack(copy.deepcopy(fused))
        assert (
            torch.equal(scores(plain, x), want) and plain.report.packing is None and "packed" not in str(plain.report)
        )
        assert fused.report.packing is not None
        torchs = conv_ext.revert(fused)
        assert {type(layer).__module__ for layer in torchs.modules() if hasattr(layer, "kernel_size")} == {
            "torch.nn.modules.conv"
        }
        assert all(isinstance(layer.weight, nn.Parameter) for layer in (torchs.first, torchs.second))
        torch.testing.assert_close(scores(torchs, x), scores(model, x), rtol=1e-4, atol=1e-5)


def test_what_modules_do_works_as_before():
    x = images()
    fused, plain = conv_ext.fuse(net(), x), conv_ext.fuse(net(), pack=False)
    want = scores(fused, x)
    assert {k: v.shape for k, v in fused.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert all(layer.packed_bytes > 0 for layer in packed_layers(copied).values())
        assert torch.equal(scores(copied, x), want) and copied.report.packing == fused.report.packing
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    changed = conv_ext.fuse(net(), x)
    changed.first.weight = torch.zeros_like(changed.first.weight)
    assert not torch.equal(scores(changed, x), want)
    changed.load_state_dict(torch.load(file))
    assert torch.equal(scores(changed, x), want)
    again = conv_ext.fuse(fused, x)
    assert torch.equal(scores(again, x), want) and set(again.report.packing.kept) == {"first", "second"}
    assert fused.report.packing is not None


def test_a_gradient_reaches_the_image():
    x = images().requires_grad_()
    fused, plain = conv_ext.fuse(net(), images()), conv_ext.fuse(net(), pack=False)
    assert torch.equal(*(torch.autograd.grad(model(x).sum(), x)[0] for model in (fused, plain)))


def test_an_exported_program_brings_its_example():
    model, x = net(), images()
    program = torch.export.export(model, (x,))
    fused = conv_ext.fuse(program)
    assert fused.report.packing.bytes > 0
    torch.testing.assert_close(scores(fused, x), scores(model, x), rtol=1e-4, atol=1e-5)
    assert conv_ext.fuse(program.module()).report.packing.bytes == 0  # which has none


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weights_are_packed_as_they_lie_in_the_end(layout):
    x = images()
    fused = conv_ext.fuse(net(), x, memory_format=layout)
    assert fused.second.weight.is_contiguous(memory_format=layout)
    with torch.no_grad():
        assert fused.first.is_packed_for(x) and fused.second.is_packed_for(fused.first(x))


def test_errors_of_the_call_are_the_models():
    with pytest.raises(RuntimeError, match="channels"):
        conv_ext.fuse(net(), torch.randn(1, 2, 12, 12))


def test_an_exported_fused_model_packs_nothing_when_it_is_called():
    x = images()
    fused = conv_ext.fuse(net(), x)
    program = torch.export.export(fused, (x,))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.conv_ext.forward_packed.default) == 2
    assert torch.ops.conv_ext.forward.default not in targets
    assert torch.equal(scores(program.module(), x), scores(fused, x))


class Pair(nn.Module):
    """A model whose only argument is a tuple."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, both):
        return self.layer(both[0] + both[1])


@pytest.mark.parametrize("function", ["fuse", "pack"])
def test_inputs_are_given_one_by_one(function):
    x = images()
    for options in [{}, {"memory_format": "auto"}] if function == "fuse" else [{}]:
        with pytest.raises(TypeError, match=rf"^{function} takes .* one by one.*, or \*inputs; called with one tuple"):
            getattr(conv_ext, function)(net(), (x,), **options)
    pair = Pair().eval()
    torch.testing.assert_close(getattr(conv_ext, function)(pair, (x, x))((x, x)), pair((x, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "more, options, message",
    [
        ((), {"pack": "no"}, "fuse: pack must be True or False, got 'no'"),
        ((), {"epilogues": None}, "fuse: epilogues must be True or False, got None"),
        ((), {"verbose": 1}, "fuse: verbose must be True or False, got 1"),
        ((torch.channels_last,), {}, "fuse: memory_format is given by its name"),
    ],
)
def test_options_that_are_none(more, options, message):
    with pytest.raises(TypeError, match=message):
        conv_ext.fuse(net(), images(), *more, **options)


def test_a_program_whose_weights_are_packed_says_so():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    program = torch.export.export(conv_ext.pack(model, images()), (images(),))
    fused = conv_ext.fuse(program)
    why = "it is packed already: export what conv_ext.unpack makes"
    assert [row.stays for row in fused.report.rows] == [[why]]
    assert str(fused.report).startswith("1 convolution, ") and str(fused.report).endswith("\n0 convolutions packed")
    torch.testing.assert_close(scores(fused, images()), scores(model, images()), rtol=1e-4, atol=1e-5)
