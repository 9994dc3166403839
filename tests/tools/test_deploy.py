"""The operators without Python: their library, the choice of its kernels, and the program of docs/deploy/cpp."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from conv_ext.library import ISAS, available_isas

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(conv_ext.__file__).parent
OPERATORS = PACKAGE / "libconv_ext_operators.so"
EXAMPLE = ROOT / "docs" / "deploy" / "cpp"
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (of binutils)")


def readelf(*words):
    return subprocess.run(["readelf", "-W", *map(str, words)], capture_output=True, text=True, check=True).stdout


@needs_readelf
def test_the_library_knows_nothing_of_python_and_only_torchs_stable_interface():
    """Of torch C functions alone, those that promise to stay; neither classes of at:: and c10:: nor Python's."""
    rows = [line.split() for line in readelf("--dyn-syms", OPERATORS).splitlines()[4:] if len(line.split()) > 7]
    wanted = {row[7].partition("@")[0] for row in rows if row[6] == "UND"}
    given = {row[7] for row in rows if row[6] != "UND"}
    stable = {name for name in wanted if re.match(r"(aoti_)?torch_|aoti_", name)}
    assert len(stable) > 30 and any("conv_ext" in name for name in given)
    assert not [
        n for n in wanted - stable if re.search(r"_?Py[A-Z_]|pybind11|THP|(2at|3c10|5torch)[0-9L]|_ZN.*torch", n)
    ]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", OPERATORS))
    assert {name for name in needed if re.match("lib(torch|c10|python)", name)} == {"libtorch_cpu.so"}


@needs_readelf
@pytest.mark.skipif(not conv_ext._C.HAS_FAST_ROAD, reason="no fast road for this torch and Python")
def test_the_fast_road_is_linked_with_that_library_and_has_no_operators_of_its_own():
    module = sys.modules[f"conv_ext.{conv_ext._C.FAST_NAME}"].__file__
    assert OPERATORS.name in re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", module))
    defined = [line for line in readelf("--dyn-syms", module).splitlines() if "run_cpu" in line]
    assert len(defined) == 1 and " UND " in defined[0]


CALL = """
import sys, torch
torch.ops.load_library(sys.argv[1])
assert "conv_ext" not in sys.modules
x, w = torch.arange(240.).view(2, 3, 5, 8) % 7, torch.arange(108.).view(4, 3, 3, 3) % 5
y = torch.ops.conv_ext.forward(x, w, None, [1, 1], [1, 1, 1, 1], [1, 1], 1)
assert torch.equal(y, torch.conv2d(x, w, padding=1)), "integers are exact"
dx = torch.ops.conv_ext.input_grad(y, w, [5, 8], [1, 1], [1, 1, 1, 1], [1, 1], 1)
dw = torch.ops.conv_ext.weight_grad(y, x, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1)
print(dx.shape, dw.shape)
"""


def call(library, folder, **environment):
    """A call of the operators by load_library alone, in a process that cannot import the package."""
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    words = [sys.executable, "-P", "-c", CALL] if sys.version_info >= (3, 11) else [sys.executable, "-c", CALL]
    return subprocess.run([*words, library], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["", *available_isas()])
def test_the_operators_find_their_kernels(tmp_path, isa):
    done = call(OPERATORS, tmp_path, CONV_EXT_ISA=isa)
    assert done.returncode == 0 and "[2, 3, 5, 8]) torch.Size([4, 3, 3, 3])" in done.stdout, done.stderr


def test_a_package_that_was_moved_finds_its_own(tmp_path):
    """By the place of the library, not by the folder that it was built in, also through a link."""
    moved = tmp_path / "elsewhere" / "conv_ext"
    moved.mkdir(parents=True)
    shutil.copy(OPERATORS, moved)
    done = call(moved / OPERATORS.name, tmp_path)
    assert done.returncode != 0 and f"conv_ext has no kernel library for this processor in {moved}/lib" in done.stderr
    (moved / "lib").mkdir()
    isa = available_isas()[-1]
    shutil.copy(PACKAGE / "lib" / f"libconv_ext_{isa}.so", moved / "lib")
    assert call(moved / OPERATORS.name, tmp_path).returncode == 0
    (tmp_path / "link.so").symlink_to(moved / OPERATORS.name)
    assert call(tmp_path / "link.so", tmp_path).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs ELF files")
