"""Whatever dies, whenever, the same command again: kill points, and the comparison with an undisturbed run."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from tasks.programs.mnist.digits.dataset_files import FILE_NAMES
from tests.http_server import Behaviour, HttpServer, serving
from tests.pipeline import Pipeline, still_running, wait_until
from tests.small_dataset import write_catalog, write_small_dataset

EPOCHS = 30
FLAGS = (
    f"--epochs={EPOCHS}",
    "--batch-size=50",
    "--validation-images=500",
    "--first-layer-neurons=256",
    "--second-layer-neurons=64",
)
"""An epoch on the data set below takes about 0.1 s, so that a kill can fall into any of them."""

IMAGES = 9_000
"""The images then exceed 5 MiB packed, which S3 is sent in parts."""

SECONDS_TO_END = 30.0
"""Within which a process ends by itself after its caller was killed; it may be importing TensorFlow."""

MODEL = "keras-dnn-mnist"
EXPERIMENT = "keras-mnist"

Victim = Literal["flow", "program", "both"]
VICTIMS: tuple[Victim, ...] = ("flow", "program", "both")


@dataclass(frozen=True)
class Bench:
    """What the cases share: a data set to serve, a Prefect server, and an undisturbed run."""

    folder: Path
    environment: Mapping[str, str]
    files: Mapping[str, bytes]
    """What a mirror of the data set serves."""
    undisturbed: "Future[dict[str, Any]]"
    seed: int = 0
    moments: int = 10
    """At how many drawn moments a fault strikes that can strike anywhere."""
    load: float = 1
    """Processes that want a core, for each core: what must be done within seconds may take so many times longer."""

    @property
    def reference(self) -> dict[str, Any]:
        """What `result_of` says of the undisturbed run; waits for its end."""
        return self.undisturbed.result()

    def apart(self, name: str) -> "Bench":
        """The same in a folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        return replace(self, folder=folder)

    def fresh(self, **changes: str) -> Pipeline:
        """A pipeline in a home that nothing was run in."""
        return _fresh(self.folder, {**self.environment, **changes})

    def fresh_with_server_of_its_own(self, **changes: str) -> Pipeline:
        """The same, whose runs start a temporary Prefect server, as a person's do who has started none."""
        pipeline = self.fresh(**changes)
        del pipeline.environment["PREFECT_API_URL"]
        pipeline.environment["PREFECT_HOME"] = str(pipeline.folder / "prefect")
        return pipeline

    def rng(self, purpose: str) -> random.Random:
        """Draws by the seed, independent of what else is drawn."""
        return random.Random(f"{self.seed} {purpose}")


def _fresh(folder: Path, environment: Mapping[str, str]) -> Pipeline:
    return Pipeline(Path(tempfile.mkdtemp(prefix="home-", dir=folder)), dict(environment))


