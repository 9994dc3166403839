"""What `import conv_ext` costs on top of torch: nothing heavy; and what it finds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import conv_ext
from children import run_python
from conv_ext import _by_dispatcher

# What an import of torch alone leaves out, and what is slow to load.
HEAVY = (
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "torch.distributed.tensor",
    "torch.onnx._internal.exporter",
    "onnx",
    "onnxscript",
    "matplotlib",
    "sklearn",
    "tqdm",
    *(f"conv_ext.{name}" for name in ("demo", "inductor", "models", "onnx", "visualize")),
)

SCRIPT = """
import sys
import torch

before = set(sys.modules)
import conv_ext

print(sorted(set(sys.modules) - before))
x = torch.randn(1, 2, 5, 5, requires_grad=True)
layer = conv_ext.convert(torch.nn.Conv2d(2, 3, 3))
layer(x).sum().backward()
print(sorted(set(sys.modules) - before))
"""


def test_import_and_first_step_load_nothing_heavy():
    child = run_python("-c", SCRIPT)
    assert child.returncode == 0, child.stderr
    imported, after_a_step = child.stdout.splitlines()
    assert "'conv_ext.settings'" in imported
    assert not [name for name in HEAVY if f"'{name}'" in imported + after_a_step]
    # What counts is the number of modules: each is a look at some folders, and a file.
    ours, others = [], []
    for name in ast.literal_eval(imported):
        (ours if name.startswith("conv_ext") else others).append(name)
    assert len(ours) <= 40 and len(others) <= 10, (ours, others)


# ---- a package that is damaged


@pytest.fixture
def copied(tmp_path):
    """The package as it is installed, but for its kernels; and what a process says that imports it."""
    package = Path(conv_ext.__file__).parent
    shutil.copytree(package, tmp_path / "conv_ext", ignore=shutil.ignore_patterns("lib", "_fast_*", "__pycache__"))

    def said(script="import conv_ext", **environment):
        words = [sys.executable, "-c", script]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CONV_EXT_ISA": "", **environment}
        child = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
        return child.stdout + child.stderr

    return tmp_path / "conv_ext", said


def test_a_package_without_kernels_says_what_to_do(copied):
    folder, said = copied
    text = said()
    assert f"ImportError: conv_ext has no kernel library for this processor in {folder}/lib: it looks for" in text
    assert "Install the wheel again, or build from the source distribution:" in text


def test_a_fast_road_that_does_not_load_is_left_out_and_info_says_why(copied):
    folder, said = copied
    with_kernels(folder)
    (folder / f"{conv_ext._C.FAST_NAME}{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    script = "import sys, conv_ext.__main__ as m; sys.exit(m.main(['info']))"
    assert re.search(r"fast_road +no: it does not load: .*_fast_.*file too short", said(script))
    assert re.search(r"fast_road +no: CONV_EXT_FAST_ROAD=0\n", said(script, CONV_EXT_FAST_ROAD="0"))
    (folder / f"{conv_ext._C.FAST_NAME}{EXTENSION_SUFFIXES[0]}").unlink()
    running = f"(torch {torch.__version__}, {sys.implementation.cache_tag})"
    assert f"no: this build has none for what is running {running}" in said(script, CONV_EXT_FAST_ROAD="")


def cut(file, share):
    """As a disk that is full, or a copy that broke off, leaves it."""
    data = file.read_bytes()
    file.write_bytes(data[: min(len(data) - 1, int(len(data) * share))])
    return file.stat().st_size, len(data)


def with_kernels(folder):
    isa = conv_ext.library.available_isas()[-1]
    (folder / "lib").mkdir()
    return Path(shutil.copy(Path(conv_ext.__file__).parent / "lib" / f"libconv_ext_{isa}.so", folder / "lib"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs ELF files")
@pytest.mark.parametrize("part, share", [("libconv_ext_operators.so", 0.5), ("kernels", 0.01), ("kernels", 1.0)])
def test_a_library_that_was_cut_short_is_an_error_and_no_end_of_the_process(copied, part, share):
    """The loader would map it, and touching what is missing is SIGBUS."""
    folder, said = copied
    kernels = with_kernels(folder)
    file = kernels if part == "kernels" else folder / part
    size, whole = cut(file, share)
    text = said()
    lacks = int(
        re.search(rf"ImportError: .*{re.escape(str(file))}(?: is cut short: it)? lacks its last (\d+) bytes", text)[1]
    )
    assert whole - 64 <= size + lacks <= whole and "is cut short" in text
    assert "Install the wheel again, or build from the source distribution:" in text
    if share == 1:  # the advice is the same where they were named
        assert "Install the wheel again" in said(CONV_EXT_ISA=conv_ext.library.available_isas()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="needs ELF files")
def test_a_fast_road_that_was_cut_short_is_left_out(copied):
    folder, said = copied
    with_kernels(folder)
    if not conv_ext._C.HAS_FAST_ROAD:
        pytest.skip("no fast road for this torch and Python")
    cut(Path(shutil.copy(sys.modules[f"conv_ext.{conv_ext._C.FAST_NAME}"].__file__, folder)), 0.5)
    script = "import sys, conv_ext.__main__ as m; sys.exit(m.main(['info']))"
    assert re.search(
        r"fast_road +no: it does not load: .*_fast_.* is cut short: it lacks its last \d+ bytes", said(script)
    )


def test_whole_libraries_lack_nothing(tmp_path):
    package = Path(conv_ext.__file__).parent
    for file in [*package.glob("*.so"), *package.glob("lib/*.so"), *(Path(torch.__file__).parent / "lib").glob("*.so")]:
        assert conv_ext._C._missing_bytes(file) == 0, file
    for text in (b"", b"\x7fELF", b"\x7fELF\2\1", b"no ELF file " * 10):  # the loader says what they are
        (tmp_path / "a.so").write_bytes(text)
        assert conv_ext._C._missing_bytes(tmp_path / "a.so") == 0


@pytest.mark.parametrize("text, words", [
    ("", "cannot be read: Expecting value"),
    ('{"torch": ', "cannot be read: "),
    ("{}", "does not say torch, python, cuda, sources, isas of the build"),
    ("[]", "does not say torch"),
])  # fmt: skip
def test_a_damaged_record_of_the_build(tmp_path, text, words):
    (tmp_path / "_build.json").write_text(text)
    with pytest.raises(ImportError, match=words) as error:
        conv_ext.library._record(tmp_path / "_build.json")
    assert "-m pip install --no-build-isolation" in str(error.value)


def test_a_package_in_an_archive_says_that_it_cannot_be_loaded(tmp_path):
    package = Path(conv_ext.__file__).parent
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for file in package.glob("*.py"):
            archive.write(file, f"conv_ext/{file.name}")
        archive.write(package / "_build.json", "conv_ext/_build.json")
    environment, words = (
        {**os.environ, "PYTHONPATH": str(tmp_path / "app.zip")},
        [sys.executable, "-c", "import conv_ext"],
    )
    child = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(
        r"ImportError: conv_ext at .*app\.zip/conv_ext lies in an archive, .*: unpack it, or", child.stderr
    )


def test_what_is_loaded_later_is_an_attribute_of_the_package():
    """Where nothing else has imported it."""
    script = "import conv_ext; print('models' in dir(conv_ext), conv_ext.models.vgg16.__name__, conv_ext.no_such_name)"
    others = run_python("-c", "import conv_ext as c; print(c.visualize.filters, c.onnx.translation_table, c.inductor)")
    assert others.returncode == 0, others.stderr
    child = run_python("-c", script)
    assert "AttributeError: module 'conv_ext' has no attribute 'no_such_name'" in child.stderr
    child = run_python("-c", script.replace(", conv_ext.no_such_name", ""))
    assert child.stdout.split() == ["True", "vgg16"], child.stderr


@pytest.mark.parametrize("name", ["torch._dynamo", "sympy"])
def test_the_list_above_names_modules_that_compiling_loads(name):
    """Were one of them renamed, the test above could not fail any more."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert name in sys.modules


def test_the_stub_of_the_fast_road_says_what_is_there():
    """And its stand-in has the same."""
    stub = ast.parse(Path(conv_ext.__file__).with_name("_fast.pyi").read_text())
    named = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    members = {node.targets[0].id: node.value.value for node in named["Road"].body if isinstance(node, ast.Assign)}
    assert members == {road.name: road.value for road in conv_ext._C.Road}
    assert members == {road.name: road.value for road in _by_dispatcher.Road}
    assert all(callable(getattr(_by_dispatcher, name)) for name in named)
    if conv_ext._C.HAS_FAST_ROAD:
        module = sys.modules[f"conv_ext.{conv_ext._C.FAST_NAME}"]
        assert set(named) == {name for name in vars(module) if not name.startswith("__")}
