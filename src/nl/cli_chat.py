"""``nl chat``: a conversation whose State is kept over turns, typed or piped. Floor 8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl.cli_talk import Talk, check_state_file, opened, sampling_of
from nl.config import ConfigError
from nl.core.stopped import Terminated, stopped_code

COMMANDS = "/reset  forget everything    /save FILE  /load FILE  the State    /quit"
QUIT = "/quit"


def chat(options: argparse.Namespace) -> int:
    """Lines in, replies out, until /quit or the end of the input.

    Returns:
        0, 130 after Ctrl-C between two replies, 143 after SIGTERM. Ctrl-C during a reply ends the
        reply.
    """
    template, stop = unescaped(options.template), unescaped(options.stop)
    if "{text}" not in template:
        raise ConfigError(f"--template: {options.template!r}; it needs {{text}}.")
    sampling_of(options)  # refused before anything is read
    talk = opened(options)
    sampling = sampling_of(options, talk.tokenizer)
    say(introduction(talk))
    code, turn = 0, 0
    try:
        for line in lines():
            if line.startswith("/"):
                if command(talk, line) == QUIT:
                    break
                continue
            reply(talk, template.replace("{text}", line), stop, replace(sampling, seed=turn))
            turn += 1
    except KeyboardInterrupt as stopped:
        say("stopped")
        code = stopped_code(stopped)
    if options.save_state is not None and talk.state is not None:
        talk.save(Path(options.save_state))
        say(f"State saved: {options.save_state} (position {talk.position})")
    return code


def unescaped(text: str) -> str:
    """Line breaks and tabs as they are typed on a command line, as what they mean."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def say(text: str) -> None:
    """A word of the program, not of the model: stderr, so that a pipe gets replies alone."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def introduction(talk: Talk) -> str:
    """What this is and what it cannot do."""
    paths = talk.model.memory_paths() if hasattr(talk.model, "memory_paths") else []
    if not paths:
        memory = "It has no memory that is written: only what its attention has read."
    else:
        how = {
            "all": "are written by every line, yours and its own",
            "given": "are written by your lines, not by its own",
            "none": "are frozen",
        }
        memory = f"Its memories ({', '.join(paths)}) {how[talk.write]}."
    begun = f" Going on at position {talk.position}." if talk.position else ""
    return (
        "This model continues text. It was trained on plain text alone: it follows no "
        "instructions, knows no roles, and what it says need not be true or kind. "
        f"{memory}{begun}\n{COMMANDS}"
    )


def lines() -> Iterator[str]:
    """What the user types, or what a pipe holds; empty lines are left out."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise ConfigError(f"stdin: not UTF-8 text ({error}).") from error
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def command(talk: Talk, line: str) -> str:
    """Do what a line with a slash asks for; a complaint does not end the conversation.

    Returns:
        The name of the command.
    """
    name, _, rest = line.partition(" ")
    path = Path(rest.strip())
    try:
        if name == "/reset":
            talk.reset()
            say("State is fresh.")
        elif name in ("/save", "/load") and not rest.strip():
            say(f"{name}: name a file, {name} talk.safetensors")
        elif name == "/save":
            check_state_file(path, "/save")
            talk.save(path)
            say(f"State saved: {path} (position {talk.position})")
        elif name == "/load":
            talk.load(path)
            say(f"State of {path}: position {talk.position}")
        elif name != QUIT:
            say(f"{name}: no such command. {COMMANDS}")
    except (ConfigError, OSError) as error:
        say(f"error: {error}")
    return name


def reply(talk: Talk, text: str, stop: str, sampling: Any) -> None:
    """Read a turn and write the reply; Ctrl-C ends it, the State stays that of what was read."""
    ids = talk.tokenizer.encode(text)
    if talk.state is None:
        ids = [talk.tokenizer.eos_id, *ids]
    shown = ""
    try:
        for piece in talk.text(ids, sampling):
            whole = (shown + piece).lstrip("\n") if not shown.strip() else shown + piece
            ended = bool(stop) and stop in whole
            whole = whole.split(stop)[0] if ended else whole
            sys.stdout.write(whole[len(shown) :])
            sys.stdout.flush()
            shown = whole
            if ended:
                break
    except KeyboardInterrupt as stopped:
        say("\n(reply stopped)")
        if isinstance(stopped, Terminated):
            raise
    sys.stdout.write("\n")
    sys.stdout.flush()
