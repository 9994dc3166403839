"""The layers above the CUDA kernels, end to end without a GPU: the GPU's own tests on a device in host memory.

The real binding (csrc/torch/cuda.cpp) is linked with tests/cuda_host/host_device.cpp into operators of its own, beside
the real fast road, and a process with them runs the tests that are marked for a GPU, but for those of streams, graphs
and the kernels.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from conv_ext.library import BUILD, PACKAGE

TESTS = Path(__file__).resolve().parents[1]
SOURCES, HOST = TESTS.parent / "csrc", TESTS / "cuda_host"
OBJECTS = TESTS.parent / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}" / "csrc"
FILES = (
    "cuda/test_gpu_layer.py", "python/test_autograd.py", "python/test_subsystems.py", "python/test_convert.py",
    "python/test_modules.py",
)  # fmt: skip
# What host memory has not: streams, graphs, a limit of its size, copies of storages.
BEYOND = (
    "stream graph beyond two_gpus data_parallel memory_stays out_of_memory copies there_and_back hooks_and "
    "parametrized_layers inference_mode compile"
).split()
LIMIT = 600
OTHERS = ("cuda", "cuda_library", "without_cuda", "fastcall")  # objects that are not in these operators

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own"),
    pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="leans on the insides of torch 2.13"),
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library"),
    pytest.mark.skipif(not OBJECTS.is_dir() or PACKAGE.parent != SOURCES.parent, reason="no build in this checkout"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with conv_ext on the device in host memory, and the library to preload."""
    folder, torch_folder = tmp_path_factory.mktemp("device"), Path(torch.__file__).parent
    compiler = os.environ.get("CXX", "g++")
    include = [f"-isystem{torch_folder}/include", f"-isystem{torch_folder}/include/torch/csrc/api/include"]
    flags = ["-std=c++20", "-O0", "-g0", "-Wall", "-fPIC", "-fopenmp", "-fvisibility=hidden", *include]
    libraries = [f"-L{torch_folder}/lib", "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-ldl"]

    def compiled(*arguments):
        done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr

    every = [path for path in OBJECTS.rglob("*.o") if path.stem not in OTHERS]
    # Of sources that are still there: the folder keeps objects of others.
    objects = [o for o in every if (SOURCES / o.relative_to(OBJECTS)).with_suffix(".cpp").is_file()]
    for source in (SOURCES / "torch" / "cuda.cpp", HOST / "host_device.cpp"):
        objects.append(folder / f"{source.stem}.o")
        compiled(*flags, "-c", source, "-o", objects[-1])
    preloaded = folder / "libtorch_cuda.so"  # as torch's own is called
    compiled(*flags, "-shared", HOST / "host_hooks.cpp", "-o", preloaded, f"-Wl,-soname,{preloaded.name}", *libraries)

    def ours(_, names):
        return [name for name in names if name in ("__pycache__", "lib") or Path(name).suffix in (".so", ".json")]

    shutil.copytree(PACKAGE, folder / "conv_ext", ignore=ours)
    (folder / "conv_ext" / "lib").symlink_to(PACKAGE / "lib")
    name = conv_ext._C.OPERATORS.name
    compiled("-shared", *objects, "-o", folder / "conv_ext" / name, f"-Wl,-soname,{name}", *libraries)
    (fast_road,) = PACKAGE.glob(f"{conv_ext._C.FAST_NAME}.*")
    shutil.copy(fast_road, folder / "conv_ext")  # it finds the operators beside it
    record = {**BUILD, "cuda": True, "cuda_architectures": ["sm_90"]}
    (folder / "conv_ext" / "_build.json").write_text(json.dumps(record))
    return folder


def test_everything_above_the_kernels(package):
    path = os.pathsep.join([str(package), str(TESTS / "support"), str(HOST), str(TESTS.parent)])  # the last for bench
    environment = {
        **os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(package / "libtorch_cuda.so"),
        "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "host_device_plugin", "-p", "no:cacheprovider", "-m", "gpu",
         "-c", TESTS.parent / "pyproject.toml", "-k", f"not ({' or '.join(BEYOND)})",
         *(TESTS / name for name in FILES)],
        cwd=package, env=environment, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed > 500, done.stdout[-500:]
