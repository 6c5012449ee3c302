"""The one door to Hydra: publish defaults, compose by name, read a stored config. Floor 0."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nl.config.legacy import owner, translate, translate_config
from nl.config.registry import ConfigError, groups, table, unknown
from nl.config.run import (
    CheckpointConfig,
    FSDPConfig,
    LoggingConfig,
    RunConfig,
    RunDirConfig,
    SignalsConfig,
    TrainConfig,
    config_hash,
)
from nl.config.structure import defaults_of, structure, unstructure

# Groups whose kinds are selected by name inside another config, not as a Hydra option.
NOT_PUBLISHED = {"block", "inner"}

INSIDE = re.compile(r"model\.cms\.inner[.=]")  # Hydra knows the keys of one kind, we of all

LISTED = {"evals", "hooks"}
"""Mappings of any number of named parts."""

MOST_VALUES = 100_000
"""Values in one configuration file, aliases unfolded."""

_published: dict[tuple[str, str], type] = {}
"""(group, kind) -> class whose defaults Hydra has."""


def find_plugins() -> None:
    """Let Hydra look for its plugins now: once in a process, and inherited by forks."""
    from hydra.core.plugins import Plugins

    Plugins.instance()


def publish() -> None:
    """Hand the defaults of every registered kind to Hydra as plain nodes (no types, no torch).

    What Hydra has already is left alone: launchers publish, and so does every composition.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    # Hydra copies its sources for every composition, and with them every node of the store. What
    # it loads from the store it copies again: the store itself is only read.
    store.__deepcopy__ = lambda _memo: store  # type: ignore[attr-defined]
    for group in groups():
        if group in NOT_PUBLISHED:
            continue
        for kind, cls in table(group).items():
            if _published.get((group, kind)) is not cls:
                store.store(group=group, name=kind, node=defaults_of(cls), provider="nl")
                _published[group, kind] = cls
    if "run_defaults.yaml" in store.repo:
        return
    root = {
        "name": "run",
        "seed": 0,
        "train": defaults_of(TrainConfig),
        "evals": {},
        "hooks": {},
        "logging": defaults_of(LoggingConfig),
        "checkpoint": defaults_of(CheckpointConfig),
        "run": defaults_of(RunDirConfig),
        "resume": "none",
        "init_from": None,
        "init_changes": None,
        "fsdp": defaults_of(FSDPConfig),
        "deepspeed": {"config": None},
        "controller": None,
        "signals": defaults_of(SignalsConfig),
    }
    store.store(name="run_defaults", node=root, provider="nl")


def config_dir() -> Path:
    """The configs directory: the checkout's, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parents[1] / "configs", package / "configs"):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"configs: no directory beside {package}; reinstall nl.")


def compose(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose ``configs/<name>.yaml`` with Hydra overrides into plain data.

    Args:
        name: a config name (``pilot_smoke``, ``hope/mid``) or a path below ``configs``.
        overrides: Hydra override strings, ``key=value``.

    Raises:
        ConfigError: no such config, or an override that Hydra refuses.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    publish()
    root = config_dir()
    name = config_name(name, root)
    if not (root / f"{name}.yaml").is_file():
        known = sorted(str(p.relative_to(root))[:-5] for p in root.glob("*.yaml"))
        raise ConfigError(
            f"config {name!r}: no file {name}.yaml in configs. Known: {', '.join(known)}."
        )
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(root)):
            cfg = hydra.compose(name, overrides=quoted(overrides))
        return plain(cfg)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"config {name!r}: not valid YAML: {where}.") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def config_name(name: str, root: Path) -> str:
    """``configs/hope/mid.yaml``, ``hope/mid.yaml`` and ``hope/mid`` all mean ``hope/mid``."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        resolved = path.resolve()
        if resolved.is_relative_to(root):
            path = resolved.relative_to(root)
        elif path.parts and path.parts[0] == root.name:
            path = Path(*path.parts[1:])
        return str(path.with_suffix(""))
    return name


