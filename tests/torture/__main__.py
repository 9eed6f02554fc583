"""Kill the pipeline wherever it can be killed, take away what it needs, and compare with an undisturbed run.

    python -m tests.torture                    50 kills and every fault, 8 of the kills and some faults on MNIST
    python -m tests.torture --only faults      or `--only kills`; `--fault NAME` for one of them
    python -m tests.torture --seed 7           other points, victims and delays
    python -m tests.torture --on mnist         all on MNIST, or on `counter`, which needs NumPy alone
    python -m tests.torture --on fashion --kills 10       an example, killed
    python -m tests.torture --busy 2           beside two processes that never rest

Prints a markdown table, a row as soon as its case has ended, and at the end how many differed: exit status 1.
Each case has a home of its own; two machines are made as root alone, of namespaces. What must be done within seconds
may take so many times longer as there are processes that want a core, for each core: the torture's, and what else ran
on this machine in the minute before it.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from tests.prefect_server import start_prefect
from tests.torture.attempts import Point, kill_all_of
from tests.torture.bench import Bench, benches
from tests.torture.faults import ALSO_ON_KERAS, FAULTS, KERAS_ALONE, MOSTLY_WAITING
from tests.torture.kills import Case, Kill, Tell, fallen, plan, run_chain
from tests.torture.subjects import EPOCHS, SUBJECTS

KILLS_IN_A_CHAIN = 8
SHARE_OF_MNIST = 8 / 50
"""Of the kills; a training with Keras takes so many times longer."""
WAITING_AT_ONCE = 3
"""Of the jobs that mostly wait; together they want a core."""
ROUNDS = 3
"""After which no more chains are begun: those before fell, or were always too late."""


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


@dataclass(frozen=True)
class Job:
    """Cases that are run one after another."""

    name: str
    bench: Bench
    run: Callable[[Bench, Tell], object]
    mostly_waits: bool = False


def chain_of_kills(bench: Bench, number: int, chain: list[Kill]) -> Job:
    return Job(f"kills-{number}", bench, lambda apart, tell: run_chain(apart, chain, tell))


def fault(bench: Bench, name: str, options: argparse.Namespace) -> Job:
    seconds = options.stop_seconds if name == "stopped" else options.seconds
    return Job(name, bench, lambda apart, tell: tell(FAULTS[name](apart, seconds)), name in MOSTLY_WAITING)


def run_all(jobs: list[Job], at_once: int, tell: Tell) -> None:
    """Run so many jobs at once, and three of those that mostly wait; one that falls is a case that differs."""

    def run(job: Job) -> None:
        apart = job.bench.apart(job.name)

        def tell_of_subject(case: Case) -> None:
            case.subject = job.bench.subject.name
            tell(case)

        try:
            job.run(apart, tell_of_subject)
        except Exception as error:
            tell_of_subject(fallen(job.name, error, apart.folder))

    with ThreadPoolExecutor(WAITING_AT_ONCE) as beside, ThreadPoolExecutor(at_once) as pool:
        running = [(beside if job.mostly_waits else pool).submit(run, job) for job in jobs]
        try:
            for one in running:
                one.result()
        except KeyboardInterrupt:
            for one in running:
                one.cancel()
            while not all(one.done() for one in running):
                for job in jobs:
                    kill_all_of(job.bench.folder)
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

    def kills(self, subject: str) -> int:
        """How many kills of its chains struck."""
        return sum(case.struck for case in self._cases if case.is_kill and case.subject == subject)

    @property
    def different(self) -> int:
        """How many cases differ."""
        return sum(bool(case.differences) for case in self._cases)

    def __str__(self) -> str:
        left_out = sum(bool(case.left_out) for case in self._cases)
        without = f", {left_out} cases left out" if left_out else ""
        return f"{len(self._cases)} cases, {self.struck} disturbances, {self.different} with a difference{without}"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--on", choices=SUBJECTS, action="append", help="this program for all; may be repeated, examples are killed")
    flag("--seed", type=int, default=0, help="which points, victims and delays are drawn")
    flag("--kills", type=int, default=50, help="how many kills must strike")
    flag("--only", choices=("kills", "faults"), help="leave the others out")
    flag("--fault", choices=sorted(FAULTS), action="append", help="this fault; may be repeated")
    flag("--seconds", type=float, default=60, help="how long a server is away")
    flag("--stop-seconds", type=float, default=120, help="the longest time between SIGSTOP and SIGCONT")
    flag("--moments", type=int, default=10, help="at how many drawn moments a fault strikes; on MNIST at a third")
    flag("--at-once", type=int, default=2, help="how many cases run side by side; a core each")
    flag("--busy", type=int, default=0, help="how many busy processes run beside them")
    return parser.parse_args()


def kills_wanted(options: argparse.Namespace) -> dict[str, int]:
    """How many kills must strike, by subject."""
    if options.only == "faults" or options.fault:
        return {}
    if options.on:
        return dict.fromkeys(options.on, options.kills)
    on_mnist = round(options.kills * SHARE_OF_MNIST)
    return {"counter": options.kills - on_mnist, "mnist": on_mnist}


def faults_wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The names of faults and of the subjects that each strikes."""
    names = options.fault or ([] if options.only == "kills" else list(FAULTS))
    if options.on:
        subjects = [name for name in options.on if SUBJECTS[name].epochs == EPOCHS]
        return [(name, one) for name in names for one in subjects if one == "mnist" or name not in KERAS_ALONE]
    keras = [(name, "mnist") for name in names if name in (*KERAS_ALONE, *ALSO_ON_KERAS)]
    return keras + [(name, "counter") for name in names if name not in KERAS_ALONE]


