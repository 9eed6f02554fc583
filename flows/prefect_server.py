"""The Prefect server of a run: one that is named is asked before anything is paid for, else it gets one of its own.

Prefect's own client asks for 30 s a server that is away, and for minutes one that hangs, and then names no reason.
"""

from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.addresses import without_secrets
from infra.errors import PrefectUnreachable
from infra.proxies import through_proxy
from tasks.cancellation import ANSWER_SECONDS, ask, told_by_prefect

if TYPE_CHECKING:
    from flows.temporary_server import TemporaryServer


def check_reachable(timeout_seconds: float = ANSWER_SECONDS) -> None:
    """Raise `PrefectUnreachable` if the server that PREFECT_API_URL, or Prefect's profile, names will not do."""
    url = PREFECT_API_URL.value()
    if url is None:
        return
    try:
        ask("begin a run", _ask, timeout_seconds)
    except Exception as error:  # A RuntimeError of Prefect's, whatever the cause; a ValueError for what is no address.
        cause = error.__cause__ or error
        remedy = "Start it, correct PREFECT_API_URL (or Prefect's profile), or unset it to use a temporary server."
        if isinstance(cause, httpx.HTTPStatusError):
            found = f"answered HTTP {cause.response.status_code}"
            if cause.response.status_code in (401, 403):
                remedy = "Check PREFECT_API_AUTH_STRING or PREFECT_API_KEY."
        elif isinstance(cause, TimeoutError):
            found = f"did not answer within {timeout_seconds:g} s"
        else:
            found = f"cannot be used: {told_by_prefect(cause)}"  # type: ignore[arg-type]
        place = f"Prefect's server at {without_secrets(url)}{through_proxy(url)}"
        raise PrefectUnreachable(f"{place} {found}.\n{remedy}") from error


def _ask() -> None:
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        client.raise_for_api_version_mismatch_once()


def server_of_its_own() -> "TemporaryServer | None":
    """The server of a run that names none, which ends with this process; None if one is named.

    It starts when it is first asked. Raises `SettingsError` if there is no room for it.
    """
    if PREFECT_API_URL.value() is not None:
        return None
    # The whole server, and most of Prefect, is imported.
    from flows.temporary_server import TemporaryServer, check_disk

    check_disk()
    return TemporaryServer()
