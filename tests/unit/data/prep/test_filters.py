"""Every document that goes has a reason; the sums add up; options and inputs are the key."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import CHECKS, FilterOptions, asked_by, make_checks
from tests.unit.data.prep.corpora import contents, numbered, write_parts

ONE = Executor()
GOOD = "A plain sentence of some length, written down to be kept.\n" * 5


def lenient(**fields: Any) -> FilterOptions:
    """Options for texts of hexadecimal digits, which are in no language."""
    return FilterOptions(target_lang="any", **fields)


def reason(text: str, options: FilterOptions | None = None) -> str | None:
    checks = make_checks(options or FilterOptions())
    return next((r for r in (c(text) for c in checks) if r), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, None),
        (GOOD.replace(" ", "\t") + "\x0c", None),
        ("", "empty"),
        (" \n\t\u00a0 ", "empty"),
        (GOOD + "\ufffd", "broken_utf8"),
        (GOOD + "\x00", "control_characters"),
        ("\x1b[0m" * 99, "control_characters"),
        (GOOD + "x" * 10_001, "long_line"),
        ("short", "too_short"),
        ("x y\n" * 3000, "too_long"),
    ],
)
def test_reasons(text: str, expected: str | None) -> None:
    assert reason(text) == expected


def test_order_of_the_table() -> None:
    assert list(CHECKS) == [
        "empty",
        "broken_utf8",
        "control_characters",
        "long_line",
        "too_short",
        "too_long",
        "language",
        "quality",
    ]


def test_half_a_character() -> None:
    assert reason(GOOD + chr(0xD800)) == "broken_utf8"


def test_limits_can_be_lifted() -> None:
    lax = lenient(max_chars=0, max_line_chars=0, min_chars=0, max_broken=0.1, max_control=0.1)
    assert reason("x" * 50_000, lax) is None
    assert reason(GOOD + "\ufffd\x00", lax) is None
    assert reason(" ", lax) == "empty"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_chars": 20, "max_chars": 10}, "--min-chars: 20; allowed: 0 to --max-chars"),
        ({"max_broken": 2}, "--max-broken"),
        ({"max_control": -1}, "--max-control"),
        ({"extra": ("nothing",)}, "--extra"),
        ({"target_lang": ""}, "--target-lang"),
        ({"lang_threshold": 2}, "--lang-threshold"),
        ({"lang_backend": "langdetect"}, "--lang-backend: langdetect; allowed: .*py3langid"),
        ({"lang_backend": "fasttext"}, "--lang-model: ''; allowed: a fastText model file"),
        ({"quality": ("best",)}, "--quality"),
    ],
)
def test_bad_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilterOptions(**fields)


def test_a_stage_adds_up_and_texts_stay_as_they_are(tmp_path: Path) -> None:
    code = "def f():\n    return  1\n\n\n\tx = '  '\n" * 9
    bad = [Document("", "x:1"), Document("no", "x:2"), Document(GOOD + "\ud812", "x:3")]
    good = [Document(code, "x:4", group="g"), Document(GOOD, "x:5")]
    for document in bad[:2]:
        assert document.id
    source = write_parts(tmp_path / "in", {"x": bad[:2] + good, "y": numbered("y", 30)})
    line = json.dumps({"text": bad[2].text, "source": "x:3"})
    part = source / "all/x/part_00000.jsonl"
    rewrite(source, part, part.read_text() + line + "\n")
    options = lenient(min_chars=100, keep_dropped=True)
    log, done = filter_corpus(source, tmp_path / "out", options, ONE)
    assert done
    assert log["domains"]["x"]["reasons"] == {"broken_utf8": 1, "empty": 1, "too_short": 1}
    counts = log["counts"]
    assert counts["documents_in"] == 35
    assert counts["documents_in"] == counts["documents_out"] + sum(log["reasons"].values())
    out = read_corpus(tmp_path / "out")
    assert out.recipe == {"filter": log["key"]}
    assert [f.file for f in out.splits["all"]["y"]] == [
        f"all/y/part_{n:05d}.jsonl" for n in range(3)
    ]
    assert list(read_jsonl(tmp_path / "out/all/x/part_00000.jsonl")) == good
    dropped = (tmp_path / "out/dropped/all/x/part_00000.jsonl").read_text().splitlines()
    assert [json.loads(row)["reason"] for row in dropped] == ["empty", "too_short", "broken_utf8"]


def test_filters_that_keep_nothing_are_refused_by_their_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written before stays as it is."""
    texts = [Document("", "x:1"), *numbered("y", 30)]
    source, out = write_parts(tmp_path / "in", {"y": texts}), tmp_path / "out"
    kept, _ = filter_corpus(source, out, lenient(min_chars=100), ONE)
    before = contents(out)
    flags = ["--corpus", source, "--output-path", out, "--target-lang", "any"]
    assert command(monkeypatch, *flags, "--min-chars", "9000") == 2
    said = capsys.readouterr()
    assert "in: none of 31 documents of y is kept: too_short 30 (--min-chars: 9000), empty 1" in (
        said.err
    )
    assert "written" not in said.out
    assert {k: v for k, v in contents(out).items() if not k.startswith(".")} == before
    assert filter_corpus(source, out, lenient(min_chars=100), ONE) == (kept, False)


