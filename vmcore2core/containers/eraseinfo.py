"""What makedumpfile --config erased, as the dump tells: text such as "erase jiffies size 8", a line for each command.

The text names expressions, not addresses. It does not mention what an eppic macro erased.

References: makedumpfile's erase_info.c, update_filter_info(), update_filter_info_raw(), filter_data_buffer();
makedumpfile.conf(5) (1.7.9).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.elf.notes import Note
from vmcore2core.formats.diskdump import ERASEINFO_NOTE_NAME

NAMED_MAX = 8
"""Expressions that the sentence names; the others are counted."""

NAME_MAX = 80

ERASEINFO_SIZE_MAX = 1 << 20
"""Bytes of the text that are read; configuration files have some lines."""


def erased(text: bytes) -> str:
    """Return a sentence on which kernel memory was changed.

    Args:
        text: as the dump has it, at most ``ERASEINFO_SIZE_MAX`` bytes.
    """
    what = list(_expressions(text))
    named = ", ".join(what[:NAMED_MAX]) or "the dump does not tell what"
    more = f" and {len(what) - NAMED_MAX} more" if len(what) > NAMED_MAX else ""
    return (
        f"makedumpfile --config erased kernel memory, which reads as X's (0x58) or as NULL pointers where it was: "
        f"{named}{more}"
    )


def erased_notes(notes: tuple[Note, ...]) -> Iterator[str]:
    """Yield a sentence for each note of an ELF dump that has such a text."""
    for note in notes:
        if note.name == ERASEINFO_NOTE_NAME and note.desc:
            yield erased(note.desc[:ERASEINFO_SIZE_MAX])


def _expressions(text: bytes) -> Iterator[str]:
    """Yield what each command erased, without characters that control a terminal."""
    for line in text.split(b"\n"):
        words = line.split(b"\0", 1)[0].decode("ascii", "replace").split()
        if words[:1] == ["erase"]:
            words = words[1:]
        if words:
            expression = " ".join(words)
            yield "".join(c if c.isprintable() else "?" for c in expression[:NAME_MAX])
