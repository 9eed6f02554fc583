"""Where the services are: the only reader of the environment.

Settings differ between two machines; what differs between two runs is a parameter of the flow.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from fsspec import available_protocols

from infra.addresses import basic_authorization, has_login, is_http, split_login, without_secrets
from infra.errors import SettingsError
from infra.lock import owner
from infra.proxies import left_out_proxy

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# What we make, and who we start, is not writable for others: a program in the scratch folder is run.
os.umask(os.umask(0o077) | 0o022)


@dataclass(frozen=True)
class Settings:
    """Where the services are, on this machine."""

    home: Path
    """Folder of everything that the pipeline keeps on this machine."""
    object_store_uri: str
    """Any address that fsspec can write under: a folder's `file://` address or `s3://bucket/prefix`."""
    mlflow_tracking_uri: str = field(repr=False)
    """The address of a server without a login, which stands in the environment; of a database with its password."""
    prefect_api_url: str | None
    """None: Prefect starts a temporary server for the run."""
    dataset_mirrors: tuple[str, ...] = field(repr=False)
    """Addresses to download from, in order; empty: those that the catalog names for the data set."""
    dataset_catalog: Path
    """The TOML file that names the data sets."""
    object_store_endpoint: str | None
    """Where an S3 store is, if that is not AWS itself."""
    ray_jobs_url: str | None = field(repr=False)
    """The address of a Ray cluster's dashboard, with the login that a proxy before it wants."""
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
    def mlflow_database_file(self) -> Path | None:
        """MLflow's database, if that is a file of this machine."""
        found = self.mlflow_tracking_uri.removeprefix(_SQLITE).partition("?")[0]
        return Path(found) if self.mlflow_tracking_uri.startswith(_SQLITE) else None

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
    env = os.environ if environment is None else dict(environment)
    move_logins(env)
    home = _folder("PIPELINE_HOME", env.get("PIPELINE_HOME") or str(PROJECT_ROOT / ".pipeline"))
    _refuse_home_of_another(home)
    if home.exists() and not home.is_dir():
        raise SettingsError(f"PIPELINE_HOME is {home}, which is not a folder.\nName a folder, or unset it.")
    if impossible := re.search(r"[?#%]", str(home)):
        raise SettingsError(
            f"PIPELINE_HOME is {home}, and the address of a database in it cannot hold {impossible[0]!r}.\n"
            "Name another folder."
        )
    store = _store(env.get("OBJECT_STORE_URI") or str(home / "object-store"))
    tracking = _tracking(env.get("MLFLOW_TRACKING_URI", ""), home)
    catalog = _folder("DATASET_CATALOG", env.get("DATASET_CATALOG") or str(PROJECT_ROOT / "tasks" / "datasets.toml"))
    if not catalog.is_file():
        raise SettingsError(f"DATASET_CATALOG is {catalog}, and there is no such file.")
    jobs_url, cluster_file = _cluster(env)
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    prefect = env.get("PREFECT_API_URL") or None
    _refuse_unusable_proxies(
        MLFLOW_TRACKING_URI=tracking, PREFECT_API_URL=prefect, RAY_JOBS_URL=jobs_url, AWS_ENDPOINT_URL=endpoint
    )
    _refuse_logins(tracking, store)
    return Settings(
        home=home,
        object_store_uri=store,
        mlflow_tracking_uri=tracking,
        prefect_api_url=prefect,
        dataset_mirrors=tuple(_mirrors(env.get("MNIST_MIRRORS", ""))),
        dataset_catalog=catalog,
        object_store_endpoint=endpoint,
        ray_jobs_url=jobs_url,
        ray_cluster_file=cluster_file,
    )


def _tracking(given: str, home: Path) -> str:
    tracking = _address("MLFLOW_TRACKING_URI", given) or f"{_SQLITE}{home / 'mlflow' / 'mlflow.db'}"
    if not is_http(tracking) and not tracking.startswith(_DATABASES):
        raise SettingsError(
            f"MLFLOW_TRACKING_URI is {without_secrets(tracking)!r}, which is neither an MLflow server (http://, "
            "https://)\nnor a database (sqlite:///, postgresql://, mysql://). MLflow's folder store cannot hold\n"
            "registered models with aliases. Correct it, or unset it to use a database under PIPELINE_HOME."
        )
    return _absolute_database(tracking) if tracking.startswith(_SQLITE) else tracking


