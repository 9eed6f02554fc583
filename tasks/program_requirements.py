"""What a program says that it needs: `python_env.yaml`, the pip part of a `conda.yaml`, or `requirements.txt`."""

import logging
import platform
import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from infra.errors import ArgumentError
from tasks.yaml_values import YamlValue, read_yaml

PYTHON_ENV = "python_env.yaml"
CONDA = "conda.yaml"
REQUIREMENTS = "requirements.txt"

_BUILD = r"(pip|setuptools|wheel)\b"
"""What environments are made with: everyone lists it, and it is there where it is needed."""

_STOOD_IN_FOR = {"azureml-core", "azureml-sdk", "azureml-defaults", "azureml-mlflow"}

LOGGER = logging.getLogger(__name__)

Needs = tuple[tuple[str, ...] | None, str | None]


def read_requirements(folder: Path, named: str = "") -> Needs:
    """Requirements as pip writes them, None where no file states any; and Python's version such as `3.11`, or None.

    The file is the one that an `MLproject` has `named`, else the first of `python_env.yaml`, `conda.yaml` (MLflow's
    order) and `requirements.txt`. Raises `ArgumentError` with the place of what cannot be had.
    """
    if named:
        path = _inside(folder, named, "MLproject")
        return _conda(folder, path) if _is_conda(path) else _python_env(folder, path)
    if (path := folder / PYTHON_ENV).is_file():
        return _python_env(folder, path)
    if (path := folder / CONDA).is_file():
        return _conda(folder, path)
    if (path := folder / REQUIREMENTS).is_file():
        return _lines(folder, path, ()), None
    return None, None


def _is_conda(path: Path) -> bool:
    fields = read_yaml(path).mapping("the lines of a python_env.yaml or a conda.yaml")
    return "channels" in fields or (
        "dependencies" in fields
        and any(not entry.is_single for entry in fields["dependencies"].sequence("a list of packages"))
    )


def _python_env(folder: Path, path: Path) -> Needs:
    document = read_yaml(path)
    fields = document.mapping("`python` and `dependencies`")
    document.refuse_unknown(("python", "build_dependencies", "dependencies"))
    # As it is written: 3.10 is the number 3.1 to YAML.
    python = fields.get("python")
    for entry in _entries(fields.get("build_dependencies")):
        if not re.match(_BUILD, entry.words("a package")):
            raise entry.wrong(f"{entry.text}: what a package is built with cannot be asked for. Leave it out.")
    needs = [need for entry in _entries(fields.get("dependencies")) for need in _pip_entry(folder, path, entry)]
    return tuple(needs), _python_version(python, python.text) if python and python.is_single else None


def _conda(folder: Path, path: Path) -> Needs:
    document = read_yaml(path)
    fields = document.mapping("`dependencies`")
    document.refuse_unknown(("name", "channels", "dependencies", "prefix"))
    needs: list[str] = []
    python, refused = None, []
    for entry in _entries(fields.get("dependencies")):
        if not entry.is_single:
            entry.refuse_unknown(("pip",))
            for need in entry.mapping()["pip"].sequence("a list of packages"):
                needs += _pip_entry(folder, path, need)
        elif match := re.fullmatch(r"(?:[\w-]+::)?python\s*([<>=!].*)?", entry.text):
            python = _python_version(entry, match[1] or "")
        elif not re.match(_BUILD, entry.text):
            refused.append(entry)
    if refused:
        raise refused[0].wrong(
            f"only conda has {', '.join(entry.text for entry in refused)}; of this file the pip part is taken.\n"
            "Name under `pip:` what the program needs of it, as PyPI calls it, and leave out the rest."
        )
    return tuple(needs), python


def _entries(given: YamlValue | None) -> list[YamlValue]:
    return [] if given is None or given.is_empty else given.sequence("a list of packages")


def _python_version(given: YamlValue, text: str) -> str | None:
    """The minor version, such as `3.11`, that a statement asks for; None if this Python's is one of several."""
    if not text:
        return None
    if match := re.fullmatch(r"={0,3}\s*(3\.\d+)(\.\d+|\.\*)*", text.strip()):
        return match[1]
    try:
        allowed = SpecifierSet(text).contains(platform.python_version(), prereleases=True)
    except InvalidSpecifier:
        raise given.expected("a version of Python such as 3.11") from None
    if not allowed:
        raise given.wrong(
            f"Python {text} is asked for, and this is {platform.python_version()}.\nName one version, such as 3.11: "
            "then it is brought."
        )
    return None


def _pip_entry(folder: Path, file: Path, entry: YamlValue) -> list[str]:
    line = entry.words("a package such as numpy>=2")
    return _line(folder, file, entry.node.start_mark.line + 1, line, ())


def _lines(folder: Path, path: Path, within: tuple[Path, ...]) -> tuple[str, ...]:
    """The requirements of a requirements file and of those that it names."""
    if path in within:
        raise ArgumentError(f"{path.relative_to(folder)} names itself with -r.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    needs: list[str] = []
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        joined += re.sub(r"(^|\s)#.*$", "", line)
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined.strip():
            needs += _line(folder, path, start, joined.strip(), within)
        joined, start = "", 0
    return tuple(needs) if not joined.strip() else (*needs, *_line(folder, path, start, joined.strip(), within))


def _line(folder: Path, file: Path, number: int, line: str, within: tuple[Path, ...]) -> list[str]:
    place = f"{file.relative_to(folder).as_posix()}:{number}"
    if match := re.fullmatch(r"(?:-r|--requirement)[ =]?\s*(.+)", line):
        path = _inside(folder, str((file.parent / match[1].strip()).relative_to(folder)), place)
        return list(_lines(folder, path, (*within, file)))
    if "--hash" in line:
        raise ArgumentError(
            f"{place}: hashes are not taken over: they are made anew when the versions are chosen.\n"
            "Name the file that this list was made from, or leave the hashes out."
        )
    if line.startswith("-"):
        raise ArgumentError(
            f"{place}: {line.split()[0]} is no package, and of pip's options -r alone is taken.\n"
            "Name packages as PyPI has them; where uv finds them is a setting of uv, such as UV_DEFAULT_INDEX."
        )
    try:
        needed = Requirement(line)
        return [] if _is_stood_in_for(needed, place) else [str(needed)]
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"{place}: {line!r} is no requirement such as numpy>=2: {reason}") from None


def _is_stood_in_for(needed: Requirement, place: str) -> bool:
    """True, and said, for what the stand-in is in place of; raises `ArgumentError` for the service's other packages."""
    name = canonicalize_name(needed.name)
    if name in _STOOD_IN_FOR:
        LOGGER.info("%s: %s is left out, for the pipeline has a stand-in for it: docs/from-azure-ml.md", place, name)
        return True
    if name.startswith("azureml-"):
        raise ArgumentError(
            f"{place}: {name} is of the service Azure ML, which has no support any more, and there is no stand-in for "
            "it.\nLeave it out, and what calls it: docs/from-azure-ml.md says what to use instead."
        )
    return False


def _inside(folder: Path, name: str, place: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder):
        raise ArgumentError(f"{place} names {name}, which lies outside the program's folder.")
    if not path.is_file():
        raise ArgumentError(f"{place} names {name}, and there is no such file in {folder}.")
    return path
