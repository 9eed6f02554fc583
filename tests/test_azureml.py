"""Scripts of Azure ML's SDK v1, run with the stand-in: what they are given, and what the runner is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ArgumentError
from tasks.program_requirements import read_requirements
from tests.launched import LAUNCHER, Ended, Launched
from tests.runner_stage import Stage


class Script(Launched):
    """A script with the stand-in, and the data set `digits`."""

    def tour(self, text: str, **more: Any) -> Ended:
        """Run it; it must end well."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "train.py").write_text(text)
        (self.scratch / "files").mkdir(exist_ok=True)
        facts = {
            "run_id": "abc123",
            "experiment": "mnist",
            "folders": {"digits": str(self.scratch / "digits")},
            "files": str(self.scratch / "files"),
            "outputs": str(self.folder / "outputs"),
            "stand_in": str(LAUNCHER.parent / "stand_in"),
        }
        ended = self.run("train.py", azureml=facts, **more)
        assert more or ended.returncode == 0, ended.stderr
        return ended

    @property
    def files(self) -> list[str]:
        """What it has left to be kept."""
        root = self.scratch / "files"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def script(tmp_path: Path) -> Script:
    data = tmp_path / "digits"
    data.mkdir()
    (data / "a.csv").write_text("x,y\n1,2\n3,4\n")
    (data / "b.csv").write_text("x,y\n5,6\n7,8\n")
    return Script(tmp_path / "program", tmp_path)


def points(ended: Ended) -> list[tuple[str, int, float]]:
    """What was logged, by name, step and value."""
    return [(one["name"], one["step"], one["value"]) for one in ended.of("azureml") if one["do"] == "log"]


def tags(ended: Ended) -> dict[str, str]:
    return {key: text for one in ended.of("azureml") if one["do"] == "tags" for key, text in one["tags"].items()}


def test_what_is_logged_is_a_curve_a_tag_or_a_file(script: Script) -> None:
    ended = script.tour("""
from azureml.core import Run
from azureml.core.run import Run as Same
import numpy as np
run = Run.get_context()
assert run is Same.get_context(allow_offline=False) is Run.get_submitted_run() is run.parent
assert run.id == "abc123" and not run.id.startswith("OfflineRun")
assert (run.experiment.name, type(run.experiment.workspace).__name__) == ("mnist", "Workspace")
for loss in (3.0, np.float32(2), np.array([1.0])[0]):
    run.log("Train: loss", loss)
run.log("by step", 5, step=40)
run.log("kind", "dense")
run.log("per class", [0.5, np.int64(1)])
run.log_list("words", ["a", "b"])
run.log_row("epoch", number=1, loss=0.25)
run.log_row("epoch", number=2, loss=0.125, note="better")
run.log_table("xy", {"x": np.array([1, 2]), "y": [3, 4]})
run.log_confusion_matrix("matrix", '{"schema_type": "confusion_matrix", "data": {"matrix": [[1, 0]]}}')
run.tag("owner of it")
run.set_tags({"a": 1})
run.add_properties({"b": 2})
assert run.get_metrics("Train: loss") == {"Train: loss": [3.0, 2.0, 1.0]}
assert run.get_metrics()["by step"] == 5
assert run.get_details()["runId"] == run.id and run.get_details()["tags"]["a"] == "1"
run.complete()
""")
    assert points(ended) == [
        *(("Train: loss", step, 4.0 - step) for step in (1, 2, 3)),
        ("by step", 40, 5),
        ("per class", 1, 0.5),
        ("per class", 2, 1),
        *(("epoch/number", 1, 1), ("epoch/loss", 1, 0.25), ("epoch/number", 2, 2), ("epoch/loss", 2, 0.125)),
        *(("xy/x", 1, 1), ("xy/y", 1, 3), ("xy/x", 2, 2), ("xy/y", 2, 4)),
    ]
    assert tags(ended) == {"kind": "dense", "owner of it": "", "a": "1", "b": "2"}
    names = ["epoch.jsonl", "matrix.json", "per class.jsonl", "words.jsonl", "xy.jsonl"]
    assert script.files == [f"0/tables/{name}" for name in names]
    rows = (script.scratch / "files" / "0" / "tables" / "epoch.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"number": 1, "loss": 0.25},
        {"number": 2, "loss": 0.125, "note": "better"},
    ]
    assert ended.stderr.count("azureml is a stand-in") == 1


