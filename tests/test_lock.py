"""The lock between processes: one at a time, told who has it, and no file left when nobody wants it any more."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from infra.lock import hold, is_held
from tests.pipeline import ROOT


def nobody(holder: str) -> None:
    raise AssertionError(f"{holder} has it")


def test_many_processes_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from infra.lock import hold
        counter = Path({str(tmp_path / "counter")!r})
        for _ in range(100):
            with hold(Path({str(tmp_path / "locks" / "a.lock")!r}), lambda holder: None, poll_seconds=0.0005):
                counter.write_text(str(int(counter.read_text()) + 1))
    """
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "400"
    assert list((tmp_path / "locks").iterdir()) == []


def test_it_is_held_as_long_as_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with hold(lock, nobody) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
        assert is_held(lock)
        assert lock.read_text() == f"process {os.getpid()}\n"
    assert is_held(lock)
    child.communicate(b"\n")
    assert not is_held(lock)
    with hold(lock, nobody):
        pass
    assert not lock.exists()


def test_a_file_that_tells_of_a_death_stays(tmp_path: Path) -> None:
    with hold(tmp_path / "life.lock", nobody, leave_file=True):
        pass
    assert (tmp_path / "life.lock").exists()
