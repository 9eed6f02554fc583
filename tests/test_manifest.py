"""Manifests: one canonical form, whose digest is the identity of files, and no way out of their folder."""

import hashlib
from pathlib import Path

import pytest

from infra.compute.runner.manifest import (
    BadManifest,
    FileEntry,
    bytes_entry,
    files_sha256,
    folder_entries,
    manifest_bytes,
    parse_manifest,
)


def test_the_identity_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_bytes(b"two")
    (tmp_path / "1.txt").write_bytes(b"one")
    entries = folder_entries(tmp_path)
    assert entries == [bytes_entry("1.txt", b"one"), bytes_entry("b/2.txt", b"two")]
    assert files_sha256(reversed(entries)) == hashlib.sha256(manifest_bytes(entries)).hexdigest()
    assert parse_manifest(manifest_bytes(entries)) == entries
    assert files_sha256(entries) != files_sha256([entries[0], bytes_entry("b/2.txt", b"too")])


def test_an_entry_may_say_where_its_file_lies() -> None:
    entries = [FileEntry("a", 1, "0" * 64, "s3://bucket/raw/a")]
    assert parse_manifest(manifest_bytes(entries)) == entries


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a//b", "", ".", "a\\b"])
def test_a_name_outside_the_folder_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match="no path inside"):
        parse_manifest(manifest_bytes([FileEntry(name, 1, "0" * 64)]))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"files": [1]}', b'{"files": [{"name": "a"}]}', b'{"files": []} '])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(data)
