"""Windows: losses per token of frozen windows, equal for every model; runs, plans, bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nl.assembly import build_model, launch
from nl.config import ConfigError, structure
from nl.config.groups import EvaluatorConfig
from nl.config.hydra import compose, run_config
from nl.core.output import Output
from nl.data.component_stream import ComponentStreamConfig
from nl.data.documents import Document
from nl.data.prep.corpus import Work, write_corpus
from nl.data.prep.shard import shard_corpus
from nl.eval.context import EvalContext, NoText, OwnRows
from nl.report.scaling.losses import read_losses
from nl.sweep.spec import expand, read_spec

ROOT = Path(__file__).parents[3]
NAMES = ("asyncio", "email", "importlib", "multiprocessing", "xml")
W = 12
SMALL = [
    *("experiment=ergodic/standin", "model.vocab_size=259", "model.dim=16", "model.layers=1"),
    *("model.attention.heads=2", "model.mlp_hidden=16", f"stream.window={W}", "stream.budget=120"),
    *("stream.batch_size=4", "train.steps=3", "schedule.warmup=0", "evals.windows.windows=10"),
]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five components of 40 documents each, byte tokens."""
    root = tmp_path_factory.mktemp("five")
    works = {
        name: [
            Work((Document(f"{name} {n} " + f"{name[n % 3]}{n} " * (50 + n % 7), str(n)),))
            for n in range(40)
        ]
        for name in NAMES
    }
    write_corpus(root / "corpus", "five", works, limit_bytes=10**9, recipe={})
    shard_corpus(root / "corpus", "bytes", root, shard_tokens=2000)
    return root


def stream(five: Path, **more: Any) -> ComponentStreamConfig:
    fields = {"path": str(five), "window": W, "budget": 120, "batch_size": 4}
    return ComponentStreamConfig(**fields | more)


def evaluator(**fields: Any) -> Any:
    return structure(EvaluatorConfig, {"kind": "windows", "windows": 10, **fields})


def model_of(*overrides: str) -> Any:
    small = [o for o in SMALL if o.startswith(("experiment", "model"))]
    return build_model("pilot_smoke", [*small, *overrides])


def measured(five: Path, tmp_path: Path, model: Any, own: Any, **fields: Any) -> Any:
    told = EvalContext(tokenizer=NoText(), probe=OwnRows(own, 5), output=tmp_path, batch_size=3)
    rows = evaluator(**fields).build()(model, told)
    return {(row.task, row.metric): row for row in rows}, told.record


def test_losses_are_those_of_the_model_and_means_are_theirs(five: Path, tmp_path: Path) -> None:
    model, own = model_of(), stream(five, components=("email", "xml"))
    rows, record = measured(five, tmp_path, model, own)
    losses = read_losses(tmp_path / "nll.safetensors")
    found = own.frozen("val", 10, 0)
    with torch.no_grad():
        logits = model(found.inputs.long()).pred
    said = torch.log_softmax(logits.double(), -1).gather(-1, found.targets.long()[..., None])
    assert losses.nll == pytest.approx(-said[..., 0].numpy(), abs=1e-5)
    assert losses.context.tolist() == list(range(1, W + 1))
    assert (losses.components, losses.trained_on) == (NAMES, ("email", "xml"))
    assert losses.digest == found.digest
    assert losses.more["budget"] == {"email": 60, "xml": 60}
    means = []
    for code, name in enumerate(NAMES):
        mine = losses.component == code
        row = rows[name, "nats_per_token"]
        assert row.value == pytest.approx(losses.nll[mine].mean())
        assert row.n == int(mine.sum())
        means.append(row.value)
        bits = losses.nll[mine].sum() / math.log(2) / mine.sum() / W  # a byte per token
        assert rows[name, "bits_per_byte"].value == pytest.approx(bits)
        page = record.details["per_component"][name]
        assert page["nats"] == pytest.approx(losses.nll[mine].mean(0).tolist())
        assert page["trained"] == (name in ("email", "xml"))
        owners = np.unique(losses.document[mine])
        assert page["documents"] == owners.size
        per = [losses.nll[mine & (losses.document == d)].sum() for d in owners]
        count = [W * int((mine & (losses.document == d)).sum()) for d in owners]
        gaps = np.asarray(per) - row.value * np.asarray(count)
        share = len(per) / (len(per) - 1)
        assert row.stderr == pytest.approx(math.sqrt((gaps**2).sum() * share) / sum(count))
    assert rows["in_domain", "nats_per_token"].value == pytest.approx((means[1] + means[4]) / 2)
    assert rows["out_of_domain", "nats_per_token"].value == pytest.approx(
        (means[0] + means[2] + means[3]) / 3
    )
    sums: dict[str, list[float]] = {}
    for sample in record.samples:
        total = sums.setdefault(sample["task"], [0.0, 0.0])
        for place, value in enumerate(sample["values"]["nats_per_token"]):
            total[place] += value
    for name in NAMES:
        assert sums[name][0] / sums[name][1] == pytest.approx(rows[name, "nats_per_token"].value)


