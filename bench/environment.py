"""What a result depends on beside the code: the allocator's state, the machine, the versions, the options in common."""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.shapes import DTYPES, LAYOUTS, PASSES

RESULTS = Path(__file__).parent / "results"

# The allocator keeps what is freed, so that a fresh output does not fault its pages in again. Without these torch pays
# for reordered copies of its operands at every call, and a ratio says more about the allocator than about kernels.
WARM = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "536870912",
}


def is_warm() -> bool:
    return all(os.environ.get(name) == value for name, value in WARM.items())


def run_warm() -> None:
    """Starts this very command again with the allocator's settings; returns if they are there already."""
    if not is_warm():  # glibc reads them once, when the process starts
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], {**os.environ, **WARM})


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, help="threads for both sides (default: torch's own choice)")
    parser.add_argument("--warm", action="store_true", help="start again with an allocator that keeps its memory")
    parser.add_argument("--out", type=Path, help="the JSON file to write (default: a new one in bench/results)")


def add_case_options(parser: argparse.ArgumentParser, suites: list[str], only: list[str]) -> None:
    """`suites` and `only` are the defaults; an option on the command line replaces them."""
    parser.add_argument("--suite", nargs="+", default=suites,
                        help=f"files of bench/shapes (default: {' '.join(suites)})")
    parser.add_argument("--only", nargs="+", default=only, metavar="PATTERN",
                        help="shell patterns on suite/layer, such as 'vgg16/conv3*'")
    parser.add_argument("--batch", type=positive, help="images per call (default: each suite's own)")
    parser.add_argument("--pass", nargs="+", dest="passes", choices=PASSES, default=list(PASSES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["nchw"])
    parser.add_argument("--seconds", type=float, help="time limit of one case")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def collect(todo: list, measure: Callable[[Any], dict], name: Callable[[Any], str]) -> list[dict]:
    """measure(item) of every item, under a progress bar; Ctrl-C ends it with what there is so far."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise SystemExit("the bench needs tqdm for its progress bar: python -m pip install tqdm") from None
    rows = []
    with tqdm(todo, disable=not sys.stderr.isatty()) as bar:
        try:
            for item in bar:
                bar.set_description(name(item))
                rows.append(measure(item))
        except KeyboardInterrupt:
            bar.write(f"interrupted after {len(rows)} of {len(todo)}", file=sys.stderr)
    return rows


def machine() -> dict:
    """Names and numbers for the head of a result file; no host name and no path."""
    import torch

    import conv_ext

    cpu = "unknown CPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": conv_ext._C.isa(),
        "threads": torch.get_num_threads(),
        "warm_allocator": is_warm(),
        "torch": torch.__version__,
        "conv_ext": conv_ext.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def save(result: dict, given: Path | None) -> str:
    """Writes a result and returns where, as a person in the current folder would type it."""
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = given or RESULTS / f"{result['command']}-{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return os.path.relpath(path)
