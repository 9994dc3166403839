"""Python processes that tests start: where a choice is made at import, or a fault would end the process."""

import os
import subprocess
import sys
from pathlib import Path

import conv_ext

SUPPORT = Path(__file__).resolve().parent
# The package that this process has imported, however that was found.
SEARCH_PATH = os.pathsep.join(
    [str(Path(conv_ext.__file__).resolve().parents[1]), str(SUPPORT), str(SUPPORT.parent / "python")]
)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """python ARGUMENTS in this environment with `environment` on top; output as text."""
    path = os.pathsep.join(filter(None, [SEARCH_PATH, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
