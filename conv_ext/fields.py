"""Which positions of a network's input an output depends on: the arithmetic of receptive fields.

`Field` is what `summary` carries through a network. Its `extent`, `step` and `begin` are the usual arithmetic, which
knows of no border. For the exact positions it also remembers every step on the way (`Graph`): `window` goes back
through them, row by row and column by column, and leaves out what lies in the padding. It is the smallest rectangle
around these positions, in which a dilated kernel or a long stride has holes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

__all__ = ["Adaptive", "Field", "Graph", "Interpolated", "Same", "Transposed", "Whole", "Windowed", "start"]

Pair = tuple[int, int]
Positions = set[int]  # along one axis


@dataclass(frozen=True)
class Windowed:
    """A window of `kernel` taps over maps of `size`; what lies outside is filled as `mode` says (nn.Conv2d's names)."""

    kernel: Pair
    stride: Pair
    padding: Pair  # before the first position; negative: so many are cut off
    dilation: Pair
    size: Pair
    mode: str = "zeros"

    def before(self, axis: int, outputs: Positions) -> Positions:
        """The positions that the outputs read, padding left out."""
        n, s, pad, d = self.size[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
        reach = d * (self.kernel[axis] - 1)
        read = (i for p in outputs for i in range(p * s - pad, p * s - pad + reach + 1, d))
        return {i for i in read if 0 <= i < n} if self.mode == "zeros" else {_filled(i, n, self.mode) for i in read}


def _filled(i: int, n: int, mode: str) -> int:
    """The position that stands at i of a padded map."""
    if mode == "circular":
        return i % n
    if mode == "reflect":
        i = 2 * (n - 1) - abs(i) if abs(i) >= n else abs(i)
    return min(max(i, 0), n - 1)


@dataclass(frozen=True)
class Transposed:
    """What a transposed convolution, or the way back of max pooling, takes its outputs from."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair

    def before(self, axis: int, outputs: Positions) -> Positions:
        """The inputs i with p = i · stride + r · dilation - padding for an output p and a tap r."""
        s, d, reach = self.stride[axis], self.dilation[axis], self.dilation[axis] * (self.kernel[axis] - 1)
        found: Positions = set()
        for p in (p + self.padding[axis] for p in outputs):
            inputs = range(max(0, -((reach - p) // s)), min(p // s, self.size[axis] - 1) + 1)
            found.update(i for i in inputs if (p - i * s) % d == 0)
        return found


@dataclass(frozen=True)
class Adaptive:
    """Pooling to `outputs` bins of as nearly one size as there can be (torch's rule)."""

    size: Pair
    outputs: Pair

    def before(self, axis: int, outputs: Positions) -> Positions:
        """The inputs of the bins."""
        n, m = self.size[axis], self.outputs[axis]
        return {i for p in outputs for i in range(p * n // m, -(-(p + 1) * n // m))}


@dataclass(frozen=True)
class Interpolated:
    """Upsampling: output p lies at (p + plus) · ratio - minus and takes inputs from `low` to `high` around it."""

    ratio: tuple[Fraction, Fraction]
    plus: Fraction
    minus: Fraction
    low: int
    high: int
    size: Pair

    def before(self, axis: int, outputs: Positions) -> Positions:
        """The inputs around the outputs."""
        most = self.size[axis] - 1
        middles = {math.floor((p + self.plus) * self.ratio[axis] - self.minus) for p in outputs}
        return {min(max(i, 0), most) for middle in middles for i in range(middle + self.low, middle + self.high + 1)}


@dataclass(frozen=True)
class Same:
    """Position for position; a map of one position is read by all."""

    size: Pair

    def before(self, axis: int, outputs: Positions) -> Positions:
        """The outputs, within the maps."""
        return {0} if self.size[axis] == 1 else {p for p in outputs if p < self.size[axis]}


@dataclass(frozen=True)
class Whole:
    """Every output reads every position."""

    size: Pair

    def before(self, axis: int, outputs: Positions) -> Positions:
        """All."""
        return set(range(self.size[axis]))


Step = Windowed | Transposed | Adaptive | Interpolated | Same | Whole


@dataclass
class Graph:
    """The steps that led to each field, by its number: pairs of an earlier field's number and the step from there.

    The input has number 0 and no steps; None stands for a way that is not known.
    """

    nodes: list[tuple[tuple[int, Step], ...] | None] = field(default_factory=lambda: [()])

    def add(self, steps: tuple[tuple[int, Step], ...] | None) -> int:
        """The number of a new field."""
        self.nodes.append(steps)
        return len(self.nodes) - 1

    def positions(self, node: int, axis: int, p: int) -> Positions | None:
        """The positions of the input that position p of a field depends on, or None if unknown."""
        wanted, order = {node: {p}}, [-node]
        while order:  # the latest field first: all that want something of it have said so by then
            at = -heapq.heappop(order)
            if at == 0:
                return wanted[0]
            steps = self.nodes[at]
            if steps is None:
                return None
            for earlier, step in steps:
                if earlier not in wanted:
                    heapq.heappush(order, -earlier)
                    wanted[earlier] = set()
                wanted[earlier] |= step.before(axis, wanted[at])
        return set()


@dataclass(frozen=True)
class Field:
    """What the elements of a tensor see in the input, each number for (height, width).

    extent, step: how much one element sees, and how far apart neighbours are. begin: where the field of element (0, 0)
    begins, below 0 in the padding; None if unknown. count: how many elements there are. node, graph: for `window`.
    depth: convolutions and full connections on the longest way here.
    """

    extent: Pair
    step: tuple[int | Fraction, int | Fraction]
    count: Pair
    begin: tuple[int | Fraction, int | Fraction] | None = None
    node: int = 0
    graph: Graph = field(default_factory=Graph, compare=False, repr=False)
    depth: int = 0

    @property
    def known(self) -> bool:
        """Whether anything is known but the depth."""
        return self.extent != (0, 0)

    def unknown(self, count: Pair) -> Field:
        """The field of elements of which nothing is known."""
        return Field((0, 0), (0, 0), count, None, self.graph.add(None), self.graph, self.depth)

    def astray(self) -> Field:
        """The same where it is no longer known which element is where."""
        return replace(self, begin=None, node=self.graph.add(None)) if self.begin is not None else self

    def through(self, kernel: Pair, stride: Pair, dilation: Pair, count: Pair, step: Step, first: Pair) -> Field:
        """What the outputs of a window over these elements see; `first` is where that of output (0, 0) begins."""
        if not self.known:
            return self.unknown(count)
        extent = tuple(math.ceil(e + d * (r - 1) * s) for e, d, r, s in zip(self.extent, dilation, kernel, self.step))
        begin = None if self.begin is None else tuple(b + s * f for b, s, f in zip(self.begin, self.step, first))
        steps = tuple(s * t for s, t in zip(self.step, stride))
        return Field(extent, steps, count, begin, self.graph.add(((self.node, step),)), self.graph, self.depth)

    def finer(self, ratio: Sequence[Fraction], count: Pair) -> Field:
        """The same with so many elements in place of one."""
        return replace(self, step=tuple(s / r for s, r in zip(self.step, ratio)), count=count) if self.known else self

    def joined(self, other: Field) -> Field:
        """What a sum of both, or both side by side, see."""
        if self.node == other.node:
            return self if self.depth >= other.depth else other
        depth, count = max(self.depth, other.depth), tuple(map(max, self.count, other.count))
        if not (self.known and other.known):
            return replace(self.unknown(count), depth=depth)
        node = self.graph.add(((self.node, Same(self.count)), (other.node, Same(other.count))))
        step, extent = tuple(map(max, self.step, other.step)), tuple(map(max, self.extent, other.extent))
        begin = None
        if self.step == other.step and self.begin is not None and other.begin is not None:
            begin = tuple(map(min, self.begin, other.begin))
            ends = zip(self.begin, self.extent, other.begin, other.extent, begin)
            extent = tuple(math.ceil(max(a + e, b + f) - first) for a, e, b, f, first in ends)
        return Field(extent, step, count, begin, node, self.graph, depth)

    def offset(self) -> Pair | None:
        """`begin` as whole positions."""
        return None if self.begin is None else tuple(map(math.floor, self.begin))

    def window(self, p: int, q: int) -> tuple[slice, slice] | None:
        """The rows and columns of the input that element (p, q) depends on, or None if unknown."""
        rows, columns = (self.graph.positions(self.node, axis, at) for axis, at in enumerate((p, q)))
        if rows is None or columns is None:
            return None
        if not rows or not columns:  # padding alone
            return slice(0, 0), slice(0, 0)
        return slice(min(rows), max(rows) + 1), slice(min(columns), max(columns) + 1)


def start(size: Pair) -> Field:
    """The field of the input itself: each of its positions sees itself."""
    return Field((1, 1), (1, 1), size, (0, 0))
