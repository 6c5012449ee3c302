"""Answers written by greedy decoding, parsed strictly. Floor 6.

What is written is cut at the first end of a line or sentence and at the end mark; what is left has
to be the answer: numbers and words are compared whole, lists item by item, so that 17 is not found
in 172. ``share`` is the share of the wanted items that were written (RULER's string match, without
its substrings).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from nl.core.state import select_rows
from nl.eval.context import Tokenizer, evaluating
from nl.eval.memorize import Tokens
from nl.eval.scoring import Scorer

ENDS = re.compile(r"[.!?\n]")
MORE = 4
"""Tokens that may be written beyond the length of the answer: an end, or too much."""


class Written(NamedTuple):
    """One decoded answer.

    Attributes:
        text: as the model wrote it, up to the end mark.
        exact: it is the answer and nothing else.
        share: of the wanted items, those that were written.
    """

    text: str
    exact: bool
    share: float


def items_of(text: str) -> list[str]:
    """What stands before the first end of a sentence or line, cut at commas."""
    first = ENDS.split(text.strip(), maxsplit=1)[0]
    return [item.strip() for item in first.split(",")]


def judged(text: str, answer: str) -> Written:
    """Compare what was written with the answer."""
    found, wanted = items_of(text), items_of(answer)
    share = sum(item in found for item in wanted) / len(wanted)
    return Written(text, found == wanted, share)


def write_answers(
    judge: Scorer, tokenizer: Tokenizer, prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> list[Written]:
    """Decode greedily after every prompt, State fresh for each, and compare with the answers.

    Args:
        judge: its model, write policy, batch size and segment are used.
        tokenizer: turns ids into text.
        prompts: token ids.
        answers: token ids of what should follow; only their text and number matter.
    """
    written: dict[int, Written] = {}
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    with evaluating(judge.model), judge.memory.gated(judge.model):
        for group in groups.values():
            for at in range(0, len(group), judge.batch_size):
                rows = group[at : at + judge.batch_size]
                steps = max(len(answers[row]) for row in rows) + MORE
                decoded = _greedy(judge, [prompts[row] for row in rows], steps, tokenizer)
                for row, ids in zip(rows, decoded, strict=True):
                    kept = ids[: len(answers[row]) + MORE]
                    wanted = tokenizer.decode(list(answers[row]))
                    written[row] = judged(tokenizer.decode(kept), wanted)
                if judge.on_progress:
                    judge.on_progress(len(rows))
    return [written[index] for index in range(len(prompts))]


def _greedy(
    judge: Scorer, prompts: Sequence[Tokens], steps: int, tokenizer: Tokenizer
) -> list[list[int]]:
    """The likeliest known token again and again, up to the end mark; prompts are of one length."""
    end = tokenizer.eos_id
    last, state = judge.advance(torch.tensor(prompts))
    found: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for step in range(steps):
        tokens = last[:, : tokenizer.vocab_size].float().argmax(-1).tolist()
        going = [place for place, token in enumerate(tokens) if token != end]
        for place in going:
            found[alive[place]].append(tokens[place])
        if not going or step == steps - 1:
            break
        if len(going) < len(alive):
            alive = [alive[place] for place in going]
            state = select_rows(state, going)
        last, state = judge.advance(torch.tensor([[tokens[place]] for place in going]), state)
    return found
