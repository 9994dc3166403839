"""Wrong arguments, which must raise where torch raises, and models that are fused: parts of the fuzzer of layers."""

from __future__ import annotations

import ast
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conv_ext

from .layers_case import RULES, Case
from .layers_check import ERRORS, Operands, Stage, Wrong, arguments, called, layer_of, widened

# What torch computes and ours refuses by its documented rules: other dtypes, and tensors without memory.
REFUSED_BY_RULE = ("int64", "bool", "meta")


def spoilt(case: Case, t: Tensor | None, what: str):
    """A tensor with one thing wrong."""
    if t is None or what == "none":
        return None
    if what == "rank+1":
        return t[None]
    if what == "rank-1":
        return t[0] if t.dim() and t.shape[0] else t
    if what == "channels+1":
        dim = t.dim() - (2 if case.one_row else 3) if t.dim() > 1 else 0
        return torch.cat([t, t.narrow(dim, 0, 1)], dim) if t.shape[dim] else t
    if what == "list":
        return t.tolist()
    if what == "numpy":
        return (
            t.resolve_conj().resolve_neg().float().numpy()
            if t.dtype == torch.bfloat16
            else t.resolve_conj().resolve_neg().numpy()
        )
    if what in ("int64", "bool"):
        return t.real.to(getattr(torch, what)) if t.is_complex() else t.to(getattr(torch, what))
    if what == "other":
        return t.to(torch.float32 if t.dtype == torch.float64 else torch.float64)
    if what == "meta":
        return t.to("meta")
    if what == "sparse":
        return t.resolve_conj().resolve_neg().to_sparse()
    if what == "scalar":
        return torch.ones((), dtype=t.dtype)
    if what == "empty":
        return t[..., :0]
    assert what == "large", what
    return torch.ones(*t.shape[:-1], 60, dtype=t.dtype)


def check_bad(case: Case, stage: Stage) -> None:
    """Ours and torch's with the same wrong argument: both raise, or both compute the same."""
    o = Operands(case)
    given, tensors = arguments(case), {"x": o.x, "w": o.w, "b": o.b}
    name, dot, what = case.bad.partition(".")
    if dot and name in tensors:
        tensors[name] = spoilt(case, tensors[name], what)
    else:
        name, _, what = case.bad.partition("=")
        if name not in given:
            return  # output_padding of a function that has none
        given[name] = ast.literal_eval(what)
    if case.way == "layer" and what in ("list", "numpy"):
        return  # no parameter can be one
    # torch cuts some numbers to 32 bits, takes a dilation of 0 in some transposed convolutions, and adds a bias of
    # another dtype where its padding is a string or it is transposed: what ours says to those is not compared.
    cut = not dot and any(len(digits) > 9 for digits in re.findall(r"\d+", what))
    cut = cut or max(case.stride + case.dilation) > 2**30 or case.bad == "b.other"
    cut = cut or (case.transposed and name == "dilation" and "0" in what)
    ours_only = cut or any(given.get("padding") == rule for rule in RULES[2:]) or case.activation != "none"

    def outcome(own: bool, tensors: dict = tensors):
        if case.way == "layer":
            layer = layer_of(case, conv_ext if own else nn, given)
            weights = {"weight": tensors["w"]} | ({"bias": tensors["b"]} if case.bias else {})
            for key in weights:
                if not isinstance(weights[key], Tensor) and weights[key] is not None:
                    return layer(tensors["x"])
            return torch.func.functional_call(layer, weights, (tensors["x"],))
        if case.way == "override" and own:
            with conv_ext.override():
                return called(case, getattr(F, case.function), *tensors.values(), given)
        return called(case, getattr(conv_ext if own else F, case.function), *tensors.values(), given)

    results = []
    with torch.no_grad():
        for own in (True, False) if not ours_only else (True,):
            stage("ours" if own else "torch")
            try:
                results.append(outcome(own))
            except Exception as error:
                results.append(error)
    mine, theirs = results[0], results[-1]
    if isinstance(mine, Exception):
        unclear = len(str(mine)) < 10 or "INTERNAL ASSERT" in str(mine)  # of torch, where it pads for the layer
        if not isinstance(mine, ERRORS) or (unclear and str(mine) != str(theirs)):
            raise Wrong(f"error: {type(mine).__name__}: {str(mine)[:200]}")
        # An empty batch is no reason for us to let the rest pass; torch does not look at it.
        if not isinstance(theirs, Exception) and what not in REFUSED_BY_RULE and case.n > 0 and not ours_only:
            raise Wrong(
                f"refuses: torch computes {tuple(theirs.shape)}, ours says {type(mine).__name__}: {str(mine)[:200]}"
            )
        return
    if ours_only:
        return
    if case.transposed and mine.numel() == 0:
        return  # a result without elements is one for us; torch calls it too small
    if isinstance(theirs, Exception):
        raise Wrong(
            f"accepts: torch says {type(theirs).__name__}: {str(theirs)[:200]}; ours computes {tuple(mine.shape)}"
        )
    if mine.shape != theirs.shape:
        raise Wrong(f"shape: {tuple(mine.shape)}, torch's {tuple(theirs.shape)}")
    # Not with what torch has computed, which is wrong in float32 for some strides of a transposed weight.
    wide = {name: widened(t) if isinstance(t, Tensor) else t for name, t in tensors.items()}
    with torch.no_grad():
        theirs = outcome(False, wide)
    mine, room = widened(mine), 2.0**-6 if case.dtype in ("bfloat16", "float16") else 0.0
    if bool(((mine - theirs).abs() > room * (theirs.abs() + 8)).any()):
        raise Wrong("values: with an argument at its limit they differ from torch's")


