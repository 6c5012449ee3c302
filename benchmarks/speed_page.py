"""The page and the picture of benchmarks/peers.py, made from its JSON alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nl.report.dots import Dot, Dots

Row = dict[str, Any]
AIMS = {20.0: 40.0, 24.0: 60.0, 0.5: 0.8, 0.8: 1.2, 0.4: 0.6, 1.5: 2.0, 2.0: 3.0, 4.0: 8.0}
"""Gate -> what would be very good; gates without an aim of their own are not here."""
BELOW_AIM = 1.0
"""Aim of the rows that have to stay below their gate."""

DIFFERENCES = """## What is compared

One process per group, one thread, fp32, random data; cells of a row take turns. The number of a row
is the median over rounds of the ratio of CPU times within a round; least and largest stand beside
it. Ours has kernels for its memories (`docs/nested_core.md`, *Kernels for the CPU*), built as for
any user with a C++ compiler; rows *torch alone* do without them (`NL_NATIVE=off`), rows *compiled*
are under `train.compile=true`, which leaves to the kernels what they do. Everything else, the whole
Transformer and all of the other packages included, multiplies with torch's MKL. So does the GEMM
peak: shares of it can exceed one.
Training with `nl` keeps freed memory (`nl.core.cpu`): so do the rows against the
Transformer and the GEMM peak. Rows against other packages leave malloc as it is; those of train
steps come once more with freed memory kept for both, from which nested-learning gains most.

*nested-learning 0.2.0.* Its step is that of its training loop without online chunks: forward,
loss, backward, clipping, AdamW, then the update pass over the same tokens with the head's teach
signal. This is its faster mode. Model shape, vocabulary, tied embeddings, batch, expansion 4 of
four levels and the fused AdamW are the same on both sides. What differs:

- its levels are written at periods 1, 4, 32 and 128 in its configurations; ours refuse periods
  below 16 unless asked and run at 64, 256, 1024 and 4096. The second row of each pair gives it our
  periods;
- its self-modifying memory is one dense memory of the whole width, ours has heads of 64; it has
  GELU where ours has SiLU; it has one projection (queries), ours one for each input and direct
  gates;
- its update pass is a second forward pass whose writes no gradient passes through; ours writes
  within the one pass, the next chunk reads what was written, and gradients flow through the writes
  of the self-modifying memory;
- its level optimizer is its deep momentum, ours SGD with a decay and a clipped step; its state is
  shared by the rows of a batch, ours is one per row;
- its surprise gate is off, so that it writes at every period, as ours does.

*Write path alone.* Both read and write one memory set of the full width (one head of 128), GELU,
chunk 64, no gradients; both with their convolution and projections, of which ours has more. `ours`
writes by the same rule (`selfmod.compat=literal`), `ours, default rule` by the delta rule on both
layers, `ours, default options` in heads of 64 with SiLU (`docs/nested_core.md`).

*titans-pytorch 0.5.5.* `NeuralMemory`, 4 heads x 64, depth 2, expansion 1, B 1, T 512. `boundary`
is its `batch_size`: for how many tokens inner gradients are taken at the same weights (none: for
the whole row). Ours takes them at every chunk, which is boundary = chunk. The gate is against
boundary 128, which for chunks below 128 asks less of it than of ours. `ours` has no convolution,
plain steps and keeps for the backward pass what it needs, as it does (`titan.recompute=false`);
`ours, compiled` is the same under `train.compile=true`; `ours, recomputing` computes writes again
there, which is the default; `ours, default options` also convolves queries, keys and values and
normalises steps. Decay and momentum are one per token in ours, one per chunk in its; it has a gate
per head on its answers and no norm there, ours a norm and no gate.

