"""Old keys of group composition: what they become, or what the refusal says to set."""

from __future__ import annotations

from typing import Any

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError, unstructure
from nl.config.hydra import compose, run_config
from nl.config.legacy import translate
from nl.config.legacy_groups import GROUPS

KEPT: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "data.k": [(3, {"stream.length": 3})],
    "data.template_type": [
        ("custom_fourier", {"stream.template": "powers"}),
        ("fourier", {"stream.template": "fourier"}),
    ],
    "data.n_freqs": [(2, {"stream.frequencies": 2})],
    "data.mode": [("exhaustive", {"stream.sampling": "epochs"})],
    "data.dataset_fraction": [(0.9, {"stream.held_out": 0.1})],
    "model.model_type": [("TwoLayerNet", {"model.kind": "two_layer"})],
    "model.hidden_dim": [(36, {"model.hidden": 36})],
    "model.return_all_outputs": [
        (True, {"model.readout": "prefixes", "stream.targets": "prefixes"}),
        (False, {}),
    ],
    "model.transform_type": [("multiplicative", {"model.transform": "multiplicative"})],
    "model.nonlinearity": [("relu", {"model.activation": "relu"})],
    "training.mode": [("offline", {}), ("online", {"stream.sampling": "fresh"})],
    "training.num_steps": [(50, {"train.steps": 50})],
    "training.optimizer": [
        ("per_neuron", {"optim.kind": "scaled_sgd"}),
        ("adam", {"optim.kind": "adamw"}),
    ],
    "training.learning_rate": [(0.01, {"optim.lr": 0.01})],
    "training.betas": [([0.9, 0.999], {"optim.betas": [0.9, 0.999]})],
    "training.weight_decay": [(0.0, {"optim.weight_decay": 0.0})],
    "training.scaling_factor": [(-3, {"optim.exponent": -3})],
    "training.degree": [(None, {}), (3, {"optim.exponent": -1})],
    "training.grad_clip": [(None, {"train.max_norm": 0}), (0.1, {"train.max_norm": 0.1})],
    "training.verbose_interval": [(10, {"logging.every": 10})],
    "training.save_param_interval": [(100, {"checkpoint.every": 100})],
    "training.reduction_threshold": [(None, {})],
    "device": [("cuda", {"train.device": "cuda"})],
}
REFUSED: dict[str, tuple[Any, str]] = {
    "data.dimension": ("D3", "stream.group_name=C10"),
    "data.group_name": ("cn", "stream.group_name=C10"),
    "data.group_n": (3, "stream.group_name"),
    "data.p": (10, "model.size"),
    "data.p1": (4, "C4xC4"),
    "data.p2": (4, "C4xC4"),
    "data.seed": (5, "stream.template_seed"),
    "data.template_type": ("mnist", "stream.template_file"),
    "data.mnist_label": (4, "stream.template_file"),
    "data.powers": ([0, 30, 3000], "stream.powers={1b:30,2a:3000}"),
    "data.mode": ("streamed", "stream.sampling"),
    "data.num_samples": (1000, "stream.val_words"),
    "data.dataset_fraction": ("most", "it has no counterpart"),
    "model.model_type": ("GRU", "model=sequential_mlp"),
    "training.optimizer": ("auto", "optim=scaled_sgd"),
    "training.degree": ("three", "it has no counterpart"),
    "training.epochs": (2000, "train.steps"),
    "training.reduction_threshold": (0.99, "nl staircase --run"),
    "analysis.checkpoints": ([0, 1], "checkpoint.at"),
    "device": ("cuda:1", "CUDA_VISIBLE_DEVICES"),
    "description": ("first try", "set name"),
}


def test_every_row_has_a_case() -> None:
    assert KEPT.keys() | REFUSED.keys() == GROUPS.keys()


@pytest.mark.parametrize("key", KEPT)
def test_values_with_a_counterpart_are_taken_over(key: str) -> None:
    for value, wanted in KEPT[key]:
        assert translate({key: value}) == wanted


@pytest.mark.parametrize("key", REFUSED)
def test_others_are_refused_with_the_key_to_set(key: str) -> None:
    value, text = REFUSED[key]
    with pytest.raises(ConfigError, match=key) as error:
        translate({key: value})
    assert text in str(error.value)


def test_new_keys_exist() -> None:
    configurations = [
        unstructure(run_config(compose("pilot_smoke", [f"experiment=groups/{name}"])))
        for name in ("c3xc3_rnn", "d3")
    ]
    for rule in GROUPS.values():
        for key in rule.keys:
            assert any(_has(data, key) for data in configurations), key


def _has(data: Any, key: str) -> bool:
    for part in key.split("."):
        if part not in data:
            return False
        data = data[part]
    return True


def test_old_overrides_compose() -> None:
    old = ["model.hidden_dim=20", "training.learning_rate=2", "training.grad_clip=null", "data.k=2"]
    old += ["model.model_type=SequentialMLP", "training.optimizer=per_neuron", "device=cpu"]
    run: Any = run_config(compose("pilot_smoke", ["experiment=groups/c10", *old]))
    assert (run.model.hidden, run.optim.lr, run.train.max_norm) == (20, 2.0, 0.0)
    with pytest.raises(ConfigError, match=r"data\.p: 7; set stream\.group_name"):
        compose("pilot_smoke", ["experiment=groups/c10", "data.p=7"])
