"""What a type checker sees of the package: a user's code is right in its eyes, and what is misused is found."""

import importlib.util
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import conv_ext
from conv_ext import arguments, settings

ROOT = Path(__file__).resolve().parents[2]
needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not there")

USE = """
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import conv_ext
from conv_ext import models

x, w, b = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)
assert_type(conv_ext.conv2d(x, w, b, stride=2, padding="same_strided", activation="relu"), Tensor)
assert_type(conv_ext.conv2d(x, w, activation=("clamp", -1.0, 1.0), residual=torch.ones(2, 4, 6, 6)), Tensor)
assert_type(conv_ext.conv1d(x[0], w[0], None, [1], (1,)), Tensor)
assert_type(conv_ext.conv_transpose2d(x, w, stride=(2, 1), output_padding=1), Tensor)
assert_type(conv_ext.conv_transpose1d(x[0], w[0]), Tensor)
layer = conv_ext.Conv2d(3, 4, (3, 1), padding="full", padding_mode="reflect", activation="relu", dtype=torch.float64)
assert_type(layer.weight, Tensor)
row = conv_ext.Conv1d(3, 4, 3, 1, "same", device="cpu", bias=False)
up, along = conv_ext.ConvTranspose2d(3, 4, 3, stride=2), conv_ext.ConvTranspose1d(3, 4, 3, output_padding=0)
network = nn.Sequential(layer, row, up, along, conv_ext.MappedConv2d([[0, 1], [2]], 5))
assert_type(conv_ext.convert(network, report=print), nn.Sequential)
assert_type(conv_ext.revert(network), nn.Sequential)
assert_type(conv_ext.unpack(network), nn.Sequential)
assert_type(models.lenet5(activation="relu"), models.LeNet5)
assert_type(conv_ext.models.vgg16(dtype=torch.bfloat16), models.VGG)
assert_type(conv_ext.summary(network, (3, 8, 8)), conv_ext.Summary)
assert_type(conv_ext.explain(x, w, padding=1).forward.algorithm, str | None)
assert_type(conv_ext.explain(layer, x).problem, str)
assert_type(conv_ext.build_info(), dict[str, Any])
with conv_ext.precision("tf32"), conv_ext.algorithm("reference"), conv_ext.override():
    assert_type(torch.relu(conv_ext.conv2d(x, w)), Tensor)
for parameter in models.resnet(18, device="meta").parameters():
    assert_type(parameter, nn.Parameter)
"""

# A line each, with the kind of error that mypy has for it.
MISUSE = """
import torch
import conv_ext
x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
conv_ext.precision("fast")  # arg-type
conv_ext.conv2d(x, w, padding="smae")  # arg-type
conv_ext.conv2d(x, w, activation="swish-like")  # arg-type
conv_ext.conv2d(x, w, stride="2")  # arg-type
conv_ext.conv2d(x, w, residual=1.0)  # arg-type
conv_ext.conv2d(x)  # call-arg
conv_ext.conv_transpose1d(x, w, padding="same")  # arg-type
conv_ext.Conv2d(3, 4)  # call-arg
conv_ext.Conv2d(3, 4, 3, padding_mode="mirror")  # arg-type
conv_ext.Conv2d(3, 4, "3")  # arg-type
conv_ext.Conv1d(3, 4, 3, 1, "middle")  # arg-type
conv_ext.Conv2d(3, 4, 3, strides=2)  # call-arg
conv_ext.convert("model")  # type-var
conv_ext.explain(x)  # call-overload
conv_ext.convolve  # attr-defined
conv_ext.models.lenet5(pooling="most")  # arg-type
number: int = conv_ext.conv2d(x, w)  # assignment
"""


def checked(text: str, tmp_path: Path) -> tuple[set[tuple[int, str]], str]:
    """What mypy says of a program by (line, kind of error), and all that it says."""
    program = tmp_path / "program.py"
    program.write_text(text)
    # The project's own settings and cache: what the package is made of has mostly been looked at by `make lint`.
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert said.returncode in (0, 1), said.stdout + said.stderr
    found = re.findall(r"^(\S*?):(\d+): error: .*\[([\w-]+)\]$", said.stdout, re.MULTILINE)
    others = [name for name, _, _ in found if not name.endswith("program.py")]
    assert not others, said.stdout
    return {(int(line), kind) for _, line, kind in found}, said.stdout


@needs_mypy
def test_a_users_program_is_right(tmp_path):
    found, said = checked(USE, tmp_path)
    assert not found, said


@needs_mypy
def test_misuse_is_found(tmp_path):
    wanted = {(i, line.split("# ")[1]) for i, line in enumerate(MISUSE.splitlines(), 1) if "# " in line}
    found, said = checked(MISUSE, tmp_path)
    assert found == wanted and len(wanted) == 17, said


def test_the_strings_of_type_checkers_are_those_that_calls_take():
    assert get_args(arguments.Precision) == settings.PRECISIONS and "tf32" in settings.PRECISIONS
    for activation in (*get_args(arguments.ActivationName), ("clamp", 0, 1)):
        conv_ext.Conv2d(1, 1, 1, activation=activation)
    for padding in get_args(arguments.Padding):
        conv_ext.Conv1d(1, 1, 1, padding=padding)
    for mode in get_args(arguments.PaddingMode):
        conv_ext.Conv2d(1, 1, 1, padding_mode=mode)


def test_whoever_installs_it_gets_the_types():
    assert (Path(conv_ext.__file__).parent / "py.typed").is_file()


def test_the_words_of_the_networks_are_those_that_they_take():
    nin, vgg, lenet, googlenet = (
        import_module(f"conv_ext.models.{name}") for name in ("nin", "vgg", "lenet", "googlenet")
    )
    assert get_args(vgg.Configuration) == tuple(vgg.CONFIGURATIONS) and get_args(nin.Images) == tuple(nin.BLOCKS)
    words = {"connections": lenet.Connections, "pooling": lenet.Pooling, "head": lenet.Head, "dense": lenet.Dense}
    for name, of in {**words, "activation": lenet.Squashing}.items():
        for word in get_args(of):
            lenet.lenet5(**{name: word}, device="meta")
        with pytest.raises(ValueError, match=f"{name} must be one of {', '.join(map(repr, get_args(of)))}, got"):
            lenet.lenet5(**{name: "another"})
    with pytest.raises(ValueError, match=f"must be one of {', '.join(map(repr, get_args(googlenet.Kind)))}, got"):
        googlenet.googlenet(inception="another")
