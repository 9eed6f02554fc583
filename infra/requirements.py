"""What a program requires: met by the pipeline's own environment, or resolved to versions and hashes, once.

What the pipeline itself needs elsewhere is taken from its locks.

An index, credentials for it, or a folder of wheels are named in uv's own variables (UV_INDEX_URL, UV_FIND_LINKS,
UV_NO_INDEX ...), never in a file of ours: the list that comes out names packages, versions and hashes alone.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from infra.errors import ProgramInvalid, SettingsError
from infra.waiting import told_when_slow

LOGGER = logging.getLogger(__name__)

OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

SECONDS_TO_RESOLVE = 900.0
"""Packages without wheels are built to learn what they need; a hanging index must end all the same."""

_OUT_OF_REACH = re.compile("Failed to fetch|Failed to download|error sending request|network was disabled|timed out")
_REASONS_SHOWN = 6

_LOCKED = re.compile(r"^[\w.-]+==.*\n(?: .*\n)*", re.MULTILINE)
"""What a lock says of one package."""


def met(requirements: Sequence[str], python: str | None = None) -> list[str]:
    """What of it the environment of this process does not meet, each with what is here; empty: the program runs in it.

    `requirements` are the lines of a requirements file, a package each, with extras and markers; of `python`, a
    version, the first two numbers count. Raises `ProgramInvalid` for what is neither.
    """
    wanted = _python_minor(python)
    missing = [f"Python {wanted} ({OWN_PYTHON} is here)"] if wanted != OWN_PYTHON else []
    seen: set[tuple[str, str]] = set()
    return missing + [one for line in requirements for one in _unmet(_parse(line), "", seen)]


def _unmet(requirement: Requirement, extra: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
        return
    name = canonicalize_name(requirement.name)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        yield f"{requirement} (not here)"
        return
    if requirement.url:
        yield f"{requirement} (from another place than {found.version}, which is here)"
    elif not requirement.specifier.contains(found.version, prereleases=True):
        yield f"{requirement} ({found.version} is here)"
    # The package itself is here with all that it needs, but what an extra adds may not be.
    for wanted in sorted(requirement.extras):
        if (name, wanted) not in seen:
            seen.add((name, wanted))
            of_extra = [needed for needed in map(Requirement, found.requires or ()) if _is_of(needed, wanted)]
            for needed in of_extra:
                yield from _unmet(needed, wanted, seen)


def _is_of(needed: Requirement, extra: str) -> bool:
    """True if the extra adds it; what is needed without any is no matter here."""
    return bool(
        needed.marker and not needed.marker.evaluate({"extra": ""}) and needed.marker.evaluate({"extra": extra})
    )


def resolve(requirements: Sequence[str], python: str | None, folder: Path) -> str:
    """The text of a requirements file with the version and the hashes of every package that the program gets.

    For Linux and macOS alike, and for Python `python` (a version, of which the first two numbers count; None: that of
    this process). What was resolved once is kept in `folder`, for a training's key is made of it: the same answer until
    the file is removed. Raises `ProgramInvalid` if there is no such package, or no versions that go together, and
    `SettingsError` if the package index cannot be reached.
    """
    minor = _python_minor(python)
    wanted = sorted({str(_parse(line)) for line in requirements})
    digest = hashlib.sha256(json.dumps([minor, wanted]).encode()).hexdigest()
    kept = folder / f"{digest[:16]}.txt"
    with suppress(FileNotFoundError):
        return kept.read_text()
    LOGGER.info("Looking for versions that meet the program's requirements, for Python %s; this happens once", minor)
    text = _resolve(wanted, minor)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".new-") as new:
        new.write(text)
        new.flush()
        # Not over another's: whoever came first has given its answer to a training already.
        with suppress(FileExistsError):
            os.link(new.name, kept)
    return kept.read_text()


def _resolve(wanted: list[str], minor: str) -> str:
    here = f"python_full_version >= '{minor}' and python_full_version < '{_next(minor)}'"
    systems = [f"{here} and sys_platform == '{system}'" for system in ("linux", "darwin")]
    # In a project of its own, for uv would take its configuration from that of the current folder.
    with tempfile.TemporaryDirectory(prefix="requirements-") as project:
        command = [find_uv_bin(), "pip", "compile", "-", "--quiet", "--universal", "--python-version", minor]
        (Path(project) / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = {json.dumps(systems)}\n")
        try:
            with told_when_slow("the package index", "resolve the program's requirements"):
                done = subprocess.run(
                    [*command, "--generate-hashes", "--no-header", "--no-annotate", "--project", project],
                    input="\n".join(wanted),
                    capture_output=True,
                    text=True,
                    timeout=SECONDS_TO_RESOLVE,
                )
        except subprocess.TimeoutExpired as error:
            raise SettingsError(
                f"The program's requirements ({_listed(wanted)}) were not resolved within {SECONDS_TO_RESOLVE:.0f} s.\n"
                "Is the package index up? uv takes another from UV_INDEX_URL, or a folder of wheels from UV_FIND_LINKS."
            ) from error
    if done.returncode == 0:
        return done.stdout
    reason = _reason(done.stderr)
    if _OUT_OF_REACH.search(done.stderr):
        raise SettingsError(
            f"The program's requirements ({_listed(wanted)}) cannot be resolved: the package index gives no answer.\n"
            f"{reason}\nConnect this machine, or tell uv of another index (UV_INDEX_URL) or a folder of wheels "
            "(UV_FIND_LINKS)."
        )
    raise ProgramInvalid(
        f"No versions for Python {minor} meet the program's requirements ({_listed(wanted)}).\n{reason}\n"
        "Correct the names or versions in the program's list."
    )


def locked(requirements: Sequence[str], locks: str) -> str:
    """The part of `locks` that has the packages of `requirements`, lines `name==version`, and all that these need.

    What they need is read from what is installed here. A package that the locks do not name, or in another version than
    is required, has no hash in the answer, so that nobody installs it.
    """
    known = {canonicalize_name(part.partition("==")[0]): part for part in _LOCKED.findall(locks)}
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in requirements]
    for wanted in todo:  # It grows meanwhile.
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            with suppress(PackageNotFoundError):
                needed = map(Requirement, distribution(name).requires or ())
                todo += [one for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
        if name not in found:
            there = re.match(r"[^=]+==([^\s;]+)", known.get(name, ""))
            is_right = there and wanted.specifier.contains(there[1], prereleases=True)
            found[name] = known[name] if is_right else f"{wanted.name}{wanted.specifier}\n"
    return "".join(found[name] for name in sorted(found))


def _parse(line: str) -> Requirement:
    try:
        requirement = Requirement(line.strip())
    except InvalidRequirement as error:
        hint = (
            "Options do not belong into the list: tell uv of an index in UV_INDEX_URL, and name each package itself."
            if line.strip().startswith("-")
            else "Expected a package's name, with a version if it matters: keras==3.15.1, pandas>=2, torch[opt]."
        )
        reason = str(error).partition("\n")[0]
        raise ProgramInvalid(
            f"{line.strip()!r} among the program's requirements is no package: {reason}.\n{hint}"
        ) from error
    if requirement.url and requirement.url.startswith(("file:", ".", "/")):
        raise ProgramInvalid(
            f"{line.strip()!r} among the program's requirements lies on this machine alone, and a node would not find "
            "it.\nPut its modules into the program's folder, or its wheel where UV_FIND_LINKS or UV_INDEX_URL leads."
        )
    return requirement


def _python_minor(python: str | None) -> str:
    if python is None:
        return OWN_PYTHON
    found = re.fullmatch(r"(3\.\d+)(\.\d+)?", python.strip())
    if not found:
        raise ProgramInvalid(f"The program asks for Python {python!r}.\nExpected a version such as {OWN_PYTHON}.")
    return found[1]


def _next(minor: str) -> str:
    major, _, number = minor.partition(".")
    return f"{major}.{int(number) + 1}"


def _listed(wanted: list[str], most: int = 8) -> str:
    return ", ".join(wanted[:most]) + (f" and {len(wanted) - most} more" if len(wanted) > most else "")


def _reason(stderr: str) -> str:
    """The first lines of what uv says, without its bookkeeping."""
    said = re.sub(r"\s+for\s+split\s+\(markers:.*?'\)", "", stderr, flags=re.DOTALL)
    lines = [re.sub(r"^\s*(error|cause): ", "", line).strip() for line in said.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[:_REASONS_SHOWN])
