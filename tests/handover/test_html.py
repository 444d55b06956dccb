"""index.html and its data: names are never markup, and a browser shows what the index has.

Tests handover/page_data.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, page_data
from vmcore2core.errors import OutputError
from vmcore2core.handover.html import page, write_page
from vmcore2core.handover.page_data import ProcessTable

HOSTILE = "<img src=x onerror=document.title='hit'>"
ENDS_SCRIPT = "</script><script>document.title='hit'</script><!--\u2028&amp;'\\');document.title='hit'//"
SMALL = 100_000
"""Bytes of a page, whatever the machine; its data comes from other files."""


def process(pid: int, comm: str, *, missing: int = 0, threads: int = 1, mappings: int = 1) -> dict[str, Any]:
    return {
        "pid": pid,
        "nspid": [pid, 1],
        "comm": comm,
        "exe": "/bin/" + comm,
        "command_line": ENDS_SCRIPT,
        "uid": None,
        "gid": 0,
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
            "absent": {"excluded": missing} if missing else {},
            "threads_left_out": [{"tid": pid + 100, "comm": HOSTILE, "reason": "gone"}] if missing else [],
            "warnings": [HOSTILE] if missing else [],
            "notices": [],
        },
        "threads": [thread(pid, pid + number, comm) for number in range(threads)],
        "vmas": [
            {
                "start": f"{0x400000 + 0x2000 * number:#x}",
                "end": f"{0x401000 + 0x2000 * number:#x}",
                "permissions": "r-xp",
                "file_pages_offset": 0,
                "name": HOSTILE,
                "in_core": "yes",
                "pages": {"present": 3, "page_cache": 1, "excluded": 2},
            }
            for number in range(mappings)
        ],
        "files": [
            {
                "pid": pid,
                "tid": pid,
                "comm": comm,
                "cwd": HOSTILE,
                "root": "/",
                "warnings": [HOSTILE],
                "files": [
                    {
                        "fd": 3,
                        "path": HOSTILE,
                        "kind": "FIFO",
                        "access": "r",
                        "pos": "0xfff",
                        "details": {"pipe": HOSTILE},
                        "socket": None,
                        "other_ends": [{"pid": pid, "comm": comm, "fd": 4, "access": "w"}] * 9,
                        "other_ends_count": 1000,
                        "problem": HOSTILE,
                    }
                ],
            }
        ],
        "debug": {"sysroot": None, "program": None, "scripts": [f"core.{pid}.gdb"], "notices": []},
        "images": [{"name": HOSTILE, "start": "0x400000", "build_id": None}],
    }


def thread(pid: int, tid: int, comm: str) -> dict[str, Any]:
    return {
        "tid": tid,
        "comm": comm,
        "state": "S",
        "registers": "kernel stack",
        "frames": [
            {
                "address": "0x401000",
                "function": f"function_of_{pid}",
                "offset": "0x10",
                "file": "/lib/" + HOSTILE,
                "signal_trampoline": False,
                "found_by": "CFI",
                "inlined": [],
            }
        ],
        "end": HOSTILE,
        "kernel": {
            "frames": [
                {"address": "0xf", "function": name, "offset": "0x1", "module": None, "found_by": "ORC"}
                for name in ("__schedule", "pipe_read")
            ],
            "end": HOSTILE,
        },
        "system_call": {"number": 0, "name": "read", "arguments": [{"name": "fd", "value": "0x3", "text": HOSTILE}]},
        "since": "7.250000000",
        "wait": {"kind": "pipe", "what": "pipe of " + HOSTILE, "address": None, "holders": [tid], "all_known": True},
        "wanted": [],
    }


def head(**kernel: Any) -> dict[str, Any]:
    return {
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
            **kernel,
        },
        "crash": {
            "panic": "sysrq triggered crash",
            "oops": HOSTILE,
            "time": None,
            "cpu": 1,
            "pid": 30,
            "comm": HOSTILE,
            "process": None,
            "process_comm": None,
            "trace": [HOSTILE],
        },
        "cpus": [
            {"cpu": 0, "pid": 0, "comm": None, "process": None, "process_comm": None, "user_mode": False},
            {"cpu": 1, "pid": 31, "comm": HOSTILE, "process": 30, "process_comm": HOSTILE, "user_mode": True},
        ],
        "messages": [HOSTILE],
        "blocked": [{"pid": 30, "tid": 31, "comm": HOSTILE, "frames": ["schedule", HOSTILE]}],
        "deadlocks": [[30, 31]],
        "unknown": [HOSTILE],
        "left_out": ["user data"],
        "notices": [HOSTILE],
        "warnings": [HOSTILE],
        "errors": [{"pid": 9, "comm": None, "error": HOSTILE}],
    }


class Elements(HTMLParser):
    """The elements of a document, without what is in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data


