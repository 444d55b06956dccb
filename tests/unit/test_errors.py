"""The tree of exceptions is in one module, and its docstring shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from vmcore2core import errors

PACKAGE = Path(errors.__file__).parent
CAUGHT = {"PagesChanged", "_PagesDamaged", "NotKnown", "Interrupted", "TimeUp"}
"""What one function raises for another of the package, and no user ever sees as an error."""


def test_the_docstring_shows_the_tree() -> None:
    shown: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in re.findall(r"^    (.*)", (errors.__doc__ or "").partition("::")[2], re.M):
        at, name = re.search(r"[A-Z]\w+", line).span()[0], re.search(r"[A-Z]\w+", line)[0]  # type: ignore[union-attr,index]
        path = [*(entry for entry in path if entry[0] < at), (at, name)]
        shown[name] = path[-2][1] if len(path) > 1 else "Exception"
    real = {name: kind.__mro__[1].__name__ for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert shown == real


def test_no_other_module_has_exceptions_for_users() -> None:
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "errors.py" else ():
            bases = (
                {base.id for base in node.bases if isinstance(base, ast.Name)}
                if isinstance(node, ast.ClassDef)
                else set()
            )
            if bases & (ours | {"Exception", "BaseException"}) or any(base.endswith("Error") for base in bases):
                found.add(node.name)  # type: ignore[attr-defined]
    assert found == CAUGHT
