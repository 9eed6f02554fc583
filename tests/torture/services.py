"""Services that fail a run: a disk that is full, MLflow or an S3 store that is away, hangs, and comes back."""

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.mlflow_server import MlflowServer
from tests.pipeline import Pipeline, wait_until
from tests.s3_server import KEY_ID, SECRET, S3Server, s3_server
from tests.torture.attempts import POINTS, SECONDS_TO_END, Attempt, Point, cell, epoch_line, wait_until_all_ended
from tests.torture.bench import Bench
from tests.torture.kills import Case, compared, ended_well, expect
from tests.torture.signals import stop_group

SECONDS_TO_TELL = 15.0
"""Within which a line says what is waited for, if a service hangs; it is promised after 10."""


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
        if when == "upload":
            disk.fill()
            attempt = Attempt(pipeline)
            status, _ = attempt.wait()
            expect(case, status == 1, f"exit status {status}, expected 1")
            case.saw = attempt.said()
        else:
            attempt = Attempt(pipeline)
            attempt.wait_for(epoch_line(5))
            disk.fill()
            attempt.wait_for(r"cannot save checkpoint")
            case.saw = attempt.said_of("cannot save")
        expect(case, str(disk_folder) in attempt.written, "the message does not name the folder")
        case.differences += attempt.tracebacks
        disk.empty()
        return compared(bench, pipeline, case) if when == "upload" else ended_well(bench, attempt, case)


@contextlib.contextmanager
def _on_mlflow(bench: Bench) -> Iterator[tuple[Pipeline, MlflowServer]]:
    pipeline = bench.fresh()
    server = MlflowServer(pipeline.folder / "mlflow-server")
    pipeline.environment["MLFLOW_TRACKING_URI"] = server.uri
    server.start()
    try:
        yield pipeline, server
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


def mlflow_server_down(bench: Bench, seconds: float) -> Case:
    """The MLflow server is killed in the middle of training and comes back."""
    with _on_mlflow(bench) as (pipeline, server):
        return _down_in_training(bench, seconds, pipeline, server, "MLflow server")


def s3_down_in_training(bench: Bench, seconds: float) -> Case:
    """The S3 server is killed in the middle of training and comes back."""
    with _on_s3(bench) as (pipeline, server):
        return _down_in_training(bench, seconds, pipeline, server, "S3 server")


def _down_in_training(
    bench: Bench, seconds: float, pipeline: Pipeline, server: MlflowServer | S3Server, what: str
) -> Case:
    attempt = Attempt(pipeline)
    attempt.wait_for(epoch_line(5))
    server.kill()
    time.sleep(seconds)
    server.start()
    case = Case(f"{what}, SIGKILL and started again", f"epoch 5, for {seconds:g} s")
    ended_well(bench, attempt, case)
    case.saw = attempt.said_of("again in")
    return case


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
        while not sends_parts():
            assert not attempt.is_over, f"it ended before an upload: {attempt.said()}"
            assert "- Uploaded " not in attempt.written, "the upload was over before its parts were seen"
            time.sleep(0.005)
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
    with _on_mlflow(bench) as (pipeline, server):
        return _hangs(bench, seconds, pipeline, server, "MLflow server")


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
            attempt.wait_for(epoch_line(first))
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
            case.differences += [f"at {point}: {wrong}" for wrong in stop_group(bench, attempt, signal.SIGINT)]
        server.go_on()
        case.differences += wait_until_all_ended(pipeline, SECONDS_TO_END * bench.load)
    attempt = Attempt(pipeline)
    if attempt.reach(Point("epoch", epoch=second)) is not None:
        server.stop()
        time.sleep(seconds)
        server.go_on()
    return ended_well(bench, attempt, case)
