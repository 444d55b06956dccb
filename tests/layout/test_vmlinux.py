"""A vmlinux for a dump: which file is taken, which is refused, and which items it answers.

Tests layout/symtab.py, layout/usual_places.py, layout/vmlinux_file.py.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.builders.vmlinux import BUILD_ID, RELEASE, START, build, run, structure
from tests.e2e.guests import bundled, convert, spoil_kallsyms, tasks, tasks_json
from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Member
from vmcore2core.layout.base import LayoutSource
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.symtab import SymtabSource
from vmcore2core.layout.usual_places import usual_places
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.layout.vmlinux import vmlinux_sources
from vmcore2core.layout.vmlinux_file import VmlinuxFile

OTHER_ID = "fe" * 20
SHIFT = 0x0E40_0000
UNITS = {"init/init_task.c": "struct task_struct { long a, b; int pid; } a_task; enum { SOME = 5 } e;"}
SYMBOLS = {"_stext": START, "init_task": START + 0x12340, "init_uts_ns": START + 0x8000}


def info(**values: str | None) -> VmcoreInfo:
    known: dict[str, str | None] = {"OSRELEASE": RELEASE, "BUILD-ID": BUILD_ID, "KERNELOFFSET": f"{SHIFT:x}"}
    keys = {key.replace("_", "-", 1) if key == "BUILD_ID" else key: value for key, value in values.items()}
    return VmcoreInfo({key: value for key, value in (known | keys).items() if value is not None})


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vmlinux"), UNITS, "-gdwarf-5", symbols=SYMBOLS)


@pytest.fixture(scope="module")
def without_id(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vmlinux"), UNITS, "-gdwarf-5", symbols=SYMBOLS, build_id=None)


# --- which file


def test_a_file_with_the_dumps_build_id_tells_symbols_and_types(vmlinux: Path) -> None:
    layout = KernelLayout(vmlinux_sources(vmlinux, info()))
    assert layout.symbol("init_task") == SYMBOLS["init_task"] + SHIFT
    assert (layout.member("task_struct", "pid").offset, layout.size("task_struct")) == (16, 24)
    assert layout.find_constant("SOME") == 5
    assert layout.source_names == ("vmlinux .symtab", "vmlinux BTF", "vmlinux DWARF")
    assert layout.provenance() == {
        "SYMBOL(init_task)": "vmlinux .symtab",
        "OFFSET(task_struct.pid)": "vmlinux DWARF",
        "SIZE(task_struct)": "vmlinux DWARF",
        "NUMBER(SOME)": "vmlinux DWARF",
    }


def test_another_build_id_is_refused_and_both_are_said(vmlinux: Path) -> None:
    with pytest.raises(LayoutInvalid, match=f"is of another kernel: its build ID is {BUILD_ID}, .* is {OTHER_ID}$"):
        vmlinux_sources(vmlinux, info(BUILD_ID=OTHER_ID))


def test_without_the_dumps_build_id_the_release_decides(vmlinux: Path) -> None:
    assert vmlinux_sources(vmlinux, info(BUILD_ID=None))
    with pytest.raises(LayoutInvalid, match=r"is of another kernel: the dump has no build ID.* 7\.2\.13-tes$"):
        vmlinux_sources(vmlinux, info(BUILD_ID=None, OSRELEASE=RELEASE[:-1]))


def test_without_the_files_build_id_the_release_decides(without_id: Path) -> None:
    assert vmlinux_sources(without_id, info())
    with pytest.raises(LayoutInvalid, match="is of another kernel: it has no build ID"):
        vmlinux_sources(without_id, info(OSRELEASE="6.1.0"))
    with pytest.raises(LayoutInvalid, match="may be of any kernel"):
        vmlinux_sources(without_id, info(OSRELEASE=None))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an ELF file"),
        (b"MZ" + bytes(510) + b"\x55\xaaHdrS", r"expected the kernel's vmlinux \(not vmlinuz, bzImage\)"),
        (b"\x7fELF\x03\x01\x01" + bytes(60), "has ELF class 3 and data encoding 1"),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "ends at 0x10, expected 0x40 bytes at 0x0"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\1\0" + bytes(60), "has ELF type 1, expected 2 or 3"),
    ],
)
def test_a_file_that_is_no_vmlinux_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(LayoutInvalid, match=words):
        vmlinux_sources(write(tmp_path / "file", content), info())


def test_a_directory_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutInvalid, match="is not a regular file"):
        vmlinux_sources(tmp_path, info())
    with pytest.raises(LayoutInvalid, match="cannot be read: No such file"):
        vmlinux_sources(tmp_path / "nothing", info())


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path, vmlinux: Path) -> None:
    whole = vmlinux.read_bytes()
    for size in (16, 63, 64, 200, 0x1000, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        with pytest.raises(LayoutInvalid, match=r"ends at 0x|is not an ELF file"):
            vmlinux_sources(write(tmp_path / "cut", whole[:size]), info())


def test_a_section_beyond_the_end_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    data = bytearray(vmlinux.read_bytes())
    with vmlinux.open("rb") as f:
        elf = ELFFile(f)
        index = elf.get_section_index(".symtab")
        assert index is not None
        header = elf["e_shoff"] + 64 * index
    struct.pack_into("<Q", data, header + 32, len(data))  # sh_size
    with pytest.raises(LayoutInvalid, match=r"expected section \.symtab to 0x"):
        vmlinux_sources(write(tmp_path / "far", bytes(data)), info())


def test_a_stripped_file_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    run("strip", "-o", tmp_path / "stripped", vmlinux)
    with pytest.raises(LayoutInvalid, match=r"is stripped: expected \.symtab, \.BTF or \.debug_info in it"):
        vmlinux_sources(tmp_path / "stripped", info())


def test_a_file_with_symbols_alone_tells_these(tmp_path: Path, vmlinux: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("strip", "--strip-debug", "-o", tmp_path / "symbols", vmlinux)
    layout = KernelLayout(vmlinux_sources(tmp_path / "symbols", info()))
    assert layout.symbol("init_task") == SYMBOLS["init_task"] + SHIFT
    assert layout.find_size("task_struct") is None
    assert caplog.messages == []


def test_what_is_broken_in_the_users_file_is_said_when_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build(tmp_path, UNITS, "-gdwarf-5", "-gz=zlib", symbols=SYMBOLS)
    with path.open("rb") as f:
        section = ELFFile(f).get_section_by_name(".debug_info")
        assert section is not None
        at = section["sh_offset"] + 24
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    layout = KernelLayout(vmlinux_sources(path, info()))
    assert layout.symbol("init_task") == SYMBOLS["init_task"] + SHIFT
    assert caplog.messages == []
    assert layout.find_size("task_struct") is None
    (message,) = caplog.messages
    assert re.search(r"vmlinux: section \.debug_info does not decompress", message)


# --- the usual places

PLACES = [
    f"usr/lib/debug/boot/vmlinux-{RELEASE}",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/debug/.build-id/{BUILD_ID[:2]}/{BUILD_ID[2:]}.debug",
    f"lib/modules/{RELEASE}/build/vmlinux",
    f"boot/vmlinux-{RELEASE}",
]


def installed(root: Path, place: str, vmlinux: Path) -> Path:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(vmlinux)
    return root / place


@pytest.mark.parametrize("place", PLACES)
def test_a_debug_packages_file_is_taken(tmp_path: Path, vmlinux: Path, place: str) -> None:
    installed(tmp_path, place, vmlinux)
    layout = KernelLayout(vmlinux_sources(None, info(), root=tmp_path))
    assert layout.symbol("init_task") == SYMBOLS["init_task"] + SHIFT
    assert layout.size("task_struct") == 24


def test_only_the_file_with_the_dumps_build_id_is_taken(
    tmp_path: Path, vmlinux: Path, without_id: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = build(tmp_path, {"init/init_task.c": "struct task_struct { long a; } v;"}, "-g", build_id=OTHER_ID)
    installed(tmp_path, PLACES[0], other)
    installed(tmp_path, PLACES[1], without_id)
    installed(tmp_path, PLACES[2], write(tmp_path / "bad", b"no ELF"))
    right = installed(tmp_path, PLACES[3], vmlinux)
    assert KernelLayout(vmlinux_sources(None, info(), root=tmp_path)).size("task_struct") == 24
    assert [OTHER_ID in caplog.text, "build ID is None" in caplog.text, "is not an ELF file" in caplog.text] == [
        True
    ] * 3
    assert f"taking {right}: it has the dump's build ID" in caplog.text
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_without_a_file_or_a_build_id_there_are_no_sources(tmp_path: Path, vmlinux: Path) -> None:
    assert vmlinux_sources(None, info(), root=tmp_path) == ()
    installed(tmp_path, PLACES[0], vmlinux)
    assert vmlinux_sources(None, info(BUILD_ID=None), root=tmp_path) == ()
    assert vmlinux_sources(None, info(BUILD_ID="../../../etc"), root=tmp_path) == ()


@pytest.mark.parametrize("release", ["..", ".", "", "../../etc/x", "/etc/x", "7.2/../x", "7.2\n", "-7", "7.2\0"])
def test_a_release_never_leads_anywhere_else(release: str) -> None:
    places = list(usual_places(info(OSRELEASE=release)))
    assert places == [Path("/usr/lib/debug/.build-id") / BUILD_ID[:2] / f"{BUILD_ID[2:]}.debug"]


@pytest.mark.parametrize("build_id", ["", "..", "0/", "../" * 13 + "0", BUILD_ID[:-1], BUILD_ID.upper(), "00"])
def test_a_build_id_that_is_none_leads_nowhere(build_id: str) -> None:
    assert list(usual_places(info(BUILD_ID=build_id))) == []


# --- what is opened


class Told(LayoutSource):
    """The dump's own tables: they know the one thing by which it is seen whether they are there."""

    name = "dump"

    def symbol(self, name: str) -> int | None:
        return 1 if name == "init_task" else None

    def size(self, struct: str) -> int | None:
        return 1 if struct == "task_struct" else None


