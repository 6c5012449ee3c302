"""Kernels are built once, used where they fit, and never stand in the way where they cannot be."""

from __future__ import annotations

import logging
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from nl.core import native
from nl.core.native import (
    Kernel,
    NativeError,
    bits,
    compiler_words,
    complaint,
    cpp_compiler,
    sizes_of,
    torch_only,
    ungraded,
)

SOURCE = """
#include <cstdint>
extern "C" void doubled_f32(const int64_t* n, void* const* t, int64_t threads) {
  for (int64_t i = 0; i < n[0]; i++)
    static_cast<float*>(t[1])[i] = 2 * static_cast<float*>(t[0])[i] + (t[2] ? threads : 0);
}
"""
compiles = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice.cpp").write_text(SOURCE)
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NL_NATIVE", raising=False)


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "nl" / "native").glob("*.so"))


@compiles
def test_a_kernel_is_built_once_and_writes_into_tensors(tmp_path: Path) -> None:
    x, y = torch.arange(3.0), torch.empty(3)
    kernel = Kernel("twice")
    assert kernel.takes(x, None, y)
    kernel.run("doubled", [3], [x, y, None])
    assert y.tolist() == [0, 2, 4]
    kernel.run("doubled", [3], [x, y, x])
    assert y.tolist() == [1, 3, 5], "the number of threads comes last"
    with pytest.raises(NativeError, match=r"twice.doubled: torch.float32 and torch.float64"):
        kernel.run("doubled", [3], [x, y.double()])
    (file,) = built(tmp_path)
    before = file.stat().st_mtime_ns
    assert Kernel("twice").takes(x)
    assert [f.stat().st_mtime_ns for f in built(tmp_path)] == [before]
    (tmp_path / "twice.cpp").write_text(SOURCE + "// other\n")
    assert Kernel("twice").takes(x)
    assert len(built(tmp_path)) == 2, "another source is another kernel"
    assert file.parent.stat().st_mode & 0o777 == 0o700


class Disguised(Tensor):
    """A tensor whose operations another one does."""


@compiles
def test_only_plain_tensors_of_one_fit_dtype_are_taken() -> None:
    kernel, x = Kernel("twice"), torch.ones(2)
    assert kernel.takes(x, torch.nn.Parameter(x, requires_grad=False))
    assert not kernel.takes(x, x.double())
    assert not kernel.takes(x.bfloat16())
    assert not kernel.takes(x.to("meta"))
    assert not kernel.takes(x, x.as_subclass(Disguised))
    leaf = torch.ones(2, requires_grad=True)
    assert not ungraded(x, None, leaf), "nothing would go back through it"
    assert ungraded(x, None)
    with torch.no_grad():
        assert ungraded(x, leaf)
    with torch_only():
        assert not kernel.takes(x)
        with torch_only():
            pass
        assert not kernel.takes(x)
    assert kernel.takes(x)


def test_without_a_compiler_torch_does_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "cpp_compiler", lambda: None)
    kernel = Kernel("twice")
    with caplog.at_level(logging.INFO):
        assert not kernel.takes(torch.ones(1))
        assert not kernel.takes(torch.ones(1))
    assert caplog.text.count("no C++ compiler found: twice runs as torch operations") == 1
    assert complaint() == ""
    monkeypatch.setenv("NL_NATIVE", "on")
    assert "no C++ compiler found" in complaint()
    with pytest.raises(NativeError, match="install one, name it in CXX, or set NL_NATIVE=auto"):
        kernel.takes(torch.ones(1))


@compiles
def test_a_kernel_that_cannot_be_built_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "twice.cpp").write_text("this is no C++\n")
    kernel = Kernel("twice")
    with caplog.at_level(logging.WARNING):
        assert not kernel.takes(torch.ones(1))
        assert not kernel.takes(torch.ones(1))
    assert caplog.text.count("twice: not built, runs as torch operations") == 1
    assert list((tmp_path / "cache/nl/native").iterdir()) == [], "nothing half made stays"
    monkeypatch.setenv("NL_NATIVE", "on")
    with pytest.raises(NativeError, match="twice could not be built"):
        kernel.takes(torch.ones(1))


