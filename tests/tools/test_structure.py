"""The walls of the architecture: who may include and import what, which files must be there, and how each begins."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import conv_ext
import function_lengths

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
C_SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def project_files():
    """Text files of the project: what git tracks or would track; without git, those of the known folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        files = [ROOT / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        files = [f for part in ("conv_ext", "csrc", "tests", "bench", "docs") for f in (ROOT / part).rglob("*")]
        files += list(ROOT.glob("*"))
    binary = {".png", ".gif", ".so", ".pyc", ".gz", ".npz", ".ico", ".pdf"}
    return sorted(f for f in files if f.is_file() and f.suffix not in binary and "__pycache__" not in f.parts)


FILES = project_files()
SOURCES = [f for f in FILES if f.suffix in C_SOURCES]
PYTHON = [f for f in FILES if f.suffix == ".py"]


def under(*parts):
    return [f for f in FILES if f.is_relative_to(ROOT.joinpath(*parts))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def includes(path):
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', path.read_text(), re.MULTILINE)


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 10 and len(PYTHON) > 20
    assert ROOT / "tests" / "tools" / "test_structure.py" in FILES


# ---- C++


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_binding_knows_torch(path):
    if any(path.is_relative_to(folder) for folder in (CSRC / "torch", ROOT / "docs" / "deploy")):
        return
    if path.name in ("host_device.cpp", "host_hooks.cpp"):  # of the tests: a device for torch
        return
    assert not [i for i in includes(path) if re.search(r"torch|ATen|c10|pybind11|Python\.h", i)]
    assert not re.search(r"\b(at|c10|torch)::", path.read_text())


# Nothing that the linker could share between instruction sets: C headers and the compiler's intrinsics alone.
KERNEL_HEADERS = {"<stdint.h>", "<stddef.h>", "<string.h>", "<math.h>", "<float.h>", "<immintrin.h>"}


def is_plan(path):
    return path.suffix == ".cpp" and path.name.startswith("plan")


PLANS = {"plan_common.h", "plan_weights.h", "candidates.h", "costs.h", "cost_table.h", "facts.h"}
KERNEL_SOURCES = [
    f for f in (*under("csrc", "common"), *under("csrc", "cpu")) if f.name not in PLANS and not is_plan(f)
]


@pytest.mark.parametrize("path", KERNEL_SOURCES, ids=name_of)
def test_kernel_sources_include_no_standard_library_of_cpp(path):
    outside = {i for i in includes(path) if i.startswith("<")} - KERNEL_HEADERS
    assert not outside
    assert "std::" not in path.read_text()
    for inner in (i.strip('"') for i in includes(path) if i.startswith('"')):
        target = (path.parent / inner).resolve()
        assert target in KERNEL_SOURCES, f"{inner} is outside the kernels"


# An algorithm is a folder, or one of several in the folder of the engine of products.
LISTED = re.findall(r"^  NAME\(\w+, (\w+)\)", (CSRC / "cpu" / "algorithms.h").read_text(), re.MULTILINE)
PLAN_SOURCES = [path for path in under("csrc", "cpu") if is_plan(path) and path.parent != CSRC / "cpu"]
FOLDERS = sorted({path.parent.name for path in PLAN_SOURCES})


@pytest.mark.parametrize("name", FOLDERS)
def test_an_algorithm_keeps_to_its_folder(name):
    shared = {CSRC / "common", CSRC / "cpu", *(CSRC / "cpu" / other for other in ("base", "reference"))}
    folders = shared | {CSRC / "cpu" / name}
    for path in under("csrc", "cpu", name):
        for inner in (i.strip('"') for i in includes(path) if i.startswith('"')):
            assert (path.parent / inner).resolve().parent in folders, f"{name_of(path)} includes {inner}"


def test_there_is_a_machine_for_each_instruction_set():
    """The rows of machine.h are the kernel libraries that setup.py builds."""
    rows = re.findall(r'^ *\{"([\w-]+)", ', (CSRC / "cpu" / "machine.h").read_text(), re.MULTILINE)
    flags = (ROOT / "setup.py").read_text().split("ISA_FLAGS = {")[1].split("SHARES_PASSES")[0]
    assert rows == re.findall(r'"([\w-]+)": (?:""|AVX|f")', flags)


# Block sizes follow from caches, register tiles do not: a kernel does what its plan says.
CACHES = r"\bcaches\b|\brates\b|\b(?:l1|l2|last)_bytes\b"


@pytest.mark.parametrize("path", [f for f in KERNEL_SOURCES if f.name != "machine.h"], ids=name_of)
def test_only_plans_know_of_caches(path):
    found = re.search(CACHES, re.sub(r"//.*", "", path.read_text()))
    assert not found, found[0]


@pytest.mark.parametrize("path", [*under("csrc", "common"), *under("csrc", "cpu")], ids=name_of)
def test_nothing_is_read_from_the_processor(path):
    """Bits follow from the library that was chosen, and from nothing else of the machine."""
    found = re.search(r"sysconf|cpuid|cpu_supports|getenv|hardware_concurrency|/proc/|/sys/", path.read_text())
    assert not found, found[0]


def reached(path):
    """The project's files that this one includes, and those that they do."""
    found, left = set(), [path]
    while left:
        file = left.pop()
        inner = {(file.parent / i.strip('"')).resolve() for i in includes(file) if i.startswith('"')}
        left += inner - found
        found |= inner
    return found


# What judges shares no code with what it judges: the definitions know common/ alone, their folder also how an algorithm
# is called and planned.
CALLED_BY = {CSRC / "cpu" / f"{name}.h" for name in ("candidates", "costs", "kernels", "machine", "pass", "plan")}
REFERENCE = CSRC / "cpu" / "reference"


@pytest.mark.parametrize("path", under("csrc", "cpu", "reference"), ids=name_of)
def test_the_reference_shares_no_code_with_what_it_judges(path):
    others = {file for file in reached(path) if file.parent not in (REFERENCE, CSRC / "common")}
    assert others <= (set() if path.suffix == ".h" else CALLED_BY), others


def test_the_fuzzers_oracle_shares_the_sizes_of_a_problem_alone():
    shared = {file for file in reached(ROOT / "tests" / "fuzz" / "runs_oracle.h") if file.is_relative_to(CSRC)}
    assert shared == {CSRC / "common" / "problem.h"}


@pytest.mark.parametrize("path", [f for f in FILES if f.suffix == ".md"], ids=name_of)
def test_documents_name_files_that_are_there(path):
    for named in re.findall(r"(?<![\w/])(?:csrc|conv_ext|tests|bench|docs)/[\w/]*[\w]\.\w+", path.read_text()):
        assert (ROOT / named).exists(), named


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_the_architectures_table_is_the_list_of_algorithms():
    rows = re.findall(
        r"^\| `(\w+)` \|", ARCHITECTURE.read_text().split("## The algorithms of the CPU")[1], re.MULTILINE
    )
    planned = [
        re.findall(r"^void prepare_(\w+)\(const PlanInput& input, Plan\* plan\) {", p.read_text(), re.MULTILINE)
        for p in PLAN_SOURCES
    ]
    assert sorted(LISTED) == sorted(name for names in planned for name in names if name in LISTED)
    assert all(set(names) & set(LISTED) for names in planned), "each plan is one of a listed algorithm"
    wanted = "a row for each algorithm, in the order of csrc/cpu/algorithms.h"
    assert rows[: len(LISTED)] == LISTED, f"docs/architecture.md: the table of the CPU's algorithms has {wanted}"


def test_the_architectures_tree_has_the_files_and_no_other():
    """Each file that the tree names is in csrc or conv_ext, and each folder of csrc is in the tree."""
    tree = ARCHITECTURE.read_text().split("```")[1]
    there = {path.name for path in (*under("csrc"), *under("conv_ext"))}
    named = set(re.findall(r"\b\w+\.(?:h|cpp|cu|cuh|pyi?)\b", tree))
    gone = named - there - {"make_networks.py"}
    assert not gone, f"docs/architecture.md: the tree names files that are not there: {sorted(gone)}"
    folders = {path.parent for path in under("csrc")} - {CSRC}
    missing = sorted(path.relative_to(ROOT).as_posix() for path in folders if f"{path.name}/" not in tree)
    assert not missing, f"docs/architecture.md: the tree lacks these folders: {missing}"


DEVICE_WORDS = (
    r"\basm\b|\b(threadIdx|blockIdx|blockDim|gridDim)\b"
    r"|__(syncthreads|syncwarp|shfl|ballot|activemask|cvta|ldg|nanosleep|threadfence)"
)


@pytest.mark.parametrize("path", [f for f in SOURCES if f.name not in ("device.h", "device_sm90.h")], ids=name_of)
def test_only_device_h_names_the_device(path):
    """PTX and the built-ins of CUDA stand in csrc/cuda/device.h and device_sm90.h alone."""
    found = re.search(DEVICE_WORDS, path.read_text())
    assert not found, found[0]


@pytest.mark.parametrize("path", [f for f in SOURCES if f.suffix in (".h", ".cuh")], ids=name_of)
def test_headers_are_included_once(path):
    assert "#pragma once" in path.read_text()


# ---- Python


@pytest.mark.parametrize("path", [f for f in under("conv_ext", "models") if f.suffix == ".py"], ids=name_of)
def test_models_use_only_the_public_interface(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            whole = ("." * node.level) + (node.module or "")
            if whole in ("..", "conv_ext"):
                assert {alias.name for alias in node.names} <= set(conv_ext.__all__)
            else:  # another model beside it
                assert not whole.startswith(("..", "conv_ext")) or whole.startswith("conv_ext.models"), whole
        elif isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("conv_ext.")]
        elif isinstance(node, ast.Attribute):
            assert not (
                isinstance(node.value, ast.Name) and node.value.id == "conv_ext" and node.attr not in conv_ext.__all__
            )


PACKAGE = ROOT / "conv_ext"
LATER = PACKAGE / "visualize" / "picture.py"  # imported where a picture is drawn
IMPORTED = [f for f in PYTHON if f.parent in (PACKAGE, PACKAGE / "demo", PACKAGE / "visualize") and f != LATER]


@pytest.mark.parametrize("path", IMPORTED, ids=name_of)
def test_the_package_imports_nothing_that_only_demo_or_tests_need(path):
    """tqdm, matplotlib, scikit-learn, hypothesis: never at import."""
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"tqdm", "matplotlib", "sklearn", "hypothesis", "pytest", "numpy"}


def test_every_public_name_is_there_and_documented():
    for name in conv_ext.__all__:
        value = getattr(conv_ext, name)
        assert name.startswith("__") or (value.__doc__ or "").strip(), name


# ---- every file


def opening(path):
    """The first sentence of a file's opening comment or docstring."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"(?:^//.*\n)+", text, re.MULTILINE)
        text = re.sub(r"^// ?", "", comment[0], flags=re.MULTILINE) if comment else ""
    first = re.match(r"(.+?[.?])(\s|$)", text, re.DOTALL)
    return first[1] if first else ""


@pytest.mark.parametrize("path", SOURCES + PYTHON, ids=name_of)
def test_each_source_file_opens_with_a_sentence(path):
    assert 20 <= len(opening(path)) <= 300, opening(path)


MOST_LINES = 80  # of a function; a file is as long as its one subject needs
# Functions that are longer, with their length. A length may only become less; what is short has to go from here.
LONG_FUNCTIONS = {
    ("tests/fuzz/layers_case.py", "_drawn"): 130,
    ("tests/fuzz/runs_families.h", "draw_shape"): 139,
}


@pytest.mark.parametrize("path", SOURCES + PYTHON, ids=name_of)
def test_functions_stay_short(path):
    lengths = {}
    for function in function_lengths.of_file(path):
        lengths[function.name] = max(function.length, lengths.get(function.name, 0))
    listed = {name: most for (file, name), most in LONG_FUNCTIONS.items() if file == name_of(path)}
    too_long = {name: n for name, n in lengths.items() if n > max(MOST_LINES, listed.get(name, 0))}
    assert not too_long, f"cut these to {MOST_LINES} lines, or to what LONG_FUNCTIONS has"
    no_longer = {name for name in listed if lengths.get(name, 0) <= MOST_LINES}
    assert not no_longer, "these are short, or gone: take them off LONG_FUNCTIONS"


def test_long_functions_lie_in_files_that_are_there():
    assert {file for file, _ in LONG_FUNCTIONS} <= {name_of(path) for path in SOURCES + PYTHON}


BODY = "  work();\n" * 88  # with the lines of the braces: 90
PLANTED = {
    "plain": ("void plain(int a, int b) {\n" + BODY + "}\n", "plain"),
    "method": ("struct S : Base {\n public:\n  int of() const noexcept {\n" + BODY + "}\n};\n", "of"),
    "template": ("template <class T, class = void>\nvoid f(T t = {}) {\n" + BODY + "}\n", "f"),
    "specialisation": ("template <>\ninline float g<float>(int a) {\n" + BODY + "}\n", "g"),
    "constructor": ("S::S(int a)\n    : Base(a), a_{a}, b_(f(a)) {\n" + BODY + "}\n", "S"),
    "operator": ("bool operator==(const S& a, const S& b) {\n" + BODY + "}\n", "operator=="),
    "call operator": ("struct S {\n  int operator()(int a) {\n" + BODY + "}\n};\n", "operator()"),
    "attributes": ('__attribute__((noinline)) extern "C" void h(int (*f)(int)) {\n' + BODY + "}\n", "h"),
    "kernel": ("MACRO(a, b)\n__global__ void __launch_bounds__(128) k(P p) {\n" + BODY + "}\n", "k"),
    "braces in text": ('void t() {\n  f("}}", \'}\', R"(}")", 1\'000); // }\n  /* } */\n' + BODY + "}\n", "t"),
    "lambda": ("const auto l = [](int a) {\n" + BODY + "};\n", None),
    "within a namespace": ("namespace n {\nconst int k[] = {f(1), 2};\n\nvoid w() {\n" + BODY + "}\n}\n", "w"),
    "a call within": ("void c() {\n  f([&](int a) {\n  if (a) {\n  }\n  });\n" + BODY + "}\n", "c"),
}
NOT_FUNCTIONS = {
    "scope": "namespace n {\n" + "int f();\n" * 90 + "}\n",
    "struct": "struct alignas(8) S {\n" + "  int f() { return 1; }\n" * 90 + "};\n",
    "table": "constexpr int kTable[] = {\n" + "  f(1),\n" * 90 + "};\n",
    "short ones": "int f(int a) {\n  return a;\n}\n" * 40,
    "comment": "// void f() {\n" * 90 + "/* void f() {\n" * 90 + "*/\n",
    "macro": "#define F(a) \\\n" + "  if (a) { \\\n" * 90 + "\n",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_long_function_is_found(name):
    source, called = PLANTED[name]
    before = "int first(int a) { return a; }\n"
    found = function_lengths.of_cpp(before + source + before)
    longest = max(found, key=lambda function: function.length)
    assert len(source.splitlines()) - 5 <= longest.length <= len(source.splitlines())
    assert longest.length >= 90 and (called is None or longest.name == called)
    assert [f.name for f in found if f.line in (1, len((before + source).splitlines()) + 1)] == ["first", "first"]


@pytest.mark.parametrize("name", NOT_FUNCTIONS)
def test_what_is_long_and_no_function(name):
    assert all(function.length <= 3 for function in function_lengths.of_cpp(NOT_FUNCTIONS[name]))


def test_a_long_function_of_python_is_found():
    body = "    work()\n" * 90
    method = f'  def method(self):\n    """What it does.\n\n    At length.\n    """\n{body}\n'
    source = f"class C:\n{method}def short(): pass\n"
    assert [(f.name, f.length) for f in function_lengths.of_python(source)] == [("short", 1), ("method", 91)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_lines_stay_short(path):
    """As ruff asks of Python (pyproject.toml)."""
    assert [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120] == []


# Put together from parts, so that this file does not hold them.
FOLDERS = "|".join(("ho" + "me", "ro" + "ot", "wo" + "rk", "Us" + "ers", "t" + "mp", "o" + "pt", "m" + "nt"))
ALLOWED_HOSTS = {
    "pytorch.org",
    "download.pytorch.org",
    "docs.pytorch.org",
    "github.com",
    "arxiv.org",
    "doi.org",
    "opensource.org",
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_machine_is_named(path):
    """No absolute path of some machine, no host but those a reader may be sent to, no address."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(rf"(?<![\w.$}}/])/({FOLDERS})/\w", text)
    assert set(re.findall(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", text)) <= {"127.0.0.1"}
    hosts = {host.split(":")[0].split("@")[-1] for host in re.findall(r"[a-z]+://([\w.:@-]+\w)", text)}
    assert hosts <= ALLOWED_HOSTS | {"127.0.0.1"}, hosts - ALLOWED_HOSTS
