"""The node's part of a job on a cluster, run by Ray's Jobs API: `python -m runner.node` beside `request.json`.

It builds what environments the node lacks, says what the node has, starts the program up and lets it stand by, and
gives it the order as soon as that is in the job's folder of the store. It ends when the program does, or when nobody
renews the job's lease: the job of a flow that has died costs no more than that.

Lines that begin with the character 0x1D are for the flow; all others are the program's. Exit status: the program's, or
one of ours. Until its environment is there it imports the standard library alone.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from .environments import build, find_uv
from .exits import LAST_WORDS, RunnerError
from .order import PROGRAM_FACTS, Order, read_program

EXIT_REFUSED = 70
EXIT_LEASE = 75

ENVIRONMENTS = Order.home.expanduser() / "environments"
REQUEST = Path("request.json")
ORDER, LEASE = "order.json", "lease.json"
WHEELS_ALONE = {"UV_NO_BUILD": "1", "PIP_ONLY_BINARY": ":all:"}
"""What the building of a package needs would come without a hash."""


def main(request: dict[str, Any], prepared: bool) -> int:
    """Do what the request says; returns the exit status."""
    host = socket.gethostname()
    try:
        if not prepared:
            say("started", {"host": host, "at": time.time()})
            python = prepare(request)
            os.execv(python, [python, "-m", __spec__.name, "prepared"])
        REQUEST.unlink()  # It has secrets, and is read no more.
        started = time.monotonic()
        os.environ["MLFLOW_TRACKING_URI"] = request["tracking_uri"]
        read = reader(request["folder"])
        check_reachable(read, request)
        build_own_environment()
        # Both import TensorFlow, so they do it side by side.
        process = stand_by(request["program"], request["command"], request["variables"])
        try:
            node = describe(request["program"], request["gpu"])
            say("node", {**node, "preparing_seconds": time.monotonic() - started})
            return watch(process, read, request["lease_seconds"])
        finally:
            stop(process)
    except RunnerError as error:
        REQUEST.unlink(missing_ok=True)
        say("refused", f"node {host}: {error}")
        return EXIT_REFUSED


def say(what: str, facts: Any) -> None:
    """A line for the flow."""
    print(f"\x1d{what} {json.dumps(facts)}", flush=True)  # noqa: T201


tell = partial(say, "environment")


def prepare(request: dict[str, Any]) -> str:
    """A Python with the required versions: the node's own, or an environment that is built once and kept.

    Each package that is installed must have a hash that the request's list names. Raises `RunnerError` if one has
    another, or none is named.
    """
    wrong = [
        line for line in request["requirements"] if line != f"{(name := line.partition('==')[0])}=={_version(name)}"
    ]
    if not wrong:
        tell("the node's own Python has every version that is required")
        return sys.executable
    tell(f"the node's Python lacks {', '.join(wrong)}")
    os.environ.update(WHEELS_ALONE)
    if find_uv() is None:  # With pip the large list would take minutes.
        tools = build(request["uv"], None, ENVIRONMENTS, False, tell)
        os.environ["PATH"] = f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = build(request["lock"], None, ENVIRONMENTS, False, tell)
    for name in WHEELS_ALONE:
        del os.environ[name]
    return str(environment / "bin" / "python")


def build_own_environment() -> None:
    """That of the program, where it has one: the runner finds it when the order comes. Raises `RunnerError`."""
    facts = Path(__file__).with_name(PROGRAM_FACTS)
    if facts.exists() and (own := read_program(facts).requirements):
        tell(f"the program's own, {build(own.lock, own.python, ENVIRONMENTS, False, tell).name}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def reader(uri: str) -> Callable[[str], Any]:
    """What reads the JSON of an object in the job's folder; None if it is not there; raises as the store does."""
    from .storage import open_store  # Not before the environment is there.

    filesystem, root = open_store(uri)

    def read(name: str) -> Any:
        with suppress(FileNotFoundError):
            return json.loads(filesystem.cat_file(f"{root}/{name}"))

    return read


def check_reachable(read: Callable[[str], Any], request: dict[str, Any]) -> None:
    """Raise `RunnerError` that says what of what the program will need this node cannot reach."""
    store, tracking = request["folder"], request["tracking_uri"]
    try:
        lease = read(LEASE)
    except Exception as error:
        raise RunnerError(f"cannot read the store at {store} ({type(error).__name__}: {error})") from error
    if lease is None:
        raise RunnerError(f"finds no {LEASE} in {store}: the store that it reaches is not the flow's")
    try:
        urllib.request.urlopen(f"{tracking.rstrip('/')}/health", timeout=20).close()
    except urllib.error.HTTPError:
        pass  # It is there; whether it lets us in is the program's matter.
    except OSError as error:
        raise RunnerError(f"cannot reach MLflow at {tracking} ({error})") from error


def describe(program: str, gpu: bool) -> dict[str, Any]:
    """What this node is. Raises `RunnerError` if a GPU is wanted, and the program says that Keras sees none."""
    done = subprocess.run([sys.executable, "-m", program, "devices"], stdout=subprocess.PIPE, text=True, check=True)
    # Its answer comes last; whatever the libraries have said is before.
    found = json.loads(done.stdout.rpartition(LAST_WORDS)[2])["devices"]
    gpus = [device["name"] for device in found if device["kind"] == "gpu"]
    if gpu and not gpus:
        names = ", ".join(str(device["name"]) for device in found) or "no device at all"
        raise RunnerError(f"a GPU was asked for, and Keras sees none: it sees {names}")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in ("keras", "tensorflow", "ray")}
    return {
        "host": socket.gethostname(),
        "accelerator": gpus[0] if gpu else "cpu",
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "versions": {name: found for name, found in versions.items() if found},
    }


def stand_by(program: str, command: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the program up for its arguments; what it says goes where ours goes."""
    temporary = Path.cwd() / "tmp"  # What libraries leave there goes with the job's folder.
    temporary.mkdir(exist_ok=True)
    words = [sys.executable, "-m", program, "--standby", command]
    environment = {**os.environ, **variables, "TMPDIR": str(temporary)}
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it, politely first."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def watch(process: subprocess.Popen[bytes], read: Callable[[str], Any], lease_seconds: float) -> int:
    """Give the program its order as soon as there is one, and wait for its end or that of the lease."""
    assert process.stdin is not None
    lease, seen = None, time.monotonic()
    ordered, released, next_look = False, False, 0.0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            if not ordered and (order := read(ORDER)):
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
                ordered = True
            if time.monotonic() > next_look:
                # Whether it changes, not what time it says: the clocks of two machines differ.
                if (found := read(LEASE)) != lease:
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
    # As a shell says that a signal ended it.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main(json.loads(REQUEST.read_text()), sys.argv[1:] == ["prepared"]))
