"""Rows of the study of task streams, their measures and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import study
from tgsmn_read import (
    References,
    Run,
    Seeds,
    clear,
    difference,
    flops,
    flops_at,
    mean_k,
    measures,
    over,
    seconds,
    signal_share,
    text,
)

from nl.eval.continual_summary import Interval

NAMES = {
    "dense": "dense",
    "dense_replay": "dense, replay",
    "dense_flops": "dense, equal FLOPs",
    "dense_flops_replay": "dense, equal FLOPs, replay",
    "sparse": "sparse",
    "sparse_replay": "sparse, replay",
    "sparse_random": "sparse, random controller",
    "sparse_pi": "sparse, PI controller",
    "sparse_gru": "sparse, GRU controller",
    "hope_attention": "hope_attention",
    "hope_selfmod": "hope_selfmod",
    "dense_joint": "dense, joint",
}
"""Rows of the tables, as they are called."""
SHOWN = {
    "average_loss": "average loss (lower)",
    "forgetting": "forgetting (lower)",
    "backward_transfer": "BWT (higher)",
    "forward_transfer": "FWT (higher)",
    "plasticity_loss": "plasticity loss (lower)",
    "anytime_loss": "anytime loss (lower)",
    "learning": "loss while learning (lower)",
}
FURTHER = {
    "lost_share": "share lost (lower)",
    "forgetting_ppl_ratio": "forgetting, ratio of ppl (lower)",
    "average_ppl_geometric": "ppl, geometric (lower)",
    "intransigence": "intransigence (lower)",
    "joint_gap": "final minus joint (lower)",
    "plasticity_gap": "learned minus alone (lower)",
    "gap": "stability gap (lower)",
}
SHARED = {
    "transfer_known": "FWT, known permutation (higher)",
    "transfer_new": "FWT, new permutation (higher)",
    "hit_same": "rise by a task with the same permutation (lower)",
    "hit_other": "rise by another task (lower)",
}
COMPARED = {
    "average_loss": "average loss",
    "forgetting": "forgetting",
    "plasticity_loss": "plasticity loss",
    "learning": "loss while learning",
}
BASES = ("dense_replay", "sparse", "sparse_replay")


@dataclass(frozen=True)
class Row:
    """One line: a variant, how its memories are treated in R, and its measures by seed."""

    key: str
    runs: Mapping[int, Run]
    mode: str
    found: Mapping[int, Mapping[str, float]]

    @property
    def name(self) -> str:
        """As the tables say it."""
        return name_of(self.key)

    def values(self, measure: str) -> Seeds:
        """One measure by seed, where it is defined."""
        return {seed: one[measure] for seed, one in self.found.items() if measure in one}


def name_of(key: str) -> str:
    """The name of a row; ``<variant>, frozen`` reads memories that are not written."""
    variant, _, frozen = key.partition(", ")
    return NAMES[variant] + (f", memories {frozen}" if frozen else "")


def rows_of(
    study_: Mapping[str, Mapping[int, Run]], order: str, known: Mapping[int, References]
) -> dict[str, Row]:
    """Rows of one order of the tasks, models with memories twice."""
    rows = {}
    for variant in NAMES:
        runs = study_.get(f"{order}_{variant}", {})
        modes = next(iter(runs.values())).modes if runs else []
        for mode in modes:
            found = {seed: measures(run, mode, known.get(seed)) for seed, run in runs.items()}
            key = variant if mode == "context" else f"{variant}, frozen"
            rows[key] = Row(key, runs, mode, found)
    return rows


# Tables


def measure_table(rows: Mapping[str, Row], shown: Mapping[str, str]) -> list[str]:
    """A line per row, a column per measure, mean and half interval."""
    body = []
    for row in rows.values():
        cells = [text(row.values(measure), 1 if "ppl" in measure else 2) for measure in shown]
        if any(cell != "-" for cell in cells):
            body.append([row.name, str(len(row.runs)), *cells])
    return study.table(["", "n", *shown.values()], body)


def cost_table(rows: Mapping[str, Row]) -> list[str]:
    """Parameters, FLOPs and CPU seconds."""
    body = []
    for row in rows.values():
        if row.key.endswith(", frozen"):
            continue
        one = next(iter(row.runs.values()))
        whole, active, _ = flops_at(one.frame.directory, None)
        k = text(over(row.runs, mean_k), 2)
        share = text({s: 100 * v for s, v in over(row.runs, signal_share).items()}, 1)
        spent = text(over(row.runs, seconds), 1)
        used = text({s: v / 1e6 for s, v in over(row.runs, flops).items()})
        used = used.removesuffix(" +- 0.000")
        body.append([row.name, f"{whole:,}", f"{active:,}", k, used, spent, share])
    head = ["", "parameters", "read by a token", "experts k", "MFLOPs per token"]
    return study.table([*head, "CPU s of training", "signals, % of its time"], body)


def difference_table(rows: Mapping[str, Row], base: str) -> list[str]:
    """Every row minus one of them, paired by seed."""
    body = []
    for row in rows.values():
        if row.key == base:
            continue
        cells = [cell(row, rows[base], measure) for measure in COMPARED]
        if any(found != "-" for found in cells):
            body.append([row.name, *cells])
    return study.table([f"minus {name_of(base)}", *COMPARED.values()], body)


def cell(row: Row, base: Row, measure: str) -> str:
    """A difference and what its interval says."""
    gap = difference(row.values(measure), base.values(measure))
    return "-" if gap is None else f"{gap.text()}, {verdict(gap)}"


def verdict(gap: Interval) -> str:
    """Which side of zero the interval is on."""
    if not clear(gap):
        return "not decided"
    return "lower" if gap.mean < 0 else "higher"
