"""Convolutions in which each output map sees only some of the input maps: `ConnectionTable`, `MappedConv2d`."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .arguments import INT64_MAX, PADDINGS, Activation, Padding, check_activation, ints
from .functional import IntOrPair, conv2d
from .modules import Unscriptable
from .tracing import is_tracing, unrecorded

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConnectionTable", "MappedConv2d"]


def _count(name: str, value: Any, most: int | None = None) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < 1 or most is not None and number > most:
        rule = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} must be {rule}, got {number}")
    return number


class ConnectionTable:
    """Which input maps feed which output maps.

    sources: for each output map the input maps that it sees, as ints from 0; the order within one does not matter.
    in_channels: how many input maps there are; None: one more than the largest index.

    Attributes: `sources`, a tuple of sorted tuples; `in_channels` (C); `out_channels` (K); `connections`, the number
    of pairs. `matrix()` is the table as booleans. Tables are equal where their maps and connections are.

    Raises TypeError where an index is no int, and ValueError where an index is out of range, an output map has no
    input, or sees one twice; the message names the output map.
    """

    def __init__(self, sources: Sequence[Sequence[int]], in_channels: int | None = None) -> None:
        try:
            rows = [list(row) for row in sources]
        except TypeError:
            raise TypeError(
                f"a connection table is a sequence of sequences, the input maps of each output map, got {sources!r}"
            ) from None
        if not rows:
            raise ValueError("a connection table must have at least one output map, got none")
        checked = []
        for k, row in enumerate(rows):
            try:
                if any(isinstance(c, bool) for c in row):
                    raise TypeError
                checked.append(tuple(sorted(operator.index(c) for c in row)))
            except TypeError:
                raise TypeError(f"input maps are ints, but output map {k} has {row}") from None
            if not row:
                raise ValueError(f"every output map must see at least one input map, output map {k} sees none")
            if len(set(checked[k])) != len(row):  # the ints: elements of a tensor are equal to none but themselves
                raise ValueError(f"an output map may see an input map once, output map {k} has {row}")
        most = max(row[-1] for row in checked) + 1
        if most > INT64_MAX:
            raise ValueError(f"input maps must be below 2^63 - 1, got {most - 1}")
        self.in_channels = most if in_channels is None else _count("in_channels", in_channels)
        for k, found in enumerate(checked):
            if found[0] < 0 or found[-1] >= self.in_channels:
                rule = "at least 0" if in_channels is None else f"from 0 to {self.in_channels - 1}"
                raise ValueError(f"input maps must be {rule}, but output map {k} has {list(rows[k])}")
        self.sources = tuple(checked)
        self.out_channels = len(checked)
        self.connections = sum(map(len, checked))

    @classmethod
    def full(cls, in_channels: int, out_channels: int) -> ConnectionTable:
        """Every output map sees every input map: an ordinary convolution."""
        every = range(_count("in_channels", in_channels))
        return cls([every] * _count("out_channels", out_channels), in_channels)

    @classmethod
    def one_to_one(cls, channels: int) -> ConnectionTable:
        """Output map k sees input map k alone: a depthwise convolution."""
        return cls([[c] for c in range(_count("channels", channels))], channels)

    @classmethod
    def random(
        cls, in_channels: int, out_channels: int, fan_in: int, generator: torch.Generator | None = None
    ) -> ConnectionTable:
        """Every output map sees `fan_in` different input maps, drawn by `generator` (None: torch's own)."""
        in_channels = _count("in_channels", in_channels)
        fan_in = _count("fan_in", fan_in, in_channels)
        count = _count("out_channels", out_channels)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        device = "cpu" if generator is None else generator.device  # not the default, which may have no values
        orders = (torch.randperm(in_channels, generator=generator, device=device) for _ in range(count))
        drawn = [order[:fan_in].tolist() for order in orders]
        return cls(drawn, in_channels)

    def matrix(self) -> Tensor:
        """The table as booleans: (K, C), true where output map k sees input map c."""
        matrix = torch.zeros(self.out_channels, self.in_channels, dtype=torch.bool)
        for k, row in enumerate(self.sources):
            matrix[k, list(row)] = True
        return matrix

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConnectionTable):
            return NotImplemented
        return (self.in_channels, self.sources) == (other.in_channels, other.sources)

    def __hash__(self) -> int:
        return hash((self.in_channels, self.sources))

    def __repr__(self) -> str:
        return (
            f"ConnectionTable({self.in_channels} -> {self.out_channels} maps, {self.connections} of "
            f"{self.in_channels * self.out_channels} connections)"
        )