def ask(sources: Iterable[LayoutSource]) -> list[int | Member | None]:
    layout = KernelLayout(list(sources))
    return [layout.find_symbol("nothing"), layout.find_member("task_struct", "pid"), layout.find_constant("SOME")]


def test_nothing_is_opened_where_the_dump_tells_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, PLACES[0], write(tmp_path / "never-opened", b""))
    opened: list[Path] = []
    monkeypatch.setattr("vmcore2core.layout.vmlinux.VmlinuxFile", lambda path: opened.append(path))
    assert ask(vmlinux_sources(None, info(), Told(), Told(), root=tmp_path)) == [None, None, None]
    assert opened == []


def test_of_the_users_file_only_which_kernel_it_is_is_read(vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(VmlinuxFile, "data", lambda _self, section, _limit=0: read.append(section.name))
    monkeypatch.setattr("vmcore2core.layout.vmlinux.DwarfSource", lambda _file: read.append("DWARF"))
    assert ask(vmlinux_sources(vmlinux, info(), Told(), Told())) == [None, None, None]
    assert read == []


def test_with_btf_dwarf_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path, UNITS, "-gdwarf-5", "-gbtf", symbols=SYMBOLS)
    monkeypatch.setattr("vmcore2core.layout.vmlinux.DwarfSource", lambda _file: pytest.fail("decoded"))
    layout = KernelLayout(vmlinux_sources(path, info()))
    assert layout.member("task_struct", "pid") == Member(16, "vmlinux BTF", 4, None, None, "int")
    assert (layout.find_constant("SOME"), layout.find_member("task_struct", "nothing")) == (5, None)


