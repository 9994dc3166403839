"""`fuse`: the same scores in fewer passes; what it takes in, what it leaves alone, what it refuses."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from conv_ext import models
from test_models import NARROW, made


def with_statistics(net):
    """Normalisations that do something: random statistics, gains and biases."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def kinds(net):
    return [type(module).__name__ for module in net.modules()]


def assert_fused(net, x, norms=0, relus=0):
    """Equal scores, the model unchanged, and how many normalisations and ReLUs are left."""
    state, shown = copy.deepcopy(net.state_dict()), repr(net)
    fused = conv_ext.fuse(net)
    assert repr(net) == shown and all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))
    with torch.no_grad():
        expected, found = net(x), fused(x)
        largest = expected.abs().max().item()
        relative = 1e-12 if x.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=0, atol=relative * largest)
    graph = [n for n in fused.graph.nodes if n.op != "placeholder"]
    called = [type(fused.get_submodule(n.target)).__name__ for n in graph if n.op == "call_module"]
    called += [getattr(n.target, "__name__", n.target) for n in graph if n.op in ("call_function", "call_method")]
    assert sum("BatchNorm" in each for each in called) == norms, called
    assert sum("relu" in str(each).lower() for each in called) == relus, called
    return fused


# What is left: the ReLUs behind full connections.
LEFT = {"resnet 18": 0, "resnet 50": 0, "vgg D": 2, "vgg A-LRN": 2, "alexnet": 2, "googlenet": 0, "nin": 0,
        "mnist_convnet": 1, "lenet5": 0, "alexnet groups 2": 2, "mobilenet_v2": 0}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LEFT)
def test_networks(name, dtype):
    net, x = made(name)
    assert_fused(with_statistics(net).to(dtype), x[:2].to(dtype), relus=LEFT[name])


@pytest.mark.parametrize("name", [name for name in NARROW if name not in LEFT])
def test_every_other_network_can_be_fused(name):
    net, x = made(name)
    torch.testing.assert_close(conv_ext.fuse(net.eval())(x[:1]), net(x[:1]), rtol=1e-3, atol=1e-4)


class Forms(nn.Module):
    """Every form of a ReLU, and layers of torch's."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), conv_ext.Conv2d(4, 4, 3, padding="full", bias=False)
        self.c, self.d = conv_ext.MappedConv2d([[0, 1], [2], [3, 0]], 3), nn.Conv2d(3, 4, 1)
        self.e, self.f = nn.Conv2d(4, 4, 1), nn.Conv1d(4, 5, 3)
        self.norm, self.norm1d = nn.BatchNorm2d(4), nn.BatchNorm1d(5, affine=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu(self.norm(self.b(x)))
        x = self.c(x).relu_()
        x = self.relu(self.d(x))
        x = F.relu(self.e(x), inplace=True)
        return self.norm1d(self.f(x.flatten(2))).relu()


def test_every_form():
    net = with_statistics(Forms())
    fused = assert_fused(net, torch.randn(2, 3, 9, 8))
    assert type(net.a) is nn.Conv2d and type(fused.a) is conv_ext.PackedConv2d
    assert fused.b.activation == "relu" and fused.b.bias is not None and net.b.bias is None
    assert not hasattr(fused, "norm") and not fused.training
    # A fused model can be fused again, changed in dtype, copied and compiled.
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    again = assert_fused(copy.deepcopy(fused).double(), x)
    torch.testing.assert_close(torch.compile(again, backend="aot_eager")(x), again(x))


class Generator(nn.Module):
    """Transposed layers as in a DCGAN, of each grouping, and one that gets its size when it is called."""

    def __init__(self):
        super().__init__()
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(12, affine=False), nn.BatchNorm2d(4), nn.BatchNorm2d(2)
        layers = [
            nn.ConvTranspose2d(5, 8, 4, 2, 1, bias=False), norms[0], nn.ReLU(),
            nn.ConvTranspose2d(8, 12, 3, groups=2), norms[1],
            nn.ConvTranspose2d(12, 4, 3, stride=2, groups=4, output_padding=1, bias=False), norms[2], nn.ReLU(),
        ]  # fmt: skip
        self.net, self.last, self.norm = nn.Sequential(*layers), nn.ConvTranspose2d(4, 2, 2, 2), norms[3]

    def forward(self, x):
        return torch.tanh(self.norm(self.last(self.net(x), [45, 52])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transposed_layers_take_in_normalisations_and_no_relu(dtype):
    net = with_statistics(Generator()).to(dtype)
    net.net[3].weight.data = net.net[3].weight.data.to(memory_format=torch.channels_last)
    fused = assert_fused(net, torch.randn(2, 5, 4, 5, dtype=dtype), relus=2)
    assert fused.net.get_submodule("3").weight.is_contiguous(memory_format=torch.channels_last)
    single = conv_ext.fuse(nn.ConvTranspose2d(3, 2, 3).eval())
    assert "ConvTranspose2d" in kinds(single)
    rows = nn.Sequential(nn.ConvTranspose1d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm1d(6), nn.ReLU())
    fused = assert_fused(with_statistics(rows).to(dtype), torch.randn(2, 4, 5, dtype=dtype), relus=1)
    assert kinds(fused)[1:] == ["ConvTranspose1d", "ReLU"]
    with pytest.raises(RuntimeError, match=r"a ConvTranspose1d into which .* takes \(N, C, L\)"):
        fused(torch.randn(4, 5, dtype=dtype))


def test_layers_over_tables_and_synchronised_normalisations():
    table = [[0, 1], [2], [0, 2], [1]]
    net = nn.Sequential(
        conv_ext.MappedConv2d(table, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        conv_ext.Conv2d(4, 3, 3), nn.SyncBatchNorm(3), nn.Tanh(), nn.Conv2d(3, 2, 1, dtype=torch.float64),
    )  # fmt: skip
    fused = assert_fused(with_statistics(net).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64))
    assert fused.get_submodule("0").activation == "relu" and kinds(fused).count("SyncBatchNorm") == 0


class Keywords(nn.Module):
    """Every call of a layer, a norm and a ReLU with its argument by name."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norm, self.other, self.relu = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x):
        x = self.relu(input=self.norm(input=self.a(input=x)))
        x = F.relu(input=self.b(x), inplace=False)
        x = torch.relu(input=self.other(self.c(input=x)))
        return F.relu(self.d(x) + x)


