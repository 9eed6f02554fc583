"""What a person gets wrong with a program: told in a few lines, with nothing half done and nothing left running."""

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from flows.train import train_program
from flows.train_command import run
from infra import terminal
from tests.pipeline import ROOT, Pipeline, descendants, still_running, wait_until

COUNTER = ROOT / "tests" / "programs" / "counter"
KEEP_A_MODEL = """
import os, pathlib
model = pathlib.Path(os.environ["OUTPUTS_FOLDER"]) / "model"
model.mkdir(parents=True)
(model / "weights.txt").write_text("1")
"""


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """The command line has its own reactions to them, and none once it has ended."""
    before = {number: signal.getsignal(number) for number in terminal.SIGNALS}
    yield
    for number, reaction in before.items():
        signal.signal(number, reaction)


@pytest.mark.parametrize(
    ("flags", "file", "text", "status", "told"),
    [
        ("--program={nowhere}", "", "", 2, "is not there"),
        ("--entry=no.py", "", "", 2, "There is no no.py"),
        ("--param=epochs=0", "", "", 2, "--param epochs=0: expected a whole number, at least 1"),
        ("--param=epoch=3", "", "", 2, "has no such parameter. Did you mean epochs?"),
        ("--param=epochs", "", "", 2, "expected NAME=VALUE"),
        ("--param=epochs=2 --param=epochs=3", "", "", 2, "--param epochs is given twice"),
        ("--epochs=3", "", "", 2, "What the script itself takes follows --"),
        ("--data={nowhere}", "", "", 2, "is not there"),
        ("--data=nothing-of-that-name", "", "", 2, "There is no data set 'nothing-of-that-name'"),
        ("--data={parent}", "", "", 2, "around the program's folder"),
        ("--data={program}/inside", "inside/a.csv", "1\n", 2, "inside the program's folder"),
        ("", "", "", 2, "needs data, and none is given: --data FOLDER"),
        ("--entry=counter.py -- --data-folder {{data_folder}}", "", "", 2, "{data_folder} needs data"),
        ("--data={points} --entry=counter.py -- --data-folder {{data_foldr}}", "", "", 2, "{data_foldr}"),
        ("--data={points} --dataset-name=a/b", "", "", 2, "cannot be the name of a data set"),
        ("--data={points} --gate-margin=0.1", "", "", 2, "margin"),
        ("--data={points} --in-place --compute=ray", "", "", 2, "no node can read them there"),
        ("--data={points} --env=NOT_SET_ANYWHERE", "", "", 2, "there is no such variable here"),
        ("--data={points}", "counter.py", "x = (\n", 1, "counter.py:1"),
        ("--data={points}", "counter.py", "import no_such_package\n", 1, "no_such_package"),
        ("--data={points}", "requirements.txt", "no such: x\n", 1, "requirements.txt:1"),
        ("--data={points}", "requirements.txt", "keras==0.0.1\n", 1, "(keras==0.0.1)"),
        ("--data={points}", "MLproject", "entrypoints: {}\n", 1, "Did you mean entry_points?"),
        ("--data={points} --entry=counter.py", "MLproject", "key_packages: [nunpy]\n", 1, "names nunpy, which is not"),
    ],
)
@pytest.mark.usefixtures("signals_as_they_were")
def test_what_is_refused_leaves_nothing(
    flags: str,
    file: str,
    text: str,
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, home = tmp_path / "counter", tmp_path / "home"
    shutil.copytree(COUNTER, program, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "train.csv").write_text("1,2,0\n")
    if file:
        (program / file).parent.mkdir(exist_ok=True)
        (program / file).write_text(text)
    monkeypatch.setenv("PIPELINE_HOME", str(home))
    if "keras" in text:  # An index that is an empty folder: no network is asked.
        monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # Which the command line changes.
    places = {"program": program, "points": tmp_path / "points", "nowhere": tmp_path / "nowhere", "parent": tmp_path}
    words = flags.format(**places).split()
    with pytest.raises(SystemExit) as ended:
        run(train_program, "", [f"--program={program}", f"--output-dir={tmp_path / 'model'}", *words])
    said = capsys.readouterr().err
    assert told in said
    assert ended.value.code == status, said
    assert "Traceback" not in said
    assert said.count("\n") < 12
    assert not (tmp_path / "model").exists()
    # Neither a database nor a store; what the digests were is kept, for data is read once.
    assert not (home / "mlflow").exists()
    assert not list((home / "object-store").rglob("*"))


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_plan_says_what_would_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "train.csv").write_text("1,2,0\n")
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    places = [f"--program={COUNTER}", f"--data={tmp_path / 'points'}", f"--output-dir={tmp_path / 'model'}"]
    with pytest.raises(SystemExit) as ended:
        run(train_program, "", [*places, "--param=epochs=3", "--plan", "--json"])
    out, said = capsys.readouterr()
    assert ended.value.code == 0, said
    plan = json.loads(out)
    words = "python counter.py --data-folder {data_folder} --epochs 3 --steps 20 --seed 0 --seconds 0"
    assert plan["command"] == words.split()
    assert f"Command  {shlex.join(plan['command'])}\n" in said
    assert "It would be trained: no finished run of this program is there." in said
    assert (plan["finished_run"], plan["nearest_run"], plan["data"].keys()) == (None, None, {"points"})
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "home" / "mlflow").exists()
    assert not (tmp_path / "home" / "object-store").exists()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("mistakes"), {"PREFECT_API_URL": prefect_api}, module="flows.train")


