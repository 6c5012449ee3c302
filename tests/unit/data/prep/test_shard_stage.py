"""Shards follow from a text file and the options alone; what was done before a kill is kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from nl.config import ConfigError, unstructure
from nl.data.documents import SCHEMA, CorpusManifest, Document, TextFile, encode_jsonl
from nl.data.files import sha256_file, write_json
from nl.data.held_out import DataCorpus
from nl.data.manifest import DataManifest, documents, read_manifest
from nl.data.prep import shard as stage
from nl.data.prep.engine import Executor
from nl.data.prep.shard import shard_corpus
from nl.data.prep.shard_command import add_shard_flags, shard_command
from nl.data.shard_stream import ShardStreamConfig
from nl.data.shards import open_shard
from nl.data.tokenizer import ByteTokenizer

Texts = dict[str, dict[str, list[list[str]]]]
"""split -> domain -> parts -> documents."""


def corpus_of(root: Path, texts: Texts) -> Path:
    splits: dict[str, dict[str, tuple[TextFile, ...]]] = {}
    for split, domains in texts.items():
        splits[split] = {}
        for domain, parts in domains.items():
            files = []
            for number, part in enumerate(parts):
                name = f"{split}/{domain}/part_{number:05d}.jsonl"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                rows = [Document(t, f"{domain}:{i}") for i, t in enumerate(part)]
                (root / name).write_bytes(encode_jsonl(rows))
                size, digest = sum(len(t.encode()) for t in part), sha256_file(root / name)
                files.append(TextFile(file=name, documents=len(part), bytes=size, sha256=digest))
            splits[split][domain] = tuple(files)
    manifest = CorpusManifest(schema=SCHEMA, name="made", splits=splits)
    write_json(root / "manifest.json", unstructure(manifest))
    return root


def texts(parts: int = 4) -> Texts:
    def part(domain: str, number: int) -> list[str]:
        return [f"{domain} {number} {i} " + "\u00e9x" * (i % 7 * 30) for i in range(20)]

    train = {d: [part(d, n) for n in range(parts)] for d in ("code", "prose")}
    return {"train": train, "val": {"code": [part("vc", 0)], "prose": [[]]}}


def shard_files(root: Path, manifest: DataManifest) -> dict[str, bytes]:
    domains = [d for split in manifest.splits.values() for d in split.values()]
    return {s.file: (root / s.file).read_bytes() for d in domains for s in d.shards}


@pytest.mark.parametrize("stop", [0, 5, 8])
def test_a_killed_call_is_taken_up_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """It dies in the work on file ``stop``, or where shards are put in place."""
    corpus = corpus_of(tmp_path / "corpus", texts())
    whole, _ = shard_corpus(corpus, "bytes", tmp_path / "whole", shard_tokens=900)
    done: list[int] = []

    class KilledError(Exception):
        pass

    def part(*args: object) -> object:
        if len(done) == stop:
            raise KilledError
        done.append(1)
        return real(*args)  # type: ignore[arg-type]

    def move(*args: object) -> None:
        if stop == 8:
            monkeypatch.setattr(stage, "move_into", real_move)
            real_move(*args)  # type: ignore[arg-type]
            raise KilledError

    real, real_move = stage.shard_part, stage.move_into
    monkeypatch.setattr(stage, "shard_part", part)
    monkeypatch.setattr(stage, "move_into", move)
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        shard_corpus(corpus, "bytes", out, shard_tokens=900)
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(stage, "move_into", real_move)
    before, stop = len(done), -1
    again, written = shard_corpus(corpus, "bytes", out, shard_tokens=900)
    assert written
    assert len(done) == 10, "no file is tokenized twice"
    assert before < 10
    assert shard_files(out, again) == shard_files(tmp_path / "whole", whole)
    assert unstructure(again.splits) == unstructure(whole.splits)
    left = [".lock", "manifest.json", "stage.json", "train", "val"]
    assert sorted(p.name for p in out.iterdir()) == left
    log = json.loads((out / "stage.json").read_text())
    assert log["counts"]["documents_in"] == log["counts"]["documents_out"] == 180
    assert log["counts"]["tokens_out"] == sum(
        d.tokens for s in again.splits.values() for d in s.values()
    )


def test_other_options_use_nothing_of_a_killed_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts())
    real = stage._publish
    monkeypatch.setattr(stage, "_publish", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shard_corpus(corpus, "bytes", tmp_path / "out", shard_tokens=900)
    monkeypatch.setattr(stage, "_publish", real)
    manifest, _ = shard_corpus(corpus, "bytes", tmp_path / "out", shard_tokens=500, eos_id=256)
    fresh, _ = shard_corpus(corpus, "bytes", tmp_path / "fresh", shard_tokens=500, eos_id=256)
    assert shard_files(tmp_path / "out", manifest) == shard_files(tmp_path / "fresh", fresh)


def test_a_shard_of_a_file_does_not_depend_on_the_others(tmp_path: Path) -> None:
    whole = corpus_of(tmp_path / "a", texts(4))
    first = corpus_of(tmp_path / "b", texts(2))
    one, _ = shard_corpus(whole, "bytes", tmp_path / "one", shard_tokens=900)
    two, _ = shard_corpus(first, "bytes", tmp_path / "two", shard_tokens=900)
    many, few = shard_files(tmp_path / "one", one), shard_files(tmp_path / "two", two)
    assert set(few) < set(many)
    assert all(many[name] == data for name, data in few.items())
    names = [s.file for s in one.splits["train"]["code"].shards]
    assert names[:3] == [
        "train/code/shard_00000.bin",
        "train/code/shard_00000_001.bin",
        "train/code/shard_00000_002.bin",
    ]
    assert names == sorted(names)


def test_two_workers_give_the_bytes_of_one(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts())
    one, _ = shard_corpus(corpus, "bytes", tmp_path / "one", shard_tokens=900)
    executor = Executor(workers=2)
    two, _ = shard_corpus(corpus, "bytes", tmp_path / "two", shard_tokens=900, executor=executor)
    assert unstructure(one.splits) == unstructure(two.splits)
    assert shard_files(tmp_path / "one", one) == shard_files(tmp_path / "two", two)


def test_tokens_are_those_of_the_documents(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts())
    manifest, _ = shard_corpus(corpus, "bytes", tmp_path / "out", shard_tokens=900, eos_id=257)
    domain = manifest.splits["train"]["prose"]
    opened = [open_shard(tmp_path / "out", s, manifest.tokenizer, True) for s in domain.shards]
    tokens = np.concatenate([s.tokens for s in opened])
    wanted: list[int] = []
    for document in documents(tmp_path / "out", "train", "prose"):
        wanted += [*document.text.encode(), 257]
    assert tokens.tolist() == wanted
    assert domain.tokens == len(wanted)
    assert domain.bytes == len(wanted) - domain.documents
    assert [t.documents for t in domain.texts] == [20] * 4


def test_empty_domains_and_domains_of_one_document(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: Texts = {
        "train": {"code": [["a" * 90] * 9], "one": [["only this one document"]], "none": [[]]},
        "val": {"code": [["b" * 70]], "one": [[]], "none": [[], []]},
        "test": {"code": [], "one": []},
    }
    corpus = corpus_of(tmp_path / "corpus", made)
    manifest, _ = shard_corpus(corpus, "bytes", tmp_path / "out")
    assert manifest.splits["train"]["none"].shards == ()
    assert manifest.splits["train"]["one"].documents == 1
    assert set(manifest.splits["test"]) == {"code", "one"}
    assert list(documents(tmp_path / "out", "test", "one")) == []
    held_out = DataCorpus(tmp_path / "out")
    assert (held_out.domains("val"), held_out.domains("test")) == (("code",), ())
    config = ShardStreamConfig(path=str(tmp_path / "out"), seq_len=16, batch_size=2)
    assert config.splits() == ("train", "val/code")
    assert "'one' is left out, no shard of it holds stream.seq_len + 1 = 17" in caplog.text
    stream = config.build("train", seed=0, rank=0, world=1)
    assert "'code': " in stream.identity
    assert "'one': " in stream.identity
    assert "'none'" not in stream.identity
    config = ShardStreamConfig(path=str(tmp_path / "out"), seq_len=8, domains=("none", "code"))
    assert config.splits() == ("train", "val/code")
    with pytest.raises(ConfigError, match=r"'none' holds 0 tokens in 0 shards.*stream\.domains"):
        config.build("train", seed=0, rank=0, world=1)


def test_limits_names_and_undivided_text(tmp_path: Path) -> None:
    made: Texts = {"all": {"code": [["ab", "cd", "ef"], ["gh", "ij"]]}}
    corpus = corpus_of(tmp_path / "corpus", made)
    out = tmp_path / "out"
    manifest, _ = shard_corpus(corpus, "bytes", out, max_records=4, name="mine")
    assert manifest == read_manifest(out)
    assert (manifest.name, list(manifest.splits)) == ("mine", ["train"])
    code = manifest.splits["train"]["code"]
    assert (code.documents, code.bytes, code.tokens) == (4, 8, 12)
    log = json.loads((out / "stage.json").read_text())
    assert (log["counts"]["documents_out"], log["reasons"]) == (4, {"over_max_records": 1})
    again, written = shard_corpus(corpus, "bytes", out, max_records=3, name="mine")
    assert written
    assert len(again.splits["train"]["code"].shards) == 1
    made["train"] = {"code": [["kl"]]}
    with pytest.raises(ConfigError, match="divide all of it first"):
        shard_corpus(corpus_of(tmp_path / "mixed", made), "bytes", tmp_path / "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_id": 259}, "--eos-id: 259; allowed: -1 .the tokenizer's, 258"),
        ({"eos_id": -2}, "--eos-id: -2"),
        ({"max_records": 0}, "--max-records: 0"),
        ({"shard_tokens": 0}, "--shard-tokens: 0"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, int], message: str) -> None:
    corpus = corpus_of(tmp_path / "corpus", {"train": {"code": [["ab"]]}})
    with pytest.raises(ConfigError, match=message):
        shard_corpus(corpus, "bytes", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_half_of_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", {"train": {"code": [["fine"]]}})
    file = corpus / "train/code/part_00000.jsonl"
    file.write_text(json.dumps({"text": "bad \ud83d end"}) + "\n")
    data = json.loads((corpus / "manifest.json").read_text())
    data["splits"]["train"]["code"][0]["sha256"] = sha256_file(file)
    write_json(corpus / "manifest.json", data)
    with pytest.raises(ConfigError, match=r"part_00000.jsonl: .*surrogate.*filter_corpus"):
        shard_corpus(corpus, "bytes", tmp_path / "out")


def test_ids_of_arrays_are_those_of_lists() -> None:
    from nl.data.prep.shard_part import encode_arrays

    tokenizer = ByteTokenizer()
    found = [ids.tolist() for ids in encode_arrays(tokenizer, ["a\u00e9", "", "b"])]
    assert found == tokenizer.encode(["a\u00e9", "", "b"])


def command(*flags: str) -> list[str]:
    parser = argparse.ArgumentParser()
    add_shard_flags(parser)
    return list(shard_command(parser.parse_args(flags), Executor()))


def test_a_raw_source_is_read_and_sharded(tmp_path: Path) -> None:
    rows = [{"content": f"document {n} of a few"} for n in range(30)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset", "json", "--data-files", str(tmp_path / "raw.jsonl"), "--name", "mine"]
    flags += ["--text-column", "content", "--tokenizer-path", "bytes", "--max-records", "20"]
    flags += ["--output-dir", str(tmp_path / "out"), "--log-file", str(tmp_path / "log.json")]
    flags += ["--seq-len", "16", "--sequences-per-shard", "8"]
    lines = command(*flags)
    assert lines == [f"{tmp_path}/out: written", "  train/mine: 20 documents, 410 tokens"]
    log = json.loads((tmp_path / "log.json").read_text())
    assert (log["name"], log["records"], log["tokens"], log["sequences"]) == ("mine", 20, 410, 25)
    assert log["shards"] == 3, "closed after 128 tokens or more"
    assert "nothing to do" in command(*flags)[0]


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two\nlines")
    flags = ["--dataset", "text", "--data-files", str(tmp_path / "a.txt"), "--sample-by"]
    flags += ["document", "--tokenizer-path", "bytes", "--output-dir", str(tmp_path / "out")]
    assert command(*flags)[1] == "  train/text: 1 documents, 10 tokens"


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Raw text in a folder that a split would replace, and a corpus that is also the output."""
    mine = tmp_path / "mine/train/a.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"text": "mine"}')
    flags = ["--dataset", "json", "--data-files", str(mine), "--tokenizer-path", "bytes"]
    with pytest.raises(ConfigError, match=r"train/a.jsonl: would be lost"):
        command(*flags, "--output-dir", str(tmp_path / "mine"))
    assert mine.is_file()
    command(*flags, "--output-dir", str(tmp_path / "out"))
    same = ["--corpus", str(tmp_path / "out/corpus"), "--tokenizer-path", "bytes"]
    with pytest.raises(ConfigError, match="is the corpus that is read"):
        command(*same, "--output-dir", str(tmp_path / "out/corpus"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "json", "--corpus", "x"), "--dataset: given beside --corpus"),
        (("--shard-tokens", "9", "--seq-len", "4"), "--shard-tokens: 9 beside --seq-len"),
        (("--seq-len", "0"), "--seq-len: 0"),
        (("--dataset", "json"), "data_files: missing"),
    ],
)
def test_flags_that_contradict(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(*flags)
