"""Convolutions over tables of connections, against dense convolutions with zeros where nothing connects."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import conv_ext
from conv_ext import ConnectionTable, MappedConv2d

LENET_C3 = [  # LeCun et al. 1998, table I: input maps down, output maps across
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
]
C3 = [[c for c in range(6) if LENET_C3[c][k] == "X"] for k in range(16)]
TABLES = {
    "lenet5": ConnectionTable(C3),
    "full": ConnectionTable.full(5, 4),
    "one_to_one": ConnectionTable.one_to_one(6),
    "random": ConnectionTable.random(7, 9, 3, torch.Generator().manual_seed(0)),
    "explicit": ConnectionTable([[2, 0], [4], [0, 2], [1, 2, 3], [4]], in_channels=6),
    "permuted": ConnectionTable([[2], [0], [1]]),
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("options", [
    {}, {"stride": (2, 1), "padding": (1, 2), "bias": False}, {"padding": "full", "dilation": 2},
    {"padding": "same_strided", "stride": 2, "activation": "relu"},
])  # fmt: skip
def test_like_a_masked_dense_convolution(name, options, dense):
    table = TABLES[name]
    layer = MappedConv2d(table, (3, 2), dtype=torch.float64, dense=dense, **options)
    assert layer.dense == (dense and name != "full")
    x = torch.randn(2, table.in_channels, 8, 9, dtype=torch.float64, requires_grad=True)
    geometry = {key: value for key, value in options.items() if key != "bias"}
    y, expected = layer(x), conv_ext.conv2d(x, layer.dense_weight(), layer.bias, **geometry)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-12, atol=1e-12)
    sources = [x, *layer.parameters()]
    g = torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, sources, g), torch.autograd.grad(expected, sources, g)):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_lenet5s_third_layer():
    layer = MappedConv2d(C3, 5, dense=False)
    assert sum(p.numel() for p in layer.parameters()) == 1516
    assert layer.table.connections == 60 and "60 of 96 connections" in repr(layer)
    dense = layer.dense_weight()
    for k in range(16):  # the paper's own picture of the table
        for c in range(6):
            assert (LENET_C3[c][k] == "X") == bool(dense[k, c].any())
    # 3, 4 or 6 input maps: a grouped convolution for each.
    assert sorted(layer.convolutions) == [(3, 6), (4, 9), (6, 1)]
    # Left alone it is one dense convolution: three calls would gather 60 maps for 16 outputs.
    layer = MappedConv2d(C3, 5)
    assert layer.dense and layer.convolutions == [(6, 1)] and repr(layer).endswith("dense)")
    assert multiplications(layer, torch.randn(2, 6, 14, 14)) == 2 * 16 * 10 * 10 * 6 * 25


def multiplications(layer, x):
    """Of all convolutions that one call makes."""
    total = 0
    conv2d = conv_ext.mapped.conv2d

    def counting(x, weight, *arguments, **keywords):
        nonlocal total
        y = conv2d(x, weight, *arguments, **keywords)
        total += y.numel() * weight[0].numel()
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_ext.mapped, "conv2d", counting)
        layer(x)
    return total


@pytest.mark.parametrize("name", TABLES)
def test_work_is_in_proportion_to_the_connections(name):
    table = TABLES[name]
    layer = MappedConv2d(table, 3, dense=False)
    found = multiplications(layer, torch.randn(2, table.in_channels, 8, 9))
    assert found == 2 * 6 * 7 * 9 * table.connections
    fan_ins = {len(row) for row in table.sources}
    assert len(layer.convolutions) >= len(fan_ins)
    if name in ("full", "one_to_one"):  # nothing is gathered
        assert len(layer.convolutions) == 1 and not any(b is not None for b in layer._buffers.values())


def blocks(maps, size, fan_in):
    """A table in which so many output maps in a row see the same input maps, drawn at random."""
    drawn = torch.Generator().manual_seed(0)
    rows = [torch.randperm(maps, generator=drawn)[:fan_in].tolist() for _ in range(maps // size)]
    return ConnectionTable([rows[k // size] for k in range(maps)], maps)


@pytest.mark.parametrize("table, kernel, stride, dense", [
    # As measured by a training step (`python -m bench mapped`): what is not within a few percent of equal.
    (ConnectionTable(C3), 5, 1, True),
    (ConnectionTable.random(64, 64, 16, torch.Generator().manual_seed(0)), 3, 1, True),
    (ConnectionTable.random(256, 256, 32, torch.Generator().manual_seed(0)), 3, 1, True),
    (ConnectionTable.random(64, 64, 4, torch.Generator().manual_seed(0)), 1, 1, True),
    (ConnectionTable.one_to_one(128), 3, 1, False),
    (ConnectionTable.one_to_one(128), 1, 1, False),
    (ConnectionTable.one_to_one(64), 3, 2, False),
    (blocks(64, 16, 16), 3, 1, False),
    (blocks(64, 8, 16), 3, 1, True),
    (blocks(64, 8, 16), 1, 1, True),
    (blocks(64, 16, 4), 1, 1, False),
    (blocks(256, 4, 16), 3, 1, False),
    (blocks(256, 64, 64), 3, 1, False),
    (blocks(256, 1, 64), 3, 1, True),
    (ConnectionTable([[10**12], [3]]), 3, 1, False),
])  # fmt: skip
def test_the_way_that_takes_less_time(table, kernel, stride, dense):
    layer = MappedConv2d(table, kernel, stride)
    assert layer.dense == dense == conv_ext.mapped.dense_is_faster(table, (kernel, kernel), (stride, stride))
    assert layer.weight.shape == (table.connections, kernel, kernel)


def test_the_ways_have_the_same_parameters_and_bits_that_may_be_compared():
    """Small integers: no rounding, and so the same bits; a change of the dtype keeps the way."""
    x = torch.randint(-4, 5, (2, 6, 9, 8)).float()
    layers = [MappedConv2d(C3, 3, padding=1, dense=dense) for dense in (False, True)]
    with torch.no_grad():
        for parameter in layers[0].parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(*(layer(x) for layer in layers))
    doubles = [layer.double() for layer in layers]
    assert [layer.dense for layer in doubles] == [False, True]
    assert torch.equal(*(layer(x.double()) for layer in doubles))
    x[0, 0, 4, 4] = torch.inf  # zeros are multiplied: what the docstring says of them
    unconnected = [k for k, row in enumerate(C3) if 0 not in row]
    of_groups, of_dense = (layer.float()(x)[0, unconnected, 4, 4] for layer in layers)
    assert of_groups.isfinite().all() and of_dense.isnan().all()


def test_lent_and_batched_weights_of_the_dense_way():
    layer = MappedConv2d(C3, 3, dense=True, dtype=torch.float64)
    x, weights = torch.randn(2, 6, 5, 5, dtype=torch.float64), torch.randn(3, 60, 3, 3, dtype=torch.float64)

    def call(w):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    expected = torch.stack([call(w) for w in weights])
    torch.testing.assert_close(torch.func.vmap(call)(weights), expected)
    y, tangent = torch.func.jvp(call, (weights[0],), (weights[1],))
    assert torch.equal(y, expected[0])
    torch.testing.assert_close(tangent + layer.bias[:, None, None], expected[1])  # it is linear, but for the bias


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["explicit", "random"])
def test_derivatives_of_any_order(name, dense):
    table = TABLES[name]
    layer = MappedConv2d(table, 2, padding=1, dtype=torch.float64, dense=dense)
    x = torch.randn(1, table.in_channels, 3, 3, dtype=torch.float64, requires_grad=True)

    def call(x, w, b):
        return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))

    inputs = (x, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("dense", [False, True])
def test_copies_devices_and_compilation(dense):
    layer = MappedConv2d(TABLES["explicit"], 3, dtype=torch.float64, dense=dense)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = layer(x)
    assert list(layer.state_dict()) == ["weight", "bias"]
    with torch.device("meta"):
        empty = MappedConv2d(TABLES["explicit"], 3, dtype=torch.float64, dense=dense)
    assert empty(x.to("meta")).shape == expected.shape
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), empty):
        assert torch.equal(made(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    assert layer.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("dense", [False, True])
def test_a_symbolic_trace_records_the_layer(dense):
    """Alone and in a network: the same results and gradients, also with other parameters, for other sizes."""
    how = {"dtype": torch.float64, "dense": dense}
    layer = MappedConv2d(TABLES["explicit"], 3, padding=1, activation="relu", **how)
    net = torch.nn.Sequential(torch.nn.Tanh(), layer, MappedConv2d([[0, 4], [3]], 1, **how))
    for module, size in ((layer, (2, 6, 5, 5)), (layer, (6, 4, 7)), (net, (1, 6, 6, 5)), (net, (6, 6, 5))):
        traced = torch.fx.symbolic_trace(module)
        x = torch.randn(size, dtype=torch.float64)
        assert torch.equal(traced(x), module(x))
        assert dict(traced.named_parameters()).keys() == dict(module.named_parameters()).keys()
        with torch.no_grad():
            for p in traced.parameters():
                p.mul_(2)
        assert torch.equal(traced(x), module(x))  # they share their parameters
        called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
        assert conv_ext.conv2d in called


def test_weights_start_as_those_of_torchs_layer():
    torch.manual_seed(0)
    layer = MappedConv2d([[0, 1, 2, 3], [0]] * 40, 3)
    dense = layer.dense_weight().abs()
    assert 0.9 / 36**0.5 < dense[::2].max() <= 1 / 36**0.5 and 0.9 / 9**0.5 < dense[1::2].max() <= 1 / 9**0.5
    assert layer.bias[::2].abs().max() <= 1 / 36**0.5


def test_tables():
    table = ConnectionTable([[2, 0], [1]])
    assert table.sources == ((0, 2), (1,)) and (table.in_channels, table.out_channels, table.connections) == (3, 2, 3)
    assert table.matrix().tolist() == [[True, False, True], [False, True, False]]
    assert table == ConnectionTable([(0, 2), [1]], 3) != ConnectionTable([(0, 2), [1]], 4)
    assert len({table, ConnectionTable([(0, 2), [1]])}) == 1 and table != "table"
    drawn = [ConnectionTable.random(8, 20, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and {len(row) for row in drawn[0].sources} == {3}


@pytest.mark.parametrize("sources, channels, error, message", [
    ([[0, 3]], 3, ValueError, r"input maps must be from 0 to 2, but output map 0 has \[0, 3\]"),
    ([[0], [-1]], 3, ValueError, r"input maps must be from 0 to 2, but output map 1 has \[-1\]"),
    ([[-1]], None, ValueError, r"input maps must be at least 0, but output map 0 has \[-1\]"),
    ([[True]], 3, TypeError, r"input maps are ints, but output map 0 has \[True\]"),
    ([[0], []], 3, ValueError, "every output map must see at least one input map, output map 1 sees none"),
    ([[0], [1, 1]], 3, ValueError, r"an output map may see an input map once, output map 1 has \[1, 1\]"),
    ([], 3, ValueError, "at least one output map"),
    ([[0.5]], 3, TypeError, r"input maps are ints, but output map 0 has \[0.5\]"),
    ([0, 1], 3, TypeError, "a sequence of sequences"),
    (7, 3, TypeError, "a sequence of sequences"),
    ([[0]], 0, ValueError, "in_channels must be at least 1, got 0"),
    (torch.tensor([[0, 0], [1, 2]]), None, ValueError, "output map 0 has"),
    ([[2**63 - 1]], None, ValueError, "input maps must be below 2\\^63 - 1, got 9223372036854775807"),
    ([[0]], "6", TypeError, "in_channels must be an int, got '6'"),
])  # fmt: skip
def test_bad_tables(sources, channels, error, message):
    with pytest.raises(error, match=message):
        ConnectionTable(sources, channels)
    if channels == 3 and error is not ValueError:
        with pytest.raises(error, match=message):
            MappedConv2d(sources, 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="fan_in must be from 1 to 4, got 5"):
        ConnectionTable.random(4, 2, 5)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got int"):
        ConnectionTable.random(4, 2, 2, 7)
    with pytest.raises(ValueError, match="out_channels must be at least 1, got 0"):
        ConnectionTable.full(4, 0)
    for keywords, message in (
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
        ({"kernel_size": 3, "stride": 0}, "stride must be at least 1"),
        ({"kernel_size": 3, "dilation": (1, 0)}, "dilation must be at least 1"),
        ({"kernel_size": 3, "padding": -1}, "padding must be at least 0"),
        ({"kernel_size": 3, "padding": "around"}, "Invalid padding string 'around'"),
        ({"kernel_size": 3, "activation": "tanh"}, "activation must be one of none, relu"),
    ):
        with pytest.raises(ValueError, match=message):
            MappedConv2d([[0]], **keywords)
    with pytest.raises(TypeError, match="dense must be True, False or None, got 1"):
        MappedConv2d([[0]], 3, dense=1)
    layer = MappedConv2d(C3, 5)
    for shape in ((2, 5, 14, 14), (14, 14), (1, 2, 6, 14, 14)):
        with pytest.raises(RuntimeError, match=r"Expected input \(N, 6, H, W\) or \(6, H, W\)"):
            layer(torch.zeros(shape))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        layer(torch.zeros(1, 6, 4, 4))


def test_a_dense_convolution_of_torchs_agrees_in_float32():
    layer = MappedConv2d(C3, 5)
    x = torch.randn(3, 6, 14, 14)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.dense_weight(), layer.bias), rtol=1e-4, atol=1e-5)


def test_a_map_of_a_large_number_takes_no_memory_for_those_below_it():
    layer = MappedConv2d([[10**12], [3]], 1)
    assert layer.in_channels == 10**12 + 1 and layer.weight.shape == (2, 1, 1)


def test_parameters_that_are_assigned_bring_their_device():
    source, x = MappedConv2d(C3, 5), torch.randn(1, 6, 14, 14)
    layer = MappedConv2d(C3, 5, device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(layer(x), source(x))
    layer = MappedConv2d(C3, 5, device="meta")
    layer.weight, layer.bias = source.weight, source.bias
    assert torch.equal(layer(x), source(x))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("make", [
    lambda dense: MappedConv2d(C3, 5, device="meta", dense=dense),
    lambda dense: MappedConv2d(C3, 5, dense=dense).to("meta"),
])  # fmt: skip
def test_parameters_that_are_lent_to_a_layer_without_memory(make, dense):
    source, x, layer = MappedConv2d(C3, 5, dense=dense), torch.randn(1, 6, 14, 14), make(dense)
    lent = dict(source.named_parameters())
    assert torch.equal(torch.func.functional_call(layer, lent, (x,)), source(x))
    assert layer(x.to("meta")).is_meta and layer(x.to("meta")).shape == (1, 16, 10, 10)
    with pytest.raises(RuntimeError, match="same device"):
        layer(x)