def script(place: Pipeline, text: str) -> list[str]:
    """Flags for a program that is this script; all of them are called `script`."""
    folder = place.folder / "script"
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(text)
    return [f"--program={folder}", "--entry=script.py"]


def nothing_is_left(place: Pipeline, *statuses: str) -> None:
    """No scratch folder and no lease; the runs so far have ended as they must."""
    assert list((place.folder / "home" / "scratch").iterdir()) == []
    leases = place.folder / "home" / "object-store" / "leases"
    assert not leases.exists() or not list(leases.iterdir())
    assert sorted(run.status for run in place.tracker.find_runs("script", {})) == sorted(statuses)


@pytest.mark.slow
def test_what_goes_wrong_while_a_program_runs(place: Pipeline) -> None:
    place.run(*script(place, "import sys\nprint('seven columns')\nsys.exit(3)\n"), status=1)
    assert place.log.rpartition("\n\n")[2] == (
        "TrainingFailed: script.py ended with exit status 3; its last error line: seven columns\n"
    )
    place.run(*script(place, "print('done, and nothing is kept')\n"), status=1)
    last_words = place.log.rpartition("\n\n")[2]
    assert "left no model. Looked for, in this order" in last_words
    assert last_words.count("\n") == 3
    assert "Traceback" not in place.log
    nothing_is_left(place, "FAILED", "FAILED")
    assert not place.output_dir.exists()
    client = mlflow.MlflowClient(place.settings.mlflow_tracking_uri)
    assert client.search_registered_models() == []

    # What it prints is not interpreted, and no flood: a server would be busy with it for minutes.
    flood = "import json\nfor i in range(100_000):\n    print(json.dumps({'event': 'epoch', 'fit': 1, 'epoch': i}))\n"
    left = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("the child is", child.pid, flush=True)
"""
    done = place.run(*script(place, flood + left + KEEP_A_MODEL))
    assert done["metrics"] == {}
    assert 200 < place.log.count("\n") < 320
    assert "lines are left out here; the run's log, logs/training.log, has all" in place.log
    assert f"script version {done['model_version']}: no metrics" in place.log
    kept = place.tracker.read_file(done["run_id"], "logs/training.log", place.folder).decode()
    assert kept.count('{"event"') == 100_000
    child = int(kept.partition("the child is ")[2].split()[0])
    assert not psutil.pid_exists(child)
    assert "ended what the program had started and left behind: python" in place.log
    nothing_is_left(place, "FAILED", "FAILED", "FINISHED")

    process = place.start(*script(place, "import time\nprint('trains now', flush=True)\ntime.sleep(600)\n"))
    place.wait_for_log("trains now", process)
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    try:
        assert process.wait(10) == 130  # 5 s where nothing else keeps the machine busy.
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    wait_until(lambda: still_running(started) == [], 10, "the end of all that was started")
    assert "Traceback" not in place.log
    assert place.log.endswith("Stopped. Run the same command again: it continues where this one ended.\n")
    nothing_is_left(place, "FAILED", "FAILED", "FINISHED", "KILLED")
