"""Cloze passages obey their definition and are the same every time."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from nl.config import ConfigError
from nl.eval.cloze import WORD, ClozeSettings, collect_passages, draw_passages, make_cloze
from nl.eval.context import EvalContext

SETTINGS = ClozeSettings(split="test", passages=6, words=20, candidates=3)


def story(seed: int) -> str:
    """Sentences over a few names, so that words come back."""
    rng = random.Random(seed)
    names = ["Alice", "Robert", "garden", "window", "river", "stone", "carpet"]
    small = ["saw", "the", "by", "a", "and", "met"]
    return " ".join(rng.choice(names if i % 2 else small) for i in range(120)) + "."


@pytest.mark.parametrize("seed", range(20))
def test_passages(seed: int) -> None:
    text = story(seed).replace("the ", "the\n  ")
    passages = draw_passages(text, 20, random.Random(seed))
    assert 1 <= len(passages) <= 120 // 21
    for passage in passages:
        assert f"{passage.context} {passage.answer}" in text
        words = WORD.findall(passage.context)
        assert len(words) == 20
        assert len(passage.answer) >= 4
        assert passage.answer in words[:-5]
        assert passage.answer not in words[-5:]
    whole = sorted(text.index(f"{p.context} {p.answer}") for p in passages)
    lengths = {text.index(f"{p.context} {p.answer}"): len(p.context) for p in passages}
    assert all(b - a > lengths[a] for a, b in itertools.pairwise(whole))


def test_no_passage() -> None:
    assert draw_passages("every word here is another one", 20, random.Random(0)) == []
    assert draw_passages(" ".join(f"w{i}" for i in range(99)), 20, random.Random(0)) == []


def test_documents_take_turns(fakes: ModuleType, context: EvalContext) -> None:
    corpus = fakes.ListCorpus({"prose": [story(i) for i in range(4)]})
    settings = replace(SETTINGS, passages=6)
    found = collect_passages(replace(context, corpus=corpus), "prose", settings).passages
    owners = [next(i for i in range(4) if f"{p.context} {p.answer}" in story(i)) for p in found]
    assert sorted(owners[:4]) == [0, 1, 2, 3]
    assert len(found) == 6
    every = collect_passages(
        replace(context, corpus=corpus), "prose", replace(SETTINGS, passages=0)
    )
    assert len(every.passages) > 6
    assert every.passages[:6] == found
    assert {p.answer for p in every.passages} == set(every.answers)


def test_files(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    corpus = fakes.ListCorpus({"prose": [story(i) for i in range(12)]})
    context = replace(context, corpus=corpus)
    assert make_cloze(context, tmp_path / "a", SETTINGS) == ["cloze_prose", "cloze_prose_choice"]
    make_cloze(context, tmp_path / "b", SETTINGS)
    lines = (tmp_path / "a" / "cloze_prose.jsonl").read_text()
    assert lines == (tmp_path / "b" / "cloze_prose.jsonl").read_text()
    docs = [json.loads(line) for line in lines.splitlines()]
    assert len(docs) == 6
    every = replace(SETTINGS, passages=0)
    answers = set(collect_passages(context, "prose", every).answers)
    for doc in docs:
        assert doc["choices"][doc["label"]] == doc["answer"]
        assert len(set(doc["choices"])) == 3
        assert set(doc["choices"]) <= answers


def test_too_few_words_are_refused(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives 0 passages"):
        make_cloze(context, tmp_path, SETTINGS)
