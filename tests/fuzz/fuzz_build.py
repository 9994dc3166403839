"""Builds the fuzzers, and kernel libraries under the sanitizers, each once.

    python tests/fuzz/fuzz_build.py KIND [ISA ...]
    python tests/fuzz/fuzz_build.py plans KIND          the fuzzer of plans

KIND is plain, address (AddressSanitizer and UBSan) or thread (ThreadSanitizer). Everything lies in build/fuzz/KIND and
is compiled again only where it has changed. A plain driver loads the libraries of the package itself.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
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
DRIVER_FLAGS = {kind: f"-std=c++20 -g1 -Wall -Wextra -fopenmp-simd {flags}" for kind, flags in DRIVER_FLAGS.items()}
# Plans are small: all of UBSan is looked at, and what float-cast-overflow finds.
PLANS_FLAGS = {
    "plain": "-O2",
    "address": "-O1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer",
}
PLANS_FLAGS = {
    kind: f"-std=c++20 -g1 -Wall -Wextra -DCONV_EXT_COUNT_PLAN_STEPS {flags}" for kind, flags in PLANS_FLAGS.items()
}


def kernel_settings(setup: Path = ROOT / "setup.py") -> dict:
    """What setup.py says of the kernel libraries, without running it: that would import torch."""
    names = {"CPU", "X86", "AVX2", "AVX512"}
    names |= {"KERNEL_SOURCES", "PASS_SOURCES", "KERNEL_FLAGS", "ISA_FLAGS", "SHARES_PASSES"}
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
    scope: dict = {"platform": platform, "ROOT": setup.parent}
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
    kernel_flags = f"{settings['KERNEL_FLAGS']} {SANITIZERS[kind]}"
    if kind != "plain":
        kernel_flags += " -O1 -g1 -DCONV_EXT_WITNESS"
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
    for source in [driver, *plan_sources(root)]:
        objects.append(f"driver/{object_name(source, root)}")
        lines += [
            f"build {objects[-1]}: compile {escaped(source)}",
            f"  flags = {DRIVER_FLAGS[kind]}",
        ]
    lines += [f"build runs: link {' '.join(objects)}", "  libraries = -ldl -lpthread"]
    if kind in PLANS_FLAGS:
        objects = []
        for source in [driver.with_name("plans.cpp"), *plan_sources(root)]:
            objects.append(f"plans_objects/{object_name(source, root)}")
            lines += [f"build {objects[-1]}: compile {escaped(source)}", f"  flags = {PLANS_FLAGS[kind]}"]
        lines += [f"build plans: link {' '.join(objects)}", f"  flags = {PLANS_FLAGS[kind]}"]
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


def plan_sources(root: Path = ROOT) -> list[Path]:
    return sorted((root / "csrc").rglob("plan*.cpp"))


def object_name(source: Path, root: Path = ROOT) -> str:
    """Of a plan with its folders, for all of them are called plan.cpp: cpu-winograd-plan.cpp.o."""
    csrc = root / "csrc"
    return "-".join(source.relative_to(csrc).parts if source.is_relative_to(csrc) else [source.name]) + ".o"


def objects_with(changed: Path, folder: Path, driver: str) -> list[Path]:
    """The objects of a driver and the plans in `folder`, but for the one that is changed and lies elsewhere."""
    names = [object_name(source) for source in (ROOT / "tests" / "fuzz" / f"{driver}.cpp", *plan_sources())]
    return [changed if name == changed.name else folder / name for name in names]


def build(
    kind: str,
    isas: list[str] = (),
    folder: Path | None = None,
    root: Path = ROOT,
    jobs: int | None = None,
    driver: str = "runs",
) -> Path:
    """Builds what has changed; the folder that holds the driver and the libraries that were asked for."""
    folder = folder or BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "build.ninja", ninja_file(kind, root)
    targets = [driver, *(f"libconv_ext_{isa}.so" for isa in isas)]
    jobs = jobs or int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    # Tests run in several processes: the first one builds, the others wait for it.
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        subprocess.run(["ninja", "-C", str(folder), "-j", str(jobs), *targets], check=True, stdout=subprocess.PIPE)
    return folder


def chosen(planted: tuple, names: list[str]) -> list:
    """The planted errors that a command line names, or all of them."""
    known = {each.name: each for each in planted}
    parser = argparse.ArgumentParser(
        description="Plants errors in copies of the sources, one at a time, and runs the fuzzer until it finds each.",
        epilog=f"The errors: {', '.join(known)}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone (default: all)")
    names = parser.parse_args(names).names
    for name in names:
        if name not in known:
            parser.error(f"there is no error {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(planted)


if __name__ == "__main__":
    words = sys.argv[1:]
    driver = "plans" if words[:1] == ["plans"] else "runs"
    words = words[1:] if driver == "plans" else words
    if not words or words[0] not in (PLANS_FLAGS if driver == "plans" else SANITIZERS):
        sys.exit(__doc__)
    print(build(words[0], words[1:], driver=driver))
