"""Kill the pipeline wherever it can be killed, take away what it needs, and compare with an undisturbed run.

    python -m tests.torture                    50 kills and every fault: about half an hour on two cores
    python -m tests.torture --only faults      or `--only kills`; `--fault NAME` for one of them
    python -m tests.torture --seed 7           other points, victims and delays
    python -m tests.torture programs           the counter and each example, killed at 10 points each
    python -m tests.torture --busy 2           beside two processes that never rest; takes twice as long

Prints a markdown table, a row as soon as its case has ended, and at the end how many differed: exit status 1.
Each case has a home of its own; two machines are made as root alone, of namespaces.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import httpx

from tests.pipeline import wait_until
from tests.s3_server import free_port
from tests.torture.cases import VICTIMS, Bench, Case, Kill, Point, bench, fallen, kill_all_of, plan, run_chain
from tests.torture.faults import FAULTS, MOSTLY_WAITING
from tests.torture.programs import SUBJECTS, Subject, bench_of_programs, torture_program

KILLS_IN_A_CHAIN = 8
ROUNDS = 3
"""After which no more chains are begun: those before fell, or were always too late."""
KILLS = [f"{victim}, SIGKILL" for victim in VICTIMS]


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


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that each want a core all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


Tell = Callable[[Case], None]
Job = Callable[[Bench, Tell], object]


def chain_of_kills(chain: list[Kill]) -> Job:
    return lambda bench, tell: run_chain(bench, chain, tell)


def fault(name: str, seconds: float) -> Job:
    return lambda bench, tell: tell(FAULTS[name](bench, seconds))


def program(subject: Subject, options: argparse.Namespace) -> Job:
    return lambda bench, tell: torture_program(bench, subject, options.points, options.chains, tell)


def run_all(bench: Bench, jobs: Mapping[str, Job], waiting: Mapping[str, Job], at_once: int, tell: Tell) -> None:
    """Run so many jobs at once, and one at a time of those that mostly wait; one that falls is a case that differs."""

    def run(name: str, job: Job) -> None:
        apart = bench.apart(name)
        try:
            job(apart, tell)
        except Exception as error:
            tell(fallen(name, error, apart.folder))

    with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(at_once) as pool:
        running = [
            executor.submit(run, name, job)
            for executor, several in ((beside, waiting), (pool, jobs))
            for name, job in several.items()
        ]
        try:
            for one in running:
                one.result()
        except KeyboardInterrupt:
            for one in running:
                one.cancel()
            while not all(one.done() for one in running):
                kill_all_of(bench.folder)
                time.sleep(0.2)
            raise


class Tally:
    """Writes a row for each case, and counts."""

    def __init__(self) -> None:
        self._cases: list[Case] = []
        self._lock = Lock()

    def tell(self, case: Case) -> None:
        with self._lock:
            self._cases.append(case)
            sys.stdout.write(f"{case.row()}\n")
            sys.stdout.flush()

    @property
    def struck(self) -> int:
        """How many disturbances there were."""
        return sum(case.times for case in self._cases if case.struck and not case.left_out)

    @property
    def kills(self) -> int:
        """How many kills of the chains struck."""
        return sum(case.struck for case in self._cases if case.what in KILLS)

    @property
    def different(self) -> int:
        """How many cases differ."""
        return sum(bool(case.differences) for case in self._cases)

    def __str__(self) -> str:
        left_out = sum(bool(case.left_out) for case in self._cases)
        without = f", {left_out} cases left out" if left_out else ""
        return f"{len(self._cases)} cases, {self.struck} disturbances, {self.different} with a difference{without}"


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("programs",), help="by default MNIST, killed and disturbed")
    parser.add_argument("--program", choices=[one.name for one in SUBJECTS], action="append", help="this program alone")
    parser.add_argument("--points", type=int, default=10, help="how many kills each program must survive in a run")
    parser.add_argument("--chains", type=int, default=1, help="how many such runs of each program, other points each")
    parser.add_argument("--seed", type=int, default=0, help="which points, victims and delays are drawn")
    parser.add_argument("--kills", type=int, default=50, help="how many kills must strike")
    parser.add_argument("--only", choices=("kills", "faults"), help="leave the others out")
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append", help="this fault; may be repeated")
    parser.add_argument("--seconds", type=float, default=60, help="how long a server is away")
    parser.add_argument("--stop-seconds", type=float, default=120, help="the longest time between SIGSTOP and SIGCONT")
    parser.add_argument("--moments", type=int, default=10, help="at how many drawn moments a fault strikes")
    parser.add_argument("--at-once", type=int, default=2, help="how many cases run side by side; a core each")
    parser.add_argument("--busy", type=int, default=0, help="how many busy processes run beside them")
    options = parser.parse_args()

    os.environ |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "OBJECT_STORE_URI"):
        os.environ.pop(name, None)
    # Ended as by Ctrl-C: nothing that it has started stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    tally = Tally()
    load = max(1.0, (options.at_once + 1 + options.busy) / (os.cpu_count() or 1))
    rng, deck = random.Random(options.seed), list[Point]()
    with (
        tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder,
        prefect_server(Path(folder) / "prefect") as api,
        busy_processes(options.busy),
        (
            bench_of_programs(Path(folder), api, options.seed)
            if options.what
            else bench(Path(folder), api, seed=options.seed, moments=options.moments, load=load)
        ) as made,
    ):
        sys.stdout.write("| what | when | what the user sees | differences |\n|---|---|---|---|\n")
        faults = {
            name: fault(name, options.stop_seconds if name == "stopped" else options.seconds)
            for name in options.fault or ([] if options.only == "kills" or options.what else FAULTS)
        }
        kills = 0 if options.only == "faults" or options.fault or options.what else options.kills
        jobs = {name: job for name, job in faults.items() if name not in MOSTLY_WAITING}
        waiting = {name: job for name, job in faults.items() if name in MOSTLY_WAITING}
        chosen = options.program or [one.name for one in SUBJECTS] if options.what else []
        jobs |= {one.name: program(one, options) for one in SUBJECTS if one.name in chosen}
        for _ in range(ROUNDS):
            # A kill that came too late does not count, and is made up for.
            for number, first in enumerate(range(tally.kills, kills, KILLS_IN_A_CHAIN)):
                length = min(KILLS_IN_A_CHAIN, kills - first)
                jobs[f"kills-{number}"] = chain_of_kills(plan(rng, length, deck))
            run_all(made, jobs, waiting, options.at_once, tally.tell)
            jobs, waiting = {}, {}
    minutes = (time.monotonic() - started) / 60
    sys.stdout.write(f"\n{tally}, {minutes:.0f} minutes, seed {options.seed}\n")
    return 1 if tally.different else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stdout.write("\nEnded before its time: the rows above are all that was tried.\n")
        sys.exit(130)
