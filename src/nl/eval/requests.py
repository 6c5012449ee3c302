"""lm_eval's requests as token ids, cut the way its own ``hf`` model cuts them. Floor 6.

With ``begin="text"`` a request gets the ids that lm_eval's ``hf`` model gives it for the exported
model: nothing stands before a context but what the tokenizer's own template puts there; an empty
context, and a text that is scored as a whole, begin after the mark that ends a document (``bos`` of
the exported tokenizer). ``begin="document"`` reads that mark before every text, as training does at
the beginning of a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nl.config import ConfigError
from nl.eval.context import Tokenizer
from nl.eval.memorize import Tokens
from nl.eval.scoring import Item

Begin = Literal["text", "document"]


@dataclass(frozen=True)
class Encoding:
    """How texts of requests become token ids.

    Attributes:
        tokenizer: the model's.
        begin: what stands before a text; see above.
        max_length: tokens that are read for one answer, more are cut on the left; 0: no limit.
    """

    tokenizer: Tokenizer
    begin: Begin = "text"
    max_length: int = 0

    @property
    def mark(self) -> int:
        """What is read before a text that has nothing before it."""
        tokenizer: Any = self.tokenizer
        own = self.begin == "text" and getattr(tokenizer, "kind", "") == "hf"
        return int(tokenizer.bos_id if own else tokenizer.eos_id)

    def text(self, text: str) -> list[int]:
        """A text as it stands at the beginning of a request, without the mark."""
        front = getattr(self.tokenizer, "template_prefix", ()) if self.begin == "text" else ()
        return [*front, *self.tokenizer.encode(text)]

    def pair(self, before: str, after: str) -> Item:
        """Context and continuation, encoded together and cut where the context alone ends.

        Blanks at the end of the context belong to the continuation.

        Raises:
            ConfigError: nothing to score, or more than ``max_length`` tokens.
        """
        stripped = before.rstrip()
        after = before[len(stripped) :] + after
        if not after:
            raise ConfigError("a request has an empty continuation; correct the task's targets.")
        if not stripped:
            context, rest = [self.mark], self.tokenizer.encode(after)
            if len(rest) > 1 and rest[0] == self.mark:
                rest = rest[1:]
        else:
            context, whole = self.text(stripped), self.text(stripped + after)
            if len(whole) <= len(context):  # a merge across the cut: score what follows it
                context = whole[: len(whole) - 1]
            context, rest = context or [self.mark], whole[len(context) :]
            if self.begin == "document":
                context = [self.mark, *context]
        return self._cut(tuple(context), tuple(rest))

    def _cut(self, context: Tokens, continuation: Tokens) -> Item:
        if self.max_length:
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise ConfigError(
                    f"max_length: {self.max_length}; an answer has {len(continuation)} tokens: "
                    "raise it, or set 0 (no limit)."
                )
            context = context[-room:]
        return Item(context, continuation)

    def whole(self, text: str) -> list[Item]:
        """A text that is scored from its first token on, in windows of ``max_length`` tokens.

        Windows share no scored token; the last one looks back as far as its length allows.
        """
        tokens = self.text(text)
        if not tokens:
            return []
        if not self.max_length:
            return [Item((self.mark,), tuple(tokens))]
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(
            token_list=tokens, prefix_token=self.mark, max_seq_len=self.max_length, context_len=1
        )
        pairs = (make_disjoint_window(window) for window in windows)
        return [Item(tuple(context), tuple(part)) for context, part in pairs]

    def prompt(self, text: str, more: int) -> Tokens:
        """A text to be continued by ``more`` tokens."""
        tokens = self.text(text)
        if self.begin == "document" or not tokens:
            tokens = [self.mark, *tokens]
        if not self.max_length:
            return tuple(tokens)
        if more >= self.max_length:
            raise ConfigError(
                f"max_length: {self.max_length}; {more} tokens are to be generated: raise it, or "
                "set 0 (no limit)."
            )
        return tuple(tokens[-(self.max_length - more) :])

    def words(self) -> str:
        """For the note of a row."""
        limit = f"at most {self.max_length} tokens" if self.max_length else "whole texts"
        return limit if self.begin == "text" else f"{limit}, after a document mark"
