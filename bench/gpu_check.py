"""The check of a release on a GPU, in passes that are bounded by the clock: bench/gpu_check.sh starts it.

A pass takes the steps in their order. A step starts only if the time that it needs to be of use is left; what takes
longer than its limit gets an interrupt (SIGINT), and five seconds later the end (SIGKILL). Most steps ask a program
line by line, so that one problem that hangs or crashes costs itself alone, and every answer is kept as it comes:
another pass asks only for what is missing, and again for what was answered before the kernels changed. What the steps
need of the machine is looked for first; a step that lacks something of it is left out, and another pass tries it again.

environment (empty is as if not set; paths are seen from the checkout):
  BUDGET              seconds of this pass (330)
  GPU_CHECK_OUT       folder of the archive gpu_check.tar.gz, which has everything (build/gpu_check_out)
  GPU_CHECK_WORK      folder of what is known so far (build/gpu_check)
  GPU_CHECK_FROM      an archive of an earlier pass to go on from, where that folder is not there any more
  PYTHON              interpreter with a CUDA build of torch, and pytest (python3)
  GPU_CHECK_RUNNER    a runner in place of build/gpu_runner/gpu_runner (which is built where it is missing, stale or not
                      for the device)

exit status: 0 all that was asked is right, 1 something is wrong, 3 something could not be asked: time was short, or the
machine lacks what a step needs
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import runner_lines  # noqa: E402
from bench import gpu_cases, gpu_runner  # noqa: E402  (neither needs torch)

GRACE = 5.0  # seconds between the interrupt and the end
RESERVE = 10.0  # for what is ended last, the archive and the table
MARGIN = 5.0  # for what comes before the first step
MOST_HANGS = 3  # of one dtype, algorithm and pass
MOST_DEATHS = 12  # processes of a step that may die without an answer, one after the other
GOOD = ("exact", "ran", "right", "declined")
# What is said where the machine lacks something, which is no failure of what is checked.
LACKING = re.compile(r"No module named|command not found|cannot open shared object file|ERR_NVGPUCTRPERM|"
                     r"[Nn]o CUDA-capable device|finds no CUDA device|CUDA driver version is insufficient")


# ---- bounded processes


def started(command: list[str], **options) -> subprocess.Popen:
    """In a process group of its own, which ends together."""
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)


def signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end(process: subprocess.Popen, grace: float = GRACE) -> str:
    """Interrupts a process group, ends it where that does not help, and says which."""
    signal_group(process, signal.SIGINT)
    try:
        process.wait(grace)
        how = "interrupted"
    except subprocess.TimeoutExpired:
        how = "killed"
    signal_group(process, signal.SIGKILL)  # also what its leader has left behind
    process.wait()
    return how


class Program:
    """A program that answers lines, one after the other."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.process = started(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1)
        self.said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.put(line.rstrip("\n"))
        self.said.put(None)

    def ask(self, line: str, seconds: float) -> tuple[str, list[str]]:
        """The verdict, and what else was said before it: kernels that print, compute-sanitizer."""
        other: list[str] = []
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # it has ended: what it said last tells why
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        while True:
            try:
                said = self.said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"hang: no answer in {seconds:.0f} s", other
            if said is None:
                status = self.process.wait()
                return f"died: exit status {status}", other
            verdict, bar, of = said.rpartition(" | ")
            if bar and of == line:
                return verdict, other
            other.append(said)

    def close(self, hangs: bool = False) -> list[str]:
        """Ends it; what it still said."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(0 if hangs else GRACE)
        end(self.process, 1.0)
        rest = []
        while not self.said.empty():
            if (said := self.said.get()) is not None:
                rest.append(said)
        return rest


# ---- the machine

# Of a Python, without the seconds that an import of torch takes.
ASK_PYTHON = (
    "import json, pathlib, runpy; from importlib.util import find_spec; torch = find_spec('torch'); "
    "there = torch and torch.origin; "
    "version = runpy.run_path(str(pathlib.Path(torch.origin).with_name('version.py'))) if there else {}; "
    "print(json.dumps({'torch': version.get('__version__'), 'cuda': version.get('cuda'), "
    "'pytest': bool(find_spec('pytest')), 'xdist': bool(find_spec('xdist'))}))"
)


@dataclass
class Machine:
    """What the steps find here. `lacks`: why something of it is not there."""

    python: str
    devices: list[tuple[str, str]]  # compute capability, name
    has: dict = field(default_factory=dict)  # of Python: the versions of torch and of its CUDA; pytest, xdist
    lacks: dict[str, str] = field(default_factory=dict)

    def capabilities(self) -> list[str]:
        return sorted({capability for capability, _ in self.devices})

    def words(self) -> tuple[str, ...]:
        """What a failure may be due to."""
        return (*self.capabilities(), self.python, str(self.has.get("torch")), str(self.has.get("cuda")))

    def text(self) -> str:
        devices = ", ".join(f"{name} ({capability})" if capability else name for capability, name in self.devices)
        return f"{devices or 'no device'}; PYTHON={self.python}: torch {self.has.get('torch') or 'is not there'}"


def look(python: str) -> Machine:
    devices, why = gpu_runner.devices()
    machine = Machine(python, devices)
    lacks = machine.lacks
    if not devices:
        lacks["device"] = f"there is no CUDA device ({short(why, 120)})"
    for tool in ("nvcc", "compute-sanitizer", "ncu"):
        if not shutil.which(tool):
            lacks[tool] = f"{tool} is not on the PATH"
    try:
        asked = subprocess.run([python, "-c", ASK_PYTHON], cwd=ROOT, capture_output=True, text=True, timeout=30)
        machine.has = json.loads(asked.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        lacks["torch"] = f"PYTHON={python} does not run ({error})"
    except ValueError:
        said = telling((asked.stderr + asked.stdout).splitlines())
        lacks["torch"] = f"PYTHON={python} does not tell what it has: {said}"
    has, cuda = machine.has, machine.has.get("cuda")
    if has and not has["torch"]:
        lacks["torch"] = f"PYTHON={python} has no torch"
    elif has and not cuda:
        lacks["torch"] = f"PYTHON={python} has torch {has['torch']}, which is not built for CUDA"
    if has and not has["pytest"]:
        lacks["pytest"] = f"PYTHON={python} has no pytest"
    if cuda and "nvcc" not in lacks:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release (\d+)", said)
        if release and release[1] != cuda.split(".")[0]:
            lacks["toolkit"] = f"torch is built for CUDA {cuda}, and nvcc is of release {release[1]}"
    return machine


# ---- the steps


@dataclass(frozen=True)
class Step:
    """Something to run: a command, or a program and the lines that it is asked."""

    name: str
    answers: str  # the question that it answers
    least: float  # seconds without which it is not started
    limit: float  # seconds after which it is ended
    command: Callable[..., list[str]]
    lines: Callable[[], list[str]] | None = None
    processes: int = 1
    each: float = 0  # seconds for one line,
    start: float = 4  # and more for the first of a process: a context, torch, a sanitizer
    one_line: bool = False  # a process for each line
    wants: tuple[str, ...] = ("device",)  # of the machine
    needs: tuple[str, ...] = ()  # other steps
    stage: int = 0  # steps of one stage run side by side
    background: bool = False  # and the stages go on; who needs it waits
    environment: tuple[tuple[str, str], ...] = ()


def of_runner(check: Check) -> list[str]:
    return [str(check.runner())]


def sanitizer(tool: str) -> Callable[[Check], list[str]]:
    return lambda check: ["compute-sanitizer", "--tool", tool, str(check.runner())]


def pytest(*arguments: str) -> Callable[[Check], list[str]]:
    """On several processes where pytest-xdist is there: the references are computed by the CPU."""
    def command(check: Check) -> list[str]:
        several = ["-n", "6"] if check.machine.has.get("xdist") else []
        return [check.python, "-m", "pytest", "-q", "-m", "gpu", *several, *arguments]

    return command


def built(check: Check) -> list[str]:
    return [check.python, "setup.py", "--quiet", "build_ext", "--inplace"]


def without_wgmma() -> list[str]:
    return [line for line in runner_lines.sanitized() if "algorithm=wgmma" not in line]


def profiler(check: Check) -> list[str]:
    """One command for all: a shell that goes on where one of them fails."""
    ncu = ["timeout", "-s", "INT", "-k", "2", "10", "ncu", "--section", "SpeedOfLight", "--section", "WarpStateStats",
           "--section", "MemoryWorkloadAnalysis", "--section", "Occupancy"]
    parts = [" ".join(["echo", f"'== {name}';", *ncu, str(check.runner()), line])
             for name, line in runner_lines.profiled()]
    return ["bash", "-c", "failed=0; " + "; ".join(f"{part} || failed=1" for part in parts) + "; exit $failed"]


def of_cases(check: Check) -> list[str]:
    return [check.python, "-m", "bench.gpu_cases"]


LAYER_TESTS = ("tests/cuda/test_gpu_layer.py", "tests/cuda/test_gpu.py", "-k",
               "test_gpu_layer or graph or stream or tf32 or two_devices or bias_and_relu or epilogues")
BUILDS = ("runner", "build")  # where they are named, they need no device
TORCH, TESTS = ("device", "torch"), ("device", "torch", "pytest")
STEPS = [
    Step("runner", "the runner, where no prebuilt one fits", 20, 170,
         lambda check: [sys.executable, "bench/gpu_runner.py", "--arch", *check.architectures()],
         wants=("device", "nvcc")),
    Step("build", "conv_ext with this torch; prebuilt libraries are taken", 30, 200, built,
         wants=("device", "torch", "nvcc", "toolkit"), needs=("runner",), background=True,
         environment=(("CONV_EXT_CUDA", "1"), ("CONV_EXT_PREBUILT", "1"))),
    Step("device", "what it runs on", 1, 20, lambda check: [str(check.runner()), "--device"], needs=("runner",),
         stage=1),
    Step("right", "which algorithm x dtype x pass is right", 10, 45, of_runner, runner_lines.everything, 8, 8,
         needs=("runner",), stage=1),
    Step("wgmma", "wgmma: what is right, what hangs", 10, 45, of_runner, runner_lines.wgmma, 4, 6, 2,
         one_line=True, needs=("runner",), stage=1),
    *(Step(tool, f"compute-sanitizer's {tool}", 10, 40, sanitizer(tool),
           without_wgmma if tool == "racecheck" else runner_lines.sanitized, 2, 15, 15,
           wants=("device", "compute-sanitizer"), needs=("runner",), stage=2)
      for tool in ("memcheck", "initcheck", "synccheck", "racecheck")),
    Step("layer", "streams, graphs, roads, errors, through torch", 20, 40, pytest(*LAYER_TESTS), wants=TESTS,
         needs=("build",), stage=3),
    Step("ceilings", "products and a copy, by torch", 8, 25, of_cases, gpu_cases.ceilings, each=10, start=30,
         wants=TORCH, needs=("build",), stage=4),
    Step("compare", "ratios to cuDNN, errors of both sides", 25, 125, of_cases, gpu_cases.lines, each=15, start=30,
         wants=TORCH, needs=("build",), stage=5),
    Step("sweep", "the plan's constants: algorithms, tiles, splits", 12, 55, of_runner, runner_lines.sweep, each=15,
         needs=("runner",), stage=6),
    Step("ncu", "why: one launch of each main kernel", 10, 25, profiler, wants=("device", "ncu"), needs=("runner",),
         stage=7),
    Step("networks", "training steps, converted and not", 40, 90,
         lambda check: [check.python, "-m", "bench", "network", "--device", "cuda", "--quick", "--layout",
                        "channels_last", "--what", "step", "--network", "alexnet", "vgg16", "resnet50", "--out",
                        str(check.work / "networks.json")], wants=TORCH, needs=("build",), stage=8),
    Step("tests", "every algorithm through torch, against float64", 60, 150,
         pytest("tests/cuda/test_gpu.py", "tests/cuda/test_gpu_wgmma.py"), wants=TESTS, needs=("build",), stage=9),
    Step("scaling", "the CPU's kernels on many cores", 25, 40,
         lambda check: [check.python, "-m", "bench", "scaling", "--threads", str(min(16, os.cpu_count() or 1)),
                        "--seconds", "0.5", "--out", str(check.work / "scaling.json")], wants=TORCH,
         needs=("build",), stage=10),
]


class Check:
    """One pass. What it knows of earlier ones lies in `work`: steps.jsonl, one line for each end of a step, and
    answers.jsonl, one for each answer."""

    def __init__(self, budget: float, steps: list[Step] = STEPS, work: Path = ROOT / "build" / "gpu_check",
                 out: Path = ROOT / "build" / "gpu_check_out"):
        self.began = time.monotonic()
        self.budget, self.steps, self.work, self.out = budget, steps, work, out
        self.python = os.environ.get("PYTHON") or "python3"
        self.machine = look(self.python)
        self.lacking: dict[str, str] = {}  # why a step cannot run here
        self.kernels = " ".join([gpu_runner.kernel_digest()[:12], *self.machine.capabilities()])
        self.everything = self._digest(self.machine.words())
        self.named: list[str] = []
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen] = set()
        self.stopped = threading.Event()
        self.threads: dict[str, threading.Thread] = {}  # of steps in the background
        self.all_threads: list[threading.Thread] = []
        work.mkdir(parents=True, exist_ok=True)
        self.ends = read_lines(work / "steps.jsonl")
        self.answers = read_lines(work / "answers.jsonl")
        self.of_this_pass: dict[str, str] = {}
        self.interrupted = False

    @staticmethod
    def _digest(words: Iterable[str]) -> str:
        folders = [ROOT / name for name in ("csrc", "bench", "tests", "conv_ext")]
        paths = [path for folder in folders for path in folder.rglob("*")
                 if path.suffix in (".py", ".sh", ".h", ".cuh", ".cu", ".cpp")]
        return gpu_runner.digest([*paths, ROOT / "setup.py"], *words)[:12]

    def left(self) -> float:
        return self.budget - RESERVE - (time.monotonic() - self.began)

    def runner(self) -> Path:
        given = os.environ.get("GPU_CHECK_RUNNER")
        return Path(given) if given else gpu_runner.FOLDER / "gpu_runner"

    def architectures(self) -> tuple[str, ...]:
        return gpu_runner.architectures_of(self.machine.capabilities())

    def runner_fault(self) -> str:
        """Why there is no runner for these devices."""
        if os.environ.get("GPU_CHECK_RUNNER"):
            return ""
        if not (gpu_runner.runner() and gpu_runner.library()):
            return "there is no runner of these sources"
        there = gpu_runner.record()["architectures"]
        unserved = [name for name in self.machine.capabilities() if not gpu_runner.serves(there, name)]
        return f"the runner is compiled for {' '.join(there)}, and the device is {unserved[0]}" if unserved else ""

    def lacks(self, step: Step) -> list[str]:
        """What a step wants of the machine, and is not there."""
        by_itself = step.name in BUILDS and step.name in self.named  # compiles for a device that is elsewhere
        return [want for want in step.wants if want in self.machine.lacks and not (want == "device" and by_itself)]

    def why_not(self, step: Step, chosen: list[Step]) -> str:
        """Why a step cannot run here; nothing where it can."""
        if wants := self.lacks(step):
            return "; ".join(self.machine.lacks[want] for want in wants)
        if step.name in BUILDS and step.name in self.named:
            return ""
        for name in step.needs:
            needed = next((other for other in chosen if other.name == name), None)
            if name == "runner":
                fault, also = self.runner_fault(), f', or `make gpu-runner ARCHS="{" ".join(self.architectures())}"`'
            else:
                there = (ROOT / "conv_ext" / "libconv_ext_operators.so").is_file()
                fault, also = "" if there else "conv_ext is not built", ""
            why = self.why_not(needed, chosen) if needed else ""
            if why:
                return f"{fault or 'conv_ext cannot be built'}: {why}"
            if fault and not needed:
                return f"{fault}: name {name}, too{also}"
        return ""

    def tell_machine(self, chosen: list[Step]) -> None:
        """What is here, what is not, and which steps are left out for that."""
        say(f"-- here: {self.machine.text()}")
        still = [step for step in chosen if self.named or self.state(step) != "done" or step.name in BUILDS]
        self.lacking = {step.name: why for step in still if (why := self.why_not(step, chosen))}
        left_out: dict[str, list[str]] = {}
        for step in still:
            for why in [self.machine.lacks[want] for want in self.lacks(step)] or [self.lacking.get(step.name)]:
                if why:
                    left_out.setdefault(why, []).append(step.name)
        for why, names in left_out.items():
            say(f"== left out: {', '.join(names)}: {why}")
        if (fault := self.runner_fault()) and any(s.name == "runner" for s in chosen) and "runner" not in self.lacking:
            say(f"-- {fault}: it is compiled for {' '.join(self.architectures())}")

    # ---- what is known

    def write(self, name: str, row: dict) -> None:
        with self.lock, (self.work / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            (self.ends if name == "steps" else self.answers).append(row)

    def state(self, step: Step) -> str:
        """How its last run ended: "done" counts while kernels and device are the same, "failed" while nothing has
        changed, and what was short of time or lacked something on the machine is tried again always.
        """
        for row in reversed(self.ends):
            if row["step"] == step.name:
                same = row["kernels"] == self.kernels
                if row["status"] == "done":
                    return "done" if same else "stale"
                return "failed" if row["status"] == "failed" and row["everything"] == self.everything else "again"
        return "new"

    def open_lines(self, step: Step) -> list[str]:
        """What has no answer of these kernels yet, or a bad one from before something changed; all, if it is named.

        What has no answer at all comes first.
        """
        known = {row["line"]: row for row in self.rows(step.name)}

        def is_open(line: str) -> bool:
            row = known.get(line)
            bad = row is not None and row.get("everything", self.everything) != self.everything
            return row is None or bad or row["kernels"] != self.kernels or step.name in self.named

        return sorted(filter(is_open, step.lines()), key=lambda line: line in known)

    def rows(self, name: str) -> list[dict]:
        """The last answer to each line."""
        return list({row["line"]: row for row in self.answers if row["step"] == name}.values())

    # ---- running

    def run_step(self, step: Step) -> None:
        began = time.monotonic()
        seconds = min(step.limit, self.left())
        say(f"-- {step.name}: {step.answers} (up to {seconds:.0f} s)")
        try:
            status, text = (self.run_lines if step.lines else self.run_command)(step, seconds)
        except OSError as error:  # there is no such program, or no room
            status, text = "missing", str(error)
        took = time.monotonic() - began
        self.of_this_pass[step.name] = status
        self.write("steps", {"step": step.name, "status": status, "text": text, "seconds": round(took, 1),
                             "kernels": self.kernels, "everything": self.everything})
        say(f"== {step.name} {status} after {took:.1f} s{': ' if text else ''}{text}")

    def environment(self, step: Step) -> dict[str, str]:
        found = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(step.environment)}
        if step.name == "build":
            names = [re.sub(r"(\d)(a?)$", r".\1\2", name) for name in self.architectures()]
            found.setdefault("TORCH_CUDA_ARCH_LIST", " ".join(names))
        return found

    def run_command(self, step: Step, seconds: float) -> tuple[str, str]:
        log = self.work / f"{step.name}.log"
        with log.open("w") as file:
            process = started(step.command(self), env=self.environment(step), stdin=subprocess.DEVNULL, stdout=file,
                              stderr=subprocess.STDOUT)
            self.running.add(process)
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return "short", f"{end(process)} after {seconds:.0f} s: {last_line(log)}"
            finally:
                self.running.discard(process)
                signal_group(process, signal.SIGKILL)  # what it has left behind
        if not status:
            return "done", last_line(log)
        if self.stopped.is_set():  # ended by us, whatever it makes of that
            return "short", "interrupted"
        text = telling(log.read_text(errors="replace").splitlines())
        # pytest has a 3 of its own.
        lacks = LACKING.search(text) if step.name != "device" else lacks_something(f"exit status {status}", [text])
        return "missing" if lacks else "failed", f"exit status {status}: {text}"

    def given_up(self, step: Step, status: str, text: str, said: list[str]) -> tuple[str, str]:
        """How a step ends whose programs do not answer; its log has what they said instead."""
        (self.work / f"{step.name}.log").write_text("\n".join([text, *said]) + "\n")
        return status, f"{text}: {telling(said)}" if said else text

    def run_lines(self, step: Step, seconds: float) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        todo, asked = self.open_lines(step), Counter()
        lines, broken, deaths, hangs = iter(todo), [], Counter(), Counter()
        environment, command = self.environment(step), step.command(self)
        (self.work / f"{step.name}.log").unlink(missing_ok=True)

        def work() -> None:
            program, row = None, {}
            try:
                while not (broken or self.stopped.is_set()):
                    with self.lock:
                        line = next(lines, None)
                    rest = deadline - time.monotonic()
                    if line is None or rest <= 0:
                        return
                    # The rest of an algorithm's pass that has hung would hang as well.
                    if hangs[kind := kind_of(line)] >= MOST_HANGS:
                        self.write("answers", {
                            "step": step.name, "line": line, "kernels": self.kernels, "everything": self.everything,
                            "verdict": f"skipped: {MOST_HANGS} others of its kind hung"})
                        asked["skipped"] += 1
                        continue
                    start = 0.0
                    if program is None:
                        program, start = Program(command, environment), step.start
                        self.running.add(program.process)
                    began = time.monotonic()
                    verdict, said = program.ask(line, min(step.each + start, rest))
                    out_of_time = verdict.startswith("hang") and rest < step.each + start
                    if verdict.startswith(("hang", "died", "failed")) or step.one_line:
                        said += program.close(verdict.startswith("hang"))
                        self.running.discard(program.process)
                        program = None
                    if out_of_time or self.stopped.is_set():
                        return
                    if verdict.startswith("died") and lacks_something(verdict, said):
                        broken.append(self.given_up(step, "missing", verdict, said))
                        return
                    hangs[kind] += verdict.startswith("hang")
                    deaths["in a row"] = deaths["in a row"] + 1 if verdict.startswith("died") else 0
                    if deaths["in a row"] >= MOST_DEATHS:
                        text = f"{MOST_DEATHS} processes died, one after the other"
                        broken.append(self.given_up(step, "failed", text, said))
                    if errors := [text for text in said if is_error(text)]:
                        verdict = f"wrong: {errors[0]}; its verdict: {verdict}"
                    row = {"step": step.name, "line": line, "verdict": verdict, "kernels": self.kernels,
                           "seconds": round(time.monotonic() - began, 3)}
                    if not verdict.startswith(GOOD):
                        row |= {"said": said[-30:], "everything": self.everything}
                    self.write("answers", row)
                    asked[verdict.split(":")[0]] += 1
            except OSError as error:
                broken.append(("missing", str(error)))
            finally:
                if program is not None:
                    late = [text for text in program.close() if is_error(text) and "ERROR SUMMARY" not in text]
                    self.running.discard(program.process)
                    if late and row:
                        self.write("answers", {**row, "verdict": f"wrong: {late[0]}", "said": late,
                                               "everything": self.everything})

        threads = [threading.Thread(target=work) for _ in range(min(step.processes, len(todo)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = ", ".join(f"{count} {what}" for what, count in asked.most_common()) or "nothing to ask"
        if broken:
            status, why = broken[0]
            return status, f"{text}; {why}"
        rest = len(todo) - sum(asked.values())
        if rest:
            return "short", f"{text}; {rest} lines are left"
        wrong = sum(not row["verdict"].startswith(GOOD) for row in self.rows(step.name))
        return ("failed", f"{text}; {wrong} not right") if wrong else ("done", text)

    def may_start(self, step: Step, named: bool) -> bool:
        if not named:
            state = self.state(step)
            if state == "done" and step.name not in ("runner", "build"):
                self.of_this_pass[step.name] = "done before"
                return False
            if state == "failed":
                self.of_this_pass[step.name] = "failed before"
                say(f"== {step.name} has failed before, and nothing has changed: name it to run it again")
                return False
        if step.name in self.lacking:
            self.of_this_pass[step.name] = f"not run: {self.lacking[step.name]}"
            return False
        for name in step.needs:
            if name in self.threads:
                say(f"-- {step.name} waits for {name}")
                self.threads[name].join(max(0.0, self.left()))
            if self.of_this_pass.get(name, "done") not in ("done", "done before"):
                self.of_this_pass[step.name] = f"not run: {name} {self.of_this_pass[name]}"
                say(f"== {step.name} is left out: {name} is not there")
                return False
        if self.left() < step.least:
            self.of_this_pass[step.name] = "not run: short of time"
            says = f"== {step.name} wants {step.least:.0f} s, and "
            if self.budget - RESERVE < step.least + MARGIN:  # another pass would have no more
                least = math.ceil(step.least + MARGIN + RESERVE)
                say(f"{says}BUDGET={self.budget:.0f} is too short for that: it must be {least} or more")
            else:
                say(f"{says}{max(0.0, self.left()):.0f} are left: start again")
            return False
        return True

    def run(self, named: Iterable[str] = ()) -> int:
        self.named = named = list(named)
        chosen = [step for step in self.steps if step.name in named or not named]
        if named and all(step.background for step in chosen):
            chosen = [replace(step, background=False) for step in chosen]
        try:
            if not named and not self.runner_fault():
                chosen = [step for step in chosen if step.name != "runner"]
            self.tell_machine(chosen)
            self.run_stages(chosen, bool(named))
            while not named and self.left() > 30:  # what was cut short goes on
                rest = [replace(step, limit=self.left()) for step in chosen
                        if step.lines and self.of_this_pass.get(step.name) == "short"]
                if not rest:
                    break
                self.run_stages(rest[:1], True)
        except KeyboardInterrupt:
            self.interrupted = True
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # what follows takes seconds
            say("== interrupted: what has been answered is kept")
        finally:
            self.stop()
        say(self.table())
        return self.status() if self.archive() else self.status() or 3

    def run_stages(self, steps: list[Step], named: bool) -> None:
        for stage in sorted({step.stage for step in steps}):
            threads = []
            for step in [step for step in steps if step.stage == stage]:
                if not self.may_start(step, named):
                    continue
                thread = threading.Thread(target=self.run_step, args=(step,), daemon=True)
                thread.start()
                self.all_threads.append(thread)
                if step.background:
                    self.threads[step.name] = thread
                elif any(step.name in other.needs and other.stage == stage for other in steps):
                    thread.join()  # others of this stage wait for it
                else:
                    threads.append(thread)
            for thread in threads:
                thread.join()
        for thread in self.threads.values():
            thread.join(max(0.0, self.left()))

    def stop(self) -> None:
        """Ends what still runs, all at once."""
        self.stopped.set()
        still = list(self.running)
        for process in still:
            signal_group(process, signal.SIGINT)
        deadline = time.monotonic() + (GRACE if still else 0)
        for process in still:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            signal_group(process, signal.SIGKILL)
        for thread in self.all_threads:
            thread.join(GRACE)

    # ---- telling

    def status(self) -> int:
        last = {row["step"]: row["status"] for row in self.ends}
        if any(last.get(step.name) == "failed" for step in self.steps):
            return 1
        done = all(self.of_this_pass.get(step.name, "done").startswith("done") for step in self.steps)
        return 0 if done and not self.interrupted else 3

    def table(self) -> str:
        parts = []
        compared = [json.loads(row["verdict"].split(": ", 1)[1]) for row in self.rows("compare")
                    if row["verdict"].startswith(("right", "wrong")) and "{" in row["verdict"]]
        if compared:
            machine = next((json.loads(row["verdict"].split(": ", 1)[1]) for row in self.rows("ceilings")
                            if row["line"] == "machine" and row["verdict"].startswith("right")), {})
            (self.work / "compare.json").write_text(json.dumps(gpu_cases.result(compared, machine), indent=1) + "\n")
            parts.append(gpu_cases.summary(compared))
        parts += [line for line in [best_of_sweep(self.rows("sweep"))] if line]
        measured = [row["verdict"].split(": ", 1)[1] for row in self.rows("ceilings")
                    if row["verdict"].startswith("right") and row["line"] != "machine"]
        parts += [f"Ceilings: {', '.join(measured)}"] if measured else []
        wrong = [row for row in self.answers_now() if not row["verdict"].startswith(GOOD)]
        if wrong:
            parts.append(f"{len(wrong)} answers are not right; the first of each step (all are in answers.jsonl):")
            for name in dict.fromkeys(row["step"] for row in wrong):
                of_step = [row for row in wrong if row["step"] == name]
                parts += [f"  {name}: {short(row['verdict'], 150)} | {row['line']}" for row in of_step[:3]]
                parts += [f"    {short(said, 150)}" for said in of_step[0].get("said", [])[-4:]]
        head = f"{'step':10} {'status':12} {'s':>6}  what"
        lines = [head]
        last = {row["step"]: row for row in self.ends}
        for step in self.steps:
            row = last.get(step.name)
            now = self.of_this_pass.get(step.name)
            if now and now.startswith("not run"):
                lines.append(f"{step.name:10} {'not run':12} {'':6}  {now.removeprefix('not run: ')}")
                continue
            status = row["status"] if row else "-"
            wrong = status not in ("done", "-")
            text = f"{row['seconds']:6.1f}  {short(row['text'], 200 if wrong else 110)}" if row else ""
            lines.append(f"{step.name:10} {status:12} {text}")
            log = self.work / f"{step.name}.log"
            if wrong and log.is_file():
                lines.append(f"{'':30}  all of it: {os.path.relpath(log)}")
        return "\n".join([*parts, "", *lines, f"this pass took {time.monotonic() - self.began:.0f} s"])

    def answers_now(self) -> list[dict]:
        return [row for step in self.steps if step.lines for row in self.rows(step.name)]

    def archive(self) -> bool:
        """What the check has written, and nothing else that lies there; whether it could."""
        target = self.out / "gpu_check.tar.gz"
        names = {"steps.jsonl", "answers.jsonl", "compare.json"}
        names |= {f"{step.name}.{kind}" for step in self.steps for kind in ("log", "json")}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with tarfile.open(target.with_suffix(".new"), "w:gz") as file:
                for path in sorted(self.work / name for name in names):
                    if path.is_file():
                        file.add(path, arcname=f"gpu_check/{path.name}")
            target.with_suffix(".new").replace(target)
        except OSError as error:
            say(f"there is no archive ({error}); what is known lies in {os.path.relpath(self.work)}")
            return False
        say(f"all of it: {os.path.relpath(target)}, {target.stat().st_size / 2**20:.1f} MiB")
        return True


def kind_of(line: str) -> str:
    """Pass, dtype, precision and algorithm."""
    return " ".join(word for word in line.split() if word.split("=")[0] in ("pass", "dtype", "precision", "algorithm"))


def is_error(said: str) -> bool:
    """A line by which compute-sanitizer tells of an error; its others are a head, details and a sum of zero."""
    return bool(re.match(r"=========\s+(Invalid|Uninitialized|Race|Error|Warning|Program hit|Barrier|Divergent|Missing|"
                         r"Potential|Out-of-range|Misaligned|Internal|ERROR SUMMARY: [1-9])", said))


def best_of_sweep(rows: list[dict]) -> str:
    """Of each problem, the ways that were timed, the fastest first."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        time_of = re.search(r", ([\d.e+-]+) ms", row["verdict"])
        if not time_of:
            continue
        words = dict(word.split("=") for word in row["line"].split())
        way = words["algorithm"]
        way += f" {words['tile_m']}x{words['tile_n']}" if "tile_m" in words else ""
        way += f" splits {words['splits']}" if "splits" in words else ""
        way += f" parts {words['parts']}" if "parts" in words else ""
        size = f"{words['c']}x{words['h']} {words['k']} {words['r']}x{words['s']}/{words['stride'].split(',')[0]}"
        name = f"{words['pass']} {words['dtype']} {words['precision']} {words['layout']} n={words['n']} {size}"
        name += f" groups={words['groups']}" if words["groups"] != "1" else ""
        groups.setdefault(name, []).append((float(time_of[1]), way))
    lines = [f"  {name}: " + ", ".join(f"{way} {ms:.3g} ms" for ms, way in sorted(ways)[:4])
             for name, ways in groups.items() if len(ways) > 1]
    more = f"  and {len(lines) - 24} more in answers.jsonl" if len(lines) > 24 else ""
    return "\n".join(["Sweep, the fastest first:", *lines[:24], *([more] if more else [])]) if lines else ""


