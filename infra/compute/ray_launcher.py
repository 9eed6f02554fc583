"""Compute: a Ray cluster that the flow launches from a cluster file, by Ray's own commands, and takes down again.

`ray up`, `ray down` and `ray dashboard` run as processes of their own: they print, prompt and end their process. Who
launched a cluster takes it down; one that is up already is used and left as it was.
"""

import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path
from threading import Event, Lock
from typing import IO, Any

import httpx
import jsonschema
import yaml

from infra.compute import Accelerator, ClusterOptions, ComputeDescription, Workload
from infra.compute.ray_cluster import RayCluster
from infra.compute.ray_dashboard import check_addresses, own_addresses
from infra.compute.ray_job import ACTIVE
from infra.errors import ComputeUnavailable, PipelineError, SettingsError
from infra.lock import hold
from infra.settings import PROJECT_ROOT, Settings, child_environment

SECONDS_TO_REACH = 60.0
"""Until the dashboard answers, through ssh, on a head that is up."""
SECONDS_TO_TAKE_DOWN = 300.0
POLL_SECONDS = 0.5
TOKEN_THERE = "~/.ray/auth_token"
"""Where Ray looks for its token on every node."""

RAY = (sys.executable, "-m", "ray.scripts.scripts")

LOGGER = logging.getLogger(__name__)


class LaunchedCluster(RayCluster):
    """Runs jobs on the cluster of a file, which is launched where it is not up."""

    def __init__(
        self, file: Path, settings: Settings, accelerator: Accelerator, options: ClusterOptions, workload: Workload
    ) -> None:
        """Launches nothing. Raises `SettingsError` as `RayCluster` does, and for a file that is no cluster file."""
        super().__init__("http://127.0.0.1", settings, accelerator, options, workload)
        self._cluster = ClusterOfFile(file, settings)
        self._tunnel: Tunnel | None = None
        # Provisioning has a thread of its own, and release must not come between `ray up` and its end.
        self._attaching = Lock()

    def check(self) -> None:
        """Raise `SettingsError` for what cannot work, or, once the cluster is up, what `RayCluster.check` raises."""
        self._cluster.check()
        if self._tunnel is not None:
            super().check()

    def provision(self, tell: Callable[[str], None] = LOGGER.info, deadline: float | None = None) -> ComputeDescription:
        """See `RayCluster.provision`; finds the cluster first, or launches it."""
        deadline = deadline or time.monotonic() + self._options.provision_timeout
        with self._attaching:
            if self._tunnel is None:
                self._tunnel = self._cluster.join(tell, deadline, self._released)
                self._url, self._token = self._tunnel.url, self._cluster.token
                self._client_or_none = None
        return super().provision(tell, deadline)

    def release(self) -> None:
        """End the job as `RayCluster.release` does, and take the cluster down if this flow launched it for itself."""
        super().release()
        with self._attaching:
            try:
                if self._cluster.is_ours and (jobs := self._jobs_of_others()):
                    raise ComputeUnavailable(self._cluster.still_costs(f"others use it: job {', '.join(jobs)}"))
                if self._cluster.is_ours:
                    self._cluster.take_down(LOGGER.info)
            except (PipelineError, OSError) as error:
                LOGGER.warning("%s", error)
            self._cluster.is_ours = False
            if self._tunnel is not None:
                self._tunnel.close()
                self._tunnel = None

    def _jobs_of_others(self) -> list[str]:
        with suppress(ComputeUnavailable, OSError):
            jobs = [job.submission_id or "" for job in self._client.list_jobs() if job.status in ACTIVE]
            own = self._job if self._owned else None
            # A job named `end-` does no more than end another.
            return [job for job in jobs if job and job != own and not job.startswith("end-")]
        return []

    @property
    def _shown(self) -> str:
        return f"{self._cluster.name} (RAY_CLUSTER_FILE)"


