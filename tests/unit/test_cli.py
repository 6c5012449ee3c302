"""The command line: exit codes, help with examples, one line per complaint, light start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nl import cli_doctor
from nl.cli import build_parser, main
from nl.report import write_report


def commands() -> dict[str, str]:
    """Help text by command."""
    parser = build_parser()
    (choices,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    return {name: sub.format_help() for name, sub in choices.items()}


@pytest.mark.parametrize(("name", "text"), list(commands().items()))
def test_every_command_has_help_with_an_example(name: str, text: str) -> None:
    assert f"example: nl {name}" in " ".join(text.split())
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize(("name", "text"), list(commands().items()))
def test_help_shows_defaults_that_are_values(name: str, text: str) -> None:
    shown = " ".join(text.split())
    for empty in ("None", "[]", "False", ""):
        assert f"(default: {empty})" not in shown, name
    if name == "eval":
        assert "no limit (default: 0)" in shown


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "doctor" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["nonsense"], ["doctor", "--jsn"], ["report"], ["export", "a"]])
def test_usage_errors_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_mistyped_command_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweeep", "file.yaml"])
    assert stop.value.code == 2
    assert "command: unknown 'sweeep'. Did you mean 'sweep'? Known: audit, " in (
        capsys.readouterr().err
    )


def test_what_the_user_can_mend_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "no") in error
    assert "Traceback" not in error


def test_report_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("name: early\n")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == write_report(tmp_path).read_text()


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert names["python"]["status"] == "ok"
    assert names["torch"]["value"]
    assert {"extra viz", "extra eval", "threads", "distributed", "compile", "data"} <= set(names)
    assert names["extra viz"]["value"] == "present"


def test_doctor_names_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "extras", lambda: {"viz": ["matplotlib", "no-such-package"]})
    (check,) = cli_doctor.check_extras()
    assert check.status == "note"
    assert check.value == "missing no-such-package"
    assert "nl[viz]" in check.hint


def test_doctor_fails_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file stands where the directory should be")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 1
    assert "not writable" in capsys.readouterr().out


def test_doctor_knows_when_data_is_there(
    tmp_path: Path, make_manifest: Callable[[Path], None]
) -> None:
    assert cli_doctor.check_data(tmp_path).status == "note"
    make_manifest(tmp_path)
    assert cli_doctor.check_data(tmp_path).status == "ok"


@pytest.fixture
def make_manifest() -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_text("{}") and None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dim", "0"], "error: --dim: 0; must be >= 1."),
        (["--batch-size", "0"], "error: --batch-size: 0; must be >= 1."),
        (["--vocab-size", "0"], "error: --vocab-size: 0; must be >= 1."),
        (["--seq-len", "64", "0"], "error: --seq-len: 64, 0; every value must be >= 1."),
        (["--blocks", "titan_mca"], "error: --blocks: unknown 'titan_mca'. Did you mean 'titan_m"),
    ],
)
def test_bad_bench_flags_are_refused_by_their_names(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err


def test_bench_shows_the_defaults_it_uses() -> None:
    from nl.bench import BenchConfig

    shown = vars(build_parser().parse_args(["bench"]))
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in shown.items()}
    assert {name: plain[name] for name in vars(BenchConfig())} == vars(BenchConfig())


def test_bench_on_a_missing_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
