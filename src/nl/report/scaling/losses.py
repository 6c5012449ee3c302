"""Losses per token that an evaluator stored (``nll.safetensors``), checked when read. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nl.config import ConfigError, require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FILE = "nll.safetensors"
NEEDED = ("nll", "component", "document", "context")
EXACT = ("bayes_nll", "bayes_kl", "bayes_entropy", "posterior", "own_nll", "own_kl")
"""What only sources with a known filter have; nan where a window is of none that was trained on."""
COUNTED = ("component_at", "bytes")
"""Whole numbers per token: the component that emitted it, the bytes that it stands for."""


@dataclass(frozen=True)
class Losses:
    """What one model was scored on, in nats.

    Attributes:
        nll: (windows, positions), -ln p of every predicted token.
        component, document: (windows,), codes; documents are counted within a component.
        context: (positions,), tokens seen before the predicted one, BOS not counted.
        components: names in the order of their codes.
        trained_on: names in training.
        digest: of the list of windows; runs of equal digests may be compared window by window.
        split, seed: as the metadata say.
        exact: of synthetic sources what ``EXACT`` names, each (windows, positions).
        counted: what ``COUNTED`` names, where it is known, each (windows, positions).
        source: where it was read.
        more: the other metadata.
    """

    nll: Floats
    component: Ints
    document: Ints
    context: Ints
    components: tuple[str, ...]
    trained_on: tuple[str, ...]
    digest: str
    split: str = ""
    seed: int = 0
    exact: dict[str, Floats] = field(default_factory=dict)
    counted: dict[str, Ints] = field(default_factory=dict)
    source: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def subset(self) -> tuple[int, ...]:
        """Codes of the components in training, in order."""
        return tuple(sorted(self.components.index(name) for name in self.trained_on))

    def part(self, codes: Sequence[int]) -> Losses:
        """The windows of some components."""
        mine = np.isin(self.component, list(codes))
        return replace(
            self,
            nll=self.nll[mine],
            component=self.component[mine],
            document=self.document[mine],
            exact={name: one[mine] for name, one in self.exact.items()},
            counted={name: one[mine] for name, one in self.counted.items()},
        )


def read_losses(path: Path) -> Losses:
    """One file.

    Raises:
        ConfigError: it is missing, broken, lacks a tensor, has shapes that do not fit, names a
            component in training that it does not list, or holds numbers that are not finite.
    """
    tensors, meta = _read(path)
    lost = [name for name in NEEDED if name not in tensors]
    require(not lost, f"{path}: lacks {', '.join(lost)}; it is no file of losses per token.")
    lost = [key for key in ("components", "trained_on", "windows_digest") if key not in meta]
    require(not lost, f"{path}: its metadata lack {', '.join(lost)}; evaluate the run again.")
    nll = tensors["nll"].astype(np.float64)
    found = Losses(
        nll=nll,
        component=tensors["component"].astype(np.int64),
        document=tensors["document"].astype(np.int64),
        context=tensors["context"].astype(np.int64),
        components=tuple(meta.pop("components")),
        trained_on=tuple(meta.pop("trained_on")),
        digest=str(meta.pop("windows_digest")),
        split=str(meta.pop("split", "")),
        seed=int(meta.pop("seed", 0)),
        exact={name: tensors[name].astype(np.float64) for name in EXACT if name in tensors},
        counted={name: tensors[name].astype(np.int64) for name in COUNTED if name in tensors},
        source=str(path),
        more=meta,
    )
    check(found)
    return found


def check(losses: Losses) -> None:
    """Refuse what does not fit together.

    Raises:
        ConfigError: see ``read_losses``.
    """
    where, shape = losses.source or "losses", losses.nll.shape
    require(len(shape) == 2 and min(shape) > 0, f"{where}: nll: shape {shape}; windows, positions.")
    for name, size in (("component", shape[0]), ("document", shape[0]), ("context", shape[1])):
        found = getattr(losses, name).shape
        require(found == (size,), f"{where}: {name}: shape {found}; must be ({size},).")
    for name, values in (*losses.exact.items(), *losses.counted.items()):
        require(values.shape == shape, f"{where}: {name}: shape {values.shape}; nll's is {shape}.")
    unknown = sorted(set(losses.trained_on) - set(losses.components))
    require(
        not unknown,
        f"{where}: trained_on: {', '.join(unknown)}; it knows {', '.join(losses.components)}.",
    )
    require(bool(losses.trained_on), f"{where}: trained_on: empty; name what was trained on.")
    codes = losses.component
    within = int(codes.min()) >= 0 and int(codes.max()) < len(losses.components)
    require(within, f"{where}: component: codes beyond the {len(losses.components)} names.")
    broken = int((~np.isfinite(losses.nll)).sum())
    require(not broken, f"{where}: nll: {broken} of {losses.nll.size} numbers are not finite.")


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors, and metadata whose values are JSON or plain text."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = {key: _value(text) for key, text in (file.metadata() or {}).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); evaluate the run again.") from error
    return tensors, meta


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
