"""DWARF as GCC writes it, against the compiler's own offsetof and sizeof.

Tests layout/dwarf_info.py.
"""

from __future__ import annotations

import logging
import re
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.builders.vmlinux import build, bytes_of, run
from vmcore2core.errors import LayoutInvalid
from vmcore2core.interfaces import Member
from vmcore2core.layout.asked import UNITS
from vmcore2core.layout.btf import BtfSource
from vmcore2core.layout.dwarf import NAME, DwarfSource, _children
from vmcore2core.layout.dwarf_info import VmlinuxDwarf
from vmcore2core.layout.vmlinux_file import VmlinuxFile

TYPES = """
typedef unsigned long u64;
struct list_head { struct list_head *next, *prev; };
struct elsewhere;
enum state { RUNNING, SLEEPING = 1, ZOMBIE = 32, LAST = 1000 };
enum { NEGATIVE = -3, FIRST_ANONYMOUS = 77 };
struct thread_struct { u64 sp; const volatile u64 fsbase; unsigned char small[3]; };
typedef struct { int counter; } atomic_t;
typedef atomic_t refcount_t;
struct task_struct {
    volatile unsigned int __state;
    void *stack;
    struct { char inside_one; struct { short deep; union { long longest; int both[3]; }; }; };
    unsigned sched_reset:1, in_execve:1, :3, wide:17;
    unsigned char tiny:4, tinier:3;
    struct list_head tasks;
    int pid;
    char comm[16];
    struct elsewhere *mm;
    struct thread_struct thread;
    struct { struct { u64 sig[2]; } signal; } pending;
    int matrix[3][5];
    enum state state;
    const struct list_head *const *pointers[7];
    refcount_t usage;
    int (*call)(int);
    _Bool yes:1, no:1;
    u64 big:40;
    struct named { int in_named; } named;
    u64 slots[];
} a_task = { .sched_reset = -1, .in_execve = 0 };
union maple { struct { char pad[24]; long mr64; }; long parent; } a_maple;
struct task_struct in_execve_ones = { .in_execve = -1 }, wide_ones = { .wide = -1 }, tiny_ones = { .tiny = -1 };
struct task_struct tinier_ones = { .tinier = -1 }, no_ones = { .no = 1 }, big_ones = { .big = -1 };
refcount_t a_count;
enum state a_state;
int a_number = NEGATIVE + FIRST_ANONYMOUS;
"""

PLAIN = (
    "__state stack inside_one deep longest both tasks tasks.prev pid comm mm thread thread.fsbase thread.small "
    "pending pending.signal pending.signal.sig matrix state pointers usage usage.counter call named named.in_named"
).split()
BIT_FIELDS = "in_execve wide tiny tinier no big".split()
ORACLE = "".join(
    [
        "#define M(p) __builtin_offsetof(struct task_struct, p), sizeof(((struct task_struct *)0)->p)\n",
        "const unsigned long oracle[] = {",
        *(f"M({path}), " for path in PLAIN),
        "__builtin_offsetof(struct task_struct, slots), sizeof(struct task_struct), sizeof(union maple), ",
        "__builtin_offsetof(union maple, mr64), sizeof(refcount_t) };\n",
    ]
)
VARIANTS = [("-gdwarf-5",), ("-gdwarf-4",), ("-gdwarf-3",), ("-gdwarf-2",), ("-gdwarf-5", "-gz=zlib"), ("-gbtf",)]
VARIANTS += [("-gdwarf-5", "-gdwarf64"), ("-gdwarf-5", "-gstrict-dwarf", "-O2"), ("-gdwarf-5", "zstd")]


def source_of(folder: Path, flags: tuple[str, ...], units: dict[str, str] | None = None) -> tuple[Path, DwarfSource]:
    compiler = [flag for flag in flags if flag.startswith("-")]
    path = build(folder, units or {"init/init_task.c": TYPES + ORACLE}, *compiler)
    if "zstd" in flags:
        run("objcopy", "--compress-debug-sections=zstd", path)
        with path.open("rb") as f:
            info = ELFFile(f).get_section_by_name(".debug_info")
            assert info is not None
            f.seek(info["sh_offset"])
            assert f.read(4) == b"\2\0\0\0"  # ELFCOMPRESS_ZSTD
    file = VmlinuxFile(path)
    if "-gbtf" in flags:  # no DWARF: the tests hold for the other source of types as well
        section = file.section(".BTF")
        assert section is not None
        return path, BtfSource(file.data(section), NAME, pointer_size=8)  # type: ignore[return-value]
    return path, DwarfSource(file)


@pytest.fixture(scope="module", params=VARIANTS, ids=" ".join)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DwarfSource]:
    return source_of(tmp_path_factory.mktemp("built"), request.param)


def numbers(path: Path) -> list[int]:
    data = bytes_of(path, "oracle")
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def found(source: DwarfSource, path: str, struct: str = "task_struct") -> Member:
    member = source.member(struct, path)
    assert member is not None, path
    return member


