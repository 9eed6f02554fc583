"""The runner as a process of its own, as computes drive it, with plain programs and a real MLflow on SQLite."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.compute.runner.exits import (
    EXIT_FAILED,
    EXIT_NO_GPU,
    EXIT_TAKEN_OVER,
    EXIT_TERMINATED,
    EXIT_USAGE,
    LAST_WORDS,
)
from infra.compute.runner.manifest import files_sha256, parse_manifest
from infra.compute.runner.output import EVENT
from tests.mlflow_server import MlflowServer
from tests.pipeline import ROOT, descendants, still_running, wait_until
from tests.runner_stage import Stage, last_words
from tests.wheels import Wheels

pytestmark = pytest.mark.slow

SAVES = """
import os, pathlib
outputs = pathlib.Path(os.environ["OUTPUTS_FOLDER"])
(outputs / "model").mkdir(exist_ok=True)
(outputs / "model" / "weights.pkl").write_bytes(b"not for Keras")
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


WHOLE = (
    SAVES
    + """
import json, subprocess, sys, time
import neighbour
import yaml
print("\\x1e{}")
data = pathlib.Path(sys.argv[2])
other = pathlib.Path(sys.argv[4].removeprefix("at:"))
seen = {
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "stdin": sys.stdin.read(),
    "environment": dict(os.environ),
    "data": sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()),
    "other": (other / "x.txt").read_text(),
}
(outputs / "seen").mkdir()
(outputs / "seen" / "seen.json").write_text(json.dumps(seen))
# Children that would outlive it: a plain one, and one in a session of its own whose parent is gone.
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
left = [subprocess.Popen(sleep).pid]
fork = "import sys; from subprocess import *; print(Popen(sys.argv[1:], stdout=DEVNULL, start_new_session=True).pid)"
left.append(int(subprocess.run([sys.executable, "-c", fork, *sleep], stdout=subprocess.PIPE).stdout))
(outputs / "left.json").write_text(json.dumps(left))
print("no end of line at the end", end="")
"""
)


@dataclass(frozen=True)
class Finished:
    """A training that was not interrupted."""

    run_id: str
    output: str
    seen: dict
    work: Path


@pytest.fixture(scope="module")
def finished(stage: Stage) -> Finished:
    run_id = stage.start_run()
    data = stage.dataset("the data", {"a/b.txt": b"nested", "c": b"plain"})
    other = stage.dataset("other", {"x.txt": b"other's"})
    alone = stage.ship(
        {"src/train.py": WHOLE, "src/neighbour.py": "", "README.md": "read me"},
        command=["python", "src/train.py", "--data", "{data_folder}", "--other", "at:{data_folder_other}"],
        variables=["TOLD"],
    )
    (alone / "work").mkdir()
    (alone / "work" / "of an attempt before").touch()
    order = stage.order(run_id, {"the data": data, "other": other})
    hidden = {"AWS_SECRET_ACCESS_KEY": "hush", "PREFECT_API_KEY": "hush", "TMPDIR": str(stage.folder)}
    output = stage.run(alone, order, 0, TOLD="told", **hidden)
    seen = Path(stage.client.download_artifacts(run_id, "outputs/seen/seen.json", str(stage.folder)))
    return Finished(run_id, output, json.loads(seen.read_text()), alone / "work")


def test_the_program_gets_what_it_is_promised_and_nothing_else(finished: Finished) -> None:
    work, seen = finished.work, finished.seen
    expected = ["src/train.py", "--data", str(work / "data" / "the data"), "--other", f"at:{work / 'data' / 'other'}"]
    assert seen["argv"] == expected
    assert seen["path"] == str(work / "program" / "src")
    assert seen["cwd"] == str(work / "program")
    assert seen["stdin"] == ""
    assert seen["data"] == ["a/b.txt", "c"]
    assert seen["other"] == "other's"
    environment = seen["environment"]
    assert environment["TOLD"] == "told"
    assert environment["OUTPUTS_FOLDER"] == str(work / "program" / "outputs")
    assert environment["MLFLOW_RUN_ID"] == finished.run_id
    assert environment["TMPDIR"] == str(work / "tmp")
    assert "hush" not in str(environment)
    assert not (work / "of an attempt before").exists()


