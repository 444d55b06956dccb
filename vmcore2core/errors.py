"""All exceptions of vmcore2core; a message is one sentence: what, where in hex, what was expected.

::

    Vmcore2coreError
     +- UsageError              the request itself makes no sense (exit status 2)
     +- DumpError               the file is not a dump that can be used
     |   +- FormatError         a field of a known format has an impossible value
     |   +- UnknownFormat       no container claims the file
     |   +- CodecError          a compressed page does not decode
     |   +- ServerFailed        the server of a URL does not give the file
     +- MemoryFault             an address cannot be read from the dump
     |   +- PageMissing         the page is not in the dump: no RAM there, or the file is cut off
     |   +- PageExcluded        the page was filtered out when the dump was written
     |   +- NotMapped           the page tables do not map the address
     +- LayoutError             offsets, sizes and symbols of this kernel
     |   +- LayoutUnknown       no source knows one
     |   +- LayoutInvalid       a source's answer does not fit what is in memory
     |       +- SuppliedInvalid the user's text is of another kernel, and the dump's own fits
     +- CorruptStructure        a kernel structure in the dump is broken
     +- TaskError               the process cannot be converted
     |   +- TaskNotFound        no such PID
     |   +- KernelThread        it never had user memory
     |   +- NoUserMemory        it has exited (a zombie): its memory is gone
     +- OutputError             the core cannot be written
     |   +- OutputExists        something is there already, and ``--force`` was not given
     +- DebuggerError           the debugger is not there, or cannot be started
     +- WorkersError            workers elsewhere cannot be used
"""

from __future__ import annotations


class Vmcore2coreError(Exception):
    """Base of all errors that end in one sentence on stderr and exit status 1."""


class UsageError(Vmcore2coreError):
    """The arguments make no sense together."""


class DumpError(Vmcore2coreError):
    """The file is not a dump that can be used."""


class FormatError(DumpError):
    """A field of a known format has an impossible value.

    Args:
        what: the field with its value, such as "diskdump header_version 9".
        offset: where it stands in the file, in bytes.
        expected: what a good file has there.
    """

    def __init__(self, what: str, offset: int, expected: str) -> None:
        super().__init__(f"{what} at file offset {offset:#x}, expected {expected}")
        self.what = what
        self.offset = offset
        self.expected = expected


class UnknownFormat(DumpError):
    """No container claims the file."""


class CodecError(DumpError):
    """Compressed data, of a page or a section, does not decode as it must."""


class ServerFailed(DumpError):
    """The server of a URL does not give the file, or has another version of it now."""


class MemoryFault(Vmcore2coreError):
    """An address cannot be read from the dump.

    Args:
        address: the address, in the address space that was read.
        detail: what is wrong, more closely than the class says.
        where: C type, member and offset if a structure was read, such as "task_struct.mm, offset 0x390".
    """

    reason = "cannot be read"

    def __init__(self, address: int, detail: str = "", where: str = "") -> None:
        place = f" ({where})" if where else ""
        super().__init__(f"address {address:#x}{place} {self.reason}{': ' + detail if detail else ''}")
        self.address = address
        self.detail = detail
        self.where = where

    def reading(self, where: str) -> MemoryFault:
        """Return the same fault with what was read, unless it already says so."""
        return self if self.where else type(self)(self.address, self.detail, where)


class PageMissing(MemoryFault):
    """The page is not in the dump: no RAM there, or the file is cut off."""

    reason = "is not in the dump"


class PageExcluded(MemoryFault):
    """The page was filtered out when the dump was written (makedumpfile -d)."""

    reason = "was excluded when the dump was written"


class NotMapped(MemoryFault):
    """The page tables do not map the address."""

    reason = "is not mapped"


class LayoutError(Vmcore2coreError):
    """The layout of this kernel is unknown or does not fit."""


class LayoutUnknown(LayoutError):
    """No layout source knows the item.

    Args:
        item: such as "OFFSET(task_struct.mm)", in VMCOREINFO's grammar; several with commas between.
        sources: names of the sources that were asked.
        because: why it is not known ("this kernel has no BTF"), if there is a reason to give.
    """

    def __init__(self, item: str, sources: tuple[str, ...] = (), because: str = "") -> None:
        asked = f" (asked: {', '.join(sources)})" if sources else ""
        tell = "such lines in a file with --vmcoreinfo"
        if not any(source.startswith("vmlinux") for source in sources):
            tell = f"its vmlinux with --vmlinux, or {tell}"
        lead, verb = f"{because}: " if because else "", "are" if ", " in item else "is"
        super().__init__(f"{lead}{item} of this kernel {verb} not known{asked}; give {tell}")
        self.item = item


class LayoutInvalid(LayoutError):
    """A source's answer does not fit what is in memory."""


class SuppliedInvalid(LayoutInvalid):
    """The user's VMCOREINFO text is from another kernel; the dump's own text fits."""


class CorruptStructure(Vmcore2coreError):
    """A kernel structure in the dump is broken.

    Args:
        what: what is wrong, such as "list does not come back to its head".
        address: kernel virtual address of the structure.
        where: C type and member, such as "task_struct.tasks".
        offset: offset of the member in its structure, in bytes.
        source: layout source that gave the offset.
    """

    def __init__(self, what: str, address: int, where: str, offset: int | None = None, source: str = "") -> None:
        told = "" if offset is None else f" (offset {offset:#x}{', from ' + source if source else ''})"
        super().__init__(f"{where} at {address:#x}: {what}{told}")
        self.what = what
        self.address = address
        self.where = where
        self.offset = offset
        self.source = source


class TaskError(Vmcore2coreError):
    """The process cannot be converted."""

    def __init__(self, pid: int, message: str) -> None:
        super().__init__(message)
        self.pid = pid


class TaskNotFound(TaskError):
    """No task has this PID."""


class KernelThread(TaskError):
    """A kernel thread has no user memory."""


class NoUserMemory(TaskError):
    """The process has exited (a zombie): its memory is gone."""


class OutputError(Vmcore2coreError):
    """The core cannot be written."""


class OutputExists(OutputError):
    """The file exists already, and ``--force`` was not given."""


class DebuggerError(Vmcore2coreError):
    """The debugger is not there, or cannot be started."""


class WorkersError(Vmcore2coreError):
    """Workers elsewhere cannot be used."""


def package_missing(error: ImportError) -> str:
    """Return the end of a sentence about a required Python package that is not installed."""
    name = (error.name or str(error)).partition(".")[0]
    return f"the Python package {name} is not installed: pip install {name}"


def sentence_of(error: BaseException) -> str:
    """Return the message for an exception; one outside this tree comes from the system, or from a bug of ours."""
    if isinstance(error, Vmcore2coreError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else "the system refuses: "
        return where + (error.strerror or str(error))
    return f"this is a fault of vmcore2core: {type(error).__name__}: {error}; --debug shows where"
