"""Files, functions and parameter lists stay small; no file is exempt."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "scripts", "benchmarks", "tests")
FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8
WIDTH = 100
"""Characters of a line of C++; ruff sees to Python."""


def size_violations(root: Path) -> list[str]:
    files = [*root.glob("*.py"), *(p for f in FOLDERS for p in (root / f).rglob("*.py"))]
    files += [p for kind in ("*.cpp", "*.h") for p in (root / "src").rglob(kind)]
    found = []
    for path in sorted(files):
        text, local = path.read_text(), path.relative_to(root).as_posix()
        lines = text.count("\n")
        if lines > FILE_LINES:
            found.append(f"{local}: {lines} lines > {FILE_LINES}")
        if path.suffix != ".py":
            wide = (i for i, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH)
            found += [f"{local}:{i}: more than {WIDTH} characters" for i in wide]
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found += function_violations(f"{local}:{node.lineno} {node.name}", node)
    return found


def function_violations(where: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    found = []
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > FUNCTION_LINES:
        found.append(f"{where}: {length} lines > {FUNCTION_LINES}")
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))
    if count > PARAMETERS:
        found.append(f"{where}: {count} parameters > {PARAMETERS}")
    return found


def test_sizes() -> None:
    assert size_violations(ROOT) == []


def test_size_check_finds_planted_violations(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "nl"
    folder.mkdir(parents=True)
    (folder / "long.py").write_text("x = 1\n" * 401)
    (folder / "function.py").write_text("def f():\n" + "    x = 1\n" * 60)
    (folder / "long.cpp").write_text("x;\n" * 401)
    (folder / "wide.h").write_text("// fine\n//" + "x" * 99 + "\n")
    (folder / "wide.py").write_text("def g(self, a, b, c, d, /, e, *, f, g, h, i): ...\n")
    (folder / "fine.py").write_text(
        "class A:\n    def g(self, a, b, c, d, e, f, g, h): ...\ndef f():\n" + "    x = 1\n" * 59
    )
    assert size_violations(tmp_path) == [
        "src/nl/function.py:1 f: 61 lines > 60",
        "src/nl/long.cpp: 401 lines > 400",
        "src/nl/long.py: 401 lines > 400",
        "src/nl/wide.h:2: more than 100 characters",
        "src/nl/wide.py:1 g: 9 parameters > 8",
    ]