def test_btf_without_tasks_gives_way_to_dwarf(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = build(tmp_path, UNITS, "-gdwarf-5", symbols=SYMBOLS)
    (tmp_path / "other.c").write_text("struct other { int x; } v;")
    run("gcc", "-gbtf", "-c", tmp_path / "other.c", "-o", tmp_path / "other.o")
    run("objcopy", "--dump-section", f".BTF={tmp_path / 'other.btf'}", tmp_path / "other.o")
    run("objcopy", "--add-section", f".BTF={tmp_path / 'other.btf'}", path)
    assert KernelLayout(vmlinux_sources(path, info())).member("task_struct", "pid").source == "vmlinux DWARF"
    assert "its .BTF has no struct task_struct" in caplog.text


# --- symbols


def symtab(path: Path, **values: str) -> SymtabSource:
    return SymtabSource(VmlinuxFile(path), info(**values))


def test_without_kerneloffset_a_symbol_of_vmcoreinfo_tells_the_shift(vmlinux: Path) -> None:
    known = {"OSRELEASE": RELEASE, "SYMBOL(init_uts_ns)": f"{SYMBOLS['init_uts_ns'] + SHIFT:x}"}
    assert SymtabSource(VmlinuxFile(vmlinux), VmcoreInfo(known)).symbol("init_task") == SYMBOLS["init_task"] + SHIFT
    with pytest.raises(LayoutInvalid, match="does not tell by how much KASLR moved the kernel"):
        SymtabSource(VmlinuxFile(vmlinux), VmcoreInfo({"OSRELEASE": RELEASE}))


def test_symbols_that_contradict_the_shift_are_refused(vmlinux: Path) -> None:
    wrong = {"SYMBOL(_stext)": f"{START + SHIFT:x}", "SYMBOL(init_uts_ns)": f"{START + SHIFT:x}"}
    for known in ({"KERNELOFFSET": f"{SHIFT:x}"}, {}):
        with pytest.raises(LayoutInvalid, match="has init_uts_ns at 0xffffffff81008000, and VMCOREINFO at"):
            SymtabSource(VmlinuxFile(vmlinux), VmcoreInfo({**known, **wrong}))


def test_only_what_is_in_the_image_is_moved(tmp_path: Path) -> None:
    unit = """
        __asm__(".globl absolute; .set absolute, 0x1234; .globl inside; .set inside, 0xffffffff81000010\\n"
                ".section .percpu,\\"aw\\"; .globl per_cpu; .quad 0; per_cpu: .quad 0; .text");
        static int twice = 1; int *use(void) { return &twice; }
    """
    units = {"a.c": unit, "b.c": "static int twice = 2; int *user(void) { return &twice; }"}
    units["c.c"] = "int global_wins = 1;"
    units["d.c"] = "static int global_wins = 2; int *using(void) { return &global_wins; }"
    path = build(tmp_path, units, "-Wl,--section-start=.percpu=0", symbols=SYMBOLS)
    run("objcopy", "--rename-section", ".percpu=.data..percpu", path)
    source = symtab(path)
    assert source.symbol("per_cpu") == 8
    assert source.symbol("absolute") == 0x1234
    assert source.symbol("inside") is None  # absolute for the linker, but a place in the image
    assert source.symbol("twice") is None  # which one?
    table = [line.split() for line in run("nm", path).splitlines()]
    (wanted,) = [int(value, 16) for value, kind, name in table if (kind, name) == ("D", "global_wins")]
    assert source.symbol("global_wins") == wanted + SHIFT
    assert [source.symbol(name) for name in ("", "wins", "a.c", "nothing")] == [None] * 4


# --- from end to end


def test_a_vmlinux_of_another_kernel_is_one_sentence(tmp_path: Path, vmlinux: Path) -> None:
    dump = bundled("debian-6.1-amd64", tmp_path)
    result = convert(dump, "--pid", "1", "--vmlinux", vmlinux, "-o", tmp_path / "core")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    theirs = re.search(rb"BUILD-ID=([0-9a-f]+)\n", dump.read_bytes())
    assert theirs is not None
    assert line == (
        f"vmcore2core: {vmlinux} is of another kernel: its build ID is {BUILD_ID}, the dump's is {theirs[1].decode()}"
    )
    assert not (tmp_path / "core").exists()
    result = tasks("ps", dump, "--vmlinux", tmp_path / "nothing")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)