def test_the_page_has_no_other_script_and_no_address() -> None:
    text = page(head(nodename=HOSTILE, version=ENDS_SCRIPT))
    found = Elements(text)
    assert (found.tags.count("script"), found.tags.count("style"), found.tags.count("img")) == (2, 1, 0)
    assert text.count("<script") == text.count("</script>") == 2
    assert "\u2028" not in text
    assert not re.search(r"https?:|\bsrc=\"", text)
    assert not [name for name in found.attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|\bfetch\(", text)
    block = re.search(r'<script type="application/json" id="head">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["kernel"]["version"] == ENDS_SCRIPT


def test_its_policy_lets_nothing_else_run() -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page(head()))
    assert policy is not None
    rules = dict(rule.split(maxsplit=1) for rule in policy[1].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", rules["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["style-src"])
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules.keys() <= {
        *("default-src", "script-src", "style-src", "base-uri", "form-action"),
        *("require-trusted-types-for", "trusted-types"),
    }


@pytest.mark.parametrize("name", ["(none)", ""])
def test_a_machine_without_a_name_is_called_by_its_dump(name: str) -> None:
    assert "<title>vmcore</title>" in page(head(nodename=name))


def test_the_page_is_small_whatever_the_machine(tmp_path: Path) -> None:
    write_page(tmp_path, head(), (process(pid, f"p{pid}", threads=4, mappings=50) for pid in range(1, 301)))
    assert (tmp_path / "index.html").stat().st_size < SMALL
    table = tmp_path / "index.data" / "processes.js"
    assert table.stat().st_size < 300 * 500
    assert page_data(tmp_path, "processes")["pid"] == list(range(1, 301))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "index.data").iterdir()} == {0o600}


def test_the_data_says_what_the_index_says(tmp_path: Path) -> None:
    entry = process(30, HOSTILE, missing=7, threads=3, mappings=2)
    write_page(tmp_path, head(), [entry])
    found = page_data(tmp_path, "30")
    vmas = found.pop("vmas")
    del entry["core"]["mtime_ns"]
    assert found == {name: value for name, value in entry.items() if name != "vmas"}
    assert [
        (f"0x{row[0]}", f"0x{row[1]}", vmas["permissions"][row[2]], vmas["names"][row[3]]) for row in vmas["rows"]
    ] == [(vma["start"], vma["end"], vma["permissions"], vma["name"]) for vma in entry["vmas"]]
    assert [row[4:] for row in vmas["rows"]] == [[1, entry["vmas"][0]["pages"]]] * 2
    table = page_data(tmp_path, "processes")
    assert table["errors"] == head()["errors"]
    assert [table["texts"][number] for number in table["command"]] == [ENDS_SCRIPT]
    assert (table["missing"], table["complete"]) == ([7], [False])
    ((threads),) = table["threads"]
    assert [tid for tid, _, _ in threads] == [30, 31, 32]
    assert table["stacks"][threads[2][2]] == [[0, 1], [2]]


def test_functions_are_the_kernels_the_inlined_and_the_programs(tmp_path: Path) -> None:
    entry = process(30, "app")
    (frame,) = entry["threads"][0]["frames"]
    frame["inlined"] = [{"function": "inner", "file": "a.c", "line": 1}, {"function": None, "file": None, "line": None}]
    unnamed = {**frame, "function": None, "inlined": [], "file": "/lib/libc.so.6"}
    entry["threads"][0] |= {"frames": [frame, unnamed, {**unnamed, "signal_trampoline": True}]}
    write_page(tmp_path, head(), [entry])
    assert page_data(tmp_path, "processes")["functions"] == [
        *("__schedule", "pipe_read", "inner", "?", "function_of_30", "0x401000 (libc.so.6)", "<signal trampoline>")
    ]


def test_a_directory_without_processes_has_a_page(tmp_path: Path) -> None:
    write_page(tmp_path, head(), [])
    assert page_data(tmp_path, "processes")["pid"] == []


