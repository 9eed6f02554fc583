"""Where the stack's servers are, and where they keep their state: read from the environment, as `infra.settings` is."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.addresses import without_secrets
from infra.errors import SettingsError
from infra.settings import load_settings


@dataclass(frozen=True)
class StackSettings:
    """Where the stack's servers listen, and where they keep their state."""

    home: Path
    prefect_port: int
    mlflow_port: int
    store_port: int
    service_port: int
    postgres_programs: Path | None
    """The folder of PostgreSQL's programs. None: the newest of those that are installed."""
    failure_notification_url: str | None = field(repr=False)
    """A chat's incoming webhook, to tell of failed runs; a secret. None: nobody is told."""
    public_urls: Mapping[str, str]
    """Where people and other machines reach a server, by its name, if not at its port on loopback."""

    @property
    def folder(self) -> Path:
        """Everything that the servers keep."""
        return self.home / "stack"

    @property
    def postgres_folder(self) -> Path:
        """PostgreSQL's files and its socket."""
        return self.folder / "postgres"

    @property
    def temporary_folder(self) -> Path:
        """The parts' own: in that of the machine, packages meet the files of its other users."""
        return self.folder / "tmp"

    @property
    def lock(self) -> Path:
        """Held while the stack runs."""
        return self.folder / "stack.lock"

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
        ports = {"prefect": self.prefect_port, "mlflow": self.mlflow_port, "store": self.store_port}
        return {**ports, "service": self.service_port}

    @property
    def prefect_url(self) -> str:
        """Prefect's UI."""
        return self._url("prefect")

    @property
    def prefect_api_url(self) -> str:
        """Prefect's API."""
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and API."""
        return self._url("mlflow")

    @property
    def store_url(self) -> str:
        """The S3 endpoint."""
        return self._url("store")

    def addresses(self, name: str) -> tuple[str, ...]:
        """Every address by which a server may be called: its port on loopback, then what stands for it elsewhere."""
        return tuple(dict.fromkeys((self.loopback_url(name), self._url(name))))

    def loopback_url(self, name: str) -> str:
        """Where a server listens."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def _url(self, name: str) -> str:
        return self.public_urls.get(name) or self.loopback_url(name)


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
        service_port=_port(env, "STACK_SERVICE_PORT", 8000),
        postgres_programs=programs,
        failure_notification_url=env.get("STACK_FAILURE_NOTIFICATION_URL") or None,
        public_urls={name: _root(env, f"STACK_{name.upper()}_URL") for name in ("prefect", "mlflow", "store")},
    )


def _root(env: Mapping[str, str], variable: str) -> str:
    given = env.get(variable, "").rstrip("/")
    # As browsers write an origin, which is compared with it.
    if given and not re.fullmatch(r"https?://[a-z0-9.-]+(:\d+)?", given):
        raise SettingsError(
            f"{variable} is {without_secrets(given)!r}, which is not the root of a server as browsers name it:\n"
            "https://name or https://name:port, in lower case, no path. Correct it, or unset it."
        )
    return given


def _port(env: Mapping[str, str], variable: str, default: int) -> int:
    given = env.get(variable) or str(default)
    if not given.isdecimal() or not 0 < int(given) < 65_536:
        raise SettingsError(f"{variable} is {given!r}, which is no TCP port (1 to 65535).")
    return int(given)