def read_lines(path: Path) -> list[dict]:
    """Of a file that may end in the middle of a line."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def lacks_something(verdict: str, said: list[str]) -> bool:
    """Of a program that ended: whether that is due to the machine. Ours end with 3 where there is no device."""
    return bool(re.search(r"exit status (3|126|127)$", verdict) or any(map(LACKING.search, said)))


def telling(lines: list[str]) -> str:
    """The first line that tells of an error, at the beginning of a line; else the last."""
    lines = [line.rstrip() for line in lines if line.strip()]
    sign = re.compile(r"\b(error|fatal|Segmentation|Aborted|Killed)\b|^E  |^FAILED|\w(Error|Exception)\b|==ERROR==|" +
                      LACKING.pattern, re.IGNORECASE)
    nothing = re.compile(r"\b(no|0) errors?\b", re.IGNORECASE)
    found = [line for line in lines if sign.search(line) and not line[0].isspace() and not nothing.search(line)]
    return short((found or lines[-1:] or [""])[0].strip(), 200)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return short(lines[-1], 200) if lines else ""


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more: what is known is kept all the same
        print(text, flush=True)


def unpack(archive: Path, work: Path) -> None:
    """The plain files of an archive, which lie side by side in it."""
    with tarfile.open(archive) as file:
        work.mkdir(parents=True)
        for member in file:
            if member.isfile():
                (work / Path(member.name).name).write_bytes(file.extractfile(member).read())


def stop_on_term(*_) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    width = max(len(step.name) for step in STEPS)
    steps = "\n".join(f"  {step.name:{width}}  at least {step.least:3.0f} s, at most {step.limit:3.0f}: {step.answers}"
                      for step in STEPS)
    parser = argparse.ArgumentParser(prog="bench/gpu_check.sh", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__, epilog=f"steps:\n{steps}")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="these alone, again (default: all that are open)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.steps) - {step.name for step in STEPS})
    if unknown:
        parser.error(f"there is no step {unknown[0]}; there are {', '.join(step.name for step in STEPS)}")
    try:
        budget = float(os.environ.get("BUDGET") or 330)
    except ValueError:
        budget = math.nan
    if not RESERVE < budget < math.inf:  # and no NaN
        parser.error(f"BUDGET must be a number of seconds, more than {RESERVE:.0f}, got {os.environ['BUDGET']!r}")
    given = os.environ.get("GPU_CHECK_RUNNER")
    if given and not (os.path.isfile(given) and os.access(given, os.X_OK)):
        parser.error(f"GPU_CHECK_RUNNER must be a program, got {given}")
    # Also where a shell has started this in the background, and with it an interrupt that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop_on_term)
    work, out = folders = [Path(os.environ.get(name) or ROOT / "build" / usual).absolute()
                           for name, usual in (("GPU_CHECK_WORK", "gpu_check"), ("GPU_CHECK_OUT", "gpu_check_out"))]
    earlier = os.environ.get("GPU_CHECK_FROM")
    if earlier and not work.exists():
        try:
            unpack(Path(earlier), work)
        except (OSError, tarfile.TarError) as error:
            parser.error(f"GPU_CHECK_FROM must be an archive that an earlier pass has left: {error}")
    for name, folder in zip(("GPU_CHECK_WORK", "GPU_CHECK_OUT"), folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            parser.error(f"{name} must be a folder that can be written to, got {folder}: {error.strerror}")
    return Check(budget, STEPS, work, out).run(options.steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
