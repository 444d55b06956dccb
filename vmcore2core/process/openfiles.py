"""The open files of processes as plain records, and which processes have the other ends of their pipes and sockets.

References: fs/proc/fd.c; fs/proc/base.c: proc_cwd_link(), proc_root_link() (Linux 7.2). As in /proc, a process has the
descriptors of its leader; threads with their own table (clone() without CLONE_FILES) are shown separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vmcore2core.errors import CorruptStructure, LayoutError, LayoutUnknown, MemoryFault
from vmcore2core.kernel import fdinfo, files, fs, sched
from vmcore2core.kernel.files import Descriptor
from vmcore2core.kernel.socket import Socket, socket_of
from vmcore2core.kernel.struct import StructView
from vmcore2core.overrides import override
from vmcore2core.printable import text
from vmcore2core.process.snapshot import Processes

NAMED_MAX = 8
"""Most descriptors of the other end that a line names."""
ENDS_MAX = 32
"""Most descriptors of the other end that JSON of all processes lists: if many processes share a pipe, each of them has
all the others at its other end."""
_LEAD_TO = {"r": ("w", "rw"), "w": ("r", "rw"), "rw": ("r", "w", "rw")}
"""For a descriptor's access to a pipe: the accesses of those descriptors whose other end it is."""
KINDS = {
    0o010000: "FIFO",
    0o020000: "CHR",
    0o040000: "DIR",
    0o060000: "BLK",
    0o100000: "REG",
    0o120000: "LNK",
    0o140000: "SOCK",
    0: "anon",
}
"""TYPE as crash's ``files`` command shows it; inodes without a type belong to files without a name."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A descriptor of a process."""

    pid: int
    comm: str
    fd: int
    access: str

    @override
    def __str__(self) -> str:
        return f"{self.pid} ({self.comm}) fd {self.fd}"


@dataclass(frozen=True, slots=True)
class FileRow:
    """One descriptor; None means "not known".

    Attributes:
        fd: its number.
        file: address of ``struct file``.
        path: the target of the link in /proc/PID/fd.
        kind: "REG", "DIR", "CHR", "BLK", "FIFO", "SOCK" or "anon".
        access: "r", "w", "rw", or "" for O_PATH.
        pos: position in bytes.
        flags: of open(2), shown in octal as in fdinfo.
        close_on_exec: whether exec closes it.
        mnt_id: as in /proc/PID/mountinfo.
        inode: inode number.
        details: further facts from fdinfo or the pipe, by name.
        socket: the socket, if it is one.
        other_ends: descriptors of the pipe's other end, or of the socket's peer; None if it has no other end.
        problem: a sentence if some of the kernel's structures cannot be read.
    """

    fd: int
    file: int
    path: str | None
    kind: str
    access: str
    pos: int | None
    flags: int
    close_on_exec: bool
    mnt_id: int | None
    inode: int | None
    details: dict[str, object] = field(default_factory=dict)
    socket: Socket | None = None
    other_ends: Sequence[Holder] | None = None
    problem: str | None = None

    def as_json(self, *, all_ends: bool = False) -> dict[str, Any]:
        """Return the row for JSON; its flags in octal, as in fdinfo.

        Args:
            all_ends: list all descriptors of the other end, not only the first ``ENDS_MAX``.
        """
        ends = self.other_ends
        return {
            # asdict() would copy all that is inside.
            **{name: getattr(self, name) for name in _NAMES},
            "file": f"{self.file:#x}",
            "pos": None if self.pos is None else f"{self.pos & (1 << 64) - 1:#x}",
            "flags": f"0{self.flags:o}",
            "socket": None if self.socket is None else _socket(self.socket),
            "other_ends": None if ends is None else [asdict(one) for one in (ends if all_ends else ends[:ENDS_MAX])],
            "other_ends_count": None if ends is None else len(ends),
        }

    def line(self) -> str:
        """Return the line as ``files`` prints it."""
        position = "-" if self.pos is None else self.pos
        return f"{self.fd:>5} {self.access or 'path':<4} {position:>10} {self.flags:08o} {self.kind:<4} {self._what()}"

    def _what(self) -> str:
        parts = [self.path or "?"]
        if self.socket is not None:
            parts.append(str(self.socket))
        parts += [f"{name} {_shown(value)}" for name, value in self.details.items()]
        if self.other_ends is not None:
            more = f" and {len(self.other_ends) - NAMED_MAX} more" if len(self.other_ends) > NAMED_MAX else ""
            named = ", ".join(map(str, self.other_ends[:NAMED_MAX])) + more
            parts.append(f"other end: {named or 'no process has it'}")
        if self.problem is not None:
            parts.append(f"({self.problem})")
        return "  ".join(parts)


