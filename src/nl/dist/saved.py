"""What a checkpoint says of model and optimizer, whatever its format. Floor 4.

PyTorch's sharded tensors take as long to import as the rest of PyTorch: only what reads or writes
them does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from nl.config import ConfigError
from nl.dist.layout import INDEX, PARTS, is_sharded
from nl.dist.serial import load_tensors, pack, save_tensors, unpack
from nl.run.files import read_json, write_json

MODEL, OPTIM = "model/", "optim/"
"""Prefixes of names in DCP files: ``model/<name>`` and ``optim/<parameter>/<slot>``."""


@dataclass(frozen=True)
class OptimizerFacts:
    """An optimizer without its tensors.

    Attributes:
        parameters: names by group.
        groups: ``param_groups`` of its state_dict.
        values: by parameter and slot, what is no tensor.
    """

    parameters: list[list[str]]
    groups: list[dict[str, Any]]
    values: dict[str, dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """Names in the order of a state_dict's numbers."""
        return list(chain(*self.parameters))


@dataclass(frozen=True)
class Saved:
    """A checkpoint's tensors, whole and on the host.

    Attributes:
        model: plain names; what the objective owns itself as ``objective.<name>``.
        optimizer: without ``values``.
        slots: by parameter, its tensors and values in the optimizer.
    """

    model: dict[str, Tensor]
    optimizer: OptimizerFacts
    slots: dict[str, dict[str, Any]]

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.load_state_dict`` takes it."""
        names = self.optimizer.names
        state = {i: self.slots[name] for i, name in enumerate(names) if name in self.slots}
        return {"state": state, "param_groups": self.optimizer.groups}


def read_model_tensors(folder: Path) -> dict[str, Tensor]:
    """The model's whole tensors by plain name.

    Raises:
        ConfigError: missing or unreadable files.
    """
    if is_sharded(folder):
        from nl.dist.dcp import read_all

        return read_all(folder, MODEL)
    return load_tensors(folder / "model.safetensors")[0]


def read_saved(folder: Path) -> Saved:
    """Everything of a checkpoint's model and optimizer, of either format.

    Raises:
        ConfigError: missing or unreadable files.
    """
    if is_sharded(folder):
        from nl.dist.dcp import read_all

        facts = read_facts(folder)
        slots = {name: dict(values) for name, values in facts.values.items()}
        for key, tensor in read_all(folder, OPTIM).items():
            name, slot = split_slot(key)
            slots.setdefault(name, {})[slot] = tensor
        return Saved(read_model_tensors(folder), facts, slots)
    found = read_json(folder / "optim.json")
    tensors, _ = load_tensors(folder / "optim.safetensors")
    state = unpack(found["state"], tensors)
    facts = OptimizerFacts(found["parameters"], state["param_groups"], {})
    slots = {facts.names[i]: held for i, held in state["state"].items()}
    return Saved(read_model_tensors(folder), facts, slots)


def split_slot(key: str) -> tuple[str, str]:
    """``<parameter>/<slot>`` in two."""
    name, _, slot = key.rpartition("/")
    return name, slot


def read_facts(folder: Path) -> OptimizerFacts:
    """The optimizer of a sharded checkpoint without its tensors.

    Raises:
        ConfigError: not of a sharded checkpoint.
    """
    found = read_json(folder / "optim.json")
    try:
        return OptimizerFacts(
            found["parameters"], unpack(found["groups"], {}), unpack(found["values"], {})
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / 'optim.json'}: not beside {INDEX} ({error}).") from error


def write_plain(folder: Path, saved: Saved) -> None:
    """Write model and optimizer as single-device training does."""
    save_tensors(folder / "model.safetensors", saved.model)
    named: dict[str, Tensor] = {}
    skeleton = pack(saved.state_dict(), named, "optim")
    save_tensors(folder / "optim.safetensors", named)
    facts = {"parameters": saved.optimizer.parameters, "state": skeleton}
    write_json(folder / "optim.json", facts)


def write_dcp(folder: Path, saved: Saved) -> None:
    """Write model and optimizer as sharded training does, from this process alone."""
    capture_parts(saved.model, saved.optimizer, saved.slots, rank=0)(folder)
    seal(folder)


def capture_parts(
    model: Mapping[str, Tensor],
    facts: OptimizerFacts,
    slots: Mapping[str, Mapping[str, Any]],
    *,
    rank: int,
) -> Callable[[Path], None]:
    """Copy this rank's part of model and optimizer to the host (not collective).

    Args:
        model: sharded or whole tensors, the same names on every rank.
        facts: of the optimizer, the same on every rank.
        slots: by parameter; a whole matrix has its slots on one rank only.
        rank: of this process; rank 0 writes what all ranks have whole.

    Returns:
        What writes the copies, from any thread; ``seal`` has to follow when all ranks have.
    """
    from torch.distributed.tensor import DTensor

    from nl.dist.dcp_write import piece_of, write_part

    pieces = [piece_of(MODEL + name, tensor, rank == 0) for name, tensor in model.items()]
    values: dict[str, dict[str, Any]] = {}
    for name, held in slots.items():
        # Slots of a matrix that lives here whole are on no other rank.
        mine = rank == 0 or not any(isinstance(v, DTensor) for v in held.values())
        for slot, value in held.items():
            if isinstance(value, Tensor):
                pieces.append(piece_of(f"{OPTIM}{name}/{slot}", value, mine))
            else:
                values.setdefault(name, {})[slot] = value
    plain = {"parameters": facts.parameters, "groups": pack(facts.groups, {})}
    plain |= {"values": pack(values, {})}
    kept = [piece for piece in pieces if piece is not None]
    return lambda folder: write_part(folder, rank, kept, plain)


def seal(folder: Path) -> None:
    """Make one checkpoint of the parts of all ranks, if there are any (one process)."""
    if not any(folder.glob(PARTS)):
        return
    from nl.dist.dcp_write import write_index

    facts = write_index(folder)
    values = {n: v for part in facts for n, v in unpack(part["values"], {}).items()}
    whole = {"parameters": facts[0]["parameters"], "groups": facts[0]["groups"]}
    write_json(folder / "optim.json", whole | {"values": pack(values, {})})


def check_names(where: Path, wanted: set[str], found: set[str]) -> None:
    """Complain about names that are only on one side, at most five each.

    Raises:
        ConfigError: listing them.
    """
    if wanted == found:
        return
    missing, extra = sorted(wanted - found)[:5], sorted(found - wanted)[:5]
    raise ConfigError(
        f"{where}: made for another model. Missing: {', '.join(missing) or 'none'}. "
        f"Not known here: {', '.join(extra) or 'none'}."
    )


def check_groups(folder: Path, own: list[list[str]], found: list[list[str]]) -> None:
    """Complain about an optimizer over other parameters, or in other groups.

    Raises:
        ConfigError: listing the names.
    """
    if own == found:
        return
    where = folder / "optim.json"
    check_names(where, {n for g in own for n in g}, {n for g in found for n in g})
    raise ConfigError(f"{where}: parameters are grouped or ordered anew.")
