"""An extension of griffe: docstrings, which help() shows as they stand, as Markdown.

A block after "::" is code. "Args:" and the like, with indented lines below, become a heading and a list with an item
for each argument. A name of the public interface in backticks becomes a link to its own entry.
"""

from __future__ import annotations

import re

import griffe

SECTION = re.compile(r"^(?P<title>\w+):\n(?P<body>(?: {4}.*\n|\n(?= {4}))+)", re.MULTILINE)
PLACES = ("conv_ext", "conv_ext.models", "conv_ext.visualize")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of everything in conv_ext once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        rewrite(pkg, public_names(pkg))


def public_names(pkg: griffe.Module) -> dict[str, str]:
    """Where the entry of each public name is, with the name of its module in front of it and without.

    A name that its module has, too (conv_ext.convert), is found as conv_ext.convert.convert alone.
    """
    names = {f"conv_ext.inductor.{name}": f"conv_ext.inductor.{name}" for name in ("fusing", "FusePass")}
    for place in reversed(PLACES):  # what conv_ext itself has goes first
        module = pkg[place.partition(".")[2]] if "." in place else pkg
        for name in map(str, module.exports or ()):
            member = module.members.get(name)
            if member is not None and member.is_module:
                if name not in member.members:
                    continue
                names[name] = names[f"{place}.{name}"] = f"{place}.{name}.{name}"
            else:
                names[name] = names[f"{place}.{name}"] = f"{place}.{name}"
    return names


def rewrite(found: griffe.Object, names: dict[str, str]) -> None:
    if found.docstring:
        found.docstring.value = markdown(found.docstring.value, names, found.name)
    for member in found.members.values():
        if not member.is_alias:
            rewrite(member, names)


def markdown(text: str, names: dict[str, str], own: str) -> str:
    """The docstring of `own` as Markdown."""

    def link(found: re.Match) -> str:
        target = names.get(found[1].removesuffix("()"))
        return f"[`{found[1]}`][{target}]" if target and found[1] != own else found[0]

    def linked(line: str) -> str:
        return re.sub(r"(?<![`[])`([\w.]+(?:\(\))?)`(?!`)", link, line)

    # What follows "::" is indented: code in Markdown, too.
    text = re.sub(r"(?m)(?<=\w)::$", ":", re.sub(r"(?m) ?(?<!\w)::$", "", f"{text}\n"))
    text = SECTION.sub(lambda section: f"\n**{section['title']}**\n\n{linked(items(section['body']))}\n", text)
    # "Shapes: …", "Errors: …": a line of its own behind a full stop, a paragraph here.
    text = re.sub(r"(?<=\.)\n(?=(?:[A-Z][a-z]+|[a-z]\w*(?:, [a-z]\w*)*): )", "\n\n", text)
    return "\n".join(line if line.startswith("    ") else linked(line) for line in text.splitlines())


def items(body: str) -> str:
    """The lines of a section: an item begins in column 4 or behind a full stop, with its names or without."""
    body = re.sub(r"(?<=\.) (?=(?:\w+Error|\w+Warning|[a-z]\w*): )", "\n    ", body)
    found: list[str] = []
    for line in body.splitlines():
        names = re.match(r" {4}([\w*\"]+(?:, [\w*\"]+)*): ?", line)
        if names or re.match(r" {4}\S", line) and (not found or found[-1].endswith(".")):
            found.append(f"`{names[1]}`: {line[names.end() :].strip()}" if names else line.strip())
        elif line.strip():
            found[-1] += f"\n    {line.strip()}"
    return "\n".join(f"- {item}" for item in found) if len(found) > 1 else "\n".join(found)
