"""Compute: a Ray cluster whose autoscaler brings a node when a job asks for one, and takes it away when it is idle.

One job is the whole stay on a node: it prepares the environment, checks what Keras sees there, starts the program up
and lets it stand by (`runner/node.py`), so that the node that was looked at is the one that trains. Flow and node
leave word for each other in the job's folder of the object store (`ray_lease.py`): the flow its order and its lease,
which it renews as long as it lives. A job whose lease nobody renews ends itself.

A job is known by what it is for, so that a flow that was killed and is started again finds its job and goes on
watching it.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from infra.addresses import without_secrets
from infra.compute import Accelerator, ClusterOptions, ComputeDescription, Job, Workload
from infra.compute.ray_dashboard import (
    GPU_TYPE,
    check_addresses,
    check_version,
    client_class,
    connect,
    first_line,
    living_nodes,
    offers,
    own_addresses,
    resources,
    scaling_state,
    unsatisfiable,
)
from infra.compute.ray_job import ACTIVE, POLL_SECONDS, WatchedJob, make_package, node_died, stop_job, submit
from infra.compute.ray_lease import ORDER, JobLease, forget_job, holder_may_live, key, read_leases
from infra.compute.runner.output import telling
from infra.errors import ArgumentError, ComputeUnavailable, TrainingFailed
from infra.object_store import ObjectStore
from infra.scratch import temporary_folder
from infra.settings import Settings

SECONDS_WITHOUT_ANSWER = 60.0
"""How long the cluster may be silent in the middle of a job: the restart of a head takes about as long."""

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
    ) -> None:
        """Connects to nothing. Raises `SettingsError` for addresses that no node can reach, and without Ray."""
        self._url = jobs_url.rstrip("/")
        self._token: Path | None = None
        self._settings = settings
        self._accelerator = accelerator
        self._options = options
        self._workload = workload
        self.patience_seconds = SECONDS_WITHOUT_ANSWER
        """How long the cluster may be silent before it is given up."""
        self._client_or_none: Any = None
        self._store = ObjectStore(settings.object_store_uri)
        self._released = Event()
        self._lease: JobLease | None = None
        self._job: str | None = None
        self._owned = False
        self._provisioned = 0.0
        self._held: dict[str, float] = {}
        check_addresses(settings)
        if accelerator == "gpu" and not options.gpus:
            raise ArgumentError("--accelerator gpu needs a GPU, and --gpus is 0.\nAsk for one with --gpus 1.")
        client_class()

    @property
    def job_identity(self) -> str | None:
        """See `Compute`; of this cluster, for a job on another one is not found here."""
        return f"{self._workload.identity}-{hashlib.sha256(self._shown.encode()).hexdigest()[:8]}"

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
        check_version(self._client, self._shown)
        head = next((node["node_ip"] for node in living_nodes(self._client) if node.get("is_head_node")), None)
        if head is not None and head not in own_addresses():
            check_addresses(self._settings, cluster_is_elsewhere=True)

    def provision(self, tell: Callable[[str], None] = LOGGER.info, deadline: float | None = None) -> ComputeDescription:
        """Ask for a node, wait until the program stands by there, and say what it is.

        `tell` is told what the cluster does meanwhile; it may take until `deadline`, by the monotonic clock, or as long
        as the options say. Raises `ComputeUnavailable` if no node comes in time, if none ever can, or if the node that
        came lacks what was asked for; nothing is held then.
        """
        deadline = deadline or time.monotonic() + self._options.provision_timeout
        try:
            while True:
                job = self._acquire(tell)
                if self._wait_for_node(job, tell, deadline):
                    claimed = f", {self._options.gpus} GPU claimed" * (self._options.gpus > 0 and not self._wants_gpu)
                    return job.description(self._shown, claimed)
                # An autoscaler that ends an idle node does not look whether a job has just got it.
                tell(f"Job {self._job} lost its node before it was ready: another one is asked for")
                self._forget()
        except BaseException:
            self._stop("provisioning failed")
            raise

    def stand_by(self, program: Path, command: str) -> None:
        """Nothing: a job lets the program stand by as soon as it has a node."""

    def _acquire(self, tell: Callable[[str], None]) -> WatchedJob:
        """Find the job of this workload, or submit it; it has a lease then."""
        self.check()
        known = self._numbered({info.submission_id or "": info.status for info in self._client.list_jobs()})
        active = [number for number, status in known.items() if status in ACTIVE]
        leases = self._numbered(read_leases(self._store))
        # Those of flows that have died, maybe on another cluster.
        left = [number for number, lease in leases.items() if not holder_may_live(lease)]
        number = max(active or [0, *known, *left]) + (not active)
        job = f"{self._workload.identity}-{number}"
        # Of a flow that may live the job is that flow's; whoever trains, of all machines one, owns it in the end.
        self._owned = number in left or number not in leases
        self._lease = JobLease(self._store, job, self._options.lease_timeout)
        self._job = job
        if active:
            tell(f"Found job {job} on {self._shown}, {known[number]}: going on with it")
            return self._watched(job)
        for past in left:
            # Its node may live, though Ray takes it for lost: without a lease the job ends there.
            forget_job(self._store, f"{self._workload.identity}-{past}")
        with temporary_folder(self._settings.scratch_folder) as package:
            told = {
                "folder": f"{self._store.uri}/{key(job)}",
                "tracking_uri": self._settings.mlflow_tracking_uri,
                "lease_seconds": self._options.lease_timeout,
            }
            make_package(package, self._workload, self._wants_gpu, **told)
            submit(self._client, job, package, self._asked)
        tell(f"Submitted job {job} to {self._shown}: {resources(self._asked)}")
        return self._watched(job)

    def _wait_for_node(self, job: WatchedJob, tell: Callable[[str], None], deadline: float) -> bool:
        """True when the program stands by on a node, False if that node was lost before."""
        started = time.monotonic()
        shown = ""
        while not self._released.is_set():
            info = job.look()
            if info is not None:
                if not self._provisioned and job.started_at is not None:
                    self._provisioned = time.monotonic() - started
                if job.node is not None and job.stands_by:
                    return True
                if info.status not in ACTIVE:
                    if node_died(info) and time.monotonic() < deadline:
                        return False
                    what = f"Job {job.name} on the Ray cluster at {self._shown}"
                    raise ComputeUnavailable(f"{what} ended {info.status} before training: {job.why_it_ended(info)}")
                where = job.state or scaling_state(self._client)
                if (state := f"{info.status}, {where}") != shown:
                    tell(f"Job {job.name} {state}")
                    shown = state
                if not job.started_at and (reason := unsatisfiable(self._client, self._asked)):
                    raise ComputeUnavailable(
                        f"The Ray cluster at {self._shown} can never give what was asked for "
                        f"({resources(self._asked)}):\n{reason}\nIt offers: {offers(self._client)}.\n"
                        "Ask for what one of its nodes has, or add a type of node to it."
                    )
                if time.monotonic() > deadline:
                    raise ComputeUnavailable(
                        f"No node was ready on {self._shown} within {self._options.provision_timeout:g} s "
                        f"(--provision-timeout); the job was {state}.\nThe cluster offers: {offers(self._client)}.\n"
                        "Nothing is held now. Look at the cluster's dashboard, or allow more time."
                    )
            self._released.wait(POLL_SECONDS)
        raise ComputeUnavailable("The compute was released before a node was ready.")

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
                        f"Job {self._job} lost its node: {lost}\nNodes lost: {restarts + 1}, and --max-restarts is "
                        f"{self._options.max_restarts}. The last checkpoint is kept: run the same "
                        "command again."
                    )
                restarts += 1
                yield f"node lost: {lost}; restart {restarts} of {self._options.max_restarts}, from the last checkpoint"
                self._forget()
        finally:
            self._stop("the flow is done with it")

    def _run_once(self, job: Job) -> Generator[str, None, str | None]:
        """Pass on the job's lines; returns why it lost its node, or None if it ended well."""
        watched = self._with_order(job)
        yield f"job {watched.name}"
        if self._provisioned:
            yield telling(f"scaling took {self._provisioned:.1f} s", took={"scaling": self._provisioned})
        while True:
            try:
                info = watched.look()
            except ComputeUnavailable as error:
                raise TrainingFailed(
                    f"The Ray cluster at {self._shown} has been silent for {self.patience_seconds:g} s: "
                    f"{first_line(error)}\n"
                    "Its head may be gone. The last checkpoint is kept: when it is back, run the same command again."
                ) from error
            if info is not None:
                yield from watched.new_lines()
                if watched.started_at is not None and self._options.gpus:
                    self._held[watched.name] = max(time.time() - watched.started_at, 0.0) * self._options.gpus
                self._check_cost(job)
                if info.status not in ACTIVE:
                    yield from watched.rest()
                    what = f"The training program {job.program.name} in job {watched.name} on {self._shown}"
                    return watched.outcome(info, what)
            if self._released.is_set():
                raise TrainingFailed(f"Job {watched.name} was released while it ran.")
            time.sleep(POLL_SECONDS)

    def _with_order(self, job: Job) -> WatchedJob:
        """The job on a node that has our order: the one that was provisioned, or a new one."""
        order = json.dumps({"arguments": list(job.arguments)}).encode()
        if self._job is not None:
            status, before = self._client.get_job_status(self._job), self._store.get_bytes(key(self._job, ORDER))
            if status in ACTIVE and before not in (None, order):
                self._owned = True
                self._stop("it was for other arguments")
                self._forget()
            # What ends well while the flow that gave the order is dead, and this one comes to it, is done.
            elif status not in ACTIVE and not (status == "SUCCEEDED" and before == order):
                self._forget()
        if self._job is None:
            self._released.clear()
            self.provision(LOGGER.info)
        self._owned = True
        self._store.put_bytes(key(self._job or "", ORDER), order)
        return self._watched(self._job or "")

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
        except ComputeUnavailable as error:
            LOGGER.warning(
                "Job %s on %s could not be ended (%s); it ends by itself, its lease was taken back. To see what is "
                "left: python -m infra.compute list",
                job,
                self._shown,
                first_line(error),
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
        return {"CPU": 1, "GPU": self._options.gpus, **({f"{GPU_TYPE}{kind}": 0.001} if kind else {})}

    @property
    def _wants_gpu(self) -> bool:
        return self._options.gpus > 0 and self._accelerator != "cpu"

    def _numbered(self, jobs: Mapping[str, Any]) -> dict[int, Any]:
        """Those of this workload, by number."""
        pattern = re.compile(re.escape(self._workload.identity) + r"-(\d+)")
        return {int(found[1]): jobs[name] for name in jobs if (found := pattern.fullmatch(name))}

    def _watched(self, job: str) -> WatchedJob:
        return WatchedJob(self._client, job, self.patience_seconds)
