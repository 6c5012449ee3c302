"""``nl stream``: read a text of any length with a State that can be kept. Floor 8."""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nl.cli_measure import check_device, check_vocabulary
from nl.cli_model import data_of
from nl.config import ConfigError, unstructure
from nl.config.run import RunConfig
from nl.core.stopped import keeping
from nl.run.files import writable_folder

if TYPE_CHECKING:
    from nl.dist.state_file import SavedState


NOTHING_READ = "nothing was read and no State saved; the same command begins again"
"""What is said of a stop while the model is loaded."""


@dataclass
class Reading:
    """What has been read of the text.

    Attributes:
        read: tokens, from the beginning of the text.
        nats: summed negative log-likelihood of the tokens scored in this call.
        scored: how many they are.
        state: the State after the last token; None before the first.
        last: (vocab,) logits that the next token is scored with, None where there are none.
        ahead: a token that the State has not read and that goes before the text.
    """

    read: int
    nats: float = 0.0
    scored: int = 0
    state: Any = None
    last: Any = None
    ahead: list[int] = field(default_factory=list)


def stream(options: argparse.Namespace) -> int:
    """Read ``--text``, print what was measured; save the State to ``--save``.

    Returns:
        0, 130 after Ctrl-C or 143 after SIGTERM, the State of the tokens read so far being saved.
    """
    with keeping(lambda: NOTHING_READ):
        from nl.core.state import num_bytes
        from nl.train.hooks.stop import StopSignals, exit_code

        model, ids, facts, reading = _open(options)
    begun, first = time.monotonic(), reading.read
    after = "then the State is saved" if options.save else "nothing is saved (no --save)"
    with StopSignals(f"stopping after this segment, {after}") as stop:
        _advance(model, ids, reading, options, stop)
        seconds = time.monotonic() - begun
        held = num_bytes(reading.state) if reading.state is not None else 0
        mean = reading.nats / reading.scored if reading.scored else math.nan
        rate = (reading.read - first) / max(seconds, 1e-9)
        print(
            f"{reading.read - first} tokens in {seconds:.1f} s ({rate:.0f}/s), {mean:.4f} nats per "
            f"token; position {getattr(reading.state, 'position', 0)}, State of {held:,} bytes"
        )
        if options.save and reading.state is not None:
            _save(Path(options.save), reading, facts)
    if reading.read < len(ids):
        print(_how_to_go_on(options, reading.read, len(ids)))
        return exit_code(stop.received)
    return 0


