"""The bench's own logic, without a stopwatch: its suites, judge, turns, networks and commands."""

import json
import math
import re
import signal
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import conv_ext
from bench import (
    aims,
    cases,
    environment,
    fused,
    gpu,
    gpu_cases,
    inference,
    judge,
    mapped,
    network,
    networks,
    parts,
    peaks,
    peers,
    pooling,
    precision,
    readme,
    report,
    run,
    shapes,
)
from bench.__main__ import interrupt_on_term, main
from conv_ext import subjects, timer

SMALL = shapes.conv("small", c=6, h=7, w=9, k=4, r=3, s=2, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)


def row(kind: str, ratio: float, **changes) -> dict:
    shape = replace(SMALL, suite="s", name=kind)
    return {**shape.describe(), "kind": kind, "pass": "forward", "dtype": "float32", "layout": "nchw",
            "precision": "ieee", "algorithm": "auto", "bytes": 1000, "right": True, "ours_ms": 1.0, "theirs_ms": ratio,
            "ratio": ratio, "spread": 0.01, "rounds": 5, "others": 0.0, "disturbed": False, "ours_gflops": 2.0,
            "theirs_gflops": 2.0 / ratio, "error_ours": 1.0, "error_theirs": 1.0, "extra_bytes": 1 << 20,
            "ran": "direct", **changes}


def result(rows: list[dict], **machine) -> dict:
    return {"command": "run", "cases": rows, "machine": {
        "cpu": "a processor", "cores": 2, "isa": "avx2", "cap": None, "threads": 1, "warm_allocator": True,
        "torch": "2", "conv_ext": "0", "load_average": 0.0, "time": "today",
        "peaks": {"float32": 100.0, "float64": 50.0, "copy": 20.0}, **machine}}


