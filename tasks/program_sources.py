"""Reads a program's sources, without running them: what they import, and what of them will not do.

Only what the entry reaches is read: the script itself, the modules of the program that it imports, and so on.
"""

import ast
import importlib.metadata
import platform
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from infra.errors import ArgumentError, ProgramInvalid
from tasks.azureml_sources import accepted, refused
from tasks.program import Program
from tasks.program_advice import Finding, read_habits
from tasks.program_command import command_words, started_file, started_module
from tasks.yaml_values import did_you_mean

_AHEAD = ("numpy", "tensorflow", "keras")
"""What takes its time to import; whatever else a program imports may look at its arguments as it is imported."""

_IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True)
class Sources:
    """What a program's sources say."""

    files: tuple[str, ...]
    """Those that were read, relative to the program's folder."""
    syntax_errors: tuple[Finding, ...]
    imports: frozenset[str]
    """The top-level modules that they import, wherever in them: no module of the program or of Python itself."""
    needed: Mapping[str, str]
    """Those of them without which the program fails as soon as it starts, with the place where it does."""
    sets_variables: Mapping[str, str]
    """The environment variables of computing libraries that they set, with the places; `*` for a name not known."""
    fetches_data: tuple[Finding, ...]
    keras2_idioms: tuple[Finding, ...]
    saves_elsewhere: tuple[Finding, ...]
    azureml_refused: tuple[Finding, ...]
    """What a script of Azure ML's SDK does and may not, where it is to run with the stand-in for that."""
    old_spellings: Mapping[str, str] | None
    """What of its libraries' former spellings it may have, with what that is today; None: of no program but such."""
    asked_python: str | None
    """The version of Python that the program asks for, such as `3.12`."""

    @property
    def uses_mlflow(self) -> bool:
        """True if MLflow is imported anywhere."""
        return "mlflow" in self.imports

    @property
    def uses_keras(self) -> bool:
        """True if Keras is imported anywhere, by its own name or as TensorFlow's."""
        return not self.imports.isdisjoint({"keras", "tensorflow"})

    @property
    def import_ahead(self) -> tuple[str, ...]:
        """What can be imported before the program is started, in this order.

        Nothing where the sources set variables that such a module reads as it is imported.
        """
        return () if self.sets_variables else tuple(module for module in _AHEAD if module in self.needed)

    @property
    def import_ahead_of_score(self) -> tuple[str, ...]:
        """The same of its entry point `score`, which is not read: what the program imports at all, it is taken to."""
        return () if self.sets_variables else tuple(module for module in _AHEAD if module in self.imports)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What will not do what is expected; the program can be started all the same."""
        return (*self.keras2_idioms, *self.saves_elsewhere, *self.fetches_data)

    def missing(self, available: Collection[str]) -> dict[str, str]:
        """What is `needed` and not among these top-level modules, with the places."""
        return {module: place for module, place in self.needed.items() if module not in available}

    def check(self, available: Collection[str] | None = None) -> None:
        """Raise `ArgumentError` for syntax errors, and for what is needed and not `available` (None: not known)."""
        # What this Python does not understand may be right in the one that the program asks for.
        wrong = [] if _is_newer(self.asked_python) else [str(error) for error in self.syntax_errors]
        wrong += map(str, self.azureml_refused)
        for module, place in self.missing(available).items() if available is not None else ():
            wrong.append(
                f"{place}: it imports {module}, which is neither a module of the program nor in its environment."
                f"{did_you_mean(module, available or ())}\nMend the name, or name the package in requirements.txt."
            )
        if wrong:
            raise ArgumentError("\n".join(wrong))


def read_sources(program: Program) -> Sources:
    """What the sources of `program` say; a file that is no Python is among `syntax_errors`."""
    walk = _Walk(program)
    walk.read_all()
    trees = {name: tree for name, tree in walk.trees.items() if tree is not None}
    habits = read_habits(trees, keras=not walk.imports.isdisjoint({"keras", "tensorflow"}))
    is_keras_2 = (
        "tf_keras" in walk.imports
        or "TF_USE_LEGACY_KERAS" in habits.sets_variables
        or any(map(_means_keras_2, program.requirements or ()))
    )
    is_azureml = "azureml" in walk.imports and "azureml" not in module_distributions()
    idioms = () if is_keras_2 else tuple(sorted(habits.keras2_idioms))
    return Sources(
        files=tuple(walk.trees),
        syntax_errors=tuple(walk.errors),
        imports=frozenset(walk.imports),
        needed=walk.needed,
        sets_variables=habits.sets_variables,
        fetches_data=tuple(sorted(habits.fetches_data)),
        keras2_idioms=() if is_azureml else idioms,
        saves_elsewhere=tuple(sorted(habits.saves_elsewhere)),
        azureml_refused=tuple(refused(trees, idioms, not is_keras_2)) if is_azureml else (),
        old_spellings=accepted() if is_azureml and not is_keras_2 else None,
        asked_python=program.python,
    )


def _means_keras_2(requirement: str) -> bool:
    """True if a requirement allows nothing but a Keras before 3, alone or as TensorFlow's."""
    needed = Requirement(requirement)
    first = {"keras": Version("3"), "tensorflow": Version("2.16")}.get(canonicalize_name(needed.name))
    for bound in needed.specifier if first else ():
        limit = Version(bound.version.removesuffix(".*"))
        if first and (
            (bound.operator in ("==", "~=", "<=") and limit < first) or (bound.operator == "<" and limit <= first)
        ):
            return True
    return False


