"""The fuzzer of layers (tests/fuzz/layers.py): its fixed part, the cases that failed once, and that it finds errors."""

import faulthandler
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz import layers
from fuzz.layers_case import WORDS, Case

import conv_ext
import conv_ext.autograd
import conv_ext.functional
from drawn import assume, given, st

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*options):
    """The program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, ROOT / "tests" / "fuzz" / "layers.py", *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)


def test_no_case_fails():
    """The same cases each time."""
    child = fuzz("--count", 2500, "--seed", 1)
    assert child.returncode == 0, child.stdout + child.stderr
    assert "2500 cases, 0 failed; 0 ended in torch's own code" in child.stdout


def test_cases_that_failed_once():
    corpus = ROOT / "tests" / "fuzz" / "corpus" / "layers.txt"
    child = fuzz("--corpus", corpus)
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.count("ok ") == sum(line[:1] not in "#\n" for line in corpus.read_text().splitlines(True))


@given(st.randoms(use_true_random=False))
def test_a_case_is_its_line(random):
    """hypothesis draws, so that a case that fails is one of the simplest."""
    case = Case.attempt(random)
    assume(case.problem() is None)
    assert Case.parse(str(case)) == case
    assert case.mode == "compile" or layers.failure_of(case) is None, str(case)
    for smaller in case.smaller():
        assert smaller != case


# ---- errors that are planted


def swapped_strides(monkeypatch):
    """Height and width confused, in calls with positional arguments only."""
    inner = conv_ext.conv2d

    def conv2d(x, w, b=None, stride=1, *more, **named):
        return inner(x, w, b, stride[::-1] if isinstance(stride, tuple) and more else stride, *more, **named)

    monkeypatch.setattr(conv_ext, "conv2d", conv2d)


def merged_dimensions(monkeypatch):
    """A kernel that covers its input is read as if it were contiguous."""
    inner = conv_ext.conv2d

    def conv2d(input, weight, *more, **named):
        if isinstance(weight, torch.Tensor) and isinstance(input, torch.Tensor) and weight.shape[2:] == input.shape[2:]:
            count = weight.untyped_storage().nbytes() // weight.itemsize - weight.storage_offset()
            if count >= weight.numel() and not weight.is_contiguous():
                weight = weight.as_strided(weight.shape, torch.empty(weight.shape).stride())
        return inner(input, weight, *more, **named)

    monkeypatch.setattr(conv_ext, "conv2d", conv2d)


def conjugate_forgotten(monkeypatch):
    """In the backward pass of complex convolutions."""
    monkeypatch.setattr(conv_ext.autograd, "_conj", lambda tensor: tensor)


def mask_forgotten(monkeypatch):
    """The gradient of the ReLU."""
    monkeypatch.setattr(conv_ext.autograd, "_mask", lambda values, *output: values)


def batch_left_out(monkeypatch):
    """The weight gradient of convolutions with three images."""
    inner = conv_ext.autograd.bias_grad
    monkeypatch.setattr(conv_ext.autograd, "bias_grad", lambda g: inner(g[:2] if g.shape[0] == 3 else g))


def padding_accepted(monkeypatch):
    """A negative padding counts as none."""
    inner = conv_ext.functional.normalize

    def normalize(function, input, weight, stride, padding, *more):
        return inner(function, input, weight, stride, 0 if padding == -1 else padding, *more)

    monkeypatch.setattr(conv_ext.functional, "normalize", normalize)


def output_padding_ignored(monkeypatch):
    """Of the width."""
    inner = conv_ext.functional._transposed

    def transposed(road, x, w, b, stride, padding, output_padding, *more):
        return inner(road, x, w, b, stride, padding, (output_padding[0], 0), *more)

    monkeypatch.setattr(conv_ext.functional, "_transposed", transposed)


def stale_bytes(monkeypatch):
    """A weight that is assigned leaves the packed bytes of the one before."""
    inner = conv_ext.PackedConv2d._take

    def take(self, **tensors):
        before = self._held["packed"]
        inner(self, **tensors)
        if before is not None:
            self._held["packed"] = before

    monkeypatch.setattr(conv_ext.PackedConv2d, "_take", take)


@pytest.mark.parametrize(
    "plant, kind",
    [
        (stale_bytes, ("values",)),
        (swapped_strides, ("shape", "values", "raises")),
        (merged_dimensions, ("values",)),
        (conjugate_forgotten, ("values",)),
        (mask_forgotten, ("values",)),
        (batch_left_out, ("values",)),
        (padding_accepted, ("accepts",)),
        (output_padding_ignored, ("shape", "raises")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_error_is_found(plant, kind, monkeypatch):
    """By the families as they are, and made small."""
    plant(monkeypatch)
    found = None
    for index in range(3000):
        case = layers.case_of(7, index)
        if case.mode == "compile":
            continue
        said = layers.failure_of(case)
        if said is not None and said.partition(":")[0] in kind:
            found = case
            break
    assert found is not None, "not found"

    def fails(candidate):
        said = layers.failure_of(candidate)
        return said is not None and said.partition(":")[0] in kind

    smaller = found.minimised(fails)
    assert fails(Case.parse(str(smaller)))
    assert len(str(smaller).split()) <= 8, str(smaller)


def test_what_hangs_or_crashes_is_named_and_the_run_goes_on(monkeypatch, capsys):
    """A convolution that never comes back for one dtype, and ends the process for another."""
    inner = conv_ext.conv2d

    def conv2d(input, *more, **named):
        while isinstance(input, torch.Tensor) and input.dtype == torch.complex64:
            pass
        if isinstance(input, torch.Tensor) and input.dtype == torch.float16:
            faulthandler.disable()  # the report of a crash that is meant would only alarm
            os.abort()
        return inner(input, *more, **named)

    monkeypatch.setattr(conv_ext, "conv2d", conv2d)
    monkeypatch.setattr(layers, "CPU_SECONDS", 0.3)
    status = layers.main(["--count", "150", "--seed", "3", "--examples", "0"])
    said = capsys.readouterr().out
    assert status == 1 and "x hang: it does not come back" in said and "x crash: SIGABRT" in said, said
    assert layers.alone(Case(dtype="complex64")) == "hang: it does not come back"
    assert layers.alone(Case(dtype="float16")) == "crash: SIGABRT"
    assert layers.alone(Case()) is None


@pytest.mark.parametrize("line, said", [
    ("n", "a case is key=value with keys"),
    ("n=1 n=2", "each once; got 'n=2'"),
    ("sizes=3", "got 'sizes=3'"),
    ("n=x", "n must be an integer, got 'x'"),
    ("stride=1", "stride must be two integers with a comma between them, got '1'"),
    ("stride=0,1", "strides and dilations must be positive: "),
    ("h=2 r=3", "there is no output: "),
    ("padding=much", "padding must be two integers with a comma between them, or one of valid, same, full"),
    ("function=conv9d n=2", "function must be one of conv2d, conv1d, conv_transpose1d, conv_transpose2d, got 'conv9d'"),
    ("dtype=float8", "dtype must be one of float32, float64,"),
    ("memory_x=q1", "memory_x must be as layers_memory.py describes it, got 'q1'"),
])  # fmt: skip
def test_a_case_that_is_not_one_is_an_error(line, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        layers.main(["--case", line])
    error = capsys.readouterr().err.partition("error:")[2]
    assert stopped.value.code == 2 and said in error


def test_every_word_that_is_drawn_is_known():
    """And the other way round: each that is known is drawn sooner or later, "compile" and wrong arguments aside."""
    cases = [layers.case_of(11, index) for index in range(3000)]
    for name, words in WORDS.items():
        drawn = {getattr(case, name) for case in cases}
        assert drawn <= set(words) and (name in ("bad", "mode", "needs") or drawn == set(words)), name
