"""convert and revert swap classes and touch nothing else; override routes torch's functions."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import conv_ext
from devices import device, randn
from test_modules import Calls

each_device = pytest.mark.usefixtures("each_device")
SAME = {"rtol": 1e-12, "atol": 1e-12}


class Mine(nn.Conv2d):
    """A subclass by somebody else, with a forward of its own."""

    def forward(self, x):
        return super().forward(2 * x)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ModuleDict({"inner": nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False))})["inner"],
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(2), nn.Conv1d(2, 5, 3, padding=1, padding_mode="circular"),
    ).double().to(device())  # fmt: skip


def kinds(model):
    return [type(module) for module in model.modules() if isinstance(module, tuple(TORCHS))]


def owners(model, *x):
    """Whose convolutions a forward pass calls, in order: "ours" or "torch's"."""
    with Calls() as calls:
        model(*x)
    return [name.split()[0] for name in calls.names]


OURS = [conv_ext.Conv2d, conv_ext.Conv2d, conv_ext.ConvTranspose2d, conv_ext.Conv1d]
TORCHS = [nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.Conv1d]


@each_device
def test_there_and_back():
    model = make_model()
    x = randn(2, 3, 6, 5, dtype=torch.float64)
    expected = model.eval()(x)
    before = {id(module): module for module in model.modules()}, {id(each): each for each in model.parameters()}
    state = copy.deepcopy(model.state_dict())

    assert conv_ext.convert(model) is model and kinds(model) == OURS
    assert owners(model, x) == ["ours"] * 4
    torch.testing.assert_close(model(x), expected, **SAME)
    assert not any(module.training for module in model.modules())
    assert conv_ext.convert(model) is model and kinds(model) == OURS

    assert conv_ext.revert(model) is model and kinds(model) == TORCHS
    assert owners(model, x) == ["torch's"] * 4
    assert conv_ext.revert(model) is model and kinds(model) == TORCHS
    after = {id(module): module for module in model.modules()}, {id(each): each for each in model.parameters()}
    assert before[0].keys() == after[0].keys() and before[1].keys() == after[1].keys()
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_the_model_itself_a_shared_layer_and_our_own_layers():
    layer = nn.Conv2d(2, 2, 3)
    assert conv_ext.convert(layer) is layer and type(layer) is conv_ext.Conv2d
    assert conv_ext.revert(layer) is layer and type(layer) is nn.Conv2d
    shared = conv_ext.convert(nn.Sequential(layer, nn.Tanh(), layer))
    assert shared[0] is shared[2] is layer and type(layer) is conv_ext.Conv2d
    assert owners(shared, torch.randn(1, 2, 7, 8)) == ["ours"] * 2
    assert type(conv_ext.revert(conv_ext.ConvTranspose2d(2, 2, 3))) is nn.ConvTranspose2d
    row = nn.ConvTranspose1d(2, 2, 3)
    assert type(conv_ext.convert(row)) is conv_ext.ConvTranspose1d and type(conv_ext.revert(row)) is nn.ConvTranspose1d


@pytest.mark.parametrize("other", [
    Mine(2, 2, 3), nn.Conv3d(2, 2, 3), nn.ConvTranspose3d(2, 2, 3), nn.Linear(2, 2), nn.LazyConv2d(2, 3),
    parametrizations.weight_norm(Mine(2, 2, 3)), nn.Identity(),
])  # fmt: skip
def test_others_are_left_alone(other):
    model = nn.Sequential(other)
    before = type(other)
    assert type(conv_ext.convert(model)[0]) is before
    assert type(conv_ext.revert(model)[0]) is before


def test_lazy_layer_after_its_first_call():
    model = conv_ext.convert(nn.Sequential(nn.LazyConv2d(4, 3)))
    x = torch.randn(1, 3, 5, 6)
    expected = model(x)
    assert type(model[0]) is nn.Conv2d
    assert type(conv_ext.convert(model)[0]) is conv_ext.Conv2d
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("wrong", [None, 3, torch.zeros(2), [nn.Conv2d(1, 1, 1)], nn.Conv2d, F.conv2d])
@pytest.mark.parametrize("function", [conv_ext.convert, conv_ext.revert])
def test_what_is_no_module(function, wrong):
    with pytest.raises(TypeError, match=rf"^{function.__name__} takes a torch.nn.Module, got "):
        function(wrong)


@each_device
def test_hooks_and_optimizer_go_on():
    model = make_model()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model[0].weight.register_hook(lambda gradient: seen.append("gradient"))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.SGD(twin.parameters(), 0.5)
    conv_ext.convert(model)
    x = randn(2, 3, 6, 5, dtype=torch.float64)
    for net, each in ((model, optimizer), (twin, twin_optimizer)):
        net(x).square().mean().backward()
        each.step()
    assert seen[:2] == [(2, 4, 6, 5), "gradient"]
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **SAME)


@each_device
def test_copies_of_a_converted_model():
    model = conv_ext.convert(make_model())
    x = randn(2, 3, 6, 5, dtype=torch.float64)
    expected = model.eval()(x)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kinds(made) == OURS
        torch.testing.assert_close(made(x), expected, rtol=0, atol=0)
    fresh = make_model().eval()
    with torch.no_grad():
        fresh[0].weight.zero_()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), expected, **SAME)


@each_device
@pytest.mark.parametrize("apply", [
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal
])  # fmt: skip
def test_parametrized_layers(apply):
    layer = apply(nn.Conv2d(3, 4, 3, dtype=torch.float64, device=device())).eval()
    twin = copy.deepcopy(layer)  # a copy shares the class that parametrize has made: it must stay torch's
    x = randn(2, 3, 6, 5, dtype=torch.float64)
    expected = layer(x)

    assert conv_ext.convert(layer) is layer and isinstance(layer, conv_ext.Conv2d)
    assert owners(layer, x) == ["ours"] and owners(twin, x) == ["torch's"]
    torch.testing.assert_close(layer(x), expected, **SAME)
    parameters = dict(layer.named_parameters())
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=0, atol=0)
    again = type(layer)
    assert type(conv_ext.convert(layer)) is again

    torch.testing.assert_close(copy.deepcopy(layer)(x), expected, **SAME)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    parametrizations.weight_norm(layer, "bias", dim=None)  # parametrizing goes on: another tensor of the same layer
    parametrize.remove_parametrizations(layer, "bias")

    conv_ext.revert(layer)
    assert not isinstance(layer, conv_ext.Conv2d) and type(layer).__name__ == "ParametrizedConv2d"
    assert owners(layer, x) == ["torch's"]
    assert {name: id(each) for name, each in layer.named_parameters() if "weight" in name} == {
        name: id(each) for name, each in parameters.items() if "weight" in name
    }
    torch.testing.assert_close(layer(x), expected, **SAME)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d


def test_removing_the_parametrization_of_a_converted_layer():
    layer = conv_ext.convert(parametrizations.weight_norm(nn.ConvTranspose2d(3, 4, 3)))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is conv_ext.ConvTranspose2d
    ours = parametrizations.weight_norm(conv_ext.Conv1d(3, 4, 3))
    parametrize.remove_parametrizations(conv_ext.revert(ours), "weight")
    assert type(ours) is nn.Conv1d


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("apply", [
    torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.3)
])  # fmt: skip
def test_layers_with_hooks_on_the_weight(apply):
    layer = apply(nn.Conv2d(3, 4, 3, dtype=torch.float64)).eval()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    expected = layer(x)
    assert type(conv_ext.convert(layer)) is conv_ext.Conv2d
    assert owners(layer, x) == ["ours"]
    torch.testing.assert_close(layer(x), expected, **SAME)


def test_containers_of_other_kinds():
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()))
    x = torch.randn(1, 2, 5, 6)
    expected = traced(x)
    assert kinds(conv_ext.convert(traced)) == [conv_ext.Conv2d]
    assert owners(traced, x) == ["ours"]
    torch.testing.assert_close(traced(x), expected)
    assert kinds(conv_ext.convert(nn.ModuleList([nn.DataParallel(nn.Conv1d(1, 1, 1))]))) == [conv_ext.Conv1d]


CALLS = [
    (F.conv2d, ((2, 4, 7, 6), (6, 2, 3, 2), (6,), (2, 1), (1, 0), (1, 2), 2), {}),
    (F.conv2d, ((2, 4, 7, 6), (6, 4, 3, 2)), {"padding": "same", "dilation": 2}),
    (F.conv2d, ((4, 7, 6), (6, 4, 3, 2)), {"padding": "valid"}),
    (torch.conv2d, ((2, 4, 7, 6),), {"weight": (6, 4, 3, 2), "bias": (6,), "stride": 2}),
    (F.conv1d, ((2, 4, 9), (6, 2, 3)), {"groups": 2, "padding": "same"}),
    (torch.conv1d, ((4, 9), (6, 4, 3), (6,)), {}),
    (F.conv_transpose2d, ((2, 4, 5, 4), (4, 3, 3, 2), None, (2, 3), 1, (1, 0)), {}),
    (torch.conv_transpose2d, ((4, 5, 4), (4, 3, 3, 2), (6,)), {"groups": 2, "dilation": 2}),
    (F.conv_transpose1d, ((2, 4, 5), (4, 3, 3), (6,), 2, 1, 1), {"groups": 2}),
]


@each_device
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("function, args, kwargs", CALLS)
def test_override_routes_calls(function, args, kwargs):
    def made(value, place):
        geometry = place > 2 or not isinstance(value, tuple)
        return value if geometry else randn(value, dtype=torch.float64, requires_grad=True)

    args = [made(value, place) for place, value in enumerate(args)]
    kwargs = {key: made(value, 2 if key in ("weight", "bias") else 3) for key, value in kwargs.items()}
    leaves = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
    expected = function(*args, **kwargs)
    with Calls() as calls, conv_ext.override():
        result = function(*args, **kwargs)
    assert calls.names == [f"ours {function.__name__}"]
    torch.testing.assert_close(result, expected, **SAME)
    g = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(result, leaves, g), torch.autograd.grad(expected, leaves, g), **SAME)


@each_device
def test_override_takes_in_layers_and_leaves_the_rest():
    model = make_model().eval()
    x = randn(2, 3, 6, 5, dtype=torch.float64)
    expected = model(x)
    with Calls() as calls, conv_ext.override():
        result = model(x)
        F.conv3d(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
        F.conv_transpose3d(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
    assert calls.names == ["ours conv2d"] * 2 + [
        "ours conv_transpose2d", "ours conv1d", "torch's conv3d", "torch's conv_transpose3d"
    ]  # fmt: skip
    torch.testing.assert_close(result, expected, **SAME)
    assert owners(model, x) == ["torch's"] * 4


def test_override_with_our_layers_nested_and_after_an_error():
    x, w = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 3)
    with Calls() as calls:
        with conv_ext.override():
            with conv_ext.override():
                F.conv2d(x, w)
            F.conv2d(x, w)
            conv_ext.conv2d(x, w)
            conv_ext.Conv2d(2, 3, 3)(x)
            with pytest.raises(RuntimeError, match="to have 2 channels"):
                F.conv2d(x[:, :1], w)
            F.conv2d(x, w)
        with pytest.raises(ZeroDivisionError), conv_ext.override():
            1 / 0  # noqa: B018
        F.conv2d(x, w)
    assert calls.names == ["ours conv2d"] * 6 + ["torch's conv2d"]


def test_override_refuses_what_ours_does_not_take():
    x = torch.ones(1, 1, 3, 3, dtype=torch.int64)
    assert F.conv2d(x, x).item() == 9
    with conv_ext.override(), pytest.raises(RuntimeError, match="int64"):
        F.conv2d(x, x)
    with conv_ext.override(), pytest.raises(RuntimeError):
        F.conv2d(x.float().to_sparse(), x.float())


def test_override_holds_for_its_thread():
    names = []

    def call():
        with Calls() as calls:
            F.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1))
        names.extend(calls.names)

    with conv_ext.override():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert names == ["torch's conv2d"]


class Tagged(torch.Tensor):
    """A tensor subclass that keeps its type through every function."""


@each_device
def test_override_with_a_tensor_subclass_and_transforms():
    x, w = randn(2, 2, 5, 6, dtype=torch.float64), randn(3, 2, 3, 3, dtype=torch.float64)
    expected = F.conv2d(x, w)
    with conv_ext.override():
        tagged = F.conv2d(x.as_subclass(Tagged), w)
        mapped = torch.func.vmap(lambda each: F.conv2d(each, w))(x)
        gradient = torch.func.grad(lambda each: F.conv2d(each, w).sum())(x)
    assert type(tagged) is Tagged
    torch.testing.assert_close(tagged.as_subclass(torch.Tensor), expected, **SAME)
    torch.testing.assert_close(mapped, expected, **SAME)
    torch.testing.assert_close(gradient, torch.func.grad(lambda each: F.conv2d(each, w).sum())(x), **SAME)


@each_device
def test_override_around_and_inside_compiled_code():
    x, w = randn(2, 2, 5, 6, dtype=torch.float64), randn(3, 2, 3, 3, dtype=torch.float64)
    expected = F.conv2d(x, w).relu()
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph

    def function(x, w):
        return F.conv2d(x, w).relu()

    def with_block(x, w):
        with conv_ext.override():
            return F.conv2d(x, w).relu()

    torch.compiler.reset()
    with conv_ext.override():
        around = torch.compile(function, backend=backend, fullgraph=True)(x, w)
    inside = torch.compile(with_block, backend=backend)(x, w)
    torch.testing.assert_close(around, expected, **SAME)
    torch.testing.assert_close(inside, expected, **SAME)
    assert len(graphs) == 2 and all("conv_ext.forward" in graph and "torch.conv2d" not in graph for graph in graphs)


# ---- what knows torch's layers alone: after revert it has them (docs/limits.md)


def test_a_reverted_model_is_traced_to_torchs_operators_and_onnx_refuses_ours():
    model, x = conv_ext.convert(make_model()).float().eval(), torch.randn(1, 3, 6, 5)
    traced = str(torch.jit.trace(model, x).inlined_graph)
    assert "conv_ext::forward(" in traced and "aten::_convolution(" not in traced
    with pytest.raises(Exception, match="conv_ext::forward"):
        torch.onnx.export(conv_ext.convert(nn.Sequential(nn.Conv2d(3, 2, 3))), (x,), io.BytesIO(), dynamo=False)
    traced = str(torch.jit.trace(conv_ext.revert(model), x).inlined_graph)
    assert traced.count("aten::_convolution") == 4 and "conv_ext::" not in traced


@pytest.mark.filterwarnings("ignore")
def test_quantization_after_revert_and_before():
    quantization = torch.ao.quantization
    x = torch.randn(1, 3, 6, 6)

    def quantized(model):
        model = nn.Sequential(quantization.QuantStub(), model, quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        model = quantization.prepare(model)
        model(x)
        return quantization.convert(model)

    def model():
        return conv_ext.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval())

    names = [["0", "1", "2"]]
    with pytest.raises(AssertionError, match="did not find fuser method"):
        quantization.fuse_modules(model(), names)
    with pytest.raises(NotImplementedError, match="conv_ext::forward.*QuantizedCPU"):
        quantized(model())(x)
    right = quantization.fuse_modules(conv_ext.revert(model()), names)
    torch.testing.assert_close(quantized(right)(x), right(x), rtol=0, atol=0.2)


# ---- what convert says


class Own(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class OfItsOwnSize(nn.Conv2d):
    """Inherits forward."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


