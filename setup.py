"""Builds the operators' library and the fast road with torch's BuildExtension, and the kernels' libraries by ninja."""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TORCH = "torch==2.13.0"
ROOT = Path(__file__).resolve().parent

# What compiles needs torch. A source distribution, and a look at the metadata, do not.
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    torch, BuildExtension, CppExtension, NO_TORCH = None, build_ext, Extension, str(error)

CPU = ROOT / "csrc" / "cpu"
CUDA = ROOT / "csrc" / "cuda"
# What a folder holds is found: its plans (plan.cpp, plan_*.cpp) belong to the operators, the other sources are kernels.
PLAN_SOURCES = [
    path.relative_to(ROOT).as_posix() for folder in (CPU, CUDA) for path in sorted(folder.rglob("plan*.cpp"))
]
KERNEL_SOURCES = [
    path.relative_to(CPU).as_posix() for path in sorted(CPU.rglob("*.cpp")) if not path.name.startswith("plan")
]
CUDA_SOURCES = sorted(CUDA.rglob("*.cu"))
# The operators are a library that knows nothing of Python, on torch's stable interface: one binary for every Python and
# every torch from OLDEST_TORCH on. The fast road, a module for one version of both, lies beside it, linked with it.
OPERATORS = "conv_ext.libconv_ext_operators"
OPERATORS_SOURCES = [  # and for CUDA, or without_cuda.cpp
    *PLAN_SOURCES, *(f"csrc/torch/{name}.cpp" for name in ("ops", "cpu", "schemas", "interface")),
]  # fmt: skip
OLDEST_TORCH = (2, 11)
FAST_SOURCES = ["csrc/torch/fastcall.cpp"]
CUDA_LIBRARY = "libconv_ext_cuda.so"
# Code that runs on compute capability 9.0 alone, and is chosen there alone: compiled whatever else is asked for.
SM90_SOURCES = {"wgmma.cu"}
SM90_OPTION = "-gencode=arch=compute_90a,code=sm_90a"
# -ffp-contract=fast: a multiply and an add in the register tiles become one fused instruction where there is one.
# -Wno-maybe-uninitialized: GCC 12 warns of its own intrinsics (_mm512_undefined_ps).
KERNEL_FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -Wall -Wextra -Wno-maybe-uninitialized"
)
X86 = platform.machine() in ("x86_64", "AMD64")
if X86:  # GCC 12 moves 8 bytes through an MMX register, after which numbers of long double are not right
    KERNEL_FLAGS += " -mno-mmx"
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
# Every kernel library that there is, from the least instruction set to the most.
ISA_FLAGS = {"baseline": ""}
if X86:
    ISA_FLAGS |= {
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_bf16": f"{AVX512} -mavx512bf16",
        "amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
        "amx-emulated": f"{AVX512} -DCONV_EXT_AMX_EMULATED -O1",  # for tests alone
    }
# These differ from AVX-512 in the implicit matrix product alone, and take the other objects from there.
PASS_SOURCES = [name for name in KERNEL_SOURCES if name not in ("gemm/pairs.cpp", "library.cpp")]
SHARES_PASSES = {"avx512_bf16": "avx512", "amx": "avx512", "amx-emulated": "avx512"}
EMULATED = "amx-emulated"  # built by the tests that want it
# A kernel library that lacks a symbol is an error when it is linked, and not when it is loaded. The linkers of Linux
# have to be told; macOS's does so by itself and has no such option.
LINK_COMPLETE = "-Wl,-z,defs" if sys.platform.startswith("linux") else ""
# Flags of /proc/cpuinfo that a processor has to have, beside those of the sets before.
CPU_FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}


