"""``vmcore2core capture``: cores in kdump's capture kernel."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcore2core.commands import options
from vmcore2core.commands.progress import one_bar
from vmcore2core.commands.terminal import Exit, begin, catch_interrupts, run_command, say

if TYPE_CHECKING:
    from vmcore2core.capture.config import Config
    from vmcore2core.capture.install import Installed

CONFIG = "/etc/vmcore2core/capture.toml"
PROC_KCORE = Path("/proc/kcore")
CACHE = "/var/cache"
"""Where the capture kernel's service looks for the layout that ``--check`` learned."""

app = options.new_app("vmcore2core")


@app.command()
def capture(
    config: Annotated[Path, typer.Argument(help="The configuration: what to capture, and the limits.")] = Path(CONFIG),
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the configuration. As root, also say what would be captured from this machine now."
        ),
    ] = False,
    install: Annotated[
        bool, typer.Option("--install", help="Make kdump's capture kernel run this command before it writes the dump.")
    ] = False,
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Remove the files that --install made.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --install or --uninstall: do not ask.")] = False,
    dump: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The kernel's memory. Default: /proc/vmcore, with --check /proc/kcore."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write cores of chosen processes in the capture kernel, before makedumpfile drops their memory.

    Registers and stacks of all chosen processes are written first, then whole cores, as time and disk space allow.

    Exit status: 0 all cores are whole; 1 error; 2 wrong usage; 3 some cores have only stacks, or are missing.
    """
    if check + install + uninstall > 1:
        raise typer.BadParameter("--check, --install and --uninstall: expected only one of the three")
    if yes and not (install or uninstall):
        raise typer.BadParameter("--yes requires --install or --uninstall")
    begin(0, debug=debug)
    if not (check or install or uninstall):
        from vmcore2core.capture.__main__ import PROC_VMCORE
        from vmcore2core.capture.__main__ import main as run

        raise typer.Exit(run(config, dump or PROC_VMCORE))
    from vmcore2core.capture.config import read_config
    from vmcore2core.capture.install import files
    from vmcore2core.errors import UsageError

    catch_interrupts()
    found = read_config(config)
    if found is None:
        raise UsageError(f"{config} is not there: nothing would be captured")
    if check:
        raise typer.Exit(_check(found, dump or PROC_KCORE))
    wanted = files(found, config.resolve())
    (_install if install else _uninstall)(wanted, ask=not yes)


def _check(config: "Config", memory: Path) -> Exit:
    """Say what would be captured of the running machine, or of a dump."""
    from vmcore2core.capture.check import would_capture

    if not os.access(memory, os.R_OK):
        print(f"the configuration is good; {memory} cannot be read, so what it would capture is not known")
        return Exit.COMPLETE
    os.environ.setdefault("XDG_CACHE_HOME", CACHE)
    for line in would_capture(config, memory, say, one_bar):
        print(line)
    return Exit.COMPLETE


def _install(wanted: "list[Installed]", *, ask: bool) -> None:
    from vmcore2core.capture.install import advice, write

    for one in wanted:
        print(f"{one.path} -> {one.target}\n" if one.text is None else f"{one.path}:\n{one.text}")
    if ask and not typer.confirm("Write these?"):
        raise typer.Exit(Exit.ERROR)
    for one in wanted:
        write(one)
    for sentence in advice(wanted):
        print(f"now run: {sentence}")


def _uninstall(wanted: "list[Installed]", *, ask: bool) -> None:
    from vmcore2core.capture.install import remove

    there = [one for one in wanted if one.is_ours()]
    for one in there:
        print(one.path)
    if there and ask and not typer.confirm("Remove these?"):
        raise typer.Exit(Exit.ERROR)
    for one in there:
        remove(one)


def main() -> None:
    """Run ``vmcore2core capture``; the word has been taken from the command line."""
    run_command(app, "vmcore2core capture")
