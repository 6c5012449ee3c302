"""``nl export``: a model as one file, or as a directory that transformers reads. Floor 8."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nl.config import ConfigError, writing
from nl.run.files import writable_folder, write_atomic

SAMPLE = 2000
"""Documents whose lines the exported tokenizer is compared on."""


def export_model(options: argparse.Namespace) -> int:
    """``nl export``."""
    return export_folder(options) if options.to == "hf" else export_file(options)


def export_file(options: argparse.Namespace) -> int:
    """Weights and configuration as one safetensors file."""
    from nl.assembly import load_run
    from nl.dist.export import export

    target = Path(options.file)
    if options.tokenizer is not None:
        raise ConfigError("--tokenizer: only a directory has one; add --to hf or leave it out.")
    if target.exists() and not options.force:
        raise ConfigError(f"{target}: exists already; choose another name or add --force.")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: no such directory; create it first.")
    writable_folder(target.parent, "export")
    run, model = load_run(options.path)
    with writing(target):
        export(model.state_dict(), run, target, known_tokenizers(options.path, run))
    count = sum(p.numel() for p in model.parameters())
    print(f"{target}: {count:,} parameters, {target.stat().st_size:,} bytes")
    return 0


def export_folder(options: argparse.Namespace) -> int:
    """A directory for ``AutoModelForCausalLM.from_pretrained``, with its tokenizer."""
    from nl.assembly import load_run
    from nl.dist.hf_folder import check_language, write_hf_folder

    target = Path(options.file)
    if target.suffix == ".safetensors":
        raise ConfigError(f"{target}: --to hf writes a directory; give its name.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; --to hf writes a directory.")
    if target.is_dir() and any(target.iterdir()) and not options.force:
        raise ConfigError(f"{target}: is not empty; choose another name or add --force.")
    writable_folder(target, "export")
    run, model = load_run(options.path)
    check_language(run)
    count = sum(p.numel() for p in model.parameters())
    target.mkdir(parents=True, exist_ok=True)
    known = known_tokenizers(options.path, run)
    tokens, words = write_tokenizer(run, options.tokenizer, target, options.path)
    with writing(target):
        write_hf_folder(model.state_dict(), run, target, tokens, known)
        write_atomic(target / "README.md", model_card(target.name, run, count, words))
    print(
        f"{target}: {count:,} parameters, {(target / 'model.safetensors').stat().st_size:,} bytes"
    )
    print(f"  tokenizer: {words}")
    return 0


def known_tokenizers(path: str, run: Any) -> tuple[str, ...]:
    """SHA-256 of the tokenizers the weights were trained with: recorded, else of the run's data."""
    from nl.data.manifest import read_manifest
    from nl.dist.origin import tokenizers_of

    data = getattr(run.stream, "path", None)
    known = tokenizers_of(path)
    if known or data is None or not (Path(data) / "manifest.json").is_file():
        return known
    return (read_manifest(data).tokenizer.sha256,)


def write_tokenizer(
    run: Any, given: str | None, target: Path, path: str
) -> tuple[dict[str, int], str]:
    """Write the tokenizer in the form transformers reads.

    Args:
        run: of the model; its data directory has the tokenizer that was trained with.
        given: ``--tokenizer``, which goes before.
        target: the directory.
        path: the weights.

    Returns:
        Ids of special tokens for config.json, and what was done, in words.

    Raises:
        ConfigError: another tokenizer than the model's.
    """
    from nl.data.tokenizer import load_tokenizer
    from nl.data.tokenizer_hf import CONFIG
    from nl.dist.origin import check_tokenizer

    data = getattr(run.stream, "path", None)
    found = given or (tokenizer_file(Path(data)) if data else None)
    if found is None:
        return {}, "none (no data directory here; --tokenizer names one)"
    ours = load_tokenizer(found)
    vocabulary = run.model.vocab_size
    if ours.vocab_size > vocabulary:
        raise ConfigError(
            f"{found}: {ours.vocab_size} ids, the model has {vocabulary}; give the tokenizer it "
            "was trained with (--tokenizer)."
        )
    check_tokenizer(path, ours.sha256, f"{found}: it")
    tokens = {
        f"{role}_token_id": int(getattr(ours, f"{role}_id")) for role in ("bos", "eos", "pad")
    }
    if ours.kind != "hf":  # data holds no bos: the mark that ends a document stands before the next
        tokens["bos_token_id"] = tokens["eos_token_id"]
    if ours.kind == "hf":
        for file in (Path(found), Path(found).with_name(CONFIG)):
            if file.is_file():
                write_atomic(target / file.name, file.read_bytes())
        return tokens, "tokenizer.json, as it is"
    if ours.kind != "sentencepiece":
        return tokens, f"none ({ours.kind}: only SentencePiece models are written for transformers)"
    if importlib.util.find_spec("tokenizers") is None:
        return tokens, "none (the tokenizers package is missing: uv sync --extra hf)"
    from nl.data.prep.hf_export import export_hf

    same = export_hf(Path(found), target, sample_of(data))
    return tokens, f"{same.equal:,} of {same.lines:,} lines have equal ids (export_log.json)"


def tokenizer_file(data: Path) -> str | None:
    """The tokenizer of a data directory, if that is here."""
    from nl.data.manifest import read_manifest

    if not (data / "manifest.json").is_file():
        return None
    inner = read_manifest(data).tokenizer.path
    return "bytes" if inner is None else str(data / inner)


def sample_of(data: str | None) -> Iterator[Any]:
    """Documents that were not trained on, to compare tokenizers with."""
    from nl.data.manifest import documents, read_manifest

    if data is None or not (Path(data) / "manifest.json").is_file():
        return iter(())
    held_out = read_manifest(data).splits.get("val", {})
    texts = (documents(data, "val", domain, verify=False) for domain in held_out)
    return itertools.islice(itertools.chain.from_iterable(texts), SAMPLE)


def model_card(name: str, run: Any, parameters: int, tokenizer: str) -> bytes:
    """README.md of the directory."""
    model = run.model
    block = model.block if isinstance(model.block, str) else ", ".join(model.block)
    return f"""---
library_name: transformers
tags: [nl, nested-learning]
---
# {name}

A language model of `nl`: blocks {block}, {model.layers} layers of width {model.dim},
{parameters:,} parameters, vocabulary {model.vocab_size}. Its memories are written by what
it reads; the cache that `generate` carries holds them. `config.write = false` freezes them.
Tokenizer: {tokenizer}.

```python
import nl.hf
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

`config.json` holds the whole configuration under `nl_config`; `nl.load_model` reads this directory.
""".encode()