def test_a_domain_that_is_filtered_away_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_parts(tmp_path / "in", {"x": [Document("no", "x:1")], "y": numbered("y", 30)})
    with caplog.at_level("WARNING", logger="nl.data"):
        filter_corpus(source, tmp_path / "out", lenient(min_chars=100), ONE)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("none of 1 documents of x is kept: too_short 1 (--min-chars: 100)")


def test_every_reason_names_an_option() -> None:
    options = FilterOptions(quality=("c4",), extra=("own.py:quiet",))
    assert asked_by("c4_too_few_sentences", options) == "--quality: c4"
    assert asked_by("language_unsure", options) == "--lang-threshold: 0.8"
    assert asked_by("shouting", options) == "--extra: own.py:quiet"
    assert asked_by("empty", options) == asked_by("shouting", FilterOptions()) == "", "none"


def rewrite(corpus: Path, part: Path, text: str) -> None:
    from nl.data.files import sha256_file

    old = sha256_file(part)
    part.write_text(text)
    manifest = corpus / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, sha256_file(part)))


def test_key_changes_with_options_and_inputs(tmp_path: Path) -> None:
    source = write_parts(tmp_path / "in", {"y": numbered("y", 30)})
    out = tmp_path / "out"
    log, _ = filter_corpus(source, out, lenient(min_chars=100), ONE)
    assert filter_corpus(source, out, lenient(min_chars=100), ONE) == (log, False)
    other, done = filter_corpus(source, out, lenient(min_chars=200), ONE)
    assert done
    assert other["key"] != log["key"]
    assert other["counts"]["documents_out"] < log["counts"]["documents_out"]
    write_parts(tmp_path / "in", {"y": numbered("y", 31)})
    third, done = filter_corpus(source, out, lenient(min_chars=200), ONE)
    assert done
    assert third["counts"]["documents_in"] == 31
    assert not list(out.glob(".filter-*"))
    special, done = filter_corpus(
        source, out, lenient(min_chars=200), ONE, {"y": lenient(min_chars=100)}
    )
    assert special["key"] != third["key"]
    assert special["counts"]["documents_out"] > third["counts"]["documents_out"]
    with pytest.raises(ConfigError, match=r"\['z'\]: no such domain"):
        filter_corpus(source, out, lenient(), ONE, {"z": lenient()})


def test_missing_or_changed_files(tmp_path: Path) -> None:
    source = write_parts(tmp_path / "in", {"y": numbered("y", 30)})
    out, options = tmp_path / "out", lenient(min_chars=100)
    filter_corpus(source, out, options, ONE)
    before = contents(out)
    (out / "all/y/part_00001.jsonl").unlink()
    assert filter_corpus(source, out, options, ONE)[1]
    assert contents(out) == before
    part = source / "all/y/part_00001.jsonl"
    part.write_text(part.read_text().replace("y:1", "y:2"))
    with pytest.raises(ConfigError, match=r"part_00001.jsonl: sha256 differs"):
        filter_corpus(source, tmp_path / "other", options, ONE)


EXTRA = '''
def shouting(text):
    """Drop texts in capitals."""
    return "shouting" if text.upper() == text else None
'''


