"""The bench's own logic, without a stopwatch: its judge, its turns, its arithmetic, its tables."""

import math

import pytest
import torch
import torch.nn.functional as F

from bench import cases, report, shapes, timer

SMALL = shapes.conv("small", c=6, h=7, w=9, k=4, r=3, s=2, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)


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


def test_patterns_choose_layers_and_a_batch_replaces_the_suite_s_own():
    chosen = shapes.load(["vgg16"], only=["vgg16/conv1_?"], batch=5)
    assert [(shape.name, shape.n) for shape in chosen] == [("conv1_1", 5), ("conv1_2", 5)]
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
    judge = cases.Judge(case, o)
    result = cases.ours(case, o)()
    assert judge(result).right
    if dtype in ("float32", "float64"):  # torch accumulates some gradients of the smaller dtypes in the dtype itself
        assert judge(cases.theirs(case, o)()).right

    for factor in (1.1, 0.0, math.nan, math.inf):
        damaged = result.contiguous().clone().flatten()
        damaged[damaged.abs().argmax()] *= factor
        assert not judge(damaged.view(result.shape)).right
    assert not judge(result[:, :, :-1]).right


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


def test_the_table_gives_geometric_means_by_pass_and_kind():
    rows = [{"kind": kind, "pass": pass_name, "ratio": ratio} for kind, pass_name, ratio in
            [("a", "forward", 2.0), ("a", "forward", 8.0), ("b", "weight_grad", 0.25)]]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.means(rows, "kind").splitlines()]
    assert lines[0] == ["kind", "forward", "input_grad", "weight_grad", "all"]
    assert lines[2] == ["a", "4.00 (2)", "", "", "4.00 (2)"]
    assert lines[3] == ["b", "", "", "0.25 (1)", "0.25 (1)"]
    assert lines[4] == ["all", "4.00 (2)", "", "0.25 (1)", "1.59 (3)"]


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
