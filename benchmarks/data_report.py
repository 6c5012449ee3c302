"""Make reports/data.md from the JSON files that the data benchmarks wrote; measures nothing.

Each file of artifacts/data (sample, planted, kill, memory, minhash, rates) is copied into
reports/data.json; what was not measured again is taken from there.

Example: python benchmarks/data_report.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.report.dots import Dot, Dots, draw_dots
from nl.report.figures import standalone

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "sample": "data_sample.py",
    "planted": "data_planted.py",
    "kill": "data_kill.py",
    "memory": "data_memory.py",
    "minhash": "data_minhash.py",
    "rates": "data_peers.sh",
}
MINUTES = 3
KILLS = 10
GROWTH = 1.2
Data = dict[str, Any]

CHOICES = """## What was chosen

- **Token files of other programs are imported, not read in training.** One format then has
  digests, document ends and a vocabulary that was checked; a batch is one gather whatever the data
  came from. It costs one copy: half the size of `.npy` rows of four bytes.
- **Digests are SHA-256, one per 4 MiB block and one per file.** Processors with SHA instructions
  compute it faster than blake2b (1.6 against 0.9 GB/s where this page was made); xxh3 is faster
  than both and not in the core installation, and an open of large data reads a sample of blocks
  (`stream.verify=sample`) instead.
- **The tables of MinHash are our own, the executors datatrove's.** What a part contributes follows
  from the part alone and is joined in ranges that fit into memory, so that a kill, more workers or
  another executor change no byte; datatrove's own stages find the same pairs (table above).
- **No thread works ahead.** A batch costs microseconds (last rows of the table above): a thread
  saves nothing that can be measured, and one less thing can hang.
- **Windows do not cross shards.** The tail of each shard, less than one window, is left out; order
  and resume of data made before stay as they were.
"""


@dataclass(frozen=True)
class Gate:
    """One promise: what was asked, what was measured."""

    what: str
    asked: str
    measured: str
    good: bool


def read_parts(folder: Path, kept: Path) -> dict[str, Data]:
    """The newest result of every benchmark."""
    parts: dict[str, Data] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in PARTS:
        if (folder / f"{name}.json").is_file():
            parts[name] = json.loads((folder / f"{name}.json").read_text())
    return {name: parts[name] for name in PARTS if name in parts}


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table."""
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(map(word, row)) + " |" for row in rows]


def word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def reasons(found: Data) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items())


def made_by(part: Data) -> str:
    """Command, machine and load in one line."""
    facts = [f"{k} {v}" for k, v in part.get("machine", {}).items() if isinstance(v, (str, int))]
    if "load" in part:
        facts.append("load average " + ", ".join(f"{x:.1f}" for x in part["load"] if x))
    return f"Made by `{part['command']}`: {', '.join(facts)}."


def sample_gates(part: Data) -> list[Gate]:
    seconds = part["seconds"]
    name = f"`run_sample.sh` offline, every stage, minutes ({part['network']})"
    same = part["same_bytes_with_two_workers"]
    return [
        Gate(name, f"< {MINUTES}", f"{seconds / 60:.2f}", seconds < 60 * MINUTES),
        Gate("the same with two workers: the same bytes", "yes", word(same), same),
    ]


def sample_page(part: Data) -> list[str]:
    names = ("stage", "domain", "documents_in", "documents_out", "megabytes_out", "tokens")
    head = ("stage", "domain", "documents in", "out", "MB out", "tokens", "dropped", "s")
    rows = [[*(r[n] for n in names), reasons(r["reasons"]), r["seconds"]] for r in part["rows"]]
    lines = [f"{part['seconds']:.0f} s from nothing, {part['seconds_when_up_to_date']:.1f} s when"]
    lines += [f"all is up to date, {part['seconds_two_workers']:.0f} s with two workers."]
    return ["## The sample, every stage", "", made_by(part), "", *lines, "", *table(head, rows)]


def kill_gates(part: Data) -> list[Gate]:
    gates = []
    for row in part["rows"]:
        name = f"killed at random, taken up: same bytes ({row['executor']}, {row['workers']})"
        good = row["identical"] == row["kills"] >= KILLS
        gates.append(
            Gate(name, f"{KILLS} of {KILLS}", f"{row['identical']} of {row['kills']}", good)
        )
    return gates


