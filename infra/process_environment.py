"""Import this ahead of Prefect, MLflow and Ray: what the environment must say before they read it.

They phone home, and Prefect does so while it is imported; it also takes its API's address then, as httpx does proxies.
They also wait for a service that hangs longer than anybody watches.
The one module here that acts on import, for later is too late. What the environment says already wins, but for
telemetry (nobody's training is reported to anyone), for the way to this machine itself, which no proxy has, and for
passwords in addresses, which are kept where nothing logs them.
"""

import os

from infra.proxies import keep_loopback_direct
from infra.settings import move_logins

os.environ |= {
    "DO_NOT_TRACK": "true",  # Prefect takes 1 as well, MLflow nothing but "true".
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# MLflow draws a bar for a model of 1 MB, into the middle of the log.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# With a server, MLflow prints a run's address to stdout, where `--json` promises one object.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# By default MLflow waits 120 s for an answer, eight times, and Prefect 60 s, six times.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "20")

move_logins(os.environ)
keep_loopback_direct(os.environ)
