"""What MLflow's errors mean: from what it raises to the cause and the remedy, in one table.

MLflow raises the same few classes, most of them as if they could pass, for a server that is away, a database that may
only be read, and files that are missing: what happened stands in the texts of the error and of its causes.
"""

import re
from collections.abc import Iterator

from infra.addresses import without_secrets
from infra.errors import TrackerError, TrackerUnreachable
from infra.proxies import through_proxy

_LIBRARIES = ("mlflow", "psycopg2", "requests", "sqlalchemy", "sqlite3", "urllib3")

_RIGHTS = "Correct the rights of the file and its folder, or name another with MLFLOW_TRACKING_URI or PIPELINE_HOME."
_OTHER_PLACE = "Correct MLFLOW_TRACKING_URI, or unset it to use a database under PIPELINE_HOME."
_REFUSALS = (
    (
        r"out-of-date database schema|Can't locate revision|table \w+ already exists",
        "the database was made by another version of MLflow",
        "Use that version, or bring the database up to this one, after a backup of it:\n"
        "  .venv/bin/python -m mlflow db upgrade {uri}",
    ),
    (r"readonly database|Read-only file system", "it may only be read", _RIGHTS),
    (r"unable to open database file", "there is no such file, or it or its folder may not be written to", _RIGHTS),
    (
        r"file is not a database|disk image is malformed",
        "the file is damaged, or no database",
        "Put a copy of the database there, or name another with MLFLOW_TRACKING_URI.",
    ),
    (
        r"disk is full|No space left on device|Disk quota exceeded",
        "the disk is full",
        "Make room there, then run the same command again.",
    ),
    (
        r"PERMISSION_DENIED|UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED|error code 40[13]",
        "the server refuses us",
        "Check "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and that they\n"
        "may do this there.",
    ),
    (
        r"password authentication failed|Access denied for user|no pg_hba.conf entry",
        "the database refuses this user",
        "Correct the name and the password in MLFLOW_TRACKING_URI.",
    ),
    (
        r'database "[^"]*" does not exist|Unknown database',
        "there is no database of that name",
        "Create it, or correct MLFLOW_TRACKING_URI.",
    ),
    (
        r"ENDPOINT_NOT_FOUND|not in a valid JSON format",
        "what answers there is no MLflow server, or a very old one",
        _OTHER_PLACE,
    ),
    (
        r"No module named",
        "the driver for such a database is not installed",
        "Install it into .venv, or name another address with MLFLOW_TRACKING_URI.",
    ),
    (r"\[Errno 13\]|\[Errno 1\]", "this user may not do that", _RIGHTS),
    (
        r"\[Errno 2\]|No such file or directory|No such artifact",
        "files that MLflow has on record are missing",
        "Put them back from a copy, or make new ones: train with --retrain.",
    ),
    (
        r"RESOURCE_DOES_NOT_EXIST",
        "it is not there",
        "It was deleted, or MLFLOW_TRACKING_URI names another MLflow than when it was made.",
    ),
)
"""What the same call would meet again: a pattern, the cause, the remedy."""

_FAILURES = (
    (r"Connection refused", "nothing listens there"),
    (
        r"[Nn]ame or service not known|name resolution|could not translate host name|nodename nor servname",
        "there is no host of that name",
    ),
    (r"[Tt]imed? ?out", "it does not answer"),
    (r"too many \d+ error responses|error code 5\d\d|TEMPORARILY_UNAVAILABLE", "the server is in trouble"),
    # Of two processes that set the same tag, MLflow lets both add it. The next time it is there.
    (r"UNIQUE constraint failed|duplicate key value|Duplicate entry", "another process wrote the same at that moment"),
    (r"Connection reset|Connection aborted|RemoteDisconnected|closed the connection", "the connection broke off"),
)
"""What may have passed when the same call is made later."""


def explained(error: Exception, attempt: str, uri: str) -> TrackerError | None:
    """`error` in words of ours, without anything secret; None if it came neither from MLflow nor from what it uses."""
    if not isinstance(error, OSError | ImportError) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return None
    at = f"{without_secrets(uri)}{through_proxy(uri)}"
    # Without statements and their values, which may hold any text.
    texts = [re.split(r"\n\[SQL", str(cause))[0] for cause in _causes(error)]
    codes = [str(getattr(cause, "error_code", "")) for cause in _causes(error)]
    told = "\n".join([*texts, *codes])
    for pattern, cause, remedy in _REFUSALS:
        if found := re.search(pattern, told):
            line = next((line for text in texts for line in text.splitlines() if found[0] in line), texts[0])
            remedy = remedy.format(uri=without_secrets(uri))
            return TrackerError(f"Could not {attempt} at {at}: {cause}.\nFound: {_shown(line)}\n{remedy}")
    for pattern, cause in _FAILURES:
        if re.search(pattern, told):
            return TrackerUnreachable(
                f"Could not {attempt} at {at}: {cause}.\n"
                "Check that MLflow is up and that MLFLOW_TRACKING_URI names it, then run the same command again."
            )
    return TrackerError(
        f"Could not {attempt} at {at}: MLflow refused.\nFound: {_shown(texts[0] or type(error).__name__)}\n"
        "Correct that, then run the same command again."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown(text: str) -> str:
    line = next(iter(text.strip().splitlines()), "")
    return re.sub(r"://[^/\s@]*@", "://***@", line)[:400]
