"""Finds the compiled part, checks that it fits the running torch, and loads the kernel library for this processor."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch  # before the extension: its thread library and symbols must be there

PACKAGE = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)  # whose stable interface the operators are compiled for (setup.py)
RECORDED = ("torch", "python", "cuda", "sources", "isas")  # what _build.json has, whichever release wrote it
# AMX's tiles in plain C++, for tests on other processors: never chosen, only named.
EMULATED = "amx-emulated"
CHECKOUT = (PACKAGE.parent / "csrc").is_dir()  # else an installed package
# What is to be built anew: the checkout, or a source distribution, with the torch that is running.
REBUILD = f"    {sys.executable} -m pip install --no-build-isolation " + (
    "-e ." if CHECKOUT else "--no-deps --force-reinstall PATH-OF-THE-SOURCE-DISTRIBUTION"
)
ANOTHER = "Rebuild it:" if CHECKOUT else "Install the wheel again, or build from the source distribution:"


def _shadowed() -> Path | None:
    """The folder of another conv_ext on sys.path that has a binary, where this checkout without one hides it."""
    for entry in sys.path:
        other = Path(entry or ".").resolve() / "conv_ext"
        if other != PACKAGE and (other / "_build.json").is_file():
            return other
    return None


def _source_digest(sources: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(sources.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _major(cuda_version: str | None) -> str | None:
    return cuda_version and cuda_version.partition(".")[0]


def _record(file: Path) -> dict[str, Any]:
    """What the build has written down of itself."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in RECORDED if key not in found]
    except (OSError, ValueError) as error:
        raise ImportError(f"{file} cannot be read: {error}. {ANOTHER}\n{REBUILD}") from error
    if missing:
        raise ImportError(f"{file} does not say {', '.join(missing)} of the build. {ANOTHER}\n{REBUILD}")
    return found


def _check_build() -> dict[str, Any]:
    record_file = PACKAGE / "_build.json"
    running = f"torch {torch.__version__}, {sys.implementation.cache_tag}"
    if not PACKAGE.is_dir():
        raise ImportError(
            f"conv_ext at {PACKAGE} lies in an archive, from which its libraries cannot be loaded: unpack it, or "
            "install the wheel"
        )
    if not record_file.is_file():
        hint = f"Build it in the checkout (running: {running}):\n{REBUILD}"
        if other := _shadowed():
            hint = f"An installed one, {other}, is hidden by it: run from another folder, or build this one:\n{REBUILD}"
        raise ImportError(f"conv_ext at {PACKAGE} has no compiled extension. {hint}")
    build = _record(record_file)
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(f"conv_ext at {PACKAGE} needs torch {oldest} or later, but what is running is {running}")
    sources = PACKAGE.parent / "csrc"
    if CHECKOUT and _source_digest(sources) != build["sources"]:
        raise ImportError(
            f"conv_ext at {PACKAGE} is stale: csrc has changed since it was built (with torch {build['torch']}, "
            f"{build['python']}). Rebuild it:\n{REBUILD}"
        )
    return build


BUILD = _check_build()
try:
    from . import _C
except OSError as error:
    raise ImportError(
        f"conv_ext at {PACKAGE} does not load with torch {torch.__version__}, {sys.implementation.cache_tag}: {error}. "
        f"{ANOTHER}\n{REBUILD}"
    ) from error

# Every instruction set that is chosen by itself, the best first.
ISAS = tuple(_C.known_isas())


def available_isas() -> list[str]:
    """Instruction sets that this processor can run and this build holds, the best first."""
    return _C.available_isas()


def _load_kernels() -> None:
    """Loads the best kernel library, or the one that CONV_EXT_ISA names."""
    try:
        _C.load_chosen_kernel_library()  # csrc/torch/instruction_sets.h, the choice of a program without Python, too
    except RuntimeError as error:
        advice = "" if "CONV_EXT_ISA" in str(error) else f". {ANOTHER}\n{REBUILD}"
        raise ImportError(f"{error}{advice}") from None


_load_kernels()


def _load_cuda(build: dict[str, Any]) -> bool:
    """Loads the CUDA kernels, where this build has some for the major version of CUDA that torch is built for."""
    kernels = build.get("cuda_version")
    if not build["cuda"] or (kernels and _major(kernels) != _major(torch.version.cuda)):
        return False
    try:
        _C.load_cuda_library(str(PACKAGE / "lib" / "libconv_ext_cuda.so"))
    except RuntimeError as error:
        raise ImportError(f"{error}. {ANOTHER}\n{REBUILD}") from None
    return True


CUDA_LOADED = _load_cuda(BUILD)


def build_info() -> dict[str, Any]:
    """What the compiled part was built with, and what it runs on.

    Keys: ``version``; ``torch``, ``python``, ``compiler`` (built with); ``fast_road`` (whether the build has the module
    for the running torch and Python that calls the kernels below the dispatcher; else everything goes through the
    dispatcher, with the same results, some microseconds slower a call); ``cuda`` (whether CUDA kernels are in it and
    loaded, which takes a torch for the same major version of CUDA), ``cuda_version`` (for which they are built, or
    None), ``cuda_architectures`` (of devices: sm_90 is machine code, compute_90 what newer ones compile at first use);
    ``isas`` (built), ``isas_available`` (this processor), ``isa`` (in use; ``CONV_EXT_ISA`` forces one);
    ``running_torch``; ``threads`` (torch's, for one operator).
    """
    from ._version import __version__

    return {
        "version": __version__,
        "torch": BUILD["torch"],
        "python": BUILD["python"],
        "compiler": _C.compiler(),
        "fast_road": _C.HAS_FAST_ROAD,
        "cuda": CUDA_LOADED,
        "cuda_version": BUILD.get("cuda_version"),
        "cuda_architectures": BUILD.get("cuda_architectures", []),
        "isas": BUILD["isas"],
        "isas_available": available_isas(),
        "isa": _C.isa(),
        "running_torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
