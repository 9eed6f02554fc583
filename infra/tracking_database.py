"""MLflow's database where it is a file of this machine: made whole, looked at before MLflow opens it, kept true.

MLflow writes the places of files into its database once, as absolute addresses. Those in PIPELINE_HOME follow it: when
the folder has been moved or copied, its database is corrected before anything is read from it.
"""

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from infra.errors import TrackerError
from infra.lock import hold

LOGGER = logging.getLogger(__name__)

WAIT_SECONDS = 120
"""How long a database may be locked by others before a call gives up."""

_ARTIFACTS = "/mlflow/artifacts/"
"""Below a home, where experiments keep their files, each in a folder of its name or, MLflow's own, of its number."""

_NETWORK_FILE_SYSTEMS = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.",
    "gfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "smb",
)


@dataclass(frozen=True)
class TrackingDatabase:
    """A SQLite file with MLflow's tables."""

    path: Path
    home: Path
    """PIPELINE_HOME; the files of experiments that the pipeline makes are below it, wherever the database is."""
    lock: Path
    """Held while the file is made."""

    def prepare(self, make: Callable[[str, str], None]) -> None:
        """Make the file if there is none, and see to it that what it says of places is true.

        `make` is to make MLflow's tables in the database at an address, with its experiments' files at another.

        Raises `TrackerError` for a file without MLflow's tables, which MLflow would fill with an empty history, and
        `sqlite3.Error` or `OSError` where it cannot be read or corrected.
        """
        if not self.path.exists():
            with hold(self.lock, on_wait=lambda _: None):
                if not self.path.exists():
                    self._create(make)
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
                size = self.path.stat().st_size
                found = f"holds {size:,} bytes and none of MLflow's tables" if size else "is empty (0 bytes)"
                raise TrackerError(
                    f"MLflow's database {self.path} {found}:\nits history was lost, or it is another program's file, "
                    "and MLflow would begin a new history in it.\nPut a copy of the right file there or, to begin "
                    f"anew, remove it: rm '{self.path}'"
                )
            if list(self._former_homes(database)):
                self._follow_home(database)
            self._set_journal(database)

    def why_slow(self) -> str:
        """What a call waits for, as far as it can be seen: another process that has locked the database."""
        holders = self.lock_holders()
        return f"it is locked by {holders}" if holders else ""

    def locked(self, error: Exception, attempt: str) -> TrackerError | None:
        """What to say if `error` is that the database was locked all the time."""
        if not re.search(r"database (table )?is locked", str(error).partition("\n[SQL")[0]):
            return None
        holders = self.lock_holders() or "another process, which has just let it go"
        return TrackerError(
            f"Could not {attempt}: {self.path} was locked for {WAIT_SECONDS} s, by {holders}.\n"
            "Let that process go on or end it, then run the same command again."
        )

    def lock_holders(self) -> str:
        """The other processes that keep everyone from writing, and what they are doing; empty: none is seen."""
        return " and ".join(map(_described, sorted(self._locking_pids())))

    def _locking_pids(self) -> set[int]:
        # SQLite's files and, in them, the bytes that who writes has locked (sqlite.org/fileformat2.html#walindexformat,
        # os.h: PENDING_BYTE).
        ranges = {}
        for path, first, last in ((self.path, 2**30, 2**30 + 511), (Path(f"{self.path}-shm"), 120, 122)):
            with suppress(OSError):
                ranges[str(path.stat().st_ino)] = range(first, last + 1)
        try:
            table = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return {one.pid for one in psutil.process_iter() if one.pid != os.getpid() and _has_open(one, self.path)}
        pids = set()
        for fields in map(str.split, table):
            if len(fields) != 8 or fields[3] != "WRITE":
                continue  # Who waits for a lock has an arrow more.
            bytes_locked = ranges.get(fields[5].rpartition(":")[2], range(0))
            ends = 2**63 if fields[7] == "EOF" else int(fields[7])
            if any(int(fields[6]) <= byte <= ends for byte in bytes_locked):
                pids.add(int(fields[4]))
        return pids - {os.getpid()}

    def _create(self, make: Callable[[str, str], None]) -> None:
        # MLflow takes a database with half of its tables, left by a process that was killed, for an
        # outdated one, and refuses it for ever. So it gets its name when it is whole.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"unfinished-{self.path.name}")
        for leftover in self.path.parent.glob(f"{unfinished.name}*"):
            leftover.unlink()
        make(f"sqlite:///{unfinished}", f"{self.home.as_uri()}{_ARTIFACTS.rstrip('/')}")
        unfinished.replace(self.path)

    def _former_homes(self, database: sqlite3.Connection) -> Iterator[str]:
        """The addresses of other homes in which experiments that are the pipeline's would keep their files."""
        seen = {self.home.as_uri()}
        for name, number, location in database.execute(
            "SELECT name, experiment_id, artifact_location FROM experiments"
        ):
            root, _, folder = (location or "").rpartition(_ARTIFACTS)
            if root in seen or not root.startswith("file://") or folder not in (name, str(number)):
                continue
            former = _folder(root)
            if former.exists() and self.home.exists() and former.samefile(self.home):
                continue  # By another name, which others may go by.
            # A database that stands elsewhere may serve several homes.
            is_here = not former.exists() and Path(f"{self.home}{_ARTIFACTS}{folder}").exists()
            if is_here or self.path.is_relative_to(self.home):
                seen.add(root)
                yield root

    def _follow_home(self, database: sqlite3.Connection) -> None:
        """Let every address below a former home name the same place below this one; all of them, or none."""
        database.execute("BEGIN IMMEDIATE")
        columns = [
            (table, column)
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for _, column, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall()
            if any(text in kind.upper() for text in ("CHAR", "TEXT", "JSON"))
        ]
        for root in list(self._former_homes(database)):
            plain = f"file://{_folder(root)}"  # As fsspec writes it; and both may stand in JSON.
            for spelling in {root, plain, json.dumps(plain)[1:-1]}:
                for table, column in columns:
                    database.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", :was, :now) '
                        f'WHERE instr("{column}", :was)',
                        {"was": f"{spelling}/", "now": f"{self.home.as_uri()}/"},
                    )
            LOGGER.warning(
                "PIPELINE_HOME was %s when MLflow's database last named its files: corrected to %s",
                _folder(root),
                self.home,
            )
        database.execute("COMMIT")

    def _set_journal(self, database: sqlite3.Connection) -> None:
        """Let those who read go on while somebody writes, which takes memory that all of them share."""
        wanted = "delete" if _is_on_network(self.path) else "wal"
        if database.execute("PRAGMA journal_mode").fetchone()[0] == wanted:
            return
        # Refused while others use it, and on a disk that may only be read: it serves as it is.
        with suppress(sqlite3.OperationalError):
            database.execute("PRAGMA busy_timeout = 0")
            database.execute(f"PRAGMA journal_mode = {wanted}")


