"""``nl generate`` and ``nl chat``: text goes in, text comes out, the State stays. Floor 8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from nl.cli_command import Commands, add_command, naming_flags
from nl.config import ConfigError

CONTEXT = 8
"""Tokens before the new ones that are decoded with them, for the spaces between."""
UNREAD = "unread"
"""Fact of a state file: the token that was written last and has not been read."""


@dataclass
class Talk:
    """A model with the State of what it has read and written.

    Attributes:
        model: a language model on its device.
        tokenizer: the one it was trained with.
        write: what the memories are written with: all, what they are given, or none of it.
        segment: tokens per forward pass.
        digest: of the model's options and weights; a state file belongs to one model.
        state: of everything read; None: nothing yet.
        unread: the token written last, which is read before what comes next.
    """

    model: Any
    tokenizer: Any
    write: Literal["all", "given", "none"]
    segment: int
    digest: str
    state: Any = None
    unread: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.unread = None, []

    @property
    def position(self) -> int:
        """Tokens read."""
        return int(getattr(self.state, "position", 0))

    def read(self, ids: list[int]) -> Any:
        """Read tokens in segments; (1, vocab) logits after the last.

        State and unread token change together after every segment, so that an interruption leaves
        both as they belong together.
        """
        if self.write != "given":
            return self._read([*self.unread, *ids], self.write == "all")
        own = self._read(self.unread, False)  # a word of its own, which waits to be read
        return self._read(ids, True) if ids else own

    def _read(self, ids: list[int], write: bool) -> Any:
        import torch

        device, logits = next(self.model.parameters()).device, None
        for start in range(0, len(ids), self.segment):
            part = torch.tensor([ids[start : start + self.segment]], device=device)
            with torch.no_grad():
                out = self.model(part, self.state, write=write)
            self.state, self.unread = out.state, []
            logits = out.pred[:, -1].float()
        return logits

    def tokens(self, ids: list[int], sampling: Any) -> Iterator[int]:
        """New token ids one at a time: the same ids as ``model.generate`` gives."""
        import torch

        from nl.models.generate import pick

        device = next(self.model.parameters()).device
        random = torch.Generator(device).manual_seed(sampling.seed)
        given = ids
        for _ in range(sampling.max_new_tokens):
            token = int(pick(self.read(given), sampling, random).item())
            self.unread, given = [token], []
            if token in sampling.stop:
                return
            yield token

    def text(self, ids: list[int], sampling: Any) -> Iterator[str]:
        """The same as pieces of text; a piece is held back until its characters are whole."""
        last = ids[-CONTEXT:]
        skip, shown = len(self.tokenizer.decode(last)), ""
        new: list[int] = []
        for token in self.tokens(ids, sampling):
            new.append(token)
            grown = self.tokenizer.decode([*last, *new])[skip:]
            if not grown.endswith("\ufffd"):
                yield grown[len(shown) :]
                shown = grown

    def save(self, path: Path) -> None:
        """Write the State, and what it has not read yet, to a file.

        Raises:
            ConfigError: nothing was read yet, or the file cannot be written.
        """
        from nl.cli_stream import check_finite
        from nl.dist.state_file import save_state

        if self.state is None:
            raise ConfigError(f"{path}: nothing was read yet, so that there is no State to save.")
        check_finite(self.state, path)
        save_state(path, self.state, {"model": self.digest, UNREAD: self.unread})

    def load(self, path: Path) -> None:
        """Go on from a file of ``save`` or ``nl stream --save``.

        Raises:
            ConfigError: no such file, damaged, or of another model.
        """
        from nl.cli_stream import state_for

        found = state_for(path, self.model, self.digest, "State")
        self.state, self.unread = found.state, list(found.facts.get(UNREAD, []))


def opened(options: argparse.Namespace) -> Talk:
    """The model and tokenizer of a command line, and the State of ``--from``.

    Raises:
        ConfigError: missing files, another tokenizer, no CUDA, a value out of range.
    """
    from nl.assembly import load_run
    from nl.cli_measure import check_device, check_vocabulary
    from nl.cli_model import data_of
    from nl.cli_stream import model_digest
    from nl.data.manifest import data_tokenizer
    from nl.data.tokenizer import load_tokenizer

    if options.segment < 1:
        raise ConfigError(f"--segment: {options.segment}; must be >= 1 token.")
    check_device(options.device)
    if options.save_state is not None:
        check_state_file(Path(options.save_state), "--save-state")
    run, model = load_run(options.path)
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
    else:
        tokenizer = data_tokenizer(data_of(run, options.data))
    check_vocabulary(tokenizer, run, options.path)
    model.to(options.device)
    talk = Talk(model, tokenizer, options.write, options.segment, model_digest(run, model))
    if options.start is not None:
        talk.load(Path(options.start))
    return talk


def check_state_file(path: Path, where: str) -> None:
    """Refuse a name that is no state file, or a folder that cannot be written, before the work."""
    from nl.run.files import writable_folder

    if path.suffix != ".safetensors":
        raise ConfigError(f"{where}: {path}; a state file ends in .safetensors.")
    writable_folder(path.parent, where)


def sampling_of(options: argparse.Namespace, tokenizer: Any = None) -> Any:
    """How tokens are chosen: those that the tokenizer knows, up to its end mark."""
    from nl.cli_model import temperature_of
    from nl.models.generate import Sampling

    with naming_flags("max_new_tokens", "temperature", "top_k", "top_p"):
        return Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=temperature_of(options),
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            stop=() if tokenizer is None else (tokenizer.eos_id,),
            vocab_size=0 if tokenizer is None else tokenizer.vocab_size,
        )


def generate(options: argparse.Namespace) -> int:
    """``nl generate``: print the prompt and what follows, token by token, with streamed State."""
    from nl.cli_model import samples_file, save_sample

    samples = samples_file(Path(options.path)) if options.save else None
    told = None if options.read is None else read_file(Path(options.read))
    sampling_of(options)  # refused before anything is read
    talk = opened(options)
    prompt = given_prompt(options, sys.stdin)
    if told is not None:
        begin = [talk.tokenizer.eos_id] if talk.state is None else []
        talk.read([*begin, *talk.tokenizer.encode(told)])
    ids = talk.tokenizer.encode(prompt)
    if not ids and not talk.unread:
        ids = [talk.tokenizer.eos_id]
    sys.stdout.write(prompt)
    sys.stdout.flush()
    text = ""
    try:
        for piece in talk.text(ids, sampling_of(options, talk.tokenizer)):
            sys.stdout.write(piece)
            sys.stdout.flush()
            text += piece
    finally:
        try:
            sys.stdout.write("\n")
            sys.stdout.flush()
        finally:
            if options.save_state is not None and talk.state is not None:
                talk.save(Path(options.save_state))
                told = f"State saved: {options.save_state} (position {talk.position})\n"
                sys.stderr.write(told)
    if samples is not None:
        save_sample(samples, prompt, text, options)
    return 0


def given_prompt(options: argparse.Namespace, stdin: TextIO) -> str:
    """``--prompt``; ``-`` is all of stdin."""
    if options.prompt != "-":
        return str(options.prompt)
    try:
        return stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin: not UTF-8 text ({error}).") from error


def read_file(path: Path) -> str:
    """A UTF-8 text file that is not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--read: {path} cannot be read as UTF-8 text ({error}).") from error
    if not text:
        raise ConfigError(f"--read: {path} is empty; give a file with text, or leave --read out.")
    return text


