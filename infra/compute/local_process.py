"""Compute: a child process on this machine.

Little is to be provisioned here, but the story is the same as on a cluster: ask what there is, run
the job, give everything back. What can take long is the start of the program (TensorFlow's import:
4 to 9 s), so a process can be started early, standing by for its job while other steps run.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import IO

import psutil

from infra.compute import Accelerator, ComputeDescription, Job, program_files, program_sha256
from infra.compute.runner.devices import visible_gpus
from infra.errors import ComputeUnavailable, TrainingFailed
from infra.scratch import make_folder, remove_dead_folders, remove_folder
from infra.settings import child_environment
from infra.terminal import Stopped

SECONDS_TO_STOP = 5.0
"""Between SIGTERM and SIGKILL; a program has nothing to save then, its checkpoints are on the store."""

NEEDED_DISK_BYTES = 500_000_000
"""The data set, the outputs, two checkpoints and the model take 50 MB; the rest is room to work."""


class LocalProcess:
    """Runs jobs as child processes of this one, in folders under `scratch`."""

    def __init__(self, scratch: Path, accelerator: Accelerator, environment: Mapping[str, str]) -> None:
        """`accelerator` is `auto` (a GPU if there is one), `cpu` or `gpu`; `environment` is added to our own."""
        self._scratch = scratch
        self._accelerator = accelerator
        hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if accelerator == "cpu" else {}
        self._environment = child_environment(**environment, **hidden)
        self._running: set[_Process] = set()

    cache: str | None = None
    job_identity: str | None = None
    price_per_hour = 0.0

    def gpu_seconds(self) -> Mapping[str, float]:
        """Nothing: nobody rents this machine by the hour."""
        return {}

    def check(self) -> None:
        """Nothing: `provision` looks, and takes no time."""

    def provision(self, tell: Callable[[str], None] = lambda line: None) -> ComputeDescription:
        """Look at what this machine has. Raises `ComputeUnavailable` without the GPU or the disk that is needed."""
        gpus = [] if self._accelerator == "cpu" else visible_gpus()
        if self._accelerator == "gpu" and not gpus:
            raise ComputeUnavailable(
                "A GPU was asked for (--accelerator gpu) and this machine shows none: nvidia-smi lists no device, or\n"
                "CUDA_VISIBLE_DEVICES hides it. Install the NVIDIA driver, or train on the CPU with --accelerator cpu."
            )
        self._scratch.mkdir(parents=True, exist_ok=True)
        remove_dead_folders(self._scratch)
        free = shutil.disk_usage(self._scratch).free
        if free < NEEDED_DISK_BYTES:
            raise ComputeUnavailable(
                f"{self._scratch} has {free / 1e6:.0f} MB of disk free, and a training needs "
                f"{NEEDED_DISK_BYTES / 1e6:.0f} MB.\nFree some, or move PIPELINE_HOME to a larger disk."
            )
        return ComputeDescription(
            target="this machine",
            accelerator=gpus[0] if gpus else "cpu",
            cpu_cores=usable_cores(),
            memory_bytes=psutil.virtual_memory().total,
            free_disk_bytes=free,
        )

    def stand_by(self, program: Path, command: str) -> None:
        """Start a process for a command of `program` that takes its arguments when `run` is called.

        At most one process stands by for a command; it ends by itself when this process does.
        """
        with _standing_by_lock:
            if (self._accelerator, command) not in _standing_by:
                process = _Process(self._scratch, program, command, self._environment)
                _standing_by[self._accelerator, command] = process

    def run(self, job: Job) -> Iterator[str]:
        """See `Compute.run`. The first line is that of a program which has started up."""
        command = job.arguments[0]
        with _standing_by_lock:
            process = _standing_by.pop((self._accelerator, command), None)
        if process and not process.is_for(self._scratch, job.program, self._environment):
            process.stop()
            process = None
        process = process or _Process(self._scratch, job.program, command, self._environment)
        self._running.add(process)
        try:
            process.start_job(job.arguments)
            yield from process.lines()
        finally:
            process.stop()
            self._running.discard(process)
        if process.told_to_stop:
            raise Stopped(signal.SIGTERM)
        if process.exit_code:
            raise _failure(job, process.exit_code)

    def release(self) -> None:
        """Stop the processes that stand by, and tell those to stop that run jobs of other threads."""
        for running in list(self._running):
            running.tell_to_stop()
        with _standing_by_lock:
            processes = [_standing_by.pop(key) for key in list(_standing_by) if key[0] == self._accelerator]
        for process in processes:
            process.stop()


class _Process:
    """A program's process in a folder of its own, started with `--standby COMMAND`."""

    def __init__(self, scratch: Path, program: Path, command: str, environment: Mapping[str, str]) -> None:
        self._folder = make_folder(scratch)
        self.told_to_stop = False
        shipped = self._folder / program.name
        for path in program_files(program):
            target = shipped / path.relative_to(program)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # Of the copy: the folder may be edited while the process stands by.
        self._made_for = (scratch, program_sha256(shipped), environment)
        temporary = self._folder / "tmp"  # What libraries leave there goes with the folder, however the program ends.
        temporary.mkdir()
        # The program ends at the end of its input, and we hold the other end of that pipe: even when
        # this process is killed outright, no training is left behind. A session of its own, so that
        # Ctrl-C in the terminal reaches us alone and the order of stopping is ours.
        self._process = subprocess.Popen(
            [sys.executable, "-m", program.name, "--standby", command],
            cwd=self._folder,
            env={**environment, "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def is_for(self, scratch: Path, program: Path, environment: Mapping[str, str]) -> bool:
        return self._made_for == (scratch, program_sha256(program), environment)

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def start_job(self, arguments: tuple[str, ...]) -> None:
        line = json.dumps({"arguments": list(arguments)}) + "\n"
        try:
            _pipe(self._process.stdin).write(line.encode())
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            pass  # It died before its job; lines() brings its last words, and the exit code says the rest.

    def lines(self) -> Iterator[str]:
        for line in _pipe(self._process.stdout):
            yield line.decode(errors="replace").rstrip("\r\n")
        self._process.wait()

    def tell_to_stop(self) -> None:
        """Who reads its lines sees it end."""
        self.told_to_stop = True
        _signal_group(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End the process and all that it started, and remove its folder."""
        if self._process.poll() is None:
            _signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_TO_STOP)
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()
        remove_folder(self._folder)


_standing_by: dict[tuple[Accelerator, str], _Process] = {}
_standing_by_lock = Lock()


@atexit.register
def _stop_all() -> None:
    """Of those that stand by for a flow that never began."""
    with _standing_by_lock:
        for process in _standing_by.values():
            process.stop()
        _standing_by.clear()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started with pipes"
    return stream


def _signal_group(leader: int, number: signal.Signals) -> None:
    # PermissionError: what macOS says of a group that has only zombies left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _failure(job: Job, code: int) -> TrainingFailed:
    what = f"The training program {job.program.name} on this machine"
    if code < 0:
        name = signal.Signals(-code).name
        hint = "\nThe kernel does that when memory runs out: see the system's log." if -code == signal.SIGKILL else ""
        return TrainingFailed(
            f"{what} was ended by {name}.{hint}\nRun the same command again: it continues after the last checkpoint."
        )
    return TrainingFailed(f"{what} ended with exit status {code}.", code)


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
