"""Train a SentencePiece tokenizer on the train split of a corpus, repeatably. Floor 1."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import read_corpus, read_jsonl
from nl.data.files import sha256_file, write_atomic, write_json

MAX_SENTENCE = 4096
"""Bytes of text per training sentence; SentencePiece leaves longer ones out."""
LOG = logging.getLogger("nl.data")


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """What decides the pieces. The thread count is one of them: it changes a unigram model."""

    vocab_size: int = 4096
    model_type: str = "unigram"
    character_coverage: float = 0.9995
    sample_mb: float = 2.0
    """Megabytes (1e6) of text to train on, chosen by document hash, equal parts per domain."""
    num_threads: int = 1

    def __post_init__(self) -> None:
        checks = (
            (260 <= self.vocab_size <= 1 << 20, "vocab-size", self.vocab_size, "260 to 1048576"),
            (self.model_type in ("unigram", "bpe"), "model-type", self.model_type, "unigram, bpe"),
            (
                0 < self.character_coverage <= 1,
                "character-coverage",
                self.character_coverage,
                "<= 1",
            ),
            (self.sample_mb > 0, "sample-mb", self.sample_mb, "> 0"),
            (self.num_threads >= 1, "num-threads", self.num_threads, ">= 1"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")


def train_tokenizer(
    corpus: Path, output: Path, options: TokenizerOptions, log_file: Path | None = None
) -> tuple[dict[str, Any], bool]:
    """Train ``<output>/tokenizer.model`` unless it is there, made from the same inputs.

    Args:
        corpus: corpus directory; only its train split is read.
        output: directory of the model.
        options: what to train.
        log_file: where the record goes (default ``<output>/tokenizer_log.json``).

    Returns:
        The record (options, digests of model and inputs, sample size, seconds) and whether a
        model was trained.

    Raises:
        ConfigError: no corpus, a vocabulary larger than the text supports, no write access.
    """
    model, log = output / "tokenizer.model", log_file or output / "tokenizer_log.json"
    files = read_corpus(corpus).splits.get("train", {})
    inputs = {name: [text.sha256 for text in texts] for name, texts in files.items()}
    record: dict[str, Any] = {"options": asdict(options), "inputs": inputs}
    if model.is_file() and log.is_file():
        old = earlier(log)
        same = all(old.get(key) == value for key, value in record.items())
        if same and old.get("sha256") == sha256_file(model):
            return old, False
    start = time.perf_counter()
    domains = [[corpus / text.file for text in texts] for texts in files.values()]
    sentences = list(sample(domains, int(options.sample_mb * 1e6)))
    size = sum(len(s.encode()) for s in sentences)
    LOG.info("training %s %d on %.1f MB", options.model_type, options.vocab_size, size / 1e6)
    data = fit(sentences, options)
    write_atomic(model, data)
    record |= {
        "model": model.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "sample_bytes": size,
        "sentences": len(sentences),
        "seconds": round(time.perf_counter() - start, 2),
    }
    write_json(log, record)
    return record, True


def earlier(log: Path) -> dict[str, Any]:
    """The record of an earlier training; empty if the file is torn or something else."""
    try:
        old = json.loads(log.read_bytes())
    except ValueError:
        return {}
    return old if isinstance(old, dict) else {}


def sample(domains: Sequence[Sequence[Path]], limit: int) -> Iterator[str]:
    """Sentences of the documents of lowest hash, the same number of bytes from each domain."""
    for paths in domains:
        left = limit // len(domains)
        documents = itertools.chain.from_iterable(map(read_jsonl, paths))
        for document in sorted(documents, key=lambda d: d.id):
            left -= len(document.text.encode())
            if left < 0:
                break
            yield from sentences_of(document.text)


def sentences_of(text: str) -> Iterator[str]:
    """Runs of whole lines of at most ``MAX_SENTENCE`` bytes; longer lines are cut."""
    run = ""
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), MAX_SENTENCE // 4):
            part = line[start : start + MAX_SENTENCE // 4]
            if len((run + part).encode()) > MAX_SENTENCE:
                yield run
                run = ""
            run += part
    if run:
        yield run


def fit(sentences: Iterable[str], options: TokenizerOptions) -> bytes:
    """The serialized model: byte fallback, no normalisation, runs of blanks may be one piece.

    Raises:
        ConfigError: SentencePiece refuses, most often a vocabulary too large for the text.
    """
    import sentencepiece

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=writer,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            num_threads=options.num_threads,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            max_sentence_length=2 * MAX_SENTENCE,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()[-24:])
        raise ConfigError(
            f"--vocab-size: {options.vocab_size} cannot be trained on this sample ({reason}); "
            "lower --vocab-size or raise --sample-mb."
        ) from error
    return writer.getvalue()
