"""Answers that are decoded and parsed: strictly, in batches as one by one, with every mode."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nl.config import ConfigError
from nl.eval.context import EvalContext
from nl.eval.decode import items_of, judged, write_answers
from nl.eval.memorize import MemoryConfig
from nl.eval.needle import NeedleConfig
from nl.eval.scoring import Scorer


@pytest.mark.parametrize(
    ("text", "answer", "exact", "share"),
    [
        (" 1234", " 1234", True, 1.0),
        ("1234. The river", "1234", True, 1.0),
        ("1234\n", "1234", True, 1.0),
        ("12345", "1234", False, 0.0),  # no substring of a longer number
        ("234", "1234", False, 0.0),
        ("1234 and more", "1234", False, 0.0),
        ("is 1234", "1234", False, 0.0),
        ("17, 172, 9", "17, 172, 9", True, 1.0),
        ("172, 17, 9", "17, 172, 9", False, 1.0),  # another order
        ("17, 9", "17, 172, 9", False, 2 / 3),
        ("17, 172, 9, 5", "17, 172, 9", False, 1.0),  # one too many
        ("kitchen", "Kitchen", False, 0.0),
        ("", "1", False, 0.0),
    ],
)
def test_parsing_is_strict(text: str, answer: str, exact: bool, share: float) -> None:
    found = judged(text, answer)
    assert (found.exact, found.share) == (exact, pytest.approx(share))
    assert found.text == text


def test_items_end_where_the_sentence_ends() -> None:
    assert items_of(" a, b , c! d, e") == ["a", "b", "c"]


class Parrot(nn.Module):
    """Writes the last ``#answer#`` of what it has read, then the end mark; state: all it read.

    Likelier than both is an id that no tokenizer knows.
    """

    vocab = 130

    def forward(self, tokens: torch.Tensor, state: Any = None, write: bool = True) -> Any:
        seen = tokens if state is None else torch.cat([state, tokens], 1)
        logits = torch.zeros(*tokens.shape, self.vocab)
        logits[..., 129] = 9.0
        for row, ids in enumerate(seen.tolist()):
            text = "".join(map(chr, ids))
            if "?" not in text:
                continue
            told = text.split("#")[-2] if text.count("#") >= 2 else ""
            done = len(text) - text.rindex("?") - 1
            after = told[done : done + 1] if write else "x"
            logits[row, -1, ord(after) if after else 0] = 5.0
        return SimpleNamespace(pred=logits, state=seen)


def scorer(batch_size: int, write: bool = True) -> Scorer:
    sizes = {"batch_size": batch_size, "segment": 7}
    return Scorer(model=Parrot(), write=write, device="cpu", memory=MemoryConfig(), **sizes)


PROMPTS = ["noise #12# hay ?", "other #3456# n ?", "#78# long noise here ?", "hay #9# hay ha ?"]
ANSWERS = ["12", "3456", "77", "9"]


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_answers_end_one_by_one_and_do_not_depend_on_the_batch(fakes: ModuleType) -> None:
    tokenizer = fakes.CharTokenizer()
    prompts, answers = [ids(p) for p in PROMPTS], [ids(a) for a in ANSWERS]
    whole = write_answers(scorer(4), tokenizer, prompts, answers)
    pairs = zip(prompts, answers, strict=True)
    assert whole == [write_answers(scorer(1), tokenizer, [p], [a])[0] for p, a in pairs]
    assert [one.text for one in whole] == ["12", "3456", "78", "9"]
    assert [one.exact for one in whole] == [True, True, False, True]
    frozen = write_answers(scorer(4, write=False), tokenizer, prompts, answers)
    assert [one.text for one in frozen] == ["x" * (len(a) + 4) for a in ANSWERS]


def test_generated_equals_greedy_match_of_likelihoods(
    fakes: ModuleType, context: EvalContext, tmp_path: Any
) -> None:
    """Where one token is one character both questions have the same answer."""
    context = replace(context, tokenizer=fakes.CharTokenizer(), output=tmp_path)
    config = {"lengths": (300,), "depths": (0.0, 1.0), "samples": 4, "memorize": ("off", "oracle")}
    model = fakes.RecurrentModel()
    rows = {
        scoring: NeedleConfig(scoring=scoring, **config).build()(model, context)
        for scoring in ("likelihood", "generate")
    }
    named = {
        scoring: {(r.task, r.memorize, r.metric): r for r in found}
        for scoring, found in rows.items()
    }
    for (task, mode, metric), row in named["generate"].items():
        if metric == "generated_match":
            twin = named["likelihood"][task, mode, "exact_match"]
            assert row.value <= twin.value
            assert row.chance == twin.chance == 1 / 9000
            assert row.n == 4
    files = sorted(tmp_path.glob("written_noise_*.json"))
    assert len(files) == 4
    told = json.loads(files[0].read_text())
    assert {"answer", "text", "exact", "share", "length", "depth"} <= told[0].keys()
    data = json.loads((tmp_path / "needle_noise.json").read_text())
    assert data["scoring"] == "generate"
    low, high = data["intervals"]["off"]["generated_match"][0][0]
    assert 0 <= low < high <= 1


def test_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="scoring: generate; every answer is written"):
        NeedleConfig(scoring="generate", memory=MemoryConfig(carry=True))
