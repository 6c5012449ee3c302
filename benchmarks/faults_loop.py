"""Fault campaign, rows about what a run computes: resuming, bad numbers, ranks and worlds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import group
import numpy as np
import safetensors.torch
import tiny
import torch
from faults_ground import BASE, PLAIN, Ground, difference, intact, newest_step

import nl.assembly
from nl.config import ConfigError
from nl.run import RunDir, checkpoints, read_records

Outcomes = list[str]

MEMORY: dict[str, Any] = {
    "model": {
        "kind": "language",
        "vocab_size": tiny.VOCAB,
        "dim": 8,
        "layers": 1,
        "block": "hope_attention",
        "attention": {"heads": 1},
        "cms": {"periods": [4, 12], "allow_short_periods": True, "hidden": 8},
    },
    "objective": {"kind": "next_token"},
}
"""A model whose levels write every 4 and 12 tokens, over rows of 5: always in the middle."""


def resume_everywhere(ground: Ground, count: int) -> Outcomes:
    """Row 10: the run as a crash after step s leaves it, for every s, to step 40."""
    changes = {"train__steps": 40, "checkpoint__every": 1, "checkpoint__keep": 0}
    whole = ground.folder()
    assert ground.run(whole, changes) == [0]
    want, found = compare.fingerprint(whole, 40), []
    for step in [1 + number * 20 // count for number in range(count)]:
        folder = ground.folder()
        later = {p.name for p in checkpoints(whole) if int(p.name[5:]) > step}
        shutil.copytree(whole, folder, ignore=lambda _, names, later=later: later & set(names))
        (folder / "summary.json").unlink()
        codes = ground.run(folder, changes | {"checkpoint__every": 0})
        found.append(f"{codes}" if codes != [0] else difference(folder, 40, want))
        ground.clear(folder)
    ground.clear(whole)
    return found


def resume_again(ground: Ground, count: int) -> Outcomes:
    """Row 11: resumed twice, a resumed run resumed, the end with more steps."""
    changes = {"schedule": {"kind": "constant"}, "train__validate_every": 2}
    found = []
    for number in range(count):
        folder, cut = ground.folder(), ground.draw.sample(range(2, 22), 3)
        if number % 2:
            codes = ground.run(folder, changes | {"train__steps": 6})
        else:
            for batch in sorted(cut):
                place = {0: {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "SIGTERM"}}
                codes = ground.run(folder, changes, places=place)
        bad = "" if codes in ([0], [143]) else f"{codes}"
        found.append(bad or ground.resumed(folder, changes))
        ground.clear(folder)
    return found


def killed_inside(ground: Ground, count: int) -> Outcomes:
    """Row 12: SIGKILL between micro-batches, in the middle of periods and of a carried State."""
    changes, found = MEMORY | {"train__grad_accum": 3, "stream__batch_size": 2}, []
    for _ in range(count):
        folder, batch = ground.folder(), ground.draw.choice([n for n in range(6, 36) if n % 3])
        place = {0: {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "SIGKILL"}}
        codes = ground.run(folder, changes, places=place)
        bad = "" if codes == [-signal.SIGKILL] else f"{codes}: {ground.words(folder)}"
        found.append(bad or ground.resumed(folder, changes))
        ground.clear(folder)
    return found


def other_worlds(ground: Ground, count: int) -> Outcomes:
    """Row 13: 1, 2, 4 and again 1 process, stopped by SIGTERM in between."""
    changes = PLAIN | {"train__carry": False, "train__steps": 16, "train__validate_every": 0}
    found = []
    for number in range(count):
        strategy = ("ddp", "fsdp2")[number % 2]
        whole, folder = ground.folder(), ground.folder()
        assert ground.run(whole, changes, strategy=strategy) == [0]
        stops = sorted(ground.draw.sample(range(2, 30), 3))
        bad = ""
        for world, stop in zip((1, 2, 4), stops, strict=True):
            place = {0: {"TINY_CRASH_AT": str(stop), "TINY_CRASH_SIGNAL": "SIGTERM"}}
            codes = ground.run(folder, changes, world=world, places=place, strategy=strategy)
            bad = bad or ("" if codes == [143] * world else f"{codes}: {ground.words(folder)}")
        codes = [] if bad else ground.run(folder, changes, strategy=strategy)
        bad = bad or ("" if codes == [0] else f"{codes}: {ground.words(folder)}")
        found.append(bad or _as_close(whole, folder))
        ground.clear(whole)
        ground.clear(folder)
    return found


def _as_close(whole: Path, folder: Path) -> str:
    """Sample order, losses (1e-5) and, where the files hold them whole, optimizer moments."""
    one, two = (compare.rows(p) for p in (whole, folder))
    keys = [[(r["step"], r["tokens"]) for r in rows] for rows in (one, two)]
    if keys[0] != keys[1]:
        return "other steps or targets"
    worst = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, two, strict=True))
    if worst > 1e-5:
        return f"loss differs by {worst:.1e}"
    files = [p / "checkpoints" / "step_000016" / "optim.safetensors" for p in (whole, folder)]
    if all(file.is_file() for file in files):
        left, right = (safetensors.torch.load_file(file) for file in files)
        if not all(torch.allclose(left[n], right[n], rtol=1e-3, atol=1e-7) for n in left):
            return "optimizer moments differ"
    return ""


def bad_numbers(ground: Ground, count: int) -> Outcomes:
    """Row 17: NaN and infinities in loss, gradient or State of one rank, any micro-batch."""
    base = PLAIN | {"train__grad_accum": 3, "train__nonfinite": {"policy": "skip"}}
    base |= {"train__steps": 8, "train__validate_every": 0, "checkpoint__every": 0}
    cases = [
        (where, number, micro)
        for micro in (0, 1, 2)
        for where in ("loss", "grad", "state")
        for number in ("nan", "inf", "-inf")
    ]
    left = {"stream__left_out": 9, "stream__left_out_count": 3}
    want, _ = ground.reference(base | left, world=2)
    found = []
    for where, number, micro in ground.draw.sample(cases, min(count, len(cases))):
        folder = ground.folder()
        place = {"TINY_POISON": f"{where}:{number}", "TINY_POISON_AT": str(9 + micro)}
        codes = ground.run(folder, base, world=2, places={1: place})
        bad = f"{codes}: {ground.words(folder)}" if codes != [0, 0] else ""
        if not bad:
            got = compare.fingerprint(folder, 8)
            same = ("model.safetensors", "optim.safetensors", "state.safetensors")
            bad = ", ".join(name for name in same if got[name] != want[name])
            rates = [[r.get("lr") for r in rows["rows"]] for rows in (got, want)]
            bad = bad or ("" if rates[0] == rates[1] else "learning rates")
            bad = bad or ("" if got["trainer"]["skipped"] == 1 else "not counted once")
        found.append(f"{where} {number} {micro}: {bad}" if bad else "")
        ground.clear(folder)
    return found


def bad_for_ever(ground: Ground, count: int) -> Outcomes:
    """Row 18: NaN in every batch from some step on, under every policy."""
    found = []
    for number in range(count):
        policy = ("abort", "skip", "rollback")[number % 3]
        changes = {"train__nonfinite": {"policy": policy}, "train__steps": 30}
        changes |= {"stream__bad_rows": list(range(ground.draw.randrange(6, 20), 400))}
        folder = ground.folder()
        codes = ground.run(folder, changes)
        bad = "" if codes == [1] else f"{codes}"
        newest = folder / "checkpoints" / f"step_{newest_step(folder):06d}" / "model.safetensors"
        values = safetensors.torch.load_file(newest).values()
        finite = all(bool(torch.isfinite(v).all()) for v in values)
        found.append(bad or ("" if finite else "the last checkpoint is not finite"))
        ground.clear(folder)
    return found


def spikes(ground: Ground, count: int) -> Outcomes:
    """Row 19: the loss ten times as high for 1, 5 and 50 steps; the patience is 4."""
    found = []
    for length in (1, 5, 50)[:count]:
        changes: dict[str, Any] = {
            "train__steps": 130,
            "train__grad_accum": 1,
            "checkpoint__every": 0,
        }
        changes |= {"stream__bad_rows": list(range(60, 60 + length)), "stream__bad_scale": "10"}
        changes |= {"optim__lr": 1e-6, "schedule": {"kind": "constant"}}
        folder = ground.folder()
        codes = ground.run(folder, changes)
        text = (folder / "logs" / "rank_00.log").read_text()
        fired = text.count("loss spike: ")
        want = int(length >= 4)
        found.append("" if codes == [0] and fired == want else f"{length}: {codes}, fired {fired}")
        ground.clear(folder)
    return found


def dead_rank(ground: Ground, count: int) -> Outcomes:
    """Row 20: a rank exits, is killed, hangs in its loader or in a step."""
    limits = {"data_seconds": 1.0, "step_seconds": 1.0, "collective_seconds": 2.0}
    changes = {"train__watchdog": limits}
    dies = [{"TINY_CRASH_SIGNAL": how} for how in ("EXIT", "SIGKILL")]
    hangs = [{"TINY_HANG_IN": where} for where in ("loader", "step")]
    found = []
    for number in range(count):
        place, at = (dies + hangs)[number % 4], str(ground.draw.randrange(6, 22))
        place = place | {"TINY_HANG_AT" if "TINY_HANG_IN" in place else "TINY_CRASH_AT": at}
        folder, begin, victim = ground.folder(), time.monotonic(), ground.draw.randrange(2)
        codes = ground.run(folder, changes, world=2, places={victim: place})
        late = time.monotonic() - begin > limits["collective_seconds"] + 10
        bad = f"{codes}" if 0 in codes or None in codes else "over 12 s" if late else ""
        words = "".join(p.read_text() for p in (folder / "logs").glob("rank_*.log"))
        named = re.search(rf"rank {victim}( \(process \d+\) is gone|: no batch|.* step)", words)
        found.append(bad or ("" if named else "the rank is not named") or intact(folder))
        ground.clear(folder)
    return found


def ranks_differ(ground: Ground, count: int) -> Outcomes:
    """Row 21: rank 1 has another configuration, or another clock and time zone."""
    other: list[dict[str, Any]] = [
        {"optim__lr": 0.5},
        {"seed": 3},
        {"train__steps": 14},
        {"model__dim": 16},
        {"run__root": str(ground.root / "elsewhere")},
        {},
    ]
    found = []
    for number in range(count):
        folder, port, change = ground.folder(), group.free_port(), other[number % len(other)]
        full = {**BASE, "resume": "none", "run__root": str(folder)}
        clock = {"TZ": "Pacific/Kiritimati"} if not change else {}
        pids = [group.start(0, 2, port, full, {})]
        pids.append(group.start(1, 2, port, {**full, **change}, clock))
        codes = group.wait(pids, 60)
        runs = list(folder.glob("tiny/*"))
        if change:
            found.append("" if codes == [2, 2] and not runs else f"{change}: {codes}, {len(runs)}")
        else:
            found.append("" if codes == [0, 0] and len(runs) == 1 else f"{codes}, {len(runs)}")
        ground.clear(folder)
    return found


def same_seed(ground: Ground, count: int) -> Outcomes:
    """Row 27: the same seed twice, another seed."""
    want, _ = ground.reference({})
    found = []
    for number in range(count):
        folder, other = ground.folder(), ground.folder()
        ground.run(folder, {})
        ground.run(other, {"seed": number + 1})
        bad = difference(folder, BASE["train__steps"], want)
        differs = compare.rows(other) != want["rows"]
        found.append(bad or ("" if differs else "another seed gives the same"))
        ground.clear(folder)
        ground.clear(other)
    return found


def other_clocks(ground: Ground, count: int) -> Outcomes:
    """Row 30: the clock jumps by a day, the time zone and the locale are others."""

    def jump(days: int) -> Callable[[], None]:
        def patch() -> None:
            real, calls = time.time, [0]

            def jumping() -> float:
                calls[0] += 1
                return real() + (86400.0 * days if calls[0] > 20 else 0.0)

            time.time = jumping

        return patch

    def place(**names: str) -> Callable[[], None]:
        def patch() -> None:
            os.environ |= names
            time.tzset()

        return patch

    patches = [jump(1), jump(-1), place(TZ="Asia/Kathmandu"), place(LC_ALL="tr_TR.UTF-8")]
    want, _ = ground.reference({})
    found = []
    for number in range(count):
        folder = ground.folder()
        code = group.wait([ground.begin(folder, {}, patches[number % 4])], 60)[0]
        names = [p.name for p in checkpoints(folder)]
        bad = "" if code == 0 else f"exit code {code}"
        bad = bad or ("" if len(names) == 3 else f"kept {names}")
        found.append(bad or difference(folder, BASE["train__steps"], want))
        ground.clear(folder)
    return found


def two_jobs(ground: Ground, count: int) -> Outcomes:
    """Row 35: a second job on the same directory; then a lock whose owner was killed."""
    found = []
    for _ in range(count):
        folder = ground.folder()
        place = {0: {"TINY_HANG_AT": "9", "TINY_HANG_IN": "loader"}}
        full = {**BASE, "run__dir": str(folder)}
        first = group.start(0, 1, 0, full, place[0], "single")
        deadline = time.monotonic() + 20
        while newest_step(folder) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = ground.run(folder, {})
        words = ground.words(folder)
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        bad = "" if refused == [2] else f"{refused}"
        told = f"in use by process {first}"
        found.append(bad or ("" if told in words else words) or ground.resumed(folder, {}))
        ground.clear(folder)
    return found


def changed_configuration(ground: Ground, count: int) -> Outcomes:
    """Row 33: a checkpoint of another model, State, optimizer or data is refused with the key."""
    folder = ground.folder()
    assert ground.run(folder, MEMORY) == [0]
    cms = dict(MEMORY["model"]["cms"])
    changed: list[tuple[str, dict[str, Any]]] = [
        ("model.cms.periods", {"model__cms__periods": [4, 8]}),
        ("model.cms.hidden", {"model__cms__hidden": 16}),
        ("model.attention.heads", {"model__attention__heads": 2}),
        ("model.layers", {"model__layers": 2}),
        ("optim.kind", {"optim": {"kind": "muon", "lr": 0.01}}),
        ("stream.seq_len", {"stream__seq_len": 6}),
    ]
    found = []
    for key, change in changed[:count]:
        model = {**MEMORY["model"], "cms": dict(cms), "attention": {"heads": 1}}
        full = {**BASE, **MEMORY, "model": model, **change, "run__dir": str(folder)}
        try:
            nl.assembly.launch(tiny.tiny_run(**full, train__device="cpu"))
            found.append(f"{key}: not refused")
        except ConfigError as error:
            found.append("" if key in str(error) else f"{key}: {error}")
    assert np.isfinite([r["loss"] for r in read_records(folder / "metrics.jsonl")]).all()
    assert RunDir(folder).read_status()["state"] == "done"
    ground.clear(folder)
    return found
