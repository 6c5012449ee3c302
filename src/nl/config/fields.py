"""Help texts of fields: the string under each, as written in the source. Floor 0."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field, of the class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = string_of(after)
                if text is not None:
                    docs[node.target.id] = " ".join(text.split())
    return docs


def string_of(node: ast.stmt) -> str | None:
    """The text of a statement that is only a string."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value if isinstance(node.value.value, str) else None
    return None
