"""`fuse` and inductor's pass: residual additions and activations beyond ReLU become parts of the convolutions."""

import copy
import math
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import inductor, models
from test_fuse import with_statistics
from test_fuse_graphs import assert_same, double, exported, images, taken
from test_inductor import FORWARD, compiled, fresh, passed, traced  # noqa: F401  # a fixture


class Block(nn.Module):
    """A block of a residual network; the other way is computed before the sum, or before everything."""

    def __init__(self, c=3, k=3, way="input", add=operator.add):
        super().__init__()
        self.a, self.na = nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k)
        self.b, self.nb = nn.Conv2d(k, k, 3, padding=1, bias=False), nn.BatchNorm2d(k)
        self.other, self.no = nn.Conv2d(c, k, 1), nn.BatchNorm2d(k)
        self.relu, self.way, self.add = nn.ReLU(inplace=True), way, add

    def forward(self, x):
        first = self.no(self.other(x)) if self.way == "first" else x
        y = self.nb(self.b(self.relu(self.na(self.a(x)))))
        other = self.no(self.other(x)) if self.way == "last" else first
        return self.relu(self.add(y, other))


class CheckedBlock(Block):
    """A block that looks at the size of what it is going to add to, as other packages' normalisations do."""

    def forward(self, x):
        y = self.b(self.relu(self.na(self.a(x))))
        torch._assert(y.ndim == 4, f"four dimensions, got {y.ndim}")
        y = self.nb(y)
        n, c = y.shape[0], y.size(1)
        other = self.no(self.other(x))
        return self.relu(y + other).reshape(n, c, -1)


class Pyramid(nn.Module):
    """What a feature pyramid does: a coarser map is made as large as the finer one, and added."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        fine = self.fine(x)
        return torch.relu(fine + F.interpolate(self.coarse(x), size=fine.shape[-2:]))


def test_what_asks_for_the_size_of_a_result_comes_behind_the_sum():
    net, x = double(CheckedBlock()), images()
    for fused in (conv_ext.fuse(net), conv_ext.fuse(net, x), conv_ext.fuse(exported(copy.deepcopy(net), x))):
        assert_same(fused, net, x)
        assert fused.report.counts["residual"] == 1
    assert_same(conv_ext.fuse(net), net, torch.cat([x, x]))


def test_a_tensor_that_follows_from_the_size_of_a_result_is_not_taken_in():
    net, x = double(Pyramid()), images()
    fused = conv_ext.fuse(net)
    assert_same(fused, net, x)
    assert "add: the other tensor follows from the layer's size" in fused.report.rows[0].stays
    assert fused.report.counts["residual"] == 0


class SameConv(nn.Conv2d):
    """Pads for the size of its input, as TensorFlow does: control flow that torch.fx cannot trace."""

    def forward(self, x):
        rest = max(2 - x.shape[-1] % 2, 0) + 1
        return F.conv2d(F.pad(x, (rest // 2, rest - rest // 2, rest // 2, rest - rest // 2)), self.weight, self.bias, 2)


class SameBlock(Block):
    """A block behind such a layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.ns = SameConv(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.ns(self.stem(x)))


def test_a_module_that_cannot_be_traced_is_called_as_it_is():
    net, x = double(SameBlock()), images()
    fused = conv_ext.fuse(net)
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), conv_ext.fuse(net, x)):
        assert_same(each, net, x)
    assert fused.report.how == "traced by torch.fx" and type(fused.stem) is SameConv
    assert fused.report.counts == {"normalisation": 2, "residual": 1, "activation": 2}
    assert [row.layer for row in fused.report.rows if "forward of its own" in " ".join(row.stays)] == ["stem"]
    assert_same(fused, net, torch.cat([x, x], 3))


class Writer(nn.Module):
    """Adds a convolution, or multiplies, in place of a tensor that others look at."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.way = nn.Conv2d(3, 3, 3, padding=1), way

    def forward(self, x):
        z = x * 1
        seen = z[:, :2]
        if self.way == "+=":
            z += self.conv(x)
        else:
            z = self.conv(x)
            seen = z[:, :2]
            z *= 2
        return torch.cat([seen, torch.relu(z)], 1)


@pytest.mark.parametrize("way", ["+=", "*="])
def test_who_looks_at_a_tensor_sees_what_is_written_into_it(way):
    """torch.fx by itself makes `z = z + y` of `z += y`."""
    net, x = double(Writer(way)), images()
    fused = conv_ext.fuse(net)
    assert_same(fused, net, x)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same(copied, net, x)
    assert way == "*=" or "iadd: it writes into the other tensor" in fused.report.rows[0].stays


def test_a_sum_that_another_layer_takes_in_does_not_stay():
    report = conv_ext.fuse(double(Block(way="first", add=operator.iadd))).report
    rows = {row.layer: row for row in report.rows}
    assert ("residual", "iadd") in rows["b"].taken and rows["other"].stays == ["iadd: taken in by b"]
    assert "writes into" not in str(report)


@torch.fx.wrap
def stochastic_depth(input, p, mode, training=True):
    """As torchvision's function of that name, which torch.fx keeps whole."""
    assert not training, "it is for eval mode here"
    return input


