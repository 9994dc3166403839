"""The demo as a user meets it: its output, its picture, its exit codes; and the readers of the files it learns from."""

import copy
import gzip
import io
import math
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from conv_ext import demo
from conv_ext.__main__ import gpus, main, runs_on
from conv_ext.data import DataError, Distortion, load_cifar10, load_digits, load_mnist
from conv_ext.models import lenet5
from conv_ext.training import History, Recipe, Training, largest_difference, same_bits

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
np = pytest.importorskip("numpy")


def started(arguments, folder, **options):
    """`python -m conv_ext` in another folder than the checkout."""
    path = os.pathsep.join([str(Path(conv_ext.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "conv_ext", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def outcome(capsys, *arguments):
    """The exit code, what went to stdout, what went to stderr."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as stop:  # how argparse leaves
        code = stop.code
    return code, *capsys.readouterr()


def assert_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[0] > 600 and pixels.shape[1] > 900 and pixels.std() > 0.1


def test_demo_as_a_command(tmp_path):
    process = started(["demo", "--epochs", "1", "--threads", "1"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "LeNet-5 (61,706 parameters)" in out and "1,437 images to train, 360 to test" in out
    assert re.search(r"test accuracy +\d+\.\d\d % +\d+\.\d\d %\n", out)
    assert re.search(r"time per epoch +\d+\.\d+ s +\d+\.\d+ s\n", out)
    assert re.search(r"same bits on repeating +(yes|no) +yes\n", out)
    assert float(re.search(r"largest relative difference (\S+), below", out)[1]) < 1e-4
    assert f"picture: {tmp_path / 'lenet5_digits.png'}" in out
    assert_picture(tmp_path / "lenet5_digits.png")
    assert re.search(r"torch \|.+\| 100 % .*epoch 1/1, loss \d\.\d+, accuracy \d+\.\d\d %", err)
    assert re.search(r"conv_ext \|.+\| 100 % .*epoch 1/1, loss \d\.\d+, accuracy \d+\.\d\d %", err)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupt(tmp_path):
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = started(["demo", "--epochs", "100000", "--threads", "1"], tmp_path, **listen)
    seen = ""
    while "|" not in seen:  # the progress bar: training has begun
        read = process.stderr.read(1)
        assert read, seen
        seen += read
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.endswith("conv_ext demo: stopped by Ctrl-C; nothing was written\n") and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_equal_seeds_give_equal_runs_and_another_seed_another(tmp_path, capsys):
    def last_loss(seed):
        options = ("--epochs", 1, "--seed", seed, "--batch-size", 200, "--out", tmp_path / "a.png")
        code, out, _ = outcome(capsys, "demo", *options)
        assert code == 0
        return re.search(r"last loss.*", out)[0]

    assert last_loss(1) == last_loss(1) != last_loss(2)


def first_losses(net):
    images = load_digits()
    training = Training(net, images, epochs=20, recipe=Recipe(), seed=0, device=torch.device("cpu"))
    training.run_epoch(stop_after=20)
    return training.history.losses


def test_the_compared_losses_depend_on_every_gradient():
    torch.manual_seed(0)
    net = lenet5(connections="full", pooling="average")
    expected = first_losses(conv_ext.revert(copy.deepcopy(net)))
    assert largest_difference(expected, first_losses(copy.deepcopy(net))) < demo.DIFFERENCE_LIMIT
    for layer in ("c1", "c3", "c5"):
        wrong = copy.deepcopy(net)
        getattr(wrong, layer).weight.register_hook(lambda gradient: 1.01 * gradient)
        assert largest_difference(expected, first_losses(wrong)) > demo.DIFFERENCE_LIMIT


def test_a_wrong_gradient_is_noticed(tmp_path, capsys, monkeypatch):
    revert = conv_ext.revert

    def revert_badly(model):
        revert(model).c3.weight.register_hook(lambda gradient: 1.01 * gradient)
        return model

    monkeypatch.setattr(conv_ext, "revert", revert_badly)
    code, out, _ = outcome(capsys, "demo", "--epochs", 1, "--out", tmp_path / "a.png")
    assert code == 1 and "NOT BELOW the limit of 1e-04" in out
    assert_picture(tmp_path / "a.png")


def test_a_low_accuracy_is_noticed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(demo.EPOCHS, "digits", 1)
    code, out, _ = outcome(capsys, "demo", "--out", tmp_path / "a.png")
    assert code == 1 and "is BELOW the goal of 98 %" in out and ", below the limit" in out
    code, out, _ = outcome(capsys, "demo", "--batch-size", 300, "--out", tmp_path / "a.png")  # nothing is promised here
    assert code == 0 and "goal" not in out


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_precision_reaches_both_and_is_put_back(tmp_path, capsys, monkeypatch, precision):
    seen = []
    step = demo.Training._step

    def noting(self, indices):
        seen.append((torch.backends.mkldnn.conv.fp32_precision, conv_ext.settings.current_precision("cpu")))
        return step(self, indices)

    monkeypatch.setattr(demo.Training, "_step", noting)
    before = torch.backends.mkldnn.conv.fp32_precision
    code, out, _ = outcome(
        capsys, "demo", "--epochs", 1, "--batch-size", 1437, "--precision", precision, "--out", tmp_path / "a.png"
    )
    assert code == 0 and f"float32 as {precision}" in out and set(seen) == {(precision, precision)}
    assert ("no limit" in out) == (precision != "ieee")
    assert torch.backends.mkldnn.conv.fp32_precision == before


@pytest.mark.parametrize("arguments, message", [
    (["--epochs", "0"], "--epochs: must be from 1 to"),
    (["--epochs", "1.5"], "--epochs: must be a whole number, got '1.5'"),
    (["--batch-size", "-1"], "--batch-size: must be from 1"),
    (["--threads", "0"], "--threads: must be from 1"),
    (["--seed", "-1"], "--seed: must be from 0"),
    (["--data", "svhn"], "invalid choice: 'svhn'"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got tpu"),
    (["--device", "meta"], "--device must be cpu, cuda or cuda:N, got meta"),
    (["--data", "mnist"], "--data mnist needs --root DIR"),
    (["--network", "vgg16"], "invalid choice: 'vgg16'"),
    (["--network", "mnist_convnet"], "--network mnist_convnet takes images of 28 x 28: --data mnist"),
    (["--root", "."], "--root goes with --data mnist or --data cifar10"),
    (["--data", "mnist", "--root", "missing"], "missing: expected a folder with the data set's files, found nothing"),
    (["--out", "picture.jpg"], "--out must name a .png file, got picture.jpg"),
    (["--out", "missing/a.png"], "cannot write missing/a.png: no such folder"),
    (["--wrong"], "unrecognized arguments: --wrong"),
])  # fmt: skip
def test_wrong_options(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, "demo", *arguments)
    assert code == 2 and message in err and out == "" and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_here(capsys):
    code, _, err = outcome(capsys, "demo", "--device", "cuda")
    assert code == 2 and "--device cuda: torch" in err and "finds no CUDA device here" in err


@pytest.mark.parametrize("module", ["tqdm", "matplotlib", "sklearn"])
def test_missing_extras(capsys, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # Python's own mark of a module that cannot be imported
    code, _, err = outcome(capsys, "demo")
    assert code == 2 and "pip install 'conv_ext[demo]'" in err and module.replace("sk", "scikit-") in err


def test_help_and_info(capsys):
    code, out, _ = outcome(capsys)
    assert code == 0 and "demo" in out and "info" in out
    code, out, _ = outcome(capsys, "demo", "--help")
    named = (
        "--data", "--network", "--root", "--epochs", "--batch-size", "--device", "--threads", "--precision", "--seed",
        "--out", "transfer",
    )  # fmt: skip
    assert code == 0 and all(option in out for option in named)
    code, out, _ = outcome(capsys, "info")
    assert code == 0 and torch.__version__ in out and all(key in out for key in conv_ext.build_info())
    code, out, _ = outcome(capsys, "--version")
    assert code == 0 and out.strip() == conv_ext.__version__


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["compare", "transfer"])
def test_on_a_gpu(capsys, tmp_path, what):
    code, out, err = outcome(capsys, "demo", what, "--device", "cuda", "--epochs", 2, "--out", tmp_path / "p.png")
    assert code == 0 and (tmp_path / "p.png").stat().st_size > 10_000, err
    if what == "compare":
        assert torch.cuda.get_device_name() in out and re.search(r"same bits on repeating +\w+ +yes", out)


@pytest.mark.parametrize("major, minor, wanted", [(7, 5, True), (8, 6, True), (9, 0, True), (10, 0, True), (7, 0, False)])
def test_the_architectures_that_run_on_a_gpu(major, minor, wanted):
    assert runs_on(["sm_75", "sm_80", "compute_80", "sm_90a"], major, minor) is wanted
    assert runs_on(["sm_90a"], major, minor) is ((major, minor) == (9, 0))
    assert runs_on(["sm_80"], major, minor) is (major == 8)


def test_info_tells_of_gpus(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    for built, wanted in (
        ({"cuda": False}, "built without CUDA"),
        ({"cuda": True, "cuda_architectures": ["sm_80"]}, "TORCH_CUDA_ARCH_LIST=9.0"),
        ({"cuda": True, "cuda_architectures": ["sm_90a"]}, "three_tf32"),
    ):
        assert wanted in str(gpus(built)["cuda:0"])
    code, out, _ = outcome(capsys, "info")
    assert code == 0 and "a GPU" in out and "9.0" in out


def test_comparison_of_losses():
    assert largest_difference([1.0, 2.0, 4.0], [1.0, 2.0, 5.0]) == 0.25
    assert largest_difference([1.0] * 20 + [1.0], [1.0] * 20 + [2.0]) == 0  # the first 20 only
    assert largest_difference([0.0], [0.5]) == 0.5
    assert math.isnan(largest_difference([1.0, math.nan], [1.0, 2.0]))
    assert math.isnan(largest_difference([1.0], [math.nan]))
    with pytest.raises(ValueError):
        largest_difference([1.0], [1.0, 2.0])


def test_comparison_of_bits():
    losses, weights = [float(i) for i in range(30)], [torch.ones(3), torch.zeros(2)]
    whole = History(losses=losses, early_weights=weights)
    assert same_bits(whole, History(losses=losses[:20], early_weights=[each.clone() for each in weights]))
    assert not same_bits(whole, History(losses=losses[:19] + [19.5], early_weights=weights))
    nearly = [weights[0], torch.tensor([0.0, 1e-45])]
    assert not same_bits(whole, History(losses=losses[:20], early_weights=nearly))


def test_digits_are_split_once_and_standardised():
    images, again = load_digits(), load_digits()
    assert images.train_images.shape == (1437, 1, 32, 32) and images.test_images.shape == (360, 1, 32, 32)
    assert torch.equal(images.test_images, again.test_images) and torch.equal(images.train_labels, again.train_labels)
    assert len(set(images.train_labels.tolist())) == len(set(images.test_labels.tolist())) == 10
    x = images.standardised(images.train_images.float() / 255)
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


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


@pytest.mark.parametrize("seed", [0, 1])
def test_a_convnets_compared_losses_depend_on_every_gradient(seed):
    network, images = demo.NETWORKS["cifar10_convnet"], load_digits()
    torch.manual_seed(seed)
    net = network.make(10, 1)

    def losses(net):
        training = Training(net, images, epochs=1, recipe=network.recipe, seed=0, device=torch.device("cpu"))
        training.run_epoch(stop_after=network.compared_steps)
        return training.history.losses

    expected = losses(conv_ext.revert(copy.deepcopy(net)))
    assert largest_difference(expected, losses(copy.deepcopy(net))) < demo.DIFFERENCE_LIMIT / 10
    for layer in (0, 3):
        wrong = copy.deepcopy(net)
        wrong.features[layer].weight.register_hook(lambda gradient: 1.01 * gradient)
        assert largest_difference(expected, losses(wrong)) > demo.DIFFERENCE_LIMIT


def test_the_lectures_networks_learn_as_it_says():
    for name in ("mnist_convnet", "cifar10_convnet"):
        recipe = demo.NETWORKS[name].recipe
        assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (128, 1e-2, 1e-2)
    assert load_digits().train_images.shape[2:] == (32, 32)


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
