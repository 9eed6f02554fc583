"""The object store: one suite for a folder and for a real S3 server, then what each can go wrong with."""

import fcntl
import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import remote_store
from infra.errors import ObjectStoreError, ObjectStoreUnreachable
from infra.object_store import ObjectStore, SourceFile
from tests.s3_server import KEY_ID, SECRET, S3Server, free_port, s3_server

ROOT = Path(__file__).parent.parent
MIB = 2**20


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def server(shared_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in shared_server.environment.items():
        monkeypatch.setenv(name, value)
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with the bucket `bucket` that a test may stop and kill."""
    with s3_server(tmp_path / "s3", "bucket") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A bucket of this test's own."""
    name = f"b{abs(hash(request.node.nodeid))}"
    server.make_bucket(name)
    return name


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return ObjectStore((tmp_path / "a store").as_uri())
    return ObjectStore(f"s3://{request.getfixturevalue('bucket')}/some/prefix")


def source(path: Path, data: bytes) -> SourceFile:
    path.write_bytes(data)
    return SourceFile(path, len(data), hashlib.sha256(data).hexdigest())


# ---- what every store does


def test_what_was_put_is_read_back(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"data")
    assert store.get_bytes("a/b") == b"data"


def test_an_object_that_is_not_there_reads_as_none(store: ObjectStore) -> None:
    assert store.get_bytes("a/b") is None


def test_files_small_large_and_empty_arrive_as_they_are(store: ObjectStore, tmp_path: Path) -> None:
    contents = {"empty": b"", "small": os.urandom(1000), "edge": os.urandom(5 * MIB), "large": os.urandom(17 * MIB + 3)}
    sent: list[int] = []
    store.put_files(((f"p/{name}", source(tmp_path / name, data)) for name, data in contents.items()), sent.append)
    assert store.sizes("p") == {name: len(data) for name, data in contents.items()}
    assert {name: store.get_bytes(f"p/{name}") == data for name, data in contents.items()} == dict.fromkeys(
        contents, True
    )
    assert sum(sent) == sum(map(len, contents.values()))


def test_more_files_than_requests_at_once_all_arrive(store: ObjectStore, tmp_path: Path) -> None:
    store.put_files(((f"p/{n}", source(tmp_path / str(n), b"x" * n)) for n in range(30)), lambda count: None)
    assert store.sizes("p") == {str(n): n for n in range(30)}


def test_a_listing_shows_what_another_process_just_did(store: ObjectStore) -> None:
    assert store.sizes("p") == {}
    other = ObjectStore(store.uri)
    other.put_bytes("p/a", b"1")
    assert store.sizes("p") == {"a": 1}
    other.put_bytes("p/a", b"333")
    other.put_bytes("p/deep/b", b"22")
    assert store.sizes("p") == {"a": 3, "deep/b": 2}
    other.delete("p/a")
    assert store.sizes("p") == {"deep/b": 2}


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(store: ObjectStore) -> None:
    store.put_bytes("p/a", b"1")
    store.put_bytes("p2/b", b"2")
    assert store.sizes("p") == {"a": 1}


def test_deleting_what_is_not_there_is_no_error(store: ObjectStore) -> None:
    store.delete("p/a")


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_file_that_is_not_what_it_should_be_is_not_stored(store: ObjectStore, tmp_path: Path, size: int) -> None:
    good = source(tmp_path / "file", os.urandom(size))
    good.path.write_bytes(os.urandom(size))
    with pytest.raises(ObjectStoreError, match="is not what it should be") as told:
        store.put_files([("p/file", good)], lambda count: None)
    assert good.sha256 in str(told.value)
    assert store.sizes("p") == {}
    assert unfinished_uploads(store) == []


def test_a_file_that_is_gone_is_told(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreError, match="nowhere cannot be read"):
        store.put_files([("p/file", SourceFile(tmp_path / "nowhere", 1, "0" * 64))], lambda count: None)


# ---- a folder


def test_a_folder_has_nothing_half_written_under_its_name(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri() + "/store")
    file = source(tmp_path / "file", os.urandom(12 * MIB))
    seen: list[tuple[bool, dict[str, int]]] = []
    store.put_files([("p/file", file)], lambda n: seen.append(((tmp_path / "store/p/file").exists(), store.sizes("p"))))
    assert seen == [(False, {})] * 3
    assert [path.name for path in (tmp_path / "store/p").iterdir()] == ["file"]


def test_a_folder_keeps_the_unfinished_files_of_the_living_and_loses_those_of_the_dead(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    (tmp_path / "p").mkdir()
    dead, living = tmp_path / "p/.file.0123.part", tmp_path / "p/.file.4567.part"
    for path in (dead, living):
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    with living.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.discard_unfinished("p")
    assert (dead.exists(), living.exists()) == (False, True)


def test_what_a_folder_is_being_sent_is_not_taken_for_a_dead_ones(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri() + "/store")
    file = source(tmp_path / "file", os.urandom(12 * MIB))
    store.put_files([("p/file", file)], lambda n: ObjectStore(store.uri).discard_unfinished("p", -1))
    assert store.sizes("p") == {"file": 12 * MIB}


def test_a_file_that_was_taken_for_a_dead_ones_before_it_was_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The moment between open() and flock() cannot be met from outside: the first lock comes too late here.
    late: list[Path] = []

    def flock(descriptor: object, operation: int) -> None:
        if not late:
            late.extend(tmp_path.rglob("*.part"))
            late[0].unlink()

    monkeypatch.setattr("infra.object_store.fcntl.flock", flock)
    store = ObjectStore(tmp_path.as_uri())
    store.put_bytes("a", b"1")
    assert (len(late), store.get_bytes("a")) == (1, b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_goes_with_its_last_object_and_whoever_writes_there_finds_it_again(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())

    def write_and_delete(name: str) -> None:
        for _ in range(200):
            store.put_bytes(f"runs/a/b/{name}", b"1")
            store.sizes("runs")
            store.delete(f"runs/a/b/{name}")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write_and_delete, ["1", "2", "3"]))
    store.put_bytes("runs/a/1", b"1")
    store.put_bytes("runs/a/b/2", b"1")
    store.delete("runs/a/b/2")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["runs", "a", "1"]
    store.delete("runs/a/1")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_with_a_space_is_that_folder(tmp_path: Path) -> None:
    store = ObjectStore((tmp_path / "my store").as_uri())
    store.put_bytes("a", b"1")
    assert (tmp_path / "my store" / "a").read_bytes() == b"1"
    assert store.uri == f"file://{tmp_path}/my store"


def limited_write(folder: Path, file_bytes: int) -> str:
    """What a process says that may write no file longer than `file_bytes`: the kernel refuses, as a full disk does."""
    code = (
        "import resource, signal, sys; from infra.object_store import ObjectStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))\n"
        f"ObjectStore({str(folder)!r}).put_bytes('p/file', bytes(100_000))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_a_write_that_the_disk_refuses_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    said = limited_write(tmp_path, resource.getpagesize())
    assert "ObjectStoreError" in said
    assert "could not write p/file" in said
    assert "OBJECT_STORE_URI" in said
    assert list((tmp_path / "p").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path.as_uri())
    monkeypatch.setattr("secrets.token_hex", lambda size: "full")
    (tmp_path / ".file.full.part").symlink_to("/dev/full")
    with pytest.raises(ObjectStoreError, match=r"No space left on device.*\n.*Make room") as told:
        store.put_bytes("file", b"data")
    assert not isinstance(told.value, ObjectStoreUnreachable)


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ObjectStoreError, match=r"(?s)could not write p/file.*OBJECT_STORE_URI"):
        ObjectStore((tmp_path / "store").as_uri()).put_bytes("p/file", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ObjectStoreError, match="Correct the rights"):
        ObjectStore(tmp_path.as_uri()).put_bytes("p/file", b"")


def test_a_folder_store_loads_no_s3_library() -> None:
    code = "import sys; from infra.object_store import ObjectStore; ObjectStore('/tmp/x').sizes('p')\n"
    code += "print([m for m in ('s3fs', 'botocore', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- S3


def unfinished_uploads(store: ObjectStore) -> list[str]:
    if not store.uri.startswith("s3://"):
        return []
    import s3fs

    bucket = store.uri.removeprefix("s3://").partition("/")[0]
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    try:
        return [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])]
    except FileNotFoundError:  # What rclone answers for a bucket that never had one.
        return []


