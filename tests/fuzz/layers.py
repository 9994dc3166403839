"""The fuzzer of layers: public functions and layers, drawn at random, against torch in float64.

    python -m tests.fuzz.layers --count 20000 --seed 7 --processes 2
    python -m tests.fuzz.layers --seconds 600 --library build/fuzz/address/libconv_ext_avx2.so
    python -m tests.fuzz.layers --case "function=conv1d n=2 w=9 s=3"

Cases follow from --seed alone. They run in child processes: one that crashes or does not come back is named, and the
run goes on behind it. What fails is made smaller and printed as one line, which --case runs again. The exit status is 1
if anything failed.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import signal
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder as `fuzz`
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))  # tolerance, problems

import torch
import torch._dynamo

import conv_ext
from fuzz.layers_bad import check_bad, check_fused
from fuzz.layers_case import Case
from fuzz.layers_check import Wrong, check

STAGES = ("between two cases", "ours", "torch")
MEMORY = 12 * 2**30  # of a child: what asks for exabytes fails at once, what asks for less does not take the machine
CPU_SECONDS, WALL_SECONDS = 20.0, 120.0
SLOW = 10  # times as long for what compiles
_fork = multiprocessing.get_context("fork")


def case_of(seed: int, index: int) -> Case:
    return Case.draw(random.Random(f"{seed}:{index}"))


def failure_of(case: Case, stage: Callable[[str], None] = lambda name: None) -> str | None:
    """What is wrong with a case, run in this process; None where nothing is."""
    try:
        (check_bad if case.bad else check_fused if case.way == "fuse" else check)(case, stage)
    except Wrong as wrong:
        return str(wrong)
    return None


class Place:
    """Where a child is, in memory that its parent sees: index of the case, since when, whose code."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.enter(-1, "between two cases")

    def enter(self, index: int, stage: str) -> None:
        struct.pack_into("qdq", self._memory, 0, index, time.monotonic(), STAGES.index(stage))

    def stage(self, name: str) -> None:
        struct.pack_into("q", self._memory, 16, STAGES.index(name))

    def read(self) -> tuple[int, float, str]:
        index, since, stage = struct.unpack_from("qdq", self._memory, 0)
        return index, since, STAGES[stage]


def _slow(case: Case) -> int:
    return SLOW if case.mode == "compile" else 1


def _child(cases: Iterator[tuple[int, Case]], place: Place, pipe, limit_memory: bool) -> None:
    """Runs cases one after the other, and tells the parent of each that fails."""
    torch.set_num_threads(1)
    if limit_memory:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    ran: Counter = Counter()
    for index, case in cases:
        place.enter(index, "ours")
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS * _slow(case))
        said = failure_of(case, place.stage)
        signal.setitimer(signal.ITIMER_PROF, 0)
        place.enter(index, "between two cases")
        if said is not None:
            pipe.send(("failed", index, str(case), said))
        ran[case.way, case.function, "bad" if case.bad else case.mode, case.dtype] += 1
        if sum(ran.values()) >= 200:
            pipe.send(("ran", ran))
            ran = Counter()
    pipe.send(("ran", ran))


class Worker:
    """A child and what its parent knows of it."""

    def __init__(self, cases: Callable[[int], Iterator[tuple[int, Case]]], first: int, limit_memory: bool):
        self.place, (self.pipe, theirs) = Place(), _fork.Pipe(duplex=False)
        self.process = _fork.Process(target=_child, args=(cases(first), self.place, theirs, limit_memory))
        self.process.start()
        theirs.close()

    def messages(self) -> Iterator[tuple]:
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except EOFError:
            pass

    def late(self, slow: Callable[[int], int]) -> bool:
        index, since, stage = self.place.read()
        return stage != STAGES[0] and time.monotonic() - since > WALL_SECONDS * slow(index)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def ended(worker: Worker) -> str | None:
    """What a child that has ended shows of the case that it was at; None where it has come to its end by itself."""
    code = worker.process.exitcode
    if code == 0:
        return None
    if code in (-signal.SIGPROF, -signal.SIGKILL):
        return "hang: it does not come back"
    return f"crash: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def alone(case: Case, limit_memory: bool = True) -> str | None:
    """The failure of a case in a child of its own."""
    worker = Worker(lambda first: iter([(0, case)]), 0, limit_memory)
    while worker.process.exitcode is None:
        worker.process.join(0.2)
        if worker.late(lambda index: _slow(case)):
            worker.kill()
    said = ended(worker)
    stage = worker.place.read()[2]
    if said is not None:
        return None if stage == "torch" else said  # torch's own crash is none of ours
    return next((message[3] for message in worker.messages() if message[0] == "failed"), None)


def kind_of(said: str) -> str:
    """Failures that are alike: the words without the numbers."""
    return re.sub(r"[-(]*\d[\d.,e+() -]*|inf|nan", "#", said)[:60]