def kill_page(part: Data) -> list[str]:
    head = ("executor", "workers", "undisturbed s", "kills", "identical", "killed in")
    rows = []
    for row in part["rows"]:
        mine = [t for t in part["trials"] if t["configuration"] == row["configuration"]]
        stages: dict[str, int] = {}
        for trial in mine:
            stages[trial["stage"]] = stages.get(trial["stage"], 0) + 1
        facts = (row["executor"], row["workers"], row["undisturbed_seconds"], row["kills"])
        rows.append([*facts, row["identical"], reasons(stages)])
    files = ", ".join(f"{kind} {count}" for kind, count in part["files_compared"].items())
    lines = [
        "The whole chain, from raw files to shards, killed with SIGKILL at a random moment and"
    ]
    lines += [f"started again; every file compared with an undisturbed run ({files} files)."]
    return ["## Killed", "", made_by(part), "", *lines, "", *table(head, rows)]


def planted_gates(part: Data) -> list[Gate]:
    name = "planted: in = out + reasons, nothing unexplained is lost"
    gates = [Gate(name, "yes", word(part["adds_up"]), part["adds_up"])]
    for row in part["leaks"]:
        found = row["exact"] + row["near"]
        name = f"{row['corpus']}: {row['split']} documents (equal or near) in train"
        gates.append(Gate(name, "0", f"{found} of {row['tested']}", found == 0))
    return gates


def planted_page(part: Data) -> list[str]:
    head = ("step", "planted", "dropped", "precision", "recall", "missed", "wrongly")
    keys = ("step", "planted", "dropped", "precision", "recall")
    rows = [
        [*(r[key] for key in keys), reasons(r["missed"]), reasons(r["wrong"])] for r in part["rows"]
    ]
    lines = ["## Planted truth", "", made_by(part), ""]
    lines += [f"{part['documents']:,} documents whose fate is known.", "", *table(head, rows), ""]
    lost = reasons(part["clean"]["lost"]) or "none"
    lines += [f"Of {part['clean']['planted']} clean documents were dropped: {lost}.", ""]
    lines += ["Near-duplicates by similarity (5-word shingles), beside what 14 bands of 8 promise:"]
    numbers = ("pairs", "found", "recall", "expected")
    near = [
        [f"{r['from']:.2f} to {r['to']:.2f}", *(r[key] for key in numbers)]
        for r in part["near_by_similarity"]
    ]
    lines += ["", *table(("similarity", *numbers), near), ""]
    lines += ["Held-out documents that train has, too, by an exact search over all of train:", ""]
    names = ("corpus", "split", "tested", "train", "exact", "near", "contained", "highest")
    leaks = [[row[key] for key in names] for row in part["leaks"]]
    return lines + table((*names[:-1], "highest similarity"), leaks)


def memory_gates(part: Data) -> list[Gate]:
    worst = part["highest_ratio"]
    return [
        Gate(
            "peak memory at 10 x the text, worst stage",
            f"<= {GROWTH}",
            f"{worst:.2f}",
            worst <= GROWTH,
        )
    ]


def memory_page(part: Data) -> list[str]:
    low, high = part["megabytes"]
    head = ("stage", f"peak MiB at {low:g} MB", f"at {high:g} MB", "ratio", "MB / CPU s")
    keys = ("stage", "peak_mib", "peak_mib_at_10x", "ratio", "mb_per_cpu_second")
    rows = [[row.get(key) for key in keys] for row in part["rows"]]
    return ["## Memory", "", made_by(part), "", *table(head, rows)]


def minhash_gates(part: Data) -> list[Gate]:
    speed = part["speed_against_datatrove"]
    gate = Gate("near-duplicates, against datatrove", ">= 1 x", f"{speed:.2f} x", speed >= 1)
    return [gate]


def minhash_page(part: Data) -> list[str]:
    head = ("similarity", "pairs", "found by ours", "by datatrove", "promised by 14 bands of 8")
    rows = [
        [f"{r['from']:g} to {r['to']:g}", r["pairs"], r["ours"], r["datatrove"], r["expected"]]
        for r in part["rows"]
    ]
    dropped = part["dropped"]
    lines = [
        f"{part['documents']:,} documents ({part['megabytes']} MB), near-duplicates among them;",
        f"dropped: ours {dropped['ours']}, datatrove {dropped['datatrove']}, both "
        f"{part['dropped_by_both']}. MB per CPU second: ours",
        f"{part['mb_per_cpu_second']['ours']}, datatrove {part['mb_per_cpu_second']['datatrove']}.",
    ]
    title = "## Near-duplicates beside datatrove's MinHash"
    return [title, "", made_by(part), "", *lines, "", *table(head, rows)]


