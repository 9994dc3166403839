"""`explain(model, x)`: the plans of every convolution layer, and the layout that `fuse` takes by them."""

import copy

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import layouts, sides
from conv_ext.model_plans import ModelExplanation


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.mapped = nn.ConvTranspose2d(16, 4, 2, 2), conv_ext.MappedConv2d([[0, 1], [2, 3], [0]], 3)
        self.never = nn.Conv2d(3, 3, 1)
        self.volume = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.volume(self.mapped(self.up(self.twice(self.twice(x)[..., ::2, ::2])))[:, None])


X = torch.randn(2, 3, 14, 12)


def test_rows_are_the_explanations_of_the_layers():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    found = conv_ext.explain(model, X)
    assert isinstance(found, ModelExplanation) and found.model == "Net"
    rows = found.layers
    assert [row.name for row in rows] == ["first", "twice", "twice", "up", "mapped"]
    assert [row.input for row in rows] == [
        (2, 3, 14, 12), (2, 16, 14, 12), (2, 16, 7, 6), (2, 16, 7, 6), (2, 4, 14, 12),
    ]  # fmt: skip
    alone = conv_ext.explain(model.first, X)
    assert str(rows[0].calls[0]) == str(alone) and rows[0].plans("forward") == [alone.forward]
    chosen = {name: cycles for name, _, _, cycles in alone.forward.candidates}[alone.forward.algorithm]
    assert rows[0].cycles == chosen and rows[0].flops == alone.forward.flops
    # What a transposed layer's forward runs is the convolution's input gradient.
    up = conv_ext.explain(model.up, torch.empty(2, 16, 7, 6))
    assert rows[3].plans("forward") == [up.input_grad] and rows[3].plans("input_grad") == [up.forward]
    assert rows[3].plans("weight_grad") == [up.weight_grad] and rows[3].op == "deconv(2,4,s2)"
    assert dict(found.left) == {"never": "the call does not reach it", "volume": "conv_ext has no Conv3d"}
    assert found.cycles == sum(row.cycles for row in rows if row.cycles)
    # Statistics of a model in training mode, and all else, are as before.
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in model.modules()) and model.training


@pytest.mark.parametrize("layout", layouts.FORMATS.values())
def test_torchs_layers_are_explained_as_ours_in_any_layout(layout):
    """On the meta device torch's own have other strides than where they compute."""
    layers = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model, x = nn.Sequential(*layers).to(memory_format=layout), torch.randn(1, 8, 9, 9)
    theirs = conv_ext.explain(model, x)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Conv2d, nn.ReLU, nn.Conv2d]
    ours = conv_ext.explain(conv_ext.convert(model), x)
    assert [row.calls for row in theirs.layers] == [row.calls for row in ours.layers]
    with torch.no_grad():
        y = model[0](x)
    assert str(ours.layers[1].calls[0]) == str(conv_ext.explain(model[1], y))


def test_a_layer_over_a_table_is_several_convolutions():
    layer = conv_ext.MappedConv2d([[0, 1], [1, 2], [0]], 3, activation="relu", dense=False)
    x = torch.randn(2, 3, 9, 9)
    (row,) = conv_ext.explain(layer, x).layers
    ours = [conv_ext.explain(*arguments, activation="relu") for arguments in layer._calls(x)]
    assert [str(call) for call in row.calls] == [str(call) for call in ours] and len(ours) == 2
    assert "relu" in row.calls[0].problem and "groups 2" in row.calls[1].problem
    layer = conv_ext.MappedConv2d([[0, 1], [1, 2], [0]], 3, activation="relu", dense=True)  # or a single dense one
    (row,) = conv_ext.explain(layer, x).layers
    assert [str(call) for call in row.calls] == [
        str(conv_ext.explain(x, layer.dense_weight(), layer.bias, activation="relu"))
    ]


