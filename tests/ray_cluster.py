"""A real Ray cluster on this machine, whose autoscaler starts and ends real raylets that claim a GPU.

The GPU is a claim: a number in Ray's books, no device. All else is what runs on a cloud: head, autoscaler, Jobs API,
raylets that come when a job needs one and go when they are idle.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from infra.compute.ray_job import ACTIVE
from tests.mlflow_server import MlflowServer
from tests.pipeline import wait_until
from tests.s3_server import free_port, s3_server

RAY = Path(sys.executable).with_name("ray")
HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
IDLE_SECONDS = 6.0
KIND = "T4"
"""The kind of GPU that one type of node claims; the other type says nothing of it."""


class RayCluster:
    """A head and as many GPU nodes as jobs ask for, `max_nodes` at most; ended for good by `stop`."""

    def __init__(
        self, max_nodes: int = 2, environment: Mapping[str, str] | None = None, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """`environment` is what the nodes find in theirs, such as the credentials of the store."""
        self._max_nodes = max_nodes
        self._idle_seconds = idle_seconds
        self._environment = dict(environment or {})
        # Ray's sockets lie under it, whose names may have 107 characters in all: pytest's own folders are too deep.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.port = free_port()
        self.jobs_url = f"http://127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Start the head, without any node; returns when the Jobs API answers."""
        config = self.folder / "autoscaling.json"
        config.write_text(json.dumps(_autoscaling(self.port, self._max_nodes, self._idle_seconds)))
        environment = {
            **os.environ,
            **self._environment,
            # The nodes' own Python is this one, which has all that a job requires.
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives way to all else by default (15), and other tests run beside it.
            "RAY_worker_niceness": "0",
            # A raylet waits 15 s for its agents by default: on a busy machine their imports alone take longer.
            "RAY_agent_register_timeout_ms": "180000",
            # Within which the head notices that a node has died.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }
        command = [str(RAY), "start", "--head", f"--port={self.port}", f"--temp-dir={self.folder}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.jobs_url.rpartition(':')[2]}"]
        command += [f"--ray-client-server-port={free_port()}", "--include-log-monitor=false"]
        command += ["--dashboard-agent-listen-port=0"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=0", "--num-gpus=0"]
        command += ["--object-store-memory=80000000", "--disable-usage-stats", f"--autoscaling-config={config}"]
        log = self.folder / "start.txt"
        with log.open("w") as out:
            done = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=240, check=False)
        assert done.returncode == 0, f"no head came up:\n{log.read_text()}"
        wait_until(lambda: bool(self._get("/api/cluster_status")), 120, "the autoscaler's first word")

    def stop(self) -> None:
        """End every process of this cluster, and of no other: `ray stop` would end each Ray of the machine."""
        kill_all(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Those of the head, of the nodes, and of what runs there."""
        return _processes_with(str(self.folder))

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, without the head."""
        listed = self._get("/api/v0/nodes").get("result", {}).get("result", [])
        return [node for node in listed if node["state"] == "ALIVE" and not node["is_head_node"]]

    def jobs(self) -> list[dict[str, Any]]:
        """What the Jobs API says of every job."""
        return list(httpx.get(f"{self.jobs_url}/api/jobs/", timeout=20).json())

    def demand(self) -> list[Any]:
        """What the autoscaler is asked for and has not yet."""
        return list(self._get("/api/cluster_status")["clusterStatus"]["loadMetricsReport"]["resourceDemand"])

    def wait_for_nodes(self, count: int, limit_seconds: float = 180) -> None:
        """Wait until so many nodes are alive beside the head."""
        wait_until(lambda: len(self.nodes()) == count, limit_seconds, f"{count} nodes")

    def wait_for_no_job(self) -> None:
        """Wait until no job runs or waits for a node."""
        wait_until(lambda: not [job for job in self.jobs() if job["status"] in ACTIVE], 120, "the end of every job")

    def kill_node(self) -> None:
        """Kill a node as a cloud takes back a spot instance: every process at once, without a word."""
        raylets = [one for one in self.processes() if _is_node(one)]
        assert raylets, "there is no node to kill"
        kill_all([*raylets[0].children(recursive=True), raylets[0]])

    def kill_head(self) -> None:
        """Kill the head's control service and its dashboard."""
        kill_all([one for one in self.processes() if _name(one) in ("gcs_server", "dashboard.py", "monitor.py")])

    def _get(self, path: str) -> dict[str, Any]:
        with suppress(httpx.HTTPError, ValueError):
            return dict(httpx.get(f"{self.jobs_url}{path}", timeout=20).json().get("data") or {})
        return {}


@contextmanager
def ray_cluster(
    folder: Path, max_nodes: int = 2, idle_seconds: float = IDLE_SECONDS, nodes: Mapping[str, str] | None = None
) -> Iterator[tuple[RayCluster, dict[str, str]]]:
    """A running cluster, and the environment of a flow that uses it, a store and a tracker; all gone afterwards.

    `nodes` is what the nodes find in their environment besides.
    """
    mlflow = MlflowServer(folder / "mlflow")
    with s3_server(folder / "s3", "bucket") as s3:
        cluster = RayCluster(
            max_nodes, {**s3.environment, "HOME": str(folder / "nodes"), **(nodes or {})}, idle_seconds
        )
        try:
            # First, and alone: Ray gives the processes of a head 30 s to come up.
            mlflow.start()
            cluster.start()
            yield (
                cluster,
                {
                    **s3.environment,
                    "RAY_AUTH_MODE": "disabled",
                    "RAY_JOBS_URL": cluster.jobs_url,
                    "MLFLOW_TRACKING_URI": mlflow.uri,
                    "OBJECT_STORE_URI": "s3://bucket/store",
                },
            )
        finally:
            cluster.stop()
            shutil.rmtree(cluster.folder, ignore_errors=True)
            mlflow.kill()


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _processes_with(text: str) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid != os.getpid() and any(text in argument for argument in process.cmdline()):
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


def _is_node(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        line = process.cmdline()
        return bool(line) and Path(line[0]).name == "raylet" and "--head" not in line
    return False


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return next((Path(word).name for word in process.cmdline() if not Path(word).name.startswith("python")), "")
    return ""


def _autoscaling(port: int, max_nodes: int, idle_seconds: float) -> dict[str, Any]:
    empty_lists = ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands")
    empty_lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")  # type: ignore[assignment]
    return {
        "cluster_name": "test",
        "max_workers": max_nodes,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 100,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{port}",
            # All nodes here have the same address.
            "use_node_id_as_ip": True,
            # Or a node that has died would stay in the books for ever.
            "disable_node_updaters": True,
        },
        "available_node_types": {
            # The provider knows the head by no other name.
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
            "gpu-of-a-kind": {
                "resources": {"CPU": 1, "GPU": 1, f"accelerator_type:{KIND}": 1, "object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("head_node", "worker_nodes", "auth", "docker", "file_mounts")},
        **{name: [] for name in (*empty_lists, "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
