"""An environment of a program's own: built from a list of versions and hashes, once on each machine, with uv.

An index, or a folder of wheels, is named in uv's own variables (UV_INDEX_URL, UV_FIND_LINKS, UV_NO_INDEX ...); pip,
which builds it where there is no uv, has the like (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX).
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .exits import RunnerError

MARKER = ".complete"
"""In an environment, written last: the digest of its list."""

OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_LINES_SHOWN = 6


def build(lock_text: str, python: str | None, folder: Path, rebuild: bool, tell: Callable[[str], None]) -> Path:
    """The folder of an environment with exactly the packages of `lock_text`; its Python is `bin/python` in it.

    It lies under `folder`, named by the digest of the list, the version of Python (its first two numbers count; None:
    that of this process) and the kind of machine. It is built if it is not there, or is broken, or with `rebuild`;
    whoever comes second waits for the first. A program that runs in it during a rebuild goes on: the new one, of the
    very same files, takes the place of the old one at once. Raises `RunnerError` with the reason if it cannot be built.
    """
    python = ".".join(python.split(".")[:2]) if python else OWN_PYTHON
    digest = hashlib.sha256("\n".join((python, sysconfig.get_platform(), lock_text)).encode()).hexdigest()
    environment = folder / digest[:16]
    if not rebuild and _is_whole(environment, digest):
        return environment
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f"{environment.name}.lock", tell) as lock:
        if not rebuild and _is_whole(environment, digest):
            return environment
        packages = len(re.findall(r"^[^\s#-]", lock_text, re.MULTILINE))
        tell(f"Building an environment for Python {python}, packages: {packages}; this happens once")
        started = time.monotonic()
        new = folder / f"{environment.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            _build(lock_text, python, new, lock)
            _move_names(new, environment)
            (new / MARKER).write_text(digest)
            _replace(new, environment)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        tell(f"The environment is ready after {time.monotonic() - started:.0f} s")
    return environment


def _is_whole(environment: Path, digest: str) -> bool:
    """True if it was built to its end, and the Python that it stands on is still there and runs."""
    try:
        if (environment / MARKER).read_text() != digest:
            return False
        return (
            subprocess.run([environment / "bin" / "python", "-I", "-S", "-c", ""], capture_output=True).returncode == 0
        )
    except OSError:
        return False


@contextmanager
def _lock(path: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock at `path`; its descriptor is for children, which hold it on if they outlive us and write still."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("Waiting for another process, which is building the program's environment")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _build(lock_text: str, python: str, new: Path, lock: int) -> None:
    own = python == OWN_PYTHON
    uv = find_uv()
    try:
        if uv:
            # Of no project: that of the current folder would be another one's.
            quiet = ["--quiet", "--project", "/"]
            _run([uv, "venv", *quiet, "--python", sys.executable if own else python, str(new)], lock)
            install = [uv, "pip", "install", *quiet, "--compile-bytecode", "--python", str(new / "bin" / "python")]
        else:
            interpreter = sys.executable if own else shutil.which(f"python{python}")
            if interpreter is None:
                raise RunnerError(
                    f"The program's environment wants Python {python}, and there is neither that nor uv on this "
                    f"machine, whose own is {sys.version.split()[0]}.\nInstall either, or change the program's list."
                )
            _run([interpreter, "-m", "venv", str(new)], lock)
            install = [str(new / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        requirements = new / "requirements.txt"
        requirements.write_text(lock_text)
        # The list is whole: nothing is looked for beyond it.
        _run([*install, "--no-deps", "--require-hashes", "-r", str(requirements)], lock)
    except subprocess.CalledProcessError as error:
        raise RunnerError(
            f"The program's environment, for Python {python}, cannot be built under {new.parent}:\n"
            f"{_reason(error.stderr)}\nIt needs the package index, or what UV_INDEX_URL or UV_FIND_LINKS names, "
            "and room on the disk."
        ) from error


def find_uv() -> str | None:
    """The uv of this process's environment, else the one on the PATH, if there is any."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def _run(command: list[str], lock: int) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, pass_fds=[lock])


def _reason(stderr: str) -> str:
    """The first lines of the error, without the warnings before it and without logins in addresses."""
    said = re.sub(r"(?<=://)[^\s/@]+@", "***@", stderr)
    lines = [line for line in said.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if line.lower().startswith("error")), 0)
    return "\n".join(f"  {line.strip()}" for line in lines[first : first + _LINES_SHOWN])


def _move_names(new: Path, environment: Path) -> None:
    """Let the scripts of `new` name the folder where it is going to be: their first lines hold their Python's path."""
    for script in (new / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            if os.fsencode(new) in content:
                script.write_bytes(content.replace(os.fsencode(new), os.fsencode(environment)))


def _replace(new: Path, environment: Path) -> None:
    """Put `new` where `environment` is, and remove that."""
    old = environment.with_name(f"{environment.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if environment.exists():
        environment.rename(old)
    new.rename(environment)
    shutil.rmtree(old, ignore_errors=True)
