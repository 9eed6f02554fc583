"""A person's program: a folder with an `MLproject`, or with a script, read and checked without running any of it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ArgumentError, ProgramInvalid
from tasks.program_command import (
    check_command,
    command_words,
    data_folders,
    fields,
    interpreter,
    script,
    script_argument,
    warnings_of,
    why_no_data,
)
from tasks.program_files import read_files
from tasks.program_parameters import DATA_FOLDER, Parameter, Value, WrongValue, written
from tasks.program_project import EntryPoint, Objective, entry_point, read_project
from tasks.program_requirements import read_requirements
from tasks.yaml_values import YamlValue, did_you_mean

__all__ = ["Arguments", "EntryPoint", "Objective", "Parameter", "Program", "Value", "read_program"]


@dataclass(frozen=True)
class Arguments:
    """What a program is started with."""

    command: tuple[str, ...]
    """`{data_folder}` and `{data_folder_NAME}` in it are for the place where it runs."""
    parameters: Mapping[str, Value]
    """Of an `MLproject`, the data's folders not among them; empty for a script."""
    warnings: tuple[str, ...] = ()
    """What may not be meant so."""


@dataclass(frozen=True)
class Program:
    """A program, as it was when it was read."""

    folder: Path
    name: str
    entry: str | None
    """The script that `--entry` named, relative to the folder; None where `command` says what runs."""
    parameters: tuple[Parameter, ...]
    command: str | None
    """Of an entry point of the `MLproject`, with `{name}` for each parameter."""
    requirements: tuple[str, ...] | None
    """As pip writes them; None where none are stated."""
    python: str | None
    """The minor version that is asked for: `3.11`."""
    objective: Objective | None
    continues: str | None
    """`exact`, or None."""
    score: EntryPoint | None
    key_packages: tuple[str, ...] | None
    """The packages whose versions decide its results, where its `MLproject` names them."""
    import_ahead: tuple[str, ...] | None
    """The modules that may be imported before it begins, where its `MLproject` names them."""
    search: YamlValue | None
    """What a search may try, as the `MLproject` says it: see `tasks.search.space`."""
    trial: str | None
    """`before_test`, or None."""
    files: tuple[Path, ...]
    """In a fixed order, under `folder`."""
    left_out: tuple[tuple[str, str], ...]
    """What else is in the folder, and why it is not of the program."""

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of its files relative to its folder, parted by `/`."""
        return tuple(path.relative_to(self.folder).as_posix() for path in self.files)

    def refuse_data_inside(self, data: Path) -> None:
        """Raise `ArgumentError` if the folder `data` lies in the program's or holds it."""
        data = data.resolve()
        if data.is_relative_to(self.folder) or self.folder.is_relative_to(data):
            where = "inside" if data.is_relative_to(self.folder) else "around"
            raise ArgumentError(
                f"The data {data} lies {where} the program's folder {self.folder}: it would be shipped with it.\n"
                "Move it out."
            )

    def check(self, parameters: Mapping[str, str], arguments: Sequence[str], dataset_names: Sequence[str]) -> Arguments:
        """What the program is started with: `parameters` as given by `--param`, `arguments` as they follow `--`.

        `dataset_names` are those of the data sets, the one that `{data_folder}` stands for first. Raises
        `ArgumentError` for whatever the program could not be started with.
        """
        if self.command is None:
            if parameters:
                name = next(iter(parameters))
                raise ArgumentError(
                    f"--param {name}: {self.name} declares no parameters, for {self.entry} is a script.\n"
                    f"What it takes follows --, as it stands: -- --{name} ..."
                )
            words = tuple(script_argument(word, dataset_names) for word in arguments)
            command = (*interpreter(str(self.entry)), *words)
            return Arguments(command, {}, tuple(warnings_of(command, dataset_names)))
        if arguments:
            raise ArgumentError(
                f"{shlex.join(arguments)}: {self.name} has an MLproject, whose command takes parameters only.\n"
                "Give them with --param NAME=VALUE, or name the script with --entry."
            )
        values = self._values(parameters, dataset_names)
        texts = {name: written(value) for name, value in values.items()} | data_folders(self.parameters)
        command = command_words(self.command, texts)
        return Arguments(command, values, tuple(warnings_of(command, dataset_names)))

    def _values(self, given: Mapping[str, str], dataset_names: Sequence[str]) -> dict[str, Value]:
        """The values of all parameters but the data's; raises `ArgumentError` with everything that is wrong."""
        declared = {parameter.name: parameter for parameter in self.parameters if parameter.dataset is None}
        used = fields(str(self.command))
        wrong = [self._why_unknown(name, declared) for name in given if name not in declared]
        wrong += [
            f"--param {name}: the command of {self.name} does not use it."
            for name in given
            if name in declared and name not in used
        ]
        values: dict[str, Value] = {}
        for name, parameter in declared.items():
            if name not in given and parameter.default is None:
                wrong.append(f"{name} is missing: give it with --param {name}=..., {parameter.expected}.")
                continue
            try:
                value = parameter.default if name not in given else parameter.value(given[name])
            except WrongValue as error:
                wrong.append(f"--param {name}={given[name]}: expected {error}.")
                continue
            assert value is not None
            values[name] = value
            wrong += self._why_not_a_word(parameter, value)
        for parameter in self.parameters:
            if parameter.dataset is not None and parameter.name in used:
                wrong += why_no_data(parameter.dataset, dataset_names)
        if wrong:
            raise ArgumentError("\n".join(wrong))
        return values

    def _why_unknown(self, name: str, declared: Mapping[str, Parameter]) -> str:
        if any(parameter.name == name for parameter in self.parameters):
            return f"--param {name}: that is the folder of a data set, which is given with --data."
        known = ", ".join(declared) or "none"
        return f"--param {name}: {self.name} has no such parameter.{did_you_mean(name, declared)} It has: {known}."

    def _why_not_a_word(self, parameter: Parameter, value: Value) -> list[str]:
        text = str(value)
        if f"{{{DATA_FOLDER}" in text:
            return [
                f"{parameter.name} is {text}: the folder of the data is a parameter of its own.\n"
                f"Declare `{DATA_FOLDER}: path` in the MLproject and use it in the command."
            ]
        if parameter.type != "path":
            return []
        path = (self.folder / text).resolve()
        if path == self.folder or any(file == path or file.is_relative_to(path) for file in self.files):
            return []
        return [
            f"{parameter.name} is {text}, expected a file or folder of the program, relative to {self.folder}.\n"
            f"What lies elsewhere is data: declare it as `{DATA_FOLDER}_NAME: path`, and give it with --data NAME=..."
        ]


