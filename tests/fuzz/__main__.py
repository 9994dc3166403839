"""Runs the fuzzers one after the other, each for its share of the time: `make fuzz`, or python tests/fuzz --help."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import fuzz_build  # noqa: E402

import emulated  # noqa: E402

LIBRARIES = ROOT / "conv_ext" / "lib"
PROCESSES = str(len(os.sched_getaffinity(0)))


def plans(arguments: list[str]) -> list[str]:
    """Plans of valid problems: CPU and CUDA, every instruction set, every algorithm forced."""
    return [str(fuzz_build.build("plain", driver="plans") / "plans"), *arguments]


def runs(arguments: list[str]) -> list[str]:
    """Kernels against a reference, on every instruction set of this processor."""
    folder = fuzz_build.build("plain")
    if emulated.KERNELS.is_dir():
        emulated.build()
    return [str(folder / "runs"), "--libraries", str(LIBRARIES), "--isa", "all", *arguments]


def layers(arguments: list[str]) -> list[str]:
    """Public functions and layers against float64, from Python."""
    return [sys.executable, str(HERE / "layers.py"), *arguments]


FUZZERS = {"plans": (plans, "plans.cpp"), "runs": (runs, "runs.cpp"), "layers": (layers, "layers.py")}


def main() -> int:
    """The exit status: 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all of them together (default: 60)")
    parser.add_argument("--seed", type=int, help="the same cases again (default: another one each time)")
    parser.add_argument("--only", choices=FUZZERS, help="one of them; --case needs to know which")
    parser.add_argument("--case", help="a line that a fuzzer has printed: this case alone, once more")
    options = parser.parse_args()
    if options.case and not options.only:
        parser.error(f"--case needs --only (make fuzz ONLY=...): whose case is it? One of {', '.join(FUZZERS)}")
    there = [name for name, (_, file) in FUZZERS.items() if (HERE / file).is_file()]
    chosen = [options.only] if options.only else there
    seed = int(time.time()) if options.seed is None else options.seed
    failed = []
    for name in chosen:
        make, _ = FUZZERS[name]
        if options.case:
            arguments = ["--case", options.case]
        else:
            share = str(max(1, round(options.seconds / len(chosen))))
            arguments = ["--seconds", share, "--seed", str(seed), "--processes", PROCESSES]
            print(f"{name}: {make.__doc__} Seed {seed}, {share} s.", flush=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if subprocess.run(make(arguments), env=environment).returncode != 0:
            failed.append(name)
    for name in failed:
        print(f"{name}: failed. A case that is printed above runs again with: make fuzz ONLY={name} CASE='...'")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
