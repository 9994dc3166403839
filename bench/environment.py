"""What a result depends on beside the code: the allocator, the instruction set, the machine, the options in common."""

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.shapes import DTYPES, LAYOUTS, PASSES, PRECISIONS, TRAIN

RESULTS = Path(__file__).parent / "results"

# The allocator keeps what is freed, so that a fresh output does not fault its pages in again. Without these torch pays
# for reordered copies of its operands at every call, and a ratio says more about the allocator than about kernels.
WARM = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "536870912",
}
# Both sides held to an instruction set: ours, oneDNN, torch's own kernels, MKL.
CAPS = {
    "avx2": {"CONV_EXT_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
             "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def is_warm() -> bool:
    return all(os.environ.get(name) == value for name, value in WARM.items())


def cap() -> str | None:
    """The instruction set that both sides are held to; None where nothing holds either."""
    for name, variables in CAPS.items():
        if all(os.environ.get(variable) == variables[variable] for variable in ("CONV_EXT_ISA", "ONEDNN_MAX_CPU_ISA")):
            return name
    return None


def restart_if_asked(arguments: list[str]) -> int | None:
    """Starts this command again where an option asks for another environment, which a process reads when it starts.

    Returns only where the environment is right already (None), or, after --both-states, with an exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", usage="python -m bench [command] [options]",
                                     add_help=False,
                                     allow_abbrev=False)
    add_environment_options(parser)
    parser.add_argument("--out", type=Path)
    options, _ = parser.parse_known_args(arguments)
    command = [sys.executable, "-m", "bench", *sys.argv[1:]]
    if options.both_states:
        if options.warm:
            parser.error("--both-states measures with and without --warm: give one of them")
        command.remove("--both-states")
        status = 0
        for state in ("cold", "warm"):
            print(f"\n# allocator {state}\n", flush=True)
            out = ["--out", str(options.out.with_stem(f"{options.out.stem}-{state}"))] if options.out else []
            status |= subprocess.run([*command, *out, *(["--warm"] if state == "warm" else [])]).returncode
        return status
    wanted = (WARM if options.warm else {}) | CAPS.get(options.isa, {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, command, {**os.environ, **wanted})
    return None


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warm", action="store_true", help="start again with an allocator that keeps its memory")
    parser.add_argument("--both-states", action="store_true",
                        help="measure twice, with the allocator as it comes and with --warm, into a file each")
    parser.add_argument("--isa", choices=list(CAPS), help="start again with both sides held to this instruction set")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, help="threads for both sides (default: torch's own choice)")
    add_environment_options(parser)
    parser.add_argument("--out", type=Path,
                        help="the file to write (default: a new one in bench/results); without a suffix it gets one")


def add_case_options(parser: argparse.ArgumentParser, suites: list[str], only: list[str],
                     dtypes: tuple[str, ...] = DTYPES) -> None:
    """`suites` and `only` are the defaults; an option on the command line replaces them."""
    parser.add_argument("--suite", nargs="+", default=suites,
                        help=f"files of bench/shapes (default: {' '.join(suites)})")
    parser.add_argument("--only", nargs="+", default=only, metavar="PATTERN",
                        help="shell patterns on suite/layer, such as 'vgg16/conv3*'")
    parser.add_argument("--batch", nargs="+", type=batch, default=[TRAIN], metavar="N",
                        help=f"images per call; {TRAIN}: each suite's own (default); several are measured one by one")
    parser.add_argument("--pass", nargs="+", dest="passes", choices=PASSES, default=list(PASSES))
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=["float32"])
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["nchw"])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["ieee"],
                        help="what float32 may be rounded to, for both sides (default: ieee)")
    parser.add_argument("--seconds", type=seconds, help="time limit of one case")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


def batch(text: str) -> int | str:
    if text != TRAIN and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive integer or {TRAIN}, got {text}")
    return TRAIN if text == TRAIN else int(text)


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def collect(todo: list, measure: Callable[[Any], dict], name: Callable[[Any], str]) -> list[dict]:
    """measure(item) of every item, under a progress bar where tqdm is there; Ctrl-C ends it with what there is."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = Bar
    rows = []
    with tqdm(todo, disable=not sys.stderr.isatty()) as bar:
        try:
            for item in bar:
                bar.set_description(name(item))
                rows.append(measure(item))
        except KeyboardInterrupt:
            bar.write(f"interrupted after {len(rows)} of {len(todo)}", file=sys.stderr)
    return rows


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[], object]]:
    """A bar of so many steps, where tqdm is there and somebody is watching; what it yields is called after each."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=total, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


class Bar:
    """As much of tqdm as `collect` uses: a line for each item, where somebody is watching."""

    def __init__(self, items: list, disable: bool):
        self.items, self.disable, self.done = items, disable, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass

    def __iter__(self):
        for done, item in enumerate(self.items, 1):
            self.done = done
            yield item

    def set_description(self, text: str) -> None:
        if not self.disable:
            print(f"{self.done}/{len(self.items)} {text}", file=sys.stderr)

    def write(self, text: str, file) -> None:
        print(text, file=file)


def machine() -> dict:
    """Names and numbers for the head of a result file; no host name and no path."""
    from conv_ext import timer

    variables = sorted({variable for variables in CAPS.values() for variable in variables})
    return timer.machine() | {
        "cap": cap(),
        "environment": {name: os.environ[name] for name in variables if name in os.environ},
        "warm_allocator": is_warm(),
        "load_average": round(os.getloadavg()[0], 2),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def save(result: dict, given: Path | None) -> str:
    """Writes a result and returns where: as it was given, or as a person in the current folder would type it."""
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    gpu = re.sub(r"[^a-z0-9]+", "-", result["machine"].get("gpu", "").split(",")[0].lower()).strip("-")
    path = with_suffix(given, ".json") or RESULTS / f"{'-'.join(filter(None, [gpu, result['command'], stamp]))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return str(path) if given else os.path.relpath(path)


def with_suffix(given: Path | None, suffix: str) -> Path | None:
    """A path that a user gave, with this suffix where it has none and nothing is there (a folder, /dev/null)."""
    return given.with_suffix(suffix) if given and not given.suffix and not given.exists() else given


def load(path: Path) -> dict:
    """A result file, the fields that older ones lack filled in."""
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise SystemExit(f"a result must be a JSON file that the bench has written: {path}: {error.strerror}") from None
    except ValueError as error:
        raise SystemExit(f"a result must be a JSON file that the bench has written: {path}: {error}") from None
    if isinstance(result, dict) and {"same", "columns", "rows"} <= set(result):
        from bench.keep import cases_of

        result["cases"] = cases_of(result)
    if not isinstance(result, dict) or not {"command", "machine", "cases"} <= set(result):
        raise SystemExit(f"a result must be a JSON file that the bench has written: {path} has no command, machine "
                         f"and cases")
    result["machine"] = {"cap": None, "peaks": {}} | result["machine"]
    result["cases"] = [{"precision": "ieee", "batch": TRAIN, "extra_bytes": None, "ran": "", "suite": ""} | row
                       for row in result["cases"]]
    return result
