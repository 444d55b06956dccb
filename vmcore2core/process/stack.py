"""The data that the kernel put on the initial user stack: argc, argv, envp, the auxiliary vector.

Read where the layout does not know ``mm->saved_auxv`` or ``mm->arg_start``: above ``mm->start_stack`` the words stand
as the ABI says (fs/binfmt_elf.c: create_elf_tables()). Each word is checked; nothing is taken from a stack that does
not look right. A program may have changed the order of its arguments, as getopt() does, taken some away, or have moved
the environment's pointers down, as unsetenv() does.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmcore2core.arch.spec import CoreMachine
from vmcore2core.kernel.struct import StructView
from vmcore2core.memory.user import UserMemory

MAX_STRINGS = 1 << 16
MAX_AUXV = 128
PAGE = 4096
MAX_STRING_PAGES = 33  # MAX_ARG_STRLEN
AT_NULL, AT_PAGESZ, AT_SYSINFO_EHDR = 0, 6, 33
AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_ENTRY, AT_EXECFN = 3, 4, 5, 7, 9, 31
LOADERS_CHANGE = {AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_ENTRY, AT_EXECFN}


class InitialStack:
    """The initial stack of one process."""

    def __init__(self, mm: StructView, memory: UserMemory, machine: CoreMachine) -> None:
        self.mm, self.memory = mm, memory
        self.word = machine.elf_class // 8
        self.order = mm.kernel.arch.byte_order
        self._vectors: tuple[list[int], bytes, int] | None = None
        self._envp: list[int] = []
        self._read = False
        self._pages: dict[int, bytes | None] = {}

    def auxv(self) -> bytes | None:
        """Return the auxiliary vector, AT_NULL included, or None if the stack does not hold a plausible one."""
        vectors = self._parse()
        return vectors[1] if vectors else None

    def differs(self, saved: bytes) -> str | None:
        """Return a sentence if ``mm->saved_auxv`` has other values than the stack, or None.

        The kernel writes both at once. A program that loads another in its own place hands that one's values on:
        elf/rtld.c of glibc, run as a command; what UPX puts before a program.
        """
        on_stack = self.auxv()
        if on_stack is None:
            return None
        ours, theirs = self._pairs(saved), self._pairs(on_stack)
        another = all(ours.get(a_type) != theirs.get(a_type) for a_type in (AT_PHDR, AT_ENTRY))
        for a_type in sorted({*ours, *theirs} - (LOADERS_CHANGE if another else set())):
            if ours.get(a_type) != theirs.get(a_type):
                values = [f"{pairs[a_type]:#x}" if a_type in pairs else "none" for pairs in (ours, theirs)]
                what = f"type {a_type} is {values[0]}, expected {values[1]} as the initial stack has it"
                return str(self.mm.corrupt("saved_auxv", f"{what}, if not prctl(PR_SET_MM_AUXV) set it"))
        return None

    def misplaced(self, saved: bytes) -> Iterator[str]:
        """Yield sentences if arguments and environment are not where execve(2) put them.

        The strings of both and the name of the program, AT_EXECFN, adjoin (create_elf_tables()). A process may move
        its arguments to memory elsewhere with PR_SET_MM, as systemd does, and the pointers of argv are its own to
        change: what is there in place of them tells nothing.

        Args:
            saved: ``mm->saved_auxv``.
        """
        names = ("arg_start", "arg_end", "env_start", "env_end")
        arg_start, arg_end, env_start, env_end = (
            self.mm.find_uint(name, self.mm.kernel.arch.pointer_size) for name in names
        )
        vectors, execfn = self._parse(), self._pairs(saved).get(AT_EXECFN)
        if arg_start is None or arg_end is None or env_start is None or env_end is None or not vectors:
            return
        argv, _, bottom = vectors
        if execfn not in (None, env_end):
            yield str(self.mm.corrupt("env_end", f"{env_end:#x}, expected {execfn:#x} as saved_auxv has AT_EXECFN"))
            return
        moved = not bottom <= arg_start < env_end and not bottom <= arg_end < env_end
        if moved:
            return
        if arg_end != env_start:
            yield str(self.mm.corrupt("arg_end", f"{arg_end:#x}, expected {env_start:#x} as mm_struct.env_start is"))
        first = min((pointer for pointer in argv if bottom <= pointer < env_end), default=arg_start)
        if arg_start == first:
            return
        between = self.memory.read(arg_start, first - arg_start) if bottom <= arg_start < first else b""
        if between is not None and not any(between):  # else it is the name of an ld.so that was run as a command
            yield str(self.mm.corrupt("arg_start", f"{arg_start:#x}, expected {first:#x} as argv on the stack has it"))

    def program_name(self) -> int | None:
        """Return the stack's AT_EXECFN: where the program's name lies, behind the environment."""
        vectors = self._parse()
        return self._pairs(vectors[1]).get(AT_EXECFN) if vectors else None

    def strings_between(self, *more: int | None) -> Iterator[int]:
        """Yield addresses at which the strings of the environment may begin, as far as they are on the stack.

        Where neither the environment's pointers nor ``more`` tell, that is where the vectors end, before all strings.

        Args:
            more: other such addresses.
        """
        vectors = self._parse()
        if not vectors:
            return
        bottom = vectors[2]
        found = [at for at in (*self._envp, *more) if at is not None and at >= bottom]
        yield from found or [bottom]

    def _pairs(self, auxv: bytes) -> dict[int, int]:
        words = [int.from_bytes(auxv[at : at + self.word], self.order) for at in range(0, len(auxv), self.word)]
        return dict(zip(words[::2], words[1::2], strict=True))

    def vdso(self, auxv: bytes | None) -> int | None:
        """Return AT_SYSINFO_EHDR of an auxiliary vector: where the vDSO is."""
        if auxv is None:
            return None
        for at in range(0, len(auxv) - 2 * self.word + 1, 2 * self.word):
            if int.from_bytes(auxv[at : at + self.word], self.order) == AT_SYSINFO_EHDR:
                return int.from_bytes(auxv[at + self.word : at + 2 * self.word], self.order)
        return None

    def arguments(self, limit: int) -> bytes | None:
        """Return the command line's strings, each with its NUL, at most ``limit`` bytes.

        None if it cannot be read.
        """
        start, end = (self.mm.find_uint(name, self.mm.kernel.arch.pointer_size) for name in ("arg_start", "arg_end"))
        if start is None or end is None:
            start, end = self._argument_area()
        if start is None or end is None or not 0 < start <= end:
            return None
        return self.memory.read(start, min(end - start, limit))

    def _argument_area(self) -> tuple[int | None, int | None]:
        """Return where the argument strings begin and end, from argv's pointers."""
        vectors = self._parse()
        if not vectors or not vectors[0]:
            return None, None
        argv = vectors[0]
        first, at = min(argv), max(argv)
        if first < self.mm.ulong("start_stack"):
            return None, None  # the program removed an argument or replaced its string
        for _ in range(MAX_STRING_PAGES):
            tail = self.memory.read(at, -at % PAGE or PAGE)
            if tail is None:
                break
            if b"\0" in tail:
                return first, at + tail.index(b"\0") + 1
            at += len(tail)
        return None, None

    def _parse(self) -> tuple[list[int], bytes, int] | None:
        if not self._read:
            self._read = True
            self._vectors = self._parse_words()
        return self._vectors

    def _parse_words(self) -> tuple[list[int], bytes, int] | None:
        """Return argv's pointers, the auxiliary vector, and where it ends."""
        at = self.mm.find_uint("start_stack", self.mm.kernel.arch.pointer_size)
        argc = None if at is None else self._uint(at)
        if at is None or argc is None or argc > MAX_STRINGS:
            return None
        at += self.word
        argv = []
        for _ in range(argc):
            pointer = self._uint(at)
            if pointer is None:
                return None
            argv.append(pointer)
            at += self.word
        if self._uint(at) != 0:
            return None
        ended = False
        for _ in range(MAX_STRINGS):
            at += self.word
            word = self._uint(at)
            if word is None:
                return None
            if ended and word:  # the first a_type, which is not AT_NULL
                return self._auxv_at(argv, at)
            ended = not word
            self._envp += [word] if word else []
        return None

    def _auxv_at(self, argv: list[int], start: int) -> tuple[list[int], bytes, int] | None:
        page_size = self.mm.kernel.memory.kernel_map.spec.page_size
        pairs = b""
        right_page_size = False
        for i in range(MAX_AUXV):
            pair = self._bytes(start + i * 2 * self.word, 2 * self.word)
            if pair is None:
                return None
            pairs += pair
            a_type = int.from_bytes(pair[: self.word], self.order)
            a_val = int.from_bytes(pair[self.word :], self.order)
            right_page_size |= a_type == AT_PAGESZ and a_val == page_size
            if a_type == AT_NULL:
                return (argv, pairs, start + len(pairs)) if right_page_size else None
        return None

    def _bytes(self, address: int, size: int) -> bytes | None:
        """Return some bytes; the vectors are words of a few pages, each of which is read once."""
        page, offset = address & -PAGE, address & (PAGE - 1)
        if offset + size > PAGE:
            return self.memory.read(address, size)
        if page not in self._pages:
            self._pages[page] = self.memory.read(page, PAGE)
        whole = self._pages[page]
        return None if whole is None else whole[offset : offset + size]

    def _uint(self, address: int) -> int | None:
        raw = self._bytes(address, self.word)
        return None if raw is None else int.from_bytes(raw, self.order)
