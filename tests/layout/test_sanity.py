"""Wrong offsets are replaced by the next source's, or the dump is refused; the message names the source.

Tests kernel/sanity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.kernelimage import EXPORT, Table
from tests.fuzz.poke import DUMP
from tests.process.scene import CODE, PF_KTHREAD, VM_EXEC, VM_READ, Scene
from vmcore2core.errors import LayoutInvalid
from vmcore2core.kernel import sched
from vmcore2core.kernel.sanity import check_processes
from vmcore2core.kernel.struct import Kernel
from vmcore2core.layout.resolver import KernelLayout
from vmcore2core.layout.sanity import check_exported_abi, check_init_task
from vmcore2core.layout.vmcoreinfo import VmcoreInfo
from vmcore2core.session import OpenOptions, Session


def sound() -> Scene:
    """Return a kernel whose first task is as the kernel makes it, and one process."""
    scene = Scene(EXPORT)
    signal = scene.image.make("signal_struct")
    stack = scene.image.alloc(16384, 4096)
    scene.image.set("task_struct", scene.init, flags=PF_KTHREAD, stack=stack, signal=signal)
    scene.group(scene.task(100), mm=scene.mm((CODE, CODE + 0x2000, VM_READ | VM_EXEC)))
    return scene


def checked(scene: Scene, *, wrong: dict[tuple[str, str], int], good: bool) -> list[str]:
    """Check a layout whose first source has wrong offsets; ``good``: whether another one has the right ones."""
    kernel = scene.image.kernel()
    first = Table(*({struct: {member: (offset, 8)}} for (struct, member), offset in wrong.items()))
    first.name = "first"
    if not good:
        for struct, member in wrong:
            scene.image.table.offsets[struct].pop(member)
    layout = KernelLayout([first, scene.image.table])
    said = check_init_task(kernel.memory, layout, 8, "little")
    return said + check_processes(Kernel(kernel.arch, kernel.memory, layout), layout)


def test_a_layout_that_fits_is_taken_as_it_is() -> None:
    assert checked(sound(), wrong={}, good=True) == []


WRONG = {
    ("task_struct", "comm"): 0,
    ("task_struct", "pid"): 1504,
    ("task_struct", "tgid"): 1504,
    ("task_struct", "flags"): 200,
    ("task_struct", "mm"): 1504,
    ("task_struct", "tasks"): 200,
    ("task_struct", "stack"): 1504,
    ("task_struct", "signal"): 200,
    ("mm_struct", "pgd"): 8,
    ("mm_struct", "mm_mt"): 640,
    ("vm_area_struct", "vm_start"): 8,
    ("vm_area_struct", "vm_mm"): 8,
}


@pytest.mark.parametrize(("item", "offset"), WRONG.items(), ids=[".".join(item) for item in WRONG])
def test_an_offset_that_does_not_fit_is_the_next_sources(item: tuple[str, str], offset: int) -> None:
    (said,) = checked(sound(), wrong={item: offset}, good=True)
    assert f"({'.'.join(item)} at offset {offset:#x} is from first)" in said
    assert said.endswith(" from table is taken instead")


@pytest.mark.parametrize(("item", "offset"), WRONG.items(), ids=[".".join(item) for item in WRONG])
def test_an_offset_that_does_not_fit_and_that_no_other_knows_is_refused(item: tuple[str, str], offset: int) -> None:
    with pytest.raises(LayoutInvalid, match=f"{'[.]'.join(item)} at offset {offset:#x} is from first"):
        checked(sound(), wrong={item: offset}, good=False)


@pytest.mark.parametrize("torn", [0, 8])
def test_a_list_that_is_torn_at_its_head_says_nothing_against_the_layout(torn: int) -> None:
    scene = sound()
    scene.image.words(scene.init + 832 + torn, 0xDEAD_0000_0000_0100)
    assert checked(scene, wrong={}, good=True) == []


@pytest.mark.parametrize("change", [lambda scene, mm: scene.image.set("mm_struct", mm, pgd=0x123)])
def test_one_broken_process_says_nothing_against_the_layout(change: Callable[[Scene, int], object]) -> None:
    scene = sound()
    broken = scene.mm((CODE, CODE + 0x2000, VM_READ))
    change(scene, broken)
    scene.leaders.insert(0, scene.leaders.pop(scene.leaders.index(scene.group(scene.task(50), mm=broken))))
    scene.relink()
    assert checked(scene, wrong={}, good=True) == []


def test_a_file_of_another_kernel_does_not_make_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "layout.txt"
    lines = [f"OFFSET({struct}.{member})={offset}" for (struct, member), offset in WRONG.items() if member != "vm_mm"]
    path.write_text("\n".join(lines))
    with Session([DUMP]) as right, Session([DUMP], OpenOptions(vmcoreinfo=path)) as wrong:
        found = [[(sched.task_pid(t), sched.task_comm(t)) for t in s.processes.with_mm()] for s in (right, wrong)]
        assert found[0] == found[1]
        captured = [s.processes.capture(s.processes.find(86)).snapshot for s in (right, wrong)]
        assert captured[0] == captured[1]
        assert len(wrong.notices) >= len(lines) - 3
        assert all("is from --vmcoreinfo" in notice for notice in wrong.notices)


def test_an_exported_key_that_contradicts_the_abi_is_said() -> None:
    abi = {"OFFSET(ucontext.uc_mcontext)": 40, "NUMBER(__NR_rt_sigreturn)": 15}
    assert check_exported_abi(VmcoreInfo({"OFFSET(ucontext.uc_mcontext)": "40"}), abi) == []
    (said,) = check_exported_abi(VmcoreInfo(dict.fromkeys(abi, "40")), abi)
    assert said.startswith("VMCOREINFO says NUMBER(__NR_rt_sigreturn)=40, expected 15: ")
