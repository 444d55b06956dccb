"""``vmcore-tasks info``."""

from typing import Any

from vmcore2core.commands import options
from vmcore2core.commands.document import print_document
from vmcore2core.commands.opening import DumpOptions, opened, takes_dump


@takes_dump
def info(
    *,
    as_json: options.AsJson = False,
    dump: DumpOptions,
) -> None:
    """Say what the dump is, why the kernel died, and what is not known."""
    with opened(dump) as session:
        from vmcore2core import tasks

        document = tasks.info(session)
        if as_json:
            print_document("vmcore-tasks-info", info=document)
            return
        for key, value in document.items():
            if value is None or value == []:
                continue
            if isinstance(value, list):
                print(f"{key.replace('_', ' ')}:")
                for item in value:
                    print(f"  {_in_words(item) if isinstance(item, dict) else item}")
            elif isinstance(value, dict):
                print(f"{key}: {', '.join(f'{n} {name}' for name, n in value.items())}")
            else:
                print(f"{key.replace('_', ' ')}: {value}")


def _in_words(item: dict[str, Any]) -> str:
    """Return what is known of an item on one line: "cpu 1, pid 812, user mode yes"."""
    yes_or_no = {True: "yes", False: "no"}
    known = {key: value for key, value in item.items() if value is not None}
    words = {k: yes_or_no[value] if isinstance(value, bool) else value for k, value in known.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in words.items())