def read_program(folder: Path, entry: str | None = None) -> Program:
    """The program in `folder`; `entry` is an entry point of its `MLproject`, else a script, as `mlflow run -e` has it.

    Without `entry` it is the entry point `main`. Raises `ArgumentError` for a folder or an entry that is not there, and
    `ProgramInvalid` with what is wrong in the folder, and where.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "is not there"
        raise ArgumentError(f"The program {folder} {found}, expected a folder with an MLproject or a script in it.")
    with _wrong_in_the_program():
        project = read_project(folder)
        requirements, python = read_requirements(folder, project.environment)
        found_files = read_files(folder)
    names = [path.relative_to(folder).as_posix() for path in found_files.files]
    if entry is None and not project.exists:
        scripts = [name for name in names if name.endswith(".py")]
        few = ", ".join(sorted(scripts, key=lambda name: name.count("/"))[:5]) or "no file NAME.py"
        raise ArgumentError(
            f"The program {folder} has no MLproject, and no script was named.\nName one: --entry SCRIPT. It has {few}."
        )
    is_script = entry is not None and entry not in project.entry_points
    chosen = None if is_script else entry_point(project, entry or "main")
    if chosen is not None:
        with _wrong_in_the_program():
            check_command(chosen, names, found_files.left_out)
    return Program(
        folder=folder,
        name=project.name or folder.name,
        entry=script(str(entry), folder, names, found_files.left_out, project) if is_script else None,
        parameters=chosen.parameters if chosen else (),
        command=chosen.command if chosen else None,
        requirements=requirements,
        python=python,
        objective=project.objective,
        continues=project.continues,
        score=project.entry_points.get("score"),
        key_packages=project.key_packages,
        import_ahead=_checked(project.import_ahead, names),
        search=project.search,
        trial=project.trial,
        files=found_files.files,
        left_out=found_files.left_out,
    )


def _checked(modules: tuple[str, ...] | None, names: Sequence[str]) -> tuple[str, ...] | None:
    """Raise `ProgramInvalid` for a module of the program that is not there: of that, nothing else would ever tell."""
    own = {name.partition("/")[0].removesuffix(".py") for name in names if name.endswith(".py")}
    for module in modules or ():
        path = module.replace(".", "/")
        if module.partition(".")[0] in own and not {f"{path}.py", f"{path}/__init__.py"} & {*names}:
            raise ProgramInvalid(f"MLproject: import_ahead names {module}, and there is no {path}.py in the folder.")
    return modules


@contextmanager
def _wrong_in_the_program() -> Iterator[None]:
    """What is wrong is in the folder, and no flag would set it right."""
    try:
        yield
    except ArgumentError as error:
        raise ProgramInvalid(str(error)) from error