stochastic_depth.__module__ = "torchvision.ops.stochastic_depth"


class DroppedBlock(Block):
    """A block whose own way is dropped for whole images when it is trained; always, where `training` is True."""

    def __init__(self, always=False, **options):
        super().__init__(**options)
        self.always = always

    def forward(self, x):
        y = self.nb(self.b(self.relu(self.na(self.a(x)))))
        return stochastic_depth(y, 0.2, mode="row", training=self.training or self.always) + x


def test_stochastic_depth_passes_on_in_eval_mode():
    net, x = double(DroppedBlock()), images()
    fused = conv_ext.fuse(net)
    assert_same(fused, net, x)
    assert without_sums(fused) and fused.report.counts["residual"] == 1
    training = conv_ext.fuse(double(DroppedBlock(always=True)))
    assert "stochastic_depth" in training.code and training.report.counts["residual"] == 0


ADDS = {
    "+": operator.add,
    "+=": operator.iadd,
    "on the right": lambda y, other: other + y,
    "torch.add": torch.add,
    "method": lambda y, other: y.add(other),
    "method in place": lambda y, other: y.add_(other),
}


def without_sums(fused):
    called = [node for node in fused.graph.nodes if node.op in ("call_function", "call_method")]
    return not called and all(type(module) is not nn.ReLU for module in fused.modules())


@pytest.mark.parametrize("way", ["input", "first", "last"])
@pytest.mark.parametrize("add", ADDS)
def test_blocks_are_convolutions_alone(way, add):
    net, x = double(Block(way=way, add=ADDS[add])), images()
    for fused in (conv_ext.fuse(net), conv_ext.fuse(net, x), conv_ext.fuse(exported(copy.deepcopy(net), x))):
        assert_same(fused, net, x)
        assert without_sums(fused) or fused.report.exported
        # Where both tensors are a convolution's, the first one in the graph takes the sum.
        rows = [row for row in fused.report.rows if ("residual" in dict(row.taken))]
        assert len(rows) == 1 and [what for what, _ in rows[0].taken] == ["normalisation", "residual", "activation"]


@pytest.mark.parametrize("name", [18, 50])
def test_resnets_are_convolutions_alone(name):
    net = with_statistics(models.resnet(name, num_classes=5)).double()
    fused = conv_ext.fuse(net)
    assert fused.report.counts["residual"] == {18: 8, 50: 16}[name]
    assert_same(fused, net, images(1, 3, 40, 40))


class Forms(nn.Module):
    """Each activation in the forms that it has."""

    def __init__(self, forms):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in forms)
        self.forms = nn.ModuleList(form for form in forms if isinstance(form, nn.Module))
        self.calls = [None if isinstance(form, nn.Module) else form for form in forms]

    def forward(self, x):
        modules = iter(self.forms)
        for conv, call in zip(self.convs, self.calls):
            x = (next(modules) if call is None else call)(conv(x))
        return x


