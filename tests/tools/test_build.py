"""The build: compilers of several words, and checkouts whose path has characters that a ninja file reads otherwise."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_runner

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup.py"


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The functions of setup.py in a checkout of that name, with sources that want CONV_EXT_WORD to be defined."""
    if not SETUP.is_file() or shutil.which("ninja") is None:
        pytest.skip("needs setup.py and ninja")

    def make(name, compiler):
        root = tmp_path / name
        (root / "csrc" / "cpu" / "direct").mkdir(parents=True)
        (root / "csrc" / "cuda").mkdir()
        (root / "csrc" / "cpu" / "simple.h").write_text("extern int answer;\n")
        for source in ("forward.cpp", "plan.cpp", "direct/direct.cpp", "direct/plan.cpp"):
            lines = '#include "simple.h"', "#ifndef CONV_EXT_WORD", "#error", "#endif", "int answer = CONV_EXT_WORD;"
            (root / "csrc" / "cpu" / source).write_text("\n".join(lines) + "\n")
        shutil.copy(SETUP, root)
        shutil.copy(ROOT / "README.md", root)
        monkeypatch.setattr("setuptools.setup", lambda **_: None)
        monkeypatch.delenv("CONV_EXT_ISAS", raising=False)  # of a make that runs these tests
        monkeypatch.setenv("CXX", compiler) if compiler else monkeypatch.delenv("CXX", raising=False)
        functions = runpy.run_path(str(root / "setup.py"))
        assert functions["KERNEL_SOURCES"] == ["direct/direct.cpp", "forward.cpp"]
        assert functions["PLAN_SOURCES"] == ["csrc/cpu/direct/plan.cpp", "csrc/cpu/plan.cpp"]
        return root, functions

    return make


@pytest.mark.parametrize("name", ["plain", "a b", "a:b", "a$b", "a:b $in"])
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


def test_the_instruction_sets_that_are_built(built, monkeypatch):
    _, functions = built("plain", "")
    everyone = [isa for isa in functions["ISA_FLAGS"] if isa != "amx-emulated"]
    assert functions["chosen_isas"]() == everyone
    choices = {"all": everyone, "avx2,baseline": ["baseline", "avx2"], "amx-emulated": ["amx-emulated"]}
    for choice, isas in choices.items():
        monkeypatch.setenv("CONV_EXT_ISAS", choice)
        assert functions["chosen_isas"]() == isas
        assert functions["ninja_file"](Path("build")).endswith(
            "default " + " ".join(f"libconv_ext_{isa}.so" for isa in isas) + "\n"
        )
    monkeypatch.setenv("CONV_EXT_ISAS", "native")
    native = functions["chosen_isas"]()
    assert len(native) == 1 and native[0] in everyone
    for wrong in ("avx2,sse9", "", "All"):
        monkeypatch.setenv("CONV_EXT_ISAS", wrong)
        with pytest.raises(SystemExit, match=f"CONV_EXT_ISAS must be all, native or names of baseline.*got '{wrong}'"):
            functions["chosen_isas"]()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_last_choice_of_instruction_sets_holds_for_the_next_make(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "pyproject.toml", "csrc/a.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    outside = {"CONV_EXT_ISAS", "MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}
    environment = {key: value for key, value in os.environ.items() if key not in outside}
    (tmp_path / "python").write_text('#!/bin/sh\necho "built for $CONV_EXT_ISAS"\n')
    (tmp_path / "python").chmod(0o755)

    def lines(*given):
        words = ["make", "build", "VENV=", "PYTHON=./python", *given]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    for given, built in (
        ([], "all"),
        (["CONV_EXT_ISAS=native"], "native"),
        ([], None),
        (["CONV_EXT_ISAS=all"], "all"),
        ([], None),
        (["CONV_EXT_ISAS=it's"], "it's"),
    ):
        lines("-n", "CONV_EXT_ISAS=avx2")  # what is only asked leaves nothing behind
        found = [line for line in lines(*given).splitlines() if line.startswith("built for")]
        assert found == ([] if built is None else [f"built for {built}"])


def test_a_script_beside_a_checkout_imports_the_package_within_it(tmp_path):
    """Python takes a folder conv_ext/ beside a script for a package, unless it finds a real one on sys.path."""
    script = tmp_path / "script.py"
    script.write_text("import conv_ext\nprint(conv_ext.__file__)\n")

    def found():
        return subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    inside = str(ROOT / "conv_ext" / "__init__.py")
    if found() != inside:
        pytest.skip("needs this checkout to be installed as editable")
    (tmp_path / "conv_ext").symlink_to(ROOT)
    assert found() == inside, "make build installs it as pyproject.toml says"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
