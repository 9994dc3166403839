"""The documents do what they say: their code runs, their commands are understood, their links lead somewhere."""

import argparse
import doctest
import html
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import conv_ext
from conv_ext import __main__ as command_line
from conv_ext import models, visualize

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```([\w-]*)[^\n`]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# What the first line of a block may say: that it takes long and is for `make test-all` alone; or why it cannot run.
REASON = re.compile(r"^# (long|not run): \w.{7,}$", re.MULTILINE)
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="needs a checkout")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, *languages):
    """(line, code) of the blocks in one of these languages."""
    text = text_of(page)
    for found in BLOCK.finditer(text):
        if found[2] in languages:
            yield text.count("\n", 0, found.start()) + 1, found[3]


def mark_of(code):
    found = REASON.match(code)
    return found[1] if found else None


PYTHON = [page for page in PAGES if list(blocks(page, "python"))]
LONG = [page for page in PYTHON if any(mark_of(code) == "long" for _, code in blocks(page, "python"))]


def test_there_is_something_to_look_at():
    assert len(PAGES) > 25 and len(PYTHON) > 4
    assert "README.md" in map(name_of, PYTHON) and "docs/use.md" in map(name_of, LONG)


# ---- code


def run_blocks(page, long):
    """The blocks of a page, one after the other, in one namespace, as someone who pastes them would."""
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        mark = mark_of(code)
        if mark == "not run" or mark == "long" and not long:
            continue
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, namespace, name_of(page), name_of(page), line)
            result = doctest.DocTestRunner().run(test, clear_globs=False)
            assert result.failed == 0 and result.attempted, f"{name_of(page)}:{line}"
            namespace.update(test.globs)
        else:
            exec(compile("\n" * line + code, name_of(page), "exec"), namespace)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, and no window for figures; what a block sets of torch's is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with torch.random.fork_rng(), torch.set_grad_enabled(True):
        yield


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_runs(page):
    if page.name == "visualize.md" or "savefig" in text_of(page):
        pytest.importorskip("matplotlib")
    run_blocks(page, long=False)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", LONG, ids=name_of)
def test_what_takes_long_runs(page):
    torch.compiler.reset()
    run_blocks(page, long=True)


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_a_block_is_marked_in_its_first_line(page):
    """A mark elsewhere would hide nothing, and one without words is no reason."""
    for line, code in blocks(page, "python"):
        marks = re.findall(r"^# (?:long|not run)\b.*$", code, re.MULTILINE)
        assert len(marks) == (mark_of(code) is not None), f"{name_of(page)}:{line}: {marks}"


