"""Perplexity and bits per byte of held-out documents, per split and domain. Floor 6."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import nn

from nl.config import register, require
from nl.config.groups import EvaluatorConfig
from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, Memorize, check_memorize
from nl.eval.memorize import MemoryConfig, memory_rows
from nl.eval.progress import ProgressMeter
from nl.eval.rows import make_row, ratio_and_stderr
from nl.eval.scoring import Item, primed, scorer


@register("evaluator", "perplexity")
@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(EvaluatorConfig):
    """Nats per token, perplexity and bits per byte."""

    splits: tuple[str, ...] = ("val", "test")
    """Splits of the data directory; every domain of each is measured."""
    memorize: tuple[Memorize, ...] = ("off", "context")
    """Memorisation modes; oracle reads each document once before it is scored."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Which memories are written, for how long; steps: how often oracle reads a document first."""
    state: Literal["document", "window"] = "document"
    """document: State is carried through a document. window: it is fresh for every window."""
    window: int = 512
    """Tokens scored with one State when state=window."""
    max_documents: int = 64
    """Documents per split and domain, drawn with the seed; 0: all."""
    max_tokens: int = 2048
    """Tokens scored per document, from its start; 0: all."""

    def __post_init__(self) -> None:
        check_memorize(self.memorize)
        check_steps(self.memory, self.memorize)
        require(bool(self.splits), "splits: empty; name at least one split.")
        require(self.window >= 1, f"window: {self.window}; must be >= 1.")
        for name in ("max_documents", "max_tokens"):
            value = getattr(self, name)
            require(value >= 0, f"{name}: {value}; must be >= 0 (0: all).")

    def build(self) -> Perplexity:
        """The evaluator."""
        return Perplexity(self)


def check_steps(memory: MemoryConfig, modes: Sequence[Memorize]) -> None:
    """Refuse to read a document several times before it is scored, but where that is the mode."""
    require(
        memory.steps == 1 or "context" not in modes,
        f"memory.steps: {memory.steps}; a document has no context to be read before it: leave "
        "context out of memorize (oracle reads the document itself), or set memory.steps=1.",
    )


@dataclass(frozen=True)
class DocumentLosses:
    """One entry per document of a sample.

    Attributes:
        nats: summed negative log-likelihood.
        tokens: scored tokens (all of the document's; the mark that ends it is not scored).
        bytes: UTF-8 bytes of the scored text.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]

    def __add__(self, other: DocumentLosses) -> DocumentLosses:
        return DocumentLosses(
            self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes
        )

    def loss(self) -> tuple[float, float | None]:
        """Nats per token and its standard error over documents."""
        return ratio_and_stderr(self.nats, self.tokens)

    def bits_per_byte(self) -> tuple[float, float | None]:
        """Bits per UTF-8 byte and its standard error over documents."""
        return ratio_and_stderr([nats / math.log(2) for nats in self.nats], self.bytes)


class EncodedText(NamedTuple):
    """A document as it is scored.

    Attributes:
        tokens: its ids (not empty).
        bytes: the UTF-8 bytes they stand for.
        name: digest of the text, so that the same document is known again.
    """

    tokens: tuple[int, ...]
    bytes: int
    name: str = ""


def sample_documents(
    context: EvalContext, split: str, domain: str, *, max_documents: int, max_tokens: int
) -> list[EncodedText]:
    """Documents of a domain, encoded and cut, the same ones for every model and mode.

    Raises:
        ConfigError: no data, no such split or domain, or no text in it.
    """
    found = []
    for text in context.texts(split, domain, context.capped(max_documents)):
        tokens = context.tokenizer.encode(text)
        if max_tokens and len(tokens) > max_tokens:
            tokens = tokens[:max_tokens]
            text = context.tokenizer.decode(tokens)
        raw = text.encode()
        found.append(EncodedText(tuple(tokens), len(raw), hashlib.sha256(raw).hexdigest()[:16]))
    return found


def document_losses(
    model: nn.Module,
    documents: Sequence[EncodedText],
    context: EvalContext,
    *,
    memorize: Memorize,
    window: int = 0,
    memory: MemoryConfig | None = None,
    title: str = "perplexity",
) -> DocumentLosses:
    """Losses of documents, each read from a fresh State after the mark that ends a document.

    Args:
        model: a language model.
        documents: what to score.
        context: batch size, segment length, device, tokenizer.
        memorize: the memorisation mode.
        window: 0 carries State through a document; else it is fresh every ``window`` tokens,
            and a window's first token is predicted from the one before it.
        memory: which memories are written, how often, for how long.
        title: what the progress is called: what is measured, on which documents.
    """
    memory = memory or MemoryConfig()
    steps = memory.steps if memorize == "oracle" else 1
    items: list[Item] = []
    owner: list[int] = []
    for number, document in enumerate(documents):
        tokens = (context.tokenizer.eos_id, *document.tokens)
        size = window or len(document.tokens)
        for start in range(0, len(document.tokens), size):
            item = Item((tokens[start],), tokens[start + 1 : start + 1 + size])
            items.append(primed(item, item.context + item.continuation, memorize, steps))
            owner.append(number)
    with ProgressMeter(f"{title} ({memorize})", len(items), "texts") as meter:
        judge = scorer(model, context, memorize, meter.advance, memory, whole=True)
        scores = judge.score(items)
    nats = [0.0] * len(documents)
    for number, score in zip(owner, scores, strict=True):
        nats[number] -= score.total
    return DocumentLosses(
        tuple(nats),
        tuple(len(document.tokens) for document in documents),
        tuple(document.bytes for document in documents),
    )


def keep_samples(
    context: EvalContext,
    task: str,
    mode: Memorize,
    documents: Sequence[EncodedText],
    losses: DocumentLosses,
) -> None:
    """Every document in the evaluation's record."""
    places = zip(documents, losses.nats, losses.tokens, losses.bytes, strict=True)
    for number, (document, nats, tokens, size) in enumerate(places):
        values = {
            "nats_per_token": [nats, tokens],
            "bits_per_byte": [nats / math.log(2), size],
        }
        context.record.add(task, mode, f"{number}-{document.name}", values)