def assert_tells_no_secret(error: BaseException) -> None:
    whole = "".join(traceback.format_exception(error))
    for secret in (KEY_ID, SECRET, "wrong-secret", "wrong-key-id", "Signature=", "Credential="):
        assert secret not in whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "wrong-key-id")]
)
def test_a_wrong_key_is_told_with_its_variable_and_without_the_key(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, value)
    store = ObjectStore(f"s3://{bucket}/p")
    for attempt in (
        lambda: store.put_bytes("a", b""),
        lambda: store.get_bytes("a"),
        lambda: store.sizes("a"),
        lambda: store.put_files([("a", source(tmp_path / "a", b"1"))], print),
        # The refusal comes while the body is still on its way.
        lambda: store.put_files([("a", source(tmp_path / "a", bytes(5 * MIB)))], print),
        lambda: store.put_files([("a", source(tmp_path / "a", bytes(6 * MIB)))], print),
    ):
        with pytest.raises(ObjectStoreError) as told:
            attempt()
        assert not isinstance(told.value, ObjectStoreUnreachable)
        for part in (variable, server.endpoint, bucket):
            assert part in str(told.value)
        assert_tells_no_secret(told.value)


@pytest.mark.slow
def test_missing_keys_are_told(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ObjectStoreError, match="AWS_ACCESS_KEY_ID"):
        ObjectStore(f"s3://{bucket}/p").get_bytes("a")


