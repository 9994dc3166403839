"""`python -m conv_ext visualize`: each picture, and what it says of wrong options."""

import sys
from pathlib import Path

import pytest
import torch

from conv_ext.__main__ import main
from conv_ext.demo import look
from conv_ext.models import lenet5

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def outcome(capsys, *arguments):
    """The exit code, what went to stdout, what went to stderr."""
    try:
        code = main(["visualize", *map(str, arguments)])
    except SystemExit as stop:  # how argparse leaves
        code = stop.code
    return code, *capsys.readouterr()


def pixels(path):
    from matplotlib.image import imread

    image = imread(path)
    assert image.shape[0] > 150 and image.shape[1] > 300 and image.std() > 0.02
    return image


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "lenet5.pt"
    torch.save(lenet5(activation="relu", pooling="max").state_dict(), path)
    return path


@pytest.mark.parametrize("what, options", [
    ("filters", []), ("filters", ["--layer", "c3"]), ("feature_maps", ["--image", 3]), ("occlusion", []),
    ("top_patches", ["--count", 4]), ("deconvnet", ["--channel", "2,15", "--count", 2]),
    ("maximise", ["--layer", "output", "--channel", 7]),
])  # fmt: skip
def test_pictures_of_a_network(what, options, weights, tmp_path, capsys):
    path = tmp_path / "picture.png"
    code, out, err = outcome(capsys, what, "--weights", weights, "--out", path, *options)
    assert code == 0 and f"picture: {path}" in out, err
    pixels(path)


def test_it_learns_first(tmp_path, capsys):
    path = tmp_path / "picture.png"
    code, out, _ = outcome(capsys, "filters", "--epochs", 1, "--out", path)
    assert code == 0 and "LeNet-5 with ReLU on scikit-learn's handwritten digits: test accuracy" in out
    pixels(path)


def test_a_convolution(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--size", "3x3", "--kernel", "2x2", "--seconds", "0.1"]
    code, out, _ = outcome(capsys, "convolution", *sizes)
    assert code == 0 and (tmp_path / "convolution.gif").read_bytes().startswith(b"GIF89a") and "convolution.gif" in out
    code, _, _ = outcome(capsys, "convolution", *sizes, "--pass", "input_grad", "--stride", 2, "--out", "a.html")
    assert code == 0 and "frames[8]" in (tmp_path / "a.html").read_text(encoding="utf-8")
    strips = []
    for of in ("forward", "input_grad", "weight_grad"):
        code, _, _ = outcome(capsys, "convolution", "--pass", of, "--padding", "same", "--out", f"{of}.png")
        assert code == 0
        strips.append(pixels(tmp_path / f"{of}.png"))
    assert len({strip.tobytes() for strip in strips}) == 3


@pytest.mark.parametrize("arguments, message", [
    (["occlude"], "invalid choice: 'occlude'"),
    (["filters", "--out", "a.gif"], "--out must name a file of .png, got a.gif"),
    (["convolution", "--out", "a.mp4"], "--out must name a file of .gif or .html or .png, got a.mp4"),
    (["convolution", "--out", "nowhere/a.gif"], "no such folder, or no permission"),
    (["convolution", "--kernel", "5x5"], "Kernel size can't be greater than actual input size"),
    (["convolution", "--size", "99x99"], "up to 64 cells a side, this would have 99"),
    (["convolution", "--size", "4"], "must be rows x columns, as 4x5, each from 1 to 99, got '4'"),
    (["convolution", "--padding", "circular"], "must be from 0 to 99 or one of valid, same, full, same_strided"),
    (["convolution", "--seconds", "0"], "must be from 0.02 to 60, got '0'"),
    (["top_patches", "--channel", "1,x"], "must be numbers from 0 with commas between them, got '1,x'"),
    (["top_patches", "--channel", "16", "--epochs", 10**6], "channel must be from 0 to 15, the maps of 'c3'"),
    (["maximise", "--layer", "f6", "--channel", "84", "--epochs", 10**6], "channel must be from 0 to 83, the maps of"),
    (["feature_maps", "--layer", "f6", "--epochs", 10**6], "the layer 'f6' makes no maps"),
    (["top_patches", "--channel", "16", "--weights", "W"], "channel must be from 0 to 15, the maps of 'c3'"),
    (["maximise", "--layer", "c9", "--epochs", 10**6], "the model has no layer 'c9'; it has c1, s2"),
    (["filters", "--layer", "c9", "--epochs", 10**6], "the model has no layer 'c9'; it has c1, s2"),
    (["filters", "--layer", "s2", "--weights", "W"], "filters takes a layer"),
    (["feature_maps", "--image", "2000", "--epochs", 10**6], "--image must be from 0 to 359, got 2000"),
    (["filters", "--weights", "nowhere.pt"], "--weights: nowhere.pt has no weights of this network: "),
    (["filters", "--data", "mnist"], "--data mnist needs --root DIR"),
    (["filters", "--data", "mnist", "--root", "nowhere"], "nowhere"),
])  # fmt: skip
def test_wrong_options(arguments, message, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = outcome(capsys, *(weights if argument == "W" else argument for argument in arguments))
    assert code == 2 and message in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["filters", "--weights", "W"], ["convolution"], ["convolution", "--out", "a.png"]]
)
def test_a_full_disk(arguments, weights, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = outcome(capsys, *(weights if argument == "W" else argument for argument in arguments))
    assert code == 2 and "cannot write" in err and "No space left on device" in err


def test_missing_extras(tmp_path, capsys, monkeypatch):
    """What was asked for is named, and what it needs: a bar is shown where something learns."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("tqdm", "matplotlib"):
            patch.setitem(sys.modules, name, None)  # Python's own mark of a module that cannot be imported
        for what, missing in (("filters", "tqdm and matplotlib"), ("convolution", "matplotlib")):
            code, _, err = outcome(capsys, what)
            assert code == 2 and err == f"conv_ext visualize: visualize needs {missing}: pip install 'conv_ext[demo]'\n"
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, _, err = outcome(capsys, "convolution", "--size", "3x3", "--kernel", "2x2", "--out", "a.png")
    assert code == 0, err


def test_an_interruption(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(look, "_learn", interrupted)
    code, _, err = outcome(capsys, "filters")
    assert code == 130 and "stopped by Ctrl-C; nothing was written" in err and not list(tmp_path.iterdir())