class MappedConv2d(Unscriptable, nn.Module):
    """A 2-D convolution with the connections of a table: only those that exist have kernels.

    After the third layer of LeNet-5: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
    document recognition", Proceedings of the IEEE 86 (11), 1998, section II.B and table I. ::

        y[n, k, p, q] = b[k] + sum over the input maps c of output map k, r, s of  w[(k, c), r, s] * x[n, c, h, w]

    There are two ways to compute it, and the one that takes less time by an estimate from the table, kernel size and
    stride (`dense_is_faster`) is taken; results and gradients are the same but for rounding:

    - Output maps that see the same input maps form a group. All groups of one size are one grouped convolution, over
      the input maps gathered for them: a table with a few fan-ins is a few calls of `conv_ext.conv2d`. Work is in
      proportion to the connections.
    - One convolution of all maps, with zeros for the weights of connections that there are not. Zeros are multiplied:
      where an input (or a gradient) is infinite or NaN, outputs (gradients) that it has no connection to are NaN, too.

    Args:
        connection_table: a `ConnectionTable`, or what one is made of: the input maps of each output map.
        kernel_size, stride, padding, dilation, activation: as in `conv_ext.Conv2d`, padding strings included; zeros
            are the only padding mode.
        bias: whether each output map has one.
        dense: True: one convolution with zeros. False: the groups alone. None: what takes less time.

    Attribute `dense` says which way is taken, `convolutions` has (fan-in, groups) of each call.

    Shapes: input (N, C, H, W) or (C, H, W); weight (connections, R, S), output map after output map, each with its
    input maps in ascending order; bias (K,); output (N, K, P, Q) or (K, P, Q).
    Dtypes, and derivatives of any order, are those of `conv_ext.conv2d`. Weights start as those of `nn.Conv2d` do:
    uniform within 1 / sqrt(fan-in of the output map).
    torch.fx traces into it: the graph has a convolution for each fan-in, or the dense one, and indices as buffers.
    Errors: those of `ConnectionTable`; TypeError where `dense` is no bool and not None; ValueError for a kernel size,
    stride or dilation below 1, a negative padding, an unknown string; RuntimeError in `forward` where the input has not
    C channels, and as in `conv_ext.conv2d`.
    """

    _asked: bool | None = None  # of layers that were pickled before there was a choice, too
    dense = False
    activation: Activation
    bias: nn.Parameter | None
    _places: Tensor | None
    _connected: Tensor

    def __init__(
        self,
        connection_table: ConnectionTable | Sequence[Sequence[int]],
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: Padding | IntOrPair = 0,
        dilation: IntOrPair = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "none",
        dense: bool | None = None,
    ) -> None:
        super().__init__()
        if dense is not None and not isinstance(dense, bool):
            raise TypeError(f"dense must be True, False or None, got {dense!r}")
        self._asked = dense
        if not isinstance(connection_table, ConnectionTable):
            connection_table = ConnectionTable(connection_table)
        check_activation(activation)
        self.table, self.activation = connection_table, activation
        self.in_channels, self.out_channels = connection_table.in_channels, connection_table.out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        if not isinstance(padding, str):
            padding = _pair("padding", padding, 0)
        elif padding not in PADDINGS:
            raise ValueError(f"Invalid padding string {padding!r}, should be one of {', '.join(map(repr, PADDINGS))}")
        self.padding = padding
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(connection_table.connections, *self.kernel_size, **where))
        of_each = nn.Parameter(torch.empty(self.out_channels, **where)) if bias else None
        self.register_parameter("bias", of_each)
        self._plan()
        self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Whatever moves the parameters; `to_empty` leaves buffers without their values, hence a new plan."""
        apply: Callable[..., nn.Module] = super()._apply
        apply(fn, recurse)
        self._plan()
        return self

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """With assign=True, parameters from elsewhere take the place of those that are here: a new plan for them."""
        super()._load_from_state_dict(*arguments, **keywords)
        self._plan()

    def _plan(self) -> None:
        """Choose the way, sort the output maps into grouped convolutions, and keep the indices for them."""
        table = self.table
        groups = _groups(table)
        full = table.connections == self.in_channels * self.out_channels
        taken = dense_is_faster(table, self.kernel_size, self.stride) if self._asked is None else self._asked
        self.dense = taken and not full  # the groups of a full table are that one convolution, without zeros
        # Indices keep their values where the weight has none: `functional_call` brings another weight.
        device = "cpu" if self.weight.is_meta else self.weight.device
        begins = list(accumulate((len(row) for row in table.sources), initial=0))

        def keep(name: str, indices: list[int], count: int) -> None:
            """A buffer, or None where gathering would change nothing."""
            changed = _changes(indices, count)
            self.register_buffer(name, torch.tensor(indices, device=device) if changed else None, persistent=False)

        for name in list(self._buffers):  # of another way, taken before
            del self._buffers[name]
        if self.dense:
            self.convolutions = [(self.in_channels, 1)]
            places = [k * self.in_channels + c for k, row in enumerate(table.sources) for c in row]
            self.register_buffer("_connected", torch.tensor(places, device=device), persistent=False)
            return
        order: list[int] = []
        self.convolutions = []  # (fan-in, groups) of each bucket
        for number, (fan_in, bucket) in enumerate(groups):
            outputs = [k for _, of_group in bucket for k in of_group]
            keep(f"_inputs{number}", [c for row, _ in bucket for c in row], self.in_channels)
            keep(f"_kernels{number}", [begins[k] + i for k in outputs for i in range(fan_in)], table.connections)
            keep(f"_outputs{number}", outputs, self.out_channels)
            order += outputs
            self.convolutions.append((fan_in, len(bucket)))
        keep("_places", sorted(range(len(order)), key=order.__getitem__), self.out_channels)

    def reset_parameters(self) -> None:
        """Fresh weights and biases."""
        positions = math.prod(self.kernel_size)
        bounds = [(len(row) * positions) ** -0.5 for row in self.table.sources]
        of_each = [bound for row, bound in zip(self.table.sources, bounds) for _ in row]
        with torch.no_grad():
            self.weight.uniform_(-1, 1).mul_(self.weight.new_tensor(of_each)[:, None, None])
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(self.bias.new_tensor(bounds))

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of `input`: (N, C, H, W) -> (N, K, P, Q), or without N."""
        if is_tracing():
            with unrecorded():
                self._check(input)
        else:
            self._check(input)
        parts = [conv2d(*arguments, activation=self.activation) for arguments in self._calls(input)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-3)
        return y if self.dense else _gathered(y, -3, self._places)

    def _check(self, input: Tensor) -> None:
        # A symbolic trace (torch.fx) has proxies here, which have no sizes.
        if isinstance(input, Tensor) and (input.dim() not in (3, 4) or input.shape[-3] != self.in_channels):
            raise RuntimeError(
                f"Expected input (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W), the maps of the "
                f"connection table, but got input of size: {list(input.shape)}"
            )

    def _calls(self, input: Tensor) -> list[tuple[Any, ...]]:
        """The arguments of conv2d for each bucket of output maps, or for all of them."""
        if self.dense:
            return [(input, self._with_zeros(), self.bias, self.stride, self.padding, self.dilation, 1)]
        calls = []
        for number, (fan_in, groups) in enumerate(self.convolutions):
            x = _gathered(input, -3, getattr(self, f"_inputs{number}"))
            weight = _gathered(self.weight, 0, getattr(self, f"_kernels{number}")).unflatten(0, (-1, fan_in))
            bias = None if self.bias is None else _gathered(self.bias, 0, getattr(self, f"_outputs{number}"))
            calls.append((x, weight, bias, self.stride, self.padding, self.dilation, groups))
        return calls

    def _with_zeros(self) -> Tensor:
        """`dense_weight`, by indices that are kept."""
        connected = _beside(self._connected, self.weight)
        zeros = self.weight.new_zeros(self.out_channels * self.in_channels, *self.kernel_size)
        whole: Tensor = zeros.index_copy(0, connected, self.weight).unflatten(0, (self.out_channels, self.in_channels))
        return whole

    def dense_weight(self) -> Tensor:
        """The weight of the ordinary convolution that computes the same: (K, C, R, S), zero where nothing connects."""
        matrix = self.table.matrix().to(self.weight.device)
        dense = self.weight.new_zeros(*matrix.shape, *self.kernel_size)
        return dense.masked_scatter(matrix[:, :, None, None], self.weight)

    def extra_repr(self) -> str:
        """The table and what differs from the defaults."""
        shown = f"{self.table!r}, kernel_size={self.kernel_size}"
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "activation": "none"}
        changed = [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([shown, *changed] + ["bias=False"] * (self.bias is None) + ["dense"] * self.dense)


def _groups(table: ConnectionTable) -> list[tuple[int, list[tuple[tuple[int, ...], list[int]]]]]:
    """The grouped convolutions of a table: the fan-in of each, and its groups of (input maps, output maps)."""
    outputs_of = defaultdict(list)  # by the input maps that they share
    for k, row in enumerate(table.sources):
        outputs_of[row].append(k)
    buckets = defaultdict(list)  # by the sizes of the groups
    for row, outputs in outputs_of.items():
        buckets[len(row), len(outputs)].append((row, outputs))
    return [(fan_in, groups) for (fan_in, _), groups in sorted(buckets.items())]


def _changes(indices: list[int], count: int) -> bool:
    """Whether gathering `indices` of so many would change anything."""
    return len(indices) != count or any(index != at for at, index in enumerate(indices))


def dense_is_faster(table: ConnectionTable, kernel_size: tuple[int, int], stride: tuple[int, int]) -> bool:
    """Whether one convolution of all maps, zeros included, is estimated to take less time than the table's groups.

    Both ways multiply; the groups also gather input maps, each of which a group then reads for few outputs, and put
    outputs into their order. Picoseconds of a training step, for each position of an output map, on one core, fitted
    to float32 steps on AVX-512 (`python -m bench mapped` has the cases; a table of connections is all it needs):
    """
    taps = kernel_size[0] * kernel_size[1]
    product = 25 if taps >= 9 and stride == (1, 1) else 45  # minimal filtering has fewer of them
    gathered = 3500 * stride[0] * stride[1] + 220 * min(taps, 9)
    ordered = 4000
    cost = product * table.connections * taps
    groups = _groups(table)
    order: list[int] = []
    for _, bucket in groups:
        inputs = [c for row, _ in bucket for c in row]
        cost += gathered * len(inputs) * _changes(inputs, table.in_channels)
        order += [k for _, outputs in bucket for k in outputs]
    cost += ordered * table.out_channels * (_changes(order, table.out_channels) or len(groups) > 1)
    return cost > product * table.in_channels * table.out_channels * taps


def _gathered(tensor: Tensor, dim: int, indices: Tensor | None) -> Tensor:
    return tensor if indices is None else tensor.index_select(dim, _beside(indices, tensor))


def _beside(indices: Tensor, tensor: Tensor) -> Tensor:
    """The indices on the tensor's device: parameters may be put into a layer, or lent to it for a call."""
    # A symbolic trace (torch.fx) has proxies here, which have no device.
    if isinstance(tensor, Tensor) and isinstance(indices, Tensor) and indices.device != tensor.device:
        return indices.to(tensor.device)
    return indices


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    # As nn.Conv2d does, which takes arrays, tensors and any other iterable of ints.
    if isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0:
        value = tuple(value)
    pair = ints(value, 2, "MappedConv2d", name)
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {pair}")
    return pair
