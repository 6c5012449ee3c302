"""Our models behind lm_eval's interface: every request is read from a fresh State. Floor 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nl.config import ConfigError
from nl.eval.context import EvalContext, Memorize, evaluating
from nl.eval.memorize import MemoryConfig, Tokens
from nl.eval.progress import ProgressMeter
from nl.eval.requests import Begin, Encoding
from nl.eval.scoring import Item, Scorer, primed, scorer, shared_out

PIECE = 32
"""Tokens generated between two looks for a stop text."""

MOST_TOKENS = 256
"""Tokens generated where a task does not say, as in lm_eval's hf model."""

Gold = Callable[[Any, Sequence[Any]], Any]
"""(request, all requests) -> the request that holds the right answer (oracle only)."""


@dataclass(frozen=True)
class Answers:
    """Answers to lm_eval's requests; ``NestedHarness`` below only forwards to it.

    Attributes:
        model: a language model.
        context: tokenizer, device, batch size, the team that shares the batches.
        memorize: the memorisation mode of every request.
        gold: for ``oracle``, finds the right answer among the requests of a document.
        memory: which memories write, how often, for how long.
        begin: what stands before a text; see ``nl.eval.requests``.
        max_length: tokens that are read for one answer; 0: no limit.
        texts: what was read for the items that were scored.
        answer: for ``oracle``, the right text of a request that generates one.
        title: what the progress is called.
    """

    model: nn.Module
    context: EvalContext
    memorize: Memorize
    gold: Gold | None = None
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    begin: Begin = "text"
    max_length: int = 0
    texts: list[Tokens] = field(default_factory=list)
    answer: Callable[[Any], str] | None = None
    title: str = "zeroshot"

    @property
    def encoding(self) -> Encoding:
        """How texts become token ids."""
        return Encoding(self.context.tokenizer, self.begin, self.max_length)

    def pair(self, request: Any) -> Item:
        """Context and continuation of a request."""
        before, after = request.args
        return self.encoding.pair(before, after)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, greedy match) per request."""
        items = [self.pair(request) for request in requests]
        if self.memorize == "context":
            items = [primed(item, (), self.memorize, self.memory.steps) for item in items]
        if self.memorize == "oracle":
            if self.gold is None:
                raise ConfigError("memorize: oracle needs to know the right answers.")
            answers = [self.pair(self.gold(request, requests)) for request in requests]
            items = [
                primed(
                    item,
                    answer.context + answer.continuation,
                    self.memorize,
                    self.memory.steps,
                )
                for item, answer in zip(items, answers, strict=True)
            ]
        self.texts.extend(item.context for item in items)
        return self.score(items)

    def rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of whole texts; State is carried through each window of a text."""
        windows = [self.encoding.whole(request.args[0]) for request in requests]
        steps = self.memory.steps if self.memorize == "oracle" else 1
        items = [
            primed(item, item.context + item.continuation, self.memorize, steps)
            for found in windows
            for item in found
        ]
        self.texts.extend(item.context + item.continuation for item in items)
        scores = iter(self.score(items))
        return [sum((next(scores)[0] for _ in found), 0.0) for found in windows]

    def score(self, items: Sequence[Item]) -> list[tuple[float, bool]]:
        """Total and greedy match per item."""
        with ProgressMeter(f"{self.title} ({self.memorize})", len(items), "answers") as meter:
            judge = scorer(self.model, self.context, self.memorize, meter.advance, self.memory)
            scores = judge.score(items)
        return [(score.total, score.greedy) for score in scores]

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """Continuations up to a stop text; with ``oracle`` prompt and answer are read before."""
        if self.memory.carry:
            raise ConfigError(
                "memory.carry: not defined for tasks that generate text; leave it at false."
            )
        asked = [self.primed(request) for request in requests]
        self.texts.extend(prompt for prompt, _ in asked)
        judge = scorer(self.model, self.context, self.memorize, memory=self.memory)
        return _generate(judge, self.context, f"{self.title} ({self.memorize})", asked)

    def primed(self, request: Any) -> tuple[Tokens, dict[str, Any]]:
        """``prompt``, with what is read before it by the mode."""
        prompt, options = self.prompt(request)
        shown: Tokens = ()
        if self.memorize == "oracle":
            if self.answer is None:
                raise ConfigError("memorize: oracle needs to know the right answers.")
            item = self.encoding.pair(request.args[0], self.answer(request))
            shown = item.context + item.continuation
        return primed(Item(prompt, ()), shown, self.memorize, self.memory.steps).context, options

    def prompt(self, request: Any) -> tuple[Tokens, dict[str, Any]]:
        """The prompt of a request and what is asked for: ``until``, ``max_gen_toks``, sampling."""
        from lm_eval.models.utils import normalize_gen_kwargs

        text, given = request.args
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, MOST_TOKENS))
        mark = getattr(self.context.tokenizer, "piece", None)
        if mark is not None:  # as the hf model does: the mark ends a text when it is written out
            options["until"] = [*options["until"], mark(self.context.tokenizer.eos_id)]
        return self.encoding.prompt(text, options["max_gen_toks"]), options