def test_what_it_prints_is_passed_on_and_cannot_be_taken_for_last_words(finished: Finished) -> None:
    lines = finished.output.splitlines()
    assert lines[0].partition(EVENT)[0] == "standing by"
    assert "{}" in lines
    assert LAST_WORDS not in finished.output
    assert "no end of line at the end" in lines
    assert any(line.startswith("post-processing") for line in lines)


def test_what_it_leaves_running_is_ended(finished: Finished, stage: Stage) -> None:
    left = json.loads(
        Path(stage.client.download_artifacts(finished.run_id, "outputs/left.json", str(stage.folder))).read_text()
    )
    assert len(left) == 2
    assert not [pid for pid in left if psutil.pid_exists(pid)]
    assert "ended what the program had started and left behind: python, python" in finished.output


def test_the_run_has_what_was_found(finished: Finished, stage: Stage) -> None:
    run = stage.client.get_run(finished.run_id)
    assert run.data.params == {
        "argv": "src/train.py --data '{data_folder}' --other 'at:{data_folder_other}'",
    }
    tags = run.data.tags
    assert tags["continues"] == "none"
    assert tags["model_kind"] == "files"
    assert tags["weights_sha256"] == "none"
    assert tags["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert len(tags["dataset_sha256"]) == 64
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"the data", "other"}
    packages = json.loads(
        Path(stage.client.download_artifacts(finished.run_id, "packages.json", str(stage.folder))).read_text()
    )
    assert packages.keys() >= {"PyYAML"}
    assert run.info.status == "RUNNING", "ending the run is its caller's part"
    manifest = parse_manifest(
        Path(stage.client.download_artifacts(finished.run_id, "model_files.json", str(stage.folder))).read_bytes()
    )
    assert tags["model_sha256"] == files_sha256(manifest)
    assert {entry.name for entry in manifest} == {"MLmodel", "weights.pkl"}
    (output,) = run.outputs.model_outputs
    model = stage.client.get_logged_model(output.model_id)
    assert (tags["model_id"], str(model.status)) == (output.model_id, "READY")
    kept = {file.path for file in stage.client.list_artifacts(finished.run_id, "outputs")}
    assert kept == {"outputs/left.json", "outputs/seen"}, "the model's folder is the logged model alone"


FAILURES = {
    "import sys\nprint('noise')\nsys.exit(3)": "train.py ended with exit status 3; its last error line: noise",
    "x = 1\nraise KeyError('missing')": "train.py ended with exit status 1; its last error line: KeyError: 'missing'",
    "import os\nos.kill(os.getpid(), 9)": "train.py was ended by SIGKILL; it said nothing\nThe kernel does that when",
    "import os\nos.kill(os.getpid(), 11)": "train.py was ended by SIGSEGV",
    "x = (\n": "its last error line: SyntaxError: '(' was never closed",
}


@pytest.mark.parametrize(("text", "said"), FAILURES.items(), ids=["exits", "raises", "killed", "crashes", "syntax"])
def test_a_program_that_fails_ends_the_training_with_its_reason(stage: Stage, text: str, said: str) -> None:
    run_id = stage.start_run()
    output = stage.run(stage.ship({"train.py": text}), stage.order(run_id), EXIT_FAILED)
    assert said in last_words(output), output
    assert "model_sha256" not in stage.client.get_run(run_id).data.tags


def test_a_program_without_a_model_is_told_what_was_looked_for_and_what_is_there(stage: Stage) -> None:
    files = {
        "train.py": "import pathlib\npathlib.Path('deep').mkdir()\npathlib.Path('deep/m.keras').touch()",
        "o.h5": "",
    }
    run_id = stage.start_run()
    words = last_words(stage.run(stage.ship(files), stage.order(run_id), EXIT_FAILED))
    assert "outputs/model" in words
    assert "elsewhere: deep/m.keras;" in words
    assert [file.path for file in stage.client.list_artifacts(run_id, "found/deep")] == ["found/deep/m.keras"]
    assert "o.h5" not in words


