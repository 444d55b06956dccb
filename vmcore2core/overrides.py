"""``@override`` marks a method that replaces one of its base class.

mypy refuses a marked method that replaces none, such as one with a misspelt name, and (explicit-override) a method that
replaces one and is not marked. ``typing.override`` exists since Python 3.12 only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import override as override  # type checkers bring it along
else:

    def override(method: object) -> object:
        """Return the method: at run time there is nothing to do."""
        return method
