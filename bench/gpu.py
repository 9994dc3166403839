"""Times CUDA kernels: each function captured in a graph, the graphs replayed by turns between two CUDA events.

A replay has no cost of calls in it: what is compared is the kernels. cuDNN tries its algorithms while the graphs are
warmed up (`torch.backends.cudnn.benchmark`), outside the timing.
"""

import argparse
import math
from collections.abc import Callable

import torch

from conv_ext.timer import MAX_ROUNDS, MIN_ROUNDS, Timing

WARM_UPS = 5
SAMPLE_SECONDS = 0.005  # far above the resolution of an event, half a microsecond


CEILING_SIZE = 8192  # of square matrices: far beyond what a device has to be full


def prepare() -> None:
    """Sets what cuDNN's side needs."""
    torch.backends.cudnn.benchmark = True


def check(parser: argparse.ArgumentParser) -> None:
    """Ends with a message where nothing can be measured."""
    import conv_ext

    if not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if not conv_ext.build_info()["cuda"]:
        parser.error("--device cuda: this build of conv_ext holds no CUDA kernels")
    prepare()


def name() -> str:
    """The device, its driver's CUDA and cuDNN, for the head of a result file."""
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def replay_seconds(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def alternate(functions: dict[str, Callable[[], object]], seconds: float) -> Timing:
    """As conv_ext.timer.alternate, with graphs: every function in each round, in alternating order."""
    graphs = {name: captured(function) for name, function in functions.items()}
    repeats = {}
    for name, graph in graphs.items():
        replay_seconds(graph, 3)
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / max(replay_seconds(graph, 3), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    spent = 0.0
    for done in range(MAX_ROUNDS):
        if spent > seconds and done >= MIN_ROUNDS:
            break
        for name in list(graphs)[:: -1 if done % 2 else 1]:
            samples[name].append(replay_seconds(graphs[name], repeats[name]))
            spent += samples[name][-1] * repeats[name]
    return Timing(samples, None)


def ceiling(name: str) -> str:
    """What torch itself reaches: a copy of 2 GiB, or a product of large matrices of a dtype ("tf32": of float32)."""
    if name == "copy":
        source = torch.zeros(1 << 28, device="cuda")
        target = torch.empty_like(source)
        seconds = replay_seconds(captured(lambda: target.copy_(source)), 10)
        return f"{name} {2 * 4 * source.numel() / seconds / 1e9:.0f} GB/s"
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
    size = CEILING_SIZE if dtype.itemsize == 2 else CEILING_SIZE // 2
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    seconds = replay_seconds(captured(lambda: a @ b), 10)
    return f"{name} {2 * size**3 / seconds / 1e12:.0f} TFLOP/s"


def kernel_names(function: Callable[[], object]) -> list[str]:
    """The kernels that a call runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    # Empty where the driver lets nobody profile.
    return sorted({event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA})
