"""Every test: no network, one thread, fixed seeds, nothing sent anywhere."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SEED = 1234

os.environ.update(
    CUBLAS_WORKSPACE_CONFIG=":4096:8",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
    WANDB_MODE="disabled",
    WANDB_SILENT="true",
)
# Subprocesses of a test import the same checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed every generator a test may draw from; torch only where a test has imported it."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections beyond this machine, so that no test depends on one."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "localhost", "::1"):
            raise RuntimeError(f"a test tried to reach {host!r}; mark it network or fake it")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """A fresh parent for run directories (``run.root``)."""
    root = tmp_path / "runs"
    root.mkdir()
    return root


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def tiny(repo: Path) -> ModuleType:
    """``tests/resume/tiny.py``, loaded once: ``tiny.tiny_run(...)`` makes runs of milliseconds."""
    source = repo / "tests" / "resume" / "tiny.py"
    spec = importlib.util.spec_from_file_location("nl_tiny", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nl_tiny"] = module
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def same_directory() -> Iterator[None]:
    """A test that changes the working directory does not leave the next one there."""
    before = Path.cwd()
    yield
    os.chdir(before)
