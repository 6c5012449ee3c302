"""Sections of the core suite's page about memories: writes, bytes, change, errors, levels."""

from __future__ import annotations

from typing import Any

import study
from synthetic_cells import Suite

RATES = ("average_accuracy", "plasticity", "forgetting", "backward_transfer", "forward_transfer")
LAG, TONGUE = "tokens since switch", "language"
FIXED = ("gated_delta", "lstm", "titan_lmm", "hope_selfmod")
"""Mixers without attention, whose State does not grow."""


def memories(suite: Suite) -> list[str]:
    """Accuracy with memories written, frozen and thrown away."""
    with_memory = [
        m for m in suite.mixers if any(suite.values(t, m, "test", "frozen") for t in suite.tasks)
    ]
    lines = []
    for task in suite.tasks:
        line = [task]
        for mixer in with_memory:
            found = [suite.mean(task, mixer, "test", mode) for mode in ("on", "frozen", "reset")]
            line.append(" / ".join("-" if v is None else f"{v:.2f}" for v in found))
        lines.append(line)
    drops = []
    for mixer in with_memory:
        pairs = [
            [
                a - b
                for a, b in zip(
                    suite.values(t, mixer), suite.values(t, mixer, "test", "frozen"), strict=True
                )
            ]
            for t in suite.tasks
        ]
        seeds = [
            sum(one) / len(one) for one in zip(*(p for p in pairs if len(p) == 3), strict=True)
        ]
        if seeds:
            drops.append(f"{mixer} {study.interval(seeds, 2)}")
    return [
        "## Memories on, frozen, thrown away",
        "",
        "The same weights read the same rows: memories written as in training / never written "
        "(`write=False`) / thrown away every 8 tokens, attention untouched. The hidden vector of a "
        "recurrent mixer is its memory; transformer and sliding_window have none.",
        *study.table(["task", *with_memory], lines),
        f"What writing adds to accuracy, mean over tasks: {'; '.join(drops)}." if drops else "",
        "",
    ]


def states(suite: Suite) -> list[str]:
    """Bytes of one row's State on mqar by length, and where attention's cache outgrows others."""
    cases = ("test", "double", "fourfold")
    lengths = [suite.length("mqar", case) for case in cases]
    sizes = {
        m: [suite.mean("mqar", m, c, "on", "state_bytes") for c in cases] for m in suite.mixers
    }
    lines = [
        [mixer, *("-" if v is None else f"{v:,.0f}" for v in found)]
        for mixer, found in sizes.items()
    ]
    notes = []
    whole = sizes.get("transformer", [None])[0]
    if whole and lengths[0]:
        for mixer in FIXED:
            known = [size for size in sizes.get(mixer, []) if size is not None]
            if known:
                notes.append(f"of {mixer} after {max(known) / whole * lengths[0]:,.0f} tokens")
    text = f"A transformer's cache is as large as the State {', '.join(notes)}."
    return [
        "## Recall and bytes of State",
        "",
        "Bytes of one row's State (fp32) after reading mqar, with fast weights, momenta and what "
        "waits for the next write.",
        *study.table(["mixer", *(f"{n} tokens" for n in lengths)], lines),
        text if notes else "",
        "",
    ]


def languages(suite: Suite) -> list[str]:
    """formal: every language at the lengths of training and at longer ones."""
    slices = suite.fact(
        "formal", lambda page: sorted(map(int, page["test"]["on"]["slices"][TONGUE]))
    )
    if not slices:
        return []
    from nl.data.probe_languages import NAMES

    mixers = [m for m in suite.mixers if suite.pages("formal", m)]
    rows = []
    for number in slices:
        line = [NAMES[number]]
        for mixer in mixers:
            means = []
            for evaluator, case in (("in_range", "val"), ("probe", "test")):
                pages = suite.pages("formal", mixer, evaluator)
                found = [p[case]["on"]["slices"][TONGUE].get(str(number)) for p in pages]
                known = [one["accuracy"] for one in found if one]
                means.append(f"{sum(known) / len(known):.2f}" if known else "-")
            line.append(" / ".join(means))
        rows.append(line)
    return [
        "formal: accuracy per language, strings as long as in training / longer; one model reads "
        "all eight.",
        *study.table(["language", *mixers], rows),
    ]


def changes(suite: Suite) -> list[str]:
    """Continual learning: measures of R, and accuracy after a switch of the stream."""
    lines = ["## Continual learning", ""]
    for task in ("cl_mqar_stream", "cl_remap"):
        rows = []
        for mixer in suite.mixers:
            pages = suite.pages(task, mixer, "phases")
            if pages:
                found = [measures_of(page["on"]) for page in pages]
                rows.append(
                    [
                        mixer,
                        *(study.interval([f[key] for f in found], 2) for key in RATES),
                    ]
                )
        if rows:
            lost = {m: share_lost(suite, task, m) for m in suite.mixers}
            known = {m: share for m, share in lost.items() if share is not None}
            least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            text = (
                f"Of what a phase taught, its successors wiped out {known[least]:.0%} ({least}) to "
                f"{known[most]:.0%} ({most})."
            )
            head = [name.replace("_", " ") for name in RATES]
            lines += [
                f"{task}: R over three phases (row: after a phase, column: rows of a phase), "
                "accuracy. Up is good but for forgetting.",
                *study.table(["mixer", *head], rows),
                text,
                "",
            ]
    return [*lines, *lag(suite)]