# ---- fused models


class _Block(nn.Module):
    """A convolution and what may stand behind it, in several ways to say it."""

    def __init__(self, case: Case, given: dict):
        super().__init__()
        channels, one_row = case.k * case.groups, case.one_row
        self.variant = case.variant
        self.convolution = layer_of(case, conv_ext if case.variant % 2 or case.padding in RULES[2:] else nn, given)
        norm = nn.BatchNorm1d if one_row else nn.BatchNorm2d
        self.norm = norm(channels, affine=case.variant % 5 != 0)
        self.relu = nn.ReLU(inplace=case.variant % 3 == 0)
        self.last = (nn.Conv1d if one_row else nn.Conv2d)(channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        if self.variant % 8 != 7:
            y = self.norm(y)
        how = self.variant % 6
        if how == 0:
            y = self.relu(y)
        elif how == 1:
            y = F.relu(y)
        elif how == 2:
            y = torch.relu(y)
        elif how == 3:
            y = y.relu()
        elif how == 4:
            y = y + torch.relu(y)  # two readers: not fused
        return self.last(y)


def check_fused(case: Case, stage: Stage) -> None:
    """fuse(model) within the rounding of the sums that both make: packed for an example, by its first call, or not."""
    o = Operands(case)
    torch.manual_seed(case.seed)
    model = _Block(case, arguments(case)).to(o.dtype).eval()
    with torch.no_grad():
        model.convolution.weight.copy_(o.w)
        if o.b is not None:
            model.convolution.bias.copy_(o.b)
        model.norm.running_mean.uniform_(-2, 2)
        model.norm.running_var.uniform_(0.2, 2)
        stage("ours")
        try:
            examples, layout = ([o.x], "auto") if case.variant % 4 < 2 else ([], torch.preserve_format)
            fused = conv_ext.fuse(model, *examples, memory_format=layout, pack=case.variant % 4 != 2)
            got = fused(o.x)
            if not torch.equal(fused(o.x), got):
                raise Wrong("bits: the second call gives others than the first")
            kept = model(o.x)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"raises: {type(error).__name__}: {str(error)[:300]}") from error
        stage("torch")
        exact, size = _exact(case, o, model)
    if got.shape != exact.shape:
        raise Wrong(f"shape: {tuple(got.shape)}, the model's {tuple(exact.shape)}")
    u = 2.0**-24 if case.dtype == "float32" else 2.0**-53
    length = case.c * case.r * case.s + case.k * case.groups + 20
    limit = 4 * min(length, 2 * math.sqrt(length)) * u * size
    for name, value in (("fused", got), ("model", kept)):
        error = (widened(value) - exact).abs()
        if not bool((error <= limit).all()):
            raise Wrong(f"values: {name} is off by {float((error / limit).max()):.3g} of the bound")


def _exact(case: Case, o: Operands, model: _Block) -> tuple[Tensor, Tensor]:
    """The scores in float64, and what they are sums of, in absolute values."""
    (top, bottom), (left, right) = case.zeros()
    one_row = case.one_row
    amounts = (left, right) if one_row else (left, right, top, bottom)
    mode = "constant" if case.padding_mode == "zeros" else case.padding_mode
    convolve = F.conv1d if one_row else F.conv2d
    column = (slice(None), *(None,) * (1 if one_row else 2))

    stride, dilation = (tuple(min(v, 1_000_000) for v in values[one_row:]) for values in (case.stride, case.dilation))

    def convolved(x, w, b):
        return convolve(F.pad(x, amounts, mode=mode), w, b, stride, 0, dilation, case.groups)

    x, w, b = widened(o.x), widened(o.w), widened(o.b)
    y, size = convolved(x, w, b), convolved(x.abs(), w.abs(), None if b is None else b.abs())
    if case.variant % 8 != 7:
        norm = model.norm
        scale = 1 / (norm.running_var.double() + norm.eps).sqrt()
        shift = torch.zeros_like(scale)
        if norm.weight is not None:
            scale, shift = scale * norm.weight.double(), norm.bias.double()
        mean = norm.running_mean.double()
        y = (y - mean[column]) * scale[column] + shift[column]
        size = (size + mean.abs()[column]) * scale.abs()[column] + shift.abs()[column]
    how = case.variant % 6
    if how < 4:
        y = y.relu()
    elif how == 4:
        y, size = y + y.relu(), 2 * size
    w, b = model.last.weight.double(), model.last.bias.double()
    return convolve(y, w, b), convolve(size, w.abs(), b.abs())
