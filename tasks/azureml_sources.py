"""What a script of Azure ML's SDK v1 may not do here, found by reading it: parts of the SDK, and old spellings."""

import ast
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from inspect import getattr_static
from pathlib import Path
from typing import Any

from infra.compute.runner.stand_in.azureml import core
from infra.compute.runner.stand_in.azureml._data import DataFolder, Table
from tasks.program_advice import Finding

_CLASSES = {one.__name__: one for one in (*(getattr(core, name) for name in core.__all__), DataFolder, Table)}
_MODULES = {"azureml", "azureml.core", *(f"azureml.core.{name}" for name in core.MODULES)}
_ELSEWHERE = "docs/from-azure-ml.md says what is there, and what to use instead"
_GUARDS = {"ImportError", "ModuleNotFoundError", "Exception", "AttributeError", None}


@cache
def old_spellings() -> tuple[Mapping[str, Any], ...]:
    """The rows of `old_spellings.toml`."""
    return tuple(tomllib.loads(Path(__file__).with_name("old_spellings.toml").read_text())["spelling"])


def accepted() -> dict[str, str]:
    """Old spellings that are taken for what they are today."""
    return {row["old"]: row["accept"] for row in old_spellings() if "accept" in row}


def refused(trees: Mapping[str, ast.Module], found: Collection[Finding], keras: bool) -> list[Finding]:
    """What the program cannot do, by the trees of its files and what was `found` in them for any Keras 3 program.

    With `keras` it runs with Keras 3, and what that takes for something else is refused too. What a script does only
    without the service, or with another version of a library, is left alone.
    """
    live = {name: {id(node): node for node in _live(tree)} for name, tree in trees.items()}
    lines = {name: {getattr(node, "lineno", 0) for node in nodes.values()} for name, nodes in live.items()}
    wrong = [one for one in found if keras and one.spelling not in accepted() and one.line in lines[one.file]]
    for name, tree in trees.items():
        reader = _Reader(name, tree, keras)
        wrong += [one for node in live[name].values() for one in reader.read(node)]
    return sorted(set(wrong))


def _live(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any(_kinds(handler) & _GUARDS for handler in node.handlers):
            # One of the two will do, and which one is known when it runs.
            parts: list[ast.AST] = [*node.orelse, *node.finalbody]
        elif isinstance(node, ast.If) and re.search("__version__|OfflineRun", test := ast.unparse(node.test)):
            parts = [] if "__version__" in test else list(node.orelse if "not " not in test else node.body)
        else:
            yield node
            parts = [node]
        for part in parts:
            if part is not node:
                yield part
            yield from _live(part)


def _kinds(handler: ast.ExceptHandler) -> set[str | None]:
    named = ast.walk(handler.type) if handler.type else ()
    return {getattr(node, "id", "") for node in named} if handler.type else {None}


class _Reader:
    """One file."""

    def __init__(self, name: str, tree: ast.Module, keras: bool) -> None:
        self._file, self._keras = name, keras
        self._imported: dict[str, str] = {}
        self._types: dict[str, Any] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._imported[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self._imported |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        for _ in range(2):  # For what is used above where it is assigned.
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                    self._assign(node.targets[0].id, node.value)
                elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
                    self._assign(node.optional_vars.id, node.context_expr)

    def _assign(self, name: str, value: ast.expr) -> None:
        known = self._type(value)
        # A name that is two things is nothing that could be judged.
        self._types[name] = known if self._types.get(name, known) == known else None

    def _full(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return self._imported.get(node.id, "")
        base = self._full(node.value) if isinstance(node, ast.Attribute) else ""
        return f"{base}.{node.attr}" if isinstance(node, ast.Attribute) and base else ""

    def _type(self, node: ast.AST) -> Any:
        """The class of the SDK that an expression is of; a class in a list for the class itself; None if not known."""
        module, _, last = self._full(node).rpartition(".")
        if module in _MODULES and last in _CLASSES:
            return [_CLASSES[last]]
        if isinstance(node, ast.Name):
            return self._types.get(node.id)
        if isinstance(node, ast.Call):
            of = node.func
            if isinstance(of, ast.Attribute) and of.attr == "get" and isinstance(self._type(of.value), tuple):
                return self._type(of.value)[0]
            found = self._type(of)
            return found[0] if isinstance(found, list) else found
        if isinstance(node, ast.Subscript):
            found = self._type(node.value)
            return found[0] if isinstance(found, tuple) else None
        if isinstance(node, ast.Attribute):
            return _member(self._type(node.value), node.attr)
        return None

    def read(self, node: ast.AST) -> Iterator[Finding]:
        """What of a node is refused."""
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [self._full(node)]
            owner = self._type(node.value)
            if isinstance(owner, list | type) and not _has(owner, node.attr):
                kind = owner[0] if isinstance(owner, list) else owner
                yield self._finding(node, f"{kind.__name__}.{node.attr} has no stand-in; {_ELSEWHERE}")
        for name in filter(None, names):
            row = next((row for row in self._rows() if "without" not in row and re.fullmatch(row["match"], name)), None)
            if row:
                yield self._refusal(node, row)
            elif name.partition(".")[0] == "azureml" and not isinstance(node, ast.Attribute) and not _is_there(name):
                yield self._finding(node, f"{name} has no stand-in; {_ELSEWHERE}")
        if isinstance(node, ast.Call):
            yield from self._call(node)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """Those that are found here and count."""
        for row in old_spellings():
            if "match" in row and (self._keras or not re.match(r".*(keras|tensorflow)", row["match"])):
                yield row

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        given = {keyword.arg for keyword in node.keywords}
        optimizer = next((keyword.value for keyword in node.keywords if keyword.arg == "optimizer"), None)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "compile" and node.args and not optimizer:
            optimizer = node.args[0]
        named = optimizer.value if isinstance(optimizer, ast.Constant) else None
        for row in self._rows():
            wanted = row.get("without")
            if wanted and not given & {*wanted, None} and re.fullmatch(row["match"], self._full(node.func)):
                # What comes first without a name is a learning rate, or a size, of which a layer has always one.
                if not node.args or "layers" in row["match"]:
                    yield self._refusal(node, row)
            elif named is not None and str(named).lower() == row.get("optimizer"):
                yield self._refusal(node, row)

    def _refusal(self, node: ast.AST, row: Mapping[str, Any]) -> Finding:
        return self._finding(node, f"{row['old']}: {row['refuse']}. Write {row['instead']}")

    def _finding(self, node: ast.AST, text: str) -> Finding:
        return Finding(self._file, getattr(node, "lineno", 1), text)


def _is_there(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return name in _MODULES or (module in _MODULES - {"azureml"} and last in (*core.__all__, "*"))


def _has(owner: Any, name: str) -> bool:
    kind = owner[0] if isinstance(owner, list) else owner
    return hasattr(kind, name) or any(name in getattr(one, "__annotations__", {}) for one in kind.__mro__)


def _member(owner: Any, name: str) -> Any:
    """What an attribute is, or gives when it is called: a class, in a tuple where it is one of many; None if not known.

    The annotations of the stand-in say it.
    """
    kind = owner[0] if isinstance(owner, list) else owner
    if not isinstance(kind, type):
        return None
    member = getattr_static(kind, name, None)
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    text = str(getattr(member, "__annotations__", {}).get("return", "")) or kind.__annotations__.get(name, "")
    found = next((_CLASSES[word] for word in re.findall(r"\w+", str(text)) if word in _CLASSES), None)
    return (found,) if found and "[" in str(text) else found
