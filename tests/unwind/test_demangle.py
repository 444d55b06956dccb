"""Names as their programmers wrote them, against c++filt."""

from __future__ import annotations

import subprocess

import pytest

from tests.unwind.processes import need
from vmcore2core.unwind.demangle import demangled

CPP = ["_ZN4shop6BasketIiE3addERKi", "_Z3fooi", "_ZNKSt6vectorIiSaIiEE4sizeEv"]
RUST = {
    "_ZN4core3ops8function6FnOnce40call_once$u7b$$u7b$vtable.shim$u7d$$u7d$17h0123456789abcdefE": (
        "core::ops::function::FnOnce::call_once{{vtable.shim}}"
    ),
    "_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17h05af221e174051e9E.llvm.6656783366573613736": (
        "std::rt::lang_start::{{closure}}"
    ),
    "_ZN64_$LT$std..net..tcp..Incoming$u20$as$u20$core..iter..Iterator$GT$4next17h0123456789abcdefE": (
        "<std::net::tcp::Incoming as core::iter::Iterator>::next"
    ),
    "_RNvNtCs1234_7mycrate3foo3bar": "mycrate::foo::bar",
}


@pytest.mark.parametrize("name", CPP)
def test_cpp_names_are_cppfilts(name: str) -> None:
    shown = subprocess.run([need("c++filt"), name], capture_output=True, text=True, check=True).stdout.strip()
    assert demangled(name).replace(" >", ">") == shown.replace(" >", ">")


@pytest.mark.parametrize("name", RUST)
def test_rust_names_of_both_kinds(name: str) -> None:
    assert demangled(name) == RUST[name]


@pytest.mark.parametrize("name", ["main", "_start", "_Z", "_ZN5short", "runtime.futex", "_R", "", "_Zé"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert demangled(name) == name


def test_a_name_of_any_length_is_no_burden() -> None:
    name = "_ZN" + "1a" * (1 << 16) + "E"
    assert demangled(name) == name
