"""``@override`` marks a method that replaces one of its base class.

mypy rejects a marked method that replaces nothing, such as a misspelt one, and (explicit-override) an unmarked method
that replaces one. ``typing.override`` needs Python 3.12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import override as override  # type checkers bring it along
else:

    def override(method: object) -> object:
        """Return the method unchanged: the mark is for type checkers only."""
        return method
