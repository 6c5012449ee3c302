"""What a tokenizer is trained on, as flags name it: a corpus, data sets or a manifest. Floor 1."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nl.data.prep.mixture import read_mixture
from nl.data.prep.sources_spec import SAMPLE_HELP, SampleBy, Source
from nl.data.prep.train_tokenizer import Domain, corpus_domains, source_domains

SAMPLE_LIMIT = 100_000
"""Documents looked at of a data set that is read from its source."""


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for the fields of ``TrainingText`` but ``sample_limit``."""
    flag, shown = parser.add_argument, "default: %(default)s"
    inputs = parser.add_mutually_exclusive_group().add_argument
    inputs("--corpus", type=Path, default=Path("data/stdlib/corpus"), help=shown)
    inputs("--manifest", type=Path, help="a mixture, such as configs/data/*.yaml")
    inputs("--dataset", nargs="+", default=(), help="hub data sets, or json, parquet, text ...")
    flag("--subset", help="configuration of a hub data set")
    flag("--split", default="train", help=shown)
    flag("--text-column", default="text", help=shown)
    files = "files, directories or patterns of a local --dataset"
    flag("--data-files", nargs="+", default=(), help=files)
    flag("--sample-by", default="line", choices=get_args(SampleBy), help=SAMPLE_HELP)


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """One of the three; ``split`` to ``sample_by`` belong to ``dataset``."""

    corpus: Path = Path("data/stdlib/corpus")
    manifest: Path | None = None
    dataset: Sequence[str] = ()
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    data_files: Sequence[str] = ()
    sample_by: SampleBy = "line"
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
                sample_by=self.sample_by,
                data_files=tuple(self.data_files) or None,
            )
            for name in self.dataset
        ]
        return source_domains([(s, self.sample_limit or SAMPLE_LIMIT) for s in sources])
