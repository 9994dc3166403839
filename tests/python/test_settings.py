"""What the caller allows: precision and algorithm, from the setting to the kernel that the profiler shows."""

import copy
import re
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import conv_ext
from conv_ext import settings

X, W, B = (2, 4, 6, 7), (6, 2, 3, 2), (6,)
OPTIONS = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)


def leaves():
    return [torch.randn(shape, requires_grad=True) for shape in (X, W, B)]


@pytest.mark.parametrize("algorithm", ["panels", "reference"])
def test_the_profiler_shows_each_pass_with_its_algorithm(algorithm):
    operands = leaves()
    with conv_ext.algorithm(algorithm), torch.profiler.profile() as profile:
        conv_ext.conv2d(*operands, **OPTIONS).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {f"conv_ext::{p}[{algorithm}]" for p in ("forward", "input_grad", "weight_grad")} <= names


def test_the_backward_pass_uses_what_the_forward_pass_used():
    operands = leaves()
    with conv_ext.algorithm("reference"):
        y = conv_ext.conv2d(*operands, **OPTIONS)
    with torch.profiler.profile() as profile:
        y.sum().backward()
    # Through the dispatcher torch notes the operator, too, without its algorithm.
    names = {event.key for event in profile.key_averages() if event.key.startswith("conv_ext::") and "[" in event.key}
    assert names == {"conv_ext::input_grad[reference]", "conv_ext::weight_grad[reference]"}


def test_precision_follows_torch_and_can_be_overridden():
    conv, old = torch.backends.mkldnn.conv, torch.backends.mkldnn.conv.fp32_precision
    assert settings.current_precision("cpu") == "ieee"  # where nothing is set
    try:
        for value in ("tf32", "bf16", "ieee"):
            conv.fp32_precision = value
            assert settings.current_precision("cpu") == settings.torch_precision("cpu") == value
            with conv_ext.precision("ieee"):
                assert settings.current_precision("cpu") == "ieee"
                with conv_ext.precision("tf32"):
                    assert settings.current_precision("cuda") == "tf32"
                assert settings.current_precision("cpu") == "ieee"
    finally:
        conv.fp32_precision = old
    cudnn = torch.backends.cudnn.conv.fp32_precision
    assert settings.torch_precision("cuda") == (cudnn if cudnn in settings.PRECISIONS else "ieee")
    assert settings.torch_precision("meta") == "ieee"


