"""The ``stdlib`` corpus, from the running Python alone: prose, code, packages. Floor 1.

``prose``: pydoc topics and docstrings; ``code``: the same source files without their docstrings,
so that no sentence is in both domains. Pieces of one file share a split.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from nl.config import ConfigError
from nl.data.documents import Document
from nl.data.files import sha256_text
from nl.data.prep.corpus import Work

MIN_DOCSTRING = 40
MIN_DOCUMENT = 200
MAX_DOCUMENT = 16_000
MAX_FILE = 400_000
"""Larger source files are tables written by a program."""
SKIP = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
GENERATED = re.compile(r"(auto-?)?generated (from|by|automatically)|gencodec", re.IGNORECASE)
VERSION = "1"
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def stdlib_documents(domain: str, limit_bytes: int | None = None) -> Iterator[Document]:
    """Documents of ``prose`` or ``code``, or modules of a package; pieces of a file are a group.

    Args:
        domain: which.
        limit_bytes: UTF-8 bytes of text at most: whole files, chosen by the hash of their names.

    Raises:
        ConfigError: this Python has no source files, or no such package (with those it has).
    """
    root = Path(sysconfig.get_path("stdlib"))
    if domain in ("prose", "code"):
        prose, code = _works(root)
        works = [*topic_works(), *prose] if domain == "prose" else code
    else:
        works = package_works(root, domain)
    names = [work.documents[0].source for work in works]
    chosen, size = set(), 0
    for _, name, number in sorted((sha256_text(n), n, i) for i, n in enumerate(names)):
        size += works[number].bytes
        if limit_bytes is not None and size > limit_bytes:
            break
        chosen.add(name)
    for name, work in zip(names, works, strict=True):
        if name in chosen:
            for piece, document in enumerate(work.documents):
                yield Document(document.text, f"{name}#{piece}", group=name)


@functools.cache
def _works(root: Path) -> tuple[list[Work], list[Work]]:
    """The library is parsed once for both domains."""
    return stdlib_works(root)


def topic_works() -> Iterator[Work]:
    """The topics of ``help()``: the language reference of this Python."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        text = clean(topics[name])
        if len(text) >= MIN_DOCUMENT:
            pieces = pack(text.split("\n\n"), MAX_DOCUMENT, "\n\n")
            yield Work(tuple(Document(piece, f"topic:{name}") for piece in pieces))


def stdlib_works(root: Path) -> tuple[list[Work], list[Work]]:
    """Prose and code of every source file below ``root``, in order of path.

    Raises:
        ConfigError: no source file there.
    """
    prose, code = [], []
    seen: set[str] = set()
    for path in source_files(root):
        source = read_source(path)
        if source is None or GENERATED.search(source[:600]):
            continue
        body, docstrings = separate(source)
        name = path.relative_to(root).as_posix()
        fresh = [d for d in dict.fromkeys(docstrings) if d not in seen]
        seen.update(fresh)
        pieces = pack(fresh, MAX_DOCUMENT, "\n\n")
        texts = [Document(p, f"docstring:{name}") for p in pieces if len(p) >= MIN_DOCUMENT]
        if texts:
            prose.append(Work(tuple(texts)))
        parts = [Document(p, name) for p in cut_code(body) if len(p) >= MIN_DOCUMENT]
        if parts:
            code.append(Work(tuple(parts)))
    if not code:
        raise ConfigError(f"{root}: no Python source files; install Python with its library.")
    return prose, code


def package_works(root: Path, package: str) -> list[Work]:
    """The modules of one package, each as it is.

    Raises:
        ConfigError: no such package; the line names those there are, with their modules.
    """
    modules: dict[str, list[Path]] = {}
    for path in source_files(root):
        parts = path.relative_to(root).parts
        if parts[1:]:
            modules.setdefault(parts[0], []).append(path)
    if package not in modules:
        known = ", ".join(f"{name} ({len(files)})" for name, files in sorted(modules.items()))
        raise ConfigError(
            f"subset: {package}; stdlib has prose, code and packages (modules): {known}."
        )
    texts = [(path.relative_to(root).as_posix(), read_source(path)) for path in modules[package]]
    return [
        Work((Document(text, name),)) for name, text in texts if text and len(text) >= MIN_DOCUMENT
    ]


def source_files(root: Path) -> list[Path]:
    """Source files of the library proper, sorted; tests, installed packages and tables left out."""
    return sorted(
        path
        for path in root.rglob("*.py")
        if not SKIP.intersection(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")
        and path.stat().st_size <= MAX_FILE
    )


def read_source(path: Path) -> str | None:
    """The text of a source file in its declared encoding; None if it does not parse."""
    try:
        with tokenize.open(path) as file:
            source = file.read().replace("\f", "").expandtabs(8)
        ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None
    return source


def clean(text: str) -> str:
    """Common indentation, trailing blanks and runs of blank lines taken out."""
    lines = [line.rstrip() for line in inspect.cleandoc(text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def separate(source: str) -> tuple[str, list[str]]:
    """A source text without its docstrings, and the docstrings, cleaned, in order of place."""
    lines = source.split("\n")
    docstrings: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, *Function)) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        value, start, end = first.value.value, first.lineno - 1, first.end_lineno or 0
        before = lines[start].encode()[: first.col_offset].strip()
        after = lines[end - 1].encode()[first.end_col_offset :].strip()
        if not isinstance(value, str) or before or after:
            continue
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        docstrings.append((start, clean(value)))
        lines[start:end] = ["\0"] * (end - start)
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            lines[start] = f"{indent}pass"
    body = "\n".join(line for line in lines if line != "\0")
    return body.strip("\n") + "\n", [d for _, d in sorted(docstrings) if len(d) >= MIN_DOCSTRING]


def cut_code(source: str) -> list[str]:
    """Pieces of at most ``MAX_DOCUMENT`` characters where possible, cut between definitions."""
    lines = source.split("\n")
    starts: set[int] = {0}
    for node in ast.parse(source).body:
        starts.add(first_line(node))
        if isinstance(node, ast.ClassDef):
            size = sum(len(line) + 1 for line in lines[node.lineno - 1 : node.end_lineno])
            if size > MAX_DOCUMENT:
                starts.update(first_line(member) for member in node.body)
    bounds = [*sorted(starts), len(lines)]
    parts = ["\n".join(lines[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    return [piece.strip("\n") + "\n" for piece in pack(parts, MAX_DOCUMENT, "\n")]


def first_line(node: ast.stmt) -> int:
    """0-based line at which a statement starts, its decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return int(min([node.lineno, *(d.lineno for d in decorators)])) - 1


def pack(parts: list[str], limit: int, joint: str) -> list[str]:
    """Neighbouring parts joined while they stay within ``limit`` characters."""
    pieces: list[str] = []
    for part in parts:
        if pieces and len(pieces[-1]) + len(joint) + len(part) <= limit:
            pieces[-1] += joint + part
        else:
            pieces.append(part)
    return pieces
