"""Faults: what is stopped, hangs, is full, away or damaged, or told to end, in the middle of a run."""

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.mlflow_server import MlflowServer
from tests.pipeline import Pipeline, wait_until
from tests.s3_server import KEY_ID, SECRET, S3Server, s3_server
from tests.torture.cases import (
    POINTS,
    Attempt,
    Bench,
    Case,
    Point,
    cell,
    compared,
    expect,
    processes_of,
    programs_of,
    reach,
    shown,
    store_folder,
    tracker_processes_of,
    wait_until_all_ended,
)
from tests.torture.machines import machines, why_no_machines

SECONDS_TO_STOP = 3.0
"""Within which the prompt is back after a signal, on an idle machine."""

SECONDS_TO_TELL = 15.0
"""Within which a line says what is waited for, if a service hangs; it is promised after 10."""


_CONTINUED = "Continuing run ..., which an earlier attempt left RUNNING"


def sigterm(bench: Bench, seconds: float) -> Case:
    """SIGTERM to the flow in the middle of training."""
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    attempt.wait_for(r"- epoch 5/")
    attempt.process.terminate()
    status, _ = attempt.wait(10)
    case = Case("SIGTERM to the flow", "epoch 5", attempt.said())
    expect(case, status == 143, f"exit status {status}, expected 143")
    case.differences += wait_until_all_ended(pipeline, 1)
    return compared(bench, pipeline, case)


def drawn_moments(bench: Bench, purpose: str, points: tuple[Point, ...] = POINTS) -> list[tuple[Point, float]]:
    """Points of a run in its order, and so many seconds behind each."""
    rng = bench.rng(purpose)
    chosen = sorted(rng.sample(points, min(bench.moments, len(points))), key=POINTS.index)
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
        reached = reach(attempt, *pending[0]) if pending else None
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
        victim = rng.choice(("all", "flow", "program", "MLflow's"))
        for_seconds = seconds if number == long else rng.uniform(0.5, 4)
        if (reached := reach(attempt, point, delay)) is None:
            break
        processes = {
            "all": processes_of(pipeline.folder),
            "flow": [psutil.Process(attempt.process.pid)],
            "program": programs_of(pipeline),
            "MLflow's": tracker_processes_of(pipeline),
        }[victim]
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        time.sleep(for_seconds)
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
        struck.append(f"{victim} at {reached} for {for_seconds:.0f} s")
    status, outcome = attempt.wait()
    case = Case("SIGSTOP to processes of a run, SIGCONT", ", ".join(struck), "nothing: the run goes on")
    case.times = len(struck)
    expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    return compared(bench, pipeline, case, outcome)


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
        for process in tracker_processes_of(pipeline):
            process.kill()
            struck += 1
    status, outcome = attempt.wait()
    case = Case("the process that speaks to MLflow, SIGKILL", f"{struck} times, from the run's start", said)
    expect(case, struck >= 3, f"struck {struck} times")
    expect(case, status in (0, 1), f"exit status {status}, expected 0 or 1")
    case.differences += attempt.tracebacks
    return compared(bench, pipeline, case, outcome)


SECONDS_STOPPED_BESIDE = 20.0
"""For which an orphan stays stopped beside the next run, if that comes no further."""


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
    case.when, case.times, case.saw = ", ".join(struck), len(struck), saw[-1] if saw else _CONTINUED
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
        wrong = _stop_group(bench, attempt, sent, twice)
        slowest = max(slowest, attempt.seconds_to_end)
        case.saw = attempt.said()
        wrong += wait_until_all_ended(attempt.pipeline, SECONDS_TO_STOP * bench.load)
        wrong += [f"MLflow says {status}" for status in _still_open(attempt.pipeline)]
        case.differences += [f"{name}: {one}" for one in wrong]
    case.when, case.times = f"{', '.join(struck)}; prompt back after at most {slowest:.1f} s", len(struck)
    return case


