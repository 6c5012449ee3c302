"""Imports point down: floors, third-party limits, no relative imports, no cycles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "nl"

# What each part of the house may import from the others (docs/house.md).
FLOORS: dict[str, set[str]] = {
    "config": set(),
    "run": set(),
    "core": set(),
    "ops": {"core"},
    "data": {"core", "config"},
    "optim": {"core", "config", "ops"},
    "sweep": {"config", "run"},
    "report": {"config", "run"},
    "nn": {"ops", "core", "config"},
    "models": {"nn", "ops", "core", "config"},
    "objectives": {"ops", "core", "config"},
    "dist": {"core", "config", "run"},
    "train": {"dist", "core", "config", "run"},
    "control": {"nn", "core", "config"},
    "eval": {"core", "config", "run"},
}
CONCRETE = {*FLOORS}
FLOORS["fit"] = CONCRETE - {"sweep", "report"}
FLOORS["assembly"] = {*FLOORS["fit"], "fit"}
FLOORS["bench"] = {"config", "core", "dist", "run", "ops", "nn", "models", "report"}
FLOORS["hf"] = {"assembly", "config", "core", "dist", "hf"}
FLOORS["cli"] = {*CONCRETE, "assembly", "bench", "cli"}
FLOORS["__main__"] = {"cli"}
FLOORS["__init__"] = {"assembly", "config"}

NEVER = "never"
LAZY = "lazy"
# Package -> the only places that may import it; LAZY: inside functions only.
PLACES: dict[str, dict[str, str]] = {
    "hydra": {"config/hydra.py": LAZY},
    "omegaconf": {"config/hydra.py": "any"},
    "wandb": {"train/sinks.py": LAZY},
    "deepspeed": {"dist/deepspeed.py": LAZY},
    "matplotlib": {"report/": LAZY},
    "jinja2": {"report/": LAZY},
    "pandas": {},
    "sentencepiece": {"data/prep/": LAZY, "data/tokenizer.py": LAZY},
    "tokenizers": {"data/": LAZY},
    "pyarrow": {"data/prep/": LAZY},
    "datasets": {"data/prep/": LAZY},
    "datatrove": {"data/prep/": LAZY},
    "zstandard": {"data/prep/": LAZY, "data/documents.py": LAZY},
    "py3langid": {"data/prep/": LAZY},
    "lm_eval": {"eval/": LAZY},
    "sklearn": {"eval/": LAZY, "report/": LAZY},
    "scipy": {"eval/": LAZY, "report/": LAZY},
    "optuna": {"sweep/": LAZY},
    "submitit": {"sweep/": LAZY},
    "ray": {"sweep/": LAZY, "data/prep/": LAZY},
    "h5py": {"data/": LAZY},
    "transformers": {"hf/": "any"},
    "fla": {"ops/": LAZY},
}
# torch: never here, and only inside functions in the command line and the package itself.
NO_TORCH = {"config", "run", "sweep", "report"}
LAZY_TORCH = {"cli", "__main__", "__init__"}
STDLIB_ONLY = {"run"}


def part_of(path: Path, root: Path) -> str:
    """The part of the house a file belongs to; ``cli_*.py`` belongs to the command line."""
    name = path.relative_to(root).parts[0].removesuffix(".py")
    return "cli" if name.startswith("cli_") else name


def imported(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, at module level) of every import, TYPE_CHECKING ones included."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node not in inside
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{prefix}.{alias.name}", node.lineno, node not in inside


def floor_violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        here = part_of(path, root)
        local = path.relative_to(root).as_posix()
        for name, line, top_level in imported(ast.parse(path.read_text())):
            where = f"{local}:{line}"
            package, *rest = name.split(".")
            if not package:
                found.append(f"{where} relative import of {name}")
            elif package == "nl":
                found += own_violation(where, here, rest)
            else:
                found += outside_violation(where, here, local, package, top_level)
    return found


def own_violation(where: str, here: str, rest: list[str]) -> list[str]:
    there = rest[0] if rest else "__init__"
    there = "cli" if there.startswith("cli_") else there
    if there.startswith("__") or there == here or there in FLOORS.get(here, set()):
        return []
    return [f"{where} {here} may not import {there}"]


def outside_violation(
    where: str, here: str, local: str, package: str, top_level: bool
) -> list[str]:
    if here in STDLIB_ONLY and package not in sys.stdlib_module_names:
        return [f"{where} {here} is standard library only, not {package}"]
    if package == "torch" and (here in NO_TORCH or (here in LAZY_TORCH and top_level)):
        return [f"{where} {here} may not import torch{' at module level' * top_level}"]
    if package not in PLACES:
        return []
    places = [mode for prefix, mode in PLACES[package].items() if local.startswith(prefix)]
    if not places:
        return [f"{where} {package} does not belong here"]
    return [f"{where} import {package} inside the function"] * (places[0] == LAZY and top_level)


def module_cycles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other at module level (strongly connected sets)."""
    names = {}
    for path in root.rglob("*.py"):
        parts = ["nl", *path.relative_to(root).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = set()
        for target, _, top_level in imported(ast.parse(path.read_text())):
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and top_level and target != name:
                targets.add(target)
        graph[name] = targets
    return [sorted(g) for g in strongly_connected(graph) if len(g) > 1]


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that reach each other, by reachability (the graph is small)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(graph[node])
        reach[start] = seen
    groups, done = [], set()
    for node in graph:
        if node not in done:
            group = {node} | {other for other in reach[node] if node in reach[other]}
            done |= group
            groups.append(group)
    return groups


def test_imports_point_down() -> None:
    assert floor_violations(SRC) == []


def test_every_part_has_a_floor() -> None:
    assert {part_of(path, SRC) for path in SRC.rglob("*.py")} - set(FLOORS) == set()


def test_the_floors_themselves_have_no_cycle() -> None:
    graph = {part: targets - {part} for part, targets in FLOORS.items()}
    assert [g for g in strongly_connected(graph) if len(g) > 1] == []


def test_no_import_cycles() -> None:
    assert module_cycles(SRC) == []


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_floor_check_finds_planted_violations(tmp_path: Path) -> None:
    plant(tmp_path, "ops/up.py", "from nl.models.language import LanguageConfig\n")
    plant(
        tmp_path,
        "nn/typing_only.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nl.train.trainer\n",
    )
    plant(tmp_path, "core/dots.py", "from . import batch\n")
    plant(tmp_path, "report/heavy.py", "def f():\n    import torch\n")
    plant(tmp_path, "cli.py", "import torch\n")
    plant(tmp_path, "run/extra.py", "import yaml\n")
    plant(tmp_path, "train/sinks.py", "import wandb\n")
    plant(tmp_path, "eval/plot.py", "def f():\n    import matplotlib\n")
    plant(tmp_path, "report/fine.py", "def f():\n    import matplotlib.pyplot\n")
    assert floor_violations(tmp_path) == [
        "cli.py:1 cli may not import torch at module level",
        "core/dots.py:1 relative import of ..batch",
        "eval/plot.py:2 matplotlib does not belong here",
        "nn/typing_only.py:3 nn may not import train",
        "ops/up.py:1 ops may not import models",
        "report/heavy.py:2 report may not import torch",
        "run/extra.py:1 run is standard library only, not yaml",
        "train/sinks.py:1 import wandb inside the function",
    ]


def test_cycle_check_finds_a_planted_cycle(tmp_path: Path) -> None:
    plant(tmp_path, "ops/a.py", "from nl.ops.b import f\n")
    plant(tmp_path, "ops/b.py", "from nl.ops import c\n")
    plant(tmp_path, "ops/c.py", "import nl.ops.a\n")
    plant(tmp_path, "ops/d.py", "def f():\n    import nl.ops.a\n")
    assert module_cycles(tmp_path) == [["nl.ops.a", "nl.ops.b", "nl.ops.c"]]
