"""The layers: torch.nn's own in every respect but the convolution that they call."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode

import conv_ext
from devices import device, randn

each_device = pytest.mark.usefixtures("each_device")
PAIRS = [
    (conv_ext.Conv1d, nn.Conv1d, (2, 4, 13)),
    (conv_ext.Conv2d, nn.Conv2d, (2, 4, 9, 12)),
    (conv_ext.ConvTranspose2d, nn.ConvTranspose2d, (2, 4, 5, 7)),
    (conv_ext.ConvTranspose1d, nn.ConvTranspose1d, (2, 4, 7)),
]
MODES = ("reflect", "replicate", "circular")
CASES = [
    (0, {"kernel_size": 3}),
    (0, {"kernel_size": 4, "stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False}),
    (0, {"kernel_size": 4, "padding": "same", "dilation": 3}),
    (0, {"kernel_size": 5, "padding": "valid", "padding_mode": "circular"}),
    *((0, {"kernel_size": 4, "padding": 3, "stride": 2, "padding_mode": mode}) for mode in MODES),
    *((0, {"kernel_size": 4, "padding": "same", "padding_mode": mode}) for mode in MODES),
    (1, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 3), "groups": 2}),
    (1, {"kernel_size": (3, 4), "padding": (1, 3), "padding_mode": "reflect"}),
    (1, {"kernel_size": (2, 3), "padding": (2, 0), "padding_mode": "circular"}),
    (1, {"kernel_size": (2, 3), "padding": (2, 1), "padding_mode": "replicate", "stride": (1, 2)}),
    (2, {"kernel_size": 3}),
    (2, {"kernel_size": (3, 2), "stride": (3, 2), "padding": (1, 0), "output_padding": (2, 1), "groups": 2}),
    (2, {"kernel_size": (2, 3), "stride": 2, "dilation": (1, 2), "bias": False}),
    (3, {"kernel_size": 3}),
    (3, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "dilation": 3, "groups": 2, "bias": False}),
]


class Calls(TorchFunctionMode):
    """Notes which convolution functions are called; ours ask for overrides before anything else, as torch's do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name.startswith("conv"):
            owner = "ours" if (getattr(func, "__module__", None) or "").startswith("conv_ext") else "torch's"
            self.names.append(f"{owner} {name}")
        return func(*args, **(kwargs or {}))


def make_pair(index, options, seed=0):
    """Our layer and torch's with equal weights in float64, and an input."""
    ours, theirs, shape = PAIRS[index]
    torch.manual_seed(seed)
    where = {"dtype": torch.float64, "device": device()}
    pair = ours(4, 6, **where, **options), theirs(4, 6, **where, **options)
    pair[0].load_state_dict(pair[1].state_dict())
    return *pair, randn(shape, dtype=torch.float64)


def assert_same(ours, theirs, x, *arguments):
    """Equal outputs, and equal gradients of the input and of every parameter."""
    results = []
    for layer in (ours, theirs):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        output = layer(leaf, *arguments)
        generator = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, dtype=output.dtype, generator=generator).to(output.device))
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append({"output": output.detach(), "input": leaf.grad, **gradients})
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@each_device
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("index, options", CASES)
def test_layer_gives_what_torchs_gives(index, options):
    for layer in (index,) if index else (0, 1):  # what is written for Conv1d serves Conv2d, too
        ours, theirs, x = make_pair(layer, options)
        assert_same(ours, theirs, x)


@each_device
@pytest.mark.parametrize(
    "index, name", [(0, "conv1d"), (1, "conv2d"), (2, "conv_transpose2d"), (3, "conv_transpose1d")]
)
def test_layer_calls_our_function_and_only_ours(index, name):
    ours, theirs, x = make_pair(index, {"kernel_size": 3})
    with Calls() as calls:
        ours(x)
    assert calls.names == [f"ours {name}"]
    with Calls() as calls:
        theirs(x)
    assert calls.names == [f"torch's {name}"]


@each_device
@pytest.mark.parametrize("index", range(4))
def test_unbatched_and_empty_batch(index):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "padding": 1})
    assert_same(ours, theirs, x[0])
    assert_same(ours, theirs, x[:0])


@each_device
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", range(2))
def test_unbatched_with_padding_modes(index, mode):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "padding": 2, "padding_mode": mode})
    assert_same(ours, theirs, x[0])


@each_device
def test_output_size_of_a_transposed_convolution():
    ours, theirs, x = make_pair(2, {"kernel_size": 3, "stride": (2, 3), "padding": 1})  # 5 x 7 -> 9 or 10, 19 to 21
    for size in ([9, 19], [10, 20], [9, 21], [2, 6, 10, 20]):
        assert ours(x, size).shape[2:] == tuple(size[-2:])
        assert_same(ours, theirs, x, size)
    assert_same(ours, theirs, x[0], [10, 21])
    for size in ([8, 19], [9, 22], [9]):
        with pytest.raises(ValueError) as expected:
            theirs(x, size)
        with pytest.raises(ValueError) as raised:
            ours(x, size)
        assert str(raised.value) == str(expected.value)
    ours, theirs, x = make_pair(3, {"kernel_size": 3, "stride": 3, "padding": 1})
    for size in ([19], [20], [2, 6, 21]):
        assert_same(ours, theirs, x, size)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, [22])


def outcome(cls, options):
    """The error that a constructor raises, or None (torch's ConvTranspose2d checks padding strings late)."""
    try:
        cls(**options)
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("options", [
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 0},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 3},
    {"in_channels": 4, "out_channels": 5, "kernel_size": 3, "groups": 2},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": "same", "stride": 2},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding_mode": "mirror"},
    {"in_channels": 4, "out_channels": 6},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "strides": 2},
])  # fmt: skip
@pytest.mark.parametrize("ours, theirs, _", PAIRS)
def test_constructor_refuses_as_torchs_does(ours, theirs, _, options):
    assert outcome(nn.Conv2d, options) is not None  # so that the next line compares errors
    assert outcome(ours, options) == outcome(theirs, options)


