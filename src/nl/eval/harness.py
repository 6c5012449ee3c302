"""Our models behind lm_eval's interface. Floor 6.

Every text is read from a fresh State after the mark that ends a document, as in training.
"""

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
from nl.eval.scoring import Item, Scorer, primed, scorer

PIECE = 32
"""Tokens generated between two looks for a stop text."""

Gold = Callable[[Any, Sequence[Any]], Any]
"""(request, all requests) -> the request that holds the right answer (oracle only)."""


@dataclass(frozen=True)
class Answers:
    """Answers to lm_eval's requests; ``NestedHarness`` below only forwards to it.

    Attributes:
        model: a language model.
        context: tokenizer, device, batch size.
        memorize: the memorisation mode of every request.
        gold: for ``oracle``, finds the right answer among the requests of a document.
        memory: which memories write, how often, for how long.
        texts: contexts of the items that were scored, as they were read.
    """

    model: nn.Module
    context: EvalContext
    memorize: Memorize
    gold: Gold | None = None
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    texts: list[Tokens] = field(default_factory=list)

    def pair(self, request: Any) -> Item:
        """Context and continuation, encoded together and cut where the context alone ends."""
        before, after = request.args
        tokenizer = self.context.tokenizer
        stripped = before.rstrip()
        after = before[len(stripped) :] + after
        ids = tokenizer.encode(stripped) if stripped else []
        whole = tokenizer.encode(stripped + after)
        return Item((tokenizer.eos_id, *ids), tuple(whole[len(ids) :]))

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
        return self.score(items)

    def rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of whole texts, State carried through each; no text is cut."""
        tokenizer = self.context.tokenizer
        mark = (tokenizer.eos_id,)
        texts = [tuple(tokenizer.encode(request.args[0])) for request in requests]
        steps = self.memory.steps if self.memorize == "oracle" else 1
        found = [(Item(mark, text), mark + text) for text in texts if text]
        items = [primed(item, shown, self.memorize, steps) for item, shown in found]
        scores = iter(self.score(items))
        return [next(scores)[0] if text else 0.0 for text in texts]

    def score(self, items: Sequence[Item]) -> list[tuple[float, bool]]:
        """Total and greedy match per item."""
        self.texts.extend(item.context for item in items)
        with ProgressMeter(f"log-likelihoods ({self.memorize})", len(items)) as meter:
            judge = scorer(self.model, self.context, self.memorize, meter.advance, self.memory)
            scores = judge.score(items)
        return [(score.total, score.greedy) for score in scores]

    def generate(self, requests: Sequence[Any]) -> list[str]:
        """Continuations up to a stop text."""
        if self.memorize == "oracle":
            raise ConfigError("memorize: oracle is not defined for tasks that generate text.")
        if self.memory.carry or self.memory.steps > 1:
            raise ConfigError(
                "memory.carry, memory.steps: not defined for tasks that generate text; leave them "
                "at false and 1."
            )
        pairs = [request.args for request in requests]
        judge = scorer(self.model, self.context, self.memorize, memory=self.memory)
        return _generate(judge, self.context, self.memorize, pairs)


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
    memorize: Memorize,
    requests: list[tuple[str, dict[str, Any]]],
) -> list[str]:
    """Prompts of one length and one set of options go together; rows never share a pad."""
    groups: dict[tuple[int, str], list[int]] = {}
    prompts = [(context.tokenizer.eos_id, *context.tokenizer.encode(text)) for text, _ in requests]
    for index, (_, options) in enumerate(requests):
        groups.setdefault((len(prompts[index]), repr(options)), []).append(index)
    texts = [""] * len(requests)
    model = judge.model
    with (
        ProgressMeter(f"generate ({memorize})", len(requests)) as meter,
        evaluating(model),
        judge.memory.gated(model),
    ):
        for (_, _), members in sorted(groups.items(), reverse=True):
            for at in range(0, len(members), context.batch_size):
                rows = members[at : at + context.batch_size]
                batch = [prompts[index] for index in rows]
                found = generate_rows(judge, context, batch, requests[rows[0]][1])
                for index, text in zip(rows, found, strict=True):
                    texts[index] = text
                meter.advance(len(rows))
    return texts


def generate_rows(
    judge: Scorer, context: EvalContext, prompts: list[Tokens], options: dict[str, Any]
) -> list[str]:
    """Continue prompts of equal length, State streamed, until a stop text or the limit.

    Args:
        judge: model and write policy.
        context: tokenizer and seed.
        prompts: token ids, all of one length.
        options: ``until`` (text or list), ``max_gen_toks``, ``do_sample``, ``temperature``.
    """
    until = options.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    limit = int(options.get("max_gen_toks", 256))
    temperature = float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0
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
