"""The lease: one has it, of threads that stand for machines and of processes; in a folder and on a real S3 server."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import LeaseLost
from infra.lease import Claims, Lease, claimant, hold_lease
from infra.object_store import ObjectStore
from tests.pipeline import ROOT, wait_until
from tests.s3_server import S3Server, s3_server

HOLD_ONE = """
import sys
from infra.lease import Lease, hold_lease
from infra.errors import LeaseLost
from infra.object_store import ObjectStore
with hold_lease(Lease(ObjectStore(sys.argv[1]), "training", sys.argv[2], float(sys.argv[3])), print) as lease:
    print("has it", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
    except LeaseLost as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "ObservedStore":
    if request.param == "folder":
        return ObservedStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid))}"
    server.make_bucket(bucket)
    return ObservedStore(f"s3://{bucket}/prefix")


class ObservedStore(ObjectStore):
    """The store itself, that notes what the thread of the test asks of it."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.asked: list[str] = []
        self._of = threading.get_ident()

    def _note(self, what: str) -> None:
        if threading.get_ident() == self._of:
            self.asked.append(what)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._note("put")
        super().put_bytes(key, data)

    def get_bytes(self, key: str) -> bytes | None:
        self._note("get")
        return super().get_bytes(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        self._note("list")
        return super().sizes(prefix)


def nobody(holder: str) -> None:
    pytest.fail(f"waited for {holder}")


@contextlib.contextmanager
def other_process(store: ObjectStore, who: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lease, until it reads a line."""
    command = [sys.executable, "-c", HOLD_ONE, store.uri, who, str(seconds)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_who_is_alone_has_it_for_one_put_and_one_list(store: ObservedStore) -> None:
    with hold_lease(Lease(store, "training", "a"), nobody) as lease:
        assert store.asked == ["put", "list"]
        assert store.uri in lease.uri
        lease.check()
        with hold_lease(Lease(store, "another", "b"), nobody):
            pass
    assert store.sizes("leases") == {}


def test_of_many_at_once_one_has_it_at_a_time_and_all_get_it(store: ObservedStore) -> None:
    inside: list[str] = []
    waited: list[str] = []
    start = threading.Barrier(5)

    def machine(who: str) -> None:
        start.wait()
        with hold_lease(Lease(ObjectStore(store.uri), "training", who, seconds=3), waited.append):
            inside.append(who)
            assert inside == [who]
            time.sleep(0.1)
            assert inside == [who]
            inside.remove(who)

    with ThreadPoolExecutor(5) as machines:
        list(machines.map(machine, "abcde"))
    assert len(waited) >= 4
    assert "process" in waited[0]
    assert store.sizes("leases") == {}


def test_a_claim_can_be_seen_in_every_moment_in_which_it_is_renewed(store: ObservedStore) -> None:
    with hold_lease(Lease(ObjectStore(store.uri), "training", "a", seconds=0.06), nobody) as lease:
        claims = Claims(store)
        for _ in range(400):
            assert list(claims.of("training")) == [lease.name]
        assert claims.undecided() == [], "it was not renewed meanwhile"


def test_a_killed_holder_is_followed_by_its_own_machine_at_once_and_by_others_when_it_has_expired(
    store: ObservedStore,
) -> None:
    seconds = 2.0
    with other_process(store, "a", seconds) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hold_lease(Lease(store, "training", "a", seconds), nobody) as lease:
        assert lease.follows("a.an-earlier-one")
    with other_process(store, "a", seconds) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    began = time.monotonic()
    told: list[str] = []
    with hold_lease(Lease(store, "training", "b", seconds), told.append) as lease:
        assert time.monotonic() - began >= seconds
        assert lease.follows("a.an-earlier-one")
        assert not lease.follows("c.one-never-seen-here")
    assert len(told) == 1
    assert f"process {process.pid}, since" in told[0]


def test_a_claim_of_the_same_name_is_there_all_the_while(store: ObservedStore) -> None:
    with other_process(store, "a.the-job", 60) as process:
        (name,) = Claims(store).of("training")
        assert name == "a.the-job"
        process.send_signal(signal.SIGKILL)
        process.wait()
    deleted: list[str] = []

    class Watched(ObjectStore):
        def delete(self, key: str) -> None:
            deleted.append(key)
            super().delete(key)

    with hold_lease(Lease(Watched(store.uri), "training", "a.the-job", seconds=0.06), nobody) as lease:
        assert lease.uri.endswith("/training.a.the-job")
        claims = Claims(store)
        wait_until(lambda: len(deleted) > 3, 10, "signs of life")
        # Of the dead one nothing hides that it lives.
        for _ in range(50):
            assert list(claims.of("training")) == ["a.the-job"]
        wait_until(
            lambda: bool(claims.of("training")) and not claims.undecided(), 10, "a sign of life between two looks"
        )
        lease.check()
        assert "leases/training.a.the-job" not in deleted
    assert store.sizes("leases") == {}
    # Whoever has none of that name takes it away at once: what it left running ends.
    with other_process(store, "a.the-job", 60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hold_lease(Lease(store, "training", "a"), nobody):
        assert "a.the-job" not in Claims(store).of("training")


def test_a_living_holder_is_waited_for_longer_than_a_lease_lasts(store: ObservedStore) -> None:
    with other_process(store, "a", 1.0) as process:
        looks = 0

        def look(seconds: float) -> None:
            nonlocal looks
            time.sleep(seconds)
            looks += 1
            if looks == 20:  # Of a sixth of a second each.
                assert process.poll() is None
                process.communicate("\n")

        with hold_lease(Lease(store, "training", "b", 1.0), lambda holder: None, look):
            assert looks >= 20


def test_who_was_stopped_too_long_learns_that_another_has_taken_over(store: ObservedStore) -> None:
    with other_process(store, "a", 1.0) as process:
        process.send_signal(signal.SIGSTOP)
        with hold_lease(Lease(store, "training", "b", 1.0), lambda holder: None) as lease:
            process.send_signal(signal.SIGCONT)
            said, _ = process.communicate("\n")
            assert "another one has taken it over" in said
            lease.check()
        lost = Lease(store, "training", "c", 0.0)
        with pytest.raises(LeaseLost, match="Run the same command again"):
            lost.check()


def test_claims_are_told_dead_or_alive_by_watching(store: ObservedStore) -> None:
    claims = Claims(store)
    with other_process(store, "a", 1.0) as process:
        (name,) = claims.of("training")

        def decided() -> bool:
            claims.of("training")
            return claims.undecided() == []

        wait_until(decided, 10, "a sign of life")
        assert not claims.is_dead(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
    claims.forget()
    claims.of("training")
    assert not claims.is_dead(name)
    wait_until(decided, 10, "its end")
    assert claims.is_dead(name)


def test_claimants_differ_where_the_locks_do(tmp_path: Path) -> None:
    here, copy = tmp_path / "home", tmp_path / "copy"
    assert claimant(here) == claimant(here)
    assert claimant(here) != claimant(copy)
    assert claimant(here) == claimant(here.rename(tmp_path / "moved"))