class ClusterOfFile:
    """The cluster that a file describes, whether it is up or not."""

    def __init__(self, file: Path, settings: Settings) -> None:
        """Raises `SettingsError` if the file is no cluster file."""
        self._file, self._settings = file, settings
        self._config = read_cluster_file(file)
        self.name, provider = str(self._config["cluster_name"]), self._config["provider"]["type"]
        self._is_local = provider == "local"
        self.is_ours = False
        """True once `join` has begun to launch it: it is to be taken down."""
        self.folder = settings.home / "clusters" / re.sub(r"[^\w.-]", "_", f"{provider}-{self.name}")
        """Its logs, and the lock that is held by whoever launches it or takes it down."""
        mounts = self._config.get("file_mounts") or {}
        # Relative paths are the project's, wherever we run.
        self._mounts = {there: PROJECT_ROOT / Path(here).expanduser() for there, here in mounts.items()}
        self._token = self._mounts.pop(TOKEN_THERE, None)

    @property
    def token(self) -> Path | None:
        """The file with what the cluster asks everyone for, once there is one."""
        return self._token if self._token and self._token.exists() else None

    def check(self) -> None:
        """Raise `SettingsError` for what cannot work; asks nobody."""
        provider = self._config["provider"]
        head = (provider.get("external_head_ip") or provider.get("head_ip")) if self._is_local else None
        check_addresses(self._settings, cluster_is_elsewhere=head is None or not _is_here(head))
        missing = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
        if missing:
            raise SettingsError(
                f"--compute ray with RAY_CLUSTER_FILE needs {' and '.join(missing)}, with which Ray's launcher works.\n"
                "Install it: apt-get install openssh-client rsync."
            )
        absent = [str(here) for here in self._mounts.values() if not here.exists()]
        if absent:
            # Ray would find out with the head up.
            raise SettingsError(
                f"RAY_CLUSTER_FILE is {self._file}, whose file_mounts bring {', '.join(absent)} to every node: there "
                f"is no such file.\nRelative paths are taken from {PROJECT_ROOT}: correct them."
            )
        starts = ("head_start_ray_commands", "worker_start_ray_commands")
        off = [name for name in starts if "RAY_AUTH_MODE=token" not in " ".join(self._config.get(name) or ())]
        if off or self._token is None:
            raise SettingsError(
                f"RAY_CLUSTER_FILE is {self._file}, whose {' and '.join(off) or 'file_mounts'} leave Ray's token "
                "authentication off.\nWhoever reaches such a cluster runs anything there: as infra/ray-cluster.yaml "
                f"does, bring {TOKEN_THERE} to every node, and start Ray with RAY_AUTH_MODE=token."
            )

    def join(self, tell: Callable[[str], None], deadline: float, stop: Event) -> "Tunnel":
        """An open tunnel to the cluster, which is launched where it is not up; raises `ComputeUnavailable`."""

        def wait(seconds: float) -> None:
            if stop.wait(seconds):
                raise ComputeUnavailable("The compute was released before its cluster was up.")
            if time.monotonic() > deadline:
                raise ComputeUnavailable(
                    f"Cluster {self.name} ({self._file}) was not up within the time allowed (--provision-timeout).\n"
                    f"What Ray's launcher said: {self.folder / 'up.log'}. See what it waits for, or allow more time."
                )

        waiting = f"Cluster {self.name} is being launched or taken down by"
        with hold(self.folder / "lock", lambda who: tell(f"{waiting} {who}: waiting for it"), wait=wait) as lock:
            _, tunnel = self.look()
            if tunnel is not None:
                tell(f"Found cluster {self.name}, which is up already: it is not taken down at the end")
                return tunnel
            return self._launch(tell, wait, lock)

    def look(self) -> "tuple[str, Tunnel | None]":
        """How the cluster is, and a tunnel to it if it is up; raises `ComputeUnavailable` if that cannot be told."""
        log = self.folder / "tunnel.log"
        port = re.search(r"--dashboard-port[= ](\d+)", " ".join(self._config.get("head_start_ray_commands") or ()))
        deadline = time.monotonic() + SECONDS_TO_REACH
        with ExitStack() as stack:
            tunnel = Tunnel(self._file, port[1] if port else "8265", log)
            stack.callback(tunnel.close)
            told = ""
            while "Error: " not in told and time.monotonic() < deadline:
                if tunnel.answer() is not None:
                    stack.pop_all()
                    return "up", tunnel
                time.sleep(POLL_SECONDS)
                told = log.read_text(errors="replace")
        if "not found!" in told:
            half = re.search(r"is in state (\S+)\.", told)
            return (f"not up, and its head, in state {half[1]}, may cost" if half else "down"), None
        if "Error: " not in told:
            return "not up, and its head costs: no dashboard answers there", None
        raise ComputeUnavailable(
            f"Cluster {self.name} ({self._file}) cannot be reached: `ray dashboard` said{_last_lines(log, 6)}\n"
            "Are user and key in the file right, and are the provider's credentials here, and its package (boto3 for "
            "AWS)?"
        )

    def _launch(self, tell: Callable[[str], None], wait: Callable[[float], None], lock: int) -> "Tunnel":
        log = self.folder / "up.log"
        if self._token and not self._token.exists():
            with _private_file(self._token) as out:
                out.write(secrets.token_hex(32).encode())
        tell(f"Launching cluster {self.name} from {self._file}; the launcher's log: {log}")
        started, self.is_ours = time.monotonic(), True
        # Every setup of a cloud is looked up anew: a cache from an earlier launch may name what is gone.
        process = self._ray("up", "--no-config-cache", lock=lock)
        try:
            while process.poll() is None:
                wait(POLL_SECONDS)
        finally:
            _kill_group(process)
        if process.returncode:
            raise ComputeUnavailable(
                f"Cluster {self.name} ({self._file}) was not launched: `ray up` ended with exit status "
                f"{process.returncode}, and its last words were{_last_lines(log)}\nThe whole log: {log}."
            )
        state, tunnel = self.look()
        if tunnel is None:
            raise ComputeUnavailable(
                f"Cluster {self.name} ({self._file}) was launched, and is {state}.\nIts dashboard must listen on "
                f"loopback: see head_start_ray_commands, and the launcher's log, {log}."
            )
        if tunnel.answer() == httpx.codes.OK:
            tunnel.close()
            raise ComputeUnavailable(
                f"Cluster {self.name} ({self._file}) was launched, and does not ask for the token that it was given.\n"
                "Whoever reaches it could run anything there. Does a command in the file set RAY_AUTH_MODE otherwise?"
            )
        tell(f"Cluster {self.name} is up after {time.monotonic() - started:.0f} s; it costs until it is taken down")
        return tunnel

    def take_down(self, tell: Callable[[str], None]) -> None:
        """Take down the cluster, whoever uses it; raises `ComputeUnavailable` if it may still be up then."""
        with hold(self.folder / "lock", lambda holder: tell(f"Waiting for {holder}")) as lock:
            # If we are killed meanwhile it goes on, and holds the lock.
            process = self._ray("down", lock=lock)
            try:
                process.wait(SECONDS_TO_TAKE_DOWN)
            except subprocess.TimeoutExpired:
                _kill_group(process)
        if process.returncode:
            raise ComputeUnavailable(self.still_costs(f"`ray down` said{_last_lines(self.folder / 'down.log')}"))
        tell(f"Cluster {self.name} was taken down")

    def still_costs(self, why: str) -> str:
        """What is said of a cluster that was not taken down."""
        return (
            f"Cluster {self.name} was NOT taken down: {why}\nIt costs as long as it is up. To see what is up: "
            "python -m infra.compute list; to take it down: python -m infra.compute release."
        )

    def _ray(self, command: str, *options: str, lock: int) -> subprocess.Popen[bytes]:
        words = [command, "--yes", "--log-style=pretty", "--log-color=false", *options, str(self._file)]
        # Machines of the local provider are up. Of the second autoscaler's state, the pending demand above all, the
        # dashboard's API tells nothing.
        patience = {"AUTOSCALER_NODE_START_WAIT_S": "30"} if self._is_local else {}
        environment = child_environment(RAY_UP_enable_autoscaler_v2="0", **patience)
        log = self.folder / f"{command}.log"
        return _start([*RAY, *words], log, environment, stdin=subprocess.DEVNULL, pass_fds=[lock])


