"""C++ kernels for the CPU, built on the machine that runs them. Floor 0.

A kernel is one file of ``nl/ops/native``, compiled at its first use for this processor and kept in
``$XDG_CACHE_HOME/nl/native`` (default ``~/.cache``) under a digest of its source, compiler and
processor. It does what a function of ``nl.ops`` does in torch, on plain fp32 and fp64 tensors of
the CPU; everywhere else, and where nothing can be compiled, the torch form runs. The environment
variable ``NL_NATIVE`` says which: ``auto`` (default), ``off``, or ``on``, which refuses to go on
without kernels.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from nl.core.logs import get_logger

log = get_logger(__name__)

COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
SOURCES = Path(__file__).parents[1] / "ops" / "native"
COMPILE_SECONDS = 600
MODES = ("auto", "on", "off")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_PLAIN = (Tensor, Parameter)

_held_off = 0


class NativeError(RuntimeError):
    """``NL_NATIVE`` asks for what cannot be."""


def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile builds with too: $CXX, or the first one found."""
    own = os.environ.get("CXX", "").strip()
    return next((name for name in ([own] if own else COMPILERS) if _found(name)), None)


def _found(command: str) -> bool:
    """Whether its program is there."""
    try:
        return shutil.which(shlex.split(command)[0]) is not None
    except ValueError:  # a quotation that does not end
        return False


def compiler_words() -> list[str]:
    """The same as the beginning of a command: $CXX may hold flags, or another program in front."""
    return shlex.split(cpp_compiler() or "")


def complaint() -> str:
    """What is wrong with ``NL_NATIVE`` on this machine, empty where nothing is."""
    found = os.environ.get("NL_NATIVE") or "auto"
    if found not in MODES:
        return f"NL_NATIVE={found} in the environment; allowed: {', '.join(MODES)}"
    if found == "on" and cpp_compiler() is None:
        return (
            "NL_NATIVE=on in the environment; no C++ compiler found ($CXX, g++, clang++, c++): "
            "install one, name it in CXX, or set NL_NATIVE=auto"
        )
    return ""


@contextmanager
def torch_only() -> Iterator[None]:
    """No kernels for a while: what runs here is made of torch's own operations."""
    global _held_off
    _held_off += 1
    try:
        yield
    finally:
        _held_off -= 1


def _watched() -> bool:
    """Whether torch looks at operations one by one: tracers, modes, functional transforms.

    What a kernel does they would miss.
    """
    return (
        forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def ungraded(*tensors: Tensor | None) -> bool:
    """Whether no gradient is asked for of what is made of these tensors."""
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in tensors
    )


