"""A long history: copies of one run of the pipeline, written straight into the databases of MLflow and Prefect.

Through their APIs 2,000 runs would take an hour. Each copy has all that its model has there (tags, parameters, metrics,
the logged model and its version; states, task runs, logs and artifacts), under identities of its own, and began a
minute before the one that was copied before it. Not copied are files, and Prefect's events, which its server forgets.
"""

import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

_OF_RUN = "run_uuid = :run"
_OF_MODEL = "model_id IN (SELECT model_id FROM logged_models WHERE source_run_id = :run)"
MLFLOW = {
    "runs": _OF_RUN,
    "tags": _OF_RUN,
    "params": _OF_RUN,
    "metrics": _OF_RUN,
    "latest_metrics": _OF_RUN,
    "inputs": "source_id = :run OR destination_id = :run",
    "input_tags": "input_uuid IN (SELECT input_uuid FROM inputs WHERE destination_id = :run)",
    "logged_models": "source_run_id = :run",
    "logged_model_params": _OF_MODEL,
    "logged_model_tags": _OF_MODEL,
    "logged_model_metrics": _OF_MODEL,
    "model_versions": "run_id = :run",
    "model_version_tags": "(name, version) IN (SELECT name, version FROM model_versions WHERE run_id = :run)",
}
"""The tables that a run has rows in, and which of them are its own."""

PREFECT = {
    "flow_run": "id = :run",
    "flow_run_state": "flow_run_id = :run",
    "task_run": "flow_run_id = :run",
    "task_run_state": "task_run_id IN (SELECT id FROM task_run WHERE flow_run_id = :run)",
    "log": "flow_run_id = :run",
    "artifact": "flow_run_id = :run",
}

_IDENTITIES = {"id", "run_uuid", "input_uuid", "model_id"}
_HEXADECIMAL = re.compile("[0-9a-f]{12,}")


def copy_run(database: str, tables: Mapping[str, str], run_id: str, copies: int) -> None:
    """Copy the run of this id; `tables` is `MLFLOW` or `PREFECT`."""
    engine = sa.create_engine(database)
    schema = sa.MetaData()
    schema.reflect(engine, only=list(tables))
    with engine.begin() as connection:
        found = {
            name: [
                dict(row._mapping)
                for row in connection.execute(sa.select(schema.tables[name]).where(sa.text(condition)), {"run": run_id})
            ]
            for name, condition in tables.items()
        }
        own = {str(row[key]) for rows in found.values() for row in rows for key in _IDENTITIES & row.keys()}
        own |= {row["value"] for row in found.get("tags", []) if row["key"] == "training_key"}
        last = 0
        if "model_versions" in tables:
            last = connection.scalar(sa.text("SELECT max(version) FROM model_versions")) or 0
        each = [_Copy(own, number) for number in range(1, copies + 1)]
        if engine.dialect.name == "postgresql":
            # A flow run and its state refer to each other.
            connection.execute(sa.text("SET session_replication_role = replica"))
        for name, rows in found.items():
            for row in rows:
                # What is not there stays so: of None, JSON columns would make a null of their own.
                there = {key: value for key, value in row.items() if value is not None}
                connection.execute(schema.tables[name].insert(), [copy.of(name, there, last) for copy in each])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # The database does this by itself, within minutes.
        connection.execute(sa.text("ANALYZE"))
    engine.dispose()


class _Copy:
    def __init__(self, own: set[str], number: int) -> None:
        self._identities = {
            old: _HEXADECIMAL.sub(lambda found: secrets.token_hex(len(found[0]) // 2), old) for old in own
        }
        self._pattern = re.compile("|".join(map(re.escape, own)))
        self._number = number
        self._earlier = timedelta(minutes=number)

    def of(self, table: str, row: Mapping[str, Any], last_version: int) -> dict[str, Any]:
        changed = {key: self._changed(key, value) for key, value in row.items()}
        if table in ("model_versions", "model_version_tags"):
            changed["version"] = last_version + self._number
        return changed

    def _changed(self, key: str, value: Any) -> Any:
        if isinstance(value, UUID):
            return UUID(self._renamed(str(value)))
        if isinstance(value, str):
            return self._renamed(value)
        if isinstance(value, dict | list):
            return json.loads(self._renamed(json.dumps(value)))
        if isinstance(value, datetime):
            return value - self._earlier
        if isinstance(value, int) and ("time" in key):  # MLflow's moments are milliseconds.
            return value - int(self._earlier.total_seconds() * 1000)
        return value

    def _renamed(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._identities[found[0]], text)