def harness_model(answers: Answers) -> Any:
    """An ``lm_eval.api.model.TemplateLM`` that answers with our model."""
    from lm_eval.api.model import TemplateLM

    tokenizer = answers.context.tokenizer

    class NestedHarness(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_id

        @property
        def tokenizer_name(self) -> str:
            return str(getattr(tokenizer, "sha256", "nl"))

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return answers.score([Item(tuple(a), tuple(b)) for _, a, b in requests])

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return answers.loglikelihood(requests)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            return answers.rolling(requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return answers.generate(requests)

    return NestedHarness()


def _generate(
    judge: Scorer,
    context: EvalContext,
    title: str,
    asked: list[tuple[Tokens, dict[str, Any]]],
) -> list[str]:
    """Prompts of one length and one set of options go together; rows never share a pad."""
    groups: dict[tuple[int, str], list[int]] = {}
    for index, (prompt, options) in enumerate(asked):
        groups.setdefault((len(prompt), repr(options)), []).append(index)
    size = judge.batch_size
    batches = [
        members[at : at + size]
        for _, members in sorted(groups.items(), reverse=True)
        for at in range(0, len(members), size)
    ]
    texts: list[str | None] = [None] * len(asked)
    model, team = judge.model, context.team
    with (
        ProgressMeter(title, len(asked), "prompts") as meter,
        evaluating(model),
        judge.memory.gated(model),
    ):
        for rows in batches[team.rank :: team.world]:
            prompts = [asked[index][0] for index in rows]
            found = generate_rows(judge, context, prompts, asked[rows[0]][1])
            for index, text in zip(rows, found, strict=True):
                texts[index] = text
            meter.advance(len(rows))
    return [text or "" for text in shared_out(team, texts)]


def generate_rows(
    judge: Scorer, context: EvalContext, prompts: list[Tokens], options: dict[str, Any]
) -> list[str]:
    """Continue prompts of equal length, State streamed, until a stop text or the limit.

    Args:
        judge: model and write policy.
        context: tokenizer and seed.
        prompts: token ids, all of one length.
        options: ``until`` (list), ``max_gen_toks``, ``temperature`` (0: greedy).
    """
    stops, limit = options["until"], int(options["max_gen_toks"])
    temperature = float(options.get("temperature", 0.0))
    tokens = torch.tensor(prompts, device=judge.device)
    _, state = judge.advance(tokens[:, :-1])
    rows: list[list[int]] = [[] for _ in prompts]
    done = 0
    frozen = {} if judge.knobs is None else {"knobs": judge.knobs}
    while done < limit:
        new, state = judge.model.generate(  # type: ignore[operator]
            tokens[:, -1:],
            max_new_tokens=min(PIECE, limit - done),
            temperature=temperature,
            seed=context.seed + done,
            vocab_size=context.tokenizer.vocab_size,
            state=state,
            write=judge.write,
            **frozen,
        )
        for row, more in zip(rows, new.tolist(), strict=True):
            row.extend(more)
        done += new.shape[1]
        tokens = new
        if all(_ended(context, row, stops) for row in rows):
            break
    return [_until(context, row, stops) for row in rows]


def _ended(context: EvalContext, row: list[int], stops: list[str]) -> bool:
    if context.tokenizer.eos_id in row:
        return True
    text = context.tokenizer.decode(row)
    return any(stop in text for stop in stops if stop)


def _until(context: EvalContext, row: list[int], stops: list[str]) -> str:
    """The text up to the end mark or the first stop text."""
    eos = context.tokenizer.eos_id
    text = context.tokenizer.decode(row[: row.index(eos)] if eos in row else row)
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text
