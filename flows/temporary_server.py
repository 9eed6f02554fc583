"""The Prefect server of a run that names none: it ends after the run, and never before.

Prefect starts it as a child like any other: Ctrl-C in a terminal would end it before the flow, which then asks it for
minutes for leave to end; and after a `kill -9` of the flow it would stay. What goes wrong in it would show in the
terminal of the run, as if it were the run's: it has a log of its own.
"""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import httpx
import uvicorn
from prefect.server.api.server import SubprocessASGIServer, create_app
from prefect.settings import get_current_settings

from infra.errors import PrefectUnreachable, SettingsError
from infra.settings import PROJECT_ROOT, child_environment

NEEDED_DISK_BYTES = 20_000_000
"""A new database and its log take 6 MB, and a run adds 0.2 MB."""
SECONDS_TO_START = 120
"""The first time it takes 15 s on two idle cores; 20 s is Prefect's default."""
SECONDS_TO_END = 1.0


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

    @property
    def log(self) -> Path:
        """What it says, and those before it in the same home."""
        return get_current_settings().home / "temporary-server.log"

    def start(self, timeout: int | None = None) -> None:
        """Raise `PrefectUnreachable` if it does not come up."""
        try:
            super().start(timeout or SECONDS_TO_START)
        except (RuntimeError, httpx.HTTPError) as error:
            raise PrefectUnreachable(
                f"Prefect's temporary server in {get_current_settings().home} did not start: {error}\n"
                f"See {self.log}. Run the same command again, or set PREFECT_HOME to a folder elsewhere."
            ) from error

    def stop(self) -> None:
        """Let it end, or end it if it hangs: Prefect's own way waits for longer than anybody at a prompt."""
        if self.server_process:
            self.server_process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.server_process.wait(SECONDS_TO_END)
            self.kill()
        super().stop()

    def kill(self) -> None:
        """End it on the spot; whoever waits for its answer then waits no more."""
        if self.server_process:
            self.server_process.kill()

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
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self.port)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _end_with_our_owner() -> None:
    """It holds the other end of our stdin; that ends before we are told to only if it was killed outright."""
    os.read(0, 1)  # sys.stdin has a lock, at which the interpreter would abort on its regular way out.
    os._exit(0)


if __name__ == "__main__":
    Thread(target=_end_with_our_owner, daemon=True).start()
    uvicorn.run(create_app, factory=True, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="on")
