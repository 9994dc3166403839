"""How fast conv_ext is meant to be: the one table of aims, and whether a set of measured cases reaches them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from bench.tables import geometric_mean, number, table


@dataclass(frozen=True)
class Aim:
    """Ratios, torch's time over ours: the geometric mean over all cases, of each class, and of any single case."""

    mean: float
    each_class: float
    each_case: float


# (dtype, precision, layout): without AMX, and with it; and with both sides held to AVX2.
LAYERS = {
    ("float32", "ieee", "nchw"): Aim(1.6, 1.15, 0.9),
    ("float32", "ieee", "channels_last"): Aim(1.4, 1.15, 0.9),
    ("float32", "tf32", "nchw"): Aim(1.8, 1.15, 0.9),
    ("float32", "tf32", "channels_last"): Aim(1.6, 1.15, 0.9),
    ("float64", "ieee", "nchw"): Aim(2.8, 1.15, 0.9),
    ("float64", "ieee", "channels_last"): Aim(2.8, 1.15, 0.9),
    ("bfloat16", "ieee", "nchw"): Aim(1.5, 1.15, 0.9),
    ("bfloat16", "ieee", "channels_last"): Aim(1.4, 1.15, 0.9),
}
LAYERS_AMX = LAYERS | {
    ("float32", "ieee", "nchw"): Aim(1.7, 1.2, 0.9),
    ("float32", "ieee", "channels_last"): Aim(1.6, 1.2, 0.9),
    ("float32", "tf32", "nchw"): Aim(2.8, 1.2, 0.9),
    ("float32", "tf32", "channels_last"): Aim(2.8, 1.2, 0.9),
    ("bfloat16", "ieee", "nchw"): Aim(2.2, 1.2, 0.9),
    ("bfloat16", "ieee", "channels_last"): Aim(2.2, 1.2, 0.9),
}
LAYERS_AVX2 = {("float32", "ieee", layout): Aim(1.5, 1.0, 0.8) for layout in ("nchw", "channels_last")}
# float32 under "ieee", a batch of one image: the mean without AMX, and with it.
ONE_IMAGE, ONE_IMAGE_AMX = 1.9, 2.2
# (network, precision) of a training step; and of every network's forward at batch 1.
TRAINING_STEP = {
    ("lenet5", "ieee"): 1.2, ("alexnet", "ieee"): 1.4, ("vgg16", "ieee"): 1.8, ("resnet50", "ieee"): 1.4,
    ("lenet5", "tf32"): 1.3, ("alexnet", "tf32"): 1.5, ("vgg16", "tf32"): 1.8,
}
FORWARD_OF_ONE = 1.0
# Inference, the time of the best of compiled and frozen torch, onnxruntime and openvino over that of the fastest of
# ours. Of one image, float32 under "ieee": without AMX, and with it; further settings with AMX; of more images.
INFERENCE = {
    "resnet50": (1.2, 2.0), "resnet18": (1.3, 2.0), "vgg16": (1.5, 2.0), "mobilenet": (1.2, 1.2),
    "googlenet": (1.2, 1.5),
}
INFERENCE_AMX_TF32 = {"resnet50": 3.0}
INFERENCE_AMX_BFLOAT16 = 1.2
INFERENCE_OF_MANY = 1.0


# On CUDA, against cuDNN: the aim for the geometric mean of the rows that fit, and one beyond it. The first line that
# fits a row is its own; None fits everything.
DENSE = ("1x1", "3x3 stride 1", "5x5 stride 1", "strided", "other")
GRADIENTS = ("input_grad", "weight_grad")
HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class CudaAim:
    """Which rows are meant, and the ratios."""

    name: str
    first: float
    ambitious: float | None = None
    dtypes: tuple[str, ...] | None = None
    precision: str | None = None
    kinds: tuple[str, ...] | None = None
    passes: tuple[str, ...] | None = None
    images: int | None = None  # at most

    def fits(self, row: dict) -> bool:
        return ((self.dtypes is None or row["dtype"] in self.dtypes)
                and (self.precision is None or row["precision"] == self.precision)
                and (self.kinds is None or row["kind"] in self.kinds)
                and (self.passes is None or row["pass"] in self.passes)
                and (self.images is None or row["n"] <= self.images))


CUDA = (
    CudaAim("up to 8 images", 1.0, 1.5, images=8),
    CudaAim("float64", 1.2, 2.0, ("float64",)),
    CudaAim("first layer", 1.0, 1.5, kinds=("first layer",)),
    CudaAim("depthwise, forward", 3.0, kinds=("depthwise",), passes=("forward",)),
    CudaAim("depthwise, gradients", 1.5, 3.0, kinds=("depthwise",), passes=GRADIENTS),
    CudaAim("grouped", 1.5, 3.0, kinds=("grouped",)),
    CudaAim("float32 ieee, 3x3 stride 1, forward", 1.4, None, ("float32",), "ieee", ("3x3 stride 1",), ("forward",)),
    CudaAim("float32 ieee, 3x3 stride 1, gradients", 1.4, None, ("float32",), "ieee", ("3x3 stride 1",), GRADIENTS),
    CudaAim("float32 ieee, other dense layers, forward", 1.7, 2.2, ("float32",), "ieee", DENSE, ("forward",)),
    CudaAim("float32 ieee, other dense layers, gradients", 1.7, 2.2, ("float32",), "ieee", DENSE, GRADIENTS),
    CudaAim("float32 tf32, dense layers", 0.9, None, ("float32",), "tf32", DENSE),
    CudaAim("16 bits, 3x3 stride 1", 0.8, 0.95, HALF, kinds=("3x3 stride 1",)),
    CudaAim("16 bits, 1x1", 0.9, None, HALF, kinds=("1x1",)),
    CudaAim("16 bits, other dense layers", 0.8, 0.95, HALF, kinds=DENSE),
)


