"""Without the fast road everything goes through the dispatcher: the same results and errors, by the operators alone."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from children import run_python
from conv_ext import _by_dispatcher

TESTS = Path(__file__).parent
needs_fast_road = pytest.mark.skipif(not conv_ext._C.HAS_FAST_ROAD, reason="no fast road for this torch and Python")


def test_quick_tests_pass_without_it():
    files = [str(TESTS / f"test_{name}.py") for name in ("autograd", "errors", "drop_in", "func")]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "quick and not exhaustive", *files]
    child = run_python(*words, CONV_EXT_FAST_ROAD="0")
    assert child.returncode == 0 and int(re.search(r"(\d+) passed", child.stdout)[1]) > 20, child.stdout[-4000:]


def test_what_says_which_road_there_is():
    script = "import conv_ext; print(conv_ext.build_info()['fast_road'])"
    assert run_python("-c", script, CONV_EXT_FAST_ROAD="0").stdout.strip() == "False"
    assert run_python("-c", script).stdout.strip() == str(conv_ext._C.HAS_FAST_ROAD)
    child = run_python("-c", script, CONV_EXT_FAST_ROAD="yes")
    assert "CONV_EXT_FAST_ROAD must be 0 or 1, got 'yes'" in child.stderr


@pytest.mark.skipif(os.environ.get("CONV_EXT_FAST_ROAD") == "0", reason="CONV_EXT_FAST_ROAD=0 leaves it out")
def test_a_build_has_the_fast_road_of_its_own_torch_and_python():
    """Where it got lost, what is skipped here for want of it would pass unseen."""
    build = conv_ext.build_info()
    if (build["torch"], build["python"]) == (torch.__version__, sys.implementation.cache_tag):
        assert conv_ext._C.HAS_FAST_ROAD


@needs_fast_road
def test_both_name_the_same_road():
    """For whatever a call may be in."""
    x, w, b = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)
    seen = set()

    def compare(*operands):
        found = _by_dispatcher.road(*operands)
        assert found.name == conv_ext._C.road(*operands).name
        seen.add(found.name)

    class Own(torch.Tensor):
        pass

    parameter = torch.nn.Parameter(w)
    for operands in (
        (x, w, None), (x, parameter, b), (x.to("meta"), w, None), (x, w.to("meta"), b), (1, w, None), (x, w, 1),
        (x.as_subclass(Own), w, None), (x, w, b, b), (torch.view_as_complex(torch.randn(1, 2, 5, 2)).conj(), w, None),
        (x.to_sparse(), w, None),
    ):  # fmt: skip
        compare(*operands)
    with torch.no_grad():
        compare(x, parameter, b)
    with torch.inference_mode():
        compare(x, parameter, b), compare(x + 1, w, None)
    with torch.autocast("cpu", torch.bfloat16):
        compare(x, w, b)
    with torch.device("cpu"):  # a mode of __torch_function__
        compare(x, w, b)
    with torch.autograd.forward_ad.dual_level():
        compare(torch.autograd.forward_ad.make_dual(x, x), w, b), compare(x, w, b)
    torch.func.vmap(lambda x: compare(x, w, b) or x)(x)
    torch.func.grad(lambda x: compare(x, w, b) or x.sum())(x)
    assert seen == {"GENERAL", "PLAIN", "PLAIN_GRADIENT"}


@needs_fast_road
def test_the_memory_of_results_is_torchs():
    """The operators compute what torch calls channels_last by themselves."""
    generator = torch.Generator().manual_seed(5)
    pick = lambda values: values[int(torch.randint(len(values), (), generator=generator))]  # noqa: E731
    for _ in range(300):
        size = [pick([1, 1, 2, 3]) for _ in range(4)]
        order = torch.randperm(4, generator=generator).tolist()
        x = torch.randn([size[d] for d in order], generator=generator).permute([order.index(d) for d in range(4)])
        if pick([True, False]):
            x = torch.randn(size[0], size[1] + 1, size[2], size[3] + 1)[:, 1:, :, 1:]
        if pick([True, False]):
            x = x.as_strided(x.shape, [pick([s, 1]) if n == 1 else s for n, s in zip(x.shape, x.stride())])
        w = torch.randn(2, x.shape[1], 1, 1)
        assert conv_ext.conv2d(x, w).stride() == torch.conv2d(x, w).stride(), (x.shape, x.stride())
        format_ = torch._prims_common.suggest_memory_format(x)
        wanted = torch.empty(2, 3, 4, 5).to(memory_format=format_).stride()
        big = torch.ops.conv_ext.forward(x, torch.randn(4, x.shape[1], 1, 1), None, [1, 1], [2, 2, 2, 2], [1, 1], 1)
        assert big.is_contiguous(memory_format=format_), (x.shape, x.stride(), wanted)


def test_strings_of_a_call_are_given_back():
    """A kernel behind the stable interface owns the copies of its arguments."""
    import resource

    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3)

    def calls(count):
        for _ in range(count):
            torch.ops.conv_ext.forward(
                x, w, None, [1, 1], [0, 0, 0, 0], [1, 1], 1, "ieee", "auto", "none", None, 0.0, 0.0
            )

    calls(2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(20000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1000 * (1024 if sys.platform == "darwin" else 1), f"{grown} KiB for 20,000 calls"
