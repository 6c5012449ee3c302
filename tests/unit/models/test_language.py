"""What a language model refuses, keeps in fp32 and tells strategies about its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import nl
from nl.assembly import build_objective, run_config
from nl.config import ConfigError, structure, table
from nl.config.groups import ModelConfig
from nl.config.hydra import compose
from nl.config.run import RunConfig
from nl.core.batch import Batch
from nl.core.state import tensors
from nl.dist.base import Strategy
from nl.dist.ddp import DDP
from nl.dist.single import Single
from nl.fit import check_positions, say_unread_levels

SIZES: dict[str, Any] = {
    "kind": "language",
    "vocab_size": 13,
    "dim": 8,
    "layers": 2,
    "block": ["hope_selfmod", "hope_attention"],
    "attention": {"heads": 2},
    "cms": {"periods": [16, 32]},
    "selfmod": {"head_size": 4, "hidden": 4, "period": 16},
}


def small(**changes: Any) -> Any:
    torch.manual_seed(0)
    return structure(ModelConfig, SIZES | changes, "model").build()  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", ["transformer", "hope_attention", "hope_selfmod"])
def test_inputs_that_do_not_fit_are_refused(block: str) -> None:
    model, x = small(block=block), torch.zeros(2, 20, dtype=torch.long)
    state = model(x).state
    with pytest.raises(ConfigError, match=r"inputs: shape \(2, 0\).*at least 1 token"):
        model(x[:, :0], state)
    with pytest.raises(ConfigError, match=r"inputs: shape \(20,\)"):
        model(x[0])
    for held in (state, model.init_state(2)):
        with pytest.raises(ConfigError, match=r"inputs: 3 rows.* State is of 2.*select_rows"):
            model(torch.zeros(3, 4, dtype=torch.long), held)
    with pytest.raises(ConfigError, match=r"state.*: the State of another model"):
        model(x, small(block=["transformer", "hope_selfmod"]).init_state(2))
    for name, value in (("batch", 0), ("batch", 2.0), ("position", -3), ("position", 2.5)):
        with pytest.raises(ConfigError, match=rf"{name}: {value}; must be a whole number"):
            model.init_state(**{"batch": 2, name: value})
    for bad in (13, -1):
        x[1, 7] = bad
        with pytest.raises(ConfigError, match=rf"token ids .*{bad}.*model\.vocab_size is 13"):
            model(x)


def test_targets_of_another_shape_are_refused() -> None:
    x = torch.zeros(2, 20, dtype=torch.long)
    with pytest.raises(ConfigError, match="targets: must have the shape of inputs"):
        small()(x, targets=x[:, 1:])


def test_a_call_looks_into_the_table_once() -> None:
    model, x = small(tie_embeddings=False), torch.arange(80).view(1, 80) % 13
    looked: list[int] = []
    model.embed.register_forward_hook(lambda _m, args, _out: looked.append(args[0].shape[1]))
    nll, _ = model.nll(x, x.roll(-1, 1))
    logits = model(x, targets=x.roll(-1, 1)).pred
    assert looked == [80, 80]  # five tiles: each look would make a gradient of the table's size
    naive = torch.nn.functional.cross_entropy(logits[0], x.roll(-1, 1)[0], reduction="none")
    torch.testing.assert_close(nll[0], naive)


def test_heads_bind_only_blocks_that_have_them() -> None:
    changes = {"dim": 6, "attention": {"heads": 4}, "selfmod": {"head_size": 3, "hidden": 3}}
    assert small(block="hope_selfmod", **changes)(torch.zeros(1, 3, dtype=torch.long)).pred.numel()
    for block in ("transformer", ["hope_selfmod", "hope_attention"]):
        with pytest.raises(ConfigError, match=r"attention\.heads: 4; 2 \* heads must divide"):
            small(block=block, **changes)
    with pytest.raises(ConfigError, match=r"selfmod\.head_size: 3; must divide"):
        small(block="hope_selfmod", **changes | {"dim": 8})


def test_overrides_are_a_list() -> None:
    with pytest.raises(ConfigError, match=r"overrides: 'model\.dim=64'; must be a list"):
        nl.build_model("pilot_smoke", "model.dim=64")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.mlp_hidden=0", r"model\.mlp_hidden: 0; must be >= 1, or null"),
        ("model.cms.periods=[8]", r"set model\.cms\.allow_short_periods=true"),
        ("model.rope_base=0", r"model\.rope_base: 0\.0; must be >= 1"),
    ],
)
def test_sizes_out_of_range_are_refused(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        nl.build_model("pilot_smoke", [override])


def test_memories_stay_in_fp32_under_bf16_parameters() -> None:
    x = torch.randint(13, (2, 40))
    plain, low = small(), small().bfloat16()
    want, got = plain(x).state, low(x).state
    for block, other in zip(want.blocks, got.blocks, strict=True):
        for level, same in zip(tensors(block.levels), tensors(other.levels), strict=True):
            assert same.dtype == torch.float32
            assert (same - level).norm() < 0.1 * level.norm()


@pytest.fixture
def ranks() -> Iterator[list[Strategy]]:
    """One process, alone and as a group of one."""
    group = DDP.start("cpu")
    yield [Single.start("cpu"), group]
    group.close()


@pytest.mark.filterwarnings("ignore:.broadcast_buffers")
def test_ddp_takes_parameters_that_a_short_row_leaves_unused(ranks: list[Strategy]) -> None:
    x = torch.randint(13, (2, 21))
    data = {"name": "r", "model": SIZES, "stream": {"kind": "ladder"}}
    data |= {"objective": {"kind": "next_token"}, "optim": {"kind": "adamw", "lr": 0.1}}
    run = structure(RunConfig, data | {"schedule": {"kind": "constant"}})
    for strategy in ranks:
        strategy.setup(build_objective(run), run.optim.build, max_norm=1.0, precision="fp32")  # type: ignore[attr-defined]
        for _ in range(3):
            with strategy.microbatch(last=True):
                out = strategy.forward(Batch(x[:, :-1], x[:, 1:], 40), None, None)
                strategy.backward(out.loss / 40)
            unused = [n for n, p in strategy.objective.named_parameters() if p.grad is None]
            assert any("log_rate" in name for name in unused)
            strategy.grad_norm()
            strategy.step(1.0)
    one, two = (strategy.objective.parameters() for strategy in ranks)
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("block", [*table("block")])
def test_every_block_fits_the_small_configuration(block: str) -> None:
    model = nl.build_model("pilot_smoke", [f"model.block={block}"])
    x = torch.zeros(1, 2, dtype=torch.long)
    assert model(x, model.init_state(1)).pred.shape == (1, 2, 4096)
    assert copy.deepcopy(model)(x).pred.shape == (1, 2, 4096)  # what a call notes is no graph


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "256"),
        (["stream.seq_len=128"], "128, 256"),
        (["stream.seq_len=512"], ""),
        (["model.block=transformer"], ""),
        (["objective.write=false"], ""),
        (["train.carry=true"], ""),
    ],
)
def test_levels_that_rows_never_read_are_named(
    words: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    periods = ["model.cms.periods=[32,64,128,256]", "model.block=hope_attention"]
    run = run_config(compose("pilot_smoke", [*periods, *words]))
    with caplog.at_level("INFO"):
        say_unread_levels(run)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(";")[0] for line in lines] == (
        [f"model.cms.periods: {said}"] if said else []
    )


def test_a_window_has_no_titan_heads() -> None:
    changes, x = {"titan": {"head_size": 5, "window": 4}}, torch.zeros(1, 3, dtype=torch.long)
    assert small(block="sliding_window", **changes)(x).pred.shape == (1, 3, 13)
    with pytest.raises(ConfigError, match=r"titan\.head_size: 5; must divide model\.dim = 8"):
        small(block="titan_mag", **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["stream.seq_len=32"], r"stream\.seq_len: 32; model\.positions=learned has .*=16"),
        (["train.carry=true"], r"train\.carry: true; a carried State"),
        (["stream.documents=reset"], r"stream\.documents: reset; with model\.positions=learned"),
    ],
)
def test_rows_without_a_learned_position_are_refused_before_a_step(
    changes: list[str], said: str
) -> None:
    words = ["model.positions=learned", "model.max_positions=16", "stream.seq_len=16", *changes]
    with pytest.raises(ConfigError, match=said):
        check_positions(run_config(compose("pilot_smoke", words)))