def key_packages(program: Program, sources: Sources) -> dict[str, str]:
    """The versions that a training's key names, in the environment of this process, with Python's minor version.

    They are those of the distributions that the sources import, with TensorFlow where Keras is, with Keras where
    TensorFlow is, and with NumPy under all of them; or those that the `MLproject` names instead. Raises
    `ProgramInvalid` if it names one that is not installed.
    """
    python = {"python": ".".join(platform.python_version_tuple()[:2])}
    if program.key_packages is not None:
        try:
            return python | {name: importlib.metadata.version(name) for name in program.key_packages}
        except importlib.metadata.PackageNotFoundError as error:
            raise ProgramInvalid(f"key_packages of the MLproject names {error.name}, which is not installed.") from None
    return python | {name: importlib.metadata.version(name) for name in imported_distributions(sources)}


def imported_distributions(sources: Sources) -> list[str]:
    """The distributions that the sources import, in the environment of this process; see `key_packages`."""
    modules = set(sources.imports)
    if sources.uses_keras:
        modules |= {"keras", "tensorflow"}
    if modules:
        modules.add("numpy")
    found = {name for module in modules for name in module_distributions().get(module, ())}
    return sorted(map(canonicalize_name, found))


@cache
def module_distributions() -> Mapping[str, list[str]]:
    """The distributions that bring each top-level module, in the environment of this process: what is `available`."""
    return importlib.metadata.packages_distributions()


def _is_newer(python: str | None) -> bool:
    return python is not None and tuple(map(int, python.split("."))) > sys.version_info[:2]


@dataclass(frozen=True)
class _Import:
    modules: tuple[str, ...]
    """Full names, the module first, then what may be modules in it."""
    level: int
    line: int
    is_certain: bool
    """False in functions, branches, and where its failure is caught."""


@dataclass
class _Walk:
    program: Program
    trees: dict[str, ast.Module | None] = field(default_factory=dict)
    """The files that were read; None for those that are no Python."""
    errors: list[Finding] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    needed: dict[str, str] = field(default_factory=dict)
    mentions_keras: bool = False

    def __post_init__(self) -> None:
        self.names = frozenset(self.program.names)
        self.paths = dict(zip(self.program.names, self.program.files, strict=True))
        self.folders = {str(parent) for name in self.names if name.endswith(".py") for parent in _parents(name)}
        self.certain: dict[str, bool] = {}
        self.roots: list[str] = []
        self.entries: list[str] = []

    def read_all(self) -> None:
        """Read what the program's entry reaches."""
        self.entries, self.roots = _entries(self.program, self.names)
        if not self.roots or any(b"sys.path" in self.paths[name].read_bytes() for name in self.entries):
            # Where its modules are found is known when it runs: any folder may be the one.
            self.roots = [*self.roots, *sorted(self.folders)]
        if not self.entries and self.program.command and (module := started_module(_words(self.program))):
            self.imports.add(module.partition(".")[0])
            self.needed[module.partition(".")[0]] = "MLproject"
        waiting = [(entry, True) for entry in self.entries]
        while waiting:
            name, is_certain = waiting.pop(0)
            if self.certain.get(name, False) or (name in self.certain and not is_certain):
                continue
            self.certain[name] = is_certain
            tree = self._tree(name)
            for found in _imports(tree.body, is_certain, name in self.entries) if tree else ():
                waiting += [(file, found.is_certain) for file in self._take(name, found)]
        if "tensorflow" in self.needed and self.mentions_keras:
            # As `tf.keras`: TensorFlow imports it as soon as it is asked for.
            self.imports.add("keras")
            self.needed.setdefault("keras", self.needed["tensorflow"])

    def _tree(self, name: str) -> ast.Module | None:
        if name not in self.trees:
            self.trees[name] = None
            try:
                data = self.paths[name].read_bytes()
                self.mentions_keras |= b"keras" in data
                with warnings.catch_warnings(action="ignore"):
                    self.trees[name] = ast.parse(data, filename=name)
            except SyntaxError as error:
                line = f"\n    {error.text.strip()}" if error.text else ""
                self.errors.append(Finding(name, error.lineno or 1, f"{error.msg}{line}"))
            except (OSError, ValueError, RecursionError, MemoryError) as error:
                self.errors.append(Finding(name, 1, f"it cannot be read as Python: {error}"))
        return self.trees[name]

    def _take(self, file: str, found: _Import) -> list[str]:
        """Take down an import in `file`; the files of the program that it leads to."""
        place = f"{file}:{found.line}"
        if found.level:
            if file in self.entries and found.is_certain and f"{PurePosixPath(file).parent}" in self.roots:
                text = "a script cannot import by a name that begins with a dot: leave the dot out"
                self.errors.append(Finding(file, found.line, text))
            base = PurePosixPath(file).parents[min(found.level, len(PurePosixPath(file).parents)) - 1]
            return [file for module in found.modules for file in self._own(module, [str(base)])]
        own = [file for module in found.modules for file in self._own(module, self.roots)]
        top = found.modules[0].partition(".")[0]
        if own or any(f"{root}/{top}".removeprefix("./") in self.folders for root in self.roots):
            return own
        if top not in sys.stdlib_module_names and top != "__main__":
            self.imports.add(top)
            if found.is_certain:
                self.needed.setdefault(top, place)
        return []

    def _own(self, module: str, roots: list[str]) -> list[str]:
        """The files of the program that importing `module` runs, where it is found in one of these folders."""
        for root in roots:
            path = PurePosixPath(root)
            files = [str(path / "__init__.py")] if not module else []
            for part in filter(None, module.split(".")):
                path /= part
                files += [str(path / "__init__.py"), f"{path}.py"]
            if there := [file for file in files if file in self.names]:
                return there
        return []


