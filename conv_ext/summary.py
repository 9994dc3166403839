"""What a network is made of: parameters, operations, volume, receptive field and memory of each layer.

Start reading at `summary`. The model runs once on the meta device, which has sizes and no numbers: nothing is computed
and nothing is copied. Hooks note the layers; a function mode carries receptive fields through what lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .mapped import MappedConv2d

__all__ = ["Row", "Summary", "summary"]

_POOLS = {"Max": "pool", "Avg": "avg", "LP": "lp"}  # by the beginning of torch's names, "Adaptive" left out


@dataclass(frozen=True)
class Row:
    """One layer.

    op: what it is, as "conv(3,64,p1)". name: the module's. parameters: those not counted in a row before.
    operations: multiplications with additions, see `summary`. volume: (H, W, C) of the output, (C,) of a vector.
    receptive_field, stride: (height, width) in positions of the input: how much of it one output sees, and how far
    apart neighbours are; None for a vector's stride. bytes: of the output.
    """

    op: str
    name: str
    parameters: int
    operations: int
    volume: tuple[int, ...]
    receptive_field: tuple[int, int]
    stride: tuple[int, int] | None
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows of a network and their sums; `print` shows a table, `to_markdown()` gives one for a document.

    unused_parameters: of modules that did not run (auxiliary classifiers), which are in no row.
    """

    network: str
    input_size: tuple[int, ...]
    rows: tuple[Row, ...]
    unused_parameters: int

    @property
    def parameters(self) -> int:
        """Of all rows."""
        return sum(row.parameters for row in self.rows)

    @property
    def operations(self) -> int:
        """Of all rows, for one image."""
        return sum(row.operations for row in self.rows)

    @property
    def bytes(self) -> int:
        """The outputs of all rows together, for one image: roughly what training keeps for the backward pass."""
        return sum(row.bytes for row in self.rows)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        def size(values) -> str:
            return "×".join(f"{value:,}" for value in values)

        def window(values) -> str:
            if values is None:
                return ""
            return str(values[0]) if values[0] == values[1] else f"{values[0]}×{values[1]}"

        heads = ["op", "name", "parameters", "operations", "volume", "receptive field", "stride", "KiB"]
        cells = [
            [row.op, row.name, f"{row.parameters:,}", f"{row.operations:,}", size(row.volume),
             window(row.receptive_field), window(row.stride), f"{row.bytes / 1024:,.1f}"]
            for row in self.rows
        ]  # fmt: skip
        total = f"{self.bytes / 1024:,.1f}"
        cells.append(["all", "", f"{self.parameters:,}", f"{self.operations:,}", "", "", "", total])
        return heads, cells

    def _title(self) -> str:
        return f"{self.network}, input {' × '.join(map(str, self.input_size))} (C × H × W), one image"

    def _note(self) -> str:
        if not self.unused_parameters:
            return ""
        return f"{self.unused_parameters:,} more parameters are in modules that do not run in eval mode"

    def __str__(self) -> str:
        heads, cells = self._cells()
        widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]

        def line(row: list[str]) -> str:
            padded = (text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths)))
            return "  ".join(padded).rstrip()

        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        body = [line(row) for row in cells]
        lines = [self._title(), "", line(heads), rule, *body[:-1], rule, body[-1]]
        return "\n".join(lines + ([self._note()] if self.unused_parameters else []))

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The same table in Markdown."""
        heads, cells = self._cells()
        lines = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2), *cells]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
        return table + (f"\n\n{self._note()}." if self.unused_parameters else "")


def summary(model: nn.Module, input_size: Sequence[int], *, expand: bool = False) -> Summary:
    """A table of the layers of `model` for images of `input_size`: parameters, operations, volumes, receptive fields.

    Operations are multiplications with additions: a convolution or a full connection with a kernel of R x S over C
    maps counts R S C for each element of its output, and one more for a bias; pooling, normalisation and other layers
    count one for each element of their input. Activations, dropout and sums have no row, nor have functions that are
    no layers. What is counted is one image in eval mode; the model itself stays as it is.

    Args:
        model: any nn.Module of torch's or our layers that can run on the meta device.
        input_size: (C, H, W) of an image, or (C, L) of a sequence, without the batch.
        expand: rows for the parts of a module that is one otherwise (GoogLeNet's inception modules: modules with
            children and an attribute `op`, which is what such a row is called).

    Returns:
        Summary: `.rows` of `Row`, with `.op`, `.name`, `.parameters`, `.operations`, `.volume`, `.receptive_field`,
        `.stride`, `.bytes`; sums of them; prints as a table.

    The receptive field is that of the layers' geometry, so that it may reach beyond the image.

    Raises:
        TypeError: `model` is no nn.Module, or a size no int. ValueError: another number of sizes than two or three, a
        size below 1. RuntimeError: the model does not run with that input; the message has the model's own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(input_size, Sequence) or any(type(n) is not int for n in input_size):
        raise TypeError(f"input_size must be a sequence of ints, got {input_size!r}")
    if len(input_size) not in (2, 3) or min(input_size) < 1:
        raise ValueError(f"input_size must be (C, H, W) or (C, L), each at least 1, got {tuple(input_size)}")
    observer = _Observer(model, expand)
    observer.run(tuple(input_size))
    unused = [p.numel() for p in set(model.parameters()) if id(p) not in observer.counted]
    return Summary(type(model).__name__, tuple(input_size), tuple(observer.rows), sum(unused))