def cuda_text(rows: list[dict]) -> str:
    """A table for each algorithm: every aim that has rows, their mean, whether it is reached; both sides' errors."""
    parts = ["Ratios to cuDNN (its time over ours, geometric means) against the aims; errors in units of u A:"]
    for algorithm in dict.fromkeys(row.get("algorithm", "auto") for row in rows):
        parts += [] if algorithm == "auto" else [f"Algorithm {algorithm}:"]
        parts.append(_cuda_table([row for row in rows if row.get("algorithm", "auto") == algorithm]))
    wrong = sum(not row["right"] for row in rows)
    return "\n\n".join([*parts, *([f"{wrong} cases WRONG or failed, and not in the table."] if wrong else [])])


def _cuda_table(rows: list[dict]) -> str:
    groups = defaultdict(list)
    for row in rows:
        if "ratio" in row:
            aim = next((aim for aim in CUDA if aim.fits(row)), None)
            groups[aim].append(row)
    lines = []
    for aim in (*CUDA, None):
        members = groups.get(aim)
        if not members:
            continue
        ratios = [row["ratio"] for row in members]
        mean, worst = geometric_mean(ratios), min(members, key=lambda row: row["ratio"])
        values = (aim.first, aim.ambitious) if aim else (None, None)
        judged = ["" if value is None else f"{value} {word(mean, value, all_disturbed(members))}" for value in values]
        errors = [number(max(row[f"error_{side}"] for row in members)) for side in ("ours", "theirs")]
        lines.append([aim.name if aim else "without an aim", len(members), number(mean), *judged,
                      f"{number(worst['ratio'])} ({worst['suite']}/{worst['name']} {worst['pass']})", *errors])
    head = ["class", "cases", "ratio", "aim", "beyond", "worst case", "error ours", "error cuDNN"]
    return table(head, lines)


def inference(name: str, n: int, dtype: str, precision: str, amx: bool, cap: str | None) -> float | None:
    """The aim of a network's inference; None where none is set."""
    if cap is not None:
        return None
    if n > 1:
        return INFERENCE_OF_MANY
    name = "mobilenet" if "mobilenet" in name else name.rpartition("/")[2]
    if dtype == "bfloat16":
        return INFERENCE_AMX_BFLOAT16 if amx else None
    if precision == "tf32":
        return INFERENCE_AMX_TF32.get(name) if amx else None
    return INFERENCE[name][amx] if name in INFERENCE else None


NOT_JUDGED = "not judged (disturbed)"


def word(value: float, aim: float, disturbed: bool = False) -> str:
    return NOT_JUDGED if disturbed else "reached" if value >= aim else "MISSED"


def all_disturbed(rows: list[dict]) -> bool:
    """Whether other processes disturbed every one of them: then nothing is reached or missed."""
    return bool(rows) and all(row.get("disturbed") for row in rows)


def judged(rows: list[dict], aim: Aim) -> list[str]:
    """One line for each of the three aims, with what stands furthest below it."""
    disturbed = all_disturbed(rows)
    classes = defaultdict(list)
    for row in rows:
        classes[row["kind"]].append(row["ratio"])
    mean = geometric_mean([row["ratio"] for row in rows])
    means = {kind: geometric_mean(ratios) for kind, ratios in classes.items()}
    lowest = min(means, key=means.get)
    worst = min(rows, key=lambda row: row["ratio"])
    below = sum(row["ratio"] < aim.each_case for row in rows)
    return [
        f"{word(mean, aim.mean, disturbed)}: geometric mean of all {len(rows)} cases {number(mean)}, aim {aim.mean}",
        f"{word(means[lowest], aim.each_class, disturbed)}: lowest class mean {number(means[lowest])} ({lowest}), aim "
        f"{aim.each_class}; below it: {', '.join(sorted(k for k in means if means[k] < aim.each_class)) or 'none'}",
        f"{word(worst['ratio'], aim.each_case, disturbed)}: worst case {number(worst['ratio'])} "
        f"({worst['suite']}/{worst['name']} n={worst['n']} {worst['pass']} {worst['layout']}), "
        f"aim {aim.each_case}; below it: {below}",
    ]


def aim_of(dtype: str, precision: str, layout: str, images: set[int], cap: str | None, isa: str | None) -> Aim | None:
    """The aim of layers; None where none is set."""
    amx = isa == "amx" and cap is None
    table = LAYERS_AVX2 if cap == "avx2" else LAYERS_AMX if amx else LAYERS
    aim = table.get((dtype, precision, layout))
    if aim and images == {1} and (dtype, precision, cap) == ("float32", "ieee", None):
        return replace(aim, mean=ONE_IMAGE_AMX if amx else ONE_IMAGE)
    return aim


def text(rows: list[dict], cap: str | None, isa: str | None = None) -> str:
    """For each (dtype, precision, layout) of the rows, over all their batches; those of a GPU have a table."""
    on_gpu = [row for row in rows if row.get("device") == "cuda"]
    rows = [row for row in rows if row.get("device") != "cuda"]
    groups = defaultdict(list)
    for row in rows:
        if "ratio" in row:
            groups[row["dtype"], row["precision"], row["layout"]].append(row)
    lines = []
    for (dtype, precision, layout), members in groups.items():
        aim = aim_of(dtype, precision, layout, {row["n"] for row in members}, cap, isa)
        held = f", both sides held to {cap}" if cap else ""
        lines.append(f"Aims for {dtype}, {precision}, {layout}{held}:" + ("" if aim else " none is set"))
        lines += [f"  {line}" for line in judged(members, aim)] if aim else []
    return "\n\n".join(filter(None, ["\n".join(lines), cuda_text(on_gpu) if on_gpu else ""]))
