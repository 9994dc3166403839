"""`conv_ext.inductor`: what inductor has behind our operators is folded into them, with the same results."""

import copy
import warnings

import pytest
import torch
import torch._inductor.config as config
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import conv_ext
from conv_ext import inductor
from test_fuse import with_statistics

FORWARD = torch.ops.conv_ext.forward.default
PACKED = torch.ops.conv_ext.forward_packed.default
GEOMETRY = ((1, 1), (1, 1, 0, 0), (1, 1), 1)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compilers' own
        yield


def constants(dtype, k=5):
    generator = torch.Generator().manual_seed(0)
    made = [torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
            for size in ((k, 3, 3, 3), (k,), (k, 1, 1), (1, k, 1, 1), (), (1, 1, 1), (1, 1, k))]  # fmt: skip
    return [t.to(dtype) for t in made]


def traced(f, dtype, channels_last=False, wide=False):
    """The graph of aten's operators of f(x, convolution, the constants), with x and an expected result."""
    w, b, *others = constants(dtype)
    others = [t.float() for t in others] if wide else others
    w = w.contiguous(memory_format=torch.channels_last) if channels_last else w
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64).to(dtype)

    def called(x):
        return f(lambda bias=None, **options: FORWARD(x, w, bias, *GEOMETRY, **options), b, *others)

    # make_fx keeps closed-over tensors as attributes, as freezing keeps parameters.
    graph = make_fx(called)(x)
    return graph, x, called(x)


def passed(graph, is_inference=True, pack=False, epilogues=True):
    inductor.FusePass(pack, epilogues)(graph.graph, is_inference)
    graph.graph.lint()
    graph.recompile()
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


CHAINS = {
    "norm": lambda conv, b, k1, k2, s, one, row: (((conv() - k1) * k2) * k1 + k2).relu(),
    "norm behind a bias": lambda conv, b, k1, k2, s, one, row: (conv(b) - k1) / k2 + k1,
    "on the left": lambda conv, b, k1, k2, s, one, row: k1 - k2 * (k1 + conv(b)),
    "numbers": lambda conv, b, k1, k2, s, one, row: (2 * (conv(b) - 0.25) / 4 + 1) * s - one,
    "relu": lambda conv, b, k1, k2, s, one, row: conv(b).relu(),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_constants_are_folded(name, channels_last):
    graph, x, expected = traced(CHAINS[name], torch.float64, channels_last)
    assert passed(graph) == [FORWARD]
    torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12)
    assert graph(x).stride() == expected.stride()
    (node,) = graph.graph.find_nodes(op="call_function", target=FORWARD)
    assert (node.args[9] if len(node.args) > 9 else "none") == ("relu" if "relu" in name or name == "norm" else "none")
    read = {other.target for other in node.all_input_nodes if other.op == "get_attr"}
    assert len(graph.graph.find_nodes(op="get_attr")) == len(read)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_float32_are_folded_where_they_are_rounded_again(dtype):
    """As inductor writes a normalisation of 16 bits."""

    def norm(conv, b, k1, k2, s, one, row):
        wide = torch.ops.prims.convert_element_type.default((conv(b) - k1) * k2, torch.float32)
        return torch.ops.prims.convert_element_type.default(wide, dtype).relu()

    graph, x, expected = traced(norm, dtype, wide=True)
    assert passed(graph) == [FORWARD] and graph(x).dtype == dtype
    torch.testing.assert_close(graph(x), expected, rtol=0.05, atol=0.05)
    wide, x, expected = traced(lambda conv, b, k1, k2, s, one, row: (conv(b) - k1).relu(), dtype, wide=True)
    targets = passed(wide)  # nothing rounds it: the operator cannot give it
    assert len(targets) > 1 and torch.equal(wide(x), expected)


KEPT = {
    "read twice": lambda conv, b, k1, k2, s, one, row: (y := conv(b)) + y.relu(),
    "in the middle": lambda conv, b, k1, k2, s, one, row: (y := conv(b) * k1) * (y + k2),
    "an activation before": lambda conv, b, k1, k2, s, one, row: conv(b, activation="relu") * k1,
    "along another dimension": lambda conv, b, k1, k2, s, one, row: conv(b) * row,  # the result has K columns
    "twice as much of a tensor": lambda conv, b, k1, k2, s, one, row: torch.add(conv(b), k1, alpha=2),
    "twice itself": lambda conv, b, k1, k2, s, one, row: torch.add(y := conv(b), y),
    "a quotient": lambda conv, b, k1, k2, s, one, row: k1 / conv(b),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_stays(name):
    graph, x, expected = traced(KEPT[name], torch.float64)
    before = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert passed(graph) == before or name == "in the middle"
    torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12)


class ToItself(nn.Module):
    """A convolution's result, or what comes of it, added to itself in several ways."""

    def __init__(self):
        super().__init__()
        self.c, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        y, z, v, w = self.c(x), self.c(x.neg()), self.c(2 * x), self.c(3 * x)
        same = self.c(4 * x) + self.c(4 * x)  # one convolution, when common subexpressions are found
        normed = self.norm(w) + self.norm(w)
        follows = self.c(5 * x)
        return y + y, (z + z).relu(), v + v.view(v.shape), same, normed, follows + (follows.neg() * 2).relu()