def _stop_group(bench: Bench, attempt: Attempt, sent: signal.Signals, twice: bool = False) -> list[str]:
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
    if told == 0 and "model" in attempt.said():
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


def memory_limit(bench: Bench, seconds: float) -> Case:
    """The program may not have more memory than it has, which is too little for the compilation that comes next."""
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    attempt.wait_for(r"- data set ")
    (runner,) = programs_of(pipeline, "train")
    (program,) = (one for one in runner.children() if "/launcher" in " ".join(one.cmdline()))
    limit = program.memory_info().vms
    resource.prlimit(program.pid, resource.RLIMIT_AS, (limit, limit))
    status, _ = attempt.wait()
    case = Case("memory limit on the program", "before epoch 1", attempt.said())
    expect(case, status == 1, f"exit status {status}, expected 1")
    case.differences += attempt.tracebacks
    return compared(bench, pipeline, case)


class _SmallDisk:
    """A file system of its own, `size` bytes, to be filled up; `None` instead where mounting is not allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[_SmallDisk | None]:
    """A file system of 64 MB mounted on `folder`, or None where this user may not mount."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield _SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disk_full_at_upload(bench: Bench, seconds: float) -> Case:
    """The disk of the store is full when the data set is sent."""
    return _disk_full(bench, "upload")


def disk_full_in_training(bench: Bench, seconds: float) -> Case:
    """The disk of the store is full in the middle of training, and there is room again after the user was told."""
    return _disk_full(bench, "epoch 5")


def _disk_full(bench: Bench, when: str) -> Case:
    case = Case("disk full in the store's folder", when)
    disk_folder = bench.folder / f"disk-{when.replace(' ', '-')}"
    with small_disk(disk_folder) as disk:
        if disk is None:
            case.saw, case.struck = "skipped: this user may not mount a file system", False
            return case
        store = disk_folder / "store"
        store.mkdir()
        pipeline = bench.fresh(OBJECT_STORE_URI=store.as_uri(), STORE_FOLDER=str(store))
        outcome: dict[str, Any] = {}
        if when == "upload":
            disk.fill()
            attempt = Attempt(pipeline)
            status, _ = attempt.wait()
            expect(case, status == 1, f"exit status {status}, expected 1")
            case.saw = attempt.said()
        else:
            attempt = Attempt(pipeline)
            attempt.wait_for(r"- epoch 5/")
            disk.fill()
            attempt.wait_for(r"cannot save the checkpoint")
            case.saw = next(line for line in attempt.written.splitlines() if "cannot save" in line)
            case.saw = cell(case.saw.partition(" - ")[2])
        expect(case, str(disk_folder) in attempt.written, "the message does not name the folder")
        case.differences += attempt.tracebacks
        disk.empty()
        if when != "upload":
            status, outcome = attempt.wait()
            expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
        return compared(bench, pipeline, case, outcome)


def mlflow_server_down(bench: Bench, seconds: float) -> Case:
    """The MLflow server is killed in the middle of training and comes back."""
    pipeline = bench.fresh()
    server = MlflowServer(pipeline.folder / "mlflow-server")
    pipeline.environment["MLFLOW_TRACKING_URI"] = server.uri
    server.start()
    try:
        attempt = Attempt(pipeline)
        attempt.wait_for(r"- epoch 5/")
        server.kill()
        time.sleep(seconds)
        server.start()
        status, outcome = attempt.wait()
        case = Case("MLflow server, SIGKILL and started again", f"epoch 5, for {seconds:g} s")
        told = [line for line in attempt.written.splitlines() if "again in" in line]
        case.saw = cell(told[0].partition(" - ")[2]) if told else "no word of it"
        expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
        return compared(bench, pipeline, case, outcome)
    finally:
        server.kill()