def quoted(overrides: Sequence[str]) -> list[str]:
    """Overrides as typed, made safe for Hydra's grammar: a path may hold ``=``, ``,`` or spaces.

    Only a value that Hydra cannot read, or would read as a sweep without ``--multirun``, is put
    in quotes; flags pass through. Old keys are replaced (``nl.config.legacy``).

    Raises:
        ConfigError: an old key whose value has no counterpart.
    """
    sweep = "-m" in overrides or "--multirun" in overrides
    return [_quoted(text, sweep) for text in _replaced(overrides)]


def _replaced(overrides: Sequence[str]) -> list[str]:
    """Overrides of old keys as overrides of the new ones, after all others.

    Hydra merges mappings, so that an empty one changes nothing: ``evals={}`` takes all out.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    kept: list[str] = []
    old: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.lstrip("+").partition("=")
        if key in LISTED and value.replace(" ", "") == "{}":
            kept.append(f"~{key}")
            continue
        if not equals or owner(key) is None:
            kept.append(f"++{text}" if INSIDE.match(text) else text)
            continue
        override = OverridesParser.create().parse_override(text)
        if override.is_sweep_override():
            raise ConfigError(f"{key}: an old key cannot be swept over; use the new one.")
        old[key] = override.value()
    for key, value in translate(old).items():
        plain_value = value if isinstance(value, str) else json.dumps(value)
        kept.append(f"{key.removesuffix('.kind')}={plain_value}")
    return kept


def _quoted(text: str, sweep: bool) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if text.startswith("-") or not equals:
        return text
    parser = OverridesParser.create()
    try:
        if sweep or not parser.parse_override(text).is_sweep_override():
            return text
    except HydraException:
        pass
    safe = value.replace("\\", "\\\\").replace("'", "\\'")
    candidate = f"{key}='{safe}'"
    try:
        parser.parse_override(candidate)
    except HydraException:
        return text
    return candidate


def say(text: str, error: Exception) -> None:
    """Tell a complaint on stderr."""
    del error
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def refusing(tell: Callable[[str, Exception], None] = say) -> Iterator[None]:
    """Surrounds a launcher: what the user can mend is said on stderr, and the exit code is 2.

    Args:
        tell: gets the text and the error instead of stderr.
    """
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting 1
    try:
        yield
    except ConfigError as error:
        tell(str(error), error)
        raise SystemExit(2) from None
    except (HydraException, OmegaConfBaseException) as error:
        tell(explain(error), error)
        raise SystemExit(2) from None
    except yaml.YAMLError as error:
        tell(f"a configuration file is not valid YAML: {' '.join(str(error).split())}", error)
        raise SystemExit(2) from None


def run_launcher(job: Callable[[Any], None], arguments: Sequence[str]) -> None:
    """Do what a launcher file does, from anywhere: Hydra's flags and overrides in ``arguments``."""
    import hydra

    publish()
    sys.argv = ["nl train", *quoted(arguments)]
    decorate = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="pilot")
    with refusing():
        start(decorate(job), config_dir())


def start(decorated: Any, configs: Path) -> None:
    """Call a function under ``hydra.main`` with the command line, composing once where that does.

    ``hydra.main`` composes twice, once to learn ``hydra.mode``. A command line of a config's name
    and overrides of a configuration that leaves Hydra's own node as the shipped ones have it needs
    neither that nor Hydra's output directories and logging; all others go the long way.

    Args:
        decorated: the function.
        configs: the directory that its ``config_path`` means.
    """
    cfg = _composed_once(sys.argv[1:]) if configs.resolve() == config_dir() else None
    if cfg is None:
        decorated()
    else:
        decorated(cfg)


