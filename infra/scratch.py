"""Folders for work in progress, named after the process that made them, so that those of dead ones can be told."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def make_folder(scratch: Path) -> Path:
    """A new folder under `scratch`; whoever asks for it removes it or, if killed before, whoever asks next."""
    scratch.mkdir(parents=True, exist_ok=True)
    remove_dead_folders(scratch)
    return Path(tempfile.mkdtemp(prefix=f"job-{os.getpid()}-", dir=scratch))


@contextmanager
def temporary_folder(scratch: Path) -> Iterator[Path]:
    """A new folder under `scratch`, removed when the block ends."""
    folder = make_folder(scratch)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def dead_folders(scratch: Path) -> list[Path]:
    """The folders under `scratch` whose process was killed before it could remove them."""
    return [folder for folder in scratch.glob("job-*-*") if not psutil.pid_exists(int(folder.name.split("-")[1]))]


def remove_dead_folders(scratch: Path) -> None:
    """Remove them; several processes may do so at once."""
    for folder in dead_folders(scratch):
        shutil.rmtree(folder, ignore_errors=True)