def test_the_table():
    text = str(conv_ext.explain(Net(), X))
    lines = text.splitlines()
    assert lines[0] == "Net: 5 calls of convolution layers"
    assert lines[2].split()[:3] == ["layer", "op", "input"] and "packed" not in lines[2]
    assert lines[4].startswith("first") and "conv(3,16,p1)" in lines[4] and "2×3×14×12" in lines[4]
    assert lines[-2:] == ["left: never: the call does not reach it", "left: volume: conv_ext has no Conv3d"]
    assert lines[10].startswith("all") and "FLOP" in lines[10]


def test_packed_bytes_and_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3)

        def forward(self, x, y):
            return self.conv(input=x + y)

    x = torch.randn(1, 16, 8, 8)
    packed = conv_ext.pack(Two().eval(), x, x)
    found = conv_ext.explain(packed, (x, x))
    assert found.layers[0].packed_bytes == packed.conv.packed_bytes == found.packed_bytes > 0
    assert "packed" in str(found) and found.layers[0].input == (1, 16, 8, 8)
    assert conv_ext.explain(packed, (x, x)).layers[0].cycles == found.layers[0].cycles


def test_models_that_look_at_numbers_are_copied_and_called():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.calls = nn.Conv2d(3, 4, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.conv(x) if float(x.sum()) < float("inf") else x

    model = Looks()
    assert conv_ext.explain(model, X).layers[0].name == "conv" and model.calls == 0


def test_a_residual_and_an_activation():
    x, w, r = torch.empty(2, 3, 8, 8), torch.empty(4, 3, 3, 3), torch.empty(2, 4, 8, 8)
    plain = conv_ext.explain(x, w, padding=1)
    found = conv_ext.explain(x, w, padding=1, activation=("clamp", 0, 1), residual=r)
    assert found.problem == plain.problem + ", residual, clamp(0, 1)" and found.forward == plain.forward
    with pytest.raises(RuntimeError, match="residual"):
        conv_ext.explain(x, w, residual=r)  # of another size
    layer = conv_ext.Conv2d(3, 4, 3, padding=1, activation="relu")
    found = conv_ext.explain(layer, x, r)
    assert found.problem.endswith(", residual, relu")
    assert str(conv_ext.explain(layer, x, residual=r)) == str(found)
    assert str(conv_ext.explain(layer, x[0], r[0])).count(", residual, relu") == 1
    behind = conv_ext.explain(layer, x, r[:, :1])  # which the layer adds as torch does
    assert str(behind) == str(conv_ext.explain(layer, x))
    sequences = torch.empty(2, 3, 8), torch.empty(2, 4, 8)
    assert conv_ext.explain(conv_ext.Conv1d(3, 4, 3, padding=1), *sequences).problem.endswith(", residual")
    with pytest.raises(TypeError, match="'residual' must be Tensor, not int"):
        conv_ext.explain(layer, x, 1)
    for module in (nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(layer)):
        with pytest.raises(TypeError, match=f"takes nothing more, but a residual .*; got {type(module).__name__}"):
            conv_ext.explain(module, x, r)


def test_what_is_missing_is_named():
    with pytest.raises(TypeError, match=r"explain.input. lacks the weight: .* explain.layer, x. a layer"):
        conv_ext.explain(X)
    with pytest.raises(TypeError, match=r"explain.Net. lacks the input"):
        conv_ext.explain(Net())


def test_errors():
    with pytest.raises(TypeError, match="or a model that has one; got Sequential"):
        conv_ext.explain(nn.Sequential(nn.ReLU()), X)
    with pytest.raises(TypeError, match="takes nothing more"):
        conv_ext.explain(Net(), X, None, 2)
    with pytest.raises(RuntimeError, match="channels"):
        conv_ext.explain(Net(), X[:, :2])
    for size in ((3, 32, 32), 32):
        with pytest.raises(TypeError, match=r"takes the model's input, a tensor or a tuple .* got "):
            conv_ext.explain(Net(), size)
        with pytest.raises(TypeError, match=r"takes the model's input"):
            conv_ext.explain(conv_ext.MappedConv2d([[0, 1], [1]], 2), size)


# ---- the layout of a fused model


def net():
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()


@pytest.mark.parametrize("wanted", ["contiguous", "channels_last"])
def test_the_lower_estimate_decides(wanted, monkeypatch):
    """The plan's estimates, whichever they are; here one of the two layouts is made three times as dear."""
    model, x = net(), torch.randn(2, 8, 12, 12)
    real = layouts.explain_model
    seen = []

    class Dearer:
        def __init__(self, row):
            dear = row.calls[0].forward.channels_last is (wanted == "contiguous")
            self.cycles = row.cycles * (3 if dear else 1)
            seen.append(row.calls[0].forward.channels_last)

    def explained(*arguments):
        found = real(*arguments)
        return type("Found", (), {"layers": [Dearer(row) for row in found.layers]})

    monkeypatch.setattr(layouts, "explain_model", explained)
    fused = conv_ext.fuse(model, x, memory_format="auto")
    assert sorted(seen) == [False, False, True, True]
    report = fused.report.layouts
    assert report.chosen == wanted and report.calls == report.of == 2
    assert report.cycles[wanted] == min(report.cycles.values()) and f"memory format: {wanted} (" in str(fused.report)
    with torch.no_grad():
        y = fused(x)
        assert y.is_contiguous(memory_format=layouts.FORMATS[wanted])
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)


