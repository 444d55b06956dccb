"""A run of ``vmcore2core`` over many processes: where their cores go, and their results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcore2core.convert import make_directory, matches_nothing
from vmcore2core.corefile.atomic import check_output
from vmcore2core.corefile.options import CoreOptions
from vmcore2core.corefile.writer import Progress
from vmcore2core.errors import OutputError, OutputExists
from vmcore2core.handover.index import Entry, Index
from vmcore2core.printable import amount, text
from vmcore2core.process.identity import Identity
from vmcore2core.report import CoreReport, ErrorEntry, RunReport, core_line
from vmcore2core.room import check_size, free_bytes, is_plain, least_on_disk
from vmcore2core.run.converter import Converter
from vmcore2core.run.index_entries import index_head, options_entry
from vmcore2core.run.jobs import DoJob, Job, JobResult, Stage, file_job
from vmcore2core.run.options import RunOptions
from vmcore2core.run.space import CoreSize, PlannedCore
from vmcore2core.run.workers import Workers
from vmcore2core.session import Session

if TYPE_CHECKING:
    from vmcore2core.handover.companions import Companions
    from vmcore2core.handover.mapped import MappedFiles
    from vmcore2core.handover.vscode import OpenedCore
    from vmcore2core.run.pool import Pool

Bar = Callable[[str], Progress | None]
PIDS_SHOWN = 8
FILES_OF_ONE = 1 << 16
"""Bytes for the start scripts of a core."""
INDEX_COPIES = 3
"""The old index stays until the new one is complete, and the page has the same."""


class Run:
    """One run.

    Args:
        session: the dump.
        options: what to do with the chosen processes.
        say: takes each sentence for people.
        errors: errors reported earlier, about processes that do not exist.

    Attributes:
        results: the processes' results, in the dump's order.
        errors: the things that could not be done.
        unmatched: sentences about patterns of ``--redact`` that match nothing in some processes.
        index: the directory's index, if it has one.
        files_size: of a planned run, the most bytes of the programs and libraries beside the cores.
    """

    def __init__(
        self, session: Session, options: RunOptions, say: Callable[[str], None], errors: Sequence[ErrorEntry] = ()
    ) -> None:
        self.session, self.options, self._say = session, options, say
        self.results: list[JobResult] = []
        self.errors = list(errors)
        self.unmatched: list[str] = []
        self.index: Index | None = None
        self.files_size = 0
        self._is_single = self._has_index = False
        self._replace = options.core.force
        self._bar: Bar = lambda _label: None
        self._other_results: list[JobResult] = []

    def failed(self, error: str, number: int | None, comm: str | None = None) -> None:
        """Say an error and remember it for the summary."""
        self._say(error)
        self.errors.append({"pid": number, "error": error})
        if self.index is not None:
            self.index.errors.append({"pid": number, "comm": comm, "error": error})

    def plan(self, chosen: Sequence[Identity]) -> Iterator[PlannedCore]:
        """Yield the cores that would be written, and their sizes; report processes that cannot be converted."""
        jobs = self._jobs(chosen)
        self._check_patterns(jobs)
        with self._workers(jobs) as workers:
            measured = list(self._measured(workers, jobs))
            self.files_size = self._measured_files(workers, [job for job, _ in measured])
            for job, size in measured:
                self._may_be_as_large(job, size)
                yield PlannedCore(job.pid, job.comm, job.target, size.on_disk, size.apparent)

    def _jobs(self, chosen: Sequence[Identity]) -> list[Job]:
        """Return the processes' jobs; from now on it is known whether the run makes an index."""
        self._has_index = (self.options.core.indexed or len(chosen) > 1) and not self.options.core.minidump
        return [self._job(one) for one in chosen]

    def _may_be_as_large(self, job: Job, size: CoreSize) -> bool:
        """Tell whether a file may be as large as a core, and report the core if not."""
        try:
            if self.options.core.compression is None:
                check_size(Path(job.target).parent, size.apparent)
        except OutputError as error:
            self.failed(str(error), job.pid, job.comm)
            return False
        return True

    def run(self, chosen: Sequence[Identity], bars: Callable[[int], Any]) -> None:
        """Write the cores; a failure does not stop the others.

        Args:
            chosen: the processes.
            bars: ``progress.progress_bars``.

        Raises:
            OutputError: the directory cannot be used, or lacks space.
        """
        jobs = self._jobs(chosen)
        self._check_patterns(jobs)
        left = jobs
        if self._has_index:
            left = self._open_directory(chosen)
        elif jobs and not self.options.is_file:
            make_directory(self.directory)
        order = {job.pid: number for number, job in enumerate(jobs)}
        self._is_single = len(left) == 1
        with ExitStack() as stack:
            workers = self._all_workers(left, stack)
            if self.index is not None:
                left = self._begin_index(workers, left)
            self._bar = stack.enter_context(bars(len(left)))
            finished = False
            try:
                for result in self._converted(workers, left):
                    self._add(self._remembered(result))
                    if self._in_parallel:
                        self._bar(result.job.comm)
                self._write_beside(workers, jobs)
                finished = True
            finally:
                self.results.sort(key=lambda result: order[result.job.pid])
                self._close_directory(finished=finished)

    def _check_patterns(self, jobs: Sequence[Job]) -> None:
        """Check, before anything is written, that each pattern of ``--redact`` matches something.

        Raises:
            OutputError: a pattern matches no mapping of any process.
        """
        redaction = self.options.core.redaction
        if redaction is None or not redaction.patterns:
            return
        with self._workers(jobs) as workers:
            measured = [one for one in workers.run(Stage.MEASURE, jobs) if one.error is None]
        if not measured:
            return  # their conversion reports why
        for pattern in redaction.patterns:
            without = sorted(one.job.pid for one in measured if pattern in one.unmatched)
            if len(without) == len(measured):
                raise OutputError(matches_nothing(pattern))
            if without:
                shown = ", ".join(map(str, without[:PIDS_SHOWN])) + (" ..." if len(without) > PIDS_SHOWN else "")
                self.unmatched.append(
                    f"--redact {pattern!r} matches no mapping of {len(without)} of {len(measured)} processes: {shown}"
                )

    def _workers(self, jobs: Sequence[Job]) -> Workers:
        """Return this machine's workers."""
        count = min(self.options.jobs, len(jobs))
        return Workers(self._stages(jobs[0] if count > 1 else None), count)

    def _stages(self, first: Job | None) -> Mapping[Stage, DoJob]:
        """Return the object that does the jobs.

        Args:
            first: the first job, if the workers are separate processes.
        """
        bar: Bar = lambda label: None if self._in_parallel else self._bar(label)  # noqa: E731 - no bar exists yet
        converter = Converter(self.session, self._core_options(), bar=bar)
        if first is not None:
            converter.prepare(first)
        return converter.stages()

    def _core_options(self) -> CoreOptions:
        """Return how to write cores, now that it is known which cores an index keeps."""
        copiers = self.session.copiers(self.options.core) if self._is_single else 1
        return replace(self.options.core, force=self._replace, indexed=self._has_index, copiers=copiers)

    def _here(self, workers: Workers | Pool) -> Workers:
        """Return this machine's workers: a cluster may begin a job twice, and would find its own first half there."""
        return workers if isinstance(workers, Workers) else self._workers([])

    def _measured(self, workers: Workers | Pool, jobs: Sequence[Job]) -> Iterator[tuple[Job, CoreSize]]:
        """Yield the jobs that can be done, with the sizes of their cores; report the others."""
        for result in self._in_order(jobs, workers.run(Stage.MEASURE, jobs)):
            if result.size is not None:
                yield result.job, result.size
            else:
                self.failed(str(result.error), result.job.pid, result.job.comm)

    @property
    def _has_files(self) -> bool:
        """Whether programs and libraries are written beside the cores."""
        return self._has_index and self.options.core.companions

    def _measured_files(self, workers: Workers | Pool, jobs: Sequence[Job]) -> int:
        """Return the most bytes of the programs and libraries that are written beside the cores."""
        if not self._has_files:
            return 0
        from vmcore2core.handover.companions import most_on_disk  # a single core does not need it

        found = self._in_order(jobs, workers.run(Stage.MAP_FILES, jobs))
        return most_on_disk(self.session.processes, self.directory, [result.files for result in found])

    def _in_order(self, jobs: Sequence[Job], results: Iterable[JobResult]) -> list[JobResult]:
        """Return the jobs' results in order; keep what they say about the dump for the final report."""
        of = {result.job.task: result for result in map(self._remembered, results)}
        found = [of[job.task] for job in jobs]
        self._other_results += found
        return found

    def _converted(self, workers: Workers | Pool, jobs: list[Job]) -> Iterator[JobResult]:
        """Yield the cores; a cluster repeats the job of a dead worker, and may find its core written already."""
        for job in list(jobs) if self.options.cluster is not None else ():
            try:
                check_output(Path(job.target), force=self._replace, inputs=self.session.container.paths)
            except OutputError as error:
                self.failed(str(error), job.pid, job.comm)
                jobs.remove(job)
        return workers.run(Stage.CONVERT, jobs)

    def _all_workers(self, jobs: Sequence[Job], stack: ExitStack) -> Workers | Pool:
        """Return the cluster's workers, or this machine's."""
        if self.options.cluster is None:
            return stack.enter_context(self._workers(jobs))
        from vmcore2core.run.cluster import DoOnCluster, beacon  # most runs do not need it
        from vmcore2core.run.pool import Pool

        cluster, dump = self.options.cluster
        folder = Path(jobs[0].target).parent if jobs else self.directory
        seen = stack.enter_context(beacon(folder))
        return Pool(cluster, DoOnCluster(dump, seen, self._core_options(), os.fspath(Path.cwd())))

    @property
    def _in_parallel(self) -> bool:
        return self.options.jobs > 1 or self.options.cluster is not None

    def _remembered(self, result: JobResult) -> JobResult:
        """Return a worker's result, and cache its layout answers for later runs."""
        if self.session.remembered is not None:
            self.session.remembered.learn(result.answers)
        return result

    def _add(self, result: JobResult) -> None:
        job = result.job
        if result.error is not None:
            self.failed(result.error, job.pid, job.comm)
            self._other_results.append(result)
            return
        if self.index is not None and result.entry is not None:
            self.index.add(result.entry)
            result = replace(result, entry=result.entry._replace(json=""))  # the index has it
        self.results.append(result)

    @property
    def directory(self) -> Path:
        """Where the cores go."""
        return self.options.directory

    def _job(self, one: Identity) -> Job:
        return Job(one.pid, text(one.comm), int(one.leader.address), os.fspath(self.options.target(one.leader)))

    def _open_directory(self, chosen: Sequence[Identity]) -> list[Job]:
        """Make the directory; return the jobs that are left."""
        from vmcore2core.handover.html import HTML_NAME  # a single core has no page
        from vmcore2core.handover.tree import check_trees
        from vmcore2core.run.story import story

        make_directory(self.directory)
        check_trees(self.directory)
        hide = self.options.core.hide
        words = options_entry(self.session.options, self.options.core)
        self.index = Index(self.directory, hide(index_head(self.session, words)), hide)
        self.index.story = story(self.session)
        # Without an index, the files in the directory are not from an earlier run.
        self._replace = self.index.resume() if self.options.resume else self.options.core.force
        for path in (self.index.path, self.directory / HTML_NAME):
            if not self._replace and os.path.lexists(path):
                raise OutputExists(f"{path} exists already; --resume goes on with a run, --force replaces it")
            check_output(path, force=True, inputs=self.session.inputs)
        self.index.errors += [{"pid": e["pid"], "comm": None, "error": e["error"]} for e in self.errors]
        left = []
        for one in chosen:
            job = self._job(one)
            entry = self.index.kept(job.pid, job.comm)
            damage = self._damage(one, job, entry) if entry is not None and self.options.check else None
            if damage is not None:
                self._say(f"{job.target} is written again: {damage}")
                self.index.drop(job.pid)
            if entry is None or damage is not None:
                left.append(job)
            else:
                self._say(f"{job.target} is kept: it was finished before")
                self.results.append(_kept(job, entry))
        return left

    def _begin_index(self, workers: Workers | Pool, left: Sequence[Job]) -> list[Job]:
        """Write the index if there is room for the cores; return their jobs, with their sizes."""
        assert self.index is not None  # noqa: S101 - for mypy
        measured = [(job, size) for job, size in self._measured(workers, left) if self._may_be_as_large(job, size)]
        sized = [replace(job, size=size.on_disk) for job, size in measured]
        if self.options.core.compression is None:
            self._check_space(workers, sized)
        self.index.write()
        return sized

    def _check_space(self, workers: Workers | Pool, jobs: Sequence[Job]) -> None:
        """Check that the file system has room for the cores, and the files beside them; if that is not sure, say so.

        Raises:
            OutputError: it is sure to have too little for the cores.
        """
        cores, free = sum(job.size for job in jobs), free_bytes(self.directory)
        if free is None or cores + self._most_of_files() <= free:
            return
        files = self._measured_files(workers, jobs)
        if cores + files <= free:
            return
        if cores > free and self.options.core.redaction is None and is_plain(self.directory):
            least = 0
            for job in jobs:
                leader = self.session.kernel.view("task_struct", job.task)
                captured = self.session.capture(leader, self._core_options())
                least += least_on_disk(captured, self.session.container, free - least)
                if least > free:
                    raise OutputError(
                        f"{self.directory} has room for {amount(free)}, expected more than {amount(least)} for the "
                        f"cores; nothing is written"
                    )
        what = "cores, programs and libraries" if files else "cores"
        self._say(
            f"{self.directory} has room for {amount(free)}, and the {what} take {amount(cores + files)} at most: they "
            f"may not fit"
        )

    def _most_of_files(self) -> int:
        """Return what programs and libraries cannot exceed, found at once: the bytes of the dump's memory."""
        if not self._has_files:
            return 0
        return sum(found.end - found.start for found in self.session.container.memory_ranges())

    def _has_room(self) -> bool:
        """Tell whether there is room for the finished index, its page and the start scripts."""
        assert self.index is not None  # noqa: S101 - for mypy
        free = free_bytes(self.directory)
        return free is None or free >= INDEX_COPIES * self.index.size + FILES_OF_ONE * (1 + len(self.results))

    def _damage(self, one: Identity, job: Job, entry: Entry) -> str | None:
        """Return a sentence if a core that an earlier run finished has changed."""
        from vmcore2core.run.resume_check import damage  # it loads the ELF readers

        return damage(self.session, one.leader, Path(job.target), self._core_options(), entry["core"]["pages"])

    def _write_beside(self, workers: Workers | Pool, jobs: Sequence[Job]) -> None:
        """Write the files beside the finished cores."""
        if self.index is None or not self.options.core.companions:
            return
        if not self._has_room():
            self.failed(
                f"{self.directory} has no room for programs, libraries and start scripts beside the cores", None
            )
            return
        from vmcore2core.handover.companions import Companions, debug_entry  # a single core does not need it
        from vmcore2core.handover.vscode import opened_by

        companions = Companions(
            self.session.processes,
            self.directory,
            force=self._replace,
            secrets=self.options.core.secrets,
        )
        if companions.problem is not None:
            self._say(companions.problem)
        there = [job for job in jobs if self.index.has(job.pid, job.comm)]
        found = {result.job.task: result for result in self.results if result.entry is not None}
        earlier = [job for job in there if job.task not in found]
        found |= {r.job.task: r for r in self._in_order(earlier, workers.run(Stage.FIND_FILES, earlier))}
        for job in there:
            companions.learn(found[job.task].files)
        self._write_files(workers, companions, [found[job.task].files for job in there])
        beside = [companions.add(found[job.task].error or found[job.task].files) for job in there]
        if companions.no_room or not self._has_room():
            # Debuggers work without these files, but nobody knows of the cores without the index.
            companions.remove()
            said = f"{self.directory} has no room for programs and libraries, so the cores have none beside them"
            self.failed(said, None)
            beside = [(None, [said]) for _ in beside]
        work = [
            # Scripts hold only the names of files.
            replace(
                job,
                recovered=recovered and replace(recovered, files=(), sentences=()),
                images=found[job.task].images,
                without_cfi=found[job.task].without_cfi,
            )
            for job, (recovered, _) in zip(there, beside, strict=True)
        ]
        scripts = self._in_order(there, self._here(workers).run(Stage.WRITE_SCRIPTS, work))
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
            for notice in entry["notices"] if self.options.core.verbose else ():
                self._say(f"{job.pid} ({job.comm}): {notice}")

    def _write_files(
        self, workers: Workers | Pool, companions: Companions, mapped: Sequence[MappedFiles | str | None]
    ) -> None:
        """Write the programs and libraries of all processes, each once."""
        from vmcore2core.handover.written import WrittenFile

        work = [file_job(file) for file in companions.plan(mapped)]
        for result in map(self._remembered, workers.run(Stage.WRITE_FILE, work)):
            file = result.job.file
            assert file is not None  # noqa: S101 - for mypy
            companions.wrote(file, result.written or WrittenFile(None, (str(result.error),)))
            self._other_results.append(result)

    def _write_launch_json(self, cores: Sequence[OpenedCore]) -> None:
        """Write the settings by which VS Code opens the cores; the cores are complete without them."""
        from vmcore2core.handover.vscode import write_launch_json

        try:
            write_launch_json(
                self.directory,
                cores,
                self.session.boot.utsname.machine,
                force=self._replace,
                secrets=self.options.core.secrets,
            )
        except OutputError as error:
            self._say(str(error))

    def _close_directory(self, *, finished: bool) -> None:
        if self.index is None:
            return
        from vmcore2core.handover.html import write_page
        from vmcore2core.process.deadlock import cycles

        if finished:
            self.index.remove_parts()
        self.index.warnings = self._with_workers("warnings", self.session.warnings)
        notices = self._with_workers("notices", self.session.notices)
        self.index.story |= {"notices": notices, "deadlocks": cycles(self.index.waits())}
        self.index.write(finished=finished)
        write_page(self.directory, self.index.top(finished=finished), self.index.entries())

    def report(self) -> RunReport:
        """Return the final report, with the workers' sentences."""
        report = RunReport(
            cores=[result.report for result in self.results if result.report is not None],
            errors=self.errors,
            unmatched=self.unmatched,
        ).with_dump(self.session)
        for result in self.results:
            report.provenance |= result.provenance
        report.warnings = self._with_workers("warnings", report.warnings)
        report.notices = self._with_workers("notices", report.notices)
        return report

    def _with_workers(self, kind: str, own: Sequence[str]) -> list[str]:
        """Return the sentences about the dump as a whole, the workers' included, without repeats."""
        results = (*self._other_results, *self.results)
        return list(dict.fromkeys((*own, *(sentence for result in results for sentence in getattr(result, kind)))))


def _kept(job: Job, entry: Entry) -> JobResult:
    """Return the result of a core that an earlier run finished."""
    core = entry["core"]
    line = core_line(job.target, core["missing"], len(entry["threads"]), core["pages"], complete=core["complete"])
    summary = {"pid": job.pid, "comm": job.comm, "path": job.target, "complete": core["complete"], "kept": True}
    return JobResult(job, report=CoreReport(line, summary, complete=core["complete"]))
