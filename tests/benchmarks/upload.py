"""Uploading to an S3 server on this machine, against `rclone copy`: time in pairs taken in turn, and peak memory.

python -m tests.benchmarks.upload [MiB, default 1024] [pairs, default 3]

rclone runs with its defaults (4 files at once, 4 parts of 5 MiB at once for a large one):
`rclone copy FOLDER :s3,provider=Rclone,env_auth:BUCKET/PREFIX`. Both times are those of a fresh process, from its
start to its end. Ours does what the step "upload" asks of the store: it looks for what is there, checks each file's
SHA-256 and writes the manifest. Prefect is not in the process: it takes 60 MB whatever is sent.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from infra.compute.runner.manifest import file_entry, manifest_bytes
from tests.s3_server import RCLONE, S3Server, s3_server

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20

_OURS = """
import json, sys
from pathlib import Path
from infra.object_store import ObjectStore, SourceFile
store, folder, manifest = ObjectStore(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
files = {file["name"]: file for file in json.loads(manifest)["files"]}
assert store.get_bytes("ours/manifest.json") is None and store.sizes("ours") == {}
sources = ((f"ours/{name}", SourceFile(folder / name, file["size"], file["sha256"])) for name, file in files.items())
store.put_files(sources, lambda count: None)
store.put_bytes("ours/manifest.json", manifest)
"""


@dataclass(frozen=True)
class UploadRow:
    """One comparison: medians over the pairs, the ratio that of each pair; memory in MB (10^6 bytes), the highest."""

    name: str
    ours_seconds: float
    rclone_seconds: float
    ratio: float
    peak_mb: float
    rclone_peak_mb: float


def run(mebibytes: int = 1024, pairs: int = 3) -> list[UploadRow]:
    """Time the upload of `mebibytes` as 1,000 files and as one, and return a row for each."""
    with tempfile.TemporaryDirectory() as scratch:
        return [
            _compare(
                Path(scratch) / str(count), f"{mebibytes} MiB as {count:,} file{'s'[: count > 1]}", count, each, pairs
            )
            for count, each in ((1000, mebibytes * MIB // 1000), (1, mebibytes * MIB))
        ]


def _compare(scratch: Path, name: str, count: int, file_bytes: int, pairs: int) -> UploadRow:
    files = scratch / "files"
    files.mkdir(parents=True)
    for number in range(count):
        with (files / f"{number:04}").open("wb") as file:
            for start in range(0, file_bytes, MIB):
                file.write(random.randbytes(min(MIB, file_bytes - start)))
    manifest = scratch / "manifest.json"
    manifest.write_bytes(manifest_bytes(map(file_entry, files.iterdir())))
    ours, theirs = [], []
    for pair in range(pairs):
        # Whoever comes second may find a disk still busy with the first: they change places.
        for turn in (pair, pair + 1):
            if turn % 2 == 0:
                ours.append(_upload(scratch, files, manifest))
            else:
                theirs.append(_rclone_copy(scratch, files))
    return UploadRow(
        name,
        median(seconds for seconds, _ in ours),
        median(seconds for seconds, _ in theirs),
        median(mine[0] / other[0] for mine, other in zip(ours, theirs, strict=True)),
        max(peak for _, peak in ours),
        max(peak for _, peak in theirs),
    )


def _upload(scratch: Path, files: Path, manifest: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder, s3_server(Path(folder), "bucket", fresh=False) as server:
        timed = _timed([sys.executable, "-c", _OURS, "s3://bucket", str(files), str(manifest)], server)
        sent = {path.name: path.stat().st_size for path in (Path(folder) / "bucket" / "ours").iterdir()}
        expected = {path.name: path.stat().st_size for path in files.iterdir()}
        if sent != {**expected, "manifest.json": manifest.stat().st_size}:
            raise RuntimeError(f"{server.endpoint} does not hold what was sent to it")
        return timed


def _rclone_copy(scratch: Path, files: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder, s3_server(Path(folder), "bucket", fresh=False) as server:
        remote = [
            ":s3,provider=Rclone,env_auth:bucket/rclone",
            "--s3-endpoint",
            server.endpoint,
            "--config",
            os.devnull,
        ]
        return _timed([str(RCLONE), "copy", str(files), *remote], server)


def _timed(command: list[str], server: S3Server) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command that is to succeed."""
    # What the run before wrote must not be written to the disk at this one's cost.
    os.sync()
    environment = {**os.environ, **server.environment, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def table(rows: list[UploadRow]) -> str:
    """The rows as text."""
    lines = [f"{'':28}{'ours s':>9}{'rclone s':>10}{'ratio':>8}{'peak MB':>9}{'rclone MB':>11}"]
    for row in rows:
        lines.append(
            f"{row.name:28}{row.ours_seconds:9.2f}{row.rclone_seconds:10.2f}{row.ratio:8.2f}"
            f"{row.peak_mb:9.0f}{row.rclone_peak_mb:11.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run(*map(int, sys.argv[1:]))))  # noqa: T201