def test_arguments_by_name():
    assert_fused(with_statistics(Keywords()), torch.randn(2, 3, 5, 6))


# ---- models that torch.fx cannot trace, as those of Hugging Face


class Block(nn.Module):
    """Convolution, norm and activation; the last is optional."""

    def __init__(self, c, k, stride=1, activation=True):
        super().__init__()
        self.convolution = nn.Conv2d(c, k, 3, stride, 1, bias=False)
        self.normalization = nn.BatchNorm2d(k)
        self.activation = nn.ReLU() if activation else nn.Identity()

    def forward(self, input):
        hidden_state = self.convolution(input)
        hidden_state = self.normalization(hidden_state)
        return self.activation(hidden_state)


class Residual(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.shortcut = Block(c, k, stride, activation=False)
        self.layer = nn.Sequential(Block(c, k, stride), Block(k, k, activation=False))
        self.activation = nn.ReLU()

    def forward(self, hidden_state):
        residual = hidden_state
        hidden_state = self.layer(hidden_state)
        hidden_state += self.shortcut(residual)
        return self.activation(hidden_state)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dwconv, self.layernorm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)

    def forward(self, features):
        x = self.layernorm(self.dwconv(features).permute(0, 2, 3, 1))
        return features + self.pwconv2(self.act(self.pwconv1(x))).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    def __init__(self, stages):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, hidden_state, output_hidden_states: bool = False, return_dict: bool = True):
        hidden_states = () if output_hidden_states else None
        for stage in self.stages:
            if output_hidden_states:
                hidden_states += (hidden_state,)
            hidden_state = stage(hidden_state)
        if not return_dict:
            return hidden_state
        return {"last_hidden_state": hidden_state, "hidden_states": hidden_states}


class Classifier(nn.Module):
    """A check of the input's values, options without a value, results by name: nothing that torch.fx could trace."""

    def __init__(self, *stages):
        super().__init__()
        self.embedder, self.pooler = Block(3, 4, 2), nn.MaxPool2d(2)
        self.encoder, self.head = Encoder(stages), nn.Linear(4, 2)

    def forward(self, pixel_values, output_hidden_states=None, return_dict=None):
        if pixel_values.shape[1] != 3:
            raise ValueError("Make sure that the channel dimension of the pixel values match")
        found = self.encoder(self.pooler(self.embedder(input=pixel_values)), output_hidden_states is not None)
        return self.head(found["last_hidden_state"].mean((2, 3)))


