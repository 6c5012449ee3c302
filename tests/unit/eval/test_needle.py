"""Needle prompts have the exact length and depth; known models score what they must."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import ModuleType
from zlib import crc32

import pytest

from nl.config import ConfigError
from nl.eval.context import EvalContext
from nl.eval.haystack import make_needle, sentences
from nl.eval.needle import NeedleConfig, make_grid


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
    with pytest.raises(ConfigError, match="needle and question alone take"):
        make_grid(NeedleConfig(lengths=(40,)), context)
    with pytest.raises(ConfigError, match="depths"):
        NeedleConfig(depths=(1.5,))
    with pytest.raises(ConfigError, match="candidates"):
        NeedleConfig(candidates=10, digits=1)
    with pytest.raises(ConfigError, match="too little text"):
        make_needle(
            fakes.CharTokenizer(),
            ["Short."],
            length=2000,
            depth=0.5,
            candidates=2,
            digits=3,
            rng=random.Random(0),
        )


def test_sentences_cut_long_lines() -> None:
    assert sentences("One. Two three!\nfour") == ["One.", "Two three!", "four"]
    assert [len(s.split()) for s in sentences("w " * 50)] == [12, 12, 12, 12, 2]
