"""``nl generate`` and ``nl chat``: stdin, saved States, turns, commands, Ctrl-C, pipes."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nl
from nl import cli_talk
from nl.cli import build_parser, main
from nl.core import state as states
from nl.data.manifest import data_tokenizer
from nl.dist.state_file import read_state
from nl.models.generate import pick
from tests.unit import test_cli_model

data = test_cli_model.data
trained = test_cli_model.trained
Capture = pytest.CaptureFixture[str]


def generated(run: Path, *flags: object, prompt: str = "prose 1") -> list[str]:
    words = ["generate", str(run), "--greedy", "--max-new-tokens", "12", *map(str, flags)]
    return [*words, "--prompt", prompt] if prompt else words


class Pipe(io.StringIO):
    """A stdin that is no terminal."""


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(text))


def test_half_and_half_is_the_whole(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    """Generate, save the State, go on from it: the tokens and State of generating at once."""
    for frozen in ([], ["--no-write"], ["--write", "all"]):
        whole, half, rest = (tmp_path / f"{n}{len(frozen)}.safetensors" for n in "abc")
        assert main(generated(trained, *frozen, "--max-new-tokens", 24, "--save-state", whole)) == 0
        assert main(generated(trained, *frozen, "--save-state", half)) == 0
        assert f"State saved: {half}" in capsys.readouterr().err
        more = ["--from", half, "--save-state", rest]
        assert main(generated(trained, *frozen, *more, prompt="")) == 0
        wanted, found = read_state(whole), read_state(rest)
        assert found.state.position == wanted.state.position > read_state(half).state.position
        assert found.facts == wanted.facts
        want, got = (states.flatten(one.state)[0] for one in (wanted, found))
        assert want.keys() == got.keys()
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor)


def test_what_a_model_says_itself_need_not_write(
    trained: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The memories are those of the prompt, and of later prompts."""
    model = nl.load_model(trained)
    tokenizer = data_tokenizer(data)
    path, more = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    prompt = "prose 1 " * 12
    flags: list[object] = ["--max-new-tokens", 40]
    assert main(generated(trained, *flags, "--save-state", path, prompt=prompt)) == 0
    ids = torch.tensor([tokenizer.encode(prompt)])
    options = {"max_new_tokens": 40, "temperature": 0, "vocab_size": tokenizer.vocab_size}
    new, state = model.generate(ids, write="given", **options)
    said = capsys.readouterr().out.rstrip("\n")  # half a character is held back
    assert len(said) > len(prompt)
    assert tokenizer.decode([*ids[0], *new[0]]).startswith(said)
    with torch.no_grad():
        read = model(ids, None).state
        everything = model.generate(ids, **options)[1]

    def memories(state: Any) -> dict[str, torch.Tensor]:
        """Those of the levels: attention sees what was said all the same."""
        found = states.flatten(state)[0].items()
        return {name: t for name, t in found if name.split(".")[1::2][:2] == ["1", "1"]}

    kept = memories(read_state(path).state)
    assert kept
    for name, tensor in memories(state).items():
        torch.testing.assert_close(kept[name], tensor)
        assert torch.equal(tensor, memories(read)[name]), name
    assert any(not torch.equal(t, memories(read)[k]) for k, t in memories(everything).items())
    assert (
        main(generated(trained, "--from", path, *flags, "--save-state", more, prompt=prompt)) == 0
    )
    later = memories(read_state(more).state)
    assert any(not torch.equal(later[name], tensor) for name, tensor in kept.items())


def test_only_what_the_tokenizer_knows_is_written() -> None:
    """A model may have more rows than the tokenizer has ids."""
    tokenizer = SimpleNamespace(eos_id=1, vocab_size=2)
    options = SimpleNamespace(
        max_new_tokens=1, greedy=False, temperature=1, top_k=0, top_p=1, seed=0
    )
    likeliest, random = torch.tensor([[0.0, 1.0, 9.0]]), torch.Generator().manual_seed(0)
    for options.greedy, options.temperature in ((True, None), (False, 1)):
        sampling = cli_talk.sampling_of(options, tokenizer)
        assert {int(pick(likeliest, sampling, random)) for _ in range(20)} <= {0, 1}


