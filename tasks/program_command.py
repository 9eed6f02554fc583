"""The command of a program: from what its `MLproject` or its person writes to the words that a process is started with.

A command is split into words before values are put in, so that a value is one word, or part of one, whatever is in it.
One that needs a shell is run by bash, as MLflow runs every one, and gets its values as positional parameters.
"""

import re
import shlex
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from infra.errors import ArgumentError
from tasks.program_parameters import DATA_FOLDER, Parameter
from tasks.program_project import EntryPoint, Project
from tasks.yaml_values import closest, did_you_mean

_MEANS_SOMETHING_TO_A_SHELL = re.compile(r"[|&;<>()$`*?\n]|(?:^|\s)~|^\s*[A-Za-z_]\w*=")
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][\w .-]*)\}\}|\{([A-Za-z_][\w .-]*)\}")
_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for a value while the command is taken apart; characters that Unicode gives to nobody."""

LeftOut = Sequence[tuple[str, str]]


def fields(command: str) -> set[str]:
    """The names in braces; raises `ArgumentError` for braces that hold none."""
    return set(_template(command)[1])


def command_words(command: str, values: Mapping[str, str]) -> tuple[str, ...]:
    """The words of the process to start, `values` in place of the names in braces.

    Raises `ArgumentError` for a name that has no value, and for a quotation without an end.
    """
    template, names = _template(command)
    if missing := next((name for name in names if name not in values), None):
        raise ArgumentError(f"The command {command!r} has {{{missing}}}, which stands for nothing.")
    if _needs_shell(template):
        return ("bash", "-c", _shell_script(template), "bash", *(values[name] for name in names))
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ArgumentError(f"The command {command!r} cannot be split into words: {error}.") from None
    words = [_MARK.sub(lambda mark: values[names[int(mark[1])]], word) for word in words]
    # The same interpreter by another name, and output that is read as it comes anyway.
    if words[0] == "python3":
        words[0] = "python"
    while words[:2] == ["python", "-u"]:
        del words[1]
    return tuple(words)


def _template(command: str) -> tuple[str, list[str]]:
    """A command with a mark for each value, and the values' names by the marks' numbers."""
    template, names = "", list[str]()
    try:
        for literal, name, spec, conversion in string.Formatter().parse(command.replace("\\\n", " ")):
            template += literal
            if name is not None:
                if not name or spec or conversion:
                    raise ValueError(f"{{{name}}} is no parameter's name")
                template += f"\ue000{len(names)}\ue001"
                names.append(name)
    except ValueError as error:
        raise ArgumentError(
            f"The command {command!r} cannot be read: {str(error).lower()}.\n"
            "A brace that is meant as such stands twice: {{ and }}."
        ) from None
    return template, names


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """The characters of a command, each with the quote it stands in; a mark is one, a backslash with its next too."""
    quote, position = "", 0
    while position < len(template):
        mark = _MARK.match(template, position)
        length = len(mark[0]) if mark else 2 if template[position] == "\\" and quote != "'" else 1
        piece = template[position : position + length]
        is_quote = piece in ("'", '"') and quote in ("", piece)
        yield piece, piece if is_quote else quote
        if is_quote:
            quote = "" if quote else piece
        position += length


def _needs_shell(template: str) -> bool:
    """True if a command means something to a shell beyond words and quotes."""
    pieces = list(_pieces(template))
    bare = "".join(piece if not quote and len(piece) == 1 else "x" for piece, quote in pieces)
    return bool(_MEANS_SOMETHING_TO_A_SHELL.search(bare)) or any(
        piece in ("$", "`") and quote == '"' for piece, quote in pieces
    )


def _shell_script(template: str) -> str:
    """The text for `bash -c`: each mark in quotes of its own, whatever quotes it stands in."""
    script = ""
    for piece, quote in _pieces(template):
        if mark := _MARK.fullmatch(piece):
            value = f"${{{int(mark[1]) + 1}}}"
            piece = {"": f'"{value}"', '"': value, "'": f"'\"{value}\"'"}[quote]
        script += piece
    return script


def started_file(words: Sequence[str]) -> str | None:
    """The file that `python FILE ...` runs; None for anything else."""
    return words[_after_options(words)] if _runs_python(words) and _after_options(words) < len(words) else None


def started_module(words: Sequence[str]) -> str | None:
    """The module that `python -m MODULE ...` runs; None for anything else."""
    return words[words.index("-m") + 1] if _runs_python(words, "-m") and words.index("-m") + 1 < len(words) else None


def _runs_python(words: Sequence[str], option: str = "") -> bool:
    if not words or words[0] != "python":
        return False
    if option:
        return option in words and words.index(option) == _after_options(words, option)
    return not any(word in ("-m", "-c") for word in words[1 : _after_options(words)])


def _after_options(words: Sequence[str], stop: str = "") -> int:
    """The position of the first word behind Python's own options, or of the option `stop`."""
    position = 1
    while position < len(words) and words[position].startswith("-") and words[position] != stop:
        position += 2 if words[position] in ("-X", "-W") else 1
    return position


