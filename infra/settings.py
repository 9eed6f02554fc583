"""Where the services are: the only reader of the environment.

Settings differ between two machines; what differs between two runs is a parameter of the flow.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from infra.errors import SettingsError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Where the services are, on this machine."""

    home: Path
    """Folder of everything that the pipeline keeps on this machine."""
    object_store_uri: str
    """Any address that fsspec can write under: a folder's `file://` address or `s3://bucket/prefix`."""
    mlflow_tracking_uri: str
    prefect_api_url: str | None
    """None: Prefect starts a temporary server for the run."""
    dataset_mirrors: tuple[str, ...]
    """Addresses to download from, in order; empty: those that the catalog names for the data set."""
    dataset_catalog: Path
    """The TOML file that names the data sets."""
    object_store_endpoint: str | None
    """Where an S3 store is, if that is not AWS itself."""
    ray_jobs_url: str | None
    """The address of a Ray cluster's dashboard."""
    ray_cluster_file: Path | None
    """A file for Ray's cluster launcher; where it is set, there is no `ray_jobs_url`."""

    @property
    def datasets_folder(self) -> Path:
        """Downloaded data sets, a folder each."""
        return self.home / "datasets"

    @property
    def scratch_folder(self) -> Path:
        """Working folders of running jobs."""
        return self.home / "scratch"

    @property
    def locks_folder(self) -> Path:
        """Lock files, held while a process works on what they name."""
        return self.home / "locks"

    @property
    def mlflow_artifacts_uri(self) -> str | None:
        """Where a new experiment keeps its files; None: the MLflow server decides."""
        if is_http(self.mlflow_tracking_uri):
            return None
        return (self.home / "mlflow" / "artifacts").as_uri()


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this machine, from `environment` (default: that of the process).

    Raises `SettingsError` naming the variable and its value. Nothing is created.
    """
    env = os.environ if environment is None else environment
    home = Path(env.get("PIPELINE_HOME") or PROJECT_ROOT / ".pipeline").expanduser().absolute()
    if home.exists() and not home.is_dir():
        raise SettingsError(f"PIPELINE_HOME is {home}, which is not a folder.\nName a folder, or unset it.")
    store = env.get("OBJECT_STORE_URI") or (home / "object-store").as_uri()
    if "://" not in store:
        store = Path(store).expanduser().absolute().as_uri()
    tracking = env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    if urlsplit(tracking).scheme not in ("http", "https") and not tracking.startswith(_DATABASES):
        raise SettingsError(
            f"MLFLOW_TRACKING_URI is {without_secrets(tracking)!r}, which is neither an MLflow server (http://, "
            "https://)\nnor a database (sqlite:///, postgresql://, mysql://). MLflow's folder store cannot hold\n"
            "registered models with aliases. Correct it, or unset it to use a database under PIPELINE_HOME."
        )
    catalog = Path(env.get("DATASET_CATALOG") or PROJECT_ROOT / "tasks" / "datasets.toml").expanduser().absolute()
    if not catalog.is_file():
        raise SettingsError(f"DATASET_CATALOG is {catalog}, and there is no such file.")
    jobs_url = env.get("RAY_JOBS_URL") or None
    if jobs_url and not is_http(jobs_url):
        raise SettingsError(
            f"RAY_JOBS_URL is {without_secrets(jobs_url)!r}, which is not the address of a Ray dashboard (http://,\n"
            "https://), usually port 8265. Correct it, or unset it."
        )
    cluster_file = Path(env["RAY_CLUSTER_FILE"]).expanduser().absolute() if env.get("RAY_CLUSTER_FILE") else None
    if cluster_file and not cluster_file.is_file():
        raise SettingsError(f"RAY_CLUSTER_FILE is {cluster_file}, and there is no such file.\nCorrect it, or unset it.")
    if cluster_file and jobs_url:
        raise SettingsError(
            "RAY_JOBS_URL and RAY_CLUSTER_FILE are both set, and each names the cluster to train on.\nUnset one: "
            "RAY_JOBS_URL for a cluster that exists, RAY_CLUSTER_FILE for one that is launched where it is not up."
        )
    return Settings(
        home=home,
        object_store_uri=store.rstrip("/"),
        mlflow_tracking_uri=tracking,
        prefect_api_url=env.get("PREFECT_API_URL") or None,
        dataset_mirrors=tuple(env.get("MNIST_MIRRORS", "").replace(",", " ").split()),
        dataset_catalog=catalog,
        object_store_endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None,
        ray_jobs_url=jobs_url,
        ray_cluster_file=cluster_file,
    )


@dataclass(frozen=True)
class StackSettings:
    """Where the stack's servers listen, and where they keep their state."""

    home: Path
    prefect_port: int
    mlflow_port: int
    store_port: int
    postgres_programs: Path | None
    """The folder of PostgreSQL's programs. None: the newest of those that are installed."""
    failure_notification_url: str | None
    """A chat's incoming webhook, to tell of failed runs; a secret. None: nobody is told."""

    @property
    def folder(self) -> Path:
        """Everything that the servers keep."""
        return self.home / "stack"

    @property
    def postgres_folder(self) -> Path:
        """PostgreSQL's files and its socket."""
        return self.folder / "postgres"

    @property
    def prefect_pages_folder(self) -> Path:
        """The files of Prefect's UI, as its server puts them there."""
        return self.folder / "prefect-pages"

    @property
    def supervisor_configuration(self) -> Path:
        """Written at each start; `supervisorctl -c` takes it."""
        return self.folder / "supervisord.conf"

    @property
    def environment_path(self) -> Path:
        """A shell file to source, mode 0600."""
        return self.home / "stack.env"

    @property
    def ports(self) -> dict[str, int]:
        """The port of each server that has one."""
        return {"prefect": self.prefect_port, "mlflow": self.mlflow_port, "store": self.store_port}

    @property
    def prefect_url(self) -> str:
        """Prefect's UI."""
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def prefect_api_url(self) -> str:
        """Prefect's API."""
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and API."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def store_url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.store_port}"


