"""An open dump; the only module that wires the layers together."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vmcore2core.blank_secrets import without_secrets
from vmcore2core.containers import open_container
from vmcore2core.containers.base import DumpContainer
from vmcore2core.containers.cache import Keeping, ProgressBar, progress_bar
from vmcore2core.containers.remote import Url
from vmcore2core.corefile.options import PLAIN, CoreOptions
from vmcore2core.corefile.plan import Segment, build_plan
from vmcore2core.corefile.writer import Output, PagesChanged, Progress, Writer, WriteReport, write_core
from vmcore2core.errors import DumpError, LayoutError, LayoutInvalid, UsageError
from vmcore2core.kernel import resource, sched
from vmcore2core.kernel.infer import InferredSource
from vmcore2core.kernel.sanity import check_processes
from vmcore2core.kernel.struct import Kernel, StructView
from vmcore2core.kernel.task_scan import TaskScan
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.bootstrap import Bootstrapped, MoreSources, bootstrap
from vmcore2core.layout.remembered import LayoutMemory
from vmcore2core.layout.usual_places import usual_places
from vmcore2core.layout.vmcoreinfo import VmcoreInfo, parse_vmcoreinfo
from vmcore2core.memory.user import UserMemory
from vmcore2core.process.model import NOT_MISSING, AbsentReason, ProcessSnapshot
from vmcore2core.process.redact import BlankedStream, ThreadFrames, redact
from vmcore2core.process.secrets import Secrets
from vmcore2core.process.snapshot import Captured, Processes, refresh_absent
from vmcore2core.process.swapped import SwappedPages
from vmcore2core.process.sysroot import Sysroot
from vmcore2core.room import check_room, check_size, most_on_disk

log = logging.getLogger(__name__)

REWRITES_MAX = 4


@dataclass(frozen=True)
class CoreResult:
    """One finished core.

    Attributes:
        absent_pages: pages of dumped mappings whose bytes are not known, by reason.
        secrets: the secrets that were blanked, which no report of the core may show; or None.
    """

    path: Path
    captured: Captured
    report: WriteReport
    absent_pages: Counter[AbsentReason]
    secrets: Secrets | None = None

    @property
    def snapshot(self) -> ProcessSnapshot:
        """The process."""
        return self.captured.snapshot

    @property
    def missing_pages(self) -> int:
        """Pages that the process had and the core lacks."""
        return sum(n for reason, n in self.absent_pages.items() if reason not in NOT_MISSING)

    @property
    def complete(self) -> bool:
        """Whether no page and no thread is missing and no damage was found."""
        return not (self.missing_pages or self.snapshot.threads_left_out or self.snapshot.warnings)


def absent_pages(snapshot: ProcessSnapshot) -> Counter[AbsentReason]:
    """Return the pages of dumped mappings whose bytes are not known, by reason."""
    counts: Counter[AbsentReason] = Counter()
    for vma in snapshot.vmas:
        for run in vma.absent:
            counts[run.reason] += (run.end - run.start) // snapshot.page_size
    return counts


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a dump is opened.

    Attributes:
        vmlinux: the kernel's own ELF file with symbols, used where the dump lacks layout information.
        vmcoreinfo: a VMCOREINFO text whose keys take precedence over the dump's; or 0xADDRESS of one in memory.
        swap: the machine's swap files and partitions, FILE or NUMBER=FILE, for pages that were swapped out.
        memory_map: where memory lies in a dump without a header (``containers.raw.parse_map``).
        sysroots: folders with the machine's files, for pages of programs and libraries that are not in memory; the
            first folder that has a page's file is used.
        remember: cache the kernel's layout, and use what is cached.
        scan: search all memory for tasks as well.
        cache: keep what is unpacked, or comes from a pipe or a URL, for later runs, and use what is kept.
        any_size: unpack a compressed file however large it gets.
        zero_excluded: read pages that were left out as zeros.
    """

    vmlinux: Path | None = None
    vmcoreinfo: Path | None = None
    swap: tuple[str, ...] = ()
    memory_map: str | None = None
    sysroots: tuple[Path, ...] = ()
    remember: bool = False
    scan: bool = False
    cache: bool = True
    any_size: bool = False
    zero_excluded: bool = False

    @property
    def may_remember(self) -> bool:
        """Whether the kernel's layout may be cached: not if the user supplied answers."""
        supplied = self.vmlinux is not None or self.vmcoreinfo is not None or self.zero_excluded
        return self.remember and self.cache and not supplied


DEFAULTS = OpenOptions()