def test_windows_are_the_same_whatever_was_trained_on(five: Path, tmp_path: Path) -> None:
    model = model_of()
    measured(five, tmp_path / "a", model, stream(five, components=("email",)))
    measured(five, tmp_path / "b", model, stream(five))
    a, b = (read_losses(tmp_path / x / "nll.safetensors") for x in "ab")
    assert a.digest == b.digest
    assert np.array_equal(a.nll, b.nll)
    assert a.trained_on != b.trained_on
    measured(five, tmp_path / "c", model, stream(five, bos=True), causality=False)
    measured(five, tmp_path / "d", model, stream(five), split="test")
    c, d = (read_losses(tmp_path / x / "nll.safetensors") for x in "cd")
    assert c.context.tolist() == list(range(W + 1))
    assert len({a.digest, c.digest, d.digest}) == 3


def test_memories_may_stay_as_trained(five: Path, tmp_path: Path) -> None:
    changes = ("model.block=hope_attention", "model.cms.periods=[4,8]", "model.cms.hidden=8")
    model = model_of(*changes)
    found = {}
    for mode in ("context", "off"):
        measured(five, tmp_path / mode, model, stream(five), memorize=mode)
        found[mode] = read_losses(tmp_path / mode / "nll.safetensors").nll
    assert not np.allclose(found["context"], found["off"])
    assert np.allclose(found["context"][:, 0], found["off"][:, 0])


