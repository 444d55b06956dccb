"""``python -m vmcore2core.capture``, run by the capture kernel's service: no option parser, no help, little memory.

Exit status: 0 all cores are whole, or nothing is to be captured; 1 an error; 2 the configuration makes no sense;
3 cores are left out or hold stacks alone: ``index.json`` and ``capture.log`` beside them say which and why.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from vmcore2core.capture.config import DEFAULT_PATH, Config, read_config
from vmcore2core.errors import OutputError, UsageError, Vmcore2coreError, sentence_of
from vmcore2core.folders import opened_folder
from vmcore2core.printable import lines

COMPLETE, ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3
PROC_VMCORE = Path("/proc/vmcore")


class Log:
    """Writes sentences to stderr and, once it is open, to a file."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._before: list[str] = []

    def __call__(self, sentence: str) -> None:
        """Say a sentence."""
        line = f"{time.strftime('%H:%M:%S')} {lines(sentence)}\n"
        print(f"vmcore2core capture: {lines(sentence)}", file=sys.stderr, flush=True)
        if self._file is None:
            self._before.append(line)
        else:
            self._write(line)

    def open(self, name: str, folder: int) -> None:
        """Copy all sentences, earlier and later ones, to a new file in an open directory.

        Raises:
            OSError: it cannot be made.
        """
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(name, new, 0o600, dir_fd=folder), "w")
        self._write("".join(self._before))

    def _write(self, text: str) -> None:
        assert self._file is not None  # noqa: S101 - for mypy
        try:
            self._file.write(text)
            self._file.flush()
        except OSError:  # a full disk must not end the run
            self._file = None


def capture(config: Config, dump: Path, say: Log) -> int:
    """Write the cores that the configuration asks for; return the exit status.

    Raises:
        Vmcore2coreError: there is no usable dump, or no directory for the cores.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from vmcore2core.capture.run import CORES, DATE_FORMAT, LOG_NAME, Capture, TimeUp, time_limit
    from vmcore2core.session import OpenOptions, Session

    directory = config.directory / time.strftime(DATE_FORMAT) / CORES
    try:
        with opened_folder(directory, make=True) as folder:
            say.open(LOG_NAME, folder)
    except OSError as error:
        raise OutputError(f"{directory} cannot be written to: {error.strerror}") from error
    try:
        with time_limit(config.limits.seconds), Session([dump], OpenOptions(remember=True)) as session:
            run = Capture(session, config, directory, say)
            run.run()
    except TimeUp as over:
        raise OutputError(f"{over}, and no core was begun: the kernel's structures were not known yet") from None
    say(f"{len(run.whole)} whole cores, {len(run.stacks)} of stacks alone, {len(run.nothing)} processes without a core")
    wanted_stacks = all(target.stacks_only for target in run.stacks)
    return COMPLETE if run.finished and wanted_stacks and not run.nothing else INCOMPLETE


def main(path: Path = DEFAULT_PATH, dump: Path = PROC_VMCORE) -> int:
    """Capture the configured processes; do nothing without a configuration."""
    say = Log()
    try:
        config = read_config(path)
        if config is None:
            say(f"{path} is not there: nothing is captured")
            return COMPLETE
        return capture(config, dump, say)
    except UsageError as error:
        say(str(error))
        return USAGE
    except Vmcore2coreError as error:
        say(str(error))
    except Exception as error:  # afterwards only the service's log remains
        say(sentence_of(error))
    return ERROR


if __name__ == "__main__":
    # Hide capstone: it takes 7 MiB, only to name places without call frame information in the index.
    sys.modules["capstone"] = None  # type: ignore[assignment]
    sys.exit(main(*map(Path, sys.argv[1:3])))
