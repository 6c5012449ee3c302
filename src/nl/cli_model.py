"""``nl eval``, kept samples and the baselines of a report. Floor 8."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nl.cli_command import naming_flags
from nl.cli_measure import check_device, check_vocabulary, step_at
from nl.config import ConfigError, structure, table, unstructure
from nl.config.groups import EvaluatorConfig
from nl.config.registry import unknown
from nl.config.run import RunConfig
from nl.core.stopped import keeping
from nl.run.directory import RunDir
from nl.run.discover import run_of
from nl.run.files import read_json, writable_folder, write_atomic, write_json
from nl.run.records import line, read_records

if TYPE_CHECKING:
    from nl.core.protocols import Evaluator
    from nl.eval.context import EvalContext

EXPORTED = re.compile(r"step_(\d{6,})\.safetensors")


def owner(path: Path) -> Path | None:
    """The run directory that a run, checkpoint or exported file belongs to."""
    if RunDir.holds_run(path):
        return path
    if EXPORTED.fullmatch(path.name) and RunDir.holds_run(path.resolve().parent.parent):
        return path.resolve().parent.parent
    return run_of(path)


def data_of(run: RunConfig, given: str | None) -> str:
    """The data directory: as given, else the one the run was trained on."""
    path = given or getattr(run.stream, "path", None)
    if path is None:
        raise ConfigError(
            f"data: stream={run.stream.kind} has no text; name a data directory with --data."
        )
    return str(path)


def evaluate(options: argparse.Namespace) -> int:
    """``nl eval``: run evaluators on saved weights, record the rows of each, print the table."""
    with keeping(lambda: "nothing was measured; the same command begins again"):
        from nl.eval.rows import table as as_text
        from nl.eval.suite import run_suite

        model, evaluators, context = _prepared(options)
    home, step = owner(Path(options.path)), context.step
    rows: list[Any] = []
    done: list[str] = []
    with keeping(lambda: how_to_go_on(options, context.output, done, list(evaluators))):
        for name, evaluator in evaluators.items():
            found = run_suite(model, {name: evaluator}, context)
            if home is not None and not options.output:
                kept = [{"step": step, **dataclasses.asdict(row)} for row in found]
                record(home / "evals.jsonl", kept)
            rows += found
            done.append(name)
    print(as_text(rows))
    return 0


def _prepared(options: argparse.Namespace) -> tuple[Any, dict[str, Evaluator], EvalContext]:
    """The model, the evaluators by suite and what they may use."""
    from nl.assembly import context_of, load_run
    from nl.eval.context import check_reads

    path = Path(options.path)
    check_device(options.device)
    run, model = load_run(path)
    chosen = choose_evaluators(run, options.suite, options.set)
    home = owner(path)
    output = Path(options.output) if options.output else default_output(path, home)
    writable_folder(output, "--output")
    made = all(part.reads != "text" for part in chosen.values())
    with naming_flags("batch_size", "limit"):
        context = context_of(
            run,
            output,
            options.data if made else data_of(run, options.data),
            home=home,
            device=options.device,
            batch_size=options.batch_size,
            limit=options.limit,
            seed=options.seed,
            step=step_at(path),
        )
    if made:
        check_reads(chosen, run.stream, run.model)
    else:
        check_vocabulary(context.tokenizer, run, path)
    model.to(options.device)
    return model, {name: part.build() for name, part in chosen.items()}, context


def how_to_go_on(
    options: argparse.Namespace, output: Path, done: Sequence[str], names: Sequence[str]
) -> str:
    """What a stopped ``nl eval`` has measured, and the command for the rest."""
    if not done:
        return "no suite was measured to its end; the same command begins again"
    left = [name for name in names if name not in done]
    kept = f"{', '.join(done)} measured and written below {output}"
    if not left:
        return kept
    words = ["nl", "eval", options.path, "--suite", *left]
    settings = [text for text in options.set if text.partition(".")[0] in left]
    words += ["--set", *settings] if settings else []
    for name in ("data", "output", "device", "limit", "batch_size", "seed"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return f"{kept}, {', '.join(left)} not; go on with: {shlex.join(words)}"


def default_output(path: Path, home: Path | None) -> Path:
    """Details go into the run where there is one, else below ``eval``."""
    return home / "artifacts" / "evals" if home is not None else Path("eval") / path.stem


def choose_evaluators(
    run: RunConfig, names: Sequence[str], settings: Sequence[str]
) -> dict[str, Any]:
    """The evaluators to run, by suite name.

    Args:
        run: its ``evals`` are the default and give their settings.
        names: suites of the run or kinds of the registry; empty: the run's, else every kind that
            reads what its stream has.
        settings: ``<suite>.<field>=<value>``, the value in YAML.

    Raises:
        ConfigError: an unknown suite or field, or a value out of range.
    """
    from nl.eval.context import offered

    known = {**{kind: {"kind": kind} for kind in table("evaluator")}, **unstructure(run.evals)}
    reads = offered(run.stream) or "text"
    fitting = [kind for kind, part in table("evaluator").items() if part.reads == reads]  # type: ignore[attr-defined]
    wanted = list(names) or list(run.evals) or fitting
    for name in wanted:
        if name not in known:
            raise ConfigError(unknown("--suite", name, known))
    data = {name: dict(known[name]) for name in wanted}
    for setting in settings:
        key, equals, text = setting.partition("=")
        suite, _, field = key.partition(".")
        if not equals or not field:
            raise ConfigError(f"--set {setting}: expected <suite>.<field>=<value>.")
        if suite not in data:
            raise ConfigError(unknown(f"--set {setting}", suite, data))
        _place(data[suite], field.split("."), parse_value(setting, text))
    chosen = {name: structure(EvaluatorConfig, part, name) for name, part in data.items()}
    for setting in settings:
        suite, _, field = setting.partition("=")[0].partition(".")
        if field.startswith("memory.") and getattr(chosen[suite], "memorize", None) == ("off",):
            raise ConfigError(
                f"--set {setting}: with {suite}.memorize=[off] nothing is written for an answer; "
                f"add context or oracle to {suite}.memorize, or leave this setting out."
            )
    return chosen


def _place(data: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set ``data[a][b]...`` to a value; what is missing on the way is made."""
    *path, last = keys
    for key in path:
        inner = data.get(key)
        data[key] = dict(inner) if isinstance(inner, dict) else {}
        data = data[key]
    data[last] = value


