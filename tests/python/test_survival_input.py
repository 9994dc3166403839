"""Files of data sets that are cut short or filled with noise, and environment variables set to anything."""

import gzip
import os
import pickle
import random
import string

import pytest
import torch

from conv_ext import _C, library
from conv_ext.demo.data import DataError, load_cifar10, load_mnist

np = pytest.importorskip("numpy")

from test_data import write_cifar, write_mnist  # noqa: E402 - it needs numpy

MUTATIONS = 1000  # of each kind of file


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Cut short, noise throughout, or a few bytes changed, dropped, added or moved, mostly where the structure is."""
    kind = rng.random()
    if kind < 0.15:
        return good[: rng.randrange(len(good))]
    if kind < 0.25:
        return rng.randbytes(rng.choice((len(good), rng.randrange(300))))
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.choice((rng.randrange(400), len(content) - 1 - rng.randrange(300), rng.randrange(len(content))))
        place = max(0, min(place, len(content) - 1))
        how = rng.random()
        if how < 0.5:
            content[place] = rng.randrange(256)
        elif how < 0.7:
            del content[place : place + rng.randrange(1, 9)]
        elif how < 0.9:
            content[place:place] = rng.randbytes(rng.randrange(1, 6))
        else:
            other = rng.randrange(min(400, len(content)))
            content[place:place] = content[other : other + rng.randrange(1, 30)]
        if not content:
            break
    return bytes(content)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, in a text of Python 2
@pytest.mark.parametrize("name, load, write", [
    ("train-images-idx3-ubyte", load_mnist, lambda folder: write_mnist(folder, counts=(3, 2))),
    ("t10k-labels-idx1-ubyte", load_mnist, lambda folder: write_mnist(folder, counts=(3, 2))),
    ("train-images-idx3-ubyte.gz", load_mnist, lambda folder: write_mnist(folder, ".gz", counts=(3, 2))),
    ("data_batch_2.bin", load_cifar10, lambda folder: write_cifar(folder, python=False, count=2)),
    ("data_batch_2", load_cifar10, lambda folder: write_cifar(folder, python=True, count=2)),
])  # fmt: skip
def test_damaged_files_are_read_or_refused(tmp_path, name, load, write):
    write(tmp_path)
    path, rng = tmp_path / name, random.Random(name)
    good, refused = path.read_bytes(), 0
    load(tmp_path)
    for number in range(MUTATIONS):
        content = mutated(good, rng)
        path.write_bytes(content)
        try:
            images = load(tmp_path)
        except DataError as error:
            assert name in str(error), (number, str(error))
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {number}: {error!r} of {content[:400]!r}") from error
        else:
            assert images.train_images.dtype == images.test_images.dtype == torch.uint8
            assert len(images.train_images) == len(images.train_labels)
            labels = torch.cat([images.train_labels, images.test_labels])
            assert labels.min() >= 0 and labels.max() <= 9
    assert refused > MUTATIONS // 4  # else it was the pixels that were changed


HOSTILE = [
    pickle.dumps({b"data": 3, b"labels": [1]}),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2**40_000]}),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, True]}),
    pickle.dumps({b"data": np.zeros((2, 3072), np.int8), b"labels": [1, 2]}, protocol=2),
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8, order="F"), b"labels": [1, 2]}, protocol=2),
    b"\x80\x02]q\x00r\xff\xff\xff\x7f.",  # a memo of 2^31 places
    b"\x80\x02}q\x00(h\x00h\x00u.",  # a dict that is its own key
    b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # 2^63 bytes are announced
    b"cposix\nsystem\n(S'true'\ntR.",
    b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",  # tuples within tuples
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_pickles_that_mean_harm(tmp_path, content):
    write_cifar(tmp_path, python=True, count=2)
    (tmp_path / "data_batch_4").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_4: expected"):
        load_cifar10(tmp_path)


def test_gzip_of_something_else(tmp_path):
    write_mnist(tmp_path, ".gz", counts=(3, 2))
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    for content in (b"", b"text", bytes(5_000_000)):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz: expected"):
            load_mnist(tmp_path)


def test_conv_ext_isa_set_to_anything(monkeypatch):
    """ImportError with the names that are allowed, whatever the variable holds; empty means nothing is chosen."""
    rng, before = random.Random(3), _C.isa()
    known = (*library.ISAS, library.EMULATED)
    values = ["avx", "AVX2", " avx2", "avx2 ", "avx2,baseline", "0", "1", "None", "../lib", "/", "%s", "é", "\udcff"]
    values += [name[:-1] for name in known] + ["x" * 100_000]
    values += ["".join(rng.choices(string.printable, k=rng.randrange(1, 20))) for _ in range(500)]
    try:
        for value in values:
            if value in known:
                continue
            monkeypatch.setenv("CONV_EXT_ISA", value)
            with pytest.raises(ImportError) as raised:
                library._load_kernels()
            assert "CONV_EXT_ISA must be one of amx, avx512_bf16, avx512, avx2, baseline, got" in str(raised.value)
            assert _C.isa() == before
        for missing in set(library.ISAS) - set(library.available_isas()):
            monkeypatch.setenv("CONV_EXT_ISA", missing)
            with pytest.raises(ImportError, match="is not possible: .*available: "):
                library._load_kernels()
        monkeypatch.setenv("CONV_EXT_ISA", "")
        library._load_kernels()
        assert _C.isa() == library.available_isas()[0]
    finally:
        os.environ["CONV_EXT_ISA"] = before
        library._load_kernels()