KALLSYMS_KEY = b"SYMBOL(kallsyms_"
BTF_HEADER = bytes.fromhex("9feb01001800000000000000")  # magic, version, flags, hdr_len, type_off


def unit_of(layout: str) -> str:
    """Return C text with the structures and constants of a written layout; "." in a path makes a struct in a struct."""
    values = dict(line.split("=", 1) for line in layout.splitlines())
    structs: dict[str, list[tuple[str, int, int]]] = {}
    for key, value in values.items():
        if key.startswith("OFFSET("):
            tag, _, path = key[7:-1].partition(".")
            structs.setdefault(tag, []).append((path, int(value), int(values.get(f"SIZE({tag}.{path})", "8"))))
    text = "".join(
        f"enum {{ {k[7:-1]} = {v} }} a_{k[7:-1]};\n"
        for k, v in values.items()
        if k.startswith("NUMBER(") and re.fullmatch(r"NUMBER\(\w+\)", k)
    )
    for tag in {*structs, *(key[5:-1] for key in values if re.fullmatch(r"SIZE\(\w+\)", key))}:
        text += structure(tag, int(values.get(f"SIZE({tag})", "0")), structs.get(tag, []))
    return text


def test_a_dump_without_kallsyms_and_btf_gives_the_same_core_with_a_vmlinux(tmp_path: Path) -> None:
    whole = bundled("debian-7.2-amd64", tmp_path)
    data = whole.read_bytes()
    assert KALLSYMS_KEY in data
    assert BTF_HEADER in data
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / whole.name
    spoiled = bytearray(data.replace(KALLSYMS_KEY, b"SYMBOL(somewhere").replace(BTF_HEADER, bytes(len(BTF_HEADER))))
    spoil_kallsyms(spoiled)
    bare.write_bytes(spoiled)

    text = tasks("layout", whole, "--from", "BTF").stdout
    values = dict(line.split("=", 1) for line in text.splitlines())
    shift = int(values["KERNELOFFSET"], 16)
    symbols = {k[7:-1]: int(v, 16) - shift for k, v in values.items() if k.startswith("SYMBOL(")}
    symbols = {name: address for name, address in symbols.items() if START <= address < START + (1 << 28)}
    assert {"init_task", "init_uts_ns"} <= symbols.keys()
    units = {"init/init_task.c": unit_of(text)}
    vmlinux = build(tmp_path, units, "-g", symbols=symbols, build_id=values["BUILD-ID"], release=values["OSRELEASE"])

    written = tasks("layout", bare, "--from", "vmlinux", "--vmlinux", vmlinux)
    assert (written.returncode, written.stderr) == (0, "")
    assert set(written.stdout.splitlines()) >= {line for line in text.splitlines() if line.startswith("OFFSET(")}
    pids = [f"--pid={row['pid']}" for row in tasks_json("ps", whole, "--comm", "lab-static", "--comm", "lab-dynamic")]
    assert len(pids) == 2
    assert convert(whole, *pids, "-o", tmp_path / "one").returncode == 0
    result = convert(bare, *pids, "--vmlinux", vmlinux, "-o", tmp_path / "two", "-v")
    assert result.returncode == 0, result.stderr
    assert "OFFSET(task_struct.pid): vmlinux DWARF" in result.stderr
    assert "SYMBOL(init_task): vmlinux .symtab" in result.stderr
    names = sorted(path.name for path in (tmp_path / "one").glob("core.*[0-9]"))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
