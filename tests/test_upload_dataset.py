"""The step "upload": what is sent, in which order, what a broken upload leaves; in a folder and on a real server."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow

from infra.compute.runner.manifest import MANIFEST, FileEntry, file_entry, files_sha256, manifest_bytes
from infra.errors import ObjectStoreError, ObjectStoreUnreachable
from infra.experiment_tracker import ExperimentTracker
from infra.object_store import ObjectStore, Source
from infra.services import Services
from infra.settings import load_settings
from tasks.dataset_catalog import describe_dataset
from tasks.datasets.folder import FolderFiles
from tasks.datasets.stored import list_datasets, store_dataset
from tasks.handoffs import Dataset, DatasetFiles
from tasks.programs.mnist.digits.dataset_files import TEST_IMAGES, TRAIN_IMAGES
from tasks.upload_dataset import upload_dataset
from tests.s3_server import S3Server, free_port, s3_server
from tests.small_dataset import entries, write_catalog, write_small_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["ObservedStore"]:
    if request.param == "folder":
        yield ObservedStore((tmp_path / "store").as_uri(), tmp_path / "store")
        return
    server: S3Server = request.getfixturevalue("shared_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid))}"
    server.make_bucket(bucket)
    yield ObservedStore(f"s3://{bucket}/prefix", server.folder / bucket / "prefix")


class ObservedStore(ObjectStore):
    """The store itself, that also notes what is asked of it; `folder` is where its objects lie on this machine."""

    def __init__(self, uri: str, folder: Path) -> None:
        super().__init__(uri)
        self.folder = folder
        self.changes: list[str] = []

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
        files = list(files)
        self.changes += [f"put {key.rpartition('/')[2]}" for key, _ in files]
        super().put_files(files, on_bytes)

    def put_bytes(self, key: str, data: bytes) -> None:
        self.changes.append(f"put {key.rpartition('/')[2]}")
        super().put_bytes(key, data)

    def delete(self, key: str) -> None:
        self.changes.append(f"delete {key.rpartition('/')[2]}")
        super().delete(key)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_small_dataset(folder, 60, 20)
    return folder


def upload(store: ObjectStore, folder: Path, overwrite: bool = False) -> Dataset:
    return store_dataset("small", FolderFiles(folder, tuple(entries(folder))), store, overwrite)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: what is written again gets new ones."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def assert_whole(store: ObservedStore, dataset: Dataset, folder: Path) -> None:
    stored = store.folder / "datasets" / dataset.name / dataset.sha256
    assert {path.name for path in stored.iterdir()} == {path.name for path in folder.iterdir()} | {MANIFEST}
    assert all((stored / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    assert hashlib.sha256((stored / MANIFEST).read_bytes()).hexdigest() == dataset.sha256


def test_a_data_set_is_stored_under_its_digest_and_the_manifest_is_last(store: ObservedStore, files: Path) -> None:
    dataset = upload(store, files)
    assert dataset.sha256 == files_sha256(entries(files))
    assert dataset.uri == f"{store.uri}/datasets/small/{dataset.sha256}"
    assert_whole(store, dataset, files)
    assert store.changes[-1] == f"put {MANIFEST}"
    assert len(store.changes) == 5


def test_a_second_upload_sends_nothing_and_says_so(
    store: ObservedStore, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = upload(store, files)
    before = state_of(store.folder)
    store.changes.clear()
    with caplog.at_level("INFO"):
        assert upload(store, files) == first
    assert "nothing was sent" in caplog.text
    assert store.changes == []
    assert state_of(store.folder) == before


def test_overwriting_sends_everything_again_and_first_takes_the_manifest_away(
    store: ObservedStore, files: Path
) -> None:
    upload(store, files)
    before = state_of(store.folder)
    store.changes.clear()
    dataset = upload(store, files, overwrite=True)
    assert store.changes[0] == f"delete {MANIFEST}"
    assert store.changes[-1] == f"put {MANIFEST}"
    assert_whole(store, dataset, files)
    after = state_of(store.folder)
    assert all(after[path] != before[path] for path in before)


def test_what_is_damaged_in_its_size_is_found_by_reading_it_back_and_sent_again(
    store: ObservedStore, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = upload(store, files)
    content = (files / TRAIN_IMAGES).read_bytes()
    damaged = store.folder / "datasets" / "small" / dataset.sha256 / TRAIN_IMAGES
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    store.changes.clear()
    upload(store, files)
    assert store.changes == [], "to read all of it each time would cost what it saves"
    store_dataset("small", FolderFiles(files, tuple(entries(files))), store, read_back=True)
    assert store.changes == [f"delete {MANIFEST}", f"put {TRAIN_IMAGES}", f"put {MANIFEST}"]
    assert_whole(store, dataset, files)
    assert f"{TRAIN_IMAGES} in the store is damaged: expected SHA-256" in caplog.text
    store.changes.clear()
    store_dataset("small", FolderFiles(files, tuple(entries(files))), store, read_back=True)
    assert store.changes == []


def test_an_object_of_the_wrong_size_is_sent_again_and_nothing_else(store: ObservedStore, files: Path) -> None:
    dataset = upload(store, files)
    (store.folder / "datasets/small" / dataset.sha256 / TEST_IMAGES).write_bytes(b"short")
    store.changes.clear()
    upload(store, files)
    assert store.changes == [f"delete {MANIFEST}", f"put {TEST_IMAGES}", f"put {MANIFEST}"]
    assert_whole(store, dataset, files)


def test_a_missing_object_is_sent_again(store: ObservedStore, files: Path) -> None:
    dataset = upload(store, files)
    (store.folder / "datasets/small" / dataset.sha256 / TEST_IMAGES).unlink()
    upload(store, files)
    assert_whole(store, dataset, files)


def test_under_a_manifest_of_somebody_else_nothing_is_trusted(store: ObservedStore, files: Path) -> None:
    dataset = upload(store, files)
    (store.folder / "datasets/small" / dataset.sha256 / MANIFEST).write_bytes(b"{}")
    store.changes.clear()
    upload(store, files)
    assert len(store.changes) == 6
    assert_whole(store, dataset, files)


def test_an_upload_without_its_manifest_is_completed_by_sending_what_is_missing(
    store: ObservedStore, files: Path
) -> None:
    dataset = upload(store, files)
    stored = store.folder / "datasets/small" / dataset.sha256
    (stored / MANIFEST).unlink()
    (stored / TRAIN_IMAGES).unlink()
    store.changes.clear()
    upload(store, files)
    assert store.changes == [f"put {TRAIN_IMAGES}", f"put {MANIFEST}"]
    assert_whole(store, dataset, files)


def test_a_local_file_that_changed_leaves_the_data_set_without_a_manifest(
    store: ObservedStore, files: Path, tmp_path: Path
) -> None:
    told_of = entries(files)
    changed = tmp_path / "changed"
    write_small_dataset(changed, 60, 20, seed=1)
    with pytest.raises(ObjectStoreError, match="is not what it should be"):
        store_dataset("small", FolderFiles(changed, tuple(told_of)), store)
    assert f"put {MANIFEST}" not in store.changes
    assert not any(found.complete for found in list_datasets(store))


def test_what_was_there_and_disappears_during_the_upload_is_noticed_before_the_manifest(
    store: ObservedStore, files: Path
) -> None:
    class Sabotaged(ObservedStore):
        def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
            super().put_files(files, on_bytes)
            next(self.folder.rglob(TEST_IMAGES)).unlink()

    upload(store, files)
    for name in (MANIFEST, TRAIN_IMAGES):
        next(store.folder.rglob(name)).unlink()
    with pytest.raises(ObjectStoreError, match=rf"{TEST_IMAGES}: expected .* bytes, found nothing"):
        upload(Sabotaged(store.uri, store.folder), files)
    assert not list(store.folder.rglob(MANIFEST))


def test_two_uploads_at_once_end_whole(store: ObservedStore, files: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda overwrite: upload(ObjectStore(store.uri), files, overwrite), [False, True]))
    assert both[0] == both[1]
    assert_whole(store, both[0], files)


def test_the_store_lists_its_data_sets_with_digest_size_and_completeness(
    store: ObservedStore, files: Path, tmp_path: Path
) -> None:
    assert list_datasets(store) == []
    whole = upload(store, files)
    write_small_dataset(tmp_path / "other", 60, 20, seed=1)
    broken = upload(store, tmp_path / "other")
    (store.folder / "datasets/small" / broken.sha256 / TEST_IMAGES).unlink()
    found = {dataset.sha256: dataset for dataset in list_datasets(store)}
    assert {sha256: dataset.complete for sha256, dataset in found.items()} == {whole.sha256: True, broken.sha256: False}
    assert found[whole.sha256].uri == whole.uri
    assert found[whole.sha256].name == "small"
    assert found[whole.sha256].size == sum(entry.size for entry in entries(files))


# ---- broken off


UPLOAD = """
import logging, sys
from pathlib import Path
from infra.experiment_tracker import ExperimentTracker
from infra.object_store import ObjectStore
from infra.compute.runner.manifest import file_entry
from tasks.datasets.folder import FolderFiles
from tasks.datasets.stored import store_dataset
folder = Path(sys.argv[2])
store_dataset("big", FolderFiles(folder, tuple(map(file_entry, folder.iterdir()))), ObjectStore(sys.argv[1]))
"""


def big_files(folder: Path) -> list[FileEntry]:
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}").write_bytes(os.urandom(4 * 2**20))
    return [file_entry(path) for path in folder.iterdir()]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"60 s passed and not: {what}"
        time.sleep(0.005)


def test_an_upload_that_was_killed_is_completed_by_the_next(store: ObservedStore, tmp_path: Path) -> None:
    told_of = big_files(tmp_path / "big")
    stored = store.folder / "datasets/big" / files_sha256(told_of)

    def arrived() -> int:
        return len([path for path in stored.glob("*") if not path.name.startswith(".")])

    process = subprocess.Popen([sys.executable, "-c", UPLOAD, store.uri, str(tmp_path / "big")], cwd=ROOT)
    wait_until(lambda: arrived() >= 5 or process.poll() is not None, "five files have arrived")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    there = arrived()
    assert 5 <= there < 40
    assert not (stored / MANIFEST).exists()
    assert [dataset.complete for dataset in list_datasets(store)] == [False]

    dataset = store_dataset("big", FolderFiles(tmp_path / "big", tuple(told_of)), store)
    # A request that was under way at the kill may still have been completed by the server.
    assert 40 - there - 4 <= len(store.changes) - 1 <= 40 - there
    assert [(found.sha256, found.complete) for found in list_datasets(store)] == [(dataset.sha256, True)]
    assert all((stored / entry.name).read_bytes() == (tmp_path / "big" / entry.name).read_bytes() for entry in told_of)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_parts_leaves_no_manifest_and_the_next_upload_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(60 * 2**20))
    told_of = [file_entry(folder / "large")]
    with s3_server(tmp_path / "s3", "bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

        class DyingStore(ObjectStore):
            def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
                super().put_files(files, lambda count: server.kill())

        with pytest.raises(ObjectStoreUnreachable):
            store_dataset("large", FolderFiles(folder, tuple(told_of)), DyingStore("s3://bucket"))
        server.start()
        store = ObjectStore("s3://bucket")
        assert store.sizes("datasets") == {}
        dataset = store_dataset("large", FolderFiles(folder, tuple(told_of)), store)
        assert store.get_bytes(f"datasets/large/{dataset.sha256}/{MANIFEST}") == manifest_bytes(told_of)
        assert store.get_bytes(f"datasets/large/{dataset.sha256}/large") == (folder / "large").read_bytes()


# ---- the task


def services_for(tmp_path: Path, files: Path, store_uri: str) -> Services:
    write_catalog(tmp_path / "catalog.toml", files, "small")
    settings = load_settings(
        {
            "PIPELINE_HOME": str(tmp_path / "home"),
            "OBJECT_STORE_URI": store_uri,
            "DATASET_CATALOG": str(tmp_path / "catalog.toml"),
        }
    )
    return Services(settings, ExperimentTracker(settings))


def described(services: Services, files: Path) -> DatasetFiles:
    return DatasetFiles(describe_dataset("small", services.settings.dataset_catalog), files)


def test_the_task_stores_what_the_catalog_describes(tmp_path: Path, files: Path) -> None:
    services = services_for(tmp_path, files, (tmp_path / "store").as_uri())
    dataset = upload_dataset.fn(described(services, files), services)
    assert (tmp_path / "store/datasets/small" / dataset.sha256 / MANIFEST).read_bytes() == manifest_bytes(
        entries(files)
    )


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["unreachable", "no bucket"])
def test_the_task_tries_again_only_where_it_may_help(
    tmp_path: Path,
    files: Path,
    shared_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    prefect_api: str,
    prefect_home: Path,
    cause: str,
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    for name, value in shared_server.environment.items():
        monkeypatch.setenv(name, value)
    if cause == "unreachable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    services = services_for(tmp_path, files, "s3://no-such-bucket/p")
    attempts: list[int] = []

    @flow
    def uploading() -> None:
        from prefect.context import TaskRunContext

        class Counted(ObjectStore):
            def get_bytes(self, key: str) -> bytes | None:
                context = TaskRunContext.get()
                assert context is not None
                attempts.append(context.task_run.run_count)
                return super().get_bytes(key)

        monkeypatch.setattr("infra.services.ObjectStore", Counted)
        quick = upload_dataset.with_options(retries=1, retry_delay_seconds=0)
        quick(described(services, files), services)

    # Else this process would, when it ends, spend a minute on sending log lines to a server that has ended before.
    told = {PREFECT_API_URL: prefect_api, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(told), pytest.raises(ObjectStoreError):
        uploading()
    assert attempts == ([1, 2] if cause == "unreachable" else [1])


def test_importing_the_step_loads_no_s3_library_and_no_tensorflow() -> None:
    code = "import sys, tasks.upload_dataset\n"
    code += "print([m for m in ('s3fs', 'aiobotocore', 'botocore', 'tensorflow', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
