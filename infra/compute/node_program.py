"""SHIPPED to a cluster's node with the program that it runs there, and run by the Jobs API; nothing here imports it.

    python node_program.py [--prepared]

It reads what is wanted from request.json beside it, prepares the environment from the locks beside it, says what the
node has, starts the program up and lets it stand by, waits for the order in the job's folder of the store, and passes
on its output. It ends when the program does, or when nobody renews the job's lease: the job of a flow that has died
costs no more than that.

Lines that begin with the character 0x1D are for the flow; all others are the program's. Exit status: the program's, or
one of ours.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any

EXIT_REFUSED = 70
EXIT_LEASE = 75

CACHE = Path.home() / ".cache" / "keras-at-scale"
LOCKS = (Path("requirements.lock"), Path("requirements-cuda.lock"))
"""In the job's folder: the version and the hashes of every package that may be installed."""
ORDER, LEASE = "order.json", "lease.json"


def main(request: dict[str, Any], prepared: bool) -> int:
    """Do what the request says; returns the exit status."""
    if not prepared:
        say("started", {"host": socket.gethostname(), "at": time.time()})
        try:
            python = prepare(request["requirements"], request["gpu"])
        except subprocess.CalledProcessError as error:
            why = f"{shlex.join(error.cmd)} ended with exit status {error.returncode}: {_reason(error.stderr or '')}"
            say("refused", f"node {socket.gethostname()} cannot build the environment of the locks; {why}")
            return EXIT_REFUSED
        os.execv(python, [python, *sys.argv, "--prepared"])
    started = time.monotonic()
    folder = Folder(request["folder"])
    if refusal := unreachable(folder, request["folder"], request["tracking_uri"]):
        say("refused", refusal)
        return EXIT_REFUSED
    # Both import TensorFlow, so they do it side by side.
    program = Program(request["program"], request["command"])
    try:
        found = devices(request["program"])
        if request["gpu"] and not any(device["kind"] == "gpu" for device in found):
            names = ", ".join(str(device["name"]) for device in found) or "no device at all"
            say("refused", f"a GPU was asked for, and Keras sees none on node {socket.gethostname()}: it sees {names}")
            return EXIT_REFUSED
        program.wait_until_it_stands_by()
        say("node", {**description(found, request["gpu"]), "preparing_seconds": time.monotonic() - started})
        return watch(program, folder, request["lease_seconds"])
    finally:
        program.stop()


def say(what: str, facts: Any) -> None:
    """A line for the flow."""
    print(f"\x1d{what} {json.dumps(facts)}", flush=True)  # noqa: T201


def prepare(requirements: list[str], gpu: bool) -> str:
    """A Python that has exactly these versions: the node's own, or an environment that is built once and kept.

    Each package that is installed, whatever asks for it, must have a hash that the locks name. Raises
    `CalledProcessError`, with what the installer said, if one has another, or none is named.
    """
    wrong = [line for line in requirements if _installed(line.partition("==")[0]) != line.partition("==")[2]]
    if not wrong:
        say("environment", "the node's own Python has every version that is required")
        return sys.executable
    lines = [line.replace("tensorflow==", "tensorflow[and-cuda]==") if gpu else line for line in requirements]
    locks = [path.read_text() for path in LOCKS]
    digest = sha256("\n".join([platform.python_version(), *lines, *locks]).encode()).hexdigest()[:16]
    folder = CACHE / "environments" / digest
    python, complete = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{digest}.lock").open("w") as lock:
        flock(lock, LOCK_EX)  # Two jobs on one node build it once.
        if complete.exists():
            say("environment", f"{digest}, built on this node before")
        else:
            say("environment", f"{digest} is built: the node's Python lacks {', '.join(wrong)}")
            _call([sys.executable, "-m", "venv", "--clear", str(folder)])
            # uv takes hashes from constraints; pip wants every package with its own named, and nothing besides.
            (folder / "uv.txt").write_text(_locked("uv", locks[0]))
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
            _call([*pip, "-r", str(folder / "uv.txt")])
            uv = [str(folder / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python)]
            # No build: what a build needs would come without a hash.
            uv += ["--no-build", "--require-hashes", *(f"--constraints={path}" for path in LOCKS)]
            _call([*uv, *lines])
            complete.touch()
    return str(python)


def _call(command: list[str]) -> None:
    subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)


def _locked(name: str, lock: str) -> str:
    """What a lock says of one package: its version and its hashes."""
    found = re.search(rf"^{name}==.*\n(?: .*\n)*", lock, re.MULTILINE)
    return found[0] if found else f"{name}\n"


