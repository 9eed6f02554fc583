"""What a program imported, compared with the list of versions that its environment was to have."""

import re
from collections.abc import Mapping

from .exits import RunnerError


def listed_versions(lock: str) -> dict[str, str]:
    """The version of each package that `lock` lists, by its name in lower case with dashes."""
    return {_plain(name): version for name, version in re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", lock, re.M)}


def check_versions(lock: str, imported: Mapping[str, str]) -> None:
    """Raise `RunnerError` that names the packages which were imported in another version than `lock` lists."""
    listed = listed_versions(lock)
    other = [
        f"{name} {version} instead of {listed[_plain(name)]}"
        for name, version in sorted(imported.items())
        if _plain(name) in listed and listed[_plain(name)] != version
    ]
    if other:
        raise RunnerError(
            f"The program imported {', '.join(other)}: what it did is not what its key says.\n"
            "Something was laid over its environment, such as a runtime environment of the cluster's. Remove that, or "
            "train with --rebuild-environment."
        )


def _plain(name: str) -> str:
    """As packaging.python.org/specifications/name-normalization has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