def test_a_prompt_from_stdin(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(generated(trained)) == 0
    wanted = capsys.readouterr().out
    piped(monkeypatch, "prose 1")
    assert main(generated(trained, prompt="-")) == 0
    assert capsys.readouterr().out == wanted


def test_what_was_read_before_is_remembered(
    trained: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """--read gives the State that reading the file gives; segments change nothing."""
    book = tmp_path / "book.txt"
    book.write_text("def add(a, b):\n    return a + b\n" * 9)
    kept = tmp_path / "s.safetensors"
    more = ["--read", book, "--save-state", kept, "--max-new-tokens", 1]
    assert main(generated(trained, *more, "--segment", 37)) == 0
    out = capsys.readouterr().out
    found = read_state(kept)
    tokenizer = data_tokenizer(data)
    ids = [tokenizer.eos_id, *tokenizer.encode(book.read_text()), *tokenizer.encode("prose 1")]
    assert found.state.position == len(ids)
    assert len(found.facts["unread"]) == 1
    model: Any = nl.load_model(trained)
    with torch.no_grad():
        said = model(torch.tensor([ids])).pred[0, -1].argmax()
    assert found.facts["unread"] == [int(said)]
    assert out.startswith("prose 1")
    on = ["stream", "--run", str(trained), "--text", str(book), "--from", str(kept)]
    assert main([*on, "--save", str(kept)]) == 0  # the token that waited is read first
    length = len(tokenizer.encode(book.read_text())) + 1
    assert read_state(kept).state.position == len(ids) + 1 + length


def test_a_state_of_nl_stream_is_gone_on_from(
    trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    book, kept = tmp_path / "book.txt", tmp_path / "s.safetensors"
    book.write_text("prose and code " * 20)
    command = ["stream", "--run", str(trained), "--text", str(book), "--save", str(kept)]
    assert main(command) == 0
    capsys.readouterr()
    assert main(generated(trained, "--from", kept)) == 0
    after = capsys.readouterr().out
    assert main(generated(trained, "--read", book)) == 0
    assert capsys.readouterr().out == after


def chatted(run: Path, *flags: object) -> list[str]:
    return ["chat", str(run), "--greedy", "--max-new-tokens", "6", "--stop", "", *map(str, flags)]


def test_turns_share_a_state(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies are what the model says after everything before them."""
    piped(monkeypatch, "prose 1\n\nprose 2\n")
    kept = tmp_path / "talk.safetensors"
    assert main(chatted(trained, "--write", "all", "--save-state", kept)) == 0
    told = capsys.readouterr()
    assert "follows no instructions" in " ".join(told.err.split())
    assert "are written by every line" in told.err
    talk = opened(trained)
    ids = [talk.tokenizer.eos_id, *talk.tokenizer.encode("prose 1\n")]
    model: Any = talk.model
    for turn in ("prose 2\n", None):
        new, _ = model.generate(torch.tensor([ids]), max_new_tokens=6, temperature=0.0)
        ids += new[0].tolist() + (talk.tokenizer.encode(turn) if turn else [])
    found = read_state(kept)
    assert found.state.position == len(ids) - 1
    assert found.facts["unread"] == ids[-1:]
    assert found.facts["model"] == talk.digest


def opened(run: Path) -> cli_talk.Talk:
    from nl.cli import build_parser

    return cli_talk.opened(build_parser().parse_args(generated(run)))


def test_commands(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "talk.safetensors"
    turns = (
        f"prose 1\n/save {kept}\nprose 2\n/reset\nprose 1\n/load {kept}\nprose 2\n/quit\nnever\n"
    )
    piped(monkeypatch, turns)
    assert main(chatted(trained)) == 0
    told = capsys.readouterr()
    piped(monkeypatch, "prose 1\nprose 2\n")
    assert main(chatted(trained)) == 0
    both = capsys.readouterr().out
    assert told.out == both + both  # fresh again, then from the file: the same replies
    assert "State is fresh." in told.err
    assert f"State of {kept}: position" in told.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/save", "/save: name a file"),
        ("/load nowhere.safetensors", "error: nowhere.safetensors: no such file"),
        ("/save talk.txt", "error: /save: talk.txt; a state file ends in .safetensors"),
        ("/save talk.safetensors", "nothing was read yet"),
        ("/dance", "/dance: no such command. /reset"),
    ],
)
def test_complaints_do_not_end_the_conversation(
    line: str,
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    piped(monkeypatch, f"{line}\nprose 1\n")
    assert main(chatted(trained.resolve())) == 0
    told = capsys.readouterr()
    assert message in told.err
    assert told.out.strip() or told.out == "\n"


def test_ctrl_c_ends_a_reply_and_then_the_conversation(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The State after an interrupted reply is that of what was read."""
    # A process that a shell starts in the background inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: list[int] = []
    read = cli_talk.Talk.read

    def interrupted(self: Any, ids: list[int]) -> Any:
        seen.append(self.position)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)
        return read(self, ids)

    class Typed(Pipe):
        def readline(self, *more: Any) -> str:
            if self.tell() > 12:
                raise KeyboardInterrupt
            return super().readline(*more)

    monkeypatch.setattr(cli_talk.Talk, "read", interrupted)
    monkeypatch.setattr(sys, "stdin", Typed("prose 1\nprose 2\n"))
    try:
        assert main(chatted(trained)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr()
    assert "(reply stopped)" in told.err
    assert told.err.rstrip().endswith("stopped")
    assert told.out.count("\n") >= 2
    assert seen == sorted(seen)


def test_sigterm_during_a_reply_ends_the_conversation(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "s.safetensors"
    pick_token = cli_talk.Talk.tokens

    def terminated(self: Any, ids: list[int], sampling: Any) -> Any:
        yield from itertools.islice(pick_token(self, ids, sampling), 2)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli_talk.Talk, "tokens", terminated)
    piped(monkeypatch, "prose 1\nprose 2\n")
    assert main([*chatted(trained), "--save-state", str(kept)]) == 143
    assert capsys.readouterr().err.count("(reply stopped)") == 1
    assert kept.exists()


def test_a_stop_text_ends_the_reply(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "prose 1\n")
    assert main(chatted(trained, "--max-new-tokens", 30)) == 0
    whole = capsys.readouterr().out.rstrip("\n").lstrip("\n")
    stop = whole[len(whole) // 2 : len(whole) // 2 + 1]
    piped(monkeypatch, "prose 1\n")
    words = [w if w else stop for w in chatted(trained, "--max-new-tokens", 30)]
    assert main(words) == 0
    assert capsys.readouterr().out.rstrip("\n") == whole.split(stop)[0].rstrip("\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--template", "hello"], "--template: 'hello'; it needs {text}"),
        (["--save-state", "talk.txt"], "--save-state: talk.txt; a state file ends in"),
        (["--from", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--segment", "0"], "--segment: 0"),
        (["--tokenizer", "nowhere.model"], "nowhere.model: no such file"),
        (["--max-new-tokens", "0"], "error: --max-new-tokens: 0; must be >= 1."),
        (["--top-k", "-1"], "error: --top-k: -1; must be >= 0."),
        (["--top-p", "2"], "error: --top-p: 2.0; must be in (0, 1]."),
        (["--temperature", "0.8"], "error: --greedy, --temperature: 0.8; --greedy always takes"),
    ],
)
def test_bad_input_is_refused(
    more: list[str], message: str, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "")
    assert main(chatted(trained, *more)) == 2
    assert message in capsys.readouterr().err


def test_an_empty_file_to_read_is_refused(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert main(generated(trained, "--read", tmp_path / "empty.txt")) == 2
    assert f"--read: {tmp_path}/empty.txt is empty; give a file" in capsys.readouterr().err


def test_temperature_has_its_default_and_may_be_0_beside_greedy(trained: Path) -> None:
    def drawn(*flags: str) -> float:
        options = build_parser().parse_args(["generate", str(trained), *flags])
        return float(cli_talk.sampling_of(options).temperature)

    assert drawn() == 1
    assert drawn("--temperature", "0.5") == 0.5
    assert drawn("--greedy") == drawn("--greedy", "--temperature", "0") == 0


def test_it_works_in_a_real_pipe(trained: Path) -> None:
    """Replies alone on stdout; a reader that goes away is no error."""
    env = os.environ | {"PYTHONPATH": str(Path(nl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nl", *chatted(trained)]
    done = subprocess.run(
        command, input="prose 1\n", capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "follows no" in done.stderr
    assert "/reset" not in done.stdout


class Full(io.StringIO):
    """A disk that is full after some writes."""

    left = 3

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_keeps_the_state(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        assert main(generated(trained, "--save-state", kept)) == 2
    assert "error: output: No space left on device" in capsys.readouterr().err
    assert read_state(kept).state.position > 0