class Convolved(nn.ConvTranspose2d):
    def forward(self, input):
        return F.conv2d(input, self.weight)


class Volume(nn.Conv3d):
    pass


@pytest.mark.parametrize("layer, size, why", [
    (OfItsOwnSize(2), (2, 5, 5), "OfItsOwnSize is derived from Conv2d, and what is exchanged is Conv2d itself; "
     "derive it from conv_ext.Conv2d, or call it within conv_ext.override()"),
    (parametrizations.weight_norm(OfItsOwnSize(2)), (2, 5, 5), "OfItsOwnSize is derived from Conv2d, and what is exch"),
    (Convolved(2, 2, 3), (2, 5, 5), "Convolved has a forward of its own; what it calls of torch's is ours within"),
    (Volume(2, 2, 1), (2, 5, 5, 5), "conv_ext has no Conv3d, which Volume is derived from"),
])  # fmt: skip
def test_a_subclass_stays_and_the_report_says_what_reaches_it(layer, size, why):
    said, kind = [], type(layer)
    conv_ext.convert(layer, report=said.append)
    assert type(layer) is kind and f": {why}" in said[0]
    assert owners(layer, torch.randn(1, *size)) == ["torch's"]
    with Calls() as calls, conv_ext.override():
        layer(torch.randn(1, *size))
    assert [name.split()[0] for name in calls.names] == ["torch's" if isinstance(layer, Volume) else "ours"]


