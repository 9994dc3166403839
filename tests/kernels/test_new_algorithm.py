"""A new algorithm is a folder and one line: that of docs/adding-an-algorithm.md is put into the tree, and fuzzed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conv_ext.library import available_isas

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import fuzz_build  # noqa: E402

ISA = "avx2"
LINE, BEFORE = "  NAME(Im2row, im2row) \\\n", "  NAME(Reference, reference)\n"


def compiled(source: Path, to: Path, flags: str) -> Path:
    subprocess.run([fuzz_build.compiler(), *flags.split(), "-c", str(source), "-o", str(to)], check=True)
    return to


@pytest.mark.skipif(
    ISA not in available_isas() or not (ROOT / "build" / "kernels" / ISA).is_dir(),
    reason=f"needs a checkout that was built with {ISA} (CONV_EXT_ISAS=all), and a processor that has it",
)
def test_a_new_algorithm_is_a_folder_and_a_line(tmp_path):
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("torch", "python"))
    shutil.copytree(ROOT / "tests" / "im2row", csrc / "cpu" / "im2row")
    names = csrc / "cpu" / "algorithms.h"
    assert names.read_text().count(BEFORE) == 1
    names.write_text(names.read_text().replace(BEFORE, LINE + BEFORE))

    # Everything that has the list: the plans, the driver and the library's entry. No other kernel has to know.
    knows = {path for path in (ROOT / "csrc").rglob("*") if path.is_file() and 'algorithms.h"' in path.read_text()}
    assert {path.relative_to(ROOT / "csrc" / "cpu").as_posix() for path in knows} == {"library.cpp", "plan.cpp"}
    settings = fuzz_build.kernel_settings()
    flags = f"{settings['KERNEL_FLAGS']} -O1 {settings['ISA_FLAGS'][ISA]}"
    objects = [ROOT / "build" / "kernels" / ISA / f"{name}.o" for name in settings["KERNEL_SOURCES"]]
    objects = [path for path in objects if path.name != "library.cpp.o"]
    for source in ("library.cpp", "im2row/im2row.cpp"):
        objects.append(compiled(csrc / "cpu" / source, tmp_path / f"{Path(source).name}.o", flags))
    library = tmp_path / f"libconv_ext_{ISA}.so"
    subprocess.run([fuzz_build.compiler(), "-shared", *map(str, objects), "-o", str(library)], check=True)
    shutil.copytree(ROOT / "tests" / "fuzz", tmp_path / "tests" / "fuzz")
    driver = []
    for source in (tmp_path / "tests" / "fuzz" / "runs.cpp", *fuzz_build.plan_sources(tmp_path)):
        made = tmp_path / fuzz_build.object_name(source, tmp_path)
        driver.append(compiled(source, made, "-std=c++20 -O1 -fopenmp-simd"))
    runs = tmp_path / "runs"
    subprocess.run([fuzz_build.compiler(), *map(str, driver), "-o", str(runs), "-ldl", "-lpthread"], check=True)

    histogram = tmp_path / "histogram.json"
    words = [runs, "--libraries", tmp_path, "--isa", ISA, "--count", 400, "--seed", 1, "--histogram", histogram]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " im2row forward " in json.dumps(json.loads(histogram.read_text())), "it has not run"
