"""Folders for work in progress, and those that killed processes have left."""

import subprocess
import sys
from pathlib import Path

from infra.scratch import make_folder, temporary_folder


def test_who_needs_a_folder_removes_those_of_the_dead_and_no_other(tmp_path: Path) -> None:
    # A run with nothing to train provisions nothing, and must leave nothing behind all the same.
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"job-{ended.pid}-left"
    left.mkdir()
    alive = make_folder(tmp_path)
    assert not left.exists()
    left.mkdir()
    with temporary_folder(tmp_path) as folder:
        assert not left.exists()
        assert sorted(tmp_path.iterdir()) == sorted([alive, folder])
