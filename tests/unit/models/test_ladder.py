"""Seven small classifiers: parameter counts, formulas, what they can and cannot tell apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nl.config import ConfigError, structure
from nl.config.groups import ModelConfig
from nl.models.ladder import NETWORKS, LadderModelConfig, sinusoids

ORDER = (
    "logreg",
    "mlp",
    "temporal",
    "self_attention",
    "singlelayer_transformer",
    "bahdanau_attention",
    "multilayer_transformer",
)
COUNTS = {
    (5, 2): (11, 193, 54, 337, 1219, 354, 23457),
    (5, 4): (21, 353, 86, 369, 1253, 386, 23521),
    (5, 12): (61, 993, 214, 497, 1389, 514, 23777),
    (8, 12): (97, 1569, 217, 497, 1389, 514, 23777),
    (11, 12): (133, 2145, 220, 497, 1389, 514, 23777),
}
LEGACY = {2: 1155, 4: 1189, 12: 1325}
"""F -> parameters of the earlier singlelayer_transformer: two norms fewer."""


def built(network: str, **fields: Any) -> Any:
    return LadderModelConfig(network=network, **fields).build().double()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", COUNTS)
def test_parameter_counts(shape: tuple[int, int]) -> None:
    models = [built(name, steps=shape[0], features=shape[1]) for name in ORDER]
    assert tuple(sum(p.numel() for p in m.parameters()) for m in models) == COUNTS[shape]


def test_the_older_single_layer_has_the_parameters_of_its_table() -> None:
    models = {f: built("singlelayer_transformer", features=f, legacy=True) for f in LEGACY}
    found = {f: sum(p.numel() for p in m.parameters()) for f, m in models.items()}
    assert found == LEGACY
    assert not models[2].may_skip_parameters


@pytest.mark.parametrize("legacy", [False, True])
def test_a_single_layer_by_hand(legacy: bool) -> None:
    model = built("singlelayer_transformer", steps=3, features=4, legacy=legacy)
    net, x = model.network, torch.randn(2, 3, 4, dtype=torch.float64)
    torch.nn.init.normal_(net.mark)
    torch.nn.init.normal_(net.attend.query.weight)
    y = torch.cat([net.mark.expand(2, 1, 4), x], dim=1) + 0.1 * sinusoids(4, 4)
    h = net.embed(y)
    seen = h if legacy else torch.nn.functional.layer_norm(h, (16,))  # weights are 1, biases 0
    attend = net.attend
    mark = attend.query(seen[:, 0])
    scores = torch.stack([(mark * attend.key(seen[:, t])).sum(-1) for t in range(4)], -1) / 4
    read = torch.einsum("bt,btd->bd", scores.softmax(-1), attend.value(seen))
    if not legacy:
        read = torch.nn.functional.layer_norm(h[:, 0] + read, (16,))
    wanted = net.out(torch.tanh(net.mix(read)))
    assert torch.allclose(model(x).pred, wanted)


@pytest.mark.parametrize(
    ("network", "legacy"), [*((n, False) for n in NETWORKS), ("singlelayer_transformer", True)]
)
def test_every_parameter_learns(network: str, legacy: bool) -> None:
    model = built(network, steps=5, features=3, legacy=legacy)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    assert model(x).pred.shape == (4, 1)
    assert torch.allclose(model(x).pred[2:3], model(x[2:3]).pred)
    model(x).pred.square().sum().backward()
    named = dict(model.named_parameters())
    still = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias of all keys or of all scores moves every score alike; keys wait for queries to move
    waits = ("key.bias", "scorer.bias")
    if network == "singlelayer_transformer" and not legacy:
        waits = (*waits, "key.weight")
        assert not model.network.attend.query.weight.any()
    assert set(still) <= {n for n in named if n.endswith(waits)}
    with pytest.raises(ValueError, match=r"\(4, 3\), the model has \(5, 3\)"):
        model(x[:, :4])


def test_the_older_score_leaves_the_scorer_alone() -> None:
    model = built("bahdanau_attention", legacy=True)
    assert model.may_skip_parameters
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    model(x).pred.sum().backward()
    assert model.network.scorer.weight.grad is None
    net = model.network
    h = torch.tanh(net.embed(x))
    share = h.mean(-1).softmax(-1)
    wanted = net.out(torch.tanh(net.mix(torch.einsum("bt,btd->bd", share, h))))
    assert torch.allclose(model(x).pred, wanted)


def test_tied_attention_by_loops() -> None:
    model = built("self_attention", steps=3, features=2)
    net, x = model.network, torch.randn(1, 3, 2, dtype=torch.float64)
    h = [torch.tanh(net.embed(step)) for step in x[0]]
    mixed = []
    for query in h:
        scores = torch.stack([query @ key / math.sqrt(16) for key in h]).softmax(0)
        mixed.append(sum(s * v for s, v in zip(scores, h, strict=True)))
    wanted = net.out(torch.tanh(net.mix(sum(mixed) / 3)))
    assert torch.allclose(model(x).pred[0], wanted)


def test_tokens_attend_to_tokens_out_of_context() -> None:
    model = built("self_attention", steps=3, features=4)
    found = model.vocabulary_attention()
    h = torch.tanh(model.network.embed.weight.T + model.network.embed.bias)
    for a in range(4):
        scores = torch.stack([h[a] @ h[b] / 4 for b in range(4)])
        assert torch.allclose(found[a], scores.softmax(0))
    assert built("mlp").vocabulary_attention() is None


def test_positions_are_seen_where_there_are_positions() -> None:
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    for network, blind in (
        ("self_attention", True),
        ("bahdanau_attention", True),
        ("singlelayer_transformer", False),
        ("multilayer_transformer", False),
    ):
        torch.manual_seed(0)
        model = built(network)
        with torch.no_grad():
            same = torch.allclose(model(x).pred, model(x.flip(1)).pred, atol=1e-9)
        assert same == blind, network


def test_attention_is_kept_for_pictures_outside_training_only() -> None:
    model = built("multilayer_transformer")
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    model(x)
    assert model.attention() == []
    model.eval()
    model(x)
    maps = model.attention()
    assert [m.shape for m in maps] == [(2, 4, 6, 6)] * 2
    assert torch.allclose(maps[0].sum(-1), torch.ones(2, 4, 6, dtype=torch.float64))
    assert built("logreg").attention() == []
    older = built("bahdanau_attention").eval()
    older(x)
    assert [m.shape for m in older.attention()] == [(2, 1, 1, 5)]


def test_the_last_map_and_the_logits_of_the_last_training_batch() -> None:
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    shapes = {
        "self_attention": [(2, 1, 5, 5)],
        "bahdanau_attention": [(2, 1, 1, 5)],
        "singlelayer_transformer": [(2, 1, 6, 6)],
        "multilayer_transformer": [(2, 4, 6, 6)] * 2,
    }
    for network in NETWORKS:
        model = built(network)
        assert model.final_linear().out_features == 1
        assert model.attention_logits() == []
        model(x)
        assert [logits.shape for logits in model.attention_logits()] == shapes.get(network, [])
        kept = [logits.clone() for logits in model.attention_logits()]
        model.eval()
        model(2 * x)
        assert all(torch.equal(a, b) for a, b in zip(kept, model.attention_logits(), strict=True))
        model(x)
        for logits, seen in zip(kept, model.attention(), strict=True):
            assert torch.allclose(logits.softmax(-1), seen)


def test_sinusoids_by_hand() -> None:
    table = sinusoids(4, 5)
    for p in range(4):
        for i in range(5):
            angle = p / 10000 ** (2 * (i // 2) / 5)
            wanted = math.sin(angle) if i % 2 == 0 else math.cos(angle)
            assert table[p, i].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"network": "mpl"}, "model.network: unknown 'mpl'"),
        ({"width": 0}, "model.width: 0; must be >= 1"),
        ({"network": "multilayer_transformer", "width": 30}, "attention_heads: 4; must divide"),
        ({"network": "mlp", "legacy": True}, "legacy: True; mlp has none, only singlelayer"),
        ({"steps": 0}, "model.steps: 0; must be >= 1"),
        ({"network": "mlp", "blocks": 5}, "blocks: 5; mlp has none, only multilayer_transformer"),
        ({"network": "logreg", "width": 8}, "width: 8; logreg has none"),
    ],
)
def test_bad_settings(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        structure(ModelConfig, {"kind": "ladder", **fields}, "model")