@pytest.mark.parametrize("threads", [None, [5], [{"tid": 30}]])
def test_an_entry_of_another_form_is_an_error(tmp_path: Path, threads: Any) -> None:
    with pytest.raises(OutputError, match="entry of process 30 is not as this version writes it"):
        write_page(tmp_path, head(), [{**process(30, "a"), "threads": threads}])
    assert not (tmp_path / "index.html").exists()


def test_processes_of_an_earlier_run_are_gone_and_other_files_stay(tmp_path: Path) -> None:
    write_page(tmp_path, head(), [process(30, "a"), process(31, "b")])
    (tmp_path / "index.data" / "notes.txt").write_text("mine")
    write_page(tmp_path, head(), [process(31, "b")])
    assert {path.name for path in (tmp_path / "index.data").iterdir()} == {"31.js", "processes.js", "notes.txt"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.size(1600)
        yield browser


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two processes with hostile names, and a large one."""
    folder = tmp_path_factory.mktemp("cores")
    processes = [
        process(4, HOSTILE, missing=7),
        process(30, "postgres", threads=3),
        process(500, "vast", threads=2, mappings=65_530),
    ]
    processes[2]["exe"] = "/srv/it's $(here)"
    processes[2]["core"]["file"] += ".zst"
    processes[2]["debug"] = None
    write_page(folder, head(), processes)
    return folder


def test_a_browser_shows_the_machine_and_the_processes(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html")
    text = browser.text()
    for words in ("machine-17", "Kernel panic: sysrq triggered crash", "2025-11-26 11:20:00 UTC", "3 processes"):
        assert words in text
    for words in (
        "postgres",
        "function_of_30",
        "7 pages missing",
        "1 process not converted",
        "3 threads of postgres 30",
    ):
        assert words in text
    rows = browser.run(
        "[...document.querySelectorAll('#table tbody tr[aria-rowindex]')].map((r) => r.cells[0].innerText)"
    )
    assert rows == ["4", "30", "500"]
    for words in (
        "CPU 1 " + HOSTILE,
        "in user mode",
        "postgres 30 waits for postgres 31 waits for postgres 30",
        "user data",
    ):
        assert words in text
    assert text.count(HOSTILE) >= 12
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title") == "machine-17"
    assert browser.complaints() == []


def test_a_browser_shows_a_process_beside_the_table(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html", "#4")
    text = browser.text("#panel")
    for words in ("PID 4 (1 in its namespaces)", "function_of_4+0x10", "makedumpfile -d 17", "gdb -x core.4.gdb"):
        assert words in text
    for words in ("asleep for 7.250 s, waits for pipe of", "pipe_read+0x1", "read(fd=" + HOSTILE):
        assert words in text
    assert text.count(HOSTILE) >= 7
    assert 0 < browser.run("document.querySelector('#panel h2').getBoundingClientRect().top") < 300
    browser.open(cores / "index.html", "#pid=4&tab=memory")
    for words in ("page cache: 1", "excluded from the dump: 2", "400000-401000", HOSTILE):
        assert words in browser.text("#panel")
    browser.open(cores / "index.html", "#pid=4&tab=files")
    assert browser.text("#panel").count(HOSTILE) >= 6
    assert "4095" in browser.text(".files")
    assert "fd 4 and 992 more" in browser.text(".files")
    browser.open(cores / "index.html", "#pid=4&tab=images")
    assert HOSTILE in browser.text("#panel")
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


def test_the_search_finds_by_name_number_container_and_function(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html")
    found = {}
    for words in ("postg", "32", "abababababab", "function_of_30", "postgres 4", "nobody"):
        browser.run("document.getElementById('search').value = ''")
        browser.press("/")
        browser.write(words)
        found[words] = browser.text("#count")
    assert found == {
        "postg": "1 of 3 processes",
        "32": "1 of 3 processes",
        "abababababab": "3 processes",
        "function_of_30": "1 of 3 processes",
        "postgres 4": "0 of 3 processes",
        "nobody": "0 of 3 processes",
    }


def test_each_letter_of_a_search_in_5000_processes_takes_50_ms(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path, head(), [])
    table = ProcessTable()
    for pid in range(1, 5001):
        table.add(process(pid, f"worker-{pid % 97}", threads=3))
    text = json.dumps({**table.document(), "errors": []}).replace("\\", "\\\\").replace("'", "\\'")
    (tmp_path / "index.data" / "processes.js").write_text(f"loaded('processes','{text}')\n")
    browser.open(tmp_path / "index.html")
    took = browser.run(
        "[1, 2, 3, 4, 5, 6, 7, 8, 9].map((length) => { const began = performance.now();"
        "const search = document.getElementById('search'); search.value = 'worker-96'.slice(0, length);"
        "search.dispatchEvent(new Event('input')); document.body.offsetHeight; return performance.now() - began; })"
    )
    assert browser.text("#count") == "51 of 5,000 processes"
    assert min(took) < 50  # of several, as whatever else the machine does takes its time, too
    assert browser.run("document.querySelectorAll('#table tr').length") < 100


def test_back_and_the_keyboard_lead_from_view_to_view(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html")
    browser.press("/", "/")
    browser.write("postgres")
    browser.press("Enter")
    browser.until("document.querySelector('#panel h2').innerText.startsWith('postgres')")
    browser.run("document.getElementById('tab-stacks').focus()")
    browser.press("ArrowRight")
    browser.until("document.getElementById('tab-memory').getAttribute('aria-selected') === 'true'")
    assert browser.run("location.hash") == "#pid=30&tab=memory&q=postgres"
    browser.run("history.back()")
    browser.until("document.getElementById('tab-stacks').getAttribute('aria-selected') === 'true'")
    browser.run("history.back()")
    browser.until("document.body.dataset.view !== 'process'")
    assert browser.run("document.getElementById('search').value") == "postgres"
    browser.run("history.forward()")
    browser.until("document.body.dataset.view === 'process'")
    browser.press("Escape")
    browser.until("document.body.dataset.view !== 'process'")
    browser.open(cores / "index.html", "#pid=30&q=postgres&sort=-rss")
    browser.run("document.querySelector('a.close').click()")
    browser.until("document.body.dataset.view !== 'process'")
    assert browser.run("location.hash") == "#view=processes&q=postgres&sort=-rss"


def test_a_process_of_65530_mappings_opens_at_once(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html")
    took = browser.run(
        "new Promise((done) => { const began = performance.now(); location.hash = '#pid=500&tab=memory';"
        "const look = () => document.querySelector('.memory tbody td') ? done(performance.now() - began)"
        " : setTimeout(look, 5);"
        "look(); })"
    )
    assert took < 3000  # 1 s is asked for; a busy machine is given more
    assert browser.run("document.querySelectorAll('.memory tbody tr').length") < 100
    browser.run("document.querySelector('.memory .rows').scrollTop = 1e9")
    browser.until("document.querySelector('.memory').innerText.includes('203f2000-203f3000')")
    browser.run("document.querySelector('.memory input').value = '0x400fff'")
    browser.run("document.querySelector('.memory input').dispatchEvent(new Event('input'))")
    assert "1 of 65,530 mappings" in browser.text(".memory")


def test_commands_are_safe_to_paste(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html", "#500")
    commands = browser.run("[...document.querySelectorAll('.command code')].map((one) => one.innerText)")
    assert commands == [
        "zstd -d core.500.zst && gdb '/srv/it'\\''s $(here)' core.500",
        "zstd -d core.500.zst && lldb '/srv/it'\\''s $(here)' -c core.500",
    ]


def test_paper_and_high_contrast_have_it_all(browser: Browser, cores: Path) -> None:
    browser.open(cores / "index.html", "#pid=30")
    assert browser.pdf().startswith(b"%PDF")
    browser.like(forced_colors="active")
    browser.open(cores / "index.html", "#pid=30&tab=memory")
    bar = "getComputedStyle(document.querySelector('.bar.whole .present')).backgroundColor"
    assert browser.run(bar) == "rgb(47, 109, 179)"
    browser.like()


@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_nothing_is_wider_than_the_window(browser: Browser, cores: Path, width: int) -> None:
    browser.size(width)
    for fragment in ("", "#view=processes", "#pid=4", "#pid=4&tab=memory"):
        browser.open(cores / "index.html", fragment)
        assert browser.run("document.documentElement.scrollWidth") <= width
        tables = "[...document.querySelectorAll('.rows')].filter((one) => one.clientWidth)"
        assert all(more <= 1 for more in browser.run(f"{tables}.map((one) => one.scrollWidth - one.clientWidth)"))
    browser.size(1600)


def test_a_page_without_its_data_says_so(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page(head()))
    browser.open(tmp_path / "index.html")
    assert "index.data/processes.js is not beside this page" in browser.text()
    assert "Kernel panic: sysrq triggered crash" in browser.text()