def test_what_cannot_be_done_is_refused_by_its_kind(stage: Stage) -> None:
    alone = stage.ship({"train.py": SAVES})
    order = stage.order(stage.start_run())
    assert "--accelerator cpu" in last_words(stage.run(alone, {**order, "accelerator": "gpu"}, EXIT_NO_GPU))
    assert "run_id" in last_words(stage.run(alone, {"dataset_uris": {}}, EXIT_USAGE))
    done = subprocess.run([sys.executable, "-m", "runner"], cwd=alone, capture_output=True, text=True)
    assert done.returncode == EXIT_USAGE
    alone = stage.ship({"train.py": SAVES}, requirements={"python": None, "lock": ""})
    done = subprocess.run([sys.executable, "-m", "runner", "devices"], cwd=alone, capture_output=True, text=True)
    assert json.loads(last_words(done.stdout))["devices"][0] == {"kind": "cpu", "name": "cpu"}


def test_a_package_in_another_version_than_listed_ends_the_run_as_soon_as_it_is_imported(
    stage: Stage, tmp_path: Path
) -> None:
    wheels = Wheels(tmp_path)
    digest = hashlib.sha256(wheels.add("toy", "1.0").read_bytes()).hexdigest()
    wanted = {"python": None, "lock": f"toy==1.0 --hash=sha256:{digest}\n"}
    alone = stage.ship({"train.py": "import toy\n" + SAVES}, requirements=wanted)
    stage.run(alone, stage.order(stage.start_run(), home=str(tmp_path)), 0, **wheels.environment)
    (info,) = (tmp_path / "environments").rglob("toy-1.0.dist-info")
    (info / "METADATA").write_text((info / "METADATA").read_text().replace("Version: 1.0", "Version: 2.0"))
    lasts = "import toy, time\ntime.sleep(600)\n"
    alone = stage.ship({"train.py": lasts}, requirements=wanted)
    order = stage.order(stage.start_run(), home=str(tmp_path))
    words = last_words(stage.run(alone, order, EXIT_FAILED, **wheels.environment))
    assert words.startswith("The program imported toy 2.0 instead of 1.0")


LOUD = (
    SAVES
    + """
import json, time
started = time.monotonic()
line = json.dumps({"event": "epoch", "loss": 0.5, "text": "x" * 100})
for number in range(100_000):
    print(line)
(outputs / "seconds.txt").write_text(str(time.monotonic() - started))
"""
)


def test_a_program_that_prints_100_000_lines_does_not_wait_for_a_slow_reader(stage: Stage) -> None:
    run_id = stage.start_run()
    running = stage.start(stage.ship({"train.py": LOUD}), stage.order(run_id))
    seconds = running.work / "program" / "outputs" / "seconds.txt"
    # Nobody reads yet: a pipe holds 64 kB.
    wait_until(lambda: seconds.exists() and seconds.read_text() != "", 60, "the end of the program")
    assert float(seconds.read_text()) < 15
    status, output = running.end()
    assert status == 0, output
    assert output.count('{"event": "epoch"') == 100_000
    assert stage.client.get_run(run_id).data.metrics == {}


STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("told").touch())
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
fork = "import sys; from subprocess import *; print(Popen(sys.argv[1:], stdout=DEVNULL, start_new_session=True).pid)"
pid = subprocess.run([sys.executable, "-c", fork, *sleep], stdout=subprocess.PIPE, text=True).stdout
pathlib.Path("new").write_text(pid)
pathlib.Path("new").rename("begun")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("how", ["told to stop", "left by its caller", "killed"])
def test_whatever_ends_the_runner_ends_all_that_it_started(stage: Stage, how: str) -> None:
    running = stage.start(stage.ship({"train.py": STUBBORN}), stage.order(stage.start_run()))
    program = running.work / "program"
    wait_until((program / "begun").exists, 60, "the program")
    everything = descendants(running.process.pid)
    assert len(everything) >= 3
    started = time.monotonic()
    if how == "told to stop":
        running.process.send_signal(signal.SIGTERM)
    elif how == "killed":
        running.process.kill()
        # What is in a session of its own, and has lost its parent, is beyond the reach of the launcher.
        stray = psutil.Process(int((program / "begun").read_text()))
        stray.kill()
    else:
        assert running.process.stdin is not None
        running.process.stdin.close()
    status = running.process.wait(20)
    assert status == (-signal.SIGKILL if how == "killed" else EXIT_TERMINATED)
    wait_until(lambda: not still_running(everything), 10, "the end of all")
    if how == "told to stop":
        assert (program / "told").exists(), "it is asked first"
        assert 3 < time.monotonic() - started < 5


