"""What a probe promises, checked: oracle, bounds, splits, determinism, digest, leakage. Floor 1."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from nl.config import structure, unstructure
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.data.probe import Ints, ProbeConfig, Probes, score
from nl.data.stream import RowStream

TRAIN, TEST = 1024, 256
"""Rows that are drawn of training and of each held-out split."""
TOKENS = 1 << 17
"""Of a split at most: of long rows fewer are drawn."""
DIGEST_ROWS = 64
DIGESTS: dict[str, str] = {
    "cl_mqar_stream": "04872f44f016",
    "cl_remap": "32f806f16193",
    "flipflop": "e6ca511a9bed",
    "formal": "c7502360f7df",
    "formal_mix": "fe25fba3ee2c",
    "induction": "61c4591c86ae",
    "mad_compression": "f41da752ac6c",
    "mad_fuzzy_recall": "7252304bb37d",
    "mad_memorization": "1b27c16c10bd",
    "mad_noisy_recall": "7140db16c259",
    "mad_recall": "b9a5e749b3d9",
    "mqar": "97035ab0c70c",
    "mqar_update": "a27bad04a936",
    "nonstat_online": "a24632d1546a",
    "parity": "6545572650ba",
    "selective_copy": "e150738e3089",
    "state_tracking": "fc98bd68bdec",
}
"""Of the first test rows of each preset ``smoke``, seed 0: a task is what it was."""


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        task: its name.
        failed: complaints, empty if every promise holds.
        numbers: oracle, chance, blind answers, bound, shortcuts, digest.
        leakage: what splits share, unique counts, accuracy of look-up tables.
    """

    task: str
    failed: tuple[str, ...]
    numbers: dict[str, Any]
    leakage: dict[str, Any]


def verify(task: str, config: ProbeConfig, *, seed: int = 0, golden: str = "") -> Verdict:
    """Check one probe.

    Args:
        task: its name.
        config: the probe; of its splits fewer rows are drawn.
        seed: of the rows.
        golden: what the digest has to be; empty: anything.
    """
    small = fewer(config)
    parts = {split: small.examples(split, seed) for split in ("train", "val", "test")}
    test = parts["test"]
    oracle = score(small.oracle(test.inputs), test.targets)
    rules = small.shortcuts()
    shortcuts = {k: score(rule(test.inputs), test.targets)["accuracy"] for k, rule in rules.items()}
    leakage = leaks(parts)
    numbers = {
        "oracle": oracle["accuracy"],
        "chance": small.chance(),
        "blind": blind(test.targets, seed),
        "bound": small.bound(),
        "shortcuts": shortcuts,
        "digest": digest(config, seed),
    }
    failed = [*_promises(small, numbers, leakage), *differing(small, seed)]
    if golden and numbers["digest"] != golden:
        failed.append(f"digest {numbers['digest']}, not {golden}: rows are not those of last time")
    return Verdict(task, tuple(failed), numbers, leakage | {"shared": small.shared})


