"""Makes the course: executes docs/notebooks/*.py as notebooks and writes each with its results beside it, as .ipynb.

`python docs/make_notebooks.py [NAME ...]` (all of them: some minutes) needs jupytext, nbclient and ipykernel:
`pip install 'conv_ext[notebooks]'`. The .py files are what is edited: cells begin with `# %%`, text is in
`# %% [markdown]` cells, between triple quotes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE / "notebooks"
SECONDS = 120  # for each cell, and more than a whole notebook should take


def sources() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(NOTEBOOKS.glob("*.py"))


def cells_of(path: Path) -> list[tuple[str, str]]:
    """(type, text) of the cells of a .py, read without jupytext: what the .ipynb beside it must have."""
    found = []
    for part in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        text = text.strip("\n")
        if title.strip() == "[markdown]":
            found.append(("markdown", text.removeprefix('"""').removesuffix('"""').strip("\n")))
        elif title.strip() == "" and text:
            found.append(("code", text))
        else:
            raise ValueError(f"{path.name}: a cell begins with '# %%' or '# %% [markdown]', found '# %%{title}'")
    return found


def cells_in(path: Path) -> list[tuple[str, str]]:
    """(type, text) of the cells of an .ipynb."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"]).strip("\n")) for cell in cells]


def executed(path: Path):
    """The notebook of a .py with its results; raises nbclient's CellExecutionError where a cell fails."""
    import jupytext
    from nbclient import NotebookClient

    book = jupytext.read(path)
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                     "language_info": {"name": "python"}}  # fmt: skip
    # The kernel finds the checkout's conv_ext, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    how = {"timeout": SECONDS, "kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
    NotebookClient(book, resources={"metadata": {"path": str(NOTEBOOKS)}}, **how).execute()
    for number, cell in enumerate(book.cells):  # the same file for the same results
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_of_the_profiler(output)]
    return book


def with_new_text(path: Path):
    """The notebook beside a .py with its text as it is now; ValueError where code has changed: that has to run."""
    import nbformat

    book = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    cells = cells_of(path)
    kinds = [(cell.cell_type, cell.source if cell.cell_type == "code" else "") for cell in book.cells]
    if kinds != [(kind, text if kind == "code" else "") for kind, text in cells]:
        raise ValueError(f"{path.name}: not only its text has changed, leave --text out")
    for cell, (_, text) in zip(book.cells, cells):
        cell.source = text
    return book


def _is_of_the_profiler(output) -> bool:
    """Whether an output is what torch's profiler says of its own start and end."""
    lines = output.get("text", "").splitlines() if output.get("name") == "stderr" else []
    return bool(lines) and all(line.startswith("USDT:") for line in lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks, by the beginning of their names; all")
    parser.add_argument("--text", action="store_true", help="put changed text in, and execute nothing")
    options = parser.parse_args(arguments)
    names = options.names
    chosen = [path for path in sources() if not names or path.name.startswith(tuple(names))]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(names)}; there are {', '.join(p.stem for p in sources())}")
    try:
        import jupytext  # noqa: F401
        import nbclient
        import nbformat
    except ImportError as error:
        parser.error(f"{error.name} is missing: pip install 'conv_ext[notebooks]'")
    failed = 0
    for path in chosen:
        begin = time.perf_counter()
        print(f"{path.stem} ... ", end="", flush=True)
        try:
            nbformat.write(with_new_text(path) if options.text else executed(path), path.with_suffix(".ipynb"))
            print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        except nbclient.exceptions.CellExecutionError as error:
            failed += 1
            print(f"{error.ename}: {error.evalue}", flush=True)
        except ValueError as error:
            failed += 1
            print(error, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
