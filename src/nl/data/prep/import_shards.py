"""Token files of other programs to a data directory: shards, digests, document ends. Floor 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nl.config import ConfigError, unstructure
from nl.data.documents import SCHEMA, SPLITS
from nl.data.files import move_into, sha256_file, staging, write_atomic, write_json
from nl.data.manifest import DataManifest, DomainInfo, TokenizerInfo, read_manifest
from nl.data.prep.replace import check_own
from nl.data.prep.shard_part import SHARD_TOKENS, ShardWriter
from nl.data.readers import Input, input_files, read_tokens
from nl.data.shards import VERSION
from nl.data.tokenizer import Tokenizer, copy_tokenizer, load_tokenizer, tokenizer_file


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the ids mean and how they are stored."""

    tokenizer_path: str = ""
    """The tokenizer that made the ids: a file, or ``bytes``."""
    vocab_size: int = 0
    """Size of its vocabulary, for a tokenizer that this version cannot load; 0 loads it."""
    eos_id: int = -1
    """The id after each document in formats without an index; -1 is the tokenizer's."""
    shard_tokens: int = SHARD_TOKENS
    """A shard is closed once it holds this many tokens."""
    name: str = "imported"
    """Name of the data."""

    def __post_init__(self) -> None:
        if not self.tokenizer_path:
            raise ConfigError("--tokenizer-path: missing; name the tokenizer that made the ids.")
        for name, least in (("vocab_size", 0), ("eos_id", -1), ("shard_tokens", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')}: {value}; must be >= {least}.")
        if self.vocab_size and self.eos_id < 0:
            raise ConfigError("--eos-id: missing; --vocab-size means the tokenizer is not loaded.")


class DomainWriter:
    """The shards of one domain of one split, in order; counts as it goes."""

    def __init__(self, folder: Path, where: str, tokenizer: TokenizerInfo) -> None:
        self.folder, self.where = folder, where
        self.info = DomainInfo(shards=(), tokens=0, documents=0, bytes=0)
        self.writer = ShardWriter(tokenizer, -1)

    def close(self) -> None:
        """Write what waits as the next shard."""
        if not self.writer.tokens:
            return
        name = f"{self.where}/shard_{len(self.info.shards):05d}.bin"
        shard = replace(self.writer.write(self.folder / name), file=name)
        self.info = replace(
            self.info,
            shards=(*self.info.shards, shard),
            tokens=self.info.tokens + shard.tokens,
            documents=self.info.documents + shard.documents,
        )


def import_shards(
    inputs: Sequence[Input], output: Path, options: ImportOptions
) -> tuple[DataManifest, bool]:
    """Copy token files into ``output``, unless that is there, made from the same files.

    Ids are taken as they are, none is added. ``bytes`` of a domain is the size of its decoded
    text, 0 where the tokenizer cannot be loaded; the text itself stays where it was.

    Raises:
        ConfigError: see ``read_tokens``; an id outside the vocabulary; no write access, or
            an output of something else.
    """
    tokenizer = None if options.vocab_size else load_tokenizer(options.tokenizer_path)
    info = _describe(options, tokenizer)
    eos_id = options.eos_id if tokenizer is None or options.eos_id >= 0 else tokenizer.eos_id
    made_from = {
        f"{s.format} {s.split}/{s.domain} {path}": sha256_file(path)
        for s in inputs
        for path in input_files(s)
    }
    made_from |= {"tokenizer": info.sha256, "shard_tokens": str(options.shard_tokens)}
    made_from |= {"eos_id": str(eos_id), "format": str(VERSION)}
    made_from |= {f"splits {s.path}": str(sorted(s.splits.items())) for s in inputs if s.splits}
    if (output / "manifest.json").is_file():
        old = read_manifest(output)
        if (old.inputs, old.name) == (made_from, options.name):
            return old, False
    check_own(output, SPLITS, "import")
    with staging(output) as folder:
        writers = _write(inputs, folder, options, info, tokenizer, eos_id)
        splits: dict[str, dict[str, DomainInfo]] = {
            split: {d: w.info for (s, d), w in sorted(writers.items()) if s == split}
            for split in SPLITS
        }
        (output / "manifest.json").unlink(missing_ok=True)
        for split in [split for split in SPLITS if splits[split]]:
            move_into(folder / split, output / split)
    if tokenizer is not None:
        copy_tokenizer(options.tokenizer_path, output)
    elif info.path is not None:
        write_atomic(output / info.path, Path(options.tokenizer_path).read_bytes())
    manifest = DataManifest(
        schema=SCHEMA,
        name=options.name,
        tokenizer=info,
        splits={split: domains for split, domains in splits.items() if domains},
        inputs=made_from,
    )
    write_json(output / "manifest.json", unstructure(manifest))
    return manifest, True


def _describe(options: ImportOptions, tokenizer: Tokenizer | None) -> TokenizerInfo:
    if tokenizer is not None:
        return TokenizerInfo(
            path=tokenizer_file(tokenizer),
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
        )
    path = Path(options.tokenizer_path)
    if not path.is_file():
        raise ConfigError(f"--tokenizer-path: {path}; no such file.")
    return TokenizerInfo(
        path=f"tokenizer{path.suffix}", sha256=sha256_file(path), vocab_size=options.vocab_size
    )


def _write(
    inputs: Sequence[Input],
    folder: Path,
    options: ImportOptions,
    info: TokenizerInfo,
    tokenizer: Tokenizer | None,
    eos_id: int,
) -> dict[tuple[str, str], DomainWriter]:
    writers: dict[tuple[str, str], DomainWriter] = {}
    for source in inputs:
        for split, domain, ids in read_tokens(source, eos_id, info.vocab_size):
            writer = writers.get((split, domain))
            if writer is None:
                writer = writers[split, domain] = DomainWriter(folder, f"{split}/{domain}", info)
            try:
                writer.writer.add(ids, eos=False)
            except ConfigError as error:
                raise ConfigError(
                    f"{source.path}: {error} Is --tokenizer-path the tokenizer that made it?"
                ) from error
            if tokenizer is not None:
                size = len(tokenizer.decode(ids.tolist()).encode())
                writer.info = replace(writer.info, bytes=writer.info.bytes + size)
            if writer.writer.tokens >= options.shard_tokens:
                writer.close()
    for writer in writers.values():
        writer.close()
    return writers


def told(manifest: DataManifest, output: Path, written: bool) -> Iterator[str]:
    """Lines about what was imported."""
    yield f"{output}: {'written' if written else 'up to date, nothing to do'}"
    for split, domains in manifest.splits.items():
        for name, d in domains.items():
            yield f"  {split}/{name}: {d.documents:,} documents, {d.tokens:,} tokens"