def check_command(chosen: EntryPoint, names: Collection[str], left_out: LeftOut) -> None:
    """Raise `ArgumentError` if an entry point's command names a parameter or a file that there is not."""
    declared = {parameter.name for parameter in chosen.parameters}
    for name in sorted(fields(chosen.command) - declared):
        told = did_you_mean(name, declared)
        if name == DATA_FOLDER or name.startswith(f"{DATA_FOLDER}_"):
            told = f"\nDeclare it among its parameters, as plain `mlflow run` needs it too: `{name}: path`."
        raise ArgumentError(
            f"MLproject: the command of {chosen.name} has {{{name}}}, which is none of its parameters.{told}"
        )
    file = started_file(command_words(chosen.command, {name: f"{{{name}}}" for name in declared}))
    if file and "{" not in file and PurePosixPath(file).as_posix() not in names:
        raise ArgumentError(
            f"MLproject: the command of {chosen.name} runs {file}, which is not in the folder."
            + _why_not_there(file, names, left_out)
        )


def script(entry: str, folder: Path, names: Collection[str], left_out: LeftOut, project: Project) -> str:
    """The script that `--entry` names, relative to `folder`; raises `ArgumentError` if it cannot be run."""
    path = folder / entry
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else entry
    if name in names and name.endswith((".py", ".sh")):
        return name
    if name in names:
        instead = "It is run with python if it ends in .py, and with bash if in .sh."
        if name.endswith(".ipynb"):
            instead = f"Make a script of the notebook: jupyter nbconvert --to script {name}"
        raise ArgumentError(f"--entry {entry} is no script.\n{instead}")
    if path.is_dir():
        raise ArgumentError(f"--entry {entry} is a folder, expected a script in {folder}.")
    points = f" Entry points of its MLproject: {', '.join(project.entry_points)}." if project.entry_points else ""
    raise ArgumentError(f"There is no {entry} in {folder}.{points}{_why_not_there(name, names, left_out)}")


def _why_not_there(name: str, names: Collection[str], left_out: LeftOut) -> str:
    for path, why in left_out:
        if name == path or (path.endswith("/") and name.startswith(path)):
            cure = f" To have it all the same: !{path} in .programignore." if why.endswith("names it") else ""
            return f"\n{path} is left out, for {why}.{cure}"
    scripts = [known for known in names if known.endswith((".py", ".sh"))]
    same = [known for known in scripts if PurePosixPath(known).name == PurePosixPath(name).name]
    if guess := (same[0] if same else closest(name, scripts)):
        return f" Did you mean {guess}?"
    return f"\nScripts there: {', '.join(scripts[:5]) or 'none'}."


def script_argument(word: str, dataset_names: Sequence[str]) -> str:
    """A word that follows `--`, as it stands but for `{{name}}`, which is `{name}`; raises for unknown names."""

    def put(found: re.Match[str]) -> str:
        if found[1]:
            return f"{{{found[1]}}}"
        name = found[2]
        if name != DATA_FOLDER and not name.startswith(f"{DATA_FOLDER}_"):
            raise ArgumentError(
                f"{word}: {{{name}}} stands for nothing.{did_you_mean(name, [DATA_FOLDER])} "
                f"Known are {{{DATA_FOLDER}}} and {{{DATA_FOLDER}_NAME}}; if the braces are meant: {{{{{name}}}}}."
            )
        for why in why_no_data(name.removeprefix(DATA_FOLDER).removeprefix("_"), dataset_names):
            raise ArgumentError(why)
        return found[0]

    return _PLACEHOLDER.sub(put, word)


def interpreter(name: str) -> tuple[str, str]:
    """The words that run a script."""
    return ("python" if name.endswith(".py") else "bash", name)


def data_folders(parameters: Sequence[Parameter]) -> dict[str, str]:
    """The placeholders of those parameters that are folders of data."""
    return {parameter.name: f"{{{parameter.name}}}" for parameter in parameters if parameter.dataset is not None}


def why_no_data(dataset: str, dataset_names: Sequence[str]) -> list[str]:
    """Why there is no folder for a data set of this name (empty: the only one or first); empty if there is one."""
    placeholder = f"{{{DATA_FOLDER}_{dataset}}}" if dataset else f"{{{DATA_FOLDER}}}"
    if not dataset_names:
        given = f"{dataset}=FOLDER" if dataset else "FOLDER"
        return [f"{placeholder} needs data, and none is given: --data {given}."]
    if dataset and dataset not in dataset_names:
        told = did_you_mean(dataset, dataset_names)
        return [
            f"{placeholder} needs a data set {dataset}, and given are {', '.join(dataset_names)}.{told}\n"
            f"Give it with --data {dataset}=FOLDER."
        ]
    return []


def warnings_of(command: Sequence[str], dataset_names: Sequence[str]) -> list[str]:
    """What in a command may not be meant so."""
    text = "\0".join(command)
    told = []
    for position, name in enumerate(dataset_names):
        own = f"{{{DATA_FOLDER}_{name}}}"
        if own not in text and (position > 0 or f"{{{DATA_FOLDER}}}" not in text):
            placeholder = f"{{{DATA_FOLDER}}}" if position == 0 else own
            told.append(f"The data set {name} is given, and the command has no {placeholder}: nothing leads to it.")
    if not (started_file(command) or started_module(command)):
        told.append(
            f"The command runs {command[0]} and not python FILE or python -m MODULE: its epochs are not seen, and it "
            "continues only by what it writes to CHECKPOINT_FOLDER itself."
        )
    return told
