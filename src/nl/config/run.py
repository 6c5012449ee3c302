"""RunConfig: everything one run is, and the small groups that no part owns. Floor 0."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

from nl.config.groups import (
    ControllerConfig,
    EvaluatorConfig,
    HookConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ScheduleConfig,
    StreamConfig,
)
from nl.config.guards import NonfiniteConfig, ProfileConfig, SpikeConfig, WatchdogConfig
from nl.config.structure import require, unstructure

NOT_HASHED = ("name", "run", "resume", "logging", "checkpoint", "fsdp")
BEGINNING = ("init_from", "init_changes")
"""Keys of what a run begins with."""
WATCHING = ("watchdog", "peak_tflops", "profile", "activation_checkpointing")
"""Keys of ``train`` that are not hashed: they decide no metric."""
PERMITTING = ("passes",)
"""Keys of ``stream`` that are not hashed: they only say what is refused."""
LATER = (("labels", "observed"), ("label_seed", 0))
"""Keys of ``stream`` that are hashed where they are set: hashes of older runs stay."""


@dataclass(frozen=True, kw_only=True)
class RunDirConfig:
    """Where the run directory goes."""

    root: str = "runs"
    """Parent of all run directories: <root>/<name>/<time>-<hash>-s<seed>."""
    dir: str | None = None
    """An exact place instead; refused if it already holds a run, unless the run is resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = 1000
    """Optimizer steps in all."""
    grad_accum: int = 1
    """Micro-batches per optimizer step."""
    max_norm: float = 1.0
    """Clip the global gradient norm to this; 0 switches clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute precision (autocast); State, reductions and the optimizer stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one; cuda without a CUDA device is refused."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's or OMP_NUM_THREADS' choice."""
    compile: bool = False
    """torch.compile every shard unit (block) of the model and the operations of its memories; half
    a minute to minutes at the first step, and the rest of the model stays as it is. Needs a C++
    compiler, and is refused where there is none."""
    activation_checkpointing: bool = False
    """Keep only what enters each shard unit (block) and compute its forward pass again for the
    backward pass: less memory, about a third more arithmetic, the same numbers."""
    recompute_every: int = 0
    """Keep only the State every so many tokens of a row and read what lies between again in the
    backward pass: long rows in little memory, a forward pass more, the same numbers (models without
    levels are then read in pieces, which may change the last digits); 0: keep everything."""
    carry: bool = False
    """Keep the model State from one step to the next; stream.order must be contiguous. Attention
    over everything read then sees, and keeps, ever more."""
    validate_every: int = 0
    """Validate every n steps; 0: at the end only."""
    validate_batches: int = 8
    """Batches per validation split; 0: the whole split."""
    nonfinite: NonfiniteConfig = field(default_factory=NonfiniteConfig)
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    peak_tflops: float = 0.0
    """Peak of one device in TFLOP/s at train.precision, for perf/mfu; 0: from the table of known
    GPUs, and no perf/mfu where it is not listed."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "grad_accum"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        numbers = ["max_norm", "threads", "validate_every", "validate_batches", "peak_tflops"]
        numbers += ["recompute_every"]
        for name in numbers:
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")


@dataclass(frozen=True, kw_only=True)
class SignalsConfig:
    """What is measured on held-out rows around a step, for controllers and for the log."""

    every: int = 0
    """Measure around every n-th step: one forward pass over the rows before it and one after; 0:
    never."""
    rows: int = 8
    """Held-out rows of the task that is learned (of ``val`` where there are no tasks)."""
    memory_rows: int = 8
    """Held-out rows of the tasks before it, in equal shares."""
    ema: float = 0.98
    """Share of the moving average of the training loss that is kept per measurement."""
    floor: float = 1e-3
    """Part of its usual size that is added to the denominator of eta."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"every: {self.every}; must be >= 0.")
        for name in ("rows", "memory_rows"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(0 <= self.ema < 1, f"ema: {self.ema}; must be in [0, 1).")
        require(self.floor > 0, f"floor: {self.floor}; must be > 0.")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Metrics. metrics.jsonl in the run directory is always written."""

    enabled: bool = False
    """Also send metrics to ``backend``."""
    backend: Literal["json", "wandb"] = "wandb"
    """json: one JSON file at ``path``. wandb: Weights & Biases (offline and disabled honoured)."""
    path: str | None = None
    """File for the json backend; .jsonl gets a row per line, .json a list."""
    every: int = 10
    """Steps between metric rows."""
    project: str = "nl"
    """W&B project; WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and WANDB_DIR are honoured. What of
    WANDB_... the environment lacks is taken from a file .env of the current directory."""
    code: bool = False
    """Also send the source and configuration files of this package to W&B."""
    group: str = ""
    """W&B group: runs that belong together, for example a suite; empty: none."""
    namespace: str = ""
    """What W&B keys begin with, for example the model's name. Then histories, ROC, precision and
    recall, confusion and last numbers are sent at the end, too. Empty: none of this."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"every: {self.every}; must be >= 1.")
        for name in ("group", "namespace"):
            value = getattr(self, name)
            require(
                not value or self.backend == "wandb",
                f"{name}: {value!r}; only W&B has it: set logging.backend=wandb or leave it empty.",
            )
        require(
            not self.code or self.backend == "wandb",
            "code: true; only W&B keeps code: set logging.backend=wandb or leave it out.",
        )
        if self.enabled and self.backend == "json":
            require(
                self.path is not None and self.path.endswith((".json", ".jsonl")),
                f"path: {self.path!r}; the json backend needs a file ending in .json or .jsonl.",
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run, under <run>/checkpoints."""

    every: int = 0
    """Save every n steps; 0: at the end and on SIGTERM, SIGINT, SIGUSR1 only."""
    at: tuple[int, ...] = ()
    """Save after these steps, too (the ends of phases)."""
    keep: int = 3
    """Rolling checkpoints kept (the best and the last valid one are never deleted); 0: all."""
    asynchronous: bool = False
    """Write periodic checkpoints in a thread while training goes on: everything is copied to the
    host first, at most one is in flight, the last one is synchronous. Costs a copy in memory."""
    best: str = "val/loss"
    """Metric whose minimum marks the best checkpoint."""
    export: bool = True
    """Write the portable single file step_<n>.safetensors beside each checkpoint at the end."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"every: {self.every}; must be >= 0.")
        require(self.keep >= 0, f"keep: {self.keep}; must be >= 0.")
        require(all(n >= 1 for n in self.at), f"at: {list(self.at)}; steps must be >= 1.")


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    """Options of train_fsdp.py; none of them changes a number."""

    reshard_after_forward: bool = True
    """Free a block's gathered parameters after its forward pass and gather them again for the
    backward pass; false: at most one gathering per micro-batch, and more memory. A block with
    levels runs once per smallest period: true then gathers it twice as often as there are periods,
    false once per step."""
    cpu_offload: bool = False
    """Keep parameters, gradients and optimizer state in host memory between uses."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """Options of train_deepspeed.py."""

    config: str
    """DeepSpeed JSON, merged with this configuration; contradictions are refused."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Two runs with equal ``config_hash`` and seed have equal metrics on one machine."""

    name: str
    seed: int = 0
    model: ModelConfig
    stream: StreamConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    controller: ControllerConfig | None = None
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evals: dict[str, EvaluatorConfig] = field(default_factory=dict)
    hooks: dict[str, HookConfig] = field(default_factory=dict)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunDirConfig = field(default_factory=RunDirConfig)
    resume: str = "none"
    """auto: newest run of this configuration under run.root (or run.dir); a path; or none."""
    init_from: str | None = None
    """Begin with the weights of a run, checkpoint, exported or imported file, or a directory of nl
    export --to hf; optimizer, schedule and data begin anew. Its model has to be this one:
    model=init_from takes it as it is. A resumed run goes on from its own checkpoint."""
    init_changes: tuple[str, ...] | None = None
    """Keys of ``model`` (cms.rate) that may differ from those of init_from; no weight may."""
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    deepspeed: DeepSpeedConfig | None = None

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed: {self.seed}; must be >= 0.")
        require(
            bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name),
            f"name: {self.name!r}; letters, digits, '-', '_' and '.' only.",
        )
        require(
            self.init_from is not None or not self.init_changes,
            f"init_changes: {self.init_changes}; they are about init_from, which is not set.",
        )


def config_hash(run: RunConfig) -> str:
    """12 hex digits over everything that decides the metrics (seed included, names left out)."""
    data = {k: v for k, v in unstructure(run).items() if k not in NOT_HASHED}
    data["deepspeed"] = None  # changes no number; the key stays, so that hashes do
    for key in BEGINNING:  # hashes of runs without them stay what they were
        if not data[key]:
            del data[key]
    if not run.signals.every:
        del data["signals"]
    data["train"] = {k: v for k, v in data["train"].items() if k not in WATCHING}
    told = data["stream"].items()
    data["stream"] = {k: v for k, v in told if k not in PERMITTING and (k, v) not in LATER}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