def removed(fused, net):
    """How many names of each kind of module lead to an nn.Identity now, and did not before."""
    before = {name: type(module) for name, module in net.named_modules(remove_duplicate=False)}
    now = fused.named_modules(remove_duplicate=False)
    gone = [before[n] for n, m in now if type(m) is nn.Identity and before[n] is not nn.Identity]
    return {kind.__name__: gone.count(kind) for kind in gone}


@pytest.mark.parametrize(
    "name, taken", [("resnet", {"BatchNorm2d": 7, "ReLU": 3}), ("convnext", {"BatchNorm2d": 1, "ReLU": 1})]
)
def test_models_that_cannot_be_traced_are_fused_part_by_part(name, taken):
    stages = [Residual(4, 4, 1), Residual(4, 4, 2)] if name == "resnet" else [ConvNeXtLayer(4), ChannelsFirstNorm(4)]
    net, x = with_statistics(Classifier(*stages)).double(), torch.randn(2, 3, 32, 28, dtype=torch.float64)
    state, expected = copy.deepcopy(net.state_dict()), net(x)
    fused = conv_ext.fuse(net, x)
    assert type(fused) is Classifier and not fused.training and removed(fused, net) == taken
    assert not [m for m in fused.modules() if type(m) is nn.Conv2d]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values()))
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused(x, output_hidden_states=True), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="Make sure that the channel dimension"):
        fused(x[:, :2])


class Optional(nn.Module):
    """A norm that an option switches; one that has a second name; one that is read by its attributes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.switched, self.named, self.read, self.twice = (nn.BatchNorm2d(3) for _ in range(4))
        self.alias = self.named

    def forward(self, x, mask=None):
        x = self.a(x)
        if mask is not None:
            x = self.switched(x)
        x = self.alias(self.b(x))
        x = self.read(self.c(x)) * self.read.weight.sum()
        return self.twice(self.twice(self.d(x)))


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.other = inner, nn.Conv2d(3, 3, 1)
        self.more = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.shared = self.more[1]

    def forward(self, x, mask=None):
        if x.shape[0] > 100:
            return x
        return self.shared(self.other(self.more(self.inner(x, mask))))


def test_parts_that_only_seem_to_be_fusible_stay():
    net, x = with_statistics(Outer(Optional())).double(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    fused = conv_ext.fuse(net, x)
    assert removed(fused, net) == {"BatchNorm2d": 2}  # one, under its two names
    for mask in (None, x):
        torch.testing.assert_close(fused(x, mask), net(x, mask), rtol=1e-12, atol=1e-12)


class Kept(nn.Module):
    """What must stay: results that are read twice, other activations, a norm before the layer, batch statistics."""

    def __init__(self):
        super().__init__()
        self.before, self.a, self.b, self.c = nn.BatchNorm2d(3), *(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.after, self.batch = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        x = self.a(self.before(x))
        x = x + torch.relu(x)
        y = self.b(x)
        return torch.relu(torch.tanh(self.c(self.after(y) + y))) + self.batch(self.b(x))


def test_what_must_stay():
    fused = assert_fused(with_statistics(Kept()), torch.randn(2, 3, 5, 6), norms=3, relus=2)
    assert all(getattr(fused, name).activation == "none" for name in "abc")


class Shared(nn.Module):
    """One layer called three times, with different things behind it; and its weight read by a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.first(self.conv(x)) + torch.relu(self.second(self.conv(x)))
        return self.conv(x) + F.conv2d(x, self.conv.weight)


def test_layers_that_are_called_more_than_once():
    assert_fused(with_statistics(Shared()), torch.randn(2, 3, 5, 6))


def test_layers_with_hooks_and_parametrizations_stay():
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU()))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    nn.utils.parametrizations.weight_norm(net[2])
    net.eval()  # what a parametrization adds comes in training mode
    assert_fused(net, torch.randn(2, 3, 5, 6), norms=1, relus=1)