@dataclass(frozen=True)
class Perplexity:
    """The evaluator of ``PerplexityConfig``."""

    config: PerplexityConfig

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per split, domain, memorisation mode and metric."""
        config = self.config
        rows: list[EvalRow] = []
        samples = {
            split: {
                domain: sample_documents(
                    context,
                    split,
                    domain,
                    max_documents=config.max_documents,
                    max_tokens=config.max_tokens,
                )
                for domain in context.domains(split)
            }
            for split in config.splits
        }
        for mode in config.memorize:
            for split, domains in samples.items():
                rows += self._split(model, context, split, mode, domains)
            for domain, documents in samples[config.splits[0]].items():
                texts = [(context.tokenizer.eos_id, *document.tokens) for document in documents]
                task = f"{config.splits[0]}/{domain}"
                rows += memory_rows("perplexity", task, model, context, mode, config.memory, texts)
        return rows

    def _split(
        self,
        model: nn.Module,
        context: EvalContext,
        split: str,
        mode: Memorize,
        domains: dict[str, list[EncodedText]],
    ) -> list[EvalRow]:
        rows: list[EvalRow] = []
        total: DocumentLosses | None = None
        window = self.config.window if self.config.state == "window" else 0
        began = time.monotonic()
        for domain, documents in domains.items():
            start, task = time.monotonic(), f"{split}/{domain}"
            losses = document_losses(
                model,
                documents,
                context,
                memorize=mode,
                window=window,
                memory=self.config.memory,
                title=f"perplexity {task}",
            )
            seconds = time.monotonic() - start
            keep_samples(context, task, mode, documents, losses)
            rows += self._rows(task, losses, mode, seconds, context)
            total = losses if total is None else total + losses
        if total is not None and len(domains) > 1:
            seconds = time.monotonic() - began
            rows += self._rows(f"{split}/all", total, mode, seconds, context)
        return rows

    def _rows(
        self,
        task: str,
        losses: DocumentLosses,
        mode: Memorize,
        seconds: float,
        context: EvalContext,
    ) -> list[EvalRow]:
        loss, loss_error = losses.loss()
        bits, bits_error = losses.bits_per_byte()
        uniform = math.log(context.tokenizer.vocab_size)
        tokens = sum(losses.tokens)
        ppl = math.exp(loss) if loss < 700 else math.inf
        numbers = {
            "nats_per_token": (loss, loss_error, uniform),
            "perplexity": (ppl, loss_error and ppl * loss_error, math.exp(uniform)),
            "bits_per_byte": (bits, bits_error, uniform * tokens / sum(losses.bytes) / math.log(2)),
        }
        policy = (
            self.config.memory.policy("document, carried inside", mode)
            if self.config.state == "document"
            else f"State fresh every {self.config.window} tokens"
        )
        return [
            make_row(
                "perplexity",
                task,
                metric,
                value,
                len(losses.tokens),
                stderr=error,
                seconds=seconds,
                memorize=mode,
                chance=chance,
                note=f"{tokens} tokens; {policy}",
            )
            for metric, (value, error, chance) in numbers.items()
        ]