def test_the_estimates_are_the_plans():
    model, x = net(), torch.randn(2, 8, 12, 12)
    found = conv_ext.fuse(model, x, memory_format="auto", pack=False).report.layouts
    for name, memory_format in layouts.FORMATS.items():
        fused = conv_ext.fuse(model, pack=False, memory_format=memory_format)
        assert found.cycles[name] == pytest.approx(conv_ext.explain(fused, x).cycles)
    assert found.chosen == min(found.cycles, key=found.cycles.get)
    # So is an exported program's own example.
    program = conv_ext.fuse(torch.export.export(model, (x,)), memory_format="auto")
    assert program.report.layouts == found


def test_without_estimates_it_is_contiguous():
    model, x = net(), torch.randn(2, 8, 12, 12)
    with conv_ext.algorithm("reference"):
        fused = conv_ext.fuse(model, x, memory_format="auto")
    assert fused.report.layouts.chosen == "contiguous" and fused.report.layouts.calls == 0
    assert "no convolution has an estimate in both layouts" in str(fused.report)


def test_a_model_that_cannot_be_called_in_channels_last_stays_contiguous():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 16, 3)

        def forward(self, x):
            return self.conv(x).view(len(x), -1)

    model, x = Views().eval(), torch.randn(2, 8, 12, 12)
    fused = conv_ext.fuse(model, x, memory_format="auto")
    assert fused.report.layouts.chosen == "contiguous" and fused.conv.weight.is_contiguous()
    assert "in channels_last a call raises: view size is not compatible" in str(fused.report)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="expected input"):  # what either layout raises
        conv_ext.fuse(model, torch.randn(2, 7, 12, 12), memory_format="auto")


class WithVolumes(nn.Module):
    """A layer of 3-D kernels, and a buffer of five dimensions, beside one of 2-D kernels, for one image and many."""

    def __init__(self):
        super().__init__()
        self.flat, self.deep = nn.Conv2d(8, 8, 3), nn.Conv3d(1, 2, 3, padding=1)
        self.register_buffer("scale", torch.rand(1, 2, 1, 4, 4))

    def forward(self, x):
        return self.deep(self.flat(x)[:, None]) * self.scale


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("memory_format", ["auto", torch.channels_last, torch.contiguous_format], ids=str)
def test_a_memory_format_is_for_four_dimensions(memory_format, exported):
    model, x = WithVolumes().eval(), torch.randn(2, 8, 6, 6)
    given = torch.export.export(model, (x,)) if exported else model
    fused = conv_ext.fuse(given, x, memory_format=memory_format, pack=False)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    last = memory_format == torch.channels_last
    if memory_format != "auto":
        assert fused.flat.weight.is_contiguous(memory_format=memory_format)
        assert fused.flat.weight.is_contiguous() != last
    assert sum(t.dim() == 5 and t.is_contiguous() for t in (*fused.parameters(), *fused.buffers())) == 2


