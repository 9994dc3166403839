"""Weights packed once, for inference: `pack`, `unpack` and the layer that keeps them, `PackedConv2d`.

Before it multiplies, a forward brings the weight into the order in which its kernel reads it, or transforms it. A layer
of many channels on a small map spends more on that than on the products, in every call. Here it is done once.

What is kept is never another weight's: the layer's weight is its own, nobody else has it in hand, nothing writes into
it, and what is packed of it lies beside it in one dict, which goes when another weight comes.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy, Tracer
from torch.nn.utils import parametrize

from . import _C, ops
from .arguments import Activation, check_operands, normalize, operators_activation
from .convert import AnyModule, _convolutions, _layers, check_for_inference, check_report, convert
from .explain import _bytes
from .functional import OVERRIDDEN, PLAIN, _answered, _enter, conv2d, stays_behind
from .fused import Report
from .modules import Conv2d, _padded
from .passes import result_size
from .settings import current_algorithm, current_precision
from .tracing import is_tracing

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PackedConv2d", "pack", "unpack"]

_NAMES = ("weight", "bias")
_OWN = ("_held", "_example", "_trainable")  # the attributes that a PackedConv2d has and a Conv2d has not
_HEAD = 256  # bytes in front of a packed weight that say what it is for: kHeadBytes of csrc/torch/cpu.cpp
_logger = logging.getLogger("conv_ext")
_is_compiling = torch.compiler.is_compiling


def _conv2d_packed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packed: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: Activation,
    residual: Tensor | None,
) -> Tensor:
    """`conv2d` with what `ops.pack` has made of the weight; the roads are those of functional.py."""
    road, batched = _enter("conv2d", 4, input, weight, bias, residual)
    if road is OVERRIDDEN:
        arguments = input, weight, bias, packed, stride, padding, dilation, groups, activation, residual
        return _answered(_conv2d_packed, (*arguments[:4], residual), *arguments)
    geometry = normalize("conv2d", input, weight, stride, padding, dilation, groups)
    x = input if batched else input.unsqueeze(0)
    added = residual if batched or residual is None else residual.unsqueeze(0)
    name, low, high = operators_activation(activation)
    if name == "clamp" and stays_behind(low, high):
        arguments = input, weight, bias, packed, stride, padding, dilation, groups, "none", residual
        return _conv2d_packed(*arguments).clamp(low, high)
    options = *geometry, _precision(input), current_algorithm(), name, added, low, high
    if road is PLAIN:
        y = _C.forward_packed(x, weight, bias, *options, packed)
    else:
        y = ops.forward_packed(x, weight, packed, bias, *options)
    return y if batched else y.squeeze(0)


def _precision(input: Tensor) -> str:
    return current_precision(input.device.type) if input.dtype == torch.float32 else "ieee"


class _Held(TypedDict):
    """A layer's tensors. One dict belongs to one weight: another weight comes with another dict."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None  # None: not yet; of 0 bytes: the plan reads the weight where it lies


# Of a layer whose constructor has not come to its weight.
_NOTHING: _Held = {"weight": None, "bias": None, "packed": None}  # type: ignore[typeddict-item]
_TRAINABLE = dict.fromkeys(_NAMES, True)


class _Example(NamedTuple):
    """What a weight is packed for: what `ops.pack` reads of an input that the convolution gets, and the settings."""

    size: tuple[int, ...]  # (1, C, H, W): the batch has no say
    stride: tuple[int, ...]
    precision: str
    algorithm: str

    @classmethod
    def of(cls, layer: nn.Conv2d, input: Tensor) -> _Example:
        """Of a call of the layer; raises what the call would."""
        weight, bias = layer.weight, layer.bias
        x, padding = _padded(layer, input)
        batched = check_operands("conv2d", 4, x, weight, bias)
        geometry = normalize("conv2d", x, weight, layer.stride, padding, layer.dilation, layer.groups)
        x = x if batched else x.unsqueeze(0)
        operands = ops.autocast(x, weight, bias)
        result_size("forward", operands[0], operands[1], operands[2], (), *geometry, "ieee")
        size = (1, *x.shape[1:])
        return cls(size, tuple(x.stride()), current_precision(input.device.type), current_algorithm())

    def pack(self, layer: PackedConv2d, weight: Tensor) -> Tensor:
        """The packed weight of the layer, for such a call."""
        # A tensor of inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            x = torch.empty_strided(self.size, self.stride, dtype=weight.dtype, device=weight.device)
            padding = layer.padding if layer.padding_mode == "zeros" else 0
            geometry = normalize("conv2d", x, weight, layer.stride, padding, layer.dilation, layer.groups)
            return ops.pack(weight, x, *geometry, self.precision, self.algorithm)


