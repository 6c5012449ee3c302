"""A model leaves for transformers and comes back: weights, logits, text, padding, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nl
from nl.assembly import run_config
from nl.cli import main
from nl.config import ConfigError
from nl.config.hydra import compose
from nl.dist.hf_folder import read_hf_folder, write_hf_folder

hf = pytest.importorskip("nl.hf")

BLOCKS = ("transformer", "hope_attention", "hope_selfmod", "titan_mac", "gated_delta")
VOCABULARY = 90


def run_of(block: str) -> Any:
    sizes = ["model.dim=32", "model.layers=2", f"model.vocab_size={VOCABULARY}"]
    small = ["model.attention.heads=2", "model.cms.periods=[16,64]", "model.selfmod.head_size=16"]
    small += ["model.selfmod.hidden=16", "model.selfmod.period=16", "model.titan.head_size=16"]
    return run_config(compose("pilot_smoke", [f"model.block={block}", *sizes, *small]))


def built(block: str) -> tuple[Any, Any]:
    """A run and its model with memories that matter."""
    torch.manual_seed(3)
    run = run_of(block)
    model = run.model.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return run, model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, length), generator=random)


@pytest.fixture(params=BLOCKS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """Ours, and what transformers makes of its directory."""
    run, model = built(request.param)
    write_hf_folder(model.state_dict(), run, tmp_path)
    from transformers import AutoModelForCausalLM

    return model, AutoModelForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_weights_logits_and_greedy_text_are_equal(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for name, value in ours.state_dict().items():
        assert torch.equal(theirs.model.state_dict()[name], value), name
    x = tokens(2, 37)
    assert torch.equal(theirs(x).logits, ours(x).pred)
    assert torch.equal(theirs(x, logits_to_keep=3).logits, ours(x).pred[:, -3:])
    theirs.config.write = False
    assert torch.equal(theirs(x).logits, ours(x, write=False).pred)
    theirs.config.write = True
    ones = torch.ones_like(x)
    made = theirs.generate(
        x, attention_mask=ones, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert torch.equal(made[:, 37:], ours.generate(x, max_new_tokens=12, temperature=0)[0])


@torch.no_grad()
def test_padded_rows_get_what_they_would_get_alone(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    x, mask = tokens(3, 30), torch.ones(3, 30, dtype=torch.long)
    mask[0, :11] = mask[2, :11] = 0
    made = theirs.generate(
        x, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    both, _ = ours.generate(x[[0, 2], 11:], max_new_tokens=9, temperature=0)
    alone, _ = ours.generate(x[1:2], max_new_tokens=9, temperature=0)
    assert torch.equal(made[[0, 2], 30:], both)
    assert torch.equal(made[1:2, 30:], alone)
    right = torch.ones(2, 30, dtype=torch.long)
    right[1, 20:] = 0
    logits = theirs(x[:2], attention_mask=right).logits
    torch.testing.assert_close(logits[1:, :20], ours(x[1:2, :20]).pred)
    assert logits[1, 20:].abs().max() == 0


@torch.no_grad()
def test_beams_follow_their_rows(pair: tuple[Any, Any]) -> None:
    _, theirs = pair
    x, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, :5] = 0
    common = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": 3, "pad_token_id": 0}
    cached = theirs.generate(x, **common)
    assert torch.equal(cached, theirs.generate(x, use_cache=False, **common))


def test_loss_and_gradients(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    x = tokens(2, 24)
    loss = theirs(x, labels=x).loss
    nats, _ = ours.nll(x[:, :-1], x[:, 1:].clone())
    torch.testing.assert_close(loss, nats.mean())
    labels = x.clone()
    labels[0, :5] = -100
    nats[0, :4] = 0  # memories are taught by the tokens, scored or not
    torch.testing.assert_close(theirs(x, labels=labels).loss, nats.sum() / 42)
    loss.backward()
    assert theirs.model.head.weight.grad.abs().sum() > 0


def test_back_from_transformers(tmp_path: Path) -> None:
    run, model = built("hope_selfmod")
    write_hf_folder(model.state_dict(), run, tmp_path / "a")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert (tmp_path / "b/model.safetensors.index.json").is_file()
    for folder in ("a", "b"):
        again = nl.load_model(tmp_path / folder)
        assert run_config(read_hf_folder(tmp_path / folder)[0]) == run
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


def test_remote_code_where_only_transformers_is_imported(tmp_path: Path) -> None:
    run, model = built("hope_attention")
    write_hf_folder(model.state_dict(), run, tmp_path / "m")
    text = (
        "import sys; from transformers import AutoModelForCausalLM as Auto\n"
        "assert 'nl' not in sys.modules\n"
        f"m = Auto.from_pretrained({str(tmp_path / 'm')!r}, trust_remote_code=True)\n"
        "print(type(m).__name__, sum(p.numel() for p in m.parameters()))\n"
    )
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["NLForCausalLM", str(sum(p.numel() for p in model.parameters()))]


def test_refusals(tmp_path: Path) -> None:
    run, model = built("transformer")
    write_hf_folder(model.state_dict(), run, tmp_path)
    theirs = hf.NLForCausalLM.from_pretrained(tmp_path)
    x = tokens(2, 8)
    gap = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [1] * 8])
    for arguments, message in (
        ({"input_ids": x, "attention_mask": gap}, "row 0 has a gap"),
        ({"input_ids": x, "attention_mask": torch.zeros_like(x)}, "row 0 has no token"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds: not available"),
        ({"input_ids": x, "output_hidden_states": True}, "output_hidden_states: not available"),
        ({"input_ids": x, "return_dict": False}, "return_dict: false"),
        ({"input_ids": x, "cache_params": 1}, "cache_params: not available"),
        ({}, "input_ids: missing"),
    ):
        with pytest.raises(ConfigError, match=message):
            theirs(**arguments)
    with pytest.raises(ConfigError, match="cannot be wound back"):
        theirs(x).past_key_values.crop(3)
    named = load_file(tmp_path / "model.safetensors")
    changed = {k: v.clone() for k, v in named.items()}
    changed["model.head.weight"][0, 0] += 1
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not those of nl_sha256"):
        nl.load_model(tmp_path)
    del changed["model.norm.weight"]
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"missing_keys: model\.norm\.weight"):
        hf.NLForCausalLM.from_pretrained(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    run, model = built("transformer")
    write_hf_folder(model.state_dict(), run, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="no file beside it"):
        nl.load_model(tmp_path)


def test_export_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nl.dist.export import export

    monkeypatch.chdir(tmp_path)  # data/stdlib has a tokenizer of another vocabulary
    run, model = built("hope_attention")
    file, folder = tmp_path / "m.safetensors", tmp_path / "out"
    export(model.state_dict(), run, file)
    assert main(["export", str(file), str(folder), "--to", "hf"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters" in printed
    card = (folder / "README.md").read_text()
    assert "hope_attention, 2 layers of width 32" in card
    again = nl.load_model(folder)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    for arguments, message in (
        ([str(file), str(folder), "--to", "hf"], "is not empty"),
        ([str(file), str(file), "--to", "hf", "--force"], "writes a directory"),
        ([str(file), str(tmp_path / "x.safetensors"), "--tokenizer", "bytes"], "--to hf"),
        ([str(file), str(tmp_path / "y"), "--to", "hf", "--tokenizer", "bytes"], "259 ids"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["import", str(tmp_path / "z.safetensors"), "--from", f"hf:{folder}"]) == 2
    assert "a model of nl already; nl eval, generate, stream" in capsys.readouterr().err


def test_a_tokenizer_json_goes_along_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer, models

    from nl.dist.export import export

    pieces = {piece: i for i, piece in enumerate(["<s>", "</s>", "<pad>", "a", "b"])}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    made = Tokenizer(models.WordLevel(pieces, unk_token="a"))
    made.add_special_tokens(["<s>", "</s>", "<pad>"])
    made.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    run, model = built("transformer")
    export(model.state_dict(), run, tmp_path / "m.safetensors")
    given = ["export", str(tmp_path / "m.safetensors"), str(tmp_path / "out"), "--to", "hf"]
    assert main([*given, "--tokenizer", str(folder / "tokenizer.json")]) == 0
    assert "tokenizer.json, as it is" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 1
