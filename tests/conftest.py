"""What all tests share: the seed, the number of threads, what is quick, and fixtures."""

import signal

import pytest
import torch

from conv_ext.library import available_isas
from devices import DEVICES, on
from drawn import settings
from fibres import FLAGS, ROOT, build, build_for_device, build_for_every_architecture
from passes import instruction_set, repeats

# The same examples on every run, and nothing written beside the checkout.
if settings is not None:
    settings.register_profile("conv_ext", deadline=None, derandomize=True, database=None, max_examples=40)
    settings.load_profile("conv_ext")


# A shell starts what it runs in the background with interrupts ignored, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Of `make check`: files that take seconds and between them touch everything; passes.CASES marks the smallest problems.
QUICK = set(
    "adjoint bench_reports convert cuda_plan drop_in errors func mapped mathematics merge modules "
    "padding settings structure".split()
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker(pytest.mark.quick)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def repeatable():
    """One thread: results are the same for any number (test_determinism), and others may want the cores."""
    torch.manual_seed(1)
    torch.set_num_threads(1)


ISAS = [pytest.param(isa, marks=pytest.mark.exhaustive if repeats(isa) else ()) for isa in available_isas()]


@pytest.fixture(params=ISAS)
def each_isa(request):
    """The test once under every instruction set that this processor has.

    One whose kernels are those of another is for `make test-all`: what differs is tried by check_pass.
    """
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def each_device(request):
    """The test on the CPU and on a GPU; what it makes with the functions of tests/support/devices.py is there."""
    with on(request.param) as device:
        yield device


@pytest.fixture(scope="session")
def program():
    """The CUDA kernels on fibres."""
    return build(ROOT / "csrc", FLAGS)


@pytest.fixture(scope="session")
def gpu_program():
    """The same for a device (bench/gpu_runner.py), where nvcc is."""
    return build_for_device()


@pytest.fixture(scope="session")
def full_gpu_program():
    """All of its kernels, for every architecture; for exhaustive tests."""
    return build_for_every_architecture()
