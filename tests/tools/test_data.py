"""The data of the demo: digits, the files of MNIST and CIFAR-10, and what is said of damaged ones."""

import gzip
import io
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import pytest
import torch

from conv_ext.demo.data import DataError, Distortion, download, load_cifar10, load_digits, load_mnist
from test_demo import assert_picture, outcome

np = pytest.importorskip("numpy")


def test_digits_are_split_once_and_standardised():
    images, again = load_digits(), load_digits()
    assert images.train_images.shape == (1437, 1, 32, 32) and images.test_images.shape == (360, 1, 32, 32)
    assert torch.equal(images.test_images, again.test_images) and torch.equal(images.train_labels, again.train_labels)
    assert len(set(images.train_labels.tolist())) == len(set(images.test_labels.tolist())) == 10
    x = images.standardised(images.train_images.float() / 255)
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


def test_a_split_for_validation():
    """No image is lost or in both parts; the test set is as it was; both standardise by what is learned from."""
    images = load_digits()
    validated, tested = images.split(237)
    assert len(validated.train_labels) == len(tested.train_labels) == 1200 and len(validated.test_labels) == 237
    assert torch.equal(tested.test_images, images.test_images) and torch.equal(tested.test_labels, images.test_labels)

    def sorted_rows(*parts):
        rows = [torch.cat([x.flatten(1), labels[:, None].byte()], 1) for x, labels in parts]
        return sorted(map(bytes, torch.cat(rows).numpy()))

    parts = (validated.train_images, validated.train_labels), (validated.test_images, validated.test_labels)
    assert sorted_rows(*parts) == sorted_rows((images.train_images, images.train_labels))
    x = validated.train_images.double() / 255
    assert tested.mean.item() == validated.mean.item() == pytest.approx(x.mean().item(), abs=1e-6)
    assert torch.equal(validated.test_images, images.split(237)[0].test_images)


