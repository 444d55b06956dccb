"""Further lines of /proc/PID/fdinfo, for files without a name in a directory: eventfd, epoll, timerfd and so on.

References: show_fdinfo() of fs/eventfd.c, fs/eventpoll.c, fs/timerfd.c, fs/signalfd.c, fs/notify/fdinfo.c, fs/pidfs.c,
io_uring/fdinfo.c; include/linux/pipe_fs_i.h (Linux 5.10 to 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

from vmcore2core.kernel.list import list_for_each_entry
from vmcore2core.kernel.rbtree import rb_nodes
from vmcore2core.kernel.struct import StructView

TARGETS_MAX = 1 << 12
"""Most entries of an epoll set or an inotify instance that are listed."""
PIPE_SLOTS_MAX = 1 << 16
"""Above the limit that /proc/sys/fs/pipe-max-size sets."""
IN_ALL_EVENTS = 0xFFF
KTIME_MAX = (1 << 63) - 1
WORD = (1 << 64) - 1

Details = dict[str, object]
"""By fdinfo's names; only values that the layout knows."""


def fdinfo(file: StructView, path: bytes) -> Details:
    """Return fdinfo's lines for the kind of a file; nothing for kinds without such lines.

    Args:
        file: ``struct file``.
        path: from ``fs.d_path``; it tells the kind of a file without a name in a directory.

    Raises:
        MemoryFault, CorruptStructure: it cannot be read.
        LayoutUnknown: a member of it is not known.
    """
    name = path.removeprefix(b"anon_inode:")
    kind = _KINDS.get(name) if name != path else None
    return {} if kind is None else kind(file)


def pipe(file: StructView) -> Details:
    """Return how full a pipe is, and how many files are open at each end.

    Args:
        file: ``struct file`` of a pipe or a FIFO.

    Raises:
        MemoryFault, CorruptStructure, LayoutUnknown: as ``fdinfo``.
    """
    info = file.follow("private_data", "pipe_inode_info")
    if info is None:
        return {}
    found = _numbers(info, ("readers", "writers"))
    # Since Linux kernel commit 8cefc107ca54 ("pipe: Use head and tail pointers for the ring, not cursor and length")
    # (in v5.5).
    if not all(map(info.has, ("head", "tail", "ring_size", "bufs"))):
        return found
    head, tail, size = (info.uint(name, size=4) for name in ("head", "tail", "ring_size"))
    filled = (head - tail) & ((1 << 8 * (info.kernel.layout.member("pipe_inode_info", "head").size or 4)) - 1)
    if not 0 < size <= PIPE_SLOTS_MAX or size & (size - 1) or filled > size:
        raise info.corrupt("head", f"{head:#x} with tail {tail:#x} and {size:#x} slots, expected no more than these")
    bufs, sizeof = info.pointer("bufs"), info.kernel.layout.size("pipe_buffer")
    slots = (info.kernel.view("pipe_buffer", bufs + ((tail + i) & (size - 1)) * sizeof) for i in range(filled))
    return {**found, "bytes": sum(slot.uint("len", size=4) for slot in slots)}


def _numbers(view: StructView, names: tuple[str, ...]) -> Details:
    """Return numeric members by their C names; if the layout does not tell a size, it is 32 bits."""
    values = ((name, view.find_uint(name, 4)) for name in names)
    return {name: value for name, value in values if value is not None}


def _of(struct: str) -> Callable[[Callable[[StructView], Details]], Callable[[StructView], Details]]:
    """Make a reader of a ``struct struct`` take a ``struct file`` whose private data it is."""

    def reader(read: Callable[[StructView], Details]) -> Callable[[StructView], Details]:
        def read_file(file: StructView) -> Details:
            found = file.follow("private_data", struct)
            return {} if found is None else read(found)

        return read_file

    return reader


@_of("eventfd_ctx")
def _eventfd(ctx: StructView) -> Details:
    found: Details = {"eventfd_count": f"{ctx.uint('count', size=8):#x}"}
    identifier, flags = ctx.find_uint("id", 4), ctx.find_uint("flags", 4)
    if identifier is not None:
        found["eventfd_id"] = identifier
    if flags is not None:
        found["eventfd_semaphore"] = bool(flags & 1)
    return found


@_of("eventpoll")
def _eventpoll(ep: StructView) -> Details:
    kernel, found = ep.kernel, []
    for node in islice(rb_nodes(kernel, ep.addr_of("rbr"), "eventpoll.rbr"), TARGETS_MAX):
        item = kernel.container_of(node, "epitem", "rbn")
        found.append(
            {
                "tfd": item.uint("ffd.fd", size=4),
                "events": f"{item.uint('event.events', size=4):#x}",
                "data": f"{item.uint('event.data', size=8):#x}",
                "file": f"{item.pointer('ffd.file'):#x}",
            }
        )
    return {"targets": found}


@_of("timerfd_ctx")
def _timerfd(ctx: StructView) -> Details:
    found: Details = {"clockid": ctx.sint("clockid", size=4), "ticks": ctx.uint("ticks", size=8)}
    flags, interval, expires = (
        ctx.find_uint(name, size) for name, size in (("settime_flags", 2), ("tintv", 8), ("t.tmr.node.expires", 8))
    )
    if flags is not None:
        found["settime_flags"] = f"{flags:#o}"
    if interval is not None:
        found["interval"] = _seconds(interval)
    if expires is not None:
        found["expires"] = None if expires == KTIME_MAX else _seconds(expires)
    return found


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}"


@_of("signalfd_ctx")
def _signalfd(ctx: StructView) -> Details:
    # It stores the complement: the signals that it does not take.
    return {"sigmask": f"{ctx.uint('sigmask', size=8) ^ WORD:016x}"}


@_of("fsnotify_group")
def _inotify(group: StructView) -> Details:
    marks = list_for_each_entry(group.kernel, group.addr_of("marks_list"), "fsnotify_mark", "g_list")
    found = {}
    for mark in islice(marks, TARGETS_MAX):
        view = group.kernel.container_of(mark.address, "inotify_inode_mark", "fsn_mark")
        found[view.uint("wd", size=4)] = f"{mark.uint('mask', size=4) & IN_ALL_EVENTS:#x}"
    return {"watches": [{"wd": wd, "mask": mask} for wd, mask in sorted(found.items())]}


def _pidfd(file: StructView) -> Details:
    # Since Linux kernel commit cb12fd8e0dab ("pidfd: add pidfs") (in v6.9), a pidfd's inode has the pid.
    inode = file.follow("f_inode", "inode")
    pid = inode.follow("i_private", "pid") if inode is not None and inode.has("i_private") else None
    pid = pid or file.follow("private_data", "pid")
    return {} if pid is None else {"pid": pid.kernel.uint(pid.addr_of("numbers"), 4)}


@_of("io_ring_ctx")
def _io_uring(ctx: StructView) -> Details:
    found = _numbers(ctx, ("sq_entries", "cq_entries", "cached_sq_head", "cached_cq_tail"))
    rings = ctx.follow("rings", "io_rings") if ctx.has("rings") else None
    names = ("sq.head", "sq.tail", "cq.head", "cq.tail")
    more = {} if rings is None else _numbers(rings, names)
    return {**found, **{name.replace(".", "_"): value for name, value in more.items()}}


_KINDS: Mapping[bytes, Callable[[StructView], Details]] = {
    b"[eventfd]": _eventfd,
    b"[eventpoll]": _eventpoll,
    b"[timerfd]": _timerfd,
    b"[signalfd]": _signalfd,
    b"inotify": _inotify,
    b"[pidfd]": _pidfd,
    b"[io_uring]": _io_uring,
}