def test_offsets_and_sizes_are_the_compilers(built: tuple[Path, DwarfSource]) -> None:
    path, source = built
    *plain, slots, task, maple, mr64, refcount = numbers(path)
    wanted = dict(zip(PLAIN, zip(plain[::2], plain[1::2], strict=True), strict=True))
    assert {name: (found(source, name).offset, found(source, name).size) for name in PLAIN} == wanted
    assert (found(source, "slots").offset, found(source, "slots").size) == (slots, 0)
    assert (source.size("task_struct"), source.size("maple"), source.size("refcount_t")) == (task, maple, refcount)
    assert found(source, "mr64", "maple").offset == mr64
    assert found(source, "parent", "maple").offset == 0
    assert found(source, "counter", "refcount_t").offset == 0


@pytest.mark.parametrize("name", BIT_FIELDS)
def test_bit_fields_are_where_the_compiler_puts_ones(built: tuple[Path, DwarfSource], name: str) -> None:
    path, source = built
    member = found(source, name)
    assert member.bit_offset is not None
    assert member.bit_size is not None
    ones = int.from_bytes(bytes_of(path, f"{name}_ones"), "little")
    assert ones == ((1 << member.bit_size) - 1) << (8 * member.offset + member.bit_offset)
    assert member.offset % (member.size or 0) == 0


def test_types_are_named(built: tuple[Path, DwarfSource]) -> None:
    source = built[1]
    names = {name: found(source, name).type_name for name in ("stack", "comm", "tasks", "thread.fsbase", "matrix")}
    names |= {name: found(source, name).type_name for name in ("tasks.next", "state", "usage", "in_execve")}
    assert names.pop("matrix") in ("int[3][5]", "int[5][3]")  # GCC's BTF has the dimensions the wrong way round
    assert names == {
        "stack": "void *",
        "comm": "char[16]",
        "tasks": "struct list_head",
        "thread.fsbase": "u64",
        "tasks.next": "struct list_head *",
        "state": "enum state",
        "usage": "refcount_t",
        "in_execve": "unsigned int",
    }
    assert found(source, "pid").source == NAME


def test_enumerators_have_their_values(built: tuple[Path, DwarfSource]) -> None:
    names = ("RUNNING", "SLEEPING", "ZOMBIE", "LAST", "NEGATIVE", "FIRST_ANONYMOUS", "NONE")
    assert [built[1].constant(name) for name in names] == [0, 1, 32, 1000, -3, 77, None]


@pytest.mark.parametrize(
    ("struct", "path"),
    [
        ("task_struct", "nothing"),
        ("task_struct", ""),
        ("task_struct", "pid.deeper"),
        ("task_struct", "mm.pgd"),
        ("task_struct", "thread.nothing"),
        ("elsewhere", "pgd"),
        ("state", "RUNNING"),
        ("u64", "x"),
        ("", "pid"),
        ("no_such", "pid"),
    ],
)
def test_what_is_not_there_is_not_known(built: tuple[Path, DwarfSource], struct: str, path: str) -> None:
    assert built[1].member(struct, path) is None


@pytest.mark.parametrize("name", ["elsewhere", "no_such", "u64", "state", ""])
def test_what_is_no_structure_has_no_size(built: tuple[Path, DwarfSource], name: str) -> None:
    assert built[1].size(name) is None


def test_units_are_asked_in_their_order_and_declarations_passed_over(tmp_path: Path) -> None:
    units = {
        "kernel/pid.c": "struct only_here { int x; } a; struct shared { char c[3]; } b;",
        "arch/x86/kernel/fork.c": "struct shared { char c[9]; } fork_a;",
        "kernel/fork.c": "struct shared { char c[5]; } fork_b; struct whole { int x; } c; enum { HERE = 4 } d;",
        "init/init_task.c": "struct whole; struct whole *task_a; enum { HERE_FIRST = 3 } task_b;",
    }
    _, source = source_of(tmp_path, ("-gdwarf-5",), units)
    assert (source.size("shared"), source.size("whole"), source.size("only_here")) == (5, 4, None)
    assert (source.constant("HERE_FIRST"), source.constant("HERE")) == (3, 4)


def test_units_of_a_build_outside_of_the_source_tree_are_found(tmp_path: Path) -> None:
    path = tmp_path / "src" / "init" / "init_task.c"
    path.parent.mkdir(parents=True)
    path.write_text(TYPES)
    run("gcc", "-gdwarf-5", "-ffreestanding", "-c", path, "-o", tmp_path / "a.o")
    run("gcc", "-nostdlib", "-static", "-Wl,-e,0", tmp_path / "a.o", "-o", tmp_path / "vmlinux")
    assert DwarfSource(VmlinuxFile(tmp_path / "vmlinux")).member("task_struct", "pid") is not None


