"""Folders for work in progress, and those that killed processes have left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.scratch import dead_folders, make_folder, temporary_folder
from tests.pipeline import ROOT

MAKE_ONE = """
import sys
from pathlib import Path
from infra.scratch import make_folder
print(make_folder(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def other_process(scratch: Path, *prefix: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that has made a folder, and works until its stdin ends."""
    command = [*prefix, sys.executable, "-c", MAKE_ONE, str(scratch)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


END = """
import os, sys
from pathlib import Path
from infra.scratch import make_folder
from infra.terminal import _end_within
folder = make_folder(Path(sys.argv[1]))
if not os.fork():
    sys.exit()
os.wait()
assert folder.exists(), "a fork is not its owner"
if sys.argv[2] == "cut short":
    _end_within(0, 0)
"""


@pytest.mark.parametrize("how", ["by itself", "cut short"])
def test_a_process_that_ends_leaves_none(tmp_path: Path, how: str) -> None:
    subprocess.run([sys.executable, "-c", END, str(tmp_path), how], cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == []


def test_who_needs_a_folder_removes_those_of_the_dead_and_no_other(tmp_path: Path) -> None:
    # A run with nothing to train provisions nothing, and must leave nothing behind all the same.
    killed, left = other_process(tmp_path)
    assert dead_folders(tmp_path) == []
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert dead_folders(tmp_path) == [left]
    alive = make_folder(tmp_path)
    assert not left.exists()
    with temporary_folder(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([alive, folder])
    assert list(tmp_path.iterdir()) == [alive]


def test_a_process_that_goes_by_no_pid_of_ours_keeps_its_folder(tmp_path: Path) -> None:
    # As in another container: a name of old, with a pid that is nobody's here, says nothing about life.
    other, folder = other_process(tmp_path)
    nobodys = folder.rename(tmp_path / "job-999999999-of-another-namespace")
    make_folder(tmp_path)
    assert nobodys.exists()
    other.communicate()
    make_folder(tmp_path)
    assert not nobodys.exists()