class Report:
    """Prints what fails, each kind made smaller once or a few times."""

    def __init__(self, write: Callable[[str], None], examples: int, limit_memory: bool):
        self.write, self.examples, self.limit_memory = write, examples, limit_memory
        self.kinds: Counter = Counter()
        self.ran: Counter = Counter()
        self.of_torch = 0

    def failed(self, line: str, said: str) -> None:
        kind = kind_of(said)
        self.kinds[kind] += 1
        if self.kinds[kind] > self.examples:
            return
        self.write(f"FAILED {said}\n  found {line}")
        word = said.partition(":")[0]

        def fails(case: Case) -> bool:
            again = alone(case, self.limit_memory)
            return again is not None and again.partition(":")[0] == word

        case = Case.parse(line)
        if not fails(case):
            self.write("  it does not fail alone, or not again")
            return
        smaller = case.minimised(fails, attempts=150 if word != "hang" else 12)
        self.write(f"  case {smaller}\n       {alone(smaller, self.limit_memory)}")

    def summary(self) -> str:
        total = sum(self.ran.values())
        lines = [f"{total} cases, {sum(self.kinds.values())} failed; {self.of_torch} ended in torch's own code"]
        for place, name in enumerate(("way", "function", "mode", "dtype")):
            counts: Counter = Counter()
            for cell, count in self.ran.items():
                counts[cell[place]] += count
            lines.append(f"  {name}: " + ", ".join(f"{key} {count}" for key, count in counts.most_common()))
        lines += [f"  {count} x {kind}" for kind, count in self.kinds.most_common()]
        return "\n".join(lines)


def campaign(options, report: Report, progress) -> None:
    """Cases 0, 1, ... of a seed, until there are enough or the time is over."""
    end = time.monotonic() + options.seconds if options.seconds else None
    count = options.first + (options.count if options.count is not None else (2**62 if end else 20_000))
    step = options.processes

    def cases(first: int) -> Iterator[tuple[int, Case]]:
        for index in range(first, count, step):
            if end is not None and time.monotonic() > end:
                return
            yield index, case_of(options.seed, index)

    def slow(index: int) -> int:
        return _slow(case_of(options.seed, index))

    workers = [
        Worker(cases, first, report.limit_memory) for first in range(options.first, min(options.first + step, count))
    ]
    while workers:
        multiprocessing.connection.wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], timeout=1)
        for worker in list(workers):
            if worker.late(slow):
                worker.kill()
            running = worker.process.exitcode is None
            for message in worker.messages():
                if message[0] == "ran":
                    report.ran.update(message[1])
                    progress(sum(message[1].values()), sum(report.kinds.values()))
                else:
                    report.failed(*message[2:])
            if running:
                continue
            worker.process.join()
            workers.remove(worker)
            said = ended(worker)
            if said is None:
                continue
            index, _, stage = worker.place.read()
            if stage == "torch":
                report.of_torch += 1
                report.write(f"torch itself: {said}\n  found {case_of(options.seed, index)}")
            elif index >= 0:
                report.failed(str(case_of(options.seed, index)), said)
            else:
                raise RuntimeError(f"a child did not start: {said}")
            if index + step < count:
                workers.append(Worker(cases, index + step, report.limit_memory))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.layers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, help="how many cases (20000, or as many as --seconds lets)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case: a long run in parts")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--case", action="append", default=[], help="run this case alone; may be given again")
    parser.add_argument("--corpus", type=Path, help="run the cases of a file, one a line, # begins a remark")
    parser.add_argument("--library", type=Path, help="another kernel library, such as one under a sanitizer")
    parser.add_argument("--examples", type=int, default=2, help="how many failures of a kind are made smaller")
    options = parser.parse_args(arguments)
    if options.library:
        conv_ext._C.load_kernel_library(str(options.library.resolve()))
    limit_memory = "libasan" not in os.environ.get("LD_PRELOAD", "")  # it reserves terabytes for itself
    lines = list(options.case)
    if options.corpus:
        lines += [line.partition("#")[0].strip() for line in options.corpus.read_text().splitlines()]
    if lines := [line for line in lines if line]:
        try:
            chosen = [Case.parse(line) for line in lines]
        except ValueError as error:
            parser.error(str(error))
        failed = 0
        for case in chosen:
            said = alone(case, limit_memory)
            failed += said is not None
            print(f"{'ok' if said is None else 'FAILED'} {case}" + (f"\n  {said}" if said else ""))
        return int(failed > 0)

    from tqdm import tqdm

    total = options.count or (None if options.seconds else 20_000)
    with tqdm(total=total, unit=" cases", mininterval=1 if sys.stderr.isatty() else 30, smoothing=0.05) as bar:

        def progress(more: int, failures: int) -> None:
            bar.set_postfix(failed=failures, refresh=False)
            bar.update(more)

        report = Report(lambda text: bar.write(text, file=sys.stdout), options.examples, limit_memory)
        campaign(options, report, progress)
    print(report.summary(), flush=True)
    return int(bool(report.kinds))


if __name__ == "__main__":
    sys.exit(main())