@pytest.mark.parametrize("options", [{}, {"pack": False}, {"freezing": False}], ids=str)
def test_a_result_that_is_added_to_itself_is_no_residual(options):
    torch.manual_seed(0)
    model, x = conv_ext.convert(with_statistics(ToItself())), torch.randn(1, 3, 6, 6)
    with torch.no_grad(), inductor.fusing(**options):
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_graphs_of_training_and_complex_numbers_stay():
    graph, x, expected = traced(CHAINS["norm"], torch.float64)
    assert len(passed(graph, is_inference=False)) == 6 and torch.equal(graph(x), expected)
    graph, x, expected = traced(CHAINS["on the left"], torch.complex128)
    assert len(passed(graph)) > 1 and torch.equal(graph(x), expected)


class Spy:
    """What inductor has after all passes."""

    def __init__(self):
        self.targets = []

    def __call__(self, graph):
        self.targets += [node.target for node in graph.nodes if node.op == "call_function"]


def net(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU()
    return conv_ext.convert(with_statistics(nn.Sequential(*layers)))


def compiled(model, x, freezing=True, pack=False, **options):
    spy, compiled = Spy(), torch.compile(model, **options)
    with config.patch(post_grad_custom_post_pass=spy), inductor.fusing(freezing, pack), torch.no_grad():
        compiled(x)
    with torch.no_grad():
        return compiled(x), spy.targets


def test_a_frozen_model_is_convolutions_alone():
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        for seed in (0, 1):  # of the second nothing may be found that was kept of the first
            model = net(seed)
            found, targets = compiled(copy.deepcopy(model), x)
            torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
            assert targets == [FORWARD] * 2
            torch._dynamo.reset()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_a_constant_weight_is_packed(channels_last, activation):
    def f(conv, b, *_):
        return conv(b, activation=activation)

    graph, x, expected = traced(f, torch.float64, channels_last)
    assert passed(graph, pack=True) == [PACKED]
    (node,) = graph.graph.find_nodes(op="call_function", target=PACKED)
    packed = getattr(graph, node.args[2].target)
    w, b, *_ = constants(torch.float64)
    w = w.contiguous(memory_format=torch.channels_last) if channels_last else w
    assert packed.dtype == torch.uint8 and torch.equal(packed, torch.ops.conv_ext.pack(w, x, *GEOMETRY))
    assert node.args[2].meta["val"].shape == packed.shape
    assert torch.equal(graph(x), expected) and graph(x).stride() == expected.stride()
    assert passed(graph, pack=True) == [PACKED]  # there is nothing to be done twice


def test_weights_that_are_computed_are_not_packed():
    w, x = constants(torch.float64)[0], torch.randn(2, 3, 6, 7, dtype=torch.float64)
    graph = make_fx(lambda x, w: FORWARD(x, w, None, *GEOMETRY))(x, w)
    assert passed(graph, pack=True) == [FORWARD]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_code_of_a_frozen_model_packs_nothing(layout):
    x, model = torch.randn(2, 3, 9, 8), net(0).to(memory_format=layout)
    found, targets = compiled(copy.deepcopy(model), x, pack=True)
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
        alone, plain = compiled(copy.deepcopy(model), x)
        assert torch.equal(found, alone) and found.stride() == model(x).stride()
    assert plain == [FORWARD] * 2 and PACKED in targets and set(targets) <= {FORWARD, PACKED}
    assert torch.ops.conv_ext.pack.default not in targets


def test_images_of_any_size_pack_nothing():
    found, targets = compiled(net(0), x := torch.randn(2, 3, 9, 8), pack=True, dynamic=True)
    assert PACKED not in targets and FORWARD in targets
    with torch.no_grad():
        torch.testing.assert_close(found, net(0)(x), rtol=1e-5, atol=1e-5)


def test_without_freezing_a_relu_alone_is_taken_in():
    x, model = torch.randn(2, 3, 9, 8), net(0)
    found, targets = compiled(model, x, freezing=False)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-5, atol=1e-5)
    assert targets.count(FORWARD) == 2 and targets.count(torch.ops.aten.relu.default) == 1
    with torch.no_grad():  # later changes are seen
        model[3].weight.zero_()
        model[3].bias.fill_(-1)
        assert torch.compile(model)(x).abs().max() == 0


@pytest.mark.parametrize("value", [3, 0, "no", None], ids=repr)
@pytest.mark.parametrize("name", ["freezing", "pack", "epilogues"])
def test_options_are_bools(name, value):
    for function in [inductor.fusing, *([inductor.FusePass] if name != "freezing" else [])]:
        with pytest.raises(TypeError, match=f"^{function.__name__}: {name} must be True or False, got {value!r}$"):
            function(**{name: value})


def test_passes_of_others_stay_and_the_settings_return():
    before = config.post_grad_custom_pre_pass, config.freezing
    other = Spy()
    with config.patch(post_grad_custom_pre_pass=other), inductor.fusing(), inductor.fusing():
        first, second = config.post_grad_custom_pre_pass
        assert first is other and isinstance(second, inductor.FusePass) and config.freezing
        assert second.uuid() is None  # code with other people's numbers in it is not kept
    assert (config.post_grad_custom_pre_pass, config.freezing) == before
    assert isinstance(inductor.FusePass().uuid(), bytes)