class PackedConv2d(Conv2d):
    """A `Conv2d` for inference that keeps its weight as the kernel wants it: made by `of`, or by `conv_ext.pack`.

    A call computes the bits of `Conv2d`. It is faster where packing takes a good part of a call, above all in layers of
    many channels on small maps, in small batches. What is kept serves every batch, and every size of the image for
    which the plan packs alike; in another call (`is_packed_for` tells) the weight is packed as in `Conv2d`. So it is
    under another `precision`, `algorithm` or autocast than when it was packed. Where a gradient is recorded, it is that
    of `Conv2d`, and what is kept is not used. CUDA's kernels keep nothing.

    The weight is the layer's own. ``layer.weight`` and ``layer.bias`` are fresh copies, plain tensors: writing into
    them changes nothing. To change the layer, assign (``layer.weight = w``), load a state_dict, or call ``to``,
    ``half`` and the like: the weight is packed anew at once, for the input that it was packed for, or at the next call
    if it has another size. A tensor to which a gradient is to flow is refused, and one of another size than the layer's
    attributes say, or of another dtype (RuntimeError); of a Parameter the numbers are taken.

    The state_dict is that of `Conv2d`. The layer has no parameters, as torch's quantized layers have none:
    ``model.parameters()`` passes it by, so an optimizer, a moving average and a count of parameters do not see it
    (`conv_ext.summary` does). Copies and pickles are without the packed bytes and pack anew when they are made, or
    loaded: another processor may have another kernel. ``share_memory`` does not make processes share the weight.

    Under `torch.compile`, `torch.export` and `torch.jit.trace` what is kept is a part of the program, and nothing is
    packed by compiled code; a trace of a layer whose padding is a string packs in each call. For `torch.fx` the layer
    is a leaf.

    Constructor, shapes, dtypes and errors: those of `Conv2d`; a layer made by the constructor packs at its first call.
    """

    _held: _Held = _NOTHING
    _example: _Example | None = None
    _trainable: dict[str, bool] = _TRAINABLE  # whether the Parameters required gradients, for the way back

    @classmethod
    def of(cls, layer: nn.Conv2d, input: Tensor) -> PackedConv2d:
        """A copy of the layer, packed for calls with inputs like this one.

        layer: a Conv2d, ours or torch's, or a PackedConv2d. It stays as it is.
        input: (N, C, H, W) or (C, H, W); its numbers are not read, and N may be anything.

        Raises TypeError for what is neither (what a derived class computes is not known), ValueError where the layer
        has hooks or parameters of its own, and what a call of the layer would raise.
        """
        if not isinstance(layer, nn.Conv2d):
            raise TypeError(f"PackedConv2d.of takes a Conv2d, got {type(layer).__name__}")
        if not isinstance(input, Tensor):
            raise TypeError(f"PackedConv2d.of takes an input Tensor, got {type(input).__name__}")
        made = convert(copy.deepcopy(layer))
        if why := _why_left(made):
            error = ValueError if type(made) is Conv2d else TypeError
            raise error(f"PackedConv2d.of cannot pack this {type(layer).__name__}: {why}")
        example = _Example.of(made, input)
        packed = _become_packed(made)
        packed._pack(example)
        return packed

    # ---- the weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A copy of the weight, (K, C / groups, R, S); what is assigned is copied, and packed."""
        return self._held["weight"].clone()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """A copy of the bias, (K,), or None; what is assigned is copied."""
        bias = self._held["bias"]
        return None if bias is None else bias.clone()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES:
            self._assign(name, value)
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As every module's; a weight and a bias are assigned."""
        if name in _NAMES:
            self._assign(name, param)
        else:
            super().register_parameter(name, param)

    def _assign(self, name: str, value: Tensor | None) -> None:
        """Take a tensor that fits the layer; a constructor's first one gives the layer its dtype."""
        weight = self._held["weight"]
        if isinstance(value, Tensor) and weight is not None:
            size, rule = [self.out_channels], "(out_channels,)"
            if name == "weight":
                size += [self.in_channels // self.groups, *self.kernel_size]
                rule = "(out_channels, in_channels / groups, *kernel_size)"
            if list(value.shape) != size or value.dtype != weight.dtype:
                raise RuntimeError(
                    f"the {name} of this PackedConv2d must have the size {size}, {rule}, and the dtype {weight.dtype}, "
                    f"got {list(value.shape)}, {value.dtype}. Another size is for a layer whose attributes say so "
                    "before, another dtype for one that is brought into it by to(dtype)"
                )
        self._take(**{name: value})

    def _take(self, **tensors: Tensor | None) -> None:
        """Copies of these tensors in place of the layer's own; what was packed of the old weight is left behind."""
        before = self._held
        held: Any = {**before, **{name: _own(name, value) for name, value in tensors.items()}}
        if "weight" in tensors:
            held["packed"] = None
            if before["weight"] is not None and before["weight"].shape != held["weight"].shape:
                self._example = None
        self._held = held
        flags = {name: value.requires_grad for name, value in tensors.items() if isinstance(value, nn.Parameter)}
        self._trainable = {**self._trainable, **flags}
        self._pack_again()

    def _pack(self, example: _Example) -> None:
        """Pack the weight for such a call. Where another thread assigns a weight meanwhile, nothing comes of it."""
        held = self._held
        held["packed"] = example.pack(self, held["weight"])
        self._example = example

    def _pack_again(self) -> None:
        """Pack for the example that the layer knows; where that is not possible, the next call will see to it."""
        held = self._held
        if held["packed"] is None and self._example is not None and _is_plain(held["weight"]):
            with suppress(RuntimeError):  # a dtype without kernels, geometry that was changed, no memory
                self._pack(self._example)

    @property
    def packed_bytes(self) -> int:
        """How many bytes are kept beside the weight: 0 where the plan reads it where it lies, or nothing is packed."""
        packed = self._held["packed"]
        return 0 if packed is None else packed.numel()

    def is_packed_for(self, input: Tensor) -> bool:
        """Whether a call with this input, under the settings of now, packs nothing.

        True where what the call wants is kept, or where it reads the weight as it lies. To find that out the weight is
        packed once more, for this input: it takes as long. False on CUDA, and where a gradient would be recorded.
        Raises what the call would.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"is_packed_for takes a Tensor, got {type(input).__name__}")
        example = _Example.of(self, input)
        recorded = forward_ad._current_level >= 0 or torch.is_grad_enabled() and input.requires_grad
        if input.device.type != "cpu" or recorded:
            return False
        wanted, packed = example.pack(self, self._held["weight"]), self._held["packed"]
        if wanted.numel() == 0 or packed is None or packed.numel() != wanted.numel():
            return wanted.numel() == 0
        return torch.equal(wanted[:_HEAD], packed[:_HEAD])

    def unpacked(self) -> Conv2d:
        """A `Conv2d` of the same kind, with a copy of the weight as its Parameter."""
        return copy.deepcopy(self._as_conv2d())

    def _own_tensors(self) -> list[Tensor]:
        """The layer's own weight and bias, for readers: what writes into them breaks what is packed."""
        held = self._held
        return [tensor for tensor in (held["weight"], held["bias"]) if tensor is not None]

    def _as_conv2d(self) -> Conv2d:
        """A Conv2d with copies of the tensors that shares all else with this layer."""
        layer = Conv2d.__new__(Conv2d)
        own = {name: value for name, value in vars(self).items() if name not in _OWN}
        parameters = {
            name: None if value is None else nn.Parameter(value, self._trainable[name])
            for name, value in zip(_NAMES, (self.weight, self.bias))
        }
        vars(layer).update(own, _parameters={**parameters, **self._parameters})
        return layer

    # ---- what modules do

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution of `input`, (N, C, H, W) or (C, H, W), and `residual`, as `Conv2d` has it."""
        if isinstance(input, Proxy):
            return self._recorded(input, residual)
        if residual is None or self._fuses(input, self._held["weight"], residual):
            return self._computed(input, self.activation, residual)
        return self._behind(self._computed(input, "none", None), residual)

    def _computed(self, input: Tensor, activation: Activation, residual: Tensor | None) -> Tensor:
        x, padding = _padded(self, input)
        held = self._held
        weight, bias, packed = held["weight"], held["bias"], held["packed"]
        geometry = self.stride, padding, self.dilation, self.groups
        if packed is not None and not (isinstance(padding, str) and is_tracing()):
            return _conv2d_packed(x, weight, bias, packed, *geometry, activation, residual)
        y = conv2d(x, weight, bias, *geometry, activation=activation, residual=residual)
        if packed is None and not _is_compiling() and _C.road(x, weight, bias, residual) is PLAIN:
            self._example = _Example.of(self, input)
            self._pack_again()
        return y

    def _recorded(self, proxy: Any, residual: Any) -> Any:
        """A call that torch.fx records: the layer as it is; where it is itself what is traced, its convolution."""
        tracer = proxy.tracer
        name = tracer.path_of_module(self) if isinstance(tracer, Tracer) else ""
        if name:
            return tracer.create_proxy("call_module", name, (proxy,) if residual is None else (proxy, residual), {})
        x, padding = _padded(self, proxy)
        geometry = self.stride, padding, self.dilation, self.groups
        return conv2d(x, self.weight, self.bias, *geometry, activation=self.activation, residual=residual)

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew, as `Conv2d` does."""
        layer = self._as_conv2d()
        layer.reset_parameters()
        self._take(**{name: layer._parameters[name] for name in _NAMES})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        apply: Callable[..., nn.Module] = super()._apply
        apply(fn, recurse)
        tensors = {name: value for name, value in zip(_NAMES, (self.weight, self.bias)) if value is not None}
        self._take(**{name: fn(value) for name, value in tensors.items()})
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._as_conv2d()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        layer = self._as_conv2d()
        layer._load_from_state_dict(*arguments)
        self._take(**{name: layer._parameters[name] for name in _NAMES})

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": {**self._held, "packed": None}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_state: Callable[[dict[str, Any]], None] = super().__setstate__
        set_state(state)
        self._pack_again()

    def extra_repr(self) -> str:
        packed = self._held["packed"]
        return f"{super().extra_repr()}, packed={'not yet' if packed is None else f'{packed.numel()} bytes'}"


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is one for the kernels, and nothing is going on that is to see what is done with it."""
    return not _is_compiling() and _C.road(weight, weight, None) is PLAIN


def _own(name: str, value: Tensor | None) -> Tensor | None:
    """A copy of what is assigned, in nobody else's hands."""
    if value is None and name == "bias":
        return None
    if not isinstance(value, Tensor):
        raise TypeError(f"cannot assign {type(value).__name__} as {name} of a PackedConv2d: it must be a Tensor")
    recorded = value.requires_grad and not isinstance(value, nn.Parameter)
    if recorded or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"the {name} of a PackedConv2d is for inference: no gradient flows to it, and no transform of torch.func "
            "reaches it. Assign a tensor that needs no gradient (detach()), or take the layer's unpacked()"
        )
    with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be used outside of it
        return value.detach().resolve_conj().resolve_neg().clone()