def test_convert_says_what_it_changed_and_what_it_left(caplog):
    strange, parametrized = nn.Conv2d(2, 2, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    strange.activation = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv1d(2, 2, 1), parametrized, conv_ext.Conv2d(2, 2, 1), nn.Linear(2, 2))
    net.stem = nn.Sequential(Own(2, 2, 1), nn.Conv3d(2, 2, 1), nn.LazyConv2d(2, 1), strange, net[0])
    net.table = conv_ext.MappedConv2d([[0]], 1)
    net.scripted = torch.jit.script(nn.Conv2d(2, 2, 1))
    said = []
    assert conv_ext.convert(net, report=said.append) is net
    assert said == [
        "3 convolutions became conv_ext's: 1 Conv1d, 2 Conv2d\n"
        "2 convolutions had been before\n"
        "5 convolutions left:\n"
        "    stem.0: Own has a forward of its own; what it calls of torch's is ours within conv_ext.override()\n"
        "    stem.1: conv_ext has no Conv3d\n"
        "    stem.2: LazyConv2d has no weight before its first call; convert after it\n"
        "    stem.3: Conv2d has an attribute 'activation', which ours would read\n"
        "    scripted: Conv2d is compiled by TorchScript"
    ]
    with caplog.at_level("INFO", logger="conv_ext"):
        conv_ext.convert(nn.Conv2d(2, 2, 1))
        conv_ext.convert(nn.Linear(2, 2))
    assert caplog.messages == ["1 convolution became conv_ext's: 1 Conv2d", "0 convolutions became conv_ext's"]