def wait_for_locks() -> None:
    """Let MLflow wait `WAIT_SECONDS` for a SQLite file that is locked, instead of 5 or 20, in this process."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _wait_on_connect):
        event.listen(Engine, "connect", _wait_on_connect)
        event.listen(Engine, "before_cursor_execute", _wait_in_session, retval=True)


def _wait_on_connect(connection: object, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")


def _wait_in_session(_: object, __: object, statement: str, parameters: object, *___: object) -> tuple[str, object]:
    # MLflow sets it anew in each of its sessions.
    if statement.startswith("PRAGMA busy_timeout"):
        statement = f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}"
    return statement, parameters


_DOING = {
    psutil.STATUS_STOPPED: "is stopped (kill -CONT {pid} lets it go on, kill -KILL {pid} ends it)",
    psutil.STATUS_TRACING_STOP: "is held by a debugger",
    psutil.STATUS_DISK_SLEEP: "waits for its disk",
    psutil.STATUS_RUNNING: "is computing",
    psutil.STATUS_SLEEPING: "is waiting for something",
    psutil.STATUS_ZOMBIE: "has just ended",
}


def _described(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        program, *words = process.cmdline() or [process.name()]
        doing = _DOING.get(process.status(), process.status()).format(pid=pid)
    except (psutil.Error, ValueError):
        return f"process {pid}, which cannot be looked at from here"
    # Further words may be long, or secret.
    shown = " ".join(" ".join([Path(program).name, *words[:4]]).split())[:100]
    return f"process {pid} ({shown}), which {doing}"


def _has_open(process: psutil.Process, path: Path) -> bool:
    with suppress(psutil.Error):
        return any(file.path == str(path) for file in process.open_files())
    return False


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def _is_on_network(path: Path) -> bool:
    mounts = [one for one in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(one.mountpoint)]
    kind = max(mounts, key=lambda one: len(one.mountpoint)).fstype if mounts else ""
    return kind.startswith(_NETWORK_FILE_SYSTEMS)