def _parents(name: str) -> list[PurePosixPath]:
    return list(PurePosixPath(name).parents)


def _words(program: Program) -> tuple[str, ...]:
    return command_words(str(program.command), {parameter.name: parameter.name for parameter in program.parameters})


def _entries(program: Program, names: Collection[str]) -> tuple[list[str], list[str]]:
    """The source files that the program starts with, and the folder where it finds its modules: none if not known."""
    if program.command is not None:
        words = _words(program)
        script = PurePosixPath(started_file(words) or "")
        if str(script) in names:
            return [str(script)], [str(script.parent)]
        if module := started_module(words):
            path = module.replace(".", "/")
            return [name for name in (f"{path}.py", f"{path}/__main__.py") if name in names], ["."]
        text = program.command
    elif str(program.entry).endswith(".py"):
        return [str(program.entry)], [str(PurePosixPath(str(program.entry)).parent)]
    else:
        text = (program.folder / str(program.entry)).read_text(errors="replace")
    named = set(re.findall(r"[\w./-]+\.py\b", text))
    scripts = [name for name in names if name.endswith(".py")]
    started = [name for name in scripts if any(f"/{name}".endswith(f"/{PurePosixPath(word)}") for word in named)]
    return sorted(started or scripts), []


def _imports(body: list[ast.stmt], is_certain: bool, is_entry: bool) -> Iterator[_Import]:
    """The imports of a module's statements, `is_certain` where they are made whenever those are run."""
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import((alias.name,), 0, node.lineno, is_certain)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inner = tuple(f"{module}.{alias.name}".lstrip(".") for alias in node.names)
            yield _Import((module, *inner), node.level, node.lineno, is_certain)
        elif isinstance(node, ast.Try | ast.TryStar):
            yield from _imports(node.body, is_certain and not _catches(node), is_entry)
            yield from _imports([*(s for h in node.handlers for s in h.body), *node.orelse], False, is_entry)
            yield from _imports(node.finalbody, is_certain, is_entry)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, is_certain, is_entry)
        else:
            runs = isinstance(node, ast.ClassDef) or (isinstance(node, ast.If) and is_entry and _is_main(node))
            if isinstance(node, ast.With) and "suppress" not in ast.unparse(node.items[0]):
                runs = True
            for inner_body in _bodies(node):
                yield from _imports(inner_body, is_certain and runs, is_entry)


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse"):
        if isinstance(inner := getattr(node, name, None), list):
            yield inner
    for case in getattr(node, "cases", ()):
        yield case.body


def _is_main(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__")


def _catches(node: ast.Try | ast.TryStar) -> bool:
    """True if it catches the failure of an import."""
    kinds = [handler.type for handler in node.handlers]
    named = {name.id for kind in kinds if kind for name in ast.walk(kind) if isinstance(name, ast.Name)}
    return None in kinds or bool(named & _IMPORT_ERRORS)