def test_single_layers_and_complex_ones():
    layer = nn.Conv2d(3, 2, 3).eval()
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(conv_ext.fuse(layer)(x), layer(x))
    net = nn.Sequential(conv_ext.Conv2d(3, 2, 3, dtype=torch.complex64), nn.Identity()).eval()
    assert conv_ext.fuse(net)(x.to(torch.complex64)).is_complex()


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_refused():
    with pytest.raises(TypeError, match="fuse takes a torch.nn.Module or a torch.export.ExportedProgram, got str"):
        conv_ext.fuse("resnet50")
    with pytest.raises(ValueError, match="in eval mode, but Sequential and 1 more are in training mode: model.eval()"):
        conv_ext.fuse(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(RuntimeError, match="fuse: Untraceable cannot be traced by torch.fx, .* torch.fx says: "):
        conv_ext.fuse(Untraceable().eval())


def test_gradients_pass_through_a_fused_model():
    net = with_statistics(made("resnet 18")[0]).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    (mine,) = torch.autograd.grad(conv_ext.fuse(net)(x).sum(), x)
    (theirs,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * theirs.abs().max().item())


def test_models_in_bfloat16_agree_as_far_as_they_round():
    net, x = made("vgg A")
    net, x = net.eval().bfloat16(), x[:1].bfloat16()
    assert torch.equal(conv_ext.fuse(net)(x), net(x))  # nothing to fold: a ReLU in the epilogue has the same bits
    assert isinstance(models.vgg("A", width=1 / 16).features[0], conv_ext.Conv2d)


def measured(*layers, shape):
    """The layers in eval mode, with running statistics of something."""
    model = nn.Sequential(*layers)
    for _ in range(3):
        model(torch.randn(shape) * 3 + 1)
    return model.eval()


@pytest.mark.parametrize("patched", [0, 1, 2])
@pytest.mark.parametrize("bound", [False, True])
def test_a_forward_of_its_own_stays(patched, bound):
    """As libraries put theirs into modules, to move what passes through: what it does must not be lost."""
    model = measured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), shape=(8, 3, 9, 9))
    old = model[patched].forward

    def own(*x):
        return -2 * old(x[-1])

    model[patched].forward = types.MethodType(own, model[patched]) if bound else own
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(conv_ext.fuse(model)(x), model(x))


OF_THE_MODEL = {
    "forward": lambda m: setattr(m, "forward", types.MethodType(lambda self, x: type(self).forward(self, x) * 3, m)),
    "hook": lambda m: m.register_forward_hook(lambda module, inputs, y: y * 3),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,)),
}


@pytest.mark.parametrize("put", OF_THE_MODEL.values(), ids=OF_THE_MODEL)
def test_what_was_put_into_the_model_itself_stays(put):
    """A graph would have its class's forward alone. Behind a hook there is still something to fuse."""
    model = measured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), shape=(8, 3, 9, 9))
    put(model)
    x = torch.randn(2, 3, 7, 7)
    fused = conv_ext.fuse(model, x)
    torch.testing.assert_close(fused(x), model(x))
    kinds = [type(module).__name__ for module in fused]
    assert kinds == ["PackedConv2d"] + (["BatchNorm2d", "ReLU"] if "forward" in vars(model) else ["Identity"] * 2)


def test_a_part_is_not_judged_by_a_forward_that_it_does_not_have():
    """Where the whole cannot be traced: the part's own forward leaves the normalisation out."""
    part = measured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), shape=(8, 3, 9, 9))
    part.forward = types.MethodType(lambda self, x: self[0](x), part)
    model = OnValues(part).eval()
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(conv_ext.fuse(model, x)(x), model(x))


