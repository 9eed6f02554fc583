"""A job on a cluster: what it consists of, its submission, its status and its log, its end.

Logs are read whole again and again, not tailed: Ray's `tail_job_logs` has no deadline, ends without a word when a
tunnel breaks, and begins at the log's start anyway.
"""

import json
import logging
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.compute import ComputeDescription, Workload, program_files
from infra.compute.ray_dashboard import GPU_TYPE, Refused, first_line
from infra.compute.ray_lease import holder
from infra.compute.runner.output import EVENT, telling
from infra.errors import ComputeUnavailable, TrainingFailed
from infra.requirements import locked
from infra.settings import PROJECT_ROOT

ACTIVE = ("PENDING", "RUNNING")
POLL_SECONDS = 0.5
SECONDS_TO_STOP = 30.0
"""Within which Ray reports a job as stopped; it sends SIGKILL 3 s after SIGTERM."""

RUNNER = Path(__file__).with_name("runner")
LOCK, CUDA_LOCK = PROJECT_ROOT / "requirements.lock", PROJECT_ROOT / "requirements-cuda.lock"
"""What a node may install, each package by its hash."""

NODE_LINE = "\x1d"
"""What begins a line of the node's own: a word, and facts in JSON."""
STANDING_BY = "standing by"
"""What a program says that waits for its order."""

LOGGER = logging.getLogger(__name__)


def make_package(place: Path, workload: Workload, gpu: bool, **told: Any) -> None:
    """Put into the folder `place` the program, the runner with the node's part, and what that is told.

    No two jobs may be told the same, or they have the same package: Ray removes one that the last job leaves, and has
    been seen to do so under a job that was just starting with it.
    """
    for program in {RUNNER.name: RUNNER, workload.program.name: workload.program}.values():
        for path in program_files(program):
            target = place / program.name / path.relative_to(program)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)  # With its mode, for a command may be a script that is executed.
    lock, required = LOCK.read_text(), workload.requirements
    cuda = CUDA_LOCK.read_text() if gpu and any(line.startswith("tensorflow==") for line in required) else ""
    request = {
        "program": workload.program.name,
        "command": workload.command,
        "requirements": list(required),
        "lock": locked(required, lock) + cuda,
        "uv": locked([f"uv=={version('uv')}"], lock),
        "gpu": gpu,
        # In the package, which Ray shows to nobody and which is this job's alone.
        "variables": dict(workload.variables),
        **told,
    }
    path = place / "request.json"
    path.touch(0o600)
    path.write_text(json.dumps(request))


def submit(client: Any, job: str, package: Path, asked: Mapping[str, float]) -> None:
    """Submit the job, unless the cluster knows it already; `asked` are resources. Raises `ComputeUnavailable`."""
    try:
        client.submit_job(
            # Ray hands it to a shell.
            entrypoint=shlex.join(["python", "-m", "runner.node"]),
            submission_id=job,
            # Everyone who reaches the cluster can read what stands here.
            runtime_env={"working_dir": str(package)},
            metadata={"holder": holder()},
            entrypoint_num_cpus=asked["CPU"],
            entrypoint_num_gpus=asked["GPU"],
            entrypoint_resources={name: count for name, count in asked.items() if name.startswith(GPU_TYPE)},
        )
    except (ComputeUnavailable, RuntimeError) as error:
        if "already exists" not in str(error):
            raise ComputeUnavailable(
                f"The Ray cluster did not take job {job}: {error}\nIts dashboard and the logs of its head say more."
            ) from error


