"""Keys of an earlier system for group composition, as overrides. Floor 0.

``data.group_name=cn data.p=10`` became ``stream.group_name=C10``: where several keys are one now,
or one became several, the old ones are refused with the key to set. ``data.k``,
``training.learning_rate`` and the like are taken over.
"""

from __future__ import annotations

from typing import Any

from nl.config.legacy_rules import GONE, REFUSED, SAME, Rule, only, refused, renamed

_GROUP = "set stream.group_name=C10, C4xC4, D3, O or A5, and model.size to its number of elements"
_STEPS = "count steps: set train.steps to epochs * words / stream.batch_size"


def _exponent(degree: Any) -> Any:
    """degree -> 2 - degree; null is what the model says of itself."""
    if degree is None:
        return GONE
    return 2 - degree if isinstance(degree, (int, float)) else REFUSED


def _held_out(fraction: Any) -> Any:
    """The share that was trained on -> the share that is not."""
    return round(1 - fraction, 12) if isinstance(fraction, (int, float)) else REFUSED


GROUPS: dict[str, Rule] = {
    "data.dimension": refused(_GROUP),
    "data.group_name": refused(_GROUP),
    "data.group_n": refused(_GROUP),
    "data.p": refused(_GROUP),
    "data.p1": refused(_GROUP),
    "data.p2": refused(_GROUP),
    "data.k": renamed("stream.length"),
    "data.seed": refused("it drew the template, too: set seed, and stream.template_seed"),
    "data.template_type": Rule(
        ("stream.template",),
        {
            "onehot": "onehot",
            "fourier": "fourier",
            "gaussian": "gaussian",
            "custom_fourier": "powers",
        },
        "write the image as a list of numbers: set stream.template=file and stream.template_file",
    ),
    "data.mnist_label": refused("set stream.template=file and stream.template_file"),
    "data.n_freqs": renamed("stream.frequencies"),
    "data.powers": refused("name irreps: set stream.powers={1b:30,2a:3000}"),
    "data.mode": Rule(
        ("stream.sampling",),
        {"exhaustive": "epochs", "sampled": "fresh"},
        "set stream.sampling to epochs or fresh",
    ),
    "data.num_samples": refused("words are not stored: set stream.val_words for validation"),
    "data.dataset_fraction": Rule(("stream.held_out",), convert=_held_out),
    "model.model_type": Rule(
        ("model.kind",),
        {
            "QuadraticRNN": "quadratic_rnn",
            "SequentialMLP": "sequential_mlp",
            "TwoLayerNet": "two_layer",
        },
        "set model=sequential_mlp, two_layer or quadratic_rnn",
    ),
    "model.hidden_dim": renamed("model.hidden"),
    "model.return_all_outputs": Rule(
        ("model.readout", "stream.targets"), {True: "prefixes", False: GONE}
    ),
    "model.transform_type": renamed("model.transform"),
    "model.nonlinearity": renamed("model.activation"),
    "training.mode": Rule(("stream.sampling",), {"offline": GONE, "online": "fresh"}),
    "training.epochs": refused(_STEPS),
    "training.num_steps": renamed("train.steps"),
    "training.optimizer": Rule(
        ("optim.kind",),
        {"adam": "adamw", "per_neuron": "scaled_sgd", "hybrid": "scaled_sgd"},
        "set optim=adamw or optim=scaled_sgd",
    ),
    "training.learning_rate": renamed("optim.lr"),
    "training.betas": renamed("optim.betas"),
    "training.weight_decay": renamed("optim.weight_decay"),
    "training.scaling_factor": renamed("optim.exponent"),
    "training.degree": Rule(("optim.exponent",), convert=_exponent),
    "training.grad_clip": Rule(("train.max_norm",), {None: 0, SAME: True}),
    "training.verbose_interval": renamed("logging.every"),
    "training.save_param_interval": renamed("checkpoint.every"),
    "training.reduction_threshold": only(
        None, hint="runs end after train.steps; nl staircase --run says when stairs were climbed"
    ),
    "analysis.checkpoints": refused("set checkpoint.at=[steps] and checkpoint.keep=0"),
    "device": Rule(
        ("train.device",),
        {"cpu": "cpu", "cuda": "cuda"},
        "choose the device with CUDA_VISIBLE_DEVICES, and train.device=cuda",
    ),
    "description": refused("set name"),
}
