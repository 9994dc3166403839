"""`python -m bench network`: networks converted by conv_ext.convert against the same ones as they are."""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import aims, environment, gpu, precision, report
from bench.cases import MEMORY_FORMATS
from bench.judge import OPERAND_ROUNDOFF
from bench.networks import DEFAULT, FOREIGN, GPU_DEFAULT, GPU_IMAGES, NETWORKS, data, loss, made, network, present
from bench.shapes import LAYOUTS, PRECISIONS
from conv_ext import timer

STEP, ONE = "training step", "forward, eval"
KINDS = {"step": STEP, "forward": ONE}
LIKE_TORCH = 4.0  # ours may be so many times as far from float64 as torch is, for both are rounding errors
FLOOR = 1e-6  # and a little more, for where torch happens to be exact
PEAK_MEMORY = "--peak-memory-of"  # of a child process


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench network", allow_abbrev=False, description=__doc__,
        epilog="A training step is forward, loss (cross entropy) and backward, all gradients fresh; the optimizer's "
               "step, which has no convolution in it, is left out. The exit status is 1 where gradients or scores "
               "differ from float64's by more than they may; a missed aim does not count.")
    parser.add_argument("--network", nargs="+", choices=[*NETWORKS, *FOREIGN], metavar="NAME",
                        help=f"of {', '.join([*NETWORKS, *FOREIGN])} (default: {' '.join(DEFAULT)}; on CUDA "
                             f"{' '.join(GPU_DEFAULT)}, those of other packages where they are installed)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="cuda: times of captured graphs, against cuDNN; a step has "
                             f"{GPU_IMAGES} times the images")
    parser.add_argument("--what", nargs="+", choices=[*KINDS, "memory"], default=[*KINDS, "memory"],
                        help="training steps, the forward of one image without gradients, peak memory of a step")
    parser.add_argument("--batch", type=environment.positive, help="images of a training step (default: each its own)")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["ieee", "tf32"])
    parser.add_argument("--seconds", type=environment.seconds, help="time limit of one case")
    parser.add_argument("--quick", action="store_true", help="4 seconds for each case instead of 10")
    environment.add_common_options(parser)
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu:
        gpu.check(parser)
    options.network = options.network or (GPU_DEFAULT if on_gpu else DEFAULT)
    options.network = present(options.network)
    # A GPU's times vary less, and it may be lent for minutes.
    options.seconds = options.seconds or (4.0 if options.quick else 10.0) / (10 if on_gpu else 1)
    return options


def training_step(model: nn.Module, x: Tensor, classes: Tensor) -> Callable[[], Tensor]:
    parameters = list(model.parameters())

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        found = loss(model, x, classes)
        found.backward()
        return found.detach()

    return step


def result_of(what: str, model: nn.Module, x: Tensor, classes: Tensor) -> list[Tensor]:
    """What is compared: the loss and every gradient, or the scores."""
    if what == ONE:
        with torch.no_grad():
            return [model(x)]
    found = [training_step(model, x, classes)(), *(parameter.grad for parameter in model.parameters())]
    for parameter in model.parameters():
        parameter.grad = None
    return found


def distance(found: list[Tensor], reference: list[Tensor]) -> float:
    """Of all the tensors together, relative, in the Euclidean norm."""
    error = sum((a.double() - b).square().sum().item() for a, b in zip(found, reference, strict=True))
    return (error / sum(b.square().sum().item() for b in reference)) ** 0.5


def limit(what: str, chosen: str, theirs: float, layers: int) -> float:
    """How far from float64 a network's scores or gradients may be; the layers themselves are judged by `bench run`.

    In "ieee" a few times torch's own distance. Otherwise the rounding of two operands, e = 2 u_p, is added: scores may
    be wrong by e for each layer. A gradient is another matter: an error of e turns some share e of the ReLUs over, and
    gradients that miss a share e of their terms are wrong by sqrt(e). That adds up over layers as sqrt(layers e).
    """
    rounding = 0.0 if chosen == "ieee" else 2 * OPERAND_ROUNDOFF[chosen] * layers
    return LIKE_TORCH * theirs + FLOOR + (2 * rounding if what == ONE else 2 * math.sqrt(rounding))