COUNTER = """
import json, os, pathlib, time
now = lambda: int(time.time() * 1000)  # The same point at another time is another point to MLflow.
place = pathlib.Path(os.environ["CHECKPOINT_FOLDER"]) / "state.json"
count = json.loads(place.read_text())["count"] if place.exists() else 0
print("continuing at", count)
tell(event="fit", fit=1, epochs=6, initial_epoch=count)
for epoch in range(count + 1, 7):
    tell(event="epoch", fit=1, epoch=epoch, metrics={"loss": 1 / epoch}, seconds=0.1, time_ms=now())
    if epoch == 4 and not count:
        time.sleep(600)
    place.write_text(json.dumps({"count": epoch}))
    tell(event="checkpoint", fit=1, epoch=epoch)
    assert answer() == {"taken": True}
tell(event="fit", fit=2, epochs=2, initial_epoch=0)
for epoch in (1, 2):
    tell(event="metric", key="own", step=epoch)
    metrics = {"loss": 0.9 if epoch == 1 else float("nan"), "own": 1.0}
    tell(event="epoch", fit=2, epoch=epoch, metrics=metrics, seconds=0.1, time_ms=now())
pathlib.Path(os.environ["OUTPUTS_FOLDER"], "model").mkdir()
pathlib.Path(os.environ["OUTPUTS_FOLDER"], "model", "m").write_text(json.dumps(order))
tell(event="imported", packages={"keras": "3.15.1"})
"""


def test_a_training_that_was_killed_continues_and_no_point_is_logged_twice(stage: Stage, tmp_path: Path) -> None:
    run_id = stage.start_run()
    alone = stage.ship(
        {"train.py": COUNTER},
        events=True,
        seed=3,
        objective={"metric": "loss", "goal": "minimize"},
        parameters={"n": 6},
    )
    stage.client.log_param(run_id, "n", "5")
    checkpoints = stage.checkpoints(run_id)
    first = stage.start(alone, stage.order(run_id))
    wait_until((checkpoints / "3" / "manifest.json").exists, 60, "the third checkpoint")
    wait_until(lambda: len(stage.history(run_id, "loss")) == 4, 20, "a point behind the checkpoint")
    first.process.kill()
    _, said = first.end()
    assert "continues: after the last checkpoint" in said
    assert said.count("\nepoch ") == 4
    assert "epoch 3/6  loss 0.3333  0.10 s" in said
    output = stage.run(alone, stage.order(run_id))
    assert "continuing at 3" in output
    assert "parameter n stays '5'; it is '6' now" in output
    run = stage.client.get_run(run_id)
    loss = stage.history(run_id, "loss")
    assert [step for step, _ in loss] == list(range(1, 9))
    assert [value for _, value in loss][:6] == [1 / epoch for epoch in range(1, 7)]
    assert stage.history(run_id, "fit") == [(step, 1.0 if step < 7 else 2.0) for step in range(1, 9)]
    assert len(stage.history(run_id, "epoch_seconds")) == 8
    assert "own" not in run.data.metrics
    assert run.data.metrics["objective"] == 1 / 6
    tags = run.data.tags
    assert tags["continues"] == "epoch"
    assert (tags["objective"], tags["objective_metric"]) == ("minimize", "loss")
    assert float(tags["objective_value"]) == 1 / 6
    assert tags["keras_version"] == "3.15.1"
    model = stage.client.get_logged_model(tags["model_id"])
    order = json.loads(Path(model.artifact_location.removeprefix("file://"), "m").read_text())
    assert order["argv"] == ["train.py"]
    assert (order["module"], order["command"], order["hook"], order["seed"]) == (False, False, True, 3)
    assert order["run"]["params"] == {"n": "5"}
    assert ["loss", 3] in order["run"]["logged"]


