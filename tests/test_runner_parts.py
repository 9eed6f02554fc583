"""Parts of the runner, without a process: data, checkpoints, steps of fits, the program's lines and variables."""

import hashlib
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.compute.runner import checkpoints as checkpoints_module
from infra.compute.runner import training as training_module
from infra.compute.runner.checkpoints import Checkpoints
from infra.compute.runner.data import bring
from infra.compute.runner.exits import BadDataset, RunnerError, TakenOver, UsageError
from infra.compute.runner.fits import Fits
from infra.compute.runner.locked import check_versions
from infra.compute.runner.manifest import (
    MANIFEST,
    data_sha256,
    file_entry,
    files_sha256,
    folder_entries,
    manifest_bytes,
)
from infra.compute.runner.order import DatasetOrder, Order, Program, parse_order, read_program
from infra.compute.runner.output import EVENT, LINE_LIMIT, Lines, telling
from infra.compute.runner.outputs import find_model
from infra.compute.runner.patience import with_patience
from infra.compute.runner.variables import all_variables, first_variables
from infra.settings import set_variables
from tests.pipeline import wait_until
from tests.runner_stage import store_dataset
from tests.s3_server import s3_server

FILES = {"a/b/c.txt": b"nested", "large.bin": os.urandom(40_000_000), "empty": b"", "with space.csv": b"1,2\n"}


def dataset(folder: Path, files: dict[str, bytes], in_place: dict[str, Path] | None = None) -> DatasetOrder:
    return DatasetOrder("fashion", **store_dataset(folder, files, in_place))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_is_brought_whole_and_from_the_cache_the_next_time(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(b"in place")
    given = dataset(tmp_path / "store", FILES, {"d/in-place.bin": elsewhere})
    expected = FILES | {"d/in-place.bin": b"in place"}
    bring(given, tmp_path / "data")
    assert contents(tmp_path / "data") == expected
    bring(given, tmp_path / "first", tmp_path / "cache")
    assert contents(tmp_path / "first") == expected
    # What the cache has is not read again; what of it has been damaged is.
    (tmp_path / "store" / "a" / "b" / "c.txt").unlink()
    damaged = next(path for path in (tmp_path / "cache").iterdir() if path.read_bytes() == b"1,2\n")
    damaged.chmod(0o644)
    damaged.write_bytes(b"1;2\n")
    bring(given, tmp_path / "second", tmp_path / "cache")
    assert contents(tmp_path / "second") == expected
    assert not [path.name for path in (tmp_path / "cache").iterdir() if path.name.endswith(".part")]


@pytest.mark.slow
def test_data_comes_from_a_store_of_objects_as_from_a_folder(tmp_path: Path) -> None:
    place = tmp_path / "s3" / "bucket" / "elsewhere.bin"
    with s3_server(tmp_path / "s3", "bucket") as s3:
        set_variables(**s3.environment)
        place.write_bytes(b"in place")
        files = {"a.txt": b"1", "b.txt": b"two"}
        store_dataset(place.with_name("data"), files)
        there = place.with_name("data")
        entries = [*folder_entries(there), replace(file_entry(place), uri="s3://bucket/elsewhere.bin")]
        entries = [entry for entry in entries if entry.name != MANIFEST]
        (there / MANIFEST).write_bytes(manifest_bytes(entries))
        given = DatasetOrder("fashion", "s3://bucket/data", files_sha256(entries))
        bring(given, tmp_path / "data")
        assert contents(tmp_path / "data") == files | {"elsewhere.bin": b"in place"}
        for changed in (b"in place, grown", b"in p"):
            place.write_bytes(changed)
            with pytest.raises(BadDataset, match=r"elsewhere\.bin"):
                bring(given, tmp_path / "data")


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda store, place: (store / "a/b/c.txt").write_bytes(b"nestee"), "a/b/c.txt"),
        (lambda store, place: (store / "a/b/c.txt").unlink(), "a/b/c.txt"),
        (lambda store, place: (store / "empty").write_bytes(b"x"), "empty"),
        (lambda store, place: place.write_bytes(b"in place, grown"), "grown.bin"),
        (lambda store, place: place.write_bytes(b"in p"), "grown.bin"),
        (lambda store, place: (store / MANIFEST).write_bytes(b"{}"), MANIFEST),
        (lambda store, place: (store / MANIFEST).unlink(), MANIFEST),
    ],
)
def test_wrong_bytes_are_refused_by_the_name_of_the_file(tmp_path: Path, break_it: Any, named: str) -> None:
    place = tmp_path / "grown.bin"
    place.write_bytes(b"in place")
    files = {name: content for name, content in FILES.items() if len(content) < 100}
    given = dataset(tmp_path / "store", files, {"grown.bin": place})
    break_it(tmp_path / "store", place)
    with pytest.raises(BadDataset, match=named) as refused:
        bring(given, tmp_path / "data")
    assert refused.value.exit_status == 4


