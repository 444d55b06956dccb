"""The JSON that commands print with ``--json``: one object, whose "format" and "version" say what follows.

``docs/schema.json`` has the form of each. Addresses and registers are hexadecimal strings, as readers of JSON lose bits
of larger numbers; null is "not known".
"""

from typing import Any

from vmcore2core.printable import to_json

VERSION = 1


def print_document(form: str, **parts: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print a document on stdout.

    Args:
        form: what it is, such as "vmcore-tasks-ps".
        parts: what follows.
    """
    print(to_json({"format": form, "version": VERSION, **parts}, indent=1))


def hexadecimal(number: int | None) -> str | None:
    """Return an address, offset or register in JSON's form."""
    return None if number is None else f"{number:#x}"
