"""Documents tell the truth: commands exist and take their options, links lead somewhere."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"pip", "uv", "pytest", "ruff", "mypy", "codespell", "pre-commit", "git", "export", "cd"}
PATH = re.compile(r"`((?:configs|docs|scripts|src|tests|\.ci|\.github)/[\w./-]+\.\w+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """The commands of a document's ``bash`` blocks, one list of words each."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                cut = words.index("&&") if "&&" in words else len(words)
                if part := without_prefix(words[:cut]):
                    found.append(part)
                words = words[cut + 1 :]
    return found


def without_prefix(words: list[str]) -> list[str]:
    """Without ``NAME=value`` in front, ``uv run`` and the launcher's own flags."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    if words[:1] in (["torchrun"], ["deepspeed"]):
        own = ("--nproc", "--num_gpus")
        words = ["python", *(w for i, w in enumerate(words) if i and not w.startswith(own))]
    return words


def complaint(words: list[str]) -> str:
    """Why this command would not work; empty if it would."""
    name, rest = words[0], words[1:]
    if name in TOOLS:
        return ""
    if name == "nl":
        return nl_complaint(rest)
    if name == "python" and rest[:1] == ["-m"]:
        return nl_complaint(rest[2:]) if rest[1] == "nl" else ""
    if name in ("bash", "python") and rest:
        script = ROOT / rest[0]
        if not script.is_file():
            return f"no file {rest[0]}"
        if script.parent == ROOT:
            return launcher_complaint(rest[1:])
        help_text = script.read_text() if name == "bash" else script_help(rest[0])
        return missing_flags(rest[1:], help_text)
    return f"unknown command {name}"


def nl_complaint(arguments: list[str]) -> str:
    from nl.cli import build_parser
    from nl.cli_help import lines_for

    if arguments[:1] == ["train"]:
        return launcher_complaint(arguments[1:])
    if arguments[:1] == ["help"] and len(arguments) > 1:
        import nl.assembly  # noqa: F401 - registers the parts

        return refused(lambda: lines_for(arguments[1]))
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error):
            build_parser().parse_args(arguments)
    except SystemExit:
        return error.getvalue().strip().splitlines()[-1]
    return ""


def launcher_complaint(arguments: list[str]) -> str:
    """Compose and check the configuration that a launcher would get."""
    import nl.assembly  # noqa: F401 - registers the parts
    from nl.config.hydra import compose, run_config

    name = "pilot"
    if "--config-name" in arguments:
        name = arguments[arguments.index("--config-name") + 1]
    given = [a for a in arguments if not a.startswith("--")]
    overrides = [a for a in given if "=" in a or a.startswith("~")]
    return refused(lambda: run_config(compose(name, overrides)))


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


@functools.cache
def script_help(name: str) -> str:
    """What ``python <name> --help`` prints."""
    out, argv, path = io.StringIO(), sys.argv, sys.path
    sys.argv = [name, "--help"]
    sys.path = [str((ROOT / name).parent), *path]  # as python does for a script
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    finally:
        sys.argv, sys.path = argv, path
    return out.getvalue()


def missing_flags(arguments: list[str], help_text: str) -> str:
    flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    unknown = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", help_text)]
    return f"does not know {', '.join(unknown)}" if unknown else ""


def dead_links(path: Path) -> list[str]:
    """Relative links and code-quoted paths that lead nowhere."""
    text = path.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    dead = [link for link in links if not (path.parent / link).exists()]
    return dead + [p for p in PATH.findall(text) if not (ROOT / p).exists()]


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_commands_of_documents_work(path: Path) -> None:
    found = {shlex.join(c): complaint(c) for c in commands(path.read_text())}
    assert {command: text for command, text in found.items() if text} == {}


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_every_script_has_help_with_an_example() -> None:
    scripts = [p.relative_to(ROOT).as_posix() for p in (ROOT / "scripts").rglob("*.py")]
    poor = [name for name in scripts if "example" not in script_help(name).lower()]
    assert poor == []


def test_every_shell_script_says_how_to_use_it() -> None:
    texts = {p.name: p.read_text() for p in (ROOT / "scripts").rglob("*.sh")}
    poor = [n for n, t in texts.items() if "Usage:" not in t or "set -euo pipefail" not in t]
    assert poor == []


def test_readme_starts_with_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text()[:800]
    assert "pip install uv && uv run bash scripts/run_e2e_smoke.sh" in first
    assert "pip install uv && uv run pytest" in first


PLANTED = """
```bash
uv run python scripts/nowhere.py          # gone
python scripts/checks/lock_check.py --wrote && nl reprot x
OMP_NUM_THREADS=1 uv run torchrun --nproc_per_node=2 train_dist.py --config-name pilot_smoke \\
  model.dmi=3
nl help model=langauge
make all
uv run nl doctor --json
```
See `docs/nowhere.md` and [there](nowhere.md).
"""


def test_checks_find_planted_violations(tmp_path: Path) -> None:
    found = [complaint(c) for c in commands(PLANTED)]
    wanted = ["no file", "does not know --wrote", "invalid choice", "dmi", "langauge", "make", ""]
    assert len(found) == len(wanted)
    for text, part in zip(found, wanted, strict=True):
        assert part in text
        assert bool(text) == bool(part)
    (tmp_path / "page.md").write_text(PLANTED)
    assert dead_links(tmp_path / "page.md") == ["nowhere.md", "docs/nowhere.md"]


def help_of(script: Path) -> str:
    """What the comment at the top of a shell script says."""
    lines = script.read_text().splitlines()[1:]
    return "".join(line[2:] + "\n" for line in itertools.takewhile(lambda t: t[:1] == "#", lines))


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.sh")), ids=lambda p: p.name)
def test_help_of_a_shell_script_is_the_comment_at_its_top(script: Path) -> None:
    shown = subprocess.run(
        ["bash", str(script), "--help"], capture_output=True, text=True, timeout=300, check=True
    )
    assert shown.stdout == help_of(script)
    assert "Usage: bash scripts/" in shown.stdout


def claims() -> list[str]:
    """What README.md says of results, one text per item."""
    section = (ROOT / "README.md").read_text().split("## What it shows\n")[1].split("\n## ")[0]
    return [" ".join(item.split()) for item in section.split("\n- ")[1:]]


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim[:30])
def test_numbers_of_the_readme_are_those_of_its_reports(claim: str) -> None:
    reports = [ROOT / path for path in LINK.findall(claim)]
    assert reports, "an item names its report"
    known = "\n".join(path.read_text() for path in reports)
    numbers = re.findall(r"\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+", claim)
    missing = [
        one for one in numbers if not re.search(rf"(?<![\d.,]){re.escape(one)}(?!\d)", known)
    ]
    assert not missing, f"not in {', '.join(path.name for path in reports)}: {missing}"
