"""A SentencePiece model as a ``tokenizer.json``, with the measured rate of equal ids. Floor 1.

Written piece by piece: `LlamaTokenizer(vocab_file=...)` of transformers 5.22 silently makes a
vocabulary of three. What can differ afterwards: ties between segmentations of the same score
(runs of ``=``), and the mark U+2581 itself, which becomes a blank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.files import write_atomic, write_json
from nl.data.prep.extras import needed
from nl.data.tokenizer import SPACE_MARK, SentencePieceTokenizer, load_tokenizer
from nl.data.tokenizer_hf import CONFIG, FILE, load_hf

EXAMPLES = 5
BATCH = 256
NEVER = -1e5
"""Score of special tokens."""


@dataclass(frozen=True)
class Equality:
    """How many lines have the same ids under both, and how many documents come back whole."""

    lines: int
    equal: int
    round_trips: int
    documents: int
    examples: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Share of lines with equal ids."""
        return self.equal / max(1, self.lines)


def export_hf(model: Path, output: Path, sample: Iterable[Document]) -> Equality:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``export_log.json``.

    Args:
        model: a SentencePiece model.
        output: directory.
        sample: documents on whose lines the two are compared.

    Raises:
        ConfigError: not a SentencePiece model that can be written so, or a missing package.
    """
    ours = load_tokenizer(model)
    if not isinstance(ours, SentencePieceTokenizer):
        raise ConfigError(f"{model}: is {ours.kind}, only SentencePiece models are exported.")
    inner = converted(ours)
    write_atomic(output / FILE, (inner.to_str(pretty=False) + "\n").encode())
    names = {role: ours.piece(getattr(ours, f"{role}_id")) for role in ("eos", "pad")}
    # What stands before a document in training is the mark that ends one; the piece that is
    # called bos is in no data, and tools that put bos before a text would put noise there.
    names["bos"] = names["eos"]
    config = {f"{role}_token": name for role, name in names.items()}
    unknown = ours.piece(int(ours.processor.unk_id()))
    config |= {"unk_token": unknown, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(output / CONFIG, config | {"clean_up_tokenization_spaces": False})
    result = compare(ours, output / FILE, sample)
    write_json(
        output / "export_log.json",
        {
            "model": ours.sha256,
            "lines": result.lines,
            "equal": result.equal,
            "equality_rate": round(result.rate, 6),
            "documents": result.documents,
            "round_trips": result.round_trips,
            "examples_of_unequal_lines": list(result.examples),
        },
    )
    return result


def converted(ours: SentencePieceTokenizer) -> Any:
    """A ``tokenizers.Tokenizer`` with the same pieces, ids and scores.

    Raises:
        ConfigError: the model changes text before it cuts it, which is not written here.
    """
    tk = needed("tokenizers", "hf")
    processor = ours.processor
    if ours.encode(" a") == ours.encode("a") or processor.normalize("\ufb01") != "\ufb01":
        raise ConfigError(
            "the model normalises text or adds a blank in front; only models of "
            "scripts/data/train_tokenizer.py (identity) are exported."
        )
    size = ours.vocab_size
    control = {i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)}
    plain = [i for i in range(size) if i not in control and not processor.is_byte(i)]
    # Their names, met in a text, must lose against any other segmentation.
    scores = [NEVER if i in control else float(processor.get_score(i)) for i in range(size)]
    pieces = [(ours.piece(i), score) for i, score in enumerate(scores)]
    ranks = [pieces[i][1] for i in plain if len(pieces[i][0]) > 1]
    if _is_bpe(ranks):
        inner = tk.Tokenizer(_bpe(tk, pieces, plain, int(processor.unk_id())))
    else:
        inner = tk.Tokenizer(tk.models.Unigram(pieces, int(processor.unk_id()), byte_fallback=True))
    inner.normalizer = tk.normalizers.Replace(" ", SPACE_MARK)
    inner.decoder = tk.decoders.Sequence(
        [
            tk.decoders.Replace(SPACE_MARK, " "),
            tk.decoders.ByteFallback(),
            tk.decoders.Fuse(),
        ]
    )
    # SentencePiece sets symbols of the user (the line break) apart before it looks at scores.
    if _is_user_symbol(ours, "\n"):
        inner.pre_tokenizer = tk.pre_tokenizers.Split("\n", behavior="isolated")
    inner.add_special_tokens(
        [tk.AddedToken(pieces[i][0], special=True, normalized=False) for i in sorted(control)]
    )
    return inner


def _is_user_symbol(ours: SentencePieceTokenizer, text: str) -> bool:
    index = int(ours.processor.piece_to_id(text))
    return index != int(ours.processor.unk_id()) and ours.piece(index) == text


def _is_bpe(scores: list[float]) -> bool:
    """Merges are numbered 0, -1, -2 ...; a unigram model has log probabilities."""
    merges = [s for s in scores if s != 0.0]
    return bool(merges) and all(s == int(s) for s in merges)


def _bpe(tk: Any, pieces: list[tuple[str, float]], plain: list[int], unknown: int) -> Any:
    """Merges in order of their scores: each piece from every two pieces that make it."""
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    known = {pieces[i][0] for i in plain}
    merges = []
    for index in sorted(plain, key=lambda i: -pieces[i][1]):
        piece = pieces[index][0]
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        local = [(a, b) for a, b in pairs if a in known and b in known]
        merges += sorted(local, key=lambda p: (vocab[p[0]], vocab[p[1]]))
    name = pieces[unknown][0]
    return tk.models.BPE(
        vocab, merges, unk_token=name, fuse_unk=True, byte_fallback=True, dropout=None
    )


def compare(ours: SentencePieceTokenizer, path: Path, sample: Iterable[Document]) -> Equality:
    """Ids of every line of ``sample`` under both; whole documents there and back under theirs."""
    theirs = load_hf(path)
    lines = equal = documents = whole = 0
    examples: list[str] = []
    stream = iter(sample)
    while batch := list(itertools.islice(stream, BATCH)):
        texts = [d.text for d in batch]
        documents += len(texts)
        coded = theirs.encode(texts)
        whole += sum(theirs.decode(i) == t for i, t in zip(coded, texts, strict=True))
        rows = [line for text in texts for line in text.splitlines() if line]
        lines += len(rows)
        for row, a, b in zip(rows, ours.encode(rows), theirs.encode(rows), strict=True):
            equal += a == b
            if a != b and len(examples) < EXAMPLES:
                examples.append(row[:120])
    return Equality(lines, equal, whole, documents, tuple(examples))