def _reason(said: str) -> str:
    """What an installer said, in a line: without the hashes, of which there may be hundreds."""
    return " ".join(line.strip() for line in said.splitlines() if line.strip() and "sha256" not in line)[:600]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Folder:
    """The job's folder in the store, where flow and node leave word for each other."""

    def __init__(self, uri: str) -> None:
        import fsspec  # Not before the environment is there.

        # An end to every call, should the store hang: what it tells of the lease must not come too late.
        retries = {"mode": "standard", "total_max_attempts": 2}
        s3 = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": retries}}
        options = s3 if uri.startswith(("s3://", "s3a://")) else {}
        self._fs, self._root = fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)

    def read(self, name: str) -> Any:
        """The object's JSON; None if there is no such object. Raises what the store raises."""
        try:
            return json.loads(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None


def unreachable(folder: Folder, uri: str, tracking_uri: str) -> str | None:
    """What this node cannot reach of what the program will need, in a sentence; None if it reaches all."""
    node = socket.gethostname()
    try:
        if folder.read(LEASE) is None:
            return f"node {node} finds no {LEASE} in {uri}: the store that it reaches is not the flow's"
    except Exception as error:
        return f"node {node} cannot read the store at {uri} ({type(error).__name__}: {error})"
    try:
        urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=20).close()
    except urllib.error.HTTPError:
        pass  # It is there; whether it lets us in is the program's matter.
    except OSError as error:
        return f"node {node} cannot reach MLflow at {tracking_uri} ({error})"
    return None


def devices(program: str) -> list[dict[str, Any]]:
    """What the program says that Keras can compute on."""
    done = subprocess.run([sys.executable, "-m", program, "devices"], stdout=subprocess.PIPE, check=True)
    # Its answer stands behind this character; whatever the libraries have said is before.
    return list(json.loads(done.stdout.rpartition(b"\x1e")[2])["devices"])


def description(found: list[dict[str, Any]], gpu: bool) -> dict[str, Any]:
    """What this node is."""
    names = ("keras", "tensorflow", "ray")
    return {
        "host": socket.gethostname(),
        "accelerator": next((d["name"] for d in found if d["kind"] == "gpu"), "cpu") if gpu else "cpu",
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "versions": {"python": platform.python_version(), **{name: _installed(name) for name in names}},
    }


class Program:
    """The program's process, started with `--standby COMMAND`; its output is passed on."""

    def __init__(self, name: str, command: str) -> None:
        temporary = Path.cwd() / "tmp"  # What libraries leave there goes with the job's folder.
        temporary.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            ["env", f"TMPDIR={temporary}", sys.executable, "-m", name, "--standby", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._stands_by = threading.Event()
        self._output = threading.Thread(target=self._pass_on, daemon=True)
        self._output.start()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            self._stands_by.set()
        self._stands_by.set()

    def wait_until_it_stands_by(self) -> None:
        """Return when it has said its first line, or has ended."""
        self._stands_by.wait()

    def start_job(self, arguments: list[str]) -> None:
        """Give it its arguments."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arguments": arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def exit_code(self) -> int | None:
        """None while it runs; 128 + n after signal n. All its output has been passed on then."""
        code = self._process.poll()
        if code is None:
            return None
        self._output.join()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """End it, politely first."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def watch(program: Program, folder: Folder, lease_seconds: float) -> int:
    """Give the program its order as soon as there is one, and wait for its end or that of the lease."""
    lease, seen = None, time.monotonic()
    ordered, released, next_look = False, False, 0.0
    while (code := program.exit_code()) is None:
        time.sleep(0.2)
        try:
            if not ordered and (order := folder.read(ORDER)):
                program.start_job(order["arguments"])
                ordered = True
            if time.monotonic() > next_look:
                # Whether it changes, not what time it says: the clocks of two machines differ.
                if (found := folder.read(LEASE)) != lease:
                    lease, seen = found, time.monotonic()
                released = found is None or found.get("released", False)
                next_look = time.monotonic() + min(lease_seconds / 10, 5)
        except Exception as error:
            # A store that is away for a while; the program has patience of its own, and the lease has an end.
            say("trouble", f"{type(error).__name__}: {error}")
            time.sleep(1)
        if released:
            say("ended", "the flow has released the job")
            return EXIT_LEASE
        if time.monotonic() - seen > lease_seconds:
            say("ended", f"nobody has renewed the lease for {lease_seconds:g} s: the flow has died")
            return EXIT_LEASE
    return code


if __name__ == "__main__":
    status = main(json.loads(Path("request.json").read_text()), "--prepared" in sys.argv)
    sys.stdout.flush()
    os._exit(status)  # The thread that passes the output on may be waiting for a line.
