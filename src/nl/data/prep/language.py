"""The language check: py3langid, or fastText where the user has a model. Floor 1.

A detector sees a bounded sample of a document and is not asked about a few letters. py3langid is
Lui and Baldwin's langid.py (2012): naive Bayes over byte n-grams, the same answer every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from nl.data.prep.extras import needed
from nl.data.prep.filters_checks import Check, FilterOptions, check

Detector = Callable[[str], tuple[str, float]]
"""(language code, probability) of a text."""


@check
def language(options: FilterOptions) -> Check | None:
    """Texts that are not in the language asked for."""
    if options.target_lang == "any":
        return None
    detect = detector(options.lang_backend, options.lang_model)
    target, least = options.target_lang, options.lang_threshold

    def ask(text: str) -> str | None:
        # Runs of tabs and line feeds are no language; the text itself stays as it is.
        shown = " ".join(sample(text, options.lang_sample_chars).split())
        if sum(map(str.isalpha, shown)) < options.lang_min_chars:
            return None
        code, probability = detect(shown)
        if code != target:
            return "other_language"
        return "language_unsure" if probability < least else None

    return ask


def sample(text: str, size: int) -> str:
    """At most ``size`` characters: a third each from begin, middle and end."""
    if len(text) <= size:
        return text
    third, middle = size // 3, len(text) // 2
    starts = (0, middle - third // 2, len(text) - third)
    return "\n".join(text[start : start + third] for start in starts)


@functools.cache
def detector(backend: str, model: str) -> Detector:
    """A detector, read once per process.

    Raises:
        ConfigError: its package is not installed.
    """
    if backend == "fasttext":
        loaded = needed("fasttext", "data").load_model(model)

        def by_fasttext(text: str) -> tuple[str, float]:
            # The form for lists: the other fails on NumPy 2. A line feed would end the text.
            labels, probabilities = loaded.predict([text.replace("\n", " ")], k=1)
            return labels[0][0].removeprefix("__label__"), float(probabilities[0][0])

        return by_fasttext
    langid = needed("py3langid.langid", "data")
    made = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def by_langid(text: str) -> tuple[str, float]:
        code, probability = made.classify(text)
        return str(code), float(probability)

    return by_langid
