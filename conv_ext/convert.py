"""Turning a model's convolutions into ours and back: `convert`, `revert`, and `override` for calls of functions."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from .arguments import Sides
from .functional import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from .fused import restorable, restore
from .mapped import MappedConv2d
from .modules import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, _Extended

__all__ = ["convert", "override", "revert"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_OURS: dict[type, type] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
}
_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _OURS.items()}
_NAMES = {f"{kind}{n}d" for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)}
_logger = logging.getLogger("conv_ext")
_FUNCTIONS = {
    torch.conv1d: conv1d,
    torch.conv2d: conv2d,
    torch.conv_transpose1d: conv_transpose1d,
    torch.conv_transpose2d: conv_transpose2d,
}


def convert(model: AnyModule, *, report: Callable[[str], object] | None = None) -> AnyModule:
    """Make the convolution layers of `model` ours, in place, and return `model`.

    Every `nn.Conv1d`, `nn.Conv2d`, `nn.ConvTranspose1d` and `nn.ConvTranspose2d` of exactly that type, `model` itself
    included, gets our class: the object, its Parameters, hooks, buffers and training flag stay what they are, so that
    an optimizer made before goes on working. A layer parametrized (`torch.nn.utils.parametrize`) from exactly such a
    type is converted too; old-style weight_norm, spectral_norm and pruning live in hooks and are not touched.

    Left alone: subclasses made by others, also where they inherit `forward` (an object has one class, and theirs has
    to stay for their isinstance checks and pickles), which are ours within `override`, or when they are derived from
    conv_ext.Conv2d and its like; lazy layers before their first call (they are of exactly the type nn.Conv2d after it:
    convert then); a layer to which someone has given an attribute `activation`, which ours would read. Converting
    twice changes nothing.

    report: what is called with a text that says how many layers became ours, and which convolutions stay as they are
        and why: ``report=print``. None: the logger "conv_ext" gets it, at level INFO.

    Warns where the model has been prepared for torch's quantization, or joined by torch's own fusion (`torch.ao`):
    both know torch's layers alone, and would pass ours by.

    Raises TypeError, before anything is changed, where `model` is no nn.Module, or `report` no function.
    """
    check_report("convert", report)
    before = _convolutions(model) if isinstance(model, nn.Module) else {}
    _exchange(model, _OURS, "convert")
    _tell(report, lambda: _report(before))
    _warn_of_quantization(model, sum(_own_class(module) is not own for module, own in before.values()))
    return model


def check_report(function: str, report: object) -> None:
    """Raises TypeError for a `report` that cannot be called; before anything is changed."""
    if report is not None and not callable(report):
        raise TypeError(f"{function}: report must be a function that takes a text, such as print, got {report!r:.80}")


def _tell(report: Callable[[str], object] | None, text: Callable[[], str]) -> None:
    if report is not None:
        report(text())
    elif _logger.isEnabledFor(logging.INFO):
        _logger.info("%s", text())


def _warn_of_quantization(model: nn.Module, became: int) -> None:
    prepared = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if getattr(module, "qconfig", None) is not None or type(module).__module__.startswith("torch.ao.")
    ]
    if became and prepared:
        more = f" and {len(prepared) - 1} more" if len(prepared) > 1 else ""
        warnings.warn(
            f"convert: {prepared[0]}{more} of this model belong to torch's quantization or fusion (torch.ao), which "
            f"know torch's layers alone: they pass the {_layers(became)} by that are conv_ext's now, or fail. "
            "Convert a model that is not to be quantized, or revert it first",
            stacklevel=3,
        )


def revert(model: AnyModule, *, report: Callable[[str], object] | None = None) -> AnyModule:
    """Undo `convert`: make every layer of exactly our types torch's own again, in place, and return `model`.

    Layers that were made as `conv_ext.Conv2d` and its like from the start become torch's, too; the padding "full" is
    written as numbers then. In a model that `fuse` has made, activations and paddings that layers have taken in stand
    beside them again, so that it can be exported (`torch.onnx.export`, say); its normalisations stay folded. Packed
    layers (`conv_ext.pack`) are unpacked first.

    report: what is called with a text that says how many layers became torch's, how many of these were packed, what
        stands beside them again, and which of our layers stay and why: ``report=print``. None: the logger "conv_ext"
        gets it, at level INFO.

    Raises, before anything is changed, TypeError where `model` is no nn.Module or `report` no function, and ValueError
    where a layer has what torch's have not: an activation that `fuse` did not put there (a ReLU of its own would be
    another module in the tree), or the padding "same_strided", which depends on the input.
    """
    from .packed import PackedConv2d, unpack  # which packs what `convert` has made

    check_report("revert", report)
    before = _convolutions(model) if isinstance(model, nn.Module) else {}
    packed = sum(own is PackedConv2d for _, own in before.values())
    inside = [module for module, _ in before.values() if isinstance(module, _Extended)]
    beside = {
        "activation": sum(module.activation != "none" for module in inside),
        "padding": sum(isinstance(module.padding, Sides) for module in inside),
    }
    if isinstance(model, nn.Module):
        _check_for_torchs(model, (*_TORCHS, PackedConv2d))
        unpack(model)
    _exchange(model, _TORCHS, "revert")
    _tell(report, lambda: _reverted(before, packed, beside))
    return model


def _reverted(before: dict[str, tuple[nn.Module, type]], packed: int, beside: dict[str, int]) -> str:
    """What `revert` did: how many layers are torch's now, how many were, and why the others are not."""
    became: Counter[str] = Counter()
    were, left = 0, []
    for name, (module, own) in before.items():
        now = _own_class(module)
        base = next((ours for ours in (*_TORCHS, MappedConv2d) if isinstance(module, ours)), None)
        if now is not own and now in _OURS:
            became[now.__name__] += 1
        elif base is None:
            were += 1
        elif base is MappedConv2d:
            left.append(f"    {name}: torch has no layer over a connection table")
        else:
            why = f"{own.__name__} is derived from conv_ext.{base.__name__}, and what is exchanged is that class itself"
            left.append(f"    {name}: {why}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(became.items()))
    lines = [f"{_layers(became.total())} became torch's" + (f": {kinds}" if kinds else "")]
    lines += [f"    {packed} of them had packed weights"] if packed else []
    lines += [
        f"    {count} {what}{'' if count == 1 else 's'} beside them again" for what, count in beside.items() if count
    ]
    lines += [f"{_layers(were)} had been before"] if were else []
    return "\n".join(lines + ([f"{_layers(len(left))} left:", *left] if left else []))


def check_for_inference(function: str, model: nn.Module) -> None:
    """Raises what `fuse` and `pack` raise: ValueError in training mode, RuntimeError before lazy layers' first call."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more are" if len(training) > 1 else " is"
        raise ValueError(
            f"{function} takes a model in eval mode, but {training[0]}{more} in training mode: model.eval()"
        )
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()  # type: ignore[misc]
    ]
    if lazy:
        raise RuntimeError(f"{function}: {lazy[0]} has no parameters before its first call; call the model once first")


def _convolutions(model: nn.Module) -> dict[str, tuple[nn.Module, type]]:
    """Every module that is a convolution, by its name, with the class that it has now."""
    found = {}
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule) and module.original_name in _NAMES
        if scripted or isinstance(module, (_ConvNd, MappedConv2d)):
            found[name or type(module).__name__] = module, _own_class(module)
    return found


def _report(before: dict[str, tuple[nn.Module, type]]) -> str:
    """What became of the convolutions: how many are ours now, how many were, and why the others are not."""
    became: Counter[str] = Counter()
    were, left = 0, []
    for name, (module, own) in before.items():
        now = _own_class(module)
        if now is not own:
            became[own.__name__] += 1
        elif isinstance(module, (*_TORCHS, MappedConv2d)):
            were += 1
        else:
            left.append(f"    {name}: {why_left(module)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(became.items()))
    lines = [f"{_layers(became.total())} became conv_ext's" + (f": {kinds}" if kinds else "")]
    lines += [f"{_layers(were)} had been before"] if were else []
    lines += [f"{_layers(len(left))} left:", *left] if left else []
    return "\n".join(lines)


def _layers(count: int) -> str:
    return f"{count} convolution" + ("" if count == 1 else "s")


def why_left(module: nn.Module) -> str:
    """Why `convert` does not touch a convolution."""
    own = _own_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"{module.original_name} is compiled by TorchScript"
    if own in _OURS:
        return f"{own.__name__} has an attribute 'activation', which ours would read"
    if isinstance(module, LazyModuleMixin):
        return f"{own.__name__} has no weight before its first call; convert after it"
    base = next(kind for kind in own.__mro__ if kind.__module__ == _ConvNd.__module__)
    if base not in _OURS:
        derived = "" if own is base else f", which {own.__name__} is derived from"
        return f"conv_ext has no {base.__name__}{derived}"
    if any(getattr(own, name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward")):
        return f"{own.__name__} has a forward of its own; what it calls of torch's is ours within conv_ext.override()"
    return (
        f"{own.__name__} is derived from {base.__name__}, and what is exchanged is {base.__name__} itself; derive it "
        f"from conv_ext.{base.__name__}, or call it within conv_ext.override()"
    )


def _check_for_torchs(model: nn.Module, kinds: tuple[type, ...]) -> None:
    """Raises ValueError where a layer of these classes has what torch's have not."""
    fused = restorable(model)
    for name, module in model.named_modules():
        own = _own_class(module)
        if own not in kinds:
            continue
        if hasattr(own, "activation") and module.activation != "none" and module not in fused:
            raise ValueError(
                f"revert: torch's layers have no activation, but {name or 'the layer'} has {module.activation!r}; set "
                'it to "none" and put an nn.ReLU behind the layer first'
            )
        if module.padding == "same_strided":
            raise ValueError(
                f"revert: torch's layers have no padding 'same_strided', but {name or 'the layer'} has it; give it "
                "numbers that fit the size of your images first"
            )
        if isinstance(module.padding, Sides) and module not in fused:
            raise ValueError(
                f"revert: torch's layers have no padding of single sides, but {name or 'the layer'} has "
                f"{tuple(module.padding)}; revert the model that fuse has returned, with the layer in it"
            )


def _exchange(model: AnyModule, classes: dict[type, type], caller: str) -> AnyModule:
    if not isinstance(model, nn.Module):
        hint = f"; {caller} an instance of it" if isinstance(model, type) and issubclass(model, nn.Module) else ""
        shown = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{caller} takes a torch.nn.Module, got {shown}{hint}")
    chosen: list[tuple[Any, type]] = []
    fused = restorable(model) if classes is _TORCHS else set()
    for module in model.modules():  # each shared module comes once
        own = _own_class(module)
        if own not in classes:
            continue
        if own in _OURS and hasattr(_OURS[own], "activation") and hasattr(module, "activation"):
            continue
        chosen.append((module, own))
    if fused:
        restore(model)
    for module, own in chosen:
        if hasattr(own, "activation"):
            vars(module).pop("activation", None)
        if module.padding == "full":
            module.padding = tuple(d * (r - 1) for r, d in zip(module.kernel_size, module.dilation))
            module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]
        module.__class__ = classes[own] if type(module) is own else _rebased(type(module), classes[own])
    return model