def source_digest(paths=None) -> str:
    """A digest of everything that is compiled, by which an import finds out that a checkout's binary is stale."""
    digest = hashlib.sha256()
    for path in sorted(paths or (ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def kernel_record() -> dict:
    """Of what the kernel libraries are built, which lies beside them: the plan of CUDA is no part of it."""
    paths = [*(ROOT / "csrc" / "common").rglob("*"), *CPU.rglob("*")]
    return {"sources": source_digest(paths), "flags": KERNEL_FLAGS, "isas": ISA_FLAGS}


def chosen_isas() -> list[str]:
    """CONV_EXT_ISAS=all|native|NAME,NAME: the kernel libraries to build; native: the best that this processor runs."""
    choice, every = os.environ.get("CONV_EXT_ISAS", "all"), [isa for isa in ISA_FLAGS if isa != EMULATED]
    if choice == "all":
        return every
    if choice == "native":
        known = Path("/proc/cpuinfo")
        found = re.search(r"^flags\s*:(.*)$", known.read_text(), re.MULTILINE) if known.exists() else None
        flags, best = set(found[1].split()) if found else set(), "baseline"
        for isa in every[1:]:
            if not CPU_FLAGS[isa] <= flags:
                break
            best = isa
        return [best]
    names = [name.strip() for name in choice.split(",")]
    if not set(names) <= set(ISA_FLAGS):
        sys.exit(f"CONV_EXT_ISAS must be all, native or names of {', '.join(ISA_FLAGS)}, got {choice!r}")
    return [isa for isa in ISA_FLAGS if isa in names]


def takes_prebuilt() -> bool:
    """CONV_EXT_PREBUILT=1: libraries of kernels that lie there, built elsewhere of the same sources, are not built."""
    choice = os.environ.get("CONV_EXT_PREBUILT", "0")
    if choice not in ("0", "1"):
        sys.exit(f"CONV_EXT_PREBUILT must be 0 or 1, got {choice!r}")
    return choice == "1"


def compile_jobs() -> int:
    """As many compilers at once as there are cores, MAX_JOBS if that is set, and 1.5 GiB of free memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
    jobs = int(os.environ.get("MAX_JOBS") or cores or 1)
    known = os.path.exists("/proc/meminfo")
    memory = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()) if known else None
    return max(1, min(jobs, int(memory[1]) // (3 << 19) if memory else 1))


def wants_cuda() -> bool:
    """CONV_EXT_CUDA=auto|0|1. Whether a GPU is there does not matter: a build machine may have none."""
    choice = os.environ.get("CONV_EXT_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"CONV_EXT_CUDA must be auto, 0 or 1, got {choice!r}")
    possible = torch.version.cuda is not None and shutil.which("nvcc") is not None
    if choice == "1":
        if not CUDA_SOURCES:
            sys.exit("CONV_EXT_CUDA=1, but this version has no CUDA kernels (csrc/cuda holds none)")
        if not possible:
            sys.exit(
                "CONV_EXT_CUDA=1 needs a CUDA build of torch and nvcc on the PATH: "
                f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, nvcc is at {shutil.which('nvcc')}"
            )
    return choice != "0" and bool(CUDA_SOURCES) and possible


def cuda_architectures() -> list[str]:
    """nvcc's options for TORCH_CUDA_ARCH_LIST ("8.0 9.0+PTX"), or for a list that serves sm_75 and everything later."""
    options = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", "7.5 8.0+PTX 8.6 8.9 9.0+PTX").replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", name)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST must list versions such as 8.0 or 9.0+PTX, got {name!r}")
        number = match[1] + match[2]
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if match[3] else [])
        options += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return options


def prebuilt_cuda_library() -> tuple[Path, list[str]] | None:
    """What `make gpu-runner` has built of these sources, and for what, where that serves TORCH_CUDA_ARCH_LIST."""
    sys.path.insert(0, str(ROOT))
    from bench import gpu_runner

    library, there = gpu_runner.library(), gpu_runner.record().get("architectures", [])
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    fits = all(gpu_runner.serves(there, capability) for capability in re.findall(r"\d+\.\d+", asked))
    return (library, [f"sm_{name}" for name in there]) if library and fits and "+PTX" not in asked else None


