"""bench/gpu_check.py with stand-in tools that succeed, fail, crash, hang or ignore an interrupt: nothing needs a GPU.

What is tried: the order, limits and budget, going on in another pass, changed kernels, what is kept, the last screen.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

import runner_lines
from bench import aims, gpu_cases, gpu_check, gpu_runner, shapes
from conv_ext import _C

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.sh"
# Answers lines as the runner and bench.gpu_cases do; MISCHIEF is a JSON object: word in a line -> what happens.
TOOL = f"""#!{sys.executable} -ES
import json, os, signal, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join([name, *arguments]) + "\\n")
mischief = json.loads(os.environ.get("MISCHIEF", "{{}}"))

def misbehave(text):
    for word, what in mischief.items():
        if word not in text:
            continue
        if what == "hang":
            time.sleep(60)
        if what == "stubborn":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)
        if what == "die":
            print("conv_ext: block 3 hangs: the producer waits for stage 1 to be empty, parity 0", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if what.startswith("exit"):
            print(what, "was asked for", flush=True)
            sys.exit(int(what.split()[1]))
        if what.startswith("say "):
            print(what[4:], flush=True)
        if what == "slow":
            time.sleep(0.3)
        if what == "wrong":
            return "wrong: 3 of 5"
    return None

def serve(right):
    for line in sys.stdin:
        line = line.strip()
        print((misbehave(line) or right(line)) + " | " + line, flush=True)

if name == "compute-sanitizer":
    print("========= COMPUTE-SANITIZER", flush=True)
    at = arguments.index("--tool") + 2
    os.execv(arguments[at], arguments[at:])
misbehave(" ".join([name, *arguments]))
if name == "runner" and not arguments:
    serve(lambda line: "exact: it, 1.5 ms (1 to 2, 5 samples)" if "time=" in line else "exact: it")
elif arguments[:2] == ["-m", "bench.gpu_cases"]:
    def row(line):
        if "layer=" not in line:
            return "right: " + json.dumps({{"gpu": "H100"}}) if line == "machine" else "right: copy 3000 GB/s"
        words = dict(word.split("=") for word in line.split())
        return "right: " + json.dumps({{
            "suite": "s", "name": words["layer"], "n": int(words["n"]), "pass": words["pass"], "dtype": words["dtype"],
            "precision": words["precision"], "layout": words["layout"], "algorithm": words["algorithm"],
            "kind": "1x1", "ratio": 2.5, "right": True, "error_ours": 1.0, "error_theirs": 2.0, "device": "cuda"}})
    serve(row)
elif name == "nvidia-smi":
    print(os.environ.get("DEVICES", "9.0, NVIDIA H100"))
elif arguments[:1] == ["-c"]:
    print(os.environ.get("HAS") or json.dumps({{"torch": "2.13.0", "cuda": "13.0", "pytest": True, "xdist": False}}))
else:
    print("done: " + " ".join([name, *arguments])[:60])
"""
SANITIZERS = ("memcheck", "initcheck", "synccheck", "racecheck")
FEW = {"right": 40, "wgmma": 6, "compare": 12, "sweep": 6, **dict.fromkeys(SANITIZERS, 4)}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The stand-ins first on the PATH; returns what was called."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("runner", "python", "compute-sanitizer", "ncu", "nvidia-smi", "nvcc"):
        (folder / name).write_text(TOOL)
        (folder / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    for name, value in {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": str(folder / "python"), "CALLS": str(calls),
                        "GPU_CHECK_RUNNER": str(folder / "runner")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu_check, "GRACE", 0.3)
    monkeypatch.setattr(gpu_check, "RESERVE", 0.0)
    monkeypatch.setattr(gpu_check, "MARGIN", 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    looks = ("nvidia-smi --query-gpu", "python -c ", "nvcc --version")  # what the machine has
    return lambda: [call for call in calls.read_text().splitlines() if not call.startswith(looks)]


@pytest.fixture
def check(tools, tmp_path, monkeypatch):
    """Runs a pass; `changes` are fields of steps, by their names."""

    def run(*named, budget=60.0, mischief=None, kernels=None, everything=None, **changes):
        monkeypatch.setenv("MISCHIEF", json.dumps(mischief or {}))
        steps = []
        for step in gpu_check.STEPS:
            if step.name in FEW:
                step = replace(step, lines=lambda step=step: step.lines()[: FEW[step.name]])
            steps.append(replace(step, **{"least": min(step.least, 0.5), "start": 0.8, **changes.get(step.name, {})}))
        pass_ = gpu_check.Check(budget, steps, tmp_path / "work", tmp_path / "out")
        pass_.kernels, pass_.everything = kernels or pass_.kernels, everything or pass_.everything
        before = len(pass_.ends)
        status = pass_.run(named)
        return status, {row["step"]: row for row in pass_.ends[before:]}, pass_

    return run


def answers(pass_, name):
    return {row["line"]: row["verdict"] for row in pass_.rows(name)}


def test_a_pass_does_all_steps_and_the_next_one_nothing_again(check, tools, tmp_path, capsys):
    status, ends, pass_ = check()
    assert status == 0, capsys.readouterr().out
    assert set(ends) == {step.name for step in gpu_check.STEPS} - {"runner"}
    assert all(row["status"] == "done" for row in ends.values())
    assert all(len(answers(pass_, name)) == count for name, count in FEW.items())
    called = "\n".join(tools())
    for tool in SANITIZERS:
        assert f"compute-sanitizer --tool {tool} " in called
    assert "setup.py --quiet build_ext --inplace" in called and "bench network --device cuda" in called
    screen = capsys.readouterr().out
    table = screen[screen.rindex("step  "):]
    assert [line.split()[0] for line in table.splitlines()[1:-2]] == [step.name for step in gpu_check.STEPS]
    assert "Ratios to cuDNN" in screen and "1x1" in screen and "Ceilings: copy 3000 GB/s" in screen
    assert "wgmma 1.5 ms" in screen
    with tarfile.open(tmp_path / "out" / "gpu_check.tar.gz") as archive:
        assert {"gpu_check/answers.jsonl", "gpu_check/steps.jsonl", "gpu_check/compare.json"} <= set(archive.getnames())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu_check.tar.gz"]
    before = set(tools())
    status, ends, _ = check()
    assert status == 0 and set(ends) <= {"build"} and set(tools()) == before


def test_what_hangs_crashes_or_is_wrong_costs_itself_alone(check, capsys):
    lines = runner_lines.wgmma()[:6]
    status, ends, pass_ = check("wgmma", mischief={lines[1]: "hang", lines[3]: "die", lines[4]: "wrong"},
                                wgmma={"each": 2})
    found = answers(pass_, "wgmma")
    assert status == 1 and ends["wgmma"]["status"] == "failed" and len(found) == 6
    assert [found[line].split(":")[0] for line in lines] == ["exact", "hang", "exact", "died", "wrong", "exact"]
    screen = capsys.readouterr().out  # with what a kernel has said before it trapped
    assert "block 3 hangs: the producer waits for stage 1" in screen and "3 answers are not right" in screen


def test_one_program_goes_on_behind_a_line_that_ends_it(check, tools):
    lines = runner_lines.everything()[:40]
    status, _, pass_ = check("right", mischief={lines[7]: "die", lines[20]: "hang"},
                             right={"each": 2, "processes": 2})
    found = answers(pass_, "right")
    assert status == 1 and len(found) == 40 and sum(v.startswith("exact") for v in found.values()) == 38
    assert 3 <= sum(call == "runner" for call in tools()) <= 4


def test_the_rest_of_a_kind_that_has_hung_three_times_is_skipped(check):
    kind = ("pass=forward", "dtype=float64", "algorithm=direct")
    only = {"lines": lambda: [line for line in runner_lines.everything() if set(kind) <= set(line.split())][:8]}
    status, ends, pass_ = check("right", mischief={"dtype=float64": "hang"},
                                right={"each": 0.3, "start": 0.3, "processes": 1, **only})
    assert [verdict.split(":")[0] for verdict in answers(pass_, "right").values()] == ["hang"] * 3 + ["skipped"] * 5


def test_a_step_whose_programs_find_no_device_ends_at_once_and_is_tried_again(check, tools):
    status, ends, pass_ = check("right", "device", mischief={"runner": "exit 3"})
    assert status == 3 and ends["right"]["status"] == ends["device"]["status"] == "missing"
    assert "exit 3 was asked for" in ends["right"]["text"] and "exit 3 was" in (pass_.work / "right.log").read_text()
    assert not answers(pass_, "right") and len(tools()) <= 9
    status, ends, _ = check()
    assert status == 0 and ends["right"]["status"] == ends["device"]["status"] == "done"


# ---- what the machine lacks

NO_DEVICE = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


def without(monkeypatch, tmp_path, name):
    """Takes a tool away, of which another may lie further back on the PATH."""
    (tmp_path / "tools" / name).unlink()
    found = gpu_check.shutil.which
    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: None if tool == name else found(tool))


def test_without_a_device_nothing_is_started_and_the_next_pass_does_all(check, tools, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GPU_CHECK_RUNNER", "")
    monkeypatch.setattr(gpu_runner, "FOLDER", tmp_path / "none")  # nor is anything compiled
    monkeypatch.setenv("DEVICES", NO_DEVICE)
    status, ends, pass_ = check()
    assert status == 3 and not ends and not tools()
    assert all("there is no CUDA device (nvidia-smi says NVIDIA-SMI has failed" in pass_.of_this_pass[step.name]
               for step in gpu_check.STEPS)
    screen = capsys.readouterr().out
    assert "left out: runner, build, device, right, wgmma" in screen
    assert re.search("^scaling +not run +there is no CUDA", screen, re.M)
    monkeypatch.setenv("GPU_CHECK_RUNNER", str(tmp_path / "tools" / "runner"))
    monkeypatch.delenv("DEVICES")
    status, ends, _ = check()
    assert status == 0 and len(ends) == len(gpu_check.STEPS) - 1


@pytest.mark.parametrize("tool, has, python, lost, words", [
    ("compute-sanitizer", None, None, SANITIZERS, "compute-sanitizer is not on the PATH"),
    ("ncu", None, None, ("ncu",), "ncu is not on the PATH"),
    (None, {"torch": None, "cuda": None, "pytest": True}, None, ("build", "layer", "compare"), "has no torch"),
    (None, {"torch": "2.13.0+cpu", "cuda": None, "pytest": True}, None, ("build", "scaling"), "is not built for CUDA"),
    (None, {"torch": "2.13.0", "cuda": "13.0", "pytest": False}, None, ("layer", "tests"), "has no pytest"),
    (None, None, "no-such-python", ("build", "networks"), "PYTHON=no-such-python does not run"),
])  # fmt: skip
def test_what_is_not_there_costs_its_steps_alone_and_they_are_tried_again(
    check, monkeypatch, tmp_path, capsys, tool, has, python, lost, words
):
    few = ("device", "ncu", *SANITIZERS, *lost)
    with monkeypatch.context() as lacking:
        if tool:
            without(lacking, tmp_path, tool)
        if has:
            lacking.setenv("HAS", json.dumps(has))
        if python:
            lacking.setenv("PYTHON", python)
        status, ends, pass_ = check(*dict.fromkeys(few))
        screen = capsys.readouterr().out
        assert status == 3 and set(ends) == set(few) - set(lost), screen
        names = ", ".join(step.name for step in gpu_check.STEPS if step.name in lost)
        assert f"left out: {names}: " in screen and words in screen
    if tool:
        (tmp_path / "tools" / tool).write_text(TOOL)
        (tmp_path / "tools" / tool).chmod(0o755)
    status, ends, _ = check()
    assert status == 0 and set(lost) <= set(ends)


def test_a_toolkit_of_another_release_than_torchs_is_told_before_it_compiles(check, monkeypatch, capsys):
    status, ends, _ = check("build", mischief={"nvcc --version": "say Cuda compilation tools, release 12.4, V12.4"})
    assert status == 3 and not ends
    assert "torch is built for CUDA 13.0, and nvcc is of release 12" in capsys.readouterr().out


def test_what_a_python_lacks_while_it_runs_is_no_failure_and_the_log_is_named(check, capsys):
    mischief = {"bench network": "say ModuleNotFoundError: No module named 'numpy'", "-m bench network": "exit 1"}
    status, ends, pass_ = check("networks", mischief=mischief)
    assert status == 3 and ends["networks"]["status"] == "missing"
    screen = capsys.readouterr().out  # what tells, not the last line
    assert "exit status 1: ModuleNotFoundError: No module named 'numpy'" in screen and "networks.log" in screen
    status, ends, _ = check(
        "compare",
        mischief={"bench.gpu_cases": "say ImportError: libcudnn.so.9: cannot open shared object file",
                  "-m bench.gpu_cases": "exit 1"},
    )
    assert status == 3 and ends["compare"]["status"] == "missing" and "libcudnn.so.9" in ends["compare"]["text"]


def test_a_failure_is_tried_again_by_another_python_or_device(check, monkeypatch):
    check(mischief={"test_gpu_layer": "exit 1"})
    assert "layer" not in check()[1]
    monkeypatch.setenv("HAS", json.dumps({"torch": "2.14.0", "cuda": "13.0", "pytest": True}))
    status, ends, _ = check()
    assert status == 0 and ends["layer"]["status"] == "done" and "right" not in ends
    monkeypatch.setenv("DEVICES", "8.0, NVIDIA A100")
    status, ends, _ = check()  # another device is asked all again
    assert status == 0 and {"layer", "right", "compare"} <= set(ends)


def test_the_runner_has_to_be_for_the_device(check, tools, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("gpu_runner", gpu_runner.LIBRARY):
        (folder / name).write_text(TOOL.replace('if name == "runner"', 'if name == "gpu_runner"'))
        (folder / name).chmod(0o755)
    known = {"runner": gpu_runner.runner_digest(), "kernels": gpu_runner.kernel_digest(), "architectures": ["90a"]}
    (folder / "built.json").write_text(json.dumps(known))
    monkeypatch.setattr(gpu_runner, "FOLDER", folder)
    monkeypatch.delenv("GPU_CHECK_RUNNER")
    status, ends, _ = check("device")
    assert status == 0 and ends["device"]["status"] == "done"
    monkeypatch.setenv("DEVICES", "8.6, NVIDIA A10")
    status, ends, pass_ = check("device")
    words = 'the runner is compiled for 90a, and the device is 8.6: name runner, too, or `make gpu-runner ARCHS="86"`'
    assert status == 3 and not ends and words in capsys.readouterr().out
    step = {step.name: step for step in gpu_check.STEPS}
    assert step["runner"].command(pass_)[-2:] == ["--arch", "86"]
    assert pass_.environment(step["build"])["TORCH_CUDA_ARCH_LIST"] == "8.6"
    (folder / "built.json").unlink()
    assert check("device")[0] == 3
    assert "there is no runner of these sources: name runner, too" in capsys.readouterr().out


@pytest.mark.parametrize("built, serving, not_serving", [
    (["90a"], ["9.0", ""], ["8.0", "10.0"]), (["80", "90a"], ["8.0", "8.6", "9.0"], ["7.5", "12.0"]),
    (["86"], ["8.9"], ["8.0"]), (["120"], ["12.1"], ["10.0"]), ([], [""], ["9.0"]),
])  # fmt: skip
def test_which_devices_code_runs_on(built, serving, not_serving):
    assert all(gpu_runner.serves(built, capability) for capability in serving)
    assert not any(gpu_runner.serves(built, capability) for capability in not_serving)


def test_what_is_compiled_for_the_devices_that_are_there(tools, monkeypatch):
    for said, expected in (
        ("9.0, H100", ("90a",)),
        ("8.0, A100\n8.0, A100\n12.0, B", ("80", "120")),
        ("none", ("90a",)),
        ('Field "compute_cap" is not a valid field to query.', ("90a",)),
    ):
        monkeypatch.setenv("DEVICES", said)
        assert gpu_runner.architectures_of(capability for capability, _ in gpu_runner.devices()[0]) == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_runner.devices() == ([], "CUDA_VISIBLE_DEVICES hides all")


@pytest.mark.parametrize("log, line", [
    ("a.cu(3): error: x is undefined\n\n1 error detected\nmake: *** stop", "a.cu(3): error: x is undefined"),
    ("Traceback (most recent call last):\n  raise ValueError('error')\nValueError: no\nend", "ValueError: no"),
    (".F.\n    error = 3\nE   AssertionError: wrong\nFAILED tests/a.py::b\n1 failed", "E   AssertionError: wrong"),
    ("0 errors\nall is well", "all is well"), ("", ""),
])  # fmt: skip
def test_the_line_that_tells(log, line):
    assert gpu_check.telling(log.splitlines()) == line


def test_programs_that_die_one_after_the_other_end_their_step(check):
    status, ends, _ = check("right", mischief={"pass=": "die"}, right={"processes": 1})
    assert status == 1 and "12 processes died, one after the other" in ends["right"]["text"]


def test_an_error_that_the_sanitizer_tells_of_is_one_of_its_line(check):
    line = runner_lines.sanitized()[2]
    status, ends, pass_ = check("memcheck", mischief={line: "say ========= Invalid __global__ read of size 4 bytes"})
    wrong = [one for one, verdict in answers(pass_, "memcheck").items() if verdict.startswith("wrong: ========= Inv")]
    assert status == 1 and wrong == [line]


def test_a_command_gets_an_interrupt_then_the_end_and_the_others_run(check):
    status, ends, _ = check("layer", "networks", "scaling", budget=8,
                            mischief={"test_gpu_layer": "hang", "bench network": "stubborn"},
                            layer={"limit": 0.4}, networks={"limit": 0.4})
    assert status == 3
    assert ends["layer"]["text"].startswith("interrupted after") and ends["layer"]["status"] == "short"
    assert ends["networks"]["text"].startswith("killed after") and ends["scaling"]["status"] == "done"


def test_steps_of_a_stage_run_side_by_side_and_a_build_beside_the_stages(check):
    began = time.monotonic()
    slow = {name: {"processes": 1, "each": 5.0} for name in SANITIZERS}
    status, ends, _ = check(*SANITIZERS, mischief={"memory=exact": "slow"}, **slow)
    took, apart = time.monotonic() - began, sum(ends[name]["seconds"] for name in SANITIZERS)
    assert status == 0 and apart > 4 * 1.2 and took < 0.75 * apart
    status, ends, pass_ = check(mischief={"setup.py": "hang"}, budget=12, build={"limit": 3})
    order = [row["step"] for row in pass_.ends]
    assert ends["build"]["status"] == "short" and order.index("right") < order.index("build")
    assert pass_.of_this_pass["compare"] == "not run: build short" and status == 3


def test_no_step_starts_that_is_of_no_use_in_what_is_left(check, tools, capsys):
    status, ends, pass_ = check("compare", budget=20, compare={"least": 25})
    assert status == 3 and not ends and not tools()
    assert "compare wants 25 s, and BUDGET=20 is too short for that: it must be 25 or more" in capsys.readouterr().out
    status, ends, pass_ = check(
        "layer", "compare", budget=3, mischief={"test_gpu_layer": "hang"}, layer={"limit": 1.5}, compare={"least": 2.5}
    )
    assert status == 3 and set(ends) == {"layer"}
    assert "compare wants 2 s, and 1 are left: start again" in capsys.readouterr().out


def test_what_was_cut_short_goes_on_in_the_next_pass_and_what_is_there_is_kept(check, tools):
    slow = {"layer=": "slow"}
    status, ends, first = check("compare", mischief=slow, compare={"limit": 1.7})
    had = answers(first, "compare")
    assert status == 3 and ends["compare"]["status"] == "short" and 1 <= len(had) < 12
    assert list(had) == gpu_cases.lines()[: len(had)]
    status, ends, second = check()
    assert status == 0 and len(answers(second, "compare")) == 12
    assert sum(row["step"] == "compare" for row in second.answers) == 12  # none twice


def test_changed_kernels_are_asked_again_after_what_is_missing(check):
    check("compare", mischief={"layer=": "slow"}, compare={"limit": 1.7}, kernels="old")
    status, ends, pass_ = check(kernels="new")
    rows = [row for row in pass_.answers if row["step"] == "compare"]
    old = [row["line"] for row in rows if row["kernels"] == "old"]
    assert status == 0 and [row["line"] for row in rows if row["kernels"] == "new"][-len(old):] == old
    assert all(row["kernels"] == "new" for row in pass_.rows("compare"))


def test_a_failure_is_tried_again_when_something_has_changed(check, tools, capsys):
    check(mischief={"test_gpu_layer": "exit 1"}, everything="a")
    before = len(tools())
    status, ends, _ = check(everything="a")
    assert status == 1 and "layer" not in ends and not any("test_gpu_layer" in call for call in tools()[before:])
    assert "layer has failed before, and nothing has changed" in capsys.readouterr().out
    status, ends, _ = check(everything="b")
    assert status == 0 and ends["layer"]["status"] == "done"


def test_bad_answers_are_asked_again_when_something_has_changed_and_all_where_the_step_is_named(check):
    lines = runner_lines.wgmma()[:6]
    check(mischief={lines[2]: "wrong", lines[4]: "die"}, everything="a")
    status, ends, pass_ = check(everything="a")
    assert status == 1 and "wgmma" not in ends
    status, ends, pass_ = check(everything="b")
    assert status == 0 and ends["wgmma"]["text"] == "2 exact" and all(
        verdict.startswith("exact") for verdict in answers(pass_, "wgmma").values())
    status, ends, pass_ = check("wgmma", everything="b")
    assert status == 0 and ends["wgmma"]["text"] == "6 exact"


def test_a_damaged_last_line_is_left_out(check, tmp_path):
    check("wgmma")
    with (tmp_path / "work" / "answers.jsonl").open("a") as file:
        file.write('{"step": "wgmma", "li')
    status, _, pass_ = check("wgmma")
    assert status == 0 and len(answers(pass_, "wgmma")) == 6


# ---- the script


def script(*arguments, **environment):
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_the_script_takes_an_earlier_archive_and_ends_cleanly_on_a_signal(tools, tmp_path):
    places = {"GPU_CHECK_OUT": str(tmp_path / "out"), "GPU_CHECK_WORK": str(tmp_path / "work")}
    first = script("device", BUDGET="60", **places)
    assert "device done" in first.communicate(timeout=60)[0] and first.returncode == 0
    archive = tmp_path / "out" / "gpu_check.tar.gz"
    again = {**places, "GPU_CHECK_WORK": str(tmp_path / "another"), "GPU_CHECK_FROM": str(archive)}
    second = script("layer", MISCHIEF=json.dumps({"test_gpu_layer": "hang"}), **again)
    for line in second.stdout:
        if line.startswith("-- layer"):
            break
    time.sleep(0.5)
    second.send_signal(signal.SIGTERM)
    said = second.communicate(timeout=60)[0]
    assert "interrupted: what has been answered is kept" in said, said
    assert re.search(r"^device +done", said, re.MULTILINE), said
    assert archive.is_file() and second.returncode == 3


@pytest.mark.parametrize(
    "arguments, environment, words",
    [
        (["nonsense"], {}, "there is no step nonsense; there are runner, build"),
        *(
            ([], {"BUDGET": bad}, f"BUDGET must be a number of seconds, more than 10, got '{bad}'")
            for bad in ("long", "nan", "-5", "inf", "10")
        ),
        ([], {"GPU_CHECK_RUNNER": "/nowhere"}, "GPU_CHECK_RUNNER must be a program, got /nowhere"),
        ([], {"GPU_CHECK_WORK": "/proc/no"}, "GPU_CHECK_WORK must be a folder that can be written to, got /proc/no: "),
        ([], {"GPU_CHECK_OUT": str(SCRIPT)}, f"GPU_CHECK_OUT must be a folder that can be written to, got {SCRIPT}: "),
        ([], {"GPU_CHECK_FROM": "/nowhere", "GPU_CHECK_WORK": "/nowhere/work"}, "must be an archive that an earlier"),
        (["--help"], {}, "training steps, converted and not"),
    ],
)
def test_the_script_tells_what_it_does_not_understand(arguments, environment, words, tmp_path):
    environment = {"GPU_CHECK_WORK": str(tmp_path / "work"), **environment}
    process = script(*arguments, **environment)
    said = process.communicate(timeout=60)[0]
    assert words in said and "Traceback" not in said and process.returncode in (0, 2)


def test_an_empty_setting_is_as_if_not_set(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "Check", lambda *given: seen.append(given) or type("", (), {"run": lambda *_: 0})())
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    for name in ("BUDGET", "GPU_CHECK_OUT", "GPU_CHECK_WORK", "GPU_CHECK_FROM", "GPU_CHECK_RUNNER"):
        monkeypatch.setenv(name, "")
    assert gpu_check.main([]) == 0
    assert seen == [(330, gpu_check.STEPS, tmp_path / "build" / "gpu_check", tmp_path / "build" / "gpu_check_out")]


def test_an_archive_has_nothing_else_that_lies_there(check, tmp_path, capsys):
    for name in ("other.txt", "folder/answers.jsonl"):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert check("device")[0] == 0
    with tarfile.open(tmp_path / "out" / "gpu_check.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["gpu_check/device.log", "gpu_check/steps.jsonl"]
    (tmp_path / "out" / "gpu_check.tar.gz").unlink()
    (tmp_path / "out" / "gpu_check.tar.gz").mkdir()
    assert check("device")[0] == 3 and "there is no archive" in capsys.readouterr().out


# ---- what is asked


def test_every_step_is_bounded_and_fits_a_pass():
    assert all(0 < step.least <= step.limit <= 200 for step in gpu_check.STEPS)
    stages = {step.stage: max(s.limit for s in gpu_check.STEPS if s.stage == step.stage) for step in gpu_check.STEPS}
    assert sum(limit for stage, limit in stages.items() if 1 <= stage <= 7) <= 400


def test_every_algorithm_dtype_and_pass_is_asked_for():
    plan = _C.plan("forward", "float32", [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1], [0] * 4, [1, 1], 1,
                   capability=90)
    assert {name for name, *_ in plan["candidates"]} == set(runner_lines.ALGORITHMS)
    several = {(d, p, a, pass_) for d, p in runner_lines.NUMBERS for a in runner_lines.ALGORITHMS
               for pass_ in runner_lines.PASSES}
    for lines in (runner_lines.everything() + runner_lines.wgmma(), runner_lines.sanitized()):
        assert len(set(lines)) == len(lines)
        asked = {tuple(dict(word.split("=") for word in line.split())[key]
                       for key in ("dtype", "precision", "algorithm", "pass")) for line in lines}
        missing = several - asked
        assert all(a == "wgmma" and d not in ("float32", "bfloat16", "float16") for d, _, a, _ in missing), missing
    first = runner_lines.everything()[: 8 * len(runner_lines.NUMBERS) * 3]
    assert len({line.split(" layout")[0] for line in first}) == len(first)  # each is tried before any is tried twice


def test_the_comparison_begins_with_what_tells_most():
    lines = gpu_cases.lines()
    assert len(set(lines)) == len(lines)
    autos = [dict(word.split("=", 1) for word in line.split()) for line in lines if "algorithm=auto" in line]
    assert len({words["layer"] for words in autos}) == 40
    first = autos[: 12 * 3 * 2]
    assert {(w["dtype"], w["precision"], w["layout"], w["n"]) for w in first} == {
        ("bfloat16", "ieee", "channels_last", "128"), ("float32", "ieee", "channels_last", "64")}
    assert len({(w["layer"], w["pass"], w["dtype"]) for w in first}) == 72
    kinds = []
    for words in autos[72:]:
        shape = shapes.load([words["layer"].split("/")[0]], [words["layer"]], [int(words["n"])])
        assert len(shape) == 1, words
        what = "tf32" if words["precision"] == "tf32" else "nchw" if words["layout"] == "nchw" else shape[0].kind
        kinds += [what] if what not in kinds else []
    assert kinds[:5] == ["depthwise", "tf32", "first layer", "grouped", "nchw"]
    for words in autos:
        row = {**shapes.load([words["layer"].split("/")[0]], [words["layer"]], [int(words["n"])])[0].describe(),
               "pass": words["pass"], "dtype": words["dtype"], "precision": words["precision"]}
        assert any(aim.fits(row) for aim in aims.CUDA), row


def test_a_case_can_be_read_again():
    case = gpu_cases.read(gpu_cases.lines()[0])
    assert case.device == "cuda" and case.shape.n == 128 and case.shape.full_name == "vgg16/conv3_2"


def test_the_runner_is_stale_when_its_sources_change(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runner, "FOLDER", tmp_path)
    for name in ("gpu_runner", gpu_runner.LIBRARY):
        (tmp_path / name).write_text("")
    known = {"runner": gpu_runner.runner_digest(), "kernels": gpu_runner.kernel_digest(), "architectures": ["90a"]}
    (tmp_path / "built.json").write_text(json.dumps(known))
    assert gpu_runner.runner() == tmp_path / "gpu_runner" and gpu_runner.library() == tmp_path / gpu_runner.LIBRARY
    (tmp_path / "built.json").write_text(json.dumps({**known, "kernels": "", "runner": ""}))
    assert gpu_runner.runner() is None and gpu_runner.library() is None