@pytest.mark.parametrize("flags, best", [
    ("sse2", "baseline"), ("avx2 fma", "baseline"), ("avx2 fma f16c avx512_bf16", "avx2"),
    ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq", "avx512"),
    ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_bf16 amx_tile amx_bf16", "amx"),
])  # fmt: skip
def test_the_best_instruction_set_of_a_processor(built, monkeypatch, flags, best):
    _, functions = built("plain", "")
    monkeypatch.setenv("CONV_EXT_ISAS", "native")
    monkeypatch.setattr(Path, "read_text", lambda self, *_, **__: f"processor: 0\nflags\t\t: fpu {flags}\nbugs: none\n")
    assert functions["chosen_isas"]() == [best]


@pytest.mark.parametrize("compiler, words", [
    ("g++", ["g++"]), ("env g++ -m64", ["env", "g++", "-m64"]), ("no-such-compiler -m64", ["c++"]), ("", None)
])  # fmt: skip
def test_the_compilers_words(built, compiler, words):
    found = built("plain", compiler)[1]["compiler_words"]()
    assert found == words if words else len(found) == 1 and shutil.which(found[0])


def test_kernel_libraries_that_were_built_elsewhere_are_taken(built, monkeypatch):
    """Of the same sources alone, where that is asked for, and where all of them are there."""
    root, functions = built("plain", "")
    target, started = root / "conv_ext" / "lib", []

    def ninja(command, **_):
        started.append(command[0])
        for isa in functions["chosen_isas"]():
            (root / "build" / "kernels" / f"libconv_ext_{isa}.so").write_text("built")

    monkeypatch.setattr(subprocess, "run", ninja)
    monkeypatch.setenv("MAX_JOBS", "1")

    def builds(prebuilt):
        before = len(started)
        monkeypatch.setenv("CONV_EXT_PREBUILT", prebuilt)
        functions["Build"].build_kernel_libraries(None, target)
        return len(started) > before

    assert builds("1") and builds("0") and not builds("1")
    (target / "libconv_ext_baseline.so").unlink()
    assert builds("1") and not builds("1")
    (root / "csrc" / "cuda/plan.h").write_text("// no part of it")
    assert not builds("1")
    (root / "csrc" / "cpu" / "simple.h").write_text("extern long answer;")
    assert builds("1") and not builds("1")
    with pytest.raises(SystemExit, match="CONV_EXT_PREBUILT must be 0 or 1, got 'yes'"):
        builds("yes")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("machine", ["arm64", "x86_64"])
def test_a_build_without_linux(built, monkeypatch, tmp_path, machine):
    """On macOS: no sched_getaffinity, a linker that knows none of GNU's options, no instruction sets beside arm64's."""
    compiler = tmp_path / "c++"
    own = "" if machine == "x86_64" else "-mavx*|-mfma|-mf16c|-mno-mmx|-mamx*|"
    lines = (
        "#!/bin/sh",
        "for word; do",
        f'  case "$word" in {own}-Wl,*|-z|defs) echo "unknown option: $word"; exit 1;; esac',
        "done",
        f'exec {shutil.which("c++")} -DCONV_EXT_WORD=42 "$@"',
    )
    compiler.write_text("\n".join(lines) + "\n")
    compiler.chmod(0o755)

    def builds():
        root, functions = built(f"{sys.platform}-{machine}", str(compiler))
        (root / "csrc" / "cpu" / "direct" / "direct.cpp").write_text("int another = 1;\n")
        folder = root / "build"
        folder.mkdir()
        (folder / "build.ninja").write_text(functions["ninja_file"](folder))
        words = ["ninja", "-C", str(folder), "libconv_ext_baseline.so"]
        return subprocess.run(words, capture_output=True, text=True), functions

    assert "unknown option" in builds()[0].stdout  # as the compiler is asked on Linux
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("MAX_JOBS", raising=False)
    done, functions = builds()
    assert done.returncode == 0 and "linking libconv_ext_baseline.so" in done.stdout, done.stdout
    assert ("avx2" in functions["ISA_FLAGS"]) == (machine == "x86_64")
    assert 1 <= functions["compile_jobs"]() <= os.cpu_count()
    # Apple's compiler has no -fopenmp of its own, and its header comes with some builds of torch alone.
    assert functions["openmp_flags"]() in ([], ["-Xpreprocessor", "-fopenmp"])


@pytest.mark.parametrize(
    "there, asked, taken",
    [
        (["90a"], None, True),
        (["90a"], "9.0a", True),
        (["80", "90a"], "8.6;9.0", True),
        (["90a"], "8.0", False),
        (["80"], "8.0 9.0", False),
        (["90a"], "9.0+PTX", False),
    ],
)
def test_a_cuda_library_that_was_built_elsewhere_is_taken_where_it_serves_the_devices(
    built, monkeypatch, there, asked, taken
):
    _, functions = built("plain", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(gpu_runner, "library", lambda: Path("library.so"))
    monkeypatch.setattr(gpu_runner, "record", lambda: {"architectures": there})
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if asked:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    found = functions["prebuilt_cuda_library"]()
    assert found == ((Path("library.so"), [f"sm_{name}" for name in there]) if taken else None)
    monkeypatch.setattr(gpu_runner, "library", lambda: None)
    assert functions["prebuilt_cuda_library"]() is None
