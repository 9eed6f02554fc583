"""What the stack consists of: the command of each part, its environment, whom it needs, and how it shows itself."""

import json
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from infra.private_file import write_private
from infra.settings import PROJECT_ROOT
from infra.stack import postgres
from infra.stack.settings import StackSettings

WORK_POOL = "this-machine"
WORK_POOL_TEMPLATE = Path(__file__).with_name("work_pool.json")
"""What a run may set of its process: nothing. Prefect's own template lets it set the command, folder and environment.

Nor is its output streamed: its log is on its page, and through a pipe to the worker, a run would die of writing once
the worker is dead.
"""

MLFLOW_KEY = "STACK_MLFLOW_KEY"
"""The variable that brings MLflow's key to the process that asks for it."""

USER = "pipeline"
"""The user's name that goes with the keys."""

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to that of the stack. Secrets go here: a command line can be read by everyone on the machine."""
    needs: tuple[str, ...]
    """Parts that must answer before this one is started."""
    answers: Callable[[], bool]
    stop_signal: str = "TERM"
    stop_seconds: int = 4
    """How long it may take to end, before it is killed. They end one after another, all of them within 30 s."""
    once: bool = False
    """It does its work and ends."""


def all_parts(stack: StackSettings) -> dict[str, Part]:
    """Every part by its name, in the order of starting."""
    return _servers(stack) | _users_of_the_servers(stack)


def _servers(stack: StackSettings) -> dict[str, Part]:
    database = f"postgresql+{{driver}}://{postgres.USER}@/{{name}}?host={stack.postgres_folder}"
    return {
        "postgres": Part(
            postgres.command(stack.postgres_folder, stack.postgres_programs),
            {},
            (),
            lambda: postgres.answers(stack.postgres_folder, stack.postgres_programs),
            stop_signal="INT",  # Its "fast" shutdown; TERM would wait for every client to leave.
        ),
        "store": Part(
            _command(
                *(BIN / "rclone", "serve", "s3", stack.folder / "store"),
                addr=f"127.0.0.1:{stack.store_port}",
                config=os.devnull,
            ),
            {"RCLONE_AUTH_KEY": f'"{",".join(store_key(stack))}"'},
            (),
            lambda: _answers(stack.loopback_url("store")),
            stop_seconds=2,
        ),
        "mlflow": Part(
            (sys.executable, "-m", "infra.stack.serve", "mlflow"),
            {
                **store_access(stack),
                MLFLOW_KEY: access_key(stack, "mlflow"),
                "MLFLOW_BACKEND_STORE_URI": database.format(driver="psycopg2", name="mlflow"),
                "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
                "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(urlsplit(one).netloc for one in stack.addresses("mlflow")),
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(stack.addresses("mlflow")),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            ("postgres", "store"),
            lambda: _answers(f"{stack.loopback_url('mlflow')}/health", 200),
        ),
        "prefect": Part(
            (sys.executable, "-m", "infra.stack.serve", "prefect"),
            {
                **_prefect_home(stack),
                "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{access_key(stack, 'prefect')}",
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(stack.addresses("prefect")),
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.format(driver="asyncpg", name="prefect"),
                "PREFECT_API_URL": stack.prefect_api_url,
                "PREFECT_SERVER_UI_API_URL": stack.prefect_api_url,
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
                "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(stack.prefect_pages_folder),
                # In memory, its default, the leases behind the deployments' limits are gone after a restart, and
                # a run whose lease cannot be renewed is killed by its own process.
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            },
            ("postgres",),
            lambda: _answers(f"{stack.loopback_url('prefect')}/api/health", 200),
        ),
    }


def _prefect_home(stack: StackSettings) -> dict[str, str]:
    return {"PREFECT_HOME": str(stack.folder / "prefect")}


def _users_of_the_servers(stack: StackSettings) -> dict[str, Part]:
    environment = {**_prefect_home(stack), **client_environment(stack)}
    return {
        "worker": Part(
            _command(
                *(sys.executable, "-m", "prefect", "worker", "start"),
                name="worker",
                pool=WORK_POOL,
                type="process",
                base_job_template=WORK_POOL_TEMPLATE,
            ),
            {**environment, "PREFECT_WORKER_QUERY_SECONDS": "2"},
            ("prefect",),
            lambda: _pool_is_ready(stack),
            stop_seconds=9,  # It reports how its flow runs have ended.
        ),
        "reconcile": Part(
            (sys.executable, "-m", "flows.reconcile"),
            environment,
            ("prefect", "mlflow"),
            lambda: True,
        ),
        "service": Part(
            _command(sys.executable, "-m", "flows.serve", "--wait", port=stack.service_port),
            environment,
            ("mlflow",),
            lambda: True,  # It listens once there is a champion.
        ),
        "deploy": Part(
            (sys.executable, "-m", "flows.deploy"),
            environment,
            ("worker", "mlflow", "store"),
            lambda: True,
            once=True,
        ),
    }


def _command(*words: object, **flags: object) -> tuple[str, ...]:
    return (*map(str, words), *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()))


def client_environment(stack: StackSettings) -> dict[str, str]:
    """The variables by which a flow, wherever it is started on this machine, uses the stack."""
    return {
        "PIPELINE_HOME": str(stack.home),
        "PREFECT_API_URL": stack.prefect_api_url,
        "PREFECT_API_AUTH_STRING": f"{USER}:{access_key(stack, 'prefect')}",
        "MLFLOW_TRACKING_URI": stack.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": access_key(stack, "mlflow"),
        "OBJECT_STORE_URI": "s3://pipeline",
        **store_access(stack),
        # Every 30 s, the shortest that Prefect takes: see ZOMBIE_SECONDS in flows/deploy.py.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # About four minutes of patience while the server restarts; the default of 5 gives up after one.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
    }


def store_access(stack: StackSettings) -> dict[str, str]:
    """The variables by which S3 clients find the store and may use it."""
    key_id, secret = store_key(stack)
    return {
        "AWS_ENDPOINT_URL": stack.store_url,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def store_key(stack: StackSettings) -> tuple[str, str]:
    """The store's key id and secret, which only the owner of the stack can read; made at the first call."""
    # rclone refuses a key id of a few letters.
    key_id, secret = _kept(stack, "store", lambda: [f"stack-{secrets.token_hex(8)}", secrets.token_urlsafe(30)])
    return key_id, secret


