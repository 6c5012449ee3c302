"""``nl import``: a model that others trained as one of ours. Floor 8."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl.config import ConfigError, unstructure, writing
from nl.run.files import writable_folder

SOURCE = "hf:"
DECIDED = ("arrangement", "hidden", "activation", "norm", "norm_eps", "bias")
"""Fields of model.cms that ``nl.models.stacking`` sets."""


def import_model(options: argparse.Namespace) -> int:
    """``nl import``: read, convert, write one safetensors file."""
    import nl.assembly  # noqa: F401 - registers every part that the run is made of
    from nl.config.hydra import compose, run_config
    from nl.dist.export import export
    from nl.models.foreign import convert
    from nl.models.stacking import stacked

    target = Path(options.file)
    if target.exists() and not options.force:
        raise ConfigError(f"{target}: exists already; choose another name or add --force.")
    writable_folder(target.parent, "import")
    folder = source(options.source)
    config, tensors = read_foreign(folder)
    model, named = convert(config, tensors)
    check_overrides(options.overrides, stacking=options.as_block is not None)
    data = compose(options.config_name, options.overrides)
    if options.as_block is not None:
        own: Any = run_config(data).model
        cms = own.cms if options.levels is None else replace(own.cms, periods=tuple(options.levels))
        model, named = stacked(model, named, cms)
    elif options.levels is not None:
        raise ConfigError("--levels: a Transformer has none; add --as hope_attention.")
    run = run_config(data | {"model": unstructure(model)})
    built: Any = model.build()
    built.load_state_dict(named)
    target.parent.mkdir(parents=True, exist_ok=True)
    known = tokenizers_in(folder, options.tokenizer)
    with writing(target):
        export(built.state_dict(), run, target, known)
    count = sum(p.numel() for p in built.parameters())
    kinds = ", ".join(model.kinds)
    print(
        f"{target}: {config['model_type']} as {kinds}, {model.layers} layers, {count:,} parameters"
    )
    print(f"  tokenizer: {what_tokenizer(run, folder, known)}")
    return 0


def tokenizers_in(folder: Path, given: str | None) -> tuple[str, ...]:
    """SHA-256 of the tokenizer of a checkpoint, in the forms that it has; ``given`` goes before.

    Raises:
        ConfigError: ``given`` is no tokenizer.
    """
    from nl.data.files import sha256_file
    from nl.data.tokenizer import load_tokenizer

    if given is not None:
        return (load_tokenizer(given).sha256,)
    files = (folder / name for name in ("tokenizer.json", "tokenizer.model"))
    return tuple(sha256_file(file) for file in files if file.is_file())


def what_tokenizer(run: Any, folder: Path, known: tuple[str, ...]) -> str:
    """Whose ids the model knows, and whether the run's data has them."""
    from nl.data.manifest import read_manifest

    if not known:
        return f"none in {folder}, so that no data can be checked against it; --tokenizer names one"
    data = getattr(run.stream, "path", None)
    if data is None or not (Path(data) / "manifest.json").is_file():
        return f"{known[0][:12]} (sha256)"
    own = read_manifest(data).tokenizer.sha256
    if own in known:
        return f"{own[:12]} (sha256), that of {data}"
    return (
        f"{known[0][:12]} (sha256), which is not that of {data} ({own[:12]}): training and "
        "evaluating refuse that data; make some with scripts/data/shard_corpus.py "
        f"--tokenizer-path {folder}/tokenizer.json and name it with --data or stream.path"
    )


def check_overrides(overrides: Sequence[str], *, stacking: bool) -> None:
    """Refuse what the checkpoint decides: the model, and with levels their MLPs."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] != "model":
            continue
        decided = not stacking or not key.startswith("model.cms.")
        if decided or key.removeprefix("model.cms.") in DECIDED:
            raise ConfigError(
                f"--set {override}: the checkpoint decides it; leave it out. With --as "
                "hope_attention periods, rates and the like of model.cms can be set."
            )


def source(given: str) -> Path:
    """The directory of ``hf:<directory>``."""
    folder = Path(given.removeprefix(SOURCE))
    if not given.startswith(SOURCE) or not folder.is_dir():
        raise ConfigError(
            f"--from {given}: give hf:<directory>, a directory with config.json and "
            "model.safetensors; nothing is downloaded."
        )
    return folder


def read_foreign(folder: Path) -> tuple[dict[str, Any], Any]:
    """config.json and tensors of a Hugging Face directory."""
    import torch

    from nl.dist.hf_folder import is_hf_folder, read_tensors

    if is_hf_folder(folder):
        raise ConfigError(
            f"--from hf:{folder}: a model of nl already; nl eval, generate, stream and export take "
            f"the directory as it is, init_from={folder} trains it further."
        )
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a mapping.")
    tensors = read_tensors(folder)
    return config, {name: t.to(torch.float32) for name, t in tensors.items()}