def add_talk(commands: Commands) -> None:
    """``nl generate`` and ``nl chat``."""

    def write(options: argparse.Namespace) -> int:
        return generate(options)

    def talk(options: argparse.Namespace) -> int:
        from nl.cli_chat import chat

        return chat(options)

    example = 'nl generate runs/pilot_smoke/<run> --prompt "Return the" --temperature 0.8'
    parser = add_command(commands, "generate", "continue a prompt, token by token", example, write)
    flag = parser.add_argument
    _shared(parser, max_new_tokens=128)
    flag("--prompt", default="", help="text to continue; -: all of stdin")
    flag("--read", help="UTF-8 text file to read first; the memories keep what they can of it")
    flag("--save", action="store_true", help="keep the text for the run's report")
    example = "nl chat runs/pilot_smoke/<run> --max-new-tokens 40"
    summary = "talk to a model that keeps its State from turn to turn"
    parser = add_command(commands, "chat", summary, example, talk)
    flag = parser.add_argument
    _shared(parser, max_new_tokens=64)
    flag("--template", default="{text}\\n", help="what is read for a line of yours")
    flag("--stop", default="\\n\\n", help="text that ends a reply; empty: none but the end mark")


def _shared(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Flags of both commands."""
    flag = parser.add_argument
    flag("path", help="run directory, checkpoint directory or exported .safetensors")
    flag("--data", help="data directory; default: the one the run was trained on")
    flag("--tokenizer", help="bytes, .model or tokenizer.json, where there is no data directory")
    flag("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    flag("--max-new-tokens", type=int, default=max_new_tokens, help="tokens to add")
    flag("--greedy", action="store_true", help="always the likeliest token")
    flag("--temperature", type=float, help="0: the likeliest token; default: 1.0")
    flag("--top-k", type=int, default=0, help="sample among the k likeliest; 0: all")
    flag("--top-p", type=float, default=1.0, help="sample within this probability")
    flag("--seed", type=int, default=0, help="seed of the sampling")
    flag("--segment", type=int, default=512, help="tokens per forward pass of what is read")
    words = ("all", "given", "none")
    said = "what writes the memories: all, what the model is given but not what it says, or nothing"
    flag("--write", choices=words, default="given", help=said)
    flag("--no-write", dest="write", action="store_const", const="none", help="as --write none")
    flag("--from", dest="start", help="state file to go on from")
    flag("--save-state", help="state file to write at the end")