def _run_undisturbed(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    pipeline = _fresh(folder, environment)
    result = result_of(pipeline, pipeline.run(*FLAGS))
    check_nothing_left(result)
    return result


def check_nothing_left(undisturbed: Mapping[str, Any]) -> None:
    """The comparison would not find what the undisturbed run leaves behind too."""
    left = {name: value for name, value in undisturbed.items() if name.startswith("left over") and value}
    assert not left, f"the undisturbed run leaves something behind: {left}"


@contextlib.contextmanager
def bench(folder: Path, prefect_api: str, **drawn: Any) -> Iterator[Bench]:
    """A bench in `folder`, whose undisturbed run has started; `drawn` is the rest of its fields."""
    import mlflow  # noqa: F401  Several threads will want it, and its modules import each other.

    data = folder / "data"
    write_small_dataset(data, training_images=IMAGES, test_images=1_000)
    write_catalog(data / "datasets.toml", data)
    files = {name: (data / name).read_bytes() for name in FILE_NAMES}
    with serving(files) as mirror, ThreadPoolExecutor(1, "undisturbed run") as pool:
        environment = {
            "PREFECT_API_URL": prefect_api,
            "MNIST_MIRRORS": mirror.address,
            "DATASET_CATALOG": str(data / "datasets.toml"),
        }
        try:
            yield Bench(folder, environment, files, pool.submit(_run_undisturbed, folder, environment), **drawn)
        finally:
            kill_all_of(folder)


# What a run left, and the comparison


def result_of(pipeline: Pipeline, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """All that must not depend on what the run went through, as flat facts with a name each."""
    import mlflow

    client = mlflow.MlflowClient(pipeline.settings.mlflow_tracking_uri, pipeline.settings.mlflow_tracking_uri)
    told = ("dataset", "dataset_sha256", "training_key", "weights_sha256", "validation_accuracy", "test_accuracy")
    facts: dict[str, Any] = {f"outcome {name}": outcome[name] for name in (*told, "test_loss", "model_version")}
    facts |= {f"run {name}": value for name, value in run_facts(client, outcome["run_id"], EXPERIMENT).items()}
    facts |= {f"registry {name}": value for name, value in registry_facts(client, outcome["run_id"], MODEL).items()}
    facts |= {f"./model {name}": value for name, value in model_facts(pipeline.output_dir).items()}
    facts |= {f"store {name}": value for name, value in stored_facts(pipeline).items()}
    facts["left over on disk"] = leftovers(pipeline)
    facts["left over processes"] = [shown(one) for one in processes_of(pipeline.folder)]
    return facts


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each fact that is not the same."""
    return [
        f"{name}: expected {_short(expected.get(name, 'nothing'))}, found {_short(found.get(name, 'nothing'))}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def run_facts(client: Any, run_id: str, experiment_name: str) -> dict[str, Any]:
    """What MLflow has of the run, and how many runs are beside it."""
    experiment = client.get_experiment_by_name(experiment_name)
    run = client.get_run(run_id)
    models = client.search_logged_models([experiment.experiment_id])
    facts: dict[str, Any] = {
        "count": len(client.search_runs([experiment.experiment_id])),
        "status": run.info.status,
        "params": run.data.params,
        "inputs": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
        "artifacts": sorted(set(_artifacts(client, run_id, ""))),
        "logged models": [(one.source_run_id == run_id, str(one.status)) for one in models],
        "model outputs": [(one.model_id == run.data.tags["model_id"], one.step) for one in run.outputs.model_outputs],
        "tags": sorted(run.data.tags),
    }
    for key in run.data.metrics:
        history = client.get_metric_history(run_id, key)
        steps = [point.step for point in history]
        if key.startswith("phase_"):
            facts[f"metric {key}"] = len(steps)
        elif key == "epoch_seconds":
            facts[f"metric {key}"] = steps
        else:
            facts[f"metric {key}"] = [(point.step, point.value) for point in history]
    return facts


def _artifacts(client: Any, run_id: str, folder: str) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder or None):
        if item.is_dir:
            yield from _artifacts(client, run_id, item.path)
        elif item.path != "source/uncommitted.diff":  # Is there or not as the checkout is, whoever edits it.
            # A decision bears its moment; one that was not carried out is there beside the one that was made again.
            yield re.sub(r"(gate/decision)-[^/]*(\.\w+)$", r"\1\2", item.path)


def registry_facts(client: Any, run_id: str, model: str) -> dict[str, Any]:
    """What the registry has of the model."""
    versions = client.search_model_versions(f"name = '{model}'")
    differing = {
        "gate_flow_run_id",
        "prefect.flow_run_id",
        "prefect.flow_run_url",
        "mlflow.source.git.commit",
        "git_dirty",
        "model_sha256",
    }
    return {
        "versions": [(int(one.version), one.run_id == run_id, one.status) for one in versions],
        "champion": int(client.get_model_version_by_alias(model, "champion").version),
        "tags": {key: value for key, value in versions[0].tags.items() if key not in differing},
        "has also": sorted(versions[0].tags.keys() & differing),
    }


def model_facts(folder: Path) -> dict[str, Any]:
    """The files of a downloaded model, each with a digest of what must be the same in it."""
    facts = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".keras":
            facts[name] = _arrays_sha256(path)
        else:
            # In MLmodel stand ids and times.
            facts[name] = "is there" if name in ("MLmodel", "model_files.json") else _sha256(path)
    return facts


def _arrays_sha256(model: Path) -> str:
    """SHA-256 over the weights in a .keras file: the file itself holds the time of its making."""
    import io
    import zipfile

    import h5py  # type: ignore[import-untyped]

    digest = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            digest.update(f"{name}\0{item.dtype}\0{item.shape}\0".encode() + item[()].tobytes())

    with zipfile.ZipFile(model) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
        weights.visititems(add)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_folder(pipeline: Pipeline) -> Path:
    """The folder on disk that holds the objects, whoever serves it."""
    named = pipeline.environment.get("STORE_FOLDER")
    return Path(named) if named else pipeline.folder / "home" / "object-store"


def stored_facts(pipeline: Pipeline) -> dict[str, Any]:
    """The objects in the store, each with its digest."""
    root = store_folder(pipeline)
    # Without rclone's own half of a PUT, which the server leaves behind when it is killed itself: it is not ours.
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".rclone_temp_put_"))
    keys = {path.relative_to(root).as_posix(): path for path in files}
    facts: dict[str, Any] = {key: _sha256(path) for key, path in keys.items() if not key.startswith("runs/")}
    # Checkpoints hold times and stand under the run's id.
    return facts | {"runs/": sorted(key.split("/", 2)[2] for key in keys if key.startswith("runs/"))}


def leftovers(pipeline: Pipeline) -> list[str]:
    """What a run keeps on disk while it runs, and no longer."""
    home = pipeline.folder / "home"
    patterns = (
        "datasets/**/*.part",
        "datasets/**/unchecked",
        "scratch/*",
        "runs/*",
        "mlflow/unfinished*",
        "../.model*",
    )
    return sorted(str(path.relative_to(home.parent)) for pattern in patterns for path in home.glob(pattern))


# A run under observation


class Attempt:
    """The command, running; what it has written, and what has appeared on disk since its start."""

    def __init__(self, pipeline: Pipeline, *flags: str, points: "Sequence[Point] | None" = None) -> None:
        """`points` are those of a program that is not MNIST's; `flags` are then all that it takes."""
        self.pipeline = pipeline
        self.there_before: dict[str, set[Path]] = {}
        for pattern in {pattern for point in points or POINTS for pattern in point.files}:
            self.there_before[pattern] = set(pipeline.folder.glob(pattern))
        self.process = pipeline.start(*(() if points else FLAGS), *flags)
        self._log = (pipeline.folder / "stderr.txt").open("rb")
        self._written = ""
        self._reading = threading.Lock()
        self.last: tuple[int, dict[str, Any]] = (0, {})
        """What `wait` returned."""
        self.seconds_to_end = 0.0
        """After a signal."""

    @property
    def written(self) -> str:
        """What the run wrote to stderr so far."""
        with self._reading:
            self._written += self._log.read().decode(errors="replace")
            return self._written

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, limit_seconds: float = 600) -> tuple[int, dict[str, Any]]:
        """The exit status and what it printed, once the run has ended by itself."""
        stdout, _ = self.process.communicate(timeout=limit_seconds)
        self.last = self.process.returncode, json.loads(stdout) if stdout.strip() else {}
        return self.last

    def signal_group(self, sent: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does. Safe if it has just ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sent)

    def wait_for(self, pattern: str, limit_seconds: float = 300) -> None:
        """Wait until the run has written something that `pattern` is found in."""
        found = re.compile(pattern)
        wait_until(lambda: bool(found.search(self.written)) or self.is_over, limit_seconds, f"{pattern!r} in the log")
        assert found.search(self.written), f"the run ended without {pattern!r}\n{self.written}"

    @property
    def tracebacks(self) -> list[str]:
        """For each traceback that the run showed, where it ends: nobody should see one."""
        return [cell(f"the user saw a traceback: {end}") for end in ends_of_tracebacks(self.written)]

    def said(self) -> str:
        """The last that a person would read, shortened to a cell of a table."""
        log, _, end = self.written.strip().rpartition("\n\n")
        messages = [line.rpartition(" - ")[2] for line in log.splitlines() if " | " in line]
        said = [message for message in messages if not message.startswith(_OF_PREFECT)]
        if " | " in end:
            return cell(" / ".join(dict.fromkeys(said[-2:])))
        # Where the message refers to what the program said last.
        return cell(f"{said[-1]} ... {end}" if "own last lines" in end and said else end)


_OF_PREFECT = ("Finished in state", "Task run failed", "Encountered exception")


def ends_of_tracebacks(text: str) -> list[str]:
    """The last place and the error of each traceback in a text, which may break off anywhere."""
    found = re.findall(r"Traceback \(most recent call last\).*\n?((?:[ \t].*\n|\n)*)(.*)", text)
    return [f"{where.rpartition('File ')[2].strip()}: {error}" for where, error in found]


def cell(text: str) -> str:
    words = re.sub(r"\s+", " ", text.replace("|", "/")).strip() or "nothing"
    return words if len(words) <= 320 else f"{words[:240]} ... {words[-60:]}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that was started for a home under `folder`, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # A program of a person's own is told nothing of the pipeline's home; what it may fill is below that.
            told = {process.environ().get(name, "") for name in ("PIPELINE_HOME", "TMPDIR")}
            if any(place.startswith(f"{folder}/") for place in told) and still_running([process]):
                found.append(process)
    return found


def kill_all_of(folder: Path) -> None:
    """SIGKILL to every process that was started for a home under `folder`."""
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def programs_of(pipeline: Pipeline, command: str = "") -> list[psutil.Process]:
    """The living runners of this home, which end their programs; those that were started for `command`, if one is."""
    found = []
    for process in processes_of(pipeline.folder):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "runner" in line and line[-1].endswith(command):
                found.append(process)
    return found


def tracker_processes_of(pipeline: Pipeline) -> list[psutil.Process]:
    """The living processes that speak to MLflow for a flow of this home."""
    found = []
    for process in processes_of(pipeline.folder):
        with contextlib.suppress(psutil.Error):
            if "infra.tracker_process" in process.cmdline():
                found.append(process)
    return found


def shown(process: psutil.Process) -> str:
    """A process in words."""
    try:
        return f"{process.pid} {' '.join(process.cmdline()[-4:])}"
    except psutil.Error:
        return f"{process.pid}, just ended"


def wait_until_all_ended(pipeline: Pipeline, limit_seconds: float = SECONDS_TO_END) -> list[str]:
    """Wait for the end of every process of this home; those that stay are named."""
    deadline = time.monotonic() + limit_seconds
    while (alive := processes_of(pipeline.folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = [f"still alive after {limit_seconds:g} s: {shown(one)}" for one in alive]
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    return names


# Kill points


@dataclass(frozen=True)
class Point:
    """A moment of a run: a line that it writes, or a file that appears under the pipeline's folder."""

    step: str
    line: str = ""
    files: tuple[str, ...] = ()
    epoch: int = 0
    """The line must name this epoch or a later one."""

    def is_reached(self, attempt: Attempt) -> bool:
        if self.epoch:
            return any(int(number) >= self.epoch for number in re.findall(r"\bepoch (\d+)(?:/| of )", attempt.written))
        if self.line and re.search(self.line, attempt.written):
            return True
        there = ((pattern, set(attempt.pipeline.folder.glob(pattern))) for pattern in self.files)
        return any(paths - attempt.there_before[pattern] for pattern, paths in there)

    def __str__(self) -> str:
        return f"epoch {self.epoch}" if self.epoch else self.step


_BEFORE_TRAINING = (
    Point("the flow starts", line=r"^"),
    Point("MLflow's database is made", files=("home/mlflow/unfinished-mlflow.db",)),
    Point("download", files=("home/datasets/*/*.part",)),
    Point("downloaded", line=r"Downloaded and checked"),
    Point("upload", files=("home/object-store/datasets/*/*/.*.part",)),
    Point("uploading", line=r"- Uploading "),
    Point("provisioned", line=r"- Compute: "),
    Point("run started", line=r"- (Started|Continuing) run "),
    Point("standing by", line=r"- standing by"),
    Point("data set read", line=r"- data set "),
)
_EPOCHS = tuple(Point("epoch", epoch=number) for number in range(1, EPOCHS + 1))
_AFTER_TRAINING = (
    Point("post-processing", line=r"- post-processing"),
    Point("plots", line=r"- test_loss "),
    Point("outputs are uploaded", files=("home/mlflow/artifacts/*/*/artifacts/outputs",)),
    Point("model is saved", files=("home/mlflow/artifacts/*/models/m-*",)),
    Point("model is uploaded", files=("home/mlflow/artifacts/*/models/*/artifacts/MLmodel",)),
    Point("last tags", line=r"- model saved as "),
    Point("run ends", line=r"- done in "),
    Point("registration", line=r"- Registered run |- Run \w+ is version "),
    Point("decision", line=r"- Version \d+ is "),
    Point("artifacts download", files=(".model.incoming-*",)),
    Point("artifacts are there", line=r"- models:/"),
    Point("verification", line=r"- standing by[\s\S]*- models:/[\s\S]*- standing by"),
    Point("verified", line=r"- The downloaded model has"),
    Point("rename", files=("model/MLmodel",)),
)
POINTS = (*_BEFORE_TRAINING, *_EPOCHS, *_AFTER_TRAINING)
"""Every point, in the order in which a run passes them."""


def reach(attempt: Attempt, point: Point, delay: float, points: Sequence[Point] = POINTS) -> Point | None:
    """Wait for the point and so many seconds more; the point that was reached, which may be a later one.

    None if the run has ended before.
    """
    later = points[points.index(point) :]
    deadline = time.monotonic() + 300
    while not attempt.is_over and not (reached := [one for one in later if one.is_reached(attempt)]):
        assert time.monotonic() < deadline, f"waited 300 s for {point}\n{attempt.written}"
        time.sleep(0.01)
    if not attempt.is_over:
        # The delay is drawn, as the point is: it says at which moment the fault falls.
        with contextlib.suppress(subprocess.TimeoutExpired):
            attempt.process.wait(delay)
    return None if attempt.is_over else reached[0]


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    point: Point
    victim: str
    delay: float
    """Seconds between the point and the kill."""
    at_once: bool
    """The command is run again without waiting for orphans to end."""


@dataclass
class Case:
    """A disturbance and what came of it: a row of the table."""

    what: str
    when: str
    saw: str = ""
    differences: list[str] = field(default_factory=list)
    struck: bool = True
    """False: the run had ended before."""
    times: int = 1
    """How often it struck."""
    left_out: str = ""
    """Why it was not tried here."""

    def row(self) -> str:
        """For a markdown table."""
        if self.left_out:
            return f"| {self.what} | {self.when} | | left out: {self.left_out} |"
        found = "<br>".join(self.differences).replace("|", "/") or ("none" if self.struck else "it had ended before")
        return f"| {self.what} | {self.when} | {self.saw} | {found} |"


def fallen(name: str, error: Exception, folder: Path) -> Case:
    """A case that could not be brought to its end is one that differs; what it left running in `folder` is ended."""
    kill_all_of(folder)
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = f"{lines[0]} ... {lines[-1]}" if len(lines) > 1 else "".join(lines)
    return Case(name, "", differences=[f"it fell with {type(error).__name__}: {cell(told)}"])


def plan(rng: random.Random, length: int, deck: list[Point]) -> list[Kill]:
    """A chain of kills in the order in which a run passes their points, dealt from `deck`, which is refilled."""
    points: list[Point] = []
    while len(points) < length:
        if not deck:
            # As many epochs as other points, and all of those.
            others = [*_BEFORE_TRAINING, *_AFTER_TRAINING]
            deck += [*others, *rng.sample(_EPOCHS, len(others) // 2)]
            rng.shuffle(deck)
        points.append(deck.pop())
    return [
        Kill(point, rng.choice(VICTIMS), round(rng.uniform(0, 0.5) if rng.random() < 0.5 else 0, 3), rng.random() < 0.5)
        for point in sorted(points, key=POINTS.index)
    ]


def run_chain(bench: Bench, chain: list[Kill], tell: Callable[[Case], None] = lambda case: None) -> list[Case]:
    """In a fresh home run the command and kill it, again and again, let it finish, and compare; a case each."""
    cases: list[Case] = []
    with serving(dict(bench.files)) as mirror:  # Its own, for it stalls when it is told to.
        pipeline = bench.fresh(MNIST_MIRRORS=mirror.address)
        for number, kill in enumerate(chain):
            case, outcome = _run_and_kill(mirror, pipeline, kill)
            cases.append(case)
            last = number == len(chain) - 1 or bool(outcome)
            if last:
                case.differences += finish_and_compare(bench, pipeline, outcome)
            tell(case)
            if last:
                break
    return cases


def _run_and_kill(mirror: HttpServer, pipeline: Pipeline, kill: Kill) -> tuple[Case, dict[str, Any]]:
    stalled = kill.point.step == "download"
    resume = threading.Event()
    if stalled:
        mirror.resume = resume
        at = random.Random(kill.delay).randrange(100_000, 5_000_000)
        name = max(FILE_NAMES, key=lambda name: len(mirror.files[name]))
        mirror.behaviour[name] = Behaviour(stall_after=at, times=1)
    orphans = processes_of(pipeline.folder)
    attempt = Attempt(pipeline)
    case = Case(f"{kill.victim}, SIGKILL", f"{kill.point} + {kill.delay:.2f} s")
    reached = reach(attempt, kill.point, kill.delay)
    if reached is None:
        case.struck = False
    else:
        case.when = f"{reached} + {kill.delay:.2f} s"
        killed = strike(attempt, kill.victim)
        case.what = f"{killed}, SIGKILL"
    resume.set()
    if stalled:
        mirror.behaviour.clear()
    try:
        status, outcome = attempt.wait(SECONDS_TO_END * 2)
    except subprocess.TimeoutExpired:
        case.differences.append(f"the command did not end; it was {shown(psutil.Process(attempt.process.pid))}")
        os.killpg(attempt.process.pid, signal.SIGKILL)
        status, outcome = attempt.wait()
    case.saw = "Killed (the shell's word)" if status == -signal.SIGKILL else attempt.said()
    if status == 0 and case.struck:
        case.saw = "nothing: the run goes on without it"
    case.differences += attempt.tracebacks
    if kill.at_once:
        orphans = still_running(orphans)
        _, alive = psutil.wait_procs(orphans, SECONDS_TO_END)
        case.differences += [f"an orphan of an earlier run lives on: {shown(one)}" for one in still_running(alive)]
    else:
        case.differences += wait_until_all_ended(pipeline)
    return case, outcome


def strike(attempt: Attempt, victim: str) -> str:
    """Kill; says who was there to be killed."""
    programs = programs_of(attempt.pipeline)
    if victim == "program" and programs:
        for program in programs:
            with contextlib.suppress(psutil.Error):
                program.kill()
        return "program"
    if victim == "both":
        for program in programs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        os.killpg(attempt.process.pid, signal.SIGKILL)
        return "both"
    attempt.process.kill()
    return "flow"


def finish_and_compare(bench: Bench, pipeline: Pipeline, outcome: dict[str, Any]) -> list[str]:
    """Run the command to its end, unless it has an outcome, and say what differs from the undisturbed run."""
    found = []
    if not outcome:
        attempt = Attempt(pipeline)
        status, outcome = attempt.wait()
        if status:
            return [f"the command again ended with {status}: {attempt.said()}"]
    found += wait_until_all_ended(pipeline)
    return found + differences(bench.reference, result_of(pipeline, outcome))


def compared(bench: Bench, pipeline: Pipeline, case: Case, outcome: dict[str, Any] | None = None) -> Case:
    case.differences += finish_and_compare(bench, pipeline, outcome or {})
    return case


def expect(case: Case, holds: bool, what: str) -> None:
    if not holds:
        case.differences.append(what)
