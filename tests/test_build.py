"""The build: compilers of several words, and checkouts whose path has characters that a ninja file reads otherwise."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The functions of setup.py in a checkout of that name, with sources that want CONV_EXT_WORD to be defined."""
    if not SETUP.is_file() or shutil.which("ninja") is None:
        pytest.skip("needs setup.py and ninja")

    def make(name, compiler):
        root = tmp_path / name
        (root / "csrc" / "cpu").mkdir(parents=True)
        shutil.copy(SETUP, root)
        monkeypatch.setattr("setuptools.setup", lambda **_: None)
        monkeypatch.setenv("CXX", compiler) if compiler else monkeypatch.delenv("CXX", raising=False)
        functions = runpy.run_path(str(root / "setup.py"))
        (root / "csrc" / "cpu" / "simple.h").write_text("extern int answer;\n")
        for source in functions["KERNEL_SOURCES"]:
            lines = '#include "simple.h"', "#ifndef CONV_EXT_WORD", "#error", "#endif", "int answer = CONV_EXT_WORD;"
            (root / "csrc" / "cpu" / source).write_text("\n".join(lines) + "\n")
        return root, functions

    return make


@pytest.mark.parametrize("name", ["plain", "a b", "a:b", "a$b", "$in:a$$ b'c"])
def test_odd_paths_and_a_compiler_of_several_words(built, name):
    compiler = f"env CONV_EXT_ODD='a $b' {shutil.which('c++')} -DCONV_EXT_WORD=42"
    root, functions = built(name, compiler)
    assert functions["compiler_words"]()[:2] == ["env", "CONV_EXT_ODD=a $b"]
    folder = root / "build"
    folder.mkdir()
    (folder / "build.ninja").write_text(functions["ninja_file"](folder))
    target = "baseline/forward.cpp.o"
    for said in ("compiling", "no work to do"):  # the second time it has to understand what the compiler read
        run = subprocess.run(["ninja", "-C", str(folder), target], capture_output=True, text=True)
        assert run.returncode == 0 and said in run.stdout, run.stdout + run.stderr
    os.utime(root / "csrc" / "cpu" / "simple.h")
    run = subprocess.run(["ninja", "-C", str(folder), "-n", target], capture_output=True, text=True)
    assert "compiling" in run.stdout, run.stdout


@pytest.mark.parametrize("compiler, words", [
    ("g++", ["g++"]), ("env g++ -m64", ["env", "g++", "-m64"]), ("no-such-compiler -m64", ["c++"]), ("", None)
])  # fmt: skip
def test_the_compilers_words(built, compiler, words):
    found = built("plain", compiler)[1]["compiler_words"]()
    assert found == words if words else len(found) == 1 and shutil.which(found[0])
