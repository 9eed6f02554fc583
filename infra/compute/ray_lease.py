"""What a flow and its job on a cluster leave for each other in the object store: `compute/<job>/`, order and lease.

A job whose lease nobody renews, or whose lease is gone, ends itself.
"""

import json
import logging
import os
import socket
import time
from threading import Event, Thread
from typing import Any

import psutil

from infra.compute.ray_dashboard import first_line
from infra.errors import ObjectStoreError
from infra.object_store import ObjectStore

ORDER, LEASE = "order.json", "lease.json"

LOGGER = logging.getLogger(__name__)


def key(job: str, name: str = "") -> str:
    """Of an object of the job's, of its folder, or of that of all jobs."""
    return f"compute/{job}/{name}".rstrip("/")


def holder() -> str:
    """Who this process is: its machine and its number."""
    return f"{socket.gethostname()}:{os.getpid()}"


class JobLease:
    """Renewed in the store, by a thread, as long as this process lives."""

    def __init__(self, store: ObjectStore, job: str, timeout_seconds: float) -> None:
        """Takes the lease at once, whoever has it. Raises `ObjectStoreError`."""
        self._store, self._job, self._timeout, self._holder = store, job, timeout_seconds, holder()
        self._over = Event()
        self._write(released=False)
        self._thread = Thread(target=self._renew, name=f"lease of {job}", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(min(self._timeout / 5, 15.0)):
            try:
                self._write(released=False)
            except ObjectStoreError as error:
                LOGGER.warning(
                    "The lease of job %s could not be renewed, it ends after %g s: %s",
                    self._job,
                    self._timeout,
                    first_line(error),
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
            LOGGER.warning("The lease of job %s could not be withdrawn: %s", self._job, first_line(error))

    def _write(self, released: bool) -> None:
        lease = {"holder": self._holder, "renewed": time.time(), "timeout": self._timeout, "released": released}
        self._store.put_bytes(key(self._job, LEASE), json.dumps(lease).encode())


def read_lease(store: ObjectStore, job: str) -> dict[str, Any] | None:
    """Who holds the lease of a job, and since when; None if there is none."""
    data = store.get_bytes(key(job, LEASE))
    return json.loads(data) if data else None


def read_leases(store: ObjectStore) -> dict[str, dict[str, Any]]:
    """Those of all jobs, by job."""
    jobs = {name.partition("/")[0] for name in store.sizes(key(""))}
    return {job: lease for job in jobs if (lease := read_lease(store, job))}


def holder_may_live(lease: dict[str, Any]) -> bool:
    """False for this process, and for one of this machine that has died; of another machine's nothing is known."""
    host, _, pid = str(lease["holder"]).rpartition(":")
    return host != socket.gethostname() or (int(pid) != os.getpid() and psutil.pid_exists(int(pid)))


def forget_job(store: ObjectStore, job: str) -> None:
    """Remove what flow and node left for each other: the job has ended, or must."""
    try:
        for name in (LEASE, ORDER):
            store.delete(key(job, name))
    except ObjectStoreError as error:
        LOGGER.warning("The folder of job %s stays in the store: %s", job, first_line(error))
