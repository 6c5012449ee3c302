"""The rows of the learning comparison: blocks, frozen twins, single changes, learning rates."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from study import Cell, parameters, width

from nl.config import ConfigError

BASE = "experiment=text/comparison"
REFERENCE = "transformer"
BLOCKS = (
    "transformer",
    "gated_delta",
    "titan_lmm",
    "titan_mac",
    "hope_attention",
    "hope_selfmod",
    "hope_hybrid",
)
HOPE = ("hope_attention", "hope_selfmod", "hope_hybrid")
LR = "3e-3"
"""Learning rate of all rows: ``optim.lr`` of the configuration."""
LR_TRIED = ("1e-3", "2e-3", "6e-3")
LR_BLOCKS = ("transformer", "gated_delta", "titan_lmm", "hope_attention", "hope_selfmod")
HEAD_PERIOD = 8
"""Tokens between writes of a head that learns."""
LEARNS = (f"model.head_memory.period={HEAD_PERIOD}",)
LONGER = 480
"""Steps of the longer rows: nearly all of the corpus' prose, none of it twice."""
LONGER_BLOCKS = ("transformer", "hope_attention")


@dataclass(frozen=True)
class Row:
    """One row of the study: a block, or one change of it.

    Attributes:
        label: the row's name, and its runs' without the seed.
        block: what is trained.
        changes: overrides beside the block.
        parent: the row it is compared with; empty for a block itself.
        kind: block, frozen, head, change, longer or lr.
    """

    label: str
    block: str
    changes: tuple[str, ...] = ()
    parent: str = ""
    kind: str = "block"


CMS_CHANGES: dict[str, tuple[str, ...]] = {
    "inner-momentum": ("model.cms.inner.kind=momentum",),
    "inner-delta": ("model.cms.inner.kind=delta",),
    "cms-no-decay": ("model.cms.retention=1",),
    "signal-block": ("model.cms.signal=block",),
    "signal-self": ("model.cms.signal=self", "model.cms.write_gradient=through"),
    "through": ("model.cms.write_gradient=through",),
    "nested": ("model.cms.arrangement=nested",),
    "independent": ("model.cms.arrangement=independent",),
    "periods-16": ("model.cms.periods=[16,32,64,128]",),
    "periods-64": ("model.cms.periods=[64,256,1024,4096]",),
    "rate-0.3": ("model.cms.rate=0.3",),
    "rate-3": ("model.cms.rate=3",),
}
"""Single changes of the continuum memory; its defaults here: periods 32, 64, 128, 256, rate 1."""
CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "hope_attention": CMS_CHANGES,
    "hope_selfmod": {
        "no-decay": ("model.selfmod.retain=0.999",),
        "rule-delta": ("model.selfmod.output_rule=delta",),
        "rule-decay": ("model.selfmod.output_rule=decay",),
        "literal": ("model.selfmod.compat=literal",),
        "target-self": ("model.selfmod.target=self",),
        "memory-16": ("model.selfmod.period=16",),
        "memory-64": ("model.selfmod.period=64",),
        "memory-rate-0.2": ("model.selfmod.rate=0.2",),
        "memory-rate-0.8": ("model.selfmod.rate=0.8",),
        **CMS_CHANGES,
    },
    "titan_lmm": {
        "no-momentum": ("model.titan.momentum=false",),
        "no-decay": ("model.titan.retain=0.999",),
        "zero": ("model.titan.retention=zero",),
        "memory-16": ("model.titan.period=16",),
        "memory-64": ("model.titan.period=64",),
        "memory-rate-0.2": ("model.titan.rate=0.2",),
        "memory-rate-0.8": ("model.titan.rate=0.8",),
    },
}


def rows() -> dict[str, Row]:
    """All rows by label, in the order in which they are trained."""
    found = [Row(block, block) for block in BLOCKS]
    for block in BLOCKS[1:]:
        write = ("objective.write=false",)
        found.append(Row(f"{block}-frozen", block, write, block, "frozen"))
    for block in BLOCKS:
        found.append(Row(f"{block}-head", block, LEARNS, block, "head"))
    for block, changes in CHANGES.items():
        for name, told in changes.items():
            found.append(Row(f"{block}-{name}", block, told, block, "change"))
    for block in LONGER_BLOCKS:
        steps = (f"train.steps={LONGER}",)
        found.append(Row(f"{block}-longer", block, steps, block, "longer"))
        both = (*LEARNS, *steps)
        found.append(Row(f"{block}-head-longer", block, both, block, "longer"))
    for lr in LR_TRIED:
        for block in LR_BLOCKS:
            found.append(Row(f"{block}-lr{lr}", block, (f"optim.lr={lr}",), block, "lr"))
    return {row.label: row for row in found}


def change(row: Row) -> tuple[str, ...]:
    """The row's overrides without the inner width."""
    return (BASE, f"model.block={row.block}", *row.changes)


@functools.cache
def overrides(row: Row) -> tuple[str, ...]:
    """The row's overrides, inner width included; without it where a key is not known yet."""
    chosen = change(row)
    try:
        goal = parameters((BASE, f"model.block={REFERENCE}"))
        return (*chosen, width(row.block, chosen, goal))
    except ConfigError:
        return chosen


def run(row: Row, seed: int) -> Cell:
    """One run of a row."""
    return Cell(f"{row.label}-s{seed}", (*overrides(row), f"seed={seed}"))


def cells(chosen: list[Row], seeds: int) -> list[Cell]:
    """Blocks, frozen twins, heads that learn, changes, longer runs, rates.

    Within each all rows of one seed before the next. Learning rates are tried on one seed.
    """
    found = []
    for kind in ("block", "frozen", "head", "change", "longer", "lr"):
        for seed in range(1 if kind == "lr" else seeds):
            found += [run(row, seed) for row in chosen if row.kind == kind]
    return found