@dataclass(frozen=True)
class _Field:
    """What the elements of a tensor see: the extent and the step in the input, and how many there are, each (h, w)."""

    extent: tuple[int, int]
    step: tuple[int, int]
    count: tuple[int, int]

    def through(self, kernel, stride, dilation, count) -> _Field:
        """What the outputs of a window over these elements see."""
        extent = tuple(e + d * (r - 1) * s for e, d, r, s in zip(self.extent, dilation, kernel, self.step))
        return _Field(extent, tuple(s * t for s, t in zip(self.step, stride)), count)

    def joined(self, other: _Field) -> _Field:
        """What a sum of both, or both side by side, see."""
        pairs = ((self.extent, other.extent), (self.step, other.step), (self.count, other.count))
        return _Field(*(tuple(map(max, *pair)) for pair in pairs))


def _get(values) -> _Field | None:
    """The field of all the tensors in `values` together."""
    found = None
    for leaf in tree_leaves(values):
        field = getattr(leaf, "_conv_ext_field", None) if isinstance(leaf, Tensor) else None
        if field is not None:
            found = field if found is None else found.joined(field)
    return found


def _put(values, field: _Field | None) -> None:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and field is not None:
            leaf._conv_ext_field = field


class _Between(TorchFunctionMode):
    """Results of functions see what their arguments see."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        _put(result, _get((args, kwargs)))
        return result


class _Observer:
    """Runs a model once and makes its rows."""

    def __init__(self, model: nn.Module, expand: bool) -> None:
        self.model, self.expand = model, expand
        self.rows: list[Row] = []
        self.counted: set[int] = set()  # ids of parameters
        self.begins: list[int] = []  # where the parts of the modules begin that are one row

    def run(self, input_size: tuple[int, ...]) -> None:
        """Fill `rows`."""
        model = self.model
        floating = (p.dtype for p in model.parameters() if p.dtype.is_floating_point or p.dtype.is_complex)
        dtype = next(floating, torch.get_default_dtype())
        x = torch.empty(1, *input_size, dtype=dtype, device="meta")
        size = (1, *input_size[1:])[-2:]
        x._conv_ext_field = _Field((1, 1), (1, 1), size)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {name: tensor.detach().to("meta") for name, tensor in state.items()}
        training = [module for module in model.modules() if module.training]
        handles = []
        try:
            for name, module in model.named_modules():
                handles += self._watch(name or type(module).__name__, module)
            for module in training:
                module.training = False
            with torch.no_grad(), _Between():
                torch.func.functional_call(model, state, (x,))
        except Exception as error:
            what = f"{type(model).__name__} does not run with an input of {list(input_size)}"
            raise RuntimeError(f"summary: {what}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
            for module in training:
                module.training = True

    def _watch(self, name: str, module: nn.Module) -> list:
        """The hooks of one module, or none where it has no row."""
        parameters = list(module.parameters())  # inside the functional call they are others
        has_children = next(module.children(), None) is not None
        if isinstance(getattr(module, "op", None), str) and has_children:
            return [] if self.expand else self._watch_block(name, module)
        known = isinstance(module, (_ConvNd, nn.Linear)) or hasattr(module, "op") or _pool(module) or _norm(module)
        if known or parameters and not has_children:
            return [module.register_forward_hook(lambda m, inputs, y: self._note(name, m, parameters, inputs[0], y))]
        return []

    def _watch_block(self, name: str, module: nn.Module) -> list:
        """A module of several layers that is one row: the sum of its parts."""

        def begin(_module, _inputs) -> None:
            self.begins.append(len(self.rows))

        def end(_module, _inputs, output) -> None:
            first = self.begins.pop()
            parts = self.rows[first:]
            sums = sum(row.parameters for row in parts), sum(row.operations for row in parts)
            kept = sum(row.bytes for row in parts)
            self.rows[first:] = [_row(module.op, name, *sums, output, _get(output), kept)]

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    def _note(self, name: str, module: nn.Module, parameters: list[nn.Parameter], x: Tensor, y) -> None:
        y = tree_leaves(y)[0]
        fresh = [p for p in parameters if id(p) not in self.counted]
        self.counted.update(map(id, fresh))
        field = _field_after(module, _get(x), x, y)
        _put(y, field)
        self.rows.append(_row(_op(module, x), name, sum(p.numel() for p in fresh), _operations(module, x, y), y, field))


def _row(op: str, name: str, parameters: int, operations: int, y: Tensor, field: _Field | None, kept=None) -> Row:
    sizes = tuple(y.shape[1:])
    volume = (*sizes[1:], sizes[0]) if sizes else ()
    extent, step = ((1, 1), (1, 1)) if field is None else (field.extent, field.step)
    kept = y.numel() * y.element_size() if kept is None else kept
    return Row(op, name, parameters, operations, volume, extent, step if len(sizes) > 1 else None, kept)


# ---- what each kind of layer is


def _pool(module: nn.Module) -> str | None:
    """The word for a pooling layer of torch's, or None."""
    name = type(module).__name__.removeprefix("Adaptive")
    return next((word for begin, word in _POOLS.items() if name.startswith(f"{begin}Pool")), None)


