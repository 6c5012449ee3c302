"""Train a byte-level BPE with the ``tokenizers`` package: every byte is a token, no text is lost.

Text is not normalised and gets no blank in front; it is cut by the pattern of GPT-2 before pairs
are counted. Ids 0 to 2 are the special tokens, 3 to 258 the bytes, the rest merges. Floor 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from nl.config import ConfigError
from nl.data.prep.extras import needed

SPECIAL = {"bos": "<|bos|>", "eos": "<|eos|>", "pad": "<|pad|>"}
"""Names of the special tokens by role, in the order of their ids."""
MIN_FREQUENCY = 2
"""Pairs that occur less often are not merged."""


def fit_byte_bpe(sentences: Iterable[str], vocab_size: int, *, exact: bool) -> bytes:
    """The bytes of a ``tokenizer.json``, the same for the same sentences.

    Args:
        sentences: what to train on.
        vocab_size: entries, special tokens and the 256 bytes included.
        exact: refuse a smaller vocabulary, which short or uniform text gives.

    Raises:
        ConfigError: the package is missing, or fewer pairs than asked for occur twice.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizers = needed("tokenizers", "hf")
    models, pre = needed("tokenizers.models", "hf"), needed("tokenizers.pre_tokenizers", "hf")
    decoders, trainers = needed("tokenizers.decoders", "hf"), needed("tokenizers.trainers", "hf")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(sentences, trainer)
    found = made.get_vocab_size()
    if exact and found != vocab_size:
        raise ConfigError(
            f"--vocab-size: {vocab_size}; this sample has pairs for {found} entries: lower "
            "--vocab-size, raise --sample-mb or use --no-hard-vocab-limit."
        )
    return str(made.to_str(pretty=True)).encode()
