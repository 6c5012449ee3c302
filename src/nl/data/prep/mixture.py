"""Manifests of mixtures: which sources, how they are filtered, divided, weighted. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from nl.config import ConfigError, require, structure
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.flags import keys_for_flags
from nl.data.prep.sources_spec import Source
from nl.data.prep.train_tokenizer import TokenizerOptions

READ_PER_KEPT = 4
"""A data set with a limit of kept documents is read up to this many times the limit."""
FROM_SOURCE = tuple(f.name for f in fields(Source))
TOKENIZER_KEYS = {f.name: f.name for f in fields(TokenizerOptions)}
RECIPE = "docs/data_pipeline.md describes every key; configs/data holds examples."


@dataclass(frozen=True, kw_only=True)
class Entry(Source):
    """One data set of a mixture: a source, its filters and its share. It becomes a domain."""

    sample_limit: int = 100_000
    """Documents that ``train_tokenizer.py --manifest`` looks at."""
    seq_len: int = 2048
    """With ``sequences_per_shard``: tokens of a shard."""
    sequences_per_shard: int = 1024
    """Shards are closed after ``seq_len`` times this many tokens."""
    eos_id: int = -1
    """Id after each document; -1 is the tokenizer's."""
    output_dir: str | None = None
    """Accepted from older manifests; all domains lie in the mixture's ``output_dir``."""
    weight: float | None = None
    """Share of the mixture, of any scale; all data sets have one or none has."""
    lang: str | None = None
    """Language to keep, such as ``en``; null keeps all, as code needs."""
    lang_threshold: float = 0.8
    """Least probability of the language."""
    min_chars: int = 0
    """Shorter documents go."""
    max_chars: int = 0
    """Longer documents go; 0: no limit."""
    max_line_chars: int = 0
    """Documents with a longer line go; 0: no limit."""
    quality: tuple[str, ...] = ()
    """Rules of gopher, c4, fineweb that documents must keep."""
    pii: bool = False
    """Replace e-mail and public IP addresses by placeholders."""
    extra: tuple[str, ...] = ()
    """More checks, each ``module:function`` or ``file.py:function``; text in, reason out."""
    limit: int = 0
    """Keep the first so many documents that pass; 0: all. Reads 4 times as many at most."""
    filtered_dir: str | None = None
    """Where the filtered text lies as a corpus; default: below the work directory."""
    license: str | None = None
    """Under what terms the text is, for ``validate_mixture.py``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.weight
        good = weight is None or (math.isfinite(weight) and weight > 0)
        require(good, f"weight: {weight}; must be > 0, or null.")
        for name in ("sample_limit", "seq_len", "sequences_per_shard"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        with keys_for_flags(self.filter_keys()):
            _ = self.filters  # checks its values

    @property
    def source(self) -> Source:
        """The part that says where documents come from."""
        made = Source(**{name: getattr(self, name) for name in FROM_SOURCE})
        if not self.limit or made.max_records is not None:
            return made
        return replace(made, max_records=READ_PER_KEPT * self.limit)

    @property
    def filters(self) -> FilterOptions:
        """The part that says which documents stay."""
        return FilterOptions(
            target_lang=self.lang or "any",
            lang_threshold=self.lang_threshold,
            min_chars=self.min_chars,
            max_chars=self.max_chars,
            max_line_chars=self.max_line_chars,
            quality=self.quality,
            pii=self.pii,
            extra=self.extra,
            limit=self.limit,
        )

    def filter_keys(self, path: str = "") -> dict[str, str]:
        """Keys by field of the filters, with ``path`` in front where a data set has the key."""
        own, names = {f.name for f in fields(self)}, {"target_lang": "lang"}
        keys = {f.name: names.get(f.name, f.name) for f in fields(FilterOptions)}
        return {field: path + key if key in own else key for field, key in keys.items()}

    @property
    def shard_tokens(self) -> int:
        """Tokens of a shard."""
        return self.seq_len * self.sequences_per_shard


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A manifest: from sources to a data directory."""

    name: str
    """Name of the corpus and of the data directory."""
    output_dir: str | None = None
    """Data directory; default ``data/<name>``."""
    tokenizer_output_dir: str | None = None
    """Directory of the tokenizer; default: the data directory."""
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    """What is trained where no tokenizer is named."""
    held_out: dict[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.1})
    """Shares of documents for ``val`` and ``test``."""
    apart: float = 0.8
    """Held-out documents as similar as this to one of train go; 0: they stay. Costs grow with the
    size of train times that of what is held out."""
    near_duplicates: bool = True
    """Whether near-duplicates go, besides exact ones."""
    datasets: tuple[Entry, ...]
    """The data sets, each a domain."""

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(bool(names), "datasets: empty; name at least one data set.")
        require(not twice, f"datasets: {', '.join(twice)} twice; names become domains.")
        shares = self.held_out
        require(
            set(shares) <= {"val", "test"}
            and all(0 <= share < 1 for share in shares.values())
            and sum(shares.values()) < 1,
            f"held_out: {shares}; shares of val and test, >= 0, together below 1.",
        )
        require(0 <= self.apart <= 1, f"apart: {self.apart}; allowed: 0 to 1.")
        given = [entry.weight is not None for entry in self.datasets]
        require(
            all(given) or not any(given),
            "datasets: some have a weight and some have none; give all of them one or none.",
        )
        for name in ("seq_len", "sequences_per_shard", "eos_id"):
            values = {getattr(entry, name) for entry in self.datasets}
            require(
                len(values) == 1,
                f"{name}: {', '.join(map(str, sorted(values)))}; the data sets of one data "
                "directory share it (windows of any length are cut when shards are read).",
            )

    @property
    def output(self) -> Path:
        """The data directory."""
        return Path(self.output_dir or f"data/{self.name}")

    @property
    def weights(self) -> dict[str, float] | None:
        """Shares that add to 1, by domain; None where the manifest gives none."""
        given = {e.name: e.weight for e in self.datasets if e.weight is not None}
        whole = sum(given.values())
        return {name: weight / whole for name, weight in given.items()} or None


def parsed(text: str | bytes, where: str) -> Any:
    """The value of a text in YAML.

    Raises:
        ConfigError: it is none, or not UTF-8.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())}).") from error


def read_mixture(path: Path) -> Mixture:
    """Read a manifest; a bare list of data sets is one named like its file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest name), a bad value.
    """
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        raise ConfigError(f"{path}: {what}. {RECIPE}")
    data = parsed(path.read_bytes(), str(path))
    if isinstance(data, list):
        data = {"name": path.stem, "datasets": data}
    if not isinstance(data, Mapping) or "datasets" not in data:
        raise ConfigError(f"{path}: expected a mapping with 'datasets', or a list. {RECIPE}")
    return mixture_of({"name": path.stem, **data}, str(path))


def mixture_of(data: Mapping[str, Any], where: str) -> Mixture:
    """A mixture from plain data.

    Raises:
        ConfigError: an unknown key (with the nearest name), a bad value, by its key.
    """
    with keys_for_flags(TOKENIZER_KEYS):
        return structure(Mixture, dict(data), where)


STAGES = ("ingest", "filter", "dedup", "divide", "tokenizer", "shard")