def _cluster(env: Mapping[str, str]) -> tuple[str | None, Path | None]:
    """The dashboard of a Ray cluster, or the file that one is launched from."""
    jobs_url = env.get("RAY_JOBS_URL") or None
    if jobs_url and not is_http(jobs_url):
        raise SettingsError(
            f"RAY_JOBS_URL is {without_secrets(jobs_url)!r}, which is not the address of a Ray dashboard (http://,\n"
            "https://), usually port 8265. Correct it, or unset it."
        )
    cluster_file = _folder("RAY_CLUSTER_FILE", env["RAY_CLUSTER_FILE"]) if env.get("RAY_CLUSTER_FILE") else None
    if cluster_file and not cluster_file.is_file():
        raise SettingsError(f"RAY_CLUSTER_FILE is {cluster_file}, and there is no such file.\nCorrect it, or unset it.")
    if cluster_file and jobs_url:
        raise SettingsError(
            "RAY_JOBS_URL and RAY_CLUSTER_FILE are both set, and each names the cluster to train on.\nUnset one: "
            "RAY_JOBS_URL for a cluster that exists, RAY_CLUSTER_FILE for one that is launched where it is not up."
        )
    return jobs_url, cluster_file


def _refuse_unusable_proxies(**addresses: str | None) -> None:
    for variable, address in addresses.items():
        if address and (proxy := left_out_proxy(address)):
            raise SettingsError(
                f"{variable} is {without_secrets(address)}, which is to be reached through the proxy {proxy}.\n"
                "Only http:// and https:// proxies can be used. Name one in HTTPS_PROXY and HTTP_PROXY, or name the "
                "host in NO_PROXY."
            )


def _refuse_logins(tracking: str, store: str) -> None:
    for variable, address, instead in (
        ("MLFLOW_TRACKING_URI", tracking if is_http(tracking) else "", "MLFLOW_TRACKING_USERNAME, or _TOKEN"),
        ("OBJECT_STORE_URI", store, "its client's own variables, for fsspec FSSPEC_<SCHEME>_USERNAME and _PASSWORD"),
    ):
        if has_login(address):
            raise SettingsError(
                f"{variable} is {without_secrets(address)}, with a login that would be kept with every run.\n"
                f"Leave it out of the address, and put it into {instead}."
            )


_LOGINS = {
    "MLFLOW_TRACKING_URI": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "OBJECT_STORE_URI": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "PREFECT_API_URL": ("PREFECT_API_AUTH_STRING",),
}
"""Where the client of a service looks for the login that does not belong into the service's address."""


def move_logins(environment: MutableMapping[str, str]) -> None:
    """Move `name:password@` out of addresses, which are shown and kept, to where their clients look for it.

    A login in an address counts, as it does for the clients, whatever else is set. Those that the client wants in the
    address alone stay: of a mirror, a database, a proxy.
    """
    for variable, targets in _LOGINS.items():
        address, login = split_login(environment.get(variable, ""))
        if login and re.match("https?:|s3a?:", address, re.IGNORECASE):
            environment.update(zip(targets, login if len(targets) == 2 else [":".join(login)], strict=True))
            environment[variable] = address


def mlflow_authorization() -> dict[str, str]:
    """The header by which MLflow's client shows an MLflow server who it is; none if nothing is set."""
    name, password, token = (os.environ.get(f"MLFLOW_TRACKING_{key}") for key in ("USERNAME", "PASSWORD", "TOKEN"))
    if name and password:
        return {"Authorization": basic_authorization((name, password))}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _folder(variable: str, given: str) -> Path:
    """A path of this machine, made absolute. Raises `SettingsError` for the home of a user that is not there."""
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"{variable} is {given}: {error}\nWrite the whole path.") from error
    except OSError as error:
        raise SettingsError(
            f"{variable} is {given}, and the folder that this is relative to is gone or may not be read "
            f"({error.strerror}).\nChange to another folder, or write the whole path."
        ) from error


