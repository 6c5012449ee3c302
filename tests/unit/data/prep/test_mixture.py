"""Manifests are read strictly; the stages run end to end, once; what was built is checked."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import ConfigError
from nl.config.hydra import compose, run_config
from nl.data.documents import read_corpus, read_jsonl
from nl.data.manifest import read_manifest
from nl.data.prep.engine import Executor
from nl.data.prep.flags import keys_for_flags
from nl.data.prep.join import join_corpora
from nl.data.prep.mixture import READ_PER_KEPT, Mixture, read_mixture
from nl.data.prep.mixture_run import (
    Row,
    RunOptions,
    overridden,
    plan_lines,
    run_mixture,
    stream_overrides,
    table,
)
from nl.data.prep.validate import report_lines, validate
from nl.data.shard_stream import ShardStreamConfig

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "configs/data"
NAMES = (
    "refinedweb_mixture",
    "refinedweb_mixture_filtered",
    "refinedweb_mixture_full",
    "refinedweb_mixture_sample",
    "fineweb_edu_mixture_sample",
    "fineweb_edu_mixture_full",
    "fineweb_edu_longdoc_filtered_sample",
    "stdlib",
    "synthetic",
)
WORDS = [f"word{i}" for i in range(400)]


def text(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=80))


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


MANIFEST = """
name: small
output_dir: {root}/data
held_out: {{val: 0.2, test: 0.1}}
datasets:
  - name: web
    dataset: team/web
    local: {root}/web.jsonl
    weight: 3
    min_chars: 100
    license: MIT
  - {{name: books, dataset: json, data_files: {root}/books.jsonl, weight: 1, license: MIT}}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write(tmp_path / "web.jsonl", [*map(text, range(150)), "short", text(3)])
    write(tmp_path / "books.jsonl", [*map(text, range(1000, 1060)), text(7)])
    path = tmp_path / "small.yaml"
    path.write_text(MANIFEST.format(root=tmp_path))
    return path


def run(mixture: Mixture, **options: Any) -> list[Row]:
    return list(run_mixture(mixture, RunOptions(tokenizer_path="bytes", **options)))


@pytest.mark.parametrize("name", NAMES)
def test_manifests_of_the_repository(name: str) -> None:
    mixture = read_mixture(CONFIGS / f"{name}.yaml")
    assert mixture.weights is not None
    assert sum(mixture.weights.values()) == pytest.approx(1)
    assert all(entry.license for entry in mixture.datasets)
    for entry in mixture.datasets:
        offline = entry.dataset in ("stdlib", "synthetic") or entry.local is not None
        assert offline, "each also runs without a network"
        assert entry.filters.min_chars == entry.min_chars


def test_what_the_larger_models_train_on_is_what_the_full_manifest_builds() -> None:
    mixture = read_mixture(CONFIGS / "refinedweb_mixture_full.yaml")
    for name in ("pilot", "mid", "target"):
        stream = run_config(compose(name)).stream
        assert isinstance(stream, ShardStreamConfig)
        assert Path(stream.path) == mixture.output
        assert stream.domains == tuple(entry.name for entry in mixture.datasets)
        assert tuple((mixture.weights or {}).values()) == pytest.approx(stream.weights)


def test_end_to_end(manifest: Path) -> None:
    mixture = read_mixture(manifest)
    rows = run(mixture)
    stages = ["ingest"] * 2 + ["filter"] * 2 + ["dedup"] * 2 + ["divide"] * 2 + ["tokenizer"]
    assert [row.stage for row in rows] == stages + ["shard"] * 6
    assert all(row.done for row in rows if row.stage not in ("tokenizer",))
    for before, after in zip(rows[:6], rows[2:8], strict=True):
        assert before.domain == after.domain
        assert before.documents_out == after.documents_in
        assert after.documents_in == after.documents_out + sum(after.reasons.values())
    by_place = {(row.stage, row.domain): row for row in rows}
    assert by_place["filter", "web"].reasons == {"too_short": 1}
    assert by_place["dedup", "web"].reasons == {"exact_duplicate": 1}
    assert by_place["dedup", "books"].reasons == {"exact_duplicate": 1}, "over all domains"
    data = read_manifest(mixture.output)
    assert list(data.splits) == ["train", "val", "test"]
    documents = sum(d.documents for domains in data.splits.values() for d in domains.values())
    assert documents == 150 + 60
    assert not any(row.done for row in run(mixture)), "the second time there is nothing to do"
    again = run(mixture, force=("divide",), until="divide")
    assert [row.stage for row in again if row.done] == ["divide", "divide"]
    lines = list(table(rows))
    assert len(lines) == 1 + len(rows)
    assert "too_short 1" in lines[3]
    changed = overridden(mixture, ["books.min_chars=100"])
    done = {(r.stage, r.domain) for r in run(changed, until="filter") if r.done}
    assert done == {("filter", "books")}, "the other data set's work is kept"