class OnValues(nn.Module):
    """Not to be traced: what it does depends on values."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.isfinite().all() else x


class Taps(nn.Module):
    """Calls the children of its part one by one, and looks at what is between. Not to be traced."""

    def __init__(self, part, call=lambda layer, x: layer(x)):
        super().__init__()
        self.features, self.call = part, call
        self.whole = norm_and_relu(2)

    def forward(self, x):
        x = self.whole(x if x.isfinite().all() else x.nan_to_num())
        taps = [x]
        for layer in self.features.children():
            taps.append(self.call(layer, taps[-1]))
        return taps


def norm_and_relu(channels=4):
    return nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU())


SINGLY = {
    "layers": lambda: Taps(norm_and_relu(2)),
    "forward itself": lambda: Taps(norm_and_relu(2), lambda layer, x: layer.forward(x)),
    "blocks": lambda: Taps(nn.Sequential(norm_and_relu(2), norm_and_relu(2))),
    "a list of blocks": lambda: Taps(nn.ModuleList([norm_and_relu(2), norm_and_relu(2)])),
    "layers of blocks": lambda: Taps(
        nn.Sequential(norm_and_relu(2)), lambda block, x: sum(layer(x).sum() for layer in block) + x
    ),
}


@pytest.mark.parametrize("way", SINGLY)
def test_a_part_whose_children_are_called_singly_stays(way):
    net, x = with_statistics(SINGLY[way]()).double(), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    fused = conv_ext.fuse(net, x)
    for found, expected in zip(fused(x), net(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    blocks = 2 if way in ("blocks", "a list of blocks") else 0  # these are called whole, and `whole` is
    assert fused.report.counts == dict.fromkeys(("padding", "normalisation", "activation"), 1 + blocks)
    stays = {row.layer: row.stays for row in fused.report.rows if not row.taken}
    assert len(stays) == (0 if blocks else 1)
    if way in ("layers", "forward itself"):
        reason = "features.1 is called, or its weight read, outside the forward of features"
        assert stays == {"features.1": [reason]} and reason in str(fused.report)


def test_what_a_call_does_not_reach_stays():
    net, x = with_statistics(OnValues(norm_and_relu(2))), torch.full((2, 2, 5, 6), torch.inf)
    fused = conv_ext.fuse(net, x)
    assert [row.stays for row in fused.report.rows] == [["the call does not reach it, or what stands around it"]]
    torch.testing.assert_close(fused(x := torch.randn(2, 2, 5, 6)), net(x), rtol=1e-5, atol=1e-5)


def test_without_a_call_no_part_is_fused():
    net, x = with_statistics(Taps(norm_and_relu(2))), torch.randn(2, 2, 5, 6)
    fused = conv_ext.fuse(net)
    assert not fused.report.counts and all(map(torch.equal, fused(x), conv_ext.convert(copy.deepcopy(net))(x)))
    reason = "only a call shows which module calls it: fuse(model, inputs) looks at one"
    assert [row.stays for row in fused.report.rows] == [[reason]] * 2


@pytest.mark.parametrize("read", ["1.weight", "2.running_mean", "2.bias"])
def test_a_part_whose_tensors_others_read_stays(read):
    class Reads(OnValues):
        def forward(self, x):
            name, _, tensor = read.partition(".")
            return super().forward(x) * getattr(self.part[int(name)], tensor).sum()

    net, x = with_statistics(Reads(norm_and_relu(2))), torch.randn(2, 2, 5, 6)
    fused = conv_ext.fuse(net, x)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-5, atol=1e-5)
    assert not fused.report.counts and "or its weight read, outside the forward of part" in str(fused.report)


def test_a_hook_that_calls_a_child_is_not_its_parents_forward():
    part = norm_and_relu(2)
    part.register_forward_hook(lambda module, inputs, y: y + module[1](inputs[0]).mean())
    net, x = with_statistics(OnValues(part)), torch.randn(2, 2, 5, 6)
    fused = conv_ext.fuse(net, x)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-5, atol=1e-5)
    assert not fused.report.counts


def test_one_dimensional_layers_take_batches_once_a_normalisation_is_folded():
    """BatchNorm1d reads (C, L) as many examples of features, which no convolution computes."""
    model = measured(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), shape=(8, 2, 4))
    fused = conv_ext.fuse(model)
    x = torch.randn(3, 2, 4)
    torch.testing.assert_close(fused(x), model(x))
    assert [type(module).__name__ for module in fused.children()] == ["Conv1d"]
    with pytest.raises(RuntimeError, match=r"takes \(N, C, L\), got input of size: \[2, 4\]"):
        fused(x[0])
    torch.testing.assert_close(copy.deepcopy(fused)(x), fused(x))


def test_lazy_layers_are_refused():
    with pytest.raises(RuntimeError, match="fuse: 1 has no parameters before its first call"):
        conv_ext.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()).eval())
