"""What `import conv_ext` costs on top of torch: nothing heavy; and what it finds."""

import ast
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from children import run_python
from conv_ext import _by_dispatcher

# What an import of torch alone leaves out, and what is slow to load.
HEAVY = (
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "torch.distributed.tensor",
    "torch.onnx._internal.exporter",
    "onnx",
    "onnxscript",
    "matplotlib",
    "sklearn",
    "tqdm",
    *(f"conv_ext.{name}" for name in ("demo", "inductor", "models", "onnx", "visualize")),
)

SCRIPT = """
import sys
import torch

before = set(sys.modules)
import conv_ext

print(sorted(set(sys.modules) - before))
x = torch.randn(1, 2, 5, 5, requires_grad=True)
layer = conv_ext.convert(torch.nn.Conv2d(2, 3, 3))
layer(x).sum().backward()
print(sorted(set(sys.modules) - before))
"""


def test_import_and_first_step_load_nothing_heavy():
    child = run_python("-c", SCRIPT)
    assert child.returncode == 0, child.stderr
    imported, after_a_step = child.stdout.splitlines()
    assert "'conv_ext.settings'" in imported
    assert not [name for name in HEAVY if f"'{name}'" in imported + after_a_step]
    # What counts is the number of modules: each is a look at some folders, and a file.
    ours, others = [], []
    for name in ast.literal_eval(imported):
        (ours if name.startswith("conv_ext") else others).append(name)
    assert len(ours) <= 40 and len(others) <= 10, (ours, others)


def test_what_is_loaded_later_is_an_attribute_of_the_package():
    """Where nothing else has imported it."""
    script = "import conv_ext; print('models' in dir(conv_ext), conv_ext.models.vgg16.__name__, conv_ext.no_such_name)"
    others = run_python("-c", "import conv_ext as c; print(c.visualize.filters, c.onnx.translation_table, c.inductor)")
    assert others.returncode == 0, others.stderr
    child = run_python("-c", script)
    assert "AttributeError: module 'conv_ext' has no attribute 'no_such_name'" in child.stderr
    child = run_python("-c", script.replace(", conv_ext.no_such_name", ""))
    assert child.stdout.split() == ["True", "vgg16"], child.stderr


@pytest.mark.parametrize("name", ["torch._dynamo", "sympy"])
def test_the_list_above_names_modules_that_compiling_loads(name):
    """Were one of them renamed, the test above could not fail any more."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert name in sys.modules


def test_the_stub_of_the_fast_road_says_what_is_there():
    """And its stand-in has the same."""
    stub = ast.parse(Path(conv_ext.__file__).with_name("_fast.pyi").read_text())
    named = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    members = {node.targets[0].id: node.value.value for node in named["Road"].body if isinstance(node, ast.Assign)}
    assert members == {road.name: road.value for road in conv_ext._C.Road}
    assert members == {road.name: road.value for road in _by_dispatcher.Road}
    assert all(callable(getattr(_by_dispatcher, name)) for name in named)
    if conv_ext._C.HAS_FAST_ROAD:
        module = sys.modules[f"conv_ext.{conv_ext._C.FAST_NAME}"]
        assert set(named) == {name for name in vars(module) if not name.startswith("__")}