_NAMES = tuple(one.name for one in fields(FileRow))


def _socket(socket: Socket) -> dict[str, Any]:
    """Return a socket for JSON, its addresses as numbers of hexadecimal digits."""
    addresses = {name: getattr(socket, name) for name in ("sock", "net", "peer_sock")}
    return {**asdict(socket), **{name: None if at is None else f"{at:#x}" for name, at in addresses.items()}}


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The descriptors of a process, or of those of its threads that have their own table.

    Attributes:
        pid, comm: of the process.
        tid: the first thread that has this table.
        cwd, root: its current and root directory.
        files: by ascending number.
        warnings: sentences about broken structures.
    """

    pid: int
    tid: int
    comm: str
    cwd: str | None
    root: str | None
    files: tuple[FileRow, ...]
    warnings: tuple[str, ...] = ()

    def as_json(self, *, all_ends: bool = False) -> dict[str, Any]:
        """Return the table for JSON.

        Args:
            all_ends: as of ``FileRow.as_json``.
        """
        names = ("pid", "tid", "comm", "cwd", "root")
        rows = [row.as_json(all_ends=all_ends) for row in self.files]
        return {**{name: getattr(self, name) for name in names}, "warnings": list(self.warnings), "files": rows}


class FileTables:
    """The descriptor tables of all processes.

    Args:
        processes: of the dump.

    Raises:
        LayoutUnknown: the layout has no members of open files, as it comes from the VMCOREINFO export alone.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes, self._kernel = processes, processes.kernel
        lacking = files.missing(self._kernel)
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise LayoutUnknown(f"the layout of open files ({lacking[0]}{more})")
        self._ends: Ends | None = None

    def of(self, leader: StructView) -> Iterator[OpenFiles]:
        """Yield the table of a process, and the separate tables of its threads.

        Args:
            leader: of the thread group.

        Raises:
            MemoryFault: the leader cannot be read.
        """
        seen: set[int] = set()
        for task in self._processes.threads(leader):
            table = files.table_of(task)
            if table is not None and table.address not in seen:
                seen.add(table.address)
                yield self._table(leader, task, table)

    def _table(self, leader: StructView, task: StructView, table: StructView) -> OpenFiles:
        rows: list[FileRow] = []
        warnings: list[str] = []
        number, comm = sched.task_tgid(leader), text(sched.task_comm(leader))
        try:
            rows.extend(map(self._row, files.descriptors(table)))
        except (MemoryFault, CorruptStructure) as error:
            warnings.append(f"descriptors of {number} ({comm}) may be missing: {error}")
        warnings += [f"{number} ({comm}) fd {row.fd}: {row.problem}" for row in rows if row.problem is not None]
        return OpenFiles(
            pid=number,
            tid=sched.task_pid(task),
            comm=comm,
            cwd=self._folder(task, "pwd"),
            root=self._folder(task, "root"),
            files=tuple(rows),
            warnings=tuple(warnings),
        )

    def _folder(self, task: StructView, name: str) -> str | None:
        try:
            path = files.working_folder(task, name)
            return None if path is None else text(fs.d_path(self._kernel, path, self._processes.mounts))
        except (MemoryFault, CorruptStructure, LayoutUnknown):
            return None

    def _row(self, one: Descriptor) -> FileRow:
        """Return a descriptor's row; fields that cannot be read are None, and ``problem`` says why."""
        row = FileRow(
            fd=one.fd,
            file=one.file.address,
            path=None,
            kind="?",
            access=one.access,
            pos=one.pos,
            flags=one.flags,
            close_on_exec=one.close_on_exec,
            mnt_id=files.mount_id(one.file),
            inode=None,
        )
        try:
            return self._filled(one, row)
        except (MemoryFault, CorruptStructure, LayoutError) as error:
            return replace(row, problem=str(error))

    def _filled(self, one: Descriptor, row: FileRow) -> FileRow:
        inode = one.inode
        path = fs.d_path(self._kernel, one.file.embedded("f_path", "path"), self._processes.mounts)
        mode = inode.uint("i_mode", size=2) & files.S_IFMT
        row = replace(row, path=text(path), kind=KINDS.get(mode, f"{mode:#o}"), inode=inode.ulong("i_ino"))
        try:
            if mode == files.S_IFSOCK:
                socket = socket_of(one.file)
                return replace(row, socket=socket, other_ends=self.ends.of_socket(socket))
            if mode == files.S_IFIFO and row.access:
                return replace(row, details=fdinfo.pipe(one.file), other_ends=self.ends.of_pipe(inode, row.access))
            return replace(row, details=fdinfo.fdinfo(one.file, path))
        except (MemoryFault, CorruptStructure, LayoutError) as error:
            return replace(row, problem=str(error))

    @property
    def ends(self) -> Ends:
        """Which process has which pipe and socket; searched at first use."""
        if self._ends is None:
            self._ends = Ends(self._processes)
        return self._ends