def _become_packed(layer: nn.Module) -> PackedConv2d:
    """Make a Conv2d a PackedConv2d, in place, and return it; its Parameters are no longer its own."""
    if type(layer) is not PackedConv2d:
        parameters, layer._parameters = layer._parameters, {}
        layer.__class__ = PackedConv2d
        PackedConv2d._take(cast(PackedConv2d, layer), **parameters)
    return cast(PackedConv2d, layer)


def _why_left(layer: nn.Module) -> str:
    """Why a convolution cannot become a PackedConv2d; "" where it can."""
    if parametrize.is_parametrized(layer):
        return "it is parametrized: its weight is computed in each call"
    if type(layer) not in (Conv2d, PackedConv2d):
        derived = isinstance(layer, nn.Conv2d)
        return "what a class derived from Conv2d computes is not known" if derived else "only Conv2d can be packed"
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if hooks:
        return "it has hooks"
    if {"forward", "_conv_forward"} & set(vars(layer)):
        return "it has a forward of its own"
    if set(layer._parameters) != (set() if type(layer) is PackedConv2d else set(_NAMES)):
        return "its parameters are others than a weight and a bias"
    device = layer.weight.device.type
    return "" if device == "cpu" else f"it is on {device}, and weights are kept on the CPU alone"


def pack(model: nn.Module, *inputs: Any, report: Callable[[str], object] | None = None, **kwargs: Any) -> nn.Module:
    """A new model for inference whose convolutions keep their weights packed: `PackedConv2d` in place of `Conv2d`.

    It computes the same bits as the model of our layers, in less time where packing takes a good part of a call (many
    channels, small maps, small batches). `fuse` does the same to what it has fused. torch's own layers become ours
    first, as `convert` makes them. Left as they are: every other kind of convolution, classes derived from Conv2d, and
    layers with hooks, parametrizations, a forward of their own, or a weight that another module has too; those that
    the call does not reach; those that are not on the CPU.

    Args:
        model: an nn.Module in eval mode, all of it; a layer, too. It stays as it is; the new one is a copy, which has
            been called once, without gradients.
        inputs, kwargs: what the model is called with. Of the numbers nothing is kept; the sizes of the images decide
            what the weights are packed for, the number of images does not. A layer that gets several sizes is packed
            for the first.
        report: what is called with a text that says how many layers were packed, in how many bytes, and which were
            left and why: ``report=print``. None: the logger "conv_ext" gets it, at level INFO. (A model's own argument
            of that name has to be given by position.)

    Returns a model of the same class. `unpack` makes its layers Conv2d again. A layer's ``weight`` and ``bias`` are
    copies: to change it, assign (``layer.weight = w``) or load a state_dict; what is written into the copy
    (``nn.init.zeros_(layer.weight)``, ``layer.weight.data = w``) changes nothing. The settings that are in force
    (`precision`, `algorithm`, autocast) are those that it is packed for.

    Raises TypeError where `model` is no nn.Module, there are no inputs, or `report` is no function; ValueError where a
    part of the model is in training mode, RuntimeError where a lazy layer has no parameters yet, and what the call
    raises.
    """
    _check(model, inputs, kwargs)
    check_report("pack", report)
    packed = convert(copy.deepcopy(model))
    with told_of_one_tuple("pack", inputs):
        text = str(pack_in_place(packed, inputs, kwargs))
    if report is not None:
        report(text)
    else:
        _logger.info("pack: %s", text)
    return packed


