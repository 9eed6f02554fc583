"""Data sets of any files: what is one, what is refused, and their way to the store from folders and addresses."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flows.datasets import main as datasets_command
from infra.compute.runner.manifest import MANIFEST, file_entry, files_sha256, folder_entries, parse_manifest
from infra.digest_cache import DigestCache, file_version
from infra.errors import ArgumentError, DatasetNotFound, DatasetUnavailable, ObjectStoreError
from infra.object_store import ObjectStore
from infra.remote_folder import RemoteFile, RemoteFolder
from infra.services import Services
from infra.settings import load_settings
from tasks.datasets import folder as folder_module
from tasks.datasets.folder import describe_folder, list_folder
from tasks.datasets.names import check_dataset_name, wrong_names
from tasks.datasets.sources import DataSource, bring_to_store, resolve, resolve_all
from tasks.datasets.stored import list_datasets
from tests.http_server import serving
from tests.s3_server import S3Server, s3_server

ROOT = Path(__file__).parent.parent
OLD = time.time() - 3600


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def server(shared_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in shared_server.environment.items():
        monkeypatch.setenv(name, value)
    return shared_server


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid))}"
    server.make_bucket(name)
    return name


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def services(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    """With a store in a folder, and on a real S3 server."""
    store = f"s3://{request.getfixturevalue('bucket')}/a store" if request.param == "s3" else str(tmp_path / "a store")
    return services_for(tmp_path, store, monkeypatch)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    return services_for(tmp_path, str(tmp_path / "a store"), monkeypatch)


def services_for(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBJECT_STORE_URI", store)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # Data sets ask the settings and the store alone: a tracker would only start a process here.
    return Services(load_settings(), cast("object", SimpleNamespace()))  # type: ignore[arg-type]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with files, last changed long ago."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        age(path)
    return folder


def age(path: Path) -> None:
    os.utime(path, (OLD, OLD))


def cached(services: Services) -> DigestCache:
    return DigestCache(services.settings.home / "digests.sqlite")


@pytest.fixture
def no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes files for old that were written just now: the time of a change of an inode cannot be set back."""
    monkeypatch.setattr(folder_module, "_SECONDS_OF_DOUBT", -3600)


# ---- what is a data set


def test_a_folder_is_described_at_any_depth_without_what_others_leave(local: Services, tmp_path: Path) -> None:
    folder = write(tmp_path / "my data", {"b.csv": b"b", "deep/er/a.csv": b"a", "empty": b""})
    (folder / "again").symlink_to("deep/er/a.csv")
    expected = folder_entries(folder)
    write(folder, {".DS_Store": b"x", "deep/.gitignore": b"x", "deep/Thumbs.db": b"x", ".ipynb_checkpoints/x": b"x"})
    write(folder, {"sub/desktop.ini": b"x"})
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "b.csv").write_bytes(b"x")
    with cached(local) as cache:
        assert describe_folder(folder, cache) == expected
    assert [entry.name for entry in expected] == ["again", "b.csv", "deep/er/a.csv", "empty"]
    assert {".DS_Store", "__MACOSX/", "deep/Thumbs.db", "sub/desktop.ini"} <= set(list_folder(folder).left_out)


def test_what_cannot_be_a_data_set_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"a.csv": b"a", "sub/b.csv": b"b"})
    (tmp_path / "outside").write_bytes(b"x")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "to folder").symlink_to("sub")
    (folder / "A.csv").write_bytes(b"A")
    (folder / "line\nbreak").write_bytes(b"x")
    (folder / MANIFEST).write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ArgumentError) as told:
        list_folder(folder)
    for said in (
        "dangling: is a link to nowhere, where nothing is",
        "loop: is a link to loop",
        f"out: is a link out of the folder, to {tmp_path / 'outside'}",
        f"to folder: is a link to a folder, {folder / 'sub'}",
        "pipe: is neither a file nor a folder",
        "a.csv: is the same as A.csv where case",
        "'line\\nbreak': its name has a control character",
        f"{MANIFEST}: the store keeps the list of files under this name",
    ):
        assert said in str(told.value)
    assert "sub/b.csv" not in str(told.value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["Ä/x", "A\u0308/y"], "is the same as"),
        (["Cats/1.png", "cats/2.png"], "cats: is the same as Cats"),
        (["a\\b"], "backslash"),
        (["a\udcff"], "not in UTF-8"),
        (["a/" + "x" * 201], "longer than"),
        (["a//b"], "no path"),
        (["x?versionId=1"], "versionId"),
    ],
)
def test_names_that_are_not_the_same_everywhere_are_refused(names: list[str], reason: str) -> None:
    (wrong,) = wrong_names(names)
    assert reason in wrong
    assert wrong_names(["50%.png", "a b/[1]*#.txt", "Ä", "sub/manifest.json", "x" * 200]) == []