def _norm(module: nn.Module) -> str | None:
    """The word for a normalisation, or None."""
    if isinstance(module, nn.LocalResponseNorm):
        return "norm"
    return type(module).__name__ if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) else None


def _pair(values, dimensions: int = 2, missing: int = 1) -> tuple[int, int]:
    """An int, or one for each dimension, as (height, width); a sequence has no height but a `missing` one."""
    values = (values,) * dimensions if isinstance(values, int) else tuple(values)
    return (missing, *values)[-2:]


def _window(module: nn.Module, x: Tensor) -> tuple | None:
    """(kernel, stride, padding, dilation) of a layer that moves a window over maps, each (height, width); or None."""
    dimensions = x.dim() - 2
    if hasattr(module, "output_size") and dimensions:  # adaptive pooling: what comes nearest
        spatial, outputs = _pair(x.shape[2:]), module.output_size
        if not isinstance(outputs, int):
            outputs = [o or n for o, n in zip(outputs, x.shape[2:])]
        outputs = _pair(outputs, dimensions)
        stride = tuple(n // o for n, o in zip(spatial, outputs))
        kernel = tuple(n - (o - 1) * s for n, o, s in zip(spatial, outputs, stride))
        return kernel, stride if max(outputs) > 1 else kernel, (0, 0), (1, 1)
    if not hasattr(module, "kernel_size"):
        return None
    padding = getattr(module, "padding", 0)
    padding = padding if isinstance(padding, str) else _pair(padding, dimensions, 0)
    kernel, stride = _pair(module.kernel_size, dimensions), _pair(module.stride, dimensions)
    return kernel, stride, padding, _pair(getattr(module, "dilation", 1), dimensions)


def _field_after(module: nn.Module, field: _Field | None, x: Tensor, y: Tensor) -> _Field | None:
    """What the outputs of a layer see."""
    if field is None:
        return None
    if isinstance(module, nn.Linear) or y.dim() == 2 and field.count != (1, 1):
        return field.through(field.count, (1, 1), (1, 1), (1, 1))
    window = _window(module, x)
    if window is None:
        return field
    kernel, stride, _, dilation = window
    count = _pair(y.shape[2:])
    if getattr(module, "transposed", False):  # of each stride's outputs one kernel position in `stride` meets an input
        reach = tuple(-(-(d * (r - 1) + 1) // s) for r, s, d in zip(kernel, stride, dilation))
        fine = field.through(reach, (1, 1), (1, 1), count)
        return _Field(fine.extent, tuple(max(a // s, 1) for a, s in zip(field.step, stride)), count)
    return field.through(kernel, stride, dilation, count)


def _op(module: nn.Module, x: Tensor) -> str:
    """The name of a layer, as "conv(3,64,p1)"."""
    if isinstance(getattr(module, "op", None), str):
        return module.op
    if isinstance(module, nn.Linear):
        return f"fc({module.out_features})"
    window = _window(module, x)
    if window is None:
        return _norm(module) or type(module).__name__
    kernel, stride, padding, dilation = window

    def text(pair) -> str:
        same = pair[0] == pair[1] or x.dim() == 3
        return str(pair[1]) if same else f"{pair[0]}x{pair[1]}"

    word = _pool(module)
    words = [text(kernel)]
    if word is None:
        word = "deconv" if getattr(module, "transposed", False) else "conv"
        words += [str(module.out_channels)] + ([f"s{text(stride)}"] if max(stride) > 1 else [])
    elif stride != kernel:
        words.append(text(stride))
    if isinstance(padding, str):
        words += [padding] if padding != "valid" else []
    elif max(padding):
        words.append(f"p{text(padding)}")
    words += [f"d{text(dilation)}"] if max(dilation) > 1 else []
    words += [f"g{module.groups}"] if getattr(module, "groups", 1) > 1 else []
    words += ["table"] if isinstance(module, MappedConv2d) else []
    return f"{word}({','.join(words)})"


def _operations(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Multiplications with additions, the bias as one; one for each input of a layer without products."""
    if isinstance(module, (MappedConv2d, _ConvNd, nn.Linear)):
        biases = y.numel() if module.bias is not None else 0
        if isinstance(module, MappedConv2d):
            return module.weight.numel() * y.shape[2:].numel() + biases
        if getattr(module, "transposed", False):
            return x.numel() * module.weight[0].numel() + biases
        return y.numel() * module.weight[0].numel() + biases
    if hasattr(module, "operations_per_output"):
        return y.numel() * module.operations_per_output
    return x.numel()