@pytest.mark.parametrize("call, message", [
    (lambda images: images.split(0), "count must be an int from 1 to 1436, got 0"),
    (lambda images: images.split(1437), "count must be an int from 1 to 1436, got 1437"),
    (lambda images: images.first(1438, 0), "count must be an int from 1 to 1437, got 1438"),
    (lambda images: images.first(2.5, 0), "count must be an int from 1 to 1437, got 2.5"),
    (lambda images: images.of_classes((3, 10)), "classes must be from 0 to 9, at least one, got .3, 10."),
    (lambda images: images.of_classes(()), "classes must be from 0 to 9, at least one, got"),
    (lambda images: load_mnist(".", 27), "side must be an even int of at least 28, got 27"),
    (lambda images: load_mnist(".", 31), "side must be an even int of at least 28, got 31"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(load_digits())


@pytest.fixture
def torchvision(monkeypatch):
    """Stands in for torchvision: data sets that write the standard files, or fail as its own do."""
    stand_in = types.SimpleNamespace(calls=[], error=None)

    def data_set(name, write):
        def made(root, train, download):
            assert isinstance(root, str) and download is True
            stand_in.calls.append((name, train))
            if stand_in.error is not None:
                raise stand_in.error
            write(root)

        return made

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = data_set("MNIST", lambda root: write_mnist(Path(root) / "MNIST" / "raw"))
    datasets.CIFAR10 = data_set("CIFAR10", lambda root: write_cifar(Path(root) / "cifar-10-batches-py", python=True))
    package = types.ModuleType("torchvision")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return stand_in


@pytest.mark.parametrize("name, load", [("mnist", load_mnist), ("cifar10", load_cifar10)])
def test_a_download_is_where_it_is_looked_for(tmp_path, torchvision, name, load):
    download(name, tmp_path / "new" / "folder")
    assert [train for _, train in torchvision.calls] == [True, False]
    assert len(load(tmp_path / "new" / "folder").test_labels) > 0


def test_a_download_that_fails(tmp_path, capsys, torchvision, monkeypatch):
    options = ["--data", "mnist", "--root", tmp_path, "--download", "--out", tmp_path / "a.png"]
    for error in (RuntimeError("File not found or corrupted.\nmore"), OSError("no route"), ValueError()):
        torchvision.error = error
        code, out, err = outcome(capsys, "demo", *options)
        first = str(error).splitlines()[0] if str(error) else "no reason given"
        assert code == 2 and out == "" and "Traceback" not in err
        assert f"the files of mnist could not be fetched: {type(error).__name__}: {first}\n" in err
    monkeypatch.setitem(sys.modules, "torchvision", None)
    code, _, err = outcome(capsys, "demo", *options)
    assert code == 2 and "--download needs torchvision: pip install torchvision" in err


def test_distortion_moves_scales_and_repeats():
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 12:20, 12:20] = 1
    assert torch.allclose(Distortion()(x, torch.Generator()), x, atol=1e-4)
    centre = torch.arange(32) - 15.5

    def centres(distortion):
        moved = distortion(x, torch.Generator().manual_seed(0))
        assert torch.equal(moved, distortion(x, torch.Generator().manual_seed(0)))
        total = moved.sum((1, 2, 3))
        return (moved.sum((1, 2)) @ centre / total), (moved.sum((1, 3)) @ centre / total), total / 64

    across, down, area = centres(Distortion(shift=3))
    for offset in (across, down):  # 64 uniform draws: the extremes come near the limit and never pass it
        assert 2.5 < offset.abs().max() <= 3.01 and offset.min() < -2 and offset.max() > 2
    assert torch.allclose(area, torch.ones(64), atol=1e-3)
    across, down, area = centres(Distortion(scale=0.2))
    assert 1.2 < area.max() < 1.0 / 0.8**2 + 0.05 and 1 / 1.2**2 - 0.05 < area.min() < 0.85
    flipped = Distortion(mirror=True)(x.cumsum(-1), torch.Generator().manual_seed(0))
    left = flipped[:, 0, 15, 2] > flipped[:, 0, 15, 30]
    assert 16 < left.sum() < 48


def write_idx(path, values):
    """An idx file of uint8, as the MNIST page defines it."""
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, suffix="", counts=(24, 12)):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    written = []
    for stem, count in zip(("train", "t10k"), counts):
        images, labels = random.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
        written += [images, labels]
    return written


def write_cifar(folder, python, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    written = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows, labels = random.integers(0, 256, (count, 3072)).astype(np.uint8), [i % 10 for i in range(count)]
        if python:
            batch = {b"batch_label": name.encode(), b"labels": labels, b"data": rows, b"filenames": [b"x.png"] * count}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2).replace(b"numpy._core", b"numpy.core"))
        else:
            (folder / f"{name}.bin").write_bytes(np.c_[np.array(labels, np.uint8), rows].tobytes())
        written.append((rows, labels))
    return written


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files(tmp_path, place, suffix):
    train, train_labels, test, test_labels = write_mnist(tmp_path / place, suffix)
    images = load_mnist(tmp_path)
    assert np.array_equal(images.train_images[:, 0, 2:30, 2:30], train)
    assert np.array_equal(images.test_images[:, 0, 2:30, 2:30], test)
    assert np.array_equal(images.train_labels, train_labels) and np.array_equal(images.test_labels, test_labels)
    assert images.train_images.shape == (24, 1, 32, 32) and not images.train_images[:, :, :2].any()


@pytest.mark.parametrize("place, python", [
    ("", False), ("cifar-10-batches-bin", False), ("", True), ("cifar-10-batches-py", True)
])  # fmt: skip
def test_cifar10_files(tmp_path, place, python):
    written = write_cifar(tmp_path / place, python)
    images = load_cifar10(tmp_path)
    assert images.train_images.shape == (30, 3, 32, 32) and images.classes[3] == "cat"
    assert np.array_equal(images.train_images[6:12].reshape(6, -1), written[1][0])
    assert np.array_equal(images.test_images.reshape(6, -1), written[5][0])
    assert images.test_labels.tolist() == written[5][1]