def test_an_empty_folder_one_that_is_not_there_and_a_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "only", {".DS_Store": b"x"})
    with pytest.raises(ArgumentError, match=r"has no file in it but what is left out: .DS_Store"):
        list_folder(tmp_path / "only")
    with pytest.raises(ArgumentError, match="is not there"):
        list_folder(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"is a file\. Name the folder"):
        list_folder(tmp_path / "only" / ".DS_Store")


def test_what_has_not_changed_is_not_read_again_and_what_has_is(
    local: Services, tmp_path: Path, no_doubt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "data", {"a": b"first", "b": b"other"})
    read: list[str] = []
    really = folder_module._read

    def noted(path: Path, name: str, *rest: object) -> object:
        read.append(name)
        return really(path, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_module, "_read", noted)

    def described() -> list[str]:
        read.clear()
        with cached(local) as cache:
            assert describe_folder(folder, cache) == folder_entries(folder)
        return read

    assert described() == ["a", "b"]
    assert described() == []
    # The same size, and the time set back: the inode's own time cannot be.
    write(folder, {"a": b"FIRST"})
    assert described() == ["a"]
    replaced = write(tmp_path / "new", {"b": b"OTHER"}) / "b"
    replaced.replace(folder / "b")
    assert described() == ["b"]
    (local.settings.home / "digests.sqlite").write_bytes(b"no database" * 1000)
    assert described() == ["a", "b"]
    assert described() == ["a", "b"], "it was only removed now"
    assert described() == []


def test_a_file_that_was_changed_just_now_is_read_again(local: Services, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"a": b"a"})
    with cached(local) as cache:
        describe_folder(folder, cache)
    found = (folder / "a").stat()
    with cached(local) as cache:
        assert cache.get(os.fsencode(folder / "a"), file_version(found)) is None


def test_a_file_that_changes_while_it_is_read_is_noticed(
    local: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "data", {"a": bytes(3 << 20)})

    # The moment between two reads cannot be met from outside.
    really = folder_module._read

    def overwrite(count: int) -> None:
        (folder / "a").write_bytes(bytes([1]) * (3 << 20))

    monkeypatch.setattr(folder_module, "_read", lambda path, name, cache, _: really(path, name, cache, overwrite))
    with cached(local) as cache, pytest.raises(DatasetUnavailable, match="was changed while"):
        describe_folder(folder, cache)


# ---- what --data means


def test_a_word_is_a_name_and_a_path_is_a_folder(local: Services, tmp_path: Path) -> None:
    write(Path("fashion"), {"a": b"a"})
    write(tmp_path / "other one", {"a": b"a"})
    assert resolve("./fashion", local) == DataSource("folder", str(Path("fashion").absolute()))
    assert resolve("fashion/", local).own_name == "fashion"
    assert resolve(f"file://{tmp_path}/other%20one", local).own_name == "other one"
    assert resolve(".", local).kind == "folder"
    assert resolve("mnist", local).kind == "catalog"
    with pytest.raises(ArgumentError, match=r"no data set 'fashion'(.|\n)*write ./fashion for it"):
        resolve("fashion", local)
    with pytest.raises(ArgumentError, match=r"Did you mean mnist\?\n.*Known: mnist, mnist-5k"):
        resolve("mnits", local)
    Path("mnist").mkdir()
    with pytest.raises(ArgumentError, match=r"Write ./mnist for the folder, or mnist@[0-9a-f]{12} for the data set"):
        resolve("mnist", local)
    digest = resolve("mnist-5k", local).description
    assert digest is not None
    assert resolve(f"mnist-5k@{digest.sha256[:12]}", local).kind == "catalog"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "is empty"),
        ("s3:/bucket/raw", r"Write s3://bucket/raw"),
        ("nothing://bucket/raw", "no protocol that fsspec knows"),
        ("s3://id:secret@bucket/raw", "has a login"),
        ("s3:///raw", "no folder's address"),
        ("https://host/raw?signature=secret", "no folder's address"),
        ("file://raw", "no whole path"),
        ("mnist@xyz", r"'xyz' is no beginning of a digest"),
        ("mnist@", "is no beginning of a digest"),
        ("mnist@0000", r"no data set mnist@0000. There is:\n  mnist@"),
        ("..@00", "There is no data set"),
    ],
)
def test_what_can_be_no_data_is_refused_with_what_to_write(local: Services, given: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason) as told:
        resolve(given, local)
    assert "secret" not in str(told.value)


