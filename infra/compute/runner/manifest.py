"""A manifest: which files there are, of what size and content. Its SHA-256 is the identity of a data set or a model.

Light enough for the flow's process, and shipped, so that what is brought is checked by the same lines everywhere.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class BadManifest(Exception):
    """Bytes that are no manifest, or files that are not what theirs says; the text names the file and the reason."""


@dataclass(frozen=True, order=True)
class FileEntry:
    """A file: its name with folders, parted by `/`; its size in bytes and the SHA-256 of its bytes."""

    name: str
    size: int
    sha256: str
    uri: str = ""
    """Where it lies, if that is not beside the manifest under its name."""


def manifest_bytes(entries: Iterable[FileEntry]) -> bytes:
    """The manifest in its one canonical form, whose SHA-256 is the identity of the files together."""
    return json.dumps({"files": list(map(_as_dict, sorted(entries)))}, sort_keys=True, separators=(",", ":")).encode()


def _as_dict(entry: FileEntry) -> dict[str, Any]:
    facts = {"name": entry.name, "size": entry.size, "sha256": entry.sha256}
    return facts | {"uri": entry.uri} if entry.uri else facts


def parse_manifest(data: bytes) -> list[FileEntry]:
    """The entries of a manifest; raises `BadManifest` if `data` is none, or names a file outside its folder."""
    try:
        entries = [
            FileEntry(str(f["name"]), int(f["size"]), str(f["sha256"]), str(f.get("uri", "")))
            for f in json.loads(data)["files"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadManifest(f"{MANIFEST} is not a manifest: {error!r}") from error
    if manifest_bytes(entries) != data:
        raise BadManifest(f"{MANIFEST} is not in its canonical form")
    for entry in entries:
        parts = entry.name.split("/")
        if "\\" in entry.name or any(part in ("", ".", "..") for part in parts):
            raise BadManifest(f"{MANIFEST} names {entry.name!r}, which is no path inside its folder")
    return entries


def files_sha256(entries: Iterable[FileEntry]) -> str:
    """The identity of these files together: 64 hexadecimal digits."""
    return hashlib.sha256(manifest_bytes(entries)).hexdigest()


def data_sha256(digests: Mapping[str, str]) -> str:
    """The identity of a training's data sets, given by name: that of the only one, one over several, `none` of none."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "\n".join(f"{name}={sha256}" for name, sha256 in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if lines else "none"


def file_entry(path: Path, name: str | None = None) -> FileEntry:
    """Size and SHA-256 of the file at `path`, read from it; `name` is its own where none is given."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(name or path.name, file.tell(), digest)


def is_intact(path: Path, entry: FileEntry) -> bool:
    """True if the file at `path` is there, and what `entry` says."""
    return path.is_file() and path.stat().st_size == entry.size and file_entry(path).sha256 == entry.sha256


def bytes_entry(name: str, content: bytes) -> FileEntry:
    """The entry of a file with this name and content."""
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def folder_entries(folder: Path) -> list[FileEntry]:
    """The files under `folder`, at any depth, by their paths relative to it."""
    return [
        file_entry(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