def _own_class(module: nn.Module) -> type:
    """The module's class, or the one that `parametrize` made its class of."""
    return type(module).__bases__[0] if _is_generated(module) else type(module)


def _is_generated(module: nn.Module) -> bool:
    """Whether the module's class is the one that `parametrize` made for it on top of the original class."""
    cls = type(module)
    return parametrize.is_parametrized(module) and cls.__module__ == parametrize.__name__ and len(cls.__bases__) == 1


def _rebased(cls: type, base: type) -> type:
    """A copy of the generated class on another base.

    A copy, because deep copies of a parametrized module share its class, and they are not being converted.
    `parametrize` finds the class to restore in `__bases__[0]`, so removing the parametrization afterwards works.
    """
    members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), members)


class override(TorchFunctionMode):
    """`with conv_ext.override():` sends torch's convolution functions to ours inside the block.

    Routed are `F.conv1d`, `F.conv2d`, `F.conv_transpose1d`, `F.conv_transpose2d` and the same functions under `torch.`,
    hence also torch.nn's layers, which call them. Everything else passes. Blocks may be nested; the block holds for the
    thread that entered it (each of DataParallel's threads would need its own).

    A call that ours does not take (an integer, quantized or sparse operand, say) raises our error, rather than being
    computed by torch unnoticed: inside the block every convolution is ours or is refused.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # torch has taken this mode off its stack while we are here: nothing below comes back to it.
        return _FUNCTIONS.get(func, func)(*args, **(kwargs or {}))