@pytest.mark.slow
def test_a_missing_bucket_is_told_and_not_created(server: S3Server) -> None:
    store = ObjectStore("s3://no-such-bucket/p")
    with pytest.raises(ObjectStoreError, match=r"(?s)there is no bucket no-such-bucket.*OBJECT_STORE_URI") as told:
        store.put_bytes("a", b"")
    assert not isinstance(told.value, ObjectStoreUnreachable)
    with pytest.raises(ObjectStoreError, match="there is no bucket no-such-bucket"):
        store.sizes("a")
    with pytest.raises(ObjectStoreError, match="there is no bucket no-such-bucket"):
        store.get_bytes("a")
    assert not (server.folder / "no-such-bucket").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:{port}", "nothing listens there"),
        ("http://no-such-host.invalid:{port}", "no host of that name"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_with_its_address(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, endpoint: str, reason: str
) -> None:
    address = endpoint.format(port=free_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(ObjectStoreUnreachable) as told:
        ObjectStore("s3://bucket/p").get_bytes("a")
    assert address in str(told.value)
    assert reason in str(told.value)
    assert "AWS_ENDPOINT_URL" in str(told.value)
    assert_tells_no_secret(told.value)


@pytest.mark.slow
def test_an_endpoint_that_is_no_address_is_told(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not an address")
    with pytest.raises(ObjectStoreError, match="AWS_ENDPOINT_URL is not the address of a server"):
        ObjectStore("s3://bucket/p").get_bytes("a")


@pytest.mark.slow
def test_a_connection_that_closes_without_an_answer_is_unreachable(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")

        def close_every_connection() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=close_every_connection, daemon=True).start()
        with pytest.raises(ObjectStoreUnreachable, match="the connection broke off"):
            ObjectStore("s3://bucket/p").get_bytes("a")
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_an_upload_in_parts_that_was_killed_counts_for_nothing_and_is_freed(bucket: str) -> None:
    store = ObjectStore(f"s3://{bucket}/p")
    store._backend._fs.call_s3("create_multipart_upload", Bucket=bucket, Key="p/a")  # type: ignore[union-attr]
    assert store.sizes("") == {}
    store.discard_unfinished("")
    assert unfinished_uploads(store) == ["p/a"], "one that may still be alive is left alone"
    store.discard_unfinished("", older_than_seconds=-1)
    assert unfinished_uploads(store) == []


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_parts_is_told_and_the_next_attempt_succeeds(
    tmp_path: Path, own_server: S3Server
) -> None:
    file = source(tmp_path / "file", os.urandom(40 * MIB))
    store = ObjectStore("s3://bucket/p")
    with pytest.raises(ObjectStoreUnreachable) as told:
        store.put_files([("file", file)], lambda count: own_server.kill())
    assert own_server.endpoint in str(told.value)
    own_server.start()
    assert store.sizes("") == {}
    store.put_files([("file", file)], lambda count: None)
    assert store.get_bytes("file") == file.path.read_bytes()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_at_once_is_no_more_than_a_pause(
    tmp_path: Path, own_server: S3Server
) -> None:
    files = [(f"p/{n}", source(tmp_path / str(n), os.urandom(MIB))) for n in range(40)]
    sent: list[int] = []

    def break_once(count: int) -> None:
        sent.append(count)
        if len(sent) == 10:
            own_server.kill()
            own_server.start()

    ObjectStore("s3://bucket").put_files(files, break_once)
    assert ObjectStore("s3://bucket").sizes("p") == {str(n): MIB for n in range(40)}


@pytest.mark.slow
def test_a_large_file_is_begun_again_at_a_server_that_has_lost_what_it_had_of_it(
    tmp_path: Path, own_server: S3Server
) -> None:
    file = source(tmp_path / "file", os.urandom(40 * MIB))
    sent: list[int] = []

    def break_once(count: int) -> None:
        sent.append(count)
        if len(sent) == 1:
            own_server.kill()
            own_server.start()

    store = ObjectStore("s3://bucket")
    store.put_files([("p/file", file)], break_once)
    assert store.get_bytes("p/file") == file.path.read_bytes()
    assert min(sent) < 0, "what was lost is taken back"
    assert sum(sent) == 40 * MIB


@pytest.mark.slow
def test_a_part_that_a_busy_server_takes_long_over_is_waited_for_and_not_sent_again(
    tmp_path: Path, own_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sent again while its first copy is still being written, it counts as done, and the upload ends in InvalidPart.
    monkeypatch.setitem(remote_store._S3_CONFIG, "read_timeout", 1)
    monkeypatch.setitem(remote_store._S3_CONFIG, "retries", {"total_max_attempts": 1})
    file = source(tmp_path / "file", os.urandom(40 * MIB))
    sent: list[int] = []

    def be_busy_once(count: int) -> None:
        sent.append(count)
        if len(sent) == 1:
            own_server.stop()
            threading.Timer(4, own_server.go_on).start()

    store = ObjectStore("s3://bucket")
    store.put_files([("p/file", file)], be_busy_once)
    assert min(sent) > 0
    assert store.sizes("p") == {"file": 40 * MIB}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_file_that_changes_while_it_is_sent_is_not_stored(bucket: str, tmp_path: Path, size: int) -> None:
    store = ObjectStore(f"s3://{bucket}")
    file = source(tmp_path / "file", bytes(size))
    with pytest.raises(ObjectStoreError, match="was changed while it was sent"):
        store.put_files([("p/file", file)], lambda count: file.path.touch())
    assert store.sizes("p") == {}


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_within_a_minute(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = remote_store._S3_CONFIG
    attempts = options["retries"]["total_max_attempts"]
    assert attempts * max(options["connect_timeout"], options["read_timeout"]) <= 50
    monkeypatch.setitem(options, "read_timeout", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ObjectStoreUnreachable, match="it does not answer"):
            ObjectStore("s3://bucket/p").get_bytes("a")
        assert time.monotonic() - started < 1 * attempts + 8
