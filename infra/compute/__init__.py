"""Where training programs run: one protocol, a module per kind of compute."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from infra.settings import Settings

Accelerator = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True)
class Job:
    """A program to run, as every compute understands it."""

    program: Path
    """A folder with a `__main__.py`; it is shipped whole and run as `python -m NAME_OF_THE_FOLDER`."""
    arguments: tuple[str, ...]
    """The first is the program's command."""


@dataclass(frozen=True)
class ComputeDescription:
    """What `provision` got."""

    target: str
    """Name of the compute, and where it is."""
    accelerator: str
    """`cpu`, or the name of the GPU."""
    cpu_cores: int
    memory_bytes: int
    free_disk_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.accelerator}, {self.cpu_cores} cores, {self.memory_bytes / 1e9:.0f} GB of memory, "
            f"{self.free_disk_bytes / 1e9:.0f} GB of disk free"
        )


class Compute(Protocol):
    """A place to run jobs. Methods are called in this order; `release` always, and safely twice."""

    def provision(self) -> ComputeDescription:
        """Block until a job can run; raise `ComputeUnavailable` if none ever will."""

    def run(self, job: Job) -> Iterator[str]:
        """Run `job` and yield its output line by line; raise `TrainingFailed` unless it exits with 0.

        An abandoned iterator (closed, or its reader raised) stops the job.
        """

    def stand_by(self, program: Path, command: str) -> None:
        """Start up what `run` will need for this command of the program, if that can be done ahead; returns at once."""

    def release(self) -> None:
        """Give back whatever the other methods took."""


def compute_target(name: str, settings: Settings, accelerator: Accelerator) -> Compute:
    """The compute that goes by `name` (today `local`: this machine)."""
    from infra.compute.local_process import LocalProcess

    return {"local": LocalProcess}[name](
        settings.scratch_folder, accelerator, {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri}
    )


def program_files(program: Path) -> list[Path]:
    """The files that make a program, in a fixed order: all of its folder but what Python itself caches there."""
    return sorted(path for path in program.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def program_sha256(program: Path) -> str:
    """SHA-256 over the names and bytes of a program's files: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in program_files(program):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(program).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