FAILS_AFTER_THE_LAST_EPOCH = (
    """
import os, pathlib
place = pathlib.Path(os.environ["CHECKPOINT_FOLDER"]) / "state"
done = place.exists()
tell(event="fit", fit=1, epochs=2, initial_epoch=2 if done else 0)
for epoch in () if done else (1, 2):
    tell(event="epoch", fit=1, epoch=epoch, metrics={"loss": 1 / epoch}, seconds=0.1, time_ms=1000 * epoch)
place.write_text("all of it")
tell(event="checkpoint", fit=1, epoch=2)
answer()
assert done, "the first time"
"""
    + SAVES
)


def test_the_model_of_a_training_that_had_no_epoch_left_is_of_the_last_step(stage: Stage) -> None:
    run_id = stage.start_run()
    alone = stage.ship({"train.py": FAILS_AFTER_THE_LAST_EPOCH}, events=True)
    status, said = stage.start(alone, stage.order(run_id)).end()
    assert status == EXIT_FAILED
    assert "the first time" in said
    stage.run(alone, stage.order(run_id))
    (output,) = stage.client.get_run(run_id).outputs.model_outputs
    assert output.step == 2


LOGS_TO_MLFLOW = """
import os, mlflow
client = mlflow.MlflowClient()
for epoch in (1, 2):
    client.log_metric(os.environ["MLFLOW_RUN_ID"], "loss", 1 / epoch, step=epoch)
    SAYS
"""


@pytest.mark.parametrize("says", ["pass", "print('one more epoch')"])
def test_a_program_that_says_nothing_is_spoken_for_and_another_is_not(stage: Stage, says: str) -> None:
    run_id = stage.start_run()
    script = LOGS_TO_MLFLOW.replace("SAYS", says) + SAVES
    alone = stage.ship({"train.py": script}, objective={"metric": "loss", "goal": "minimize"}, uses_mlflow=True)
    lines = [line for line in stage.run(alone, stage.order(run_id)).splitlines() if line.startswith("step ")]
    told = [(line.partition(EVENT)[0], json.loads(line.partition(EVENT)[2])) for line in lines]
    assert [line for line, _ in told] == ["step 1  loss 1.0000", "step 2  loss 0.5000"]
    assert [event["epoch"] for _, event in told] == [1, 2]
    assert all(("unseen" in event) == (says != "pass") for _, event in told)


def test_a_program_that_is_killed_before_it_begins_is_told_as_one_that_was_killed(tmp_path: Path) -> None:
    # In a process of its own, for it ends all that it finds below itself.
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom queue import SimpleQueue\n"
        "from infra.compute.runner.program_process import ProgramProcess\n"
        "inbox = SimpleQueue()\nprocess = ProgramProcess(Path(sys.executable), Path(sys.argv[1]), {}, (), inbox)\n"
        "assert inbox.get() == {'event': 'ready'}\nos.kill(process._process.pid, 9)\n"
        "while not isinstance(status := inbox.get(), int): pass\n"
        "process.begin({})\nprocess.check_end(status, 'train.py')\n"
    )
    told = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True).stderr
    assert "RunnerError: train.py was ended by SIGKILL" in told


LOSES = """
import os, pathlib, time
for epoch in range(1, 1000):
    tell(event="epoch", fit=1, epoch=epoch, metrics={"loss": 1 / epoch}, seconds=0.1, time_ms=1000 * epoch)
    time.sleep(0.1)
"""


