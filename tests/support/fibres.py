"""CUDA kernels on fibres (tests/cuda_host): building the program, asking it, planting errors; for the tests of it."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import ceil, gcd, prod
from pathlib import Path

import pytest

from bench import gpu_runner
from problems import Problem
from runner_lines import LAYOUTS, PASSES, epilogue, line  # noqa: F401  (tests take them from here)

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "tests" / "cuda_host"
# The sanitizers aside that twice as long compiling brings nothing: a null pointer and an object that is too small show
# under ASan, and a pointer that has wrapped shows where it is used.
FLAGS = ["-std=c++20", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow",
         "-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
DEVICE = [f'-DCONV_EXT_CUDA_HOST="{HOST / "device_host.h"}"', f'-DCONV_EXT_CUDA_HOST_SM90="{HOST / "wgmma_host.h"}"']
LARGE = 4_000_000  # products
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # fibres live as long as the program
OPPOSITE = "03"  # copies at once and warps forward, copies late and warps reversed

compiler = shutil.which("g++")
needs_compiler = pytest.mark.skipif(compiler is None, reason="needs g++, which has fibres and the sanitizers")


def built_once(name: str, sources: list[Path], command: list[str], make: Callable[[Path], None]) -> Path:
    """The folder build/tests/NAME-DIGEST of this checkout, which `make` fills if nobody has yet.

    The digest is one of `sources` (files and folders), of `command` and of the compiler: a folder that is there fits.
    Processes that ask at once wait for the first of them.
    """
    digest = hashlib.sha256(" ".join([*command, compiler_version()]).encode())
    for path in sorted(f for source in sources for f in (source.rglob("*") if source.is_dir() else [source])):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.name.encode() + path.read_bytes())
    place = ROOT / "build" / "tests"
    folder = place / f"{name}-{digest.hexdigest()[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / f"{name}.lock"):
        if not folder.is_dir():
            for old in place.glob(f"{name}-*"):
                shutil.rmtree(old)
            unfinished = place / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of one that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiler_version() -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


# A test that takes `half` tries every problem in every second layout; `make test-all` tries the others, too.
in_halves = pytest.mark.parametrize(
    "half", [pytest.param(0, id="half"), pytest.param(1, id="other_half", marks=pytest.mark.exhaustive)]
)


def halved(problems: tuple[Problem, ...], layouts: tuple[str, ...], half: int) -> list[tuple[Problem, str]]:
    """Problems and layouts; neighbours are in different ones. What takes longest is in the other half."""
    return [(z, layout) for i, z in enumerate(problems) for j, layout in enumerate(layouts)
            if half == ((i + j) % 2 if z.macs < LARGE else 1)]


def planted(errors: dict, often: str) -> list:
    """The names of errors, as parameters of a test: `often` has those that are for every run."""
    assert set(often.split()) <= set(errors)
    return [pytest.param(name, marks=() if name in often.split() else pytest.mark.exhaustive) for name in errors]


def build(sources: Path, flags: list[str]) -> Path:
    """The kernels below `sources` on fibres, as a program; it is built once, whoever runs the tests."""
    units = gpu_runner.units(sources)

    def compile_all(folder: Path) -> None:
        def compile_one(unit: Path) -> str:
            made = str(folder / f"{gpu_runner.object_name(unit)}.o")
            # Kernels, launchers and plans are watched, the references are not: of those the tests of the CPU take care.
            those = flags if unit.is_relative_to(sources) else [f for f in flags if "sanitize" not in f]
            subprocess.run([compiler, *those, *DEVICE, "-x", "c++", "-c", str(unit), "-o", made], check=True)
            return made

        jobs = min(2, len(os.sched_getaffinity(0)))
        longest_first = sorted(units, key=lambda u: u.suffix != ".cu" or u.stem == "input_grad")
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, longest_first))
        subprocess.run([compiler, *flags, *objects, "-o", str(folder / "run")], check=True)

    read = [*(sources / name for name in ("common", "cuda", "cpu/reference", "cpu/base")), HOST, Path(__file__)]
    return built_once("cuda_host", read, [*flags, *DEVICE], compile_all) / "run"


def build_for_device() -> Path:
    """The runner, if one of these sources lies there; else that of few types, which the first process builds."""
    gpu_runner.FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with locked(gpu_runner.FOLDER.parent / "gpu_runner.lock"):
        if gpu_runner.runner() and gpu_runner.library():
            return gpu_runner.runner()
        return gpu_runner.build(jobs=min(2, len(os.sched_getaffinity(0))), folder=gpu_runner.FEW_FOLDER)


def build_for_every_architecture() -> Path:
    """The runner with all its kernels, for an old, a middle and a new architecture: five minutes of a processor."""
    folder = gpu_runner.FOLDER.parent / "gpu_runner_all"
    with locked(gpu_runner.FOLDER.parent / "gpu_runner.lock"):
        return gpu_runner.build(("75", "80", "90a"), min(2, len(os.sched_getaffinity(0))), folder)


def accurate(pass_name: str, kind: tuple, z: Problem) -> bool:
    """Whether the plan lets parts stand for float32: in sums of 32 products or more."""
    taps = [ceil(t / (s // gcd(s, d))) if pass_name == "input_grad" else t
            for t, s, d in zip((z.r, z.s), z.stride, z.dilation)]
    channels = (z.k if pass_name == "input_grad" else z.c) // z.groups
    products = z.n * z.p * z.q if pass_name == "weight_grad" else channels * prod(taps)
    by_parts = kind[2] == "three_tf32" or kind == ("float32", "ieee", "wgmma")
    return not by_parts or products >= 32


def run(program: Path, lines: list[str], ways: str = "0123") -> list[str]:
    """The verdicts of two programs that share the lines."""
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda half: run_one(program, half, ways) if half else [], (lines[::2], lines[1::2])), [])


def run_one(program: Path, lines: list[str], ways: str) -> list[str]:
    """ways: which of the ways, or another check of the program's; a line that fails runs again by itself."""
    more = f"ways={ways}" if ways.isdigit() else f"check={ways}"
    done = subprocess.run([str(program)], input="".join(f"{one} {more}\n" for one in lines), capture_output=True,
                          text=True, timeout=400, env=ENVIRONMENT)
    verdicts = done.stdout.splitlines()
    wrong = [v for v in verdicts if not v.startswith("exact")]
    assert done.returncode == 0 and len(verdicts) == len(lines), "\n".join([*wrong, done.stderr[-4000:]])
    return [v.split(" | ")[0].removeprefix("exact: ") for v in verdicts]


def finds(folder: Path, program: str, error: tuple[str, str, str], flags: list[str]) -> tuple[bool, str]:
    """Whether a program of cuda_host, compiled with an error in its kernels, fails; and what it says."""
    return finds_and_prints(folder, program, error, flags)[:2]


def finds_and_prints(folder: Path, program: str, error: tuple[str, str, str],
                     flags: list[str]) -> tuple[bool, str, str]:
    """The same, and what it prints.

    error: the file in csrc/cuda, what stands there once, and what stands there instead. Nothing changes where that is
    nothing: then the program must not fail.
    """
    file, right, wrong = error
    shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("torch", "python"))
    kernels = folder / "csrc" / "cuda"
    path = kernels / file
    text = path.read_text()
    if right:
        assert text.count(right) == 1, f"{file} has changed: {right!r} stands there {text.count(right)} times"
        path.write_text(text.replace(right, wrong))
    made = folder / "planted"
    subprocess.run([compiler, *flags, *DEVICE, f"-I{kernels}", str(HOST / program), "-o", str(made)], check=True)
    done = subprocess.run([str(made)], capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    return done.returncode != 0, done.stderr, done.stdout