def test_what_no_disk_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    content = b'{"files":[{"name":"vast","sha256":"%s","size":%d}]}' % (b"0" * 64, 10**18)
    (folder / MANIFEST).write_bytes(content)
    given = DatasetOrder("vast", folder.as_uri(), hashlib.sha256(content).hexdigest())
    with pytest.raises(RunnerError, match=r"1000000000\.1 GB of disk"):
        bring(given, tmp_path / "data")


def test_the_data_of_several_sets_have_one_digest_that_knows_their_names() -> None:
    one, other = "1" * 64, "2" * 64
    assert data_sha256({}) == "none"
    assert data_sha256({"a": one}) == one
    assert data_sha256({"a": one, "b": other}) == data_sha256({"b": other, "a": one})
    assert data_sha256({"a": one, "b": other}) != data_sha256({"a": other, "b": one})


class Place:
    """Checkpoints of a training whose store may be slow."""

    def __init__(self, folder: Path) -> None:
        self.uri = (folder / "store").as_uri()
        self.store = folder / "store"
        self.folder = folder / "checkpoints"
        self.scratch = folder / "scratch"
        self.may_write = threading.Event()
        self.may_write.set()
        self.failures: list[BaseException] = []
        self.state: dict[str, Any] = {"fits": []}

    def open(self) -> Checkpoints:
        def confirm() -> None:
            assert self.may_write.wait(30)

        return Checkpoints(self.uri, self.folder, self.scratch, confirm)

    def start(self) -> Checkpoints:
        checkpoints = self.open()
        checkpoints.restore()
        checkpoints.start(lambda: self.state, lambda: None, self.failures.append)
        return checkpoints

    def write(self, text: str) -> None:
        (self.folder / "nested").mkdir(parents=True, exist_ok=True)
        (self.folder / "nested" / "state").write_text(text)

    def whole(self) -> list[int]:
        return sorted(int(path.parent.name) for path in self.store.glob(f"*/{MANIFEST}"))

    def restored(self) -> str | None:
        shutil.rmtree(self.folder, ignore_errors=True)
        state = self.open().restore()
        file = self.folder / "nested" / "state"
        return file.read_text() if state is not None and file.exists() else None

    def failure(self) -> BaseException | None:
        return self.failures[0] if self.failures else None