@dataclass
class Packing:
    """What packing made of each convolution of a model, by its name; ``str(packing)`` says it in words.

    Attributes:
        kept: bytes that lie beside the weight, 0 where the kernel reads it where it lies; None where the layer packs at
            its first call.
        weights: bytes of the weights of these layers together.
        several: how many sizes a layer was called with, where there is more than one; it is packed for the first.
        left: why a convolution is not packed.
    """

    kept: dict[str, int | None] = field(default_factory=dict)
    weights: int = 0
    several: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All that is kept beside the weights, as far as layers have been packed."""
        return sum(filter(None, self.kept.values()))

    def __str__(self) -> str:
        if not self.kept:
            lines = [f"{_layers(0)} packed"]
        elif None in self.kept.values():
            lines = [
                f"{_layers(len(self.kept))} to be packed by the first call, beside {_bytes(self.weights)} of weights"
            ]
        else:
            kept = f"{_bytes(self.bytes)} beside {_bytes(self.weights)} of weights"
            lines = [f"{_layers(len(self.kept))} packed: {kept}"]
        in_place = list(self.kept.values()).count(0)
        lines += [f"    {in_place} of them: 0 bytes, the weight is read where it lies"] if in_place else []
        lines += [f"    {name}: called with {n} sizes, packed for the first" for name, n in self.several.items()]
        reasons = [f"    {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines + ([f"{_layers(len(reasons))} left:", *reasons] if reasons else []))


def pack_in_place(model: nn.Module, inputs: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Packing:
    """Make the Conv2d of `model` PackedConv2d, in place: packed for this call, or, without one, by the next."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found = {name: layer for name, (layer, _) in _convolutions(model).items()}
    made = Packing()
    for name, layer in found.items():
        shared = any(holders[id(p)] > 1 for p in layer._parameters.values() if p is not None)
        if why := _why_left(layer) or ("another module has its weight or bias, too" if shared else ""):
            made.left[name] = why
    chosen = {name: layer for name, layer in found.items() if name not in made.left}
    called = bool(inputs or kwargs)
    examples = examples_of(model, list(chosen.values()), inputs, kwargs or {}) if called else {}
    for name, layer in chosen.items():
        if called and not examples[layer]:
            made.left[name] = "the call does not reach it"
            continue
        packed = _become_packed(layer)
        if called:
            packed._pack(examples[layer][0])
            if len(examples[layer]) > 1:
                made.several[name] = len(examples[layer])
        made.kept[name] = packed.packed_bytes if called else None
        made.weights += packed._held["weight"].nbytes
    return made