def test_a_benchmark_of_a_model_with_volumes():
    model = sides.in_layout(WithVolumes(), "channels_last")
    assert not model.flat.weight.is_contiguous() and model.deep.weight.is_contiguous()


@pytest.mark.parametrize("wanted", layouts.FORMATS)
def test_auto_takes_the_layout_in_which_a_model_can_be_called(wanted):
    class Demanding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 16, 3)

        def forward(self, x):
            y = self.conv(x)
            if not y.is_contiguous(memory_format=layouts.FORMATS[wanted]):
                raise ValueError("lies otherwise")
            return y

    model = Demanding().eval().to(memory_format=layouts.FORMATS[wanted])
    fused = conv_ext.fuse(model, torch.randn(2, 8, 12, 12), memory_format="auto")
    other = next(name for name in layouts.FORMATS if name != wanted)
    assert fused.report.layouts.chosen == wanted
    assert f"memory format: {wanted} (in {other} a call raises: lies otherwise)" in str(fused.report)


def test_auto_needs_an_example():
    with pytest.raises(ValueError, match="needs what the model is called with"):
        conv_ext.fuse(net(), memory_format="auto")
    with pytest.raises(TypeError, match="a torch.memory_format or \"auto\", got 'channels'"):
        conv_ext.fuse(net(), memory_format="channels")
    with pytest.raises(TypeError, match='must be a torch.memory_format or "auto", got tensor.*'):
        conv_ext.fuse(net(), memory_format=torch.tensor([1, 2]))


@pytest.mark.parametrize("kind", ["module", "function", "exported"])
def test_torchs_pooling_counts_beside_the_convolutions(kind):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.most, self.mean = nn.Conv2d(8, 8, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d((2, 1))

        def forward(self, x):
            if kind == "function":
                return nn.functional.avg_pool2d(nn.functional.max_pool2d(self.conv(x), 3, 2, 1), (2, 1))
            return self.mean(self.most(self.conv(x)))

    model, x = Pools().eval(), torch.randn(2, 8, 12, 12)
    alone = conv_ext.fuse(nn.Sequential(model.conv).eval(), x, memory_format="auto").report.layouts
    given = torch.export.export(model, (x,)) if kind == "exported" else model
    found = conv_ext.fuse(given, x, memory_format="auto").report.layouts
    for name in layouts.FORMATS:
        pooling = 8 * 6 * 6 * 9 * layouts.POOLING["max"][name] + 8 * 3 * 6 * 2 * layouts.POOLING["average"][name]
        assert found.cycles[name] - alone.cycles[name] == pytest.approx(pooling)


def test_a_program_is_explained_as_fuse_makes_it():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 9, 9)
    program = torch.export.export(model, (x,))
    found = conv_ext.explain(program, x)
    assert [row.op for row in found.layers] == ["conv(3,8)", "conv(1,4)"]
    assert [row.input for row in found.layers] == [(2, 3, 9, 9), (2, 8, 7, 7)]
    assert all(row.packed_bytes is not None for row in found.layers)
    assert str(conv_ext.explain(program, (x,))) == str(found)
    with pytest.raises(TypeError, match="takes the model's input, .* got .3, 9, 9."):
        conv_ext.explain(program, (3, 9, 9))
    with pytest.raises(TypeError, match="explain.layer, input. takes nothing more"):
        conv_ext.explain(program, x, None, 2)
