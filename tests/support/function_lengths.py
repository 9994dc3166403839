"""How long functions are, in lines: Python by its syntax tree, C++ and CUDA by their braces.

A function is counted from its first line to its last, a Python one without its docstring. What is within a function
(a lambda, a nested function) counts as a part of it, and in Python also by itself.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple


class Function(NamedTuple):
    name: str
    line: int
    length: int


def of_file(path: Path) -> list[Function]:
    """Every function of a source file, in the order of their ends."""
    text = path.read_text(encoding="utf-8")
    return of_python(text) if path.suffix == ".py" else of_cpp(text)


def of_python(text: str) -> list[Function]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            found.append(Function(node.name, node.lineno, length))
    return found


# Comments, raw strings, strings and characters (but not the ' within 1'000), and preprocessor lines with what they go
# on in. The first alternative that fits counts, so that what looks like one of them within another does not.
_NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/"
    r'|R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"
    r"|^[ \t]*\#(?:\\\n|[^\n])*",
    re.DOTALL | re.MULTILINE,
)


def _only_code(text: str) -> str:
    """The text with everything blank that is no code; each line stays the same line."""
    return _NO_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _without_template(head: str) -> str:
    """What stands before a brace, without `template <...>` in front."""
    match = re.match(r"\s*template\s*<", head)
    if match is None:
        return head
    depth, i = 1, match.end()
    while i < len(head) and depth:
        depth += {"<": 1, ">": -1}.get(head[i], 0)
        i += 1
    return _without_template(head[i:])


_ATTRIBUTES = {"__attribute__", "__launch_bounds__", "alignas", "decltype", "explicit", "noexcept"}


def _opens_function(head: str) -> str | None:
    """The name of the function whose body a brace opens behind `head`; None for a scope or a value."""
    head = _without_template(re.sub(r"^\s*(?:(?:public|private|protected)\s*:\s*)+", "", head)).strip()
    if "(" not in head or re.match(r"(typedef\s+)?(struct|class|union|enum|namespace)\b", head):
        return None
    assigned = re.search(r"(?<![=!<>])=(?!=)", re.sub(r"operator\s*[^\s\w(]*|\([^()]*\)", "", head))
    if assigned and "[" not in head[assigned.start() :]:  # a value in braces, and no lambda
        return None
    previous = ""
    while previous != head:  # what is in parentheses becomes @: C++ has no other use for that
        previous, head = head, re.sub(r"\([^()]*\)", lambda match: "@" * len(match[0]), head)
    before_initialisers = re.split(r"(?<!:):(?!:)", head)[0]
    names = re.findall(r"(operator\s*[^\s\w@]+|operator\s*@@|~?\w+)\s*(?:<[^@]*>\s*)?(?=@)", before_initialisers)
    names = [name for name in names if name not in _ATTRIBUTES]
    named = [name for name in names if not name.isupper()] or names  # a macro in capitals is an attribute, too
    return named[0].replace("@@", "()") if named else "lambda"


_MEMBER = re.compile(r"\)\s*(noexcept\s*)?:(?!:)[^;]*[\w>]\s*\Z")  # S(int a) : a_ {a}, b_ {a}: the braces of a member
_OF_MEMBER = -1


def of_cpp(text: str) -> list[Function]:
    code = _only_code(text)
    found = []
    scopes: list[tuple[str | None, int]] = []  # of each open brace: the function that it is the body of, its first line
    within = 0  # open braces of functions, and of values
    parentheses, begin, line = 0, 0, 1
    for i, character in enumerate(code):
        line += character == "\n"
        if character in "()":
            parentheses += 1 if character == "(" else -1
        elif character == "{":
            if within or parentheses:
                within += 1
                scopes.append((None, 0))
                continue
            head = code[begin:i]
            if _MEMBER.search(head):
                parentheses += 1
                scopes.append((None, _OF_MEMBER))
                continue
            name = _opens_function(head)
            first = line - head.lstrip().count("\n")
            scopes.append((name, first))
            is_scope = name is None and not re.search(r"=\s*$", head)
            within += 0 if is_scope else 1
            begin = i + 1
        elif character == "}" and scopes:
            name, first = scopes.pop()
            if first == _OF_MEMBER:
                parentheses -= 1
                continue
            if name is not None:
                found.append(Function(name, first, line - first + 1))
            within = max(0, within - 1)
            if not within and not parentheses:
                begin = i + 1
        elif character == ";" and not within and not parentheses:
            begin = i + 1
    return found
