"""Two machines as far as a pipeline can tell: each with a network, a host name and a disk of its own, on this one.

Both see their disk under the same path. MLflow and the store run on a third machine, which is this one.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.mlflow_server import MlflowServer
from tests.pipeline import Pipeline
from tests.s3_server import s3_server
from tests.torture.cases import Bench


def why_no_machines() -> str:
    """What keeps such machines from being made here; empty if nothing does."""
    if missing := [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Machine:
    """One of them, and the pipeline on its disk."""

    pipeline: Pipeline
    namespace: str

    def processes(self) -> list[psutil.Process]:
        """All that runs there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if _namespace(process.pid) == self.namespace:
                    found.append(process)
        return found


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/mnt").readlink())


@contextlib.contextmanager
def machines(bench: Bench, host_names: tuple[str, ...]) -> Iterator[list[Machine]]:
    """A machine for each host name, with one MLflow server and one S3 store for all."""
    # Of the addresses for private use, a part that another torture beside this one does not take.
    network = f"10.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
    place = bench.folder / "machine"
    place.mkdir()
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(
                _machine(bench, place, name, f"{network}.{4 * number + 1}", f"{network}.{4 * number + 2}")
            )
            for number, name in enumerate(host_names)
        ]
        host = f"{network}.1"
        server = MlflowServer(bench.folder / "mlflow-server", host)
        stack.callback(server.kill)
        server.start()
        store = stack.enter_context(s3_server(bench.folder / "s3", "bucket", host=host))
        for machine in made:
            machine.pipeline.environment |= {
                **store.environment,
                "MLFLOW_TRACKING_URI": server.uri,
                "OBJECT_STORE_URI": "s3://bucket/store",
                "STORE_FOLDER": str(store.folder / "bucket" / "store"),
            }
        yield made


@contextlib.contextmanager
def _machine(bench: Bench, place: Path, host_name: str, here: str, there: str) -> Iterator[Machine]:
    pipeline = bench.fresh_with_server_of_its_own()
    mirror = Path(bench.environment["DATASET_CATALOG"]).parent
    # The pipeline's processes know the disk by `place`, the comparison by the folder that is mounted there.
    inside = {"PIPELINE_HOME": f"{place}/home", "PREFECT_HOME": f"{place}/prefect", "MNIST_MIRRORS": mirror.as_uri()}
    pipeline.environment |= inside
    script = f'echo "{host_name}" > /proc/sys/kernel/hostname && mount --bind "{pipeline.folder}" "{place}"'
    script += " && ip link set lo up && echo ready && exec sleep infinity"
    init = subprocess.Popen(
        ["unshare", "--net", "--uts", "--mount", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert init.stdout is not None
    machine = Machine(pipeline, "")
    try:
        assert init.stdout.readline() == "ready\n", f"no machine: {init.wait()}"
        machine.namespace = _namespace(init.pid)
        enter = ("nsenter", f"--target={init.pid}", "--net", "--uts", "--mount")
        cable = f"m{init.pid}"
        for command in (
            ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(init.pid)],
            ["ip", "addr", "add", f"{here}/30", "dev", cable],
            ["ip", "link", "set", cable, "up"],
            [*enter, "ip", "addr", "add", f"{there}/30", "dev", "eth0"],
            [*enter, "ip", "link", "set", "eth0", "up"],
            [*enter, "ip", "route", "add", "default", "via", here],
        ):
            subprocess.run(command, check=True, capture_output=True)
        pipeline.within = (*enter, f"--wd={Path.cwd()}")
        yield machine
    finally:
        for process in machine.processes() if machine.namespace else []:
            with contextlib.suppress(psutil.Error):
                process.kill()
        init.kill()
        init.wait()
