"""Compute: a Ray cluster whose autoscaler brings a node when a job asks for one, and takes it away when it is idle.

One job is the whole stay on a node: it prepares the environment, checks what Keras sees there, starts the program up
and lets it stand by (`node_program.py`), so that the node that was looked at is the one that trains. Flow and node
leave word for each other in the job's folder of the object store, `compute/<job>/`: the flow its order and its lease,
which it renews as long as it lives. A job whose lease nobody renews ends itself.

A job is known by what it is for, so that a flow that was killed and is started again finds its job and goes on
watching it. All requests have deadlines of their own: Ray's client has none.
"""

import ast
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

from infra.addresses import basic_authorization, is_http, is_loopback, split_login, without_secrets
from infra.compute import Accelerator, ClusterOptions, ComputeDescription, Job, Workload, program_files
from infra.compute.runner.output import telling
from infra.errors import ArgumentError, ComputeUnavailable, ObjectStoreError, SettingsError, TrainingFailed
from infra.object_store import ObjectStore
from infra.scratch import temporary_folder
from infra.settings import PROJECT_ROOT, Settings

NODE_PROGRAM = Path(__file__).with_name("node_program.py")
LOCKS = (PROJECT_ROOT / "requirements.lock", PROJECT_ROOT / "requirements-cuda.lock")
"""What a node may install, each package by its hash."""
REQUEST = "request.json"
NODE_LINE = "\x1d"
"""What begins a line of the node program itself."""
FOLDER = "compute"
"""Folder of the object store with a folder for each job."""

ACTIVE = ("PENDING", "RUNNING")
POLL_SECONDS = 0.5
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 5.0, 30.0
SECONDS_WITHOUT_ANSWER = 60.0
"""How long the cluster may be silent in the middle of a job: the restart of a head takes about as long."""
SECONDS_TO_STOP = 30.0
"""Within which Ray reports a job as stopped; it sends SIGKILL 3 s after SIGTERM."""

_GPU_TYPE = "accelerator_type:"
"""Before the name of a kind of GPU, of which each node that has one has 1 in Ray's books."""

LOGGER = logging.getLogger(__name__)


