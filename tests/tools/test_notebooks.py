"""The course in docs/notebooks: each .ipynb is of its .py, has results, and is executed in `make test-all`."""

import json
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import make_notebooks  # noqa: E402

SOURCES = make_notebooks.sources()
notebooks = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


@notebooks
def test_a_notebook_is_of_its_source(path):
    """Whoever changes one makes the other: python docs/make_notebooks.py."""
    assert make_notebooks.cells_in(path.with_suffix(".ipynb")) == make_notebooks.cells_of(path)


@notebooks
def test_a_notebook_was_executed(path):
    """From its first cell to the last, without an error, and nothing is too large to look at."""
    cells = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert path.with_suffix(".ipynb").stat().st_size < 1_000_000


@notebooks
def test_a_notebook_has_a_title_and_something_to_try(path):
    cells = make_notebooks.cells_of(path)
    kind, first = cells[0]
    assert kind == "markdown" and first.startswith(f"# Notebook {path.name[0]}: ")
    assert cells[-1][0] == "markdown" and "**To try:**" in cells[-1][1]
    for named in re.findall(
        r"\]\(([\w./]+)(?:#[\w-]+)?\)", "\n".join(text for kind, text in cells if kind == "markdown")
    ):
        assert (path.parent / named).exists(), named


def test_the_course_lists_them():
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", (DOCS / "course.md").read_text(encoding="utf-8"))
    assert listed == [path.stem for path in SOURCES] and len(listed) > 4


@pytest.mark.exhaustive
@notebooks
def test_a_notebook_runs(path):
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = make_notebooks.executed(path)
    times = [cell.metadata.get("execution") for cell in book.cells]
    assert len(book.cells) == len(make_notebooks.cells_of(path)) and not any(times)


def test_cells_are_read(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('# %% [markdown]\n"""\n# Title\n\nText.\n"""\n\n# %%\nx = 1\n\n\ndef f():\n    pass\n\n# %%\nx\n')
    expected = [("markdown", "# Title\n\nText."), ("code", "x = 1\n\n\ndef f():\n    pass"), ("code", "x")]
    assert make_notebooks.cells_of(path) == expected
    path.write_text("# %% [raw]\nx\n")
    with pytest.raises(
        ValueError, match=r"a.py: a cell begins with '# %%' or '# %% \[markdown\]', found '# %% \[raw\]'"
    ):
        make_notebooks.cells_of(path)
