"""The installed PostgreSQL, with files of our own, on a unix socket among them: no port, no password, no other guests.

`programs` is the folder of its programs, or None for the newest that is installed. It must have the extension pg_trgm,
which Prefect's tables need.
"""

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from infra.errors import SettingsError

USER = "pipeline"
"""The role that owns the databases; the folder's mode decides who may be it."""


def command(folder: Path, programs: Path | None = None) -> tuple[str, ...]:
    """The server over `folder`, in the foreground."""
    # An empty list of addresses: no TCP at all.
    files = str(folder)
    return (*_as_ordinary_user(), _program("postgres", folder, programs), "-D", files, "-k", files, "-h", "")


def answers(folder: Path, programs: Path | None = None) -> bool:
    """True if the server over `folder` takes connections."""
    asked = [_program("pg_isready", folder, programs), "-q", "-t", "3", "-h", str(folder), "-U", USER, "-d", "postgres"]
    return subprocess.run(asked, check=False).returncode == 0


def prepare(folder: Path, databases: tuple[str, ...], programs: Path | None = None) -> None:
    """Make the files of a new server with these databases, unless they are there. Raises `SettingsError`."""
    if len(bytes(folder / ".s.PGSQL.5432")) > 103:
        raise SettingsError(
            f"PostgreSQL's socket would be in {folder}, and the name of a socket has at most 103 bytes.\n"
            "Set PIPELINE_HOME to a folder with a shorter name."
        )
    if folder.exists():
        _program("postgres", folder, programs)
        return
    initdb, server = (_program(name, folder, programs) for name in ("initdb", "postgres"))
    # Under another name until it is whole: a server that was killed while it made its files would never start.
    incoming = folder.with_name(f".{folder.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(mode=0o700)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(incoming, nobody.pw_uid, nobody.pw_gid)
    _run(incoming, initdb, "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "-D")
    for name in databases:
        _run(incoming, server, "--single", "postgres", "-D", statement=f"CREATE DATABASE {name}")
    _run(incoming, server, "--single", databases[-1], "-D", statement="CREATE EXTENSION pg_trgm")
    incoming.rename(folder)


def _run(folder: Path, program: str, *arguments: str, statement: str = "") -> None:
    command = [*_as_ordinary_user(), program, *arguments, str(folder)]
    done = subprocess.run(command, input=f"{statement}\n", capture_output=True, text=True)
    # In its single-user mode postgres exits with 0 whatever the statement came to.
    if done.returncode or "ERROR:" in done.stderr:
        raise SettingsError(f"PostgreSQL's files could not be made ({shlex.join(command)}):\n{done.stderr.strip()}")


def _program(name: str, folder: Path, programs: Path | None) -> str:
    """A program of the PostgreSQL in `programs`, or of the newest installed one that can use the files in `folder`."""
    made_by = folder / "PG_VERSION"
    wanted = made_by.read_text().strip() if made_by.is_file() else ""
    if programs is not None:
        if wanted and (given := _major_version(programs)) != wanted:
            raise SettingsError(
                f"{folder} was made by PostgreSQL {wanted}, and STACK_POSTGRES_BIN is {programs}, PostgreSQL {given}.\n"
                f"Name the programs of version {wanted}, or unset it to use the installed one."
            )
        return str(programs / name)
    installed = {
        match[1]: candidate.parent
        for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
        for candidate in Path("/").glob(f"{pattern[1:]}/postgres")
        if (match := re.search(r"(\d+)/bin$", str(candidate.parent)))
    }
    chosen = wanted or max(installed, key=int, default="")
    if chosen not in installed:
        raise SettingsError(
            f"PostgreSQL {wanted}{' ' if wanted else ''}is not installed, and both servers keep their state in it"
            f"{f' ({folder} was made by that version)' if wanted else ''}.\n"
            "Debian and Ubuntu: apt-get install postgresql. macOS: brew install postgresql@17.\n"
            "One elsewhere: STACK_POSTGRES_BIN=/folder/of/its/programs."
        )
    return str(installed[chosen] / name)


@cache
def _major_version(programs: Path) -> str:
    told = subprocess.run([str(programs / "postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    return re.sub(r"(?s)^.*?\) (\d+).*$", r"\1", told)  # As in "postgres (PostgreSQL) 18.6 (Debian 18.6-1)".


def _as_ordinary_user() -> tuple[str, ...]:
    """What to put before a command: PostgreSQL refuses to be root, for whom there is `nobody`.

    It keeps root's right to pass folders, or it could reach neither its files nor its programs in a home of mode
    0700. It asks for its programs by access(), and the kernel leaves that right out there unless it is told not to
    touch rights when the user changes; of all others the next program is rid all the same.
    """
    if os.geteuid() != 0:
        return ()
    if sys.platform != "linux" or shutil.which("setpriv") is None:
        raise SettingsError("PostgreSQL does not run as root, and setpriv (util-linux) is not here to change that.")
    nobody, right = pwd.getpwnam("nobody"), "+dac_override"
    become = (f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--securebits=+no_setuid_fixup")
    # Another user's process loses what it was to be told at its parent's death.
    told = "--pdeathsig=INT"
    return ("setpriv", *become, f"--inh-caps={right}", f"--ambient-caps={right}", told)
