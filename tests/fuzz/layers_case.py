"""A case of the fuzzer of layers: one call of a public function or layer, drawn, written as a line, made smaller.

`Case.draw` takes any object with the methods of random.Random: the fuzzer gives it one with a seed, and hypothesis its
own, which it can make smaller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

HUGE = (2**31, 2**40, 2**62, 2**63 - 1)
# Multiply-adds of one pass: larger cases are for the fuzzer of runs, which needs no Python for each.
MOST_WORK = 150_000
DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")
RULES = ("valid", "same", "full", "same_strided")
MODES = ("inference", "backward", "double", "jvp", "hvp", "vmap", "autocast", "compile", "copy")

# One wrong argument each: a name of an argument, or `tensor.property`, and what it is instead.
BAD = (
    *(f"{name}={value}" for name in ("stride", "dilation", "groups") for value in (0, -1)),
    *(
        f"{name}={value}"
        for name in ("stride", "padding", "dilation")
        for value in ("1.0", "True", "None", "[]", "(1,1,1)", "'same'", "'x'", "(1,0)", "(1.0,1)", "(1,-2)")
    ),
    *(
        f"{name}={value}" for name in ("stride", "padding", "dilation") for value in (2**63, f"[{-(2**63)}]")
    ),
    # Not a padding of 2^31: it is valid, and a result of gigabytes takes its time.
    *(f"{name}={huge}" for name in ("stride", "padding", "dilation", "groups") for huge in HUGE[name == "padding" :]),
    "padding=-1", "padding=(0,-1)", "padding=-9223372036854775809", "padding=(4611686018427387904,0)",
    "groups=1.0", "groups=None", "groups=True", "groups=(1,)", "groups=7", "groups='1'",
    "output_padding=-1", "output_padding=4", "output_padding=(0,9)", "output_padding=9223372036854775807",
    *(f"{t}.{what}" for t in ("x", "w", "b") for what in ("rank+1", "rank-1", "channels+1", "none", "list", "numpy")),
    *(f"{t}.{what}" for t in ("x", "w", "b") for what in ("int64", "bool", "other", "meta", "sparse", "scalar")),
    *(f"{t}.{what}" for t in ("x", "w") for what in ("empty", "large")),
)  # fmt: skip


WORDS = {  # what each key may say that is no number
    "function": ("conv2d", "conv1d", "conv_transpose1d", "conv_transpose2d"),
    "way": ("function", "layer", "override", "convert", "mapped", "fuse", "packed"),
    "mode": MODES,
    "activation": ("none", "relu", "relu6"),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
    "precision": ("ieee", "tf32", "bf16"),
    "dtype": DTYPES,
    "needs": ("xwb", "xw", "xb", "wb", "x", "w", "b"),
    "form": ("tuple", "int", "list", "one", "numpy", "tensor", "size"),
    "numbers": ("integers", "reals", "special"),
    "bad": ("", *BAD),
}
_PART = r"(p[0-3]+|[soueva]\d+|[nc])"
MEMORY = rf"({_PART}(\+{_PART})*)?"


@dataclass(frozen=True)
class Case:
    """c, k: channels of one group of the input and of the output. padding: a pair or a rule. Memory: see `memory`."""

    function: str = "conv2d"  # one of WORDS
    way: str = "function"  # layer, override, convert, mapped, fuse, packed
    mode: str = "inference"
    n: int = 1
    batched: int = 1
    c: int = 1
    k: int = 1
    groups: int = 1
    h: int = 1
    w: int = 1
    r: int = 1
    s: int = 1
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] | str = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    output_padding: tuple[int, ...] = (0, 0)
    bias: int = 0
    activation: str = "none"
    residual: int = 0  # 1: the numbers of layers_check.residual_of are added before the activation
    padding_mode: str = "zeros"
    precision: str = "ieee"
    dtype: str = "float32"
    memory_x: str = ""  # what layers_memory.py reads: "p0231+e1"
    memory_w: str = ""
    memory_b: str = ""
    memory_g: str = ""
    needs: str = "xwb"  # whose gradients are wanted
    form: str = "tuple"  # of the arguments: int, list, one, numpy, tensor, size
    keywords: int = 1
    numbers: str = "integers"  # reals, special
    variant: int = 0  # of what a mode or a way has several of
    bad: str = ""  # one of BAD
    seed: int = 0  # of the numbers in the tensors

    def __str__(self) -> str:
        """One line; what is as by default is left out."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)

    @staticmethod
    def _value(name: str, text: str, default):
        """What the text of one key says."""
        pair = isinstance(default, tuple)
        if pair and not (name == "padding" and text in RULES) or isinstance(default, int):
            try:
                numbers = tuple(map(int, text.split(",")))
            except ValueError:
                numbers = ()
            if len(numbers) != (2 if pair else 1):
                wanted = "two integers with a comma between them" if pair else "an integer"
                rules = f", or one of {', '.join(RULES)}" if name == "padding" else ""
                raise ValueError(f"{name} must be {wanted}{rules}, got {text!r}")
            return numbers if pair else numbers[0]
        if text not in WORDS.get(name, (text,)):
            raise ValueError(f"{name} must be one of {', '.join(filter(None, WORDS[name]))}, got {text!r}")
        if name.startswith("memory_") and not re.fullmatch(MEMORY, text):
            raise ValueError(f"{name} must be as layers_memory.py describes it, got {text!r}")
        return text

    @staticmethod
    def parse(line: str) -> Case:
        values: dict = {}
        known = {field.name: field.default for field in fields(Case)}
        for word in line.split():
            name, equals, text = word.partition("=")
            if not equals or name not in known or name in values:
                raise ValueError(f"a case is key=value with keys {', '.join(known)}, each once; got {word!r}")
            values[name] = Case._value(name, text, known[name])
        case = Case(**values)
        if why := case.problem():
            raise ValueError(f"{why}: {line}")
        return case

    @property
    def transposed(self) -> bool:
        return self.function in ("conv_transpose1d", "conv_transpose2d")

    @property
    def one_row(self) -> bool:
        return self.function in ("conv1d", "conv_transpose1d")

    @property
    def exact(self) -> bool:
        """Whether every sum is exact, so that the result is the exact one rounded once."""
        return self.numbers == "integers" and self.precision == "ieee"

    @property
    def kernel(self) -> tuple[int, int]:
        return self.r, self.s

    @property
    def memories(self) -> tuple[str, str, str, str]:
        return self.memory_x, self.memory_w, self.memory_b, self.memory_g

    def zeros(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The padding before and after, of height and width."""
        if not isinstance(self.padding, str):
            return tuple((p, p) for p in self.padding)  # type: ignore[return-value]
        pairs = []
        for size, kernel, stride, dilation in zip((self.h, self.w), self.kernel, self.stride, self.dilation):
            reach = dilation * (kernel - 1)
            if self.padding == "full":
                pairs.append((reach, reach))
                continue
            total = {"valid": 0, "same": reach}.get(self.padding)
            if total is None:
                total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)  # type: ignore[return-value]

    def output_size(self) -> tuple[int, int]:
        """(P, Q); of a transposed convolution its result's. Not positive where there is none."""
        sizes = []
        for i, (size, kernel) in enumerate(zip((self.h, self.w), self.kernel)):
            (before, after), stride, dilation = self.zeros()[i], self.stride[i], self.dilation[i]
            if self.transposed:
                out = (size - 1) * stride - before - after + dilation * (kernel - 1) + self.output_padding[i] + 1
            else:
                out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            sizes.append(out)
        return sizes[0], sizes[1]

    def problem(self) -> str | None:
        """Why this is no case that could be drawn, or None."""
        return self._no_geometry() or self._too_large() or self._no_numbers() or self._no_way()

    def _no_geometry(self) -> str | None:
        if min(self.n, self.c) < 0 or min(self.h, self.w, self.k, self.groups, *self.kernel) < 1:
            return "sizes must be positive"
        if min(*self.stride, *self.dilation) < 1 or min(self.output_padding) < 0:
            return "strides and dilations must be positive"
        if not isinstance(self.padding, str) and min(self.padding) < 0:
            return "padding must not be negative"
        if self.c == 0 and (
            self.transposed
            or self.way in ("mapped", "fuse", "packed")
            or self.mode not in ("inference", "backward")
            or self.bad
        ):
            return "no channels at all are for the plain functions"
        if not self.batched and self.n != 1:
            return "without a batch there is one image"
        if self.one_row and (
            self.h, self.r, self.stride[0], self.dilation[0], self.zeros()[0], self.output_padding[0]
        ) != (1, 1, 1, 1, (0, 0), 0):  # fmt: skip
            return f"{self.function} has one row"
        if self.padding == "same" and self.stride != (1, 1):
            return "padding 'same' has stride 1"
        if self.transposed:
            if isinstance(self.padding, str) or self.activation != "none" or self.padding_mode != "zeros":
                return "a transposed convolution has none of conv2d's paddings and activations"
            for o, s, d in zip(self.output_padding, self.stride, self.dilation):
                if o >= s and o >= d:
                    return "the output padding must be smaller than the stride or the dilation"
        elif self.output_padding != (0, 0):
            return "only a transposed convolution has an output padding"
        if self.padding_mode != "zeros":
            most = {"reflect": -1, "circular": 0}.get(self.padding_mode)
            amounts = [(a, size) for pair, size in zip(self.zeros(), (self.h, self.w)) for a in pair]
            if self.way not in ("layer", "convert", "packed") or self.c == 0 or self.n == 0:
                return "other padding modes are the layers'"
            if most is not None and any(a > size + most for a, size in amounts):
                return "more is padded than there is"
        if self.activation != "none" and (self.dtype.startswith("complex") or self.way in ("override", "convert")):
            return "the activation is for real numbers and our own interface"
        if self.padding in ("full", "same_strided") and self.way in ("override", "convert"):
            return "torch has no such padding"
        if self.precision != "ieee" and (self.dtype != "float32" or self.numbers == "special"):
            return "other precisions are float32's"
        return None

    def _too_large(self) -> str | None:
        p, q = self.output_size()
        if min(p, q) < 1:
            return "there is no output"
        positions = self.h * self.w if self.transposed else p * q
        if max(self.n, 1) * positions * max(self.c, 1) * self.k * self.groups * self.r * self.s > MOST_WORK:
            return "too much work"
        # What is padded counts, too: the oracle has it in memory.
        (top, bottom), (left, right) = self.zeros()
        padded = (self.h + top + bottom) * (self.w + left + right) if not self.transposed else p * q
        if max(self.n, 1) * padded * max(self.c, self.k) * self.groups > MOST_WORK:
            return "too much memory"
        return None

    def _no_numbers(self) -> str | None:
        """What cannot be compared with these numbers."""
        if self.numbers == "special" and (
            self.function, self.way, self.padding_mode, self.activation, self.bad
        ) != ("conv2d", "function", "zeros", "none", ""):  # fmt: skip
            return "special values have a reference for conv2d only"
        if self.numbers == "special" and (self.mode not in ("inference", "backward") or self.n == 0 or self.c == 0):
            return "special values have a reference for plain passes only"
        if self.numbers == "special" and max(self.stride + self.dilation) > 100:
            return "that reference has as many zeros around as the stride and the dilation are large"
        if not self.exact and (
            self.activation != "none" or self.mode not in ("inference", "backward") or self.padding_mode != "zeros"
        ):
            return "what is rounded has a bound for plain passes only"
        if self.dtype in ("bfloat16", "float16") and self.mode not in (
            "inference",
            "backward",
            "vmap",
            "copy",
            "compile",
        ):
            return "sums of results that are rounded are compared in the wide types only"
        short = self.mode == "autocast" or (self.dtype in ("bfloat16", "float16") and self.mode != "inference")
        if short and (self.padding_mode != "zeros" or self.way == "mapped"):
            return "gradients that torch sums in a short type are compared in the wide types only"
        return None

    def _no_way(self) -> str | None:
        """What a way to call does not do."""
        if self.way == "mapped" and (self.function != "conv2d" or self.groups != 1 or self.n == 0):
            return "a mapped layer is a conv2d"
        if self.way == "fuse" and (
            self.transposed or self.mode != "inference" or self.dtype not in ("float32", "float64")
        ):
            return "fused models are for inference"
        if self.way == "fuse" and (self.n == 0 or not self.batched or self.bad or self.numbers != "integers"):
            return "fused models take a batch"
        if self.way == "fuse" and max(self.stride + self.dilation) > 2**30:
            return "torch's own layers, which the fused ones replace, do not take every such number"
        if self.way == "packed" and (
            self.function != "conv2d" or self.mode not in ("inference", "backward", "autocast")
        ):
            return "a packed layer is a conv2d for inference"
        if self.way == "packed" and self.needs != "x":
            return "gradients flow through a packed layer, and to none of its weights"
        if self.mode == "autocast" and (self.dtype != "float32" or self.numbers != "integers" or self.bad):
            return "autocast is for float32"
        odd = any(part[:1] in tuple("evnc") for memory in self.memories[:3] for part in memory.split("+"))
        if self.mode in ("jvp", "hvp") and odd:
            return "torch lays a tangent out as its primal, which it cannot where elements are shared or negated"
        if self.mode == "vmap" and self.way in ("fuse", "mapped"):
            return "vmap is for functions and layers"
        if self.mode == "copy" and self.way not in ("layer", "convert", "mapped"):
            return "only a layer can be copied"
        if self.bad and (self.mode != "inference" or self.way not in ("function", "override", "layer")):
            return "wrong arguments are for plain calls"
        return None

    # ---- drawing

    @staticmethod
    def draw(random) -> Case:
        """A case from its families; drawn again where it came out as none."""
        while (case := Case.attempt(random)).problem() is not None:
            pass
        return case

    @staticmethod
    def attempt(random) -> Case:
        """What may be a case."""
        return _drawn(random)

    # ---- making smaller

    def smaller(self) -> Iterator[Case]:
        """Cases that are simpler in one respect, the simplest first."""
        default = Case()
        for name in (
            "bad",
            "way",
            "mode",
            "function",
            "padding_mode",
            "activation",
            "precision",
            "numbers",
            "form",
            "needs",
        ):
            if getattr(self, name) != getattr(default, name):
                yield replace(self, **{name: getattr(default, name)})
        if self.one_row:
            yield replace(self, function=self.function.replace("1", "2"))
        for name in ("memory_x", "memory_w", "memory_b", "memory_g"):
            if parts := [part for part in getattr(self, name).split("+") if part]:
                yield replace(self, **{name: ""})
                for i in range(len(parts)) if len(parts) > 1 else ():
                    yield replace(self, **{name: "+".join(parts[:i] + parts[i + 1 :])})
        if self.dtype != "float32":
            yield replace(self, dtype="float32")
        if isinstance(self.padding, str):
            yield replace(self, padding=(0, 0))
            if len({pair for pair in self.zeros() if pair[0] == pair[1]}) == 1:
                yield replace(self, padding=tuple(before for before, _ in self.zeros()))
        for name in ("n", "groups", "c", "k", "h", "w", "r", "s", "bias", "batched", "keywords", "variant", "seed"):
            value, least = getattr(self, name), getattr(default, name)
            for less in _less(value, least):
                yield replace(self, **{name: less})
        for name in ("stride", "padding", "dilation", "output_padding"):
            values = getattr(self, name)
            for i in range(2) if not isinstance(values, str) else ():
                for less in _less(values[i], getattr(default, name)[i]):
                    yield replace(self, **{name: tuple(less if j == i else v for j, v in enumerate(values))})
        for image, kernel in (("h", "r"), ("w", "s")):  # a kernel as large as its image stays so
            a, b = getattr(self, image), getattr(self, kernel)
            if min(a, b) > 1:
                yield replace(self, **{image: a - 1, kernel: b - 1})

    def minimised(self, fails: Callable[[Case], bool], attempts: int = 300) -> Case:
        """The smallest case that can be reached in single steps and still fails."""
        case, progress = self, True
        while progress and attempts > 0:
            progress = False
            for candidate in case.smaller():
                if candidate.problem() is not None:
                    continue
                attempts -= 1
                if fails(candidate):
                    case, progress = candidate, True
                    break
                if attempts <= 0:
                    break
        return case


def _less(value: int, least: int) -> list[int]:
    if value == least:
        return []
    if value < least:
        return [least]
    return sorted({least, (value + least) // 2, value - 1})


def _epilogue(pick: Callable, rarely: Callable, function: str, way: str, mode: str, dtype: str, numbers: str, bad: str):
    """(activation, residual) of a case.

    Residuals: of the dtypes in which these sums are rounded once, and not in the modes that have calls of their own.
    """
    if numbers != "integers" or dtype.startswith("complex") or "transpose" in function:
        return "none", 0
    if way in ("override", "convert", "fuse"):
        return "none", 0
    activation = pick(("relu", "relu", "relu6")) if rarely(0.2) else "none"
    added = way in ("function", "layer") and dtype in ("float32", "float64") and mode not in ("autocast", "copy")
    return activation, int(added and not bad and rarely(0.15))


def _drawn(random) -> Case:
    pick = random.choice

    def rarely(share: float) -> bool:  # not for the smallest number, which hypothesis prefers
        return random.random() >= 1 - share

    function = pick(("conv2d",) * 6 + ("conv1d",) * 2 + ("conv_transpose2d",) * 3 + ("conv_transpose1d",))
    transposed, one_row = function.startswith("conv_transpose"), function.endswith("1d")
    way = pick(("function",) * 6 + ("layer",) * 3 + ("override", "convert", "mapped", "fuse", "packed"))
    mode = pick(("inference",) * 4 + ("backward",) * 10 + ("double", "jvp", "hvp", "vmap", "autocast", "copy"))
    if rarely(0.0003):
        mode = "compile"
    dtype = pick(("float32",) * 6 + DTYPES)
    numbers = pick(("integers",) * 8 + ("reals",) * 3 + ("special",))
    bad = pick(BAD) if rarely(0.08) else ""
    if bad:
        mode, numbers, way = "inference", "integers", pick(("function", "function", "override", "layer"))
    if way == "fuse":
        mode, numbers, dtype = "inference", "integers", pick(("float32", "float64"))
        function = pick(("conv1d", "conv2d"))
        transposed, one_row = False, function == "conv1d"
    elif mode in ("double", "jvp", "hvp") and dtype in ("float16", "bfloat16"):
        dtype = "float32"
    elif mode == "autocast":
        dtype, numbers = "float32", "integers"
    if mode not in ("inference", "backward"):
        numbers = "integers"
    if mode == "copy" and way not in ("layer", "convert", "mapped"):
        way = "layer"
    if numbers == "special":
        function, way, transposed, one_row = "conv2d", "function", False, False
    if way in ("mapped", "packed"):
        function, transposed, one_row = "conv2d", False, False
    if way == "packed":
        mode = pick(("inference", "inference", "backward"))

    def size(small: int, large: int) -> int:
        return random.randint(1, large if rarely(0.12) else small)

    def pair(draw: Callable[[], int], row: int) -> tuple[int, int]:
        return (row if one_row else draw()), draw()

    family = pick(("any",) * 4 + ("covered", "covered", "pointwise", "depthwise", "depthwise", "tiny", "wide"))
    groups = pick((1, 1, 1, 2, 3, size(4, 17))) if way != "mapped" else 1
    c, k = size(4, 40), size(4, 40)
    if family == "depthwise" and way != "mapped":
        groups, c, k = size(9, 40), 1, pick((1, 1, 1, 2, 3))
    r, s = pair(lambda: size(4, 7), 1)
    stride = pair(lambda: pick((1, 1, 1, 2, 2, 3, size(5, 9))), 1)
    dilation = pair(lambda: pick((1, 1, 1, 1, 2, 3, size(3, 6))), 1)
    padding = pair(lambda: pick((0, 0, 0, 1, 1, 2, size(3, 8))), 0)
    h, w = pair(lambda: size(9, 24), 1)
    if family == "pointwise":
        r, s = (1, 1)
        c, k = size(17, 70), size(17, 70)
    elif family == "tiny":
        h, w = pair(lambda: size(2, 3), 1)
        c, k = size(20, 70), size(20, 70)
    elif family == "wide":
        w = random.randint(9, 60)
    elif family == "covered":  # the kernel is as large as the input, mostly without padding
        r, s = pair(lambda: size(5, 9), 1)
        h, w, dilation = r, s, (1, 1)
        padding = (0, 0) if rarely(0.8) else padding
        if transposed:
            h = w = 1
    rule: tuple[int, ...] | str = padding
    if rarely(0.2) and not transposed:
        rule = pick(RULES)
        if rule == "same":
            stride = (1, 1)
    elif rarely(0.03):  # far beyond the input, which torch computes, too
        axis = 1 if one_row else pick((0, 1))
        if transposed and (h, w)[axis] > 1:
            h, w = (1, w) if axis == 0 else (h, 1)
        stride = tuple(pick(HUGE) - pick((0, 1)) if i == axis else v for i, v in enumerate(stride))
    if rarely(0.02):
        axis = 1 if one_row else pick((0, 1))
        r, s = (1, s) if axis == 0 else (r, 1)
        dilation = tuple(pick(HUGE) if i == axis else v for i, v in enumerate(dilation))
    output_padding = (0, 0)
    if transposed and rarely(0.5):
        output_padding = tuple(random.randrange(min(max(a, b), 9)) for a, b in zip(stride, dilation))
    n = pick((1, 1, 1, 2, 2, 3, size(3, 9), 0))
    batched = int(n != 1 or rarely(0.7) or way == "fuse")
    rank = (2 if one_row else 3) + 1
    if numbers != "special" and mode in ("inference", "backward") and n > 0 and rarely(0.03):
        c = 0
    activation, residual = _epilogue(pick, rarely, function, way, mode, dtype, numbers, bad)
    padding_mode = "zeros"
    if way in ("layer", "convert", "packed") and not transposed and numbers == "integers" and rarely(0.25):
        padding_mode = pick(("reflect", "replicate", "circular"))
    return Case(
        function=function,
        way=way,
        mode=mode,
        n=n,
        batched=batched,
        c=c,
        k=k,
        groups=groups,
        h=h,
        w=w,
        r=r,
        s=s,
        stride=stride,
        padding=rule,
        dilation=dilation,
        output_padding=output_padding,
        bias=int(rarely(0.5)),
        activation=activation,
        residual=residual,
        padding_mode=padding_mode,
        precision=pick(("tf32", "bf16")) if dtype == "float32" and numbers != "special" and rarely(0.1) else "ieee",
        dtype=dtype,
        memory_x=_memory(random, rank if batched else rank - 1, dtype),
        memory_w=_memory(random, rank, dtype),
        memory_b=_memory(random, 1, dtype),
        memory_g=_memory(random, rank if batched else rank - 1, dtype),
        needs="x" if way == "packed" else pick(("xwb",) * 5 + ("xw", "x", "w", "b", "wb")),
        form=pick(("tuple",) * 4 + ("int", "list", "one", "numpy", "tensor", "size")),
        keywords=int(rarely(0.7)),
        numbers=numbers,
        variant=random.randrange(24),
        bad=bad,
        seed=random.randrange(1_000_000),
    )


def _memory(random, rank: int, dtype: str) -> str:
    """How a tensor lies in memory; mostly it is plain, since each of these takes some kernels out of play."""
    pick, kind = random.choice, random.random()

    def rarely(share: float) -> bool:
        return random.random() >= 1 - share

    parts = []
    if kind < 0.4:
        return ""
    if kind < 0.55 and rank > 2:
        parts.append("p0231" if rank == 4 else "p120" if rank == 3 else "")
    elif kind < 0.8 and rank > 1:
        order = list(range(rank))
        random.shuffle(order)
        parts.append("p" + "".join(map(str, order)))
    if rarely(0.2):
        parts.append(f"s{random.randrange(rank)}")
    if rarely(0.15):
        parts.append(f"o{pick((1, 2, 3, 5))}")
    if rarely(0.3):
        parts.append(f"u{random.randrange(1, 5)}")
    if rarely(0.1):
        parts.append(f"e{random.randrange(rank)}")
    if rarely(0.05):
        parts.append(f"v{random.randrange(1, 4)}")
    if rarely(0.08):
        parts.append("n")
    if dtype.startswith("complex") and rarely(0.3):
        parts.append("c")
    if rarely(0.06):
        parts.append(f"a{pick((1, 2, 3))}")
    return "+".join(part for part in parts if part)
