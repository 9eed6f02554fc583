"""Two machines as far as a pipeline can tell: each with a network, a host name and a disk of its own, on this one.

Both see their disk under the same path. MLflow and the store run on a third machine, which is this one.
"""

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.mlflow_server import MlflowServer
from tests.pipeline import Pipeline
from tests.s3_server import s3_server
from tests.torture.attempts import Attempt, epoch_line, of_kind, processes_of, shown
from tests.torture.bench import Bench
from tests.torture.kills import Case, compared, expect

_TURN = threading.Lock()
"""Of the cases with machines, which would have the same addresses."""


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
    with _TURN, contextlib.ExitStack() as stack:
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
    pipeline = bench.fresh_with_server_of_its_own(bench.data.as_uri())
    # The pipeline's processes know the disk by `place`, the comparison by the folder that is mounted there.
    pipeline.environment |= {"PIPELINE_HOME": f"{place}/home", "PREFECT_HOME": f"{place}/prefect"}
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
            attempts[0].wait_for(epoch_line(epoch))
            # The training would be over before the other one has come so far; its flow lives, and says so.
            for one in (*of_kind(first.processes(), "runner"), *of_kind(first.processes(), "program")):
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
        told = (attempt.said_of(r"(?i)waiting for", "") for attempt in attempts)
        case.saw = next(filter(None, told), "no word of it")
        for status, attempt in zip((status for status, _ in ended), attempts, strict=True):
            expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
            case.differences += attempt.tracebacks
        trained = sum(bool(re.search(epoch_line(1), attempt.written)) for attempt in attempts)
        expect(case, trained == (0 if dies else 1), f"{trained} trained from epoch 1")
        outcomes = [outcome for _, outcome in ended if outcome]
        expect(case, len({outcome["run_id"] for outcome in outcomes}) == 1, "they used two runs")
        for process in processes_of(bench.folder):
            expect(case, False, f"left over: {shown(process)}")
        for machine, outcome in zip((first, second), outcomes, strict=False):
            compared(bench, machine.pipeline, case, outcome)
        return case
