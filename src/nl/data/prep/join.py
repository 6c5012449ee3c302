"""Several corpora as one, without copying: files are linked, in order. Floor 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from nl.config import ConfigError, unstructure
from nl.data.documents import SCHEMA, UNDIVIDED, CorpusManifest, TextFile, read_corpus
from nl.data.files import move_into, staging, write_json


def join_corpora(corpora: Sequence[Path], output: Path, name: str) -> bool:
    """Make the undivided corpus ``output`` of undivided corpora with different domains.

    Args:
        corpora: corpus directories.
        output: corpus directory to make; left alone if it is what would be made.
        name: its name.

    Returns:
        Whether anything was written.

    Raises:
        ConfigError: a missing corpus, a divided one, or a domain that two of them have.
    """
    domains: dict[str, tuple[TextFile, ...]] = {}
    places: dict[str, Path] = {}
    recipe: dict[str, str] = {}
    for corpus in corpora:
        manifest = read_corpus(corpus)
        if set(manifest.splits) != {UNDIVIDED}:
            raise ConfigError(f"{corpus}: is divided already; join corpora before that.")
        for domain, files in manifest.splits[UNDIVIDED].items():
            if domain in domains:
                raise ConfigError(f"{corpus}: domain {domain!r} is in two corpora; rename one.")
            domains[domain] = files
            places |= {text.file: corpus / text.file for text in files}
            recipe |= {f"{domain}.{key}": text for key, text in manifest.recipe.items()}
    whole = CorpusManifest(schema=SCHEMA, name=name, recipe=recipe, splits={UNDIVIDED: domains})
    if (
        (output / "manifest.json").is_file()
        and read_corpus(output) == whole
        and _sizes(output, places)
    ):
        return False
    with staging(output) as folder:
        for file, place in places.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            _link(place, folder / file)
        (output / "manifest.json").unlink(missing_ok=True)
        (folder / UNDIVIDED).mkdir(exist_ok=True)
        move_into(folder / UNDIVIDED, output / UNDIVIDED)
    write_json(output / "manifest.json", unstructure(whole))
    return True


def _sizes(output: Path, places: dict[str, Path]) -> bool:
    """Whether every linked file is there with its size; digests are checked by who reads."""
    return all(
        (output / file).is_file() and (output / file).stat().st_size == place.stat().st_size
        for file, place in places.items()
    )


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
