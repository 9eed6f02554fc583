"""Compute: a Ray cluster that the flow launches from a cluster file, with Ray's own launcher, and takes down again.

`ray up` and `ray down` run as processes of their own: they print, they prompt, they end their process, and a flow that
is told to stop must be able to end them. What they do is under `clusters/` in PIPELINE_HOME:

    <cluster>/lock           held by whoever launches the cluster or takes it down, and by `ray up` itself: that of a
                             flow that was killed goes on, and the next flow waits for it
    <cluster>/users.lock     shared by the flows that use it; the kernel lets go of those that have died
    <cluster>/launched.yaml  the file as it was launched, there from before `ray up` until the cluster is gone. It says
                             that the cluster is ours: the last flow that uses it takes it down
    <cluster>/token          what the cluster asks everyone for, made for each launch; it is how we know it as ours

A cluster that is up and is not ours is used and left as it was. The dashboard listens on the head's loopback, and is
reached through `ssh -L`.
"""

import http.client
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
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import jsonschema
import psutil
import yaml

from infra.compute import Accelerator, ClusterOptions, ComputeDescription, Workload
from infra.compute.ray_cluster import SECONDS_WITHOUT_ANSWER, RayCluster
from infra.compute.ray_dashboard import check_addresses, connect, own_addresses
from infra.compute.ray_job import ACTIVE
from infra.compute.ray_lease import read_lease
from infra.errors import ComputeUnavailable, ObjectStoreError, PipelineError, SettingsError
from infra.lock import hold, is_shared, share
from infra.object_store import ObjectStore
from infra.settings import PROJECT_ROOT, Settings, child_environment

SECONDS_TO_CONNECT = 30.0
SECONDS_TO_START = 120.0
"""Between the end of `ray up` and the dashboard's first answer."""
SECONDS_TO_TAKE_DOWN = 300.0
SECONDS_TO_ASK = 120.0
DASHBOARD_PORT = 8265
POLL_SECONDS = 0.5

RAY = (sys.executable, "-m", "ray.scripts.scripts")

LOGGER = logging.getLogger(__name__)


class LaunchedCluster(RayCluster):
    """Runs jobs on the cluster of a file, which is launched where it is not up."""

    def __init__(
        self,
        file: Path,
        settings: Settings,
        accelerator: Accelerator,
        options: ClusterOptions,
        workload: Workload,
        patience_seconds: float = SECONDS_WITHOUT_ANSWER,
    ) -> None:
        """Launches nothing. Raises `SettingsError` as `RayCluster` does, and for a file that is no cluster file."""
        super().__init__("http://127.0.0.1", settings, accelerator, options, workload, patience_seconds)
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
                self._url, self._token = self._tunnel.url, self._tunnel.token
                self._client_or_none = None
        return super().provision(tell, deadline)

    def release(self) -> None:
        """End the job as `RayCluster.release` does, and take the cluster down if it is ours and no other flow's."""
        super().release()
        with self._attaching:
            if self._tunnel is not None:
                self._tunnel.close()
                self._tunnel = None
            self._cluster.leave()

    @property
    def _shown(self) -> str:
        return f"{self._cluster.name} (RAY_CLUSTER_FILE)"


