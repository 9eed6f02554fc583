"""Fetching one file: what is resumed, what is refused, and what is left in the folder."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.mirror import (
    Limits,
    MirrorFile,
    MirrorInterrupted,
    MirrorMismatch,
    MirrorRefused,
    MirrorUnreachable,
    fetch_file,
    file_address,
)
from tests.http_server import Behaviour, HttpServer, refusing, serving

DATA = os.urandom(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
LIMITS = Limits(answer_seconds=5, stall_seconds=5, pause_seconds=0.01)
IMPATIENT = Limits(answer_seconds=0.3, stall_seconds=0.3, attempts=2, pause_seconds=0.01)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving({"file": DATA}) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "file"


def fetch(server: HttpServer, target: Path, limits: Limits = LIMITS) -> None:
    fetch_file(MirrorFile(server.address + "file", len(DATA), SHA256, limits), target)


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_arrives_whole_in_one_request(server: HttpServer, target: Path) -> None:
    seen: list[int] = []
    fetch_file(MirrorFile(server.address + "file", len(DATA), SHA256, LIMITS), target, report=seen.append)
    assert target.read_bytes() == DATA
    assert names(target) == ["file"]
    assert server.requests_for("file") == [None]
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


def test_after_a_break_only_the_rest_is_asked_for(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(break_after=300_000, times=2)
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests_for("file") == [None, "bytes=300000-", "bytes=600000-"]
    assert server.sent == len(DATA)


def test_a_server_without_ranges_sends_the_file_again_after_a_break(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(break_after=300_000, ranges=False, times=1)
    server_keeps_refusing_ranges = Behaviour(ranges=False)

    def then_behave(have: int) -> None:
        if have == 300_000:
            server.behaviour["file"] = server_keeps_refusing_ranges

    fetch_file(MirrorFile(server.address + "file", len(DATA), SHA256, LIMITS), target, report=then_behave)
    assert target.read_bytes() == DATA
    assert server.requests_for("file") == [None, "bytes=300000-"]
    assert server.sent == 300_000 + len(DATA)


def test_a_range_that_begins_elsewhere_is_not_appended(server: HttpServer, target: Path) -> None:
    target.with_name("file.part").write_bytes(DATA[:1000])
    server.behaviour["file"] = Behaviour(shift=5)
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests_for("file") == ["bytes=1000-", None]


def test_what_an_earlier_process_left_is_continued(server: HttpServer, target: Path) -> None:
    target.with_name("file.part").write_bytes(DATA[:700_000])
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests_for("file") == ["bytes=700000-"]
    assert names(target) == ["file"]


def test_a_whole_part_needs_no_request(server: HttpServer, target: Path) -> None:
    target.with_name("file.part").write_bytes(DATA)
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests == []


@pytest.mark.parametrize("size", [400_000, len(DATA), len(DATA) + 7])
def test_a_part_of_another_file_is_fetched_again_from_the_start(server: HttpServer, target: Path, size: int) -> None:
    target.with_name("file.part").write_bytes(bytes(size))
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert server.requests_for("file")[-1] is None
    assert names(target) == ["file"]


def test_a_wrong_digest_is_refused_after_one_request_and_nothing_is_kept(server: HttpServer, target: Path) -> None:
    server.files["file"] = b"<" + DATA[1:]
    with pytest.raises(MirrorMismatch, match=f"has SHA-256 [0-9a-f]{{64}}, expected {SHA256} .*like a web page"):
        fetch(server, target)
    assert server.requests_for("file") == [None]
    assert names(target) == []


def test_a_resumed_file_with_a_wrong_digest_is_fetched_clean_only_once(server: HttpServer, target: Path) -> None:
    target.with_name("file.part").write_bytes(bytes(1000))
    server.files["file"] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(MirrorMismatch, match="SHA-256"):
        fetch(server, target)
    assert server.requests_for("file") == ["bytes=1000-", None]
    assert names(target) == []


def test_what_the_check_refuses_is_not_kept(server: HttpServer, target: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise MirrorMismatch("is not what it should be")

    with pytest.raises(MirrorMismatch, match="not what it should be"):
        fetch_file(MirrorFile(server.address + "file", len(DATA), SHA256, LIMITS), target, check=refuse)
    assert names(target) == []


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b"<html>Sign in</html>"], ids=["short", "long", "page"])
def test_a_file_of_another_length_is_refused_unread(server: HttpServer, target: Path, data: bytes) -> None:
    server.files["file"] = data
    server.behaviour["file"] = Behaviour(content_type="text/html")
    with pytest.raises(MirrorMismatch, match=rf"a file of {len(data)} bytes \(text/html\), expected 1,000,000 bytes"):
        fetch(server, target)
    assert server.requests_for("file") == [None]
    assert names(target) == []


def test_a_page_of_unannounced_length_is_named_as_one(server: HttpServer, target: Path) -> None:
    server.files["file"] = b"<html>Sign in</html>"
    server.behaviour["file"] = Behaviour(length=False)
    with pytest.raises(MirrorMismatch, match=r"truncated: ends after 20 of 1,000,000 bytes .*like a web page"):
        fetch(server, target)
    assert names(target) == []


def test_reading_stops_soon_after_the_expected_size(server: HttpServer, target: Path) -> None:
    server.files["file"] = DATA + bytes(200_000_000)
    server.behaviour["file"] = Behaviour(length=False)
    with pytest.raises(MirrorMismatch, match="sends more than the 1,000,000 bytes expected"):
        fetch(server, target)
    assert server.sent < 50_000_000
    assert names(target) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_named_and_not_repeated(server: HttpServer, target: Path, status: int) -> None:
    server.behaviour["file"] = Behaviour(status=status)
    with pytest.raises(MirrorRefused, match=f"answered {status} "):
        fetch(server, target)
    assert len(server.requests) == 1
    assert names(target) == []


@pytest.mark.parametrize(
    "location", ["file:///etc/hostname", "ftp://127.0.0.1:9/file", "//127.0.0.1:port/file", "javascript:alert(1)"]
)
def test_a_redirect_to_what_is_no_web_server_is_a_refusal_and_nothing_is_read(
    server: HttpServer, target: Path, location: str
) -> None:
    server.behaviour["file"] = Behaviour(status=302, location=location)
    with pytest.raises(MirrorRefused, match=f"redirects to {re.escape(location)}, which is not followed"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert names(target) == []


def test_a_redirect_is_followed_but_not_in_a_circle(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(status=302, location="other")
    server.files["other"] = DATA
    fetch(server, target)
    assert target.read_bytes() == DATA
    server.behaviour["file"] = Behaviour(status=302, location=server.address + "file")
    with pytest.raises(MirrorRefused, match="redirects without end"):
        fetch_file(MirrorFile(server.address + "file", len(DATA), SHA256, LIMITS), target.with_name("again"))


def test_a_server_that_is_briefly_overloaded_is_asked_again(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(status=503, times=2)
    fetch(server, target)
    assert target.read_bytes() == DATA
    assert len(server.requests) == 3


def test_a_server_that_stays_overloaded_counts_as_interrupted(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(status=503)
    with pytest.raises(MirrorInterrupted, match="answered 503"):
        fetch(server, target)
    assert len(server.requests) == LIMITS.attempts


def test_a_stall_ends_at_the_time_limit_and_the_rest_is_asked_for(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(stall_after=500_000, times=1)
    fetch(server, target, IMPATIENT)
    assert target.read_bytes() == DATA
    assert server.requests_for("file") == [None, "bytes=500000-"]


def test_a_server_that_always_stalls_is_given_up_and_what_arrived_is_kept(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(stall_after=400_000)
    with pytest.raises(MirrorInterrupted, match=r"no byte for 0.3 s; 800,000 of 1,000,000 bytes"):
        fetch(server, target, IMPATIENT)
    assert target.with_name("file.part").read_bytes() == DATA[:800_000]
    assert names(target) == ["file.part"]


def test_a_trickle_ends_at_the_time_limit_of_the_file(server: HttpServer, target: Path) -> None:
    with pytest.raises(MirrorInterrupted, match="too slow"):
        fetch(server, target, Limits(file_seconds=0))
    assert len(server.requests) == 1


def test_a_server_that_dies_for_good_in_the_middle_counts_as_interrupted(tmp_path: Path) -> None:
    with serving({"file": DATA}) as dying:
        dying.behaviour["file"] = Behaviour(break_after=300_000)

        def die(have: int) -> None:
            if have == 300_000:
                dying.stop()

        with pytest.raises(MirrorInterrupted, match=r"refused the connection .*; 300,000 of 1,000,000 bytes"):
            fetch_file(MirrorFile(dying.address + "file", len(DATA), SHA256, LIMITS), tmp_path / "file", report=die)
    assert (tmp_path / "file.part").read_bytes() == DATA[:300_000]


def test_nobody_there_is_unreachable_at_once(target: Path) -> None:
    started = time.monotonic()
    with refusing() as address, pytest.raises(MirrorUnreachable, match="refused the connection"):
        fetch_file(MirrorFile(address + "file", len(DATA), SHA256), target)
    with pytest.raises(MirrorUnreachable, match="no such name"):
        fetch_file(MirrorFile("http://mirror.invalid/file", len(DATA), SHA256), target)
    assert time.monotonic() - started < 5
    assert names(target) == []


def test_a_silent_server_is_unreachable_at_the_time_limit(server: HttpServer, target: Path) -> None:
    server.behaviour["file"] = Behaviour(silent=True)
    with pytest.raises(MirrorUnreachable, match=r"no answer within 0.3 s"):
        fetch(server, target, Limits(answer_seconds=0.3, stall_seconds=3600))
    assert len(server.requests) == 1
    assert names(target) == []


@pytest.mark.parametrize("form", ["path", "uri"])
@pytest.mark.parametrize("part", [DATA[:10], DATA + b"x"], ids=["short", "long"])
def test_a_folder_of_this_machine_is_a_mirror(tmp_path: Path, target: Path, form: str, part: bytes) -> None:
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / "file").write_bytes(DATA)
    target.with_name("file.part").write_bytes(part)
    mirror = str(folder) if form == "path" else folder.as_uri()
    fetch_file(MirrorFile(file_address(mirror, "file"), len(DATA), SHA256), target)
    assert target.read_bytes() == DATA
    assert names(target) == ["file"]


def test_a_folder_that_lacks_the_file_or_holds_another_does_not_match(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "mirror"
    with pytest.raises(MirrorRefused, match="there is no such file"):
        fetch_file(MirrorFile(file_address(str(folder), "file"), len(DATA), SHA256), target)
    folder.mkdir()
    for wrong, reason in ((DATA[:-1], "truncated"), (DATA + b"x", "sends more"), (DATA[::-1], "SHA-256")):
        (folder / "file").write_bytes(wrong)
        with pytest.raises(MirrorMismatch, match=reason):
            fetch_file(MirrorFile(file_address(str(folder), "file"), len(DATA), SHA256), target)
        assert names(target) == []


@pytest.mark.parametrize("mirror", ["s3://bucket/folder", "http:///folder", "https://host:port/folder"])
def test_an_address_that_cannot_be_opened_is_a_wrong_setting(target: Path, mirror: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be opened"):
        fetch_file(MirrorFile(file_address(mirror, "file"), len(DATA), SHA256), target)


@pytest.mark.parametrize(
    ("mirror", "address"),
    [
        ("https://host/a", "https://host/a/f"),
        ("https://host/a/", "https://host/a/f"),
        ("https://host", "https://host/f"),
        ("https://host/a/?signature=s", "https://host/a/f?signature=s"),
        ("file:///a%20b/", "/a b/f"),
        ("/a%20b", "/a%20b/f"),
    ],
)
def test_the_name_of_the_file_is_appended_to_the_address_of_the_folder(mirror: str, address: str) -> None:
    assert file_address(mirror, "f") == address


def test_a_disk_that_cannot_be_written_is_not_blamed_on_the_mirror(server: HttpServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        fetch(server, tmp_path / "no folder" / "file")
