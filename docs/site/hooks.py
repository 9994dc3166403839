"""Hooks of mkdocs: pages beside docs/, notebooks as pages, links that lead out of docs/, folders in the navigation."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2`* *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^()\s]+)\)")


def repository() -> str | None:
    """Where the sources are to be seen, from pyproject.toml; None while it names no such place."""
    found = re.search(r'^Repository = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].removesuffix(".git").rstrip("/") if found else None


def on_config(config):
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "conv_ext" / "_version.py").read_text(encoding="utf-8"))
    config.copyright = f"conv_ext {version[1]}, MIT licence"
    docs = Path(config.docs_dir)
    config.nav = expanded(config.nav, docs, set(pages(config.nav)))
    config.watch += [str(ROOT / name) for name in (*BESIDE, "conv_ext")]
    return config


def pages(nav) -> list[str]:
    """Every page that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages(entry)]


def expanded(nav, docs: Path, named: set[str]):
    """The navigation with the pages of FOLDER in the place of "FOLDER/*", but for those that stand elsewhere in it."""
    if isinstance(nav, dict):
        return {title: expanded(entry, docs, named) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/*"):
            files = [path for path in (docs / entry[:-2]).glob("*") if path.suffix in (".md", ".ipynb")]
            found = sorted(path.relative_to(docs).with_suffix(".md").as_posix() for path in files)
            entries += [page for page in found if page not in named]
        else:
            entries.append(expanded(entry, docs, named))
    return entries


def on_files(files, config):
    for name, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted(Path(config.docs_dir).rglob("*.ipynb")):
        page = path.relative_to(config.docs_dir).with_suffix(".md").as_posix()
        text, pictures = notebook(json.loads(path.read_text(encoding="utf-8")), path.stem)
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{posixpath.dirname(page)}/{name}", content=content))
    return files


def notebook(told: dict, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as it was executed, in Markdown, and its pictures by name: text, code, and what came of it."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in told["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        if source.strip():
            parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            picture = next((kind for kind in ("image/png", "image/gif") if kind in data), None)
            text = "".join(output.get("text") or data.get("text/plain") or output.get("traceback") or "")
            if picture:
                name = f"{stem}_{len(pictures)}.{picture.rpartition('/')[2]}"
                pictures[name] = base64.b64decode("".join(data[picture]))
                parts.append(f"![what the code above draws]({name})")
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts), pictures


def on_page_markdown(markdown, page, config, files):
    """Links as they are in the checkout become those of the site, everywhere but in blocks of code.

    A page that stands alone in its tab has no list of pages at its side, and more room for tables and code.
    """
    if page.parent is None:
        page.meta.setdefault("hide", []).append("navigation")
    beside = {page: name for name, page in BESIDE.items()}
    source = beside.get(page.file.src_uri) or f"docs/{page.file.src_uri}"
    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [relinked(markdown[end : block.start()], source), block[0]]
        end = block.end()
    return "".join(parts) + relinked(markdown[end:], source)


def relinked(text: str, source: str) -> str:
    """The links of a part of `source`, a file of the checkout.

    To a page of the site: as the site has it, and with its title where the words are the name of the file. To another
    file or folder: to the repository, or, while there is no place for it, the words alone. To nothing that is there:
    left as it is, for mkdocs to complain of.
    """
    here = BESIDE.get(source, source.removeprefix("docs/"))
    folder_of_here = posixpath.dirname(here) or "."

    def link(found: re.Match) -> str:
        picture, words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = BESIDE.get(wanted) or page_of(wanted)
        if page:
            words = title_of(wanted) if words == path else words
            return f"{picture}[{words}]({posixpath.relpath(page, folder_of_here)}{hash_}{anchor})"
        if not (ROOT / wanted).exists():
            return found[0]
        return f"[{words}]({repository()}/blob/main/{wanted}{hash_}{anchor})" if repository() else words

    return LINK.sub(link, text)


def title_of(name: str) -> str:
    """The first heading of a page that is written in Markdown, else the name of its file."""
    path = ROOT / name
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.suffix == ".md" else None
    return found[1] if found else name


def page_of(name: str) -> str | None:
    """What the site has of a file or a folder of the checkout: a page, a picture; None: nothing."""
    path, page = ROOT / name, name.removeprefix("docs/")
    if page == name or path.suffix == ".py":
        return None
    if path.suffix == ".ipynb":
        return page.replace(".ipynb", ".md")
    if path.is_dir():
        return f"{page}/index.md" if (path / "index.md").is_file() else None
    return page if path.is_file() else None
