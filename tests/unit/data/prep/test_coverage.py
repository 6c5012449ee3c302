"""HF tokenizers, exports and what a check of a tokenizer says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.files import write_json
from nl.data.prep.coverage import regressions, report, table_lines
from nl.data.prep.hf_export import export_hf
from nl.data.prep.train_tokenizer import TokenizerOptions, fit
from nl.data.tokenizer import (
    PROBES,
    SPACE_MARK,
    copy_tokenizer,
    load_tokenizer,
    losses,
    tokenizer_file,
)

TEXTS = [topics[name] for name in sorted(topics)[:20]]
DOCUMENTS = [Document(text, str(i)) for i, text in enumerate(TEXTS)]
SCRIPT = Path(__file__).resolve().parents[4] / "scripts/data/check_tokenizer.py"


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    path.write_bytes(fit(TEXTS, TokenizerOptions(vocab_size=600, model_type=request.param)))
    return path


def test_export_is_nearly_equal_and_lossless(model: Path, tmp_path: Path) -> None:
    result = export_hf(model, tmp_path, DOCUMENTS)
    assert result.lines > 500
    assert result.rate > 0.99
    assert result.round_trips == result.documents == len(TEXTS)
    log = json.loads((tmp_path / "export_log.json").read_text())
    assert log["equality_rate"] == round(result.rate, 6)
    ours, theirs = load_tokenizer(model), load_tokenizer(tmp_path / "tokenizer.json")
    assert theirs.kind == "hf"
    assert theirs.vocab_size == ours.vocab_size
    assert (theirs.eos_id, theirs.pad_id) == (ours.eos_id, ours.pad_id)
    assert theirs.bos_id == ours.eos_id, "what stands before a document in training"
    assert theirs.encode(TEXTS[:2]) == [theirs.encode(t) for t in TEXTS[:2]]
    assert losses(ours) == []
    assert losses(theirs) == [t for t in PROBES if SPACE_MARK in t], "the mark becomes a blank"
    assert theirs.decode([theirs.bos_id, *theirs.encode("a b"), theirs.eos_id]) == "a b"
    with pytest.raises(ValueError, match="token id 600 is outside"):
        theirs.decode([600])
    with pytest.raises(ConfigError, match="is hf, only SentencePiece"):
        export_hf(tmp_path / "tokenizer.json", tmp_path, [])


def test_export_opens_in_transformers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    export_hf(model, tmp_path, DOCUMENTS[:1])
    there = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "two  blanks\n    indented caf\u00e9"
    ids = there(text, add_special_tokens=False)["input_ids"]
    assert ids == load_tokenizer(model).encode(text)
    assert there.decode(ids) == text
    assert there.eos_token_id == 3


def test_foreign_models_are_not_exported(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(TEXTS).splitlines()),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=400,
        pad_id=3,
        minloglevel=2,
    )
    foreign = load_tokenizer(tmp_path / "foreign.model")
    assert " two  blanks " in losses(foreign)
    with pytest.raises(ConfigError, match="normalises text or adds a blank"):
        export_hf(tmp_path / "foreign.model", tmp_path, [])


def byte_level(path: Path, special: list[str]) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.save(str(path))
    return path


def test_tokenizer_json_of_others(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "tokenizer.json", ["<|endoftext|>", "<|bos|>"])
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": {"content": "<|bos|>"}})
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 1, 0)
    assert losses(tokenizer) == []
    text = "<|endoftext|> in a text is text"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "data").mkdir()
    copy_tokenizer(path, tmp_path / "data")
    copy = load_tokenizer(tmp_path / "data/tokenizer.json", sha256=tokenizer.sha256)
    assert (copy.bos_id, tokenizer_file(copy)) == (1, "tokenizer.json")
    with pytest.raises(ConfigError, match="tokenizer sha256 is"):
        load_tokenizer(path, sha256="0" * 64)


def test_unknown_special_tokens_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "tokenizer.json", ["<end>"])
    with pytest.raises(ConfigError, match=r"no eos_token, bos_token, pad_token known; name them"):
        load_tokenizer(path)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    with pytest.raises(ConfigError, match=r"no eos_token \('</s>' is not in its vocabulary\), bos"):
        load_tokenizer(path)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    write_json(tmp_path / "tokenizer_config.json", names)
    assert load_tokenizer(path).eos_id == 0
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"not a tokenizer.json; it has no 'model'"):
        load_tokenizer(path)


def test_report(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    found = report(tokenizer, {"a": DOCUMENTS[:5], "b": [Document("\u6f22 x x", "")]}, "p")
    a, b = found["domains"]["a"], found["domains"]["b"]
    assert a["documents"] == 5
    assert a["bytes"] == sum(len(t.encode()) for t in TEXTS[:5])
    assert a["tokens"] == sum(len(tokenizer.encode(t)) for t in TEXTS[:5])
    assert a["bytes_per_token"] == pytest.approx(a["bytes"] / a["tokens"], rel=1e-5)
    words = " ".join(TEXTS[:5]).split()
    lengths = [len(tokenizer.encode(" " + w)) for w in words]
    assert a["avg_tokens_per_word"] == pytest.approx(sum(lengths) / len(words), rel=1e-5)
    assert a["pct_single_token_words"] == pytest.approx(lengths.count(1) / len(words), rel=1e-5)
    assert sum(a["piece_length_histogram"].values()) <= len(words)
    assert b["byte_fallback_rate"] == pytest.approx(3 / b["tokens"], rel=1e-5)
    assert found["all"]["documents"] == 6
    assert found["all"]["documents_changed_by_round_trip"] == 0
    assert len(list(table_lines(found))) == 4


def test_baseline(model: Path, tmp_path: Path) -> None:
    found = report(load_tokenizer(model), {"a": DOCUMENTS[:5]}, "p")
    write_json(tmp_path / "old.json", found)
    limits = {
        "avg_tokens_per_word": 0.05,
        "pct_single_token_words": 0.02,
        "pct_two_or_less_tokens_words": 0.02,
    }
    assert regressions(found, tmp_path / "old.json", limits) == []
    better: dict[str, Any] = dict(found["all"])
    better["avg_tokens_per_word"] -= 0.06
    better["pct_single_token_words"] += 0.01
    write_json(tmp_path / "old.json", better)
    (line,) = regressions(found, tmp_path / "old.json", limits)
    assert line.startswith("avg_tokens_per_word")
    write_json(tmp_path / "old.json", {})
    with pytest.raises(ConfigError, match="no number 'avg_tokens_per_word'"):
        regressions(found, tmp_path / "old.json", limits)


def test_command(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(TEXTS[:3]))
    flags = ["--tokenizer-path", str(model), "--sample-file", str(tmp_path / "t.txt")]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *flags, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    done = call("--output", str(tmp_path / "o.json"), "--metadata-json", str(tmp_path / "m.json"))
    assert done.returncode == 0, done.stderr
    digest = load_tokenizer(model).sha256
    assert done.stdout.splitlines()[0] == f"sha256 {digest}"
    assert json.loads((tmp_path / "m.json").read_text())["sha256"] == digest
    worse = json.loads((tmp_path / "o.json").read_text())
    worse["all"]["pct_single_token_words"] += 0.5
    write_json(tmp_path / "old.json", worse)
    done = call("--quiet", "--baseline", str(tmp_path / "old.json"))
    assert done.returncode == 1
    assert "worse than the baseline: pct_single_token_words" in done.stderr
    assert call("--expected-sha256", "0" * 64).returncode == 1
