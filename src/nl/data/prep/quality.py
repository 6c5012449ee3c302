"""Quality rules of Gopher, C4 and FineWeb as datatrove has them, and personal data. Floor 1.

Gopher: Rae et al. (2021), appendix A1; C4: Raffel et al. (2020), section 2.2; FineWeb: Penedo et
al. (2024). They drop documents; C4's line edits are left out, because texts are kept to the letter.
The rules know English; for other languages only the repetition rules mean anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nl.data.prep.extras import needed
from nl.data.prep.filters_checks import Check, FilterOptions, check

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@check
def quality(options: FilterOptions) -> Check | None:
    """What the chosen rules would not train on."""
    if not options.quality:
        return None
    asked = [(name, rule) for name in options.quality for rule in RULES[name]()]
    document = needed("datatrove.data", "data").Document

    def ask(text: str) -> str | None:
        for name, rule in asked:
            answer = rule.filter(document(text=text, id=""))
            if answer is not True:
                reason = answer[1] if isinstance(answer, tuple) else "quality"
                return f"{name}_{reason.removeprefix(name + '_')}"
        return None

    return ask


def _gopher() -> list[Any]:
    filters = needed("datatrove.pipeline.filters", "data")
    words = tokenizer()
    return [
        filters.GopherQualityFilter(language=words),
        filters.GopherRepetitionFilter(language=words),
    ]


def _c4() -> list[Any]:
    return [needed("datatrove.pipeline.filters", "data").C4QualityFilter(language=tokenizer())]


def _fineweb() -> list[Any]:
    filters = needed("datatrove.pipeline.filters", "data")
    return [filters.FineWebQualityFilter(language=tokenizer())]


RULES: dict[str, Callable[[], list[Any]]] = {"gopher": _gopher, "c4": _c4, "fineweb": _fineweb}


def tokenizer() -> Any:
    """Words and sentences for datatrove's rules; its own want spaCy, which no extra brings."""
    base = needed("datatrove.utils.word_tokenizers", "data").WordTokenizer

    class Words(base):  # type: ignore[misc, valid-type]
        def word_tokenize(self, text: str) -> list[str]:
            return WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[a:b] for a, b in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            ends = [*ends, len(text)] if not ends or ends[-1] < len(text) else ends
            return list(zip([0, *ends[:-1]], ends, strict=True)) if text else []

    return Words()


def pii_edit() -> Callable[[str], str]:
    """Replaces e-mail addresses and public IP addresses, always by the same placeholders."""
    made = needed("datatrove.pipeline.formatters", "data").PIIFormatter(
        email_replacement="email@example.com", ip_replacement="22.214.171.124"
    )

    def edit(text: str) -> str:
        return str(made.format(text))

    return edit
