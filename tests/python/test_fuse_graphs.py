"""`fuse` beyond modules: paddings, functions and exported programs; its report; copies, layouts, and the way back."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import models
from conv_ext.fused import Fused, Report
from test_fuse import Classifier, ConvNeXtLayer, OnValues, Residual, with_statistics


def images(*size, dtype=torch.float64):
    return torch.randn(size or (2, 3, 9, 8), dtype=dtype)


def double(net):
    torch.manual_seed(0)
    return with_statistics(net).double()


def assert_same(fused, net, x):
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)


def exported(net, x, **options):
    return torch.export.export(net, (x,), **options)


def taken(fused) -> dict[str, list[str]]:
    return {row.layer: [name for _, name in row.taken] for row in fused.report.rows}


# ---- paddings


class Paddings(nn.Module):
    """Zeros of every form in front of layers of every padding, that a layer can take in."""

    def __init__(self):
        super().__init__()
        self.top, self.all = nn.ZeroPad2d((0, 0, 2, 0)), nn.ConstantPad2d(1, 0.0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=(1, 0)), nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2))
        self.c, self.d = conv_ext.Conv2d(4, 4, 3, padding="full"), nn.Conv2d(4, 3, 2, 2)
        self.left, self.row = nn.ZeroPad1d((2, 0)), nn.Conv1d(3, 3, 3)

    def forward(self, x):
        x = self.a(self.top(x))
        x = self.b(self.all(x))
        x = self.c(F.pad(x, (0, 1)))
        x = self.d(F.pad(x, [0, 1, 0, 1], "constant", 0))
        return self.row(self.left(x.flatten(2)))


SIDES = {"a": (3, 1, 0, 0), "b": (1, 2, 3, 3), "c": (2, 2, 2, 3), "d": (0, 1, 0, 1), "row": (2, 0)}


@pytest.mark.parametrize("how", ["traced", "exported", "parts"])
def test_zeros_become_a_layers_own_padding(how):
    net, x = double(Paddings()), images()
    whole = OnValues(net).eval() if how == "parts" else net
    fused = conv_ext.fuse(exported(net, x)) if how == "exported" else conv_ext.fuse(whole, x)
    part = fused.part if how == "parts" else fused
    found = {name: tuple(part.get_submodule(name).padding) for name in SIDES}
    functions = ("c", "d") if how == "parts" else ()  # a function stays in the code of a class
    assert found == {n: tuple(getattr(net, n).padding) if n in functions else sides for n, sides in SIDES.items()}
    assert sum("pad" in str(n.target).lower() for n in getattr(part, "graph", torch.fx.Graph()).nodes) == 0
    assert_same(fused, whole, x)
    if how != "parts":  # explain and summary know such a layer
        assert len(taken(fused)) == 5 and fused.report.counts == {"padding": 5}
        assert conv_ext.explain(part.d, images(2, 4, 9, 9)).forward is not None
    if how == "traced":
        assert "p0/1/0/1" in str(conv_ext.summary(copy.deepcopy(fused), (3, 9, 8)))
    assert_same(copy.deepcopy(fused), whole, x)
    reverted = conv_ext.revert(fused)
    assert not [m for m in reverted.modules() if type(m).__module__.startswith("conv_ext.modules")]
    assert_same(reverted, whole, x)


def test_a_padding_that_is_the_same_on_both_sides_is_a_number():
    net = double(nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(3, 4, 3, padding=1)))
    fused = conv_ext.fuse(net)
    assert fused.get_submodule("1").padding == (2, 3) and type(fused.get_submodule("1").padding) is tuple
    assert_same(fused, net, images())


class PaddingsThatStay(nn.Module):
    def __init__(self):
        super().__init__()
        self.ones, self.mirror, self.cut = nn.ConstantPad2d(1, 1.0), nn.ReflectionPad2d(1), nn.ZeroPad2d((-1, 0, 0, 1))
        self.zeros, self.a, self.b, self.c, self.d, self.e = nn.ZeroPad2d(1), *(nn.Conv2d(3, 3, 1) for _ in range(5))
        self.circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.strided = conv_ext.Conv2d(3, 3, 3, stride=2, padding="same_strided")
        self.transposed = nn.ConvTranspose2d(3, 3, 3)

    def forward(self, x):
        x = self.c(self.cut(self.b(self.mirror(self.a(self.ones(x))))))
        x = self.strided(self.zeros(self.circular(self.zeros(x))))
        x = self.transposed(self.zeros(x))
        x = self.d(F.pad(x, (0, x.shape[3] % 2)))
        padded = F.pad(x, (1, 1))
        x.mul_(2)
        return self.e(padded) + x.mean()


def test_paddings_that_a_layer_cannot_take_in():
    net, x = double(PaddingsThatStay()), images()
    fused = conv_ext.fuse(net)
    assert_same(fused, net, x)
    stays = {row.layer: row.stays for row in fused.report.rows}
    assert fused.report.counts == {"residual": 1} and stays["b"] == []
    for layer, why in (
        ("a", "ones: it fills in other numbers than zeros"),
        ("c", "cut: it cuts off numbers"),
        ("circular", "zeros: the layer's own padding, circular, (1, 1), comes after it"),
        ("strided", "zeros: the layer's own padding, zeros, same_strided, comes after it"),
        ("transposed", "zeros: ConvTranspose2d has no padding of single sides"),
        ("d", "pad: how much it adds is computed when it is called"),
        ("e", "pad_1: mul_ writes in place before the layer reads"),
    ):
        assert why in stays[layer], (layer, stays[layer])


def test_zeros_that_several_read():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pad, self.a, self.b = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.pad(x)
            return self.a(x) * self.b(x) + x.sum()

    net = double(Twice())
    fused = conv_ext.fuse(net)
    assert fused.report.counts == {"padding": 2} and "pad" in dict(fused.named_modules())
    assert_same(fused, net, images())


def test_a_padding_of_single_sides_is_no_argument_of_a_user():
    x, w = images(), images(4, 3, 3, 3)
    for call in (lambda: conv_ext.conv2d(x, w, padding=(0, 1, 0, 1)), lambda: F.conv2d(x, w, padding=(0, 1, 0, 1))):
        with pytest.raises(RuntimeError, match="expected padding to be a single integer value or a list of 2 values"):
            call()


# ---- functions


class Functional(nn.Module):
    """A layer of its own class, normalisations as functions with a check of the shape, dropout in between."""

    class Mine(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def __init__(self):
        super().__init__()
        self.mine, self.norm, self.drop = self.Mine(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Dropout()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))
        self.standardised, self.up = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(4, 2, 2, 2))
        self.along = nn.Parameter(torch.randn(4, 4, 3))

    def normalised(self, x):
        torch._assert(x.ndim == 4, "images")
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training, n.momentum, n.eps)

    def forward(self, x):
        x = F.relu(self.normalised(self.drop(self.mine(x))))
        x = torch.conv2d(x, self.weight, self.bias, groups=2)
        x = F.conv2d(x, self.standardised.weight / self.standardised.weight.std())
        x = F.conv_transpose2d(x, self.up, stride=2, groups=2)
        x = F.conv_transpose1d(x.flatten(2), self.along, padding=1).view_as(x)
        return conv_ext.conv2d(x, self.weight, groups=2, activation="relu")


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_functions_with_constant_weights_are_layers(how):
    net, x = double(Functional()), images()
    fused = conv_ext.fuse(exported(net, x) if how == "exported" else net)
    assert_same(fused, net, x)
    assert type(fused.mine) is conv_ext.PackedConv2d and fused.mine.activation == "relu" and fused.mine.bias is not None
    assert taken(fused)["mine"][0] == "norm" and "norm" not in dict(fused.named_modules())
    rows = {row.kind: row for row in fused.report.rows}
    assert {"ConvTranspose1d", "ConvTranspose2d"} <= rows.keys()
    assert any("is computed when it is called" in "".join(r.stays) for r in rows.values())
    # What two calls share is one parameter, of two layers.
    shared = [m for m in fused.modules() if getattr(m, "weight", None) is not None and m.weight.shape == (4, 2, 3, 3)]
    assert len(shared) == 2 and shared[0].weight is shared[1].weight and shared[1].activation == "relu"
    assert {"mine.weight", "mine.bias"} <= set(fused.state_dict()) and "weight" not in fused.state_dict()


def test_statistics_that_are_not_constant_stay():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            n = self.norm
            x = F.batch_norm(self.a(x), n.running_mean, n.running_var, n.weight * 2, n.bias, False, 0.1, n.eps)
            return F.batch_norm(self.b(x), None, None, n.weight, n.bias, True, 0.1, n.eps)

    net = double(Computed())
    fused = conv_ext.fuse(net)
    assert_same(fused, net, images())
    assert [row.taken for row in fused.report.rows] == [[], []]
    assert "computed when it is called" in fused.report.rows[0].stays[0] and "batch's" in fused.report.rows[1].stays[0]


# ---- exported programs


@pytest.mark.parametrize(
    "name, form", [("resnet", "program"), ("resnet", "module"), ("resnet", "decomposed"), ("convnext", "program")]
)
def test_exported_programs_where_torch_fx_fails(name, form):
    stages = [Residual(4, 4, 1), Residual(4, 4, 2)] if name == "resnet" else [ConvNeXtLayer(4)]
    net, x = double(Classifier(*stages)), images(2, 3, 32, 28)
    batch = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
    program = exported(net, x, dynamic_shapes=batch)
    if form == "decomposed":
        program = program.run_decompositions()
    given = program.module() if form == "module" else program
    state = {n: t.clone() for n, t in program.state_dict.items()}
    fused = conv_ext.fuse(given)
    of_a_residual_network = {"normalisation": 7, "residual": 2, "activation": 5}
    counts = of_a_residual_network if name == "resnet" else {"normalisation": 1, "activation": 1}
    assert isinstance(fused, Fused) and fused.report.counts == counts
    convolutions = {n for n in state if n.startswith("encoder") and n.endswith("convolution.weight")}
    assert convolutions <= set(fused.state_dict())
    assert all(torch.equal(t, program.state_dict[n]) for n, t in state.items())
    for n in (2, 5):
        assert_same(fused, net, images(n, 3, 32, 28))
    with pytest.raises(AssertionError, match="Guard failed"):
        fused(images(2, 3, 30, 28))
    assert_same(copy.deepcopy(fused), net, x)
    assert_same(torch.export.export(fused, (x,)).module(), net, x)
    assert_same(conv_ext.revert(fused), net, x)
    with pytest.raises(pickle.PicklingError, match="torch.export.save"):
        pickle.dumps(fused)


def test_programs_of_training_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    with pytest.raises(ValueError, match="exported in training mode .batch_norm is in it.: model.eval"):
        conv_ext.fuse(exported(net, images(dtype=torch.float32)))
    dropped = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).train()
    with pytest.raises(ValueError, match="exported in training mode .dropout is in it."):
        conv_ext.fuse(exported(dropped, images(dtype=torch.float32)))


# ---- the report


class Reported(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.hooked, self.pre, self.norm, self.gelu, self.relu = (
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.GELU(), nn.ReLU())  # fmt: skip
        self.hooked.register_forward_hook(lambda module, inputs, y: y)

    def forward(self, x):
        y = self.relu(self.norm(self.a(self.pre(x))))
        z = self.gelu(self.b(y))
        w = self.c(z)
        return self.hooked(self.d(F.relu(w) + w) + z)


def test_the_report_says_what_was_done_and_what_stays(capsys):
    net = double(Reported())
    fused = conv_ext.fuse(net)
    assert capsys.readouterr().out == ""
    rows = {row.layer: row for row in fused.report.rows}
    assert rows["a"].taken == [("normalisation", "norm"), ("activation", "relu")] and rows["a"].stays == []
    assert rows["b"].stays == ["gelu: GELU is no activation of a layer"]
    assert rows["c"].stays == ["relu_1: others read the same result"]
    assert rows["d"].taken == [("residual", "add_1")] and rows["d"].stays == []
    assert rows["hooked"].stays == ["it has hooks, or a forward of its own"]
    assert fused.report.others == [("pre", "it reads x")]
    text = str(fused.report)
    assert text.startswith(
        "5 convolutions, traced by torch.fx; taken in: 0 paddings, 1 normalisation, 1 residual, 1 activation\n"
    )
    assert "stay as they are:\n  pre: it reads x" in text and "gelu: GELU is no" in text
    page = fused.report._repr_html_()
    assert page.count("<tr>") == 6 and ">norm, relu</td>" in page and "<li>pre: it reads x</li>" in page
    conv_ext.fuse(net, verbose=True)
    assert capsys.readouterr().out == text + "\n"


def test_the_report_of_parts(capsys):
    net = double(Classifier(Residual(4, 4, 2)))
    fused = conv_ext.fuse(net, images(2, 3, 32, 28), verbose=True)
    report = fused.report
    assert str(report).startswith("4 convolutions, part by part: torch.fx cannot trace the whole (")
    assert str(report) in capsys.readouterr().out and report.counts == {"normalisation": 4, "activation": 2}
    assert taken(fused)["embedder.convolution"] == ["embedder.normalization", "embedder.activation"]
    assert taken(fused)["encoder.stages.0.layer.1.convolution"] == ["encoder.stages.0.layer.1.normalization"]

    class WithAReport(OnValues):
        report = "mine"

    assert conv_ext.fuse(WithAReport(nn.Conv2d(3, 3, 1)).eval()).report == "mine"


# ---- copies, layouts, and back


def saved(fused):
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda fused: pickle.loads(pickle.dumps(fused)),
    "saved": saved,
    "pickle, deepcopy, pickle": lambda fused: pickle.loads(
        pickle.dumps(copy.deepcopy(pickle.loads(pickle.dumps(fused))))
    ),
}


def test_a_model_whose_annotations_are_strings_is_saved():
    """As they are under `from __future__ import annotations`: torch.fx writes no import for a string."""
    net, x = models.lenet5().double().eval(), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    fused = conv_ext.fuse(net)
    assert all(torch.equal(make(fused)(x), fused(x)) for make in COPIES.values())


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("parts", [False, True])
def test_copies_have_all_of_it(way, parts):
    net = double(Classifier(Residual(4, 4, 2)) if parts else Paddings())
    x = images(2, 3, 32, 28) if parts else images()
    fused = conv_ext.fuse(net, x)
    copied = COPIES[way](fused)
    assert str(copied.report) == str(fused.report) and isinstance(copied.report, Report) and not copied.training
    assert_same(copied, fused, x)
    state = {n: 2 * t for n, t in fused.state_dict().items()}
    copied.load_state_dict(state)
    fused.load_state_dict(state)
    assert_same(copied, fused, x)
    assert_same(conv_ext.revert(copied), fused, x)


@pytest.mark.parametrize("how", ["traced", "exported", "parts"])
def test_one_layout_from_the_first_layer_to_the_last(how):
    net, x = double(models.resnet(18, 10, width=1 / 16)), images(2, 3, 32, 32)
    whole = OnValues(net).eval() if how == "parts" else net
    given = exported(net, x) if how == "exported" else whole
    seen = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        fused = conv_ext.fuse(given, *[x][: how == "parts"], memory_format=memory_format)
        layers = [m for m in fused.modules() if isinstance(m, conv_ext.Conv2d)]
        for layer in layers:
            layer.register_forward_hook(lambda module, inputs, y: seen.append(y))
        assert_same(fused, whole, x)
        assert len(seen) == 20 and all(y.is_contiguous(memory_format=memory_format) for y in seen)
        seen.clear()
    # The default leaves them as they are.
    mixed = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert conv_ext.fuse(mixed).conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(m.weight.is_contiguous() for m in conv_ext.fuse(net).modules() if isinstance(m, conv_ext.Conv2d))


@pytest.mark.parametrize(
    "given, error, message",
    [
        ("channels_last", TypeError, 'memory_format must be a torch.memory_format or "auto", got'),
        (
            torch.channels_last_3d,
            ValueError,
            "memory_format must be one of torch.preserve_format, torch.channels_last, ",
        ),
    ],
)
def test_other_layouts_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        conv_ext.fuse(nn.Conv2d(3, 3, 1).eval(), memory_format=given)


def test_a_fused_model_becomes_torchs_within_another():
    net, x = double(models.resnet(18, 10, width=1 / 16)), images(2, 3, 32, 32)
    outer = nn.Sequential(conv_ext.fuse(net), nn.Softmax(1)).eval()
    expected = net(x).softmax(1)
    assert conv_ext.revert(outer) is outer
    kinds = {type(m) for m in outer.modules()}
    assert nn.Conv2d in kinds and conv_ext.Conv2d not in kinds and nn.BatchNorm2d not in kinds
    torch.testing.assert_close(outer(x), expected)
    program = torch.export.export(outer, (x,))
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert "aten.conv2d.default" in operators and not [name for name in operators if "conv_ext" in name]


def test_revert_changes_nothing_where_it_refuses():
    fused = conv_ext.fuse(
        double(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 0)), nn.Conv2d(4, 4, 3)))
    )
    own = nn.Sequential(fused, conv_ext.Conv2d(4, 4, 1, activation="relu"))
    with pytest.raises(ValueError, match="torch's layers have no activation, but 1 has 'relu'"):
        conv_ext.revert(own)
    assert fused.get_submodule("0").activation == "relu" and type(fused.get_submodule("3")) is conv_ext.PackedConv2d
    taken_out = fused.get_submodule("3")
    with pytest.raises(
        ValueError, match=r"no padding of single sides, but the layer has \(0, 0, 0, 1\); revert the model"
    ):
        conv_ext.revert(taken_out)


def test_torch_onnx_exports_what_was_reverted():
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net, x = with_statistics(Paddings()), images(dtype=torch.float32)
    program = torch.onnx.export(conv_ext.revert(conv_ext.fuse(net)), (x,), dynamo=True, verbose=False)
    (found,) = reference.ReferenceEvaluator(program.model_proto).run(
        None, {program.model_proto.graph.input[0].name: x.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-4)


def test_what_was_exported_under_a_precision_keeps_it():
    net, x = conv_ext.Conv2d(64, 64, 3).eval(), images(1, 64, 9, 9, dtype=torch.float32)
    with conv_ext.precision("bf16"):
        program = exported(net, x)
    fused = conv_ext.fuse(program)
    assert torch.equal(fused(x), program.module()(x)) and not torch.equal(fused(x), net(x))
    assert fused.report.rows[0].stays == ["it was exported under precision 'bf16' and algorithm 'auto'"]
