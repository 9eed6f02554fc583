"""The folder that a model's files are brought to: replaced as a whole, so only if all of it is a download's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.compute.runner.manifest import FileEntry, bytes_entry, manifest_bytes
from infra.errors import ArgumentError
from tasks.download_artifacts import check_output_dir
from tasks.saved_model import MODEL_FILES, holds_exactly
from tests.pipeline import ROOT
from tests.system_programs import held_to_modes

FILES = {"MLmodel": b"flavors", "data/model.keras": b"weights"}


def write(folder: Path, files: dict[str, bytes]) -> list[FileEntry]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [bytes_entry(name, content) for name, content in files.items()]


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A folder as a download leaves it."""
    folder = tmp_path / "model"
    manifest = manifest_bytes(write(folder, FILES))
    write(folder, {MODEL_FILES: manifest})
    return folder


@pytest.mark.parametrize("new", [set(), {"MLmodel", "data/other_weights.keras"}])
def test_a_download_may_be_replaced(downloaded: Path, new: set[str]) -> None:
    (downloaded / ".DS_Store").write_bytes(b"a file manager's")
    (downloaded / "MLmodel").write_bytes(b"edited")
    check_output_dir(downloaded, new)


@pytest.mark.parametrize("where", ["note.txt", "data/note.txt", ".hidden", "a/new/folder/note.txt"])
def test_a_file_that_no_download_put_there_is_refused_by_name(downloaded: Path, where: str) -> None:
    write(downloaded, {where: b"years of work"})
    with pytest.raises(ArgumentError, match=f"holds what no download has put there: {where}"):
        check_output_dir(downloaded)
    assert (downloaded / where).read_bytes() == b"years of work"


def test_a_link_to_elsewhere_is_refused_too(downloaded: Path, tmp_path: Path) -> None:
    (downloaded / "results").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArgumentError, match="results"):
        check_output_dir(downloaded)


def test_of_many_files_a_few_are_named(downloaded: Path) -> None:
    write(downloaded, {f"note-{number}": b"" for number in range(9)})
    with pytest.raises(ArgumentError, match=r"note-0, .* note-4 and 4 more"):
        check_output_dir(downloaded)


def test_a_download_without_a_list_is_known_by_the_files_of_the_next(downloaded: Path) -> None:
    (downloaded / MODEL_FILES).unlink()
    write(downloaded, {"note.txt": b"years of work"})
    check_output_dir(downloaded)  # Nobody knows yet which files come.
    with pytest.raises(ArgumentError, match=r"note\.txt"):
        check_output_dir(downloaded, set(FILES))
    (downloaded / "note.txt").unlink()
    check_output_dir(downloaded, set(FILES))


@pytest.mark.parametrize("kind", ["file", "dangling link", "other folder"])
def test_what_is_no_download_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    if kind == "file":
        place.write_text("years of work")
    elif kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        write(place, {"thesis.txt": b"years of work"})
    with pytest.raises(ArgumentError, match="is not a downloaded model"):
        check_output_dir(place)


def test_an_empty_folder_and_none_are_taken(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "model")
    (tmp_path / "model").mkdir()
    check_output_dir(tmp_path / "model")


def test_a_file_too_many_is_not_the_model(downloaded: Path) -> None:
    entries = [bytes_entry(name, content) for name, content in FILES.items()]
    listed = bytes_entry(MODEL_FILES, manifest_bytes(entries))
    assert holds_exactly(downloaded, [*entries, listed])
    write(downloaded, {"note.txt": b""})
    assert not holds_exactly(downloaded, [*entries, listed])


@pytest.mark.needs("unshare")
def test_a_place_that_nothing_may_be_written_to_is_refused_ahead(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    check = "import sys; from tasks.download_artifacts import *; check_output_dir(Path(sys.argv[1], 'new', 'model'))"
    command = [sys.executable, "-c", check, str(place)]
    if os.geteuid() == 0:  # Who may write wherever writing is possible at all.
        read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", read_only, str(place), *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ArgumentError: The output folder {place}/new/model cannot be made" in done.stderr


@pytest.mark.needs("setpriv")
def test_a_place_that_may_not_be_looked_at_is_refused_ahead(tmp_path: Path) -> None:
    (tmp_path / "closed" / "inside").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    check = "import sys; from tasks.download_artifacts import *; check_output_dir(Path(sys.argv[1]))"
    for folder, told in (
        ("closed/inside/model", f"may be written to {tmp_path}/closed."),
        ("closed", "may not be read"),
    ):
        command = [*held_to_modes(), sys.executable, "-c", check, str(tmp_path / folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"ArgumentError: The output folder {tmp_path}/{folder}" in done.stderr
        assert told in done.stderr
    (tmp_path / "closed").chmod(0o700)