SOURCES = [
    path for part in ("csrc", "tests") for path in (ROOT / part).rglob("*") if path.suffix in (".h", ".cpp", ".py")
]


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "cpp"))], ids=name_of)
def test_cpp_stands_in_a_source(page):
    """Every line of it, in files that tests compile; "..." leaves some out."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path != Path(__file__))
    for number, code in blocks(page, "cpp"):
        missing = [line for line in code.splitlines() if line.strip(" \\") not in sources and line.strip() != "..."]
        assert not missing, f"{name_of(page)}:{number}: {missing}"


# ---- commands


class Understood(Exception):
    """A command line that its parser has taken."""


@pytest.fixture
def parsing_alone(monkeypatch):
    """Programs stop where they have understood their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments):
        parse(self, *arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def commands(page):
    """(line, words) of the shell's commands in a page's blocks, and of those that its text names in backticks."""
    for line, code in blocks(page, "", "sh", "bash", "console"):
        for command in code.replace("\\\n", " ").splitlines():
            yield line, command
    text = BLOCK.sub("", text_of(page))
    for found in re.finditer(r"(?<!`)`((?:conv-ext|python -m (?:conv_ext|bench)|make) [^`]+)`(?!`)", text):
        command = found[1].replace("\n", " ")
        named_alone = re.fullmatch(r"python -m \w+ \w+|conv-ext \w+", command)  # which may ask for more
        yield text.count("\n", 0, found.start()) + 1, f"{command} --help" if named_alone else command


def program(words):
    """Which of our programs is called, and its arguments."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words[:1] == ["conv-ext"]:
        return "conv_ext", words[1:]
    if words[:1] and re.search(r"(^|/)python3?$", words[0]):
        return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    return (words[0], words[1:]) if words else ("", [])


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
VARIABLES = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE)) | {"CONV_EXT_ISAS"}
EXTRAS = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("dependencies]")[1], re.MULTILINE))


def check_command(words):
    name, arguments = program(words)
    arguments = [word for word in arguments if word != "..."]
    if re.search(r"[<|…]", " ".join(arguments)):
        return False  # a form, not a command
    if name == "conv_ext":
        with pytest.raises((Understood, SystemExit)) as ended:
            command_line.main(arguments)
        assert ended.type is Understood or not ended.value.code, words
    elif name == "bench":
        from bench.__main__ import COMMANDS

        module = COMMANDS[arguments[0] if arguments and arguments[0] in COMMANDS else "run"][0]
        with pytest.raises((Understood, SystemExit)) as ended:
            importlib.import_module(module).main([a for a in arguments if a not in COMMANDS])
        assert ended.type is Understood or not ended.value.code, words
    elif name == "make":
        known = [word for word in arguments if word in TARGETS or word.partition("=")[0] in VARIABLES]
        assert arguments == known, f"no such target or variable: {sorted(set(arguments) - set(known))}"
    elif name == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        assert {extra for group in extras for extra in group.split(",")} <= EXTRAS, words
    elif "/" in name and (name.endswith((".py", ".sh")) or name.startswith("tests/")):
        assert (ROOT / name).exists(), f"{name} is not there"
    else:
        return False
    return True


@pytest.mark.usefixtures("parsing_alone")
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    for line, command in commands(page):
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue  # a drawing, a list
        try:
            check_command(words)
        except AssertionError as error:
            raise AssertionError(f"{name_of(page)}:{line}: {command}: {error}") from None


@pytest.mark.usefixtures("parsing_alone")
def test_commands_that_are_wrong_are_found(capsys):
    """Or the test above would say nothing."""
    for command in ("conv-ext sumary vgg16", "conv-ext summary vgg16 --imput 3x224x224", "python -m bench --quik",
                    "make demonstration", "make demo DEVIZE=cuda", "pip install '.[dokumentation]'",
                    "python docs/make_nothing.py"):  # fmt: skip
        with pytest.raises(AssertionError):
            check_command(shlex.split(command))
    for command in ("conv-ext summary vgg16 --input 3x64x64", "make test VENV=", "python -m bench sweep --random 3"):
        assert check_command(shlex.split(command))
    capsys.readouterr()


@pytest.mark.parametrize("words", [["info"], ["summary", "vgg16", "--input", "3x224x224"]], ids=" ".join)
def test_cheap_commands_run(words, capsys):
    assert command_line.main(words) == 0
    assert capsys.readouterr().out.count("\n") > 10


# ---- links


LINK = re.compile(r"!?\[(?:[^][]|\[[^][]*\])*\]\(([^()\s]+)\)")


def anchors(page):
    """The names of its headings, as the pages of a repository have them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text_of(page)), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(ROOT), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: {sorted(anchors(there))}"


def navigation():
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1].split("\n\n")[0]


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w./-]+\.md\b", navigation()))
    folders = set(re.findall(r"([\w/-]+)/\*", navigation()))
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name in named or name.rpartition("/")[0] in folders, f"mkdocs.yml: nav has no line for {name}"
    assert {"index.md", "changelog.md", "contributing.md"} <= named


def public_names():
    """Those of the package, and of the modules that it has as attributes."""
    yield from (f"conv_ext.{name}" for name in conv_ext.__all__ if not isinstance(getattr(conv_ext, name), ModuleType))
    for part in conv_ext._LATER:
        module = getattr(conv_ext, part)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        yield from (f"conv_ext.{part}.{name}" for name in getattr(module, "__all__", own) if not name.startswith("_"))


def test_every_public_name_is_in_the_reference():
    pages = "".join(text_of(page) for page in (ROOT / "docs" / "reference").glob("*.md"))
    entries = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    found = {name: name in entries or f"{name}.{name.rpartition('.')[2]}" in entries for name in public_names()}
    missing = sorted(name for name, there in found.items() if not there and name != "conv_ext.__version__")
    assert len(found) > 60 and not missing, f"docs/reference lacks {missing}"


# ---- what a host of repositories reads


def test_the_citation_is_of_this_version():
    """cff 1.2.0: the keys that it asks for, and the version and its date as the changelog has them."""
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert told["cff-version"] == "1.2.0" and told["title"].startswith("conv_ext") and told["message"]
    assert told["authors"] == [{"name": "The conv_ext authors"}] and told["license"] == "MIT"
    assert told["version"] == conv_ext.__version__
    dated = re.search(rf"^## {re.escape(told['version'])} \(([\d-]+)\)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert dated and dated[1] == str(told["date-released"])


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_issue_forms_are_forms(form):
    """The keys that a form must have, and kinds of fields that there are; names of fields are their own."""
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load(text_of(form))
    assert told.keys() <= {"name", "description", "labels", "body"} and told["name"] and told["description"]
    fields = [field for field in told["body"] if field["type"] != "markdown"]
    assert fields and all(field["type"] in ("input", "textarea", "dropdown", "checkboxes") for field in fields)
    assert (
        len({field["id"] for field in fields}) == len({field["attributes"]["label"] for field in fields}) == len(fields)
    )
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_are_issue_forms():
    assert len(FORMS) >= 3


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What `make docs` builds."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"?([^\"\s>]+)", text)
        assert loaded and not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name


def test_the_site_has_every_docstring(site):
    """An entry for each name, with the first words of what help() shows."""
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for name in public_names():
        entries = {name, f"{name}.{name.rpartition('.')[2]}"}
        assert name == "conv_ext.__version__" or any(f'id="{e}"' in text for e in entries), name
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))
    for found in (conv_ext.conv2d, conv_ext.convert, conv_ext.fuse, conv_ext.Conv2d, models.vgg, visualize.filters):
        first = found.__doc__.strip().splitlines()[0].replace("`", "").rstrip(":")
        assert first in plain, first