def sizes_of(
    named: Iterable[tuple[str, Tensor | None]], known: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """What the letters of dimensions stand for, or None where they contradict one another.

    Kernels trust sizes: a call whose tensors do not fit is left to torch, which says what is wrong.

    Args:
        named: tensors with one letter per dimension; without letters: a single number.
        known: letters that are known before.
    """
    sizes = dict(known or {})
    for letters, t in named:
        if t is None:
            continue
        if not letters:
            if t.numel() != 1:
                return None
            continue
        if t.dim() != len(letters):
            return None
        for letter, size in zip(letters, t.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    return sizes


@functools.cache
def bits(x: float) -> int:
    """A real number among the whole ones that a kernel is given: ``real`` of ``matrix.h``."""
    return int.from_bytes(struct.pack("<d", x), "little", signed=True)


class Kernel:
    """One file of C++ with functions ``name_f32`` and ``name_f64``.

    Every function takes whole numbers, addresses of tensors and the number of threads:
    ``(const int64_t*, void* const*, int64_t)``.

    Args:
        name: of the file in ``nl/ops/native``, without its suffix.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._library: ctypes.CDLL | None = None
        self._tried = False
        self._lock = threading.Lock()

    def takes(self, *tensors: Tensor | None) -> bool:
        """Whether a call with these tensors runs here: plain, on the CPU, of one fit dtype.

        Autograd does not see what a kernel does: it is called from the two passes of an
        ``autograd.Function``, or where ``ungraded``.
        """
        if _held_off or torch.compiler.is_compiling() or _watched():
            return False
        dtypes = set()
        for t in tensors:
            if t is None:
                continue
            if type(t) not in _PLAIN or not t.is_cpu:
                return False
            dtypes.add(t.dtype)
        return len(dtypes) == 1 and dtypes <= _SUFFIX.keys() and self.library() is not None

    def run(self, function: str, numbers: Sequence[int], tensors: Sequence[Tensor | None]) -> None:
        """Call a function on contiguous tensors (None: a null pointer); it writes into them.

        Args:
            function: its name without the dtype, which is that of all tensors.
            numbers: sizes and options.
            tensors: given and made.

        Raises:
            NativeError: the tensors are of several dtypes; a model was changed after its forward
                pass.
        """
        places: list[int | None] = []
        dtype = None
        for t in tensors:
            if t is None:
                places.append(None)
            else:
                assert t.is_contiguous()
                dtype = t.dtype if dtype is None else dtype
                if t.dtype != dtype:
                    raise NativeError(f"{self.name}.{function}: {dtype} and {t.dtype} in one call")
                places.append(t.data_ptr())
        assert dtype is not None
        getattr(self._library, f"{function}_{_SUFFIX[dtype]}")(
            (ctypes.c_int64 * len(numbers))(*numbers),
            (ctypes.c_void_p * len(places))(*places),
            ctypes.c_int64(torch.get_num_threads()),
        )

    def library(self) -> ctypes.CDLL | None:
        """The compiled file, or None where there is none.

        Raises:
            NativeError: ``NL_NATIVE`` is none of the modes, or on where this cannot be built.
        """
        wanted = os.environ.get("NL_NATIVE") or "auto"
        if wanted == "off":
            return None
        if self._library is not None and wanted in MODES:
            return self._library
        if wrong := complaint():
            raise NativeError(wrong)
        with self._lock:
            if not self._tried:
                self._library = self._load()
                self._tried = True
        if self._library is None and wanted == "on":
            raise NativeError(
                f"NL_NATIVE=on in the environment; {self.name} could not be built (the log says "
                "why): install g++, name a compiler in CXX, or set NL_NATIVE=auto"
            )
        return self._library

    def _load(self) -> ctypes.CDLL | None:
        if cpp_compiler() is None:
            log.info("no C++ compiler found: %s runs as torch operations", self.name)
            return None
        try:
            return ctypes.CDLL(str(self._built()))
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
            log.warning("%s: not built, runs as torch operations: %s", self.name, why[0])
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            log.warning("%s: not loaded, runs as torch operations: %s", self.name, error)
        return None

    def _built(self) -> Path:
        """The shared library, compiled where it is not there yet or no longer what was compiled."""
        source, compiler = SOURCES / f"{self.name}.cpp", compiler_words()
        folder = _folder()
        target = folder / f"{self.name}-{_digest(source, compiler)}.so"
        if not _whole(target):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work) / target.name
                _run([*compiler, *FLAGS, str(source), "-o", str(made)])
                digest = hashlib.sha256(made.read_bytes()).hexdigest()
                made.replace(target)
                # Written last: a library without its digest was not finished.
                target.with_suffix(".sha256").write_text(digest)
        return target


def build_all() -> dict[str, bool]:
    """Build every kernel; whether each can be used."""
    names = sorted(path.stem for path in SOURCES.glob("*.cpp"))
    return {name: Kernel(name).library() is not None for name in names}


def _run(command: list[str]) -> str:
    """What a program prints."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(command, check=True, timeout=COMPILE_SECONDS, **options)
    return str(done.stdout)


def _whole(library: Path) -> bool:
    """Whether a file is there and is what the compiler made."""
    try:
        told = library.with_suffix(".sha256").read_bytes()
        return told == hashlib.sha256(library.read_bytes()).hexdigest().encode()
    except FileNotFoundError:
        return False


def _folder() -> Path:
    """Where kernels are kept: only this user may write there."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "nl" / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user; set XDG_CACHE_HOME")
    return folder


def _digest(source: Path, compiler: list[str]) -> str:
    """Of everything that the machine code depends on."""
    version = _run([*compiler, "--version"])
    parts = [*compiler, *FLAGS, version, platform.machine(), _processor()]
    parts += [path.read_text() for path in (source, *sorted(SOURCES.glob("*.h")))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """Model and instruction sets of this machine's processor, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    kept = ("model", "flags", "Features", "CPU part", "cpu family", "vendor_id")
    return "\n".join(line for line in lines if line.startswith(kept))
