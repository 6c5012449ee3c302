"""ZeRO on two gloo ranks: same numbers, checkpoints any strategy reads, steps refused whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import nl
from nl.config import ConfigError, table
from nl.dist.deepspeed import DeepSpeed, import_deepspeed
from nl.dist.deepspeed_config import merged
from nl.fit import check
from tests.resume.compare import fingerprint, rows
from tests.unit.dist.test_parity import check as check_parity
from tests.unit.dist.test_parity import every_block, of_forms, parity

GROUP = Path(__file__).parents[2] / "resume" / "group.py"
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 100,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 50,
}
"""Nothing stays gathered, or models this small would never be cut."""


def zero(folder: Path, stage: int) -> dict[str, str]:
    """The value of ``deepspeed`` for a stage, with buckets of a few tensors."""
    path = folder / f"zero{stage}.json"
    options = {"stage": stage, "reduce_bucket_size": 200, **(SMALL if stage == 3 else {})}
    path.write_text(json.dumps({"zero_optimization": options}))
    return {"config": str(path)}


def runs(cases: list[dict[str, Any]]) -> list[list[int]]:
    """The exit codes of tiny runs, one after the other."""
    command = [sys.executable, "-W", "ignore", str(GROUP), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [case["codes"] for case in json.loads(done.stdout.splitlines()[-1])]


def case(where: Path, strategy: str, world: int, **changes: Any) -> dict[str, Any]:
    plain = {"checkpoint__every": 0, "schedule": {"kind": "constant"}, "run__dir": str(where)}
    return {"changes": plain | changes, "strategy": strategy, "world": world}


def stopped(case: dict[str, Any], batch: int) -> dict[str, Any]:
    """The same, stopped by SIGTERM before a batch."""
    place = {"TINY_CRASH_AT": str(batch), "TINY_CRASH_SIGNAL": "SIGTERM"}
    return case | {"places": {str(rank): place for rank in range(case["world"])}}


def blocks(folder: Path, stage: int, *accumulated: int) -> list[dict[str, Any]]:
    cases = [
        c for c in every_block("deepspeed") if c["changes"]["train__grad_accum"] in accumulated
    ]
    for found in cases:
        found["beside"] = {"deepspeed": zero(folder, stage)}
        # stage 3's engine looks up each module of each call: half the layers, half of that
        if stage == 3:
            found["changes"]["model"] = {"layers": 1}
    return cases


def options(folder: Path, *stages: int) -> list[dict[str, Any]]:
    """What else touches sharding, on the block with levels; two micro-batches per step.

    Keys and values of ``signal: self`` have no part in a micro-batch in which nothing is written.
    """
    cms = {"periods": [4, 8], "hidden": 10, "rate": 0.3, "allow_short_periods": True}
    own = {"model": {"cms": cms | {"signal": "self", "write_gradient": "through"}}}
    through = {"model": {"cms": cms | {"write_gradient": "through"}}}
    block = {"model": {"cms": cms | {"signal": "block"}}}
    shared = {"model": {"cms": cms | {"scope": "batch"}}, "train__carry": False}
    again = {"train__activation_checkpointing": True}
    frozen = {"optim": {"policy": "memory_only"}}
    return [
        {
            "strategy": "deepspeed",
            "kind": "hope_attention",
            "changes": changes | {"train__grad_accum": 2},
            "beside": {"deepspeed": zero(folder, stage)},
        }
        for stage in stages
        for changes in (own, through, shared, again, frozen, block)
        if stage < 3 or changes is not block
    ]


def test_every_block_trains_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    """Stages by turns; the product is ``test_every_block_stage_and_accumulation``, a step of CI."""
    cases = [
        case
        for place, (stage, accumulated) in enumerate(((3, 2), (1, 1), (2, 1)))
        for case in blocks(tmp_path, stage, accumulated)[place::3]
    ]
    assert {case["kind"] for case in cases} == set(table("block"))
    cases += options(tmp_path, 3)
    check_parity(cases, parity(cases))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_models_in_the_form_of_others_train_as_on_one(stage: int, tmp_path: Path) -> None:
    cases = [
        one | {"beside": {"deepspeed": zero(tmp_path, stage)}} for one in of_forms("deepspeed")
    ]
    check_parity(cases, parity(cases, timeout=900))


@pytest.mark.slow
def test_every_block_stage_and_accumulation(tmp_path: Path) -> None:
    cases = [c for stage in (1, 2, 3) for c in blocks(tmp_path, stage, 1, 2)]
    cases += options(tmp_path, 1, 2, 3)
    check_parity(cases, parity(cases, timeout=900))


def test_runs_of_two_ranks(tiny: ModuleType, tmp_path: Path) -> None:
    """One process for all runs: what they import takes longer than they do."""
    parts = [*(resumed(tmp_path, stage) for stage in (2, 3)), refused(tmp_path), moved(tmp_path)]
    codes = runs([case for cases, _ in parts for case in cases])
    assert codes == [found for _, expected in parts for found in expected]
    for stage in (2, 3):
        check_resumed(tmp_path, stage)
    check_refused(tmp_path)
    check_moved(tmp_path)


@pytest.mark.slow
def test_stage_one_resumes_bit_equal(tmp_path: Path) -> None:
    cases, codes = resumed(tmp_path, 1)
    assert runs(cases) == codes
    check_resumed(tmp_path, 1)


Part = tuple[list[dict[str, Any]], list[list[int]]]


def resumed(folder: Path, stage: int) -> Part:
    """A run, and the same run stopped and resumed."""
    options = {"deepspeed": zero(folder, stage), "train__steps": 8, "train__grad_accum": 2}
    whole = case(folder / f"whole{stage}", "deepspeed", 2, **options)
    options |= {"checkpoint__asynchronous": True, "checkpoint__every": 2}
    parts = case(folder / f"parts{stage}", "deepspeed", 2, **options)
    again = case(folder / f"parts{stage}", "deepspeed", 2, **options, resume="auto")
    return [whole, stopped(parts, 6), again], [[0, 0], [143, 143], [0, 0]]


def check_resumed(folder: Path, stage: int) -> None:
    """Parameters, moments, State of both ranks, counters and metrics are the same bits."""
    places = [folder / f"{name}{stage}" for name in ("whole", "parts")]
    assert fingerprint(places[0], 8) == fingerprint(places[1], 8)
    states = [p / "checkpoints" / "step_000008" / "state_00001.safetensors" for p in places]
    assert states[0].read_bytes() == states[1].read_bytes()


def refused(folder: Path) -> Part:
    """A run with a batch that makes NaN beside one that passes over that batch."""
    options = {"deepspeed": zero(folder, 2), "train__steps": 5, "train__carry": False}
    options |= {"train__nonfinite": {"policy": "skip"}, "train__validate_every": 0}
    options |= {"model__dropout": 0.0}  # the batch that is passed over draws no random numbers
    third = options | {"deepspeed": zero(folder, 3)}
    return [
        case(folder / "bad2", "deepspeed", 2, stream__bad_rows=[2], **options),
        case(folder / "without2", "deepspeed", 2, stream__left_out=2, **options),
        case(folder / "bad3", "deepspeed", 2, stream__bad_rows=[2], **third),
        case(folder / "without3", "deepspeed", 2, stream__left_out=2, **third),
    ], [[0, 0]] * 4


def check_refused(folder: Path) -> None:
    """The refused step left parameters and moments as they were."""
    for stage in (2, 3):
        places = [folder / f"{name}{stage}" for name in ("bad", "without")]
        bad, without = ([row for row in rows(place) if row["split"] == "train"] for place in places)
        assert bad[-1]["train/skipped"] == 1
        for one, other in zip(bad, without, strict=True):
            assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])
        prints = [fingerprint(place, 5) for place in places]
        for name in ("model.safetensors", "optim.safetensors"):
            assert prints[0][name] == prints[1][name]


MOVES = {"train__steps": 8, "train__carry": False, "model__dropout": 0.0}


def moved(folder: Path) -> Part:
    """A run in one process, and one that goes from strategy to strategy and world to world."""
    second, third = (MOVES | {"deepspeed": zero(folder, stage)} for stage in (2, 3))
    here = folder / "moved"
    return [
        case(folder / "alone", "single", 1, **MOVES),
        stopped(case(here, "single", 1, **MOVES), 1),
        stopped(case(here, "deepspeed", 2, **third, resume="auto"), 3),
        stopped(case(here, "deepspeed", 1, **second, resume="auto"), 5),
        stopped(case(here, "ddp", 2, **MOVES, resume="auto"), 6),
        case(here, "deepspeed", 2, **third, resume="auto"),
    ], [[0], [143], [143, 143], [143], [143, 143], [0, 0]]


def check_moved(folder: Path) -> None:
    """Same losses, same weights, whole parameter counts; the export is the model."""
    places = [folder / name for name in ("alone", "moved")]
    for ours, theirs in zip(*(rows(place) for place in places), strict=True):
        assert theirs["step"] == ours["step"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    one, two = (nl.load_model(place).state_dict() for place in places)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    export = nl.load_model(places[1] / "checkpoints" / "step_000008.safetensors").state_dict()
    assert all(torch.equal(export[name], two[name]) for name in two)
    counts = [json.loads((place / "summary.json").read_text())["parameters"] for place in places]
    assert counts[0] == counts[1] > 0


def test_parameters_are_cut_between_steps(
    tiny: ModuleType, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = tiny.tiny_run(deepspeed=zero(tmp_path, 3), model__dropout=0.0)
    strategy = DeepSpeed.start("cpu")
    parts = nl.assembly.build(run, strategy)
    try:
        batch = next(iter(parts.stream))
        strategy.backward(strategy.forward(batch, None, None).loss)
        assert float(strategy.grad_norm()) > 0
        strategy.step(1.0)
        assert {p.numel() for p in strategy.objective.parameters()} == {0}
        whole = strategy.full_model()
        with strategy.evaluating() as objective:
            held = dict(objective.model.state_dict())
            assert objective(batch, None, None).loss.isfinite()
        assert held.keys() == whole.keys()
        assert all(torch.equal(held[name], whole[name]) for name in held)
        assert {p.numel() for p in strategy.objective.parameters()} == {0}
    finally:
        strategy.close()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"optim": {"kind": "muon"}}, "optim: muon needs whole_matrices, .*set optim=adamw"),
        ({"optim": {"kind": "m3"}}, "optim: m3 needs whole_matrices"),
        ({"optim": {"kind": "scaled_sgd"}}, "optim: scaled_sgd needs whole_neurons"),
        ({"train__compile": True}, "train.compile: true; not known to work under deepspeed"),
        ({"fsdp__cpu_offload": True}, "fsdp: .*deepspeed training does not read it"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_built(
    tiny: ModuleType, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    run = tiny.tiny_run(deepspeed=zero(tmp_path, 2), **changes)
    with pytest.raises(ConfigError, match=complaint):
        check(run, DeepSpeed(torch.device("cpu")))


def test_signals_inside_the_step_need_whole_parameters(tiny: ModuleType, tmp_path: Path) -> None:
    model = {"kind": "language", "vocab_size": 11, "dim": 8, "layers": 1, "block": "hope_attention"}
    model |= {"attention": {"heads": 1}, "cms": {"signal": "block"}}
    changes = {"model": model, "objective": {"kind": "next_token"}}
    third, second = (tiny.tiny_run(deepspeed=zero(tmp_path, n), **changes) for n in (3, 2))
    with pytest.raises(ConfigError, match="needs inner_autograd, which deepspeed cannot do"):
        check(third, DeepSpeed(torch.device("cpu")))
    strategy = DeepSpeed(torch.device("cpu"))
    check(second, strategy)
    assert strategy.capabilities.inner_autograd


def test_the_options_are_refused_elsewhere(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"single training does not read it; .*deepspeed=null"):
        nl.launch(tiny.tiny_run(deepspeed=zero(tmp_path, 2), run__dir=str(tmp_path / "run")))


def test_shared_memory_is_not_compiled_on_a_cpu() -> None:
    deepspeed = import_deepspeed(torch.device("cpu"))
    assert not deepspeed.ops.__compatible_ops__.get("deepspeed_shm_comm")
    assert sys.modules["deepspeed.comm.torch"].build_shm_op() is None


def test_numbers_follow_from_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": 2}}')
    run = tiny.tiny_run(deepspeed={"config": str(path)}, train__grad_accum=3, train__max_norm=0.5)
    found = merged(run, 2)
    assert found["train_batch_size"] == 12
    assert found["train_micro_batch_size_per_gpu"] == 2
    assert found["gradient_accumulation_steps"] == 3
    assert found["gradient_clipping"] == 0.5
    assert found["zero_optimization"] == {"stage": 2}
    assert merged(run, 1)["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"train_batch_size": 64}', r"train_batch_size: 64, but stream.batch_size=4 and train.gr"),
        ('{"train_micro_batch_size_per_gpu": 4}', "stream.batch_size=4 on 2 ranks make 2"),
        ('{"gradient_accumulation_steps": 2}', "2, but train.grad_accum make 1"),
        ('{"gradient_clipping": 5.0}', "gradient_clipping: 5.0, but train.max_norm make 1.0"),
        ('{"bf16": {"enabled": true}}', "bf16.enabled: True, but train.precision=fp32"),
        ('{"torch_autocast": {"enabled": true}}', "torch_autocast.enabled: True, but train.prec"),
        ('{"fp16": {"enabled": true}}', "fp16: there is no loss scaling .*; leave fp16 out"),
        ('{"optimizer": {"type": "AdamW"}}', "optimizer: the run's optimizer steps"),
        ('{"scheduler": {"type": "WarmupLR"}}', "scheduler: the run's schedule"),
        ('{"zero_optimisation": {}}', "unknown 'zero_optimisation'. Did you mean 'zero_optimi"),
        ('{"zero_optimization": {"stage": 0}}', "zero_optimization.stage: 0; must be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": "3"}}', "zero_optimization.stage: '3'; must be"),
        ('{"zero_optimization": 3}', "zero_optimization.stage: None"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
            "zero_optimization.offload_optimizer: .*not shown to give the same numbers",
        ),
        (
            '{"zero_optimization": {"stage": 3, "zero_quantized_weights": true}}',
            "zero_quantized_weights: true; .*exchanged in fp32",
        ),
        ('{"zero_optimization": {"stage": 2}, "zero_optimization": {}}', "a key occurs twice"),
        ("[1]", "must hold a mapping, not list"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_contradictions_are_refused(
    tiny: ModuleType, tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "zero.json"
    if text.startswith('{"') and "zero_optimi" not in text:
        text = text[:-1] + ', "zero_optimization": {"stage": 2}}'
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        merged(tiny.tiny_run(deepspeed={"config": str(path)}), 2)


def test_what_is_switched_off_is_no_contradiction(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    blocks = {"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}}
    path.write_text(json.dumps(blocks | {"zero_optimization": {"stage": 1}}))
    assert merged(tiny.tiny_run(deepspeed={"config": str(path)}), 2)["train_batch_size"] == 4


def test_a_json_is_asked_for(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed.config: null; .*zero3.json"):
        merged(tiny.tiny_run(), 2)
    with pytest.raises(ConfigError, match="No such file"):
        merged(tiny.tiny_run(deepspeed={"config": str(tmp_path / "none.json")}), 2)