def _open(options: argparse.Namespace) -> tuple[Any, list[int], dict[str, Any], Reading]:
    """Model, the ids of the text, what the State is one of, and what was read before."""
    from nl.assembly import load_run
    from nl.data.manifest import data_tokenizer

    if options.segment < 1:
        raise ConfigError(f"--segment: {options.segment}; must be >= 1 token.")
    check_device(options.device)
    if options.save:
        target = Path(options.save)
        if target.suffix != ".safetensors":
            raise ConfigError(f"--save: {target}; a state file ends in .safetensors.")
        writable_folder(target.parent, "--save")
    text = _read_text(Path(options.text))
    run, model = load_run(options.run)
    tokenizer = data_tokenizer(data_of(run, options.data))
    check_vocabulary(tokenizer, run, options.run)
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    model.to(options.device)
    facts = {"model": model_digest(run, model), "text": _digest(text), "tokens": len(ids)}
    return model, ids, facts, _begin(options, facts, model)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--text: {path} cannot be read as UTF-8 text ({reason}).") from error
    if not text:
        raise ConfigError(f"--text: {path} is empty; give a file with text.")
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(run: RunConfig, model: Any) -> str:
    """What a State must agree on: every option of the model and every weight."""
    import torch

    found = hashlib.sha256(repr(sorted(unstructure(run.model).items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def state_for(path: str | Path, model: Any, digest: str, flag: str = "--from") -> SavedState:
    """A State from a file, if it is one of this model.

    Files of ``nl.save_state`` do not say what they were made with: types and widths have to do.

    Raises:
        ConfigError: no such file, damaged, of another model or with numbers that are not finite.
    """
    from nl.dist.state_file import read_state
    from nl.models.language_state import check_state

    found = read_state(path, next(model.parameters()).device)
    if found.facts.get("model", digest) != digest:
        raise ConfigError(
            f"{flag}: {path} is the State of another model, of other options or weights; use the "
            "run it was made with."
        )
    try:
        check_state(model, found.state)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {path}: {error}") from error
    check_finite(found.state, f"{flag}: {path}")
    return found


def check_finite(state: Any, what: object) -> None:
    """Refuse a State with numbers that are not finite."""
    from nl.core.state import tensors

    if not all(bool(t.isfinite().all()) for t in tensors(state)):
        raise ConfigError(
            f"{what}: numbers of the State are not finite, the memories of the model diverged; "
            "begin without it, or read with --no-write."
        )


def _begin(options: argparse.Namespace, facts: dict[str, Any], model: Any) -> Reading:
    """The State of ``--from``, at the token of the text where it stopped; else a fresh one."""
    if not options.start:
        return Reading(0)
    found = state_for(options.start, model, facts["model"])
    same = found.facts.get("text") == facts["text"] and found.facts["read"] < facts["tokens"]
    begin = int(found.facts["read"]) if same else 0
    where = f"at token {begin}" if same else "at its beginning"
    print(f"State at position {found.state.position}; the text goes on {where}")
    return Reading(begin, state=found.state, ahead=list(found.facts.get("unread", [])))


def _advance(
    model: Any, ids: list[int], reading: Reading, options: argparse.Namespace, stop: Any
) -> None:
    """Read to the end of the text or to a signal; ``reading`` is always of whole segments."""
    import torch

    from nl.eval.progress import ProgressMeter

    with ProgressMeter("stream", len(ids) - reading.read, "tokens") as meter, torch.no_grad():
        while reading.read < len(ids) and not stop.received:
            part = ids[reading.read : reading.read + options.segment]
            tokens = torch.tensor([reading.ahead + part], device=options.device)
            reading.ahead = []
            out = model(tokens, reading.state, write=not options.no_write)
            before = [] if reading.last is None else [reading.last[None]]
            logits = torch.cat([*before, out.pred[0]]).float()
            wanted = tokens[0, 0 if before else 1 :]
            nats = torch.nn.functional.cross_entropy(logits[:-1], wanted, reduction="sum")
            reading.nats += float(nats)
            if not math.isfinite(reading.nats):
                raise ConfigError(
                    f"--text: the loss of tokens {reading.read} to {reading.read + len(part)} is "
                    f"{reading.nats}: the memories of this model diverge; nothing was saved. Read "
                    "with --no-write, or train with a bound on writes (model.cms.clip=0.1)."
                )
            reading.scored += len(wanted)
            reading.read += len(part)
            reading.state, reading.last = out.state, out.pred[0, -1]
            meter.advance(len(part))


def _save(target: Path, reading: Reading, facts: dict[str, Any]) -> None:
    from nl.dist.state_file import save_state

    check_finite(reading.state, target)
    save_state(target, reading.state, {**facts, "read": reading.read})
    print(f"State saved: {target}")


def _how_to_go_on(options: argparse.Namespace, read: int, total: int) -> str:
    """What is left, and the command that reads it."""
    if not options.save:
        return f"stopped after {read} of {total} tokens; nothing was saved (no --save)"
    words = ["nl", "stream", "--run", options.run, "--text", options.text]
    words += ["--from", options.save, "--save", options.save]
    words += ["--data", options.data] if options.data else []
    words += ["--no-write"] if options.no_write else []
    words += ["--device", options.device, "--segment", str(options.segment)]
    return f"stopped after {read} of {total} tokens; go on with: {shlex.join(words)}"