def share_lost(suite: Suite, task: str, mixer: str) -> float | None:
    """What was known of earlier phases after each and is not at the end, of all seeds; 0 to 1."""
    learned = kept = 0.0
    for page in suite.pages(task, mixer, "phases"):
        r = page["on"]["accuracy"]
        earlier = range(len(r[0]) - 1)
        learned += sum(r[j + 1][j] for j in earlier)
        kept += sum(min(r[-1][j], r[j + 1][j]) for j in earlier)
    return 1 - kept / learned if learned else None


def measures_of(page: dict[str, Any]) -> dict[str, float]:
    """The measures of one run, from its R."""
    r = page["accuracy"]
    last, count = r[-1], len(r[0])
    diagonal = [r[j + 1][j] for j in range(count)]
    before = [max(row[j] for row in r[j + 1 : -1]) - last[j] for j in range(count - 1)]
    return {
        "average_accuracy": sum(last) / count,
        "plasticity": sum(diagonal) / count,
        "forgetting": sum(before) / len(before),
        "backward_transfer": sum(last[j] - diagonal[j] for j in range(count - 1)) / (count - 1),
        "forward_transfer": sum(r[j][j] - r[0][j] for j in range(1, count)) / (count - 1),
    }


def lag(suite: Suite) -> list[str]:
    """nonstat_online: accuracy by tokens since the last switch."""
    buckets = suite.fact("nonstat_online", lambda page: list(page["test"]["on"]["slices"][LAG]))
    if not buckets:
        return []
    rows, slow = [], []
    for mixer in suite.mixers:
        pages = suite.pages("nonstat_online", mixer)
        if not pages:
            continue
        cells, first = [], None
        for bucket in buckets:
            found = [p["test"]["on"]["slices"][LAG].get(bucket, {}).get("accuracy") for p in pages]
            values = [v for v in found if v is not None]
            cells.append(study.interval(values, 2))
            good = bool(values) and sum(values) / len(values) >= 0.9
            first = (first or bucket) if good else None
        other = suite.values("nonstat_online", mixer, "faster")
        whole = suite.values("nonstat_online", mixer)
        rows.append([mixer, study.interval(whole, 2), study.interval(other, 2), *cells])
        slow.append(f"{mixer} {'never' if first is None else f'from {first} tokens on'}")
    return [
        "nonstat_online: accuracy before each value is read, no reset over 256 tokens; all values "
        "change every 32 tokens (faster: 16). By tokens since the last switch (from the number to "
        "the next):",
        *study.table(["mixer", "all", "faster", *buckets], rows),
        f"After a switch right nine times of ten, for good: {', '.join(slow)}.",
        "",
    ]


def errors(suite: Suite) -> list[str]:
    """What wrong answers of recall are."""
    lines = ["## What wrong answers are", ""]
    for task in ("mqar_update", "nonstat_online"):
        rows: list[list[str]] = []
        kinds = suite.fact(task, lambda page: list(page["test"]["on"]["mistakes"])) or []
        for mixer in suite.mixers:
            pages = [page["test"]["on"] for page in suite.pages(task, mixer)]
            wrong = sum(page["errors"] for page in pages)
            shares = [
                sum(p["mistakes"].get(k, 0) for p in pages) / wrong if wrong else None
                for k in kinds
            ]
            if pages:
                rows.append(
                    [mixer, f"{wrong}", *("-" if s is None else f"{s:.2f}" for s in shares)]
                )
        if kinds and rows:
            lines += [
                f"{task}, shares of the wrong answers of all seeds:",
                *study.table(["mixer", "wrong", *kinds], rows),
            ]
    return lines if len(lines) > 2 else []


def levels(suite: Suite) -> list[str]:
    """Writes per memory within a test row; a memory without one is flagged."""
    rows, dead = [], []
    for mixer in suite.mixers:
        least: dict[str, tuple[int, str]] = {}
        for task in suite.tasks:
            for page in suite.pages(task, mixer):
                for record in page["test"]["on"]["memories"]:
                    path, writes = record["path"], record["writes"]
                    if path not in least or writes < least[path][0]:
                        least[path] = (writes, task)
                    if not writes or not record["added"]:
                        dead.append(f"{mixer} {path} on {task}")
        if least:
            rows.append([mixer, ", ".join(f"{p} {n} ({t})" for p, (n, t) in least.items())])
    flag = f"**Dead**: {', '.join(sorted(set(dead)))}." if dead else "No memory stayed unwritten."
    return [
        "## Writes within a row",
        "",
        "The fewest times that a memory was written while a test row was read, and on which task.",
        *study.table(["mixer", "fewest writes"], rows),
        flag,
        "",
    ]


def widths(suite: Suite, other: Suite | None) -> list[str]:
    """A task at equal width beside equal parameters; nothing without such a sweep."""
    if other is None:
        return []
    lines = []
    for task in other.tasks:
        rows = []
        for mixer in other.mixers:
            sizes = {
                c.parameters for (t, m, _), c in other.cells.items() if (t, m) == (task, mixer)
            }
            known = sorted(size for size in sizes if size)
            both = [study.interval(s.values(task, mixer), 2) for s in (suite, other)]
            rows.append([mixer, *both, f"{known[0]:,}" if known else "-"])
        head = ["mixer", "equal parameters", "equal width", "its parameters"]
        lines += [f"{task}, accuracy:", *study.table(head, rows)]
    spent = [
        page["process"]["cpu_seconds"]
        for task in other.tasks
        for mixer in other.mixers
        for page in other.pages(task, mixer)
    ]
    text = f"{len(spent)} more runs, {sum(spent):,.0f} CPU seconds beyond those below."
    return ["## Equal width instead", "", *lines, text, ""]