FORMS = {
    "relu6": [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6],
    "silu": [nn.SiLU(), F.silu, lambda x: F.silu(x, inplace=True)],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish],
    ("clamp", -0.5, 0.75): [
        nn.Hardtanh(-0.5, 0.75), lambda x: F.hardtanh(x, -0.5, 0.75),
        lambda x: F.hardtanh(x, max_val=0.75, min_val=-0.5),
        lambda x: torch.clamp(x, -0.5, 0.75), lambda x: x.clamp(-0.5, 0.75), lambda x: x.clamp_(min=-0.5, max=0.75),
    ],
    "relu": [
        lambda x: x.clamp(min=0), lambda x: torch.clamp(x, min=0.0), lambda x: x.clamp(0), lambda x: x.clip_(0),
        lambda x: torch.clamp_min(x, 0), lambda x: x.clamp_min(0), lambda x: x.clamp_min_(min=0),
        lambda x: torch.clamp_(x, 0, None), lambda x: torch.clamp_min_(x, 0), nn.Hardtanh(0.0, math.inf),
    ],
    ("clamp", 0.25, math.inf): [
        lambda x: x.clamp(min=0.25), lambda x: torch.clip(x, 0.25), lambda x: x.clamp_min(0.25),
        lambda x: F.hardtanh(x, 0.25, math.inf),
    ],
    ("clamp", -math.inf, 0.75): [
        lambda x: x.clamp(max=0.75), lambda x: torch.clip(x, max=0.75), lambda x: x.clamp(None, 0.75),
        lambda x: torch.clamp_max(x, 0.75), lambda x: x.clamp_max(0.75), lambda x: x.clamp_max_(0.75),
        lambda x: torch.clamp_max_(x, max=0.75), lambda x: torch.clip_(x, max=0.75),
    ],
}  # fmt: skip


@pytest.mark.parametrize("activation", FORMS, ids=str)
def test_every_form_of_an_activation(activation):
    net, x = double(Forms(FORMS[activation])), images()
    fused = conv_ext.fuse(net)
    assert_same(fused, net, x)
    layers = [module for module in fused.modules() if isinstance(module, conv_ext.Conv2d)]
    assert {layer.activation for layer in layers} == {activation} and fused.report.counts == {"activation": len(layers)}
    from_export = conv_ext.fuse(exported(net, x))
    assert_same(from_export, net, x)
    assert from_export.report.counts == fused.report.counts
    assert steps(fused) == steps(from_export) == ["Conv2d"] * len(layers)  # nothing stands behind them


def steps(fused):
    """What a fused model calls, but for what torch.export asks the input's sizes with."""
    called = [node for node in fused.graph.nodes if node.op.startswith("call") and node.name != "_guards_fn"]
    kinds = [type(fused.get_submodule(node.target)) if node.op == "call_module" else node.target for node in called]
    return ["Conv2d" if kind in (conv_ext.Conv2d, conv_ext.PackedConv2d) else str(kind) for kind in kinds]


# A clamp of one bound, or of none that holds, as a call of a tensor.
ONE_BOUND = {
    "0 below": lambda x: x.clamp(min=0),
    "-0 below": lambda x: x.clamp(min=-0.0),
    "0 above": lambda x: x.clamp(max=0),
    "a number below": lambda x: x.clamp(min=0.3),
    "a number above": lambda x: x.clamp_max(0.3),
    "all above infinity": lambda x: x.clamp(min=math.inf),
    "all below": lambda x: x.clamp(max=-math.inf),
    "no bound": lambda x: x.clamp(min=-math.inf),
}
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.3, -0.3, 1.0, -1.0, 1e-30, -1e-30, 3e4]


def assert_clamped(got, net, x):
    """The same numbers as torch's clamp, NaN where that has one."""
    with torch.no_grad():
        torch.testing.assert_close(got, net(x), rtol=0, atol=0, equal_nan=True)
    assert got.isnan().any()


def of_special_numbers(dtype, clamp):
    """A convolution that passes numbers on, with a clamp behind it, and numbers."""
    conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.ones_(conv.weight)
    return _Then(conv, clamp).eval().to(dtype), torch.tensor(SPECIAL * 3, dtype=dtype).view(1, 3, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ONE_BOUND)
def test_a_clamp_of_one_bound_is_torchs(name, dtype):
    net, x = of_special_numbers(dtype, ONE_BOUND[name])
    for fused in (conv_ext.fuse(net), conv_ext.fuse(exported(net, x), pack=False)):
        assert fused.report.counts == {"activation": 1} and steps(fused) == ["Conv2d"]
        with torch.no_grad():
            assert_clamped(fused(x), net, x)
            assert_clamped(conv_ext.revert(copy.deepcopy(fused))(x), net, x)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_a_bound_alone_is_exported_behind_the_operator(pack, strict):
    """What an operator of a program is called with goes into AOTInductor's packages as numbers of JSON."""
    x = torch.randn(2, 3, 5, 4)
    net = _Then(nn.Conv2d(3, 3, 1), lambda x: x.clamp(max=0.5)).eval()
    fused = conv_ext.fuse(net, x, pack=pack)
    program = exported(fused, x, strict=strict)
    called = [node for node in program.graph.nodes if node.op == "call_function"]
    operator = torch.ops.conv_ext.forward_packed.default if pack else FORWARD
    assert [node.target for node in called] == [operator, torch.ops.aten.clamp.default]
    assert not any(isinstance(each, float) and math.isinf(each) for each in called[0].args)
    with torch.no_grad():
        assert torch.equal(program.module()(x), fused(x))
    if not pack:
        assert steps(conv_ext.fuse(program, pack=False)) == ["Conv2d"]