def test_an_own_check_in_a_file(tmp_path: Path) -> None:
    source = write_parts(tmp_path / "in", {"y": [Document(GOOD, "a"), Document(GOOD.upper(), "b")]})
    own = tmp_path / "own.py"
    own.write_text(EXTRA)
    options = lenient(extra=(f"{own}:shouting",))
    log, _ = filter_corpus(source, tmp_path / "out", options, ONE)
    assert log["reasons"] == {"shouting": 1}
    own.write_text(EXTRA.replace('"shouting" if', '"loud" if'))
    changed, done = filter_corpus(source, tmp_path / "out", options, ONE)
    assert done, "another text of the check is another key"
    assert changed["reasons"] == {"loud": 1}
    with pytest.raises(ConfigError, match=r"own.py:quiet; not found"):
        filter_corpus(source, tmp_path / "o", lenient(extra=(f"{own}:quiet",)), ONE)


def test_a_limit_on_what_is_kept(tmp_path: Path) -> None:
    source = write_parts(tmp_path / "in", {"y": numbered("y", 35)})
    every, _ = filter_corpus(source, tmp_path / "all", lenient(min_chars=100), ONE)
    log, _ = filter_corpus(source, tmp_path / "out", lenient(min_chars=100, limit=12), ONE)
    assert log["counts"]["documents_out"] == 12
    assert log["counts"]["documents_in"] == 35
    assert log["reasons"]["limit"] == every["counts"]["documents_out"] - 12

    def texts(name: str) -> list[str]:
        files = read_corpus(tmp_path / name).splits["all"]["y"]
        return [d.text for f in files for d in read_jsonl(tmp_path / name / f.file)]

    assert texts("out") == texts("all")[:12]
    more, _ = filter_corpus(source, tmp_path / "out", lenient(min_chars=100, limit=99), ONE)
    assert more["reasons"] == every["reasons"]


def command(monkeypatch: pytest.MonkeyPatch, *flags: object) -> object:
    script = Path(__file__).resolve().parents[4] / "scripts/data/filter_corpus.py"
    monkeypatch.setattr("sys.argv", ["x", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    return end.value.code


def test_the_command_and_its_older_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_parts(tmp_path / "in", {"y": numbered("y", 30)})
    flags = ["--corpus", source, "--output-path", tmp_path / "out", "--target-lang", "any"]
    flags += ["--dedup-window", "50000", "--streaming", "true", "--force-exit", "--min-chars", "99"]
    assert command(monkeypatch, *flags) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in shown[:3]] == [
        "--dedup-window",
        "--force-exit",
        "--streaming",
    ]
    assert shown[3].endswith("out: written")
    assert "30 documents in" in shown[4]


def test_what_others_wrote_is_not_replaced(tmp_path: Path) -> None:
    corpus = write_parts(tmp_path / "in", {"y": numbered("y", 9)})
    options, out = FilterOptions(target_lang="any"), tmp_path / "out"
    with pytest.raises(ConfigError, match="is the corpus that is read"):
        filter_corpus(corpus, corpus, options, Executor())
    (out / "val").mkdir(parents=True)
    (out / "val/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"val/notes.txt: would be lost"):
        filter_corpus(corpus, out, options, Executor())
    (out / "val/notes.txt").unlink()
    (out / "stage.json").write_text('{"stage": "divide"}')
    with pytest.raises(ConfigError, match="holds what the stage 'divide' wrote"):
        filter_corpus(corpus, out, options, Executor())


def test_a_raw_source_is_read_as_far_as_the_limit_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"body": d.text}) + "\n" for d in numbered("y", 200)))
    flags = ["--dataset", "json", "--data-files", raw, "--text-column", "body", "--target-lang"]
    flags += ["any", "--min-chars", "250", "--output-path", tmp_path / "out"]
    assert command(monkeypatch, *flags, "--limit", "20") == 0
    shown = capsys.readouterr().out
    assert "raw: 80 documents in, 80 out" in shown, "twice, then four times the limit"
    assert "20 out" in shown
    assert command(monkeypatch, *flags, "--limit", "150") == 0
    assert "raw: 200 documents in, 200 out" in capsys.readouterr().out


def test_more_is_read_where_the_first_documents_are_all_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.jsonl"
    texts = ["short"] * 8 + [d.text for d in numbered("y", 90) if len(d.text) > 250]
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = ["--dataset", "json", "--data-files", raw, "--target-lang", "any", "--limit", "2"]
    flags += ["--output-path", tmp_path / "out"]
    assert command(monkeypatch, *flags, "--min-chars", "250") == 0
    assert "2 out" in capsys.readouterr().out
    assert command(monkeypatch, *flags, "--min-chars", "5000") == 2, "nowhere in the source"
