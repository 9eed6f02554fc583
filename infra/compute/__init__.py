"""Where training programs run: one protocol, a module per kind of compute."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import ArgumentError, SettingsError
from infra.settings import Settings

Accelerator = Literal["auto", "cpu", "gpu"]


ComputeName = Literal["local", "ray"]


class ClusterOptions(BaseModel):
    """What a cluster is asked for, and how long and how much; nothing of it means anything on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: int = Field(1, ge=0, description="GPUs that the job holds; the program computes on one.")
    gpu_type: str | None = Field(
        None,
        pattern=r"^[\w-]{1,50}$",
        description="Kind of GPU, where the cluster has several, as Ray names it: T4, L4, A10G, A100, H100 ...",
    )
    provision_timeout: float = Field(1200, gt=0, description="Seconds to wait for a node that is ready.")
    lease_timeout: float = Field(
        600, ge=5, description="Seconds after which a job whose flow has died ends itself, its checkpoint kept."
    )
    max_restarts: int = Field(3, ge=0, description="Nodes that may be lost in a training before it fails.")
    price_per_hour: float | None = Field(None, ge=0, description="What an hour of one GPU costs, in your currency.")
    max_cost: float | None = Field(
        None, gt=0, description="Stop, the checkpoint kept, when the training has cost this; needs a price per hour."
    )


DEFAULT_OPTIONS = ClusterOptions()


@dataclass(frozen=True)
class Workload:
    """What a compute will be asked to run, as far as that is known before the job is."""

    program: Path
    command: str
    requirements: tuple[str, ...]
    """`name==version` of what the program imports."""
    identity: str
    """The same for the same training of the same services: how a job is found again. Letters, digits, dashes."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of this process, that the program must find in its own; secrets."""


@dataclass(frozen=True)
class Job:
    """A program to run, as every compute understands it."""

    program: Path
    """A folder with a `__main__.py`; its `program_files` are shipped and run as `python -m NAME_OF_THE_FOLDER`."""
    arguments: tuple[str, ...]
    """The first is the program's command."""
    gpu_seconds_before: Mapping[str, float] = field(default_factory=dict)
    """What jobs of the same training have held before, by job."""


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

    cache: str | None
    """Folder there for what is worth keeping between jobs; None where what is read is here already."""

    @property
    def job_identity(self) -> str | None:
        """What its jobs are known by, where the next flow finds that of a dead one; None where they end with theirs."""

    @property
    def price_per_hour(self) -> float:
        """What an hour of one GPU costs."""

    def check(self) -> None:
        """Raise `SettingsError` or `ComputeUnavailable` if it can be told at once that no job will run."""

    def provision(self, tell: Callable[[str], None] = ...) -> ComputeDescription:
        """Block until a job can run, telling what happens; raise `ComputeUnavailable` if none ever will."""

    def gpu_seconds(self) -> Mapping[str, float]:
        """Seconds of GPU that the jobs have held, by job; empty where nobody counts."""

    def run(self, job: Job) -> Iterator[str]:
        """Run `job` and yield its output line by line; raise `TrainingFailed` unless it exits with 0.

        An abandoned iterator (closed, or its reader raised) stops the job.
        """

    def stand_by(self, program: Path, command: str) -> None:
        """Start up what `run` will need for this command of the program, if that can be done ahead; returns at once."""

    def release(self) -> None:
        """Give back whatever the other methods took."""


def compute_target(
    name: ComputeName, settings: Settings, accelerator: Accelerator, options: ClusterOptions, workload: Workload
) -> Compute:
    """The compute that goes by `name`. Raises `SettingsError` if what it needs is not there."""
    check_options(name, options)
    if name == "local":
        return this_machine(settings, accelerator)
    if settings.ray_cluster_file:
        from infra.compute.ray_launcher import LaunchedCluster

        return LaunchedCluster(settings.ray_cluster_file, settings, accelerator, options, workload)
    from infra.compute.ray_cluster import RayCluster

    if not settings.ray_jobs_url:
        raise SettingsError(
            "--compute ray needs a cluster, and none is named.\n"
            "Set RAY_JOBS_URL to the address of its dashboard, such as http://127.0.0.1:8265, or RAY_CLUSTER_FILE to\n"
            "a file for Ray's launcher, such as infra/ray-cluster.yaml."
        )
    return RayCluster(settings.ray_jobs_url, settings, accelerator, options, workload)


def this_machine(settings: Settings, accelerator: Accelerator) -> Compute:
    """The compute that is always there."""
    from infra.compute.local_process import LocalProcess

    return LocalProcess(settings.scratch_folder, accelerator, {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri})


def check_options(name: ComputeName, options: ClusterOptions, given: bool = False) -> None:
    """Raise `ArgumentError` for options that mean nothing there; `given`: they were named one by one, as flags are."""
    told = [
        field
        for field in ClusterOptions.model_fields
        if getattr(options, field) != getattr(DEFAULT_OPTIONS, field) or (given and field in options.model_fields_set)
    ]
    if name == "local" and told:
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in told)
        raise ArgumentError(f"{flags}: only a cluster knows what to do with that.\nAdd --compute ray, or leave it out.")
    if options.gpu_type and not options.gpus:
        raise ArgumentError(f"--gpu-type {options.gpu_type} asks for a GPU, and --gpus is 0.\nAsk for one: --gpus 1.")
    if options.max_cost is not None and options.price_per_hour is None:
        raise ArgumentError("--max-cost needs to know what an hour costs.\nAdd --price-per-hour.")


NOT_OF_A_PROGRAM = (
    ".*",
    "__pycache__",
    "*.py[co]",
    *("Thumbs.db", "desktop.ini", "Icon\r"),
    *("*~", "#*#", "*.swp", "*.bak", "*.tmp", "*.orig", "*.rej"),
)
"""Names of files and folders that others leave in a program's folder: settings and secrets, Python, file managers,
editors and merges. Names alone decide, so that a program is the same in a git checkout, without git and on a node."""


def program_files(program: Path) -> list[Path]:
    """The files that make a program, in a fixed order: what is hashed, shipped and kept with its runs.

    All of its folder but what has a name of `NOT_OF_A_PROGRAM`, or lies in a folder that has.
    """
    return sorted(path for path in program.rglob("*") if path.is_file() and not _is_left_out(path.relative_to(program)))


def _is_left_out(path: Path) -> bool:
    return any(fnmatchcase(part, pattern) for part in path.parts for pattern in NOT_OF_A_PROGRAM)


def program_sha256(program: Path) -> str:
    """SHA-256 over the names and bytes of a program's files: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in program_files(program):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(program).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()
