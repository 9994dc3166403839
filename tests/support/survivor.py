"""Run by test_survival.py in a process of its own, which prints what it has survived.

Forks before and after the first call, in every way people do: GNU's OpenMP loses its threads in a forked child, and
without what csrc/torch/fork.h does, the children here hang. Then little memory, and an end while threads compute.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time

import torch
from torch.utils.data import DataLoader, Dataset

import conv_ext

SECONDS = 10
X, W = torch.randn(4, 32, 40, 40), torch.randn(32, 32, 3, 3)


def compute():
    return conv_ext.conv2d(X, W, padding=1)


def train():
    w = W.clone().requires_grad_()
    return torch.autograd.grad(conv_ext.conv2d(X, w, padding=1).square().sum(), w)[0]


def child_of(work, where):
    """work() in a forked child, which has SECONDS to end with success."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(where, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert how == 0, f"{where}: the child ended with {how}"
            print(where, flush=True)
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"{where}: the child hangs")


def check(wanted):
    assert torch.equal(compute(), wanted)


def check_threads(wanted):
    """Another number of threads, and a thread's own pool, in the child."""
    for count in (1, 3, 2):
        torch.set_num_threads(count)
        check(wanted)
    thread = threading.Thread(target=check, args=(wanted,))
    thread.start()
    thread.join()


def computes_or_raises():
    """PyTorch may refuse gradients in a child of a process that has formed some."""
    try:
        train()
    except RuntimeError as error:
        assert "fork" in str(error), error


class Filtered(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        torch.set_num_threads(2)  # a worker has one else
        return conv_ext.conv2d(X[index % 4], W, padding=1)


def filtered(index):
    return conv_ext.conv2d(X[index % 4], W, padding=1).numpy()


def forks():
    torch.set_num_threads(2)
    child_of(compute, "before the first call")
    child_of(train, "training before the first call")
    wanted = compute()
    child_of(lambda: check(wanted), "after the first call")
    check(wanted)
    child_of(lambda: check_threads(wanted), "threads in the child")
    child_of(lambda: child_of(lambda: check(wanted), "child of a child"), "child with a child")

    X.add(1)  # torch's own operators start the pool as well
    child_of(lambda: check(wanted), "after an operator of torch")
    train()
    child_of(computes_or_raises, "training after training")

    stop = threading.Event()

    def busy():
        while not stop.is_set():
            compute()

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        child_of(lambda: check(wanted), "while threads compute")
    stop.set()
    for thread in threads:
        thread.join()

    for image, got in enumerate(DataLoader(Filtered(), batch_size=None, num_workers=2, multiprocessing_context="fork")):
        assert torch.equal(got, wanted[image % 4])
    print("loaded", flush=True)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for image, got in enumerate(pool.map_async(filtered, range(8)).get(SECONDS)):
            assert torch.equal(torch.from_numpy(got), wanted[image % 4])
    print("forked", flush=True)


def virtual_size():
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def little_memory():
    """Calls that need more than the process may have, each followed by one that does not."""
    import resource

    one, wanted = torch.ones(1), compute()
    pixel = torch.ones(1, 8192, 1, 1)  # channels side by side: lanes are channels, for which weights are packed
    huge = {
        "workspace": lambda: conv_ext.conv2d(pixel, one.expand(8192, 8192, 1, 1)),  # packs 268 MB of weights
        "result": lambda: conv_ext.conv2d(one.expand(1, 1, 10_000, 10_000), one.expand(1, 1, 1, 1)),  # 400 MB
        "gradient": lambda: torch.ops.conv_ext.weight_grad(pixel, pixel, (1, 1), (1, 1), (0,) * 4, (1, 1), 1),  # 268 MB
    }
    size = virtual_size()
    resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), resource.RLIM_INFINITY))
    for turn in range(20):
        for name, work in huge.items():
            try:
                work()
            except RuntimeError as error:
                if turn == 0:
                    print(f"no memory for {name}: {str(error).splitlines()[0]}", flush=True)
            else:
                raise AssertionError(f"{name}: computed without memory")
            check(wanted)
        if turn == 0:
            size = virtual_size()
    assert virtual_size() - size < 8 << 20, f"{virtual_size() - size} bytes more than before"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert torch.equal(huge["workspace"](), torch.full((1, 8192, 1, 1), 8192.0))
    print("memory is back", flush=True)


def leave_threads_computing():
    """Daemon threads that compute as long as the process lasts: its end must not be an abort.

    Their results are kept: a thread that frees a tensor when the interpreter ends aborts in torch's own code (up to
    Python 3.13), whichever operator the tensor came from.
    """
    started = threading.Semaphore(0)
    kept = []

    def work():
        started.release()
        while True:
            kept.append(conv_ext.conv2d(X, W, stride=8))  # 16 KB each

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(3):
        started.acquire()
    print("ends", flush=True)


if __name__ == "__main__":
    if hasattr(os, "fork"):
        forks()
    if sys.platform == "linux":
        little_memory()
    leave_threads_computing()
