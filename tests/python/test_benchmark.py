"""`benchmark`, and `conv-ext bench | explain`: results are compared, models found by name, advice follows from times.

No test looks at how long anything took: times are made up where advice is judged.
"""

import copy
import json
import re
import sys

import pytest
import torch
from torch import nn

import conv_ext
from conv_ext import benchmark as _function
from conv_ext import sides, subjects, timer
from conv_ext.__main__ import main

benchmark = __import__("conv_ext.benchmark", fromlist=["_"])  # the module, which the function hides
SHORT = 0.001


@pytest.fixture(autouse=True)
def one_try(monkeypatch):
    monkeypatch.setattr(timer, "MAX_TRIES", 1)
    monkeypatch.setattr(timer, "SAMPLE_SECONDS", 1e-4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.b, self.c, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = self.c(self.b(self.drop(self.norm(self.a(x)).relu()))[..., 1:-1, 1:-1])
        return self.last(x.mean((2, 3)))


def made() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
EVAL = ["torch", "converted", "fused"]


@pytest.mark.parametrize("train", [False, True])
def test_every_side_is_compared_and_timed_and_the_model_stays(train):
    model = made()
    model.a.weight.grad = torch.ones_like(model.a.weight)
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    found = _function(model, X, train=train, seconds=SHORT, threads=1)
    wanted = EVAL[:2] if train else EVAL
    assert [(side.side, side.layout) for side in found.sides] == [
        (side, layout) for side in wanted for layout in ("contiguous", "channels_last")
    ]
    for side in found.sides:
        assert not side.left and 0 < side.least_ms <= side.ms and side.ratio > 0
        assert side.error <= side.limit < 1e-3 and side.ours is (side.side != "torch")
    assert found.what == ("training step" if train else "inference") and found.inputs == ((2, 3, 12, 12),)
    assert found.machine["threads"] == 1 and torch.get_num_threads() == threads
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training and type(model.a) is nn.Conv2d and model.drop.p == 0.5
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert found.best in {(side.side, side.layout) for side in found.sides}
    assert json.loads(json.dumps(found.to_dict()))["sides"][0]["side"] == "torch"


@pytest.mark.parametrize("layout", sides.FORMATS)
@pytest.mark.parametrize("side", ["converted", "fused"])
def test_layers_that_are_alike_are_measured_once(side, layout):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(1, 4, 9, 9)
    case, best = sides.Case(model, (x,), train=False), benchmark.SideTime(side, layout, ours=True, ms=2.0)
    with torch.no_grad():
        found = benchmark._layers(case, best, SHORT)
    assert [(row.name, row.op, row.calls) for row in found] == [("0", "conv(3,4,p1)", 2), ("2", "conv(1,4)", 1)]
    x = x.contiguous(memory_format=sides.FORMATS[layout])
    for row in found:
        assert row.torch_ms > 0 and row.ours_ms > 0 and row.input == (1, 4, 9, 9)
        assert row.share == pytest.approx(row.calls * row.ours_ms / 2.0)
        layer = copy.deepcopy(model[int(row.name)]).to(memory_format=sides.FORMATS[layout])
        assert row.algorithm == conv_ext.explain(layer, x).forward.algorithm
    assert not _function(model, x, seconds=SHORT, layers=False).layers
    assert len(_function(model, x, seconds=SHORT).layers) == 2


def test_what_our_own_layers_are_beside_torchs():
    """Ours, packed or fused, become torch's in a copy; what torch has not stays."""
    model = nn.Sequential(conv_ext.Conv2d(3, 4, 3), conv_ext.MappedConv2d([[0, 1], [2, 3]], 3)).eval()
    packed = conv_ext.pack(model, X)
    case = sides.Case(packed, (X,), train=False)
    assert [type(layer).__name__ for layer in case.torchs] == ["Conv2d", "MappedConv2d"]
    assert type(case.torchs[0]) is nn.Conv2d and type(packed[0]) is conv_ext.PackedConv2d
    assert all(side.ms for side in _function(packed, X, seconds=SHORT).sides)
    with pytest.raises(ValueError, match="torch's layers have no activation"):
        _function(nn.Sequential(conv_ext.Conv2d(3, 4, 3, activation="relu")), X, seconds=SHORT)


def test_wrong_results_are_not_timed(monkeypatch):
    inner = conv_ext.modules.conv2d
    monkeypatch.setattr(conv_ext.modules, "conv2d", lambda *a, **k: inner(*a, **k) * 1.01)
    found = _function(made(), X, seconds=SHORT, layers=False)
    rows = {(side.side, side.layout): side for side in found.sides}
    wrong = rows["converted", "contiguous"]
    assert re.match(r"WRONG: \d.* from float64, limit", wrong.left) and wrong.ms is None and wrong.error > wrong.limit
    assert rows["torch", "contiguous"].ms and "too far off" in found.advice and "WRONG" in str(found)


def test_a_side_that_fails_is_left_out_with_its_words(monkeypatch):
    def fail(case, layout):
        raise RuntimeError("no memory\nfor it")

    monkeypatch.setattr(benchmark, "sides", lambda *_: [sides.TORCH, sides.Side("fused", fail, "", ours=True)])
    found = _function(made(), X, seconds=SHORT, layers=False)
    assert found.sides[2].left == "RuntimeError: no memory" and found.sides[2].ms is None
    assert found.advice.startswith("Stay with torch: nothing of ours could be timed.") and found.best[0] == "torch"


def test_numbers_without_bounds_are_said():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="results are not finite"):
        _function(model, X, seconds=SHORT)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, x, scale):
        return {"y": self.conv(x) * scale}


