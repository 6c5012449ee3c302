"""A run through tasks as the files of the earlier system: a view of what the run wrote. Floor 1.

``config.json``, ``metrics.csv``, ``eval.csv``, ``summary.json`` with the earlier names in the
earlier order, what they did not have behind them, and ``ckpt_task<i>.safetensors`` as links. What
is not there yet (a run that goes on) is left out; what is not measured is empty, or null.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.report.frames import Row, RunFrame, is_number
from nl.report.task_runs import (
    TaskMatrix,
    controller_kind,
    exponential,
    knobs_of,
    matrices,
    task_ends,
    task_of,
    task_steps,
    weights_after,
)

METRICS = (
    *("step", "task", "loss", "ema_loss", "delta_t", "delta_rho_L", "kl", "sqrt_2kl", "eta"),
    *("reward", "replay_ratio", "used_replay", "k", "router_temp", "router_noise"),
)
EVAL = ("task_trained", "task_eval", "ppl", "nats_per_token", "split")
SIGNALS = {
    "ema_loss": "signal/ema_loss",
    "delta_t": "signal/delta",
    "delta_rho_L": "signal/sigma",
    "kl": "signal/kl",
    "sqrt_2kl": "signal/fisher_rao",
    "eta": "signal/eta",
    "reward": "control/reward",
}
"""Column of metrics.csv -> key of metrics.jsonl."""


@dataclass(frozen=True)
class Label:
    """What the earlier system called a run.

    Attributes:
        env, variant, ablation, experts, seed: its coordinates in a grid.
    """

    env: str
    variant: str
    ablation: str
    experts: int | None
    seed: int

    @property
    def name(self) -> str:
        """The path of its directory, which was its name too."""
        experts = "experts" if self.experts is None else f"experts{self.experts}"
        return f"{self.env}/{self.variant}/{self.ablation}/{experts}/seed{self.seed}"


def experts_of(config: Row) -> int | None:
    """Number of experts; None of a dense model."""
    experts = (config.get("model") or {}).get("experts") or {}
    return int(experts["count"]) if experts.get("count") else None


def files_of(frame: RunFrame, label: Label) -> dict[str, Any]:
    """Contents by file name: text is CSV, anything else is JSON."""
    found: dict[str, Any] = {"config.json": config_json(frame, label)}
    if frame.train:
        found["metrics.csv"] = metrics_csv(frame)
    measured = matrices(frame)
    if frame.summary:
        found["summary.json"] = summary_json(frame, label)
    if main := measured.get("val") or measured.get("test"):
        found["eval.csv"] = eval_csv(main)
    return found


def links_of(frame: RunFrame) -> dict[str, Path]:
    """The weights after each task, by the name of the link."""
    ends = task_ends(frame.config, int(frame.config["train"]["steps"]))
    places = {i: weights_after(frame.directory, end) for i, end in enumerate(ends)}
    return {f"ckpt_task{i}.safetensors": path for i, path in places.items() if path is not None}


def config_json(frame: RunFrame, label: Label) -> Row:
    """What the run was told, under the earlier keys, and as it was told under ``config``."""
    config = frame.config
    stream, train, controller = config["stream"], config["train"], config.get("controller") or {}
    ranges = controller.get("ranges") or {}
    kind, dense = controller_kind(config), experts_of(config) is None
    meta: Row = {"cfg": {k: v for k, v in stream.items() if k != "path"}}
    if stream["vocabulary"] == "plain":
        meta["schedule"] = stream.get("custom") or stream["schedule"]
    else:
        meta |= {"permuted_vocab": True, "perm_mode": stream["vocabulary"]}
    return {
        "exp_name": label.name,
        "variant": label.variant,
        "env": {"name": label.env, "meta": meta},
        "model_cfg": _model(config),
        "data_cfg": {
            "seq_len": stream["seq_len"],
            "batch_size": stream["batch_size"],
            "num_workers": 0,
        },
        "train_cfg": {
            "seed": label.seed,
            "epochs_per_task": 1,
            "lr": config["optim"].get("lr"),
            "weight_decay": config["optim"].get("weight_decay"),
            "grad_clip": train["max_norm"],
            "fisher_every": config["signals"]["every"],
            "delta_rho_samples": None,
            "replay_max_seqs": stream["capacity"],
            "log_every": config["logging"]["every"],
            "max_steps_per_task": task_steps(config),
        },
        "fixed_ctrl_cfg": None if kind or dense else _fixed(config),
        "learned_ctrl_cfg": _learned(controller, ranges) if kind == "gru" else None,
        "params": frame.meta.get("parameters"),
        "device": ", ".join(map(str, frame.meta.get("devices") or [])),
        "learned_ablations": {
            "fixed_k": _single(ranges.get("experts_k")),
            "fixed_replay": _single(ranges.get("replay")),
            "drop_obs_kl": "signal/fisher_rao" in (controller.get("unseen") or ()),
            "drop_reward_kl": None,
        },
        "config_hash": frame.meta.get("config_hash"),
        "config": config,
    }


def _model(config: Row) -> Row:
    model = config["model"]
    experts = model.get("experts") or {}
    count, groups = experts.get("count"), experts.get("groups")
    return {
        "d_model": model.get("dim"),
        "n_heads": (model.get("attention") or {}).get("heads"),
        "n_layers": model.get("layers"),
        "dropout": model.get("dropout"),
        "n_experts": count,
        "rank": experts.get("rank"),
        "max_k": experts.get("k") if count else None,
        "group_size": count // groups if count and groups else None,
    }


def _fixed(config: Row) -> Row:
    stands = knobs_of(config, {})
    return {
        "k": stands["experts_k"],
        "replay_ratio": stands["replay"],
        "router_noise": stands["router_noise"],
        "router_temp": stands["router_temperature"],
    }


def _learned(controller: Row, ranges: Row) -> Row:
    def end(name: str, place: int) -> Any:
        return ranges[name][place] if ranges.get(name) else None

    return {
        "k_min": end("experts_k", 0),
        "k_max": end("experts_k", 1),
        "replay_max": end("replay", 1),
        "noise_max": end("router_noise", 1),
        "temp_min": end("router_temperature", 0),
        "temp_max": end("router_temperature", 1),
        "hidden_size": controller.get("hidden"),
        "lr": controller.get("lr"),
        "gamma": controller.get("gamma"),
        "rollout_len": controller.get("rollout"),
        "entropy_coef": controller.get("entropy"),
        "value_coef": controller.get("value"),
        "max_grad_norm": 1.0,
    }


def _single(pair: Any) -> Any:
    """The value of a range of one value."""
    return pair[0] if pair and pair[0] == pair[1] else None


def metrics_csv(frame: RunFrame) -> str:
    """A line per logged step; steps count from 1."""
    lines = []
    for row in frame.train:
        stands = knobs_of(frame.config, row)
        replayed: Any = row.get("stream/replayed")
        line = {
            "step": row["step"],
            "task": task_of(frame.config, row["step"]),
            "loss": row.get("nats", row.get("loss")),
            "replay_ratio": stands["replay"],
            "used_replay": int(replayed > 0) if is_number(replayed) else None,
            "k": int(stands["experts_k"]) if stands["experts_k"] % 1 == 0 else stands["experts_k"],
            "router_temp": stands["router_temperature"],
            "router_noise": stands["router_noise"],
        }
        lines.append(line | {name: row.get(key) for name, key in SIGNALS.items()})
    return table(METRICS, lines)


def eval_csv(measured: TaskMatrix) -> str:
    """Perplexity after every task on that task and those before it."""
    columns = measured.columns
    lines = [
        {
            "task_trained": i,
            "task_eval": j,
            "ppl": ppl,
            "nats_per_token": measured.values[i + 1][columns[j]],
            "split": measured.split,
        }
        for i, found in enumerate(measured.perplexities())
        for j, ppl in enumerate(found)
    ]
    return table(EVAL, lines)


def summary_json(frame: RunFrame, label: Label) -> Row:
    """The earlier numbers by the earlier formulas, then those of the evaluator in nats.

    avg_forgetting_ppl is mean_j (P[T-1, j] - min_{i >= j} P[i, j]) over all j, the last i among
    them, so that it is never negative; ``forgetting`` and ``backward_transfer`` are not like that.
    """
    measured = matrices(frame)
    main = measured.get("val") or measured.get("test")
    found: Row = {
        "exp_name": label.name,
        "avg_final_task_ppl": None,
        "avg_forgetting_ppl": None,
        "final_val_ppl": None,
        "final_test_ppl": None,
        "params": frame.summary.get("parameters"),
        "n_experts": label.experts,
    }
    if main is not None:
        found |= final_and_forgotten(main.perplexities())
    if "test" in measured:
        found["final_test_ppl"] = _mean(_last(measured["test"]))
    return found | {"split": main and main.split} | (dict(main.metrics) if main else {})


def final_and_forgotten(table: list[list[float]]) -> Row:
    """Means over tasks of P[T-1, j], and of how far that is above the least P[i, j] so far."""
    last = table[-1]
    least = [min(row[j] for row in table[j:]) for j in range(len(last))]
    return {
        "avg_final_task_ppl": _mean(last),
        "avg_forgetting_ppl": _mean([a - b for a, b in zip(last, least, strict=True)]),
    }


def _last(measured: TaskMatrix) -> list[float]:
    return [exponential(measured.values[-1][column]) for column in measured.columns]


def _mean(values: list[float]) -> float | None:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None


def table(names: tuple[str, ...], lines: list[Row]) -> str:
    """CSV; what is null is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
