"""The inspection counts what is there and finds what was planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nl.config import ConfigError, unstructure
from nl.data.documents import SCHEMA, CorpusManifest, Document, TextFile, encode_jsonl
from nl.data.files import sha256_file, write_json
from nl.data.prep import inspection
from nl.data.prep.inspection import describe, inspect_data
from nl.data.prep.shard import shard_corpus

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "data" / "inspect_shards.py"


def made(root: Path, texts: dict[str, list[str]]) -> Path:
    splits: dict[str, dict[str, tuple[TextFile, ...]]] = {}
    for split, rows in texts.items():
        path = root / "corpus" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jsonl([Document(t, "") for t in rows]))
        size = sum(len(t.encode()) for t in rows)
        info = TextFile(file=path.name, documents=len(rows), bytes=size, sha256=sha256_file(path))
        splits[split] = {"text": (info,)}
    manifest = CorpusManifest(schema=SCHEMA, name="made", splits=splits)
    write_json(root / "corpus" / "manifest.json", unstructure(manifest))
    shard_corpus(root / "corpus", "bytes", root / "data", shard_tokens=200)
    return root / "data"


def by_place(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["where"]: row for row in report["rows"]}


def test_counts_and_lines(tiny: Path) -> None:
    report = inspect_data(tiny, samples=2)
    assert report["problems"] == []
    lines = list(describe(report, tiny, unigram=True))
    assert lines[0].startswith("tiny: vocabulary 259")
    assert sum("nats per token" in line for line in lines) == 4
    assert any("'code " in line for line in lines)
    assert "as the manifest says" in lines[-1]
    for row in report["rows"]:
        assert row["bytes"] + row["documents"] == row["tokens"]
        assert row["eos_rate"] == row["documents"] / row["tokens"]
        assert sum(row["histogram"].values()) == row["documents"]
        assert (row["repeated_documents"], row["documents_without_eos"]) == (0, 0)
        assert row["unknown_rate"] == 0
        assert len(row["samples"]) == 2
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("sampled", [False, True])
def test_planted_repetitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    texts = [f"document {n} is like no other" for n in range(2000)]
    planted = {"train": texts[:1500] + texts[:300], "val": texts[1500:], "test": []}
    data = made(tmp_path, planted)
    if sampled:
        monkeypatch.setattr(inspection, "HASHED", 600)
    report = inspect_data(data)
    row = by_place(report)["train/text"]
    assert report["problems"] == []
    if not sampled:
        assert (row["repeated_documents"], row["hashed_documents"]) == (300, 1800)
        assert by_place(report)["val/text"]["repeated_documents"] == 0
    else:
        assert row["hashed_documents"] < 900
        rate = row["repeated_documents"] / row["hashed_documents"]
        assert abs(rate - 300 / 1800) < 0.06, "the share is that of the whole"


def test_a_held_out_document_in_train_is_wrong(tmp_path: Path) -> None:
    texts = [f"document {n}" for n in range(60)]
    data = made(tmp_path, {"train": texts[:50], "val": texts[45:]})
    report = inspect_data(data)
    assert report["problems"] == ["val/text: 5 documents are in train, too."]
    assert by_place(report)["train/text"]["also_in"] == {"val": 5}


def test_repeated_windows(tmp_path: Path) -> None:
    block = "".join(chr(97 + n % 26) for n in range(64))
    data = made(tmp_path, {"train": [block * 2 + "".join(map(chr, range(33, 97)))]})
    row = by_place(inspect_data(data, window=64))["train/text"]
    assert (row["repeated_windows"], row["hashed_windows"]) == (1, 3)
    with pytest.raises(ConfigError, match="--window: 0"):
        inspect_data(data, window=0)


def test_damage_is_said_and_ends_with_code_1(own_tiny: Path) -> None:
    shard = own_tiny / "train/code/shard_00000.bin"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    (own_tiny / "val/prose/shard_00000.bin").unlink()
    call = [sys.executable, str(SCRIPT), str(own_tiny), "--samples", "0"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG: ")]
    assert "shard_00000.bin: sha256 is" in wrong[0]
    assert "damaged block 0" in wrong[0]
    assert any("val/prose: shards hold" in line for line in wrong)
    assert any("no such file" in line for line in wrong)
    done = subprocess.run(
        [*call, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["problems"]) == len(wrong)


def test_ends_that_do_not_cut_the_tokens_are_wrong(tiny: Path, own_tiny: Path) -> None:
    """Signed again by somebody who changed the index: digests hold, counts do not."""
    from nl.data.manifest import ShardInfo, read_manifest
    from nl.data.shards import open_shard, write_shard

    manifest = read_manifest(own_tiny)
    record: ShardInfo = manifest.splits["test"]["code"].shards[0]
    shard = open_shard(own_tiny, record, manifest.tokenizer, False)
    ends = np.array(shard.ends)
    ends[-1] -= 1
    new = write_shard(own_tiny / record.file, np.array(shard.tokens), ends, manifest.tokenizer)
    data = json.loads((own_tiny / "manifest.json").read_text())
    row = data["splits"]["test"]["code"]["shards"][0]
    row.update(sha256=new.sha256, blocks=new.blocks)
    write_json(own_tiny / "manifest.json", data)
    problems = inspect_data(own_tiny)["problems"]
    assert any("its document ends do not cut its tokens" in problem for problem in problems)


def test_a_tokenizer_that_is_gone_leaves_the_counts(tmp_path: Path) -> None:
    from nl.data.prep.import_shards import ImportOptions, import_shards
    from nl.data.readers import parse_input

    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.int32).reshape(4, 16))
    (tmp_path / "old.model").write_bytes(b"not for us")
    model = str(tmp_path / "old.model")
    options = ImportOptions(tokenizer_path=model, vocab_size=99, eos_id=9)
    import_shards([parse_input(str(tmp_path / "a.npy"), "npy")], tmp_path / "data", options)
    report = inspect_data(tmp_path / "data")
    row = by_place(report)["train/text"]
    assert (row["documents"], row["tokens"], row["eos_rate"], row["samples"]) == (2, 64, None, [])
    assert "texts are not decoded" in report["note"]
    assert "texts are not decoded" in "\n".join(describe(report, tmp_path / "data", unigram=False))