def test_sequences_have_one_layout_and_several_arguments_are_a_tuple():
    found = _function(Sequence(), (torch.randn(2, 4, 20), torch.tensor(2.0)), seconds=SHORT)
    assert {side.layout for side in found.sides} == {"contiguous"} and all(side.ms for side in found.sides)
    assert [row.op for row in found.layers] == ["conv(3,4)"]


def test_an_exported_program():
    model = made().eval()
    program = torch.export.export(model, (X,))
    found = _function(program, seconds=SHORT)
    rows = {(side.side, side.layout): side for side in found.sides}
    assert rows["torch", "contiguous"].ms and rows["fused", "contiguous"].ms and not found.layers
    assert rows["converted", "contiguous"].left == "a program of torch.export has no layers to be converted"


@pytest.mark.filterwarnings("ignore")
def test_compiled_sides():
    found = _function(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()).eval(), torch.randn(1, 2, 9), seconds=SHORT,
        compile=True, layers=False)  # fmt: skip
    assert [(side.side, side.left) for side in found.sides if side.layout == "contiguous"] == [
        ("torch", ""), ("torch, compiled", ""), ("converted", ""), ("fused", ""), ("fused, compiled", ""),
    ]  # fmt: skip
    assert "was not measured" not in found.advice
    assert [side.name for side in sides.sides(True, True)] == [
        "torch", "torch, compiled", "converted", "converted, compiled",
    ]  # fmt: skip


# ---- what is said follows from the times


def advice(monkeypatch, disturbed=False, **ms):
    """The benchmark of a model whose sides take these milliseconds."""
    names = {name.replace("_", ", ", 1) if "compiled" in name else name: time for name, time in ms.items()}

    def timed(functions, seconds, threads, **_):
        return timer.Timing({key: [names[key[0]] / 1e3] * 5 for key in functions}, 0.0, disturbed)

    monkeypatch.setattr(timer, "undisturbed", timed)
    monkeypatch.setattr(sides.Case, "layouts", lambda self: ["contiguous"])
    return _function(made(), X, seconds=SHORT, layers=False)


def test_a_gain_is_advised_with_its_code(monkeypatch):
    found = advice(monkeypatch, torch=3.0, converted=2.5, fused=2.0)
    assert found.advice.startswith(
        "Use fused, contiguous: 1.50 times as fast as the best of torch's (torch, contiguous)."
    )
    assert found.best == ("fused", "contiguous") and found.code == "conv_ext.fuse(model, x)"
    assert "torch.compile was not measured." in found.advice
    assert [side.ratio for side in found.sides] == pytest.approx([1.0, 1.2, 1.5])
    assert str(found).endswith(f"{found.advice}\n    conv_ext.fuse(model, x)")


