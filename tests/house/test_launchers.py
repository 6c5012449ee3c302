"""Launchers only launch; there is one training loop and one backward per strategy."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = 25
LOOPS = (ast.For, ast.While, ast.AsyncFor, ast.comprehension)


def launcher_violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.glob("train*.py")):
        text = path.read_text()
        if text.count("\n") > LINES:
            found.append(f"{path.name}: {text.count(chr(10))} lines > {LINES}")
        found += [
            f"{path.name}: has a loop" for n in ast.walk(ast.parse(text)) if isinstance(n, LOOPS)
        ]
    return found


def backward_calls(path: Path) -> list[tuple[int, str]]:
    """(line, source of the receiver) of every ``<receiver>.backward(`` call."""
    return [
        (node.lineno, ast.unparse(node.func.value))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "backward"
    ]


def backward_violations(src: Path) -> list[str]:
    """At most one per file of ``dist``; elsewhere only the one loop asking its strategy."""
    found, asked = [], []
    for path in sorted(src.rglob("*.py")):
        local, calls = path.relative_to(src).as_posix(), backward_calls(path)
        if local.startswith(("dist/", "bench/")):  # the bench times bare steps
            found += [f"{local}: {len(calls)} backward calls"] * (len(calls) > 1)
            continue
        for line, receiver in calls:
            if receiver.split(".")[-1] == "strategy":
                asked.append(f"{local}:{line}")
            else:
                found.append(f"{local}:{line} calls {receiver}.backward")
    return found + [f"{where} is a second training loop" for where in asked[1:]]


def test_launchers_only_launch() -> None:
    assert launcher_violations(ROOT) == []


def test_one_backward() -> None:
    assert backward_violations(ROOT / "src" / "nl") == []


def test_launcher_check_finds_planted_violations(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("x = 1\n" * 26)
    (tmp_path / "train_dist.py").write_text("for i in range(3):\n    pass\n")
    (tmp_path / "train_fsdp.py").write_text("x = [i for i in range(3)]\n")
    assert launcher_violations(tmp_path) == [
        "train.py: 26 lines > 25",
        "train_dist.py: has a loop",
        "train_fsdp.py: has a loop",
    ]


def test_backward_check_finds_planted_violations(tmp_path: Path) -> None:
    files = {
        "dist/single.py": "loss.backward()\n",
        "dist/ddp.py": "loss.backward()\nother.backward()\n",
        "train/trainer.py": "self.strategy.backward(loss)\n",
        "control/gru.py": "strategy.backward(loss)\n",
        "nn/memory.py": "(a + b).sum().backward()\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert backward_violations(tmp_path) == [
        "dist/ddp.py: 2 backward calls",
        "nn/memory.py:1 calls (a + b).sum().backward",
        "train/trainer.py:1 is a second training loop",
    ]