def test_streams_train_on_the_result(manifest: Path) -> None:
    mixture = read_mixture(manifest)
    run(mixture)
    words = stream_overrides(mixture).split()
    assert words[-1] == "stream.weights=[0.75,0.25]"
    assert words[0] == f"model.vocab_size={read_manifest(mixture.output).tokenizer.vocab_size}"
    with pytest.raises(ConfigError, match="is a corpus of text, not a data directory"):
        read_manifest(mixture.output / "corpus")
    with pytest.raises(ConfigError, match="is a data directory of shards, not a corpus"):
        read_corpus(mixture.output)
    small = ["stream.seq_len=32", "stream.batch_size=4"]
    stream = run_config(compose("pilot_smoke", [*words, *small])).stream
    batch = next(iter(stream.build("train", seed=0, rank=0, world=1)))  # type: ignore[attr-defined]
    assert batch.weight == 4 * 32


def test_limit_is_of_what_is_kept(manifest: Path) -> None:
    mixture = overridden(read_mixture(manifest), ["web.limit=10", "books.max_records=7"])
    assert mixture.datasets[0].source.max_records == 10 * READ_PER_KEPT
    rows = {(r.stage, r.domain): r for r in run(mixture, until="filter")}
    assert rows["ingest", "web"].documents_out == 10 * READ_PER_KEPT
    assert rows["filter", "web"].documents_out == 10
    assert rows["filter", "books"].documents_out == 7


def test_filtered_text_goes_where_it_is_asked_for(manifest: Path, tmp_path: Path) -> None:
    mixture = overridden(read_mixture(manifest), [f"web.filtered_dir={tmp_path}/clean"])
    run(mixture, until="dedup", work=tmp_path / "work")
    assert read_corpus(tmp_path / "clean").splits["all"]["web"][0].documents == 151
    assert not mixture.output.exists()


def test_plan_writes_nothing(manifest: Path) -> None:
    mixture = overridden(read_mixture(manifest), ["books.dataset=team/books"])
    with pytest.raises(ConfigError, match="books: cannot read team/books"):
        list(plan_lines(mixture))
    good = overridden(mixture, [f"books.local={manifest.parent}/books.jsonl"])
    lines = list(plan_lines(good))
    assert lines[0].endswith("MB on this machine, in 1 units, weight 0.75")
    assert lines[1].startswith("books: 0.0 MB")
    assert not mixture.output.exists()


def test_join(manifest: Path, tmp_path: Path) -> None:
    mixture = read_mixture(manifest)
    run(mixture, until="filter")
    parts = [mixture.output / "work" / name / "filter" for name in ("web", "books")]
    assert join_corpora(parts, tmp_path / "both", "both")
    assert not join_corpora(parts, tmp_path / "both", "both")
    both = read_corpus(tmp_path / "both")
    assert list(both.splits["all"]) == ["web", "books"]
    (file,) = both.splits["all"]["books"]
    assert next(read_jsonl(tmp_path / "both" / file.file)).text == text(1000)
    assert join_corpora(parts[:1], tmp_path / "both", "both")
    assert not (tmp_path / "both" / file.file).exists()
    with pytest.raises(ConfigError, match="domain 'web' is in two corpora"):
        join_corpora([parts[0], parts[0]], tmp_path / "both", "both")