@pytest.mark.parametrize(
    ("flags", "units", "words"),
    [
        ((), {"init/init_task.c": TYPES}, "has no .debug_info"),
        (("-gdwarf-5",), {"some/where.c": TYPES}, "has no DWARF of init/init_task.c, kernel/fork.c"),
    ],
)
def test_a_vmlinux_without_them_is_refused(
    tmp_path: Path, flags: tuple[str, ...], units: dict[str, str], words: str
) -> None:
    with pytest.raises(LayoutInvalid, match=words):
        source_of(tmp_path, flags, units)


def section_at(path: Path, name: str) -> tuple[int, int]:
    with path.open("rb") as f:
        section = ELFFile(f).get_section_by_name(name)
        assert section is not None
        return section["sh_offset"], section["sh_size"]


def ask_everything(path: Path) -> list[object]:
    source = DwarfSource(VmlinuxFile(path))
    names = [*PLAIN, *BIT_FIELDS, "slots", "nothing"]
    answers: list[object] = [source.member("task_struct", name) for name in names]
    return [*answers, source.size("task_struct"), source.size("maple"), source.constant("NEGATIVE")]


@pytest.mark.parametrize("section", [".debug_info", ".debug_abbrev", ".debug_str"])
def test_broken_dwarf_is_an_error_of_ours_or_unknown_and_ends(
    tmp_path: Path, section: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes are changed all over: what is asked ends, with an answer, None or LayoutInvalid."""
    path = build(tmp_path, {"init/init_task.c": TYPES}, "-gdwarf-4")
    good = path.read_bytes()
    offset, size = section_at(path, section)
    outcomes: set[bool | str] = set()
    caplog.set_level(logging.WARNING)
    for number in range(120):
        data = bytearray(good)
        at = offset + number * 7919 % size
        data[at] ^= (0xFF, 0x01, 0x80)[number % 3]
        path.write_bytes(data)
        try:
            outcomes.add(None in ask_everything(path))
        except LayoutInvalid:
            outcomes.add("refused")
    assert outcomes > {True} or outcomes > {"refused"} or section == ".debug_str"
    assert all(re.search(r"vmlinux: the DWARF of .+ cannot be read: .", text) for text in caplog.messages)


def word(text: str) -> bytes:
    return struct.pack("<I", int(text, 16))


def test_siblings_that_lead_back_do_not_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = build(tmp_path, {"init/init_task.c": TYPES}, "-gdwarf-4")
    listing = run("readelf", "--debug-dump=info", path)
    siblings = re.findall(r"<([0-9a-f]+)>\s+DW_AT_sibling\s+: <0x([0-9a-f]+)>", listing)
    offset, _ = section_at(path, ".debug_info")
    data = bytearray(path.read_bytes())
    places = [offset + int(place, 16) for place, target in siblings if int(target, 16) > int(place, 16)]
    first = [at for at, (_, target) in zip(places, siblings, strict=True) if data[at : at + 4] == word(target)]
    assert len(first) > 5  # those of the first unit; the second's are relative to where it begins
    for at in first:
        data[at : at + 4] = word("b")
    path.write_bytes(data)
    assert DwarfSource(VmlinuxFile(path)).size("task_struct") is None
    assert "leads back" in caplog.text


NESTED = (
    "int f(int x) { { int y = x; { union late { long z; } z = {y}; return z.z; } } }\nint g(void) { return f(1); }\n"
)


def top_entries(path: Path) -> list[int]:
    unit = next(VmlinuxDwarf(VmlinuxFile(path)).iter_CUs())
    return [die.offset for die in _children(unit.get_top_DIE())]


def test_without_siblings_the_answers_are_the_same(tmp_path: Path) -> None:
    path = build(tmp_path, {"init/init_task.c": NESTED + TYPES}, "-gdwarf-4")
    wanted, below = ask_everything(path), top_entries(path)
    offset, size = section_at(path, ".debug_abbrev")
    data = path.read_bytes()
    table = data[offset : offset + size]
    assert table.count(b"\1\x13\0\0") > 5  # DW_AT_sibling, DW_FORM_ref4, and the end of an abbreviation
    table = table.replace(b"\1\x13\0\0", b"\x7e\x13\0\0")  # an attribute that nobody knows
    path.write_bytes(data[:offset] + table + data[offset + size :])
    assert (ask_everything(path), top_entries(path)) == (wanted, below)
    assert None not in wanted[:10]


def test_only_the_chosen_units_are_decoded(tmp_path: Path) -> None:
    """Another unit's types are broken: nobody notices."""
    path, source = source_of(tmp_path, ("-gdwarf-5",), {"some/where.c": "struct bad { int x; } v;", UNITS[0]: TYPES})
    offset, size = section_at(path, ".debug_info")
    data = bytearray(path.read_bytes())
    length = struct.unpack_from("<I", data, offset)[0] + 4
    assert length < size / 2
    data[offset + 60 : offset + length] = b"\x7f" * (length - 60)
    path.write_bytes(data)
    assert found(source, "pid").offset == found(DwarfSource(VmlinuxFile(path)), "pid").offset
