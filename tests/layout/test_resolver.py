"""The first source that knows an item answers, and is recorded; an item that no source knows is one sentence.

Tests layout/base.py, layout/export.py, layout/required.py.
"""

from __future__ import annotations

import pytest

from tests.builders.kernelimage import Table
from vmcore2core.errors import LayoutUnknown
from vmcore2core.layout.export import export_layout
from vmcore2core.layout.required import check_required
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.vmcoreinfo import VmcoreInfoSource, parse_vmcoreinfo


def table(name: str, **kinds: object) -> Table:
    made = Table(kinds.get("offsets", {}), sizes=kinds.get("sizes"), symbols=kinds.get("symbols"))  # type: ignore[arg-type]
    made.name = name
    return made


def two() -> KernelLayout:
    return KernelLayout(
        [
            table("first", offsets={"task_struct": {"pid": (8, 4)}}, symbols={"init_task": 0x1000}),
            table("second", offsets={"task_struct": {"pid": (99, 4), "mm": (16, 8)}}, sizes={"task_struct": 640}),
        ]
    )


def test_the_first_that_knows_answers_and_is_remembered() -> None:
    layout = two()
    assert (layout.member("task_struct", "pid").offset, layout.member("task_struct", "mm").offset) == (8, 16)
    assert (layout.size("task_struct"), layout.symbol("init_task")) == (640, 0x1000)
    assert layout.provenance() == {
        "OFFSET(task_struct.pid)": "first",
        "OFFSET(task_struct.mm)": "second",
        "SIZE(task_struct)": "second",
        "SYMBOL(init_task)": "first",
    }


def test_the_first_of_several_names_that_exists_counts() -> None:
    assert two().member("task_struct", "__state", "mm").offset == 16
    with pytest.raises(LayoutUnknown, match=r"^OFFSET\(task_struct\.a\) or OFFSET\(task_struct\.b\) of this kernel"):
        two().member("task_struct", "a", "b")


def test_what_nobody_knows_is_one_sentence_with_those_who_were_asked() -> None:
    with pytest.raises(LayoutUnknown) as unknown:
        two().symbol("missing")
    assert str(unknown.value) == (
        "SYMBOL(missing) of this kernel is not known (asked: first, second); give its vmlinux with --vmlinux, "
        "or such lines in a file with --vmcoreinfo"
    )


def test_a_vmlinux_that_was_asked_is_not_asked_for() -> None:
    layout = KernelLayout([table("vmlinux .symtab")])
    with pytest.raises(
        LayoutUnknown, match=r"\(asked: vmlinux \.symtab\); give such lines in a file with --vmcoreinfo$"
    ):
        layout.size("task_struct")


def test_a_source_that_is_added_answers_what_was_not_known() -> None:
    layout = two()
    assert layout.find_symbol("late") is None
    assert layout.find_member("mm_struct", "pgd") is None
    layout.add(table("third", offsets={"mm_struct": {"pgd": (80, 8)}}, symbols={"late": 7, "init_task": 1}))
    assert layout.find_symbol("late") == 7
    assert layout.member("mm_struct", "pgd").offset == 80
    assert layout.symbol("init_task") == 0x1000


def test_a_part_of_the_sources_is_a_layout_too() -> None:
    assert two().only("sec").member("task_struct", "pid").offset == 99
    assert two().only("third").source_names == ()


def test_everything_that_is_missing_is_in_one_sentence() -> None:
    with pytest.raises(LayoutUnknown) as unknown:
        check_required(two())
    sentence = str(unknown.value)
    assert "OFFSET(task_struct.tasks), " in sentence
    assert "OFFSET(mm_struct.mm_mt|mmap)" in sentence
    assert "OFFSET(task_struct.pid)" not in sentence
    assert "maple" not in sentence  # nobody knows whether this kernel has one
    assert sentence.count("\n") == 0


@pytest.mark.parametrize(
    ("member", "also"), [("mm_mt", "OFFSET(maple_tree.ma_root)"), ("mmap", "OFFSET(vm_area_struct.vm_next)")]
)
def test_what_is_needed_depends_on_how_the_kernel_keeps_vmas(member: str, also: str) -> None:
    layout = two()
    layout.add(table("third", offsets={"mm_struct": {member: (64, 16)}}))
    with pytest.raises(LayoutUnknown) as unknown:
        check_required(layout)
    assert also in str(unknown.value)


def test_a_layout_that_is_written_says_the_same_when_it_is_read() -> None:
    """The text is VMCOREINFO's: symbols hexadecimal, the rest decimal."""
    layout = two()
    layout.add(table("more", symbols={"_stext": 0xFFFF_FFFF_8100_0000}))
    own = parse_vmcoreinfo(
        b"OSRELEASE=7.2.13\nBUILD-ID=00ff\nPAGESIZE=4096\nKERNELOFFSET=1f000000\nOFFSET(list_head.next)=0\n"
    )
    lines = list(export_layout(layout, layout, own, ["OFFSET(task_struct.mm)", "SYMBOL(missing)"]))
    assert lines == [
        "OSRELEASE=7.2.13",
        "BUILD-ID=00ff",
        "PAGESIZE=4096",
        "KERNELOFFSET=1f000000",
        "SYMBOL(_stext)=ffffffff81000000",
        "SYMBOL(init_task)=1000",
        "OFFSET(task_struct.pid)=8",
        "SIZE(task_struct.pid)=4",
        "OFFSET(task_struct.mm)=16",
        "SIZE(task_struct.mm)=8",
        "SIZE(task_struct)=640",
    ]
    read = KernelLayout([VmcoreInfoSource(parse_vmcoreinfo("".join(f"{line}\n" for line in lines).encode()))])
    for name in ("pid", "mm"):
        mine, theirs = read.member("task_struct", name), layout.member("task_struct", name)
        assert (mine.offset, mine.size) == (theirs.offset, theirs.size)
    assert (read.size("task_struct"), read.symbol("_stext")) == (640, 0xFFFF_FFFF_8100_0000)


@pytest.mark.parametrize(
    ("symbols", "why"),
    [
        ((), "no BTF was found in the dump"),  # nor kallsyms
        (("start_kernel",), "this kernel has no BTF"),
        (("start_kernel", "btf_vmlinux_init"), "no BTF was found in the dump"),
        (("start_kernel", "__start_BTF"), "no BTF was found in the dump"),
    ],
)
def test_why_btf_does_not_answer_is_said_first(symbols: tuple[str, ...], why: str) -> None:
    layout = two()
    layout.add(table("kallsyms", symbols=dict.fromkeys(symbols, 0x1000)))
    with pytest.raises(LayoutUnknown, match=rf"^{why}: OFFSET\(task_struct.tasks\), .* are not known"):
        check_required(layout)


def test_what_a_kernel_without_btf_lacks_is_said_first() -> None:
    with pytest.raises(
        LayoutUnknown, match=r"^no BTF was found in the dump: OFFSET\(task_struct.tasks\), .* are not known"
    ):
        check_required(two())