def _shown(value: object) -> str:
    """Return one of the details as text; the targets of epoll and inotify as lists."""
    if not isinstance(value, list):
        return str(int(value) if isinstance(value, bool) else value)
    return "; ".join(" ".join(f"{name} {one}" for name, one in entry.items()) for entry in value) or "nothing"


Connection = tuple[int | None, str, str, str]
"""Network namespace, protocol, and the addresses of both ends."""


def _connection(socket: Socket, *, reverse: bool = False) -> Connection | None:
    """Return the key of an internet connection; None for a socket that is not connected."""
    if socket.local is None or socket.peer is None or socket.netid not in ("tcp", "udp") or socket.peer.endswith(":*"):
        return None
    # An IPv6 socket can have an IPv4 connection.
    local, peer = (end.replace("[::ffff:", "").replace("]", "") for end in (socket.local, socket.peer))
    return (socket.net, socket.netid, *((peer, local) if reverse else (local, peer)))


class Ends:
    """The descriptors, in all processes, of each pipe and socket.

    Args:
        processes: of the dump.

    Attributes:
        by_pipe: of a pipe, by the address of its inode, and the access of those descriptors whose other end they are.
        by_file: of any file, by the address of its ``struct file``.
        by_sock: of a socket, by the address of its ``struct sock``.
        by_connection: of a connected internet socket, by both addresses.
    """

    def __init__(self, processes: Processes) -> None:
        self.by_pipe: dict[tuple[int, str], list[Holder]] = {}
        self.by_file: dict[int, list[Holder]] = {}
        self.by_sock: dict[int, list[Holder]] = {}
        self.by_connection: dict[Connection, list[Holder]] = {}
        for leader in processes.leaders():
            try:
                self._add(leader)
            except (MemoryFault, CorruptStructure):
                continue  # a request for this process reports it

    def of_pipe(self, inode: StructView, access: str) -> Sequence[Holder]:
        """Return the descriptors of a pipe's other end.

        Args:
            inode: of the pipe.
            access: of this end: "r", "w", or "rw", which has both.
        """
        return self.by_pipe.get((inode.address, access), ())

    def of_socket(self, socket: Socket | None) -> Sequence[Holder] | None:
        """Return the descriptors of a socket's peer; None if it is not connected, or the peer is on another machine."""
        if socket is None:
            return None
        if socket.peer_sock is not None:
            return self.by_sock.get(socket.peer_sock, ())
        reverse = _connection(socket, reverse=True)
        return None if reverse is None else self.by_connection.get(reverse)

    def _add(self, leader: StructView) -> None:
        table = files.table_of(leader)
        if table is None or sched.is_kthread(leader):
            return
        number, comm = sched.task_tgid(leader), text(sched.task_comm(leader))
        for one in files.descriptors(table):
            try:
                self._add_descriptor(one, Holder(number, comm, one.fd, one.access))
            except (MemoryFault, CorruptStructure, LayoutError):
                continue

    def _add_descriptor(self, one: Descriptor, holder: Holder) -> None:
        self.by_file.setdefault(one.file.address, []).append(holder)
        inode = one.inode
        if files.is_kind(inode, files.S_IFIFO):
            for access in _LEAD_TO.get(one.access, ()):
                self.by_pipe.setdefault((inode.address, access), []).append(holder)
        elif files.is_kind(inode, files.S_IFSOCK):
            socket = socket_of(one.file)
            if socket is not None and socket.sock:
                self.by_sock.setdefault(socket.sock, []).append(holder)
                connection = _connection(socket)
                if connection is not None:
                    self.by_connection.setdefault(connection, []).append(holder)
