"""Plants small bugs in a copy of the tree and tells which of them no test notices: ``python -m tests.mutate``.

usage: python -m tests.mutate [--count N] [--seed S] [PACKAGE...]

A bug is another operator, another number, a condition turned round, a member of a set left out; one in each run. The
nearest tests go first (those of the file's name, then ``tests/PACKAGE``), those of the whole pipeline follow.
What survives is printed with file and line; tests/MUTANTS.md says why a survivor is none. Not for CI: a bug takes some
ten seconds.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("arch", "memory", "process", "corefile")
PIPELINE = ["tests/e2e/test_incomplete.py", "tests/e2e/test_states.py", "tests/e2e/test_fixtures.py"]
SECONDS_MAX = 600

Operators = dict[type[ast.AST], type[ast.AST]]
OTHER: Operators = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        path: of the file, from the root.
        line: of the code that is changed.
        start, end: bytes of the file that are replaced.
        before, after: what stands there, and what will.
    """

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield every bug that this script can plant in a file."""
    source = path.read_bytes()
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    tree = ast.parse(source)
    # Types and messages change nothing that a test should see.
    skipped = {id(inner) for node in ast.walk(tree) for part in _silent(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for other in _changed(node):
            assert isinstance(node, ast.expr)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            after = f"({ast.unparse(other)})"
            name = path.relative_to(ROOT).as_posix()
            yield Mutant(name, node.lineno, start, end, ast.unparse(node), after)


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.AnnAssign(annotation=annotation):
            yield annotation
        case ast.FunctionDef(args=arguments, returns=returns):
            yield from (a.annotation for a in arguments.args + arguments.kwonlyargs if a.annotation is not None)
            yield from [returns] if returns is not None else []
        case ast.JoinedStr() | ast.Raise() | ast.Subscript(value=ast.Name(id="Callable" | "dict" | "list" | "tuple")):
            yield node
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OTHER:
            yield ast.Compare(node.left, [OTHER[type(operator)]()], node.comparators)  # type: ignore[list-item]
        case ast.BinOp(op=operator) if type(operator) in OTHER:
            yield ast.BinOp(node.left, OTHER[type(operator)](), node.right)  # type: ignore[arg-type]
        case ast.BoolOp(op=operator):
            yield ast.BoolOp(OTHER[type(operator)](), node.values)  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Set(elts=[first, *others]) if others:
            yield ast.Set(others)
            yield ast.Set([first])


def tests_of(path: str) -> list[str]:
    """Return the tests nearest to a file, nearest first."""
    folder = Path("tests").joinpath(*Path(path).parts[1:-1])
    near = sorted(p.as_posix() for p in (ROOT / folder).glob(f"test_{Path(path).stem}*.py"))
    return [Path(p).relative_to(ROOT).as_posix() for p in near]


def survives(mutant: Mutant, tree: Path) -> bool:
    """Tell whether every test passes with this bug in the copy of the tree."""
    path = tree / mutant.path
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    try:
        steps = [tests_of(mutant.path), [f"tests/{Path(mutant.path).parts[1]}"], PIPELINE]
        return all(_pass(step, tree) for step in steps if step)
    finally:
        path.write_bytes(source)


def _pass(tests: list[str], tree: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not corpus", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        return False  # a loop without an end is noticed
    return done.returncode == 0


def main() -> None:
    """Plant, test, and print."""
    parser = argparse.ArgumentParser(description="Plants small bugs and tells which of them no test notices.")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    options = parser.parse_args()
    paths = [path for package in options.packages for path in sorted((ROOT / "vmcore2core" / package).rglob("*.py"))]
    every = [mutant for path in paths for mutant in mutants(path)]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for tests in (*([f"tests/{package}"] for package in options.packages), PIPELINE):
            if not _pass(tests, tree):
                sys.exit(f"{' '.join(tests)} fail as they are")
        for mutant in chosen:
            alive = survives(mutant, tree)
            survivors += alive
            print("SURVIVES" if alive else "killed  ", mutant, flush=True)
    print(f"{len(chosen)} of {len(every)} bugs were planted, {survivors} survive")


if __name__ == "__main__":
    main()
