"""``nl doctor``: what this machine has, what is missing and how to get it. Floor 8."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

OK, NOTE, FAIL = "ok", "note", "fail"
OLDEST, NEWEST = (3, 11), (3, 13)


@dataclass(frozen=True)
class Check:
    """One line: ``ok``, ``note`` (works, something optional is absent) or ``fail``."""

    name: str
    status: str
    value: str
    hint: str = ""


def doctor(*, as_json: bool) -> int:
    """Print every check; 1 if one failed, else 0."""
    checks = [
        check_python(),
        check_package(),
        *check_torch(),
        check_threads(),
        *check_extras(),
        check_configs(),
        check_writable(Path("runs")),
        check_data(Path("data/stdlib")),
    ]
    failed = any(check.status == FAIL for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=1))
        return int(failed)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:4}  {check.name:{width}}  {check.value}")
        if check.hint:
            print(f"{'':4}  {'':{width}}  -> {check.hint}")
    print("something is missing that every run needs" if failed else "ready")
    return int(failed)


def check_python() -> Check:
    """The interpreter is one that the package supports."""
    version = platform.python_version()
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Check("python", OK, version)
    return Check("python", FAIL, version, "use Python 3.11, 3.12 or 3.13: uv python install 3.12")


def check_package() -> Check:
    """The package is installed."""
    try:
        return Check("nl", OK, metadata.version("nl"))
    except metadata.PackageNotFoundError:
        return Check("nl", FAIL, "not installed", "run uv sync in the checkout")


def check_torch() -> list[Check]:
    """Torch, its devices, compilation and distributed backends."""
    if util.find_spec("torch") is None:
        return [Check("torch", FAIL, "missing", "run uv sync in the checkout")]
    import torch

    checks = [Check("torch", OK, torch.__version__)]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hint = "" if names else "runs use the CPU; GPU runs need a CUDA device and its driver"
    checks.append(Check("devices", OK if names else NOTE, ", ".join(names) or "cpu", hint))
    checks += check_compiler()
    backends = [
        name
        for name, there in (
            ("gloo", torch.distributed.is_available() and torch.distributed.is_gloo_available()),
            ("nccl", torch.distributed.is_available() and torch.distributed.is_nccl_available()),
        )
        if there
    ]
    if backends:
        return [*checks, Check("distributed", OK, ", ".join(backends))]
    hint = "this build of torch has no distributed backend; train.py works, train_dist.py does not"
    return [*checks, Check("distributed", NOTE, "none", hint)]


def check_compiler() -> list[Check]:
    """Whether torch.compile and the kernels of memories can be built for the CPU."""
    from nl.core.native import build_all, complaint, cpp_compiler

    compiler = cpp_compiler()
    if wrong := complaint():
        return [Check("compile", FAIL, wrong)]
    if compiler is None:
        hint = "torch.compile on CPU and the kernels of memories need g++ or clang++"
        return [Check("compile", NOTE, "no C++ compiler", hint)]
    checks = [Check("compile", OK, f"C++ compiler {compiler}")]
    if os.environ.get("NL_NATIVE") == "off":
        return [*checks, Check("kernels", NOTE, "off", "NL_NATIVE=off in the environment")]
    built = build_all()
    missing = ", ".join(name for name, there in built.items() if not there)
    if missing:
        hint = "memories run as torch operations, which is slower; the warning above says why"
        return [*checks, Check("kernels", NOTE, f"not built: {missing}", hint)]
    return [*checks, Check("kernels", OK, ", ".join(built))]


def check_threads() -> Check:
    """Cores and the thread settings of the environment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = os.environ.get("OMP_NUM_THREADS")
    return Check("threads", OK, f"{cores} cores, OMP_NUM_THREADS {chosen or 'not set'}")


def extras() -> dict[str, list[str]]:
    """Distribution names by extra, from the package's own metadata."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("nl") or []:
        match = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match:
            found.setdefault(match[2], []).append(match[1])
    return found


def check_extras() -> list[Check]:
    """Which optional parts are installed."""
    try:
        wanted = extras()
    except metadata.PackageNotFoundError:
        return []
    checks = []
    for extra, packages in wanted.items():
        missing = [name for name in packages if not installed(name)]
        value = "present" if not missing else f"missing {', '.join(missing)}"
        hint = f"uv sync --extra {extra}, or pip install 'nl[{extra}]'" if missing else ""
        checks.append(Check(f"extra {extra}", NOTE if missing else OK, value, hint))
    return checks


def installed(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_configs() -> Check:
    """The configuration files are there."""
    from nl.config import ConfigError
    from nl.config.hydra import config_dir

    try:
        return Check("configs", OK, str(config_dir()))
    except ConfigError as error:
        return Check("configs", FAIL, "missing", str(error))


def check_writable(root: Path) -> Check:
    """Runs can be written here."""
    place = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Check("run directory", OK, f"{root} is writable")
    return Check("run directory", FAIL, f"{place} is not writable", "choose run.root=<directory>")


def check_data(folder: Path) -> Check:
    """The sample data is built."""
    if (folder / "manifest.json").is_file():
        return Check("data", OK, str(folder))
    hint = "build it with: bash scripts/data/run_sample.sh"
    return Check("data", NOTE, f"{folder} is not built yet", hint)