class RayCluster:
    """Runs jobs on the cluster at `jobs_url`, which exists already."""

    cache: str | None = "~/.cache/keras-at-scale/data"

    def __init__(
        self,
        jobs_url: str,
        settings: Settings,
        accelerator: Accelerator,
        options: ClusterOptions,
        workload: Workload,
        patience_seconds: float = SECONDS_WITHOUT_ANSWER,
    ) -> None:
        """Connects to nothing. Raises `SettingsError` for addresses that no node can reach, and without Ray."""
        self._url = jobs_url.rstrip("/")
        self._token: Path | None = None
        self._settings = settings
        self._accelerator = accelerator
        self._options = options
        self._workload = workload
        self._patience = patience_seconds
        self._client_or_none: Any = None
        self._store = ObjectStore(settings.object_store_uri)
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._released = Event()
        self._lease: _Lease | None = None
        self._job: str | None = None
        self._owned = False
        self._provisioned = 0.0
        self._held: dict[str, float] = {}
        check_addresses(settings)
        if accelerator == "gpu" and not options.gpus:
            raise ArgumentError("--accelerator gpu needs a GPU, and --gpus is 0.\nAsk for one with --gpus 1.")
        _jobs_client_class()

    @property
    def price_per_hour(self) -> float:
        """Of one GPU."""
        return self._options.price_per_hour or 0.0

    def gpu_seconds(self) -> Mapping[str, float]:
        """Seconds of GPU that this flow's jobs have held, by job."""
        return dict(self._held)

    # Provisioning

    def check(self) -> None:
        """Raise `ComputeUnavailable` or `SettingsError` if the cluster is not there, or cannot reach the services."""
        try:
            there = self._client._do_request("GET", "/api/version").json()["ray_version"]
        except (OSError, ValueError, KeyError) as error:
            raise ComputeUnavailable(
                f"The Ray cluster at {self._shown} does not answer ({type(error).__name__}).\n"
                "Start it, or correct RAY_JOBS_URL; where its dashboard listens on loopback, as it should, open a\n"
                "tunnel first: ray dashboard CLUSTER_FILE, or ssh -L 8265:127.0.0.1:8265 HEAD."
            ) from error
        import ray

        if there != ray.__version__:
            raise ComputeUnavailable(
                f"The Ray cluster at {self._shown} runs Ray {there}, and here is Ray {ray.__version__}.\n"
                "Both must be the same: install that version on one side."
            )
        head = next((node["node_ip"] for node in self._nodes() if node.get("is_head_node")), None)
        if head is not None and head not in own_addresses():
            check_addresses(self._settings, cluster_is_elsewhere=True)

    def provision(self, tell: Callable[[str], None] = LOGGER.info, deadline: float | None = None) -> ComputeDescription:
        """Ask for a node, wait until the program stands by there, and say what it is.

        `tell` is told what the cluster does meanwhile; it may take until `deadline`, by the monotonic clock, or as long
        as the options say. Raises `ComputeUnavailable` if no node comes in time, if none
        ever can, or if the node that came lacks what was asked for; nothing is held then.
        """
        deadline = deadline or time.monotonic() + self._options.provision_timeout
        try:
            while True:
                self._acquire(tell)
                log = _Log(self._client, self._job or "")
                if self._wait_for_node(log, tell, deadline):
                    return self._describe(log)
                # An autoscaler that ends an idle node does not look whether a job has just got it.
                tell(f"Job {self._job} lost its node before it was ready: another one is asked for")
                self._forget()
        except BaseException:
            self._stop("provisioning failed")
            raise

    def stand_by(self, program: Path, command: str) -> None:
        """Nothing: a job lets the program stand by as soon as it has a node."""

    def _acquire(self, tell: Callable[[str], None]) -> None:
        """Find the job of this workload, or submit it; it has a lease then."""
        self.check()
        known = self._attempts()
        active = [number for number, info in known.items() if info["status"] in ACTIVE]
        if active:
            self._job = f"{self._workload.identity}-{active[-1]}"
            # Of a flow that may live the job is that flow's; whoever trains, of all machines one, owns it in the end.
            self._owned = not self._holder_may_live(self._job)
            tell(f"Found job {self._job} on {self._shown}, {known[active[-1]]['status']}: going on with it")
            self._lease = _Lease(self._store, self._job, self._holder, self._options.lease_timeout)
            return
        number = max(known, default=0) + 1
        self._job = f"{self._workload.identity}-{number}"
        self._lease = _Lease(self._store, self._job, self._holder, self._options.lease_timeout)
        self._owned = True
        self._submit(self._job)
        tell(f"Submitted job {self._job} to {self._shown}: {_resources(self._asked)}")

    def _submit(self, job: str) -> None:
        request = {
            "folder": f"{self._store.uri}/{FOLDER}/{job}",
            "tracking_uri": self._settings.mlflow_tracking_uri,
            "program": self._workload.program.name,
            "command": self._workload.command,
            "requirements": list(self._workload.requirements),
            "gpu": self._wants_gpu,
            "lease_seconds": self._options.lease_timeout,
        }
        with temporary_folder(self._settings.scratch_folder) as folder:
            for path in (NODE_PROGRAM, *LOCKS):
                shutil.copyfile(path, folder / path.name)
            # It names the job, so that no two jobs have the same package: Ray removes one that the last job leaves,
            # and has been seen to do so under a job that was just starting with it.
            (folder / REQUEST).write_text(json.dumps(request))
            for path in program_files(self._workload.program):
                target = folder / self._workload.program.name / path.relative_to(self._workload.program)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            try:
                self._client.submit_job(
                    # Ray hands it to a shell.
                    entrypoint=shlex.join(["python", NODE_PROGRAM.name]),
                    submission_id=job,
                    # Addresses only: everyone who reaches the cluster can read this.
                    runtime_env={
                        "working_dir": str(folder),
                        "env_vars": {"MLFLOW_TRACKING_URI": self._settings.mlflow_tracking_uri},
                    },
                    metadata={"holder": self._holder},
                    entrypoint_num_cpus=self._asked["CPU"],
                    entrypoint_num_gpus=self._asked["GPU"],
                    entrypoint_resources={
                        name: count for name, count in self._asked.items() if name.startswith(_GPU_TYPE)
                    },
                )
            except (OSError, RuntimeError) as error:
                if "already exists" not in str(error):
                    raise ComputeUnavailable(
                        f"The Ray cluster at {self._shown} did not take job {job}: {_first_line(error)}\n"
                        "Its dashboard and the logs of its head say more."
                    ) from error

    def _wait_for_node(self, log: "_Log", tell: Callable[[str], None], deadline: float) -> bool:
        """True when the program stands by on a node, False if that node was lost before."""
        started = time.monotonic()
        shown = ""
        running_since: float | None = None
        answered = started
        while not self._released.is_set():
            try:
                info = self._job_info()
                log.read_if(info["status"] != "PENDING")
                answered = time.monotonic()
            except ComputeUnavailable:
                if time.monotonic() - answered > self._patience:
                    raise
                self._released.wait(POLL_SECONDS)
                continue
            if running_since is None and log.started_at is not None:
                running_since = time.monotonic()
                self._provisioned = running_since - started
            if log.node is not None:
                return True
            if info["status"] not in ACTIVE:
                if _node_died(info) and time.monotonic() < deadline:
                    return False
                raise ComputeUnavailable(self._why_not(log, info))
            state = f"on node {log.host}: {log.doing}" if log.started_at else self._state()
            if state != shown:
                tell(f"Job {self._job} {info['status']}, {state}")
                shown = state
            if not log.started_at and (reason := self._unsatisfiable()):
                raise ComputeUnavailable(
                    f"The Ray cluster at {self._shown} can never give what was asked for "
                    f"({_resources(self._asked)}):\n{reason}\n"
                    f"It offers: {self._offers()}.\nAsk for what one of its nodes has, or add a type of node to it."
                )
            if time.monotonic() > deadline:
                raise ComputeUnavailable(
                    f"No node was ready on {self._shown} within {self._options.provision_timeout:g} s "
                    f"(--provision-timeout); the job was {info['status']}, {state}.\n"
                    f"The cluster offers: {self._offers()}.\nNothing is held now. Look at the cluster's dashboard, "
                    "or allow more time."
                )
            self._released.wait(POLL_SECONDS)
        raise ComputeUnavailable("The compute was released before a node was ready.")

    def _describe(self, log: "_Log") -> ComputeDescription:
        node = log.node or {}
        versions = ", ".join(f"{name} {version}" for name, version in node["versions"].items())
        claimed = f", {self._options.gpus} GPU claimed" if self._options.gpus and not self._wants_gpu else ""
        return ComputeDescription(
            target=f"node {node['host']} of the Ray cluster at {self._shown} ({versions}{claimed})",
            accelerator=node["accelerator"],
            cpu_cores=node["cpu_cores"],
            memory_bytes=node["memory_bytes"],
            free_disk_bytes=node["free_disk_bytes"],
        )

    def _why_not(self, log: "_Log", info: Mapping[str, Any]) -> str:
        job = f"Job {self._job} on the Ray cluster at {self._shown}"
        why = log.refused or log.ended or _first_line(info.get("message") or "no reason was given")
        last = "".join(f"\n  {line}" for line in log.everything[-5:])
        return f"{job} ended {info['status']} before training: {why}{last}"

    def _state(self) -> str:
        """What the autoscaler says, in a few words."""
        status = (self._data("/api/cluster_status").get("clusterStatus")) or {}
        load, report = status.get("loadMetricsReport") or {}, status.get("autoscalerReport") or {}
        demand = [f"{count} x {_resources(shape)}" for shape, count in load.get("resourceDemand") or []]
        active = sum((report.get("activeNodes") or {}).values()) + len(report.get("idleNodes") or {})
        coming = sum((report.get("pendingLaunches") or {}).values()) + len(report.get("pendingNodes") or [])
        failed = len(report.get("failedNodes") or [])
        return (
            f"pending demand {', '.join(demand) or 'none'}; nodes: {active} up, {coming} coming"
            f"{f', {failed} failed' if failed else ''}"
        )

    def _unsatisfiable(self) -> str | None:
        """The autoscaler's word that no type of node has what the job asks for."""
        asked = {name: float(count) for name, count in self._asked.items() if count}
        # Not /api/v0/cluster_events, which answers with an error once a node has died.
        events = self._data("/events").get("events") or {}
        for event in chain.from_iterable(events.values()):
            message = str(event.get("message", ""))
            refused = re.search(r"No available node types can fulfill resource requests? (\{.*?\})", message)
            # Others' requests are among the events too.
            if refused and ast.literal_eval(refused[1]) == asked:
                return message.removeprefix("Error: ")
        return None

    def _offers(self) -> str:
        types = self._data("/api/cluster_status").get("clusterStatus") or {}
        known = ((types.get("autoscalerReport") or {}).get("nodeAvailabilitySummary") or {}).get("nodeAvailabilities")
        nodes = [_resources(node["resources_total"]) for node in self._nodes() if not node.get("is_head_node")]
        head = [_resources(node["resources_total"]) for node in self._nodes() if node.get("is_head_node")]
        return "; ".join(
            [f"a head with {what}" for what in head]
            + [f"a node with {what}" for what in nodes]
            + [f"nodes of the type {name}" for name in known or {}]
            + ([] if nodes or known else ["no other node now; the types are in the cluster's own file"])
        )

    # Running

    def run(self, job: Job) -> Iterator[str]:
        """See `Compute.run`. The first line says which job it is; a node that is lost is replaced.

        Raises `TrainingFailed` too where the cost reaches its limit, or the cluster is silent for a minute.
        """
        restarts = 0
        try:
            while True:
                lost = yield from self._run_once(job)
                if lost is None:
                    return
                if restarts >= self._options.max_restarts:
                    raise TrainingFailed(
                        f"Job {self._job} lost its node: {lost}\nIt was the {_ordinal(restarts + 1)} time, and "
                        f"--max-restarts is {self._options.max_restarts}. The last checkpoint is kept: run the same "
                        "command again."
                    )
                restarts += 1
                yield f"node lost: {lost}; restart {restarts} of {self._options.max_restarts}, from the last checkpoint"
                self._forget()
        finally:
            self._stop("the flow is done with it")

    def _run_once(self, job: Job) -> Generator[str, None, str | None]:
        """Pass on the job's lines; returns why it lost its node, or None if it ended well."""
        log = self._with_order(job)
        yield f"job {self._job}"
        if self._provisioned:
            yield telling(f"scaling took {self._provisioned:.1f} s", took={"scaling": self._provisioned})
        silent_since = time.monotonic()
        while True:
            try:
                info = self._job_info()
                log.read_if(info["status"] != "PENDING")
                silent_since = time.monotonic()
            except ComputeUnavailable as error:
                if time.monotonic() - silent_since > self._patience:
                    raise TrainingFailed(
                        f"The Ray cluster at {self._shown} has been silent for {self._patience:g} s: "
                        f"{_first_line(error)}\nIts head may be gone. The last checkpoint is kept: when it is back, "
                        "run the same command again."
                    ) from error
                self._released.wait(POLL_SECONDS)
                continue
            yield from log.new_lines()
            self._count(log)
            self._check_cost(job)
            if info["status"] not in ACTIVE:
                yield from log.rest()
                return self._outcome(job, log, info)
            if self._released.is_set():
                raise TrainingFailed(f"Job {self._job} was released while it ran.")
            time.sleep(POLL_SECONDS)

    def _with_order(self, job: Job) -> "_Log":
        """The log of a job on a node that has our order: the one that was provisioned, or a new one."""
        order = json.dumps({"arguments": list(job.arguments)}).encode()
        if self._job is not None and self._job_info()["status"] in ACTIVE:
            before = self._store.get_bytes(self._key("order.json"))
            if before not in (None, order):
                self._owned = True
                self._stop("it was for other arguments")
                self._forget()
        elif self._job is not None:
            self._forget()
        if self._job is None:
            self._released.clear()
            self.provision(LOGGER.info)
        self._owned = True
        self._store.put_bytes(self._key("order.json"), order)
        return _Log(self._client, self._job or "")

    def _outcome(self, job: Job, log: "_Log", info: Mapping[str, Any]) -> str | None:
        code = info.get("driver_exit_code")
        what = f"The training program {job.program.name} in job {self._job} on {self._shown}"
        if info["status"] == "SUCCEEDED":
            return None
        if log.refused:
            raise ComputeUnavailable(f"{what} was not started: {log.refused}.")
        if log.ended:
            raise TrainingFailed(f"{what} was ended: {log.ended}.\nThe last checkpoint is kept: run again.")
        if info["status"] == "STOPPED":
            raise TrainingFailed(f"{what} was stopped by somebody else.\nThe last checkpoint is kept: run again.")
        if code is None or _node_died(info):
            return _first_line(info.get("message") or "its node is gone")
        if code >= 128 and code != 143:
            raise TrainingFailed(
                f"{what} was ended by signal {code - 128}.\nRun the same command again: it continues after the last "
                "checkpoint."
            )
        raise TrainingFailed(f"{what} ended with exit status {code}.", code)

    def _count(self, log: "_Log") -> None:
        if self._job and log.started_at is not None and self._options.gpus:
            self._held[self._job] = max(time.time() - log.started_at, 0.0) * self._options.gpus

    def _check_cost(self, job: Job) -> None:
        limit, price = self._options.max_cost, self._options.price_per_hour
        if limit is None or price is None:
            return
        before = sum(seconds for name, seconds in job.gpu_seconds_before.items() if name not in self._held)
        cost = (before + sum(self._held.values())) / 3600 * price
        if cost >= limit:
            raise TrainingFailed(
                f"Job {self._job} was stopped: the training has cost {cost:.4f}, and --max-cost is {limit:g} (at "
                f"--price-per-hour {price:g}).\nThe last checkpoint is kept: a higher limit continues from it."
            )

    # Releasing

    def release(self) -> None:
        """End the job, if it is ours, and take back its lease; never raises, for it is called when all else failed."""
        self._released.set()
        self._stop("the flow ended")

    def _stop(self, why: str) -> None:
        lease, job = self._lease, self._job
        if lease is None or job is None:
            return
        self._lease = None
        lease.end()
        if not self._owned:
            return
        # The store is the second way to the job: it ends itself there, even where the cluster does not answer.
        LOGGER.debug("Ending job %s: %s", job, why)
        lease.withdraw()
        try:
            stop_job(self._client, job)
        except (ComputeUnavailable, OSError, RuntimeError) as error:
            LOGGER.warning(
                "Job %s on %s could not be ended (%s); it ends by itself, its lease was taken back. To see what is "
                "left: python -m infra.compute list",
                job,
                self._shown,
                _first_line(error),
            )
            return
        forget_job(self._store, job)

    def _forget(self) -> None:
        if self._lease is not None:
            self._lease.end()
        if self._job is not None:
            forget_job(self._store, self._job)
        self._lease, self._job, self._provisioned = None, None, 0.0

    # Speaking to the cluster

    @property
    def _client(self) -> Any:
        if self._client_or_none is None:
            self._client_or_none = connect(self._url, self._token)
        return self._client_or_none

    @property
    def _shown(self) -> str:
        return without_secrets(self._url)

    @property
    def _asked(self) -> dict[str, float]:
        """The resources that the job asks for, as Ray counts them."""
        kind = self._options.gpu_type
        return {"CPU": 1, "GPU": self._options.gpus, **({f"{_GPU_TYPE}{kind}": 0.001} if kind else {})}

    @property
    def _wants_gpu(self) -> bool:
        return self._options.gpus > 0 and self._accelerator != "cpu"

    def _key(self, name: str) -> str:
        return f"{FOLDER}/{self._job}/{name}"

    def _attempts(self) -> dict[int, dict[str, Any]]:
        """The jobs of this workload that the cluster knows, by number."""
        pattern = re.compile(re.escape(self._workload.identity) + r"-(\d+)")
        found = {}
        for info in list_jobs(self._client):
            if match := pattern.fullmatch(info["submission_id"] or ""):
                found[int(match[1])] = info
        return dict(sorted(found.items()))

    def _holder_may_live(self, job: str) -> bool:
        lease = read_lease(self._store, job)
        host, _, pid = str(lease["holder"] if lease else self._holder).rpartition(":")
        # Of another machine's process nothing is known: if it has died, the job's lease ends without it.
        return f"{host}:{pid}" != self._holder and (host != socket.gethostname() or psutil.pid_exists(int(pid)))

    def _job_info(self) -> dict[str, Any]:
        return self._info(self._job or "")

    def _info(self, job: str) -> dict[str, Any]:
        return dict(_get(self._client, f"/api/jobs/{job}"))

    def _data(self, path: str) -> dict[str, Any]:
        try:
            return _get(self._client, path).get("data") or {}
        except ComputeUnavailable:
            return {}

    def _nodes(self) -> list[dict[str, Any]]:
        found = self._data("/api/v0/nodes").get("result", {}).get("result", [])
        return [node for node in found if node.get("state") == "ALIVE"]