class Tunnel:
    """A way to the dashboard on the head's loopback, as long as this process lives; mended when it breaks."""

    def __init__(self, file: Path, remote_port: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        # The pipe that it reads from is closed by whatever ends us.
        script = '(while :; do "$@"; sleep 1; done) & read _; kill -KILL 0'
        words = ["dashboard", "--no-config-cache", f"--port={port}", f"--remote-port={remote_port}", str(file)]
        shell = ["/bin/sh", "-c", script, "tunnel"]
        self._process = _start([*shell, *RAY, *words], log, child_environment(), stdin=subprocess.PIPE)

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def answer(self) -> int | None:
        """The HTTP status that anybody gets there; None if nothing answers."""
        with suppress(httpx.HTTPError):
            # Not through a proxy that the environment names for the world outside.
            return httpx.get(f"{self.url}/api/version", timeout=5, trust_env=False).status_code
        return None


def read_cluster_file(file: Path) -> dict[str, Any]:
    """What a cluster file says. Raises `SettingsError` unless it is as Ray's launcher wants it."""
    schema = json.loads(files("ray").joinpath("autoscaler", "ray-schema.json").read_text())
    try:
        config = yaml.safe_load(file.read_text())
        # Ray moves this one elsewhere before it looks.
        schema["properties"]["min_workers"] = {"type": "integer"}
        jsonschema.validate(config, schema)
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"which cannot be read ({type(error).__name__})"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        wrong = f"which is not YAML{f' (line {mark.line + 1})' if mark else ''}"
    except jsonschema.ValidationError as error:
        # Its own message shows the values, which are the file's business.
        place = ".".join(str(part) for part in error.absolute_path) or "the whole"
        wrong = f"which is no cluster file: {place} breaks the rule {error.validator} {error.validator_value!r}"[:400]
    else:
        return dict(config)
    raise SettingsError(
        f"RAY_CLUSTER_FILE is {file}, {wrong}.\nSee infra/ray-cluster.yaml for one that is right, or unset it."
    )


def _is_here(head: str) -> bool:
    with suppress(OSError):
        address = socket.gethostbyname(head)
        return address.startswith("127.") or address in own_addresses()
    return False


def _start(command: list[str], log: Path, environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start it in a session of its own: Ctrl-C in the terminal reaches us alone, and ssh finds nobody to ask."""
    options |= {"cwd": PROJECT_ROOT, "env": environment | {"RAY_USAGE_STATS_ENABLED": "0"}, "start_new_session": True}
    with _private_file(log) as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started in its session."""
    if process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _private_file(path: Path) -> IO[bytes]:
    """A file for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _last_lines(log: Path, count: int = 4) -> str:
    """The end of a log, as lines to hang below a sentence; without Ray's own account of where in Ray that was."""
    said = log.read_text(errors="replace").partition("New status: update-failed")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return ":" + "".join(f"\n  {line[:300]}" for line in lines[-count:]) if lines else " nothing"
