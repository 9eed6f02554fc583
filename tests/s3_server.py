"""A real S3 server on this machine: `rclone serve s3` over a folder, each top folder a bucket."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

RCLONE = Path(sys.executable).with_name("rclone")
KEY_ID = "pipeline-test-key-id"
SECRET = "pipeline-test-secret"


class S3Server:
    """Serves `folder` on a loopback port that stays the same when it is killed and started again.

    By default it sees at once what a test changes in the folder by hand; `fresh=False` lets it remember listings
    for minutes, as it comes.
    """

    def __init__(self, folder: Path, fresh: bool = True, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.fresh = fresh
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which S3 tools find this server and may use it; the profiles of ~/.aws stay out."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [str(RCLONE), "serve", "s3", str(self.folder)]
            + ["--addr", f"{self.host}:{self.port}", "--auth-key", f"{KEY_ID},{SECRET}", "--config", os.devnull]
            # Never 0: with that it spins on a processor even when nobody asks anything.
            + (["--dir-cache-time", "1ms"] if self.fresh else []),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"rclone serve s3 on {self.endpoint} does not answer ({self._process.poll()})")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGSTOP: it takes connections, and answers nobody any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: connections break in the middle of whatever they carry. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status > 0
        except OSError:
            return False
        finally:
            connection.close()


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def s3_server(folder: Path, *buckets: str, fresh: bool = True, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A running server over `folder` with these buckets, killed at the end."""
    server = S3Server(folder, fresh, host)
    for bucket in buckets:
        server.make_bucket(bucket)
    server.start()
    try:
        yield server
    finally:
        server.kill()