def fewer(config: ProbeConfig) -> ProbeConfig:
    """The probe with splits of a size for checking; rows by number are the same."""
    batch = config.batch_size
    pieces: Any = getattr(config, "test_segments", None) or getattr(config, "segments", 1)
    tokens = int(pieces * config.rows("train", 0, np.arange(1))[0].inputs.size)

    def fitting(most: int) -> int:
        return max(1, min(most, TOKENS // tokens) // batch) * batch

    sizes = {"test_size": fitting(TEST), "val_size": fitting(TEST)}
    sizes["train_size"] = fitting(min(config.train_size or TRAIN, TRAIN))
    found = structure(StreamConfig, unstructure(config) | sizes)
    assert isinstance(found, ProbeConfig)
    return found


def _promises(config: ProbeConfig, numbers: dict[str, Any], leakage: dict[str, Any]) -> list[str]:
    failed = []
    if numbers["oracle"] != 1:
        failed.append(f"the oracle is right in {numbers['oracle']:.4f} of scored positions")
    if config.chance() > numbers["blind"]["accuracy"] + 3 * numbers["blind"]["error"]:
        failed.append(f"chance {config.chance():.3f}, but blind answers score less than that")
    if not 0 < config.chance() < config.bound() < 1:
        failed.append(f"chance {config.chance():.3f}, bound {config.bound():.3f}: not in order")
    if not numbers["shortcuts"]:
        failed.append("no shortcut is named")
    for name, reached in numbers["shortcuts"].items():
        if reached >= config.bound():
            failed.append(f"shortcut {name!r} reaches {reached:.3f}, bound {config.bound():.3f}")
    if config.disjoint and leakage["overlap"]:
        failed.append(f"{leakage['overlap']} test rows were in training")
    if not config.disjoint and not config.shared:
        failed.append("splits are not disjoint, and it is not said what they share")
    return failed


def blind(targets: Ints, seed: int) -> dict[str, float]:
    """What answers score that know no input: those of the row in random order, with its error.

    Where rows have one answer, those of the split.
    """
    rng, guess = np.random.default_rng(seed), np.full_like(targets, IGNORE)
    scored = targets != IGNORE
    if (scored.sum(axis=1) == 1).all():
        guess[scored] = rng.permutation(targets[scored])
    else:
        for line, said, held in zip(targets, guess, scored, strict=True):
            said[held] = rng.permutation(line[held])
    share, n = score(guess, targets)["accuracy"], int(scored.sum())
    return {"accuracy": share, "error": float(np.sqrt(max(share * (1 - share), 1 / n) / n))}


def digest(config: ProbeConfig, seed: int) -> str:
    """Of the first test rows, inputs and targets."""
    found = config.rows("test", seed, np.arange(DIGEST_ROWS))
    raw = b"".join(row.inputs.tobytes() + row.targets.tobytes() for row in found)
    return hashlib.sha256(raw).hexdigest()[:12]


def differing(config: ProbeConfig, seed: int) -> Iterator[str]:
    """Complaints where rows depend on what is asked for beside them, on ranks or on a resume."""
    some, alone = config.rows("train", seed, np.asarray([3, 0, 7])), config.rows
    for row, number in zip(some, (3, 0, 7), strict=True):
        if (row.inputs != alone("train", seed, np.asarray([number]))[0].inputs).any():
            yield f"row {number} depends on the rows it is asked for with"
    whole, halves = _stream(config, seed, 0, 1), [_stream(config, seed, r, 2) for r in (0, 1)]
    batches = [batch.inputs.numpy() for batch in islice(whole, 3)]
    for number, batch in enumerate(batches):
        parts = [next(iter(half)).inputs.numpy() for half in halves]
        if (np.concatenate(parts) != batch).any():
            yield f"batch {number} depends on the number of ranks"
    if not hasattr(config, "phase_steps") and not hasattr(config, "segments"):  # else it decides
        wide = _stream(replace(config, batch_size=2 * config.batch_size), seed, 0, 1)
        if (next(iter(wide)).inputs.numpy() != np.concatenate(batches[:2])).any():
            yield "rows depend on the size of the batch"
    resumed = _stream(config, seed, 0, 1)
    resumed.load_state_dict({**whole.state_dict(), "row": 2 * config.batch_size})
    if (next(iter(resumed)).inputs.numpy() != batches[2]).any():
        yield "batch 2 is another one after a resume"


def _stream(config: ProbeConfig, seed: int, rank: int, world: int) -> RowStream:
    return config.build("train", seed=seed, rank=rank, world=world)


def leaks(parts: dict[str, Probes]) -> dict[str, Any]:
    """What test rows share with training rows, and what a table learned there is right in.

    ``overlap`` counts test rows whose inputs were in training, ``unique`` different rows;
    ``lookup`` is the accuracy on the test split of tables from the last 1, 2, 3 input tokens to the
    commonest label after them in training. Rows of a split are ``rows``.
    """
    rows = {split: [row.tobytes() for row in part.inputs] for split, part in parts.items()}
    known = set(rows["train"])
    overlap = sum(row in known for row in rows["test"])
    return {
        "rows": {split: len(found) for split, found in rows.items()},
        "unique": {split: len(set(found)) for split, found in rows.items()},
        "overlap": overlap,
        "overlap_rate": overlap / len(rows["test"]),
        "overlap_val": sum(row in known for row in rows["val"]),
        "lookup": {str(n): lookup(parts["train"], parts["test"], n) for n in (1, 2, 3)},
    }


def lookup(train: Probes, test: Probes, n: int) -> float:
    """Accuracy of the table of the last ``n`` tokens; the commonest label where none is in it."""
    table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for key, label in _grams(train.inputs, train.targets, n):
        table[key][label] += 1
    labels = Counter(train.targets[train.targets != IGNORE].tolist())
    common = labels.most_common(1)[0][0]
    best = {key: counts.most_common(1)[0][0] for key, counts in table.items()}
    hits = [best.get(key, common) == label for key, label in _grams(test.inputs, test.targets, n)]
    return float(np.mean(hits))


def _grams(inputs: Ints, targets: Ints, n: int) -> Iterator[tuple[tuple[int, ...], int]]:
    for b, at in zip(*np.nonzero(targets != IGNORE), strict=True):
        yield tuple(inputs[b, max(0, at - n + 1) : at + 1].tolist()), int(targets[b, at])