def access_key(stack: StackSettings, name: str) -> str:
    """The key that a server asks everyone for; one each, for who has Prefect's may have the worker run anything."""
    (key,) = _kept(stack, name, lambda: [secrets.token_urlsafe(30)])
    return key


def _kept(stack: StackSettings, name: str, made: Callable[[], list[str]]) -> list[str]:
    path = stack.folder / f"{name}-key.json"
    if not path.exists():
        write_private(path, json.dumps(made()))
    return [str(word) for word in json.loads(path.read_text())]


def environment_file(stack: StackSettings) -> str:
    """A shell file that lets the commands after it use the stack."""
    lines = ["# Source this: the pipeline then uses the stack. It holds the keys."]
    # Of another S3 account: a session token beside our key would be refused.
    lines += ["unset AWS_SESSION_TOKEN AWS_PROFILE"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in client_environment(stack).items()]
    return "\n".join(lines) + "\n"


def prepare(stack: StackSettings) -> None:
    """Everything on disk that the parts expect; safe to repeat, while none of them runs. Raises `SettingsError`."""
    postgres.prepare(stack.postgres_folder, ("mlflow", "prefect"), stack.postgres_programs)
    store = stack.folder / "store"
    shutil.rmtree(stack.temporary_folder, ignore_errors=True)
    for folder in (
        *(store / "pipeline", store / "mlflow", stack.folder / "prefect", stack.prefect_pages_folder),
        stack.temporary_folder,
    ):
        folder.mkdir(parents=True, exist_ok=True)
    write_private(stack.environment_path, environment_file(stack))
    write_private(stack.supervisor_configuration, _supervisor_configuration(stack))


def _answers(url: str, status: int | None = None) -> bool:
    try:
        found = httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return False
    return status is None or found == status


def _pool_is_ready(stack: StackSettings) -> bool:
    try:
        pool = httpx.get(
            f"{stack.loopback_url('prefect')}/api/work_pools/{WORK_POOL}",
            auth=(USER, access_key(stack, "prefect")),
            timeout=5,
        )
    except httpx.HTTPError:
        return False
    return pool.status_code == 200 and pool.json().get("status") == "READY"


def _supervisor_configuration(stack: StackSettings) -> str:
    def section(name: str, **options: object) -> str:
        # A percent sign begins an expansion there.
        lines = (f"{key} = {str(value).replace('%', '%%')}" for key, value in options.items())
        return "\n".join([f"[{name}]", *lines, ""])

    socket = stack.folder / "supervisor.sock"
    # The socket's mode keeps others out; without a password as well supervisor warns at each start.
    access = {"username": "stack", "password": secrets.token_hex(16)}
    logs = stack.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    ours = [sys.executable, "-m", "infra.stack"]
    as_root = {"user": "root"} if os.geteuid() == 0 else {}  # Else it warns of what was meant so.
    sections = [
        section(
            "supervisord",
            nodaemon="true",
            logfile=logs / "supervisor.log",
            pidfile=stack.folder / "supervisor.pid",
            childlogdir=logs,
            directory=PROJECT_ROOT,
            **as_root,
        ),
        section("unix_http_server", file=socket, chmod="0700", **access),
        section("supervisorctl", serverurl=f"unix://{socket}", **access),
        section(
            "rpcinterface:supervisor",
            **{"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
        section(
            "eventlistener:log",
            command=shlex.join([*ours, "log"]),
            events="PROCESS_LOG,PROCESS_STATE_BACKOFF,PROCESS_STATE_EXITED,PROCESS_STATE_FATAL",
            # Lines that wait while the terminal is slow; more are dropped.
            buffer_size=10_000,
            priority=0,
            stderr_logfile="/dev/fd/1",
            stderr_logfile_maxbytes=0,
            stdout_logfile="NONE",
        ),
    ]
    for priority, (name, part) in enumerate(all_parts(stack).items(), start=1):
        sections.append(
            section(
                f"program:{name}",
                command=shlex.join([*ours, "part", name]),
                priority=priority,
                autorestart="unexpected" if part.once else "true",
                startsecs=0 if part.once else 2,
                startretries=20,
                stopsignal=part.stop_signal,
                stopwaitsecs=part.stop_seconds,
                killasgroup="true",
                redirect_stderr="true",
                stdout_events_enabled="true",
                stdout_logfile=logs / f"{name}.log",
                stdout_logfile_maxbytes="10MB",
                stdout_logfile_backups=2,
            )
        )
    return "\n".join(sections)