@pytest.mark.parametrize("pack", [False, True])
def test_a_bound_alone_is_compiled_whole(pack):
    x = torch.randn(2, 3, 5, 4)
    net = _Then(nn.Conv2d(3, 3, 1), lambda x: x.clamp(max=0.5)).eval()
    fused = conv_ext.fuse(net, x, pack=pack)
    with torch.no_grad():
        assert torch.equal(torch.compile(fused, fullgraph=True, backend="aot_eager")(x), fused(x))


def test_a_bound_alone_in_an_aotinductor_package(tmp_path):
    x = torch.randn(2, 3, 5, 4)
    net = _Then(nn.Conv2d(3, 3, 1), lambda x: x.clamp(max=0.5)).eval()
    program = exported(conv_ext.convert(copy.deepcopy(net)), x)
    with inductor.fusing(), torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), net(x))


class Kept(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.up, self.how = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), how

    def forward(self, x):
        return self.how(self, x)


def written_between(net, x):
    y = net.a(x)
    x = x * 1
    z = net.b(x)
    x.add_(1)
    return y + z * x


KEPT = {
    "a tensor's bound": (lambda net, x: net.a(x).clamp(min=x.mean()), "a", "clamp: no activation of a layer"),
    "NaN below": (lambda net, x: net.a(x).clamp(min=math.nan), "a", "clamp: no activation of a layer"),
    "NaN above": (lambda net, x: torch.clamp(net.a(x), -1, math.nan), "a", "clamp: no activation of a layer"),
    "NaN at most": (lambda net, x: net.a(x).clamp_max_(math.nan), "a", "clamp_max_: no activation of a layer"),
    "low > high": (lambda net, x: torch.clip(net.a(x), 1, -1), "a", "clip: no activation of a layer"),
    "a truth below": (lambda net, x: torch.clamp_min(net.a(x), True), "a", "clamp_min: no activation of a layer"),
    "a number": (lambda net, x: net.a(x) + 1, "a", "add: it adds more than one other tensor, or a number"),
    "twice": (lambda net, x: torch.add(net.a(x), x, alpha=2), "a", "add: it adds more than one other tensor, or a num"),
    "two readers": (lambda net, x: (y := net.a(x)) + y.relu(), "a", "relu: others read the same result"),
    "into the other": (lambda net, x: (x * 1).add_(net.a(x)), "a", "add_: it writes into the other tensor"),
    "transposed": (lambda net, x: net.up(x) + x, "up", "add: ConvTranspose2d adds no other tensor"),
    "written between": (written_between, "a", "add__1: add_ writes in place before it"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name):
    how, layer, why = KEPT[name]
    net, x = double(Kept(how)), images()
    fused = conv_ext.fuse(net)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11, equal_nan=True)
    rows = {row.layer: row for row in fused.report.rows}
    assert not rows[layer].taken
    (text,) = rows[layer].stays
    assert text.startswith(why) or name == "written between" and "writes in place before it" in text


@pytest.mark.parametrize("size", [(3, 1, 1), (1, 8), (1, 3, 9, 1)], ids=str)
def test_a_residual_that_is_broadcast_is_added_as_torch_adds_it(size):
    net = double(Kept(lambda net, x: F.relu(net.a(x) + x.mean((2, 3), keepdim=True))))
    fused, x, other = conv_ext.fuse(net), images(), torch.randn(size, dtype=torch.float64)
    assert fused.report.counts == {"residual": 1, "activation": 1}
    assert_same(fused, net, x)
    layer = conv_ext.Conv2d(3, 3, 1, activation="silu").double()
    torch.testing.assert_close(layer(x, other), F.silu(_plain(layer, x) + other))


def _plain(layer, x):
    return conv_ext.conv2d(x, layer.weight, layer.bias)


def test_a_packed_layer_and_a_residual_that_is_broadcast():
    layer, x, other = conv_ext.Conv2d(32, 32, 3, activation="relu"), torch.randn(1, 32, 6, 6), torch.randn(32, 1, 1)
    packed = conv_ext.PackedConv2d.of(layer, x)
    assert packed.is_packed_for(x)
    with torch.no_grad():
        assert torch.equal(packed(x, other), layer(x, other))
        assert torch.equal(packed(x, other), F.relu(_plain(layer, x) + other))


