"""What a tokenizer is trained on, as flags name it: a corpus, data sets or a manifest. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nl.data.prep.mixture import read_mixture
from nl.data.prep.sources_spec import Source
from nl.data.prep.train_tokenizer import Domain, corpus_domains, source_domains

SAMPLE_LIMIT = 100_000
"""Documents looked at of a data set that is read from its source."""


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """One of the three; ``split`` to ``data_files`` belong to ``dataset``."""

    corpus: Path = Path("data/stdlib/corpus")
    manifest: Path | None = None
    dataset: Sequence[str] = ()
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    data_files: Sequence[str] = ()
    sample_limit: int | None = None

    def output(self) -> Path:
        """Where the tokenizer goes if no directory is named."""
        if self.manifest is not None:
            mixture = read_mixture(self.manifest)
            return Path(mixture.tokenizer_output_dir or mixture.output)
        return Path("artifacts/tokenizer") if self.dataset else self.corpus.parent

    def domains(self) -> list[Domain]:
        """What to read.

        Raises:
            ConfigError: a corpus, manifest or source that is not there.
        """
        if self.manifest is not None:
            entries = read_mixture(self.manifest).datasets
            return source_domains(
                [(e.source, self.sample_limit or e.sample_limit) for e in entries]
            )
        if not self.dataset:
            return corpus_domains(self.corpus, self.sample_limit)
        sources = [
            Source(
                name=name.replace("/", "_"),
                dataset=name,
                subset=self.subset,
                split=self.split,
                text_column=self.text_column,
                data_files=tuple(self.data_files) or None,
            )
            for name in self.dataset
        ]
        return source_domains([(s, self.sample_limit or SAMPLE_LIMIT) for s in sources])