class ClusterOfFile:
    """The cluster that a file describes, whether it is up or not."""

    def __init__(self, file: Path, settings: Settings) -> None:
        """Raises `SettingsError` if the file is no cluster file."""
        self._file = file
        self._settings = settings
        self._config = read_cluster_file(file)
        self.name = str(self._config["cluster_name"])
        provider = self._config["provider"]["type"]
        self.folder = settings.home / "clusters" / re.sub(r"[^\w.-]", "_", f"{provider}-{self.name}")
        self._users: int | None = None
        self._tell: Callable[[str], None] = LOGGER.info

    @property
    def is_ours(self) -> bool:
        """True if a flow of this machine launched it, or began to, and none has taken it down."""
        return self._launched.exists()

    @property
    def is_used(self) -> bool:
        """True if a living flow of this machine uses it."""
        return is_shared(self.folder / "users.lock")

    @property
    def token(self) -> Path:
        """The file with the token of the cluster, if it is ours; mode 0600."""
        return self.folder / "token"

    def check(self) -> None:
        """Raise `SettingsError` for what cannot work; asks nobody."""
        head = _known_head(self._config)
        check_addresses(self._settings, cluster_is_elsewhere=head is None or not _is_here(head))
        missing = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
        if missing:
            raise SettingsError(
                f"--compute ray with RAY_CLUSTER_FILE needs {' and '.join(missing)}, with which Ray's launcher works.\n"
                "Install it: apt-get install openssh-client rsync."
            )
        absent = [here for here in self._file_mounts.values() if not Path(here).exists()]
        if absent:
            # Ray would find out with the head up.
            raise SettingsError(
                f"RAY_CLUSTER_FILE is {self._file}, whose file_mounts bring {', '.join(absent)} to every node: there "
                f"is no such file.\nRelative paths are taken from {PROJECT_ROOT}: correct them."
            )

    @property
    def _file_mounts(self) -> dict[str, str]:
        """The file's own: local paths by those on the nodes. Relative ones are the project's, wherever we run."""
        mounts = self._config.get("file_mounts") or {}
        return {there: str(PROJECT_ROOT / Path(here).expanduser()) for there, here in mounts.items()}

    # Finding and launching

    def join(self, tell: Callable[[str], None], deadline: float, stop: Event) -> "Tunnel":
        """Use the cluster, which is launched where it is not up, until `leave`; returns an open tunnel to it.

        Raises `ComputeUnavailable`, and has taken down what it launched.
        """

        def wait(seconds: float) -> None:
            if stop.wait(seconds):
                raise ComputeUnavailable("The compute was released before its cluster was up.")
            if time.monotonic() > deadline:
                raise ComputeUnavailable(
                    f"Cluster {self.name} ({self._file}) was not up within the time allowed (--provision-timeout).\n"
                    f"What Ray's launcher said: {self.folder / 'up.log'}. See what it waits for, or allow more time."
                )

        def on_wait(holder: str) -> None:
            tell(f"Cluster {self.name} is being launched or taken down by {holder}: waiting for it")

        self._tell = tell
        tunnel: Tunnel | None = None
        with hold(self.folder / "lock", on_wait, wait=wait) as lock:
            self._users = self._users or share(self.folder / "users.lock")
            try:
                tunnel = self._find(tell)
                if tunnel is None:
                    tunnel = self._launch(tell, wait, lock)
                return tunnel
            except BaseException:
                if tunnel is not None:
                    tunnel.close()
                self._leave_locked(lock)
                raise

    def _find(self, tell: Callable[[str], None]) -> "Tunnel | None":
        tunnel = self._look_locked()
        if tunnel is None:
            return None
        if self.is_ours:
            tell(f"Found cluster {self.name}, which another flow from here launched: the last to use it takes it down")
        else:
            tell(f"Found cluster {self.name}, which is up already: it is not taken down at the end")
        return tunnel

    def look(self) -> "Tunnel | None":
        """A tunnel to the cluster; None if it is not up. Raises `ComputeUnavailable` if that cannot be told.

        It has a token if the cluster is ours: another may have taken the place of the one that we launched.
        """
        file = self._launched if self.is_ours else self._file
        config = read_cluster_file(file)
        head, auth = _known_head(config), config.get("auth", {})
        if head is None:
            head, auth = ask_provider(file)
        if head is None:
            return None
        token = self.token if self.is_ours else None
        tunnel = Tunnel.open(head, auth, _dashboard_port(config), token, self.folder / "tunnel.log")
        if tunnel is not None and tunnel.asks_for_its_token() is False:
            tunnel.token = None
        return tunnel

    def _look_locked(self) -> "Tunnel | None":
        tunnel = self.look()
        if tunnel is not None and self.is_ours and tunnel.token is None:
            LOGGER.warning("Cluster %s is not the one that was launched from here: it is left alone", self.name)
            self._forget()
        return tunnel

    def _launch(self, tell: Callable[[str], None], wait: Callable[[float], None], lock: int) -> "Tunnel":
        log = self.folder / "up.log"
        config = self._with_token()
        _write_secret(self.token, secrets.token_hex(32))
        _write_secret(self._launched, yaml.safe_dump(config))
        tell(f"Launching cluster {self.name} from {self._file}; the launcher's log: {log}")
        started = time.monotonic()
        # Every setup of a cloud is looked up anew: a cache from an earlier launch may name what is gone.
        process = _ray("up", "--yes", "--no-config-cache", self._launched, log=log, lock=lock)
        shown = ""
        try:
            while process.poll() is None:
                wait(POLL_SECONDS)
                states = re.findall(r"New status: (\S+)", log.read_text(errors="replace"))
                if states and states[-1] != shown:
                    shown = states[-1]
                    tell(f"Cluster {self.name}: its head is {shown}")
        finally:
            _end_group(process)
        if process.returncode:
            raise ComputeUnavailable(
                f"Cluster {self.name} ({self._file}) was not launched: `ray up` ended with exit status "
                f"{process.returncode}, and its last words were{_last_lines(log)}\nThe whole log: {log}."
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while (tunnel := self.look()) is None or tunnel.asks_for_its_token() is None:
            if tunnel is not None:
                tunnel.close()
            if time.monotonic() > deadline:
                raise ComputeUnavailable(
                    f"Cluster {self.name} ({self._file}) was launched, and no dashboard answers on port "
                    f"{_dashboard_port(self._config)} of its head.\nIt must run there, on loopback: see "
                    f"head_start_ray_commands, and the launcher's log, {log}."
                )
            wait(POLL_SECONDS)
        if tunnel.token is None:
            tunnel.close()
            self._take_down_locked(lock)
            raise ComputeUnavailable(
                f"Cluster {self.name} ({self._file}) was launched, and does not ask for the token that it was given.\n"
                "Whoever reaches it could run anything there. Does a command in the file set RAY_AUTH_MODE otherwise?"
            )
        tell(
            f"Cluster {self.name} is up after {time.monotonic() - started:.0f} s; its head costs until it is taken down"
        )
        return tunnel

    def _with_token(self) -> dict[str, Any]:
        """The file's content, with the token brought to every node and asked for there."""
        path = f"~/.ray/{self.folder.name}.token"
        # The nonce makes every launch another one to Ray: it does not bring the files anew to a head that it finds
        # stopped, as some clouds keep them.
        prefix = f": launch {secrets.token_hex(4)}; export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={path}; "
        config = dict(self._config)
        for name in ("head_start_ray_commands", "worker_start_ray_commands"):
            commands = config.get(name)
            if not commands:
                raise SettingsError(
                    f"RAY_CLUSTER_FILE is {self._file}, and has no {name}.\nSpell them out, as infra/ray-cluster.yaml "
                    "does: the token of the cluster is given to them, and the dashboard's place is read from them."
                )
            if any(re.search(r"RAY_AUTH_MODE=(?!token\b)", command) for command in commands):
                raise SettingsError(
                    f"RAY_CLUSTER_FILE is {self._file}, whose {name} turn Ray's token authentication off.\nWhoever "
                    "reaches such a cluster runs anything there: leave RAY_AUTH_MODE out. One that somebody launched "
                    "by hand is used as it is."
                )
            config[name] = [prefix + command for command in commands]
        config["file_mounts"] = {**self._file_mounts, path: str(self.token)}
        return config

    # Leaving and taking down

    def leave(self) -> None:
        """Use the cluster no more, and take it down if it is ours and nobody else uses it; warns instead of raising.

        Safe twice, and without `join`: what a flow that was killed has left is taken down as well.
        """
        try:
            if not self.is_ours:
                return
            deadline = time.monotonic() + SECONDS_TO_TAKE_DOWN

            def wait(seconds: float) -> None:
                time.sleep(seconds)
                if time.monotonic() > deadline:
                    raise ComputeUnavailable("another process has been launching it or taking it down all the time")

            # Until it is locked, this flow counts as one that uses it: of two that leave at once, one must be last.
            with hold(self.folder / "lock", lambda _: None, wait=wait) as lock:
                self._leave_locked(lock)
        except (PipelineError, OSError, ValueError, subprocess.SubprocessError) as error:
            LOGGER.warning("%s", self._still_costs(str(error)))
        finally:
            self._drop_use()

    def _leave_locked(self, lock: int) -> None:
        self._drop_use()
        if self.is_ours and self.is_used:
            self._tell(f"Cluster {self.name} stays up for another flow that uses it, which will take it down")
            return
        jobs = self._jobs_of_others() if self.is_ours else []
        if not self.is_ours:
            return
        if jobs:
            LOGGER.warning("%s", self._still_costs(f"others use it: {', '.join(jobs)}"))
            return
        try:
            self._take_down_locked(lock)
        except ComputeUnavailable as error:
            LOGGER.warning("%s", error)

    def _jobs_of_others(self) -> list[str]:
        """The jobs on the cluster that somebody alive waits for."""
        tunnel = None
        try:
            tunnel = self._look_locked()
            if tunnel is None:
                return []
            store = ObjectStore(self._settings.object_store_uri)
            # A job named `end-` does no more than end another.
            jobs = [job for job in connect(tunnel.url, tunnel.token).list_jobs() if job.status in ACTIVE]
            names = [name for job in jobs if (name := job.submission_id) and not name.startswith("end-")]
            return [f"job {name}" for name in names if not _is_over(name, store)]
        except ComputeUnavailable as error:
            LOGGER.debug("Who uses cluster %s cannot be asked: %s", self.name, error)
            return []
        finally:
            if tunnel is not None:
                tunnel.close()

    def take_down(self, tell: Callable[[str], None]) -> None:
        """Take down the cluster if it is ours, whoever uses it; raises `ComputeUnavailable` if it may still be up."""
        with hold(self.folder / "lock", lambda holder: tell(f"Waiting for {holder}")) as lock:
            if self.is_ours:
                self._take_down_locked(lock)

    def _take_down_locked(self, lock: int) -> None:
        log = self.folder / "down.log"
        # If we are killed meanwhile it goes on, and holds the lock.
        process = _ray("down", "--yes", self._launched, log=log, lock=lock)
        try:
            process.wait(SECONDS_TO_TAKE_DOWN)
        except subprocess.TimeoutExpired:
            _end_group(process)
        if process.returncode:
            raise ComputeUnavailable(self._still_costs(f"`ray down` said{_last_lines(log)}"))
        # Its exit status is 0 as well where it could not reach the head.
        try:
            tunnel = self.look()
        except ComputeUnavailable as error:
            raise ComputeUnavailable(self._still_costs(str(error))) from error
        if tunnel is not None:
            tunnel.close()
            raise ComputeUnavailable(self._still_costs(f"its head still answers after `ray down`, see {log}"))
        self._forget()
        self._tell(f"Cluster {self.name} was taken down")

    def _still_costs(self, why: str) -> str:
        return (
            f"Cluster {self.name} was NOT taken down: {why}\nIt costs as long as it is up. To see what is up: "
            "python -m infra.compute list; to take it down: python -m infra.compute release."
        )

    def _drop_use(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _forget(self) -> None:
        self._launched.unlink(missing_ok=True)
        self.token.unlink(missing_ok=True)

    @property
    def _launched(self) -> Path:
        return self.folder / "launched.yaml"


class Tunnel:
    """A way to the dashboard on the head's loopback, as long as this process lives; mended when it breaks."""

    def __init__(self, command: list[str], port: int, token: Path | None, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.token = token
        self._command, self._log = command, log
        self._closed = Event()
        self._process = self._start()
        self._mending = Thread(target=self._mend, name="tunnel", daemon=True)

    @classmethod
    def open(
        cls, head: str, auth: Mapping[str, Any], remote_port: int, token: Path | None, log: Path
    ) -> "Tunnel | None":
        """An open tunnel; None if the head lets us in and nothing answers there. Raises `ComputeUnavailable`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        log.parent.mkdir(parents=True, exist_ok=True)
        tunnel = cls(_ssh_command(head, auth, port, remote_port), port, token, log)
        deadline = time.monotonic() + SECONDS_TO_CONNECT
        try:
            while True:
                ended = tunnel._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise ComputeUnavailable(
                        f"ssh does not reach {auth.get('ssh_user', '')}@{head}, the head of the cluster:"
                        f"{_last_lines(log) if ended else f' it was given {SECONDS_TO_CONNECT:g} s'}\n"
                        "Are address, user and key in the cluster file right, and is the machine up?"
                    )
                try:
                    tunnel._status_of_version(None)
                except ConnectionRefusedError:
                    time.sleep(0.1)  # ssh listens once it is let in.
                    continue
                except TimeoutError:
                    continue
                except (OSError, http.client.HTTPException):
                    tunnel.close()
                    return None
                tunnel._mending.start()
                return tunnel
        except BaseException:
            tunnel.close()
            raise

    def asks_for_its_token(self) -> bool | None:
        """True if the cluster lets in us with our token, and nobody without; None if that cannot be told just now."""
        if self.token is None:
            return False
        with suppress(OSError, http.client.HTTPException):
            without, ours = self._status_of_version(None), self._status_of_version(self.token.read_text())
            if without == 200 or ours in (401, 403):
                return False
            return True if ours == 200 else None
        return None

    def close(self) -> None:
        """End it."""
        self._closed.set()
        if self._mending.is_alive():
            self._mending.join()
        _end(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            # Its remote command is `cat`, which ends with our end of the pipe: whatever kills us ends the tunnel.
            return subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def _mend(self) -> None:
        while not self._closed.wait(1):
            if self._process.poll() is not None:
                LOGGER.debug("The tunnel to the cluster broke and is opened again:%s", _last_lines(self._log))
                _end(self._process)
                self._process = self._start()

    def _status_of_version(self, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        request = urllib.request.Request(f"{self.url}/api/version", headers=headers)
        # Not through a proxy that the environment names for the world outside.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError as error:
            raise (error.reason if isinstance(error.reason, OSError) else error) from None


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


def ask_provider(file: Path) -> tuple[str | None, dict[str, Any]]:
    """The address of the head of a running cluster, and how one gets in by ssh; None if its provider has none.

    Raises `ComputeUnavailable` if the provider cannot be asked.
    """
    code = """
import json, sys, yaml
from ray.autoscaler.sdk import bootstrap_config, get_head_node_ip
file = sys.argv[1]
try:
    head = get_head_node_ip(file)
except RuntimeError as error:
    if "not found" not in str(error):
        raise
    head = None
# A key that Ray itself has made is named nowhere else.
auth = bootstrap_config(yaml.safe_load(open(file)))["auth"] if head else {}
print(json.dumps([head, auth]))
"""
    command = [sys.executable, "-c", code, str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ASK, check=True)
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
        raise ComputeUnavailable(
            f"The provider of {file} cannot be asked whether its cluster is up: {' '.join(said)[:300]}\n"
            "Are its credentials here, and its package (boto3 for AWS)?"
        ) from None
    head, auth = json.loads(done.stdout.splitlines()[-1])
    return head, auth


def _is_over(job: str, store: ObjectStore) -> bool:
    """True if the job's flow has died, has let it go, or is this one, which leaves."""
    try:
        lease = read_lease(store, job)
    except ObjectStoreError:
        return False
    if lease is None:
        return False
    host, _, pid = str(lease["holder"]).rpartition(":")
    died = host == socket.gethostname() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
    return bool(lease["released"]) or died or time.time() - lease["renewed"] > lease["timeout"]


def _is_here(head: str) -> bool:
    try:
        address = socket.gethostbyname(head)
    except OSError:
        return False
    return address.startswith("127.") or address in own_addresses()


def _ssh_command(head: str, auth: Mapping[str, Any], port: int, remote_port: int) -> list[str]:
    options = {
        # As Ray's launcher has it: the heads of a cloud come and go, and it has sent the token there already.
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": os.devnull,
        "LogLevel": "ERROR",
        "BatchMode": "yes",
        "ConnectTimeout": 10,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        "ExitOnForwardFailure": "yes",
        # The launcher's own connection is shared and outlives us; a tunnel in it would as well.
        "ControlPath": "none",
    }
    key = auth.get("ssh_private_key")
    if key:
        options["IdentitiesOnly"] = "yes"
    if auth.get("ssh_proxy_command"):
        options["ProxyCommand"] = auth["ssh_proxy_command"]
    target = f"{auth['ssh_user']}@{head}" if auth.get("ssh_user") else head
    return [
        "ssh",
        "-T",
        "-L",
        f"127.0.0.1:{port}:127.0.0.1:{remote_port}",
        *(("-i", str(Path(key).expanduser())) if key else ()),
        *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
        target,
        "cat",
    ]


def _known_head(config: Mapping[str, Any]) -> str | None:
    """The head's address, where the file itself says it: with Ray's local provider."""
    provider = config["provider"]
    if provider["type"] != "local":
        return None
    head: str | None = provider.get("external_head_ip") or provider.get("head_ip")
    return head


def _dashboard_port(config: Mapping[str, Any]) -> int:
    commands = " ".join(config.get("head_start_ray_commands") or ())
    found = re.search(r"--dashboard-port[= ](\d+)", commands)
    return int(found[1]) if found else DASHBOARD_PORT


def _ray(command: str, *arguments: str | Path, log: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start the launcher, in a session of its own, so that Ctrl-C in the terminal reaches us alone."""
    # Of the second autoscaler's state, the pending demand above all, the dashboard's API tells nothing.
    environment = child_environment(RAY_UP_enable_autoscaler_v2="0", RAY_USAGE_STATS_ENABLED="0")
    with _open_secret(log) as out:
        return subprocess.Popen(
            [*RAY, command, "--log-style=pretty", "--log-color=false", *map(str, arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, and wait for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started in its session."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _open_secret(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _write_secret(path: Path, text: str) -> None:
    """Write a file for this user alone, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with _open_secret(new) as out:
        out.write(text.encode())
    new.replace(path)


def _last_lines(log: Path, count: int = 4) -> str:
    """The end of a log, as lines to hang below a sentence."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return ":" + "".join(f"\n  {line[:300]}" for line in lines[-count:]) if lines else " nothing"
