"""Train a tokenizer on documents chosen by hash, repeatably. Floor 1."""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import Document, read_corpus, read_jsonl
from nl.data.files import check_writable, sha256_file, write_atomic, write_json
from nl.data.prep.sources import read_source, units
from nl.data.prep.sources_spec import Source
from nl.data.prep.train_byte_bpe import SPECIAL, fit_byte_bpe
from nl.data.tokenizer_hf import CONFIG as HF_CONFIG
from nl.data.tokenizer_hf import FILE as HF_FILE

MAX_SENTENCE = 4096
"""Bytes of text per training sentence; SentencePiece leaves longer ones out."""
MODELS = {"unigram": "tokenizer.model", "bpe": "tokenizer.model", "byte_bpe": HF_FILE}
"""Name of a trained model in its directory, by type: SentencePiece, or the tokenizers package."""
LOG = logging.getLogger("nl.data")


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """What decides the pieces. The thread count is one of them: it changes a unigram model."""

    vocab_size: int = 4096
    model_type: str = "unigram"
    """unigram, bpe: SentencePiece with byte fallback. byte_bpe: byte-level BPE of the tokenizers
    package, special tokens <|bos|> <|eos|> <|pad|>."""
    character_coverage: float = 0.9995
    sample_mb: float = 2.0
    """Megabytes (1e6) of text to train on, chosen by document hash, equal parts per domain."""
    num_threads: int = 1
    hard_vocab_limit: bool = True
    """False: a unigram model may have fewer pieces than asked for, where the text has no more."""
    sample_limit: int | None = None
    """Documents of a domain to look at, at most; None looks at all."""

    def __post_init__(self) -> None:
        checks = (
            (260 <= self.vocab_size <= 1 << 20, "vocab-size", self.vocab_size, "260 to 1048576"),
            (self.model_type in MODELS, "model-type", self.model_type, ", ".join(MODELS)),
            (
                0 < self.character_coverage <= 1,
                "character-coverage",
                self.character_coverage,
                "<= 1",
            ),
            (self.sample_mb > 0, "sample-mb", self.sample_mb, "> 0"),
            (self.num_threads >= 1, "num-threads", self.num_threads, ">= 1"),
            (
                self.sample_limit is None or self.sample_limit >= 1,
                "sample-limit",
                self.sample_limit,
                ">= 1",
            ),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")
        for name, unused in (("character_coverage", 0.9995), ("num_threads", 1)):
            value = getattr(self, name)
            if self.model_type == "byte_bpe" and value != unused:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: {value}; --model-type byte_bpe does not use it: "
                    "every byte is in its alphabet, and it trains in one thread. Leave it out."
                )


@dataclass(frozen=True)
class Domain:
    """Text of one domain to train on; ``identity`` changes when the text does."""

    name: str
    read: Callable[[], Iterator[Document]]
    identity: Any


def train_tokenizer(
    corpus: Path, output: Path, options: TokenizerOptions, log_file: Path | None = None
) -> tuple[dict[str, Any], bool]:
    """Train on the train split of a corpus: ``train_on`` with its domains.

    Raises:
        ConfigError: no corpus, a vocabulary larger than the text supports, no write access.
    """
    return train_on(corpus_domains(corpus, options.sample_limit), output, options, log_file)


def corpus_domains(corpus: Path, limit: int | None = None) -> list[Domain]:
    """Domains of the train split; with a limit, files are read in order of their digests."""
    files = read_corpus(corpus).splits.get("train", {})
    found = []
    for name, texts in files.items():
        order = texts if limit is None else sorted(texts, key=lambda text: text.sha256)
        paths = [corpus / text.file for text in order]
        found.append(Domain(name, partial(_chained, paths), [text.sha256 for text in texts]))
    return found


def source_domains(sources: Iterable[tuple[Source, int]]) -> list[Domain]:
    """Domains read from sources as they are, each at most a number of documents."""
    found = []
    for source, limit in sources:
        known = source.max_records
        short = replace(source, max_records=limit if known is None else min(limit, known))
        identity = [asdict(short), *(unit.identity() for unit in units(short))]
        found.append(Domain(source.name, partial(read_source, short), identity))
    return found


