"""``vmcore-tasks``: what was running on the machine, from its dump."""

from vmcore2core.commands import options
from vmcore2core.commands.tasks.bt import bt
from vmcore2core.commands.tasks.dmesg import dmesg
from vmcore2core.commands.tasks.dump import dump
from vmcore2core.commands.tasks.files import files
from vmcore2core.commands.tasks.info import info
from vmcore2core.commands.tasks.layout import layout
from vmcore2core.commands.tasks.maps import maps
from vmcore2core.commands.tasks.ps import ps
from vmcore2core.commands.tasks.regs import regs
from vmcore2core.commands.tasks.threads import threads
from vmcore2core.commands.tasks.waits import waits
from vmcore2core.commands.terminal import run_command

app = options.new_app(
    "vmcore-tasks", "Show the processes in a Linux kernel crash dump, without kernel debug information."
)


@app.callback()
def vmcore_tasks(*, version: options.Version = False) -> None:
    """Take the options before a command; typer's callback has printed the version."""


for command in (ps, threads, regs, bt, maps, files, waits, dump, info, dmesg, layout):
    app.command()(command)


def main() -> None:
    """Run the command; every error is one sentence and an exit status."""
    run_command(app, "vmcore-tasks")
