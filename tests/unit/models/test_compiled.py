"""train.compile: the same numbers as without, refused where it cannot be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import nl.assembly
from nl.config import ConfigError
from nl.config.registry import table
from nl.core.native import torch_only
from nl.core.output import Knobs
from nl.core.program import set_compiled
from nl.dist.single import Single
from nl.fit import check
from nl.models.compiled import (
    check_compile,
    compile_units,
    cpp_compiler,
    too_many_variants,
)
from nl.models.language import LanguageConfig
from nl.nn.attention import AttentionConfig
from nl.nn.cms_config import CMSConfig
from nl.nn.experts_config import ExpertsConfig
from nl.nn.titan_config import TitanConfig
from nl.ops.titans_native import KERNEL
from nl.ops.titans_programs import CHUNK, CHUNK_BACK

# The tracer looks at .grad of activations itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

BY_PARTS = {"titan_lmm", "titan_mac", "titan_mag", "titan_mal", "hope_selfmod", "hope_hybrid"}
BY_PARTS |= {"gru", "lstm", "quadratic_rnn"}
"""Blocks with loops that are not unrolled: what is around them is several graphs, or eager."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.utils.counters.clear()
    for program in (CHUNK, CHUNK_BACK):
        program.variants.clear()
    yield
    set_compiled(None)
    torch.compiler.reset()


def language(block: str) -> Any:
    torch.manual_seed(0)
    heads = AttentionConfig(heads=2)
    return LanguageConfig(vocab_size=16, dim=64, layers=2, block=block, attention=heads).build()


def step(model: Any) -> list[torch.Tensor]:
    """Loss, and parameters after one step of plain gradient descent."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 16, (2, 129))
    loss = model.nll(tokens[:, :-1], tokens[:, 1:])[0].sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return [loss.detach(), *(p.detach() for p in model.parameters())]


def check_equal(block: str, backend: str) -> None:
    eager = language(block)
    compiled = copy.deepcopy(eager)
    before = step(eager)
    assert compile_units(compiled, backend) == 2
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for value, wanted in zip(step(compiled), before, strict=True):
        assert torch.allclose(value, wanted, atol=1e-5, rtol=1e-4)
    calls = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert calls > 0


@pytest.mark.parametrize("block", ["transformer", "titan_mac", "hope_selfmod"])
def test_a_traced_step_equals_the_eager_one(block: str) -> None:
    with torch_only():  # of hope_selfmod they do all that is compiled
        check_equal(block, "aot_eager")


@pytest.mark.parametrize("block", ["titan_lmm", "titan_mag"])
def test_titans_memories_are_traced_chunk_by_chunk(block: str) -> None:
    with torch_only():
        check_equal(block, "aot_eager")
    assert len(CHUNK.variants) == len(CHUNK_BACK.variants) == 1


def test_titans_memories_are_left_to_their_kernel() -> None:
    check_equal("titan_lmm", "aot_eager")
    assert bool(CHUNK.variants) == (KERNEL.library() is None)


@pytest.mark.parametrize("block", sorted(table("block").keys() - BY_PARTS))
def test_a_block_is_one_graph(block: str) -> None:
    model = language(block)
    for unit in model.shard_units():
        unit.compile(backend="eager", fullgraph=True)
    step(model)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_documents_of_any_length_share_what_was_compiled() -> None:
    titan = TitanConfig(head_size=8, period=16)
    sizes: dict[str, Any] = {"vocab_size": 16, "dim": 16, "layers": 1, "block": "titan_mac"}
    torch.manual_seed(0)
    model = LanguageConfig(**sizes, attention=AttentionConfig(heads=2), titan=titan).build()
    tokens = torch.randint(0, 16, (1, 65))
    begins = [sorted(torch.randperm(63)[:count].add(1).tolist()) for count in range(8)]

    def losses() -> list[torch.Tensor]:
        given = tokens[:, :-1], tokens[:, 1:]
        return [model.nll(*given, keep=False, starts=[b])[0].detach() for b in begins]

    eager, counter = losses(), CompileCounterWithBackend("eager")
    compile_units(model, counter)
    for a, b in zip(losses(), eager, strict=True):
        torch.testing.assert_close(a, b)
    assert 0 < counter.frame_count < 24  # there are 28 pieces of rows, most of other lengths


def test_too_many_variants_end_a_run_with_the_key(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise too_many_variants()[0]("limit")

    monkeypatch.setattr(nl.assembly, "train", fail)
    with pytest.raises(ConfigError, match=r"train\.compile: true; more than 32 compiled forms"):
        nl.assembly.launch(tiny.tiny_run(train__compile=True))


def test_knobs_of_experts_compile_nothing_anew() -> None:
    experts = ExpertsConfig(form="low_rank", count=9, rank=4, k_max=4, noise=0.3)
    sizes: dict[str, Any] = {"vocab_size": 16, "dim": 16, "layers": 1, "block": "transformer"}
    torch.manual_seed(0)
    model = LanguageConfig(**sizes, attention=AttentionConfig(heads=2), experts=experts).build()
    tokens = torch.randint(0, 16, (2, 17))
    turned = (Knobs(), Knobs(experts_k=1, draw=3), Knobs(experts_k=4, router_temperature=2.0))

    def losses() -> list[torch.Tensor]:
        return [model.nll(tokens[:, :-1], tokens[:, 1:], None, knobs)[0] for knobs in turned]

    eager, counter = losses(), CompileCounterWithBackend("aot_eager")
    compile_units(model, counter)
    traced = losses()
    first = counter.frame_count
    assert first > 0
    for a, b in zip(traced, eager, strict=True):
        torch.testing.assert_close(a, b)
    more = [Knobs(experts_k=k, router_noise=0.1 * k, draw=k) for k in (3, 2)]
    for knobs in more:
        model.nll(tokens[:, :-1], tokens[:, 1:], None, knobs)
    assert counter.frame_count == first


@pytest.mark.slow
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_a_compiled_step_equals_the_eager_one() -> None:
    check_equal("transformer", "inductor")


def test_no_compiler_is_refused_with_the_key(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compile(False)
    with pytest.raises(ConfigError, match=r"train\.compile: true; no C\+\+ compiler"):
        check(tiny.tiny_run(train__compile=True), Single.start("cpu"))
    check(tiny.tiny_run(), Single.start("cpu"))


def test_a_model_without_units_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile: true; Linear has no shard units"):
        compile_units(nn.Linear(2, 2))


def test_units_with_kernels_are_left_whole_to_them() -> None:
    def compiled_units(levels: Any, kernels: bool) -> int:
        torch.manual_seed(0)
        heads = AttentionConfig(heads=2)
        sizes: dict[str, Any] = {"vocab_size": 16, "dim": 16, "layers": 2}
        model = LanguageConfig(**sizes, block="hope_attention", attention=heads, cms=levels).build()
        assert compile_units(model, "eager", kernels=kernels) == 2
        return sum(unit._compiled_call_impl is not None for unit in model.shard_units())

    there = KERNEL.library() is not None
    assert compiled_units(CMSConfig(), kernels=False) == 2
    assert compiled_units(CMSConfig(), kernels=True) == (0 if there else 2)
    assert compiled_units(CMSConfig(activation="gelu"), kernels=True) == 2
    assert compiled_units(CMSConfig(scope="batch"), kernels=True) == 2