@contextlib.contextmanager
def _on_s3(bench: Bench) -> Iterator[tuple[Pipeline, S3Server]]:
    pipeline = bench.fresh()
    with s3_server(pipeline.folder / "s3", "bucket") as server:
        pipeline.environment |= {
            **server.environment,
            "OBJECT_STORE_URI": "s3://bucket/store",
            "STORE_FOLDER": str(server.folder / "bucket" / "store"),
        }
        yield pipeline, server


def s3_down_in_training(bench: Bench, seconds: float) -> Case:
    """The S3 server is killed in the middle of training and comes back."""
    with _on_s3(bench) as (pipeline, server):
        attempt = Attempt(pipeline)
        attempt.wait_for(r"- epoch 5/")
        server.kill()
        time.sleep(seconds)
        server.start()
        status, outcome = attempt.wait()
        case = Case("S3 server, SIGKILL and started again", f"epoch 5, for {seconds:g} s")
        told = [line for line in attempt.written.splitlines() if "again in" in line]
        case.saw = cell(told[0].partition(" - ")[2]) if told else "no word of it"
        expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
        return compared(bench, pipeline, case, outcome)


def s3_down_in_upload(bench: Bench, seconds: float) -> Case:
    """The S3 server is killed in the middle of a multipart upload and comes back."""
    import s3fs

    with _on_s3(bench) as (pipeline, server):
        watch = s3fs.S3FileSystem(
            key=KEY_ID, secret=SECRET, endpoint_url=server.endpoint, client_kwargs={"region_name": "us-east-1"}
        )

        def sends_parts() -> bool:
            try:
                return bool(watch.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads"))
            except FileNotFoundError:  # How this server says that there are none.
                return False

        assert not sends_parts()  # And connected: an upload takes a tenth of a second.
        attempt = Attempt(pipeline)
        attempt.wait_for(r"- Downloaded and checked")
        while not sends_parts():
            assert "- Uploaded " not in attempt.written, "the upload was over before its parts were seen"
        server.kill()
        ended = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            attempt.process.wait(seconds)
            ended = True
        server.start()
        status, outcome = attempt.wait()
        case = Case("S3 server, SIGKILL and started again", f"multipart upload, for {seconds:g} s", attempt.said())
        expect(case, status == 0 or ended, f"exit status {status} after the server was back")
        case.differences += attempt.tracebacks
        return compared(bench, pipeline, case, outcome)


def mlflow_hangs(bench: Bench, seconds: float) -> Case:
    """The MLflow server takes connections and answers nothing: at the start, in training, and for `seconds`."""
    pipeline = bench.fresh()
    server = MlflowServer(pipeline.folder / "mlflow-server")
    pipeline.environment["MLFLOW_TRACKING_URI"] = server.uri
    server.start()
    try:
        return _hangs(bench, seconds, pipeline, server, "MLflow server")
    finally:
        server.kill()


def s3_hangs(bench: Bench, seconds: float) -> Case:
    """The S3 server takes connections and answers nothing: at the start, in training, and for `seconds`."""
    with _on_s3(bench) as (pipeline, server):
        return _hangs(bench, seconds, pipeline, server, "S3 server")


_WAITS = r"(?i)no answer (from|for)|does not answer|waiting for|again in"


def _hangs(bench: Bench, seconds: float, pipeline: Pipeline, server: MlflowServer | S3Server, what: str) -> Case:
    rng = bench.rng(what)
    first, second = sorted(rng.sample(range(2, 26), 2))
    case = Case(f"{what}, SIGSTOP and SIGCONT", f"start, epoch {first}, epoch {second} for {seconds:g} s", times=3)
    for point in (POINTS[0], Point("epoch", epoch=first)):
        if point.epoch == 0:
            server.stop()
        attempt = Attempt(pipeline)
        if point.epoch:
            attempt.wait_for(rf"- epoch {first}/")
            server.stop()
        since, limit = len(attempt.written), (SECONDS_TO_TELL + (0 if point.epoch else 15)) * bench.load
        deadline = time.monotonic() + limit
        while not re.search(_WAITS, attempt.written[since:]) and not attempt.is_over and time.monotonic() < deadline:
            time.sleep(0.05)
        told = [line for line in attempt.written[since:].splitlines() if re.search(_WAITS, line)]
        expect(case, bool(told), f"at {point}: no word within {limit:.0f} s of what is waited for")
        case.saw = cell(told[-1].rpartition(" - ")[2]) if told else case.saw
        if "does not answer" in case.saw:  # Its last word: it ends.
            wait_until(lambda: attempt.is_over, SECONDS_TO_TELL * bench.load, "its end")  # noqa: B023
        if attempt.is_over:  # It may give up, before anything was paid for.
            status, _ = attempt.wait()
            expect(case, status == 1 and not point.epoch, f"at {point}: exit status {status}: {attempt.said()}")
            case.differences += attempt.tracebacks
        else:
            case.differences += [f"at {point}: {wrong}" for wrong in _stop_group(bench, attempt, signal.SIGINT)]
        server.go_on()
        case.differences += wait_until_all_ended(pipeline)
    attempt = Attempt(pipeline)
    if reach(attempt, Point("epoch", epoch=second), 0) is not None:
        server.stop()
        time.sleep(seconds)
        server.go_on()
    status, outcome = attempt.wait()
    expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    return compared(bench, pipeline, case, outcome)


def bit_flips(bench: Bench, seconds: float) -> Case:
    """A bit of the stored data set turns over while the run is interrupted; then one of the downloaded file as well."""
    rng = bench.rng("bits")
    pipeline = bench.fresh()
    first, second = sorted(rng.sample(range(1, 26), 2))
    flipped: list[str] = []
    case = Case("a bit of the data set turns over", "", times=3)
    for epoch in (first, second):
        attempt = Attempt(pipeline)
        reached = reach(attempt, Point("epoch", epoch=epoch), 0)
        expect(case, reached is not None, f"it ended before epoch {epoch}: {attempt.said()}")
        attempt.process.kill()
        attempt.wait()
        case.differences += wait_until_all_ended(pipeline)
        stored = store_folder(pipeline) / "datasets"
        flipped.append(f"stored {_flip(rng, [path for path in stored.rglob('*.gz') if path.is_file()])}")
        if epoch == second:
            copies = pipeline.folder / "home" / "datasets"
            flipped.append(f"downloaded {_flip(rng, [path for path in copies.rglob('*.gz') if path.is_file()])}")
    attempt = Attempt(pipeline)
    status, outcome = attempt.wait()
    told = [line for line in attempt.written.splitlines() if re.search(r"(?i)repair|damage|sent again|digest", line)]
    expect(case, bool(told), "no word of what was mended")
    case.saw = cell(told[0].rpartition(" - ")[2]) if told else attempt.said()
    expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    case.when = f"epoch {first}, {second}: {', '.join(flipped)}"
    return compared(bench, pipeline, case, outcome)


def _flip(rng: Any, files: list[Path]) -> str:
    file = rng.choice(sorted(files))
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{file.name} at {at}"


def two_machines(bench: Bench, seconds: float) -> Case:
    """Two machines with one MLflow and one store, told the same at once: one trains, and the other takes its model."""
    case = Case("two machines with one MLflow and one store, the same key at once", "from the start")
    return _on_machines(bench, case, ("one", "two"), dies=False)


def machine_dies(bench: Bench, seconds: float) -> Case:
    """The machine that trains dies with all that runs on it; another of the same name and the same paths waits."""
    case = Case("two machines of one name and one path: the first trains and is gone, the second waited", "")
    return _on_machines(bench, case, ("same", "same"), dies=True)


def _on_machines(bench: Bench, case: Case, names: tuple[str, str], dies: bool) -> Case:
    if case_left_out := why_no_machines():
        case.left_out = case_left_out
        return case
    with machines(bench, names) as (first, second):
        attempts = [Attempt(first.pipeline)]
        if dies:
            epoch = bench.rng("death of a machine").randrange(2, 20)
            case.when = f"epoch {epoch}"
            attempts[0].wait_for(rf"- epoch {epoch}/")
            # The training would be over before the other one has come so far; its flow lives, and says so.
            for one in first.processes():
                if "runner" in one.cmdline() or "/launcher" in " ".join(one.cmdline()):
                    one.suspend()
            attempts.append(Attempt(second.pipeline))
            attempts[1].wait_for(r"(?i)waiting for", 60 * bench.load)
            for one in first.processes():
                if one.cmdline()[:1] != ["sleep"]:
                    one.kill()
            attempts[0].wait()
            status, _ = attempts[1].wait()
            expect(case, status == 0, f"exit status {status}, expected 0: {attempts[1].said()}")
            expect(case, "- Continuing run " in attempts[1].written, "the second machine did not continue the run")
            attempts[0] = Attempt(first.pipeline)
        else:
            attempts.append(Attempt(second.pipeline))
        ended = [attempt.wait() if not attempt.is_over else attempt.last for attempt in attempts]
        written = [attempt.written for attempt in attempts]
        waits = [line for text in written for line in text.splitlines() if re.search(r"(?i)waiting for", line)]
        case.saw = cell(waits[0].rpartition(" - ")[2]) if waits else "no word of it"
        for status, attempt in zip((status for status, _ in ended), attempts, strict=True):
            expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
            case.differences += attempt.tracebacks
        expect(case, sum(" epoch 1/" in text for text in written) == (0 if dies else 1), "not exactly one trained")
        outcomes = [outcome for _, outcome in ended if outcome]
        expect(case, len({outcome["run_id"] for outcome in outcomes}) == 1, "they used two runs")
        for process in processes_of(bench.folder):
            expect(case, False, f"left over: {shown(process)}")
        for machine, outcome in zip((first, second), outcomes, strict=False):
            compared(bench, machine.pipeline, case, outcome)
        return case


def two_at_once(bench: Bench, seconds: float) -> Case:
    """The same command twice at the same time, into the same folder."""
    pipeline = bench.fresh()
    (pipeline.folder / "second").mkdir()
    second = Pipeline(pipeline.folder / "second", pipeline.environment)
    attempts = [Attempt(pipeline), Attempt(second, f"--output-dir={pipeline.output_dir}")]
    ended = [attempt.wait() for attempt in attempts]
    case = Case("the same command twice at once", "from the start")
    waited = [line for attempt in attempts for line in attempt.written.splitlines() if "aiting" in line]
    case.saw = waited[-1].partition(" - ")[2] if waited else "no word of it"
    for attempt, (status, _) in zip(attempts, ended, strict=True):
        expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    expect(case, sum(" epoch 1/" in attempt.written for attempt in attempts) == 1, "not exactly one of them trained")
    outcomes = [outcome for status, outcome in ended if status == 0]
    expect(case, len({outcome["run_id"] for outcome in outcomes}) == 1, "they used two runs")
    return compared(bench, pipeline, case, outcomes[0] if len(outcomes) == 2 else None)


FAULTS: dict[str, Callable[[Bench, float], Case]] = {
    function.__name__: function
    for function in (
        sigterm,
        stopped,
        mlflow_process_killed,
        orphan_stopped,
        memory_limit,
        disk_full_at_upload,
        disk_full_in_training,
        mlflow_server_down,
        s3_down_in_training,
        s3_down_in_upload,
        two_at_once,
        group_signals,
        mlflow_hangs,
        s3_hangs,
        bit_flips,
        two_machines,
        machine_dies,
    )
}
"""By name; the second argument is how long, in seconds, something is away."""

MOSTLY_WAITING = (
    *("stopped", "mlflow_server_down", "s3_down_in_training", "s3_down_in_upload"),
    *("mlflow_hangs", "s3_hangs", "machine_dies"),
)
"""They leave the machine to others most of the time."""