class Session:
    """An open dump and the processes in it.

    Args:
        paths: the dump's file or files.
        options: how to open it.
        progress: draws a bar while a file is unpacked or received, or memory is searched.

    Raises:
        DumpError, LayoutError: the dump cannot be used.
        UsageError: a swap file is not from this machine, or the folder is not a folder; or ``zero_excluded`` is set
            although the format itself marks zero pages.
    """

    def __init__(
        self, paths: Sequence[Path], options: OpenOptions = DEFAULTS, progress: ProgressBar | None = None
    ) -> None:
        self.options = options
        keeping = Keeping(progress, cache=options.cache, any_size=options.any_size)
        self.container = open_container(paths, options.memory_map, keeping)
        if options.zero_excluded:
            _read_as_zeros(self.container)
        self.remembered = LayoutMemory(self.container.files, options.memory_map or "") if options.may_remember else None
        try:
            supplied = _supplied(options.vmcoreinfo)
            self.boot = self._bootstrapped(partial(_vmlinux_sources, options.vmlinux), supplied, progress)
            self.kernel = Kernel(self.boot.arch, self.boot.memory, self.boot.layout)
            self.boot.layout.add(InferredSource(self.kernel))
            originals = [Sysroot(folder) for folder in options.sysroots]
            self._layout_notices = [*self.boot.notices, *check_processes(self.kernel, self.boot.layout)]
            self._unplaced = _unplaced(self.kernel, self.container)
            search = partial(_scan, self.kernel, progress) if options.scan else None
            swap = SwappedPages(self.kernel, options.swap)
            self.processes = Processes(self.kernel, self.container.notes, swap, originals, search)
        except (DumpError, LayoutError) as error:
            self.container.close()
            if self.container.warnings:  # the likely cause is a truncated file, and its sentence helps more
                raise DumpError(f"{paths[0]}: {self.container.warnings[0]}; so {error}") from error
            raise
        except BaseException:
            self.container.close()
            raise

    def _bootstrapped(
        self, sources: MoreSources, supplied: VmcoreInfo | int | None, progress: ProgressBar | None
    ) -> Bootstrapped:
        try:
            return bootstrap(self.container, sources, supplied, progress, self.remembered)
        except LayoutError as error:
            if self.remembered is None or not self.remembered.forget():
                raise
            log.info("what earlier runs kept of the layout does not fit: %s", error)
            return bootstrap(self.container, sources, supplied, progress, self.remembered)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.remembered is not None:
            self.remembered.save()
        self.processes.swap.close()
        self.container.close()

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The input files, which no output may replace."""
        given = (path for path in (self.options.vmlinux, self.options.vmcoreinfo) if path is not None)
        return *self.container.paths, *self.processes.swap.paths, *given

    @property
    def warnings(self) -> list[str]:
        """Sentences about the dump as a whole; any makes all results incomplete."""
        return [*self.container.warnings, *self.processes.warnings]

    @property
    def notices(self) -> list[str]:
        """Sentences about data from outside the dump, or from a second-choice source, that may be out of date."""
        zeros = ["pages that were left out of the dump read as zeros, as asked (--zero-excluded)"]
        asked = zeros if self.container.zero_excluded else []
        return [*asked, *self._layout_notices, *self._unplaced, *self.processes.swap.notices]

    def extract(
        self,
        leader: StructView,
        output: Path,
        options: CoreOptions = PLAIN,
        *,
        captured: Captured | None = None,
        progress: Progress | None = None,
        write: Writer | None = None,
    ) -> CoreResult:
        """Write the core of one process.

        Args:
            leader: the thread group's leader.
            output: where the core goes.
            options: how to write it.
            captured: the process, if the caller has already captured it with these ``options``.
            progress: called with (bytes done, bytes in all).
            write: writes a format other than the core of ``write_core``.

        Raises:
            TaskError, MemoryFault, LayoutError: the process cannot be converted.
            OutputError: the core cannot be written.
        """
        captured = captured or self.capture(leader, options)
        for _ in range(REWRITES_MAX):
            memory, known = captured.memory, len(captured.memory.damaged)
            captured, options = self._redacted(leader, captured, options)
            if write is None and options.compression is None:
                check_size(output.parent, most_on_disk(captured))
                check_room(captured, self.container, output.parent)
            try:
                report = (write or write_core)(
                    captured.snapshot,
                    BlankedStream(memory, captured.snapshot.blanked, captured.snapshot.page_size),
                    Output(
                        output,
                        options,
                        inputs=self.inputs,
                        origin=self._origin(),
                        progress=progress,
                        still_valid=partial(self._still_valid, memory, known),
                    ),
                )
            except PagesChanged:
                # Reading found damaged pages: write a core that says so.
                captured = refresh_absent(captured)
                continue
            return CoreResult(output, captured, report, absent_pages(captured.snapshot), options.secrets)
        raise DumpError(f"{self.container.paths[0]}: its pages read differently each time")

    def capture(self, leader: StructView, options: CoreOptions) -> Captured:
        """Capture a process for its core (see ``Processes``), before redaction and filters leave anything out."""
        return self.processes.capture(leader, dump_filter=options.dump_filter, torn_text=options.torn_text)

    def copiers(self, options: CoreOptions) -> int:
        """Return how many processes copy a core's pages: one, unless the dump holds the pages compressed."""
        paths = self.container.paths
        compressed = self.container.compressed and all(isinstance(path, Url) or path.is_file() for path in paths)
        return options.copiers if compressed else 1

    def _redacted(self, leader: StructView, captured: Captured, options: CoreOptions) -> tuple[Captured, CoreOptions]:
        """Apply redaction and filters to a process; return it with the secrets to search for, its own included."""
        redaction = options.redaction
        if redaction is None:
            return captured, options
        captured = redact(redaction, self.processes, leader, captured, self._frames)
        if redaction.secrets is None:
            return captured, options
        captured, secrets = without_secrets(redaction.secrets, self.processes, leader, captured)
        return captured, replace(options, redaction=replace(redaction, secrets=secrets))

    def _origin(self) -> dict[str, str | None]:
        """Return the description of the dump for the core's note."""
        return {
            "dump": self.container.paths[0].name,
            "kernel": self.boot.utsname.release,
            "build_id": self.boot.vmcoreinfo.build_id,
            **({"excluded": "read as zeros"} if self.container.zero_excluded else {}),
        }

    def check_unchanged(self) -> None:
        """Check that the input files, the dump and the swap files, have not changed.

        Raises:
            DumpError: one has changed.
        """
        self.container.check_unchanged()
        self.processes.swap.check_unchanged()

    def _frames(self, captured: Captured) -> Iterator[ThreadFrames]:
        from vmcore2core.unwind.extents import thread_frames  # most runs do not need it

        return thread_frames(captured, self.kernel.arch)

    def _still_valid(self, memory: UserMemory, known: int) -> bool:
        self.check_unchanged()
        return len(memory.damaged) == known

    def segments(self, leader: StructView, options: CoreOptions) -> tuple[Segment, ...]:
        """Return the PT_LOADs that ``extract`` would write, except for their file offsets."""
        captured = self.capture(leader, options)
        if options.redaction is not None:
            captured = redact(options.redaction, self.processes, leader, captured, self._frames)
        return tuple(build_plan(captured.snapshot).segments)


