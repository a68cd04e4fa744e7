"""Nothing is kept alive by tests alone: every function, class, constant and method of the product
is referred to by the product itself, by its templates and scripts, or by what ships beside it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = (
    "data_schemas", "store", "model", "pipeline", "pocket", "evaluation", "reports", "sharing",
    "flows", "studio",
)  # fmt: skip
BESIDE = ("benchmarks", "space", "docs", "docker")
"""What ships beside the product and may be the one user of something in it."""
UNCHECKED = ("pocket",)
"""Being rewritten as recipes over one runner."""
PLAIN = re.compile(
    r"(functools\.)?(cached_property|cache|lru_cache|wraps)|property|staticmethod|classmethod|"
    r"(contextlib\.)?contextmanager|(dataclasses\.)?dataclass|torch\.no_grad|runtime_checkable|.*\.setter"
)
"""Decorators that call nothing: under any other a function is in use."""
OURS = ("Protocol", "Generic", "NamedTuple", "BaseModel", "StrictModel", "object", "Exception")
EXCEPTIONS = {
    "data_schemas.ablations.read_ablation": "for who makes figures of an ablation.json",
    "flows.measure.api.Measurer.add_batch": "for people's own loops; docs/measure.md",
}
"""Definition -> why it stays although nothing refers to it."""


@dataclass(frozen=True)
class Definition:
    """A name at the top of a module, or a method."""

    module: str
    name: str
    owner: str
    """The class of a method; empty at the top."""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.module, self.owner, self.name)))


def python_files(folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_called_by_decorator(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    names = (ast.unparse(one).split("(")[0] for one in node.decorator_list)
    return any(not PLAIN.fullmatch(name) for name in names)


def definitions(module: str, tree: ast.Module) -> Iterator[Definition]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not is_called_by_decorator(node):
                yield Definition(module, node.name, "")
            if isinstance(node, ast.ClassDef):
                yield from methods(module, node)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            plain = (name.id for name in names if isinstance(name, ast.Name))
            yield from (Definition(module, name, "") for name in plain if name != "__all__")


def methods(module: str, owner: ast.ClassDef) -> Iterator[Definition]:
    """Those that no class of another package may call by their name."""
    bases = {ast.unparse(base).split("[")[0].rpartition(".")[2] for base in owner.bases}
    if bases - set(OURS):
        return
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            special = node.name.startswith("__") and node.name.endswith("__")
            if not special and not is_called_by_decorator(node):
                yield Definition(module, node.name, owner.name)


def uses(module: str, tree: ast.Module) -> Iterator[str]:
    """`module.name` of what a file refers to, and `.name` of each attribute and keyword."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            source = node.module.removeprefix("focusdpo").removeprefix(".")
            for alias in node.names:
                full = f"{source}.{alias.name}".removeprefix(".")
                aliases[alias.asname or alias.name] = full
                yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield f"{module}.{node.id}"
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}"
            if isinstance(node.value, ast.Name):
                yield f"{aliases.get(node.value.id, '')}.{node.attr}"
        elif isinstance(node, ast.keyword):
            yield f".{node.arg}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield f".{ast.unparse(node.args[1]).strip(chr(39))}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from text_uses(node.value)


def text_uses(text: str) -> Iterator[str]:
    """`focusdpo.module:name`, `focusdpo.module.name` and imports, as texts say them."""
    for module, name in re.findall(r"focusdpo\.([\w.]+)(?::| import |\.)(\w+)", text):
        yield f"{module}.{name}"


def chosen_by_name(text: str, modules: set[str]) -> str | None:
    """The module that a text names as a whole, or with a class of its own (`module:name`): its
    interface is reached through attributes."""
    name = text.removeprefix("focusdpo.").partition(":")[0]
    return next((one for one in (name, f"studio.{name}") if one in modules), None)


def handed_on(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports and hands on as they are, as the list of stages does."""
    aliases = {
        alias.asname or alias.name: f"{node.module}.{alias.name}".removeprefix("focusdpo.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    bases = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names = (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in bases)
    return {aliases[name] for name in names if name in aliases} & modules


def own_uses(tree: ast.Module) -> Counter[str]:
    """How often each definition refers to itself: recursion keeps nothing alive."""
    found: Counter[str] = Counter()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            found[node.name] += sum(n.id == node.name for n in inside)
    return found


def test_nothing_is_kept_alive_by_tests_alone() -> None:
    files = {module_of(path): path for path in python_files((*PRODUCT, *BESIDE))}
    used: Counter[str] = Counter()
    defined: list[Definition] = []
    by_name: set[str | None] = set()
    for module, path in files.items():
        tree = ast.parse(path.read_text("utf-8"))
        used.update(uses(module, tree))
        used.subtract({f"{module}.{name}": count for name, count in own_uses(tree).items()})
        texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        by_name |= {chosen_by_name(text, set(files)) for text in texts if isinstance(text, str)}
        by_name |= handed_on(tree, set(files))
        if module.partition(".")[0] in PRODUCT and not module.startswith(UNCHECKED):
            defined += definitions(module, tree)
    words: set[str] = set()
    for path in ROOT.rglob("*"):
        if path.suffix in (".j2", ".js", ".toml", ".yaml", ".yml", ".md") and path.is_file():
            text = path.read_text("utf-8")
            used.update(text_uses(text))
            if path.suffix in (".j2", ".js"):
                words.update(re.findall(r"\w+", text))

    def is_used(one: Definition) -> bool:
        by_attribute = used[f".{one.name}"] > 0 or one.name in words
        if one.owner:
            return by_attribute
        chosen = one.module in by_name and by_attribute
        return chosen or used[f"{one.module}.{one.name}"] > 0

    dead = [str(one) for one in defined if not is_used(one) and str(one) not in EXCEPTIONS]
    assert not dead, "used by tests alone, or by nothing:\n" + "\n".join(dead)
    assert set(EXCEPTIONS) <= set(map(str, defined)), "an exception for what is not there"