class Peeking(torch.nn.Module):
    """Gives the token that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Any, state: Any = None, **_: Any) -> Output:
        after = torch.roll(inputs, -1, 1)
        logits = torch.nn.functional.one_hot(after, 259).float() * 5
        return Output(logits + self.weight, state, {})


def test_a_model_that_looks_ahead_is_refused(five: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model: not causal"):
        measured(five, tmp_path, Peeking(), stream(five))
    with pytest.raises(ConfigError, match="choose stream=components"):
        evaluator().build()(model_of(), EvalContext(tokenizer=NoText(), output=tmp_path))


def test_a_run_leaves_its_losses(five: Path, tmp_path: Path) -> None:
    told = [*SMALL, f"stream.path={five}", "stream.components=[asyncio,xml]"]
    home = launch(compose("pilot_smoke", [*told, f"run.dir={tmp_path / 'run'}"]))
    losses = read_losses(home / "artifacts/evals/windows/nll.safetensors")
    assert losses.trained_on == ("asyncio", "xml")
    summary = json.loads((home / "summary.json").read_text())
    assert summary["tokens"] == 3 * 4 * W
    tasks = {row["task"] for row in summary["evals"]}
    assert tasks == {*NAMES, "in_domain", "out_of_domain"}
    with safe_open(home / "artifacts/evals/windows/nll.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["step"]) == 3
    refused = [*told, "stream=shards", "~stream.components", "~stream.window", "~stream.budget"]
    with pytest.raises(ConfigError, match=r"evals.windows: reads frozen windows of components"):
        launch(compose("pilot_smoke", [*refused, f"run.dir={tmp_path / 'no'}"]))


@pytest.mark.parametrize(
    ("model", "parameters"), [("ergodic_micro", 12_956_672), ("ergodic_tiny", 4_505_600)]
)
def test_presets_have_the_parameters_of_the_earlier_decoders(model: str, parameters: int) -> None:
    built = build_model("pilot_smoke", [f"model={model}"])
    assert sum(p.numel() for p in built.parameters()) == parameters
    tokens = torch.randint(0, 32000, (4, 101), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        nll, _ = built.nll(tokens[:, :-1], tokens[:, 1:])
    assert abs(float(nll.mean()) - math.log(32000)) < 0.1


def test_every_set_of_the_sweep_has_the_same_windows_steps_and_tokens(five: Path) -> None:
    spec = read_spec(ROOT / "configs/sweep/ergodic_k.yaml")
    plan = expand(spec)
    sets = [tuple(one.overrides["stream.components"]) for one in plan]
    assert sets == [c for k in range(1, 6) for c in itertools.combinations(NAMES, k)]
    assert plan[0].name == "k1_asyncio_transformer"
    assert plan[0].columns["components"] == "k1_asyncio"
    others = [{k: v for k, v in one.overrides.items() if k != "stream.components"} for one in plan]
    assert all(other == others[0] for other in others)  # so that one composition says it for all
    own = [f"{key}={value}" for key, value in others[0].items()]
    run: Any = run_config(compose(spec.base_config, own))
    rows = run.stream.batch_size * run.train.grad_accum
    assert (run.stream.budget, run.train.steps, rows) == (300, 120, 20)
    for one in sets:
        shares = stream(five, components=one, budget=run.stream.budget).share_of()
        assert shares == dict.fromkeys(one, 300 // len(one))
    real: Any = run_config(compose("pilot_smoke", ["experiment=ergodic/real"]))
    rows = real.stream.batch_size * real.train.grad_accum
    assert real.stream.budget % 60 == 0
    assert real.train.steps * rows == 4 * real.stream.budget


def write_sweep(path: Path, axis: str) -> Path:
    path.write_text(f"base_config: pilot_smoke\naxes:\n  components: {axis}\n")
    return path


def test_other_designs(tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        file = write_sweep(tmp_path / "s.yaml", f"{{key: stream.components, {text}}}")
        return [one.name for one in expand(read_spec(file))]

    three = "subsets_of: [cs.DS, math.ST, xml_x]"
    assert names(three)[:4] == ["k1_cs.DS", "k1_math.ST", "k1_xmlx", "k2_cs.DS_math.ST"]
    assert len(names(three)) == 7
    assert names(f"{three}, design: chain") == [
        "k1_cs.DS",
        "k2_cs.DS_math.ST",
        "k3_cs.DS_math.ST_xmlx",
    ]
    assert names(f"{three}, design: single")[2] == "k1_xmlx"
    assert len(names(f"{three}, sizes: [2, 3]")) == 4


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("{subsets_of: [], key: a}", "axes.components.subsets_of: empty"),
        ("{subsets_of: [a, a], key: a}", "each once"),
        ("{subsets_of: [a]}", "axes.components.key: "),
        ("{subsets_of: [a], key: a, sizes: [2]}", r"sizes: \[2\]; 1 to 1"),
        ("{subsets_of: [a], key: a, sizes: [1], design: single}", "leave sizes out"),
        ("{subsets: [a], key: a}", "unknown|subsets_of"),
    ],
)
def test_bad_axes(tmp_path: Path, axis: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_spec(write_sweep(tmp_path / "s.yaml", axis))


BAD = [
    ("stream.budget=100000", "stream.budget: 100,000 windows, 20,000 of each of 5 components, but"),
    ("stream.components=[cs.DS]", "components: 'cs.DS'; split 'train' of"),
    ("model.vocab_size=200", "model.vocab_size: 200; the stream's token ids go up to 258"),
    ("resume=nowhere", "nowhere"),
    ("init_from=nowhere", "nowhere: does not exist"),
    ("stream.path=nowhere", "nowhere/manifest.json: no such file"),
    ("model.max_positions=5", "positions"),
    ("stream.window=600", r"evals.windows.split: val; no document of component 'asyncio' holds"),
]


@pytest.mark.parametrize(("override", "message"), BAD)
def test_bad_input_is_refused(five: Path, tmp_path: Path, override: str, message: str) -> None:
    told = [*SMALL, f"stream.path={five}", *override.split(), f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=message):
        launch(compose("pilot_smoke", told))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_another_tokenizer_than_that_of_the_shards_is_refused(five: Path, tmp_path: Path) -> None:
    """By the digest in the manifest and in every shard."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(five, own)
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (own / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ConfigError, match=r"made with tokenizer .* the manifest names 000000000000"
    ):
        stream(own).build("train", seed=0, rank=0, world=1)


def test_bad_input_ends_with_code_2(five: Path, tmp_path: Path) -> None:
    """On the command line, offline, with W&B disabled and without a file of secrets."""
    told = [*SMALL, f"stream.path={five}", BAD[0][0], f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "train.py"), "--config-name", "pilot_smoke", *told]
    env = os.environ | {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 2
    assert BAD[0][1] in done.stderr
    assert "Traceback" not in done.stderr
