"""A web server with one file, and a list of the requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """A web server with one file.

    Attributes:
        content: of the file.
        ranges: whether it gives parts of it.
        tells_size: whether it says how large it is.
        sent: bytes of contents so far.
        asked: the ranges that were asked for.
        tags: whether each answer says another version.
        minds: whether it heeds If-Match.
        gives: after how many requests it fails; None for never.
        versions: headers that tell the version; None for a strong ETag of the content.
    """

    url: str
    content: bytes = b""
    ranges: bool = True
    tells_size: bool = True
    sent: int = 0
    asked: list[str] = field(default_factory=list)
    tags: bool = False
    minds: bool = True
    gives: int | None = None
    versions: dict[str, str] | None = None

    @property
    def gets(self) -> int:
        """How many parts of the file were asked for."""
        return sum(1 for wanted in self.asked if wanted)


@contextmanager
def serving() -> Iterator[Server]:
    """Yield a server that runs as long as the block."""
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        def answer(self, *, body: bool) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted or "")
            part = state.content
            tag = f'"{hash(state.content)}{len(state.asked) if state.tags else ""}"'
            if state.minds and self.headers.get("If-Match", tag) != tag:
                self.send_response(412)
                part = b"another one"
            elif state.gives is not None and len(state.asked) > state.gives:
                self.send_response(500)
                part = b"out of order"
            elif self.path == "/around":
                self.send_response(302)
                self.send_header("Location", self.path)
                part = b""
            elif self.path.partition("?")[0] != "/vmcore":
                self.send_response(404)
                part = b"nothing here"
            elif wanted and state.ranges:
                first, last = wanted.removeprefix("bytes=").split("-")
                part = part[int(first) : int(last) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(state.content)}")
            else:
                self.send_response(200)
            for name, value in (state.versions or {"ETag": tag}).items():
                self.send_header(name, value)
            if state.tells_size:
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if body:
                state.sent += len(part)
                self.wfile.write(part)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/vmcore"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()