SEQUENCES = {  # what people write a pair in
    "numpy array": lambda values: numpy().array(values),
    "numpy ints": lambda values: tuple(map(numpy().int32, values)),
    "tensor": torch.tensor,
    "tensors": lambda values: [torch.tensor(v) for v in values],
    "Size": torch.Size,
    "iterator": iter,
}


def numpy():
    return pytest.importorskip("numpy")


@pytest.mark.parametrize("form", SEQUENCES)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("index", range(3))
def test_arguments_in_every_form_that_torchs_layers_take(index, mode, form):
    plain = {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0), "dilation": (1, 2)}
    if index == 0:
        plain = {name: value[1:] for name, value in plain.items()}
    if index == 2:
        plain["output_padding"] = (1, 0)
        if mode != "zeros":
            return  # transposed layers have no other
    ours, theirs, shape = PAIRS[index]
    wanted = theirs(4, 6, **plain, padding_mode=mode)
    for chosen in (*[{name} for name in plain], set(plain)):
        options = {name: SEQUENCES[form](v) if name in chosen else v for name, v in plain.items()}
        layer = ours(4, 6, **options, padding_mode=mode)
        layer.load_state_dict(wanted.state_dict())
        assert_same(layer.double(), wanted.double(), torch.randn(shape, dtype=torch.float64))
    if index == 1 and mode == "zeros":
        mapped = conv_ext.MappedConv2d([[0, 1], [2]], **{n: SEQUENCES[form](v) for n, v in plain.items()})
        assert [getattr(mapped, name) for name in plain] == list(plain.values())


@each_device
@pytest.mark.parametrize("index", range(3))
def test_state_dict_goes_both_ways_and_repr_is_the_same(index):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "stride": 2})
    fresh = PAIRS[index][1](4, 6, 3, stride=2, dtype=torch.float64, device=device())
    assert list(fresh.state_dict()) == list(ours.state_dict())
    fresh.load_state_dict(ours.state_dict())
    assert_same(ours, fresh, x)
    assert repr(ours) == repr(theirs)


@each_device
@pytest.mark.parametrize("index", range(3))
def test_copies(index):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "padding": 1})
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for made in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), saved):
        assert type(made) is type(ours) and made.weight is not ours.weight
        assert_same(made, theirs, x)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("index", range(3))
def test_construction_elsewhere(index):
    ours, theirs, x = make_pair(index, {"kernel_size": 3})
    cls = PAIRS[index][0]
    empty = torch.nn.utils.skip_init(cls, 4, 6, 3, dtype=torch.float64)
    assert type(empty) is cls and empty.weight.device.type == "cpu"
    empty.load_state_dict(theirs.state_dict())
    assert_same(empty, theirs, x)

    meta = cls(4, 6, 3, device="meta", dtype=torch.float64)
    assert meta.weight.is_meta and meta(x.to("meta")).shape == theirs(x).shape
    with torch.device("meta"):
        assert cls(4, 6, 3).weight.is_meta
    real = meta.to_empty(device="cpu")
    real.load_state_dict(theirs.state_dict())
    assert_same(real, theirs, x)

    half = cls(4, 6, 3, dtype=torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert ours.to(torch.complex128)(x + 1j * x).dtype == torch.complex128


@each_device
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old-style functions announce their end
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("apply", [
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal,
    torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", amount=0.4),
    lambda layer: prune.ln_structured(layer, "weight", amount=0.4, n=2, dim=0),
])  # fmt: skip
def test_weights_that_are_computed(index, apply):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "padding": 1})
    layers = []
    for layer in (ours, theirs):
        torch.manual_seed(3)  # spectral_norm starts from random vectors
        layers.append(apply(layer))
    for _ in range(2):
        assert_same(*layers, x)
        for layer in layers:
            torch.optim.SGD(layer.parameters(), 0.1).step()
    with Calls() as calls:
        layers[0](x)
    assert len(calls.names) == 1 and calls.names[0].startswith("ours")


@each_device
def test_removing_what_was_put_on_a_weight():
    ours, theirs, x = make_pair(1, {"kernel_size": 3})
    parametrizations.weight_norm(ours)
    torch.nn.utils.parametrize.remove_parametrizations(ours, "weight")
    assert type(ours) is conv_ext.Conv2d
    assert_same(ours, theirs, x)
    prune.l1_unstructured(ours, "weight", amount=0.5)
    prune.remove(ours, "weight")
    assert (ours.weight == 0).sum() == ours.weight.numel() // 2


def test_symbolic_tracing_enters_the_layers():
    net = nn.Sequential(
        conv_ext.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        conv_ext.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(2), conv_ext.Conv1d(2, 5, 3, padding="same"),
    )  # fmt: skip
    graph = torch.fx.symbolic_trace(net)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert [each for each in called if each in (conv_ext.conv1d, conv_ext.conv2d, conv_ext.conv_transpose2d)] == [
        conv_ext.conv2d, conv_ext.conv_transpose2d, conv_ext.conv1d
    ]  # fmt: skip
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(graph(x), net(x), rtol=0, atol=0)


@each_device
@pytest.mark.parametrize("index", range(3))
def test_layer_compiles_in_one_graph(index):
    ours, theirs, x = make_pair(index, {"kernel_size": 3, "padding": 1})
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(compiled, torch.compile(theirs, fullgraph=True, backend="aot_eager"), x)
