"""What PyTorch does not promise and the package leans on: one test for each, so that a new version says which broke."""

import inspect

import pytest
import torch

from conv_ext import autograd, ops, settings


def leaves():
    return [torch.randn(shape, requires_grad=True) for shape in ((2, 4, 6, 7), (6, 2, 3, 2), (6,))]


def test_a_single_level_function_lacks_what_functorch_and_signatures_need_alone():
    """torch 2.13 decides by the class whose `apply` is called, 2.14 by whether torch.autograd.Function is a base."""
    base = torch.autograd.function._SingleLevelFunction
    assert torch.autograd.Function.__bases__ == (base,)
    own = {name for name in vars(torch.autograd.Function) if not name.startswith("__")} - {"_backward_cls"}
    assert own == {"generate_vmap_rule", "vmap", "apply", "_compiled_autograd_key"}
    with pytest.raises(ValueError, match="no signature"):  # which is bound by nobody, then
        inspect.signature(autograd._C.forward)
    x, w, b = leaves()
    arguments = (x, w, b, (2, 1), (1, 1, 0, 0), (1, 2), 2, "ieee", "auto", "none", None, 0.0, 0.0)
    results = [autograd.Forward.apply(*arguments)]
    for apply in (autograd._single_level(autograd.Forward), autograd.plain_forward):
        assert apply.__self__.__bases__ == (base,) and not inspect.isfunction(apply)
        results.append(apply(*arguments))
        assert torch.equal(results[0], results[-1])
    gradients = [torch.autograd.grad(result.sin().sum(), (x, w, b)) for result in results]
    assert all(torch.equal(first, other) for found in gradients for first, other in zip(gradients[0], found))


def test_a_single_level_function_needs_leave_under_functorch():
    apply = autograd._single_level(autograd.AddBias)

    def f(x):
        return apply(x, torch.zeros(2, dtype=x.dtype)).sum()

    with pytest.raises(RuntimeError, match="getSingleLevelAutogradFunctionAllowed"):
        torch.func.grad(f)(torch.randn(1, 2, 3, 4))
    with autograd.enable_single_level_autograd_function():
        assert torch.equal(torch.func.grad(f)(torch.randn(1, 2, 3, 4)), torch.ones(1, 2, 3, 4))


def test_forward_mode_switch():
    assert torch._C._is_fwd_grad_enabled()
    with autograd.forward_ad._set_fwd_grad_enabled(False):
        assert not torch._C._is_fwd_grad_enabled()
    assert torch._C._is_fwd_grad_enabled()
    levels = [autograd.forward_ad._current_level]
    with autograd.forward_ad.dual_level():
        levels.append(autograd.forward_ad._current_level)
    assert levels == [-1, 0]


def test_dispatch_guards():
    x, w = torch.randn(1, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 2, 3)
    arguments = (x, w, None, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    with autograd._below_autograd():
        assert not ops.forward(*arguments).requires_grad
    with torch.autocast("cpu", torch.bfloat16), torch._C._ExcludeDispatchKeyGuard(ops._AUTOCAST_KEYS):
        assert ops.forward(*arguments).dtype == torch.float32
    assert ops.forward(*arguments).requires_grad


def test_precision_getter_is_the_public_property():
    conv, old = torch.backends.mkldnn.conv, torch.backends.mkldnn.conv.fp32_precision
    try:
        for value in ("ieee", "tf32", "bf16"):
            conv.fp32_precision = value
            assert settings._read_fp32_precision("mkldnn", "conv") == conv.fp32_precision == value
    finally:
        conv.fp32_precision = old
    assert settings._read_fp32_precision("cuda", "conv") == torch.backends.cudnn.conv.fp32_precision


def test_the_mark_of_a_constant_result_is_what_the_decorator_sets():
    def plain():
        return 1

    assert torch.compiler.assume_constant_result(plain) is plain
    assert vars(plain) == vars(settings.torch_precision)


def test_the_operands_of_which_one_requires_a_gradient():
    x = torch.randn(2)
    assert not torch._C._any_requires_grad(x, None, (1, 2), "text")
    assert torch._C._any_requires_grad(x, x.clone().requires_grad_(), 1)


def test_a_primal_without_its_tangent():
    x = torch.randn(2, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        primal, tangent = torch._VF._unpack_dual(dual, level=0)
        assert torch.equal(primal, x) and torch.equal(tangent, torch.ones_like(x))
        assert torch._VF._unpack_dual(primal, level=0).tangent is None


def test_sharding_strategies_are_registered_as_torch_registers_its_own(monkeypatch, caplog):
    from torch.distributed.tensor import DTensor

    from conv_ext import sharding

    known = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
    assert {ops.forward, ops.forward_packed, ops.input_grad, ops.weight_grad} <= known.keys()
    monkeypatch.delattr(DTensor, "_op_dispatcher")
    sharding._register()
    assert "registers sharding strategies otherwise" in caplog.text
