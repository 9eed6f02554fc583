"""Names: of the files in a data set, which must mean the same file on every machine, and of data sets."""

import re
import unicodedata
from collections.abc import Iterable

from infra.compute.runner.manifest import MANIFEST
from infra.errors import ArgumentError

_LEFT_BY_OTHERS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"}
_LONGEST_PART = 200
"""Bytes; file systems take 255, and a file that is being written has a longer name."""
_LONGEST_NAME = 800
"""Bytes; a key of S3 has 1,024, with the store's prefix and the data set's name."""
_SHOWN = 10
_LONGEST_DATASET_NAME = 100


def is_left_out(part: str) -> bool:
    """True for a file or folder that is no data: dotfiles, and what file managers, archivers and notebooks leave."""
    return part.startswith(".") or part.lower() in _LEFT_BY_OTHERS


def wrong_names(names: Iterable[str]) -> list[str]:
    """What is wrong with the names of a data set's files, a line each; none if all of them can be kept.

    A name is refused that not every store, disk and shell takes for the same file: with control characters or
    backslashes, not in UTF-8, too long, or different from another in case or Unicode's form alone.
    """
    wrong = []
    seen: dict[str, str] = {}
    for name in names:
        if reason := _reason(name):
            wrong.append(f"{printable(name)}: {reason}")
            continue
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other != path:
                wrong.append(f"{path}: is the same as {other} where case and accents' form do not count")
                break
    return wrong


def _reason(name: str) -> str | None:
    parts = name.split("/")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "its name is not in UTF-8"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "its name has a control character"
    if "\\" in name:
        return "its name has a backslash"
    if any(part in ("", ".", "..") for part in parts):
        return "its name is no path in a folder"
    if "?versionId=" in name:
        return "its name has ?versionId=, which S3 takes for a version"
    if len(encoded) > _LONGEST_NAME or max(len(part.encode()) for part in parts) > _LONGEST_PART:
        return f"its name is longer than {_LONGEST_NAME} bytes, or a part of it than {_LONGEST_PART}"
    if name == MANIFEST:
        return "the store keeps the list of files under this name. Rename it, or put it into a folder"
    return None


def printable(name: str) -> str:
    """A name as it can be shown on one line of any terminal."""
    return name if name.isprintable() else ascii(name)


def refuse(place: str, wrong: list[str]) -> None:
    """Raise `ArgumentError` if there is anything wrong with what is at `place`, naming the first few."""
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise ArgumentError(
            f"{place} cannot be a data set as it is:\n  " + "\n  ".join(wrong[:_SHOWN]) + f"{more}\n"
            "Rename, replace or remove these, and run again."
        )


def check_dataset_name(name: str) -> str:
    """The name of a data set in Unicode's composed form, which is how it stands in keys and listings.

    Letters and digits of any language, spaces and `._-+,&'()`: what keys, addresses and `NAME@DIGEST` take as they
    are. Raises `ArgumentError` for any other.
    """
    name = unicodedata.normalize("NFC", name)
    allowed = all(letter.isalnum() or letter in " ._-+,&'()" for letter in name)
    if not allowed or not name[:1].isalnum() or name.endswith((" ", ".")) or len(name) > _LONGEST_DATASET_NAME:
        suggestion = re.sub(r"[^\w ._-]+", "-", name).strip(" ._-")[:_LONGEST_DATASET_NAME] or "data"
        raise ArgumentError(
            f"{printable(name)!r} cannot be the name of a data set: expected at most {_LONGEST_DATASET_NAME} letters, "
            f"digits, spaces and ._-+,&'(), the first a letter or digit.\nName it with --dataset-name {suggestion!r}."
        )
    return name
