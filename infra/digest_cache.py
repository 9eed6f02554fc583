"""The SHA-256 that files had when they were last read: what has not changed since is not read again."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_FOR_OTHERS = 5.0
_TABLE = "CREATE TABLE IF NOT EXISTS digests (place BLOB PRIMARY KEY, version TEXT NOT NULL, sha256 TEXT NOT NULL)"


class DigestCache:
    """Digests by place and version, in a file that several processes may use at once.

    A place is a path or an address, a version whatever changes with the bytes that are there. The cache saves time
    and nothing else: if its file cannot be used, every digest is unknown, and no error is raised.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: list[tuple[bytes, str, str]] = []
        self._written = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_SECONDS_FOR_OTHERS)
            self._connection.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._connection:
            self._connection.close()

    def get(self, place: bytes, version: str) -> str | None:
        """The digest of what is at `place`, if it was noted for this version."""
        if not self._connection:
            return None
        try:
            with closing(
                self._connection.execute("SELECT version, sha256 FROM digests WHERE place = ?", (place,))
            ) as rows:
                found = rows.fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        return str(found[1]) if found and found[0] == version else None

    def put(self, place: bytes, version: str, sha256: str) -> None:
        """Note a digest. It is written within a second of the next one, or at the end."""
        self._unwritten.append((place, version, sha256))
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        # All at once: a transaction that stayed open while a large file is read would keep others waiting.
        if self._connection and self._unwritten:
            try:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", self._unwritten)
            except sqlite3.Error as error:
                self._give_up(error)
        self._unwritten.clear()
        self._written = time.monotonic()

    def _give_up(self, error: Exception) -> None:
        LOGGER.warning("Digests are not remembered, so files are read again each time: %s: %s", self._path, error)
        if self._connection:
            self._connection.close()
        self._connection = None
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self._path.unlink(missing_ok=True)  # It is no database: the next process makes a new one.
