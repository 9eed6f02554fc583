"""Kill the pipeline wherever it can be killed, take away what it needs, and compare with an undisturbed run.

    python -m tests.torture                    50 kills and every fault, about half an hour
    python -m tests.torture --only faults      or `--only kills`; `--fault NAME` for one of them
    python -m tests.torture --seed 7           other points, victims and delays

Prints a markdown table. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.pipeline import wait_until
from tests.s3_server import free_port
from tests.torture.cases import FAULTS, Bench, Case, Point, bench, plan, run_chain

KILLS_IN_A_CHAIN = 8


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The address of a Prefect server's API, so that no run pays for a server of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    home.mkdir()
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)],
            env={**os.environ, "PREFECT_HOME": str(home)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers() -> bool:
        assert server.poll() is None, (home / "server.log").read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health").status_code == 200
        return False

    try:
        wait_until(answers, 120, "the Prefect server's answer")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def kill_often(bench: Bench, seed: int, kills: int) -> Iterator[Case]:
    """Chains of kills until `kills` have struck; a kill that came too late does not count."""
    rng = random.Random(seed)
    deck: list[Point] = []
    struck = 0
    while struck < kills:
        cases = run_chain(bench, plan(rng, min(KILLS_IN_A_CHAIN, kills - struck), deck))
        struck += sum(case.struck for case in cases)
        yield from cases


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which points, victims and delays are drawn")
    parser.add_argument("--kills", type=int, default=50, help="how many kills must strike")
    parser.add_argument("--only", choices=("kills", "faults"), help="leave the others out")
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", help="this fault; may be repeated")
    parser.add_argument("--seconds", type=float, default=60, help="how long a server is away")
    parser.add_argument("--stop-seconds", type=float, default=120, help="between SIGSTOP and SIGCONT")
    options = parser.parse_args()

    os.environ |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    started = time.monotonic()
    cases: list[Case] = []
    write = sys.stdout.write
    with (
        tempfile.TemporaryDirectory(prefix="torture-") as folder,
        prefect_server(Path(folder) / "prefect") as api,
        bench(Path(folder), api) as made,
    ):
        write("| what | when | what the user sees | differences |\n|---|---|---|---|\n")

        def tell(case: Case) -> None:
            cases.append(case)
            write(f"{case.row()}\n")
            sys.stdout.flush()

        if options.only != "kills":
            for name in options.fault or FAULTS:
                tell(FAULTS[name](made, options.stop_seconds if name == "stopped" else options.seconds))
        if options.only != "faults" and not options.fault:
            for case in kill_often(made, options.seed, options.kills):
                tell(case)
    different = [case for case in cases if case.differences]
    struck = sum(case.struck for case in cases)
    minutes = (time.monotonic() - started) / 60
    write(f"\n{struck} disturbances, {len(different)} with a difference, {minutes:.0f} minutes, seed {options.seed}\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