def test_dtypes_of_the_residual():
    layer, x = conv_ext.Conv2d(3, 3, 1, activation="hardswish"), torch.randn(2, 3, 4, 4)
    y = layer(x, x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, F.hardswish(_plain(layer, x) + x.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, x).dtype == torch.float32 and layer(x, x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x, x), F.hardswish(_plain(layer, x) + x))


def test_sums_stay_where_they_are_not_asked_for():
    net, x = double(Block()), images()
    fused = conv_ext.fuse(net, epilogues=False)
    assert_same(fused, net, x)
    assert fused.report.counts == {"normalisation": 2, "activation": 1}
    assert [row.stays for row in fused.report.rows][1] == ["add: epilogues=False leaves it"]
    clamped = conv_ext.fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU6()).eval(), epilogues=False)
    assert [row.stays for row in clamped.report.rows] == [["1: epilogues=False leaves it"]]
    for low, found in {0: {"activation": 1}, 0.5: {}}.items():  # the first is ReLU
        below = _Then(nn.Conv2d(3, 3, 1), lambda x, low=low: x.clamp(min=low)).eval()
        assert conv_ext.fuse(below, epilogues=False).report.counts == found
        graph, x, expected = traced(lambda conv, b, *_, low=low: conv(b).clamp(min=low), torch.float64)
        assert (passed(graph, epilogues=False) == [FORWARD]) == bool(found)
    graph, x, expected = traced(ADDED["residual"], torch.float64)
    assert passed(graph, epilogues=False)[-2:] == [torch.ops.aten.add.Tensor, torch.ops.aten.relu.default]


def test_back_to_torchs_layers():
    net, x = double(nn.Sequential(Block(way="last"), nn.Conv2d(3, 3, 1), nn.Hardtanh(-0.5, 0.75), nn.Conv2d(3, 3, 1),
                                  nn.Hardswish())), images()  # fmt: skip
    for fused in (conv_ext.fuse(net, pack=False), conv_ext.fuse(net, x)):
        reverted = conv_ext.revert(fused)
        assert {type(m) for m in reverted.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
        assert_same(reverted, net, x)
        again = conv_ext.fuse(reverted)
        assert_same(again, net, x)
        assert sum("residual" in dict(row.taken) for row in again.report.rows) == 1


def test_fused_again_copied_and_compiled():
    net, x = double(Block(way="last")), images()
    fused = conv_ext.fuse(net, pack=False)
    again = conv_ext.fuse(copy.deepcopy(fused))
    assert_same(again, net, x)
    assert taken(again) == {"a": [], "b": [], "other": []}
    torch.testing.assert_close(torch.compile(fused, backend="aot_eager")(x), fused(x))
    program = torch.export.export(fused, (x,))
    torch.testing.assert_close(program.module()(x), fused(x))
    assert_same(conv_ext.fuse(program), net, x)


# ---- inductor

ADDED = {
    "residual": lambda conv, b, k1, k2, s, one, row: ((conv(b) - k1) * k2 + torch.cos(_wide(k1))).relu(),
    "on the left": lambda conv, b, k1, k2, s, one, row: torch.cos(_wide(k1)) + conv(b),
    "clamp": lambda conv, b, k1, k2, s, one, row: conv(b).clamp(-0.5, 0.75),
    "two bounds": lambda conv, b, k1, k2, s, one, row: conv(b).clamp_min(-0.5).clamp_max(0.75),
    "0 below": lambda conv, b, k1, k2, s, one, row: conv(b).clamp(min=0),
    "0 at least": lambda conv, b, k1, k2, s, one, row: conv(b).clamp_min(0),
    "below": lambda conv, b, k1, k2, s, one, row: conv(b).clamp(min=0.25),
    "at least": lambda conv, b, k1, k2, s, one, row: conv(b).clamp_min(0.25),
    "above": lambda conv, b, k1, k2, s, one, row: conv(b).clamp(max=0.75),
    "at most": lambda conv, b, k1, k2, s, one, row: conv(b).clamp_max(0.75),
    "silu": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) / ((-y).exp() + 1),
    "hardswish": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) * (y + 3).clamp_min(0).clamp_max(6) / 6,
}


def _wide(k1):
    return (k1 * torch.ones(2, 5, 6, 5, dtype=k1.dtype)).sin()