def build_cuda_library(build: Path, target: Path) -> list[str]:
    """Compiles csrc/cuda into libconv_ext_cuda.so in `build`, which the operators open, and copies it to `target`.

    Returns what it is compiled for.
    """
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.", version)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        sys.exit(
            f"torch {torch.__version__} runs on CUDA {torch.version.cuda}, but nvcc is of release "
            f"{release[1] if release else 'unknown'}: put a toolkit of the same major version on the PATH, "
            "or set CONV_EXT_CUDA=0"
        )
    build.mkdir(parents=True, exist_ok=True)
    if takes_prebuilt() and (prebuilt := prebuilt_cuda_library()):
        install_library(prebuilt[0], build)
        install_library(prebuilt[0], target)
        return prebuilt[1]
    objects = [f"{source.name}.o" for source in CUDA_SOURCES]
    lines = [
        f"nvcc = {shlex.quote(shutil.which('nvcc')).replace('$', '$$')}",
        f"targets = {' '.join(cuda_architectures())}",
        "rule compile",
        "  command = $nvcc -MMD -MF $out.d -std=c++20 -O3 -Xcompiler -fPIC $targets -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $out",
        # nvcc links with its toolkit's libcudart.so. At run time `import torch` has loaded the one of torch's wheel
        # (nvidia/cu13/lib or nvidia/cuda_runtime/lib in site-packages) before conv_ext is imported: the loader takes
        # a library that is loaded under the soname it looks for (libcudart.so.13): no rpath has to lead there.
        "rule link",
        "  command = $nvcc -shared -cudart shared -Xlinker -z -Xlinker defs $in -o $out",
        *(
            f"build {o}: compile {ninja_path(source)}"
            + (f"\n  targets = {SM90_OPTION}" if source.name in SM90_SOURCES else "")
            for o, source in zip(objects, CUDA_SOURCES)
        ),
        f"build {CUDA_LIBRARY}: link {' '.join(objects)}",
    ]
    path, text = build / "build.ninja", "\n".join(lines) + "\n"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    subprocess.run(["ninja", "-C", str(build), "-j", os.environ["MAX_JOBS"]], check=True)
    install_library(build / CUDA_LIBRARY, target)
    return [option.rsplit("code=", 1)[1] for option in cuda_architectures()]


