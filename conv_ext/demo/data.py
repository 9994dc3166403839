"""The demo's three sets of images: scikit-learn's digits, and MNIST and CIFAR-10 from their standard files."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from dataclasses import dataclass, field
from os.path import exists, isdir, isfile  # which say no of names that no file can have; those of Path raise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .unpickle import ByteArray, unpickle

__all__ = ["DataError", "Distortion", "Images", "download", "load_cifar10", "load_digits", "load_mnist"]

SIDE = 32  # LeNet-5's input, and CIFAR-10's
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_ROW = 3 * SIDE * SIDE


class DataError(Exception):
    """A data set cannot be read; the message is written for the user."""


@dataclass(frozen=True)
class Distortion:
    """How far a training image is distorted at random, each amount drawn from [-limit, limit].

    Small affine changes of the training images as in LeCun et al. 1998, section III.A ("distorted" training sets):
    with a few thousand images they decide whether the network learns the shape or the examples.
    """

    rotation: float = 0.0  # radians
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0  # pixels
    mirror: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x: (N, C, H, W), zero being the background -> the same shape; `generator` is one of the CPU's."""
        n = len(x)

        def draw(limit: float) -> Tensor:
            return limit * (2 * torch.rand(n, generator=generator) - 1)

        angle, shear = draw(self.rotation), draw(self.shear)
        across, down = 1 + draw(self.scale), 1 + draw(self.scale)
        to_grid = 2 / x.shape[-1]  # the grid's coordinates run from -1 to 1
        dx, dy = draw(self.shift) * to_grid, draw(self.shift) * to_grid
        if self.mirror:
            across = across * (1 - 2 * torch.randint(2, (n,), generator=generator))
        rows = (across * angle.cos(), shear - angle.sin(), dx, angle.sin(), down * angle.cos(), dy)
        matrix = torch.stack(rows, dim=1).reshape(n, 2, 3).to(x)
        return F.grid_sample(x, F.affine_grid(matrix, x.shape, align_corners=False), align_corners=False)