def test_who_has_lost_the_lease_writes_nothing_more(stage: Stage) -> None:
    run_id = stage.start_run()
    running = stage.start(stage.ship({"train.py": LOSES}, events=True), stage.order(run_id))
    wait_until(lambda: len(stage.history(run_id, "loss")) > 1, 60, "metrics")
    stage.lease(run_id).unlink()
    status, output = running.end()
    assert status == EXIT_TAKEN_OVER, output
    assert "another process has taken this training over" in last_words(output)
    assert "continues" not in stage.client.get_run(run_id).data.tags


ENDURES = """
import os, pathlib, time
begun = time.monotonic()
for epoch in range(1, 41):
    tell(event="epoch", fit=1, epoch=epoch, metrics={"loss": 1 / epoch}, seconds=0.1, time_ms=1000 * epoch)
    time.sleep(0.1)
pathlib.Path(os.environ["OUTPUTS_FOLDER"], "seconds.txt").write_text(str(time.monotonic() - begun))
pathlib.Path(os.environ["OUTPUTS_FOLDER"], "model.pkl").touch()
"""


def test_an_mlflow_that_is_away_for_a_while_costs_nothing(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "mlflow")
    server.start()
    try:
        stage = Stage(tmp_path, server.uri)
        run_id = stage.start_run()
        running = stage.start(stage.ship({"train.py": ENDURES}, events=True), stage.order(run_id))
        wait_until(lambda: len(stage.history(run_id, "loss")) > 2, 60, "metrics")
        server.kill()
        seconds = running.work / "program" / "outputs" / "seconds.txt"
        wait_until(lambda: seconds.exists() and seconds.read_text() != "", 60, "the end of the program")
        assert float(seconds.read_text()) < 8, "it did not wait"
        server.start()
        status, output = running.end()
        assert status == 0, output
        assert [step for step, _ in stage.history(run_id, "loss")] == list(range(1, 41))
    finally:
        server.kill()


LOGS_ITSELF = """
import os, pathlib, mlflow
client = mlflow.MlflowClient()
run = client.get_run(os.environ["MLFLOW_RUN_ID"])
for text in ("older", "newer"):
    model = client.create_logged_model(run.info.experiment_id, name=text, source_run_id=run.info.run_id)
    pathlib.Path(text).mkdir()
    pathlib.Path(text, "model.txt").write_text(text)
    client.log_model_artifacts(model.model_id, text)
    client.finalize_logged_model(model.model_id, "READY")
client.create_logged_model(run.info.experiment_id, name="unfinished", source_run_id=run.info.run_id)
pathlib.Path("outputs/other.keras").touch()
"""


def test_the_model_that_the_program_logged_itself_comes_first(stage: Stage) -> None:
    run_id = stage.start_run()
    output = stage.run(stage.ship({"train.py": LOGS_ITSELF}, uses_mlflow=True), stage.order(run_id))
    tags = stage.client.get_run(run_id).data.tags
    model = stage.client.get_logged_model(tags["model_id"])
    assert (model.name, tags["model_kind"], tags["weights_sha256"]) == ("newer", "files", "none")
    assert f"the program logged its model itself: {model.model_id}" in output


ELSEWHERE = (
    SAVES
    + """
import json, sys, urllib.error, urllib.request
address = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/get?run_id={os.environ['MLFLOW_RUN_ID']}"
try:
    urllib.request.urlopen(address)
except urllib.error.HTTPError as error:
    assert error.code == 401
else:
    raise SystemExit("no key was wanted")
key = {"Authorization": f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"}
run = json.load(urllib.request.urlopen(urllib.request.Request(address, headers=key)))["run"]
assert run["info"]["run_id"] == os.environ["MLFLOW_RUN_ID"]
print("prefix", sys.prefix, "address", os.environ["MLFLOW_TRACKING_URI"])
"""
)


def test_a_program_in_an_environment_of_its_own_gets_an_address_with_a_key_and_no_database(stage: Stage) -> None:
    alone = stage.ship({"train.py": ELSEWHERE}, requirements={"python": None, "lock": ""}, uses_mlflow=True)
    output = stage.run(alone, stage.order(stage.start_run()))
    assert f"prefix {stage.folder / 'home' / 'environments'}" in output
    port = int(output.partition("address http://127.0.0.1:")[2].split()[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "it ended with the program"