class Sides:
    """One network, its data and its float64 results; both sides of it in any layout."""

    def __init__(self, name: str, what: str, batch: int, device: str = "cpu"):
        self.name, self.what, self.batch, self.device = name, what, batch, device
        self.model = made(name).to(device)
        if what == ONE:
            self.model.eval()
        self.x, self.classes = (t.to(device) for t in data(name, batch))
        self.layers = sum(isinstance(module, nn.Conv2d) for module in self.model.modules())
        # In float64 both sides would say the same; torch's code is the one that ours is judged by.
        searching = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # nothing of it is timed
        self.reference = result_of(what, copy.deepcopy(self.model).double(), self.x.double(), self.classes)
        torch.backends.cudnn.benchmark = searching

    def side(self, ours: bool, layout: str) -> tuple[nn.Module, Tensor]:
        import conv_ext

        memory_format = MEMORY_FORMATS[layout]
        model = copy.deepcopy(self.model).to(memory_format=memory_format)
        return (conv_ext.convert(model) if ours else model), self.x.contiguous(memory_format=memory_format)

    def function(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        return (lambda: model(x)) if self.what == ONE else training_step(model, x, self.classes)


def measure(sides: Sides, layout: str, chosen: str, seconds: float) -> dict:
    """Compares both sides with float64 first; no time is given where ours is too far from it."""
    pair = {"ours": sides.side(True, layout), "theirs": sides.side(False, layout)}
    with precision.allowed(chosen, sides.device) as torch_precision:
        errors = {name: distance(result_of(sides.what, *both, sides.classes), sides.reference)
                  for name, both in pair.items()}
        most = limit(sides.what, chosen, errors["theirs"], sides.layers)
        row = {
            "network": sides.name, "what": sides.what, "n": sides.batch, "layout": layout, "precision": chosen,
            "torch_precision": torch_precision, "right": errors["ours"] <= most, "limit": most,
            **{f"error_{name}": error for name, error in errors.items()},
        }
        if row["right"]:
            functions = {name: sides.function(*both) for name, both in pair.items()}
            with torch.set_grad_enabled(sides.what == STEP):
                timing = (gpu.alternate(functions, seconds) if sides.device == "cuda"
                          else timer.undisturbed(functions, seconds, torch.get_num_threads()))
            row |= {
                "ours_ms": timing.median("ours") * 1e3, "theirs_ms": timing.median("theirs") * 1e3,
                "ratio": timing.ratio("theirs", "ours"), "spread": timing.spread("theirs", "ours"),
                "rounds": timing.rounds, "others": timing.others, "disturbed": timing.disturbed,
            }
    row["aim"] = None if environment.cap() or sides.device == "cuda" else (
        aims.FORWARD_OF_ONE if sides.what == ONE else aims.TRAINING_STEP.get((sides.name, chosen)))
    return row


def peak_memory(name: str, side: str, layout: str, chosen: str, batch: int, device: str = "cpu") -> int:
    """Two training steps in this process, which must be a fresh one: the most memory it ever had, in bytes.

    On CUDA the most that torch's allocator gave out there.
    """
    import conv_ext

    model = made(name).to(device, memory_format=MEMORY_FORMATS[layout])
    if side == "ours":
        conv_ext.convert(model)
    x, classes = (t.to(device) for t in data(name, batch))
    torch.backends.cudnn.benchmark = True
    with precision.allowed(chosen, device):
        step = training_step(model, x.contiguous(memory_format=MEMORY_FORMATS[layout]), classes)
        step()
        if device == "cuda":  # cuDNN's search in the first step takes memory of its own
            torch.cuda.reset_peak_memory_stats()
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage's ru_maxrss, which begins with what the parent had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def memory_of_child(name: str, side: str, layout: str, chosen: str, batch: int, device: str = "cpu") -> int:
    """peak_memory in a child, whose allocator is as it comes: a warm one keeps what the peak should not have."""
    plain = {key: value for key, value in os.environ.items() if key not in environment.WARM}
    command = [sys.executable, "-m", "bench", "network", PEAK_MEMORY, name, side, layout, chosen, str(batch),
               str(torch.get_num_threads()), device]
    child = subprocess.run(command, env=plain, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"measuring the memory of {name} failed:\n{child.stderr}")
    return int(child.stdout.split()[-1])


def main(arguments: list[str]) -> int:
    if arguments[:1] == [PEAK_MEMORY]:
        name, side, layout, chosen, batch, threads, device = arguments[1:]
        torch.set_num_threads(int(threads))
        print(peak_memory(name, side, layout, chosen, int(batch), device))
        return 0
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    more = GPU_IMAGES if options.device == "cuda" else 1
    batches = {name: options.batch or more * network(name).batch for name in options.network}
    settings = list(itertools.product(options.layout, options.precision))
    todo = [(name, KINDS[kind], *setting) for name in options.network for kind in KINDS if kind in options.what
            for setting in settings]
    result = {"command": "network", "machine": environment.machine()}
    if options.device == "cuda":
        result["machine"]["gpu"] = gpu.name()
    latest: list[Sides] = []  # one network at a time is in memory

    def measured(item) -> dict:
        name, what, layout, chosen = item
        if not latest or (latest[0].name, latest[0].what) != (name, what):
            latest[:] = []
            latest[:] = [Sides(name, what, 1 if what == ONE else batches[name], options.device)]
        return measure(latest[0], layout, chosen, options.seconds)

    found = environment.collect(todo, measured, " ".join)
    result["cases"] = [row for row in found if row["right"]]
    result["wrong"] = [f"{row['network']}, {row['what']}, {row['layout']}, {row['precision']}: {row['error_ours']:.2e} "
                       f"from float64, torch {row['error_theirs']:.2e}, limit {row['limit']:.2e}"
                       for row in found if not row["right"]]
    if "memory" in options.what and len(found) == len(todo):
        result["memory"] = environment.collect(
            [(name, *setting) for name in options.network for setting in settings],
            lambda item: {"network": item[0], "layout": item[1], "precision": item[2], "n": batches[item[0]],
                          **{side: memory_of_child(item[0], side, *item[1:], batches[item[0]], options.device)
                             for side in ("ours", "theirs")}},
            lambda item: " ".join(("memory", *item)))
    path = environment.save(result, options.out)
    print(report.text(result))
    print(f"\n{len(found)} of {len(todo)} cases, {len(result['wrong'])} wrong; written to {path}")
    return 1 if result["wrong"] or len(found) < len(todo) else 0
