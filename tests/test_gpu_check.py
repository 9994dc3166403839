"""bench/gpu_check.sh with a stub for an interpreter: its order, going on after a stop, failures, limits, the table."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from bench import gpu_smoke, shapes

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu_check.sh"
# Writes down how it was called; fails, or takes its time, where the test asks for it.
STUB = """#!/bin/sh
echo "$CONV_EXT_CUDA $TORCH_CUDA_ARCH_LIST: $*" | tr '\\n' ' ' >> "$CALLS"
echo >> "$CALLS"
case "$*" in
  *get_device_capability*) echo 9.0a ;;
  *xdist*) exit 1 ;;
  *"$SLOW"*) [ -z "$SLOW" ] || exec sleep 30 ;;
esac
case "$*" in *--out*) echo '{}' > "$(echo "$*" | sed 's/.*--out \\([^ ]*\\).*/\\1/')" ;; esac
case "$*" in *"$FAILS"*) [ -z "$FAILS" ] || exit 7 ;; esac
exit 0
"""


@pytest.fixture
def check(tmp_path):
    for name in ("python-stub", "compute-sanitizer", "nvidia-smi", "nvcc"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB)
        stub.chmod(0o755)
    out, calls = tmp_path / "out", tmp_path / "calls"

    def run(*steps, fails="", slow="", **environment):
        calls.write_text("")
        environment = {
            **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python-stub", "OUT": str(out),
            "CALLS": str(calls), "FAILS": fails, "SLOW": slow, **environment,
        }  # fmt: skip
        done = subprocess.run(["bash", SCRIPT, *steps], env=environment, capture_output=True, text=True, timeout=60)
        assert not done.stderr, done.stderr
        return done.returncode, re.findall(r"^== (\S+)$", done.stdout, re.MULTILINE), calls.read_text(), done.stdout

    return run


def steps():
    return re.search(r'^STEPS="(.*?)"', SCRIPT.read_text(), re.DOTALL | re.MULTILINE)[1].split()


def test_every_step_runs_in_its_order_and_none_twice(check, tmp_path):
    status, ran, calls, _ = check()
    assert status == 0 and [*dict.fromkeys(ran)] == [*dict.fromkeys(steps())]
    assert "1 9.0a: setup.py build_ext --inplace" in calls and "-m bench.gpu_smoke" in calls
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        assert f"--tool {tool} --error-exitcode 1" in calls
    assert re.search(r"-m bench report --aims \S+bench-bfloat16.json \S+", calls)
    assert (tmp_path / "out.tar.gz").is_file()
    status, ran, _, _ = check()
    assert (status, ran) == (0, ["table", "collect", "table"])  # these again, for what came later


def test_a_step_that_fails_keeps_the_others_running_and_is_tried_again(check):
    status, ran, _, printed = check(fails="test_gpu_layer.py")
    assert status == 1 and set(ran) == set(steps()) and "== test-layer FAILED with 7" in printed
    status, ran, _, _ = check()
    assert status == 0 and ran[0] == "test-layer" and "smoke" not in ran


def test_nothing_runs_without_a_build(check):
    status, ran, _, printed = check(fails="setup.py")
    assert (status, ran) == (1, ["build"]) and "build FAILED with 7" in printed


def test_no_step_is_started_that_may_end_after_the_budget(check):
    status, ran, _, printed = check(BUDGET="310")
    assert (status, ran) == (3, []) and "build may take 570 s, and 310 are left: start again" in printed
    check("build")
    status, ran, _, _ = check(BUDGET="310")
    assert status == 3 and "info" in ran and "smoke" in ran and "test-layer" not in ran


def test_a_step_that_takes_too_long_is_ended(check, tmp_path):
    shorter = SCRIPT.read_text().replace("info | collect | table) echo 60", "info | collect | table) echo 1")
    copy = tmp_path / "bench" / "gpu_check.sh"
    copy.parent.mkdir()
    copy.write_text(shorter)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python-stub",
                   "OUT": str(tmp_path / "out"), "CALLS": str(tmp_path / "calls"), "FAILS": "",
                    "SLOW": "conv_ext info"}  # fmt: skip
    done = subprocess.run(["bash", str(copy), "info"], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "info FAILED with 124" in done.stdout


def test_single_steps_run_again_and_unknown_ones_are_told(check):
    assert check("info")[:2] == (0, ["info"]) and check("info")[:2] == (0, ["info"])
    assert check("nonsense")[0] == 1


def test_every_step_is_bounded():
    limits = [int(seconds) for seconds in re.findall(r"\) echo (\d+) ;;", SCRIPT.read_text())]
    assert limits and max(limits) <= 590


def test_the_smoke_test_has_a_layer_of_each_class():
    assert {layer.kind for layer in gpu_smoke.layers()} >= set(shapes.CLASSES) - {"other"}
    assert "multiply_add" in gpu_smoke.algorithms()
