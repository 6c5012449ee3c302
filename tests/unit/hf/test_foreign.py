"""Checkpoints of Llama, GPT-NeoX and GPT-2, made by transformers, become ours with equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nl
import nl.assembly
from nl.cli import main
from nl.config import ConfigError
from nl.models.foreign import convert

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
NEOX = LLAMA | {"intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 70, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA | {"rms_norm_eps": 1e-5, "rope_theta": 5000.0}),
    "llama, shared key heads": ("Llama", LLAMA | {"num_key_value_heads": 2}),
    "llama, biases, tied": (
        "Llama",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "pythia": ("GPTNeoX", NEOX | {"rotary_pct": 0.25}),
    "pythia, sequential": ("GPTNeoX", NEOX | {"use_parallel_residual": False}),
    "gpt2": ("GPT2", GPT2),
}


def made(family: str, options: dict[str, Any], folder: Path) -> Any:
    """A model of transformers with random weights, also where they begin at zero, saved."""
    config = getattr(transformers, f"{family}Config")(**options)
    kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tokens(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, 70, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_equal(case: str, tmp_path: Path) -> None:
    theirs = made(*CASES[case], tmp_path / "theirs")
    target = tmp_path / "ours.safetensors"
    assert main(["import", str(target), "--from", f"hf:{tmp_path / 'theirs'}"]) == 0
    ours = nl.load_model(target)
    want = theirs(tokens()).logits
    torch.testing.assert_close(ours(tokens()).pred, want, atol=1e-5, rtol=0)
    first = ours(tokens()[:, :17])
    rest = ours(tokens()[:, 17:], first.state)
    both = torch.cat([first.pred, rest.pred], 1)
    torch.testing.assert_close(both, want, atol=1e-5, rtol=0)
    untied = 70 * 32 if theirs.config.tie_word_embeddings else 0
    count = sum(p.numel() for p in theirs.parameters()) + untied
    assert sum(p.numel() for p in ours.parameters()) == count


def test_it_learns(tmp_path: Path) -> None:
    """Gradients equal theirs, so that it trains on as they would."""
    theirs = made(*CASES["pythia"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model, named = convert(config, dict(theirs.state_dict()))
    ours = model.build()
    ours.load_state_dict(named)
    theirs(tokens(), labels=tokens()).loss.backward()
    ours.nll(tokens()[:, :-1], tokens()[:, 1:].clone())[0].mean().backward()
    want = theirs.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.grad
    torch.testing.assert_close(ours.blocks[0].mlp.into.weight.grad, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; only silu can be read"),
        ("llama", {"head_dim": 16}, "head_dim is 16"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("llama", {"model_type": "mamba"}, "model_type 'mamba'; these can be read: llama,"),
        ("llama", {"num_hidden_layers": 1}, "has no counterpart here"),
        ("llama", {"num_hidden_layers": 3}, r"layers\.2.*not in the checkpoint"),
        ("pythia", {"hidden_act": "relu"}, "activation 'relu'; these can be read: gelu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_is_different_is_refused(
    case: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = made(*CASES[case], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    with pytest.raises(ConfigError, match=message):
        convert(config, dict(model.state_dict()))


def test_whose_head_is_read(tmp_path: Path) -> None:
    model = made(*CASES["llama"], tmp_path)
    config, named = json.loads((tmp_path / "config.json").read_text()), dict(model.state_dict())
    table = named["model.embed_tokens.weight"]
    assert not torch.equal(named["lm_head.weight"], table)
    for tied, want in ((False, named["lm_head.weight"]), (True, table)):
        _, ours = convert(config | {"tie_word_embeddings": tied}, dict(named))
        assert torch.equal(ours["head.weight"], want)
    del named["lm_head.weight"]
    with pytest.raises(ConfigError, match=r"lm_head.weight: not in the checkpoint, and tie_word"):
        convert(config | {"tie_word_embeddings": False}, dict(named))


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(*CASES["gpt2"], tmp_path / "m")
    target = str(tmp_path / "x.safetensors")

    def refused(message: str, *arguments: str) -> None:
        assert main(["import", target, *arguments]) == 2
        assert message in capsys.readouterr().err

    refused("give hf:<directory>", "--from", str(tmp_path / "m"))
    refused("give hf:<directory>", "--from", "hf:nowhere")
    (tmp_path / "m/config.json").write_text("{")
    refused("not readable JSON", "--from", f"hf:{tmp_path / 'm'}")
    (tmp_path / "m/config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/pytorch_model.bin")
    refused("Pickles (.bin) are not read", "--from", f"hf:{tmp_path / 'm'}")


def test_learned_positions_end(tmp_path: Path) -> None:
    made(*CASES["gpt2"], tmp_path / "m")
    target = tmp_path / "x.safetensors"
    assert main(["import", str(target), "--from", f"hf:{tmp_path / 'm'}"]) == 0
    ours = nl.load_model(target)
    state = ours(tokens(1, 40)).state
    assert ours(tokens(1, 8), state).pred.shape == (1, 8, 70)
    with pytest.raises(ConfigError, match=r"position 49, but model\.positions=learned knows 48"):
        ours(tokens(1, 9), state)
    with pytest.raises(ConfigError, match=r"stream\.documents=ignore"):
        ours(tokens(1, 9), starts=((0,),))


@pytest.mark.parametrize("case", CASES)
def test_mlps_become_levels(case: str, tmp_path: Path) -> None:
    """The sum of the levels is the MLP until they are written; then they learn."""
    made(*CASES[case], tmp_path / "m")
    plain, stacked = tmp_path / "plain.safetensors", tmp_path / "stacked.safetensors"
    given = ["--from", f"hf:{tmp_path / 'm'}"]
    assert main(["import", str(plain), *given]) == 0
    levels = ["--as", "hope_attention", "--levels", "16", "32"]
    assert main(["import", str(stacked), *given, *levels]) == 0
    before, after = nl.load_model(plain), nl.load_model(stacked)
    assert after.config.kinds == ("hope_attention",)
    x = tokens()
    with torch.no_grad():
        want = before(x).pred
        torch.testing.assert_close(after(x, write=False).pred, want, atol=1e-5, rtol=0)
        read = after(x).pred
    torch.testing.assert_close(read[:, :16], want[:, :16], atol=1e-5, rtol=0)
    assert (read[:, 16:] - want[:, 16:]).abs().max() > 1e-4
    targets = x[:, 1:].clone()
    start = before.nll(x[:, :-1], targets)[0].mean()
    optimizer = torch.optim.AdamW(after.parameters(), lr=3e-3)
    for _ in range(12):
        loss = after.nll(x[:, :-1], targets, keep=False)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < start - 0.3


def test_levels_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(*CASES["llama"], tmp_path / "m")
    given = ["import", str(tmp_path / "x.safetensors"), "--from", f"hf:{tmp_path / 'm'}"]
    five = [str(16 * 2**i) for i in range(5)]
    assert main([*given, "--as", "hope_attention", "--levels", *five]) == 2
    assert "5 levels cannot share 56 hidden units" in capsys.readouterr().err
    assert main([*given, "--levels", "16"]) == 2
    assert "add --as hope_attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "levels"),
    [
        ("model.dim=5", False),
        ("model.cms.rate=2", False),
        ("model=hope_smoke", True),
        ("model.cms.hidden=8", True),
    ],
)
def test_what_the_checkpoint_decides_cannot_be_set(
    override: str, levels: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(*CASES["llama"], tmp_path / "m")
    given = ["import", str(tmp_path / "x.safetensors"), "--from", f"hf:{tmp_path / 'm'}"]
    more = ["--as", "hope_attention", "--levels", "16", "32"] if levels else []
    assert main([*given, "--set", override, *more]) == 2
    assert f"{override}: the checkpoint decides it" in capsys.readouterr().err
    assert main([*given, "--set", "model.cms.rate=0.5", "--as", "hope_attention"]) == 0
    assert nl.load_model(tmp_path / "x.safetensors").config.cms.rate == 0.5
