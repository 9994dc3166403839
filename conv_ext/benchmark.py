"""Is it faster for me? `benchmark(model, x)` runs a model on torch's layers and on ours by turns, and says what to do.

Every side's results are compared before anything is timed, and a side whose results are too far off is not timed.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from . import timer
from .convert import _convolutions, convert
from .model_plans import Call, calls_of, explain_model
from .packed import PackedConv2d
from .settings import current_precision
from .sides import Case, Left, Side, code_of, compiled, compiling, in_layout, sides
from .tables import Shown, Table

__all__ = ["Benchmark", "LayerTime", "SideTime", "benchmark"]

SECONDS = 10.0
LEAST_GAIN = 0.03  # a smaller one is within what machines drift
LIKE_TORCH = 10.0  # ours may be so many times as far from float64 as torch's layers are
# and this, relative to all results together, beside it: what rounding of a deep network's sums amounts to
FLOORS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
ROUNDED = {"tf32": 0.02, "bf16": 0.1}  # of float32 whose operands may be rounded


@dataclass(frozen=True)
class SideTime:
    """How long one side took. ms, least_ms: the median and the least of a call, in milliseconds; None where it was not
    timed. ratio: torch's best time over it, and spread how far to trust that. error: relative distance of its results
    from float64's; limit: how far they may be. left: why it was not timed."""

    side: str
    layout: str
    ours: bool
    ms: float | None = None
    least_ms: float | None = None
    ratio: float | None = None
    spread: float | None = None
    error: float | None = None
    limit: float | None = None
    left: str = ""


@dataclass(frozen=True)
class LayerTime:
    """One convolution layer: how long torch's and ours take by themselves, in milliseconds.

    calls: of layers that are alike, `name` and others, with the same sizes. ratio: torch's time over ours.
    share: of the whole model's time on our best side, for all these calls; None where that was not timed.
    """

    name: str
    op: str
    input: tuple[int, ...]
    calls: int
    algorithm: str
    torch_ms: float
    ours_ms: float
    ratio: float
    share: float | None


@dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """What was measured; ``str`` gives the tables and a recommendation, `to_dict` what JSON can hold.

    Attributes:
        model, what, dtype: its class, "inference" or "training step", and its dtype.
        machine: names and numbers of what it ran on.
        sides: a `SideTime` for each way to run the model. layers: a `LayerTime` for each convolution layer, those that
            are alike as one. layers_as: the side and layout that the layers were measured in.
        best: the (side, layout) that is recommended; None where nothing could be timed. advice: in words. code: what
            to write for it, "" where torch's model stays as it is.
        disturbed: whether other processes wanted the processor meanwhile.
    """

    model: str
    what: str
    dtype: str
    inputs: tuple[tuple[int, ...], ...]
    machine: dict[str, Any]
    sides: tuple[SideTime, ...]
    layers: tuple[LayerTime, ...]
    layers_as: str
    best: tuple[str, str] | None
    advice: str
    code: str
    disturbed: bool = False
    precision: str = field(default="ieee")

    def to_dict(self) -> dict[str, Any]:
        """All of it as what JSON has."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    def _parts(self) -> list[str | Table]:
        sizes = ", ".join("×".join(map(str, size)) for size in self.inputs)
        rounded = f", precision {self.precision}" if self.precision != "ieee" else ""
        machine = self.machine
        parts: list[str | Table] = [
            f"{self.model}, {self.what}, input {sizes}, {self.dtype}{rounded}",
            f"{machine['cpu']}, {machine['threads']} of {machine['cores']} threads, {machine['isa']}, "
            f"torch {machine['torch']}, conv_ext {machine['conv_ext']}",
            "",
            Table(("side", "layout", "ms", "least", "torch's best / it", "", "error"), self._rows(), left=2),
        ]
        parts += [f"left: {side.side}, {side.layout}: {side.left}" for side in self.sides if side.left]
        if self.layers:
            heads = ("layer", "op", "input", "calls", "algorithm", "torch ms", "ours ms", "torch / ours", "share")
            parts += ["", f"convolution layers alone, as {self.layers_as}:", ""]
            parts.append(Table(heads, self._layer_rows(), left=3))
        return [*parts, "", self.advice, *([f"    {self.code}"] if self.code else [])]

    def _rows(self) -> list[list[str]]:
        timed = sorted((side for side in self.sides if side.ms is not None), key=lambda side: side.ms or 0)
        return [
            [side.side, side.layout, _number(side.ms), _number(side.least_ms), _number(side.ratio),
             "" if side.spread is None else f"±{side.spread:.0%}", "" if side.error is None else f"{side.error:.0e}"]
            for side in timed
        ]  # fmt: skip

    def _layer_rows(self) -> list[list[str]]:
        return [
            [each.name, each.op, "×".join(map(str, each.input)), str(each.calls), each.algorithm,
             _number(each.torch_ms), _number(each.ours_ms), _number(each.ratio),
             "" if each.share is None else f"{each.share:.1%}"]
            for each in self.layers
        ]  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no infinity: None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def benchmark(
    model: nn.Module | ExportedProgram,
    x: Any = None,
    *,
    train: bool = False,
    compile: bool = False,
    threads: int | None = None,
    seconds: float = SECONDS,
    layers: bool = True,
    bar: bool = False,
) -> Benchmark:
    """Measures whether a model is faster with our convolutions, in this process, and says what to do.

    The sides: the model on torch's layers (ours become torch's in a copy), converted, and for inference fused with
    packed weights; with `compile` torch's and ours under torch.compile too, for inference with frozen parameters. Each
    in both of torch's layouts, where the inputs have an image and the model a 2-D kernel. All run by turns, so that a
    drift of the machine falls on all alike, and every side's results are compared with those of torch's layers in
    float64 first: one that is too far off, or fails, is not timed and says why. Then each kind of convolution layer is
    timed by itself, torch's beside ours.

    Args:
        model: stays as it is. It is measured in training mode with `train`, else in eval mode, with its numbers: those
            of a freshly made model in eval mode may be beyond all bounds, and then nothing can be compared.
        x: what the model is called with, a Tensor or a tuple of arguments; an ExportedProgram has its own.
        train: measure a forward and a backward (of the mean square of the results) and no optimizer; dropout layers
            drop nothing. False: a forward without gradients.
        compile: whether sides under torch.compile are measured, which compiles for a minute or so.
        threads: of both sides; None: torch's own number.
        seconds: time for the sides together, and about as much again for the layers; every side runs three times at
            least, whatever that takes.
        layers: whether convolution layers are measured one by one.
        bar: a progress bar (tqdm), where standard error is a terminal.

    Returns:
        Benchmark: prints as tables with a recommendation.

    Raises:
        TypeError: `model` is no module, or x is missing. ValueError: seconds or threads are not positive, or training
        of an exported program. What `revert` raises where torch has no layer for one of ours, and what the model
        raises with x.
    """
    _check(model, x, train, threads, seconds)
    if isinstance(model, ExportedProgram) and x is None:
        x = model.example_inputs[0]
    inputs = x if isinstance(x, tuple) else (x,)
    before, dynamo = torch.get_num_threads(), compile
    case = Case(model, inputs, train)
    torch.set_num_threads(threads or before)
    try:
        with contextlib.nullcontext() if train else torch.no_grad():
            chosen = [(side, layout) for side in sides(train, compile) for layout in case.layouts()]
            with _progress(len(chosen) + 2, bar) as tick:
                return _measured(case, type(model).__name__, chosen, seconds, layers, tick)
    except Left as why:
        raise RuntimeError(f"benchmark: {why}") from None
    finally:
        torch.set_num_threads(before)
        if dynamo:
            torch._dynamo.reset()  # compiled code keeps its model


def _check(model: object, x: object, train: bool, threads: int | None, seconds: float) -> None:
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(
            f"benchmark takes a torch.nn.Module or a torch.export.ExportedProgram, got {type(model).__name__}"
        )
    exported = isinstance(model, ExportedProgram)
    if x is None and not (exported and model.example_inputs):
        raise TypeError("benchmark takes what the model is called with, too: benchmark(model, images)")
    if exported and train:
        raise ValueError("benchmark: a program of torch.export is for inference; train the model that it was made of")
    devices = {p.device.type for p in model.parameters()} if isinstance(model, nn.Module) else {"cpu"}
    if devices - {"cpu"}:
        raise ValueError(f"benchmark measures on the CPU, but the model is on {', '.join(sorted(devices))}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be positive, got {threads}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds}")


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[str], object]]:
    """A bar of so many steps: what it yields is called when one begins, with its name."""
    if not shown or not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        yield lambda text: None
        return
    from tqdm import tqdm

    with tqdm(total=total, dynamic_ncols=True, leave=False) as steps:

        def tick(text: str) -> None:
            steps.set_description_str(text)
            steps.update()

        yield tick


def _measured(
    case: Case, name: str, chosen: list[tuple[Side, str]], seconds: float, layers: bool, tick: Callable[[str], object]
) -> Benchmark:
    reference, theirs = _reference(case)
    rows: dict[tuple[str, str], SideTime] = {}
    functions: dict[Any, Callable[[], object]] = {}
    for side, layout in chosen:
        tick(f"{side.name}, {layout}" + (": compiles" if side.compiled else ""))
        rows[side.name, layout], function = _prepared(case, side, layout, reference, theirs)
        if function is not None:
            functions[side.name, layout] = function
    tick("the model, by turns")
    disturbed = False
    if functions:
        timing = timer.undisturbed(functions, seconds, torch.get_num_threads(), prepare=lambda name: None)
        rows, disturbed = _timed(rows, timing), timing.disturbed
    best, advice, code = _advice(rows, {(side.name, layout): side for side, layout in chosen}, disturbed)
    tick("layers, one by one")
    ours = [row for row in rows.values() if row.ours and row.ms is not None]
    fastest = min(ours, key=lambda row: row.ms or 0, default=None)
    measured = _layers(case, fastest, seconds) if layers and case.program is None else []
    tensors = [leaf for leaf in tree_leaves(case.inputs) if isinstance(leaf, Tensor)]
    dtype = next((p.dtype for p in case.torchs.parameters() if p.is_floating_point()), torch.get_default_dtype())
    layers_as = f"{'fused' if fastest and fastest.side.startswith('fused') else 'converted'}, "
    return Benchmark(
        name, "training step" if case.train else "inference", str(dtype).removeprefix("torch."),
        tuple(tuple(leaf.shape) for leaf in tensors), timer.machine(), tuple(rows.values()), tuple(measured),
        layers_as + (fastest.layout if fastest else "contiguous"), best, advice, code, disturbed,
        current_precision() if dtype == torch.float32 else "ieee",
    )  # fmt: skip


# ---- results first


def _reference(case: Case) -> tuple[list[Tensor], float | None]:
    """The results of torch's layers in float64, and how far those in the model's own dtype are from them.

    Where a model does not run in float64, its own results, and None.
    """
    own = case.results(case.torchs, case.given("contiguous"))

    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        model = copy.deepcopy(case.torchs).double()
        found = case.results(model, tree_map_only(Tensor, wide, case.given("contiguous")))
    except Exception:  # an operator without float64, an exported program of another dtype
        return own, None
    theirs = _distance(own, found)
    if not math.isfinite(theirs):
        raise Left("the model's results are not finite in its own dtype, so that nothing can be compared")
    return found, theirs


def _distance(found: list[Tensor], reference: list[Tensor]) -> float:
    """||found - reference|| / ||reference|| of all tensors together; infinite where the shapes differ or one is NaN."""
    if [t.shape for t in found] != [t.shape for t in reference]:
        return math.inf
    pairs = [(a.double(), b.double()) for a, b in zip(found, reference)]
    error = sum((a - b).square().sum().item() for a, b in pairs)
    size = sum(b.square().sum().item() for _, b in pairs)
    if not math.isfinite(size):
        raise Left("the model's results are not finite, so that nothing can be compared")
    return (error / size) ** 0.5 if size > 0 and math.isfinite(error) else (0.0 if error == 0 else math.inf)


def _limit(case: Case, theirs: float | None) -> float:
    dtype = next((p.dtype for p in case.torchs.parameters() if p.is_floating_point()), torch.float32)
    allowed = current_precision() if dtype == torch.float32 else "ieee"
    return LIKE_TORCH * (theirs or 0) + max(FLOORS.get(dtype, 1e-4), ROUNDED.get(allowed, 0))


def _prepared(
    case: Case, side: Side, layout: str, reference: list[Tensor], theirs: float | None
) -> tuple[SideTime, Callable[[], object] | None]:
    row = SideTime(side.name, layout, side.ours)
    try:
        model = side.make(case, layout)
        if side.compiled:
            model = compiled(model)
        with compiling(case.train) if side.compiled else contextlib.nullcontext():
            error = _distance(case.results(model, case.given(layout)), reference)
    except Left as why:
        return replace(row, left=str(why)), None
    except Exception as failure:  # torch's compiler has its own ways to fail; ours are told as well
        text = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        return replace(row, left=f"{type(failure).__name__}: {text[:200]}"), None
    row = replace(row, error=error, limit=_limit(case, theirs))
    if not error <= row.limit:  # type: ignore[operator]
        return replace(row, left=f"WRONG: {error:.1e} from float64, limit {row.limit:.1e}"), None
    return row, case.call(model, layout)


# ---- times, and what follows


def _timed(rows: dict[Any, SideTime], timing: timer.Timing) -> dict[Any, SideTime]:
    """The rows with their times."""
    theirs: list[Any] = [key for key in timing.samples if not rows[key].ours]
    best = min(theirs or list(timing.samples), key=timing.median)
    timed = {}
    for key, row in rows.items():
        if key in timing.samples:
            ms, least = timing.median(key) * 1e3, min(timing.samples[key]) * 1e3
            row = replace(row, ms=ms, least_ms=least, ratio=timing.ratio(best, key), spread=timing.spread(best, key))
        timed[key] = row
    return timed


def _advice(rows: dict[Any, SideTime], of: dict[Any, Side], disturbed: bool) -> tuple[tuple[str, str] | None, str, str]:
    """(the side to take, why, what to write)."""
    timed: dict[Any, SideTime] = {key: row for key, row in rows.items() if row.ms is not None}
    theirs = {key: row for key, row in timed.items() if not row.ours}
    ours: dict[Any, SideTime] = {key: row for key, row in timed.items() if row.ours}
    compiles = any(side.compiled for side in of.values())
    unseen = "" if compiles else " torch.compile was not measured."
    noise = " Other processes disturbed the measurement: measure again." if disturbed else ""
    wrong = "" if not any(row.left.startswith("WRONG") and row.ours for row in rows.values()) else (
        " Results of ours that are too far off are an error of conv_ext: please report it."
    )  # fmt: skip
    if not theirs or not ours:
        kept = min(theirs, key=lambda key: theirs[key].ms or 0, default=None)
        why = "nothing of ours could be timed" if theirs else "nothing of torch's could be timed"
        return kept, f"Stay with torch: {why}.{wrong}{noise}", code_of(of[kept], kept[1]) if kept else ""
    best = min(ours, key=lambda key: ours[key].ms or 0)
    torchs = min(theirs, key=lambda key: theirs[key].ms or 0)
    gain, spread = ours[best].ratio or 0, ours[best].spread or 0
    shown, against = ", ".join(best), ", ".join(torchs)
    if gain > 1 + max(LEAST_GAIN, spread):
        advice = f"Use {shown}: {gain:.2f} times as fast as the best of torch's ({against}).{unseen}{wrong}{noise}"
        return best, advice, code_of(of[best], best[1])
    words = (
        f"{shown} takes {1 / gain:.2f} times as long as {against}" if gain < 1 - max(LEAST_GAIN, spread)
        else f"{shown} is {gain:.2f} times as fast as {against}, which is no more than it varies "
        f"(±{max(LEAST_GAIN, spread):.0%})"
    )  # fmt: skip
    return torchs, f"Stay with torch: {words}.{wrong}{noise}", code_of(of[torchs], torchs[1])


# ---- layers one by one


def _layers(case: Case, best: SideTime | None, seconds: float) -> list[LayerTime]:
    """Torch's layers beside ours, each alone, in the layout of our best side; layers that are alike once."""
    layout = best.layout if best else "contiguous"
    packs = best is not None and best.side.startswith("fused")
    model = in_layout(copy.deepcopy(case.torchs), layout)
    found: dict[str, Any] = {name: layer for name, (layer, _) in _convolutions(model).items()}
    kinds: dict[tuple[Any, ...], list[Call]] = {}
    for call in calls_of(model, case.given(layout), {}):
        layer = found[call.name]
        strides = [stride for stride, size in zip(call.stride, call.size) if size > 1]  # others have no say
        alike = call.op, call.size, tuple(strides), call.dtype, layer.weight.stride(), layer.bias is None
        kinds.setdefault((*alike, type(layer)), []).append(call)
    total = best.ms if best else None
    return [
        _layer_time(case, found[calls[0].name], calls, packs, seconds / max(len(kinds), 1), total)
        for calls in kinds.values()
    ]


