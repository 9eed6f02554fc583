"""How MLflow is reached: its address, its client, and what it refuses told in our words.

MLflow's import takes 3 to 4 s, so it happens at the first use, or ahead of it by `import_mlflow`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from infra.addresses import is_http, without_secrets
from infra.errors import TrackerError
from infra.hidden_packages import packages_hidden
from infra.proxies import through_proxy
from infra.settings import Settings, environment_unchanged, mlflow_authorization
from infra.tracker_failures import explained
from infra.tracking_database import TrackingDatabase, wait_for_locks
from infra.waiting import told_when_slow

_import_lock = Lock()


class MlflowConnection:
    """MLflow at one address.

    Every method raises `TrackerError` if MLflow refuses, and of it `TrackerUnreachable` where a later attempt may
    succeed. A database of this machine that is locked is waited for, and after 10 s it is told who locks it.
    """

    def __init__(self, settings: Settings) -> None:
        self.uri = settings.mlflow_tracking_uri
        self._artifacts_uri = settings.mlflow_artifacts_uri
        file = settings.mlflow_database_file
        lock = settings.locks_folder / "mlflow-database.lock"
        self._database = TrackingDatabase(file, settings.home, lock) if file else None
        self._connected: Any = None

    @property
    def is_new(self) -> bool:
        """True if MLflow's database is a file of this machine and nobody has used it yet."""
        return self._database is not None and not self._database.path.exists()

    def check_reachable(self, timeout_seconds: float = 10) -> None:
        """Ask a server whether it is there, without MLflow's own patience of several minutes."""
        if not is_http(self.uri):
            return
        import httpx

        place = f"The MLflow server at {without_secrets(self.uri)}"
        health, way = f"{self.uri.rstrip('/')}/health", through_proxy(self.uri)
        try:
            status = httpx.get(health, timeout=timeout_seconds, headers=mlflow_authorization()).status_code
        except httpx.HTTPError as error:
            raise TrackerError(
                f"{place} does not answer{way} ({type(error).__name__}).\n"
                "Start it, correct MLFLOW_TRACKING_URI, or unset it to use a database under PIPELINE_HOME."
            ) from error
        if status in (401, 403):
            raise TrackerError(
                f"{place} refuses us{way} (HTTP {status}).\n"
                "Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        if way and status != 200:
            raise TrackerError(f"{place} cannot be reached{way} (HTTP {status}).\nOr is its host one for NO_PROXY?")

    def hurry(self) -> None:
        """Nothing here. Called when this process was told to stop: no call may hold it up from now on."""

    def import_mlflow(self) -> None:
        """Import what of MLflow the calls will need; nothing is opened or created."""
        with _import_lock, packages_hidden("pandas", "scipy", "sklearn"):
            # MLflow is built to do without them (as mlflow-skinny), and what it takes them for, data frames, is not
            # used here. With the database store its import takes 3.0 s so, and 4.3 s with them.
            import mlflow

            if not is_http(self.uri):
                import mlflow.store.model_registry.sqlalchemy_store
                import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    @property
    def _client(self) -> Any:
        if self._connected is not None:
            return self._connected
        self.import_mlflow()
        with _import_lock:
            if self._connected is None:
                import mlflow

                logging.getLogger("mlflow").setLevel(logging.WARNING)
                logging.getLogger("alembic").setLevel(logging.WARNING)
                # It logs each failure of a database with its traceback; here it is told in words.
                logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
                wait_for_locks()
                if self._database:
                    self._database.prepare(_make_tables)
                elif not is_http(self.uri):
                    _connect_once(self.uri)
                # Registering a model looks its files up at the process's address, whatever the client was given.
                with environment_unchanged():
                    mlflow.set_tracking_uri(self.uri)
                self._connected = mlflow.MlflowClient(self.uri, self.uri)
            return self._connected

    def _files_at(self, location: str) -> Any:
        # Not mlflow.artifacts: it looks a model up at the address that the process has, and keeps the reason of a
        # failure to itself.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(location, tracking_uri=self.uri, registry_uri=self.uri)

    @contextmanager
    def _translated(self, attempt: str) -> Iterator[None]:
        try:
            why = self._database.why_slow if self._database else str
            with told_when_slow(f"MLflow at {without_secrets(self.uri)}", attempt, why):
                yield
        except TrackerError:
            raise
        except Exception as error:
            told = (self._database and self._database.locked(error, attempt)) or explained(error, attempt, self.uri)
            if told is None:
                raise
            raise told from error


def _make_tables(database: str, artifacts_uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(database, artifacts_uri).engine.dispose()


def _connect_once(database: str) -> None:
    """Raise at once what MLflow would meet ten times, with growing delays, before it raised it."""
    from sqlalchemy import create_engine

    engine = create_engine(database)
    try:
        engine.connect().close()
    finally:
        engine.dispose()
