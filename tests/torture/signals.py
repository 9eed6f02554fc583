"""Signals in the middle of a run: to the flow, to the whole group, to what it has started, and to an orphan."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from tests.pipeline import Pipeline, wait_until
from tests.torture.attempts import POINTS, Attempt, Point, cell, epoch_line, living, processes_of, wait_until_all_ended
from tests.torture.bench import Bench
from tests.torture.kills import Case, compared, ended_well, expect

SECONDS_TO_STOP = 3.0
"""Within which the prompt is back after a signal, on an idle machine."""

SECONDS_STOPPED_BESIDE = 20.0
"""For which an orphan stays stopped beside the next run, if that comes no further."""


def sigterm(bench: Bench, seconds: float) -> Case:
    """SIGTERM to the flow in the middle of training."""
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    attempt.wait_for(epoch_line(5))
    attempt.process.terminate()
    status, _ = attempt.wait(10 * bench.load)
    case = Case("SIGTERM to the flow", "epoch 5", attempt.said())
    expect(case, status == 143, f"exit status {status}, expected 143")
    case.differences += wait_until_all_ended(pipeline, bench.load)
    return compared(bench, pipeline, case)


def drawn_moments(bench: Bench, purpose: str, points: tuple[Point, ...] = POINTS) -> list[tuple[Point, float]]:
    """Points of a run in its order, and so many seconds behind each."""
    rng = bench.rng(purpose)
    passed = [point for point in points if point.epoch <= bench.subject.epochs]
    chosen = sorted(rng.sample(passed, min(bench.moments, len(passed))), key=POINTS.index)
    return [(point, round(rng.uniform(0, 0.4), 2)) for point in chosen]


def struck_at_moments(
    bench: Bench, case: Case, moments: list[tuple[Point, float]], fresh: Callable[[], Pipeline]
) -> Iterator[tuple[Attempt, Point | None]]:
    """The command again and again, each attempt twice: as it starts, with None, and at its moment, to be ended there.

    An attempt that ends before its moment is compared, and the moment is tried once more in a fresh home. At the end
    the command runs to its end, and is compared.
    """
    pipeline, is_fresh = fresh(), True
    pending = list(moments)
    while True:
        attempt = Attempt(pipeline)
        yield attempt, None
        reached = attempt.reach(*pending[0]) if pending else None
        if reached is not None:
            yield attempt, reached
            pending.pop(0)
            is_fresh = False
            continue
        status, outcome = attempt.wait()
        expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
        if status == 0:
            compared(bench, pipeline, case, outcome)
        if not pending:
            return
        if is_fresh:
            pending.pop(0)
        pipeline, is_fresh = fresh(), True


def stopped(bench: Bench, seconds: float) -> Case:
    """SIGSTOP to one of the processes, or to all, and SIGCONT later: a few seconds each time, and `seconds` once."""
    rng = bench.rng("stopped")
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    long = rng.randrange(bench.moments)
    struck: list[str] = []
    for number, (point, delay) in enumerate(drawn_moments(bench, "moments of stopping")):
        victim = rng.choice(("all", "flow", "runner", "program", "tracker process"))
        for_seconds = seconds if number == long else rng.uniform(0.5, 4)
        if (reached := attempt.reach(point, delay)) is None:
            break
        flow = [psutil.Process(attempt.process.pid)]
        processes = flow if victim == "flow" else living(pipeline, victim)
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        time.sleep(for_seconds)
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
        struck.append(f"{victim} at {reached} for {for_seconds:.0f} s")
    what = "SIGSTOP to processes of a run, SIGCONT"
    case = Case(what, ", ".join(struck), "nothing: the run goes on", times=len(struck))
    return ended_well(bench, attempt, case)


def mlflow_process_killed(bench: Bench, seconds: float) -> Case:
    """The process that speaks to MLflow is killed, and each that takes its place."""
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    said, struck = "nothing: the run goes on", 0
    for point in (r"- (Started|Continuing) run ", r"- epoch \d", r"- post-processing", r"- Registered run "):
        reached = re.compile(point)
        wait_until(lambda: bool(reached.search(attempt.written)) or attempt.is_over, 300, point)  # noqa: B023
        if attempt.is_over:
            # A call that is interrupted ends the run; between two calls nobody misses the process.
            said = attempt.said()
            attempt = Attempt(pipeline)
            attempt.wait_for(point)
        for process in living(pipeline, "tracker process"):
            process.kill()
            struck += 1
    status, outcome = attempt.wait()
    case = Case("the process that speaks to MLflow, SIGKILL", f"{struck} times, from the run's start", said)
    expect(case, struck >= 3, f"struck {struck} times")
    expect(case, status in (0, 1), f"exit status {status}, expected 0 or 1")
    case.differences += attempt.tracebacks
    return compared(bench, pipeline, case, outcome)


def orphan_stopped(bench: Bench, seconds: float) -> Case:
    """Flow killed, what it had started stopped in whatever it did, and going on during the next run; again and again.

    What is stopped may hold MLflow's database in the middle of a write: the next run waits, and says for whom.
    """
    case = Case("flow, SIGKILL; what it had started SIGSTOP, SIGCONT during the next run", "")
    orphans: list[psutil.Process] = []
    struck: list[str] = []
    saw: list[str] = []
    moments = drawn_moments(bench, "moments of an orphan", POINTS[1:])
    for attempt, reached in struck_at_moments(bench, case, moments, bench.fresh):
        if reached is None:
            threading.Thread(target=_go_on_beside, args=(attempt, orphans, saw)).start()
            continue
        orphans = [one for one in processes_of(attempt.pipeline.folder) if one.pid != attempt.process.pid]
        for one in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        attempt.process.kill()
        attempt.process.wait()
        struck.append(str(reached))
    case.when, case.times, case.saw = ", ".join(struck), len(struck), saw[-1] if saw else "Continuing run ..."
    return case


def _go_on_beside(attempt: Attempt, orphans: list[psutil.Process], saw: list[str]) -> None:
    """SIGCONT to the orphans once the attempt waits for them, or goes on without; notes what it says of waiting."""
    waits = re.compile(r"locked|waiting for", re.IGNORECASE)
    deadline = time.monotonic() + (SECONDS_STOPPED_BESIDE if orphans else 0)
    while time.monotonic() < deadline and not attempt.is_over:
        if re.search(r"- epoch \d", attempt.written) or waits.search(attempt.written):
            break
        time.sleep(0.02)
    for one in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.resume()
    saw += [cell(line.rpartition(" - ")[2]) for line in attempt.written.splitlines() if waits.search(line)]


def group_signals(bench: Bench, seconds: float) -> Case:
    """A signal to the whole group, as a terminal sends it, at drawn moments, with a temporary Prefect server."""
    rng = bench.rng("signals")
    case = Case("a signal to the whole group, Prefect's temporary server in it", "")
    struck: list[str] = []
    slowest = 0.0
    deck = (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    # Before that Python itself starts, and says what it wants.
    moments = [
        (point, rng.uniform(0.3, 1) if point == POINTS[0] else delay)
        for point, delay in drawn_moments(bench, "moments of a signal")
    ]
    for attempt, reached in struck_at_moments(bench, case, moments, bench.fresh_with_server_of_its_own):
        if reached is None:
            continue
        sent, twice = deck[len(struck) % len(deck)], rng.random() < 0.2
        name = f"{sent.name}{' twice' if twice else ''} at {reached}"
        struck.append(name)
        wrong = stop_group(bench, attempt, sent, twice, POINTS.index(reached) >= _NEAR_THE_END)
        slowest = max(slowest, attempt.seconds_to_end)
        case.saw = attempt.said()
        wrong += wait_until_all_ended(attempt.pipeline, SECONDS_TO_STOP * bench.load)
        wrong += [f"MLflow says {status}" for status in _still_open(attempt.pipeline)]
        case.differences += [f"{name}: {one}" for one in wrong]
    case.when, case.times = f"{', '.join(struck)}; prompt back after at most {slowest:.1f} s", len(struck)
    return case


_NEAR_THE_END = next(number for number, point in enumerate(POINTS) if point.step == "run ends")


def stop_group(
    bench: Bench, attempt: Attempt, sent: signal.Signals, twice: bool = False, may_be_over: bool = False
) -> list[str]:
    """Send it to the group, as a terminal does; what is not as it should be."""
    attempt.signal_group(sent)
    if twice:
        with contextlib.suppress(subprocess.TimeoutExpired):
            attempt.process.wait(0.3)
        attempt.signal_group(sent)
    limit = SECONDS_TO_STOP * bench.load
    since = time.monotonic()
    try:
        status, _ = attempt.wait(20 * limit)
    except subprocess.TimeoutExpired:
        for one in processes_of(attempt.pipeline.folder):
            one.kill()
        attempt.wait()
        return [f"the prompt was not back within {20 * limit:.0f} s; it said last: {attempt.said()}"]
    attempt.seconds_to_end = time.monotonic() - since
    # What a shell says of a process that a signal has ended.
    told = 128 - status if status < 0 else status
    if told == 0 and may_be_over and attempt.last[1]:
        return []  # It was at its end already.
    wrong = [] if told == 128 + sent else [f"exit status {told}, expected {128 + sent}: {attempt.said()}"]
    if attempt.seconds_to_end > limit:
        wrong.append(f"the prompt was back after {attempt.seconds_to_end:.1f} s, expected {limit:.0f}")
    return wrong + attempt.tracebacks


def _still_open(pipeline: Pipeline) -> list[str]:
    import mlflow

    if not (pipeline.folder / "home" / "mlflow" / "mlflow.db").exists():
        return []
    client = mlflow.MlflowClient(pipeline.settings.mlflow_tracking_uri, pipeline.settings.mlflow_tracking_uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [one.info.status for one in client.search_runs(experiments, "attributes.status = 'RUNNING'")]