def test_several_data_sets_have_names_of_their_own(local: Services) -> None:
    write(Path("a=b"), {"a": b"a"})
    write(Path("other"), {"a": b"b"})
    sources = resolve_all(["./a=b", "test=./other", "mnist"], local)
    assert list(sources) == ["a=b", "test", "mnist"]
    with pytest.raises(ArgumentError, match="two data sets other"):
        resolve_all(["./other", "other=mnist"], local)


def test_the_name_of_a_data_set_is_what_keys_and_terminals_take(local: Services) -> None:
    for good in ("my photos", "Straße (2024)", "A\u0308pfel", "fashion_v1.2"):
        check_dataset_name(good)
    assert check_dataset_name("A\u0308pfel") == "Äpfel"
    for bad in ("a/b", "a@b", "50%", "a?b", ".hidden", " a", "a ", "", "x" * 101, "a\nb", "[x]"):
        with pytest.raises(ArgumentError, match="--dataset-name"):
            check_dataset_name(bad)


# ---- to the store


def brought(given: str, services: Services, **how: object) -> str:
    """The digest under which the store has the data set now, whole."""
    dataset = bring_to_store(resolve(given, services), services, **how)  # type: ignore[arg-type]
    (stored,) = (one for one in list_datasets(services.store) if one.sha256 == dataset.sha256)
    assert stored.complete
    assert stored.uri == dataset.uri
    return dataset.sha256