@pytest.mark.parametrize("name", ADDED)
def test_inductors_sums_and_clamps(name):
    graph, x, expected = traced(ADDED[name], torch.float64)
    inductor.FusePass(pack=False)(graph.graph, True)
    targets = passed(graph)
    assert targets[-1] == FORWARD and targets.count(FORWARD) == 1
    torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12)
    (node,) = graph.graph.find_nodes(op="call_function", target=FORWARD)
    activation, residual, low, high = node.args[9:13]
    assert (residual is not None) == (name in ("residual", "on the left"))
    named = {"residual": "relu", "on the left": "none", "silu": "silu", "hardswish": "hardswish"}
    named |= {"0 below": "relu", "0 at least": "relu"}
    bounds = dict.fromkeys(("below", "at least"), (0.25, math.inf)) | dict.fromkeys(
        ("above", "at most"), (-math.inf, 0.75)
    )
    assert activation == named.get(name, "clamp")
    assert activation != "clamp" or (low, high) == bounds.get(name, (-0.5, 0.75))


# A clamp that is left, and one of which a part is: how many are behind the operator.
UNBOUNDED = {
    "NaN": (lambda conv, b, *_: conv(b).clamp(min=math.nan), 1),
    "NaN at most": (lambda conv, b, *_: conv(b).clamp_max(math.nan), 1),
    "low > high": (lambda conv, b, *_: conv(b).clamp(1, -1), 1),
    "a tensor": (lambda conv, b, k1, *_: conv(b).clamp(min=k1), 1),
    "low > high, one by one": (lambda conv, b, *_: conv(b).clamp_min(1).clamp_max(-1), 1),
    "a number, then NaN": (lambda conv, b, *_: conv(b).clamp_min(-1).clamp_max(math.nan), 1),
    "NaN, then a number": (lambda conv, b, *_: conv(b).clamp_min(math.nan).clamp_max(1), 2),
    "read between": (lambda conv, b, *_: (y := conv(b).clamp_min(-0.5)).clamp_max(0.5) * y, 2),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_a_clamp_leaves_to_torch(name):
    f, left = UNBOUNDED[name]
    graph, x, expected = traced(f, torch.float64)
    assert len(passed(graph)) == 1 + left
    torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["0 below", "a number below", "a number above"])
def test_inductor_takes_a_bound_alone_in(name, dtype, pack):
    net, x = of_special_numbers(dtype, ONE_BOUND[name])
    found, targets = compiled(conv_ext.convert(copy.deepcopy(net)), x, pack=pack)
    assert set(targets) <= {FORWARD, torch.ops.conv_ext.forward_packed.default} and len(targets) == 1
    assert_clamped(found, net, x)


GATES = {
    "another number": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) * (y + 2).clamp_min(0).clamp_max(6) / 6,
    "another bound": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) * (y + 3).clamp_min(0).clamp_max(5) / 6,
    "another tensor": lambda conv, b, k1, k2, s, one, row: k1 / ((-(y := conv(b))).exp() + 1) + y.cos(),
    "read in the middle": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) / (e := (-y).exp() + 1) + e,
    "read again": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) / ((-y).exp() + 1) + y,
}


@pytest.mark.parametrize("name", GATES)
def test_what_is_like_silu_or_hardswish_stays(name):
    graph, x, expected = traced(GATES[name], torch.float64)
    before = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert passed(graph) == before
    torch.testing.assert_close(graph(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["silu", "hardswish", "relu6"])
def test_inductor_writes_activations_as_they_are_known(name, dtype):
    function = getattr(F, name)
    net, x = nn.Sequential(conv_ext.Conv2d(3, 4, 1)).eval().to(dtype), torch.randn(2, 3, 5, 4, dtype=dtype)
    found, targets = compiled(_Then(net, function), x, pack=False)
    assert targets == [FORWARD]
    with torch.no_grad():
        torch.testing.assert_close(found, function(net(x)))


class _Then(nn.Module):
    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


@pytest.mark.parametrize("pack", [False, True])
def test_a_frozen_block_is_convolutions_alone(pack):
    torch.manual_seed(0)
    net, x = conv_ext.convert(with_statistics(Block(way="last"))), torch.randn(2, 3, 9, 8)
    with inductor.fusing(pack=pack):  # the pass that is there already stays
        found, targets = compiled(copy.deepcopy(net), x, pack=pack)
    with torch.no_grad():
        torch.testing.assert_close(found, net(x), rtol=1e-5, atol=1e-5)
    assert len(targets) == 3 and set(targets) <= {FORWARD, torch.ops.conv_ext.forward_packed.default}
