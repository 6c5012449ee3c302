"""Weights to begin with: a run, checkpoint, exported file or Hugging Face directory. Floor 4."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nl.config import ConfigError, flat, structure, unstructure
from nl.config.groups import ModelConfig
from nl.config.hydra import load_config
from nl.config.run import RunConfig
from nl.core.logs import get_logger
from nl.dist.checkpoint import pointed, read_model
from nl.dist.export import TOKENIZERS, digest, load_export
from nl.dist.hf_folder import is_hf_folder, read_hf_folder
from nl.dist.saved import check_names
from nl.dist.serial import read_metadata
from nl.run.directory import RunDir
from nl.run.discover import checkpoints, is_checkpoint, newest_valid, run_of
from nl.run.files import read_json

log = get_logger(__name__)

SAME = "init_from"
"""Kind of model that stands for the one of the file."""


@dataclass(frozen=True)
class Weights:
    """A model as it lies on disk.

    Attributes:
        path: where.
        config: the RunConfig that it was made with, plain data.
        tensors: by plain name, checked against their digest.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def facts(self) -> dict[str, Any]:
        """What a run says of its beginning."""
        return {"path": str(self.path), "sha256": digest(self.tensors)}


def located(path: str | Path) -> Path:
    """The file or directory that holds the weights: for a run its newest valid checkpoint.

    ``model.safetensors`` of a checkpoint, or a link to it, means the checkpoint.

    Raises:
        ConfigError: no such thing there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give a run, a checkpoint or an exported file.")
    if path.name in ("latest", "best") and path.is_file():
        path = pointed(path.parent.parent, path.name) or path
    if path.is_file() and is_checkpoint(path.resolve().parent):
        path = path.resolve().parent
    if RunDir.holds_run(path):
        folder, complaints = newest_valid(path)
        if folder is None:
            raise ConfigError(f"{path}: {complaints[0] if complaints else 'has no checkpoint'}.")
        path = folder
    if path.suffix != ".safetensors" and not is_hf_folder(path) and not is_checkpoint(path):
        raise ConfigError(f"{path}: neither a run, a checkpoint nor an export.")
    return path


def read_weights(path: str | Path) -> Weights:
    """Configuration and model tensors; digests are checked.

    Damaged checkpoints of a run are passed over, and that is said.

    Raises:
        ConfigError: no such thing there, or damaged.
    """
    found = located(path)
    if RunDir.holds_run(Path(path)) and found != (newest := checkpoints(Path(path))[-1]):
        log.warning("%s is damaged (nl checkpoint verify %s says where)", newest, path)
        log.warning("reading the older checkpoint %s", found)
    if found.suffix == ".safetensors":
        return Weights(found, *load_export(found))
    if is_hf_folder(found):
        return Weights(found, *read_hf_folder(found))
    data, named = read_model(found)
    return Weights(found, data, {n: t for n, t in named.items() if not n.startswith("objective.")})


def read_description(path: str | Path) -> dict[str, Any]:
    """The configuration of ``read_weights`` without its tensors.

    Raises:
        ConfigError: no such thing there.
    """
    found = located(path)
    if found.suffix == ".safetensors":
        return _mapping(read_metadata(found).get("nl_config"), found)
    if is_hf_folder(found):
        return _mapping(json.loads((found / "config.json").read_text()).get("nl_config"), found)
    return load_config(found / "config.yaml")


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: nl_config is not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: not an export of nl (it has no nl_config).")
    return data


def tokenizers_of(path: str | Path) -> tuple[str, ...]:
    """SHA-256 of the tokenizers whose ids these weights know; empty where that is not recorded."""
    found = located(path)
    if found.suffix == ".safetensors":
        text = read_metadata(found).get(TOKENIZERS, "")
        return tuple(text.split())
    if is_hf_folder(found):
        named = json.loads((found / "config.json").read_text()).get(f"nl_{TOKENIZERS}")
    else:
        home = run_of(found)
        meta = read_json(RunDir(home).meta) if home is not None else {}
        named = meta.get(TOKENIZERS)
    return tuple(map(str, named)) if isinstance(named, list) else ()


def check_tokenizer(path: str | Path, sha256: str | None, where: str) -> None:
    """Refuse ids of another tokenizer than the one the weights were trained with.

    Args:
        path: the weights.
        sha256: of the tokenizer at hand; None where there is no text.
        where: what names that tokenizer, and how to name another one.

    Raises:
        ConfigError: they differ.
    """
    known = tokenizers_of(path)
    if sha256 is not None and known and sha256 not in known:
        theirs = " or ".join(code[:12] for code in known)
        raise ConfigError(
            f"{where} has the tokenizer {sha256[:12]} (sha256), {path} was trained on the ids of "
            f"{theirs}; use data that was made with that tokenizer."
        )


def resolve_model(run: RunConfig) -> RunConfig:
    """The run with the model of ``init_from`` in place of ``model=init_from``; else as it is.

    Raises:
        ConfigError: no file named, or options that its model does not have.
    """
    if run.model.kind != SAME:
        return run
    if run.init_from is None:
        raise ConfigError(
            f"model: {SAME}; it stands for the model of a file: name one with init_from=<file>."
        )
    anything: Any = run.model
    held = structure(ModelConfig, read_description(run.init_from)["model"], "model")
    data: Any = unstructure(held)  # with the options that the file does not know yet
    changes = flat(anything.changes) if anything.changes else {}
    for key, value in changes.items():
        *path, last = key.split(".")
        place = data
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ConfigError(f"model.changes.{key}: the model of {run.init_from} has no {key}.")
        place[last] = value
    model = structure(ModelConfig, data, "model")
    kept = (*(run.init_changes or ()), *changes)
    return replace(run, model=model, init_changes=kept or None)


def check_same_model(run: RunConfig, weights: Weights) -> None:
    """Refuse weights of a model with other options than those of ``init_changes``.

    Raises:
        ConfigError: listing the keys, both values and what to do.
    """
    theirs = structure(ModelConfig, weights.config.get("model"), "model")
    ours, found = flat(unstructure(run.model)), flat(unstructure(theirs))
    meant = run.init_changes or ()
    wrong = [key for key in meant if key not in ours]
    if wrong:
        raise ConfigError(f"init_changes: model.{wrong[0]}; the model has no such option.")
    different = [
        key for key in sorted(ours | found) if ours.get(key) != found.get(key) and key not in meant
    ]
    if different:
        shown = "\n  ".join(
            f"model.{key}: {found.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} here"
            for key in different
        )
        raise ConfigError(
            f"init_from: {weights.path} holds another model; set these keys as there, or take its "
            f"model with model={SAME}, or name in init_changes what is to differ:\n  {shown}"
        )


def fill(model: nn.Module, weights: Weights) -> None:
    """Put the weights into a model that is built and whole.

    A part that says it ``begins_fresh`` stays as it was drawn where the weights do not have it.

    Raises:
        ConfigError: other names or shapes.
    """
    drawn = model.state_dict()
    added = {
        f"{path}.{name}"
        for path, part in model.named_modules()
        if getattr(part, "begins_fresh", False)
        for name in part.state_dict()
    }
    kept = {name: drawn[name] for name in added - weights.tensors.keys()}
    check_names(weights.path, set(drawn), weights.tensors.keys() | kept.keys())
    if kept:
        log.info("init_from: %s has no %s; as drawn", weights.path, ", ".join(sorted(kept)))
    try:
        model.load_state_dict({**weights.tensors, **kept})
    except RuntimeError as error:
        raise ConfigError(f"{weights.path}: {error}") from error


def begin(model: nn.Module, run: RunConfig, tokenizer: str | None) -> dict[str, Any] | None:
    """Fill a fresh model with the weights of ``init_from``.

    Args:
        model: built, on the host, not yet cut or wrapped.
        run: its configuration, ``model=init_from`` resolved.
        tokenizer: SHA-256 of the tokenizer of the run's data; None where there is no text.

    Returns:
        What was taken, for ``meta.json``; None without ``init_from``.

    Raises:
        ConfigError: another model, another tokenizer, damaged or missing files.
    """
    if run.init_from is None:
        return None
    weights = read_weights(run.init_from)
    check_same_model(run, weights)
    check_tokenizer(run.init_from, tokenizer, "stream.path: the data")
    if tokenizer is not None and not tokenizers_of(run.init_from):
        log.warning(
            "init_from: %s does not say which tokenizer its ids belong to; make sure that it is "
            "that of the data (%s)",
            run.init_from,
            tokenizer[:12],
        )
    fill(model, weights)
    facts = weights.facts()
    log.info("begins with the weights of %s (sha256 %s)", weights.path, facts["sha256"][:12])
    return facts
