"""The SHA-256 that files had when they were last read: what has not changed since is not read again."""

import logging
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

LOGGER = logging.getLogger(__name__)

_SECONDS_FOR_OTHERS = 5.0
_TABLE = "CREATE TABLE IF NOT EXISTS digests (place BLOB PRIMARY KEY, version TEXT NOT NULL, sha256 TEXT NOT NULL)"


def file_version(found: os.stat_result) -> str:
    """What changes with the bytes of a file: its size, inode, and times of change of bytes and of inode."""
    # The inode's own time too: it cannot be set, as that of the bytes is by whoever copies times along.
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


class DigestCache:
    """Digests by place and version, in a file that several processes may use at once.

    A place is a path or an address, a version whatever changes with the bytes that are there. The cache saves time
    and nothing else: if its file cannot be used, every digest is unknown, and no error is raised.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each digest is there at once, for whoever is killed later. Without waiting for the disk: what a power
            # failure takes is read again.
            self._connection = sqlite3.connect(path, timeout=_SECONDS_FOR_OTHERS, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            self._connection.close()

    def get(self, place: bytes, version: str) -> str | None:
        """The digest of what is at `place`, if it was noted for this version."""
        found = self._execute("SELECT sha256 FROM digests WHERE place = ? AND version = ?", place, version)
        return str(found[0][0]) if found else None

    def put(self, place: bytes, version: str, sha256: str) -> None:
        """Note a digest."""
        self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", place, version, sha256)

    def _execute(self, statement: str, *values: bytes | str) -> list[tuple[str]]:
        try:
            return self._connection.execute(statement, values).fetchall() if self._connection else []
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: Exception) -> None:
        LOGGER.warning("Digests are not remembered, so files are read again each time: %s: %s", self._path, error)
        if self._connection:
            self._connection.close()
        self._connection = None
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._path.unlink(missing_ok=True)  # It is no database: the next process makes a new one.
