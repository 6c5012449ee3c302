"""Languages, quality rules and personal data, on texts whose answer is known."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from nl.config import ConfigError
from nl.data.documents import Document, read_jsonl
from nl.data.prep import language, quality
from nl.data.prep.engine import Executor
from nl.data.prep.filters import filter_corpus
from nl.data.prep.filters_checks import FilterOptions
from tests.unit.data.prep.corpora import write_parts

ENGLISH = (
    "The committee met on Thursday to discuss the budget. Most of the members agreed that the "
    "roof of the library has to be repaired before winter, and that the money should be found.\n"
)
GERMAN = (
    "Der Ausschuss traf sich am Donnerstag, um den Haushalt zu besprechen. Die meisten waren sich "
    "einig, dass das Dach der Bibliothek vor dem Winter repariert werden muss.\n"
)
FRENCH = (
    "Le conseil s'est r\u00e9uni jeudi pour discuter du budget. La plupart des membres pensent que "
    "le toit de la biblioth\u00e8que doit \u00eatre r\u00e9par\u00e9 avant l'hiver.\n"
)


def ask(text: str, **fields: object) -> str | None:
    made = language.language(FilterOptions(**fields))  # type: ignore[arg-type]
    return None if made is None else made(text)


def test_languages() -> None:
    assert ask(ENGLISH) is None
    assert ask(GERMAN) == ask(FRENCH) == "other_language"
    assert ask(GERMAN, target_lang="de") is None
    assert ask(GERMAN, target_lang="any") is None
    assert ask("Der kurze Satz.") is None, "too few letters to ask"
    assert ask("1234567890 " * 50) is None, "no letters"
    assert ask("Der kurze Satz.", lang_min_chars=5) is not None
    assert ask(ENGLISH.replace(" ", "\t\t")) is None
    unsure = ask((ENGLISH + GERMAN)[:300], lang_threshold=1.0)
    assert unsure in ("language_unsure", "other_language")


def test_a_bounded_sample_of_three_places() -> None:
    text = "a" * 5000 + "b" * 5000 + "c" * 5000
    shown = language.sample(text, 300)
    assert len(shown) <= 302
    assert {*shown} == {*"abc\n"}
    assert language.sample("short", 300) == "short"


def test_fasttext_with_the_users_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Model:
        def predict(self, texts: list[str], k: int) -> tuple[list[list[str]], list[list[float]]]:
            asked.extend(texts)
            return [["__label__de"]], [[0.9]]

    fake = types.ModuleType("fasttext")
    fake.load_model = lambda path: Model()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fasttext", fake)
    model = tmp_path / "lid.bin"
    model.write_bytes(b"x")
    options = {"lang_backend": "fasttext", "lang_model": str(model)}
    assert ask(GERMAN * 2, target_lang="de", **options) is None
    assert ask(GERMAN, target_lang="de", lang_threshold=0.95, **options) == "language_unsure"
    assert ask(GERMAN, **options) == "other_language"
    assert len(asked) == 3
    assert not any("\n" in text for text in asked)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    language.detector.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"py3langid: not installed; .* uv sync --extra data"):
        ask(ENGLISH)
    language.detector.cache_clear()


GOOD = """The harbour town had two bridges, and only one of them could carry a cart.
In spring the river rose so high that farmers from the hills waited for days with their wool.
A mason called Anna Brandt offered to raise the older bridge by three feet for a modest sum.
The council did not believe that a single winter would be enough for such work.
She began with the piers, which had been laid upon oak trunks that were still sound.
By the time snow fell, the new arches stood and the first wagons went over to the market.
Nobody in the valley has ever paid the mason, as far as the books of that year tell us.
Her name is cut into the middle stone, where children look for it on their way to school."""


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("gopher", GOOD, None),
        ("gopher", "Buy now! " * 80, "gopher_"),
        ("gopher", "word " * 20, "gopher_short_doc"),
        ("c4", GOOD, None),
        ("c4", GOOD + "\nLorem ipsum dolor sit amet is here.", "c4_lorem_ipsum"),
        ("c4", "home\nabout\ncontact\n", "c4_too_few_sentences"),
        ("c4", "function f() { return 3 } is all there is.\n" + GOOD, "c4_curly_bracket"),
        ("fineweb", GOOD, None),
        ("fineweb", "home\nabout\ncontact\n" * 20, "fineweb_line_punct_ratio"),
    ],
)
def test_quality_rules(rule: str, text: str, expected: str | None) -> None:
    made = quality.quality(FilterOptions(quality=(rule,)))
    assert made is not None
    found = made(text)
    assert found is None if expected is None else str(found).startswith(expected)


def test_sentences_lose_nothing() -> None:
    words = quality.tokenizer()
    text = 'He said "No." Then? Yes!  End'
    assert "".join(words.sent_tokenize(text)) == text
    assert len(words.sent_tokenize(text)) == 4
    assert words.sent_tokenize("") == []
    assert words.word_tokenize("Don't stop, now") == ["Don't", "stop", ",", "now"]


def test_personal_data_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    text = f"  {GOOD}\n\n  write to jane.doe@mail.org or ping 8.8.4.4 and 10.0.0.1\n"
    source = write_parts(tmp_path / "in", {"x": [Document(text, "a"), Document(GOOD, "b")]})
    log, _ = filter_corpus(source, tmp_path / "out", FilterOptions(pii=True), Executor())
    assert log["notes"] == {"pii_replaced": 1}
    first, second = read_jsonl(tmp_path / "out/all/x/part_00000.jsonl")
    assert first.text == text.replace("jane.doe@mail.org", "email@example.com").replace(
        "8.8.4.4", "22.214.171.124"
    )
    assert second.text == GOOD