def load(name):
    """A module of docs/site, which mkdocs loads by its path."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_checkout_are_links_of_the_site(monkeypatch):
    hooks = load("hooks")
    for source, text, wanted in (
        ("README.md", "[a](docs/use.md#x) ![p](docs/demo.png)", "[a](use.md#x) ![p](demo.png)"),
        ("README.md", "[docs/use.md](docs/use.md)", "[Use](use.md)"),
        ("README.md", "[c](CHANGELOG.md) [w](https://arxiv.org/c)", "[c](changelog.md) [w](https://arxiv.org/c)"),
        ("docs/use.md", "[r](../README.md#limits)", "[r](index.md#limits)"),
        ("docs/deploy/cpp.md", "[u](../use.md) [d](../decisions) [p](cpp/deploy.cpp)",
         "[u](../use.md) [d](../decisions/index.md) [p](cpp/deploy.cpp)"),
        ("docs/use.md", "[gone](nowhere.md) [gone](../csrc/nowhere.h)", "[gone](nowhere.md) [gone](../csrc/nowhere.h)"),
        ("docs/use.md", "[`plan.h`](../csrc/cpu/plan.h), [m](make_networks.py)", "`plan.h`, m"),
    ):  # fmt: skip
        assert hooks.relinked(text, source) == wanted
    monkeypatch.setattr(hooks, "repository", lambda: "https://github.com/owner/name")
    found = hooks.relinked("[`plan.h`](../csrc/cpu/plan.h#L3)", "docs/use.md")
    assert found == "[`plan.h`](https://github.com/owner/name/blob/main/csrc/cpu/plan.h#L3)"
    code = "[a](../csrc/cpu/plan.h)\n```\n[a](../csrc/cpu/plan.h)\n```\n"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="use.md"), parent="Use", meta={})
    assert "```\n[a](../csrc/cpu/plan.h)\n```" in hooks.on_page_markdown(code, page, None, None)
    assert page.meta == {}
    alone = SimpleNamespace(file=page.file, parent=None, meta={})
    hooks.on_page_markdown(code, alone, None, None)
    assert alone.meta == {"hide": ["navigation"]}


def test_docstrings_become_markdown():
    names = {"conv2d": "conv_ext.conv2d", "conv_ext.conv2d": "conv_ext.conv2d"}
    text = """Does it. ::

    y = x

Args:
    x, y: two
        tensors, as in `conv2d`.
    The rest is as in `conv_ext.conv2d`.

Raises:
    TypeError: no tensor. ValueError: a size
    below 1.
Shapes: (N,).
Errors: none."""
    made = load("docstrings").markdown(text, names, "own")
    assert [line for line in made.splitlines() if line] == [
        "Does it.", "    y = x",
        "**Args**", "- `x, y`: two", "    tensors, as in [`conv2d`][conv_ext.conv2d].",
        "- The rest is as in [`conv_ext.conv2d`][conv_ext.conv2d].",
        "**Raises**", "- `TypeError`: no tensor.", "- `ValueError`: a size", "    below 1.",
        "Shapes: (N,).", "Errors: none.",
    ]  # fmt: skip
    assert "Shapes: (N,).\n\nErrors: none." in made and "Does it.\n\n    y = x\n\n" in made


@pytest.mark.exhaustive
@pytest.mark.parametrize("name, planted, said", [
    ("docs/use.md", "", ""),
    ("docs/use.md", "[gone](nowhere.md)", "'nowhere.md'"),
    ("docs/use.md", "[gone](limits.md#no-such-heading)", "no-such-heading"),
    ("docs/unlisted.md", "# In no navigation", "unlisted.md"),
    ("docs/reference/layers.md", "::: conv_ext.NoSuchLayer", "conv_ext.NoSuchLayer"),
])  # fmt: skip
def test_the_build_stops_at_what_is_wrong(tmp_path, name, planted, said):
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(module)
    for path in ROOT.iterdir():
        if path.name == "docs":
            shutil.copytree(path, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
        elif path.name != "build":
            (tmp_path / path.name).symlink_to(path)
    with open(tmp_path / name, "a", encoding="utf-8") as page:
        page.write(f"\n\n{planted}\n")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(planted) and said in done.stderr, done.stdout + done.stderr