@dataclass
class Images:
    """A data set in memory: images (N, C, H, W) of uint8, labels (N,) of int64."""

    title: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    distortion: Distortion
    mean: Tensor = field(init=False)  # (C, 1, 1), of the training images scaled to 0 ... 1
    std: Tensor = field(init=False)

    def __post_init__(self) -> None:
        total = torch.zeros(self.train_images.shape[1], 1, 1, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for part in self.train_images.split(4096):  # in parts: 60,000 images in float64 would be 0.5 GB
            part = part.double() / 255
            total += part.sum((0, 2, 3)).reshape_as(total)
            squares += part.square().sum((0, 2, 3)).reshape_as(total)
        count = self.train_images[:, 0].numel()
        self.mean = (total / count).float()
        self.std = (squares / count - (total / count).square()).clamp_min(1e-8).sqrt().float()

    def _like(self, classes: tuple[str, ...], *tensors: Tensor) -> Images:
        """Other images, standardised as these are: a network for these reads them alike."""
        images = Images(self.title, classes, *tensors, distortion=self.distortion)
        images.mean, images.std = self.mean, self.std
        return images

    def of_classes(self, chosen: tuple[int, ...]) -> Images:
        """The images of these classes alone, labelled from 0 in their order; ValueError where there is none such."""
        if not chosen or not all(type(label) is int and 0 <= label < len(self.classes) for label in chosen):
            raise ValueError(f"classes must be from 0 to {len(self.classes) - 1}, at least one, got {chosen}")
        tensors = []
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            places = [labels == label for label in chosen]
            tensors += [torch.cat([images[place] for place in places])]
            tensors += [torch.cat([torch.full((int(place.sum()),), i) for i, place in enumerate(places)])]
        return self._like(tuple(self.classes[label] for label in chosen), *tensors)

    def first(self, count: int, seed: int) -> Images:
        """`count` training images, as many of each class as that gives, drawn by `seed`; all the test images.

        ValueError unless there are so many.
        """
        _check_count(count, len(self.train_labels))
        order = torch.randperm(len(self.train_labels), generator=torch.Generator().manual_seed(seed))
        labels = self.train_labels[order]
        rank = torch.empty_like(order)  # of an image within its class
        for label in range(len(self.classes)):
            rank[labels == label] = torch.arange(int((labels == label).sum()))
        order = order[rank.argsort(stable=True)][:count]
        tensors = self.train_images[order], self.train_labels[order], self.test_images, self.test_labels
        return self._like(self.classes, *tensors)

    def standardised(self, images: Tensor) -> Tensor:
        """Images scaled to 0 ... 1 as the network reads them: mean zero and variance one over the training images."""
        return (images - self.mean) / self.std

    def split(self, count: int) -> tuple[Images, Images]:
        """`count` training images held out for validation: (the rest with those to test, the rest with the test set).

        The split is the same in every run. Both standardise by what is left to learn from. ValueError where nothing is.
        """
        _check_count(count, len(self.train_labels) - 1)
        order = torch.randperm(len(self.train_labels), generator=torch.Generator().manual_seed(1))
        held, kept = order[:count], order[count:]
        rest = self.train_images[kept], self.train_labels[kept]
        validated = Images(
            self.title, self.classes, *rest, self.train_images[held], self.train_labels[held], self.distortion
        )
        return validated, validated._like(self.classes, *rest, self.test_images, self.test_labels)

    def training_batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The training images and labels at `indices`, standardised, distorted anew (None: as they are)."""
        images = self.train_images[indices].float() / 255
        if generator is not None:
            images = self.distortion(images, generator)
        return self.standardised(images), self.train_labels[indices]

    def test_batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The test images and labels at `indices`, standardised, not distorted."""
        return self.standardised(self.test_images[indices].float() / 255), self.test_labels[indices]


def _check_count(count: int, most: int) -> None:
    if type(count) is not int or not 1 <= count <= most:
        raise ValueError(f"count must be an int from 1 to {most}, got {count!r}")


def load_digits() -> Images:
    """The 1,797 handwritten digits that scikit-learn carries, 8 x 8 scaled to 32 x 32: 1,437 to train, 360 to test.

    The split is the same in every run: an accuracy can be compared between seeds.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install 'conv_ext[demo]'")
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] / 16  # (1797, 1, 8, 8), 0 ... 16 before
    images = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = (255 * images).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return Images(
        "scikit-learn's handwritten digits", tuple("0123456789"),
        images[train], labels[train], images[test], labels[test],
        Distortion(rotation=0.1, scale=0.1, shear=0.1, shift=3),
    )  # fmt: skip


def download(name: str, root: str | Path) -> None:
    """Fetch the files of "mnist" or "cifar10" into `root`, from torchvision's mirrors; what is there already stays.

    torchvision compares checksums. DataError where it is missing, or the files cannot be had or are others.
    """
    try:
        from torchvision import datasets
    except ImportError:
        raise DataError(
            "--download needs torchvision: pip install torchvision (the release that belongs to this torch), or put "
            "the standard files into the folder yourself"
        ) from None
    kind, root = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name], Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            kind(str(root), train=train, download=True)
    except Exception as error:  # of the network, of the disk, of damaged archives
        why = str(error).splitlines()[0] if str(error) else "no reason given"
        raise DataError(f"{root}: the files of {name} could not be fetched: {type(error).__name__}: {why}") from error


def load_mnist(root: str | Path, side: int = SIDE) -> Images:
    """MNIST from its four idx files, gzipped or not, in `root`, `root/raw` or `root/MNIST/raw`.

    The images of 28 x 28 are framed to `side` x `side`; 32 is what LeCun et al. took.
    Raises DataError where a file is missing or damaged, ValueError for a side that is below 28 or odd.
    """
    if type(side) is not int or side < 28 or side % 2:
        raise ValueError(f"side must be an even int of at least 28, got {side!r}")
    parts, frame, root = [], (side - 28) // 2, Path(root)
    for stem in ("train", "t10k"):
        images = _read_idx(_find(root, f"{stem}-images-idx3-ubyte", ("", "raw", "MNIST/raw")), (28, 28))
        path = _find(root, f"{stem}-labels-idx1-ubyte", ("", "raw", "MNIST/raw"))
        labels = _read_idx(path, ())
        if len(images) != len(labels):
            raise DataError(f"{path}: expected a label for each of {len(images)} images, found {len(labels)} labels")
        _check_labels(path, labels)
        parts += [F.pad(images, (frame,) * 4)[:, None], labels.long()]
    distortion = Distortion(rotation=0.1, scale=0.1, shear=0.1, shift=2)
    return Images("MNIST", tuple("0123456789"), *parts, distortion=distortion)


def load_cifar10(root: str | Path) -> Images:
    """CIFAR-10 from the files of its binary or its Python version, in `root` or in the folder its archive makes there.

    Raises DataError where a file is missing or damaged.
    """
    root = Path(root)
    binary = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    python = [name.removesuffix(".bin") for name in binary]
    places = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
    if any(isfile(root / place / name) for place in places for name in python):
        names, read = python, _read_cifar_pickle
    else:  # where there is nothing at all, the missing file that is named is the binary version's first
        names, read = binary, _read_cifar_binary
    batches = [read(_find(root, name, places)) for name in names]
    images, labels = zip(*batches[:-1])
    return Images(
        "CIFAR-10", _CIFAR_CLASSES, torch.cat(images), torch.cat(labels), *batches[-1],
        Distortion(rotation=0.1, scale=0.1, shift=3, mirror=True),
    )  # fmt: skip


def _find(root: Path, name: str, places: tuple[str, ...]) -> Path:
    """The file `name` (or `name`.gz) in the first of the places under `root` that has it."""
    if not isdir(root):
        raise DataError(f"{root}: expected a folder with the data set's files, found {_kind(root)}")
    for place in places:
        for candidate in (root / place / name, root / place / f"{name}.gz"):
            if isfile(candidate):
                return candidate
    folders = ", ".join(str(root / place) for place in places)
    archives = sorted(path.name for path in root.glob("cifar-10-*.tar.gz"))
    hint = f"; {archives[0]} is there: unpack it first" if archives and "_batch" in name else ""
    raise DataError(f"{name}: expected this file in one of {folders}, found none{hint}")


def _kind(path: Path) -> str:
    return "a file" if exists(path) else "nothing there"


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read_idx(path: Path, item: tuple[int, ...]) -> Tensor:
    """An idx file of uint8: a magic number (0, 0, 8 for uint8, dimensions), each dimension big-endian, the bytes."""
    content = _read(path)
    dimensions = 1 + len(item)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: expected an idx header of {header} bytes, found a file of {len(content)}")
    magic, *sizes = struct.unpack(f">{1 + dimensions}I", content[:header])
    if magic != 0x800 + dimensions:
        raise DataError(f"{path}: expected the magic number {0x800 + dimensions:#010x}, found {magic:#010x}")
    if tuple(sizes[1:]) != item or sizes[0] == 0:
        raise DataError(f"{path}: expected items of size {item} and at least one, found dimensions {tuple(sizes)}")
    expected = header + sizes[0] * (item[0] * item[1] if item else 1)
    if len(content) != expected:
        raise DataError(f"{path}: expected {expected} bytes for dimensions {tuple(sizes)}, found {len(content)}")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(sizes)


def _check_labels(path: Path, labels: Tensor) -> None:
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: expected labels from 0 to 9, found {labels.min().item()} to {labels.max().item()}")


def _read_cifar_binary(path: Path) -> tuple[Tensor, Tensor]:
    """Rows of 3,073 bytes: the label, then the red, the green and the blue plane of 32 x 32."""
    content = _read(path)
    if not content or len(content) % (1 + _CIFAR_ROW):
        raise DataError(f"{path}: expected a multiple of {1 + _CIFAR_ROW} bytes, found {len(content)}")
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1 + _CIFAR_ROW)
    labels = rows[:, 0].long()
    _check_labels(path, labels)
    return rows[:, 1:].reshape(-1, 3, SIDE, SIDE), labels


def _read_cifar_pickle(path: Path) -> tuple[Tensor, Tensor]:
    """A pickled dict: b"data" (rows, 3072) of uint8, the planes as in the binary version, and b"labels", a list."""
    content = _read(path)
    try:
        return _batch_of(path, unpickle(content))
    except DataError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        why = f"{type(error).__name__}: {error}"[:200]  # repr would quote the whole of a text that is damaged
        raise DataError(f"{path}: expected a pickled batch with data and labels, found damage ({why})") from error


def _batch_of(path: Path, batch: Any) -> tuple[Tensor, Tensor]:
    """The images and labels of what a pickle held, every part of which may be another than it should be."""
    array, labels = batch[b"data"], batch[b"labels"]
    shape = array.shape if isinstance(array, ByteArray) and array.is_uint8 else None
    rows = shape[0] if isinstance(shape, tuple) and shape else 0
    if type(rows) is not int or rows < 1 or shape != (rows, _CIFAR_ROW):
        raise DataError(f"{path}: expected data of torch.uint8 (rows, {_CIFAR_ROW}), found {_described(array)}")
    data = array.content if isinstance(array.content, (bytes, bytearray)) and not array.fortran else b""
    if len(data) != rows * _CIFAR_ROW:
        raise DataError(f"{path}: expected {rows * _CIFAR_ROW} bytes of data, row by row, found {len(data)}")
    if not isinstance(labels, list) or len(labels) != rows or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: expected {rows} labels, found {_described(labels)}")
    if not all(0 <= label <= 9 for label in labels):
        raise DataError(f"{path}: expected labels from 0 to 9, found {min(labels)} to {max(labels)}")
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return pixels.reshape(-1, 3, SIDE, SIDE), torch.tensor(labels)


def _described(value: Any) -> str:
    """What a damaged pickle gave, for a message. Its repr may have no end: tuples hold each other more than once."""
    if isinstance(value, ByteArray):
        code, shape = value.type_code, value.shape
        code = code if isinstance(code, (str, bytes)) else type(code).__name__
        numbers = isinstance(shape, tuple) and all(type(size) is int for size in shape)
        return f"an array of {code!r:.20} {shape if numbers else type(shape).__name__!s:.80}"
    return f"{len(value)} of them or others" if isinstance(value, list) else type(value).__name__