@pytest.mark.parametrize("shape", shapes.load(shapes.suites()), ids=lambda shape: shape.full_name)
def test_every_shape_has_the_output_that_torch_gives_it(shape):
    x = torch.empty(shape.n, shape.c, shape.h, shape.w, device="meta")
    w = torch.empty(shape.k, shape.c // shape.groups, shape.r, shape.s, device="meta")
    y = F.conv2d(x, w, None, shape.stride, shape.padding, shape.dilation, shape.groups)
    assert y.shape == (shape.n, shape.k, shape.p, shape.q)
    assert shape.elements == x.numel() + w.numel() + y.numel()
    assert shape.flops == 2 * y.numel() * shape.reduction("forward")


def test_names_of_layers_are_unique():
    names = [shape.full_name for shape in shapes.load(shapes.suites())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("suite", shapes.suites())
def test_each_layer_of_a_suite_is_there_once(suite):
    layers = [replace(shape, name="") for shape in shapes.load([suite])]
    assert len(layers) == len(set(layers))


def test_every_layer_has_its_class():
    kinds = Counter(shape.kind for shape in shapes.load(run.DEFAULT_SUITES))
    assert set(kinds) == set(shapes.CLASSES) - {"other"}

    def kind(**changes):
        return replace(shapes.conv("x", c=8, h=9, w=9, k=8, r=3), **changes).kind

    assert kind() == "3x3 stride 1" and kind(r=1, s=1) == "1x1" and kind(r=5, s=5) == "5x5 stride 1"
    assert kind(stride=(1, 2)) == kind(r=1, s=1, stride=(2, 2)) == "strided"
    assert kind(groups=8) == kind(groups=8, stride=(2, 2)) == "depthwise" and kind(groups=2) == "grouped"
    assert kind(c=4, stride=(2, 2)) == kind(c=1) == "first layer"
    assert kind(dilation=(2, 2)) == kind(s=1) == kind(r=7, s=7) == "other"


def test_patterns_choose_layers_and_a_batch_replaces_the_suite_s_own():
    chosen = shapes.load(["vgg16"], only=["vgg16/conv1_?"], batches=["train", 5])
    assert [(shape.name, shape.n, shape.batch) for shape in chosen] == [
        ("conv1_1", 2, "train"), ("conv1_2", 2, "train"), ("conv1_1", 5, "5"), ("conv1_2", 5, "5")]
    with pytest.raises(SystemExit, match="no layer fits"):
        shapes.load(["vgg16"], only=["nothing"])
    with pytest.raises(SystemExit, match="there is no suite"):
        shapes.load(["vgg17"])


@pytest.mark.parametrize("layout", shapes.LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize("pass_name", shapes.PASSES)
def test_both_sides_are_right_and_the_judge_sees_what_is_not(pass_name, dtype, layout):
    case = cases.Case(SMALL, pass_name, dtype, layout, "auto")
    o = cases.operands(case)
    judged = cases.judge(case)
    result = cases.ours(case, o)()
    assert judged(result).right
    if dtype in ("float32", "float64"):  # torch accumulates some gradients of the smaller dtypes in the dtype itself
        assert judged(cases.theirs(case, o)()).right

    for factor in (1.1, 0.0, math.nan, math.inf):
        damaged = result.contiguous().clone().flatten()
        damaged[damaged.abs().argmax()] *= factor
        assert not judged(damaged.view(result.shape)).right
    assert not judged(result[:, :, :-1]).right


@pytest.mark.parametrize("pass_name", shapes.PASSES)
def test_a_lower_precision_has_a_wider_bound_over_the_tile(pass_name):
    case = cases.Case(SMALL, pass_name, "float32", "nchw", "auto", "tf32")
    judged, o = cases.judge(case), cases.operands(case)
    bounds = {name: judged.bound(name) for name in shapes.PRECISIONS}
    assert (bounds["ieee"] < bounds["tf32"]).all() and (bounds["tf32"] < bounds["bf16"]).all()

    # Rounding the operands is what it allows and "ieee" does not.
    for name, kept in (("tf32", 10), ("bf16", 7)):
        def rounded(t, kept=kept):
            mantissa, exponent = torch.frexp(t)
            return torch.ldexp((mantissa * 2.0 ** (kept + 1)).round() / 2.0 ** (kept + 1), exponent)

        result = cases.theirs(case, o.map(rounded))()
        assert judged(result, name).right and not judged(result, "ieee").right
        assert not judged(1.1 * result, name).right


def test_the_tile_of_the_judge():
    tile = judge.Judge("forward", "float32", 4, lambda change: change(torch.zeros(1, 1, 20, 30)))
    tile.magnitude[0, 0, 10, 15] = 1.0
    reached = tile.largest_of_tile()[0, 0].nonzero()
    assert reached.amin(0).tolist() == [4, 9] and reached.amax(0).tolist() == [16, 21] and len(reached) == 13 * 13
    tile.pass_name = "weight_grad"
    assert (tile.largest_of_tile() == 1).all()


def test_precisions_are_of_float32_alone():
    found = cases.cases([SMALL], ["forward"], ["float32", "float64"], ["nchw"], "auto", shapes.PRECISIONS)
    assert [(case.dtype, case.precision) for case in found] == [
        ("float32", "ieee"), ("float32", "tf32"), ("float32", "bf16"), ("float64", "ieee")]


def test_both_sides_get_the_same_leave_and_lose_it_again():
    from conv_ext.settings import current_precision

    before = torch.backends.mkldnn.conv.fp32_precision
    with precision.allowed("tf32") as read_back:
        assert read_back == torch.backends.mkldnn.conv.fp32_precision == "tf32"
        assert current_precision() == "tf32"
    assert torch.backends.mkldnn.conv.fp32_precision == before


class Clock:
    """A clock that only the functions under test move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def function(self, name: str, seconds: float):
        def run():
            self.now += seconds
            self.calls.append(name)
        return run


def test_functions_take_turns_in_alternating_order(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer.time, "perf_counter", lambda: clock.now)
    functions = {"ours": clock.function("ours", 0.5), "theirs": clock.function("theirs", 1.0)}
    timing = timer.alternate(functions, seconds=6.0)
    assert timing.samples == {"ours": [0.5] * timing.rounds, "theirs": [1.0] * timing.rounds}
    assert timing.ratio("theirs", "ours") == 2.0 and timing.spread("theirs", "ours") == 0.0
    turns = clock.calls[-2 * timing.rounds:]
    assert turns[:6] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert timing.rounds == 5  # 7.5 s: the first whole round that ends beyond the limit is the last


def test_a_short_function_is_repeated_within_a_sample(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer.time, "perf_counter", lambda: clock.now)
    prepared = []
    timing = timer.alternate({"only": clock.function("only", timer.SAMPLE_SECONDS / 8)}, seconds=0.001,
                             prepare=prepared.append)
    assert timing.median("only") == pytest.approx(timer.SAMPLE_SECONDS / 8)
    assert len(clock.calls) >= 8 * timing.rounds and prepared[-timing.rounds:] == ["only"] * timing.rounds


@pytest.mark.parametrize("others, disturbed, tries", [
    ([0.05], False, 1), ([0.9, 0.0], False, 2), ([0.9, 0.9, 0.9], True, 3), ([None], False, 1)])
def test_a_busy_machine_is_measured_again_and_told(monkeypatch, others, disturbed, tries):
    timings = [timer.Timing({"ours": [1.0]}, value) for value in others]
    monkeypatch.setattr(timer.os, "cpu_count", lambda: 2)
    calls = []

    def alternate(*_):
        calls.append(1)
        return timings[len(calls) - 1]

    monkeypatch.setattr(timer, "alternate", alternate)
    timing = timer.undisturbed({"ours": lambda: None}, 1.0, threads=2)
    assert (timing.disturbed, len(calls)) == (disturbed, tries)
    result = {"cases": [{"others": timing.others, "disturbed": timing.disturbed}]}
    assert ("DISTURBED" in report.disturbance(result)) is disturbed


# ---- on a GPU


def test_graphs_are_replayed_by_turns_in_alternating_order(monkeypatch):
    seconds, turns = {"ours's graph": 0.001, "theirs's graph": 0.002}, []

    def replay(graph, repeats):
        turns.append((graph.split("'")[0], repeats))
        return seconds[graph]

    monkeypatch.setattr(gpu, "captured", lambda name: f"{name}'s graph")
    monkeypatch.setattr(gpu, "replay_seconds", replay)
    timing = gpu.alternate({"ours": "ours", "theirs": "theirs"}, 0.05)
    assert timing.ratio("theirs", "ours") == 2.0 and timing.spread("theirs", "ours") == 0.0
    assert timing.rounds == 5  # 5 ms of ours and 6 of theirs in each: the first that ends beyond the limit is the last
    assert turns[4:10] == [("ours", 5), ("theirs", 3), ("theirs", 3), ("ours", 5), ("ours", 5), ("theirs", 3)]
    assert timing.others is None and not timing.disturbed


def test_a_call_that_fails_on_a_gpu_costs_its_own_case_alone(monkeypatch):
    def fail(case, seconds):
        raise RuntimeError("a kernel could not be started")

    monkeypatch.setattr(run, "measure", fail)
    case = cases.Case(replace(SMALL, suite="s"), "forward", "float32", "nchw", "auto", device="cuda")
    found = run.measure_on_gpu(case, 1.0)
    assert not found["right"] and "ratio" not in found
    wrong = "WRONG: s/small forward, error inf (torch inf): a kernel could not be started"
    assert wrong in report.text(result([found]))


@pytest.mark.parametrize("pass_name", shapes.PASSES)
def test_some_images_of_a_result_on_a_gpu_are_judged(monkeypatch, pass_name):
    case = cases.Case(replace(SMALL, suite="s", n=9), pass_name, "float32", "nchw", "auto", device="cuda")
    images = cases.judged_images(case)
    assert images == (None if pass_name == "weight_grad" else [0, 1, 7, 8])
    assert cases.judged_images(replace(case, device="cpu")) is None
    monkeypatch.setattr(cases, "judged_images", lambda _: images)
    cases._judge.cache_clear()
    on_cpu = replace(case, device="cpu")
    result = cases.ours(on_cpu, cases.operands(on_cpu))()
    judge = cases.judge(on_cpu)
    cases._judge.cache_clear()
    assert judge(result, "ieee").right
    for image, right in ((7, False), (3, pass_name != "weight_grad")):
        wrong = result.clone()
        wrong[image % len(wrong)] += 1
        assert judge(wrong, "ieee").right == right


def test_a_network_of_a_package_that_is_missing_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda package: None)
    options = network.parse(["--network", "lenet5", "timm/convnext_tiny"])
    assert options.network == ["lenet5"]
    assert "timm/convnext_tiny is left out: timm is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("command", [run, network])
def test_a_gpu_that_is_not_there_is_told(command, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        command.parse(["--device", "cuda"])
    assert "--device cuda: torch finds no CUDA device here" in capsys.readouterr().err


def test_the_bench_needs_no_progress_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert environment.collect([1, 2, 3], lambda item: {"n": item}, str) == [{"n": 1}, {"n": 2}, {"n": 3}]


# ---- networks


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_take_their_images(name):
    wanted = networks.NETWORKS[name]
    with torch.device("meta"):
        model = wanted.make().eval()
        assert model(torch.empty(2, *wanted.image)).shape == (2, wanted.classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert {"lenet5": 61706, "vgg16": 138357544, "resnet50": 25557032}.get(name, count) == count


@pytest.mark.parametrize("what", [network.STEP, network.ONE])
def test_a_network_is_compared_before_it_is_timed(monkeypatch, what):
    sides = network.Sides("lenet5", what, 2)
    measured = network.measure(sides, "channels_last", "tf32", 1e-3)
    assert measured["right"] and measured["ratio"] > 0 and measured["torch_precision"] == "tf32"
    assert measured["aim"] == (1.0 if what == network.ONE else 1.3)
    assert network.distance(sides.reference, sides.reference) == 0.0


def test_a_network_whose_copy_of_ours_differs_is_wrong():
    sides = network.Sides("lenet5", network.STEP, 2)
    unchanged = sides.side

    def side(ours, layout):
        model, x = unchanged(ours, layout)
        if ours:
            with torch.no_grad():
                model.c3.weight[0, 0, 0, 0] += 0.01
        return model, x

    sides.side = side
    measured = network.measure(sides, "nchw", "ieee", 1e-3)
    assert not measured["right"] and "ratio" not in measured


@pytest.mark.parametrize("name", ["lenet5", "googlenet"])
def test_a_fused_network_is_compared(name):
    measured = fused.measure(name, 1, "channels_last", 1e-3)
    assert measured["right"] and measured["gain"] > 0
    text = report.text({"command": "fused", "machine": result([])["machine"], "cases": [measured]})
    assert f"| {name}" in text and "torch / fused" in text and "WRONG" not in text
    assert 0 < measured["error"] <= measured["limit"] == network.limit(network.ONE, "ieee", measured["error_theirs"], 0)


def test_a_fused_network_whose_scores_differ_is_wrong(monkeypatch, tmp_path, capsys):
    right = conv_ext.fuse

    def wrong(model, *inputs, **options):
        made = right(model, *inputs, **options)
        with torch.no_grad():
            next(made.parameters()).mul_(1 + 1e-4)
        return made

    monkeypatch.setattr(conv_ext, "fuse", wrong)
    assert fused.main(["--network", "lenet5", "--seconds", "0.001", "--out", str(tmp_path / "a.json")]) == 1
    assert "WRONG: lenet5, 1, nchw: " in capsys.readouterr().out


class AllKinds(nn.Module):
    """A node of each kind that `parts` tells apart."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.linear = nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.Linear(4, 5)

    def forward(self, x):
        y = F.hardswish(F.max_pool2d(self.act(self.conv(x)), 2))
        return self.linear((y + y.flip(3)).mean((2, 3)))


def test_the_parts_of_a_network_are_told_apart():
    fused_ = conv_ext.fuse(AllKinds().eval())
    modules = dict(fused_.named_modules())
    found = [parts.kind(node, modules) for node in fused_.graph.nodes]
    assert found == [parts.REST, parts.CONVOLUTION, parts.ACTIVATION, parts.POOLING, parts.ACTIVATION, parts.REST,
                     parts.SUM, parts.POOLING, parts.LINEAR, parts.REST]
    x, clock = torch.randn(1, 2, 8, 10), parts.Clock(fused_)
    assert torch.equal(clock.run(x), fused_(x)) and set(clock.seconds) == set(parts.KINDS)


def test_the_parts_of_a_network_are_timed(monkeypatch, tmp_path, capsys):
    path = tmp_path / "a.json"
    options = ["--network", "lenet5", "timm/efficientnet_b0", "--layout", "nchw", "--seconds", "0.001"]
    monkeypatch.setattr(networks, "missing", lambda name: "timm" if "/" in name else None)
    assert parts.main([*options, "--out", str(path)]) == 0
    (row,) = environment.load(path)["cases"]
    assert row["rounds"] >= 3 and all(row["ms"][kind] > 0 for kind in (parts.CONVOLUTION, parts.POOLING, parts.LINEAR))
    told = capsys.readouterr()
    assert "timm/efficientnet_b0 is left out: timm is not installed" in told.err
    assert "linear layers" in told.out and report.text(environment.load(path)) in told.out
    monkeypatch.setattr(conv_ext, "fuse", lambda model, *_, **__: model)
    with pytest.raises(ValueError, match="lenet5 has no graph whose parts could be timed"):
        parts.measure("lenet5", 1, "nchw", True, 1e-3)


@pytest.mark.parametrize("name", ["lenet5/c3", "one to one 128"])
def test_a_connection_table_is_compared_with_a_masked_convolution(name):
    measured = mapped.measure(name, 1e-3)
    assert measured["right"] and measured["ratio"] > 0
    text = report.text({"command": "mapped", "machine": result([])["machine"], "cases": [measured]})
    assert f"| {name}" in text and "ms masked dense" in text


def test_auxiliary_classifiers_count_a_third():
    model, (x, classes) = networks.made("googlenet"), networks.data("googlenet", 2)
    scores = model(x)
    parts = [torch.nn.functional.cross_entropy(each, classes) for each in scores]
    torch.testing.assert_close(networks.loss(model, x, classes), parts[0] + 0.3 * (parts[1] + parts[2]))


# ---- the command line


def test_a_run_writes_what_a_report_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peaks, "measure", lambda isa: {"float32": 100.0, "float64": 50.0, "copy": 20.0})
    old = tmp_path / "old.json"
    common = ["--only", "lenet5/c5", "--batch", "1", "--seconds", "1e-3", "--precision", "ieee", "tf32", "--quick"]
    assert run.main([*common, "--out", str(old)]) == 0
    written = json.loads(old.read_text())
    assert len(written["cases"]) == 6 and all(case["right"] for case in written["cases"])
    assert {case["torch_precision"] for case in written["cases"]} == {"ieee", "tf32"}
    assert all(case["extra_bytes"] > 0 and case["ran"] for case in written["cases"])
    assert run.main([*common, "--out", str(tmp_path / "new.json"), "--compare", str(old)]) == 0
    assert "6 cases in common" in capsys.readouterr().out
    assert report.main([str(old), "--no-figures", "--rows", "--compare", str(tmp_path / "new.json")]) == 0
    assert run.main([*common[:-1], "--algorithm", "depthwise", "--out", str(old)]) == 0
    assert "Not computed by depthwise" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--batch", "0"], "must be a positive integer or train, got 0"),
    (["--seconds", "-1"], "must be positive and finite, got -1"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--dtype", "int8"], "invalid choice: 'int8'"),
    (["--suite", "vgg17"], "there is no suite vgg17"),
    (["--compare", "nowhere.json"], "must be a JSON file that the bench has written: nowhere.json"),
    (["--algorithm", "magic", "--only", "lenet5/c5"], "--algorithm must be one of auto; cpu: .*; got 'magic'"),
])
def test_bad_options_are_told_with_the_rule_and_the_value(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(peaks, "measure", lambda isa: {})
    with pytest.raises(SystemExit) as told:
        run.main(arguments)
    assert re.search(message, f"{told.value} {capsys.readouterr().err}")


def test_a_file_that_is_no_result_is_refused(tmp_path):
    for text in ("no JSON", "[]", "{}"):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(SystemExit, match="must be a JSON file that the bench has written"):
            environment.load(tmp_path / "file.json")


@pytest.mark.parametrize("command", ["run", "network", "inference", "call", "scaling", "report"])
def test_every_command_has_a_help_text(monkeypatch, capsys, command):
    for arguments in ([command, "--help"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr().out
        assert status == 0 and "usage: python -m bench" in printed and command in printed


def test_an_unknown_command_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "walk"])
    with pytest.raises(SystemExit, match="a command must be one of run, .*, got walk"):
        main()


def test_the_command_line_starts_again_in_the_environment_that_is_asked_for(monkeypatch):
    started = []
    monkeypatch.setattr(environment.os, "execve", lambda *given: started.append(given))
    for name in {**environment.WARM, **environment.CAPS["avx2"]}:
        monkeypatch.delenv(name, raising=False)
    assert environment.restart_if_asked(["--quick"]) is None and not started and environment.cap() is None
    environment.restart_if_asked(["--warm", "--isa", "avx2", "--only", "x"])
    (_, _, variables), = started
    assert environment.WARM.items() <= variables.items() and variables["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.cap() == "avx2" and environment.is_warm()
    with pytest.raises(SystemExit):
        environment.restart_if_asked(["--warm", "--both-states"])


def test_a_run_that_is_terminated_keeps_what_it_has():
    def measure(item):
        if item == 2:
            signal.raise_signal(signal.SIGTERM)
        return {"n": item}

    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupt_on_term()
        assert environment.collect([1, 2, 3], measure, str) == [{"n": 1}]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("pass_name", shapes.PASSES)
def test_a_case_of_the_check_on_a_gpu_is_answered_with_its_row(monkeypatch, pass_name):
    line = "layer=s/small n=2"
    case = cases.Case(replace(SMALL, suite="s"), pass_name, "float32", "nchw", "auto")
    monkeypatch.setattr(gpu_cases, "read", lambda _: case)
    monkeypatch.setattr(gpu_cases, "SECONDS", 0.01)
    verdict, _, text = gpu_cases.answer(line).partition(": ")
    found = json.loads(text)
    assert verdict == "right" and found["ratio"] > 0 and found["pass"] == pass_name and "error_theirs" in found
    assert report.text({**gpu_cases.result([found], result([found])["machine"])})
    chosen = cases.plan(case, cases.operands(case)).algorithm
    monkeypatch.setattr(gpu_cases, "read", lambda _: replace(case, algorithm=chosen))
    assert gpu_cases.answer(line) == "declined: the plan chooses it by itself"
    monkeypatch.setattr(run, "measure", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error: | an\nillegal one")))
    monkeypatch.setattr(gpu_cases, "read", lambda _: case)
    assert gpu_cases.answer(line) == "failed: CUDA error: / an illegal one"


# ---- inference, beside other people's


def inferred(monkeypatch=None, groups=("torch", "ours", "onnxruntime"), **planted) -> list[dict]:
    if planted:
        sides = tuple(replace(s, make=planted["make"]) if s.name == planted["name"] else s for s in peers.SIDES)
        monkeypatch.setattr(peers, "SIDES", sides)
    with torch.no_grad():
        return inference.measure(inference.Case("lenet5", 1, planted.get("setting", "ieee")), list(groups), 1e-3)


@pytest.mark.parametrize("setting", inference.SETTINGS)
def test_inference_is_compared_before_it_is_timed(monkeypatch, setting):
    rows = inferred(monkeypatch, ("torch", "ours"), name="", make=None, setting=setting)
    assert [row["side"] for row in rows] == ["torch"] * 2 + ["ours, converted"] * 2 + ["ours, fused"] * 2
    assert all(row["right"] and 0 < row["error"] <= row["limit"] and row["ms"] > 0 for row in rows)
    assert 1.0 in [row["ratio"] for row in rows if row["ours"]] and {row["dtype"] for row in rows} == {
        inference.SETTINGS[setting][0]}
    assert all((row["error"] > 1e-4) == (setting == "bfloat16") for row in rows)


def test_scores_that_are_wrong_are_not_timed(monkeypatch, tmp_path, capsys):
    def wrong(subject, layout):
        model, x = subject.in_layout(layout)
        return lambda: model(x) * 1.001

    rows = inferred(monkeypatch, ("torch", "ours"), name="ours, fused", make=wrong)
    assert [row["right"] for row in rows] == [True] * 4 + [False] * 2
    assert ["ms" in row for row in rows] == [True] * 4 + [False] * 2
    path = tmp_path / "a.json"
    options = ["--network", "lenet5", "--batch", "1", "--setting", "ieee", "--side", "ours", "--seconds", "0.001"]
    assert inference.main([*options, "--out", str(path)]) == 1
    told = capsys.readouterr().out
    assert "WRONG: ours, fused, nchw: 1.0e-03 from float64" in told and "1 of 1 cases, 2 of ours wrong" in told
    assert report.text(environment.load(path)) in told
    assert "Forward pass in eval mode" in told and "## lenet5, 1 image, float32, ieee" in told


def test_a_peer_that_is_missing_or_fails_is_left_out_with_a_word(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda package: None)
    rows = {row["side"]: row for row in inferred()}
    assert rows["onnxruntime"]["skipped"] == "onnxruntime not installed: pip install conv_ext[peers]"
    assert "ms" not in rows["onnxruntime"] and "ratio" in rows["torch"]

    def fails(subject, layout):
        raise ValueError("no such operator\nand more")

    rows = {row["side"]: row for row in inferred(monkeypatch, name="onnxruntime", make=fails)}
    assert rows["onnxruntime"]["skipped"] == "ValueError: no such operator"
    with pytest.raises(ValueError, match="no such operator"):  # ours has to run
        inferred(monkeypatch, name="ours, converted", make=fails)


def test_ours_is_compared_with_the_fastest_peer():
    def timed(side, ms, ours=False, counts=True, **more):
        return {"network": "resnet50", "n": 1, "dtype": "float32", "precision": "ieee", "side": side, "layout": "nchw",
                "ours": ours, "counts": counts, "right": True, "ms": ms, "least_ms": ms, "ratio": ms / 2,
                "spread": 0.01, "rounds": 5, "error": 1e-6, "disturbed": False, **more}

    rows = [timed("torch", 1.0, counts=False), timed("onnxruntime", 3.0), timed("openvino, f32", 2.5),
            timed("ours, fused", 2.0, True, False)]
    of = {"command": "inference", "machine": result([])["machine"], "cases": rows}
    assert "  reached: resnet50, 1, float32, ieee: 1.25 against openvino, f32, nchw; aim 1.2" in report.text(of)
    assert report.text(of).index("| torch, nchw") < report.text(of).index("| ours, fused, nchw")
    of["machine"]["isa"] = "amx"
    assert "MISSED: resnet50, 1, float32, ieee: 1.25 against openvino" in report.text(of)
    section = readme.inference_section([of])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    assert cells[2] == ["resnet50, 1, float32", "1.00", "", "3.00", "2.50", "2.00", "", "1.25", "2.0 MISSED"]
    del rows[1:3]  # without a peer there is nothing to compare
    assert "MISSED" not in readme.inference_section([of])
    of["machine"]["cap"] = "avx2"
    assert "MISSED" not in report.text(of)


def test_the_documents_have_the_table_of_the_inference_that_is_kept(tmp_path, capsys):
    text = readme.BENCHMARKS.read_text(encoding="utf-8")
    results = [environment.load(path) for path in readme.kept(("inference",))]
    assert readme.replaced(text, readme.inference_section(results)) == text
    copy = tmp_path / "benchmarks.md"
    copy.write_text(text)
    readme.update_inference([{"command": "run"}], copy)
    assert readme.NO_INFERENCE in copy.read_text() and "benchmarks.md: table replaced" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report.main(["--readme", "--inference"])


@pytest.mark.parametrize("name, n, dtype, chosen, amx, aim", [
    ("resnet50", 1, "float32", "ieee", False, 1.2), ("resnet50", 1, "float32", "ieee", True, 2.0),
    ("resnet18", 1, "float32", "ieee", False, 1.3), ("vgg16", 1, "float32", "ieee", False, 1.5),
    ("mobilenet_v2", 1, "float32", "ieee", True, 1.2), ("timm/mobilenetv3_large_100", 1, "float32", "ieee", False, 1.2),
    ("googlenet", 1, "float32", "ieee", True, 1.5), ("alexnet", 1, "float32", "ieee", True, None),
    ("resnet50", 1, "float32", "tf32", True, 3.0), ("resnet50", 1, "float32", "tf32", False, None),
    ("vgg16", 1, "bfloat16", "ieee", True, 1.2), ("vgg16", 1, "bfloat16", "ieee", False, None),
    ("alexnet", 8, "float32", "ieee", False, 1.0),
])
def test_the_aims_of_inference(name, n, dtype, chosen, amx, aim):
    assert aims.inference(name, n, dtype, chosen, amx, None) == aim
    assert aims.inference(name, n, dtype, chosen, amx, "avx2") is None


def test_running_statistics_are_those_of_the_images():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    x = 3 * torch.randn(4, 3, 5, 6) + 7
    y = subjects.settled(model, x)(x)
    assert not model.training and y.mean().abs() < 0.1 and (y.var() - 1).abs() < 0.2


def test_what_torchs_own_layers_cannot_compute_is_left_out(monkeypatch):
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.LocalResponseNorm(2)  # which has no bfloat16
    monkeypatch.setattr(inference, "made", lambda name: torch.nn.Sequential(*layers))
    rows = inferred(monkeypatch, ("torch", "ours"), name="", make=None, setting="bfloat16")
    assert len(rows) == 6 and all("torch's layers cannot: " in row["skipped"] and "ms" not in row for row in rows)
    assert all("ms" in row for row in inferred(monkeypatch, ("ours",), name="", make=None))


def test_pooling_is_measured_in_both_layouts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pooling, "LAYERS", [(4, 8, 3, 2, 1)])
    path = tmp_path / "found.json"
    assert pooling.main(["--seconds", "0.001", "--out", str(path)]) == 0
    found = environment.load(path)
    assert [row["kind"] for row in found["cases"]] == ["max", "average"]
    assert all(row["nchw"] > 0 and row["channels_last"] > 0 for row in found["cases"])
    said = capsys.readouterr().out
    assert "max, 3x3 stride 2, 4 x 8 x 8" in said and "average, mean" in said and said.startswith(report.text(found))


def test_cycles_of_pooling_are_of_an_element_of_a_window(monkeypatch):
    def timed(functions, seconds, threads, **_):
        return pooling.timer.Timing({name: [2e-6] for name in functions}, 0.0)

    monkeypatch.setattr(pooling.timer, "undisturbed", timed)
    row = pooling.measure(("max", (2, 4, 2, 2, 0)), 1.0)
    assert row["nchw"] == row["channels_last"] == pytest.approx(2e-6 * pooling.CLOCK / (2 * 2 * 2 * 4))
