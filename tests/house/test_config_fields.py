"""Configuration by its source: every field is read, no kind is named like a file."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "nl"


def dataclasses_of(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Frozen keyword-only dataclasses: the configuration idiom of the house."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            decorators = {ast.unparse(d) for d in node.decorator_list}
            if "dataclass(frozen=True, kw_only=True)" in decorators:
                yield node


def names_read(node: ast.AST) -> Counter[str]:
    """Attribute names that are read, and strings handed to getattr or attrgetter."""
    found: Counter[str] = Counter()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            found[part.attr] += 1
        elif isinstance(part, ast.Call) and ast.unparse(part.func) in ("getattr", "attrgetter"):
            found.update(
                a.value
                for a in part.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )
    return found


def orphan_fields(src: Path) -> list[str]:
    """Fields that nothing reads except the checks of their own class."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(src.rglob("*.py"))}
    everything: Counter[str] = Counter()
    for tree in trees.values():
        everything += names_read(tree)
    found = []
    for path, tree in trees.items():
        for cls in dataclasses_of(tree):
            checks = Counter[str]()
            for node in cls.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                    checks = names_read(node)
            for node in cls.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    name, kind = node.target.id, ast.unparse(node.annotation)
                    # A flag has no range to check: a check that reads it acts on it.
                    own = 0 if kind == "bool" else checks[name]
                    if "ClassVar" not in kind and everything[name] - own <= 0:
                        found.append(f"{path.relative_to(src)}: {cls.name}.{name} is never read")
    return found


def undocumented_fields(src: Path) -> list[str]:
    """Fields of registered classes without a string under them (``nl help`` shows it)."""
    found = []
    for path in sorted(src.rglob("*.py")):
        for cls in dataclasses_of(ast.parse(path.read_text())):
            if not any(ast.unparse(d).startswith("register(") for d in cls.decorator_list):
                continue
            for node, after in zip(cls.body, [*cls.body[1:], ast.Pass()], strict=True):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(node, ast.AnnAssign) and not documented:
                    name = f"{cls.name}.{ast.unparse(node.target)}"
                    found.append(f"{path.relative_to(src)}: {name} has no docstring")
    return found


def registered(src: Path) -> dict[str, set[str]]:
    """Kinds by group."""
    kinds: dict[str, set[str]] = {}
    for path in sorted(src.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "register":
                        group, kind = (ast.literal_eval(a) for a in call.args)
                        kinds.setdefault(group, set()).add(kind)
    return kinds


def shadowed_kinds(src: Path, configs: Path) -> list[str]:
    """Config files that would hide the registered kind of the same group and name."""
    return [
        f"configs/{group}/{name}.yaml hides {group}={name}"
        for group, kinds in registered(src).items()
        for name in sorted(kinds & {p.stem for p in (configs / group).glob("*.yaml")})
    ]


def test_every_field_is_read() -> None:
    assert orphan_fields(SRC) == []


def test_every_field_of_a_part_is_documented() -> None:
    assert undocumented_fields(SRC) == []


def test_no_file_hides_a_kind() -> None:
    assert shadowed_kinds(SRC, ROOT / "configs") == []


PLANTED = '''
@register("block", "odd")
@dataclass(frozen=True, kw_only=True)
class OddConfig:
    """Odd."""

    used: int = 1
    """Read below."""
    checked: int = 1
    """Only its own check reads it."""
    named: int = 1
    orphan: int = 1
    """Nobody reads it."""

    def __post_init__(self):
        require(self.checked > 0 and self.used > 0, "checked")


def f(config):
    config.orphan = 2
    return config.used + getattr(config, "named")
'''


def test_checks_find_planted_violations(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(PLANTED)
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "odd.yaml").write_text("")
    assert orphan_fields(tmp_path) == [
        "odd.py: OddConfig.checked is never read",
        "odd.py: OddConfig.orphan is never read",
    ]
    assert undocumented_fields(tmp_path) == ["odd.py: OddConfig.named has no docstring"]
    assert shadowed_kinds(tmp_path, tmp_path) == ["configs/block/odd.yaml hides block=odd"]
