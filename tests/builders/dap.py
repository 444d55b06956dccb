"""A client of the Debug Adapter Protocol, as editors are: requests on stdin, responses and events on stdout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT = 60


class Client:
    """A debug adapter that was started.

    Args:
        command: of the adapter.
        environment: of it.
        folder: where it runs.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._sent = 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            cwd=folder,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=TIMEOUT)

    def send(self, command: str, **arguments: Any) -> int:
        """Send a request, and return its number."""
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        raw = json.dumps(message).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
        self._process.stdin.flush()
        return self._sent

    def answer(self, number: int) -> dict[str, Any]:
        """Return the response to a request."""
        while number not in self._answers:
            self._take()
        return self._answers.pop(number)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request, and return the body of its response."""
        found = self.answer(self.send(command, **arguments))
        assert found["success"], found
        body: dict[str, Any] = found.get("body") or {}
        return body

    def wait_for(self, *events: str) -> None:
        """Wait until an event has come."""
        while not any(event["event"] in events for event in self.events):
            self._take()

    def _take(self) -> None:
        assert self._process.stdout is not None
        size = 0
        while line := self._process.stdout.readline().strip():
            size = int(line.partition(b":")[2])
        assert size, "the adapter has ended"
        message = json.loads(self._process.stdout.read(size))
        if message["type"] == "event":
            self.events.append(message)
        elif message["type"] == "response":
            self._answers[message["request_seq"]] = message


def opened(client: Client, configuration: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Open a core as an editor does with a configuration of launch.json, and return each thread's frames."""
    client.ask("initialize", adapterID=configuration["type"], linesStartAt1=True, pathFormat="path")
    own = ("name", "type", "request", "presentation")
    begun = client.send(configuration["request"], **{k: v for k, v in configuration.items() if k not in own})
    # The response may come before configurationDone, or only after it.
    client.wait_for("initialized")
    client.ask("configurationDone")
    answer = client.answer(begun)
    assert answer["success"], answer
    client.wait_for("stopped")
    threads = client.ask("threads")["threads"]
    return {one["id"]: client.ask("stackTrace", threadId=one["id"])["stackFrames"] for one in threads}