def load_stack_settings(environment: Mapping[str, str] | None = None) -> StackSettings:
    """The settings of the stack on this machine. Raises `SettingsError` naming the variable and its value."""
    env = os.environ if environment is None else environment
    programs = Path(env["STACK_POSTGRES_BIN"]).expanduser().absolute() if env.get("STACK_POSTGRES_BIN") else None
    if programs and not (programs / "postgres").is_file():
        raise SettingsError(
            f"STACK_POSTGRES_BIN is {programs}, and there is no program postgres in it.\n"
            "Name the folder in which postgres, initdb and pg_isready are, or unset it."
        )
    return StackSettings(
        home=load_settings({"PIPELINE_HOME": env.get("PIPELINE_HOME", "")}).home,
        prefect_port=_port(env, "STACK_PREFECT_PORT", 4200),
        mlflow_port=_port(env, "STACK_MLFLOW_PORT", 5000),
        store_port=_port(env, "STACK_STORE_PORT", 9000),
        postgres_programs=programs,
        failure_notification_url=env.get("STACK_FAILURE_NOTIFICATION_URL") or None,
    )


def _port(env: Mapping[str, str], variable: str, default: int) -> int:
    given = env.get(variable) or str(default)
    if not given.isdecimal() or not 0 < int(given) < 65_536:
        raise SettingsError(f"{variable} is {given!r}, which is no TCP port (1 to 65535).")
    return int(given)


_DATABASES = ("sqlite:///", "postgresql", "mysql", "mssql")


def is_http(uri: str) -> bool:
    """True for the address of a server, as opposed to a file or a database of this machine."""
    return urlsplit(uri).scheme in ("http", "https")


def without_secrets(uri: str) -> str:
    """`uri` as it may be shown: the password and the query, where signatures stand, are left out."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    if "@" in parts.netloc:
        host = f"***@{host}"
    query = "***" if parts.query else ""
    # urlunsplit() drops the empty host of sqlite:////path and file:///path.
    return urlunsplit((parts.scheme, host, parts.path, query, "")) if host else uri.partition("?")[0]


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that this one starts: its own, with `changes`."""
    return {**os.environ, **changes}


@contextmanager
def environment_unchanged() -> Iterator[None]:
    """Undo what the block does to this process's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