class _Lease:
    """Renewed in the store, by a thread, as long as this process lives."""

    def __init__(self, store: ObjectStore, job: str, holder: str, timeout_seconds: float) -> None:
        self._store, self._job, self._holder = store, job, holder
        self._interval = min(timeout_seconds / 5, 15.0)
        self._timeout = timeout_seconds
        self._over = Event()
        self._write(released=False)
        self._thread = Thread(target=self._renew, name=f"lease of {job}", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self._write(released=False)
            except ObjectStoreError as error:
                LOGGER.warning(
                    "The lease of job %s could not be renewed, it ends after %g s: %s",
                    self._job,
                    self._timeout,
                    _first_line(error),
                )

    def end(self) -> None:
        """Renew it no more."""
        self._over.set()
        self._thread.join()

    def withdraw(self) -> None:
        """Tell the job to end."""
        try:
            self._write(released=True)
        except ObjectStoreError as error:
            LOGGER.warning("The lease of job %s could not be withdrawn: %s", self._job, _first_line(error))

    def _write(self, released: bool) -> None:
        lease = {"holder": self._holder, "renewed": time.time(), "timeout": self._timeout, "released": released}
        self._store.put_bytes(f"{FOLDER}/{self._job}/lease.json", json.dumps(lease).encode())


class _Log:
    """The log of a job, read again and again, and told apart: lines of the program, and the node's for us."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self._job = client, job
        self._seen = 0
        self._new: list[str] = []
        self._unfinished = ""
        self.everything: list[str] = []
        self.started_at: float | None = None
        self.host = ""
        self.doing = "starting"
        self.node: dict[str, Any] | None = None
        self.refused: str | None = None
        self.ended: str | None = None

    def read_if(self, there_is_one: bool) -> None:
        """Read what is new."""
        if not there_is_one:
            return
        # From its start each time: what was read is skipped by number, so that a connection that broke costs
        # nothing. A training writes a line an epoch.
        text = _get(self._client, f"/api/jobs/{self._job}/logs", missing={"logs": ""}).get("logs") or ""
        lines = text.split("\n")
        for line in lines[self._seen : -1]:
            self._take(line.rstrip("\r"))
        self._seen = max(self._seen, len(lines) - 1)
        self._unfinished = lines[-1]

    def _take(self, line: str) -> None:
        if not line.startswith(NODE_LINE):
            self.everything.append(line)
            if self.started_at is not None:  # Before are Ray's own lines.
                self._new.append(line)
            return
        what, _, facts_text = line.removeprefix(NODE_LINE).partition(" ")
        facts = json.loads(facts_text)
        if what == "started":
            self.started_at, self.host = float(facts["at"]), facts["host"]
        elif what == "environment":
            self.doing = f"environment {facts}" if facts[0] != "t" else facts
            self._new.append(f"environment: {facts}")
        elif what == "node":
            self.node = facts
            seconds = facts["preparing_seconds"]
            self._new.append(telling(f"preparing took {seconds:.1f} s", took={"preparing": seconds}))
        elif what == "refused":
            self.refused = facts
        elif what == "ended":
            self.ended = facts
        elif what == "trouble":
            self._new.append(f"cannot look after the lease: {facts}")

    def new_lines(self) -> Iterator[str]:
        """The program's lines since the last call."""
        lines, self._new = self._new, []
        yield from lines

    def rest(self) -> Iterator[str]:
        """All that is left once the job has ended, a last line without its end among it."""
        try:
            self.read_if(True)
            if self._unfinished:
                self._take(self._unfinished)
        except ComputeUnavailable as error:
            LOGGER.warning("The end of the log of job %s is lost with its node: %s", self._job, _first_line(error))
        yield from self.new_lines()


def check_addresses(settings: Settings, cluster_is_elsewhere: bool = False) -> None:
    """Raise `SettingsError` for services that the nodes of a cluster cannot reach.

    Services on loopback are reachable only for a cluster on this machine, which `cluster_is_elsewhere` denies.
    """
    store, tracking = settings.object_store_uri, settings.mlflow_tracking_uri
    if store.partition("://")[0] in ("file", "local"):
        raise SettingsError(
            f"--compute ray: OBJECT_STORE_URI is {store}, a folder of this machine, which no node can reach.\n"
            "Set it to a store that both reach, such as s3://bucket/prefix."
        )
    if not is_http(tracking):
        raise SettingsError(
            f"--compute ray: MLFLOW_TRACKING_URI is {without_secrets(tracking)}, a database that nodes cannot reach or "
            "must not know.\nSet it to an MLflow server that both reach (http:// or https://)."
        )
    if cluster_is_elsewhere:
        for name, uri in (("MLFLOW_TRACKING_URI", tracking), ("AWS_ENDPOINT_URL", settings.object_store_endpoint)):
            if uri and is_loopback(uri):
                raise SettingsError(
                    f"--compute ray: {name} is {without_secrets(uri)}, this machine alone, and the cluster's nodes are "
                    "elsewhere.\nSet it to an address that both reach."
                )


def connect(jobs_url: str, token: Path | None = None) -> Any:
    """A client of the Jobs API whose requests have deadlines; connects to nothing yet.

    `token` is the file with the cluster's token; without it Ray looks into the environment (RAY_AUTH_TOKEN_PATH).
    """
    address, login = split_login(jobs_url)
    headers = {}
    if login:
        headers["Authorization"] = basic_authorization(login)
    if token:
        headers["Authorization"] = f"Bearer {token.read_text()}"
    return _jobs_client_class()(address, headers=headers or None)


def list_jobs(client: Any) -> list[dict[str, Any]]:
    """The submitted jobs that the cluster knows, as its API describes them."""
    return [info for info in _get(client, "/api/jobs/") if info.get("submission_id")]


def stop_job(client: Any, job: str) -> None:
    """End a job and wait until the cluster says so; raises `ComputeUnavailable` if it does not."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    status = _get(client, f"/api/jobs/{job}")["status"]
    if status not in ACTIVE:
        return
    client.stop_job(job)
    if status == "PENDING":
        _withdraw_demand(client, job)
    while _get(client, f"/api/jobs/{job}")["status"] in ACTIVE:
        if time.monotonic() > deadline:
            raise ComputeUnavailable(f"Job {job} has not ended {SECONDS_TO_STOP:g} s after it was told to.")
        time.sleep(POLL_SECONDS)


def describe_nodes(client: Any) -> list[str]:
    """The living nodes of the cluster, a line each."""
    found = _get(client, "/api/v0/nodes")["data"]["result"]["result"]
    return [
        f"{'head' if node['is_head_node'] else 'node'} {node['node_ip']}  {_resources(node['resources_total'])}"
        for node in found
        if node["state"] == "ALIVE"
    ]


def _withdraw_demand(client: Any, job: str) -> None:
    """End a job that waits for a node.

    Ray's own stopping of a job is a message that waits with it: the demand would stay, and a node would come for
    nothing, today or as soon as there is one. What waits is an actor, which a job on the head ends by its name.
    """
    actor = json.dumps(f"_ray_internal_job_actor_{job}")
    code = f"import ray; ray.init(); ray.kill(ray.get_actor({actor}, namespace='SUPERVISOR_ACTOR_RAY_NAMESPACE'))"
    client.submit_job(entrypoint=shlex.join(["python", "-c", code]), submission_id=f"end-{job}-{secrets.token_hex(3)}")


def read_lease(store: ObjectStore, job: str) -> dict[str, Any] | None:
    """Who holds the lease of a job, and since when; None if there is none."""
    data = store.get_bytes(f"{FOLDER}/{job}/lease.json")
    return json.loads(data) if data else None


def forget_job(store: ObjectStore, job: str) -> None:
    """Remove what flow and node left for each other; the job must have ended."""
    try:
        for name in ("order.json", "lease.json"):
            store.delete(f"{FOLDER}/{job}/{name}")
    except ObjectStoreError as error:
        LOGGER.warning("The folder of job %s stays in the store: %s", job, _first_line(error))


def _jobs_client_class() -> Any:
    try:
        from ray.dashboard.modules.job.sdk import JobSubmissionClient
        from ray.exceptions import AuthenticationError
    except ImportError as error:
        raise SettingsError(
            "--compute ray needs Ray, which is not installed here.\nInstall it: pip install '.[ray]', or build the "
            "environment from requirements.lock (make)."
        ) from error

    # Set to INFO on import, by name.
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _check_connection_and_version(self, *_: Any, **__: Any) -> None:
            """Nothing: the constructor calls it, and `RayCluster.check` says more."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", (SECONDS_TO_CONNECT, SECONDS_TO_ANSWER))
            try:
                return super()._do_request(*args, **kwargs)
            except AuthenticationError as error:
                raise ComputeUnavailable(
                    f"The Ray cluster at {without_secrets(self._address)} refuses us: it wants a token, or another "
                    "one.\nSet RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token."
                ) from error

    return Client