def test_of_checkpoints_the_last_two_stay_and_the_newest_intact_one_is_restored(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.restored() is None
    checkpoints = place.start()
    for epoch in range(1, 5):
        place.write(str(epoch))
        place.state = {"fits": [{"first": 0, "base": 0, "epochs": epoch}]}
        assert checkpoints.take()
        wait_until(lambda e=epoch: e in place.whole(), 10, "the upload")  # type: ignore[misc]
    assert not checkpoints.take(), "nothing has changed"
    checkpoints.finish(place.failure, final=True)
    assert place.whole() == [3, 4]
    assert place.restored() == "4"
    assert place.open().restore() == place.state
    assert not list(place.scratch.iterdir())
    (place.store / "4" / "nested" / "state").write_text("5")
    assert place.restored() == "3"
    (place.store / "3" / MANIFEST).unlink()
    assert place.restored() is None
    # The damaged ones are not written over by a number that they have.
    checkpoints = place.start()
    place.write("new")
    checkpoints.finish(place.failure, final=True)
    assert 5 in place.whole()
    assert place.restored() == "new"


@pytest.mark.parametrize("large", [False, True])
def test_a_slow_store_does_not_stop_the_training_and_gets_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    # As if the folder were large, for which a disk has no room here.
    monkeypatch.setattr(checkpoints_module, "LARGE_BYTES", 0 if large else 200_000_000)
    place = Place(tmp_path)
    checkpoints = place.start()
    place.may_write.clear()
    started = time.monotonic()
    taken = 0
    for epoch in range(20):
        place.write(str(epoch))
        taken += checkpoints.take()
    assert time.monotonic() - started < 5
    assert taken == 20 if not large else taken < 4
    assert place.whole() == []
    place.may_write.set()
    checkpoints.finish(place.failure, final=True)
    assert len(place.whole()) == 2, "the first, which was under way, and the last"
    assert place.restored() == "19"


def test_what_a_program_writes_by_itself_is_taken_when_it_is_quiet_and_never_half(tmp_path: Path) -> None:
    place = Place(tmp_path)
    checkpoints = place.start()
    writing = threading.Event()
    writing.set()

    def write() -> None:
        number = 0
        while writing.is_set():
            number += 1
            for half in ("first", "second"):
                (place.folder / half).write_text(str(number))
                time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(2.5)
    assert place.whole() == [], "it was never quiet"
    writing.clear()
    writer.join()
    wait_until(lambda: place.whole() == [1], 10, "the snapshot")
    assert checkpoints.holds_more_than_history
    taken = place.store / "1"
    assert (taken / "first").read_text() == (taken / "second").read_text()
    time.sleep(1.5)
    assert place.whole() == [1], "nothing has changed since"


def test_a_folder_that_changes_while_it_is_copied_is_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    checkpoints = place.start()
    copy_file = checkpoints_module._copy

    def copy(source: Path, target: Path) -> None:
        copy_file(source, target)
        place.write("changed meanwhile")

    with monkeypatch.context() as changed:  # A moment that a real program meets by chance alone.
        changed.setattr(checkpoints_module, "_copy", copy)
        place.write("1")
        assert not checkpoints.take()
    assert checkpoints.take()
    checkpoints.finish(place.failure, final=True)
    assert place.restored() == "changed meanwhile"


def test_a_store_that_is_taken_away_is_told_and_ends_the_wait(tmp_path: Path) -> None:
    def confirm() -> None:
        raise TakenOver("another goes on")

    place = Place(tmp_path)
    checkpoints = Checkpoints(place.uri, place.folder, place.scratch, confirm)
    checkpoints.restore()
    checkpoints.start(dict, lambda: None, place.failures.append)
    place.write("1")
    with pytest.raises(TakenOver):
        checkpoints.finish(place.failure, final=True)
    assert place.whole() == []


def test_what_the_launcher_only_notes_is_nothing_to_continue_from(tmp_path: Path) -> None:
    place = Place(tmp_path)
    checkpoints = place.start()
    note = place.folder / ".keras-fit" / "history.json"
    note.parent.mkdir()
    note.write_text("{}")
    assert checkpoints.take()
    assert not checkpoints.holds_more_than_history
    note.with_name("epoch-1.weights.h5").touch()
    assert checkpoints.take()
    assert checkpoints.holds_more_than_history


def test_steps_go_on_from_fit_to_fit_and_are_the_same_after_a_continuation() -> None:
    fits = Fits()
    fits.begin(1, 0)
    assert [fits.add(1, epoch) for epoch in (1, 2, 3)] == [1, 2, 3]
    fits.begin(2, 0)
    assert [fits.add(2, epoch) for epoch in (1, 2)] == [4, 5]
    kept = fits.state
    assert fits.add(2, 3) == 6
    fits.begin(3, 6)  # As fine-tuning does: fit(epochs=8, initial_epoch=6).
    assert [fits.add(3, epoch) for epoch in (7, 8)] == [7, 8]
    again = Fits(kept)
    again.begin(1, 10)  # It was stopped early, of 10, and is not repeated.
    again.begin(2, 2)
    assert again.add(2, 3) == 6
    assert again.steps(1) == range(1, 4)
    anew = Fits(kept)  # Its backup was of no use.
    anew.begin(1, 0)
    assert anew.add(1, 1) == 1
    late = Fits()
    late.begin(1, 5)
    assert late.add(1, 6) == 6


def test_lines_are_cut() -> None:
    lines = Lines()
    assert lines.add(b"one\ntw") == ["one"]
    assert lines.add(b"o\r\nbar 1%\rbar 2%\n") == ["two", "bar 2%"]
    assert lines.add("é".encode()[:1]) == []
    assert lines.add("é".encode()[1:] + b"\xff\n") == ["é\ufffd"]
    for _ in range(100):
        assert lines.add(b"x" * 65_536) == []
    assert lines.add(b"\nafter\nrest") == ["x" * LINE_LIMIT, "after"]
    assert lines.last() == ["rest"]
    assert lines.last() == []


def test_only_its_end_makes_a_line_tell_something() -> None:
    assert telling("\x1e\x1dnode {}\x1f{}\n\x1e") == "node {}{} "
    line, mark, told = telling("epoch\x1f {}", epoch=1, metric="\x1f\n").partition(EVENT)
    assert (line, mark, json.loads(told)) == ("epoch {}", EVENT, {"epoch": 1, "metric": "\x1f\n"})


def test_the_program_gets_a_stated_list_of_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    ours = {"PATH": "/bin", "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "3", "NVIDIA_VISIBLE_DEVICES": "all"}
    hidden = {"AWS_SECRET_ACCESS_KEY": "s", "PREFECT_API_KEY": "s", "XLA_FLAGS": "-f", "KERAS_BACKEND": "jax"}
    login = {"MLFLOW_TRACKING_URI": "postgresql://me:secret@host/db", "MLFLOW_TRACKING_PASSWORD": "secret"}
    for name, value in (ours | hidden | login | {"NVIDIA_TF32_OVERRIDE": "0", "PYTHONPATH": "/x"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_KEY", "w")
    program = Program("p", ("python", "p.py"), variables=("WANDB_KEY", "NOT_THERE"))
    order = Order("run", (), None, "", accelerator="cpu")
    first = first_variables(program, "/env/bin", str(tmp_path))
    everything = all_variables(first, order, {"MLFLOW_RUN_ID": "run"})
    assert ours.items() <= {**everything, "PATH": "/bin"}.items()
    assert everything["PATH"] == "/env/bin:/bin"
    assert everything["TMPDIR"] == str(tmp_path)
    assert everything["KERAS_BACKEND"] == "tensorflow"
    assert everything["WANDB_KEY"] == "w"
    assert first["WANDB_KEY"] == "w", "libraries that are imported ahead may read it"
    assert "NOT_THERE" not in everything
    assert everything["CUDA_VISIBLE_DEVICES"] == "-1"
    assert not {"AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "XLA_FLAGS", "PYTHONPATH"} & everything.keys()
    assert "secret" not in str(everything)
    assert "NVIDIA_TF32_OVERRIDE" not in everything
    uses = replace(program, uses_mlflow=True, sets_variables=("KERAS_BACKEND",))
    first = first_variables(uses, "", str(tmp_path))
    assert first["MLFLOW_DISABLE_TELEMETRY"] == "true", "MLflow reads it as it is imported, maybe ahead of the order"
    everything = all_variables(first, order, {})
    assert login.items() <= everything.items()
    assert "KERAS_BACKEND" not in everything
    served = all_variables(first, order, {"MLFLOW_TRACKING_URI": "http://h", "MLFLOW_TRACKING_TOKEN": "key"})
    assert "secret" not in str(served)


def test_the_process_that_loads_the_model_is_started_before_the_last_epoch_of_a_program_that_logs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "_usable_cores", lambda: 2)
    started: list[int] = []
    for epochs, step, expected in ((20, 1, False), (20, 18, True), (None, 18, False)):
        program = Program("p", ("python", "p.py"), uses_keras=True, parameters={"epochs": epochs} if epochs else None)
        training = training_module.Training(SimpleNamespace(program=program, scratch=tmp_path))  # type: ignore[arg-type]
        # Not really started: it imports TensorFlow, and when is what is asked.
        monkeypatch.setattr(training._keras, "start", lambda step=step: started.append(step))
        training._last_step = step - 1, time.monotonic() - 4
        training._saw_step(step)
        assert bool(started) == expected, (epochs, step)
        started.clear()


def test_a_command_is_a_script_a_module_or_something_else() -> None:
    def words(*command: str) -> Any:
        return Program("p", command).python_words

    assert words("python", "src/train.py", "--x") == (False, ("src/train.py", "--x"))
    assert words("python3", "-m", "pkg.train", "-v") == (True, ("pkg.train", "-v"))
    assert words("python", "-u", "train.py") is None
    assert words("bash", "run.sh") is None


def test_orders_and_facts_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'run_id'"):
        parse_order('{"dataset_uris": {}, "checkpoint_uri": ""}')
    (tmp_path / "program.json").write_text('{"name": "x", "command": ["python"], "colour": 1}')
    with pytest.raises(UsageError, match="colour"):
        read_program(tmp_path / "program.json")


def test_another_version_than_was_listed_is_named() -> None:
    lock = 'keras==3.15.1 \\\n    --hash=sha256:00\nTyping_Extensions==4.1 ; python_version < "3.14"\n'
    check_versions(lock, {"keras": "3.15.1", "typing-extensions": "4.1", "other": "1"})
    with pytest.raises(RunnerError, match=r"typing-extensions 4\.2 instead of 4\.1"):
        check_versions(lock, {"keras": "3.15.1", "typing-extensions": "4.2"})


def test_patience_keeps_the_kind_of_an_error() -> None:
    def taken() -> None:
        raise TakenOver("gone")

    with pytest.raises(TakenOver, match=r"^gone$"):
        with_patience(taken, "write")


@pytest.mark.parametrize(
    ("files", "root", "file", "weights"),
    [
        ({}, None, None, None),
        ({"plot.png": ""}, None, None, None),
        ({"model/m.keras": "", "model/labels.txt": "", "last.keras": ""}, "model", "model/m.keras", None),
        ({"model/saved_model.pb": "", "model/variables/x.h5": ""}, "model", None, None),
        ({"model/m.pkl": ""}, "model", None, None),
        (
            {"model/arch.json": '{"class_name": "Sequential", "config": {}}', "model/m.weights.h5": ""},
            "model",
            "model/arch.json",
            "model/m.weights.h5",
        ),
        ({"model/MLmodel": "", "model/data/model.keras": ""}, "model", "model/data/model.keras", None),
        ({"best.keras": "", "last.keras": ""}, "last.keras", "last.keras", None),
        ({"model.keras": "", "last.keras": ""}, "model.keras", "model.keras", None),
        ({"old.h5": "", "w.weights.h5": ""}, "old.h5", "old.h5", None),
        ({"model.pkl": ""}, "model.pkl", None, None),
        ({"forest.joblib": "", "plot.png": ""}, "forest.joblib", None, None),
        ({"one.pkl": "", "two.pkl": ""}, None, None, None),
    ],
)
def test_where_the_model_is_looked_for(
    tmp_path: Path, files: dict[str, str], root: str | None, file: str | None, weights: str | None
) -> None:
    for age, (name, text) in enumerate(files.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (age, age))
    found = find_model(tmp_path)
    assert (found and found.root) == (tmp_path / root if root else None)
    assert (found and found.file) == (tmp_path / file if file else None)
    assert (found and found.weights) == (tmp_path / weights if weights else None)


def test_what_the_program_has_named_is_the_model(tmp_path: Path) -> None:
    for name in ("model/m.keras", "other/m.pkl", "best.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    places = {"other": ("other", None), "other/m.pkl": ("other/m.pkl", None), "best.h5": ("best.h5", "best.h5")}
    for named, (root, file) in places.items():
        found = find_model(tmp_path, named)
        assert found
        assert (found.root, found.file) == (tmp_path / root, tmp_path / file if file else None)
    # Named by an attempt that was killed, and not there in this one.
    assert find_model(tmp_path, "gone") == find_model(tmp_path)