def test_data_sets_are_what_was_given(script: Script) -> None:
    ended = script.tour("""
import os
from azureml.core import Dataset, Datastore, Run, Workspace
run = Run.get_context()
data = run.input_datasets["digits"]
ws = Workspace.from_config()
assert os.listdir(data) and data == ws.datasets["digits"] == Dataset.get_by_id(run.experiment.workspace, id=data)
frame = Dataset.get_by_name(ws, name="digits").to_pandas_dataframe()
assert frame["x"].tolist() == [1, 3, 5, 7]
part, rest = data.random_split(0.5, seed=1)
both = [one.to_pandas_dataframe()["x"].tolist() for one in (part, rest)]
assert sorted(sum(both, [])) == [1, 3, 5, 7] and len(both[0]) == 2
with data.as_mount().mount() as mounted:
    assert os.path.isfile(os.path.join(mounted.mount_point, "a.csv"))
assert [os.path.basename(path) for path in data.download("here")] == ["a.csv", "b.csv"] == sorted(os.listdir("here"))
assert Datastore.get(ws, "digits").download("there", prefix="a") == 1
assert run.get_secret("the-key") == "5"
unknown = lambda: Dataset.get_by_name(ws, "x")
for wrong in (lambda: run.input_datasets["faces"], lambda: run.get_secret("other"), unknown):
    try:
        wrong()
    except KeyError as error:
        print(error)
""", environment={"THE_KEY": "5"})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "no data set 'faces' was given; there is digits. Give it: --data faces=" in ended.stdout
    assert "pass it on with --env OTHER" in ended.stdout


def test_files_images_and_models_are_kept_and_the_model_is_named(script: Script) -> None:
    ended = script.tour("""
import io, os
from azureml.core import Model, Run
run = Run.get_context()
class Plot:
    def savefig(self, path): open(path, "w").write("drawn")
run.log_image("curves", plot=Plot())
run.log_image("curves", plot=Plot())
open("x.jpg", "w").write("photo")
run.log_image("photo", path="x.jpg")
run.upload_file("logs/x.jpg", "x.jpg")
run.upload_file(name="outputs/notes.txt", path_or_stream=io.BytesIO(b"notes"))
os.makedirs("export/deep")
open("export/deep/weights.bin", "w").write("w")
run.upload_folder("copy", "export")
assert run.get_file_names() == ["copy/deep/weights.bin", "images/curves-2.png", "images/curves.png",
                                "images/photo.jpg", "logs/x.jpg", "outputs/notes.txt"]
run.download_file("outputs/notes.txt", "again.txt")
assert open("again.txt").read() == "notes"
first = run.register_model(model_name="digits", model_path="outputs/notes.txt", tags={"a": 1}, description="d")
assert (first.name, first.id, first.version, first.version) == ("digits", "digits:abc123", None, None)
Model.register(workspace=None, model_path="export", model_name="faces")
assert os.listdir(Model.get_model_path("faces")) == ["deep"]
try:
    run.register_model("none", "outputs/none")
except FileNotFoundError as error:
    print(error)
for name in ("../out", "/out"):
    try:
        run.upload_file(name, "x.jpg")
    except ValueError as error:
        print(error)
""")
    made = [(one["name"], one["path"], one["tags"]) for one in ended.of("azureml") if one["do"] == "model"]
    assert made == [("digits", "notes.txt", {"a": "1"}), ("faces", "export", {})]
    assert (script.folder / "outputs" / "export" / "deep" / "weights.bin").is_file()
    assert ended.stderr.count("a model's version is None") == 1
    assert "there is no outputs/none" in ended.stdout
    assert ended.stdout.count("it leads out of it") == 2


