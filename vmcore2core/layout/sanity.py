"""Checks that a layout fits the memory, on the first task, before anything else is read with it.

If an offset does not fit, its source is not asked for it any more, and the next source's offset is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vmcore2core.errors import LayoutInvalid, MemoryFault, NotMapped, PageExcluded, PageMissing
from vmcore2core.interfaces import ByteOrder, Member, Memory
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfo

PF_KTHREAD = 0x0020_0000
STACK_ALIGN = 4096
ATTEMPTS_MAX = 64
COMM_SIZE = 16
MEMBERS = ("comm", "pid", "tgid", "flags", "mm", "tasks", "stack", "signal")
"""Members of task_struct that are checked."""

Mismatch = tuple[tuple[str, str], str]
"""(struct, member), and what is wrong with its value."""


def check_init_task(memory: Memory, layout: KernelLayout, word: int, order: ByteOrder) -> list[str]:
    """Check that the first task is "swapper", as in init/init_task.c; return sentences on offsets that were replaced.

    Args:
        memory: kernel virtual memory.
        layout: all sources.
        word: bytes of a pointer.
        order: of the kernel.

    Raises:
        LayoutUnknown: init_task or its members are not known.
        LayoutInvalid: they do not fit, and no other source knows them.
    """
    task = FirstTask(memory, layout, word, order)
    sentences = replace_wrong_offsets(layout, lambda: next(task.mismatches(), None))
    if task.unread:
        members = ", ".join(dict.fromkeys(task.unread))
        sentences.append(f"a page of init_task at {task.address:#x} is not in the dump: its {members} are not checked")
    return sentences


def check_exported_abi(vmcoreinfo: VmcoreInfo, abi: Mapping[str, int]) -> list[str]:
    """Return a sentence for each key of the export that contradicts the ABI of user space.

    Programs and processors rely on the form of signal frames and page-table entries. If a kernel says otherwise, the
    tables of the architecture were made from another one.

    Args:
        vmcoreinfo: of the dump.
        abi: ``Arch.exported_abi``.
    """
    return [
        f"VMCOREINFO says {key}={told}, expected {value}: stacks may end at signal frames, and pages may be missing"
        for key, value in abi.items()
        if (told := vmcoreinfo.string(key)) is not None and told != str(value)
    ]


def replace_wrong_offsets(layout: KernelLayout, mismatch: Callable[[], Mismatch | None]) -> list[str]:
    """Replace offsets that do not fit by the next source's until all fit; return a sentence for each.

    Raises:
        LayoutInvalid: no other source knows a member that does not fit.
    """
    sentences: list[str] = []
    for _ in range(ATTEMPTS_MAX):
        found = mismatch()
        if found is None:
            return sentences
        (struct, name), wrong = found
        before = layout.member(struct, name)
        said = f"{wrong} ({struct}.{name} at offset {before.offset:#x} is from {before.source})"
        if not layout.distrust(struct, name):
            raise LayoutInvalid("; ".join([*sentences, said]))
        after = layout.member(struct, name)
        sentences.append(f"{said}: {after.offset:#x} from {after.source} is taken instead")
    raise LayoutInvalid(sentences[-1])


class FirstTask:
    """init_task, read with the present layout.

    If a page of it is not in the dump, that is no evidence against an offset.

    Attributes:
        unread: members on such a page.
    """

    def __init__(self, memory: Memory, layout: KernelLayout, word: int, order: ByteOrder) -> None:
        self.memory, self.layout, self.word, self.order = memory, layout, word, order
        self.address = layout.symbol("init_task")
        self.unread: list[str] = []

    def mismatches(self) -> Iterator[Mismatch]:
        """Yield what does not fit."""
        where = f"init_task at {self.address:#x}"
        comm = self._read("comm", COMM_SIZE)
        if isinstance(comm, str):
            raise LayoutInvalid(f"{where} cannot be read: {comm}")
        if comm is not None and not comm.startswith(b"swapper"):
            shown = repr(comm.split(b"\0", 1)[0])
            yield ("task_struct", "comm"), f"{where} says comm {shown}, expected 'swapper'"
        for name in ("pid", "tgid"):
            number = self._uint(name, 4)
            if number:
                yield ("task_struct", name), f"{where} says {name} {number}, expected 0"
        flags = self._uint("flags", 4)
        if isinstance(flags, str) or (flags is not None and not flags & PF_KTHREAD):
            shown = flags if isinstance(flags, str) else f"{flags:#x}"
            yield ("task_struct", "flags"), f"{where} says flags {shown}, expected PF_KTHREAD among them"
        mm = self._uint("mm", self.word)
        if mm:
            yield ("task_struct", "mm"), f"{where} says mm {mm if isinstance(mm, str) else hex(mm)}, expected none"
        yield from self._list(where)
        yield from self._pointers(where)
        if {*MEMBERS} <= {*self.unread}:
            raise LayoutInvalid(f"{where} cannot be read: its pages are not in the dump")

    def _list(self, where: str) -> Iterator[Mismatch]:
        """Check that one neighbour points back: if the list is torn at its head, the other one still does."""
        head = self.address + self._member("tasks").offset
        first, last = self._uint("tasks", self.word), self._word_at(head + self.word)
        if first is None:
            return
        if isinstance(first, str) or isinstance(last, str):
            yield (
                ("task_struct", "tasks"),
                f"{where}: tasks cannot be read: {first if isinstance(first, str) else last}",
            )
            return
        back = self._word_at(first + self.word)
        if back != head and self._word_at(last) != head:
            shown = back if isinstance(back, str) else f"whose prev is {back:#x}"
            yield ("task_struct", "tasks"), f"{where}: tasks at {head:#x} leads to {first:#x}, {shown}"

    def _pointers(self, where: str) -> Iterator[Mismatch]:
        """Check the first task's pointers; memory that is not in the dump is no evidence against an offset."""
        for name, align in (("stack", STACK_ALIGN), ("signal", self.word)):
            value = self._uint(name, self.word)
            wrong = value if isinstance(value, str) else None
            if isinstance(value, int):
                wrong = (
                    f"{value:#x}, expected a multiple of {align:#x}"
                    if value % align or not value
                    else self._fault(value)
                )
            if wrong is not None:
                yield ("task_struct", name), f"{where} says {name} {wrong}"

    def _member(self, name: str) -> Member:
        return self.layout.member("task_struct", name)

    def _read(self, name: str, size: int) -> bytes | str | None:
        try:
            return self.memory.read(self.address + self._member(name).offset, size)
        except (PageExcluded, PageMissing):
            self.unread.append(name)
            return None
        except MemoryFault as fault:
            return str(fault)

    def _uint(self, name: str, size: int) -> int | str | None:
        raw = self._read(name, size)
        return int.from_bytes(raw, self.order) if isinstance(raw, bytes) else raw

    def _word_at(self, address: int) -> int | str:
        try:
            return int.from_bytes(self.memory.read(address, self.word), self.order)
        except MemoryFault as fault:
            return str(fault)

    def _fault(self, address: int) -> str | None:
        try:
            self.memory.read(address, self.word)
        except NotMapped as fault:
            return str(fault)
        except MemoryFault:
            pass
        return None
