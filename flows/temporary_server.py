"""The Prefect server of a run that names none: it ends after the run, and never before.

Prefect starts it as a child like any other: Ctrl-C in a terminal would end it before the flow, which then asks it for
minutes for leave to end; and after a `kill -9` of the flow it would stay.
"""

import os
import shutil
import subprocess
import sys
from threading import Thread

import uvicorn
from prefect.server.api.server import SubprocessASGIServer, create_app
from prefect.settings import get_current_settings

from infra.errors import SettingsError
from infra.settings import PROJECT_ROOT, child_environment

NEEDED_DISK_BYTES = 20_000_000
"""A new database and its log take 6 MB, and a run adds 0.2 MB."""


def check_disk() -> None:
    """Raise `SettingsError` if the server's database would not fit on its disk: found out in two minutes otherwise."""
    home = get_current_settings().home
    free = shutil.disk_usage(next(place for place in (home, *home.parents) if place.exists())).free
    if free < NEEDED_DISK_BYTES:
        raise SettingsError(
            f"Prefect keeps its database in {home}, and that disk has {free / 1e6:.1f} MB free; it needs "
            f"{NEEDED_DISK_BYTES / 1e6:.0f} MB.\n"
            "Make room there, set PREFECT_HOME to a folder elsewhere, or PREFECT_API_URL to a server."
        )


class TemporaryServer(SubprocessASGIServer):
    """Prefect's own class, which keeps one instance per port: whoever asks it for a server gets the first one made."""

    def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
        environment = {
            **child_environment(
                PYTHONPATH=str(PROJECT_ROOT),
                PREFECT_UI_ENABLED="0",
                PREFECT__SERVER_EPHEMERAL="1",
                PREFECT__SERVER_FINAL="1",
            ),
            **get_current_settings().to_environment_variables(exclude_unset=True),
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(self.port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=2,
            start_new_session=True,
        )


def _end_with_our_owner() -> None:
    """It holds the other end of our stdin; that ends before we are told to only if it was killed outright."""
    os.read(0, 1)  # sys.stdin has a lock, at which the interpreter would abort on its regular way out.
    os._exit(0)


if __name__ == "__main__":
    Thread(target=_end_with_our_owner, daemon=True).start()
    uvicorn.run(create_app, factory=True, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="on")