# ---- what revert says, and what torch's quantization and fusion would pass by


class Derived(conv_ext.Conv2d):
    pass


def test_the_report_of_revert():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ZeroPad2d((1, 0, 0, 0)), nn.Conv2d(8, 4, 3)
    others = conv_ext.MappedConv2d([[0, 1], [2]], 1), Derived(2, 2, 1), nn.Conv3d(1, 1, 1), nn.Conv1d(1, 1, 1)
    fused, texts = conv_ext.fuse(nn.Sequential(*layers).eval()), []
    whole = nn.ModuleList([fused, *others])
    assert conv_ext.revert(whole, report=texts.append) is whole
    assert texts[0].splitlines() == [
        "2 convolutions became torch's: 2 Conv2d",
        "    2 of them had packed weights",
        "    1 activation beside them again",
        "    1 padding beside them again",
        "2 convolutions had been before",
        "2 convolutions left:",
        "    1: torch has no layer over a connection table",
        "    2: Derived is derived from conv_ext.Conv2d, and what is exchanged is that class itself",
    ]
    conv_ext.revert(whole, report=texts.append)
    assert texts[1].startswith("0 convolutions became torch's\n4 convolutions had been before")


def test_the_logger_gets_the_report_of_revert(caplog):
    with caplog.at_level("INFO", "conv_ext"):
        conv_ext.revert(conv_ext.Conv2d(3, 2, 1))
    assert "1 convolution became torch's: 1 Conv2d" in caplog.text