@pytest.mark.parametrize("data, write, network, parameters", [
    ("mnist", write_mnist, None, "ConvNet (155,606 parameters)"),
    ("mnist", write_mnist, "lenet5", "LeNet-5 (61,706 parameters)"),
    ("mnist", write_mnist, "cifar10_convnet", "ConvNet (213,206 parameters)"),
    ("cifar10", lambda folder: write_cifar(folder, python=False), None, "ConvNet (214,806 parameters)"),
])  # fmt: skip
def test_demo_on_files(tmp_path, capsys, data, write, network, parameters):
    write(tmp_path)
    picture = tmp_path / "a.png"
    options = ["--data", data, "--root", tmp_path, "--epochs", 2, "--batch-size", 2, "--out", picture]
    code, out, err = outcome(capsys, "demo", *options, *(["--network", network] if network else []))
    assert code == 0, out + err
    assert parameters in out
    assert_picture(picture)


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def header(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


def batch(shape, labels):
    return pickle.dumps({b"data": np.zeros(shape, np.uint8), b"labels": labels})


DAMAGES = [
    ("train-images-idx3-ubyte", None, "train-images-idx3-ubyte: expected this file in one of"),
    ("t10k-labels-idx1-ubyte", None, "t10k-labels-idx1-ubyte: expected this file in one of"),
    ("train-images-idx3-ubyte", lambda b: b[:9], "expected an idx header of 16 bytes, found a file of 9"),
    ("train-images-idx3-ubyte", lambda b: b"", "expected an idx header of 16 bytes, found a file of 0"),
    ("train-images-idx3-ubyte", lambda b: b[:-1], "expected 18832 bytes for dimensions (24, 28, 28), found 18831"),
    ("train-images-idx3-ubyte", lambda b: b + b"x", "expected 18832 bytes for dimensions (24, 28, 28), found 18833"),
    ("train-images-idx3-ubyte", lambda b: header(0x801) + b[4:], "the magic number 0x00000803, found 0x00000801"),
    ("train-images-idx3-ubyte", lambda b: header(0x803, 24, 32, 32) + b[16:], "expected items of size (28, 28)"),
    ("train-images-idx3-ubyte", lambda b: header(0x803, 0, 28, 28), "at least one, found dimensions (0, 28, 28)"),
    ("train-labels-idx1-ubyte", lambda b: header(0x801, 5) + b[8:13], "a label for each of 24 images, found 5 labels"),
    ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a", "expected labels from 0 to 9, found 0 to 10"),
    ("data_batch_3.bin", None, "data_batch_3.bin: expected this file in one of"),
    ("data_batch_3.bin", lambda b: b[:-5], "expected a multiple of 3073 bytes, found 18433"),
    ("test_batch.bin", lambda b: b"", "expected a multiple of 3073 bytes, found 0"),
    ("test_batch.bin", lambda b: b"\xff" + b[1:], "expected labels from 0 to 9, found 1 to 255"),
    ("data_batch_3", None, "data_batch_3: expected this file in one of"),
    ("data_batch_3", lambda b: b[:1000], "expected a pickled batch with data and labels, found damage"),
    ("data_batch_3", lambda b: b"", "expected a pickled batch with data and labels, found damage"),
    ("data_batch_3", lambda b: pickle.dumps([1, 2]), "expected a pickled batch with data and labels, found damage"),
    ("data_batch_3", lambda b: batch((2, 5), [1, 2]), "expected data of torch.uint8 (rows, 3072), found"),
    ("data_batch_3", lambda b: batch((2, 3072), [1]), "expected 2 labels"),
]


@pytest.mark.parametrize("name, damage, message", DAMAGES)
def test_missing_and_damaged_files(tmp_path, capsys, name, damage, message):
    files = tmp_path / "files"
    if "idx" in name:
        data = "mnist"
        write_mnist(files)
    else:
        data = "cifar10"
        write_cifar(files, python=not name.endswith(".bin"))
    path = files / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    code, out, err = outcome(capsys, "demo", "--data", data, "--root", files, "--out", tmp_path / "a.png")
    assert code == 2 and message in err and name in err and out == "" and "Traceback" not in err
    assert not (tmp_path / "a.png").exists()


def test_damaged_gzip_unpacked_archive_and_folder_in_place_of_a_file(tmp_path):
    write_mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-20], b"no gzip", whole[:40] + bytes(40) + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: expected a whole gzip file"):
            load_mnist(tmp_path)
    with pytest.raises(DataError, match="expected a folder with the data set's files, found a file"):
        load_mnist(path)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match="cifar-10-python.tar.gz is there: unpack it first"):
        load_cifar10(tmp_path)


def test_a_pickle_runs_no_code(tmp_path):
    write_cifar(tmp_path, python=True)
    trapped = io.BytesIO()
    pickle.dump({b"data": Trap(tmp_path / "sprung"), b"labels": [1]}, trapped)
    (tmp_path / "data_batch_1").write_bytes(trapped.getvalue())
    with pytest.raises(DataError, match="asks for posix.mkdir|asks for nt.mkdir"):
        load_cifar10(tmp_path)
    assert not (tmp_path / "sprung").exists()
