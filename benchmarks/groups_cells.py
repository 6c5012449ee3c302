"""The runs of the study of group composition: names of directories and what train.py is told."""

from __future__ import annotations

from dataclasses import dataclass

import study

EXPERIMENTS = ("c10", "c10_k3", "c3xc3", "c4xc4", "d3", "octahedral", "a5")
"""Configurations whose stairs are compared with theory."""
ONLINE = ("stream.sampling=fresh", "stream.batch_size=1000", "stream.val_words=1000")
FOUR = ("stream.frequencies=4", "stream.amplitudes=[100,10]", "model.hidden=200")
RNN = "experiment=groups/c3xc3_rnn"


@dataclass(frozen=True)
class Network:
    """One row of the table of networks, beside the earlier system's numbers.

    Attributes:
        label: of its directories.
        what: group, network, optimizer.
        overrides: what train.py is told.
        reached: the earlier system's steps to a loss reduced by 50, 90 and 99 %; None: not.
        final: its last loss, as it was noted.
        note: what else was noted.
    """

    label: str
    what: str
    overrides: tuple[str, ...]
    reached: tuple[int | None, int | None, int | None]
    final: str
    note: str = ""


NETWORKS = (
    Network(
        "rnn",
        "C3xC3 k 3, two modes, QuadraticRNN 128, Adam 1e-3",
        (RNN, "train.steps=2000"),
        (39, 145, 168),
        "8.8e-7",
        "seeds: 38-39 / 145-493 / 168-511",
    ),
    Network(
        "rnn_multiplicative",
        "the same, phi = a b",
        (RNN, "model.transform=multiplicative", "train.steps=1500"),
        (49, 258, 279),
        "5.8e-8",
    ),
    Network(
        "rnn_prefixes",
        "the same, an output at every step",
        (RNN, "model.readout=prefixes", "stream.targets=prefixes", "train.steps=1500"),
        (41, 103, 135),
        "3.9e-6",
    ),
    Network(
        "rnn_four",
        "C3xC3 k 3, four modes, QuadraticRNN 200, Adam 1e-3",
        (RNN, *FOUR, "train.steps=3000"),
        (79, 478, None),
        "0.0455",
        "stays on the last plateau",
    ),
    Network(
        "rnn_hybrid",
        "the same, hybrid: neurons lr 1, exponent -3; W_mix Adam 1e-3; clipped at 0.1",
        (
            *(RNN, *FOUR, "optim=scaled_sgd", "optim.lr=1", "optim.exponent=-3"),
            *("~optim.betas", "~optim.weight_decay", "optim.rest.lr=1e-3"),
            *("train.max_norm=0.1", "train.steps=3000"),
        ),
        (65, 2332, None),
        "0.063",
        "noisy",
    ),
    Network(
        "online",
        "C10 k 2 online, SequentialMLP 300, per neuron, lr 1",
        (
            *("experiment=groups/c10", *ONLINE, "optim.lr=1", "model.init_scale=0.01"),
            *("train.steps=1400", "train.validate_every=0"),
        ),
        (None, None, 1294),
        "8.7e-4 at its stop",
    ),
    Network(
        "rnn_online",
        "C3xC3 k 3 online, two modes, QuadraticRNN 128, Adam 1e-3, clipped at 0.1",
        (RNN, *ONLINE, "train.max_norm=0.1", "train.steps=600"),
        (None, None, 232),
        "0.0089 at its stop",
    ),
)

CLIPPED = "train.max_norm=0.1"
SHIPPED = {
    "c10_k3": (
        *("experiment=groups/c10_k3", "model.init_scale=0.01", "stream.batch_size=128"),
        *("optim.lr=0.01", CLIPPED, "train.steps=8000"),
    ),
    "d3": (
        *("experiment=groups/d3", "stream.powers={1b:30,2a:3000}", "optim.lr=0.01", CLIPPED),
        "train.steps=2000",
    ),
    "octahedral": (
        *("experiment=groups/octahedral", "model.hidden=1200", "stream.batch_size=128"),
        *("optim.lr=0.01", CLIPPED, "train.steps=5000"),
    ),
}
"""Configurations of the earlier system, by their counterparts here: as they were shipped."""
SHOTS = {"d3": (1, 100, 150, 400, 1000), "rnn": (1, 40, 70, 120, 250, 2000)}
"""Steps after which checkpoints are kept of one more run of seed 0."""


def name(experiment: str, seed: int) -> str:
    """The directory of one run."""
    return f"{experiment}-s{seed}"


def staircase_cell(experiment: str, seed: int) -> study.Cell:
    """One run whose stairs are compared with theory."""
    return study.Cell(
        name(experiment, seed),
        (f"experiment=groups/{experiment}", f"seed={seed}", "logging.every=2"),
    )


def network_cell(network: Network, seed: int) -> study.Cell:
    """One run of the table of networks."""
    every = () if RNN in network.overrides else ("logging.every=2",)
    return study.Cell(name(network.label, seed), (*network.overrides, f"seed={seed}", *every))


def shots_cell(label: str) -> study.Cell:
    """A run of seed 0 that keeps checkpoints on the way."""
    told = {n.label: n.overrides for n in NETWORKS}.get(label, (f"experiment=groups/{label}",))
    steps = ",".join(map(str, SHOTS[label]))
    kept = (f"checkpoint.at=[{steps}]", "checkpoint.keep=0")
    return study.Cell(f"{label}-shots", (*told, "seed=0", *kept))


def shipped_cell(experiment: str) -> study.Cell:
    """A configuration that stood still, as it was."""
    return study.Cell(f"shipped_{experiment}", (*SHIPPED[experiment], "seed=0"))


def cells(experiments: tuple[str, ...], seeds: int) -> list[study.Cell]:
    """All runs, the cheap ones first."""
    found = [staircase_cell(one, seed) for seed in range(seeds) for one in experiments]
    found += [network_cell(one, seed) for seed in range(seeds) for one in NETWORKS]
    return found + [shots_cell(label) for label in SHOTS] + [shipped_cell(one) for one in SHIPPED]