def _check(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"pack takes a torch.nn.Module, got {type(model).__name__}")
    if not inputs and not kwargs:
        raise TypeError("pack takes what the model is called with, too: pack(model, images)")
    check_for_inference("pack", model)


@contextmanager
def told_of_one_tuple(function: str, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Where a model fails with a tuple, which `explain` takes for all arguments: says how they are given here."""
    try:
        yield
    except Exception as error:  # whatever the model raises
        if len(inputs) != 1 or not isinstance(inputs[0], (tuple, list)):
            raise
        reason = shorten(str(error).strip() or type(error).__name__, 120)
        raise TypeError(
            f"{function} takes what the model is called with one by one: {function}(model, x, ...), or *inputs; called "
            f"with one {type(inputs[0]).__name__} this model fails: {reason}"
        ) from error


def examples_of(
    model: nn.Module, layers: list[Any], inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[nn.Module, list[_Example]]:
    """The different inputs that each layer gets in a call of the model."""
    examples: dict[nn.Module, list[_Example]] = {layer: [] for layer in layers}

    def note(layer: Any, arguments: Any, keywords: Any) -> None:
        example = _Example.of(layer, arguments[0] if arguments else keywords["input"])
        if example not in examples[layer]:
            examples[layer].append(example)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model(*inputs, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return examples


def unpack(model: AnyModule) -> AnyModule:
    """Undo `pack`: make every `PackedConv2d` of `model` a `Conv2d` with Parameters again, in place; return `model`.

    Whether the Parameters require gradients is as it was. Raises TypeError where `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unpack takes a torch.nn.Module, got {type(model).__name__}")
    for layer in model.modules():
        if type(layer) is PackedConv2d:
            plain = vars(layer._as_conv2d())
            layer.__class__ = Conv2d  # type: ignore[assignment]
            vars(layer).clear()
            vars(layer).update(plain)
        elif isinstance(report := vars(layer).get("report"), Report):
            report.packing = None
    return model
