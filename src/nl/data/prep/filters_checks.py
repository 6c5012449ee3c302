"""Checks of the filter stage: each says why a text is no good, or nothing. Floor 1.

``CHECKS`` is the table of those that options switch on, in the order in which they are asked; a
new one is a function under ``@check``. ``--extra file.py:function`` adds one from outside.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nl.config import ConfigError
from nl.data.files import sha256_file

Check = Callable[[str], str | None]


BACKENDS = "py3langid", "fasttext"
RULES = "gopher", "c4", "fineweb"


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What is kept."""

    min_chars: int = 200
    """Shorter documents go."""
    max_chars: int = 10_000
    """Longer documents go; 0: no limit."""
    max_line_chars: int = 10_000
    """Documents with a longer line go (tables, minified code); 0: no limit."""
    max_broken: float = 0.0
    """Share of characters that were no UTF-8 (U+FFFD, lone surrogates) that is forgiven."""
    max_control: float = 0.001
    """Share of control characters (tab, line feed, form feed, return aside) that is forgiven."""
    target_lang: str = "en"
    """ISO 639-1 code of what is kept; ``any`` asks nothing (code is in no language)."""
    lang_threshold: float = 0.80
    """Least probability of the target language."""
    lang_backend: str = "py3langid"
    """``py3langid``, or ``fasttext`` with the model named by --lang-model."""
    lang_model: str = ""
    """fastText model file, such as lid.176.bin."""
    lang_min_chars: int = 50
    """Texts with fewer letters are not asked for their language: no detector knows."""
    lang_sample_chars: int = 3000
    """Characters shown to the detector: a third each from begin, middle and end."""
    quality: tuple[str, ...] = ()
    """Rules of ``gopher`` (quality and repetition), ``c4``, ``fineweb``; they drop, never edit."""
    pii: bool = False
    """Replace e-mail and public IP addresses by placeholders."""
    limit: int = 0
    """Keep the first so many documents of those that pass; 0: all."""
    keep_dropped: bool = False
    """Also write what is dropped, with its reason, below dropped/."""
    extra: tuple[str, ...] = ()
    """More checks, each ``module:function`` or ``file.py:function``; text in, reason out."""

    def __post_init__(self) -> None:
        top = self.max_chars or float("inf")
        model = self.lang_backend != "fasttext" or Path(self.lang_model).is_file()
        checks = (
            (0 <= self.min_chars <= top, "min-chars", self.min_chars, "0 to --max-chars"),
            (self.max_chars >= 0, "max-chars", self.max_chars, ">= 0"),
            (self.max_line_chars >= 0, "max-line-chars", self.max_line_chars, ">= 0"),
            (0 <= self.max_broken <= 1, "max-broken", self.max_broken, "0 to 1"),
            (0 <= self.max_control <= 1, "max-control", self.max_control, "0 to 1"),
            (self.target_lang != "", "target-lang", "''", "a language code, or any"),
            (0 <= self.lang_threshold <= 1, "lang-threshold", self.lang_threshold, "0 to 1"),
            (self.lang_backend in BACKENDS, "lang-backend", self.lang_backend, BACKENDS),
            (model, "lang-model", self.lang_model or "''", "a fastText model file that is there"),
            (self.lang_min_chars >= 1, "lang-min-chars", self.lang_min_chars, ">= 1"),
            (self.lang_sample_chars >= 300, "lang-sample-chars", self.lang_sample_chars, ">= 300"),
            (self.limit >= 0, "limit", self.limit, ">= 0"),
            (set(self.quality) <= set(RULES), "quality", self.quality, RULES),
            (all(":" in e for e in self.extra), "extra", self.extra, "module:function"),
        )
        for good, name, value, allowed in checks:
            if not good:
                raise ConfigError(f"--{name}: {value}; allowed: {allowed}.")


ASKED_BY = {
    "broken_utf8": "max_broken",
    "control_characters": "max_control",
    "long_line": "max_line_chars",
    "too_short": "min_chars",
    "too_long": "max_chars",
    "other_language": "target_lang",
    "language_unsure": "lang_threshold",
}
"""The option that a reason comes from."""


def asked_by(reason: str, options: FilterOptions) -> str:
    """The flag behind a reason, with its value; empty where there is none to turn."""
    name = ASKED_BY.get(reason)
    if name is not None:
        return f"--{name.replace('_', '-')}: {getattr(options, name)}"
    rules = [rule for rule in options.quality if reason.startswith(f"{rule}_")]
    if rules:
        return f"--quality: {rules[0]}"
    own = options.extra and reason not in CHECKS
    return f"--extra: {', '.join(options.extra)}" if own else ""


Maker = Callable[[FilterOptions], Check | None]
CHECKS: dict[str, Maker] = {}
"""Makers of checks, asked in this order; None: these options do not want it."""


def check(maker: Maker) -> Maker:
    """Put a maker into the table under its own name."""
    CHECKS[maker.__name__] = maker
    return maker


@check
def empty(options: FilterOptions) -> Check:
    """Nothing but white space."""
    return lambda text: "empty" if not text.strip() else None


@check
def broken_utf8(options: FilterOptions) -> Check:
    """Characters that some reader could not decode."""

    def ask(text: str) -> str | None:
        broken = text.count("\ufffd")
        try:
            text.encode()
        except UnicodeEncodeError:
            return "broken_utf8"
        return "broken_utf8" if broken > options.max_broken * len(text) else None

    return ask


CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\f\r"}


@check
def control_characters(options: FilterOptions) -> Check:
    """Binary data that happens to decode."""

    def ask(text: str) -> str | None:
        if text.isprintable():
            return None
        found = len(text) - len(text.translate(CONTROL))
        return "control_characters" if found > options.max_control * len(text) else None

    return ask


@check
def long_line(options: FilterOptions) -> Check | None:
    """A line longer than any that people write."""
    limit = options.max_line_chars
    if not limit:
        return None
    return lambda text: "long_line" if max(map(len, text.split("\n"))) > limit else None


@check
def too_short(options: FilterOptions) -> Check:
    """Fewer characters than asked for."""
    return lambda text: "too_short" if len(text) < options.min_chars else None


@check
def too_long(options: FilterOptions) -> Check | None:
    """More characters than asked for."""
    limit = options.max_chars
    return (lambda text: "too_long" if len(text) > limit else None) if limit else None


def extra_check(name: str) -> tuple[Check, str]:
    """A check by ``module:function`` or ``file.py:function``, and the digest of its source.

    Raises:
        ConfigError: no such module, file or function.
    """
    place, _, function = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found = getattr(module, function)
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(f"--extra: {name}; not found ({error}).") from error
    return found, sha256_file(Path(str(module.__file__)))


def make_checks(options: FilterOptions) -> list[Check]:
    """The checks that these options want, in the order of the table, extra ones last."""
    made = [maker(options) for maker in CHECKS.values()]
    return [c for c in made if c is not None] + [extra_check(name)[0] for name in options.extra]