def _address(variable: str, given: str) -> str:
    """An address with its scheme in small letters, or a folder. Raises `SettingsError` for what is neither."""
    if mistyped := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(?!//)/?", given):
        meant = f"{mistyped[1].lower()}://{'/' if mistyped[1].lower() == 'file' else ''}{given[mistyped.end() :]}"
        raise SettingsError(
            f"{variable} is {given}, which is neither an address nor a folder.\n"
            f"Write {without_secrets(meant)}, or put ./ before it if it is a folder."
        )
    scheme, separator, rest = given.partition("://")
    if scheme.lower() == "file":
        # file://folder is relative to where one is, as fsspec takes it: another place in each process.
        rest = rest.removeprefix("localhost")
        return f"file://{rest}" if rest.startswith("/") else _folder(variable, unquote(rest)).as_uri()
    return f"{scheme.lower()}://{rest}" if separator else given


def _store(given: str) -> str:
    store = _address("OBJECT_STORE_URI", given)
    if "://" not in store:
        return _folder("OBJECT_STORE_URI", store).as_uri()
    if re.match("s3a?:///|s3a?://$", store):
        raise SettingsError(f"OBJECT_STORE_URI is {store}, without a bucket.\nExpected s3://bucket/prefix.")
    scheme = store.partition("://")[0]
    if scheme not in available_protocols():
        raise SettingsError(
            f"OBJECT_STORE_URI is {without_secrets(store)}, and {scheme} is no protocol that fsspec knows.\n"
            "Expected a folder, or s3://bucket/prefix."
        )
    return store.rstrip("/")


def _mirrors(given: str) -> Iterator[str]:
    """The addresses in a text: separated by commas or lines, and by spaces where each has its scheme."""
    for part in filter(None, map(str.strip, re.split("[,\n]", given))):
        words = part.split()
        for mirror in words if all("://" in word for word in words) else [part]:
            address = _address("MNIST_MIRRORS", mirror)
            if "://" in address and not address.startswith(("https://", "http://", "file://")):
                raise SettingsError(
                    f"MNIST_MIRRORS names {without_secrets(address)}, which is no mirror.\n"
                    "Expected https://, http://, file:// or a folder, that hold the data set's files."
                )
            yield address if "://" in address else str(_folder("MNIST_MIRRORS", address))


def _refuse_home_of_another(home: Path) -> None:
    nearest = next(one for one in (home, *home.parents) if os.access(one, os.F_OK))
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise SettingsError(
            f"PIPELINE_HOME is {home}, and you may not write to {nearest}, which belongs to {owner(nearest)}.\n"
            "Set it to a folder of your own. What several people share has an address: OBJECT_STORE_URI, "
            "MLFLOW_TRACKING_URI."
        )


_SQLITE = "sqlite:///"
_DATABASES = (_SQLITE, "postgresql", "mysql", "mssql")


def _absolute_database(address: str) -> str:
    """A SQLite address that means the same in every process: each works in a folder of its own."""
    file, separator, options = address.removeprefix(_SQLITE).partition("?")
    if file in ("", ":memory:") or file.startswith("file:"):
        raise SettingsError(
            f"MLFLOW_TRACKING_URI is {address!r}, which is another database in each process.\n"
            "Name a file, as in sqlite:///mlflow.db, or unset it to use a database under PIPELINE_HOME."
        )
    return f"{_SQLITE}{_folder('MLFLOW_TRACKING_URI', file)}{separator}{options}"


_FILES = (
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "CURL_CA_BUNDLE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "NETRC",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
)
"""Variables by which libraries are told of a file or a folder."""


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that this one starts: its own, with `changes`.

    The child may work in another folder, so what names a file is made absolute.
    """
    files = {name: str(Path(os.environ[name]).expanduser().absolute()) for name in _FILES if os.environ.get(name)}
    return {**os.environ, **files, **changes}


def given_variables(names: Iterable[str]) -> dict[str, str]:
    """Those of these variables of the process that are set, with their values."""
    return {name: os.environ[name] for name in names if name in os.environ}


def set_variables(**changes: str) -> None:
    """Change the environment of this process, for libraries that take their settings from nowhere else."""
    os.environ.update(changes)


@contextmanager
def environment_unchanged() -> Iterator[None]:
    """Undo what the block does to this process's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