def test_kernels_that_were_cut_short_are_an_error_of_the_call(tmp_path):
    (tmp_path / "lib").mkdir()
    shutil.copy(OPERATORS, tmp_path)
    kernels = shutil.copy(PACKAGE / "lib" / f"libconv_ext_{available_isas()[-1]}.so", tmp_path / "lib")
    os.truncate(kernels, os.path.getsize(kernels) // 2)
    done = call(tmp_path / OPERATORS.name, tmp_path)
    assert done.returncode == 1 and f"the kernel library is cut short: {kernels} lacks its last" in done.stderr


def test_a_wrong_choice_is_an_error_of_the_call(tmp_path):
    done = call(OPERATORS, tmp_path, CONV_EXT_ISA="avx1024")
    assert done.returncode != 0 and f"CONV_EXT_ISA must be one of {', '.join(ISAS)}, got 'avx1024'" in done.stderr
    for missing in set(ISAS) - set(available_isas()):
        done = call(OPERATORS, tmp_path, CONV_EXT_ISA=missing)
        assert done.returncode != 0 and re.search(
            rf"CONV_EXT_ISA={missing} is not possible: .*available: ", done.stderr
        )


def test_the_package_joins_a_library_that_is_loaded(tmp_path):
    """One process may do both, in either order: the operators are registered once."""
    lines = [f"torch.ops.load_library({str(OPERATORS)!r})", "import conv_ext"]
    for first, then in (lines, lines[::-1]):
        script = (
            f"import torch\n{first}\n{then}\nprint(conv_ext.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)))"
        )
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        words = [sys.executable, "-c", script]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "9." in done.stdout, done.stderr


def test_another_copy_of_the_operators_is_an_error_of_the_import(tmp_path):
    """Torch registers them once, and would end the process over a second."""
    copy = shutil.copy(OPERATORS, tmp_path)
    script = f"import torch\ntorch.ops.load_library({str(copy)!r})\nimport conv_ext"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"has loaded another copy of its operators, {copy}, and torch takes one" in done.stderr
    assert done.returncode == 1 and "ImportError: conv_ext at " in done.stderr


def test_the_programs_type_of_the_operator_is_its_schema():
    """torch compares neither where a kernel is behind the stable interface: what is missing is read from elsewhere."""
    types = {
        "Tensor": "const at::Tensor&", "Optional[Tensor]": "const std::optional<at::Tensor>&",
        "str": "std::string_view", "List[int]": "c10::SymIntArrayRef", "int": "c10::SymInt", "float": "double",
    }  # fmt: skip
    wanted = [types[str(argument.type)] for argument in torch.ops.conv_ext.forward.default._schema.arguments]
    text = (EXAMPLE / "deploy.cpp").read_text()
    written = re.search(r"using Forward =\s+at::Tensor\(([^()]*)\);", text)[1]
    assert [" ".join(part.split()) for part in written.split(",")] == wanted
    given = re.search(r"found\.call\(([^()]*)\)", text)[1]
    assert len(given.split(",")) == len(wanted)


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_a_program_without_python_runs_a_network(tmp_path):
    """Compiled against the libtorch of the running torch: an AOTInductor package, a trace, and the bare operator."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    words = [sys.executable, EXAMPLE / "export.py", tmp_path, "lenet5"]
    made = subprocess.run([*map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout.strip() == str(OPERATORS), made.stderr
    build = tmp_path / "build"
    for words in (
        ["cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run([*map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    inputs = [tmp_path / name for name in ("package.pt2", "trace.pt", "example.pt")]
    for isa in ("", available_isas()[-1]):
        words = [build / "deploy", OPERATORS, *inputs]
        without = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run([*map(str, words)], env={**without, "CONV_EXT_ISA": isa}, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count("largest difference") == 3, done.stdout + done.stderr
    done = subprocess.run([build / "deploy", tmp_path / "no.so", *inputs], capture_output=True, text=True)
    assert done.returncode == 1 and "no.so" in done.stderr