def heed_signals() -> None:
    """React to those of a terminal, for what is started does as we do: in the background of a shell we ignore them."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def torture(options: argparse.Namespace, load: float, tally: Tally) -> None:
    """All that the command line asks for."""
    kills, faults = kills_wanted(options), faults_wanted(options)
    subjects = [SUBJECTS[name] for name in SUBJECTS if name in {*kills, *(subject for _, subject in faults)}]
    drawn = {"seed": options.seed, "load": load}
    with (
        tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
        busy_processes(options.busy),
    ):
        stack.callback(kill_all_of, Path(folder))
        # With a home in that folder, it is among what is ended at the end.
        api = start_prefect(Path(folder) / "prefect", PIPELINE_HOME=f"{folder}/prefect/home")
        made = stack.enter_context(benches(Path(folder), api, subjects, **drawn))
        sys.stdout.write("| on | what | when | what the user sees | differences |\n|---|---|---|---|---|\n")
        few = -(-options.moments // 3) if not options.on else options.moments
        moments = {name: few if name == "mnist" else options.moments for name in made}
        jobs = [fault(replace(made[one], moments=moments[one]), name, options) for name, one in faults]
        rng, decks = random.Random(options.seed), {name: list[Point]() for name in kills}
        for _ in range(ROUNDS):
            # A kill that came too late does not count, and is made up for.
            for subject, wanted in kills.items():
                for number, first in enumerate(range(tally.kills(subject), wanted, KILLS_IN_A_CHAIN)):
                    length = min(KILLS_IN_A_CHAIN, wanted - first)
                    chain = plan(rng, length, decks[subject], SUBJECTS[subject].epochs)
                    jobs.append(chain_of_kills(made[subject], number, chain))
            # First those that take longest.
            run_all(sorted(jobs, key=lambda job: job.bench.subject.name != "mnist"), options.at_once, tally.tell)
            jobs = []


def main() -> int:
    """The command line; returns the exit status."""
    options = arguments()
    os.environ |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "OBJECT_STORE_URI", "MNIST_MIRRORS"):
        os.environ.pop(name, None)
    # Ended as by Ctrl-C: nothing that it has started stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    heed_signals()
    started = time.monotonic()
    tally = Tally()
    # Measured before anything of the torture runs: that is planned, and comes to it.
    cores, own, others = os.cpu_count() or 1, options.at_once + 1 + options.busy, os.getloadavg()[0]
    load = max(1.0, (own + others) / cores)
    torture(options, load, tally)
    minutes = (time.monotonic() - started) / 60
    measured = f"load {load:.1f}: {own} of its own and {others:.1f} of others at its start, on {cores} cores"
    sys.stdout.write(f"\n{tally}, {minutes:.0f} minutes, seed {options.seed}, {measured}\n")
    return 1 if tally.different else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stdout.write("\nEnded before its time: the rows above are all that was tried.\n")
        sys.exit(130)
