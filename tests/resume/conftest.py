"""The tiny parts, loaded once per process under one module name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module with the tiny parts; ``tiny.tiny_run(...)`` makes configurations."""
    if "nl_tiny" not in sys.modules:
        spec = importlib.util.spec_from_file_location("nl_tiny", SOURCE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["nl_tiny"] = module
        spec.loader.exec_module(module)
    return sys.modules["nl_tiny"]
