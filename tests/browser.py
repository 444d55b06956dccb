"""Chromium, driven through a pipe: what a page shows and does in a real browser, and the contents of its files.

Reference: https://chromedevtools.github.io/devtools-protocol/; with ``--remote-debugging-pipe``, messages are JSON,
each with a NUL behind it, on descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.needs import need

PATIENCE = 60.0


def page_data(folder: Path, name: str) -> Any:
    """Return what a file of the page's data has, as the call in it would pass it on."""
    text = (folder / "index.data" / f"{name}.js").read_text("ascii")
    call = re.fullmatch(rf"loaded\('{name}','((?:[^'\\\n]|\\[\\'])*)'\)\n", text)
    assert call is not None, text[:200]
    return json.loads(re.sub(r"\\(.)", r"\1", call[1]))


class Browser:
    """A browser with one tab.

    Args:
        folder: where it keeps what it has to keep.
    """

    def __init__(self, folder: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        command = [need("chromium"), *options, f"--user-data-dir={folder}", "about:blank"]
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def descriptors() -> None:
            # Copies that lie above 4, so that none is closed by the other's place.
            copies = [os.dup2(fd, 10 + number) for number, fd in enumerate((theirs_in, theirs_out))]
            os.dup2(copies[0], 3)
            os.dup2(copies[1], 4)

        self._process = subprocess.Popen(
            command, preexec_fn=descriptors, pass_fds=(3, 4), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._left, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        targets = self.ask("Target.getTargets")["targetInfos"]
        tab = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the browser's answer to a command."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            assert select.select([self._in], [], [], deadline - time.monotonic())[0], "the browser says nothing"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser has ended"
            self._left += piece
        raw, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        return found

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a page from disk, afresh, and wait until it shows what it loads."""
        self.ask("Page.navigate", url="about:blank")
        self.events.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri() + fragment)
        self.until("document.readyState === 'complete' && document.body.dataset.state === 'ready'")

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"{expression} is not true after {PATIENCE} s"
            time.sleep(0.01)

    def text(self, selector: str = "body") -> str:
        """Return the text that is shown of an element."""
        found: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    def press(self, key: str, text: str = "") -> None:
        """Press a key."""
        typed = {"text": text} if text else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **typed, **_code(key))
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **_code(key))

    def write(self, text: str) -> None:
        """Type text where the focus is."""
        self.ask("Input.insertText", text=text)

    def size(self, width: int, height: int = 900) -> None:
        """Give the window a size in CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def like(self, **features: str) -> None:
        """Have media features, as ``forced_colors="active"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.ask("Emulation.setEmulatedMedia", features=named)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self.ask("Page.printToPDF")["data"])

    def complaints(self) -> list[str]:
        """Return what the browser's console has to say: errors, and what the policy refused."""
        self.run("0")
        found = []
        for event in self.events:
            if event["method"] == "Log.entryAdded":
                found.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
        return found


def _code(key: str) -> dict[str, int]:
    codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}
    return {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
