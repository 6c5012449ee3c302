"""docs/strategies.md says of every strategy what its class says."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from nl.assembly import STRATEGIES, strategy_class
from nl.core.protocols import Capabilities


def documented(text: str) -> dict[str, dict[str, bool]]:
    """Capability -> strategy -> yes or no, from the page's table."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    start = next(i for i, row in enumerate(rows) if row[0] == "capability")
    names = rows[start][1:]
    found = {}
    for row in rows[start + 2 :]:
        words = zip(names, row[1:], strict=True)
        found[row[0]] = {name: {"yes": True, "no": False}[word] for name, word in words}
    return found


def declared() -> dict[str, dict[str, bool]]:
    """The same from the classes."""
    return {
        field.name: {n: getattr(strategy_class(n).capabilities, field.name) for n in STRATEGIES}
        for field in fields(Capabilities)
    }


def test_the_page_and_the_classes_agree(repo: Path) -> None:
    assert documented((repo / "docs" / "strategies.md").read_text()) == declared()


def test_a_planted_difference_is_seen() -> None:
    page = "| capability | single |\n|---|---|\n| `inner_autograd` | no |\n"
    assert documented(page) == {"inner_autograd": {"single": False}} != declared()