def _read_as_zeros(container: DumpContainer) -> None:
    """Make pages that were left out read as zeros.

    Raises:
        UsageError: the format itself marks zero pages.
    """
    if container.zero_excluded is None:
        container.close()
        raise UsageError(f"--zero-excluded is for ELF dumps: {container.DOC.name} tells which pages were zero")
    container.zero_excluded = True


def _vmlinux_sources(
    vmlinux: Path | None, info: VmcoreInfo, symbols: LayoutSource, types: LayoutSource
) -> Sequence[LayoutSource]:
    """Call ``layout.vmlinux.vmlinux_sources``, which is imported only if there is a vmlinux."""
    if vmlinux is None and not any(path.is_file() for path in usual_places(info)):
        return ()
    from vmcore2core.layout.vmlinux import vmlinux_sources

    return vmlinux_sources(vmlinux, info, symbols, types)


def _scan(kernel: Kernel, progress: ProgressBar | None) -> Iterator[StructView]:
    """Search memory for thread-group leaders and yield the candidates; draw a bar."""
    with progress_bar(progress, "searching memory for tasks") as update:
        yield from TaskScan(kernel).leaders(update)


def _unplaced(kernel: Kernel, container: DumpContainer) -> list[str]:
    """Return a sentence if the kernel has memory that a dump without a memory map lacks, else None."""
    if container.placed_by is None:
        return []
    missing = tuple(resource.not_in(resource.system_ram(kernel), container.memory_ranges()))
    ranges = ", ".join(f"{part.start:#x}-{part.end - 1:#x}" for part in missing)
    return [f"the kernel has memory at {ranges}, where {container.placed_by} puts none: see --map"] if missing else []


def _supplied(path: Path | None) -> VmcoreInfo | int | None:
    """Return the VMCOREINFO text in a file, or the physical address of one in the dump, if a number is given.

    The last line of the file may lack its newline, as some editors leave it.
    """
    if path is None:
        return None
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", path.name) and not path.exists():
        return int(path.name, 16)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise LayoutInvalid(f"{path} cannot be read: {error.strerror}") from error
    info = parse_vmcoreinfo(text + b"\n")
    if not any(key.startswith(("OFFSET(", "SYMBOL(", "SIZE(", "NUMBER(")) for key in info.values):
        raise LayoutInvalid(f"{path} has no line such as OFFSET(task_struct.mm)=2336, expected VMCOREINFO text")
    return info


def core_name(leader: StructView, tid: int | None = None) -> str:
    """Return "core.COMM.PID", with unsafe characters replaced: a process can set its comm to anything.

    Args:
        leader: the process.
        tid: a thread, whose TID replaces the PID.
    """
    comm = re.sub(r"[^A-Za-z0-9._+-]", "_", sched.task_comm(leader).decode("latin-1")) or "_"
    return f"core.{comm}.{sched.task_tgid(leader) if tid is None else tid}"
