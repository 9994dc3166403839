"""What a network is made of: parameters, operations, volume, receptive field and memory of each layer.

Start reading at `summary`. The model runs once on the meta device, which has sizes and no numbers: nothing is computed
and nothing is copied (meta.py). Hooks note the layers; a function mode carries receptive fields through what lies
between them, and sees which parameters are used there.
"""

from __future__ import annotations

import contextlib
import operator
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .fields import Field, start
from .layer_kinds import field_after, macs_of, moves, norm_word, op_of, operations_of, pool_word
from .meta import on_meta
from .packed import PackedConv2d
from .tables import Shown, Table

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One layer.

    op: what it is, as "conv(3,64,p1)". name: the module's. parameters: those not counted in a row before.
    operations: multiplications with additions, see `summary`. macs: of these the products of convolutions and full
    connections, without biases, as tools count multiply-accumulates. volume: (H, W, C) of the output, (C,) of a vector.
    receptive_field, stride: (height, width) in positions of the input: how much of it one output sees, and how far
    apart neighbours are, as a fraction where they are less than one apart; None for a vector's stride, and both None
    where what the layer does to positions is not known (nn.Unfold, say). bytes: of the output.
    offset: (row, column) of the input where the receptive field of output (0, 0) begins, below 0 in the padding; that
    of output (p, q) begins (p, q) strides later. None where it is not known. `window` has the exact field of an output.
    """

    op: str
    name: str
    parameters: int
    operations: int
    volume: tuple[int, ...]
    receptive_field: tuple[int, int] | None
    stride: tuple[int | Fraction, int | Fraction] | None
    bytes: int
    offset: tuple[int, int] | None = None
    seen: Field | None = field(default=None, repr=False, compare=False)
    macs: int = 0

    def window(self, p: int = 0, q: int = 0) -> tuple[slice, slice] | None:
        """The rows and columns of the input that output (p, q) depends on, every border on the way reckoned with.

        Two slices: ``image[:, rows, columns]`` is what it sees. They are empty where it sees padding alone; a vector's
        outputs have (0, 0). None where they are not known: behind nn.Unfold, after operations between the layers that
        change how many positions there are, and where branches of different steps are added.

        Raises ValueError where there is no such output, TypeError where p or q is no int.
        """
        try:
            p, q = operator.index(p), operator.index(q)
        except TypeError:
            raise TypeError(f"an output of {self.name} is at a row and a column, ints, got ({p!r}, {q!r})") from None
        count = (1, 1) if len(self.volume) == 1 else (1, *self.volume[:-1])[-2:]
        if not (0 <= p < count[0] and 0 <= q < count[1]):
            raise ValueError(f"{self.name} has {count[0]} x {count[1]} outputs, there is none at ({p}, {q})")
        return None if self.seen is None else self.seen.window(p, q)


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """The rows of a network and their sums; `print` shows a table, `to_markdown()` gives one for a document.

    unused_parameters: those that nothing used in eval mode (auxiliary classifiers'), which are in no row. batch: the
    number of images, of which operations, MACs, FLOPs and bytes are. flops: floating-point operations of the forward as
    torch.utils.flop_counter.FlopCounterMode counts them: two for each product, those of attention and of other matrix
    products between the layers included. packed_bytes: what packed layers (`conv_ext.pack`) keep beside their weights.
    """

    network: str
    input_size: tuple[int, ...]
    rows: tuple[Row, ...]
    unused_parameters: int
    batch: int = 1
    flops: int = 0
    packed_bytes: int = 0

    @property
    def parameters(self) -> int:
        """Of all rows."""
        return sum(row.parameters for row in self.rows)

    @property
    def operations(self) -> int:
        """Of all rows."""
        return sum(row.operations for row in self.rows)

    @property
    def macs(self) -> int:
        """Of all rows: half of `flops`, but for matrix products that no layer computes, and zeros that one multiplies.

        (The latter where a MappedConv2d takes one dense convolution for the faster way.)
        """
        return sum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """The outputs of all rows together: roughly what training keeps for the backward pass."""
        return sum(row.bytes for row in self.rows)

    @property
    def weight_layers(self) -> int:
        """Convolutions and full connections on the longest way through the network, as papers count layers."""
        return max((row.seen.depth for row in self.rows if row.seen is not None), default=0)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        def size(values: Iterable[int]) -> str:
            return "×".join(f"{value:,}" for value in values)

        def window(values: Any) -> str:
            if values is None:
                return ""
            return str(values[0]) if values[0] == values[1] else f"{values[0]}×{values[1]}"

        heads = [
            "op",
            "name",
            "parameters",
            "operations",
            "MACs",
            "volume",
            "receptive field",
            "stride",
            "offset",
            "KiB",
        ]
        cells = [
            [row.op, row.name, f"{row.parameters:,}", f"{row.operations:,}", f"{row.macs:,}", size(row.volume),
             "unknown" if row.receptive_field is None else window(row.receptive_field), window(row.stride),
             window(row.offset if len(row.volume) > 1 else None), f"{row.bytes / 1024:,.1f}"]
            for row in self.rows
        ]  # fmt: skip
        total = f"{self.bytes / 1024:,.1f}"
        cells.append(
            ["all", "", f"{self.parameters:,}", f"{self.operations:,}", f"{self.macs:,}", "", "", "", "", total]
        )
        return heads, cells

    def _title(self) -> str:
        images = "one image" if self.batch == 1 else f"{self.batch} images"
        return f"{self.network}, input {' × '.join(map(str, self.input_size))} (C × H × W), {images}"

    def _notes(self) -> list[str]:
        notes = [f"{self.flops:,} FLOPs, as torch's FlopCounterMode counts them"] if self.flops else []
        if self.packed_bytes:
            notes.append(f"{self.packed_bytes / 1024:,.1f} KiB of packed weights beside the parameters")
        if self.unused_parameters:
            notes.append(f"{self.unused_parameters:,} more parameters are not used in eval mode")
        return notes

    def _parts(self) -> list[str | Table]:
        return [self._title(), "", Table(*self._cells(), left=2, total=True), *self._notes()]

    def to_markdown(self) -> str:
        """The same table in Markdown."""
        heads, cells = self._cells()
        lines = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2), *cells]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
        return "\n\n".join([table, *([f"{'; '.join(self._notes())}."] if self._notes() else [])])


def summary(model: nn.Module, input_size: Sequence[int], *, batch: int = 1, expand: bool = False) -> Summary:
    """A table of the layers of `model` for images of `input_size`: parameters, operations, volumes, receptive fields.

    Operations are multiplications with additions: a convolution or a full connection with a kernel of R x S over C
    maps counts R S C for each element of its output, and one more for a bias; pooling, normalisation and other layers
    count one for each element of their input. Activations, dropout and sums have no row, nor have functions that are
    no layers. Parameters that a module with layers inside uses by itself (the class token of a ViT, scales of layers,
    what nn.MultiheadAttention projects with) have a row of that module, without operations or memory, behind its
    layers. Other tools count multiply-accumulates (MACs, half of what they call FLOPs): products alone, without biases,
    and nothing for layers without products. Both are there. What is counted is one image, or `batch` of them, in eval
    mode; the model itself stays as it is.

    Args:
        model: any nn.Module of torch's or our layers that can run on the meta device. Of nn.DataParallel,
            DistributedDataParallel and what torch.compile returns it is the module inside.
        input_size: (C, H, W) of an image, or (C, L) of a sequence, without the batch.
        batch: the number of images.
        expand: rows for the parts of a module that is one otherwise (GoogLeNet's inception modules: modules with
            children and an attribute `op`, which is what such a row is called).

    Returns:
        Summary: `.rows` of `Row`, with `.op`, `.name`, `.parameters`, `.operations`, `.macs`, `.volume`,
        `.receptive_field`, `.stride`, `.bytes`; sums of them, and `.flops`; prints as a table.

    The receptive field is that of the layers' geometry, so that it may reach beyond the image.

    Raises:
        TypeError: `model` is no nn.Module, or a size or the batch no int. ValueError: another number of sizes than two
        or three, a size or a batch below 1. RuntimeError: the model does not run with that input (the message has the
        model's own), has lazy layers before their first call, or parts compiled by TorchScript, in which nothing can be
        seen.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"summary takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(input_size, Sequence) or any(type(n) is not int for n in input_size):
        raise TypeError(f"input_size must be a sequence of ints, got {_shown(input_size)}")
    if len(input_size) not in (2, 3) or min(input_size) < 1:
        raise ValueError(f"input_size must be (C, H, W) or (C, L), each at least 1, got {tuple(input_size)}")
    if type(batch) is not int:
        raise TypeError(f"batch must be an int, got {batch!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    model = _inside(model)
    for name, module in model.named_modules():
        shown = f"{type(module).__name__} {name!r}" if name else f"this {type(module).__name__}"
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise RuntimeError(f"summary: {shown} has no weight before its first call; call the model once first")
        if isinstance(module, torch.jit.ScriptModule):
            raise RuntimeError(f"summary: {shown} is compiled by TorchScript; give the model before it was compiled")
    observer = _Observer(model, expand)
    observer.run(tuple(input_size), batch)
    rows, unused = tuple(observer.rows), observer.unused
    packed = sum(module.packed_bytes for module in model.modules() if isinstance(module, PackedConv2d))
    return Summary(type(model).__name__, tuple(input_size), rows, unused, batch, observer.flops, packed)


def _shown(given: object) -> str:
    """What was given for a size, in few words; of an image, what its size is."""
    if not isinstance(given, torch.Tensor):
        return textwrap.shorten(repr(given), 120)
    hint = f"give its size, {tuple(given.shape[1:])}" if given.dim() == 4 else "give the size of one image, (C, H, W)"
    return f"a Tensor of {list(given.shape)}: {hint}"


class _Reached(BaseException):
    """Ends a run at the layer that was asked for."""


def field_of(model: nn.Module, layer: nn.Module, input_size: Sequence[int]) -> Field | None:
    """The field of what `layer`, a module within `model`, makes of an image of `input_size`; None if there is none."""
    observer = _Observer(model, expand=True, until=layer)
    observer.run(tuple(input_size))
    return observer.reached


def _inside(model: nn.Module) -> nn.Module:
    """The model itself, where others are only wrapped around it."""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod
        else:
            return model


def _get(values: Any) -> Field | None:
    """The field of all the tensors in `values` together."""
    found = None
    for leaf in tree_leaves(values):
        field = getattr(leaf, "_conv_ext_field", None) if isinstance(leaf, Tensor) else None
        if field is not None:
            found = field if found is None else found.joined(field)
    return found


def _put(values: Any, field: Field | None) -> None:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and field is not None:
            leaf._conv_ext_field = field  # type: ignore[attr-defined]


def _between(field: Field | None, result: Any) -> Field | None:
    """The field of what a function made: where it has another number of positions, it is not known which they are."""
    if field is None or not isinstance(result, Tensor) or result.dim() < 3:
        return field
    sizes, (h, w) = list(result.shape[1:]), field.count
    there = h * w in sizes or (h == 1 or h in sizes) and (w == 1 or w in sizes)
    return field if there else field.astray()


class _Between(TorchFunctionMode):
    """Results of functions see what their arguments see, and which parameters are used is noted."""

    def __init__(self, used: set[int]) -> None:
        super().__init__()
        self.used = used  # ids of parameters

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        _put(result, _between(_get((args, kwargs)), result))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # and not a size, a dtype, a device
            self.used.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter))
        return result


class _Observer:
    """Runs a model once and makes its rows."""

    def __init__(self, model: nn.Module, expand: bool, until: nn.Module | None = None) -> None:
        self.model, self.expand, self.until = model, expand, until
        self.reached: Field | None = None  # of `until`
        self.rows: list[Row] = []
        self.counted: set[int] = set()  # ids of parameters
        self.used: set[int] = set()  # the same, of those that functions read
        self.unused = self.flops = 0
        self.begins: list[int] = []  # where the parts of the modules begin that are one row

    def run(self, input_size: tuple[int, ...], batch: int = 1) -> None:
        """Fill `rows`."""
        from torch.utils.flop_counter import FlopCounterMode  # which loads a compiler, where there is one

        model = self.model
        floating = (p.dtype for p in _parameters_of(model) if p.dtype.is_floating_point or p.dtype.is_complex)
        dtype = next(floating, torch.get_default_dtype())
        handles = []
        try:
            x = torch.empty(batch, *input_size, dtype=dtype, device="meta")
            x._conv_ext_field = start((1, *input_size[1:])[-2:])  # type: ignore[attr-defined]
            with on_meta(model), torch.no_grad(), _Between(self.used):
                inner = [m for m in model.modules() if isinstance(m, ParametrizationList)]
                inner = {module for each in inner for module in each.modules()}
                for name, module in model.named_modules():
                    module.training = False
                    if isinstance(module, nn.DataParallel):
                        module.device_ids = []  # the meta device is none of them
                    if module not in inner:  # what makes a layer's weight is no layer
                        handles += self._watch(name or type(module).__name__, module)
                if self.until is not None:
                    handles.append(self.until.register_forward_hook(self._reach))
                with contextlib.suppress(_Reached), FlopCounterMode(display=False) as counter:
                    model(x)
                self.flops = counter.get_total_flops()
                self.unused = sum(p.numel() for p in _parameters_of(model) if id(p) not in self.counted)
        except Exception as error:
            what = f"{type(model).__name__} does not run with an input of {list(input_size)}"
            raise RuntimeError(f"summary: {what}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()

    def _reach(self, _module: Any, _inputs: Any, y: Any) -> None:
        self.reached = _get(y)
        raise _Reached

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        """The hooks of one module, or none where it has no row."""
        parameters = _parameters_of(module)
        has_children = any(name != "parametrizations" for name, _ in module.named_children())
        if isinstance(getattr(module, "op", None), str) and has_children:
            handles = [module.register_forward_hook(lambda m, inputs, y: self._note_own(name, m, parameters, y))]
            return handles if self.expand else handles + self._watch_block(name, module)
        known = isinstance(module, (_ConvNd, nn.Linear)) or hasattr(module, "op")
        known = known or pool_word(module) or norm_word(module)
        if known or parameters and not has_children:

            def hook(m: Any, inputs: Any, keywords: Any, y: Any) -> None:
                self._note(name, m, parameters, (*inputs, *keywords.values()), y)

            return [module.register_forward_hook(hook, with_kwargs=True)]
        if type(module).__module__.startswith("torch.nn.") and not has_children:

            def hook(m: Any, inputs: Any, keywords: Any, y: Any) -> None:
                inputs = (*inputs, *keywords.values())
                if moves(m, inputs, y):
                    self._note(name, m, parameters, inputs, y)

            return [module.register_forward_hook(hook, with_kwargs=True)]
        if parameters:
            return [module.register_forward_hook(lambda m, inputs, y: self._note_own(name, m, parameters, y))]
        return []

    def _watch_block(self, name: str, module: nn.Module) -> list[Any]:
        """A module of several layers that is one row: the sum of its parts."""

        def begin(_module: Any, _inputs: Any) -> None:
            self.begins.append(len(self.rows))

        def end(_module: Any, _inputs: Any, output: Any) -> None:
            first = self.begins.pop()
            parts = self.rows[first:]
            sums = sum(row.parameters for row in parts), sum(row.operations for row in parts)
            kept, macs = sum(row.bytes for row in parts), sum(row.macs for row in parts)
            self.rows[first:] = [_row(module.op, name, *sums, output, _get(output), kept, macs)]

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    def _note(
        self, name: str, module: nn.Module, parameters: list[nn.Parameter], inputs: tuple[Any, ...], y: Any
    ) -> None:
        x, y = (next((leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)), None) for of in (inputs, y))
        if x is None or y is None:
            self._count(parameters)  # without a tensor that comes or goes there is nothing to say in a row
            return
        field = field_after(module, _get(x), x, y)
        _put(y, field)
        figures = self._count(parameters), operations_of(module, x, y)
        self.rows.append(_row(op_of(module, x, y), name, *figures, y, field, macs=macs_of(module, x, y)))

    def _note_own(self, name: str, module: nn.Module, parameters: list[nn.Parameter], y: Any) -> None:
        """A row for what a module with layers inside uses by itself: what the layers' rows have not counted."""
        count = self._count([p for p in parameters if id(p) in self.used])
        y = next((leaf for leaf in tree_leaves(y) if isinstance(leaf, Tensor)), None)
        if count and y is not None:
            self.rows.append(_row(type(module).__name__, name, count, 0, y, _get(y), kept=0))

    def _count(self, parameters: list[nn.Parameter]) -> int:
        """How many numbers are in those that no row has yet."""
        fresh = [p for p in parameters if id(p) not in self.counted]
        self.counted.update(map(id, fresh))
        return sum(p.numel() for p in fresh)


def _parameters_of(model: nn.Module) -> list[Any]:
    """The parameters of a module, and the tensors that packed layers have in their place."""
    packed = [module for module in model.modules() if isinstance(module, PackedConv2d)]
    return [*model.parameters(), *(tensor for module in packed for tensor in module._own_tensors())]


def _row(
    op: str,
    name: str,
    parameters: int,
    operations: int,
    y: Tensor,
    field: Field | None,
    kept: Any = None,
    macs: int = 0,
) -> Row:
    sizes = tuple(y.shape[1:])
    volume = (*sizes[1:], sizes[0]) if sizes else ()
    extent, step, offset = ((1, 1), (1, 1), None) if field is None else (field.extent, field.step, field.offset())
    if field is not None and not field.known:
        extent = step = None
    step = None if step is None or len(sizes) < 2 else tuple(int(s) if s == int(s) else s for s in step)
    kept = y.numel() * y.element_size() if kept is None else kept
    return Row(op, name, parameters, operations, volume, extent, step, kept, offset, field, macs)
