"""Needle prompts have the exact length and depth; known models score what they must."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from types import ModuleType
from zlib import crc32

import pytest
from torch import nn

from nl.config import ConfigError
from nl.eval.context import EvalContext
from nl.eval.haystack import make_needle, sentences
from nl.eval.needle import NeedleConfig, make_grid
from nl.eval.puzzles import COMMON, MAKERS, PLACES, Size
from nl.eval.suite import run_suite


class WordTokenizer:
    """A tokenizer with uneven costs: words of up to three letters are one token, else pieces."""

    vocab_size, eos_id = 100_000, 0

    def encode(self, text: str) -> list[int]:
        pieces = [w[i : i + 3] for w in text.split(" ") for i in range(0, max(len(w), 1), 3)]
        return [1 + crc32(piece.encode()) % 99_999 for piece in pieces]


@pytest.mark.parametrize("tokenizer", ["characters", "words"])
@pytest.mark.parametrize("haystack", ["noise", "text"])
def test_exact_lengths_and_depths(
    fakes: ModuleType, context: EvalContext, tokenizer: str, haystack: str
) -> None:
    text = " ".join(f"Sentence {i} speaks of thing {i * i}." for i in range(400))
    context = replace(
        context,
        tokenizer=fakes.CharTokenizer() if tokenizer == "characters" else WordTokenizer(),
        corpus=fakes.ListCorpus({"prose": [text, text.upper()]}),
    )
    lengths = (331, 500, 1024)
    config = NeedleConfig(lengths=lengths, depths=(0.0, 0.37, 1.0), samples=3, haystack=haystack)
    cells = make_grid(config, context)
    assert [(cell.length, cell.depth) for cell in cells] == [
        (length, depth) for length in lengths for depth in config.depths
    ]
    for cell in cells:
        for needle in cell.needles:
            assert len(needle.prompt) == cell.length
            assert needle.prompt[0] == context.tokenizer.eos_id
            assert list(needle.prompt[1:]) == context.tokenizer.encode(needle.text)
            assert len({needle.answer, *needle.others}) == config.candidates
            assert abs(needle.depth - cell.depth) < 60 / cell.length + 0.02
    assert cells[0].needles[0].text.startswith("The secret number")
    assert ". Question: what is the secret number" in cells[2].needles[0].text


def test_samples_have_streams_of_their_own(context: EvalContext) -> None:
    def prompts(config: NeedleConfig) -> dict[tuple[int, float, int], tuple[int, ...]]:
        cells = make_grid(config, context)
        return {(c.length, c.depth, i): n.prompt for c in cells for i, n in enumerate(c.needles)}

    small = prompts(NeedleConfig(lengths=(400,), depths=(0.5,), samples=2))
    large = prompts(NeedleConfig(lengths=(300, 400), depths=(0.1, 0.5), samples=4))
    assert all(large[key] == prompt for key, prompt in small.items())
    assert len(set(large.values())) == len(large)


def test_solver_is_perfect_and_uniform_is_at_chance(
    fakes: ModuleType, context: EvalContext
) -> None:
    config = NeedleConfig(lengths=(330, 450), depths=(0.2, 0.8), samples=3, candidates=5)
    solved = config.build()(fakes.InductionModel(), replace(context, segment=128))
    scores = {row.metric: set() for row in solved}
    for row in solved:
        scores[row.metric].add(row.value)
    assert scores["choice_accuracy"] == {1.0}
    assert scores["exact_match"] == {1.0}
    rows = config.build()(fakes.UniformModel(), context)
    chosen = [row for row in rows if row.metric == "choice_accuracy"]
    assert chosen
    assert all(row.value == pytest.approx(0.2) == pytest.approx(row.chance) for row in chosen)
    assert all(row.value == 0 for row in rows if row.metric == "exact_match")


def test_heat_map_matches_the_rows(fakes: ModuleType, context: EvalContext) -> None:
    config = NeedleConfig(lengths=(330, 340), depths=(0.2, 0.5, 0.8), samples=2, candidates=3)
    rows = config.build()(fakes.RecurrentModel(), replace(context, segment=512))
    data = json.loads((context.output / "needle_noise.json").read_text())
    for mode in ("off", "context"):
        grid = data["memorize"][mode]["answer_logprob"]
        for i, length in enumerate(config.lengths):
            for j, depth in enumerate(config.depths):
                (row,) = [
                    r
                    for r in rows
                    if (r.task, r.metric, r.memorize)
                    == (f"noise/{length}/{depth:g}", "answer_logprob", mode)
                ]
                assert grid[i][j] == row.value


def test_refusals(fakes: ModuleType, context: EvalContext) -> None:
    with pytest.raises(ConfigError, match="facts and question alone take"):
        make_grid(NeedleConfig(lengths=(40,)), context)
    evals = {"far": NeedleConfig(lengths=(40,)).build()}
    with pytest.raises(ConfigError, match=r"^far\.lengths: 40; facts"):
        run_suite(nn.Identity(), evals, context)
    with pytest.raises(ConfigError, match="depths"):
        NeedleConfig(depths=(1.5,))
    with pytest.raises(ConfigError, match="candidates"):
        NeedleConfig(candidates=10, digits=1)
    with pytest.raises(ConfigError, match="too little text"):
        make_needle(
            fakes.CharTokenizer(),
            ["Short."],
            MAKERS["single"](random.Random(0), Size(2, 3, 1, 0)),
            length=2000,
            depth=0.5,
            rng=random.Random(0),
        )


def solved(task: str, text: str) -> str:
    """The answer, read off the prompt by rules of its own."""
    body, _, question = text.partition("Question: ")
    told = re.findall(r"secret number of the (\w+ \w+) is (\d+)\.", body)
    if task == "passkey":
        return re.findall(r"pass key is (\d+)", body)[0]
    if task in ("single", "multikey"):
        return dict(told)[re.findall(r"of the (\w+ \w+)\?", question)[0]]
    if task == "multivalue":
        return ", ".join(value for _, value in told)
    if task == "multiquery":
        return ", ".join(dict(told)[key] for key in re.findall(r"the (\w+ \w+)[,?]", question))
    if task == "variables":
        value = re.findall(r"value (\d+)", question)[0]
        held: dict[str, str] = {}
        for name, what in re.findall(r"Let (\w+) = (\w+)\.", body):
            held[name] = held.get(what, what)
        return ", ".join(name for name, what in held.items() if what == value)
    if task in ("common", "frequent"):
        (words, last), *_ = (zip(*Counter(body.split()).most_common(COMMON + 1), strict=True),)
        assert last[COMMON - 1] > last[COMMON]
        return ", ".join(sorted(words[:COMMON]))
    moves = re.findall(r"(\w+) went to the (\w+)\.", body)
    person = re.findall(r"(\w+) took the", body) or re.findall(r"where is (\w+)", question)
    own = [place for name, place in moves if name == person[0]]
    before = re.findall(r"before the (\w+)", question)
    return own[own.index(before[0]) - 1] if before else own[-1]


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("haystack", ["noise", "distractor"])
def test_every_task_has_the_answer_that_its_text_gives(
    fakes: ModuleType, context: EvalContext, task: str, haystack: str
) -> None:
    """500 samples in all: exact lengths, different candidates, the first of them right."""
    if haystack != "noise" and task in ("common", "frequent"):
        with pytest.raises(ConfigError, match=f"task {task} is made of words"):
            NeedleConfig(task=task, haystack=haystack)
        return
    context = replace(context, tokenizer=fakes.CharTokenizer())
    plain = haystack == "noise" or task not in ("single", "multikey", "multivalue", "multiquery")
    config = NeedleConfig(
        task=task, haystack=haystack, lengths=(900, 1300), depths=(0.0, 0.6), samples=6, keys=3
    )
    cells = make_grid(config, context)
    decode = context.tokenizer.decode
    for cell in cells:
        for needle in cell.needles:
            assert len(needle.prompt) == cell.length
            assert len({needle.answer, *needle.others}) == config.candidates
            if plain:
                assert decode(needle.answer).strip() == solved(task, needle.text)
            if needle.depth:
                assert abs(needle.depth - cell.depth) < 0.1
    assert len({needle.prompt for cell in cells for needle in cell.needles}) == 4 * 6


def test_answers_are_not_where_they_always_were(context: EvalContext) -> None:
    """Which candidate is right cannot be told from the candidates alone."""
    for task, maker in MAKERS.items():
        size = Size(candidates=5, digits=5, keys=3, words=300)
        ranks = Counter()
        for seed in range(400):
            candidates = maker(random.Random(seed), size).candidates
            assert len(set(candidates)) == 5
            ranks[sorted(candidates).index(candidates[0])] += 1
        assert all(40 < ranks[i] < 125 for i in range(5)), task


def test_too_many_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="fewer numbers of 1 digits"):
        NeedleConfig(task="multikey", keys=12, digits=1, candidates=3)
    for task, most in (("facts2", len(PLACES) - 1), ("multiquery", 900 // 4), ("common", 200)):
        fine = NeedleConfig(task=task, candidates=most, digits=3)
        assert fine.candidates == most
        with pytest.raises(ConfigError, match=f"2 to {most}"):
            NeedleConfig(task=task, candidates=most + 1, digits=3)


def test_sentences_cut_long_lines() -> None:
    assert sentences("One. Two three!\nfour") == ["One.", "Two three!", "four"]
    assert [len(s.split()) for s in sentences("w " * 50)] == [12, 12, 12, 12, 2]