def test_torch_is_advised_where_it_is_faster_or_as_fast(monkeypatch):
    found = advice(monkeypatch, torch=2.0, converted=2.5, fused=2.2)
    assert found.advice == "Stay with torch: fused, contiguous takes 1.10 times as long as torch, contiguous."
    assert found.best == ("torch", "contiguous") and found.code == ""
    found = advice(monkeypatch, torch=2.04, converted=2.5, fused=2.0)
    assert "1.02 times as fast as torch, contiguous, which is no more than it varies (±3%)" in found.advice
    assert "measure again" in advice(monkeypatch, disturbed=True, torch=2.0, converted=2.5, fused=1.0).advice


def test_what_is_to_be_written():
    assert sides.code_of(sides.TORCH, "contiguous") == ""
    last = "memory_format=torch.channels_last"
    assert sides.code_of(sides.TORCH, "channels_last") == f"model.to({last})"
    assert sides.code_of(sides.CONVERTED, "channels_last") == f"conv_ext.convert(model.to({last}))"
    assert sides.code_of(sides.FUSED_COMPILED, "channels_last") == f"torch.compile(conv_ext.fuse(model, x, {last}))"


@pytest.mark.parametrize("arguments, error, message", [
    ((3, X), TypeError, "takes a torch.nn.Module or a torch.export.ExportedProgram, got int"),
    ((nn.Conv2d(3, 3, 1),), TypeError, "what the model is called with, too"),
    ((nn.Conv2d(3, 3, 1, device="meta"), X), ValueError, "measures on the CPU, but the model is on meta"),
])  # fmt: skip
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        _function(*arguments)


@pytest.mark.parametrize("options, message", [
    ({"threads": 0}, "threads must be positive, got 0"), ({"seconds": 0}, "seconds must be positive and finite, got 0"),
    ({"seconds": float("inf")}, "got inf"),
])  # fmt: skip
def test_errors_of_options(options, message):
    with pytest.raises(ValueError, match=message):
        _function(made(), X, **options)
    with pytest.raises(RuntimeError, match="channels"):
        _function(made(), X[:, :2])


# ---- models by name, and the command line

FACTORY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

def wants(size, more=3):
    return net()

def fails():
    raise KeyError("weights")

class Holder:
    model = net()
    number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_models_by_name(factories):
    assert type(subjects.load("resnet18", device="meta").model).__name__ == "ResNet"
    assert subjects.load("lenet5").image == (1, 32, 32)
    assert isinstance(subjects.load("own_nets:net").model[1], nn.BatchNorm2d)
    assert subjects.load("own_nets:Holder.model").image is None
    torch.export.save(torch.export.export(made().eval(), (X,)), "net.pt2")
    program = subjects.load("net.pt2")
    assert program.name == "net" and program.example[0][0].shape == X.shape


@pytest.mark.parametrize("name, message", [
    ("resnet19", "no network 'resnet19': did you mean resnet18 or"),
    ("zzzz", "the networks are lenet5,"),
    ("no_such_module:net", "cannot be made: ModuleNotFoundError: No module named"),
    ("own_nets:nothing", "own_nets has no 'nothing'"),
    ("own_nets:wants", "without arguments, but needs size"),
    ("own_nets:fails", "own_nets:fails cannot be made: KeyError: 'weights'"),
    ("own_nets:Holder.number", "neither a model nor what makes one, but int"),
    ("own_nets:Holder", "returns Holder, not a torch.nn.Module"),
    ("missing.pt2", "there is no file missing.pt2"),
    ("broken.pt2", "broken.pt2 cannot be made: "),
])  # fmt: skip
def test_names_that_are_none(name, message, factories, capsys):
    (factories / "broken.pt2").write_text("no program")
    for command in ("bench", "explain"):
        assert main([command, name, "--input", "1x3x9x9"]) == 2
        assert message in (said := capsys.readouterr().err) and said.startswith(f"conv_ext {command}: ")