def train_on(
    domains: Sequence[Domain],
    output: Path,
    options: TokenizerOptions,
    log_file: Path | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train ``<output>/tokenizer.model`` (or ``.json``) unless it is there, from the same inputs.

    Args:
        domains: what to train on.
        output: directory of the model.
        options: what to train.
        log_file: where the record goes (default ``<output>/tokenizer_log.json``).

    Returns:
        The record (options, digests of model and inputs, samples of every domain, seconds) and
        whether a model was trained.

    Raises:
        ConfigError: a vocabulary larger than the text supports, no write access, a model of
            another origin in its place.
    """
    model, log = output / MODELS[options.model_type], log_file or output / "tokenizer_log.json"
    inputs = {domain.name: domain.identity for domain in domains}
    record: dict[str, Any] = {"options": asdict(options), "inputs": inputs}
    record = json.loads(json.dumps(record))
    if model.is_file():
        old = own_record(model, log)
        if all(old.get(key) == value for key, value in record.items()):
            return old, False
    check_writable(model)
    check_writable(log)
    start = time.perf_counter()
    share = int(options.sample_mb * 1e6) // max(1, len(domains))
    rows, sentences = [], []
    for domain in domains:
        chosen, read = lowest(islice(domain.read(), options.sample_limit), share)
        cut = [piece for text in chosen for piece in sentences_of(text)]
        size = sum(len(text.encode()) for text in chosen)
        row = {"name": domain.name, "read": read, "samples": len(chosen), "bytes": size}
        rows.append(row | {"sentences": len(cut)})
        sentences += cut
    size = sum(int(str(row["bytes"])) for row in rows)
    LOG.info("training %s %d on %.1f MB", options.model_type, options.vocab_size, size / 1e6)
    data = fit(sentences, options)
    record |= {
        "model": model.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "sample_bytes": size,
        "sentences": len(sentences),
        "datasets": rows,
        "seconds": round(time.perf_counter() - start, 2),
    }
    # The model comes last: without its record it would be taken for somebody else's.
    write_json(log, record)
    if model.name == HF_FILE:
        write_json(output / HF_CONFIG, {f"{role}_token": name for role, name in SPECIAL.items()})
    write_atomic(model, data)
    return record, True


def _chained(paths: Sequence[Path]) -> Iterator[Document]:
    return itertools.chain.from_iterable(map(read_jsonl, paths))


def own_record(model: Path, log: Path) -> dict[str, Any]:
    """The record of the training that made a model; empty if the file is torn.

    Raises:
        ConfigError: nothing says that the model was trained here, so it must not be replaced.
    """
    old: Any = None
    if log.is_file():
        try:
            old = json.loads(log.read_bytes())
        except ValueError:
            return {}
    if not isinstance(old, dict) or old.get("sha256") != sha256_file(model):
        raise ConfigError(
            f"{model}: is there and {log} does not record that it was trained here; move it away "
            "or choose another directory for the new one."
        )
    return old


def sample(domains: Sequence[Sequence[Path]], limit: int) -> Iterator[str]:
    """Sentences of the documents of lowest hash, the same number of bytes from each domain."""
    for paths in domains:
        chosen, _ = lowest(_chained(paths), limit // len(domains))
        for text in chosen:
            yield from sentences_of(text)


def lowest(documents: Iterable[Document], limit: int) -> tuple[list[str], int]:
    """Texts in order of their hashes, from the lowest, while they fit into ``limit`` bytes.

    Memory holds what is chosen and no more, whatever the number of documents.

    Returns:
        The texts, and how many documents were read.
    """
    heap: list[tuple[int, str]] = []
    size = read = 0
    bound = 1 << 256
    for document in documents:
        read += 1
        key = int(document.id, 16)
        if key >= bound:
            continue
        heapq.heappush(heap, (-key, document.text))
        size += len(document.text.encode())
        while size > limit:
            key, text = heapq.heappop(heap)
            bound, size = -key, size - len(text.encode())
    return [text for _, text in sorted(heap, reverse=True)], read


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
    """The serialized model: every byte can be said, no normalisation.

    Raises:
        ConfigError: a vocabulary too large for the text.
    """
    if options.model_type == "byte_bpe":
        return fit_byte_bpe(sentences, options.vocab_size, exact=options.hard_vocab_limit)
    import sentencepiece

    writer = io.BytesIO()
    # Written into the model, so that naming the default would change its digest.
    soft: dict[str, Any] = {} if options.hard_vocab_limit else {"hard_vocab_limit": False}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=writer,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            num_threads=options.num_threads,
            **soft,
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
            "lower --vocab-size, raise --sample-mb or use --no-hard-vocab-limit."
        ) from error
    return writer.getvalue()
