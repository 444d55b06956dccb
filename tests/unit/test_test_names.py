"""Each module's tests are found by its name, or by a line "Tests folder/module.py." in a test module's docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, TESTS = ROOT / "vmcore2core", ROOT / "tests"
NO_TEST = {
    "addresses.py": "types alone",
    "interfaces.py": "types alone",
    "overrides.py": "typing.override where Python lacks it",
}


def modules() -> set[str]:
    """Return all modules, as paths in the package; those of a format are there as well."""
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE / "formats").glob("*.py")]  # a symbolic link
    return {path.relative_to(PACKAGE).as_posix() for path in paths if path.name != "__init__.py"}


def by_name(module: str) -> list[Path]:
    """Return where a module's tests are if its name tells.

    A machine's registers, notes and capabilities are parts of its machine.py. A format is tested where it is read.
    """
    folder, name = (TESTS / module).parent, Path(module).stem
    if module.startswith("formats/"):
        return [*TESTS.glob(f"*/test_{name}.py"), *TESTS.glob(f"arch/{name}/test_*.py")]
    if re.match(r"arch/\w+/\w+\.py", module):
        return [folder / f"test_{name}.py", folder / "test_machine.py"]
    if module.startswith("commands/tasks/"):
        return [TESTS / "commands" / f"test_{name}.py"]
    return [(TESTS / "unit" if folder == TESTS else folder) / f"test_{name}.py"]


def named() -> list[str]:
    """Return what the docstrings of all test modules name, once for each time."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        for part in re.findall(r"^Tests ([\w/.,\s]+)\.$", text, re.MULTILINE):
            found += re.split(r",\s+", part)
    return found


def test_each_modules_tests_are_found() -> None:
    where = set(named())
    missing = {module for module in modules() if not any(path.exists() for path in by_name(module))} - where
    assert missing == NO_TEST.keys()


def test_what_is_named_exists_and_is_named_once() -> None:
    found = named()
    assert set(found) <= modules()
    assert len(found) == len(set(found))