def test_validation(manifest: Path, tmp_path: Path) -> None:
    mixture = read_mixture(manifest)
    run(mixture)
    found = validate(mixture, Executor(), threshold=0.0, limit=100)
    assert found["problems"] == []
    assert found["between_sources"]["web & books"]["exact_duplicate"] == 0
    assert [row["near"] for row in found["held_out_in_train"]] == [0, 0]
    assert any("web & books: 0 equal" in line for line in report_lines(found))
    shard = next((mixture.output / "val/web").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    bare = overridden(mixture, ["books.license=null"])
    problems = validate(bare, Executor(), threshold=0.0, limit=100)["problems"]
    assert len(problems) == 2
    assert problems[0].startswith("web: 1 files changed, the first is val/web/")
    assert problems[1].startswith("books: no licence")
    assert not list(tmp_path.rglob(".tmp*")), "nothing is left behind"


def test_validation_finds_planted_overlap(tmp_path: Path) -> None:
    from nl.data.documents import Document
    from nl.data.prep.corpus import Work, write_corpus
    from nl.data.prep.validate import overlap

    def works(seeds: range) -> list[Work]:
        return [Work((Document(text(seed), str(seed)),)) for seed in seeds]

    near = [Work((Document(text(9) + " and one more", "near"),))]
    domains = {"a": works(range(40)), "b": [*works(range(100, 120)), *near]}
    write_corpus(tmp_path / "c", "c", domains, limit_bytes=10**9, recipe={})
    (row,) = overlap(tmp_path / "c", Executor()).values()
    assert (row["exact_duplicate"], row["near_duplicate"]) == (0, 1)
    assert row["share"] == pytest.approx(1 / 21, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("min_chars: 100", "min_char: 100"),
            r"datasets\[0\]: unknown 'min_char'. Did you mean 'min_chars'",
        ),
        (("weight: 1,", ""), "some have a weight and some have none"),
        (("name: books", "name: web"), "web twice"),
        (("val: 0.2", "val: 0.95"), "held_out"),
        (("weight: 3", "weight: -3"), "weight: -3"),
        (("dataset: json,", "dataset: json, seq_len: 64,"), "seq_len: 64, 2048"),
        (("datasets:", "data:"), "expected a mapping with 'datasets'"),
        (
            ("min_chars: 100", "min_chars: 100\n    max_chars: 9"),
            r"small.yaml.datasets\[0\].min_chars: 100; allowed: 0 to max_chars.",
        ),
        (
            ("datasets:", "tokenizer: {vocab_size: 9}\ndatasets:"),
            r"small.yaml.tokenizer.vocab_size: 9; allowed: 260",
        ),
        (("datasets:", "apart: 2\ndatasets:"), "apart: 2"),
        (("name: small", "name: ["), "not YAML"),
    ],
)
def test_bad_manifests(manifest: Path, change: tuple[str, str], message: str) -> None:
    manifest.write_text(manifest.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message):
        read_mixture(manifest)


def test_a_bare_list_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text("- {name: a, dataset: x/a}\n- {name: b, dataset: x/b, local: [p, q]}\n")
    mixture = read_mixture(path)
    assert (mixture.name, mixture.weights, str(mixture.output)) == ("pair", None, "data/pair")
    assert mixture.datasets[1].paths == ("p", "q")
    changed = overridden(mixture, ["a.quality=[gopher]", "tokenizer.vocab_size=512", "name=n"])
    assert changed.datasets[0].filters.quality == ("gopher",)
    assert (changed.tokenizer.vocab_size, changed.name) == (512, "n")
    assert overridden(mixture, ["held_out.val=0.3"]).held_out == {"val": 0.3, "test": 0.1}
    with pytest.raises(ConfigError, match=r"--set: c.limit=3; .*Data sets: a, b"):
        overridden(mixture, ["c.limit=3"])
    with pytest.raises(ConfigError, match="--set"):
        overridden(mixture, ["a.limits=3"])
    with pytest.raises(ConfigError, match=r"--set: a.quality=\[: not YAML"):
        overridden(mixture, ["a.quality=["])
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"pair.yaml: not YAML"):
        read_mixture(path)
    with pytest.raises(ConfigError, match="--until: sharding"):
        RunOptions(until="sharding")
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        read_mixture(tmp_path / "none.yaml")


def test_what_is_missing_is_told_before_any_work(manifest: Path) -> None:
    mixture = read_mixture(manifest)
    with pytest.raises(ConfigError, match=r"none.json: no such file"):
        list(run_mixture(mixture, RunOptions(tokenizer_path="none.json")))
    last = mixture.datasets[-1].name
    with pytest.raises(ConfigError, match=f"{last}: no json files at /none"):
        list(run_mixture(overridden(mixture, [f"{last}.data_files=/none"]), RunOptions()))
    assert not mixture.output.exists()


def test_complaints_of_the_stages_name_keys_of_the_manifest(manifest: Path) -> None:
    """The command has no flag of a stage: what helps is a key, which --set takes as well."""
    mixture = read_mixture(manifest)
    large = overridden(mixture, ["tokenizer.vocab_size=90000"])
    lower = "lower tokenizer.vocab_size, raise tokenizer.sample_mb or use"
    with pytest.raises(ConfigError, match=r"^tokenizer.vocab_size: 90000 ") as refused:
        list(run_mixture(large, RunOptions(until="tokenizer")))
    assert str(refused.value).endswith(f"{lower} tokenizer.hard_vocab_limit=false.")
    with pytest.raises(ConfigError, match=r"^--set.tokenizer.sample_mb: 0.0; allowed: > 0"):
        overridden(mixture, ["tokenizer.sample_mb=0"])
    with pytest.raises(ConfigError, match=r"too_short 152 \(web.min_chars: 5000\)"):
        run(overridden(mixture, ["web.min_chars=5000", f"output_dir={manifest.parent}/none"]))
    assert not list((manifest.parent / "none").rglob("corpus")), "nothing empty is written"
    with pytest.raises(ConfigError, match=r"^web.eos_id: 9999; allowed: -1"):
        run(overridden(mixture, ["web.eos_id=9999", "books.eos_id=9999"]))
    entry = mixture.datasets[0]
    assert entry.filter_keys("web.")["target_lang"] == "web.lang"
    assert entry.filter_keys("web.")["max_broken"] == "max_broken", "a data set has no such key"


