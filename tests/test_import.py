"""What `import conv_ext` costs on top of torch: nothing heavy."""

import sys

import pytest
import torch

from children import run_python

# What an import of torch alone leaves out, and what is slow to load.
HEAVY = (
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "matplotlib",
    "sklearn",
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
    assert "'conv_ext.settings'" in imported and "'conv_ext.models'" not in imported
    assert not [name for name in HEAVY if f"'{name}'" in imported + after_a_step]


def test_the_networks_are_an_attribute_of_the_package():
    """Where nothing else has imported them."""
    script = "import conv_ext; print('models' in dir(conv_ext), conv_ext.models.vgg16.__name__, conv_ext.no_such_name)"
    child = run_python("-c", script)
    assert "AttributeError: module 'conv_ext' has no attribute 'no_such_name'" in child.stderr
    child = run_python("-c", script.replace(", conv_ext.no_such_name", ""))
    assert child.stdout.split() == ["True", "vgg16"], child.stderr


@pytest.mark.parametrize("name", ["torch._dynamo", "sympy"])
def test_the_list_above_names_modules_that_compiling_loads(name):
    """Were one of them renamed, the test above could not fail any more."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert name in sys.modules
