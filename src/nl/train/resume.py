"""Which run and checkpoint ``resume`` means, and whether this configuration fits them. Floor 5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError, flat, unstructure
from nl.config.hydra import file_hash, load_config, run_config
from nl.config.run import NOT_HASHED, WATCHING, RunConfig, config_hash
from nl.core.logs import get_logger
from nl.run.directory import RunDir
from nl.run.discover import checkpoints, is_checkpoint, newest_run, newest_valid, run_of, step_of

log = get_logger(__name__)

MAY_CHANGE = (
    *NOT_HASHED,
    "deepspeed",
    "evals",
    "hooks",
    "train.steps",
    "train.device",
    "train.threads",
    "train.validate_every",
    "train.validate_batches",
    "train.nonfinite",
    "train.spike",
    *(f"train.{key}" for key in WATCHING),
)
"""Keys that may differ between a run and its continuation; all others decide the numbers."""


@dataclass(frozen=True)
class Resume:
    """Where to continue: a run directory and, unless it has none yet, a checkpoint's name."""

    run: Path
    checkpoint: str | None
    done: bool = False


def find_resume(run: RunConfig) -> Resume | None:
    """What ``run.resume`` asks for; None: start a new run.

    Raises:
        ConfigError: nothing there, nothing valid there, or made by another configuration.
    """
    if run.resume == "none":
        return None
    found = _auto(run) if run.resume == "auto" else _named(run)
    if found is not None:
        check_same(found.run / "config.yaml", run)
    return found


def _auto(run: RunConfig) -> Resume | None:
    if run.run.dir is not None:
        path = Path(run.run.dir)
        found = path if RunDir.holds_run(path) else None
        log.info("resume=auto: %s", f"continuing {path}" if found else f"no run in {path} yet")
    else:
        root, code = Path(run.run.root) / run.name, config_hash(run)
        newest = newest_run(root, code, file_hash)
        found = newest.path if newest is not None else None
        what = (
            f"continuing {found}" if found else f"no run of this configuration ({code}) in {root}"
        )
        log.info("resume=auto: %s", what)
    return _newest(found, run) if found is not None else None


def _named(run: RunConfig) -> Resume:
    path = Path(run.resume)
    if not path.exists():
        raise ConfigError(
            f"resume: {path} does not exist; give a run or checkpoint directory, auto or none."
        )
    if is_checkpoint(path) or step_of(path) is not None:
        owner = run_of(path)
        if owner is None:
            raise ConfigError(
                f"resume: {path} is not inside a run directory (<run>/checkpoints/step_<n>)."
            )
        found = Resume(owner, path.resolve().name)
    elif RunDir.holds_run(path):
        found = _newest(path, run)
    else:
        raise ConfigError(f"resume: {path} is neither a run nor a checkpoint directory.")
    if run.run.dir is not None and Path(run.run.dir).resolve() != found.run.resolve():
        raise ConfigError(
            f"run.dir: {run.run.dir}, but resume continues {found.run} in place; drop run.dir."
        )
    return found


def _lost(path: Path) -> str | None:
    """The checkpoint that a run says it saved last, if it is not there."""
    pointer = path / "checkpoints" / "latest"
    name = pointer.read_text().strip() if pointer.is_file() else ""
    return name if name and not (pointer.parent / name).is_dir() else None


def _newest(path: Path, run: RunConfig) -> Resume:
    """The newest valid checkpoint of a run; damaged ones are passed over, loudly."""
    folder, complaints = newest_valid(path)
    for complaint in complaints:
        log.warning("checkpoint refused: %s", complaint)
    if folder is None:
        if complaints:
            raise ConfigError(
                f"resume: no checkpoint of {path} is valid ({complaints[0]}); "
                "remove checkpoints/ to start again, or use resume=none."
            )
        lost = _lost(path)
        if lost is not None:
            raise ConfigError(
                f"resume: {path / 'checkpoints'} names {lost} as its latest, which is not "
                "there, and holds no other; put it back, or remove checkpoints/ to start again "
                "from step 0."
            )
        log.warning("%s has no checkpoint yet: starting again from step 0", path)
        return Resume(path, None)
    if complaints:
        log.warning("continuing from the older checkpoint %s", folder)
    done = RunDir(path).finished() and step_of(folder) == run.train.steps
    return Resume(path, folder.name, done)


def differences(saved: dict[str, Any], run: RunConfig) -> list[str]:
    """Dotted keys whose values differ and may not, ``key: saved value, now value``."""
    old, new = flat(saved), flat(unstructure(run))
    found = []
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
        if not free and old.get(key) != new.get(key):
            found.append(f"{key}: {old.get(key, 'absent')!r} saved, {new.get(key, 'absent')!r} now")
    return found


def check_same(path: Path, run: RunConfig) -> None:
    """Refuse to continue a run whose numbers another configuration decides.

    Keys that are newer than the run have their defaults, which change nothing.

    Raises:
        ConfigError: listing the keys.
    """
    found = differences(unstructure(run_config(load_config(path))), run)
    if found:
        raise ConfigError(
            f"resume: {path} differs from this configuration; set it back or start a new run "
            "with resume=none:\n  " + "\n  ".join(found)
        )


def abandon(run: RunDir, step: int) -> list[str]:
    """Set aside checkpoints newer than ``step``: the continuation writes its own.

    Returns:
        The new names.
    """
    moved = []
    for folder in checkpoints(run.path):
        if (step_of(folder) or 0) > step:
            target = folder.with_name(f"abandoned-{folder.name}")
            n = 1
            while target.exists():
                n += 1
                target = folder.with_name(f"abandoned-{folder.name}-{n}")
            folder.rename(target)
            moved.append(target.name)
    return moved