def parse_value(setting: str, text: str) -> Any:
    """A value as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not YAML.") from error


def record(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into evals.jsonl in place of earlier ones of the same step and suite."""
    replaced = {(row["step"], row["suite"]) for row in rows}
    kept = [r for r in read_records(path) if (r.get("step"), r.get("suite")) not in replaced]
    write_atomic(path, "".join(line(row) for row in [*kept, *rows]))


def save_sample(samples: Path, prompt: str, text: str, options: argparse.Namespace) -> None:
    """Keep a generated text for the run's report."""
    sample = {"prompt": prompt, "text": text, **settings_of(options)}
    samples.parent.mkdir(exist_ok=True)
    write_atomic(samples, "".join(line(row) for row in [*read_records(samples), sample]))


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """How a text was drawn, for the report."""
    keys = ("temperature", "top_k", "top_p", "seed", "max_new_tokens")
    how = {"all": "written while reading", "given": "written by the prompt", "none": "frozen"}
    memory = how[options.write]
    told = {key: getattr(options, key) for key in keys}
    return {**told, "temperature": temperature_of(options), "memory": memory}


def temperature_of(options: argparse.Namespace) -> float:
    """What logits are divided by; 0: the likeliest token is taken.

    Raises:
        ConfigError: ``--greedy`` and a temperature above 0.
    """
    given: float | None = options.temperature
    if options.greedy and given:
        raise ConfigError(
            f"--greedy, --temperature: {given}; --greedy always takes the likeliest token: leave "
            "one of the two out."
        )
    return 0.0 if options.greedy else 1.0 if given is None else given


def samples_file(path: Path) -> Path:
    """``artifacts/samples.jsonl`` of the run that ``path`` belongs to, checked to be writable.

    Raises:
        ConfigError: ``path`` belongs to no run directory.
        RunError: no permission to write there.
    """
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give a run, a checkpoint or an exported file.")
    home = owner(path)
    if home is None:
        raise ConfigError(f"--save: {path} belongs to no run directory; leave --save out.")
    writable_folder(home / "artifacts", "--save")
    return home / "artifacts" / "samples.jsonl"


def write_baselines(run: Path) -> None:
    """Put the unigram losses of the run's data into ``artifacts/baselines.json``, once.

    Nothing is written for runs without text, or where the data is not on this machine.
    """
    target = run / "artifacts" / "baselines.json"
    config = run / "config.yaml"
    if target.is_file() or not config.is_file():
        return
    stream = (settings := yaml.safe_load(config.read_text()) or {}).get("stream")
    path = stream.get("path") if isinstance(stream, dict) else None
    if not path or not (Path(path) / "manifest.json").is_file():
        return
    splits = read_json(Path(path) / "manifest.json")["splits"]
    if not {"train", "val"} <= set(splits):
        return
    from nl.data.unigram import unigram_losses

    losses = unigram_losses(path, "val", verify=False)
    read = validated(settings, {domain: loss.tokens for domain, loss in losses.items()})
    mean = sum(losses[d].pooled * n for d, n in read.items()) / max(1, sum(read.values()))
    levels = {"val": mean, **{f"val/{domain}": loss.pooled for domain, loss in losses.items()}}
    target.parent.mkdir(exist_ok=True)
    write_json(target, {"unigram": levels})


def validated(settings: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, int]:
    """How many tokens of each domain a run's validation reads: what its ``val`` is a mean over.

    Args:
        settings: the run's configuration.
        tokens: what the validation split holds, by domain.
    """
    stream, batches = settings["stream"], settings.get("train", {}).get("validate_batches", 0)
    most = batches * stream.get("batch_size", 0) * stream.get("seq_len", 0)
    domains = stream.get("domains") or list(tokens)
    return {d: min(tokens[d], most or tokens[d]) for d in domains if d in tokens}
