"""The list of what is asked of the layout has all that the code asks, and nothing else.

A layout that is asked for another key fails in every test (``asking.py``). Here the source text is compared with the
list, as tests do not reach each kernel's own path: a name that code asks must be listed, and a listed name must stand
in code, a member in a file that names its structure.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest

from tests.builders.kernelimage import KernelImage
from tests.layout.asking import PACKAGE, listed
from vmcore2core.kernel import sched

OF_LAYOUT = {
    "find_member": "OFFSET",
    "member": "OFFSET",
    "find_size": "SIZE",
    "size": "SIZE",
    "find_symbol": "SYMBOL",
} | {
    "find_symbols": "SYMBOL",
    "symbol": "SYMBOL",
    "find_constant": "NUMBER",
}
"""Methods of a layout: what they ask for."""
OF_VIEW = {"has": 9, "addr_of": 9, "bytes_of": 1, "uint": 9, "find_uint": 1, "sint": 9, "ulong": 9, "pointer": 9} | {
    "follow": 1,
    "embedded": 1,
    "corrupt": 1,
}
"""Methods of a ``StructView``: how many of their arguments are members."""
NO_LAYOUT = {"containers", "elf", "corefile", "unwind", "memory"}
"""Folders that ask none; some have methods of the same names."""

MADE_ELSEWHERE = {"OFFSET(gendisk.private_data)"}
"""Members that one file asks of a view that another has made, and whose name another structure has, too."""


def sources() -> dict[str, str]:
    """The package's files, but those that ask for all of the list."""
    files = {
        str(path.relative_to(PACKAGE)): path.read_text()
        for path in (*PACKAGE.rglob("*.py"), *PACKAGE.glob("formats/*.py"))
    }
    whole = {"layout/asked.py", "layout/export.py"}
    return {name: text for name, text in files.items() if name not in whole and name.split("/")[0] not in NO_LAYOUT}


def literals(arguments: list[ast.expr]) -> list[str]:
    return [found.value for found in arguments if isinstance(found, ast.Constant) and isinstance(found.value, str)]


def questions(text: str) -> Iterator[str]:
    """Yield the keys that a file asks with literals; "OFFSET(.member)" where the structure does not stand there."""
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute):
            continue
        method, of_layout = call.func.attr, ast.unparse(call.func.value).endswith("layout")
        if method in OF_VIEW and not of_layout:
            yield from (f"OFFSET(.{name})" for name in literals(call.args[: OF_VIEW[method]]))
        elif of_layout and OF_LAYOUT.get(method) == "OFFSET" and len(call.args) > 1 and literals(call.args[:1]):
            yield from (f"OFFSET({call.args[0].value}.{name})" for name in literals(call.args[1:]))  # type: ignore[attr-defined]
        elif of_layout and OF_LAYOUT.get(method, "OFFSET") != "OFFSET":
            yield from (f"{OF_LAYOUT[method]}({name})" for name in literals(call.args))


def unlisted(text: str, keys: frozenset[str]) -> list[str]:
    """Return what a file asks and no list has."""
    members = {key.split(".", 1)[1] for key in keys if key.startswith("OFFSET(")}
    return [
        key for key in questions(text) if (key[8:] not in members if key.startswith("OFFSET(.") else key not in keys)
    ]


class _Asking(ast.NodeTransformer):
    """Drops the machines' own lists."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        return None if "layout_keys" in ast.unparse(node.targets[0]).lower() else node


def words_of(text: str) -> tuple[frozenset[str], list[re.Pattern[str]]]:
    """Return the words in a file's literals but docstrings, and patterns of its f-strings."""
    tree, words, patterns = _Asking().visit(ast.parse(text)), set[str](), set[str]()
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said | parts:
            words |= {node.value, *re.split(r"[^\w.]+", node.value), *re.split(r"\W+", node.value)}
        elif isinstance(node, ast.JoinedStr):
            fixed = (re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"[\w.]+" for p in node.values)
            patterns.add("".join(fixed))
    return frozenset(words), [re.compile(p) for p in patterns if re.search(r"\w\w", p.replace(r"[\w.]+", ""))]


class Code:
    """The literals of the package, by file."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.files = [words_of(text) for text in texts.values()]

    @cache  # noqa: B019 - one for all tests
    def where(self, name: str) -> frozenset[int]:
        """Return the files in which a name stands, also as a path whose parts stand there."""
        found = set()
        for at, (words, patterns) in enumerate(self.files):
            if name in words or all(
                part in words or any(p.fullmatch(part) or p.fullmatch(name) for p in patterns)
                for part in name.split(".")
            ):
                found.add(at)
        return frozenset(found)

    def unasked(self, keys: frozenset[str]) -> list[str]:
        """Return the keys that no code asks: members beside their structure, or of a name that no other has."""
        owners = defaultdict(set)
        for struct, member in (key[7:-1].split(".", 1) for key in keys if key.startswith("OFFSET(")):
            owners[member].add(struct)
        result = []
        for key in sorted(keys):
            kind, name = key[:-1].split("(", 1)
            if kind == "OFFSET":
                struct, member = name.split(".", 1)
                known = self.where(member) if len(owners[member]) == 1 else self.where(member) & self.where(struct)
            else:
                known = self.where(name)
            if not known:
                result.append(key)
        return result


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(sources())


def test_code_asks_only_what_is_listed() -> None:
    found = {(name, key) for name, text in sources().items() for key in unlisted(text, listed())}
    of_threads = {(name, key) for name, key in found if name.startswith("arch/") and key.startswith("OFFSET(.")}
    assert found - of_threads == set()  # arch/task.py puts "thread." before a name; asking.py sees the whole


def test_all_that_is_listed_is_asked(code: Code) -> None:
    assert set(code.unasked(listed())) == MADE_ELSEWHERE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('kernel.layout.find_member("task_struct", "pidd")', ["OFFSET(task_struct.pidd)"]),
        ('layout.member("mm_struct", "pgd", "dentry")', ["OFFSET(mm_struct.dentry)"]),
        ('self._layout.find_symbol("init_tsk")', ["SYMBOL(init_tsk)"]),
        (
            'layout.size("task_strukt") + layout.find_constant("PG_uptodat")',
            ["SIZE(task_strukt)", "NUMBER(PG_uptodat)"],
        ),
        ('task.pointer("sygnal")', ["OFFSET(.sygnal)"]),
        ('task.uint("__state", "stat", size=4)', ["OFFSET(.stat)"]),
        ('task.follow("mm", "mm_struct").find_uint("total_vm", 8)', []),
    ],
)
def test_a_planted_question_is_caught(text: str, found: list[str]) -> None:
    assert unlisted(text, listed()) == found


@pytest.mark.parametrize(
    "key",
    [
        *("OFFSET(task_struct.nonsense)", "OFFSET(qstr.mm)", "OFFSET(page.vm_start)"),
        *("SIZE(nonsense)", "SYMBOL(nonsense)", "NUMBER(PG_nonsense)"),
    ],
)
def test_a_planted_key_is_caught(code: Code, key: str) -> None:
    assert key in code.unasked(listed() | {key})


def test_a_layout_refuses_what_is_not_listed() -> None:
    """The package asks, by way of a view, what the list lacks; a test may ask anything."""
    view = KernelImage().kernel().view("task_struct", 0)
    assert not view.has("nonsense")
    with pytest.raises(AssertionError, match=r"kernel/sched.py asks OFFSET\(nonsense.pid\), which neither"):
        sched.task_pid(KernelImage().kernel().view("nonsense", 0))