def test_children_have_their_own_curves_and_an_end(script: Script) -> None:
    ended = script.tour("""
from azureml.core.run import Run, _OfflineRun
run = Run.get_context()
assert not isinstance(run, _OfflineRun)
with run.child_run("fold 1") as child:
    child.log("score", 1)
    assert child.parent is run and child.id == "abc123_1"
other, last = run.create_children(tag_key="size", tag_values=[10, 20])
other.log("score", 2)
other.log_list("all", [1])
last.fail("too large")
assert len(run.get_children()) == 3
""")
    told = [(one["run"], one["do"], one.get("name") or one.get("status") or "") for one in ended.of("azureml")]
    assert told == [
        *((1, "child", "fold 1"), (1, "log", "score"), (1, "end", "Completed")),
        *((2, "child", "child 2"), (3, "child", "child 3"), (2, "tags", ""), (3, "tags", "")),
        *((2, "log", "score"), (2, "log", "all"), (3, "end", "Failed")),
    ]
    assert script.files == ["2/tables/all.jsonl"]


def test_it_costs_next_to_nothing(script: Script) -> None:
    ended = script.tour("""
import time
begun = time.perf_counter()
from azureml.core import Run
run = Run.get_context()
print(time.perf_counter() - begun)
def batch():
    begun = time.perf_counter()
    for value in range(100): run.log("x", value)
    return (time.perf_counter() - begun) / 100
print(min(batch() for _ in range(20)))
""")
    start, log = map(float, ended.stdout.split())
    assert start < 0.2
    assert log < 0.001


@pytest.mark.parametrize(
    "line",
    ["from azureml.core import ScriptRunConfig", "run.submit_child", "import azureml.train", "run.input_datasets.x"],
)
def test_what_is_not_there_never_passes_silently(script: Script, line: str) -> None:
    text = f"from azureml.core import Run\nrun = Run.get_context()\n{line}\nprint('passed')"
    ended = script.tour(text, seed=None)
    assert ended.returncode == 1
    assert "passed" not in ended.stdout
    assert line.split(".")[-1].split()[-1].removeprefix("azureml.") in ended.stderr


def test_the_sdk_itself_and_a_folder_of_the_programs_come_first(script: Script) -> None:
    script.folder.mkdir()
    (script.folder / "azureml.py").write_text("mine = 1")
    ended = script.tour("import azureml\nprint(azureml.mine, hasattr(azureml, 'link'))")
    assert (ended.stdout, ended.stderr) == ("1 False\n", "")


@pytest.mark.parametrize("name", ["requirements.txt", "conda.yaml"])
def test_packages_that_are_stood_in_for_are_left_out_and_others_refused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*packages: str) -> None:
        lines = {"requirements.txt": "".join(f"{one}\n" for one in packages)}
        lines["conda.yaml"] = "dependencies:\n- pip:\n" + "".join(f"  - {one}\n" for one in packages)
        (tmp_path / name).write_text(lines[name])

    caplog.set_level("INFO")
    write("numpy>=2", "azureml-core==1.0.85", "azureml_mlflow", "azureml-defaults", "azureml-sdk[automl]")
    assert read_requirements(tmp_path) == (("numpy>=2",), None)
    assert [line.split(" is left out")[0].split()[-1] for line in caplog.messages] == [
        *("azureml-core", "azureml-mlflow", "azureml-defaults", "azureml-sdk"),
    ]
    write("azureml-train-automl")
    with pytest.raises(ArgumentError, match=rf"{name}:\d: azureml-train-automl is of the service"):
        read_requirements(tmp_path)