def install_library(library: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    copy = target / library.name
    if not copy.exists() or copy.read_bytes() != library.read_bytes():
        # Replaced as a whole: a process that has the old file open keeps it.
        fresh = copy.with_suffix(".new")
        shutil.copy2(library, fresh)
        fresh.replace(copy)


def ninja_path(path: Path) -> str:
    """A path as a ninja file's build line has it; in the commands ninja itself quotes it for the shell."""
    return re.sub(r"([$ :])", r"$\1", path.as_posix())


def compiler_words() -> list[str]:
    """The compiler's command: all words of CXX ("ccache g++"), else the program that compiled Python, else c++."""
    words = shlex.split(os.environ.get("CXX", "")) or shlex.split(sysconfig.get_config_var("CXX") or "g++")[:1]
    return words if shutil.which(words[0]) else ["c++"]


def ninja_file(build: Path) -> str:
    """The build of the kernel libraries: every source once per instruction set, by name what was not chosen."""
    lines = [
        f"cxx = {shlex.join(compiler_words()).replace('$', '$$')}",
        f"flags = {KERNEL_FLAGS}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags $isa -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $out",
        "rule link",
        f"  command = $cxx -shared {LINK_COMPLETE} $in -o $out",
        "  description = linking $out",
    ]
    for isa, flags in ISA_FLAGS.items():
        objects = []
        for source in KERNEL_SOURCES:
            shared = SHARES_PASSES.get(isa) if source in PASS_SOURCES else None
            objects.append(f"{shared or isa}/{source}.o")
            if shared:
                continue
            lines += [f"build {objects[-1]}: compile {ninja_path(CPU / source)}", f"  isa = {flags}"]
        lines.append(f"build libconv_ext_{isa}.so: link {' '.join(objects)}")
    lines.append("default " + " ".join(f"libconv_ext_{isa}.so" for isa in chosen_isas()))
    return "\n".join(lines) + "\n"


def find_ninja() -> None:
    """Puts the scripts of this Python on the PATH, where pip has put ninja: its environment need not be activated."""
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    if shutil.which("ninja") is None:
        sys.exit(f"conv_ext is built by ninja, which is not there: {sys.executable} -m pip install ninja")


def missing_torch() -> str:
    """Why there is nothing to build against, and what to do about it."""
    isolated = re.search(r"[/\\](pip-build-env|build-env|builds-v\d)", "\n".join([sys.prefix, *sys.path]))
    if isolated:
        where = (
            "this build runs in an environment that pip (or build, or uv) made for it, which has no torch, whatever "
            "the environment has that you install into.\nBuild without that isolation, where torch is:"
        )
    else:
        where = f"{sys.executable} has none ({NO_TORCH}).\nInstall it first, then build without isolation:"
    return (
        f"conv_ext is compiled against the torch that it will run with, and {where}\n"
        f"    python -m pip install '{TORCH}' 'setuptools>=77' ninja\n"
        "    python -m pip install --no-build-isolation ."
    )


def openmp_flags() -> list[str]:
    """OpenMP when compiling alone: torch's own run-time library, loaded already, provides the symbols."""
    if sys.platform != "darwin":
        return ["-fopenmp"]
    # Apple's compiler has no header of it; where torch brings none either, a call computes on one thread.
    return ["-Xpreprocessor", "-fopenmp"] if (Path(torch.__file__).parent / "include" / "omp.h").is_file() else []


def fast_road() -> str:
    """The name of the module for the running torch, as conv_ext/_C.py looks for it."""
    version = torch.__version__.partition("+")[0] if torch else "any"
    return f"conv_ext._fast_{version.replace('.', '_')}"


def extensions() -> list:
    """The library of the operators, and the fast road."""
    flags = ["-std=c++20", "-O2", "-fvisibility=hidden", "-g0", "-Wall"]
    darwin = sys.platform == "darwin"
    name = ["-Wl,-install_name,@rpath/libconv_ext_operators.so"] if darwin else ["-Wl,-soname,libconv_ext_operators.so"]
    target = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
    operators = CppExtension(
        OPERATORS, OPERATORS_SOURCES, extra_compile_args=[*flags, target], extra_link_args=["-ldl", *name]
    )
    if torch is not None:
        operators.libraries = ["torch_cpu"]  # where the stable interface is
    beside = "@loader_path" if darwin else "$ORIGIN"
    module = CppExtension(
        fast_road(),
        FAST_SOURCES,
        libraries=["conv_ext_operators"],
        extra_compile_args=list(flags),
        extra_link_args=[f"-Wl,-rpath,{beside}"],
    )
    return [operators, module]


def take_fast_roads(package: Path) -> None:
    """CONV_EXT_FAST_FROM="WHEEL ...": the fast roads of wheels that other Pythons and torches made of these sources."""
    for wheel in map(Path, shlex.split(os.environ.get("CONV_EXT_FAST_FROM", ""))):
        if not wheel.is_file():
            sys.exit(f"CONV_EXT_FAST_FROM names {wheel}, which is no file")
        with zipfile.ZipFile(wheel) as file:
            if json.loads(file.read("conv_ext/_build.json"))["sources"] != source_digest():
                sys.exit(f"CONV_EXT_FAST_FROM names {wheel}, which was made of other sources")
            for name in file.namelist():
                if re.fullmatch(r"conv_ext/_fast_[^/]*\.so", name):
                    (package / name.rpartition("/")[2]).write_bytes(file.read(name))


class Build(BuildExtension):
    """Builds the kernel libraries first, then the operators and the fast road, and writes down what it built with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if torch is not None:  # BuildExtension's own ninja file escapes spaces alone
            self.use_ninja = self.use_ninja and not set(":$") & set(str(ROOT))

    def finalize_options(self):
        super().finalize_options()
        if torch is not None:
            # A place that stays, also for editable installs: what is up to date is not compiled again.
            version = f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
            self.build_temp = str(ROOT / "build" / version)

    def get_ext_filename(self, ext_name):
        if ext_name.split(".")[-1] == OPERATORS.split(".")[-1]:  # no module: without the name of a Python
            return f"{ext_name.replace('.', os.sep)}.so"
        return super().get_ext_filename(ext_name)

    def build_extensions(self):
        operators, module = self.extensions
        module.library_dirs.append(str(Path(self.get_ext_fullpath(operators.name)).parent))
        super().build_extensions()

    def run(self):
        if torch is None:
            sys.exit(missing_torch())
        if not self.inplace and EMULATED in chosen_isas():
            sys.exit(f"{EMULATED} is for the tests of a checkout: leave it out of CONV_EXT_ISAS for what is installed")
        find_ninja()
        os.environ["MAX_JOBS"] = str(compile_jobs())
        package = Path(self.get_ext_fullpath(fast_road())).resolve().parent
        for stale in [*package.glob("_C.*.so"), *package.glob("_fast_*.so")]:
            stale.unlink()  # of other sources, or of another torch or Python
        self.build_kernel_libraries(package / "lib")
        architectures: list[str] = []
        for extension in self.extensions:
            extension.extra_compile_args += openmp_flags()
        if wants_cuda():
            architectures = build_cuda_library(ROOT / "build" / "cuda", package / "lib")
            major = torch.version.cuda.split(".")[0]
            self.extensions[0].define_macros.append(("CONV_EXT_CUDART", f'"libcudart.so.{major}"'))
        else:
            (package / "lib" / CUDA_LIBRARY).unlink(missing_ok=True)  # of a build before this one
        names = ("cuda", "cuda_library") if wants_cuda() else ("without_cuda",)
        self.extensions[0].sources += [f"csrc/torch/{name}.cpp" for name in names]
        super().run()
        take_fast_roads(package)
        record = {
            "torch": torch.__version__,
            "python": sys.implementation.cache_tag,
            "cuda": wants_cuda(),
            "cuda_version": torch.version.cuda if wants_cuda() else None,
            "cuda_architectures": architectures,
            "sources": source_digest(),
            "isas": chosen_isas(),
        }
        (package / "_build.json").write_text(json.dumps(record, indent=2) + "\n")

    def build_kernel_libraries(self, target: Path):
        record, libraries = target / "sources.json", [f"libconv_ext_{isa}.so" for isa in chosen_isas()]
        for library in {path.name for path in target.glob("libconv_ext_*.so")} - {*libraries, CUDA_LIBRARY}:
            (target / library).unlink()  # of another choice, and perhaps of other sources
        there = record.is_file() and all((target / name).is_file() for name in libraries)
        if takes_prebuilt() and there and json.loads(record.read_text()) == kernel_record():
            return
        build = ROOT / "build" / "kernels"
        build.mkdir(parents=True, exist_ok=True)
        text, path = ninja_file(build), build / "build.ninja"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        subprocess.run(["ninja", "-C", str(build), "-j", os.environ["MAX_JOBS"]], check=True)
        for name in libraries:
            install_library(build / name, target)
        record.write_text(json.dumps(kernel_record()) + "\n")


def long_description() -> str:
    """The README for an index page, where links into the checkout lead nowhere: their words stay, pictures go."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"\((?![a-z]+:)[^()]*\)"
    text = re.sub(rf"^!\[[^]]*\]{relative}\n+", "", text, flags=re.MULTILINE)
    return re.sub(rf"\[([^]]*)\]{relative}", r"\1", text)


def required_torch() -> str:
    """What the operators run with: their binary is the same for every version from there on."""
    return f"torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"


class Wheel(bdist_wheel):
    """One wheel for every Python: what is for one version of it, the fast road, is optional."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    install_requires=[required_torch()],
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
