"""What a call survives: memory that cannot be had, Ctrl-C, many threads at once, threads that end."""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import conv_ext
from children import SUPPORT, run_python
from conv_ext import _C
from passes import PASSES, algorithms_by_precision, call, operands, same_bits
from problems import NETWORK, SMALL, THREADED, Problem

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at the process where Linux shows it")


# ---- memory


def outcomes(compute, wanted):
    """compute() once for each block of memory that it asks for, that one missing: "raised" or "computed"."""
    found = []
    for number in range(1000):
        _C.fail_block(number)
        try:
            got = compute()
        except RuntimeError as error:
            assert "conv_ext could not allocate" in str(error) and "bytes of" in str(error)
            found.append("raised")
        else:
            assert same_bits(got, wanted)
            found.append("computed")
        finally:
            reached = _C.fail_block(-1) < 0
        assert same_bits(compute(), wanted), "another result after memory was short"
        if not reached:
            return found[:-1]
    raise AssertionError("asks for memory without end")


@pytest.mark.parametrize("pass_name", PASSES)
def test_each_block_of_memory_may_be_missing(pass_name):
    """The workspace, the caller's scratch: an error. A worker's scratch: the others do its share."""
    threads = (1, 3)
    found = {count: [] for count in threads}
    for z, dtype in [(z, torch.float32) for z in SMALL + THREADED + NETWORK] + [(z, torch.bfloat16) for z in THREADED]:
        a, b = operands(pass_name, z, dtype, "signed")
        for how in algorithms_by_precision(pass_name, z, dtype):
            if how[0] == "reference":
                continue  # asks for none
            wanted = call(pass_name, a, b, z, None, *how)
            for count in threads:
                torch.set_num_threads(count)
                found[count] += outcomes(lambda: call(pass_name, a, b, z, None, *how), wanted)  # noqa: B023
    assert found[1].count("raised") > 50 and "computed" not in found[1]
    assert found[3].count("raised") > 50 and found[3].count("computed") > 50


def test_gradients_after_memory_was_short():
    x, w = torch.randn(2, 24, 14, 13, requires_grad=True), torch.randn(20, 24, 3, 3, requires_grad=True)
    wanted = torch.autograd.grad(conv_ext.conv2d(x, w, padding=1).square().sum(), (x, w))
    y = conv_ext.conv2d(x, w, padding=1).square().sum()
    _C.fail_block(0)
    with pytest.raises(RuntimeError, match="could not allocate"):
        y.backward(retain_graph=True)
    assert _C.fail_block(-1) < 0
    assert all(same_bits(a, b) for a, b in zip(torch.autograd.grad(y, (x, w)), wanted))


