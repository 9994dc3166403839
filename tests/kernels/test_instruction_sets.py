"""The choice of the instruction set: by the processor, by CONV_EXT_ISA, and with the same results."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import conv_ext
from children import run_python
from conv_ext import _C
from conv_ext.library import ISAS, available_isas
from passes import instruction_set

SCRIPT = """
import torch, conv_ext
x, w = torch.arange(240.).view(2, 3, 5, 8) % 7, torch.arange(72.).view(4, 3, 3, 2) % 5
print(conv_ext.build_info()["isa"], conv_ext.conv2d(x, w, None, (1, 2), 1).flatten().tolist())
"""


def test_which_are_there():
    possible, built = _C.supported_isas(), conv_ext.build_info()["isas"]
    assert possible[-1] == "baseline" and set(possible) <= set(ISAS)
    assert available_isas() == [isa for isa in possible if isa in built]
    assert _C.isa() in available_isas()
    assert conv_ext.build_info()["isa"] == _C.isa()


def test_the_variable_chooses():
    """Integers are exact, so that the results must not show which one it was."""
    children = {isa: run_python("-c", SCRIPT, CONV_EXT_ISA=isa) for isa in available_isas()}
    assert all(child.returncode == 0 for child in children.values()), children
    chosen, results = zip(*(child.stdout.split(maxsplit=1) for child in children.values()))
    assert list(chosen) == available_isas()
    assert len(set(results)) == 1 and len(results[0]) > 100


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no MMX")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (of binutils)")
@pytest.mark.parametrize("isa", available_isas())
def test_no_mmx(isa):
    """After an MMX instruction the long doubles of the definitions are NaN, until EMMS."""
    library = Path(conv_ext.__file__).parent / "lib" / f"libconv_ext_{isa}.so"
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    assert "%xmm0" in code.stdout
    assert not re.findall(r".*%mm[0-7].*", code.stdout)


@pytest.mark.parametrize("isa", available_isas())
def test_the_tests_own_switch(isa):
    with instruction_set(isa):
        assert conv_ext.build_info()["isa"] == isa


def test_an_impossible_choice_is_an_error():
    child = run_python("-c", "import conv_ext", CONV_EXT_ISA="avx1024")
    assert child.returncode != 0
    assert "CONV_EXT_ISA must be one of amx, avx512_bf16, avx512, avx2, baseline, got 'avx1024'" in child.stderr


@pytest.mark.skipif(set(available_isas()) == set(ISAS), reason="this processor has them all")
def test_one_that_the_processor_lacks_is_an_error():
    missing = next(isa for isa in ISAS if isa not in available_isas())
    child = run_python("-c", "import conv_ext", CONV_EXT_ISA=missing)
    assert child.returncode != 0 and f"CONV_EXT_ISA={missing} is not possible" in child.stderr