class WatchedJob:
    """What was read of its log is skipped by number, so that a connection that broke costs nothing."""

    def __init__(self, client: Any, job: str, patience_seconds: float) -> None:
        """Asks nothing yet; the cluster may be silent for so many seconds."""
        self._client, self.name, self._patience = client, job, patience_seconds
        self._answered = time.monotonic()
        self._seen = 0
        self._new: list[str] = []
        self._last = ""
        self.started_at: float | None = None
        """By the node's clock; None before the job has a node."""
        self.state = ""
        """Where it is, and what is done there."""
        self.node: dict[str, Any] | None = None
        """What the node is."""
        self.stands_by = False
        self._refused: str | None = None
        self._ended: str | None = None

    def look(self) -> Any:
        """What Ray says of the job, with its log read as far as it is; None while the cluster is silent.

        Raises `ComputeUnavailable` once it has been silent for too long.
        """
        try:
            info = self._client.get_job_info(self.name)
            if info.status != "PENDING":
                self._read()
        except ComputeUnavailable:
            if time.monotonic() - self._answered > self._patience:
                raise
            return None
        self._answered = time.monotonic()
        return info

    def _read(self) -> None:
        try:
            lines = (self._client.get_job_logs(self.name) or "").split("\n")
        except Refused:
            return  # Not there yet, or gone with its node.
        for line in lines[self._seen : -1]:
            self._take(line.rstrip("\r"))
        self._seen = max(self._seen, len(lines) - 1)
        self._last = lines[-1]

    def _take(self, line: str) -> None:
        # What the program wrote of a line before it was ended may stand before.
        before, mark, said = line.partition(NODE_LINE)
        self.stands_by = self.stands_by or line.partition(EVENT)[0] == STANDING_BY
        if before or not mark:
            self._new.append(before)
        if not mark:
            return
        what, _, facts_text = said.partition(" ")
        facts = json.loads(facts_text)
        match what:
            case "started":
                self._new.clear()  # Of Ray's own lines.
                self.started_at, self.state = float(facts["at"]), f"on node {facts['host']}"
            case "environment":
                self.state = f"{self.state.partition(':')[0]}: {facts}"
                self._new.append(f"environment: {facts}")
            case "node":
                self.node = facts
                seconds = facts["preparing_seconds"]
                self._new.append(telling(f"preparing took {seconds:.1f} s", took={"preparing": seconds}))
            case "refused":
                self._refused = facts
            case "ended":
                self._ended = facts
            case "trouble":
                self._new.append(f"cannot look after the lease: {facts}")

    def new_lines(self) -> Iterator[str]:
        """The program's lines since the last call."""
        lines, self._new = self._new, []
        yield from lines

    def rest(self) -> Iterator[str]:
        """All that is left once the job has ended, a last line without its end among it."""
        try:
            self._read()
            if self._last:
                self._take(self._last)
        except ComputeUnavailable as error:
            LOGGER.warning("The end of the log of job %s is lost with its node: %s", self.name, first_line(error))
        yield from self.new_lines()

    def description(self, cluster: str, more: str) -> ComputeDescription:
        """The node, once it has said what it is; `more` is added to that."""
        node = self.node or {}
        versions = ", ".join(f"{name} {found}" for name, found in node["versions"].items())
        return ComputeDescription(
            target=f"node {node['host']} of the Ray cluster at {cluster} ({versions}{more})",
            **{name: node[name] for name in ("accelerator", "cpu_cores", "memory_bytes", "free_disk_bytes")},
        )

    def why_it_ended(self, info: Any) -> str:
        """Before the program stood by, with the last that was said."""
        why = self._refused or self._ended or first_line(info.message or "no reason was given")
        return why + "".join(f"\n  {line.partition(EVENT)[0]}" for line in self._new[-5:])

    def outcome(self, info: Any, what: str) -> str | None:
        """Why a job that has ended lost its node; None if it ended well. `what` is what ran there, in words.

        Raises `ComputeUnavailable` if it was not started, `TrainingFailed` for every other end.
        """
        code = info.driver_exit_code
        if info.status == "SUCCEEDED":
            return None
        if self._refused:
            raise ComputeUnavailable(f"{what} was not started: {self._refused}.")
        if self._ended:
            raise TrainingFailed(f"{what} was ended: {self._ended}.\nThe last checkpoint is kept: run again.")
        if info.status == "STOPPED":
            raise TrainingFailed(f"{what} was stopped by somebody else.\nThe last checkpoint is kept: run again.")
        if code is None or node_died(info):
            return first_line(info.message or "its node is gone")
        if code >= 128 and code != 143:
            raise TrainingFailed(
                f"{what} was ended by signal {code - 128}.\nRun the same command again: it continues after the last "
                "checkpoint."
            )
        raise TrainingFailed(f"{what} ended with exit status {code}.", code)


def node_died(info: Any) -> bool:
    """True if a job ended with its node."""
    return "ACTOR_DIED" in str(info.error_type)


def stop_job(client: Any, job: str) -> None:
    """End a job and wait until the cluster says so; raises `ComputeUnavailable` if it does not."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    status = client.get_job_status(job)
    if status not in ACTIVE:
        return
    client.stop_job(job)
    if status == "PENDING":
        _withdraw_demand(client, job)
    while client.get_job_status(job) in ACTIVE:
        if time.monotonic() > deadline:
            raise ComputeUnavailable(f"Job {job} has not ended {SECONDS_TO_STOP:g} s after it was told to.")
        time.sleep(POLL_SECONDS)


def _withdraw_demand(client: Any, job: str) -> None:
    """End a job that waits for a node.

    Ray's own stopping of a job is a message that waits with it: the demand would stay, and a node would come for
    nothing, today or as soon as there is one. What waits is an actor, which a job on the head ends by its name.
    """
    actor = json.dumps(f"_ray_internal_job_actor_{job}")
    code = f"import ray; ray.init(); ray.kill(ray.get_actor({actor}, namespace='SUPERVISOR_ACTOR_RAY_NAMESPACE'))"
    client.submit_job(entrypoint=shlex.join(["python", "-c", code]), submission_id=f"end-{job}-{secrets.token_hex(3)}")
