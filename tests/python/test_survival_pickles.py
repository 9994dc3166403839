"""Pickles put together by hand, that crash a reader or keep it for ever: an error that says what is wrong."""

import gzip

import pytest

from conv_ext.demo.data import DataError, _read_cifar_pickle

MANY = 400_000
NEST = b")" + b"\x85" * MANY  # a tuple in a tuple in a tuple
DOUBLED = b")" + b"q\x00h\x00\x86" * 100  # 2^100 empty tuples, in a few objects
LONG = b"\x8b" + (2500).to_bytes(4, "little") + b"\x01" * 2500  # an integer of 6,000 digits
SHAPE = b"K\x01M\x00\x0c\x86"
CONTENT = b"B" + (3072).to_bytes(4, "little") + bytes(3072)
NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"
TYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"


def array(shape=SHAPE, dtype=TYPE, content=CONTENT, version=b"K\x01"):
    return NUMPY + b")R(" + version + shape + dtype + b"\x89" + content + b"tb"


def batch(data, labels=b"](K\x01e"):
    return b"\x80\x02}(C\x04data" + data + b"C\x06labels" + labels + b"u."


CRAFTED = {
    "a key that is deep": b"\x80\x02}(" + NEST + b"Nu.",
    "a key that is large": b"\x80\x02}(" + DOUBLED + b"Nu.",
    "a dict of deep keys": b"\x80\x02(" + NEST + b"Nd.",
    "a key without a value": b"\x80\x02}(Nu.",
    "a name that is deep": b"\x80\x04" + NEST + b"N\x93.",
    "a name that is large": b"\x80\x04" + DOUBLED + b"N\x93.",
    "a function that is large": b"\x80\x02" + DOUBLED + b")R.",
    "an encoding that is large": b"\x80\x02c_codecs\nencode\nX\x00\x00\x00\x00" + DOUBLED + b"\x86R.",
    "a shape that is deep": batch(array(shape=NEST)),
    "a shape that is large": batch(array(shape=DOUBLED)),
    "sizes that are long": batch(array(shape=LONG + LONG + b"\x86")),
    "rows that are many": batch(array(shape=LONG + b"M\x00\x0c\x86")),
    "negative rows": batch(array(shape=b"J\xff\xff\xff\xffM\x00\x0c\x86")),
    "a type that is deep": batch(array(dtype=b"cnumpy\ndtype\n" + NEST + b"\x85R")),
    "a type that is large": batch(array(dtype=b"cnumpy\ndtype\n" + DOUBLED + b"\x85R")),
    "a type that is none": batch(array(dtype=b"N")),
    "content that is none": batch(array(content=b"N")),
    "content of other length": batch(array(content=b"C\x01x")),
    "an array that is a list": batch(b"]"),
    "an array in itself": batch(NUMPY + b")Rq\x01(K\x01h\x01" + TYPE + b"\x89h\x01tb"),
    "a label that is long": batch(array(), b"](" + LONG + b"e"),
    "a label that is deep": batch(array(), b"](" + NEST + b"e"),
    "a label that is a bool": batch(array(), b"](\x88e"),
    "labels in themselves": batch(array(), b"]q\x02h\x02a"),
    "labels that are a dict": batch(array(), b"}"),
    "a batch that is large": b"\x80\x02" + DOUBLED + b".",
    "a batch that is deep": b"\x80\x02" + NEST + b".",
    "text of 2^63 bytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b".",
    "nothing to stop with": b"\x80\x02.",
    "marks that are not there": b"\x80\x02u.",
}


def test_a_pickle_put_together_by_hand(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(batch(array()))
    images, labels = _read_cifar_pickle(path)
    assert images.shape == (1, 3, 32, 32) and labels.tolist() == [1]


@pytest.mark.parametrize("what", CRAFTED)
def test_pickles_that_would_crash_or_not_end(tmp_path, what):
    path = tmp_path / "data_batch_1.gz"
    path.write_bytes(gzip.compress(CRAFTED[what], 1))
    with pytest.raises(DataError, match="data_batch_1.gz: expected") as error:
        _read_cifar_pickle(path)
    assert len(str(error.value)) < 2000
