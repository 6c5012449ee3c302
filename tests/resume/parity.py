"""Losses and gradient norms of every case on two gloo ranks beside those of one process.

Usage: parity.py CASES_JSON PORT. CASES_JSON is a list of {"strategy", "kind", "changes", "beside"},
where "beside" holds changes that only the spread run has; prints a list of [losses, norms, losses
of one process, norms of one process] per case. The two ranks share out the runs in one process
among themselves.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from typing import Any

import tiny
import torch

from nl.assembly import build, strategy_class
from nl.config.run import RunConfig
from nl.core.output import Knobs
from nl.dist.base import Strategy
from nl.dist.deepspeed import import_deepspeed
from nl.dist.meeting import meet
from nl.dist.single import Single

Numbers = tuple[list[float], list[float]]
STEPS = 8


def run_of(kind: str, changes: dict[str, Any]) -> RunConfig:
    """A small model of one block kind that carries its State; periods end inside and between."""
    model: dict[str, Any] = {
        "kind": "language",
        "vocab_size": tiny.VOCAB,
        "dim": 12,
        "layers": 2,
        "block": kind,
        "attention": {"heads": 2},
        "cms": {"periods": [4, 8], "hidden": 10, "rate": 0.3, "allow_short_periods": True},
        "selfmod": {"head_size": 6, "hidden": 6, "period": 4},
        # Memories this small amplify rounding: their norms meet answers near zero.
        "gated_delta": {"heads": 2, "chunk": 8, "conv": 0},
        "titan": {"head_size": 6, "hidden": 5, "period": 4, "window": 5, "rate": 0.03},
    }
    plain: dict[str, Any] = {
        "model": model,
        "objective": {"kind": "next_token"},
        # So do moments of gradients that are rounding alone.
        "optim": {"kind": "adamw", "lr": 3e-3, "eps": 1e-4},
        "stream__seq_len": 6,
        "train__steps": STEPS,
        "train__carry": True,
    }
    for key, value in changes.items():
        merged = isinstance(plain.get(key), dict) and "kind" not in value
        plain[key] = plain[key] | value if merged else value
    return tiny.tiny_run(**plain)


def spread(case: dict[str, Any]) -> RunConfig:
    """The run of a case as its strategy gets it."""
    return run_of(case["kind"], case["changes"] | case.get("beside", {}))


def numbers(strategy: Strategy, run: RunConfig) -> Numbers:
    """Mean loss and gradient norm of every step."""
    batches, fast = iter(build(run, strategy).stream), None
    losses, norms = [], []
    for step in range(run.train.steps):
        group = [next(batches) for _ in range(run.train.grad_accum)]
        weight, total = strategy.sum(sum(batch.weight for batch in group)), 0.0
        for i, batch in enumerate(group):
            with strategy.microbatch(last=i == len(group) - 1):
                out = strategy.forward(batch, fast, Knobs(draw=step))
                strategy.backward(out.loss * (strategy.world / weight))
            fast, total = out.state, total + out.loss.item()
        norms.append(float(strategy.grad_norm()))
        strategy.step(1.0)
        strategy.settle(taken=True)
        losses.append(strategy.sum(total) / weight)
    return losses, norms


def rank(number: int, port: int, cases: list[dict[str, Any]]) -> list[Any]:
    """All cases on this rank."""
    keys = [json.dumps([case["kind"], case["changes"]]) for case in cases]
    mine = list(dict.fromkeys(keys))[number::2]
    single = {key: numbers(Single.start("cpu"), run_of(*json.loads(key))) for key in mine}
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    meet()
    found, both = [], [None, None]
    for case in cases:
        strategy = strategy_class(case["strategy"]).start("cpu")
        found.append(numbers(strategy, spread(case)))
    torch.distributed.all_gather_object(both, single)
    alone: dict[str, Numbers] = {k: v for part in both for k, v in (part or {}).items()}
    return [[*own, *alone[key]] for own, key in zip(found, keys, strict=True)]


def main() -> None:
    """Fork the second rank, so that everything loads once."""
    cases, port = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    if any(case["strategy"] == "deepspeed" for case in cases):
        import_deepspeed(torch.device("cpu"))
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # as in group.py
    other = os.fork()
    found = rank(int(other == 0), port, cases)
    if other == 0:
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
    print(json.dumps(found))
    sys.exit(code)


if __name__ == "__main__":
    main()
