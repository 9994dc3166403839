"""The layers that are measured. Each module here is a suite: BATCH, and SHAPES with one line per layer."""

import importlib
import pkgutil
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch

PASSES = ("forward", "input_grad", "weight_grad")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")
PRECISIONS = ("ieee", "tf32", "bf16")
# Layers of a class meet the same bottleneck. The first class that a layer fits is its own: see Shape.kind.
CLASSES = ("first layer", "1x1", "3x3 stride 1", "5x5 stride 1", "strided", "depthwise", "grouped", "other")
TRAIN = "train"  # in place of a batch size: each suite's own


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
    batch: str = TRAIN  # what was asked for: TRAIN, or the number itself

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
        """One of CLASSES."""
        if self.groups > 1:
            return "depthwise" if self.groups == self.c else "grouped"
        if self.c <= 4:
            return "first layer"
        if max(self.stride) > 1:
            return "strided"
        if self.dilation != (1, 1) or self.r != self.s:
            return "other"
        return {1: "1x1", 3: "3x3 stride 1", 5: "5x5 stride 1"}.get(self.r, "other")

    def describe(self) -> dict:
        return {**asdict(self), "p": self.p, "q": self.q, "kind": self.kind, "flops": self.flops}


def conv(name: str, c: int, h: int, w: int, k: int, r: int, s: int | None = None, *, stride=1, padding=0, dilation=1,
         groups: int = 1) -> Shape:
    """One line of a shape file; a kernel is square unless `s` is given, and an int counts for both dimensions."""
    def both(value) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    return Shape(name, c, h, w, k, r, r if s is None else s, both(stride), both(padding), both(dilation), groups)


def distinct(shapes: list[Shape]) -> list[Shape]:
    """Each geometry once, under the first name that it has."""
    firsts = {}
    for shape in shapes:
        firsts.setdefault(replace(shape, name=""), shape)
    return list(firsts.values())


def suites() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(names: list[str], only: list[str] | None = None, batches: list[int | str] = (TRAIN,)) -> list[Shape]:
    """The shapes of the named suites whose suite/name fits one of the patterns, once for each batch."""
    unknown = sorted(set(names) - set(suites()))
    if unknown:
        raise SystemExit(f"there is no suite {', '.join(unknown)}; there are: {', '.join(suites())}")
    found = []
    for suite in names:
        module = importlib.import_module(f"{__name__}.{suite}")
        found += [replace(shape, suite=suite, n=module.BATCH if batch == TRAIN else batch, batch=str(batch))
                  for batch in batches for shape in module.SHAPES]
    chosen = [s for s in found if not only or any(fnmatch(s.full_name, pattern) for pattern in only)]
    if not chosen:
        layers = dict.fromkeys(s.full_name for s in found)
        raise SystemExit(f"no layer fits {' '.join(only)}; there are: {' '.join(layers)}")
    return chosen
