"""Builds build/gpu_runner/gpu_runner (`make gpu-runner`): the CUDA kernels, their check and a clock, without torch.

It is tests/cuda_host/run.cpp, which the tests run on fibres, for a device: it needs nvcc here, no GPU, and where it
runs nothing but glibc and a driver. Beside it lies libconv_ext_cuda.so of the same objects, which setup.py takes where
CONV_EXT_PREBUILT=1, so that a machine with a GPU, which may be lent for minutes, has nothing of it to compile. What is
up to date is not compiled again. `make test` builds a runner of few types, in half the time, in a folder of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu_runner"
FEW_FOLDER = ROOT / "build" / "gpu_runner_few"  # of the runner that has float32 and bfloat16 alone
LIBRARY = "libconv_ext_cuda.so"
FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC"]  # those of setup.py
STATIC = ["-cudart", "static", "-Xcompiler", "-static-libstdc++,-static-libgcc"]  # glibc alone is taken as it comes
SHARED = ["-shared", "-cudart", "shared", "-Xlinker", "-z", "-Xlinker", "defs"]
REPORT = ["-Xptxas", "-v", "-Xcompiler", "-Wall,-Wextra"]  # registers and warnings: tests read them in NAME.log
USUAL = ("90a",)
FEW = ["-DCONV_EXT_FEW_TYPES"]  # csrc/cuda/launch.cuh
SM90_ALONE = {"wgmma.cu"}  # as in setup.py


def digest(paths: Iterable[Path], *words: str) -> str:
    """Of files, their names and words beside them."""
    found = hashlib.sha256("\n".join(words).encode())
    for path in sorted(paths):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def files(folder: str, csrc: Path = ROOT / "csrc") -> list[Path]:
    """Of a folder of csrc and those in it."""
    return sorted(path for path in (csrc / folder).rglob("*") if path.is_file())


def kernel_digest() -> str:
    """Of what libconv_ext_cuda.so is made of."""
    return digest([*files("common"), *files("cuda")], *FLAGS, *REPORT, *SHARED)


def runner_digest() -> str:
    """Of what the runner is made of."""
    more = [*files("cpu/reference"), *(ROOT / "tests" / "cuda_host" / name for name in ("run.cpp", "memory.h"))]
    return digest(more, kernel_digest(), *STATIC)


def record(folder: Path | None = None) -> dict:
    """What lies in a folder: "runner", "kernels" (their digests), "architectures"; nothing where that is not there."""
    path = (folder or FOLDER) / "built.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def runner(folder: Path | None = None) -> Path | None:
    """The runner, where it is there and of these sources."""
    path = (folder or FOLDER) / "gpu_runner"
    return path if path.is_file() and record(folder).get("runner") == runner_digest() else None


def library(folder: Path | None = None) -> Path | None:
    """The library of the kernels, where it is there and of these sources."""
    path = (folder or FOLDER) / LIBRARY
    return path if path.is_file() and record(folder).get("kernels") == kernel_digest() else None


def devices() -> tuple[list[tuple[str, str]], str]:
    """Compute capability ("9.0", nothing where it is not known) and name of each device here; why there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return [], "CUDA_VISIBLE_DEVICES hides all"
    ask = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20).stdout
    except FileNotFoundError:
        if any(Path("/dev").glob("nvidia[0-9]*")):
            return [("", "a device (nvidia-smi is not on the PATH)")], ""
        return [], "nvidia-smi is not on the PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if "not a valid field" in said:
        return [("", "a device (nvidia-smi is too old to tell which)")], ""
    found = re.findall(r"^(\d+\.\d+), *(.*\S)", said, re.MULTILINE)
    return found, "" if found else f"nvidia-smi says {' '.join(said.split()) or 'nothing'}"


def architectures_of(capabilities: Iterable[str]) -> tuple[str, ...]:
    """What to compile for where those devices are; the usual where none is known."""
    numbers = dict.fromkeys(capability.replace(".", "") for capability in capabilities if capability)
    return tuple("90a" if number == "90" else number for number in numbers) or USUAL


def serves(architectures: Iterable[str], capability: str) -> bool:
    """Whether code for those architectures runs on a device: on its own major version from its minor one on, with an
    "a" on exactly its own. Where the capability is not known, the device tells.
    """
    major, _, minor = capability.partition(".")
    return not capability or any(
        (own[:-1], own[-1]) == (major, minor) if own != known else own[:-1] == major and own[-1] <= minor
        for known in architectures
        for own in [known.rstrip("a")]
    )