def test_settings_reach_the_operator():
    x, w = torch.randn(1, 2, 4, 5), torch.randn(3, 2, 2, 3)
    seen = []

    class Arguments(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(a for a in args if isinstance(a, str))
            return func(*args, **(kwargs or {}))

    with conv_ext.precision("bf16"), conv_ext.algorithm("reference"), Arguments():
        conv_ext.conv2d(x, w)
        conv_ext.conv2d(x.double(), w.double())  # float32's setting only
    # An argument that equals its default is dropped only from the end.
    assert seen == ["bf16", "reference", "ieee", "reference"]


def test_settings_are_the_threads_own():
    seen = []
    with conv_ext.precision("tf32"), conv_ext.algorithm("reference"):
        thread = threading.Thread(
            target=lambda: seen.append((settings.current_precision(), settings.current_algorithm()))
        )
        thread.start()
        thread.join()
        assert (settings.current_precision(), settings.current_algorithm()) == ("tf32", "reference")
    assert seen == [("ieee", "auto")]


def test_threads_share_a_setting():
    """One enters it while another is within it, from another setting; each leaves to what it came from."""
    shared, entered, left, seen = conv_ext.precision("bf16"), threading.Event(), threading.Event(), []

    def other():
        with conv_ext.precision("tf32"), shared:
            entered.set()
            left.wait(10)
        seen.append(settings.current_precision())

    thread = threading.Thread(target=other)
    with shared:
        thread.start()
        assert entered.wait(10)
    seen.append(settings.current_precision())
    left.set()
    thread.join()
    assert seen == ["ieee", "ieee"]


def test_one_setting_entered_twice_and_left_by_an_exception():
    setting = conv_ext.precision("tf32")
    with pytest.raises(KeyError), setting, setting:
        raise KeyError
    assert settings.current_precision() == "ieee"
    with pytest.raises(ValueError, match="precision must be one of ieee, tf32, bf16, got 'fast'"):
        conv_ext.precision("fast")
    with pytest.raises(TypeError, match="algorithm must be a str"):
        conv_ext.algorithm(3)


@pytest.mark.parametrize("name", ["nope", "", "Direct", "direct "])
def test_an_algorithm_that_is_none_is_refused_at_once(name):
    with pytest.raises(ValueError, match="algorithm must be one of auto; cpu: depthwise, .*; cuda: .*; got ") as raised:
        conv_ext.algorithm(name)
    assert repr(name) in str(raised.value)


def test_every_name_of_either_device_is_taken_and_the_call_says_which_are_its_own():
    x, w = torch.randn(1, 2, 4, 5), torch.randn(3, 2, 2, 3)
    names = {name for name, *_ in conv_ext.explain(x, w).forward.candidates}
    assert names == set(settings.ALGORITHMS["cpu"]) and {"wgmma", "direct"} <= set(settings.ALGORITHMS["cuda"])
    for name in ("auto", *names, *settings.ALGORITHMS["cuda"]):
        assert conv_ext.algorithm(name).value == name
    said = "algorithm must be one of auto, .* got wgmma, which is for CUDA tensors"
    with conv_ext.algorithm("wgmma"), pytest.raises(RuntimeError, match=said):
        conv_ext.conv2d(x, w)


def test_explain_knows_the_layout():
    x, w = torch.empty(2, 40, 66, 66), torch.empty(48, 40, 3, 3)
    plain = conv_ext.explain(x, w, stride=1)
    last = conv_ext.explain(x.to(memory_format=torch.channels_last), w, stride=1)
    assert last.problem == plain.problem + ", channels_last"

    def cycles(explanation):
        return {name: own for name, *_, own in explanation.forward.candidates if own is not None}

    assert all(cycles(plain)[name] != cycles(last)[name] for name in ("broadcast", "direct", "panels"))
    for explanation in (plain, last):
        estimates = cycles(explanation)
        assert explanation.forward.algorithm == min(estimates, key=estimates.get)
    assert conv_ext.explain(x, w.to(memory_format=torch.channels_last)).forward.channels_last


def test_explain_knows_a_slice_of_channels_for_channels_last():
    x, w = torch.empty(2, 80, 66, 66).to(memory_format=torch.channels_last)[:, :40], torch.empty(48, 40, 3, 3)
    assert not x.is_contiguous(memory_format=torch.channels_last)
    assert ", channels_last" in conv_ext.explain(x, w).problem and conv_ext.explain(x, w).forward.channels_last
    transposed = conv_ext.explain(conv_ext.ConvTranspose2d(40, 8, 3), x)
    assert ", channels_last" in transposed.problem
    assert "channels_last" not in conv_ext.explain(x.contiguous(), w).problem


def test_explain_under_a_forced_algorithm_shows_what_its_passes_cannot():
    x, w = torch.randn(1, 8, 9, 9), torch.randn(16, 8, 3, 3)
    with conv_ext.algorithm("broadcast"):
        found = conv_ext.explain(x, w)
        conv_ext.conv2d(x, w)
    refused = found.weight_grad
    assert found.forward.algorithm == "broadcast" and refused.algorithm is None and refused.tiles == {}
    assert refused.refused == "algorithm broadcast cannot compute this weight_grad: it is for forward and input_grad"
    assert re.search(r"broadcast +chosen: conv_ext.algorithm says so", str(found.forward))
    assert "weight_grad: none, algorithm broadcast cannot compute" in str(refused) and "chosen" not in str(refused)
    assert not re.search("memory|tiles", str(refused)) and found.forward.refused is None
    with conv_ext.algorithm("wgmma"), pytest.raises(RuntimeError, match="got wgmma, which is for CUDA tensors"):
        conv_ext.explain(x, w)


def test_explain_says_which_can_be_forced():
    x, w = torch.empty(2, 40, 66, 66), torch.empty(48, 40, 1, 1)
    forward = conv_ext.explain(x, w).forward
    shown = str(forward)
    assert re.search(rf"{forward.algorithm} +chosen, estimated at [\d.]+ [kM]cycles an image$", shown, re.M)
    assert re.search(r"broadcast +can, estimated at [\d.]+ [kM]cycles an image, [\d.]+ times the least$", shown, re.M)
    assert re.search(r"depthwise +cannot: it is for depthwise problems", shown) and re.search(
        r"reference +can where it is forced: it has no estimate here$", shown, re.M
    )
    weight_grad = conv_ext.explain(x, w).weight_grad  # of all images
    assert re.search(rf"{weight_grad.algorithm} +chosen, estimated at [\d.]+ [kM]cycles$", str(weight_grad), re.M)
    with conv_ext.algorithm("reference"):  # what would be chosen is the least
        forced = str(conv_ext.explain(x, w))
        assert re.search(rf"{forward.algorithm} +can, estimated at .* an image, the least$", forced, re.M)
    one = conv_ext.explain(x[:1, :1, :3, :3], w[:1, :1]).weight_grad
    assert one.tasks == 1 and "; 1 task\n" in str(one)
    for name, _, possible, _ in forward.candidates:
        if possible:
            with conv_ext.algorithm(name):
                assert conv_ext.explain(x, w).forward.algorithm == name
    begins = {re.match(r" +\S+ +", line).end() for line in shown.splitlines()[1:]}
    assert len(begins) == 1, "one column"
    assert ", precision ieee" in conv_ext.explain(x, w).problem
    assert conv_ext.explain(x.bfloat16(), w.bfloat16()).problem.endswith("   bfloat16")


# ---- explain(layer, x)


LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8), "H 9  W 8"),
    "strings": (conv_ext.Conv2d(4, 6, 3, padding="full", activation="relu", bias=False), (4, 9, 8), "H 9  W 8"),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 8), "H 11  W 10"),
    "conv1d": (nn.Conv1d(4, 6, 5, dilation=2, padding="same"), (2, 4, 30), "H 1  W 30"),
    "transposed": (conv_ext.ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2), (2, 4, 9, 8), "H 20  W 18"),
    "sequence": (nn.ConvTranspose1d(4, 6, 3, 2, output_padding=2, dilation=3, groups=2), (2, 4, 9), "H 1  W 25"),
    "more positions": (nn.ConvTranspose2d(4, 6, 3, 2, output_padding=2, dilation=3), (4, 9, 8), "H 25  W 23"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_explain_takes_a_layer_and_says_what_its_call_runs(name):
    layer, size, volume = LAYERS[name]
    x, kind = torch.randn(size, requires_grad=True), type(layer)
    found = conv_ext.explain(layer, x)
    assert type(layer) is kind
    ours = conv_ext.convert(copy.deepcopy(layer))
    with torch.profiler.profile() as profile:
        result = ours(x)
        result.backward(torch.ones_like(result))  # a dense one, which explain reckons with; that of sum() is expanded
    ran = {event.key for event in profile.key_averages() if event.key.startswith("conv_ext::") and "[" in event.key}
    plans = found.forward, found.input_grad, found.weight_grad
    assert ran == {f"conv_ext::{plan.name}[{plan.algorithm}]" for plan in plans}
    assert f"  {volume}   K " in found.problem and found.problem.endswith(", relu") == (name == "strings")


def test_explain_of_a_layer_has_the_functions_plans_and_errors():
    x, layer = torch.randn(2, 4, 9, 8), LAYERS["conv2d"][0]
    assert conv_ext.explain(layer, x) == conv_ext.explain(x, layer.weight, layer.bias, 2, 1, 1, 2)
    sequence = conv_ext.explain(LAYERS["conv1d"][0], torch.empty(2, 4, 30))
    assert sequence.problem.startswith("N 2  C 4  H 1  W 30   K 6  R 1  S 5   P 1  Q 30 ")
    with pytest.raises(TypeError, match="explain takes a tensor, a layer of Conv1d, .* got Linear"):
        conv_ext.explain(nn.Linear(2, 2), x)
    with pytest.raises(TypeError, match="takes nothing more"):
        conv_ext.explain(layer, x, padding=1)
    with pytest.raises(RuntimeError, match="to have 4 channels, but got 3"):
        conv_ext.explain(layer, x[:, :3])
    with pytest.raises(RuntimeError, match=r"input\[2, 3, 9\] to have 4 channels, but got 3"):
        conv_ext.explain(LAYERS["sequence"][0], x[:, :3, :, 0])