def _composed_once(arguments: Sequence[str]) -> Any:
    """The configuration of a command line without Hydra's flags; None where Hydra is needed."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    flag, equals, name = (arguments[0] if arguments else "").partition("=")
    overrides = list(arguments[1:])
    if not equals and overrides:
        name = overrides.pop(0)
    if flag not in ("--config-name", "-cn") or not name or name.startswith("-"):
        return None
    if any(text.startswith("-") or text.lstrip("+~").startswith("hydra") for text in overrides):
        return None
    GlobalHydra.instance().clear()
    place = {"config_dir": str(config_dir()), "job_name": Path(sys.argv[0]).stem}
    with hydra.initialize_config_dir(version_base="1.3", **place):
        cfg = hydra.compose(name, overrides=overrides, return_hydra_config=True)
    own = cfg.hydra
    asked = (own.callbacks, own.job.env_set, own.job_logging.root, own.hydra_logging.root)
    plain_mode = own.mode is None or own.mode.name == "RUN"
    if any(asked) or own.output_subdir or own.job.chdir or own.verbose or not plain_mode:
        return None
    if own.run.dir != ".":
        return None
    with open_dict(cfg):
        own.runtime.output_dir = str(Path.cwd())
        HydraConfig.instance().set_config(cfg)  # interpolations of ${hydra:...} look there
        del cfg["hydra"]
    return cfg


def plain(cfg: Any) -> dict[str, Any]:
    """A composed DictConfig as plain data, interpolations resolved, Hydra's own node dropped."""
    data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(data, dict)
    data.pop("hydra", None)
    return {str(k): v for k, v in data.items()}


def explain(error: Exception) -> str:
    """Hydra's message on one or two lines, without its noise; unknown names get a hint."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _not_found(error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r}: expected key=value, such as train.steps=200; "
            "+key=value adds a key, ~key takes one away."
        )
    cause = error.__cause__ or error
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node]
        parent = str(cause.full_key).rpartition(".")[0] or "config"
        return unknown(parent, str(cause.key), known)
    lines = [s.strip() for s in str(cause).splitlines() if s.strip()]
    keep = [
        s for s in lines if not re.match(r"(full_key|object_type|reference_type|Set the env)", s)
    ]
    return " ".join(keep[:3])


def _not_found(wanted: str) -> str:
    """A complaint about a config or option that neither ``configs`` nor a registry has."""
    group, _, name = wanted.removesuffix(".yaml").rpartition("/")
    if group.partition("/")[0] == "experiment":
        group, _, name = wanted.removesuffix(".yaml").partition("/")
    folder = config_dir() / group
    files = folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")
    known = {p.relative_to(folder).as_posix()[:-5] for p in files} | set(table(group))
    where = f"nl help {group}" if group in groups() else f"files below {folder}"
    return unknown(group or "--config-name", name, known, where)


def run_config(data: dict[str, Any]) -> RunConfig:
    """Plain data to a checked ``RunConfig`` (parts must be registered: import nl.assembly)."""
    if data.get("deepspeed") == {"config": None}:  # a place for the override, nothing in it
        data = data | {"deepspeed": None}
    return structure(RunConfig, translate_config(data))


def save_config(run: RunConfig, path: Path) -> None:
    """Write the resolved configuration, kinds included, so that ``load_config`` reads it back."""
    path.write_text(yaml.safe_dump(unstructure(run), sort_keys=False))


def load_config(path: Path) -> dict[str, Any]:
    """Read a ``config.yaml`` written by ``save_config`` as plain data.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({where}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(data).__name__}.")
    _check_size(path, data)
    return data


def file_hash(path: Path) -> str | None:
    """``config_hash`` of a ``config.yaml`` read with today's keys; None where it cannot be read.

    Keys that are newer than the file have their defaults, which change nothing.
    """
    try:
        return config_hash(run_config(load_config(path)))
    except ConfigError:
        return None


def _check_size(path: Path, data: Any) -> None:
    """Refuse a file whose aliases (&a, *a) unfold into more than any configuration holds."""
    waiting, count = [data], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ConfigError(f"{path}: more than {MOST_VALUES} values; not a configuration.")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
