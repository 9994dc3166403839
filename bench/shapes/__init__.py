"""The layers that are measured. Each module here is a suite: BATCH, and SHAPES with one line per layer."""

import importlib
import pkgutil
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch

PASSES = ("forward", "input_grad", "weight_grad")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")


@dataclass(frozen=True)
class Shape:
    """One convolution layer: (N, C, H, W) * (K, C/groups, R, S) -> (N, K, P, Q)."""

    name: str
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    n: int = 1
    suite: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def p(self) -> int:
        return (self.h + 2 * self.padding[0] - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1

    @property
    def q(self) -> int:
        return (self.w + 2 * self.padding[1] - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1

    @property
    def flops(self) -> int:
        """Of the direct convolution, two for a multiplication with an addition; the same in all three passes."""
        return 2 * self.n * self.k * self.p * self.q * (self.c // self.groups) * self.r * self.s

    @property
    def elements(self) -> int:
        """Of the three tensors together: the least that a pass has to read and write."""
        return (self.n * self.c * self.h * self.w + self.k * (self.c // self.groups) * self.r * self.s
                + self.n * self.k * self.p * self.q)

    def reduction(self, pass_name: str) -> int:
        """How many products are summed into one element of the result."""
        return {
            "forward": self.c // self.groups * self.r * self.s,
            "input_grad": self.k // self.groups * self.r * self.s,
            "weight_grad": self.n * self.p * self.q,
        }[pass_name]

    @property
    def kind(self) -> str:
        """The class that the layer is counted under: layers of a class meet the same bottleneck."""
        if self.groups > 1:
            return "depthwise" if self.groups == self.c else "groups"
        if self.c <= 4:
            return "first layer, C <= 4"
        stride = "" if self.r == self.s == 1 and self.stride == (1, 1) else f" stride {max(self.stride)}"
        dilation = "" if self.dilation == (1, 1) else " dilated"
        size = ""
        if (self.r, self.s, self.stride) == (3, 3, (1, 1)):
            size = ", at least 28x28" if self.h * self.w >= 28 * 28 else ", smaller maps"
        return f"{self.r}x{self.s}{stride}{dilation}{size}"

    def describe(self) -> dict:
        return {**asdict(self), "p": self.p, "q": self.q, "kind": self.kind, "flops": self.flops}


def conv(name: str, c: int, h: int, w: int, k: int, r: int, s: int | None = None, *, stride=1, padding=0, dilation=1,
         groups: int = 1) -> Shape:
    """One line of a shape file; a kernel is square unless `s` is given, and an int counts for both dimensions."""
    def both(value) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    return Shape(name, c, h, w, k, r, r if s is None else s, both(stride), both(padding), both(dilation), groups)


def suites() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(names: list[str], only: list[str] | None = None, batch: int | None = None) -> list[Shape]:
    """The shapes of the named suites whose suite/name fits one of the patterns, with their batch filled in."""
    unknown = sorted(set(names) - set(suites()))
    if unknown:
        raise SystemExit(f"there is no suite {', '.join(unknown)}; there are: {', '.join(suites())}")
    found = []
    for suite in names:
        module = importlib.import_module(f"{__name__}.{suite}")
        found += [replace(shape, suite=suite, n=batch or module.BATCH) for shape in module.SHAPES]
    chosen = [s for s in found if not only or any(fnmatch(s.full_name, pattern) for pattern in only)]
    if not chosen:
        raise SystemExit(f"no layer fits {' '.join(only)}; there are: {' '.join(s.full_name for s in found)}")
    return chosen
