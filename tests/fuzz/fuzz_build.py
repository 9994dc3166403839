"""Builds the fuzzer of runs, and kernel libraries under the sanitizers.

    python tests/fuzz/fuzz_build.py KIND [ISA ...]

KIND is plain, address (AddressSanitizer and UBSan) or thread (ThreadSanitizer). Everything lies in build/fuzz/KIND and
is compiled again only where it has changed. A plain driver loads the libraries of the package itself.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
# What is left out of UBSan is seen otherwise (a null pointer is a fault, an object's size is AddressSanitizer's), and
# costs a third of the time that the libraries take to compile.
SANITIZERS = {
    "plain": "",
    "address": "-fsanitize=address,undefined -fno-sanitize=null,object-size,vptr,nonnull-attribute,"
    "returns-nonnull-attribute -fno-sanitize-recover=all -fno-omit-frame-pointer",
    "thread": "-fsanitize=thread",
}
# The driver is not looked at for races: it would be most of the work.
DRIVER_FLAGS = {
    "plain": "-O3 -march=native",
    "address": f"-O1 {SANITIZERS['address']}",
    "thread": "-O2 -march=native -fno-tree-loop-distribute-patterns -DFUZZ_THREAD_SANITIZER",
}
DRIVER_FLAGS = {kind: f"-std=c++17 -g1 -Wall -Wextra -fopenmp-simd {flags}" for kind, flags in DRIVER_FLAGS.items()}


def kernel_settings(setup: Path = ROOT / "setup.py") -> dict:
    """What setup.py says of the kernel libraries, without running it: that would import torch."""
    names = {"KERNEL_SOURCES", "PASS_SOURCES", "KERNEL_FLAGS", "AVX2", "AVX512", "ISA_FLAGS", "SHARES_PASSES"}
    wanted = []
    for node in ast.parse(setup.read_text()).body:
        inner = node.body if isinstance(node, ast.If) else [node]
        targets = {
            target.id
            for part in inner
            if isinstance(part, (ast.Assign, ast.AugAssign))
            for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
            if isinstance(target, ast.Name)
        }
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.If)) and targets & names:
            wanted.append(node)
    scope: dict = {"platform": platform}
    exec(compile(ast.Module(wanted, []), str(setup), "exec"), scope)
    return {name: scope[name] for name in names}


def compiler() -> str:
    return shutil.which(os.environ.get("CXX", "g++").split()[0]) or shutil.which("c++") or "c++"


def escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(kind: str, root: Path = ROOT, driver: Path = ROOT / "tests" / "fuzz" / "runs.cpp") -> str:
    """The driver, and of the sanitized kinds a library for each instruction set, of the sources in `root`."""
    settings = kernel_settings()
    # The last -O counts: at -O3 the templates take far longer under the sanitizers.
    kernel_flags = f"{settings['KERNEL_FLAGS']} {'' if kind == 'plain' else '-O1 -g1'} {SANITIZERS[kind]}"
    lines = [
        f"cxx = {compiler()}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $out",
        "rule link",
        f"  command = $cxx {SANITIZERS[kind]} $flags $in -o $out $libraries",
        "  description = linking $out",
    ]
    objects = []
    for source in [driver, *sorted((root / "csrc").glob("plan*.cpp"))]:
        objects.append(f"driver/{source.name}.o")
        lines += [
            f"build {objects[-1]}: compile {escaped(source)}",
            f"  flags = {DRIVER_FLAGS[kind]}",
        ]
    lines += [f"build runs: link {' '.join(objects)}", "  libraries = -ldl -lpthread"]
    for isa, flags in settings["ISA_FLAGS"].items():
        objects = []
        for source in settings["KERNEL_SOURCES"]:
            shared = settings["SHARES_PASSES"].get(isa) if source in settings["PASS_SOURCES"] else None
            objects.append(f"{shared or isa}/{source}.o")
            if not shared:
                lines += [
                    f"build {objects[-1]}: compile {escaped(root / 'csrc' / 'cpu' / source)}",
                    f"  flags = {kernel_flags} {flags}",
                ]
        lines += [f"build libconv_ext_{isa}.so: link {' '.join(objects)}", "  flags = -shared"]
    return "\n".join(lines) + "\n"


def build(
    kind: str, isas: list[str] = (), folder: Path | None = None, root: Path = ROOT, jobs: int | None = None
) -> Path:
    """Builds what has changed; the folder that holds `runs` and the libraries that were asked for."""
    folder = folder or BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "build.ninja", ninja_file(kind, root)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    targets = ["runs", *(f"libconv_ext_{isa}.so" for isa in isas)]
    jobs = jobs or int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    subprocess.run(["ninja", "-C", str(folder), "-j", str(jobs), *targets], check=True, stdout=subprocess.PIPE)
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SANITIZERS:
        sys.exit(__doc__)
    print(build(sys.argv[1], sys.argv[2:]))
