"""Cloze passages obey their definition and are the same every time."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from nl.config import ConfigError
from nl.eval.cloze import WORD, ClozeSettings, draw_passage, make_cloze
from nl.eval.context import EvalContext

SETTINGS = ClozeSettings(split="test", passages=6, words=20, candidates=3)


def story(seed: int) -> str:
    """Sentences over a few names, so that words come back."""
    rng = random.Random(seed)
    names = ["Alice", "Robert", "garden", "window", "river", "stone", "carpet"]
    small = ["saw", "the", "by", "a", "and", "met"]
    return " ".join(rng.choice(names if i % 2 else small) for i in range(120)) + "."


@pytest.mark.parametrize("seed", range(20))
def test_passage(seed: int) -> None:
    text = story(seed).replace("the ", "the\n  ")
    passage = draw_passage(text, 20, random.Random(seed))
    assert passage is not None
    assert f"{passage.context} {passage.answer}" in text
    words = WORD.findall(passage.context)
    assert len(words) == 20
    assert len(passage.answer) >= 4
    assert passage.answer in words[:-5]
    assert passage.answer not in words[-5:]


def test_no_passage() -> None:
    assert draw_passage("every word here is another one " * 1, 20, random.Random(0)) is None
    assert draw_passage(" ".join(f"w{i}" for i in range(99)), 20, random.Random(0)) is None


def test_files(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    corpus = fakes.ListCorpus({"prose": [story(i) for i in range(12)]})
    context = replace(context, corpus=corpus)
    assert make_cloze(context, tmp_path / "a", SETTINGS) == ["cloze_prose", "cloze_prose_choice"]
    make_cloze(context, tmp_path / "b", SETTINGS)
    lines = (tmp_path / "a" / "cloze_prose.jsonl").read_text()
    assert lines == (tmp_path / "b" / "cloze_prose.jsonl").read_text()
    docs = [json.loads(line) for line in lines.splitlines()]
    assert len(docs) == 6
    answers = {doc["answer"] for doc in docs}
    for doc in docs:
        assert doc["choices"][doc["label"]] == doc["answer"]
        assert len(set(doc["choices"])) == 3
        assert set(doc["choices"]) <= answers


def test_too_few_words_are_refused(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives 0 passages"):
        make_cloze(context, tmp_path, SETTINGS)