def units(csrc: Path = ROOT / "csrc") -> list[Path]:
    """What the runner is compiled of."""
    sources = files("cuda", csrc)
    kernels = [path for path in sources if path.suffix == ".cu"]
    # The longest first, so that none of them is left for the end.
    return [*sorted(kernels, key=lambda path: -path.with_suffix(".cuh").exists()),
            *(path for path in sources if path.name == "plan.cpp"), ROOT / "tests" / "cuda_host" / "run.cpp"]


def object_name(unit: Path) -> str:
    """The kernels' files have names of their own, the plans are told apart by their folders."""
    return f"{unit.parent.name}-plan" if unit.name == "plan.cpp" else unit.stem


def is_fresh(stamp: Path, made: Path, command: list[str]) -> bool:
    """Whether an object is of this command and of files that are as they were."""
    if not (stamp.is_file() and made.is_file() and made.with_suffix(".log").is_file()):
        return False
    known = json.loads(stamp.read_text())
    paths = [ROOT / name for name in known["files"]]
    return all(path.is_file() for path in paths) and known["digest"] == digest(paths, *command)


def compile_one(unit: Path, architectures: tuple[str, ...], folder: Path) -> Path:
    made = folder / f"{object_name(unit)}.o"
    depends, stamp = made.with_suffix(".d"), made.with_suffix(".json")
    chosen = ("90a",) if unit.name in SM90_ALONE else architectures
    targets = [*REPORT, *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in chosen)] if unit.suffix == ".cu" else []
    few = [] if folder != FEW_FOLDER else FEW if unit.suffix == ".cu" else ["-O1"]  # of options the last counts
    command = ["nvcc", *FLAGS, *few, *targets, "-MMD", "-MF", str(depends), "-c", str(unit), "-o", str(made)]
    words = [word for word in command if str(ROOT) not in word]
    if not is_fresh(stamp, made, words):
        stamp.unlink(missing_ok=True)
        print(f"compiling {unit.name}", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        made.with_suffix(".log").write_text(done.stdout)
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            done.check_returncode()
        read = {Path(os.path.abspath(name)) for name in re.findall(r"[^\s:\\]+", depends.read_text())}
        ours = sorted(path for path in read if path.is_relative_to(ROOT) and path != made)
        files = [path.relative_to(ROOT).as_posix() for path in ours]
        stamp.write_text(json.dumps({"files": files, "digest": digest(ours, *words)}))
    return made


def build(architectures: tuple[str, ...] = USUAL, jobs: int | None = None, folder: Path | None = None) -> Path:
    """Compiles what has changed, links, and returns the runner; in FEW_FOLDER that of few types."""
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    of_sources = {"runner": runner_digest(), "kernels": kernel_digest(), "architectures": list(architectures)}
    target = folder / "gpu_runner"
    if record(folder) == of_sources and target.is_file() and (folder / LIBRARY).is_file():
        return target
    with ThreadPoolExecutor(jobs or int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))) as pool:
        objects = list(pool.map(lambda unit: compile_one(unit, architectures, folder), units()))
    kernels = [str(made) for made, unit in zip(objects, units()) if unit.suffix == ".cu"]
    subprocess.run(["nvcc", *STATIC, *map(str, objects), "-o", str(target)], check=True)
    subprocess.run(["nvcc", *SHARED, *kernels, "-o", str(folder / LIBRARY)], check=True)
    (folder / "built.json").write_text(json.dumps(of_sources))
    return target


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python bench/gpu_runner.py", description=__doc__)
    parser.add_argument("--arch", nargs="+", metavar="80",
                        help="compute capabilities to compile for (default: those of the devices here, 90a where there "
                        "is none; wgmma.cu is for 90a always)")
    parser.add_argument("--jobs", type=int, help="compilers at once (default: MAX_JOBS, or one for each processor)")
    options = parser.parse_args(arguments)
    wrong = [name for name in options.arch or () if not re.fullmatch(r"\d+a?", name)]
    if wrong:
        parser.error(f"--arch must be a compute capability without its point, such as 80 or 90a, got {wrong[0]}")
    chosen = tuple(options.arch or architectures_of(capability for capability, _ in devices()[0]))
    try:
        print(f"{build(chosen, options.jobs)} (for {', '.join(chosen)})")
    except subprocess.CalledProcessError as error:
        return error.returncode
    except FileNotFoundError as error:
        print(f"the runner is compiled by nvcc, which is not on the PATH ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