*Transformer.* Whole train steps (`nl bench`) of models with the parameters of the Transformer
within 2 %, two layers. Memory kept is what autograd saves for one layer of the step, writes
included, counted once per storage, parameters left out. The share of the GEMM peak uses the
formulas of `src/nl/bench/flops.py`: 70 d d_h + 7 C d + 2 per weight of the static projections, per
token; what the default rule computes beyond that does not count.
"""


def page(result: dict[str, Any], name: str) -> str:
    """The page as Markdown; ``name`` is the stem of its picture."""
    rows = result["rows"]
    gated = [row for row in rows if row["gate"] is not None]
    held = sum(holds(row) for row in gated)
    lines = ["# Speed", "", *conditions(result), ""]
    lines += [f"{held} of {len(gated)} gates hold.", "", *table(gated, gates=True), ""]
    lines += [f"![Each row relative to its gate]({name}.svg)", ""]
    lines += ["The other rows of the same run:", "", *table(r for r in rows if r not in gated)]
    lines += ["", *shares(rows), "", DIFFERENCES.rstrip()]
    return "\n".join(lines) + "\n"


def conditions(result: dict[str, Any]) -> list[str]:
    """Command, commit, load, peaks; and what disqualifies the run."""
    peaks = ", ".join(f"{peak:.0f}" for peak in result["gemm_gflops"])
    load = ", ".join("unknown" if x is None else f"{x:.1f}" for x in result["load"])
    peers = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    sha = result["git"]["sha"] or "unknown"
    dirty = " with changes" if result["git"]["dirty"] else ""
    flags = ", ".join(f for f in result["cpu_flags"] if f in ("avx2", "avx512f", "avx512_bf16"))
    lines = [
        f"Made by `{result['command']}` in {result['minutes']:.1f} minutes: commit {sha[:12]}"
        f"{dirty}, torch {result['torch']}, Python {result['python']}, {peers}; "
        f"{result['rounds']} rounds, one thread, {result['clock']} time. GEMM peak before and "
        f"after each group: {peaks} GFLOP/s (fp32, 1024^3); load average {load}; processor with "
        f"{flags or 'unknown flags'}.",
    ]
    if result["quick"]:
        lines += ["", "**A quick run: one round, shorter steps. Not to be quoted.**"]
    if not result["steady"]:
        lines += ["", "**The GEMM peak moved by more than a tenth: this run does not count.**"]
    return lines


def aim(row: Row) -> float | None:
    """What would be very good."""
    return BELOW_AIM if row.get("below") else AIMS.get(row["gate"])


def holds(row: Row) -> bool:
    """Whether the measured number is on the right side of the gate."""
    below: bool = row.get("below", False)
    good: bool = row["measured"] <= row["gate"] if below else row["measured"] >= row["gate"]
    return good


def table(rows: Iterable[Row], gates: bool = False) -> list[str]:
    """Rows as a Markdown table."""
    wanted = " gate | aim |" if gates else ""
    lines = [
        f"| row | ours | against |{wanted} measured | least | largest | tokens/s | theirs |"
        + (" holds |" if gates else "")
    ]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for row in rows:
        words = [row["row"], row["ours"], row["other"]]
        if gates:
            target = aim(row)
            sign = "<=" if row.get("below") else ">="
            words += [f"{sign} {row['gate']:g}", "" if target is None else f"{target:g}"]
        words += [f"{row['measured']:.2f}", number(row.get("min")), number(row.get("max"))]
        words += [whole(row.get("tokens_per_s")), whole(row.get("other_tokens_per_s"))]
        words += [("yes" if holds(row) else "**no**")] if gates else []
        lines.append("| " + " | ".join(words) + " |")
    return lines


def shares(rows: list[Row]) -> list[str]:
    """Shares of the GEMM peak of whole train steps."""
    found = [row for row in rows if "share_model" in row]
    if not found:
        return []
    lines = ["Shares of the GEMM peak of the same train steps (MFU: 6 N_matmul + 12 d T_eff per"]
    lines += ["layer; algorithmic: with the writes):", "", "| step | MFU | algorithmic |"]
    lines += ["|---|---|---|"]
    for row in found:
        name = row["row"].partition(":")[0]
        lines.append(f"| {name} | {row['share_model']:.0%} | {row['share_algorithmic']:.0%} |")
    return lines


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def picture(result: dict[str, Any]) -> Dots:
    """Gated rows as powers of two beyond their gate, least to largest; right of zero it holds."""
    dots = []
    for row in result["rows"]:
        if row["gate"] is None:
            continue
        sign = -1 if row.get("below") else 1
        named = row["ours"] == "ours" or row["ours"] in row["row"]
        name = row["row"] if named else f"{row['row']} ({row['ours']})"
        ends = [
            sign * math.log2(row[end] / row["gate"])
            for end in ("measured", "min", "max")
            if row.get(end)
        ]
        span = (ends[0] - min(ends), max(ends) - ends[0]) if len(ends) > 1 else None
        dots.append(Dot(name, ends[0], span=span))
    return Dots("speed", "Measured over gate", dots, x_label="log2 of measured / gate")
