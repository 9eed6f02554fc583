"""Serve MLflow or Prefect on loopback in this very process, guarded. Two parts of the stack.

    python -m infra.stack.serve mlflow|prefect

Both packages' own commands leave the serving to a child, which stays behind when they are killed.
"""

import infra.process_environment  # noqa: F401  isort: skip

import sys

import uvicorn
from starlette.types import ASGIApp
from uvicorn.importer import import_from_string

from infra.settings import child_environment, set_variables
from infra.stack.guard import Guard
from infra.stack.parts import MLFLOW_KEY
from infra.stack.settings import StackSettings, load_stack_settings

PATIENCE_SECONDS = 3
"""For open connections when it is to end; pages keep theirs for ever."""


def mlflow(stack: StackSettings) -> ASGIApp:
    """MLflow's server, told as its own command is: `MLFLOW_BACKEND_STORE_URI`, `MLFLOW_ARTIFACTS_DESTINATION`."""
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import constants, handlers

    told = child_environment()
    database, artifacts = told["MLFLOW_BACKEND_STORE_URI"], "mlflow-artifacts:/"
    # What its command sets for the process that serves.
    set_variables(
        **{
            constants.BACKEND_STORE_URI_ENV_VAR: database,
            constants.REGISTRY_STORE_URI_ENV_VAR: database,
            constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: told["MLFLOW_ARTIFACTS_DESTINATION"],
            _MLFLOW_SGI_NAME.name: "uvicorn",
        }
    )
    handlers.initialize_backend_stores(database, database, artifacts)
    from mlflow.server.fastapi_app import app

    # Health says nothing but that it is up, which clients and the stack itself ask.
    return Guard(app, stack.addresses("mlflow"), told[MLFLOW_KEY], open_paths=["/health"])


def prefect(stack: StackSettings) -> ASGIApp:
    """Prefect's API and pages; it asks for the key itself, `PREFECT_SERVER_API_AUTH_STRING`."""
    # By its name, as uvicorn is told of any: the code here knows no Prefect.
    create_app = import_from_string("prefect.server.api.server:create_app")
    return Guard(create_app(final=True), stack.addresses("prefect"))


def main() -> None:
    """The command line."""
    name = sys.argv[1]
    stack = load_stack_settings()
    uvicorn.run(
        {"mlflow": mlflow, "prefect": prefect}[name](stack),
        host="127.0.0.1",
        port=stack.ports[name],
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=PATIENCE_SECONDS,
    )


if __name__ == "__main__":
    main()