def _layer_time(
    case: Case, theirs: nn.Module, calls: list[Call], packs: bool, seconds: float, total: float | None
) -> LayerTime:
    call = calls[0]
    x = torch.empty_strided(call.size, call.stride, dtype=call.dtype).normal_()
    ours: nn.Module = convert(copy.deepcopy(theirs))
    if packs and isinstance(ours, nn.Conv2d):
        with contextlib.suppress(TypeError, ValueError):  # one with hooks stays as it is
            ours = PackedConv2d.of(ours, x)
    functions = {"torch": _alone(case, theirs, x), "ours": _alone(case, ours, x)}
    timing = timer.alternate(functions, min(seconds, 1.0), prepare=lambda name: None)
    explained = explain_model(ours, (x,))
    algorithm = explained.layers[0].algorithms("forward") if explained.layers else ""
    ours_ms = timing.median("ours") * 1e3
    return LayerTime(
        call.name, call.op, call.size, len(calls), algorithm, timing.median("torch") * 1e3, ours_ms,
        timing.ratio("torch", "ours"), None if not total else len(calls) * ours_ms / total,
    )  # fmt: skip


def _alone(case: Case, layer: nn.Module, x: Tensor) -> Callable[[], object]:
    if not case.train:
        return lambda: layer(x)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = layer(x)
    g = torch.ones_like(y)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(x), wanted, g)