@pytest.mark.filterwarnings("ignore:.*quantization:DeprecationWarning")
@pytest.mark.parametrize("how", ["qconfig", "prepared", "joined"])
def test_convert_warns_of_torchs_quantization_and_fusion(how):
    quantization = torch.ao.quantization
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    if how == "joined":
        model = quantization.fuse_modules(model, [["0", "1"]])
    else:
        model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        model = quantization.prepare(model) if how == "prepared" else model
    with pytest.warns(UserWarning, match="torch's quantization or fusion .* they pass the 1 convolution by"):
        conv_ext.convert(model)


@pytest.mark.parametrize("report", [True, "print"])
@pytest.mark.parametrize("name", ["convert", "revert", "pack"])
def test_a_report_that_cannot_be_called_is_refused_before_anything_is_changed(name, report):
    model = nn.Sequential((conv_ext if name == "revert" else nn).Conv2d(3, 4, 3)).eval()
    before = type(model[0])
    inputs = [torch.zeros(1, 3, 5, 5)] if name == "pack" else []
    with pytest.raises(TypeError, match=f"^{name}: report must be a function .* such as print, got {report!r}$"):
        getattr(conv_ext, name)(model, *inputs, report=report)
    assert type(model[0]) is before


def test_packed_layers_stay_packed_where_revert_refuses():
    layers = conv_ext.Conv2d(3, 4, 3), conv_ext.Conv2d(4, 4, 3, activation="relu")
    model = conv_ext.pack(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="revert: torch's layers have no activation, but 1 has 'relu'"):
        conv_ext.revert(model)
    assert [type(layer) for layer in model] == [conv_ext.PackedConv2d] * 2


def test_convert_warns_of_nothing_else(recwarn):
    conv_ext.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    model = nn.Sequential(nn.Linear(3, 3))
    model.qconfig = "something"  # nothing of it became ours
    conv_ext.convert(model)
    assert not recwarn.list


def test_torchs_function_for_one_layer_and_its_normalisation_takes_ours():
    conv, norm = conv_ext.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval()
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    for layer in (conv, conv_ext.PackedConv2d.of(conv, x)):
        with torch.no_grad():
            found = torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
            torch.testing.assert_close(found(x), norm(conv(x)), rtol=1e-4, atol=1e-5)
        assert type(found) is type(layer)
