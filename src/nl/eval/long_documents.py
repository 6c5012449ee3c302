"""Perplexity by position over long documents: does what was read a long time ago help? Floor 6.

A document is read once from its beginning with State carried through it, and every token's loss is
counted in the bucket of its position. A model that uses what it read further back keeps getting
better along the document; one with a window of attention does so up to the window. With
``state=window`` State is fresh every so many tokens, positions in the document stay what they are:
what the same model scores without the long past.
"""

from __future__ import annotations

import csv
import io
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.core.protocols import EvalRow
from nl.core.seeds import SeedBook
from nl.eval.context import EvalContext, Memorize, check_memorize
from nl.eval.memorize import MemoryConfig, memory_rows
from nl.eval.perplexity import EncodedText, check_steps, sample_documents
from nl.eval.progress import ProgressMeter
from nl.eval.rows import make_row, ratio_and_stderr, save_json, save_text
from nl.eval.scoring import Item, primed, scorer

FIRST = 64
"""End of the first bucket; each of the next ones is as long as all before it."""
DRAWN = 256
"""Documents drawn at least, to choose long ones among."""


@register("evaluator", "long_documents")
@dataclass(frozen=True, kw_only=True)
class LongDocumentsConfig(EvaluatorConfig):
    """Loss by position in long documents, State carried through them."""

    split: str = "test"
    """Split of the documents."""
    domains: tuple[str, ...] = ()
    """Domains of the split; empty: all."""
    documents: int = 64
    """Documents per domain, drawn with the seed among those that are long enough; 0: all."""
    tokens: int = 2048
    """Tokens scored per document, from its start; 0: all."""
    least: int = 0
    """Documents of fewer tokens are left out; 0: those that do not reach the second bucket."""
    buckets: tuple[int, ...] = ()
    """Ends of the buckets of positions; empty: 64, 128, 256, ... up to the longest document."""
    state: Literal["document", "window"] = "document"
    """document: State is carried through a document. window: it is fresh for every window."""
    window: int = 512
    """Tokens scored with one State when state=window."""
    memorize: tuple[Memorize, ...] = ("off", "context")
    """Memorisation modes; oracle reads each document once before it is scored."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Which memories are written, for how long; steps: how often oracle reads a document first."""

    def __post_init__(self) -> None:
        check_memorize(self.memorize)
        check_steps(self.memory, self.memorize)
        for name in ("documents", "tokens", "least"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0.")
        require(self.window >= 1, f"window: {self.window}; must be >= 1.")
        rising = all(a < b for a, b in zip((0, *self.buckets), self.buckets, strict=False))
        require(rising, f"buckets: {list(self.buckets)}; rising numbers of tokens, the first > 0.")

    def build(self) -> LongDocuments:
        """The evaluator."""
        return LongDocuments(self)


def bucket_ends(config: LongDocumentsConfig, longest: int) -> tuple[int, ...]:
    """Ends of the buckets, the last one that of the longest document."""
    ends = list(config.buckets) or [FIRST]
    while not config.buckets and ends[-1] < longest:
        ends.append(2 * ends[-1])
    kept = [end for end in ends if end < longest]
    return (*kept, longest)


def long_texts(config: LongDocumentsConfig, context: EvalContext, domain: str) -> list[EncodedText]:
    """Documents of a domain that are long enough, cut; the same ones for every model and mode.

    Raises:
        ConfigError: there is none.
    """
    wanted = context.capped(config.documents)
    drawn = sample_documents(
        replace(context, limit=0),
        config.split,
        domain,
        max_documents=wanted and max(DRAWN, 4 * wanted),
        max_tokens=config.tokens,
    )
    first = config.buckets[0] if config.buckets else FIRST
    least = config.least or min(first + 1, config.tokens or first + 1)
    found = [text for text in drawn if len(text.tokens) >= least]
    if not found:
        most = max(len(text.tokens) for text in drawn)
        raise ConfigError(
            f"least: no document of {config.split}/{domain} has {least} tokens, the longest has "
            f"{most}; lower least or buckets, or give longer texts."
        )
    rng = random.Random(SeedBook(context.seed).seed("eval", "long_documents", domain))
    places = sorted(rng.sample(range(len(found)), min(wanted or len(found), len(found))))
    return [found[place] for place in places]


def losses_by_token(
    model: nn.Module,
    documents: Sequence[EncodedText],
    context: EvalContext,
    config: LongDocumentsConfig,
    mode: Memorize,
    task: str,
) -> list[torch.Tensor]:
    """Nats of every token of every document, float64 (T,)."""
    mark, memory = context.tokenizer.eos_id, config.memory
    steps = memory.steps if mode == "oracle" else 1
    items: list[Item] = []
    owner: list[int] = []
    for number, document in enumerate(documents):
        tokens = (mark, *document.tokens)
        size = config.window if config.state == "window" else len(document.tokens)
        for start in range(0, len(document.tokens), size):
            item = Item((tokens[start],), tokens[start + 1 : start + 1 + size])
            items.append(primed(item, item.context + item.continuation, mode, steps))
            owner.append(number)
    with ProgressMeter(f"long documents {task} ({mode})", len(items), "texts") as meter:
        judge = scorer(model, context, mode, meter.advance, memory, whole=True)
        scores = judge.score(items)
    parts: list[list[torch.Tensor]] = [[] for _ in documents]
    for number, score in zip(owner, scores, strict=True):
        parts[number].append(-score.logprobs.double())
    return [torch.cat(part) for part in parts]


class Bucket(NamedTuple):
    """Tokens of the positions ``first`` to ``end`` - 1, over documents."""

    first: int
    end: int
    nats_per_token: float
    stderr: float | None
    documents: int
    tokens: int


def by_position(losses: Sequence[torch.Tensor], ends: tuple[int, ...]) -> list[Bucket]:
    """Loss by bucket of positions; the error's sampling unit is the document."""
    found = []
    for first, end in zip((0, *ends), ends, strict=False):
        parts = [nats[first:end] for nats in losses if len(nats) > first]
        sizes = [len(part) for part in parts]
        value, error = ratio_and_stderr([float(part.sum()) for part in parts], sizes)
        found.append(Bucket(first, end, value, error, len(parts), sum(sizes)))
    return found


@dataclass(frozen=True)
class LongDocuments:
    """The evaluator of ``LongDocumentsConfig``; curves go to ``positions.json`` and ``.csv``."""

    config: LongDocumentsConfig

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per domain, bucket of positions and memorisation mode."""
        config, memory = self.config, self.config.memory
        rows: list[EvalRow] = []
        curves: list[dict[str, Any]] = []
        for domain in config.domains or context.domains(config.split):
            documents = long_texts(config, context, domain)
            task = f"{config.split}/{domain}"
            ends = bucket_ends(config, max(len(document.tokens) for document in documents))
            texts = [(context.tokenizer.eos_id, *document.tokens) for document in documents]
            for mode in config.memorize:
                start = time.monotonic()
                losses = losses_by_token(model, documents, context, config, mode, task)
                seconds = time.monotonic() - start
                buckets = by_position(losses, ends)
                found = self._rows(task, mode, documents, losses, buckets, context)
                rows += [replace(row, memorize=mode, seconds=seconds) for row in found]
                keep_samples(context, task, mode, documents, losses, ends)
                curves.append(
                    {"task": task, "memorize": mode, "buckets": [b._asdict() for b in buckets]}
                )
                rows += memory_rows("long_documents", task, model, context, mode, memory, texts)
        policy = {"state": config.state, "window": config.window}
        save_json(context.output / "positions.json", {"policy": policy, "curves": curves})
        save_text(context.output / "positions.csv", as_csv(curves))
        return rows

    def _rows(
        self,
        task: str,
        mode: Memorize,
        documents: Sequence[EncodedText],
        losses: Sequence[torch.Tensor],
        buckets: Sequence[Bucket],
        context: EvalContext,
    ) -> list[EvalRow]:
        """Nats per bucket; then nats, perplexity and bits per byte of everything."""
        uniform = math.log(context.tokenizer.vocab_size)
        config = self.config
        policy = (
            config.memory.policy("document, carried inside", mode)
            if config.state == "document"
            else f"State fresh every {config.window} tokens"
        )

        def row(place: str, metric: str, value: float, bucket: Bucket, **more: Any) -> EvalRow:
            note = f"{bucket.tokens} tokens; {policy}"
            return make_row(
                "long_documents", place, metric, value, bucket.documents, note=note, **more
            )

        rows = [
            row(
                f"{task}/{bucket.first}-{bucket.end}",
                "nats_per_token",
                bucket.nats_per_token,
                bucket,
                stderr=bucket.stderr,
                chance=uniform,
            )
            for bucket in buckets
        ]
        (whole,) = by_position(losses, (buckets[-1].end,))
        loss, error = whole.nats_per_token, whole.stderr
        ppl = math.exp(loss) if loss < 700 else math.inf
        sizes = [document.bytes for document in documents]
        bits, bits_error = ratio_and_stderr(
            [float(nats.sum()) / math.log(2) for nats in losses], sizes
        )
        guess = uniform * whole.tokens / sum(sizes) / math.log(2)
        rows.append(row(task, "nats_per_token", loss, whole, stderr=error, chance=uniform))
        wide = error and ppl * error
        rows.append(row(task, "perplexity", ppl, whole, stderr=wide, chance=math.exp(uniform)))
        rows.append(row(task, "bits_per_byte", bits, whole, stderr=bits_error, chance=guess))
        return rows


def keep_samples(
    context: EvalContext,
    task: str,
    mode: Memorize,
    documents: Sequence[EncodedText],
    losses: Sequence[torch.Tensor],
    ends: tuple[int, ...],
) -> None:
    """Every document in the evaluation's record, whole and by bucket."""
    for number, (document, nats) in enumerate(zip(documents, losses, strict=True)):
        name = f"{number}-{document.name}"
        total = float(nats.sum())
        values = {
            "nats_per_token": [total, len(nats)],
            "bits_per_byte": [total / math.log(2), document.bytes],
        }
        context.record.add(task, mode, name, values)
        for first, end in zip((0, *ends), ends, strict=False):
            part = nats[first:end]
            if len(part):
                place = f"{task}/{first}-{end}"
                sums = {"nats_per_token": [float(part.sum()), len(part)]}
                context.record.add(place, mode, name, sums)


def as_csv(curves: Sequence[dict[str, Any]]) -> str:
    """One line per task, mode and bucket."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("task", "memorize", *Bucket._fields))
    for one in curves:
        for bucket in one["buckets"]:
            writer.writerow((one["task"], one["memorize"], *bucket.values()))
    return out.getvalue()