def test_a_timm_that_does_not_load(factories, monkeypatch, capsys):
    """As with a torchvision for another torch: its words, and no traceback."""
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (factories / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for command in ("bench", "explain"):
        assert main([command, "timm:resnet18"]) == 2
        assert "timm:resnet18 cannot be made: RuntimeError: operator torchvision::nms" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["own_nets:net"], "is not known: give --input, as 1x3x224x224"),
    (["own_nets:net", "--input", "1x2x9x9"], "own_nets:net does not run with an input of 1x2x9x9: "),
    (["lenet5", "--input", "1x3x32x32"], "lenet5 does not run with an input of 1x3x32x32: "),
    (["lenet5", "--input", "1x32"], "N x C x H x W: --input must be four sizes, as 1x1x32x32, got 1x32"),
    (["mnist_convnet", "--input", "1x4x8x8"], "[1, 4, 8, 8]"),
    (["net.pt2", "--train"], "is an exported program: --dtype and --train are for models"),
])  # fmt: skip
def test_models_that_do_not_run(arguments, message, factories, capsys):
    torch.export.save(torch.export.export(nn.Conv2d(3, 2, 1).eval(), (X,)), "net.pt2")
    for command in ("bench", "explain"):
        assert main([command, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--input", "3"], "must be sizes with an x between them"), (["--input", "1x0x3"], "must be sizes"),
    (["--threads", "0"], "must be a number from 1"), (["--seconds", "-1"], "must be a number of seconds"),
    (["--dtype", "int8"], "invalid choice"), (["--train", "--eval"], "not allowed with"),
    (["--json", "no/such/folder.json"], "there is no folder no/such"), (["--json", "."], ". is one"),
])  # fmt: skip
def test_options_that_are_none(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "lenet5", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_command_bench(tmp_path, capsys):
    file = tmp_path / "found.json"
    arguments = ["bench", "mnist_convnet", "--input", "2x1x28x28", "--seconds", "0.001", "--threads", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    said, kept = capsys.readouterr().out, json.loads(file.read_text())
    assert said.startswith("ConvNet, inference, input 2×1×28×28, float32\n") and "convolution layers alone" in said
    assert kept["name"] == "mnist_convnet" and {side["side"] for side in kept["sides"]} == set(EVAL)
    assert kept["advice"] in said and len(kept["layers"]) == 2
    assert main([*arguments, "--train", "--no-layers", "--dtype", "float64"]) == 0
    said = capsys.readouterr().out
    assert "training step" in said and "float64" in said and "layers alone" not in said


def test_the_command_bench_ends_with_1_where_ours_is_wrong(monkeypatch, capsys):
    inner = conv_ext.modules.conv2d
    monkeypatch.setattr(conv_ext.modules, "conv2d", lambda *a, **k: inner(*a, **k) * 1.01)
    assert main(["bench", "mnist_convnet", "--seconds", "0.001", "--no-layers"]) == 1
    assert "please report it" in capsys.readouterr().out


def test_the_command_explain(tmp_path, capsys, factories):
    file = tmp_path / "found.json"
    assert main(["explain", "own_nets:net", "--input", "1x3x9x9", "--json", str(file)]) == 0
    said, kept = capsys.readouterr().out, json.loads(file.read_text())
    assert said.startswith("Sequential: 1 call of convolution layers")
    assert kept["layers"][0]["op"] == "conv(3,4)" and kept["layers"][0]["packed_bytes"] is None
    assert main(["explain", "own_nets:net", "--input", "1x3x9x9", "--fuse", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["layers"][0]["packed_bytes"] > 0
    torch.export.save(torch.export.export(made().eval(), (X,)), "net.pt2")
    assert main(["explain", "net.pt2"]) == 0
    assert "3 calls of convolution layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "model", "vendor", "name", "expected"),
    [
        (25, 17, "AuthenticAMD", "AMD EPYC", "AMD EPYC (Zen 4)"),
        (25, 1, "AuthenticAMD", "AMD EPYC", "AMD EPYC (Zen 3)"),
        (26, 2, "AuthenticAMD", "AMD EPYC", "AMD EPYC (Zen 5)"),
        (6, 207, "GenuineIntel", "Intel(R) Xeon(R) Processor", "Intel(R) Xeon(R) Processor (Emerald Rapids)"),
        (6, 200, "GenuineIntel", "Intel(R) Xeon(R) Processor", "Intel(R) Xeon(R) Processor (family 6, model 200)"),
        (6, 143, "GenuineIntel", "Intel(R) Xeon(R) Platinum 8481C", "Intel(R) Xeon(R) Platinum 8481C"),
    ],
)
def test_a_processor_without_a_number_is_named_with_its_generation(family, model, vendor, name, expected):
    fields = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": name}
    text = "".join(f"{key}\t: {value}\n" for key, value in fields.items()) + "\n"
    assert timer.processor(text * 2) == expected


def test_a_processor_that_says_nothing_is_unknown():
    assert timer.processor("") == "unknown CPU"
