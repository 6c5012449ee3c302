"""nl: train, stream, evaluate and compare sequence models that keep learning.

The public face, loaded on first use (``import nl`` itself imports no torch):

- ``nl.build_model(name, overrides)``: a freshly initialised model of a config.
- ``nl.load_model(path)``: the model of a run directory, checkpoint directory or exported file.
- ``nl.save_state(path, state)``, ``nl.load_state(path)``: a State as a file.
- ``nl.launch(config, strategy=...)``: train.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nl.assembly import build_model, launch, load_model, load_state, save_state

__version__ = "0.1.0"
__all__ = ["__version__", "build_model", "launch", "load_model", "load_state", "save_state"]


def __getattr__(name: str) -> Any:
    if name in __all__[1:]:
        return getattr(import_module("nl.assembly"), name)
    raise AttributeError(f"module 'nl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