def test_words_that_are_no_flags_of_the_record_stay() -> None:
    text = "x: not installed; install it with: uv sync --extra data, or --workers 2"
    with pytest.raises(ConfigError, match=f"^{text}$"), keys_for_flags({"extra": "web.extra"}):
        raise ConfigError(text)


def test_run_full_honours_its_environment(tmp_path: Path) -> None:
    """A stand-in for Python writes down what it is called with."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    script = ROOT / "scripts/data/run_full.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
    own = {"PYTHON": str(fake), "RW_LIMIT": "7", "WIKI_LOCAL": "mirror", "CODE_MAX_CHARS": "9000"}
    own |= {"TOKENIZER_MODEL": "", "VOCAB_SIZE": "512", "FORCE_FILTER": "1", "WORKERS": "3"}
    own |= {"RETRAIN_TOKENIZER": "1", "SHARD_LOG": "s.json", "C4_OUTPUT": "c4", "RPJ_LANG": "de"}
    own |= {"TOKENIZER_OUTPUT_DIR": "tok", "TOKENIZER_LOG": "t.json", "FALLBACK_SPLIT": "any"}
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, check=True, env={**os.environ, **own}
    )
    words = done.stdout.split("\n")
    for change in (
        "refinedweb.limit=7",
        "wikipedia.local=mirror",
        "code.max_chars=9000",
        "c4.filtered_dir=c4",
        "redpajama.lang=de",
        "tokenizer.vocab_size=512",
        "tokenizer_output_dir=tok",
        "c4.split_fallback=any",
    ):
        assert change in words
    flags = list(itertools.pairwise(words))
    assert {("--workers", "3"), ("--force", "filter"), ("--force", "tokenizer")} <= set(flags)
    assert {("--log-file", "s.json"), ("--tokenizer-log", "t.json")} <= set(flags)
    names = [*own, *(f"PREFIX_{name.partition('_')[2]}" for name in own)]
    listed = {name for name in names if re.search(rf"\b{name}\b", shown.stdout)}
    assert all({name, f"PREFIX_{name.partition('_')[2]}"} & listed for name in own)
    sets = [after for before, after in flags if before == "--set"]
    overridden(read_mixture(CONFIGS / "refinedweb_mixture_full.yaml"), sets)


@pytest.mark.slow
def test_run_sample(tmp_path: Path) -> None:
    script = ROOT / "scripts/data/run_sample.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "LIMIT_MB": "0.4", "VOCAB_SIZE": "1000"}
    done = subprocess.run(
        ["bash", script, tmp_path], capture_output=True, text=True, check=True, env=environment
    )
    assert "stream.domains=[prose,code]" in done.stdout
    assert read_manifest(tmp_path).tokenizer.vocab_size == 1000


@pytest.mark.slow
def test_run_full_from_local_mirrors(tmp_path: Path) -> None:
    """Every data set of the mixture from a mirror, two workers, no network."""
    from pydoc_data.topics import topics

    prefixes = {"RW": "refinedweb", "WIKI": "wikipedia", "C4": "c4", "RPJ": "redpajama"}
    environment = {**os.environ, "PYTHON": sys.executable, "WORKERS": "2", "VOCAB_SIZE": "600"}
    environment |= {"OUTPUT_DIR": str(tmp_path / "data"), "RW_LIMIT": "3", "CODE_LANG": "null"}
    texts = [topics[name][:3000] for name in sorted(topics) if len(topics[name]) > 300]
    for number, (prefix, name) in enumerate({**prefixes, "CODE": "code"}.items()):
        (tmp_path / name).mkdir()
        rows = [
            {"content" if name == "code" else "text": text} for text in texts[number * 12 :][:12]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "test.jsonl").write_text(lines)
        (tmp_path / name / "validation.jsonl").write_text(lines)
        environment[f"{prefix}_LOCAL"] = str(tmp_path / name)
    script = ROOT / "scripts/data/run_full.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "refinedweb: no split 'train'; reading 'test' instead" in done.stderr
    data = read_manifest(tmp_path / "data")
    assert list(data.splits["train"]) == [*prefixes.values(), "code"]
    assert sum(d["refinedweb"].documents for d in data.splits.values()) == 3