def holds(row: Data) -> bool:
    below: bool = row.get("below", False)
    good: bool = row["measured"] <= row["gate"] if below else row["measured"] >= row["gate"]
    return good


def rates_gates(part: Data) -> list[Gate]:
    gates = []
    for row in part["rows"]:
        if row["gate"] is None:
            continue
        name = row["row"] + (f", against {row['other']}" if row["other"] else "")
        unit = f" {row['unit']}" if row["unit"] else ""
        asked = f"{'<=' if row.get('below') else '>='} {row['gate']:g}{unit}"
        gates.append(Gate(name, asked, f"{word(row['measured'])}{unit}", holds(row)))
    return gates


def rates_page(part: Data) -> list[str]:
    head = ("row", "against", "measured", "least", "largest", "unit", "ours", "theirs", "of")
    keys = ("row", "other", "measured", "min", "max", "unit", "rate", "other_rate", "rate_unit")
    rows = [[row.get(key) for key in keys] for row in part["rows"]]
    lines = [
        f"One process, one thread, CPU time, cells in turn; medians over {part['rounds']} rounds,"
    ]
    lines += [
        "ratios (x) within a round. Loaders read the same 134 million random ids from the page"
    ]
    lines += ["cache; ours gives int32, torch's and litdata's what they give. The thread: wall."]
    lines += [f"**{text}.**" for text in part["missing"]]
    shown = ["", "![Gated rates relative to their gate](data.svg)"]
    return ["## Rates", "", made_by(part), "", *lines, *shown, "", *table(head, rows)]


SECTIONS: dict[str, tuple[Callable[[Data], list[Gate]], Callable[[Data], list[str]]]] = {
    "sample": (sample_gates, sample_page),
    "planted": (planted_gates, planted_page),
    "kill": (kill_gates, kill_page),
    "memory": (memory_gates, memory_page),
    "minhash": (minhash_gates, minhash_page),
    "rates": (rates_gates, rates_page),
}


def page(parts: dict[str, Data]) -> str:
    """The page: gates first, then what every benchmark found."""
    gates = [gate for name, part in parts.items() for gate in SECTIONS[name][0](part)]
    held = sum(gate.good for gate in gates)
    lines = ["# Data", "", f"{held} of {len(gates)} gates hold.", ""]
    rows = [(g.what, g.asked, g.measured, g.good) for g in gates]
    lines += table(("gate", "asked", "measured", "holds"), rows)
    for name in PARTS:
        if name in parts:
            lines += ["", *SECTIONS[name][1](parts[name])]
        else:
            lines += ["", f"**Not measured: {name}** (`benchmarks/{PARTS[name]}`)."]
    return "\n".join(lines) + "\n\n" + CHOICES


def picture(part: Data) -> Dots:
    """Gated rates as powers of two beyond their gate; right of zero the gate holds."""
    dots = []
    for row in part["rows"]:
        if row["gate"] is None or not row["gate"] or not row["min"]:
            continue
        sign = -1 if row.get("below") else 1
        value = sign * math.log2(row["measured"] / row["gate"])
        half = math.log2(row["max"] / row["min"]) / 2
        name = row["row"] + (f" ({row['other']})" if row["other"] else "")
        dots.append(Dot(name, value, half))
    label = "powers of two beyond the gate (bars: least to largest round)"
    return Dots("data", "Rates of the data layer relative to their gates", dots, label)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, default=ROOT / "artifacts/data")
    parser.add_argument("--output", type=Path, default=ROOT / "reports/data")
    args = parser.parse_args()
    kept = args.output.with_suffix(".json")
    parts = read_parts(args.input, kept)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(parts, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(page(parts))
    if "rates" in parts:
        drawn = standalone(draw_dots(picture(parts["rates"])))
        args.output.with_suffix(".svg").write_text(drawn)
    print(page(parts).split("\n\n##")[0])


if __name__ == "__main__":
    main()
