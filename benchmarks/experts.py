"""Sparse experts against the same by gathered weights, against dense layers, and how they balance.

Times take turns inside one process and are CPU time; ratios are taken within a round and their
median counts. Balance is seen in runs of train.py (finished ones are kept). The page is made from
the file of times and from the run directories.

Example: python benchmarks/experts.py --rounds 7
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import study
import torch
from torch import Tensor

import nl.nn.experts
from nl.bench.clock import ratio, take_turns
from nl.config.hydra import compose, run_config
from nl.models.baselines import dense_like
from nl.nn.mlp import SwiGLU
from nl.ops.experts import (
    ExpertWeights,
    has_grouped_mm,
    looped_experts,
    padded_experts,
    sort_by_expert,
    sparse_experts,
    sparse_experts_reference,
)
from nl.report.figures import Figure, Line

TOKENS, WIDTH, COUNT, RANK, K = 2048, 192, 256, 16, 2
GATE = 12.0
"""How many times faster than the gathered weights the layer has to be."""
BALANCE = (0.0, 0.03)
LAST = 6
"""Logged steps at the end that a number is the mean of."""
TEXT = (
    "model.block=transformer",
    "model.dim=128",
    "stream.batch_size=8",
    "stream.seq_len=128",
    "schedule.warmup=10",
    "train.grad_accum=1",
    "train.validate_every=0",
    "checkpoint.every=0",
    "checkpoint.export=false",
    "logging.every=10",
)
"""Two layers of 64 experts on text and code."""


# Times


def layer_steps() -> dict[str, Callable[[], object]]:
    """Forward and backward of the experts of one layer, every token at two experts at random."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    up = (torch.randn(COUNT, WIDTH, RANK) * WIDTH**-0.5).requires_grad_()
    down = (torch.randn(COUNT, RANK, WIDTH) * RANK**-0.5).requires_grad_()
    ids = torch.rand(TOKENS, COUNT).topk(K).indices
    gates = torch.rand(TOKENS, K, requires_grad=True)
    signal, w = torch.randn(TOKENS, WIDTH), ExpertWeights(up, down)
    dense = SwiGLU(WIDTH, 512, 1.0)

    def both(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.backward(forward(), signal)

    def sorted_by(form: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: form(x, gates, sort_by_expert(ids, COUNT), w)

    return {
        "gathered": both(lambda: sparse_experts_reference(x, ids, gates, w)),
        "grouped": both(lambda: sparse_experts(x, ids, gates, w)),
        "padded": both(sorted_by(padded_experts)),
        "loop": both(sorted_by(looped_experts)),
        "dense": both(lambda: dense(x)),
    }


@contextmanager
def gathering() -> Iterator[None]:
    """Inside, layers gather the weights of every token."""
    held: Any = nl.nn.experts
    before = held.sparse_experts
    held.sparse_experts = sparse_experts_reference
    try:
        yield
    finally:
        held.sparse_experts = before


def model_steps() -> dict[str, Callable[[], object]]:
    """Forward and backward of whole models on 2048 tokens."""
    sparse: Any = run_config(compose("pilot_smoke", ["experiment=tgsmn/sparse_k2"])).model
    equal = dense_like(sparse, "flops")
    configs = {
        "sparse": sparse,
        "dense, 4 d": replace(equal, mlp_hidden=None),
        "dense, equal FLOPs": equal,
        "dense, equal parameters": dense_like(sparse, "parameters"),
    }
    x = torch.randint(0, sparse.vocab_size, (32, 65))
    models = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        models[name] = config.build()

    def step(model: Any) -> Callable[[], object]:
        def run() -> None:
            nll, _ = model.nll(x[:, :-1], x[:, 1:], keep=False)
            nll.mean().backward()

        return run

    def gathered() -> None:
        with gathering():
            step(models["sparse"])()

    steps = {name: step(model) for name, model in models.items()}
    return {**steps, "sparse, gathered": gathered}


def measure(path: Path, rounds: int) -> None:
    """Write the seconds of every round."""
    torch.set_num_threads(1)
    found = {
        "torch": torch.__version__,
        "grouped_mm": has_grouped_mm("cpu", torch.float32),
        "layer": take_turns(layer_steps(), rounds),
        "model": take_turns(model_steps(), max(3, rounds // 2)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


# Balance


def cells(steps: int) -> dict[str, study.Cell]:
    """Runs by what balances them."""
    options = {f"bias {b:g}" if b else "none": f"balance:{b}" for b in BALANCE}
    options["bias 0.03, switch loss 0.01"] = "balance:0.03,switch_loss:0.01"
    shape = "form:low_rank,count:64,rank:16,k:2"
    return {
        label: study.Cell(
            option.replace(":", "").replace(",", "-") + f"-n{steps}",
            (*TEXT, f"train.steps={steps}", f"model.experts={{{shape},{option}}}"),
        )
        for label, option in options.items()
    }


# Page


def ratios(seconds: dict[str, list[float]], base: str) -> list[list[str]]:
    """Rows of how many times faster than ``base`` each one is."""
    rows = []
    for name, own in seconds.items():
        middle, least, most = ratio(seconds[base], own)
        fast = study.median(own)
        rows.append([name, f"{1e3 * (fast or 0):.1f}", f"{middle:.2f} ({least:.2f} to {most:.2f})"])
    return rows


def times(path: Path) -> list[str]:
    """The two tables of times and what they say about the gates."""
    found = json.loads(path.read_text())
    layer, model = found["layer"], found["model"]
    faster = ratio(layer["gathered"], layer["grouped"])[0]
    verdict = "held" if faster >= GATE else "NOT held"
    wide, equal = (
        ratio(model[name], model["sparse"])[0] for name in ("dense, 4 d", "dense, equal FLOPs")
    )
    return [
        f"torch {found['torch']}, one thread, fp32, {len(layer['dense'])} rounds for the layer and "
        f"{len(model['sparse'])} for models.",
        "",
        "## One layer",
        "",
        f"{TOKENS} tokens of width {WIDTH}, {COUNT} experts of rank {RANK}, k = {K}; forward and "
        "backward of the experts (dense: SwiGLU of 512, the parameters of a ReLU layer of 4 d).",
        *study.table(["form", "ms", "times faster than gathered"], ratios(layer, "gathered")),
        f"Gate: at least {GATE:g} times faster than the gathered weights: {faster:.1f}, {verdict}.",
        "",
        "## Whole models",
        "",
        "`experiment=tgsmn/sparse_k2` (4 layers of width 192, vocabulary 4096) on 32 rows of 64 "
        "tokens; forward and backward, tokens per second relative to the dense model of 4 d.",
        *study.table(["model", "ms", "times faster than dense, 4 d"], ratios(model, "dense, 4 d")),
        f"Against the usual dense model the sparse one does {wide:.2f} times the tokens per "
        f"second, against the dense one of equal active FLOPs {equal:.2f} times. " + reason(equal),
    ]


def reason(equal: float) -> str:
    """What decides the comparison at equal active FLOPs."""
    if equal >= 1.2:
        return "The gate of 1.2 holds."
    return (
        "At equal active FLOPs 1.2 is NOT reached: the FLOPs of 256 experts are products of a few "
        "rows each, and choosing, sorting and gathering move memory without counting as FLOPs, "
        "while the dense model has one small product. What experts buy here is parameters, not "
        "time."
    )


def balance(args: argparse.Namespace) -> list[str]:
    """Effective experts over steps, by what balances."""
    rows, lines = [], []
    for number, (label, cell) in enumerate(cells(args.steps).items()):
        if study.result(args.root, cell.name) is None:
            continue
        steps, loss = study.curve(args.root, cell.name, "loss")
        _, least = study.curve(args.root, cell.name, "experts/effective_min")
        _, dead = study.curve(args.root, cell.name, "experts/dead")
        _, nats = study.curve(args.root, cell.name, "nats")  # without the router's own loss
        plain = loss[-1] if math.isnan(nats[-1]) else nats[-1]
        mean = study.curve(args.root, cell.name, "experts/effective")[1]
        late = [study.interval(values[-LAST:], 1) for values in (mean, least, dead)]
        rows.append([label, *late, f"{plain:.3f}"])
        lines.append(Line(label, steps, mean, colour=number))
    if not rows:
        return []
    head = ["balance", "effective experts of 64", "layer with the fewest", "not used", "loss"]
    title = "Effective experts of 64 over steps"
    drawn = Figure("experts_balance", title, lines, alt="exp(entropy) of use.", wide=True)
    return [
        "",
        "## Balance",
        "",
        "Two layers of 64 experts of rank 16, k = 2, on text and code (`pilot_smoke`, width 128, "
        f"{args.steps} steps of 1024 tokens, seed 0): exp(entropy) of how often experts are used "
        "in one step, mean of the layers, the layer with the fewest, and experts that none of the "
        f"step's tokens used; mean and 95 % interval over the last {LAST} logged steps of one "
        "run. Loss: of the last step.",
        *study.table(head, rows),
        study.save_figure(args.output, drawn),
    ]


def main() -> int:
    """Measure and train what is missing, write the page."""
    import nl.assembly  # noqa: F401 - registers the parts

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = study.flags(parser, "runs/experts", "reports/experts.md")
    add("--rounds", type=int, default=7, help="rounds of the layer; models have half of it")
    add("--steps", type=int, default=300, help="optimizer steps of the runs")
    args = parser.parse_args()
    times_file = args.output.with_suffix(".json")
    if not args.report_only:
        measure(times_file, args.rounds)
        study.run_cells(
            cells(args.steps).values(), args.root, jobs=args.jobs, extra=study.fixed(args)
        )
    page = [
        "# Sparse experts",
        "",
        f"Made by `{study.call('experts')}`.",
        "",
        *times(times_file),
        *balance(args),
    ]
    study.save_page(args.output, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