# ---- Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself a signal")
@pytest.mark.parametrize("train", [False, True])
def test_ctrl_c_in_a_long_call(train):
    """The call is finished, then KeyboardInterrupt is raised; the next call is right."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    w = torch.randn(64, 64, 3, 3, requires_grad=train)
    small = torch.randn(2, 64, 9, 9)
    wanted = conv_ext.conv2d(small, w)
    one = torch.ones(1)
    images = 1
    while True:  # as many images as take half a second
        start = time.perf_counter()
        conv_ext.conv2d(one.expand(images, 64, 56, 56), w)
        if time.perf_counter() - start > 0.5:
            break
        images *= 2
    returned = []
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        conv_ext.conv2d(one.expand(images, 64, 56, 56), w)
        returned.append(True)
        time.sleep(30)
    timer.join()
    assert not returned
    assert same_bits(conv_ext.conv2d(small, w), wanted)


# ---- threads


def in_threads(count, work):
    """work(index) in so many threads at once; what one raises is raised here."""
    errors = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def test_threads_that_call_at_once():
    """Eight threads, each with other shapes in turn, while the number of threads for one call changes."""
    cases = [
        (pass_name, z, dtype, operands(pass_name, z, dtype, "signed"))
        for z in SMALL + THREADED
        for pass_name in PASSES
        for dtype in (torch.float32, torch.bfloat16)
    ]
    wanted = [call(pass_name, *tensors, z) for pass_name, z, _, tensors in cases]

    def work(index):
        for turn in range(3 * len(cases)):
            if turn % 7 == 0:
                torch.set_num_threads(1 + (turn // 7 + index) % 3)
            i = (turn * 5 + index * 11) % len(cases)
            pass_name, z, _, tensors = cases[i]
            assert same_bits(call(pass_name, *tensors, z), wanted[i]), (pass_name, z)

    in_threads(8, work)


def test_layers_that_are_trained_in_threads_at_once():
    """A model for each thread, with its gradients: the bits of the same steps one after the other."""

    def train(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 6, 9 + seed, 11, generator=generator)
        w = torch.randn(8, 3, 3, 3, generator=generator).requires_grad_()
        for _ in range(10):
            loss = conv_ext.conv2d(x, w, padding=1, groups=2).square().mean()
            (gradient,) = torch.autograd.grad(loss, w)
            w = (w - 0.1 * gradient).detach().requires_grad_()
        return w

    wanted = [train(seed) for seed in range(6)]

    def work(index):
        assert same_bits(train(index), wanted[index])

    in_threads(6, work)


def status(name):
    """A line of /proc/self/status: bytes where it counts kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    number, *unit = line.split()[1:]
    return int(number) * (1024 if unit else 1)


@linux
def test_threads_that_end_give_their_memory_back():
    """A thread keeps up to 48 MiB from call to call: 16.8 MB here. 40 threads would keep 670 MB.

    The C library's allocator holds some of what it got back: as much after 20 threads as after 60.
    """
    z = Problem("kept", 1, 2048, 1, 1, 2048, 1, 1)
    a, b = operands("forward", z, torch.float32, "signed")
    sizes = (z.input_shape, z.weight_shape, z.output_shape)
    plan = _C.plan("forward", "float32", *sizes, z.stride, z.padding, z.dilation, z.groups)
    assert 8 << 20 < plan["workspace_bytes"] <= 48 << 20

    def work(_):
        torch.set_num_threads(2)
        call("forward", a, b, z)

    threads = status("Threads")

    def resident(rounds):
        for _ in range(rounds):
            in_threads(2, work)
        # What a thread keeps goes as it ends, which is a moment after Python has joined it; its own workers follow.
        deadline = time.monotonic() + 10
        while status("Threads") > threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status("Threads") <= threads
        return status("VmRSS")

    before = resident(10)
    assert resident(20) - before < 3 * plan["workspace_bytes"]


# ---- a process of its own


@pytest.fixture(scope="module")
def survivor():
    """What tests/support/survivor.py has printed, and how it ended."""
    return run_python("-X", "faulthandler", "-W", "ignore::DeprecationWarning", str(SUPPORT / "survivor.py"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_children_compute(survivor):
    lines = survivor.stdout.splitlines()
    assert "forked" in lines, survivor.stdout + survivor.stderr[-3000:]
    assert {"before the first call", "after the first call", "while threads compute", "loaded"} <= set(lines)


@linux
def test_a_process_with_little_memory(survivor):
    """An error that says what was too large, nothing kept of it, and the next call is right."""
    assert "memory is back" in survivor.stdout.splitlines(), survivor.stdout + survivor.stderr[-3000:]
    said = dict(line.split(": ", 1) for line in survivor.stdout.splitlines() if line.startswith("no memory for"))
    assert re.search(r"conv_ext could not allocate \d+ bytes of workspace", said["no memory for workspace"])
    assert "memory" in said["no memory for result"] and "memory" in said["no memory for gradient"]


def test_the_interpreter_ends_while_threads_compute(survivor):
    assert survivor.stdout.splitlines()[-1] == "ends", survivor.stdout
    assert survivor.returncode == 0 and survivor.stderr == "", survivor.stderr[-3000:]
