"""index.html in a browser: what is in the table, and that a name is never markup."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.needs import need
from vmcore2core.handover.html import page, write_html

HOSTILE = "<img src=x onerror=document.title='hit'>"
ENDS_SCRIPT = "</script><script>document.title='hit'</script><!--\u2028&amp;"


def process(pid: int, comm: str, *, missing: int = 0) -> dict[str, Any]:
    return {
        "pid": pid,
        "nspid": [pid, 1],
        "comm": comm,
        "exe": "/bin/" + comm,
        "command_line": ENDS_SCRIPT,
        "uid": None,
        "state": "S",
        "cgroups": ["/docker/" + "ab" * 32],
        "containers": ["ab" * 32],
        "rss_kib": 1024,
        "page_size": 4096,
        "core": {
            "file": f"core.{pid}",
            "size": 4096,
            "file_size": 4096,
            "mtime_ns": 0,
            "complete": not missing,
            "pages": 1,
            "missing": missing,
            "absent": {},
            "threads_left_out": [{"tid": pid + 1, "comm": HOSTILE, "reason": "gone"}],
            "warnings": [HOSTILE],
            "notices": [],
        },
        "threads": [
            {
                "tid": pid,
                "comm": comm,
                "state": "S",
                "registers": "kernel stack",
                "frames": [
                    {
                        "address": "0x401000",
                        "function": f"function_of_{pid}",
                        "offset": "0x10",
                        "file": HOSTILE,
                        "signal_trampoline": False,
                    }
                ],
                "end": HOSTILE,
            }
        ],
        "vmas": [
            {
                "start": "0x400000",
                "end": "0xffffffffff600000",
                "permissions": "r-xp",
                "file_pages_offset": 0,
                "name": HOSTILE,
                "in_core": "yes",
                "pages": {"present": 3, "page_cache": 1, "excluded": 2},
            }
        ],
        "debug": {"sysroot": None, "program": None, "scripts": [f"core.{pid}.gdb"], "notices": []},
        "images": [{"name": HOSTILE, "start": "0x400000", "build_id": None}],
    }


def document(*processes: dict[str, Any]) -> str:
    return json.dumps(
        {
            "tool": "vmcore2core 0",
            "started": "then",
            "finished": "now",
            "dump": {"files": [{"name": "vmcore", "size": 1, "mtime_ns": 0}], "format": "ELF", "dump_level": None},
            "kernel": {
                "machine": "x86_64",
                "nodename": "machine-17",
                "release": "7.2.0",
                "version": "#1",
                "build_id": None,
                "panic": "sysrq triggered crash",
                "crash_time": 1764156000,
            },
            "warnings": [HOSTILE],
            "errors": [{"pid": 9, "comm": None, "error": HOSTILE}],
            "processes": list(processes),
        }
    )


def rendered(folder: Path, fragment: str = "") -> str:
    chromium = need("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    url = (folder / "index.html").as_uri() + fragment
    return subprocess.run([chromium, *options, url], capture_output=True, text=True, timeout=120, check=True).stdout


class Elements(HTMLParser):
    """The elements of a document, without what is in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data


def test_the_page_has_no_other_script_or_address() -> None:
    text = page(document(process(1, HOSTILE)))
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "\u2028" not in text
    assert not re.search(r"https?:|src=\"|href=", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    block = re.search(r'<script type="application/json" id="index">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["processes"][0]["command_line"] == ENDS_SCRIPT


def test_a_browser_shows_the_processes(tmp_path: Path) -> None:
    write_html(tmp_path / "index.html", document(process(30, "postgres"), process(4, HOSTILE, missing=7)))
    dom = rendered(tmp_path)
    found = Elements(dom)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", dom[dom.index("<tbody>") : dom.index("</tbody>")], re.DOTALL)
    assert len(rows) == 2
    assert [re.sub("<[^>]*>", "", row.split("</td>")[0]) for row in rows] == ["4", "30"]
    for words in ("machine-17", "Kernel panic: sysrq triggered crash", "2025-11-26 11:20:00 UTC", "2 processes"):
        assert words in found.text
    for words in ("postgres", "function_of_30", "7 pages missing", HOSTILE, "abababababab"):
        assert words in found.text
    assert "img" not in found.tags
    assert "<title>Cores of machine-17</title>" in dom
    assert (tmp_path / "index.html").stat().st_mode & 0o777 == 0o600


def test_a_browser_shows_a_process_with_its_threads_and_memory(tmp_path: Path) -> None:
    write_html(tmp_path / "index.html", document(process(30, HOSTILE)))
    found = Elements(rendered(tmp_path, "#30"))
    for words in (
        "function_of_30+0x10",
        "page cache: 1",
        "excluded from the dump: 2",
        "1 ELF image",
        "PID 30 (1 in its",
    ):
        assert words in found.text
    assert found.text.count(HOSTILE) > 8
    assert "img" not in found.tags