def test_a_folder_is_stored_once_under_its_name_and_found_by_its_versions(
    services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(
        tmp_path / "my photos", {"a.csv": b"a", "deep/er/b.csv": b"b" * 6_000_000, "empty": b"", "50%*": b"c"}
    )
    first = brought(f"{folder}/", services)
    assert first == files_sha256(folder_entries(folder))
    assert services.store.get_bytes(f"datasets/my photos/{first}/deep/er/b.csv") == b"b" * 6_000_000
    assert services.store.get_bytes(f"datasets/my photos/{first}/empty") == b""
    assert services.store.get_bytes(f"datasets/my photos/{first}/50%*") == b"c"
    with caplog.at_level("INFO"):
        assert brought(str(folder), services) == first
    assert "nothing was sent" in caplog.text

    write(folder, {"a.csv": b"A"})
    second = brought(str(folder), services)
    assert (
        resolve(f"my photos@{first[:6]}", services).stored
        == list_datasets(services.store, "my photos")[sorted([first, second]).index(first)]
    )
    newest = resolve("my photos", services)
    assert newest.stored is not None
    assert newest.stored.moment is not None
    assert newest.own_name == "my photos"
    assert bring_to_store(newest, services).sha256 == newest.stored.sha256
    with pytest.raises(ArgumentError, match="has a name already"):
        bring_to_store(newest, services, "another")
    with pytest.raises(ArgumentError, match=r"my photos@0*. There is:\n  my photos@"):
        resolve("my photos@" + "0" * 64, services)
    with pytest.raises(ArgumentError, match="Did you mean my photos"):
        resolve("my photo", services)

    assert datasets_command([]) == 0
    table = capsys.readouterr().out
    assert f"my photos@{first[:12]}" in table
    assert "6.0" in table
    assert datasets_command(["--json", "--name", "my photos"]) == 0
    listed = json.loads(capsys.readouterr().out)["datasets"]
    assert {one["sha256"]: one["files"] for one in listed} == {first: 4, second: 4}
    assert datasets_command(["--delete", f"my photos@{first[:12]}"]) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert len(list_datasets(services.store)) == 2
    assert datasets_command(["--delete", f"my photos@{first[:12]}", "--yes"]) == 0
    assert [one.sha256 for one in list_datasets(services.store)] == [second]
    services.store.delete(f"datasets/my photos/{second}/{MANIFEST}")
    with pytest.raises(ArgumentError, match="broke off"):
        resolve("my photos", services)
    with pytest.raises(ArgumentError, match="broke off"):
        resolve(f"my photos@{second}", services)


def test_two_versions_that_begin_alike_are_told_apart(local: Services) -> None:
    for digest in ("ab" + "0" * 62, "ab" + "1" * 62):
        local.store.put_bytes(f"datasets/x/{digest}/file", b"1")
    with pytest.raises(ArgumentError, match=r"beginning of 2 digests:\n  x@ab0000000000(.|\n)*x@ab1111111111"):
        resolve("x@ab", local)
    with pytest.raises(ArgumentError, match="broke off"):
        resolve("x@ab0", local)


def test_the_store_is_not_uploaded_into_itself(local: Services, tmp_path: Path) -> None:
    write(tmp_path, {"a": b"a"})
    with pytest.raises(ArgumentError, match="holds the object store"):
        bring_to_store(resolve(str(tmp_path), local), local)


def test_a_folder_stays_in_place_and_its_manifest_says_where(services: Services, tmp_path: Path) -> None:
    folder = write(tmp_path / "large", {"deep/a": b"a"})
    digest = brought(str(folder), services, in_place=True)
    manifest = services.store.get_bytes(f"datasets/large/{digest}/{MANIFEST}")
    assert manifest is not None
    (entry,) = parse_manifest(manifest)
    assert entry.uri == f"file://{folder}/deep/a"
    assert (entry.size, entry.sha256) == (1, file_entry(folder / "deep/a").sha256)
    assert list(services.store.sizes("datasets")) == [f"large/{digest}/{MANIFEST}"]
    (stored,) = list_datasets(services.store)
    assert (stored.in_place, stored.in_folder, stored.files, stored.size) == (True, True, 1, 1)
    with pytest.raises(ArgumentError, match="--in-place is for"):
        bring_to_store(resolve("mnist", services), services, in_place=True)


@pytest.mark.slow
def test_what_lies_at_an_address_comes_to_the_store_and_is_read_once(
    services: Services, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make_bucket("raw-data")
    raw = write(
        server.folder / "raw-data" / "all of it", {"a.csv": b"a", "deep/large": os.urandom(12_000_000), "empty": b""}
    )
    write(raw, {".DS_Store": b"x"})
    expected = [entry for entry in folder_entries(raw) if entry.name != ".DS_Store"]
    read: list[str] = []
    sent: list[str] = []
    really_read, really_put = RemoteFolder.chunks, ObjectStore.put_files

    def chunks(folder: RemoteFolder, file: RemoteFile, chunk_bytes: int = 5 << 20) -> Iterator[bytes]:
        read.append(file.name)
        return really_read(folder, file, chunk_bytes)

    def put_files(store: ObjectStore, files: object, on_bytes: Callable[[int], None]) -> None:
        sent.append("streamed")
        really_put(store, files, on_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteFolder, "chunks", chunks)
    monkeypatch.setattr(ObjectStore, "put_files", put_files)
    digest = brought("s3://raw-data/all of it", services)
    assert digest == files_sha256(expected)
    for entry in expected:
        there = services.store.get_bytes(f"datasets/all of it/{digest}/{entry.name}")
        assert there == (raw / entry.name).read_bytes()
    in_s3 = services.store.uri.startswith("s3:")
    assert sent == ([] if in_s3 else ["streamed"]), "a store copies by itself what lies in it"
    assert len(read) == (3 if in_s3 else 6)
    read.clear()
    assert brought("s3://raw-data/all of it/", services) == digest
    assert read == [], "its server says the same of it as before"
    (raw / "a.csv").write_bytes(b"A")
    assert brought("s3://raw-data/all of it", services, in_place=True) != digest
    assert read == ["a.csv"]
    (in_place,) = (one for one in list_datasets(services.store) if one.in_place)
    assert not in_place.in_folder
    manifest = services.store.get_bytes(f"datasets/all of it/{in_place.sha256}/{MANIFEST}")
    assert manifest is not None
    assert {entry.uri for entry in parse_manifest(manifest)} == {
        f"s3://raw-data/all of it/{name}" for name in ("a.csv", "deep/large", "empty")
    }


@pytest.mark.slow
def test_what_a_server_cannot_copy_in_parts_is_streamed(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make_bucket("large")
    raw = write(server.folder / "large" / "raw", {"a": os.urandom(6_000_000), "b": b"b"})
    monkeypatch.setattr("s3fs.core.MANAGED_COPY_THRESHOLD", 5_000_000)
    services = services_for(tmp_path, f"s3://{bucket}", monkeypatch)
    digest = brought("s3://large/raw", services)
    assert services.store.get_bytes(f"datasets/raw/{digest}/a") == (raw / "a").read_bytes()


@pytest.mark.slow
def test_a_file_at_an_address_that_changes_after_it_was_read_leaves_nothing(
    services: Services, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make_bucket("changing")
    raw = write(server.folder / "changing" / "raw", {"a": b"first", "b": b"other"})
    source = resolve("s3://changing/raw", services)
    really = ObjectStore.sizes

    # What happens between the reading and the copying cannot be timed from outside.
    def sizes(store: ObjectStore, prefix: str) -> dict[str, int]:
        (raw / "a").write_bytes(b"FIRST")
        return really(store, prefix)

    monkeypatch.setattr(ObjectStore, "sizes", sizes)
    with pytest.raises((DatasetUnavailable, ObjectStoreError)):
        bring_to_store(source, services)
    monkeypatch.undo()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert [key for key in services.store.sizes("datasets") if key.endswith(("/a", MANIFEST))] == []


@pytest.mark.slow
def test_an_address_with_nothing_to_take_is_refused(local: Services, server: S3Server) -> None:
    server.make_bucket("nearly-empty")
    write(server.folder / "nearly-empty", {"one/file": b"1", "twice/A": b"1", "twice/a": b"2"})
    with pytest.raises(ArgumentError, match="no file under s3://nearly-empty/nothing"):
        resolve("s3://nearly-empty/nothing", local)
    with pytest.raises(ObjectStoreError, match=r"no bucket no-such-bucket(.|\n)*correct the address"):
        resolve("s3://no-such-bucket/raw", local)
    with pytest.raises(ArgumentError, match="a: is the same as A"):
        resolve("s3://nearly-empty/twice", local)
    with pytest.raises(DatasetNotFound, match="is a single file"):
        resolve("s3://nearly-empty/one/file", local)
    os.environ["AWS_SECRET_ACCESS_KEY"] = "wrong"
    with pytest.raises(ObjectStoreError, match="AWS_SECRET_ACCESS_KEY"):
        resolve("s3://nearly-empty/one", local)


def test_a_web_server_that_lists_its_folders_is_an_address(local: Services, tmp_path: Path) -> None:
    raw = write(tmp_path / "web" / "raw", {"deep/b.csv": b"b" * 100, "a b": b"a"})
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(tmp_path / "web")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split(" port ")[1].split()[0]
            assert brought(f"http://127.0.0.1:{port}/raw", local) == files_sha256(folder_entries(raw))
            with pytest.raises(ArgumentError, match="no file under"):
                resolve(f"http://127.0.0.1:{port}/nowhere", local)
        finally:
            process.kill()
    with pytest.raises(DatasetUnavailable):
        resolve(f"http://127.0.0.1:{port}/raw", local)


# ---- the catalog


def test_a_data_set_of_the_catalog_may_have_any_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "wine", {"a.csv": b"a", "deep/my table": b"b" * 1000, "empty": b""})
    lines = [f'"{one.name}" = {{ size = {one.size}, sha256 = "{one.sha256}" }}' for one in folder_entries(folder)]
    with serving({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}) as web:
        mirrors = f'mirrors = ["{web.address}", "{folder}"]'
        catalog = tmp_path / "catalog.toml"
        catalog.write_text("\n".join(("[wine]", mirrors, "[wine.files]", *lines)))
        monkeypatch.setenv("DATASET_CATALOG", str(catalog))
        # It holds MNIST's files, and says nothing of others.
        monkeypatch.setenv("MNIST_MIRRORS", str(tmp_path))
        services = services_for(tmp_path, str(tmp_path / "store"), monkeypatch)
        digest = brought("wine", services)
        assert digest == files_sha256(folder_entries(folder))
        assert "a.csv" in {name for name, _ in web.requests}
    with caplog.at_level("INFO"):
        assert brought("wine", services) == digest
    assert "nothing was downloaded" in caplog.text
    for wrong, reason in (
        ('format = "csv"\n', "format is 'csv', expected 'idx' or 'files'"),
        ("training_images = 5\n", "lacks test_images"),
    ):
        catalog.write_text("\n".join(("[wine]", wrong, mirrors, "[wine.files]", *lines)))
        with pytest.raises(Exception, match=reason):
            resolve("wine", services)
    catalog.write_text("\n".join(("[wine]", "[wine.files]", lines[0].replace("a.csv", "../a"))))
    with pytest.raises(Exception, match="no path in a folder"):
        resolve("wine", services)
