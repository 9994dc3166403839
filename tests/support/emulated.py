"""The kernel library with AMX's tiles in plain C++: who wants it builds it, beside the others of a checkout."""

import fcntl
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "amx-emulated"
KERNELS = ROOT / "build" / "kernels"
LIBRARY = ROOT / "conv_ext" / "lib" / f"libconv_ext_{NAME}.so"
REASON = "needs a checkout that was built with avx512 in it (CONV_EXT_ISAS=all), and a processor that has it"


def possible(isas: list[str]) -> bool:
    """Whether it can be built, and runs where these instruction sets are: all but the tiles is AVX-512."""
    return "avx512" in isas and (KERNELS / "build.ninja").is_file()


def build() -> None:
    """Builds what has changed, and puts it where CONV_EXT_ISA finds it."""
    with (KERNELS.parent / "emulated.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one process at a time; the system lets go of the lock of one that dies
        done = subprocess.run(["ninja", "-C", str(KERNELS), "-j", "2", LIBRARY.name], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{LIBRARY.name} was not built:\n{done.stdout}{done.stderr}")
        made = (KERNELS / LIBRARY.name).read_bytes()
        if not LIBRARY.is_file() or LIBRARY.read_bytes() != made:
            fresh = LIBRARY.with_suffix(".new")
            fresh.write_bytes(made)
            fresh.replace(LIBRARY)
