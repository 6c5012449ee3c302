"""One source of documents, as a manifest or a command line describes it. Floor 1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nl.config import require
from nl.data.prep.sources_files import FORMATS

GENERATED = ("stdlib", "synthetic")
EVERY = "all"
"""As ``split``: the documents of all splits, each of which stays in its own."""
SampleBy = Literal["line", "paragraph", "document", "heading"]
SAMPLE_HELP = "what one document of a text file is; default: %(default)s"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of documents. Relative paths start at the current directory."""

    name: str
    """Name of the domain that its documents become."""
    dataset: str
    """A data set of the hub, or json, parquet, arrow, text, wikitext, stdlib, synthetic."""
    subset: str | None = None
    """Configuration of a hub data set; ``prose``, ``code`` or a package (``email``) of stdlib, the
    seed of synthetic."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; a commit never changes."""
    split: str = "train"
    """Split of a hub data set, or of local files whose names tell splits apart; ``all``: every
    one, and documents stay in the split that they come from."""
    text_column: str = "text"
    """Column (key) that holds the text."""
    label_column: str | None = None
    """Column (key) that holds a label: rows with another one than ``label`` are left out."""
    label: str | None = None
    """Label of the rows that are read; null: ``name``."""
    label_names: tuple[str, ...] = ()
    """Names of labels that are numbers, from 0; empty: as the file or the data set says."""
    data_files: str | tuple[str, ...] | None = None
    """Files, directories or patterns: what local formats read, or files of a hub data set."""
    local: str | tuple[str, ...] | None = None
    """A local mirror of a hub data set: files, directories or patterns, read if they exist."""
    sample_by: SampleBy = "line"
    """What one document of a text file is; heading: rows are lines of WikiText."""
    max_records: int | None = None
    """Documents to read at most; None reads all."""
    max_mb: float | None = None
    """Megabytes (1e6) of text to read at most: the first ones; of stdlib, files chosen by hash."""
    split_fallback: str = ""
    """Split to read, and say so, where the one asked for does not exist; ``any`` takes the first
    of train, validation, test that there is."""

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"name: {self.name!r}; letters, digits, '_', '.' and '-', it names a directory.",
        )
        require(self.dataset != "", "dataset: empty; name a hub data set or a local format.")
        limit = self.max_records
        require(limit is None or limit >= 1, f"max_records: {limit}; must be >= 1, or null.")
        size = self.max_mb
        require(size is None or size > 0, f"max_mb: {size}; must be > 0, or null.")
        local = self.dataset in FORMATS
        require(
            not local or bool(self.paths),
            f"data_files: missing, but dataset {self.dataset!r} reads local files; name them.",
        )
        require(
            self.dataset != "stdlib" or bool(self.subset),
            f"subset: {self.subset}; stdlib has prose, code and its packages (email).",
        )
        named = self.label is not None or bool(self.label_names)
        require(
            self.label_column is not None or not named,
            "label_column: missing, but label or label_names is set; name the column.",
        )
        require(
            self.label_column is None or self.dataset not in (*GENERATED, "text", "wikitext"),
            f"label_column: {self.label_column}; dataset {self.dataset!r} has no columns.",
        )
        require(
            self.dataset != "synthetic" or self.limited,
            "max_records: null; the synthetic generator has no end; set it or max_mb.",
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """The local files, directories and patterns asked for."""
        value = self.data_files if self.dataset in FORMATS and self.data_files else self.local
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    @property
    def wanted(self) -> str | None:
        """The label of the rows that are read; None: all rows."""
        return None if self.label_column is None else (self.label or self.name).strip()

    @property
    def limited(self) -> bool:
        """Whether only a beginning of the source is wanted, so that it is read in one piece."""
        return self.max_records is not None or self.max_mb is not None
