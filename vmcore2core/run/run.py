"""A run of ``vmcore2core``: which processes, where their cores go, and what came of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcore2core.choose import Choice, choose
from vmcore2core.containers.remote import Url
from vmcore2core.corefile.atomic import check_output
from vmcore2core.corefile.writer import Progress
from vmcore2core.errors import OutputError, OutputExists, Vmcore2coreError
from vmcore2core.folders import opened_folder
from vmcore2core.handover.index import Entry, Index
from vmcore2core.interfaces import Compression
from vmcore2core.kernel import printk
from vmcore2core.printable import counted, text
from vmcore2core.process.binaries import DEBUG_TREE
from vmcore2core.process.dump_filter import DumpFilter
from vmcore2core.process.identity import Identity
from vmcore2core.process.redact import Redaction
from vmcore2core.report import ErrorEntry, core_line
from vmcore2core.run.converter import Conversion, Manner
from vmcore2core.run.jobs import Convert, Job, Outcome, Step
from vmcore2core.run.space import CoreSize, amount, check_space
from vmcore2core.run.workers import Workers
from vmcore2core.session import Session, core_name

if TYPE_CHECKING:
    from vmcore2core.handover.vscode import Opened
    from vmcore2core.run.cluster import Opening
    from vmcore2core.run.pool import Cluster

Bar = Callable[[str], Progress | None]
PIDS_SHOWN = 8


@dataclass(frozen=True)
class Request:
    """How cores are to be written.

    Attributes:
        output: the core, or a directory for ``core.COMM.PID`` files; None for the working directory.
        dump_filter: which memory belongs into them; None for what each process's coredump_filter says.
        redaction: what is left out of them on purpose.
        force: replace what is there.
        resume: keep what an index there says is finished.
        check: of this, only cores whose pages and notes are the dump's.
        jobs: how many processes convert.
        compression: of the cores.
        single: one core, and ``output`` may be its name.
        indexed: an index is wanted even if there is one process.
        companions: programs, libraries and start scripts are wanted beside the cores of a directory.
        debug_directory: debug packages' tree, for the stacks in the index.
        debuginfod: ask the servers in $DEBUGINFOD_URLS for files, likewise.
        verbose: say more.
        options: what changes the cores, as the index remembers it.
        elsewhere: workers on other machines and how they open the dump, or None.
        minidump: minidumps in place of cores, without an index.
        copiers: how many processes copy the pages of a single core, where they are compressed.
    """

    output: Path | None = None
    dump_filter: DumpFilter | None = None
    redaction: Redaction | None = None
    force: bool = False
    resume: bool = False
    check: bool = False
    jobs: int = 1
    compression: Compression | None = None
    single: bool = False
    indexed: bool = False
    companions: bool = True
    debug_directory: str = str(DEBUG_TREE)
    debuginfod: bool = False
    verbose: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    elsewhere: tuple[Cluster, Opening] | None = None
    minidump: bool = False
    copiers: int = 1


class Extraction:
    """One run.

    Attributes:
        outcomes: what came of the processes, in the dump's order.
        errors: what could not be done.
        unmatched: sentences about patterns of ``--redact`` that match nothing of some processes.
        index: of the directory, where there is one.
    """

    def __init__(self, session: Session, request: Request, say: Callable[[str], None]) -> None:
        self.session, self.request, self._say = session, request, say
        self.outcomes: list[Outcome] = []
        self.errors: list[ErrorEntry] = []
        self.unmatched: list[str] = []
        self.index: Index | None = None
        self._is_single = False
        self._replace = request.force
        self._bar: Bar = lambda _label: None
        self._heard: list[Outcome] = []

    def choose(self, choice: Choice) -> list[Identity]:
        """Return the processes asked for; what there is to say of others is said."""
        chosen, errors = choose(self.session.processes, choice)
        for number, error in errors:
            self.failed(str(error), number)
        return chosen

    def failed(self, error: str, number: int | None, comm: str | None = None) -> None:
        """Say an error and remember it for the summary."""
        self._say(error)
        self.errors.append({"pid": number, "error": error})
        if self.index is not None:
            self.index.errors.append({"pid": number, "comm": comm, "error": error})

    def plan(self, chosen: Sequence[Identity]) -> Iterator[tuple[Job, CoreSize]]:
        """Yield what would be written, and how large; processes that cannot be converted are said."""
        jobs = [self._job(one) for one in chosen]
        self._check_patterns(jobs)
        with self._workers(jobs) as workers:
            yield from self._measured(workers, jobs)

    def run(self, chosen: Sequence[Identity], bars: Callable[[int], Any]) -> None:
        """Write the cores; one that fails does not stop the others.

        Args:
            chosen: the processes.
            bars: ``progress.progress_bars``.

        Raises:
            OutputError: the directory cannot be used, or has no room.
        """
        jobs = [self._job(one) for one in chosen]
        self._check_patterns(jobs)
        left = jobs
        if (self.request.indexed or len(jobs) > 1) and not self.request.minidump:
            left = self._open_directory(chosen)
        elif jobs and not self._is_file:
            self._make_directory()
        order = {job.pid: number for number, job in enumerate(jobs)}
        self._is_single = len(left) == 1
        with ExitStack() as stack:
            workers = stack.enter_context(self._workers(left))
            if self.index is not None:
                left = self._begin_index(workers, left)
            self._bar = stack.enter_context(bars(len(left)))
            finished = False
            try:
                for outcome in self._converted(workers, left, stack):
                    self._take(self._learned(outcome))
                    if self._in_parallel:
                        self._bar(outcome.job.comm)
                self._add_companions(workers, jobs)
                finished = True
            finally:
                self.outcomes.sort(key=lambda outcome: order[outcome.job.pid])
                self._close_directory(finished=finished)

    def _check_patterns(self, jobs: Sequence[Job]) -> None:
        """Check, before anything is written, that each pattern of ``--redact`` matches something.

        Raises:
            OutputError: one matches no mapping of any process.
        """
        redaction = self.request.redaction
        if redaction is None or not redaction.patterns:
            return
        with self._workers(jobs) as workers:
            measured = [one for one in workers.run(Step.MEASURE, jobs) if one.error is None]
        if not measured:
            return  # why, their conversion says
        for pattern in redaction.patterns:
            without = sorted(one.job.pid for one in measured if pattern in one.unmatched)
            if len(without) == len(measured):
                raise OutputError(
                    f"--redact {pattern!r} matches no mapping of any process, so nothing is written; vmcore-tasks maps "
                    "shows what they are called"
                )
            if without:
                shown = ", ".join(map(str, without[:PIDS_SHOWN])) + (" ..." if len(without) > PIDS_SHOWN else "")
                self.unmatched.append(
                    f"--redact {pattern!r} matches no mapping of {len(without)} of {len(measured)} processes: {shown}"
                )

    def _workers(self, jobs: Sequence[Job]) -> Workers:
        """Return this machine's workers."""
        count = min(self.request.jobs, len(jobs))
        return Workers(self._steps(jobs[0] if count > 1 else None), count)

    def _steps(self, first: Job | None) -> Mapping[Step, Convert]:
        """Return what workers do.

        Args:
            first: the first job, if they are processes of their own.
        """
        bar: Bar = lambda label: None if self._in_parallel else self._bar(label)  # noqa: E731 - there is a bar only later
        conversion = Conversion(self.session, self._manner(), bar=bar)
        if first is not None:
            conversion.prepare(first)
        return conversion.steps()

    def _measured(self, workers: Workers, jobs: Sequence[Job]) -> Iterator[tuple[Job, CoreSize]]:
        """Yield the jobs that can be done, and how large their cores will be; the others are said."""
        for outcome in self._in_order(jobs, workers.run(Step.MEASURE, jobs)):
            if outcome.size is not None:
                yield outcome.job, outcome.size
            else:
                self.failed(str(outcome.error), outcome.job.pid, outcome.job.comm)

    def _in_order(self, jobs: Sequence[Job], outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Return what came of jobs in their order, and remember what it says of the dump."""
        of = {outcome.job.task: outcome for outcome in map(self._learned, outcomes)}
        found = [of[job.task] for job in jobs]
        self._heard += found
        return found

    def _converted(self, workers: Workers, jobs: list[Job], stack: ExitStack) -> Iterator[Outcome]:
        """Yield the cores; workers elsewhere begin a job again whose worker died, and may find its core there."""
        if self.request.elsewhere is None:
            return workers.run(Step.CONVERT, jobs)
        from vmcore2core.run.cluster import Dispatch, beacon  # which most runs do without
        from vmcore2core.run.pool import Pool

        manner = self._manner()
        cluster, opening = self.request.elsewhere
        for job in list(jobs):
            try:
                check_output(Path(job.target), force=manner.force, inputs=self.session.container.paths)
            except OutputError as error:
                self.failed(str(error), job.pid, job.comm)
                jobs.remove(job)
        folder = Path(jobs[0].target).parent if jobs else self.directory
        seen = stack.enter_context(beacon(folder))
        return Pool(cluster, Dispatch(opening, replace(manner, force=True), os.fspath(Path.cwd()), seen)).run(jobs)

    @property
    def _in_parallel(self) -> bool:
        return self.request.jobs > 1 or self.request.elsewhere is not None

    def _learned(self, outcome: Outcome) -> Outcome:
        """Return what a worker sends, and keep for later runs what the layout told it."""
        if self.session.remembered is not None:
            self.session.remembered.learn(outcome.answers)
        return outcome

    def _take(self, outcome: Outcome) -> None:
        job = outcome.job
        if outcome.error is not None:
            self.failed(outcome.error, job.pid, job.comm)
            self._heard.append(outcome)
            return
        self.outcomes.append(outcome)
        if self.index is not None and outcome.entry is not None:
            self.index.add(outcome.entry)

    @property
    def _is_file(self) -> bool:
        output = self.request.output
        return self.request.single and output is not None and not output.is_dir()

    @property
    def directory(self) -> Path:
        """Where the cores go."""
        return self.request.output or Path()

    def _job(self, one: Identity) -> Job:
        target = self.directory
        if not self._is_file:
            target /= core_name(one.leader) + self._suffix
        return Job(one.pid, text(one.comm), int(one.leader.address), os.fspath(target))

    @property
    def _suffix(self) -> str:
        """What follows core.COMM.PID in the name of a file."""
        if self.request.minidump:
            return ".dmp"
        return ".zst" if self.request.compression else ""

    def _make_directory(self) -> None:
        try:
            with opened_folder(self.directory, make=True):
                pass
        except OSError as error:
            raise OutputError(f"{self.directory}: {error.strerror}, expected a directory for the cores") from error

    def _open_directory(self, chosen: Sequence[Identity]) -> list[Job]:
        """Make the directory; return the jobs that are left."""
        from vmcore2core.handover.html import HTML_NAME  # a single core has no page
        from vmcore2core.handover.tree import check_trees
        from vmcore2core.run.story import story

        self._make_directory()
        check_trees(self.directory)
        hide = self._manner().hide
        self.index = Index(self.directory, hide(index_head(self.session, self.request.options)), hide)
        self.index.story = story(self.session)
        # Without an index, what is in the directory is not of an earlier run.
        self._replace = self.index.resume() if self.request.resume else self.request.force
        for path in (self.index.path, self.directory / HTML_NAME):
            if not self._replace and os.path.lexists(path):
                raise OutputExists(f"{path} exists already; --resume goes on with a run, --force replaces it")
            check_output(path, force=True, inputs=self.session.inputs)
        self.index.errors += [{"pid": e["pid"], "comm": None, "error": e["error"]} for e in self.errors]
        left = []
        for one in chosen:
            job = self._job(one)
            entry = self.index.kept(job.pid, job.comm)
            damage = self._damage(one, job, entry) if entry is not None and self.request.check else None
            if damage is not None:
                self._say(f"{job.target} is written again: {damage}")
                self.index.drop(job.pid)
            if entry is None or damage is not None:
                left.append(job)
            else:
                self._say(f"{job.target} is kept: it was finished before")
                self.outcomes.append(_kept(job, entry))
        return left

    def _begin_index(self, workers: Workers, left: Sequence[Job]) -> list[Job]:
        """Write the index if there is room for the cores; return their jobs, with their sizes."""
        assert self.index is not None  # noqa: S101 - for mypy
        sized = [replace(job, size=size.on_disk) for job, size in self._measured(workers, left)]
        if self.request.compression is None:
            check_space(self.directory, sum(job.size for job in sized))
        self.index.write()
        return sized

    def _damage(self, one: Identity, job: Job, entry: Entry) -> str | None:
        """Return a sentence where a core that an earlier run had finished is not what it was."""
        from vmcore2core.corefile.inspect import problems  # and the readers of ELF that it has
        from vmcore2core.verification import compare, open_core

        try:
            with open_core(Path(job.target)) as core:
                wrong = next(problems(core), None)
                if wrong is not None:
                    return wrong
                found = compare(core, self.session)
                planned = self.session.segments(
                    one.leader, self.request.dump_filter, self.request.redaction, torn_text=self._manner().torn_text
                )
                wanted = [replace(load, offset=0, shared=False) for load in planned]
                if [replace(load, offset=0) for load in core.loads] != wanted:
                    return "its program headers differ from those that it would get"
        except Vmcore2coreError as error:
            return str(error)
        if found.equal and found.same != entry["core"]["pages"]:
            return f"it has {counted(found.same, 'page')}, expected {entry['core']['pages']}"
        return next(found.sentences(), None)

    def _add_companions(self, workers: Workers, jobs: Sequence[Job]) -> None:
        """Write what lies beside the cores that are there."""
        if self.index is None or not self.request.companions:
            return
        from vmcore2core.handover.companions import Companions, debug_entry  # a single core needs none of it
        from vmcore2core.handover.vscode import opened_by

        companions = Companions(
            self.session.processes,
            self.directory,
            force=self._replace,
            secrets=None if self.request.redaction is None else self.request.redaction.secrets,
        )
        if companions.problem is not None:
            self._say(companions.problem)
        there = [job for job in jobs if self.index.kept(job.pid, job.comm) is not None]
        found = {outcome.job.task: outcome for outcome in self.outcomes if outcome.entry is not None}
        earlier = [job for job in there if job.task not in found]
        found |= {o.job.task: o for o in self._in_order(earlier, workers.run(Step.LOOK_UP, earlier))}
        for job in there:
            companions.learn(found[job.task].files)
        beside = [companions.add(found[job.task].error or found[job.task].files) for job in there]
        work = [
            # Scripts have but the names of files.
            replace(
                job,
                recovered=recovered and replace(recovered, files=(), sentences=()),
                images=found[job.task].images,
                without_cfi=found[job.task].without_cfi,
            )
            for job, (recovered, _) in zip(there, beside, strict=True)
        ]
        scripts = self._in_order(there, workers.run(Step.ACCOMPANY, work))
        self._write_launch_json(
            [
                opened_by(Path(job.target), job.recovered, job.images)
                for job, done in zip(work, scripts, strict=True)
                if done.scripts
            ]
        )
        for (recovered, sentences), written in zip(beside, scripts, strict=True):
            job = written.job
            entry = debug_entry(recovered, written.scripts, [*sentences, *filter(None, [written.error])])
            self.index.amend(job.pid, debug=entry)
            for notice in entry["notices"] if self.request.verbose else ():
                self._say(f"{job.pid} ({job.comm}): {notice}")

    def _write_launch_json(self, cores: Sequence[Opened]) -> None:
        """Write what VS Code opens the cores by; without it, they are as good."""
        from vmcore2core.handover.vscode import write_launch_json

        redaction = self.request.redaction
        try:
            write_launch_json(
                self.directory,
                cores,
                self.session.boot.utsname.machine,
                force=self._replace,
                secrets=None if redaction is None else redaction.secrets,
            )
        except OutputError as error:
            self._say(str(error))

    def _close_directory(self, *, finished: bool) -> None:
        if self.index is None:
            return
        from vmcore2core.handover.html import write_page
        from vmcore2core.run.story import deadlocks

        if finished:
            self.index.remove_parts()
        self.index.warnings = list(self.warnings)
        self.index.story |= {"notices": list(self.notices), "deadlocks": deadlocks(self.index.entries())}
        self.index.write(finished=finished)
        write_page(self.directory, self.index.top(finished=finished), self.index.entries())

    def _manner(self) -> Manner:
        request = self.request
        return Manner(
            dump_filter=request.dump_filter,
            redaction=request.redaction,
            compression=request.compression,
            force=self._replace,
            indexed=self.index is not None,
            companions=request.companions,
            debug_directory=request.debug_directory,
            debuginfod=request.debuginfod,
            verbose=request.verbose,
            minidump=request.minidump,
            copiers=request.copiers if self._is_single and self._is_decompressed_here else 1,
        )

    @property
    def _is_decompressed_here(self) -> bool:
        """Whether the dump has compressed pages that forked processes can read: a connection they cannot share."""
        container = self.session.container
        return container.compressed is not None and all(path.is_file() for path in container.paths)

    @property
    def _told(self) -> Iterator[Outcome]:
        yield from self._heard
        yield from self.outcomes

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about the dump as a whole, this process's and the workers'."""
        return tuple(dict.fromkeys((*self.session.warnings, *(w for o in self._told for w in o.warnings))))

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about what came from elsewhere than the dump, likewise."""
        return tuple(dict.fromkeys((*self.session.notices, *(n for o in self._told for n in o.notices))))


def _kept(job: Job, entry: Entry) -> Outcome:
    """Return the outcome of a core that an earlier run had finished."""
    core = entry["core"]
    line = core_line(job.target, core["missing"], len(entry["threads"]), core["pages"], complete=core["complete"])
    summary = {"pid": job.pid, "comm": job.comm, "path": job.target, "complete": core["complete"], "kept": True}
    return Outcome(job, line=line, summary=summary, complete=core["complete"])


def planned_line(job: Job, size: CoreSize) -> str:
    """Return what stdout says of a core that would be written."""
    return f"{job.target}: {amount(size.on_disk)} at most, {amount(size.apparent)} with holes"


def planned_summary(job: Job, size: CoreSize) -> dict[str, Any]:
    """Return what ``--json`` says of it."""
    return {"pid": job.pid, "comm": job.comm, "path": job.target, "on_disk": size.on_disk, "size": size.apparent}


def dump_file(path: Path) -> dict[str, Any]:
    """Return what the index says of a file of the dump; of one that came through a pipe, the name alone."""
    if isinstance(path, Url):
        from vmcore2core.run.samefile import identity_of

        remote = identity_of(path)
        return {"name": path.name, "size": remote.size, "mtime_ns": None, "tag": remote.tag}
    try:
        status = path.stat()
    except OSError:
        return {"name": path.name, "size": None, "mtime_ns": None}
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def index_head(session: Session, options: dict[str, Any]) -> dict[str, Any]:
    """Return what an index says of the dump, the kernel, and how the cores are written."""
    container, boot = session.container, session.boot
    lines, _ = printk.read_messages(session.kernel)
    panic = printk.panic_message(lines)
    crash_time = boot.vmcoreinfo.string("CRASHTIME")
    return {
        "dump": {
            "files": [dump_file(path) for path in container.paths],
            "format": container.DOC.name,
            "dump_level": container.dump_level,
        },
        "kernel": {
            "machine": boot.utsname.machine,
            "nodename": text(boot.utsname.nodename.encode()),
            "release": text(boot.utsname.release.encode()),
            "version": text(boot.utsname.version.encode()),
            "build_id": boot.vmcoreinfo.build_id,
            "panic": text(panic.encode()) if panic is not None else None,
            "crash_time": int(crash_time) if crash_time and crash_time.isdigit() else None,
        },
        "options": options,
    }
