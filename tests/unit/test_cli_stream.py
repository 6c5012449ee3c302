"""``nl stream``: the State of a text that is read in parts is that of the text read at once."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import nl
import nl.assembly
import nl.cli_stream
import nl.eval.progress
from nl.cli import main
from nl.core import state as states
from nl.data.manifest import data_tokenizer
from nl.dist.state_file import read_state
from tests.unit import test_cli_model

data = test_cli_model.data
trained = test_cli_model.trained

TEXT = "def add(a, b):\n    return a + b\n" * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text(TEXT)
    return path


def command(run: Path, text: Path, *more: object) -> list[str]:
    return ["stream", "--run", str(run), "--text", str(text), *map(str, more)]


def test_one_reading_is_what_the_model_says(
    trained: Path, data: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "s.safetensors"
    assert main(command(trained, text, "--save", kept, "--segment", 100)) == 0
    tokenizer = data_tokenizer(data)
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(TEXT)]])
    model: Any = nl.load_model(trained)
    with torch.no_grad():
        out = model(ids)
        nats = torch.nn.functional.cross_entropy(out.pred[0, :-1], ids[0, 1:])
    shown = capsys.readouterr().out
    assert f"{float(nats):.4f} nats per token" in shown
    assert f"position {ids.shape[1]}" in shown
    held, now = (states.flatten(s)[0] for s in (read_state(kept).state, out.state))
    for key, tensor in held.items():
        if tensor.numel():
            assert (tensor - now[key]).abs().max() <= 2e-2 * now[key].abs().max(), key


def test_after_ctrl_c_the_rest_is_read_from_the_state(
    trained: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    assert main(command(trained, text, "--save", whole, "--segment", 64)) == 0
    advance = nl.eval.progress.ProgressMeter.advance

    def interrupt(self: Any, count: int) -> None:
        advance(self, count)
        if self.done == 192:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(nl.eval.progress.ProgressMeter, "advance", interrupt)
        assert main(command(trained, text, "--save", part, "--segment", 64)) == 130
    shown = capsys.readouterr().out
    assert "stopped after 192 of" in shown
    line = next(row for row in shown.splitlines() if "go on with: nl " in row)
    words = line.split("go on with: nl ")[1].split()
    assert read_state(part).state.position == 192
    assert words[-4:] == ["--device", "cpu", "--segment", "64"]
    assert main(words) == 0
    assert "goes on at token 192" in capsys.readouterr().out
    first, second = (states.flatten(read_state(p).state) for p in (whole, part))
    assert first[1] == second[1]
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])


def test_sigterm_while_the_model_is_loaded_says_that_nothing_was_read(
    trained: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = tmp_path / "s.safetensors"
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(nl.assembly, "load_run", lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(command(trained, text, "--save", kept)) == 143
    said = "stopped: nothing was read and no State saved; the same command begins again\n"
    assert capsys.readouterr().err == said
    assert not kept.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_answered_with_what_the_command_does(
    trained: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also one that comes when everything is read: the State is saved before the process ends."""
    kept = tmp_path / "s.safetensors"
    save = nl.cli_stream._save

    def late(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nl.cli_stream, "_save", late)
        assert main(command(trained, text, "--save", kept)) == 0
    told = "signal received: stopping after this segment, then the State is saved; a second one"
    assert told in capfd.readouterr().err
    assert read_state(kept).state.position == len(TEXT) + 1


def test_another_text_goes_on_from_the_state(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, other = tmp_path / "s.safetensors", tmp_path / "other.txt"
    other.write_text("and then\n")
    assert main(command(trained, text, "--save", kept)) == 0
    position = read_state(kept).state.position
    assert main(command(trained, other, "--from", kept, "--save", kept, "--no-write")) == 0
    assert "at its beginning" in capsys.readouterr().out
    assert read_state(kept).state.position == position + 1 + 9


def test_what_the_user_can_mend_is_refused(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    nl.save_state(wrong, (torch.ones(1),), {"model": "another"})
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for more, said in (
        (["--from", wrong], "another model"),
        (["--from", tmp_path / "none.safetensors"], "no such file"),
        (["--save", tmp_path / "state.pt"], "ends in .safetensors"),
        (["--segment", 0], "--segment"),
        (["--text", tmp_path / "none.txt"], "none.txt cannot be read as UTF-8 text (No such file"),
        (["--text", empty], "empty.txt is empty"),
    ):
        assert main(command(trained, text, *more)) == 2
        assert said in capsys.readouterr().err


def test_a_state_belongs_to_weights_and_files_of_python_are_taken(
    trained: Path,
    data: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, plain = tmp_path / "s.safetensors", tmp_path / "plain.safetensors"
    assert main(command(trained, text, "--save", kept)) == 0
    load_run = nl.assembly.load_run

    def other_weights(path: Path) -> Any:
        run, model = load_run(path)
        with torch.no_grad():
            model.head.weight[0, 0] += 1
        return run, model

    with monkeypatch.context() as patch:
        patch.setattr(nl.assembly, "load_run", other_weights)
        assert main(command(trained, text, "--from", kept)) == 2
    assert "of other options or weights" in capsys.readouterr().err
    model: Any = nl.load_model(trained)
    ids = torch.tensor([data_tokenizer(data).encode(TEXT)])
    state = model(ids).state
    nl.save_state(plain, state)
    assert main(command(trained, text, "--from", plain, "--save", kept)) == 0
    assert read_state(kept).state.position > state.position
    assert main(["generate", str(trained), "--prompt", "a", "--from", str(plain)]) == 0
    nl.save_state(plain, state._replace(blocks=state.blocks[:1]))
    assert main(command(trained, text, "--from", plain)) == 2
    assert "state.blocks: 1 parts, not 2: the State of another model" in capsys.readouterr().err


def test_a_memory_that_diverges_is_neither_saved_nor_read(
    trained: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, plain = tmp_path / "s.safetensors", tmp_path / "plain.safetensors"
    assert main(command(trained, text, "--save", kept)) == 0
    broken = states.map_tensors(lambda t: t * math.nan, read_state(kept).state)
    nl.save_state(plain, broken)
    for words in (command(trained, text), ["generate", str(trained), "--prompt", "a"]):
        assert main([*words, "--from", str(plain)]) == 2
        assert "numbers of the State are not finite" in capsys.readouterr().err
    monkeypatch.setattr(nl.cli_stream, "check_finite", lambda *_: None)
    assert main(["generate", str(trained), "--prompt", "a", "--from", str(plain)]) == 2
    assert "the logits of the next token are not finite" in capsys.readouterr().err
    before = kept.read_bytes()
    assert main(command(trained, text, "--from", plain, "--save", kept)) == 2
    assert "the memories of this model diverge; nothing was saved" in capsys.readouterr().err
    assert kept.read_bytes() == before