@compiles
@pytest.mark.parametrize("damage", ["cut", "digest", "gone"])
def test_what_is_not_as_the_compiler_made_it_is_built_again(tmp_path: Path, damage: str) -> None:
    x, y = torch.ones(1), torch.empty(1)
    assert Kernel("twice").takes(x)
    (file,) = built(tmp_path)
    whole = file.read_bytes()
    if damage == "cut":
        file.unlink()  # in place, the loaded one would be cut too
        file.write_bytes(whole[:1000])
    elif damage == "digest":
        file.with_suffix(".sha256").unlink()
    else:
        file.unlink()
    kernel = Kernel("twice")
    assert kernel.takes(x)
    kernel.run("doubled", [1], [x, y, None])
    assert y.item() == 2
    assert file.read_bytes() == whole


@compiles
def test_threads_that_ask_at_once_wait_for_one_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, loads, load = Kernel("twice"), [], Kernel._load

    def counted(self: Kernel) -> Any:
        loads.append(1)
        return load(self)

    monkeypatch.setattr(Kernel, "_load", counted)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: kernel.takes(torch.ones(1)), range(4)))
    assert len(loads) == len(built(tmp_path)) == 1


@compiles
def test_a_compiler_may_be_named_with_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", f"{cpp_compiler()} -DOTHER")
    assert compiler_words()[1:] == ["-DOTHER"]
    assert Kernel("twice").takes(torch.ones(1))
    monkeypatch.delenv("CXX")
    assert Kernel("twice").takes(torch.ones(1))
    assert len(built(tmp_path)) == 2, "other flags, another kernel"
    for wrong in ("/nowhere/g++ -O1", "g++ '"):
        monkeypatch.setenv("CXX", wrong)
        assert cpp_compiler() is None
    monkeypatch.setenv("CXX", " ")
    assert cpp_compiler() is not None


def test_without_a_home_there_are_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(native, "cpp_compiler", lambda: sys.executable)
    with caplog.at_level(logging.WARNING):
        assert not Kernel("twice").takes(torch.ones(1))
    assert "not loaded, runs as torch operations: Could not determine home" in caplog.text


@compiles
@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_where_torch_looks_at_operations_it_does_them() -> None:
    kernel, x, seen = Kernel("twice"), torch.ones(2), list[bool]()

    def ask(y: Tensor) -> Tensor:
        seen.append(kernel.takes(x))  # not y: plain tensors are asked for
        return y * 2

    ask(x)
    with forward_ad.dual_level():
        ask(forward_ad.make_dual(x, x))
    make_fx(ask)(x)
    torch.func.vmap(ask)(x)
    torch.jit.trace(ask, x, check_trace=False)
    with FlopCounterMode(display=False):
        ask(x)
    ask(x)
    assert seen == [True, False, False, False, False, False, True]


@compiles
def test_a_folder_of_another_user_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with caplog.at_level(logging.WARNING):
        assert not Kernel("twice").takes(torch.ones(1))
    assert "belongs to another user; set XDG_CACHE_HOME" in caplog.text


def test_the_choice_is_one_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("twice")
    monkeypatch.setenv("NL_NATIVE", "off")
    assert not kernel.takes(torch.ones(1))
    assert complaint() == ""
    monkeypatch.setenv("NL_NATIVE", "of")
    assert complaint() == "NL_NATIVE=of in the environment; allowed: auto, on, off"
    with pytest.raises(NativeError, match="NL_NATIVE=of"):
        kernel.takes(torch.ones(1))


def test_letters_of_dimensions() -> None:
    x, y = torch.ones(2, 3), torch.ones(3)
    assert sizes_of([("AB", x), ("B", y), ("CD", None), ("", torch.ones(1))]) == {"A": 2, "B": 3}
    assert sizes_of([("AB", x), ("A", y)]) is None
    assert sizes_of([("AA", x)]) is None
    assert sizes_of([("A", x)]) is None, "a dimension too many"
    assert sizes_of([("", x)]) is None, "not one number"
    assert sizes_of([("AB", x)], {"B": 4}) is None
    assert sizes_of([("AB", x)], {"C": 4}) == {"A": 2, "B": 3, "C": 4}


def test_real_numbers_among_whole_ones() -> None:
    for x in (1.0, -0.5, float("inf"), 1e-300):
        assert struct.unpack("<d", struct.pack("<q", bits(x))) == (x,)
