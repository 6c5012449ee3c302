"""The laws with a head that learns while it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nl.config import ConfigError
from nl.core import state as states
from nl.core.output import Knobs
from nl.dist.state_file import load_state, save_state
from tests.laws.conftest import VOCAB, small, tokens
from tests.laws.test_block_laws import (
    EXACT,
    check_cuts,
    check_gradients_of_cuts,
    check_switched_writing,
    largest_gap,
)

KINDS = ["transformer", "hope_attention", "hope_selfmod", "gated_delta"]
PERIOD = 4


def learning(kind: str, **changes: Any) -> Any:
    """A small model whose head learns, with rates that differ by word."""
    return small(kind, **{"head_memory": {"period": PERIOD, "rate": 2.0}, **changes})


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, float64: None) -> Any:
    return learning(request.param)


@torch.no_grad()
def test_causal_and_a_label_acts_after_its_chunk(model: Any) -> None:
    x, labels = tokens(2, 23), tokens(2, 23, 1)
    base = model(x).pred
    for t in (0, 3, 9, 22):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        other = model(changed).pred
        assert torch.equal(other[:, :t], base[:, :t])
        assert not torch.equal(other[:, t:], base[:, t:])
    told = labels.clone()
    told[:, 5] = (told[:, 5] + 1) % VOCAB
    moved = (model(x, targets=told).pred - model(x, targets=labels).pred).abs().amax((0, 2)) > 0
    assert not moved[:8].any()
    assert moved[8:].all()


@torch.no_grad()
def test_split_invariant(model: Any) -> None:
    x, labels = tokens(3, 23), tokens(3, 23, 1)
    for given in ({}, {"write": False}):
        check_cuts(model, x, **given)
    for labelled in (True, False):
        check_switched_writing(model, tokens(2, 41), tokens(2, 41, 1), labelled)
    nll, out = model.nll(x, labels)
    read = model(x, targets=labels)
    pred = read.pred.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    torch.testing.assert_close(nll, -pred)
    assert largest_gap(out.state, read.state) < EXACT


def test_gradients_do_not_depend_on_the_cut(model: Any) -> None:
    check_gradients_of_cuts(model, tokens(2, 23), tokens(2, 23, 1))


def test_gradients_are_those_of_the_logits(model: Any) -> None:
    """Loss and teach signal in closed form against autograd through the logits."""
    x, labels = tokens(2, 23), tokens(2, 23, 1)
    model.nll(x, labels)[0].sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    pred = model(x, targets=labels).pred
    torch.nn.functional.cross_entropy(pred.mT, labels, reduction="sum").backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - found[name]).abs().max() < EXACT, name
    assert found["head_memory.log_rate"].abs() > 0
    assert found["head_memory.toward"].abs().max() > 0


@pytest.mark.parametrize("length", [11, 12, 13, 40])
def test_the_loss_does_not_depend_on_keeping_the_state(model: Any, length: int) -> None:
    """S is formed every 12 tokens here: rows are shorter and longer than that."""
    x, labels = tokens(2, length), tokens(2, length, 1)
    for before in (None, states.detach(model(tokens(2, 3, 7)).state)):
        found, grads = [], []
        for keep in (True, False):
            nll, _ = model.nll(x, labels, before, keep=keep)
            found.append(nll)
            model.zero_grad()
            nll.sum().backward()
            grads.append(model.head_memory.toward.grad.clone())
        torch.testing.assert_close(*found)
        torch.testing.assert_close(*grads)


@torch.no_grad()
def test_a_state_that_is_not_kept_holds_no_tokens(float64: None) -> None:
    model = learning("transformer")
    head = model.nll(tokens(2, 23), tokens(2, 23, 1), keep=False)[1].state.head
    assert head.residuals is None
    assert head.keys is None
    assert not head.old


@torch.no_grad()
@pytest.mark.parametrize("labelled", [True, False])
def test_rows_are_fresh_where_all_are_reset_inside_a_period(model: Any, labelled: bool) -> None:
    x, labels = tokens(1, 23), tokens(1, 23, 1)
    given = {"targets": labels} if labelled else {}
    held = model(x[:, :3], **{key: value[:, :3] for key, value in given.items()}).state
    fresh = model.init_state(1, position=3)
    whole = model(x, fresh, **given).pred
    assert torch.equal(model(x, model.reset_rows(held, [0]), **given).pred, whole)
    cut = model(x, fresh, starts=([2, 5],), **given)
    found = model(x, held, starts=([0, 2, 5],), **given)
    assert torch.equal(found.pred, cut.pred)
    assert found.state.head.old == cut.state.head.old
    assert largest_gap(found.state, cut.state) == 0


@torch.no_grad()
def test_rows_and_documents_are_apart(model: Any) -> None:
    x, labels = tokens(3, 30), tokens(3, 30, 1)
    whole = model.nll(x, labels)[0]
    alone = model.nll(x[1:2], labels[1:2])[0]
    assert (whole[1:2] - alone).abs().max() < EXACT
    starts = ([9], [], [4, 17])
    packed = model.nll(x, labels, starts=starts)[0]
    other = x.clone()
    other[0, :9] = (other[0, :9] + 1) % VOCAB
    other[2, :17] = (other[2, :17] + 1) % VOCAB
    changed = model.nll(other, labels, starts=starts)[0]
    assert torch.equal(changed[0, 9:], packed[0, 9:])
    assert torch.equal(changed[2, 17:], packed[2, 17:])
    assert not torch.equal(changed[0, :9], packed[0, :9])


@torch.no_grad()
def test_a_head_that_has_written_nothing_is_a_plain_one(float64: None) -> None:
    model, x = learning("hope_attention"), tokens(2, 23)
    plain = small("hope_attention")
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("head_memory")}
    )
    frozen = model(x, write=False)
    torch.testing.assert_close(frozen.pred, plain(x, write=False).pred)
    assert frozen.state.head == type(frozen.state.head)()
    levels = model(x, knobs=Knobs(paths=("level0", "level1", "level2")))
    torch.testing.assert_close(levels.pred, plain(x).pred)


@torch.no_grad()
def test_knobs_open_the_head_and_nothing_else(float64: None) -> None:
    model, x = learning("hope_selfmod"), tokens(2, 23)
    only = model.memory_knobs(["head"], [])
    state = model(x, knobs=only).state
    written = {record["path"] for record in model.memory_report(state) if record["added"]}
    assert written == {"head"}
    assert model.memory_paths()[-1] == "head"
    first = model.memory_knobs([], [0])
    assert model(x, knobs=first).state.head.fast is None
    assert model(x, knobs=model.memory_knobs([], [-1])).state.head.fast is not None
    silent = model(x, knobs=Knobs(paths=("head",), write_scale=0.0))
    torch.testing.assert_close(silent.pred, model(x, write=False).pred)


@torch.no_grad()
def test_states_are_saved_reset_and_forked(model: Any, tmp_path: Path) -> None:
    x = tokens(3, 22)
    state = model(x).state
    assert state.head.fast.shape == (3, VOCAB, 12)
    path = save_state(tmp_path / "s.safetensors", state)
    after = tokens(3, 9, 5)
    expected = model(after, state)
    torch.testing.assert_close(model(after, load_state(path)).pred, expected.pred)
    reset = model.reset_rows(state, [1])
    fresh = model.init_state(3, position=22)
    torch.testing.assert_close(model(after, reset).pred[1], model(after, fresh).pred[1])
    torch.testing.assert_close(model(after, reset).pred[[0, 2]], expected.pred[[0, 2]])
    one = model(after[2:], states.select_rows(state, [2]))
    torch.testing.assert_close(one.pred, expected.pred[2:])
    bare = model.without_memories(state)
    assert bare.head.fast is None


@torch.no_grad()
def test_generation_reads_what_the_head_has_learned(float64: None) -> None:
    model, x = learning("hope_attention"), tokens(1, 17)
    found, _ = model.generate(x, max_new_tokens=6, temperature=0.0)
    whole = torch.cat([x, found], 1)
    said = model(whole).pred.argmax(-1)[:, 16:-1]
    assert torch.equal(said, found)


@torch.no_grad()
@pytest.mark.parametrize(("length", "part"), [(3, r"residuals: \(29,\)"), (9, r"fast: \(29, 12\)")])
def test_what_a_head_of_other_words_has_learned_is_refused(length: int, part: str) -> None:
    state = learning("transformer").nll(tokens(2, length), tokens(2, length))[1].state
    with pytest.raises(ConfigError, match=rf"state\.head\.{part}, not .*: the State of another"):
        learning("transformer", vocab_size=40)(tokens(2, 3), state)


def test_its_parameters_are_a_memory_of_their_own() -> None:
    from nl.optim.roles import parameter_roles

    roles = parameter_roles(learning("transformer"))
    memory = {name for name, role in roles.items() if role.memory}
    assert memory == {"head_memory.log_rate", "head_memory.toward"}
    assert not any(roles[name].matrix for name in memory)


@torch.no_grad()
def test_statistics_tell_of_its_size(float64: None) -> None:
    model, x = learning("transformer"), tokens(2, 23)
    assert "memory/head" not in model.nll(x[:, :3], x[:, :3])[1].aux
    size = model.nll(x, tokens(2, 23, 1))[1].aux["memory/head"]
    assert size > 0
    model.head_memory.log_rate += 1
    state = model.nll(x, tokens(2, 23, 1), write=False)[1].state
    assert state.head.fast is None


@pytest.mark.parametrize(
    ("cms", "key"),
    [
        ({"signal": "block"}, "model.cms.signal=head"),
        ({"write_gradient": "through"}, "model.cms.write_gradient=stop"),
        ({"scope": "batch"}, "model.cms.scope=row"),
        ({"surprise": {"gate": "hard", "threshold": 1.0}}, "model.cms.surprise.gate=none"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_does_not_go_together_is_refused(cms: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        learning("hope_attention", cms=cms)
    learning("transformer", cms=cms)
    with (
        pytest.raises(ConfigError, match=r"surprise: 1\.0; the head of this model"),
        learning("hope_attention").surprise_at(1.0),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "said"),
    [({"period": -1}, "period: -1"), ({"rate": 0.0}, "rate: 0"), ({"retention": 1.5}, "retention")],
    ids=str,
)
def test_bad_options_are_refused(option: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        learning("transformer", head_memory=option)


@torch.no_grad()
def test_a_head_that_does_not_learn_refuses_what_one_has_learned() -> None:
    plain, x = small("transformer"), tokens(1, 6)
    state = learning("transformer")(x).state
    with pytest.raises(ConfigError, match=r"state\.head: .* this model's head does not learn"):
        plain(x, state)