def _get(client: Any, path: str, missing: Any = None) -> Any:
    """The JSON that the cluster answers; `missing` where it knows no such thing, if that is given."""
    try:
        response = client._do_request("GET", path)
        if response.status_code >= 400:
            if missing is not None:
                return missing
            raise ComputeUnavailable(f"The Ray cluster answered HTTP {response.status_code} to {path}.")
        return response.json()
    except (OSError, ValueError, RuntimeError) as error:
        raise ComputeUnavailable(f"The Ray cluster does not answer to {path} ({type(error).__name__}).") from error


def _resources(shape: Mapping[str, float]) -> str:
    """Resources as people read them, without those that every node has by itself."""
    plain = {name: value for name, value in shape.items() if not name.startswith(("node:", "object_store", "memory"))}
    kinds = [name.removeprefix(_GPU_TYPE) for name in sorted(plain) if name.startswith(_GPU_TYPE)]
    counted = [f"{value:g} {name}" for name, value in sorted(plain.items()) if value and not name.startswith(_GPU_TYPE)]
    return ", ".join(counted + [f"of the type {kind}" for kind in kinds]) or "nothing"


def _node_died(info: Mapping[str, Any]) -> bool:
    return "ACTOR_DIED" in str(info.get("error_type"))


def own_addresses() -> set[str]:
    """The addresses of this machine."""
    return {address.address for found in psutil.net_if_addrs().values() for address in found}


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