KEPT = """
import os
from azureml.core import Run
run = Run.get_context()
for step in range(3):
    run.log("Train: loss (%)", step)
run.set_tags({"a": 1, "model_sha256": "forged", "gate": "forged"})
with run.child_run("fold") as child:
    child.log("score", 1)
    child.log_list("all", [1, 2])
run.child_run("open").log("score", 2)
open("x.png", "wb").write(b"drawn")
run.log_image("it", path="x.png")
os.makedirs("outputs/other")
open("outputs/other/m.pkl", "w").write("pickled")
open("outputs/model.pkl", "w").write("not this")
run.register_model("My digits", "outputs/other/m.pkl", tags={"kind": "tree", "gate": "forged"}, description="Of trees")
if not os.path.exists("again"):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_all_of_it_is_in_mlflow_once_however_often_it_is_killed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    run_id = stage.start_run()
    killed = stage.ship({"train.py": KEPT}, uses_azureml=True)
    assert "train.py was ended by SIGKILL" in stage.run(killed, stage.order(run_id), status=1)
    whole = stage.ship({"train.py": KEPT, "again": ""}, uses_azureml=True)
    output = stage.run(whole, stage.order(run_id))
    assert output.count("'Train: loss (%)' is called 'Train: loss ___' in MLflow") == 1
    assert "the tag gate is the pipeline's own" in output
    assert "outputs/other/m.pkl is the model, to be registered as My-digits" in output
    assert "to load a pickle runs what is written in it" in output
    assert stage.history(run_id, "Train: loss ___") == [(1, 0), (2, 1), (3, 2)]
    tags = stage.client.get_run(run_id).data.tags
    assert (tags["a"], tags["register_as"], tags["model_path"]) == ("1", "My-digits", "other/m.pkl")
    assert "gate" not in tags
    assert tags["model_sha256"] != "forged"
    assert json.loads(tags["register_tags"]) == {"kind": "tree", "description": "Of trees"}
    files = Path(stage.client.get_logged_model(tags["model_id"]).artifact_location.removeprefix("file://"))
    assert (files / "m.pkl").read_text() == "pickled"
    assert [one.path for one in stage.client.list_artifacts(run_id, "images")] == ["images/it.png"]
    children = stage.client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["start_time"])
    assert [(one.info.run_name, one.info.status) for one in children] == [("fold", "FINISHED"), ("open", "FINISHED")]
    assert stage.history(children[0].info.run_id, "all") == [(1, 1), (2, 2)]
    assert [one.path for one in stage.client.list_artifacts(children[0].info.run_id, "tables")] == ["tables/all.jsonl"]


@pytest.mark.slow
def test_a_script_that_calls_fail_has_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    text = "from azureml.core import Run\nRun.get_context().fail(error_details='too few rows')"
    output = stage.run(stage.ship({"train.py": text}, uses_azureml=True), stage.order(stage.start_run()), status=1)
    assert "The script said by run.fail() that it failed: too few rows" in output


CURVES = """
import os, keras, numpy as np
from azureml.core import Run
run = Run.get_context()
class Log(keras.callbacks.Callback):
    def on_train_begin(self, logs=None): run.log("begun", 1)
    def on_epoch_end(self, epoch, logs=None):
        run.log("Loss", logs["loss"])
        run.log_row("epoch", number=epoch)
    def on_train_end(self, logs=None): run.log("ended", 1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", metrics=["mae"])
for _ in range(2):
    history = model.fit(np.ones((8, 4)), np.zeros(8), epochs=3, verbose=0, callbacks=[Log()])
    run.log("after", len(run.get_metrics("Loss")["Loss"]))
for value in history.history["loss"]:
    run.log("loss", value)
run.log("mae", -1)
print(run.get_metrics())
"""


@pytest.mark.slow
def test_steps_go_on_where_a_killed_fit_does(script: Script) -> None:
    whole = script.tour(CURVES)
    wanted = points(whole)
    assert [step for name, step, _ in wanted if name == "Loss"] == [1, 2, 3, 4, 5, 6]
    # What History has was logged at its epoch; what the script says otherwise comes behind the epochs.
    assert [step for name, step, _ in wanted if name == "loss"] == []
    assert ("mae", 7, -1) in wanted
    other = Script(script.folder, script.scratch / "killed")
    other.scratch.mkdir()
    told = set()
    for place in (("checkpoint", 1, 2), ("checkpoint", 2, 2), None):
        ended = other.tour(CURVES, kill_at=place)
        told |= {(name, step) for name, step, _ in points(ended)}
    assert told == {(name, step) for name, step, _ in wanted}
    assert {name for name, *_ in points(ended)} >= {"Loss", "after"}
    rows = (other.scratch / "files" / "0" / "tables" / "epoch.jsonl").read_text().splitlines()
    assert [json.loads(row)["number"] for row in rows] == [0, 1, 2, 0, 1, 2]
